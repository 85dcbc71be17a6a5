//! A decoder's weights, from a plan with Hugging Face's names: kept in memory, or read from the file whenever a layer
//! runs.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::ops::FrozenMatrix;
use crate::arch::{LinearLayer, ModelConfig, Module, check_tensors};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};

/// Where a decoder's weights are while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// In memory, in f32.
    Memory,
    /// In the file, with one layer at a time in memory: for a pass or two over a model of any size.
    Streamed,
    /// In the file. A matrix is decoded some rows at a time wherever it is used, in the backward pass too: training takes
    /// no memory for the base, whatever its size and type. On the CPU; on other devices as [`Residence::Memory`].
    Mapped,
}

/// One decoder layer's weights, in f32.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) linears: HashMap<Module, (FrozenMatrix, Option<Tensor>)>,
    pub(super) input_norm: Tensor,
    pub(super) post_attention_norm: Tensor,
    /// The norm of queries over each head's dimensions, if the architecture has one.
    pub(super) q_norm: Option<Tensor>,
    pub(super) k_norm: Option<Tensor>,
}

/// The weights of a decoder.
pub struct ModelWeights {
    path: PathBuf,
    config: ModelConfig,
    device: Device,
    tensors: HashMap<String, PlannedTensor>,
    /// All layers; empty where each is read when it runs.
    layers: Vec<Layer>,
    /// The input embeddings, if they are in memory.
    embedding: Option<Tensor>,
    /// The output head, `[vocab_size, hidden_size]`.
    head: FrozenMatrix,
    norm: Tensor,
}

const EMBEDDING: &str = "model.embed_tokens.weight";

impl ModelWeights {
    /// Opens the weights of `plan` for a decoder with `config`. Errors name `path`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a tensor that is missing, surplus, or whose shape isn't that of the config;
    /// [`crate::Error::NotFinite`]; [`crate::Error::Unsupported`] for a type that can't be decoded.
    pub fn open(path: &Path, config: &ModelConfig, plan: &Plan, residence: Residence, device: &Device) -> Result<Self> {
        plan.check()?;
        check_tensors(path, config, plan)?;
        let tensors: HashMap<_, _> = plan.tensors.iter().map(|t| (t.name.clone(), t.clone())).collect();
        let head_name = if config.tie_word_embeddings { EMBEDDING } else { "lm_head.weight" };
        let mut weights = Self {
            path: path.to_owned(),
            config: config.clone(),
            device: device.clone(),
            head: FrozenMatrix::Mapped(Arc::new(tensors[head_name].clone())),
            tensors,
            layers: Vec::new(),
            embedding: None,
            norm: Tensor::zeros(1, candle_core::DType::F32, device)?,
        };
        weights.norm = weights.load("model.norm.weight")?;
        let is_held = residence == Residence::Memory || !device.is_cpu();
        if residence != Residence::Streamed {
            let layers = 0..config.num_hidden_layers;
            weights.layers = layers.map(|index| weights.load_layer(index, is_held)).collect::<Result<_>>()?;
        }
        if is_held {
            let embedding = weights.load(EMBEDDING)?;
            let is_tied = config.tie_word_embeddings;
            weights.head = FrozenMatrix::Held(if is_tied { embedding.clone() } else { weights.load(head_name)? });
            weights.embedding = Some(embedding);
        }
        Ok(weights)
    }

    /// The device on which values are computed.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The model's config.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The file or folder, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Input embeddings of `ids`: `[ids.len(), hidden_size]`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for an id outside the vocabulary.
    pub fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Finding::new(&self.path, "token id")
                .expected(format_args!("below the vocabulary's {}", self.config.vocab_size))
                .found(id)
                .hint("the tokenizer belongs to another model")
                .mismatch());
        }
        if let Some(embedding) = &self.embedding {
            return Ok(embedding.index_select(&Tensor::new(ids, &self.device)?, 0)?);
        }
        let table = &self.tensors[EMBEDDING];
        let mut rows = Vec::with_capacity(ids.len() * self.config.hidden_size);
        for id in ids {
            rows.extend(table.read_rows(*id as usize..*id as usize + 1)?);
        }
        Ok(Tensor::from_vec(rows, (ids.len(), self.config.hidden_size), &self.device)?)
    }

    /// The final norm's weight, `[hidden_size]`.
    pub(super) fn norm(&self) -> &Tensor {
        &self.norm
    }

    /// The weights of layer `index`, read from the file if they are streamed.
    pub(super) fn layer(&self, index: usize) -> Result<Cow<'_, Layer>> {
        match self.layers.get(index) {
            Some(layer) => Ok(Cow::Borrowed(layer)),
            None => self.load_layer(index, true).map(Cow::Owned),
        }
    }

    /// The output head.
    pub(super) fn head(&self) -> &FrozenMatrix {
        &self.head
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let planned = &self.tensors[name];
        let values = planned.read()?;
        Ok(Tensor::from_vec(values, planned.shape.as_slice(), &self.device)?)
    }

    /// The weights of layer `index`: its matrices in memory if `is_held`, else in the file.
    fn load_layer(&self, layer: usize, is_held: bool) -> Result<Layer> {
        let optional = |name: String| self.tensors.contains_key(&name).then(|| self.load(&name)).transpose();
        let matrix = |name: String| -> Result<FrozenMatrix> {
            Ok(match is_held {
                true => FrozenMatrix::Held(self.load(&name)?),
                false => FrozenMatrix::Mapped(Arc::new(self.tensors[&name].clone())),
            })
        };
        let mut linears = HashMap::new();
        for module in Module::ALL {
            let site = LinearLayer { layer, module };
            linears.insert(module, (matrix(site.weight_name())?, optional(format!("{site}.bias"))?));
        }
        let norm = |name: &str| format!("model.layers.{layer}.{name}.weight");
        Ok(Layer {
            linears,
            input_norm: self.load(&norm("input_layernorm"))?,
            post_attention_norm: self.load(&norm("post_attention_layernorm"))?,
            q_norm: optional(norm("self_attn.q_norm"))?,
            k_norm: optional(norm("self_attn.k_norm"))?,
        })
    }
}
