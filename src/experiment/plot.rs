//! Curves with their deviations, as SVG.

use plotters::prelude::*;
use serde::Serialize;

/// A curve: at each x, the mean of the seeds and their standard deviation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Curve {
    /// Its name in the legend.
    pub name: String,
    /// x, mean and deviation, by x.
    pub points: Vec<(f64, f64, f64)>,
}

/// Curves over the same axes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plot {
    /// What it shows.
    pub title: String,
    /// The name of the horizontal axis.
    pub x: String,
    /// The name of the vertical axis.
    pub y: String,
    /// The curves.
    pub curves: Vec<Curve>,
}

/// Colours that are told apart by people who see red and green alike (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 0, 0),
];

/// Width and height in pixels.
const SIZE: (u32, u32) = (760, 460);

impl Plot {
    /// The plot as an SVG document; `None` without a point to draw.
    pub fn svg(&self) -> Option<String> {
        let points = || self.curves.iter().flat_map(|curve| &curve.points).filter(|(_, mean, _)| mean.is_finite());
        let span = |values: &mut dyn Iterator<Item = f64>| {
            values.fold(None, |span: Option<(f64, f64)>, value| {
                Some(span.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
            })
        };
        let (left, right) = span(&mut points().map(|point| point.0))?;
        let (low, high) = span(&mut points().flat_map(|(_, mean, deviation)| [mean - deviation, mean + deviation]))?;
        let margin = 0.05 * (high - low).max(1e-9);
        let mut svg = String::new();
        self.draw(&mut svg, (left, right.max(left + 1e-9)), (low - margin, high + margin)).ok()?;
        Some(svg)
    }

    fn draw(
        &self,
        svg: &mut String,
        (left, right): (f64, f64),
        (low, high): (f64, f64),
    ) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(left..right, low..high)?;
        chart.configure_mesh().x_desc(&self.x).y_desc(&self.y).light_line_style(WHITE).draw()?;
        for (curve, colour) in self.curves.iter().zip(COLOURS.iter().cycle()) {
            let points: Vec<_> = curve.points.iter().filter(|(_, mean, _)| mean.is_finite()).copied().collect();
            let above = points.iter().map(|(x, mean, deviation)| (*x, mean + deviation));
            let below = points.iter().rev().map(|(x, mean, deviation)| (*x, mean - deviation));
            chart.draw_series([Polygon::new(above.chain(below).collect::<Vec<_>>(), colour.mix(0.12))])?;
            let line = chart
                .draw_series(LineSeries::new(points.iter().map(|(x, mean, _)| (*x, *mean)), colour.stroke_width(2)))?;
            let colour = *colour;
            line.label(&curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_an_svg_with_its_names() {
        let curve = Curve { name: "bank".into(), points: vec![(0.0, 1.0, 0.1), (1.0, 0.5, 0.1), (2.0, f64::NAN, 0.0)] };
        let mut plot = Plot { title: "errors".into(), x: "steps".into(), y: "error".into(), curves: vec![curve] };
        let svg = plot.svg().unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for name in ["bank", "errors", "steps"] {
            assert!(svg.contains(name), "{name}");
        }
        assert!(!svg.contains("NaN"));
        plot.curves.clear();
        assert_eq!(plot.svg(), None);
    }
}
