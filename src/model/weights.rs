//! A decoder's weights, from a plan with Hugging Face's names: kept in memory, or read from the file whenever a layer
//! runs.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::layer::{Layer, LayerReader, NormWeights, Parts};
use super::ops::FrozenMatrix;
use crate::arch::layout::{ByName, Found, Needed, needed};
use crate::arch::params::Params;
use crate::arch::parts::Part;
use crate::arch::{LinearLayer, ModelConfig, Module};
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

/// The weights of a decoder.
pub struct ModelWeights {
    path: PathBuf,
    config: ModelConfig,
    device: Device,
    tensors: ByName,
    /// The config, which knows the tensors.
    params: Params,
    /// What the tensors of each layer are to it, and those outside layers.
    parts: Vec<Parts>,
    outside: Parts,
    /// All layers; empty where each is read when it runs.
    layers: Vec<Layer>,
    ends: Ends,
}

/// What comes before and behind the layers.
struct Ends {
    /// The input embeddings, `[vocab_size, hidden_size]`.
    embedding: FrozenMatrix,
    /// Embeddings of positions, `[positions, hidden_size]`.
    positions: Option<Tensor>,
    embedding_norm: Option<NormWeights>,
    norm: Option<NormWeights>,
    /// The output head, `[vocab_size, hidden_size]`.
    head: FrozenMatrix,
    head_bias: Option<Tensor>,
}

impl ModelWeights {
    /// Opens the weights of `plan` for a decoder with `config`. Errors name `path`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a tensor that is missing, surplus, or whose shape isn't that of the config;
    /// [`crate::Error::NotFinite`]; [`crate::Error::Unsupported`] for a type that can't be decoded.
    pub fn open(path: &Path, config: &ModelConfig, plan: &Plan, residence: Residence, device: &Device) -> Result<Self> {
        plan.check()?;
        let Found { needed: all, tensors, params } = needed(path, config, plan)?;
        let mut parts: Vec<Parts> = (0..config.num_hidden_layers).map(|_| Parts::new()).collect();
        let mut outside = Parts::new();
        for needed in all {
            let of = needed.slot.layer.map_or(&mut outside, |layer| &mut parts[layer]);
            of.entry((needed.part, needed.is_bias())).or_insert(needed);
        }
        let none = FrozenMatrix::held(Tensor::zeros((1, 1), candle_core::DType::F32, device)?);
        let ends = Ends {
            embedding: none.clone(),
            positions: None,
            embedding_norm: None,
            norm: None,
            head: none,
            head_bias: None,
        };
        let mut weights = Self {
            path: path.to_owned(),
            config: config.clone(),
            device: device.clone(),
            tensors,
            params,
            parts,
            outside,
            layers: Vec::new(),
            ends,
        };
        let is_held = residence == Residence::Memory || !device.is_cpu();
        weights.ends = weights.read_ends(is_held)?;
        if residence != Residence::Streamed {
            let layers = 0..config.num_hidden_layers;
            weights.layers = layers.map(|index| weights.read_layer(index, is_held)).collect::<Result<_>>()?;
        }
        Ok(weights)
    }

    fn read_ends(&self, is_held: bool) -> Result<Ends> {
        let table = |part: Part| -> Result<FrozenMatrix> {
            let needed = self.outside.get(&(part, false)).ok_or_else(|| {
                let finding = Finding::new(&self.path, format!("{part:?}")).expected("a tensor for it");
                finding.found("none").unsupported()
            })?;
            self.matrix(&needed.sources[0].name, is_held, false)
        };
        let values = |part: Part, is_bias: bool| {
            self.outside.get(&(part, is_bias)).map(|needed| self.values_of(needed)).transpose()
        };
        let embedding = table(Part::Embedding)?;
        let is_tied = self.config.tie_word_embeddings;
        Ok(Ends {
            positions: values(Part::Positions, false)?,
            embedding_norm: self.norm_of(&self.outside, Part::EmbeddingNorm)?,
            norm: self.norm_of(&self.outside, Part::LastNorm)?,
            head: if is_tied { embedding.clone() } else { table(Part::Head)? },
            head_bias: if is_tied { None } else { values(Part::Head, true)? },
            embedding,
        })
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
        self.ends.embedding.rows_at(ids, &self.device)
    }

    /// Embeddings of positions, `[positions, hidden_size]`, if the model has them.
    pub(super) fn positions(&self) -> Option<&Tensor> {
        self.ends.positions.as_ref()
    }

    /// The norm of the input embeddings, if there is one.
    pub(super) fn embedding_norm(&self) -> Option<&NormWeights> {
        self.ends.embedding_norm.as_ref()
    }

    /// The norm behind the last layer.
    pub(super) fn last_norm(&self) -> Option<&NormWeights> {
        self.ends.norm.as_ref()
    }

