//! A base as it was while its adapter was trained: with weights that bitsandbytes had quantized (QLoRA).
//!
//! The adapter has learned to correct these weights, not those of the 16-bit model. Here they are rounded as the library
//! rounds them, as a part of the plan, so that the update is added to what it was trained on.
//!
//! Reference: transformers `integrations/bitsandbytes.py` (`replace_with_bnb_linear`) for what is quantized.

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::adapter::peft::Base;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor, RowMap, torch_sum};
use crate::quant::bitsandbytes::{BLOCK, FourBits, NestedScales, magnitude, round_to_int8};

/// A type in which bitsandbytes keeps weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseQuant {
    /// Four bits: quantiles of the normal distribution.
    Nf4,
    /// Four bits: floats.
    Fp4,
    /// Whole numbers of eight bits, with a scale for each row (LLM.int8).
    Int8,
}

impl BaseQuant {
    /// All types, by their names.
    pub const ALL: [(&str, BaseQuant); 3] =
        [("nf4", BaseQuant::Nf4), ("fp4", BaseQuant::Fp4), ("int8", BaseQuant::Int8)];

    /// Its name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, quant)| *quant == self).map(|(name, _)| *name).unwrap_or_default()
    }
}

/// How a base was quantized while its adapter was trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseQuantOptions {
    /// The type of the weights.
    pub quant: BaseQuant,
    /// Whether the scales of 4-bit blocks were quantized, too (`bnb_4bit_use_double_quant`).
    pub double_quant: bool,
    /// Whether the result is only described. Then the scales of scales aren't computed.
    pub dry_run: bool,
}

/// `plan`, the weights of `base`, with the rounding of its linear layers, and the number of these. Embeddings, output
/// head, routers and experts that transformers keeps in one parameter stay as they are, as bitsandbytes leaves them.
///
/// # Errors
/// [`crate::Error::Mismatch`] if no weight is that of a linear layer; errors of reading weights, for the scales of
/// scales.
pub fn with_quantized_base(base: &Base, plan: &Plan, options: BaseQuantOptions) -> Result<(Plan, usize)> {
    let mut rounded = 0;
    let mut quantized = |tensor: &PlannedTensor| -> Result<Option<Expr>> {
        let Some(transposed) = base.quantizable(tensor).filter(|_| !stays(base, tensor)) else { return Ok(None) };
        rounded += 1;
        let turned = |of: Expr| if transposed { Expr::Transpose(Box::new(of)) } else { of };
        Ok(Some(turned(rounded_weight(turned(tensor.expr.clone()), tensor, options)?)))
    };
    let mut tensors = plan.tensors.clone();
    // What the class splits or joins is quantized as the class has it.
    let regrouped = base.regrouped();
    for group in regrouped {
        let of_part = |part: &PlannedTensor| Ok(quantized(part)?.unwrap_or_else(|| part.expr.clone()));
        let parts = group.parts.iter().map(of_part).collect::<Result<Vec<_>>>()?;
        for (place, expr) in group.stored.iter().zip(group.stored_of(&parts)) {
            tensors[*place].expr = expr;
        }
    }
    let is_regrouped = |place: usize| regrouped.iter().any(|group| group.stored.contains(&place));
    for (_, tensor) in tensors.iter_mut().enumerate().filter(|(place, _)| !is_regrouped(*place)) {
        if let Some(expr) = quantized(tensor)? {
            tensor.expr = expr;
        }
    }
    if rounded == 0 {
        return Err(Finding::new(base.path(), "weights")
            .expected("linear layers, which bitsandbytes quantizes")
            .found("none")
            .mismatch());
    }
    Ok((Plan { tensors }, rounded))
}

/// Whether the weight of a linear layer, judging by its shape, isn't rounded: embeddings of classes without a family, and
/// modules that transformers keeps in F32.
///
/// Reference: transformers 5.23, `_keep_in_fp32_modules` of all classes.
fn stays(base: &Base, tensor: &PlannedTensor) -> bool {
    /// Kinds of models, and modules of theirs that are kept in F32; no kind stands for all.
    const KEPT: [(&[&str], &str); 3] =
        [(&["t5", "mt5", "umt5", "pop2piano"], "wo"), (&["blip-2"], "qformer"), (&[], "weights_proj")];
    let name = base.own_name(&tensor.name);
    let parts: Vec<&str> = name.split('.').collect();
    let module = parts.iter().rev().nth(1).copied().unwrap_or_default();
    let is_embedding =
        module.starts_with("embed_") || ["embedding", "embeddings", "embed"].iter().any(|end| module.ends_with(end));
    let kind = base.config().get("model_type").and_then(|kind| kind.as_str()).unwrap_or_default();
    let is_kept = |(kinds, part): &(&[&str], &str)| (kinds.is_empty() || kinds.contains(&kind)) && parts.contains(part);
    is_embedding || KEPT.iter().any(is_kept)
}

