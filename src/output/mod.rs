//! The output of a job, as data: tensors, the form in which they are written, other files, and notes.
//!
//! An [`Output`] can be described ([`Output::describe`]: the dry run) or written ([`Output::write`]). Both use the same
//! layout. Writing always takes the same steps: lay out, write the tensors, write the other files, give the output its
//! name.

mod sidecars;
mod size;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

pub use sidecars::{MAX_FILE_BYTES, MAX_TOTAL_BYTES, Sidecars, metadata_left_out, safetensors_metadata};
pub(crate) use sidecars::{WEIGHT_EXTENSIONS, json_text, left_out_keys, parsed};
pub use size::parse_size;
pub use write::{Destination, Written};

use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::{self, Metadata, SplitLimits};
use crate::formats::pytorch::PytorchFile;
use crate::formats::{pytorch, safetensors};
use crate::plan::{FileLayout, Layout, Plan, PlannedTensor};

/// The output of a job. It is described or written as a whole, never in part.
#[derive(Debug, Clone)]
pub struct Output {
    /// The form in which it is written.
    pub form: Form,
    /// The tensors, under their names in the output.
    pub plan: Plan,
    /// Files and texts that are written in addition to the tensors. A single file of tensors has no place for other
    /// files.
    pub sidecars: Sidecars,
    /// One line for everything that was left out or assumed.
    pub notes: Vec<String>,
}

/// The form of an output.
#[derive(Debug, Clone)]
pub enum Form {
    /// GGUF: one file, or several.
    Gguf {
        /// Keys and values in order.
        metadata: Metadata,
        /// Limits after which a new file begins.
        split: SplitLimits,
    },
    /// A folder with files of tensors and the sidecars' files.
    Folder {
        /// The format of the files of tensors.
        container: Container,
        /// The name of the file of tensors without its extension: `model`, `adapter_model`.
        stem: String,
        /// The size after which a new file of tensors begins, in bytes.
        shard_bytes: u64,
    },
    /// One file of tensors.
    File(Container),
    /// A PyTorch file with other values in some of its storages: the plan's tensors, each in place of the tensor with the
    /// number in `places`.
    Rewritten {
        /// The file as it is.
        original: Arc<PytorchFile>,
        /// Numbers of its tensors, in the plan's order.
        places: Vec<usize>,
    },
    /// A finished file without tensors, with these bytes.
    Bytes(Vec<u8>),
}

/// A file format that holds only named tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// safetensors, with the sidecars' `__metadata__`.
    Safetensors,
    /// The form in which torch.save writes a dictionary of tensors.
    Pytorch,
}

/// A description of what would be written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// Every tensor, in the plan's order.
    pub tensors: Vec<TensorDescription>,
    /// Every file, with its full length.
    pub files: Vec<FileDescription>,
    /// Bytes in all files with tensors, including their headers.
    pub bytes: u64,
    /// Notes on what was left out or assumed.
    pub notes: Vec<String>,
}

/// One tensor of a [`Description`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorDescription {
    /// Its name in the output.
    pub name: String,
    /// Its type in the output.
    pub dtype: DType,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The size in bytes.
    pub bytes: u64,
    /// The index of its file in [`Description::files`].
    pub file: usize,
    /// The offset in that file, in bytes.
    pub offset: u64,
}

/// One file of a [`Description`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileDescription {
    /// The name, relative to the output folder if the output is a folder.
    pub name: String,
    /// The length in bytes.
    pub bytes: u64,
    /// Whether it is a file without tensors.
    pub beside: bool,
}

impl Output {
    /// An output that is one GGUF file.
    pub fn gguf(metadata: Metadata, plan: Plan, notes: Vec<String>) -> Self {
        let form = Form::Gguf { metadata, split: SplitLimits::default() };
        Self { form, plan, sidecars: Sidecars::default(), notes }
    }

    /// An output that is a folder with one file of safetensors called `stem`, and no other files yet. The file's
    /// metadata says that its tensors are torch's, which transformers requires.
    pub fn folder(stem: &str, plan: Plan) -> Self {
        let safetensors_metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let form = Form::Folder { container: Container::Safetensors, stem: stem.to_owned(), shard_bytes: u64::MAX };
        let sidecars = Sidecars { safetensors_metadata, ..Sidecars::default() };
        Self { form, plan, sidecars, notes: Vec::new() }
    }

