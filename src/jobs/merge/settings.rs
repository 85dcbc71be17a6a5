//! Settings and result of a merge.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::tokenizer::TokenizerChoice;
use super::super::{CombineSettings, OutputKind, OutputSettings};
use super::VocabularyChoice;
use crate::checkpoint::is_model;
use crate::convert::Content;
use crate::error::Result;
use crate::formats::FileKind;
use crate::merge::{BaseQuant, Truncation};
use crate::output::Output;

/// An adapter or a model, and its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeInput {
    /// Its path.
    pub path: PathBuf,
    /// Its name on the hub, if that isn't its path.
    #[serde(default)]
    pub id: Option<String>,
    /// Its share in the result.
    #[serde(default = "whole")]
    pub weight: f64,
}

fn whole() -> f64 {
    1.0
}

/// Settings of [`merge`](super::merge()).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeSettings {
    /// The base model: a Hugging Face folder, a .gguf, or tensors alone in a PyTorch or safetensors file.
    pub base: PathBuf,
    /// The part of a PyTorch file that is the base, such as `state_dict`.
    #[serde(default)]
    pub key: Option<String>,
    /// What is taken off the names of tensors alone that begin with it, such as `module.`.
    #[serde(default)]
    pub strip_prefix: Option<String>,
    /// The base's name on the hub, if that isn't its path.
    #[serde(default)]
    pub base_id: Option<String>,
    /// Adapters in any form or, with a method for models, other models of the base's shape.
    pub others: Vec<MergeInput>,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
    /// How several adapters or models are combined.
    #[serde(default)]
    pub combine: CombineSettings,
    /// Whether to refuse a quantized base. Otherwise, the weights that the adapter changes are rounded again.
    #[serde(default)]
    pub keep_base: bool,
    /// The type in which bitsandbytes had the base's weights while the adapters were trained (QLoRA). The updates are
    /// added to weights that are rounded to it.
    #[serde(default)]
    pub base_quant: Option<BaseQuant>,
    /// Whether the scales of these weights were quantized, too (`bnb_4bit_use_double_quant`).
    #[serde(default)]
    pub double_quant: bool,
    /// How to read a folder among the others that has both a model and adapter_config.json.
    #[serde(default)]
    pub others_as: Option<Content>,
    /// Which tokenizer and chat template the result gets.
    #[serde(default)]
    pub tokenizer: TokenizerChoice,
    /// How the vocabulary of several models is made one. Without it, they have to have the same number of rows.
    #[serde(default)]
    pub tokenizer_source: Option<VocabularyChoice>,
    /// The number of rows of the embeddings is made a multiple of this. The added rows are the mean of the others.
    #[serde(default)]
    pub pad_to_multiple_of: Option<usize>,
}

impl MergeSettings {
    /// Whether the base is the folder of a model.
    pub(super) fn has_folder(&self) -> bool {
        self.base.is_dir() && is_model(&self.base)
    }

    /// Settings to merge `adapters` into `base`, each with weight 1.
    pub fn new<P: Into<PathBuf>>(
        base: impl Into<PathBuf>,
        adapters: impl IntoIterator<Item = P>,
        output: impl Into<PathBuf>,
    ) -> Self {
        let others = adapters.into_iter().map(|path| MergeInput { path: path.into(), id: None, weight: 1.0 }).collect();
        let output = OutputSettings::new(output);
        Self {
            base: base.into(),
            key: None,
            strip_prefix: None,
            base_id: None,
            others,
            output,
            combine: CombineSettings::default(),
            keep_base: false,
            base_quant: None,
            double_quant: false,
            others_as: None,
            tokenizer: TokenizerChoice::Auto,
            tokenizer_source: None,
            pad_to_multiple_of: None,
        }
    }

    /// Whether the result is the base's PyTorch file with other values in the storages that change.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if the base can't be read.
    pub(super) fn is_into_base(&self) -> Result<bool> {
        let output = &self.output;
        let to_file = output.kind() == OutputKind::Pytorch && output.is_file() && output.into.is_none();
        let as_it_is = output.r#type.is_none() && !output.expand_shared;
        Ok(to_file && as_it_is && FileKind::of(&self.base)? == Some(FileKind::Pytorch))
    }
}

/// A merged model or LoRA, and the errors of truncating to a rank.
#[derive(Debug)]
pub struct Adapted {
    /// The output to write.
    pub output: Output,
    /// The modules that were truncated to a rank.
    pub truncations: Vec<Truncation>,
}
