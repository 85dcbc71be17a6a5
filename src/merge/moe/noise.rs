//! Noise and scale of an expert's weights.

use std::ops::Range;
use std::sync::Arc;

use super::Expert;
use crate::dtype::DType;
use crate::linalg::Normals;
use crate::plan::{Expr, PlannedTensor, RowMap};

/// Adds normally distributed numbers, rounding as a tensor of the type does.
#[derive(Debug)]
struct Noise {
    normals: Normals,
    scale: f32,
    dtype: DType,
}

impl RowMap for Noise {
    fn apply(&self, rows: Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        let mut noise = vec![0.0; out.len()];
        self.normals.fill((rows.start * row_len) as u64, &mut noise);
        let rounded = |value: f32| match self.dtype {
            DType::BF16 => half::bf16::from_f32(value).to_f32(),
            DType::F16 => half::f16::from_f32(value).to_f32(),
            _ => value,
        };
        for (value, noise) in out.iter_mut().zip(noise) {
            *value = rounded(*value + rounded(rounded(noise) * self.scale));
        }
    }
}

/// A weight of an expert: `tensor` with the expert's noise, drawn as `normals`, and, if it `is_residual`, its scale. Every
/// step is rounded to the weight's own type, as in mergekit.
pub(super) fn expert_weight(
    tensor: &PlannedTensor,
    expert: &Expert,
    normals: Option<Normals>,
    is_residual: bool,
) -> Expr {
    let mut expr = tensor.expr.clone();
    if let (Some(scale), Some(normals)) = (expert.noise_scale, normals) {
        let noise = Noise { normals, scale: scale as f32, dtype: tensor.dtype };
        expr = Expr::Map { of: vec![expr], map: Arc::new(noise) };
    }
    match expert.residual_scale.filter(|_| is_residual) {
        None => expr,
        Some(scale) => {
            let scaled = Expr::Scale { of: Box::new(expr), factor: scale };
            Expr::Round { of: Box::new(scaled), dtype: tensor.dtype }
        }
    }
}
