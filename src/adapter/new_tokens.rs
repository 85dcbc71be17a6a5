//! The embeddings of added tokens in a file of their own beside an adapter, new_embeddings.safetensors: their rows follow
//! those of the base.
//!
//! Reference: vLLM `vllm/lora/models.py` (`EMBEDDING_MODULES`).

use std::path::{Path, PathBuf};

use super::open::tensors_of;
use crate::error::{Finding, Result};
use crate::plan::PlannedTensor;
use crate::source::show_shape;

/// The file's names.
pub(crate) const FILES: [&str; 2] = ["new_embeddings.safetensors", "new_embeddings.bin"];

const INPUT: &str = "input_embeddings";
const OUTPUT: &str = "output_embeddings";

/// The rows of added tokens.
pub(super) struct NewTokens {
    file: PathBuf,
    /// Their rows of the embeddings.
    pub(super) input: PlannedTensor,
    /// Their rows of the output head.
    pub(super) output: Option<PlannedTensor>,
}

impl NewTokens {
    /// Reads the file in the folder of an adapter whose base has rows of `width`; `None` if there is none.
    pub(super) fn of(folder: &Path, width: usize) -> Result<Option<Self>> {
        let Some(file) = FILES.iter().map(|name| folder.join(name)).find(|file| file.is_file()) else {
            return Ok(None);
        };
        let plan = tensors_of(&file)?;
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
        let (input, output) = (input.clone(), output.cloned());
        Ok(Some(Self { file, input, output }))
    }

    /// The file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.input.rows()
    }

    /// Refuses rows of the head that aren't those of the embeddings, to which the base ties it.
    pub(super) fn check_tied(&self) -> Result<()> {
        match &self.output {
            Some(output) if !output.same_values(&self.input)? => {
                let finding = Finding::new(&self.file, format!("tensor {OUTPUT:?}"));
                let expected = format!("what {INPUT} has: in the base, the head is tied to the embeddings");
                Err(finding.expected(expected).found("other values").unsupported())
            }
            _ => Ok(()),
        }
    }
}
