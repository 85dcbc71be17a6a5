//! Reads an adapter of mlx-lm as PEFT would have saved it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{FACTORS, MAGNITUDE};
use crate::adapter::peft::PREFIX;
use crate::arch::Role;
use crate::arch::names::role_by_name;
use crate::error::{Finding, Result};
use crate::json::Fields;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// A block's experts in mlx-lm, which checkpoints call `experts`.
const EXPERTS: [&str; 2] = [".switch_mlp.", ".switch_glu."];

/// The projections of an expert, and their names in Mixtral's blocks.
const OF_MIXTRAL: [(&str, &str); 3] = [("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")];

/// The block whose experts have the names of [`OF_MIXTRAL`].
const MIXTRALS_BLOCK: &str = "block_sparse_moe";

/// The most experts of a layer.
const MAX_EXPERTS: usize = 1 << 16;

/// An adapter of mlx-lm.
#[derive(Debug)]
pub(in crate::adapter) struct Mlx {
    /// PEFT's settings for the factors. `None` for whole tensors.
    pub(in crate::adapter) settings: Option<Map<String, Value>>,
    /// The tensors, under PEFT's names.
    pub(in crate::adapter) tensors: Plan,
    /// One line for everything that was assumed.
    pub(in crate::adapter) notes: Vec<String>,
}

/// Whether any tensor has the name of one of mlx-lm's factors.
pub(in crate::adapter) fn has_factors(tensors: &Plan) -> bool {
    tensors.tensors.iter().any(|tensor| FACTORS.iter().any(|end| tensor.name.ends_with(end)))
}

/// The adapter with these settings, from `config_path`, and these tensors, from `file`.
///
/// # Errors
/// [`crate::Error::Format`] for settings that are missing or wrong; [`crate::Error::Unsupported`] for a kind or a
/// tensor that this version doesn't know.
pub(in crate::adapter) fn read(
    config_path: &Path,
    config: &Map<String, Value>,
    file: &Path,
    tensors: Plan,
) -> Result<Mlx> {
    let mut fields = Fields::new(config_path, config);
    // The other fields are the settings of the training.
    let kind: Option<String> = fields.get("fine_tune_type")?;
    let use_dora = match kind.as_deref() {
        None | Some("lora") => false,
        Some("dora") => true,
        Some("full") => {
            let named = |tensor: PlannedTensor| PlannedTensor { name: [PREFIX, &tensor.name].concat(), ..tensor };
            let tensors = tensors.tensors.into_iter().map(named).collect();
            return Ok(Mlx { settings: None, tensors: Plan { tensors }, notes: Vec::new() });
        }
        Some(other) => {
            let finding = fields.finding("fine_tune_type").expected("lora, dora or full");
            return Err(finding.found(format_args!("{other:?}")).unsupported());
        }
    };
    let mut notes = Vec::new();
    let (rank, scale) = factors(config_path, config, &mut notes)?;
    let mut targets: Vec<String> = Vec::new();
    let mut plan = Plan::default();
    for tensor in tensors.tensors {
        let Some((module, part)) = part(&tensor.name, use_dora) else {
            return Err(Finding::new(file, format!("tensor {:?}", tensor.name))
                .expected("a factor of a module: lora_a, lora_b or, for dora, m")
                .found("another tensor")
                .unsupported());
        };
        for (module, expr) in of_modules(file, &tensor, module)? {
            let is_embedding = role_by_name(&format!("{module}.weight")) == Some(Role::Embedding);
            let name = match (part, is_embedding) {
                ("lora_a", false) => "lora_A.weight",
                ("lora_b", false) => "lora_B.weight",
                ("lora_a", true) => "lora_embedding_A",
                ("lora_b", true) => "lora_embedding_B",
                _ => "lora_magnitude_vector",
            };
            let name = format!("{PREFIX}{module}.{name}");
            plan.tensors.push(PlannedTensor { name, dtype: tensor.dtype, shape: expr.shape(), expr });
            if targets.last() != Some(&module) {
                targets.push(module);
            }
        }
    }
    targets.sort_unstable();
    targets.dedup();
    let base = config.get("model").and_then(Value::as_str).unwrap_or_default();
    let settings = json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": scale * rank as f64, "use_dora": use_dora,
        "target_modules": targets, "base_model_name_or_path": base,
    });
    Ok(Mlx { settings: settings.as_object().cloned(), tensors: plan, notes })
}

/// The rank and the scale of all factors.
fn factors(config_path: &Path, config: &Map<String, Value>, notes: &mut Vec<String>) -> Result<(usize, f64)> {
    let mut outer = Fields::new(config_path, config);
    let parameters: Map<String, Value> = outer.need("lora_parameters")?;
    let mut fields = Fields::inside(config_path, "lora_parameters", &parameters);
    let rank = fields.count("rank")?;
    let mut scale: f64 = fields.need("scale")?;
    if let Some(alpha) = fields.get::<f64>("alpha")? {
        // The field for the number of layers got another name together with the scale.
        match config.contains_key("lora_layers") && !config.contains_key("num_layers") {
            true => scale *= alpha / rank as f64,
            false => notes.push(format!(
                "{}: lora_parameters.alpha: {alpha} is not used, as in mlx-lm since version 0.19: the scale is {scale}",
                config_path.display()
            )),
        }
    }
    fields.ignore(&["dropout", "keys"]);
    fields.finish()?;
    match (scale as f32).is_finite() {
        true => Ok((rank, scale)),
        false => Err(outer.finding("lora_parameters.scale").expected("a finite float32").found(scale).mismatch()),
    }
}

/// The path of the module to which the tensor called `name` belongs, and what it is to it.
fn part(name: &str, use_dora: bool) -> Option<(&str, &'static str)> {
    let ends = [(FACTORS[0], "lora_a", true), (FACTORS[1], "lora_b", true), (MAGNITUDE, "m", use_dora)];
    ends.into_iter()
        .filter(|(_, _, is_known)| *is_known)
        .find_map(|(end, part, _)| Some((name.strip_suffix(end)?, part)))
}

/// The tensor as PEFT has it: for the module, or for every expert of a block.
fn of_modules(file: &Path, tensor: &PlannedTensor, module: &str) -> Result<Vec<(String, Expr)>> {
    let of = tensor.expr.clone();
    match *tensor.shape.as_slice() {
        [_] => return Ok(vec![(module.to_owned(), of)]),
        [_, _] => return Ok(vec![(module.to_owned(), Expr::Transpose(Box::new(of)))]),
        // An expert's factors are in PEFT's order already.
        [experts, rows, columns] if (1..=MAX_EXPERTS).contains(&experts) => {
            if let Some((block, part)) = EXPERTS.iter().find_map(|own| module.split_once(own)) {
                let is_mixtrals = block.ends_with(MIXTRALS_BLOCK);
                let renamed = OF_MIXTRAL.iter().find(|(own, _)| is_mixtrals && *own == part).map(|(_, name)| *name);
                let part = renamed.unwrap_or(part);
                let expert = |number: usize| {
                    let of = Expr::slice(of.clone(), number * rows, rows, vec![rows, columns]);
                    (format!("{block}.experts.{number}.{part}"), of)
                };
                return Ok((0..experts).map(expert).collect());
            }
        }
        _ => {}
    }
    Err(Finding::new(file, format!("tensor {:?}", tensor.name))
        .expected("a matrix, or a matrix for each expert of a switch_mlp")
        .found(show_shape(&tensor.shape))
        .unsupported())
}
