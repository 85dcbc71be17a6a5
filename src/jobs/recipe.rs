//! Settings of all jobs that quantize: the recipe, and the importance matrix.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::formats::gguf::{Metadata, Override};
use crate::imatrix::ImportanceMatrix;
use crate::output::Output;
use crate::plan::Plan;
use crate::quantize::{FileType, Led, Recipe, TensorTypeRule, parse_layers, parse_tensor_type, quantize};

/// How a model is quantized, in addition to its file type.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecipeSettings {
    /// The file of an importance matrix.
    pub imatrix: Option<PathBuf>,
    /// Importance is used only for tensors whose names contain one of these.
    pub include_weights: Vec<String>,
    /// Importance isn't used for tensors whose names contain one of these.
    pub exclude_weights: Vec<String>,
    /// Types for tensors whose names match: `REGEX=TYPE`.
    pub tensor_type: Vec<String>,
    /// A file with such types.
    pub tensor_type_file: Option<PathBuf>,
    /// The type of the output head.
    pub output_tensor_type: Option<String>,
    /// The type of the token embeddings.
    pub token_embedding_type: Option<String>,
    /// Whether all quantized tensors get the same type.
    pub pure: bool,
    /// Whether the output head keeps its type.
    pub leave_output_tensor: bool,
    /// Whether quantized tensors may be quantized again.
    pub allow_requantize: bool,
    /// Layers to remove: numbers separated by commas.
    pub prune_layers: Option<String>,
}

impl RecipeSettings {
    /// The name of the first field that is set.
    pub fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.imatrix.is_some(), "imatrix"),
            (!self.include_weights.is_empty(), "include_weights"),
            (!self.exclude_weights.is_empty(), "exclude_weights"),
            (!self.tensor_type.is_empty(), "tensor_type"),
            (self.tensor_type_file.is_some(), "tensor_type_file"),
            (self.output_tensor_type.is_some(), "output_tensor_type"),
            (self.token_embedding_type.is_some(), "token_embedding_type"),
            (self.pure, "pure"),
            (self.leave_output_tensor, "leave_output_tensor"),
            (self.allow_requantize, "allow_requantize"),
            (self.prune_layers.is_some(), "prune_layers"),
        ];
        given.iter().find(|(given, _)| *given).map(|(_, name)| *name)
    }

    /// The recipe of `file_type` with these settings.
    ///
    /// # Errors
    /// [`crate::Error::Setting`]; errors of reading the file of types.
    pub fn recipe(&self, file_type: FileType) -> Result<Recipe> {
        let mut tensor_types = Vec::new();
        if let Some(file) = &self.tensor_type_file {
            tensor_types.extend(TensorTypeRule::read_file(file)?);
        }
        for rule in &self.tensor_type {
            tensor_types.push(TensorTypeRule::parse(rule)?);
        }
        let single = |field, text: &Option<String>| text.as_ref().map(|t| parse_tensor_type(field, t)).transpose();
        Ok(Recipe {
            output_tensor_type: single("output_tensor_type", &self.output_tensor_type)?,
            token_embedding_type: single("token_embedding_type", &self.token_embedding_type)?,
            tensor_types,
            pure: self.pure,
            leave_output_tensor: self.leave_output_tensor,
            allow_requantize: self.allow_requantize,
            prune_layers: self.prune_layers.as_deref().map(parse_layers).transpose()?.unwrap_or_default(),
            ..Recipe::from(file_type)
        })
    }

    /// Quantizes the model of `tensors` to `file_type` with these settings.
    pub(super) fn quantize(
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
        quantize(&recipe, metadata, tensors, led, overrides)
    }
}
