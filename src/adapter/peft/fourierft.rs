//! FourierFT: an update given by some of its frequencies.
//!
//! Reference: huggingface/peft `src/peft/tuners/fourierft/layer.py` (`update_layer`, which draws the frequencies with
//! torch's generator; `get_delta_weight`). There, MKL transforms the whole matrix in f32. Here each row is transformed in
//! f64 when it is needed.

use std::ops::Range;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::module_weight::Weight;
use super::modules::each_module;
use super::rows::made;
use crate::error::Result;
use crate::json::Fields;
use crate::linalg::{Fourier, Mt19937};
use crate::plan::{Expr, RowMap};

/// The changes of a FourierFT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let fan_in_fan_out = fields.get("fan_in_fan_out")?.unwrap_or(false);
    let scaling: f64 = fields.get("scaling")?.unwrap_or(150.0);
    let seed: i64 = fields.get("random_loc_seed")?.unwrap_or(777);
    // The shape of a spectrum shows the number of frequencies.
    fields.ignore(&["init_weights", "n_frequency", "n_frequency_pattern"]);
    each_module(fields, entries, base, "fourierft_spectrum", |entries, module, name| {
        let weight = base.linear(entries, name, module, fan_in_fan_out)?;
        let spectrum = placed(entries, name, &weight, seed)?;
        let shape = if weight.transposed { [weight.d_in, weight.d_out] } else { [weight.d_out, weight.d_in] };
        let waves = Waves { spectrum, down: Fourier::new(shape[0]), across: Fourier::new(shape[1]) };
        let delta = Expr::Scale { of: Box::new(made(shape, waves)), factor: scaling };
        Ok((weight, vec![weight.change(Change::Add(delta))]))
    })
}

/// A number of a vector, and its place in the tensor of a weight: row and column.
pub(super) type Placed = (usize, usize, f32);

/// The numbers of the vector called `name`, each at its place in the tensor of `weight`. PEFT chooses the places in a
/// matrix of outputs by inputs, with torch's generator.
pub(super) fn placed(entries: &mut Entries, name: &str, weight: &Weight, seed: i64) -> Result<Vec<Placed>> {
    let total = weight.d_out * weight.d_in;
    let count = entries.shape(name).map(|shape| shape.iter().product::<usize>()).unwrap_or_default();
    if count == 0 || count > total {
        let finding = entries.finding(name).expected(format_args!("from 1 to {total} numbers by the base model"));
        return Err(finding.found(count).mismatch());
    }
    let values = entries.shaped(name, &[count])?.read()?;
    let places = Mt19937::new(seed as u64).permutation(total as u64, count);
    let at = |(place, value): (u64, f32)| {
        let (output, input) = (place as usize / weight.d_in, place as usize % weight.d_in);
        if weight.transposed { (input, output, value) } else { (output, input, value) }
    };
    Ok(places.into_iter().zip(values).map(at).collect())
}

/// The real part of the reverse Fourier transform of a matrix with few numbers.
#[derive(Debug)]
struct Waves {
    spectrum: Vec<Placed>,
    /// The transforms of columns and of rows.
    down: Fourier,
    across: Fourier,
}

impl RowMap for Waves {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let mut summed = vec![[0.0; 2]; row_len];
        let mut waves = vec![[0.0; 2]; row_len];
        let elems = self.down.len() as f64 * row_len as f64;
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            summed.fill([0.0; 2]);
            for (down, across, value) in &self.spectrum {
                let [real, imaginary] = self.down.root(down * row);
                summed[*across][0] += f64::from(*value) * real;
                summed[*across][1] += f64::from(*value) * imaginary;
            }
            self.across.reverse(&summed, &mut waves);
            out.iter_mut().zip(&waves).for_each(|(out, [real, _])| *out = (real / elems) as f32);
        }
    }
}
