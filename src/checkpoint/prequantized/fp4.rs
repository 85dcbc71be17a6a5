//! Four-bit floats (E2M1): MXFP4 as in gpt-oss, NVFP4 as in ModelOpt and compressed-tensors.
//!
//! Reference: transformers `integrations/mxfp4.py`; llama.cpp `conversion/gpt_oss.py` for blocks that are kept;
//! ModelOpt `NVFP4QTensor.dequantize`, which multiplies the two scales first.

use std::ops::Range;
use std::sync::Arc;

use super::Weight;
use super::fp8;
use super::parts::{Parts, check_shape, check_type, finding, numbers};
use super::settings::Settings;
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, Packing, PlannedTensor, TensorRef};
use crate::quant;
use crate::source::show_shape;

/// The value of each code.
const VALUES: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// Unpacks the method `modelopt`: FP8 with scales by tensor or channel, NVFP4, and both in the same model.
pub(super) fn unpack_modelopt(settings: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    let group_size = settings.group_size()?;
    if let Some(size) = group_size.filter(|size| *size != 16) {
        return Err(settings.finding("group_size").expected(16).found(size).unsupported());
    }
    let mut weights = Vec::new();
    for (scale, stem) in parts.ending(".weight_scale") {
        let name = format!("{stem}.weight");
        if parts.peek(&name).is_none_or(|weight| weight.dtype != DType::U8) {
            continue;
        }
        let codes = parts.need(scale, &name)?;
        let scales = parts.need(&name, scale)?;
        let second = parts.take(&format!("{stem}.weight_scale_2"));
        check_type(&scales, &[DType::F8_E4M3])?;
        let place = parts.place(&name).unwrap_or_default();
        weights.push(Weight { name, expr: Fp4::of(codes, scales, second, Second::Multiplies)?, place });
    }
    weights.extend(fp8::scaled(parts, None, false)?);
    Ok(weights)
}

/// How the scale of the whole tensor is applied to the scales of groups.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Second {
    Multiplies,
    Divides,
}

/// The packing of a weight: two codes per byte along the columns, the first in the low half, and a scale for each group
/// of 16 or 32. The parts are codes, scales, and the scale of the whole tensor if there is one.
#[derive(Debug)]
pub(super) struct Fp4 {
    group: usize,
    second: Second,
}

impl Fp4 {
    /// The values of a weight. Groups have 16 columns if their scales are E4M3, and 32 if the scales are powers of two.
    pub(super) fn of(codes: TensorRef, scales: TensorRef, whole: Option<TensorRef>, second: Second) -> Result<Expr> {
        check_type(&codes, &[DType::U8, DType::I8])?;
        check_type(&scales, &[DType::F8_E4M3, DType::U8, DType::F8_E8M0])?;
        let group = if scales.info().dtype == DType::F8_E4M3 { 16 } else { 32 };
        let mut shape = codes.info().shape.clone();
        let Some(columns) = shape.last_mut().filter(|_| codes.info().shape.len() > 1) else {
            let found = show_shape(&codes.info().shape);
            return Err(finding(&codes).expected("at least two dimensions").found(found).mismatch());
        };
        *columns = columns.saturating_mul(2);
        let columns = *columns;
        if !columns.is_multiple_of(group) {
            let expected = format!("rows of whole groups of {group}, two values a byte");
            return Err(finding(&codes).expected(expected).found(show_shape(&codes.info().shape)).mismatch());
        }
        let mut cells = shape.clone();
        if let Some(last) = cells.last_mut() {
            *last = columns / group;
        }
        check_shape(&scales, &cells, "for the scales of each group")?;
        if group == 32 && whole.is_none() {
            // Blocks that GGUF has, too.
            let outputs = crate::source::rows(&shape);
            let packing = Arc::new(Mxfp4 { outputs, groups: columns / 32, turned: false });
            return Ok(Expr::Packed { shape, parts: vec![codes, scales], packing });
        }
        let mut of = vec![codes, scales];
        if let Some(whole) = whole {
            check_type(&whole, &[DType::F32])?;
            if whole.info().elems() != 1 {
                return Err(finding(&whole).expected("one number").found(show_shape(&whole.info().shape)).mismatch());
            }
            of.push(whole);
        }
        Ok(Expr::Packed { shape, parts: of, packing: Arc::new(Fp4 { group, second }) })
    }
}

impl Packing for Fp4 {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]) {
        let [codes, scales, whole @ ..] = parts else { return };
        let mut of_whole = [1.0];
        if let Some(whole) = whole.first() {
            numbers(whole, 0..1, &mut of_whole);
        }
        let cells = row_len / self.group;
        let mut scale = vec![0.0; cells];
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len.max(1))) {
            let at = row * cells..(row + 1) * cells;
            match scales.info().dtype {
                DType::U8 => quant::decode(DType::F8_E8M0, &scales.elements(at), &mut scale),
                _ => numbers(scales, at, &mut scale),
            }
            if !whole.is_empty() {
                for scale in &mut scale {
                    match self.second {
                        Second::Multiplies => *scale *= of_whole[0],
                        Second::Divides => *scale /= of_whole[0],
                    }
                }
            }
            let bytes = codes.elements(row * row_len / 2..(row + 1) * row_len / 2);
            for ((out, bytes), scale) in
                out.chunks_exact_mut(self.group).zip(bytes.chunks_exact(self.group / 2)).zip(&scale)
            {
                for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                    *pair = [byte & 15, byte >> 4].map(|code| VALUES[usize::from(code)] * scale);
                }
            }
        }
    }
}

