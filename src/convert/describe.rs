//! What a model's config says about it, and how its weights fit: for looking, not for converting.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::arch::lookup::{Lookup, expected, find};
use crate::arch::params::{self, Params};
use crate::arch::{Dim, experts, is_buffer, wrapper};
use crate::checkpoint::Checkpoint;
use crate::error::Result;

/// A model whose class has a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The architecture's name in GGUF.
    pub gguf: &'static str,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width between the layers of a feed-forward block.
    pub feed_forward: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocab_size: usize,
    /// The longest context it was made for, in tokens.
    pub context_length: usize,
    /// Experts a layer; none in a dense model.
    pub experts: Option<usize>,
    /// Whether input and output embeddings are one.
    pub tied_embeddings: bool,
    /// Tensors the config asks for and the files lack.
    pub missing: Vec<String>,
    /// Tensors the files hold and the class knows nothing of.
    pub surplus: Vec<String>,
}

/// More tensors than any model has: a config that asks for more is not listed.
const MANY: usize = 1 << 18;

/// Describes the model in `folder`; `None` where its class has no table.
///
/// # Errors
/// [`crate::Error::Unsupported`] and [`crate::Error::Format`] for a config that can't be converted
/// either.
pub fn describe(folder: &Checkpoint) -> Result<Option<Description>> {
    let Some(params) = Params::read(folder.path(), &folder.config_json, &mut Vec::new())? else { return Ok(None) };
    let layers = params.layers()?;
    let mut there = BTreeSet::new();
    let mut surplus = Vec::new();
    let weights = experts::separated(&params, folder.weights())?;
    for tensor in &weights.tensors {
        match find(params.family, &tensor.name) {
            Lookup::Row(known) if known.layer.is_none_or(|layer| layer < layers) => {
                there.insert(known.hf_name());
            }
            Lookup::Dropped => {}
            _ if is_buffer(&tensor.name) || wrapper::other_part(&tensor.name).is_some() => {}
            _ => surplus.push(tensor.name.clone()),
        }
    }
    let wanted = expected(&params, weights.tensors.len().max(MANY), |_| false)?.into_iter().map(|wanted| wanted.name);
    Ok(Some(Description {
        gguf: params.family.gguf,
        layers,
        hidden_size: params.count(Dim::Hidden)?,
        feed_forward: params.count(Dim::FeedForward)?,
        heads: params.count(Dim::Heads)?,
        kv_heads: params.count(Dim::KvHeads)?,
        head_dim: params.count(Dim::Head)?,
        vocab_size: params.count(Dim::Vocab)?,
        context_length: params.count(Dim::Context)?,
        experts: params.whole(&["num_local_experts", "num_experts"])?,
        tied_embeddings: params.flag("tie_word_embeddings", false),
        missing: wanted.filter(|name| !there.contains(name)).collect(),
        surplus,
    }))
}

/// The class that config.json names, or the kind of model, or nothing.
pub(crate) fn class(folder: &Checkpoint) -> String {
    let config = &folder.config_json;
    let named = params::class(config).or_else(|| config.get("model_type")?.as_str());
    named.unwrap_or("unknown").to_owned()
}
