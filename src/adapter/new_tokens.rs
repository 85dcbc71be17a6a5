//! The embeddings of added tokens in a file of their own beside an adapter, new_embeddings.safetensors: their rows follow
//! those of the base.
//!
//! Reference: vLLM `vllm/lora/models.py` (`EMBEDDING_MODULES`).

use std::path::Path;
use std::sync::Arc;

use crate::error::{Finding, Result};
use crate::formats::pytorch::PytorchFile;
use crate::formats::safetensors::SafetensorsFile;
use crate::plan::{Expr, Plan};
use crate::source::{Source, show_shape};

/// The file's names.
pub(crate) const FILES: [&str; 2] = ["new_embeddings.safetensors", "new_embeddings.bin"];

const INPUT: &str = "input_embeddings";
const OUTPUT: &str = "output_embeddings";

/// The rows of added tokens.
pub(super) struct NewTokens {
    /// How many there are.
    pub(super) count: usize,
    /// Their rows of the embeddings.
    pub(super) input: Expr,
    /// Their rows of the output head.
    pub(super) output: Option<Expr>,
}

impl NewTokens {
    /// Reads the file in the folder of an adapter whose base has rows of `width`; `None` if there is none.
    pub(super) fn of(folder: &Path, width: usize) -> Result<Option<Self>> {
        let Some(file) = FILES.iter().map(|name| folder.join(name)).find(|file| file.is_file()) else {
            return Ok(None);
        };
        let source: Arc<dyn Source> = match file.extension().is_some_and(|extension| extension == "safetensors") {
            true => Arc::new(SafetensorsFile::open(&file)?),
            false => Arc::new(PytorchFile::open(&file, None)?),
        };
        let plan = Plan::taking(&source);
        let finding = |name: &str| Finding::new(&file, format!("tensor {name:?}"));
        if let Some(other) = plan.tensors.iter().find(|tensor| tensor.name != INPUT && tensor.name != OUTPUT) {
            let expected = format!("nothing but {INPUT} and {OUTPUT}");
            return Err(finding(&other.name).expected(expected).found("another tensor").unsupported());
        }
        let rows = |name: &str| match plan.get(name) {
            None => Ok(None),
            Some(tensor) if tensor.shape.len() == 2 && tensor.shape[1] == width && tensor.shape[0] > 0 => {
                Ok(Some(tensor))
            }
            Some(tensor) => {
                let expected = format!("rows of {width}, as the base's embeddings have them");
                Err(finding(name).expected(expected).found(show_shape(&tensor.shape)).mismatch())
            }
        };
        let (input, output) = (rows(INPUT)?, rows(OUTPUT)?);
        let Some(input) = input else {
            return Err(finding(INPUT).expected("the rows of the added tokens").found("none").mismatch());
        };
        if let Some(output) = output.filter(|output| output.shape != input.shape) {
            let expected = format!("{}, as {INPUT} is", show_shape(&input.shape));
            return Err(finding(OUTPUT).expected(expected).found(show_shape(&output.shape)).mismatch());
        }
        let (count, input) = (input.shape[0], input.expr.clone());
        Ok(Some(Self { count, input, output: output.map(|output| output.expr.clone()) }))
    }

    /// The tensor that says how many there are.
    pub(super) fn name(&self) -> &'static str {
        INPUT
    }
}
