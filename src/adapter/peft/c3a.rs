//! C3A: an update of circulant blocks, each given by its first row.
//!
//! Reference: huggingface/peft `src/peft/tuners/c3a/layer.py` (`get_delta_weight`) and `utils.py`
//! (`get_circulant_fast`). There, the blocks are made by a discrete Fourier transform and its reverse, which only adds
//! rounding errors. Here they are the numbers themselves. The update is rounded to the weight's type before and after it
//! is divided by the number of inputs.

use std::ops::Range;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::modules::each_module;
use super::rows::{Divide, made, map};
use crate::error::Result;
use crate::json::Fields;
use crate::plan::RowMap;
use crate::source::show_shape;

/// The changes of a C3A adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    // The shape of a kernel shows its block size.
    fields.ignore(&["block_size", "block_size_pattern", "init_weights"]);
    each_module(fields, entries, base, "c3a_kernel", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "C3A")?;
        let tensor = entries.need(name)?;
        let size = match *tensor.shape {
            [down, across, size]
                if down.checked_mul(size) == Some(weight.d_out) && across.checked_mul(size) == Some(weight.d_in) =>
            {
                size
            }
            _ => {
                return Err(entries
                    .finding(name)
                    .expected(format_args!("blocks that make up {}", show_shape(&[weight.d_out, weight.d_in])))
                    .found(format_args!("shape {}", show_shape(&tensor.shape)))
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            }
        };
        let blocks = made([weight.d_out, weight.d_in], Circulant { kernels: tensor.read()?, size });
        let divided = map(base.rounded(blocks, weight.tensor.dtype), Divide(weight.d_in as f32));
        let delta = base.rounded(divided, weight.tensor.dtype);
        Ok((weight, vec![weight.change(Change::Add(delta))]))
    })
}

/// A matrix of circulant blocks.
#[derive(Debug)]
struct Circulant {
    /// The first row of every block, one row of blocks after the other.
    kernels: Vec<f32>,
    size: usize,
}

impl RowMap for Circulant {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len)) {
            let kernels = &self.kernels[row / self.size * row_len..][..row_len];
            for (kernel, out) in kernels.chunks_exact(self.size).zip(out.chunks_exact_mut(self.size)) {
                // The first number is on the diagonal.
                let (before, after) = out.split_at_mut(row % self.size);
                let (first, last) = kernel.split_at(after.len());
                after.copy_from_slice(first);
                before.copy_from_slice(last);
            }
        }
    }
}
