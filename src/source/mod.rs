//! Sources: files of named tensors, whatever their format, and the memory map under them.
//!
//! A source holds a header and a map, never a model. [`crate::formats`] has readers that open files as sources;
//! [`crate::plan`] takes tensors from them.

mod mmap;
mod outline;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub(crate) use mmap::MappedFile;
#[cfg(feature = "hub")]
pub(crate) use outline::Watched;
pub(crate) use outline::any_outlines;

use crate::dtype::DType;
use crate::error::Result;

/// Name, type and shape of one tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in the file.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// The shape, outermost dimension first, as in torch and safetensors (the reverse of GGUF's order).
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The number of elements. Readers have checked that it doesn't overflow.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements in one row: see [`row_len`].
    pub fn row_len(&self) -> usize {
        row_len(&self.shape)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        rows(&self.shape)
    }

    /// The part of `bytes`, all of the tensor's bytes, that holds rows `rows`. The rows of a vector are its elements
    /// even if it is quantized, so for quantized vectors only ranges of whole blocks are possible.
    pub(crate) fn slice<'a>(&self, bytes: &'a [u8], rows: Range<usize>) -> &'a [u8] {
        let row_bytes = bytes.len() / self.rows().max(1);
        let start_of = |row: usize| match self.shape.len() {
            0 | 1 => row / self.dtype.block_elems() * self.dtype.block_bytes(),
            _ => row * row_bytes,
        };
        &bytes[start_of(rows.start)..start_of(rows.end)]
    }
}

/// A step from a container to one of its values, in files whose dictionaries hold dictionaries.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// By a text as key.
    Key(String),
    /// By a number as key.
    Number(i64),
    /// By the place in a list or a tuple.
    Item {
        /// The place.
        index: usize,
        /// The number of values in the list.
        of: usize,
        /// Whether it is a tuple.
        tuple: bool,
    },
}

/// Elements in one row of a tensor: the last dimension. For vectors and scalars it is 1, because their rows are
/// elements.
pub fn row_len(shape: &[usize]) -> usize {
    if shape.len() < 2 { 1 } else { shape[shape.len() - 1] }
}

/// The number of rows of a tensor.
pub fn rows(shape: &[usize]) -> usize {
    match shape {
        [] => 1,
        [n] => *n,
        [leading @ .., _] => leading.iter().product(),
    }
}

/// An open file of named tensors. It holds a header and a memory map, never a model.
pub trait Source: Send + Sync {
    /// The file, for messages.
    fn path(&self) -> &Path;

    /// The tensors of the file, in the file's order.
    fn tensors(&self) -> &[TensorInfo];

    /// Texts by key that the file holds besides its tensors: `__metadata__` of a safetensors file. `None` for formats
    /// without such texts, and for GGUF, whose metadata has types.
    fn text_metadata(&self) -> Option<&BTreeMap<String, String>> {
        None
    }

    /// The first tensor of the file that is the same values of the same storage as tensor number `index`: `index` itself
    /// for tensors with one name. A change to one of them is a change to all.
    fn first_of_same(&self, index: usize) -> usize {
        index
    }

    /// The steps that lead to tensor number `index` from the file's outermost container. Empty for formats in which a
    /// tensor has only its name.
    fn steps(&self, index: usize) -> Vec<Step> {
        let _ = index;
        Vec::new()
    }

    /// The bytes of rows `rows` of tensor number `index`: row by row, little-endian, exactly as many as type and shape
    /// require. They are borrowed if the file has these bytes, and newly made if the file has them in another order
    /// (strided tensors, big-endian files).
    ///
    /// # Panics
    /// If `index` is not below `self.tensors().len()`, or `rows` ends after the tensor's last row.
    fn rows(&self, index: usize, rows: Range<usize>) -> Cow<'_, [u8]>;

    /// Checks that the file's length and modification time are the same as when it was opened. A file that is shortened
    /// or rewritten while it is read may no longer match what was checked.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a file that has changed; [`crate::Error::Io`].
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    /// That the file's values are here, for whoever is about to read them: of some files on the hub only the header is.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where they aren't.
    fn check_values(&self) -> Result<()> {
        Ok(())
    }

    /// All bytes of tensor number `index`.
    ///
    /// # Panics
    /// As [`Source::rows`].
    fn bytes(&self, index: usize) -> Cow<'_, [u8]> {
        self.rows(index, 0..self.tensors()[index].rows())
    }
}

/// Formats `shape` for messages: `[32, 64]`.
pub(crate) fn show_shape(shape: &[usize]) -> String {
    format!("{shape:?}")
}