    /// An adapter's folder in PEFT's layout: `adapter_model.safetensors` and `adapter_config.json`.
    pub fn adapter(config: &impl Serialize, plan: Plan) -> Self {
        let mut output = Self::folder("adapter_model", plan);
        output.put_json("adapter_config.json", config);
        output
    }

    /// Limits the size of files of tensors to `shard_bytes`, if the output is a folder.
    pub fn sharded(mut self, shard_bytes: u64) -> Self {
        if let Form::Folder { shard_bytes: limit, .. } = &mut self.form {
            *limit = shard_bytes;
        }
        self
    }

    /// Adds or replaces the file `name`, with `value` as JSON.
    pub fn put_json(&mut self, name: &str, value: &impl Serialize) {
        self.sidecars.files.insert(name.to_owned(), (json_text(value) + "\n").into_bytes());
    }

    /// Keys and values, if it is a GGUF.
    pub fn metadata(&self) -> Option<&Metadata> {
        match &self.form {
            Form::Gguf { metadata, .. } => Some(metadata),
            _ => None,
        }
    }

    /// Mutable keys and values, if it is a GGUF.
    pub fn metadata_mut(&mut self) -> Option<&mut Metadata> {
        match &mut self.form {
            Form::Gguf { metadata, .. } => Some(metadata),
            _ => None,
        }
    }

    /// Describes what writing it to `target` would produce. Only headers are read for this.
    ///
    /// # Errors
    /// Those of [`Plan::check`], and errors for what the format can't hold.
    pub fn describe(&self, target: &Path) -> Result<Description> {
        self.plan.check()?;
        let layout = self.layout(target)?;
        let described = |(tensor, place): (&PlannedTensor, &crate::plan::Place)| TensorDescription {
            name: tensor.name.clone(),
            dtype: tensor.dtype,
            shape: tensor.shape.clone(),
            bytes: tensor.byte_len(),
            file: place.file,
            offset: place.offset,
        };
        let name = |file: &FileLayout| match (&self.form, layout.files.len()) {
            (Form::Folder { .. }, _) | (Form::Gguf { .. }, 2..) => file.name.display().to_string(),
            _ => target.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        };
        let mut files: Vec<FileDescription> = (layout.files.iter())
            .map(|file| FileDescription { name: name(file), bytes: file.byte_len, beside: false })
            .collect();
        let bytes = files.iter().map(|file| file.bytes).sum();
        if self.is_folder() {
            files.extend(self.sidecars.files.iter().map(|(name, content)| FileDescription {
                name: name.clone(),
                bytes: content.len() as u64,
                beside: true,
            }));
        }
        let tensors = self.plan.tensors.iter().zip(&layout.places).map(described).collect();
        Ok(Description { tensors, files, bytes, notes: self.notes.clone() })
    }

    /// Whether it is a folder.
    pub fn is_folder(&self) -> bool {
        matches!(self.form, Form::Folder { .. })
    }

    /// The layout for an output called `target`.
    fn layout(&self, target: &Path) -> Result<Layout> {
        let tensors = &self.plan.tensors;
        let Sidecars { safetensors_metadata: texts, aliases, .. } = &self.sidecars;
        match &self.form {
            Form::Gguf { metadata, split } => {
                let stem = target.file_stem().unwrap_or_default().to_string_lossy();
                let mut layout = gguf::split_layout(metadata, tensors, &stem, *split)?;
                // A file without tensors needs no alignment, and the reference doesn't pad it.
                if let ([], [file]) = (tensors.as_slice(), layout.files.as_mut_slice()) {
                    file.byte_len = file.head.len() as u64;
                }
                Ok(layout)
            }
            Form::Folder { container: Container::Safetensors, stem, shard_bytes } => {
                safetensors::layout_with_metadata(tensors, stem, *shard_bytes, texts, aliases)
            }
            Form::Folder { container: Container::Pytorch, stem, shard_bytes } => {
                pytorch::layout_with_names(tensors, stem, *shard_bytes, aliases, &BTreeMap::new())
            }
            Form::File(Container::Safetensors) => {
                safetensors::layout_with_metadata(tensors, "model", u64::MAX, texts, aliases)
            }
            Form::File(Container::Pytorch) => {
                pytorch::layout_with_names(tensors, "pytorch_model", u64::MAX, aliases, &self.sidecars.steps)
            }
            Form::Rewritten { original, places } => original.rewritten(tensors, places),
            Form::Bytes(bytes) => {
                let file = FileLayout::new("", bytes.clone(), bytes.len() as u64);
                Ok(Layout { files: vec![file], places: Vec::new(), recode: None })
            }
        }
    }
}
