//! GPTQ: codes of 2, 3, 4 or 8 bits along the inputs, with a scale and a zero point for each group of inputs and each
//! output.
//!
//! Reference: llama.cpp `dequant_gptq`, which computes the product in f32. It doesn't support 3 bits; for these, the
//! reference is GPTQModel, which computes in the scales' type.

use std::ops::Range;
use std::sync::Arc;

use super::Weight;
use super::parts::{Parts, SCALES, check_shape, check_type, finding, matrix, numbers};
use super::settings::Settings;
use super::words::{Groups, check_words, code, words};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, Packing, TensorRef};
use crate::source::show_shape;

/// Unpacks the method `gptq`.
pub(super) fn unpack(settings: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    // With "dynamic", some modules have other bits and groups, which follow from their tensors.
    let dynamic = settings.get("dynamic").is_some_and(|value| value.as_object().is_some_and(|map| !map.is_empty()));
    let bits = settings.number("bits")?;
    let format = settings.text("checkpoint_format")?.or(settings.text("format")?);
    let offset = match format.as_deref() {
        None | Some("gptq") => 1,
        Some("gptq_v2") => 0,
        Some(other) => {
            let finding = settings.finding("checkpoint_format").expected("gptq or gptq_v2");
            return Err(finding.found(format!("{other:?}")).unsupported());
        }
    };
    let group_size = settings.group_size()?;
    let mut weights = Vec::new();
    for (name, stem) in parts.ending(".qweight") {
        let part = |parts: &mut Parts, end: &str| parts.need(name, &format!("{stem}.{end}"));
        let (codes, zeros, scales) = (part(parts, "qweight")?, part(parts, "qzeros")?, part(parts, "scales")?);
        let groups = parts.take(&format!("{stem}.g_idx"));
        check_words(&codes)?;
        check_words(&zeros)?;
        check_type(&scales, &SCALES[..3])?;
        let (height, outputs) = matrix(&codes)?;
        let (count, _) = matrix(&scales)?;
        check_shape(&scales, &[count, outputs], "as the codes have outputs")?;
        let (_, width) = matrix(&zeros)?;
        let bits = match bits.filter(|_| !dynamic) {
            Some(bits) => bits,
            None => (width as u128 * 32 / outputs as u128) as i64,
        };
        if ![2, 3, 4, 8].contains(&bits) {
            return Err(settings.finding("bits").expected("2, 3, 4 or 8").found(bits).unsupported());
        }
        let bits = bits as usize;
        if !(height * 32).is_multiple_of(bits) || !(outputs * bits).is_multiple_of(32) {
            let expected = format!("whole words of codes of {bits} bits");
            return Err(finding(&codes).expected(expected).found(show_shape(&[height, outputs])).mismatch());
        }
        check_shape(&zeros, &[count, outputs * bits / 32], "for the zero points of each group")?;
        let inputs = height * 32 / bits;
        let size = group_size.unwrap_or(inputs);
        if !dynamic && inputs.div_ceil(size) != count {
            let expected = format!("scales for {} groups of {size} inputs", inputs.div_ceil(size));
            return Err(finding(&scales).expected(expected).found(show_shape(&scales.info().shape)).mismatch());
        }
        if let Some(groups) = &groups {
            Groups::check(groups, inputs, count)?;
        } else if dynamic && !inputs.is_multiple_of(count) {
            let expected = format!("a divisor of {inputs} groups");
            return Err(finding(&scales).expected(expected).found(count).mismatch());
        }
        let size = if dynamic { inputs / count } else { size };
        let dtype = if bits == 3 { scales.info().dtype } else { DType::F32 };
        let of = [codes, zeros, scales].into_iter().chain(groups).collect();
        let packing = Arc::new(Gptq { bits, inputs, outputs, count, size, offset });
        let expr = Expr::Packed { shape: vec![outputs, inputs], parts: of, packing };
        weights.push(Weight::rounded(parts, (name, stem), expr, dtype));
    }
    Ok(weights)
}

/// The packing of a weight, whose parts are codes, zero points, scales, and the group of each input if given.
#[derive(Debug)]
struct Gptq {
    bits: usize,
    inputs: usize,
    outputs: usize,
    /// Number of groups.
    count: usize,
    /// Number of inputs in a group, if the groups of inputs aren't given.
    size: usize,
    /// Number that is added to the stored zero points.
    offset: i32,
}

impl Packing for Gptq {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, _: usize, out: &mut [f32]) {
        let [codes, zeros, scales, rest @ ..] = parts else { return };
        let groups = Groups::new(rest.first(), self.inputs, self.size);
        let (bits, n) = (self.bits, rows.len());
        // Scales and zero points for these outputs, group by group.
        let mut scale = vec![0.0; self.count * n];
        let mut zero = vec![0i32; self.count * n];
        let width = self.outputs * bits / 32;
        let first = rows.start * bits / 32;
        for group in 0..self.count {
            let at = group * self.outputs;
            numbers(scales, at + rows.start..at + rows.end, &mut scale[group * n..(group + 1) * n]);
            let packed = words(zeros, group * width + first..group * width + (rows.end * bits).div_ceil(32));
            for (place, zero) in zero[group * n..(group + 1) * n].iter_mut().enumerate() {
                *zero = code(&packed, (rows.start + place) * bits - first * 32, bits) as i32 + self.offset;
            }
        }
        // The smallest number of words that whole codes fill completely.
        let together = if 32 % bits == 0 { 1 } else { bits };
        let each = together * 32 / bits;
        let mut column = vec![0; together];
        for (chunk, input) in (0..self.inputs).step_by(each).enumerate() {
            let packed: Vec<Vec<u32>> = (chunk * together..(chunk + 1) * together)
                .map(|row| words(codes, row * self.outputs + rows.start..row * self.outputs + rows.end))
                .collect();
            for (place, out) in out.chunks_exact_mut(self.inputs).enumerate() {
                column.iter_mut().zip(&packed).for_each(|(word, row)| *word = row[place]);
                for (k, out) in out[input..].iter_mut().take(each).enumerate() {
                    let at = groups.get(input + k) * n + place;
                    *out = match (scale.get(at), zero.get(at)) {
                        (Some(scale), Some(zero)) => scale * (code(&column, k * bits, bits) as i32 - zero) as f32,
                        _ => f32::NAN,
                    };
                }
            }
        }
    }
}