/// Whether a tensor has codes of four bits, and the other a power of two for each 32 of them.
pub(super) fn is_mxfp4(codes: Option<&PlannedTensor>, scales: Option<&PlannedTensor>) -> bool {
    let (Some(codes), Some(scales)) = (codes, scales) else { return false };
    let is_scale = matches!(scales.dtype, DType::U8 | DType::F8_E8M0);
    is_scale && matches!(codes.dtype, DType::U8 | DType::I8) && scales.shape.len() == codes.shape.len()
}

/// Unpacks the method `mxfp4`.
pub(super) fn unpack_mxfp4(_: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    let mut weights = Vec::new();
    for (name, stem) in parts.ending("_blocks") {
        let blocks = parts.need(name, name)?;
        let scales = parts.need(name, &format!("{stem}_scales"))?;
        check_type(&blocks, &[DType::U8])?;
        check_type(&scales, &[DType::U8, DType::F8_E8M0])?;
        let [experts, outputs, groups, 16] = blocks.info().shape[..] else {
            let found = show_shape(&blocks.info().shape);
            return Err(finding(&blocks).expected("[experts, outputs, groups, 16]").found(found).mismatch());
        };
        check_shape(&scales, &[experts, outputs, groups], "for the scale of each block")?;
        let place = parts.place(name).unwrap_or_default();
        let packing = Arc::new(Mxfp4 { outputs, groups, turned: true });
        // Unpacked experts are stored as [experts, inputs, outputs].
        let shape = vec![experts, groups.saturating_mul(32), outputs];
        weights.push(Weight {
            name: stem.to_owned(),
            expr: Expr::Packed { shape, parts: vec![blocks, scales], packing },
            place,
        });
    }
    for (name, stem) in parts.ending("_scales") {
        if parts.place(name).is_some_and(|place| !parts.is_taken(place)) {
            parts.need(name, &format!("{stem}_blocks"))?;
        }
    }
    Ok(weights)
}

/// The packing of experts: blocks of 32 codes along the inputs of each output, with a power of two for each. The parts
/// are blocks and scales.
#[derive(Debug)]
struct Mxfp4 {
    outputs: usize,
    /// Number of blocks for one output.
    groups: usize,
    /// Whether a row has all outputs for one input, as unpacked experts are stored. Otherwise it has all inputs for one
    /// output, as the blocks are.
    turned: bool,
}

impl Packing for Mxfp4 {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]) {
        let [blocks, scales] = parts else { return };
        if !self.turned {
            let mut scale = [0.0];
            for (block, out) in (rows.start * self.groups..).zip(out.as_chunks_mut::<32>().0) {
                quant::decode(DType::F8_E8M0, &scales.elements(block..block + 1), &mut scale);
                let bytes = blocks.elements(block * 16..(block + 1) * 16);
                for (pair, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(&*bytes) {
                    *pair = [byte & 15, byte >> 4].map(|code| VALUES[usize::from(code)] * scale[0]);
                }
            }
            return;
        }
        let inputs = self.groups * 32;
        let (mut row, mut rest) = (rows.start, out);
        while row < rows.end {
            let (expert, first) = (row / inputs, row % inputs);
            let count = (inputs - first).min(rows.end - row);
            let (here, after) = rest.split_at_mut(count * row_len);
            let mut scale = vec![0.0; (first + count).div_ceil(32) - first / 32];
            for output in 0..self.outputs {
                let line = expert * self.outputs + output;
                let at = line * self.groups + first / 32;
                quant::decode(DType::F8_E8M0, &scales.elements(at..at + scale.len()), &mut scale);
                let bytes = blocks.elements(
                    line * self.groups * 16 + first / 2..line * self.groups * 16 + (first + count).div_ceil(2),
                );
                for input in first..first + count {
                    let byte = bytes[input / 2 - first / 2];
                    let code = if input % 2 == 0 { byte & 15 } else { byte >> 4 };
                    here[(input - first) * row_len + output] =
                        VALUES[usize::from(code)] * scale[input / 32 - first / 32];
                }
            }
            (row, rest) = (row + count, after);
        }
    }

    fn raw_dtype(&self) -> Option<DType> {
        (!self.turned).then_some(DType::MXFP4)
    }

    fn copy(&self, parts: &[TensorRef], rows: Range<usize>, out: &mut Vec<u8>) {
        let [blocks, scales] = parts else { return };
        for block in rows.start * self.groups..rows.end * self.groups {
            let bytes = blocks.elements(block * 16..(block + 1) * 16);
            let code = |at: usize| bytes[at / 2] >> (at % 2 * 4) & 15;
            out.extend_from_slice(&scales.elements(block..block + 1));
            // In GGUF, the first half of a block is in the low halves of the bytes.
            out.extend((0..16).map(|at| code(at) | code(at + 16) << 4));
        }
    }

    fn turned(&self) -> Option<Arc<dyn Packing>> {
        Some(Arc::new(Mxfp4 { turned: !self.turned, ..*self }))
    }
}