    /// The weights of layer `index`, read from the file if they are streamed.
    pub(super) fn layer(&self, index: usize) -> Result<Cow<'_, Layer>> {
        match self.layers.get(index) {
            Some(layer) => Ok(Cow::Borrowed(layer)),
            None => self.read_layer(index, true).map(Cow::Owned),
        }
    }

    /// The output head.
    pub(super) fn head(&self) -> (&FrozenMatrix, Option<&Tensor>) {
        (&self.ends.head, self.ends.head_bias.as_ref())
    }

    /// The weights of layer `index`: its matrices in memory if `is_held`, else in the file.
    fn read_layer(&self, layer: usize, is_held: bool) -> Result<Layer> {
        LayerReader { weights: self, parts: &self.parts[layer], layer, is_held }.layer()
    }

    /// The config, which knows the tensors.
    pub(super) fn params(&self) -> &Params {
        &self.params
    }

    /// The tensor of this name in the family's file, which [`needed`] has found.
    fn tensor(&self, name: &str) -> Result<&PlannedTensor> {
        self.tensors.get(name).ok_or_else(|| {
            let finding = Finding::new(&self.path, format!("tensor {name:?}")).expected("one of that name");
            finding.found("none").mismatch()
        })
    }

    /// The weight of a linear layer as its file has it, and whether that is `[d_in, d_out]`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where the model has no such layer.
    pub(crate) fn planned(&self, site: LinearLayer) -> Result<(&PlannedTensor, bool)> {
        let is_weight = |((_, is_bias), needed): &(&(Part, bool), &Needed)| {
            !is_bias && Module::of_row(self.params.family, needed.slot.row) == Some(site.module)
        };
        let of_layer = self.parts.get(site.layer).and_then(|parts| parts.iter().find(is_weight));
        let Some((_, needed)) = of_layer else {
            let finding = Finding::new(&self.path, format!("{site}")).expected("a linear layer of the model");
            return Err(finding.found("none of this name").mismatch());
        };
        Ok((self.tensor(&needed.sources[0].name)?, needed.slot.row.is_transposed()))
    }

    fn load(&self, name: &str) -> Result<Tensor> {
        let planned = self.tensor(name)?;
        Ok(Tensor::from_vec(planned.read()?, planned.shape.as_slice(), &self.device)?)
    }

    /// A matrix, which the file has transposed if `is_turned`.
    pub(super) fn matrix(&self, name: &str, is_held: bool, is_turned: bool) -> Result<FrozenMatrix> {
        match (is_held, is_turned) {
            (true, true) => Ok(FrozenMatrix::held(self.load(name)?.t()?.contiguous()?)),
            (true, false) => Ok(FrozenMatrix::held(self.load(name)?)),
            (false, _) => Ok(FrozenMatrix::mapped(Arc::new(self.tensor(name)?.clone()), is_turned)),
        }
    }

    /// The matrices of a stack, each transposed if `is_turned`.
    pub(super) fn stack(&self, name: &str, is_held: bool, is_turned: bool) -> Result<Vec<FrozenMatrix>> {
        let planned = self.tensor(name)?;
        let [count, rows, _] = planned.shape[..] else { return Ok(Vec::new()) };
        if !is_held {
            let planned = Arc::new(planned.clone());
            let part = |number: usize| FrozenMatrix::part(&planned, number * rows..(number + 1) * rows, is_turned);
            return Ok((0..count).map(part).collect());
        }
        let all = self.load(name)?;
        let part = |number: usize| -> Result<FrozenMatrix> {
            let matrix = all.get(number)?;
            Ok(FrozenMatrix::held(if is_turned { matrix.t()?.contiguous()? } else { matrix }))
        };
        (0..count).map(part).collect()
    }

    /// The values of a small tensor, stacked where it is made of several.
    pub(super) fn values_of(&self, needed: &Needed) -> Result<Tensor> {
        let all: Vec<Tensor> = needed.sources.iter().map(|source| self.load(&source.name)).collect::<Result<_>>()?;
        match &all[..] {
            [one] => Ok(one.clone()),
            all => Ok(Tensor::stack(all, 0)?),
        }
    }

    /// A norm's weights, with what is added to them.
    pub(super) fn norm_of(&self, parts: &Parts, part: Part) -> Result<Option<NormWeights>> {
        let values = |is_bias: bool| parts.get(&(part, is_bias)).map(|needed| self.values_of(needed)).transpose();
        let computation = &self.config.computation;
        let Some(weight) = values(false)? else {
            let is_there = matches!(part, Part::AttentionNorm | Part::FeedForwardNorm | Part::LastNorm);
            return Ok((computation.has_bare_norms && is_there).then_some(NormWeights { weight: None, bias: None }));
        };
        let shift = f64::from(computation.norm_shift);
        let weight = if shift == 0.0 { weight } else { (weight + shift)? };
        Ok(Some(NormWeights { weight: Some(weight), bias: values(true)? }))
    }
}
