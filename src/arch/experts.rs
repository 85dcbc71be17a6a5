//! Splits a tensor that holds all experts of a layer into the tensors that the tables list. The classes of transformers
//! 5 have such tensors, and their bare state dicts save them.
//!
//! Reference: transformers `conversion_mapping.py` (`qwen2_moe`, `mixtral`); llama.cpp `conversion/qwen.py`.

use std::borrow::Cow;

use super::lookup::{Lookup, Match, find, named, shape_of};
use super::params::Params;
use super::{Family, Role, Transform};
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// The parameters of a layer's experts, and the roles whose rows follow each other in each expert's matrix.
const PARAMETERS: [(&str, &[Role]); 2] =
    [("gate_up_proj", &[Role::ExpertGate, Role::ExpertUp]), ("down_proj", &[Role::ExpertDown])];

/// An upper bound: no layer has more experts, and each becomes a separate tensor.
const MANY: usize = 1 << 16;

/// The table's rows for the tensor called `name`, if that holds all experts of a layer; `None` for other tensors.
fn rows(family: &'static Family, name: &str) -> Option<Vec<Match>> {
    let (module, parameter) = name.strip_suffix(".weight").unwrap_or(name).rsplit_once('.')?;
    let (_, roles) = PARAMETERS.iter().find(|(known, _)| *known == parameter && module.ends_with(".experts"))?;
    let row = |role: &Role| {
        let (_, last) = family.row(*role)?.hf.rsplit_once('.')?;
        match find(family, &format!("{module}.0.{last}.weight")) {
            Lookup::Row(row) if row.tensor.role == *role => Some(row),
            _ => None,
        }
    };
    roles.iter().map(row).collect()
}

/// Returns `weights` with one tensor per expert in place of each tensor that holds all experts of a layer.
///
/// # Errors
/// [`crate::Error::Mismatch`] if such a tensor doesn't have the shape that config.json implies.
pub(crate) fn separated<'a>(params: &Params, weights: &'a Plan) -> Result<Cow<'a, Plan>> {
    let fused = |tensor: &PlannedTensor| rows(params.family, &tensor.name);
    if weights.tensors.iter().all(|tensor| fused(tensor).is_none()) {
        return Ok(Cow::Borrowed(weights));
    }
    let mut tensors = Vec::new();
    for tensor in &weights.tensors {
        match fused(tensor) {
            Some(rows) => tensors.extend(parts(params, tensor, &rows)?),
            None => tensors.push(tensor.clone()),
        }
    }
    Ok(Cow::Owned(Plan { tensors }))
}

/// Splits the tensor of all experts into one tensor per expert, under the class's own names.
fn parts(params: &Params, tensor: &PlannedTensor, rows: &[Match]) -> Result<Vec<PlannedTensor>> {
    let finding = || Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
    let mut parts = Vec::new();
    for (place, row) in rows.iter().enumerate() {
        let shape = shape_of(params, row.tensor, false)?;
        let (Transform::Stack(dim), &[height, width]) = (row.tensor.transform, shape.as_slice()) else {
            return Err(finding().expected("experts that are matrices").found("others").unsupported());
        };
        let experts = params.count(dim)?;
        let expected = [experts, rows.len() * height, width];
        if tensor.shape != expected {
            let finding = finding().expected(format_args!("{} by config.json", show_shape(&expected)));
            return Err(finding.found(show_shape(&tensor.shape)).mismatch());
        }
        if experts > MANY {
            return Err(finding().expected(format_args!("at most {MANY} experts")).found(experts).mismatch());
        }
        for expert in 0..experts {
            let start = (expert * rows.len() + place) * height;
            let shape = vec![height, width];
            parts.push(PlannedTensor {
                name: named(row.tensor.hf, row.layer, Some(expert), "weight"),
                dtype: tensor.dtype,
                expr: Expr::slice(tensor.expr.clone(), start, height, shape.clone()),
                shape,
            });
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;
    use crate::dtype::DType;

    fn model(class: &str) -> Params {
        let config = json!({"architectures": [class], "hidden_size": 4, "num_local_experts": 2, "num_experts": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1, "moe_intermediate_size": 1, "intermediate_size": 1, "num_hidden_layers": 1});
        let config = config.as_object().unwrap();
        Params::read(Path::new("m"), config, &mut Vec::new()).unwrap().unwrap()
    }

    fn tensor(name: &str, shape: &[usize]) -> PlannedTensor {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| i as f32).collect();
        let expr = Expr::Values { shape: shape.to_vec(), values: values.into() };
        PlannedTensor { name: name.to_owned(), dtype: DType::F32, shape: shape.to_vec(), expr }
    }

    #[test]
    fn every_expert_has_its_rows() {
        for (class, names) in [
            ("Qwen3MoeForCausalLM", ["mlp.experts.0.gate_proj", "mlp.experts.1.gate_proj", "mlp.experts.0.up_proj"]),
            ("Qwen2MoeForCausalLM", ["mlp.experts.0.gate_proj", "mlp.experts.1.gate_proj", "mlp.experts.0.up_proj"]),
            (
                "MixtralForCausalLM",
                ["block_sparse_moe.experts.0.w1", "block_sparse_moe.experts.1.w1", "block_sparse_moe.experts.0.w3"],
            ),
        ] {
            let params = model(class);
            let tensors = vec![
                tensor("model.layers.0.mlp.experts.gate_up_proj", &[2, 2, 4]),
                tensor("model.layers.0.mlp.gate.weight", &[2, 4]),
                tensor("model.layers.0.mlp.experts.down_proj", &[2, 4, 1]),
            ];
            let plan = separated(&params, &Plan { tensors }).unwrap().into_owned();
            assert_eq!(plan.tensors.len(), 7);
            let read = |name: &str| plan.get(&format!("model.layers.0.{name}.weight")).unwrap().read().unwrap();
            assert_eq!(read(names[0]), [0., 1., 2., 3.], "{class}");
            assert_eq!(read(names[1]), [8., 9., 10., 11.], "{class}");
            assert_eq!(read(names[2]), [4., 5., 6., 7.], "{class}");
            let known = |tensor: &PlannedTensor| matches!(find(params.family, &tensor.name), Lookup::Row(_));
            assert!(plan.tensors.iter().all(known), "{class}: the router is known, too");
        }
    }

    #[test]
    fn another_shape_is_refused_by_name() {
        for shape in [&[2, 4, 2][..], &[3, 2, 4], &[2, 4]] {
            let weights = Plan { tensors: vec![tensor("model.layers.0.mlp.experts.gate_up_proj", shape)] };
            let error = separated(&model("Qwen3MoeForCausalLM"), &weights).unwrap_err().to_string();
            let expected = "tensor \"model.layers.0.mlp.experts.gate_up_proj\": expected [2, 2, 4] by config.json";
            assert!(error.contains(expected), "{error}");
        }
        let dense = tensor("model.layers.0.mlp.down_proj.weight", &[4, 1]);
        let weights = Plan { tensors: vec![dense] };
        assert!(matches!(separated(&model("Qwen3ForCausalLM"), &weights), Ok(Cow::Borrowed(_))));
    }
}
