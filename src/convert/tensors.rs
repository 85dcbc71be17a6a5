//! The tensors of the output: every weight checked against the config, named, typed and ordered.

use std::f32::consts::PI;
use std::sync::Arc;

use super::{OutType, gguf_name};
use crate::checkpoint::{Architecture, HfFolder, ModelConfig, RopeScaling, check_tensors, is_buffer};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor};

/// The output's tensors: the frequency factors of Llama 3, then the weights in the reference's
/// order, file by file and by name within each.
pub(super) fn plan(folder: &HfFolder, weights: &Plan, outtype: OutType) -> Result<Plan> {
    let config = &folder.config;
    check_tensors(folder.path(), config, weights)?;
    let mut kept: Vec<&PlannedTensor> = weights.tensors.iter().filter(|t| !is_buffer(&t.name)).collect();
    kept.sort_by_cached_key(|tensor| (tensor.expr.source_path(), tensor.name.clone()));
    let mut tensors = Vec::with_capacity(kept.len() + 1);
    if let Some(factors) = rope_factors(config) {
        tensors.push(PlannedTensor {
            name: "rope_freqs.weight".to_owned(),
            dtype: DType::F32,
            shape: vec![factors.len()],
            expr: Expr::Values { shape: vec![factors.len()], values: factors },
        });
    }
    for tensor in kept {
        let name = gguf_name(config.architecture, &tensor.name).ok_or_else(|| {
            Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
                .expected("a name that GGUF has a counterpart for")
                .found("none")
                .unsupported()
        })?;
        tensors.push(PlannedTensor {
            dtype: output_dtype(&name, &tensor.shape, outtype),
            name,
            shape: tensor.shape.clone(),
            expr: regrouped(config, tensor),
        });
    }
    Ok(Plan { tensors })
}

/// Vectors, norms and what isn't called `.weight` stay F32; rows that don't divide into blocks
/// become F16 (conversion/base.py, `prepare_tensors`).
fn output_dtype(name: &str, shape: &[usize], outtype: OutType) -> DType {
    if shape.len() < 2 || name.ends_with("_norm.weight") || !name.ends_with(".weight") {
        return DType::F32;
    }
    let dtype = outtype.dtype();
    let row_len = shape.last().copied().unwrap_or(1);
    if row_len.is_multiple_of(dtype.block_elems()) { dtype } else { DType::F16 }
}

/// ggml's Llama rotates neighbouring dimensions where transformers rotates the halves of a head:
/// the rows of q and k are regrouped. Qwen's graph rotates halves and keeps them.
fn regrouped(config: &ModelConfig, tensor: &PlannedTensor) -> Expr {
    let permutes = matches!(config.architecture, Architecture::Llama | Architecture::Mistral);
    let ends = |module: &str| {
        let stem = tensor.name.strip_suffix(".weight").or(tensor.name.strip_suffix(".bias"));
        stem.is_some_and(|stem| stem.ends_with(module))
    };
    let heads = match () {
        () if permutes && ends(".q_proj") => config.num_attention_heads,
        () if permutes && ends(".k_proj") => config.num_key_value_heads,
        () => return tensor.expr.clone(),
    };
    let per_head = tensor.shape[0] / heads;
    Expr::reordered(tensor.expr.clone(), |row| {
        let (head, within) = (row / per_head, row % per_head);
        head * per_head + (within % 2) * (per_head / 2) + within / 2
    })
}

/// Llama 3's divisors of the rotary frequencies, one for each pair of a head's dimensions;
/// `None` for other scalings (conversion/llama.py, `generate_extra_tensors`).
///
/// Operations and their order are the reference's, in f32: torch divides a number by a tensor
/// by multiplying it with the reciprocal.
fn rope_factors(config: &ModelConfig) -> Option<Arc<[f32]>> {
    let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } =
        config.rope.scaling
    else {
        return None;
    };
    let longest_kept = (original_max_position_embeddings / high_freq_factor) as f32;
    let shortest_divided = (original_max_position_embeddings / low_freq_factor) as f32;
    let (context, divisor, low) = (original_max_position_embeddings as f32, factor as f32, low_freq_factor as f32);
    let span = (high_freq_factor - low_freq_factor) as f32;
    let dim = config.head_dim as f32;
    let factors = (0..config.head_dim).step_by(2).map(|i| {
        // Through f64: rounded once, as torch's power is for these exponents.
        let power = config.rope.theta.powf(f64::from(i as f32 / dim)) as f32;
        let frequency = 1.0 / power;
        let wavelength = (1.0 / frequency) * (2.0 * PI);
        if wavelength < longest_kept {
            1.0
        } else if wavelength > shortest_divided {
            divisor
        } else {
            let smooth = ((1.0 / wavelength) * context - low) / span;
            1.0 / ((1.0 - smooth) / divisor + smooth)
        }
    });
    Some(factors.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_matrices_get_the_output_type() {
        let cases = [
            ("blk.0.attn_q.weight", &[64, 64][..], DType::Q8_0),
            ("blk.0.attn_q.weight", &[64, 48], DType::F16),
            ("blk.0.attn_q.bias", &[64], DType::F32),
            ("blk.0.attn_norm.weight", &[64], DType::F32),
            ("blk.0.attn_norm.weight", &[2, 64], DType::F32),
            ("blk.0.scores", &[2, 64], DType::F32),
        ];
        for (name, shape, expected) in cases {
            assert_eq!(output_dtype(name, shape, OutType::Q8_0), expected, "{name}");
        }
    }
}
