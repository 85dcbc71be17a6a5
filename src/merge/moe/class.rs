//! The classes of mixtures: which models they can be made of, and what their tensors are called.

use super::MoeConfig;
use crate::arch::{Family, of_class};
use crate::error::{Finding, Result};

/// The class of a mixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MoeClass {
    /// Mixtral.
    Mixtral,
    /// The first DeepSeek with experts. transformers runs it with code from the hub.
    Deepseek,
    /// Qwen 1.5 and 2 with experts.
    Qwen2,
    /// Qwen 3 with experts.
    Qwen3,
}

/// The parts of a feed-forward block, by their names in dense models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Part {
    Gate,
    Up,
    Down,
}

impl Part {
    pub(super) const ALL: [Part; 3] = [Part::Gate, Part::Up, Part::Down];

    /// Its module in a dense model.
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Gate => "gate_proj",
            Part::Up => "up_proj",
            Part::Down => "down_proj",
        }
    }
}

impl MoeClass {
    /// All of them, in mergekit's order.
    const ALL: [MoeClass; 4] = [Self::Mixtral, Self::Deepseek, Self::Qwen2, Self::Qwen3];

    /// mergekit's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mixtral => "Mixtral",
            Self::Deepseek => "DeepSeek MoE",
            Self::Qwen2 => "Qwen MoE",
            Self::Qwen3 => "Qwen3 MoE",
        }
    }

    /// The class in config.json, and its `model_type`.
    pub(super) fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Mixtral => ("MixtralForCausalLM", "mixtral"),
            Self::Deepseek => ("DeepseekForCausalLM", "deepseek"),
            Self::Qwen2 => ("Qwen2MoeForCausalLM", "qwen2_moe"),
            Self::Qwen3 => ("Qwen3MoeForCausalLM", "qwen3_moe"),
        }
    }

    pub(super) fn family(self) -> Option<&'static Family> {
        of_class(self.names().0, &serde_json::Map::new())
    }

    /// The class for models with these values of `model_type`: the one that the file asks for, else Mixtral if it can be,
    /// else the first that can be.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] with the reasons why no class can be.
    pub fn choose(file: &std::path::Path, config: &MoeConfig, model_types: &[&str]) -> Result<Self> {
        let wanted = config.architecture.as_deref().unwrap_or_default().to_lowercase();
        let asked: Vec<Self> =
            Self::ALL.into_iter().filter(|class| class.name().to_lowercase().starts_with(&wanted)).collect();
        if asked.is_empty() {
            let names = Self::ALL.map(Self::name).join(", ");
            let finding = Finding::new(file, "architecture").expected(format_args!("one of {names}"));
            return Err(finding.found(format_args!("{wanted:?}")).unsupported());
        }
        let mut reasons = Vec::new();
        for class in asked {
            match class.objection(config, model_types) {
                None => return Ok(class),
                Some(reason) => reasons.push(format!("{} {reason}", class.name())),
            }
        }
        let mut models = model_types.to_vec();
        models.sort_unstable();
        models.dedup();
        let finding = Finding::new(file, "experts").expected(reasons.join("; "));
        Err(finding.found(format_args!("models of {}", models.join(", "))).mismatch())
    }

    /// Why a mixture can't have this class, as the end of a sentence.
    fn objection(self, config: &MoeConfig, model_types: &[&str]) -> Option<&'static str> {
        let shared = &config.shared_experts;
        let has_prompts = shared.iter().any(|e| !e.positive_prompts.is_empty() || !e.negative_prompts.is_empty());
        let (of, needs): (&[&str], _) = match self {
            Self::Mixtral | Self::Deepseek => (&["llama", "mistral"], "takes Llama or Mistral models of one class"),
            Self::Qwen2 => (&["llama", "mistral", "qwen2"], "takes Qwen2, Llama or Mistral models of one class"),
            Self::Qwen3 => (&["qwen3"], "takes Qwen3 models"),
        };
        let objections = [
            (self == Self::Mixtral && !shared.is_empty(), "has no shared_experts"),
            (self == Self::Qwen3 && !shared.is_empty(), "has no shared_experts"),
            (self == Self::Deepseek && shared.len() > 1, "has one shared expert at most"),
            (self == Self::Deepseek && has_prompts, "takes no prompts for its shared expert"),
            (self == Self::Qwen2 && shared.len() != 1, "needs one shared expert"),
            (
                self == Self::Qwen2
                    && !config.gate_mode.is_random()
                    && shared.iter().any(|expert| expert.positive_prompts.is_empty()),
                "needs positive_prompts for its shared expert",
            ),
            (!model_types.iter().all(|kind| of.contains(kind) && *kind == model_types[0]), needs),
        ];
        objections.into_iter().find(|(holds, _)| *holds).map(|(_, reason)| reason)
    }

    /// The name of the router's weight.
    pub(super) fn router(self, layer: usize) -> String {
        match self {
            Self::Mixtral => format!("model.layers.{layer}.block_sparse_moe.gate.weight"),
            _ => format!("model.layers.{layer}.mlp.gate.weight"),
        }
    }

    /// The name of the weight of a shared expert's gate, where the class has one.
    pub(super) fn shared_router(self, layer: usize) -> Option<String> {
        (self == Self::Qwen2).then(|| format!("model.layers.{layer}.mlp.shared_expert_gate.weight"))
    }

    /// The name of a weight of an expert.
    pub(super) fn expert(self, layer: usize, expert: usize, part: Part) -> String {
        let name = part.name();
        match self {
            Self::Mixtral => {
                let name = match part {
                    Part::Gate => "w1",
                    Part::Down => "w2",
                    Part::Up => "w3",
                };
                format!("model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight")
            }
            _ => format!("model.layers.{layer}.mlp.experts.{expert}.{name}.weight"),
        }
    }

    /// The name of a weight of a shared expert.
    pub(super) fn shared(self, layer: usize, part: Part) -> String {
        let module = if self == Self::Deepseek { "shared_experts" } else { "shared_expert" };
        format!("model.layers.{layer}.mlp.{module}.{}.weight", part.name())
    }

    /// Whether a tensor of the base that belongs to no feed-forward block has a place in the class.
    pub(super) fn has(self, name: &str) -> bool {
        const OUTSIDE: [&str; 3] = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"];
        const OF_LAYER: [&str; 6] = [
            "input_layernorm.weight",
            "post_attention_layernorm.weight",
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
            "self_attn.o_proj.weight",
        ];
        const BIASES: [&str; 3] = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"];
        const NORMS: [&str; 2] = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"];
        let Some((_, rest)) = of_layer(name) else { return OUTSIDE.contains(&name) };
        OF_LAYER.contains(&rest)
            || match self {
                Self::Mixtral => false,
                Self::Qwen2 => BIASES.contains(&rest),
                Self::Deepseek => BIASES.contains(&rest) || rest == "self_attn.o_proj.bias",
                Self::Qwen3 => BIASES.contains(&rest) || rest == "self_attn.o_proj.bias" || NORMS.contains(&rest),
            }
    }

    /// The order in which mergekit draws the noise of a layer's weights: parts, each with the numbers of experts;
    /// `None` is the shared expert.
    pub(super) fn drawn(self, experts: usize, shared: bool) -> Vec<(Option<usize>, Part)> {
        let by_expert = |parts: [Part; 3]| {
            (0..experts).flat_map(move |expert| parts.map(|part| (Some(expert), part))).collect::<Vec<_>>()
        };
        let by_part = |parts: [Part; 3]| {
            let of_part =
                |part: Part| (0..experts).map(Some).chain(shared.then_some(None)).map(move |expert| (expert, part));
            parts.into_iter().flat_map(of_part).collect::<Vec<_>>()
        };
        match self {
            Self::Mixtral => by_expert([Part::Gate, Part::Down, Part::Up]),
            Self::Qwen3 => by_expert([Part::Gate, Part::Up, Part::Down]),
            Self::Qwen2 => by_part([Part::Down, Part::Gate, Part::Up]),
            Self::Deepseek => by_part([Part::Up, Part::Gate, Part::Down]),
        }
    }
}

/// The layer of a tensor, and the rest of its name.
pub(super) fn of_layer(name: &str) -> Option<(usize, &str)> {
    let (number, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    Some((number.parse().ok()?, rest))
}

/// The layer and the part of a weight of a dense feed-forward block.
pub(super) fn feed_forward(name: &str) -> Option<(usize, Part)> {
    let (layer, rest) = of_layer(name)?;
    let module = rest.strip_prefix("mlp.")?.strip_suffix(".weight")?;
    Some((layer, Part::ALL.into_iter().find(|part| part.name() == module)?))
}
