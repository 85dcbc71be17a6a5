//! The parameters of a decoder that hold a matrix of every expert of a layer, on which adapters act as
//! `target_parameters`.

use super::lookup::{self, own_spelling};
use super::names::FUSED_EXPERTS;
use super::params::Params;
use super::parts::Part;
use super::row::Form;
use super::{Family, ModelConfig, Row};
use crate::error::Result;

/// What a matrix is to an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ExpertPart {
    /// Gate and up in one matrix, as the classes of transformers have them.
    GateUp,
    /// The gate alone.
    Gate,
    /// Up alone.
    Up,
    /// Down.
    Down,
}

/// A parameter with a matrix of every expert of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpertParameter {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// What its matrices are to the experts: [`ExpertPart::GateUp`] or [`ExpertPart::Down`].
    pub part: ExpertPart,
    /// Its path in the class of transformers: `model.layers.0.mlp.experts.gate_up_proj`.
    pub path: String,
    /// The number of experts.
    pub experts: usize,
    /// The number of outputs of each expert.
    pub d_out: usize,
    /// The number of inputs.
    pub d_in: usize,
}

/// Where the class of transformers keeps the experts of a row in one parameter.
pub(super) fn fused(row: &Row) -> Option<&Form> {
    let is_fused = |form: &&Form| {
        let [part] = form.parts.as_slice() else { return false };
        let ends_as_known = FUSED_EXPERTS.iter().any(|known| part.name.text().ends_with(known.parameter));
        part.stack.is_none() && ends_as_known
    };
    row.forms.iter().find(is_fused)
}

/// The parameters with experts of a model of `layers` layers, by layer.
pub(super) fn parameters(params: &Params, layers: usize) -> Result<Vec<ExpertParameter>> {
    let family: &'static Family = params.family;
    let mut all = Vec::new();
    for row in family.rows.iter().filter(|row| !row.is_bias()) {
        let part = match Part::of(row) {
            // Gate and up are rows of the same parameter.
            Some(Part::ExpertGate) => ExpertPart::GateUp,
            Some(Part::ExpertDown) => ExpertPart::Down,
            _ => continue,
        };
        let Some(form) = fused(row) else { continue };
        for layer in 0..layers {
            if !params.holds(row.when.as_ref(), Some(layer))? {
                continue;
            }
            let size = |dimension: usize| -> Result<usize> {
                let formula = form.parts[0].shape.get(dimension).and_then(Option::as_ref);
                formula.map_or(Ok(1), |formula| params.size_of(formula, Some(layer)))
            };
            let (experts, rows, columns) = (size(0)?, size(1)?, size(2)?);
            let (d_out, d_in) = if form.is_turned() { (columns, rows) } else { (rows, columns) };
            let name = form.parts[0].name.text().replace("{l}", &layer.to_string());
            all.push(ExpertParameter { layer, part, path: own_spelling(family, &name, None), experts, d_out, d_in });
        }
    }
    all.sort_by_key(|parameter| (parameter.layer, parameter.part));
    Ok(all)
}

impl ModelConfig {
    /// What the tensor called `name` is to experts: the layer, the part, and the expert if it is one expert's alone.
    pub(crate) fn of_experts(&self, name: &str) -> Option<(usize, ExpertPart, Option<usize>)> {
        let all = lookup::matches(self.origin.0.family, name, Some(self.num_hidden_layers));
        let found = all.first()?;
        let part = found.part();
        let (layer, expert) = part.name.matched(&found.name)?;
        let part = match (Part::of(found.row)?, part.stack.is_some()) {
            (Part::ExpertGate | Part::ExpertUp, false) => ExpertPart::GateUp,
            (Part::ExpertGate, true) => ExpertPart::Gate,
            (Part::ExpertUp, true) => ExpertPart::Up,
            (Part::ExpertDown, _) => ExpertPart::Down,
            _ => return None,
        };
        Some((layer?, part, expert))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn parameters_have_the_paths_of_their_classes() {
        let mixtral = serde_json::json!({
            "architectures": ["MixtralForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320, "num_local_experts": 4,
        });
        let config = ModelConfig::from_json(Path::new("config.json"), mixtral.as_object().unwrap()).unwrap();
        let all: Vec<_> = config.expert_parameters().iter().map(|p| (p.path.as_str(), p.d_out, p.d_in)).collect();
        let expected = [
            ("model.layers.0.mlp.experts.gate_up_proj", 192, 64),
            ("model.layers.0.mlp.experts.down_proj", 64, 96),
            ("model.layers.1.mlp.experts.gate_up_proj", 192, 64),
            ("model.layers.1.mlp.experts.down_proj", 64, 96),
        ];
        assert_eq!(all, expected);
        let of = |name: &str| config.of_experts(name);
        assert_eq!(of("model.layers.1.block_sparse_moe.experts.3.w3.weight"), Some((1, ExpertPart::Up, Some(3))));
        assert_eq!(of("model.layers.1.mlp.experts.gate_up_proj"), Some((1, ExpertPart::GateUp, None)));
        assert_eq!(of("model.layers.1.self_attn.q_proj.weight"), None);
    }
}