/// The weight `of`, `[d_out, d_in]`, after rounding; `tensor` is its tensor in the base.
fn rounded_weight(of: Expr, tensor: &PlannedTensor, options: BaseQuantOptions) -> Result<Expr> {
    let kind = match options.quant {
        BaseQuant::Nf4 => FourBits::Nf4,
        BaseQuant::Fp4 => FourBits::Fp4,
        BaseQuant::Int8 => {
            // The library rounds to F16 first, and gives F32 back.
            let of = Expr::Round { of: Box::new(of), dtype: DType::F16 };
            return Ok(Expr::Map { of: vec![of], map: Arc::new(Int8) });
        }
    };
    let shape = of.shape();
    let blocks = in_blocks(of, &shape);
    let nested = match options.double_quant && !options.dry_run {
        true => Some(nested_scales(&blocks, tensor)?),
        false => None,
    };
    let map = Expr::Map { of: vec![blocks], map: Arc::new(Blocks { kind, nested }) };
    let expr = if map.shape() == shape { map } else { Expr::Reshape { of: Box::new(map), shape } };
    // The library computes in F32, and gives the weight's own type back.
    Ok(match tensor.dtype {
        DType::F32 => expr,
        dtype => Expr::Round { of: Box::new(expr), dtype },
    })
}

/// `of` in rows that end where a block ends: its own rows, several of them together, or all.
fn in_blocks(of: Expr, shape: &[usize]) -> Expr {
    let (elems, row_len) = (shape.iter().product::<usize>(), shape.last().copied().unwrap_or(1));
    if row_len.is_multiple_of(BLOCK) {
        return of;
    }
    let together = (1..=BLOCK).map(|rows| rows * row_len).find(|len| len.is_multiple_of(BLOCK));
    let row = together.filter(|len| elems.is_multiple_of(*len)).unwrap_or(elems);
    Expr::Reshape { of: Box::new(of), shape: vec![elems / row.max(1), row] }
}

/// The scales of the scales of `blocks`, which need the mean of all: the tensor is read once more.
fn nested_scales(blocks: &Expr, tensor: &PlannedTensor) -> Result<NestedScales> {
    /// Values in memory at a time.
    const AT_A_TIME: usize = 1 << 20;
    let shape = blocks.shape();
    let tensor = PlannedTensor { expr: blocks.clone(), shape, ..tensor.clone() };
    let (rows, row_len) = (tensor.rows(), tensor.row_len().max(1));
    let step = (AT_A_TIME / row_len).max(1);
    let mut magnitudes: Vec<f32> = Vec::with_capacity(tensor.elems().div_ceil(BLOCK));
    for start in (0..rows).step_by(step) {
        let values = tensor.read_rows(start..(start + step).min(rows))?;
        magnitudes.extend(values.chunks(BLOCK).map(magnitude));
    }
    let mean = torch_sum(&magnitudes) / magnitudes.len().max(1) as f32;
    Ok(NestedScales::new(&magnitudes, mean))
}

/// Rounds rows that consist of blocks.
#[derive(Debug)]
struct Blocks {
    kind: FourBits,
    /// The scales of scales, with double quantization.
    nested: Option<NestedScales>,
}

impl RowMap for Blocks {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        // Only a row that is the whole tensor may end within a block.
        let first = rows.start * row_len / BLOCK;
        for (number, block) in out.chunks_mut(BLOCK).enumerate() {
            let scale = self.nested.as_ref().map(|nested| nested.of(first + number, magnitude(block)));
            self.kind.round(block, scale);
        }
    }
}

/// Rounds rows to 8-bit whole numbers.
#[derive(Debug)]
struct Int8;

impl RowMap for Int8 {
    fn apply(&self, _: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        out.chunks_mut(row_len.max(1)).for_each(round_to_int8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(shape: [usize; 2]) -> PlannedTensor {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 4096.0).collect();
        let expr = Expr::Values { shape: shape.to_vec(), values: values.into() };
        PlannedTensor { name: "w".into(), dtype: DType::F32, shape: shape.to_vec(), expr }
    }

    #[test]
    fn blocks_run_through_rows_of_any_length() {
        let options = BaseQuantOptions { quant: BaseQuant::Nf4, double_quant: true, dry_run: false };
        // Rows of whole blocks; rows that end within blocks; a tensor that ends within one.
        for shape in [[6, 128], [32, 36], [5, 27]] {
            let tensor = weight(shape);
            let expr = rounded_weight(tensor.expr.clone(), &tensor, options).unwrap();
            let rounded = PlannedTensor { expr, ..tensor.clone() };
            let found = rounded.read().unwrap();
            let mut expected = tensor.read().unwrap();
            let magnitudes: Vec<f32> = expected.chunks(BLOCK).map(magnitude).collect();
            let nested = NestedScales::new(&magnitudes, torch_sum(&magnitudes) / magnitudes.len() as f32);
            for (block, values) in expected.chunks_mut(BLOCK).enumerate() {
                FourBits::Nf4.round(values, Some(nested.of(block, magnitudes[block])));
            }
            assert_eq!(found, expected, "{shape:?}");
            // Any range of rows can be made alone, unless the tensor is one row.
            assert_eq!(rounded.read_rows(0..1).unwrap(), expected[..shape[1]], "{shape:?}");
        }
    }
}
