//! The results of an experiment: tables and plots, as Markdown and JSON.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::plot::Plot;
use super::tuning::Choice;
use crate::error::{Finding, IoContext, Result};
use crate::output::Destination;
use crate::plan::Staging;

/// Results of one setting, one for each seed. A run that gave no finite number has diverged.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Sample(pub Vec<f64>);

impl Sample {
    /// The results that are finite.
    fn finite(&self) -> impl Iterator<Item = f64> + Clone {
        self.0.iter().copied().filter(|value| value.is_finite())
    }

    /// The number of runs that diverged.
    pub fn diverged(&self) -> usize {
        self.0.len() - self.finite().count()
    }

    /// The mean of the finite results; NaN without any.
    pub fn mean(&self) -> f64 {
        self.finite().sum::<f64>() / self.finite().count() as f64
    }

    /// Their standard deviation, with n - 1; 0 for fewer than two.
    pub fn deviation(&self) -> f64 {
        let (mean, count) = (self.mean(), self.finite().count());
        match count {
            0 | 1 => 0.0,
            _ => (self.finite().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1) as f64).sqrt(),
        }
    }

    /// The differences to `other`, seed by seed.
    pub fn minus(&self, other: &Self) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a - b).collect())
    }

    /// `0.967 ± 0.013`, with the number of diverged runs if there are some.
    pub fn show(&self) -> String {
        let diverged = match self.diverged() {
            0 => String::new(),
            count => format!(", {count} diverged"),
        };
        format!("{:.3} ± {:.3}{diverged}", self.mean(), self.deviation())
    }
}

/// A row of a table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The first cell.
    pub name: String,
    /// The number of trained values.
    pub values: usize,
    /// The settings that were chosen, such as the learning rate.
    pub settings: String,
    /// One sample for each of the table's columns.
    pub samples: Vec<Sample>,
}

/// A table of samples.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Table {
    /// What was measured.
    pub title: String,
    /// The head of the first column.
    pub of: String,
    /// The heads of the columns with samples.
    pub columns: Vec<String>,
    /// Its rows.
    pub rows: Vec<Row>,
}

/// The results of an experiment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Its name on the command line.
    pub name: String,
    /// What was compared, and how: a few sentences.
    pub about: String,
    /// The number of seeds.
    pub seeds: usize,
    /// What was chosen for each method, by its name.
    pub chosen: BTreeMap<String, Choice>,
    /// The tables.
    pub tables: Vec<Table>,
    /// The plots.
    pub plots: Vec<Plot>,
}

impl Table {
    fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n| {} | trained values | settings |", self.title, self.of);
        self.columns.iter().for_each(|column| text += &format!(" {column} |"));
        text += "\n|---|---|---|";
        self.columns.iter().for_each(|_| text += "---|");
        text.push('\n');
        for row in &self.rows {
            text += &format!("| {} | {} | {} |", row.name, row.values, row.settings);
            row.samples.iter().for_each(|sample| text += &format!(" {} |", sample.show()));
            text.push('\n');
        }
        text
    }
}

impl Report {
    /// The tables, and links to the plots, which are files `NAME-1.svg` and so on beside the text.
    pub fn markdown(&self) -> String {
        let mut parts = vec![format!("## {}\n\n{}\n", self.name, self.about)];
        parts.extend(self.tables.iter().map(Table::markdown));
        let link = |(number, plot): (usize, &Plot)| format!("![{}]({}-{}.svg)\n", plot.title, self.name, number + 1);
        parts.extend(self.plots.iter().enumerate().map(link));
        parts.join("\n")
    }
}

/// The part of a report's JSON that later experiments take.
#[derive(Deserialize)]
struct Chosen {
    chosen: BTreeMap<String, Choice>,
}

impl Report {
    /// What was chosen for each method, from the JSON of a report.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Format`] for a file of another kind.
    pub fn read_chosen(path: &Path) -> Result<BTreeMap<String, Choice>> {
        let text = std::fs::read_to_string(path).at(path, "read")?;
        let chosen: Chosen = serde_json::from_str(&text).map_err(|error| {
            Finding::new(path, "chosen").expected("the JSON of a report of an experiment").found(error).format()
        })?;
        Ok(chosen.chosen)
    }

    /// Checks that a report can be written to `folder`.
    ///
    /// # Errors
    /// [`crate::Error::Exists`] and others of [`Destination::check`].
    pub fn check(folder: &Path, overwrite: bool) -> Result<()> {
        Destination { overwrite, ..Destination::new(folder) }.check()
    }

    /// Writes tables, numbers and plots into `folder`, which appears when it is complete: `NAME.md`, `NAME.json`,
    /// `NAME-1.svg` and so on.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], [`crate::Error::Io`].
    pub fn write(&self, folder: &Path, overwrite: bool) -> Result<()> {
        Self::check(folder, overwrite)?;
        let staging = Staging::folder(folder, overwrite)?;
        let write = |name: String, text: String| {
            let path = staging.path().join(name);
            std::fs::write(&path, text).at(&path, "write")
        };
        write(format!("{}.md", self.name), self.markdown())?;
        let json = serde_json::to_string_pretty(self).unwrap_or_default();
        write(format!("{}.json", self.name), json + "\n")?;
        for (number, plot) in self.plots.iter().enumerate() {
            if let Some(svg) = plot.svg() {
                write(format!("{}-{}.svg", self.name, number + 1), svg)?;
            }
        }
        staging.commit()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_up_without_what_diverged() {
        let sample = Sample(vec![1.0, 3.0, f64::NAN, f64::INFINITY]);
        assert_eq!((sample.mean(), sample.diverged()), (2.0, 2));
        assert_eq!(sample.show(), "2.000 ± 1.414, 2 diverged");
        assert_eq!(Sample(vec![1.0, 2.0]).minus(&Sample(vec![0.5, 2.5])).0, [0.5, -0.5]);
        assert_eq!(Sample(vec![4.0]).show(), "4.000 ± 0.000");
    }

    #[test]
    fn a_report_is_a_section_of_markdown() {
        let row = Row { name: "LoRA".into(), values: 8, settings: "lr 0.01".into(), samples: vec![Sample(vec![0.5])] };
        let table = Table { title: "t".into(), of: "method".into(), columns: vec!["error".into()], rows: vec![row] };
        let plots = vec![Plot { title: "p".into(), x: "steps".into(), y: "error".into(), curves: vec![] }];
        let (name, about, chosen) = ("x".into(), "About.".into(), BTreeMap::new());
        let report = Report { name, about, seeds: 1, chosen, tables: vec![table], plots };
        let expected = "## x\n\nAbout.\n\n### t\n\n| method | trained values | settings | error |\n|---|---|---|---|\n\
                        | LoRA | 8 | lr 0.01 | 0.500 ± 0.000 |\n\n![p](x-1.svg)\n";
        assert_eq!(report.markdown(), expected);
    }
}
