//! Arguments of all commands that quantize: the recipe, and the importance matrix.

use std::path::PathBuf;

use atombank::jobs::RecipeSettings;
use clap::Args;

/// How a model is quantized.
#[derive(Args, Default)]
#[command(next_help_heading = "Quantization")]
pub(crate) struct RecipeArgs {
    /// An importance matrix, made by `atombank imatrix` or llama-imatrix
    #[arg(long, value_name = "FILE")]
    imatrix: Option<PathBuf>,
    /// Use importance only for tensors whose names contain this; may be repeated
    #[arg(long, value_name = "PART")]
    include_weights: Vec<String>,
    /// Use no importance for tensors whose names contain this; may be repeated
    #[arg(long, value_name = "PART")]
    exclude_weights: Vec<String>,
    /// A type for tensors whose names match: REGEX=TYPE; may be repeated
    #[arg(long, value_name = "REGEX=TYPE")]
    tensor_type: Vec<String>,
    /// A file with such rules, separated by spaces or lines
    #[arg(long, value_name = "FILE")]
    tensor_type_file: Option<PathBuf>,
    /// The type of the output head
    #[arg(long, value_name = "TYPE")]
    output_tensor_type: Option<String>,
    /// The type of the token embeddings
    #[arg(long, value_name = "TYPE")]
    token_embedding_type: Option<String>,
    /// Give all quantized tensors the same type
    #[arg(long)]
    pure: bool,
    /// Keep the output head's type
    #[arg(long)]
    leave_output_tensor: bool,
    /// Quantize tensors that are quantized already, which loses more than quantizing the original
    #[arg(long)]
    allow_requantize: bool,
    /// Remove these layers: numbers separated by commas
    #[arg(long, value_name = "N,N,..")]
    prune_layers: Option<String>,
}

impl RecipeArgs {
    /// Converts to the library's settings.
    pub(crate) fn settings(&self) -> RecipeSettings {
        RecipeSettings {
            imatrix: self.imatrix.clone(),
            include_weights: self.include_weights.clone(),
            exclude_weights: self.exclude_weights.clone(),
            tensor_type: self.tensor_type.clone(),
            tensor_type_file: self.tensor_type_file.clone(),
            output_tensor_type: self.output_tensor_type.clone(),
            token_embedding_type: self.token_embedding_type.clone(),
            pure: self.pure,
            leave_output_tensor: self.leave_output_tensor,
            allow_requantize: self.allow_requantize,
            prune_layers: self.prune_layers.clone(),
        }
    }
}
