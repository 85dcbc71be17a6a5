//! Sources: files of named tensors, whatever their format, and the memory map under them.
//!
//! A source holds a header and a map, never a model. [`crate::formats`] has the readers that make
//! sources of files; [`crate::plan`] takes tensors out of them.

mod mmap;
mod outline;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

pub(crate) use mmap::MappedFile;
#[cfg(feature = "hub")]
pub(crate) use outline::ValuesRead;
pub(crate) use outline::any_outlines;

use crate::dtype::DType;
use crate::error::Result;

/// Name, type and shape of one tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name as the file has it.
    pub name: String,
    /// The type of its elements.
    pub dtype: DType,
    /// Outermost dimension first, as torch and safetensors have it (GGUF's order reversed).
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

    /// The bytes of rows `rows` in `bytes`, which are all of the tensor's. The rows of a vector are its
    /// elements even if it is quantized, so that only ranges of whole blocks have bytes of their own.
    pub(crate) fn slice<'a>(&self, bytes: &'a [u8], rows: Range<usize>) -> &'a [u8] {
        let row_bytes = bytes.len() / self.rows().max(1);
        let start_of = |row: usize| match self.shape.len() {
            0 | 1 => row / self.dtype.block_elems() * self.dtype.block_bytes(),
            _ => row * row_bytes,
        };
        &bytes[start_of(rows.start)..start_of(rows.end)]
    }
}

/// Elements in one row of a tensor: the last dimension; 1 for vectors and scalars, whose rows are
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

    /// What the file holds, in its own order.
    fn tensors(&self) -> &[TensorInfo];

    /// Text by key that the file has besides its tensors: `__metadata__` of a safetensors file. `None` for
    /// formats without it, and for those whose keys say more (GGUF).
    fn text_metadata(&self) -> Option<&BTreeMap<String, String>> {
        None
    }

    /// The bytes of rows `rows` of tensor number `index`: row by row and little-endian, exactly as
    /// many as type and shape ask for. Borrowed where the file has these bytes; made anew where
    /// the file has them in another order (strided tensors, big-endian files).
    ///
    /// # Panics
    /// Where `index` is not below `self.tensors().len()`, or `rows` goes past the tensor's end.
    fn rows(&self, index: usize, rows: Range<usize>) -> Cow<'_, [u8]>;

    /// That the file is still as it was when it was opened, as far as its length and time say: whoever
    /// shortens or rewrites a file while it is read changes what has been checked.
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

/// Writes `shape` the way users read it: `[32, 64]`.
pub(crate) fn show_shape(shape: &[usize]) -> String {
    format!("{shape:?}")
}
