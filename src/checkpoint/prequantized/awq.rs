//! AWQ in the `gemm` layout: words of eight 4-bit codes along the outputs, in a special order, with a scale and a zero
//! point for each group of inputs and each output.
//!
//! Reference: AutoAWQ `awq/utils/packing_utils.py` (`dequantize_gemm`), which computes in the scales' type.

use std::ops::Range;
use std::sync::Arc;

use super::Weight;
use super::parts::{Parts, SCALES, check_shape, check_type, finding, matrix, numbers};
use super::settings::Settings;
use super::words::{check_words, words};
use crate::error::Result;
use crate::plan::{Expr, Packing, TensorRef};
use crate::source::show_shape;

/// For each of eight outputs, the position of its code in the word.
const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Unpacks the method `awq`.
pub(super) fn unpack(settings: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    for (name, allowed) in [("version", "gemm"), ("format", "gemm"), ("checkpoint_format", "gemm")] {
        if let Some(found) = settings.text(name)?.filter(|text| text != allowed) {
            let finding = settings.finding(name).expected(allowed).found(format!("{found:?}"));
            return Err(finding.hint("take the model that it was made of").unsupported());
        }
    }
    let bits = settings.number("bits")?.or(settings.number("w_bit")?).unwrap_or(4);
    if bits != 4 {
        return Err(settings.finding("bits").expected(4).found(bits).unsupported());
    }
    let group_size = match settings.get("q_group_size") {
        Some(_) => {
            settings.number("q_group_size")?.and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0)
        }
        None => settings.group_size()?,
    };
    let mut weights = Vec::new();
    for (name, stem) in parts.ending(".qweight") {
        let part = |parts: &mut Parts, end: &str| parts.need(name, &format!("{stem}.{end}"));
        let (codes, zeros, scales) = (part(parts, "qweight")?, part(parts, "qzeros")?, part(parts, "scales")?);
        check_words(&codes)?;
        check_words(&zeros)?;
        check_type(&scales, &SCALES[..3])?;
        let (inputs, width) = matrix(&codes)?;
        let outputs = width.saturating_mul(8);
        let size = group_size.unwrap_or(inputs);
        if !inputs.is_multiple_of(size) {
            let expected = format!("inputs in whole groups of {size}");
            return Err(finding(&codes).expected(expected).found(show_shape(&[inputs, width])).mismatch());
        }
        check_shape(&zeros, &[inputs / size, width], "for the zero points of each group")?;
        check_shape(&scales, &[inputs / size, outputs], "for the scales of each group")?;
        let dtype = scales.info().dtype;
        let packing = Arc::new(Awq { inputs, outputs, size });
        let expr = Expr::Packed { shape: vec![outputs, inputs], parts: vec![codes, zeros, scales], packing };
        weights.push(Weight::rounded(parts, (name, stem), expr, dtype));
    }
    Ok(weights)
}

/// The packing of a weight, whose parts are codes, zero points and scales.
#[derive(Debug)]
struct Awq {
    inputs: usize,
    outputs: usize,
    /// Number of inputs in a group.
    size: usize,
}

impl Packing for Awq {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, _: usize, out: &mut [f32]) {
        let [codes, zeros, scales] = parts else { return };
        let width = self.outputs / 8;
        let (first, last) = (rows.start / 8, rows.end.div_ceil(8));
        let code = |packed: &[u32], row: usize| (packed[row / 8 - first] >> (4 * PLACES[row % 8]) & 15) as i32;
        let mut scale = vec![0.0; rows.len()];
        let mut zero = Vec::new();
        for input in 0..self.inputs {
            let group = input / self.size;
            if input % self.size == 0 {
                let at = group * self.outputs;
                numbers(scales, at + rows.start..at + rows.end, &mut scale);
                let packed = words(zeros, group * width + first..group * width + last);
                zero = rows.clone().map(|row| code(&packed, row)).collect();
            }
            let packed = words(codes, input * width + first..input * width + last);
            for (place, row) in rows.clone().enumerate() {
                out[place * self.inputs + input] = (code(&packed, row) - zero[place]) as f32 * scale[place];
            }
        }
    }
}
