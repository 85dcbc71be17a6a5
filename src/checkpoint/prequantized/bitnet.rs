//! BitNet: each byte holds four ternary digits, one from each quarter of the rows. The matrix has one scale.
//!
//! transformers' `BitLinear` divides by the scale; its `AutoBitLinear` multiplies by it (`integrations/bitnet.py`). The
//! field `linear_class` says which of the two applies. llama.cpp (`dequant_bitnet`) always divides.

use std::ops::Range;
use std::sync::Arc;

use super::Weight;
use super::parts::{Parts, SCALES, check_type, finding, matrix, numbers};
use super::settings::Settings;
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, Packing, TensorRef};
use crate::source::show_shape;

/// Unpacks the method `bitnet`.
pub(super) fn unpack(settings: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    let multiplies = match settings.text("linear_class")?.as_deref() {
        None | Some("bitlinear") => false,
        Some("autobitlinear") => true,
        Some(other) => {
            let finding = settings.finding("linear_class").expected("bitlinear or autobitlinear");
            return Err(finding.found(format!("{other:?}")).unsupported());
        }
    };
    let mut weights = Vec::new();
    for (scale, stem) in parts.ending(".weight_scale") {
        let name = format!("{stem}.weight");
        let digits = parts.need(scale, &name)?;
        let scale = parts.need(&name, scale)?;
        check_type(&digits, &[DType::U8])?;
        check_type(&scale, &SCALES[..3])?;
        if scale.info().elems() != 1 {
            return Err(finding(&scale).expected("one number").found(show_shape(&scale.info().shape)).mismatch());
        }
        let (quarter, columns) = matrix(&digits)?;
        let place = parts.place(&name).unwrap_or_default();
        let shape = vec![quarter.saturating_mul(4), columns];
        let expr =
            Expr::Packed { shape, parts: vec![digits, scale], packing: Arc::new(Bitnet { quarter, multiplies }) };
        weights.push(Weight { name, expr, place });
    }
    Ok(weights)
}

/// The packing of a weight, whose parts are the digits and the scale.
#[derive(Debug, Clone, Copy)]
struct Bitnet {
    /// Number of rows in a quarter.
    quarter: usize,
    /// Whether digits are multiplied by the scale. Otherwise they are divided by it.
    multiplies: bool,
}

impl Packing for Bitnet {
    fn as_llama_cpp(&self) -> Option<Arc<dyn Packing>> {
        self.multiplies.then(|| Arc::new(Bitnet { multiplies: false, ..*self }) as Arc<dyn Packing>)
    }

    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]) {
        let [digits, scale] = parts else { return };
        let mut scales = [1.0];
        numbers(scale, 0..1, &mut scales);
        let [scale] = scales;
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len.max(1))) {
            let (shift, row) = (row / self.quarter * 2, row % self.quarter);
            let bytes = digits.elements(row * row_len..(row + 1) * row_len);
            for (out, byte) in out.iter_mut().zip(&*bytes) {
                let digit = f32::from(byte >> shift & 3) - 1.0;
                *out = if self.multiplies { digit * scale } else { digit / scale };
            }
        }
    }
}
