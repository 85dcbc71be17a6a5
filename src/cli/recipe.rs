//! Arguments of everything that quantizes: the recipe, and the importance that leads it.

use std::path::PathBuf;

use anyhow::Result;
use atombank::formats::gguf::Metadata;
use atombank::formats::gguf::Override;
use atombank::imatrix::ImportanceMatrix;
use atombank::output::Output;
use atombank::plan::Plan;
use atombank::quantize::{FileType, Led, Recipe, TensorTypeRule, parse_layers, parse_tensor_type, quantize};
use clap::Args;

/// How a model is quantized.
#[derive(Args, Default)]
#[command(next_help_heading = "Quantization")]
pub(crate) struct RecipeArgs {
    /// An importance matrix, as `atombank imatrix` or llama-imatrix makes it
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Use importance only for tensors with this in their names; may be repeated
    #[arg(long, value_name = "PART")]
    include_weights: Vec<String>,
    /// Use no importance for tensors with this in their names; may be repeated
    #[arg(long, value_name = "PART")]
    exclude_weights: Vec<String>,
    /// A type for tensors with names that match: REGEX=TYPE; may be repeated
    #[arg(long, value_name = "REGEX=TYPE")]
    tensor_type: Vec<String>,
    /// A file with such types, separated by spaces or lines
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// The type of the output head
    #[arg(long, value_name = "TYPE")]
    output_tensor_type: Option<String>,
    /// The type of the token embeddings
    #[arg(long, value_name = "TYPE")]
    token_embedding_type: Option<String>,
    /// One type for all tensors that are quantized
    #[arg(long)]
    pure: bool,
    /// Leave the output head in its type
    #[arg(long)]
    leave_output_tensor: bool,
    /// Quantize what is quantized already, which loses more than quantizing the original
    #[arg(long)]
    allow_requantize: bool,
    /// Leave these layers out: numbers with commas between
    #[arg(long, value_name = "N,N,..")]
    prune_layers: Option<String>,
}

impl RecipeArgs {
    /// The first option that was given, for messages where none can be.
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.imatrix.is_some(), "--imatrix"),
            (!self.include_weights.is_empty(), "--include-weights"),
            (!self.exclude_weights.is_empty(), "--exclude-weights"),
            (!self.tensor_type.is_empty(), "--tensor-type"),
            (self.tensor_type_file.is_some(), "--tensor-type-file"),
            (self.output_tensor_type.is_some(), "--output-tensor-type"),
            (self.token_embedding_type.is_some(), "--token-embedding-type"),
            (self.pure, "--pure"),
            (self.leave_output_tensor, "--leave-output-tensor"),
            (self.allow_requantize, "--allow-requantize"),
            (self.prune_layers.is_some(), "--prune-layers"),
        ];
        given.iter().find(|(given, _)| *given).map(|(_, name)| *name)
    }

    /// The recipe of `file_type` with these options.
    pub(crate) fn recipe(&self, file_type: FileType) -> Result<Recipe> {
        let mut tensor_types = Vec::new();
        if let Some(file) = &self.tensor_type_file {
            tensor_types.extend(TensorTypeRule::read_file(file)?);
        }
        for rule in &self.tensor_type {
            tensor_types.push(TensorTypeRule::parse(rule)?);
        }
        let single = |option, text: &Option<String>| text.as_ref().map(|t| parse_tensor_type(option, t)).transpose();
        Ok(Recipe {
            output_tensor_type: single("--output-tensor-type", &self.output_tensor_type)?,
            token_embedding_type: single("--token-embedding-type", &self.token_embedding_type)?,
            tensor_types,
            pure: self.pure,
            leave_output_tensor: self.leave_output_tensor,
            allow_requantize: self.allow_requantize,
            prune_layers: self.prune_layers.as_deref().map(parse_layers).transpose()?.unwrap_or_default(),
            ..Recipe::from(file_type)
        })
    }

    /// Whether layers are left out.
    #[cfg(feature = "train")]
    pub(crate) fn prunes(&self) -> bool {
        self.prune_layers.is_some()
    }

    /// Whether there will be importance.
    pub(crate) fn is_led(&self) -> bool {
        self.imatrix.is_some()
    }

    /// The model of `tensors` as `file_type` with these options makes it.
    pub(crate) fn quantize(
        &self,
        file_type: FileType,
        metadata: &Metadata,
        tensors: &Plan,
        overrides: &[Override],
    ) -> Result<Output> {
        let recipe = self.recipe(file_type)?;
        let mut matrix = self.imatrix.as_deref().map(ImportanceMatrix::open).transpose()?;
        if let Some(matrix) = &mut matrix {
            matrix.retain(&self.include_weights, &self.exclude_weights);
        }
        let file_name = self.imatrix.as_ref().map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        let led = matrix.as_ref().map(|by| Led { by, file_name: &file_name });
        Ok(quantize(&recipe, metadata, tensors, led, overrides)?)
    }
}
