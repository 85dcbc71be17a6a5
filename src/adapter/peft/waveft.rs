//! WaveFT: an update given by some of its wavelet coefficients.
//!
//! Reference: huggingface/peft `src/peft/tuners/waveft/layer.py` (`update_layer`, which draws the places with torch's
//! generator; `get_delta_weight`) and `waverec2d.py`, in f32. For wavelets of more than two coefficients, oneDNN sums in an
//! order of its own; but few terms of a sum aren't zero.

use std::ops::Range;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::fourierft::{Placed, placed};
use super::modules::each_module;
use super::rows::made;
use super::sparse::scattered;
use super::wavelets::{filters, names};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, RowMap};

/// The changes of a WaveFT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let scaling = fields.get::<f64>("scaling")?.unwrap_or(25.0) as f32;
    let seed: i64 = fields.get("random_loc_seed")?.unwrap_or(777);
    let transforms = fields.get("use_idwt")?.unwrap_or(true);
    let family: String = fields.get("wavelet_family")?.unwrap_or_else(|| "db1".to_owned());
    let Some(filters) = filters(&family) else {
        let expected = format!("one of the wavelets that PEFT can reconstruct ({})", names().join(", "));
        return Err(fields.finding("wavelet_family").expected(expected).found(family).unsupported());
    };
    // The shape of a spectrum shows the number of coefficients.
    fields.ignore(&["init_weights", "n_frequency", "n_frequency_pattern", "proportional_parameters"]);
    each_module(fields, entries, base, "waveft_spectrum", |entries, module, name| {
        let weight = base.linear(entries, name, module, fan_in_fan_out)?;
        let spectrum = placed(entries, name, &weight, seed)?;
        let shape = if weight.transposed { [weight.d_in, weight.d_out] } else { [weight.d_out, weight.d_in] };
        let change = match transforms {
            true => {
                let wavelets = Wavelets::new(spectrum, shape, filters.clone(), weight.transposed);
                Change::Add(Expr::Scale { of: Box::new(made(shape, wavelets)), factor: f64::from(scaling) })
            }
            false => {
                let places = spectrum.iter().map(|(row, column, _)| row * shape[1] + column).collect();
                let values: Vec<f32> = spectrum.iter().map(|(_, _, value)| value * scaling).collect();
                scattered(shape, places, &values, None)
            }
        };
        Ok((weight, vec![weight.change(change)]))
    })
}

/// A coefficient of a band: its row and its column there, the band, and its value.
type Coefficient = (usize, usize, usize, f32);

/// The reconstruction of a matrix from coefficients, most of which are zero.
#[derive(Debug)]
struct Wavelets {
    /// By row, band and column.
    coefficients: Vec<Coefficient>,
    /// For every row of the bands, the first of its coefficients; then the number of all.
    starts: Vec<usize>,
    /// The filters of rows and of columns for each band.
    bands: [[Vec<f32>; 2]; 4],
    /// The place of the matrix in what is reconstructed.
    offset: [usize; 2],
}

impl Wavelets {
    /// `spectrum` has the places in a matrix of `shape`, which is transposed to that of the reference or not.
    fn new(spectrum: Vec<Placed>, shape: [usize; 2], [low, high]: [Vec<f32>; 2], transposed: bool) -> Self {
        let len = low.len();
        // PEFT pads the matrix by what reconstruction takes away, and to an even size. Then it takes the middle.
        let padded = shape.map(|size| (size + len - 2).next_multiple_of(2));
        let half = padded.map(|size| size / 2);
        let margin = (2 * len - 3) / 2;
        let offset = [0, 1].map(|d| margin + (2 * (half[d] - 1) + len - 2 * margin - shape[d]) / 2);
        let place = |(row, column, value): Placed| {
            let (row, column) = (row + (padded[0] - shape[0]) / 2, column + (padded[1] - shape[1]) / 2);
            let (below, right) = (row / half[0], column / half[1]);
            let band = if transposed { 2 * right + below } else { 2 * below + right };
            (row % half[0], column % half[1], band, value)
        };
        let mut coefficients: Vec<Coefficient> = spectrum.into_iter().map(place).collect();
        coefficients.sort_by_key(|(row, column, band, _)| (*row, *band, *column));
        let starts = (0..=half[0]).map(|row| coefficients.partition_point(|c| c.0 < row)).collect();
        let pairs = [[&low, &low], [&high, &low], [&low, &high], [&high, &high]];
        let bands = pairs.map(|[rows, columns]| {
            let (rows, columns) = if transposed { (columns, rows) } else { (rows, columns) };
            [rows.clone(), columns.clone()]
        });
        Self { coefficients, starts, bands, offset }
    }
}

impl RowMap for Wavelets {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let len = self.bands[0][0].len();
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            let row = row + self.offset[0];
            for tap in (row % 2..len).step_by(2) {
                let Some(above) = row.checked_sub(tap).map(|row| row / 2) else { continue };
                let Some([first, end]) = self.starts.get(above..above + 2) else { continue };
                for (_, column, band, value) in &self.coefficients[*first..*end] {
                    let [of_rows, of_columns] = &self.bands[*band];
                    for (i, factor) in of_columns.iter().enumerate() {
                        let place = (2 * column + i).checked_sub(self.offset[1]);
                        if let Some(out) = place.and_then(|place| out.get_mut(place)) {
                            *out = (of_rows[tap] * factor).mul_add(*value, *out);
                        }
                    }
                }
            }
        }
    }
}
