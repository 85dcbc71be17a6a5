//! The linear layers of a decoder, on which adapters act.

use std::fmt;
use std::sync::OnceLock;

use super::{ModelConfig, Role, registry};

/// A linear layer of a decoder layer, in the order in which a forward pass calls them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // The names are transformers', without "_proj".
pub enum Module {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Module {
    /// All of them, in execution order.
    pub const ALL: [Module; 7] = [Module::Q, Module::K, Module::V, Module::O, Module::Gate, Module::Up, Module::Down];

    /// The role of its weight in a family's table.
    pub(crate) fn role(self) -> Role {
        match self {
            Module::Q => Role::Q,
            Module::K => Role::K,
            Module::V => Role::V,
            Module::O => Role::O,
            Module::Gate => Role::Gate,
            Module::Up => Role::Up,
            Module::Down => Role::Down,
        }
    }

    /// The path of its module in transformers and the name of its weight in GGUF, in layer `{l}`. They are those of
    /// Llama's family: all decoders that this crate runs use the same names, which a test checks.
    fn paths(self) -> &'static [String; 2] {
        static PATHS: OnceLock<[[String; 2]; Module::ALL.len()]> = OnceLock::new();
        let paths = |module: Module| {
            let row = registry::by_name("llama").and_then(|family| family.row(module.role()));
            let row = row.expect("every linear layer of Llama has a row");
            let path = row.source().name.text();
            [path.strip_suffix(".weight").unwrap_or(path).to_owned(), row.gguf.text().to_owned()]
        };
        &PATHS.get_or_init(|| Module::ALL.map(paths))[self as usize]
    }

    /// The name in transformers, as `target_modules` has it.
    pub fn name(self) -> &'static str {
        let [path, _] = self.paths();
        path.rsplit_once('.').map_or(path, |(_, name)| name)
    }

    /// The module with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|m| m.name() == name)
    }

    /// The shape `(d_out, d_in)` in a decoder with this config.
    pub fn shape(self, config: &ModelConfig) -> (usize, usize) {
        let hidden = config.hidden_size;
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        match self {
            Module::Q => (queries, hidden),
            Module::K | Module::V => (keys, hidden),
            Module::O => (hidden, queries),
            Module::Gate | Module::Up => (config.intermediate_size, hidden),
            Module::Down => (hidden, config.intermediate_size),
        }
    }
}

/// One linear layer of a decoder. Values sort in execution order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinearLayer {
    /// The decoder layer, from 0.
    pub layer: usize,
    /// The linear layer in it.
    pub module: Module,
}

impl fmt::Display for LinearLayer {
    /// The module path in transformers: `model.layers.0.self_attn.q_proj`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.module.paths()[0].replace("{l}", &self.layer.to_string()))
    }
}

impl LinearLayer {
    /// The name of its weight in the base model.
    pub fn weight_name(self) -> String {
        format!("{self}.weight")
    }

    /// The linear layer whose weight is called `name`.
    pub(crate) fn of_weight(name: &str) -> Option<LinearLayer> {
        let path = name.strip_suffix(".weight")?;
        Self::of_factor(&format!("base_model.model.{path}.lora_A.weight"), 'A')
    }

    /// The name of its weight in GGUF.
    #[cfg(any(feature = "train", test))]
    pub(crate) fn gguf_name(self) -> String {
        self.module.paths()[1].replace("{l}", &self.layer.to_string())
    }

    /// The name of its `lora_A` or `lora_B` in an adapter file.
    pub(crate) fn factor_name(self, which: char) -> String {
        format!("base_model.model.{self}.lora_{which}.weight")
    }

    /// The linear layer whose `lora_A` or `lora_B` is called `name`.
    pub(crate) fn of_factor(name: &str, which: char) -> Option<LinearLayer> {
        let path = name.strip_prefix("base_model.model.model.layers.")?;
        let path = path.strip_suffix(&format!(".lora_{which}.weight"))?;
        let mut parts = path.split('.');
        let layer = parts.next()?.parse().ok()?;
        let (_, module) = (parts.next()?, Module::from_name(parts.next()?)?);
        let site = LinearLayer { layer, module };
        // Comparing the whole name refuses spellings like "00" that would not be written back.
        (parts.next().is_none() && site.factor_name(which) == name).then_some(site)
    }
}
