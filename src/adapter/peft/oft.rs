//! OFT: inputs are rotated in blocks, with their taps in convolutions; for embeddings, the embedding vectors.
//!
//! Reference: huggingface/peft `src/peft/tuners/oft/layer.py` (`OFTRotationModule`, `merge`). It multiplies by the
//! whole block-diagonal matrix; multiplying by the blocks alone gives the same bits. Without `use_cayley_neumann`,
//! LAPACK solves for the rotation in an order of operations that can't be reproduced, so here it is the exact rotation,
//! rounded to f32.

use std::collections::HashSet;
use std::sync::Arc;

use super::Named;
use super::base::Base;
use super::change::Change;
use super::dora::norm;
use super::entries::Entries;
use super::rotation::{self, Rotate};
use super::targets::Targets;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::PlannedTensor;
use crate::source::show_shape;

const ROTATION: &str = "oft_R.weight";
const EMBEDDING: &str = "oft_embedding_R.weight";

/// The largest number of terms of a series; PEFT's default is 5.
const MAX_TERMS: usize = 1000;

/// The settings of all modules.
struct Config {
    block_share: bool,
    /// The number of terms of the series; `None` where the rotation is solved for.
    terms: Option<usize>,
    /// The control strength of a constrained rotation.
    eps: Option<f32>,
}

/// The changes of an OFT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let series = fields.get("use_cayley_neumann")?.unwrap_or(true);
    let terms = fields.count_or("num_cayley_neumann_terms", 5)?;
    if terms > MAX_TERMS {
        let finding = fields.finding("num_cayley_neumann_terms").expected(format_args!("at most {MAX_TERMS}"));
        return Err(finding.found(terms).unsupported());
    }
    let coft = fields.get("coft")?.unwrap_or(false);
    let eps: f64 = fields.get("eps")?.unwrap_or(6e-5);
    let config = Config {
        block_share: fields.get("block_share")?.unwrap_or(false),
        terms: series.then_some(terms),
        eps: coft.then_some(eps as f32),
    };
    if fields.get::<usize>("oft_block_size")?.is_none() {
        return Err(fields
            .finding("oft_block_size")
            .expected("a block size, which every OFT adapter has since PEFT 0.14")
            .found("none")
            .hint("this is the older form of OFT, which PEFT can't load either")
            .unsupported());
    }
    // PEFT adjusts `r` and the block size to divisors of the inputs, so the shapes decide. The kernel of a
    // convolution is rotated as a matrix.
    fields.ignore(&["r", "fan_in_fan_out", "init_weights", "module_dropout"]);
    let targets = Targets::read(fields)?;
    let (mut changes, mut adapted) = (Vec::new(), HashSet::new());
    for module in entries.modules(ROTATION) {
        let name = format!("{module}.{ROTATION}");
        let weight = base.not_turned(entries, &name, &module, "OFT")?;
        let rotate = rotate(&config, entries, &name, weight.d_in, false)?;
        changes.push(weight.change(rotated(rotate)));
        adapted.insert(weight.tensor.name.clone());
    }
    for module in entries.modules(EMBEDDING) {
        let name = format!("{module}.{EMBEDDING}");
        let tensor = base.matrix(entries, &name, &format!("{module}.weight"))?;
        let rotate = rotate(&config, entries, &name, tensor.shape[1], true)?;
        changes.push((tensor.name.clone(), rotated(rotate)));
        adapted.insert(tensor.name.clone());
    }
    targets.complete(entries, base, &adapted, ROTATION)?;
    Ok(changes)
}

fn rotated(rotate: Rotate) -> Change {
    Change::Map { others: Vec::new(), map: Arc::new(rotate), transposed: false }
}

/// The rotation that the tensor called `name` describes, for rows of `width`; `backwards` for an embedding, which PEFT
/// multiplies from the other side.
fn rotate(config: &Config, entries: &mut Entries, name: &str, width: usize, backwards: bool) -> Result<Rotate> {
    let tensor = entries.need(name)?;
    let Some(size) = block_size(&tensor, width, config.block_share) else {
        return Err(entries
            .finding(name)
            .expected(format_args!("upper triangles of blocks that make up {width} inputs"))
            .found(format_args!("shape {}", show_shape(&tensor.shape)))
            .hint("this adapter belongs to another base model, or its config is not its own")
            .mismatch());
    };
    let triangles = match tensor.elems() {
        0 => Vec::new(),
        _ => tensor.read()?,
    };
    let mut rotations = Vec::with_capacity(tensor.shape[0] * size * size);
    for block in 0..tensor.shape[0] {
        let values = size * (size - 1) / 2;
        let mut skew = skew(&triangles[block * values..][..values], size);
        if let Some(eps) = config.eps {
            // torch divides a number by a tensor in two steps: reciprocal, then product.
            constrain(&mut skew, 1.0 / (tensor.shape[0] as f32).sqrt() * eps);
        }
        rotations.extend(match config.terms {
            Some(terms) => rotation::series(&skew, size, terms),
            None => rotation::solved(&skew, size),
        });
    }
    Ok(Rotate::new(rotations, size, width, backwards))
}

/// The block size for `width` inputs, from the shape of the blocks' triangles.
fn block_size(tensor: &PlannedTensor, width: usize, shared: bool) -> Option<usize> {
    let &[blocks, values] = tensor.shape.as_slice() else { return None };
    let size = match shared {
        true => values.checked_mul(8)?.checked_add(1)?.isqrt().div_ceil(2),
        false => width.checked_div(blocks)?,
    };
    let fits = width.is_multiple_of(size)
        && size.checked_mul(size.checked_sub(1)?)? / 2 == values
        && blocks == if shared { 1 } else { width / size };
    (fits && size > 0).then_some(size)
}

/// The skew-symmetric matrix of an upper triangle. Both are stored row by row.
fn skew(triangle: &[f32], size: usize) -> Vec<f32> {
    let mut skew = vec![0.0; size * size];
    let mut values = triangle.iter();
    for row in 0..size {
        for (col, value) in (row + 1..size).zip(&mut values) {
            skew[row * size + col] = *value;
            skew[col * size + row] = 0.0 - value;
        }
    }
    skew
}

/// Scales a matrix down to a norm of `eps` if its norm is larger.
fn constrain(skew: &mut [f32], eps: f32) {
    let norm = norm(skew);
    if norm > eps {
        skew.iter_mut().for_each(|v| *v = eps * (*v / norm));
    }
}
