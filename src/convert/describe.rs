//! Describes a model: what its config says, and how its weights fit. For inspection, not for
//! conversion.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::arch::lookup::{Lookup, expected, find};
use crate::arch::params::{self, Params};
use crate::arch::{is_buffer, wrapper};
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// The description of a model whose class has a family.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The architecture's name in GGUF.
    pub gguf: &'static str,
    /// The number of layers.
    pub layers: usize,
    /// The width of the residual stream.
    pub hidden_size: usize,
    /// The inner width of a feed-forward block.
    pub feed_forward: usize,
    /// The number of query heads.
    pub heads: usize,
    /// The number of key-value heads.
    pub kv_heads: usize,
    /// The width of a head.
    pub head_dim: usize,
    /// The number of tokens.
    pub vocab_size: usize,
    /// The longest context for which it was trained, in tokens.
    pub context_length: usize,
    /// The number of experts per layer; `None` in a dense model.
    pub experts: Option<usize>,
    /// Whether input embeddings and output head are tied.
    pub tied_embeddings: bool,
    /// Tensors that the config asks for and the files don't have.
    pub missing: Vec<String>,
    /// Tensors of the files that the class doesn't have.
    pub surplus: Vec<String>,
}

/// More tensors than any model has. If a config asks for more, they aren't listed.
const MANY: usize = 1 << 18;

/// Describes the model in `folder`; `None` where its class has no family.
///
/// # Errors
/// [`crate::Error::Unsupported`] and [`crate::Error::Format`] for a config that couldn't be
/// converted either.
pub fn describe(folder: &Checkpoint) -> Result<Option<Description>> {
    let Some(params) = Params::read(folder.path(), &folder.config_json, &mut Vec::new())? else { return Ok(None) };
    let weights = folder.weights();
    let params = params.with_weights(weights.tensors.iter())?;
    let layers = params.layers()?;
    let mut there = BTreeSet::new();
    let mut surplus = Vec::new();
    for tensor in &weights.tensors {
        match find(params.family, &tensor.name) {
            Lookup::Row(known) if known.layer.is_none_or(|layer| layer < layers) => {
                there.insert(known.name);
            }
            Lookup::Dropped => {}
            _ if is_buffer(&tensor.name) || wrapper::other_part(&tensor.name).is_some() => {}
            _ => surplus.push(tensor.name.clone()),
        }
    }
    let wanted = expected(&params, weights.tensors.len().max(MANY), |_| false)?.into_iter().map(|wanted| wanted.name);
    Ok(Some(Description {
        gguf: &params.family.gguf,
        layers,
        hidden_size: params.count("hidden")?,
        feed_forward: params.count("ff")?,
        heads: params.count("heads")?,
        kv_heads: params.count("kv_heads")?,
        head_dim: params.count("head")?,
        vocab_size: params.count("vocab")?,
        context_length: params.count("context")?,
        experts: params.size("experts")?,
        tied_embeddings: params.flag("tie_word_embeddings", false),
        missing: wanted.filter(|name| !there.contains(name)).collect(),
        surplus,
    }))
}

/// The class that config.json names, or else its `model_type`, or "unknown".
pub(crate) fn class(folder: &Checkpoint) -> String {
    let config = &folder.config_json;
    let named = params::class(config).or_else(|| config.get("model_type")?.as_str());
    named.unwrap_or("unknown").to_owned()
}
