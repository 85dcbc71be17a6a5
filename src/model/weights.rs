//! A decoder's weights, from a plan with Hugging Face's names: kept in memory, or read from the file whenever a layer
//! runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use super::ops;
use crate::arch::{LinearLayer, ModelConfig, Module, check_tensors};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};

/// Where a decoder's weights are while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residence {
    /// In memory, in f32: for training and generation.
    Memory,
    /// In the file, with one layer at a time in memory: for a pass or two over a model of any size.
    Streamed,
}

/// One decoder layer's weights, in f32.
#[derive(Clone)]
pub(super) struct Layer {
    pub(super) linears: HashMap<Module, (Tensor, Option<Tensor>)>,
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
    resident: Option<Resident>,
    norm: Tensor,
}

struct Resident {
    layers: Vec<Layer>,
    embedding: Tensor,
    head: Tensor,
}

/// Number of rows of the output head that a streamed pass holds at a time: 32 MiB at a hidden size of 4096.
const HEAD_ROWS: usize = 2048;

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
        let mut weights = Self {
            path: path.to_owned(),
            config: config.clone(),
            device: device.clone(),
            tensors,
            resident: None,
            norm: Tensor::zeros(1, candle_core::DType::F32, device)?,
        };
        weights.norm = weights.load("model.norm.weight")?;
        if residence == Residence::Memory {
            let layers = (0..config.num_hidden_layers).map(|i| weights.load_layer(i)).collect::<Result<_>>()?;
            let embedding = weights.load(EMBEDDING)?;
            let head = match weights.head_name() {
                EMBEDDING => embedding.clone(),
                name => weights.load(name)?,
            };
            weights.resident = Some(Resident { layers, embedding, head });
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
        if let Some(resident) = &self.resident {
            let ids = Tensor::new(ids, &self.device)?;
            return Ok(resident.embedding.index_select(&ids, 0)?);
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

    /// The weights of layer `index`: from memory if resident, read from the file if streamed.
    pub(super) fn layer(&self, index: usize) -> Result<Layer> {
        match &self.resident {
            Some(resident) => Ok(resident.layers[index].clone()),
            None => self.load_layer(index),
        }
    }

    /// Logits of normed hidden states `[n, hidden_size]`: `[n, vocab_size]`.
    pub(super) fn head(&self, hidden: &Tensor) -> Result<Tensor> {
        if let Some(resident) = &self.resident {
            return Ok(ops::frozen_linear(hidden, &resident.head, None)?);
        }
        let table = &self.tensors[self.head_name()];
        let mut logits = Vec::new();
        for start in (0..self.config.vocab_size).step_by(HEAD_ROWS) {
            let rows = start..(start + HEAD_ROWS).min(self.config.vocab_size);
            let shape = (rows.len(), self.config.hidden_size);
            let weight = Tensor::from_vec(table.read_rows(rows)?, shape, &self.device)?;
            logits.push(ops::frozen_linear(hidden, &weight, None)?);
        }
        Ok(Tensor::cat(&logits, 1)?)
    }

    fn head_name(&self) -> &'static str {
        match self.config.tie_word_embeddings {
            true => EMBEDDING,
            false => "lm_head.weight",
        }
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let planned = &self.tensors[name];
        let values = planned.read()?;
        Ok(Tensor::from_vec(values, planned.shape.as_slice(), &self.device)?)
    }

    fn load_layer(&self, layer: usize) -> Result<Layer> {
        let optional = |name: String| self.tensors.contains_key(&name).then(|| self.load(&name)).transpose();
        let mut linears = HashMap::new();
        for module in Module::ALL {
            let site = LinearLayer { layer, module };
            linears.insert(module, (self.load(&site.weight_name())?, optional(format!("{site}.bias"))?));
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
