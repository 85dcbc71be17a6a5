//! Writes a LoRA in the form of mlx-lm.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::WEIGHTS;
use crate::adapter::peft::{LoraNumbers, PREFIX};
use crate::checkpoint::ADAPTER_CONFIG;
use crate::error::{Finding, Result};
use crate::output::Output;
use crate::plan::{Expr, Plan, PlannedTensor};

/// The names of PEFT's factors, and those of mlx-lm.
const NAMES: [(&str, &str); 4] = [
    (".lora_A.weight", ".lora_a"),
    (".lora_B.weight", ".lora_b"),
    (".lora_embedding_A", ".lora_a"),
    (".lora_embedding_B", ".lora_b"),
];

/// The module of an adapted layer in mlx-lm, where PEFT has `base_layer`.
const WRAPPED: [&str; 2] = [".base_layer.", ".linear."];

/// The folder of the LoRA with PEFT's settings `config` and tensors `tensors`. mlx-lm has one rank and one scale for all modules: factors of a lower rank get zeros, and where
/// a module has another scale, its `lora_b` is multiplied by the quotient.
///
/// # Errors
/// [`crate::Error::Mismatch`] for settings that aren't those of a LoRA.
pub(crate) fn output(config: &Map<String, Value>, tensors: &Plan) -> Result<Output> {
    let numbers = LoraNumbers::of(Path::new(ADAPTER_CONFIG), config)?;
    let tensors = &tensors.tensors;
    let of_factor = |tensor: &PlannedTensor| {
        let name = tensor.name.strip_prefix(PREFIX).unwrap_or(&tensor.name);
        let (module, own) = NAMES.iter().find_map(|(end, own)| Some((name.strip_suffix(end)?.to_owned(), *own)))?;
        Some((module, own))
    };
    let modules: BTreeSet<String> = tensors.iter().filter_map(of_factor).map(|(module, _)| module).collect();
    let rank = modules.iter().map(|module| numbers.rank(module)).max().unwrap_or(1);
    // A scale of 0 would leave nothing to multiply.
    let scale = Some(numbers.exact_scale("")).filter(|scale| *scale != 0.0).unwrap_or(1.0);
    let mut plan = Plan::default();
    let mut keys: Vec<&str> = Vec::new();
    for tensor in tensors {
        let Some((module, own)) = of_factor(tensor) else {
            let name = tensor.name.strip_prefix(PREFIX).unwrap_or(&tensor.name).replace(WRAPPED[0], WRAPPED[1]);
            plan.tensors.push(PlannedTensor { name, ..tensor.clone() });
            continue;
        };
        let (missing, turned) = (rank - numbers.rank(&module), Expr::Transpose(Box::new(tensor.expr.clone())));
        let expr = match own {
            ".lora_a" => Expr::Transpose(Box::new(with_rows(tensor.expr.clone(), missing)?)),
            _ => match numbers.exact_scale(&module) {
                own if own == scale => with_rows(turned, missing)?,
                own => {
                    let factor = own / scale;
                    with_rows(Expr::Scale { of: Box::new(turned), factor }, missing)?
                }
            },
        };
        let name = format!("{module}{own}");
        plan.tensors.push(PlannedTensor { name, dtype: tensor.dtype, shape: expr.shape(), expr });
    }
    for module in &modules {
        let key = key(module);
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    keys.sort_unstable();
    let settings = json!({
        "model": config.get("base_model_name_or_path").cloned().unwrap_or(Value::Null),
        "fine_tune_type": "lora",
        "num_layers": -1,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": keys},
    });
    let mut output = Output::folder(WEIGHTS.trim_end_matches(".safetensors"), plan);
    output.put_json(ADAPTER_CONFIG, &settings);
    Ok(output)
}

/// `of` with zeros in `count` more rows.
fn with_rows(of: Expr, count: usize) -> Result<Expr> {
    let shape = of.shape();
    let &[rows, columns] = shape.as_slice() else {
        let finding = Finding::new("", "a factor").expected("a matrix");
        return Err(finding.found(crate::source::show_shape(&shape)).mismatch());
    };
    if count == 0 {
        return Ok(of);
    }
    let zeros = Expr::Values { shape: vec![count, columns], values: vec![0.0; count * columns].into() };
    Ok(Expr::concat(vec![of, zeros], vec![rows + count, columns]))
}

/// The path of a module within its layer, by which mlx-lm adapts it in every layer; the whole path outside of layers.
fn key(module: &str) -> &str {
    let mut place = 0;
    for part in module.split('.') {
        place += part.len() + 1;
        if part.parse::<usize>().is_ok() && place < module.len() {
            return &module[place..];
        }
    }
    module
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_their_paths_in_a_layer() {
        assert_eq!(key("model.layers.12.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(key("lm_head"), "lm_head");
        assert_eq!(key("model.embed_tokens"), "model.embed_tokens");
    }
}
