//! What a job makes, as data: tensors, the form they are written in, the files beside them, and notes.
//!
//! An [`Output`] is described ([`Output::describe`]: the dry run) or written ([`Output::write`]). Both go by the same
//! layout, and writing is always the same steps: lay out, write the tensors, write the files beside them, give the
//! whole its name.

mod sidecars;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

pub use sidecars::{MAX_FILE_BYTES, MAX_TOTAL_BYTES, Sidecars, metadata_left_out, safetensors_metadata};
pub(crate) use sidecars::{WEIGHT_EXTENSIONS, json_text, left_out_keys, parsed};
pub use write::{Destination, Written};

use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::{self, Metadata, SplitLimits};
use crate::formats::{pytorch, safetensors};
use crate::plan::{FileLayout, Layout, Plan, PlannedTensor};

/// What a job makes: described or written whole, never in part.
#[derive(Debug, Clone)]
pub struct Output {
    /// The form it is written in.
    pub form: Form,
    /// The tensors, by their names in the output.
    pub plan: Plan,
    /// What is written beside the tensors. One file of tensors has no place for other files.
    pub sidecars: Sidecars,
    /// A line for everything that was left out or taken for granted.
    pub notes: Vec<String>,
}

/// The form of an output.
#[derive(Debug, Clone)]
pub enum Form {
    /// GGUF: one file, or several.
    Gguf {
        /// Keys and values in order.
        metadata: Metadata,
        /// When a new file begins.
        split: SplitLimits,
    },
    /// A folder: files of tensors, and the sidecars' files beside them.
    Folder {
        /// What the tensors are in.
        container: Container,
        /// The name of the file of tensors without its extension: `model`, `adapter_model`.
        stem: String,
        /// When a new file of tensors begins.
        shard_bytes: u64,
    },
    /// One file of tensors.
    File(Container),
    /// One file that is made already and has no tensors: these bytes.
    Bytes(Vec<u8>),
}

/// A file format that holds named tensors alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Container {
    /// safetensors, with the sidecars' `__metadata__`.
    Safetensors,
    /// What torch.save writes of a dictionary of tensors.
    Pytorch,
}

/// What would be written.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Description {
    /// Every tensor, in the plan's order.
    pub tensors: Vec<TensorDescription>,
    /// Every file with its whole length.
    pub files: Vec<FileDescription>,
    /// Bytes of all files of tensors: their heads and the tensors.
    pub bytes: u64,
    /// What was left out or taken for granted.
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
    /// Its size.
    pub bytes: u64,
    /// The number of its file in [`Description::files`].
    pub file: usize,
    /// Bytes from that file's start.
    pub offset: u64,
}

/// One file of a [`Description`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FileDescription {
    /// Its name, below the folder where the output is one.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Whether it is a file beside the tensors.
    pub beside: bool,
}

impl Output {
    /// A GGUF in one file.
    pub fn gguf(metadata: Metadata, plan: Plan, notes: Vec<String>) -> Self {
        let form = Form::Gguf { metadata, split: SplitLimits::default() };
        Self { form, plan, sidecars: Sidecars::default(), notes }
    }

    /// A folder with one file of safetensors called `stem`, and no file beside it yet. As transformers asks for,
    /// the file says that its tensors are torch's.
    pub fn folder(stem: &str, plan: Plan) -> Self {
        let safetensors_metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let form = Form::Folder { container: Container::Safetensors, stem: stem.to_owned(), shard_bytes: u64::MAX };
        let sidecars = Sidecars { safetensors_metadata, ..Sidecars::default() };
        Self { form, plan, sidecars, notes: Vec::new() }
    }

    /// An adapter's folder, as PEFT has it: `adapter_model.safetensors` and `adapter_config.json`.
    pub fn adapter(config: &impl Serialize, plan: Plan) -> Self {
        let mut output = Self::folder("adapter_model", plan);
        output.put_json("adapter_config.json", config);
        output
    }

    /// With a new file of tensors wherever one would have more than `shard_bytes`, where it is a folder.
    pub fn sharded(mut self, shard_bytes: u64) -> Self {
        if let Form::Folder { shard_bytes: limit, .. } = &mut self.form {
            *limit = shard_bytes;
        }
        self
    }

    /// Adds or replaces the file `name` beside the tensors: `value` as JSON.
    pub fn put_json(&mut self, name: &str, value: &impl Serialize) {
        self.sidecars.files.insert(name.to_owned(), (json_text(value) + "\n").into_bytes());
    }

    /// Keys and values, of a GGUF.
    pub fn metadata(&self) -> Option<&Metadata> {
        match &self.form {
            Form::Gguf { metadata, .. } => Some(metadata),
            _ => None,
        }
    }

    /// Keys and values to be changed, of a GGUF.
    pub fn metadata_mut(&mut self) -> Option<&mut Metadata> {
        match &mut self.form {
            Form::Gguf { metadata, .. } => Some(metadata),
            _ => None,
        }
    }

    /// What writing it to `target` would make. Nothing but headers has been read for it.
    ///
    /// # Errors
    /// What [`Plan::check`] finds, and what the format can't hold.
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

    /// Where each tensor goes, for an output called `target`.
    fn layout(&self, target: &Path) -> Result<Layout> {
        let tensors = &self.plan.tensors;
        let texts = &self.sidecars.safetensors_metadata;
        match &self.form {
            Form::Gguf { metadata, split } => {
                let stem = target.file_stem().unwrap_or_default().to_string_lossy();
                let mut layout = gguf::split_layout(metadata, tensors, &stem, *split)?;
                // Behind a vocabulary alone there is nothing to align: the reference pads nothing.
                if let ([], [file]) = (tensors.as_slice(), layout.files.as_mut_slice()) {
                    file.byte_len = file.head.len() as u64;
                }
                Ok(layout)
            }
            Form::Folder { container: Container::Safetensors, stem, shard_bytes } => {
                safetensors::layout_with_metadata(tensors, stem, *shard_bytes, texts)
            }
            Form::Folder { container: Container::Pytorch, stem, shard_bytes } => {
                pytorch::layout(tensors, stem, *shard_bytes)
            }
            Form::File(Container::Safetensors) => safetensors::layout_with_metadata(tensors, "model", u64::MAX, texts),
            Form::File(Container::Pytorch) => pytorch::layout(tensors, "pytorch_model", u64::MAX),
            Form::Bytes(bytes) => {
                let file = FileLayout::new("", bytes.clone(), bytes.len() as u64);
                Ok(Layout { files: vec![file], places: Vec::new() })
            }
        }
    }
}
