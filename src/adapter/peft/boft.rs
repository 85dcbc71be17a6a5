//! BOFT: inputs are rotated in blocks, and outputs are scaled.
//!
//! Reference: huggingface/peft `src/peft/tuners/boft/layer.py` (`merge`, `cayley_batch`). There, LAPACK solves for the
//! rotation in an order of operations that can't be reproduced. Here it is the exact rotation of the same matrix,
//! rounded to f32.

use std::collections::HashSet;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::rotation::{Rotate, solved};
use super::rows::ScaleRows;
use super::targets::Targets;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::RowMap;
use crate::source::show_shape;

const ROTATION: &str = "boft_R";

/// The changes of a BOFT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    // The shapes determine the blocks and the number of factors, which is one where PEFT had no CUDA, whatever the
    // config says. The kernel of a convolution is rotated as a matrix.
    fields.ignore(&["boft_block_num", "boft_block_size", "boft_n_butterfly_factor", "fan_in_fan_out"]);
    fields.ignore(&["boft_dropout", "init_weights"]);
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules(ROTATION) {
        let name = format!("{module}.{ROTATION}");
        let weight = base.not_turned(entries, &name, &module, "BOFT")?;
        let tensor = entries.need(&name)?;
        let scale_shape = if weight.is_kernel() { [1, weight.d_out] } else { [weight.d_out, 1] };
        let scale = entries.shaped(&format!("{module}.boft_s"), &scale_shape)?.read()?;
        let (factors, size) = match *tensor.shape {
            [factors, blocks, rows, cols] if rows == cols && blocks.checked_mul(rows) == Some(weight.d_in) => {
                (factors, rows)
            }
            _ => {
                return Err(entries
                    .finding(&name)
                    .expected(format_args!("square blocks that make up {} inputs", weight.d_in))
                    .found(format_args!("shape {}", show_shape(&tensor.shape)))
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            }
        };
        if factors != 1 {
            return Err(entries
                .finding(&name)
                .expected("one butterfly factor")
                .found(format_args!("{factors}, which PEFT has for CUDA only"))
                .hint("merge it with PEFT where that has CUDA")
                .unsupported());
        }
        let rotations =
            tensor.read()?.chunks_exact(size * size).flat_map(|block| solved(&skew(block, size), size)).collect();
        let rotate = Rotate::new(rotations, size, weight.d_in, false);
        let maps: [Arc<dyn RowMap>; 2] = [Arc::new(rotate), Arc::new(ScaleRows(scale.into()))];
        for map in maps {
            let change = Change::Map { others: Vec::new(), map, transposed: false };
            changes.push(weight.change(change));
        }
        adapted.insert(weight.tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, ROTATION)?;
    Ok(changes)
}

/// The skew-symmetric part of a matrix.
fn skew(matrix: &[f32], size: usize) -> Vec<f32> {
    let at = |row: usize, col: usize| matrix[row * size + col];
    (0..size * size).map(|i| 0.5 * (at(i / size, i % size) - at(i % size, i / size))).collect()
}
