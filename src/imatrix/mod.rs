//! Importance matrices: how much each column of a weight matters to a model's outputs, measured as the mean squared
//! activation in that column. Quantization weights its errors by them.
//!
//! Two forms can be read and written: the GGUF one and the older binary one. Both give bit for bit the numbers that
//! `llama-quantize` uses. With the feature `train`, a matrix can be measured by this crate's own forward pass.
//!
//! Reference: llama.cpp `common/imatrix-loader.cpp`, `tools/quantize/quantize.cpp` (`load_imatrix`,
//! `prepare_imatrix`), `src/llama-quant.cpp` (`llama_model_quantize_impl`),
//! `tools/imatrix/imatrix.cpp`.

mod legacy;
#[cfg(feature = "train")]
mod measure;
mod read;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[cfg(feature = "train")]
pub use measure::{Settings, measure, planned, read_text};
pub use write::{Form, Measurement, Sums};

use crate::error::{Finding, Result};
use crate::formats::gguf::Value;

/// The key of the texts from which a matrix was measured.
const DATASETS: &str = "imatrix.datasets";

/// The key of the number of chunks from which it was measured.
const CHUNK_COUNT: &str = "imatrix.chunk_count";

/// The key of the number of tokens in a chunk.
const CHUNK_SIZE: &str = "imatrix.chunk_size";

/// The value of `general.type` in the GGUF form.
const GENERAL_TYPE: &str = "imatrix";

/// The suffix of names of sums of squared activations.
const SUMS_SUFFIX: &str = ".in_sum2";

/// The suffix of names of counts of summed activations.
const COUNTS_SUFFIX: &str = ".counts";

/// The longest text in `quantize.imatrix.*`, in bytes: `llama_model_kv_override` has room for 128 including the closing
/// zero.
const MAX_KEY_TEXT_BYTES: usize = 127;

/// The embedding tables: the only tensors whose entry may have another size, in which case it is ignored.
const TOKEN_EMBEDDINGS: [&str; 2] = ["token_embd.weight", "per_layer_token_embd.weight"];

/// An importance matrix: for every weight, by its name in GGUF, one number per column.
#[derive(Debug, Clone)]
pub struct ImportanceMatrix {
    path: PathBuf,
    entries: BTreeMap<String, Vec<f32>>,
    datasets: Vec<Vec<u8>>,
    chunk_count: u32,
}

impl ImportanceMatrix {
    /// Reads the file at `path`: in the GGUF form if it starts with GGUF's magic number, otherwise in the older binary
    /// form.
    ///
    /// The result has at least one entry, and all numbers are finite and not negative.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Format`] for a file that has neither form or breaks the form's rules;
    /// [`crate::Error::NotFinite`] for a NaN or an infinity, naming the tensor.
    pub fn open(path: &Path) -> Result<Self> {
        read::open(path)
    }

    /// The file from which it was read.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers for the tensor called `tensor_name`: one for each element of a row, for each of the tensor's
    /// matrices (experts) in turn.
    pub fn weights(&self, tensor_name: &str) -> Option<&[f32]> {
        self.entries.get(tensor_name).map(Vec::as_slice)
    }

    /// The numbers for a tensor of `matrices` matrices with rows of `row_len` elements.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] if the entry has another size. For an embedding table this gives `None` instead,
    /// because the entry was measured for the output head, which can share its name.
    pub fn weights_for(&self, tensor_name: &str, matrices: usize, row_len: usize) -> Result<Option<&[f32]>> {
        let Some(weights) = self.weights(tensor_name) else { return Ok(None) };
        if Some(weights.len()) == matrices.checked_mul(row_len) {
            return Ok(Some(weights));
        }
        if TOKEN_EMBEDDINGS.contains(&tensor_name) {
            return Ok(None);
        }
        Err(self
            .finding(tensor_name)
            .expected(format_args!("{matrices} x {row_len} values"))
            .found(weights.len())
            .hint("the importance matrix is another model's")
            .mismatch())
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The number of tensors.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no tensors: [`ImportanceMatrix::retain`] can leave none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The texts from which it was measured: the paths given at the time, as byte strings.
    pub fn datasets(&self) -> &[Vec<u8>] {
        &self.datasets
    }

    /// The number of chunks of text from which it was measured; 0 if the file doesn't say.
    pub fn chunk_count(&self) -> u32 {
        self.chunk_count
    }

    /// Drops every tensor whose name contains one of `exclude`, and, if `include` isn't empty, every tensor whose name
    /// contains none of `include`. These are plain substrings, not patterns.
    pub fn retain(&mut self, include: &[String], exclude: &[String]) {
        let names_one = |name: &str, parts: &[String]| parts.iter().any(|part| name.contains(part.as_str()));
        self.entries.retain(|name, _| !names_one(name, exclude) && (include.is_empty() || names_one(name, include)));
    }

    /// The keys for a model that is quantized with it, in order: `file_name` as the user wrote it, the first dataset,
    /// and the numbers of entries and chunks. There are no keys for an empty matrix, which isn't used at all.
    pub fn keys(&self, file_name: &str) -> Vec<(&'static str, Value)> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut keys = vec![("quantize.imatrix.file", Value::String(cut(file_name.as_bytes())))];
        if let Some(dataset) = self.datasets.first() {
            keys.push(("quantize.imatrix.dataset", Value::String(cut(dataset))));
        }
        // Each entry has a name and a number in the file, so no real file has 2^32 of them.
        let entries = u32::try_from(self.len()).unwrap_or(u32::MAX);
        keys.push(("quantize.imatrix.entries_count", Value::U32(entries)));
        if self.chunk_count > 0 {
            keys.push(("quantize.imatrix.chunks_count", Value::U32(self.chunk_count)));
        }
        keys
    }

    /// A finding about the entry of a tensor.
    fn finding(&self, tensor_name: &str) -> Finding {
        entry_finding(&self.path, tensor_name)
    }
}

/// A finding about the entry of a tensor in `path`.
fn entry_finding(path: &Path, tensor_name: &str) -> Finding {
    Finding::new(path, format!("entry {tensor_name:?}"))
}

/// A text as C's string functions copy it into a key: up to a zero byte or the end of the buffer, even in the middle of
/// a character.
fn cut(text: &[u8]) -> Vec<u8> {
    until_zero(text).iter().take(MAX_KEY_TEXT_BYTES).copied().collect()
}

/// A text up to its first zero byte, as C reads it.
fn until_zero(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Refuses numbers that can't be means of squares.
fn check_weights(path: &Path, name: &str, weights: &[f32]) -> Result<()> {
    let Some((place, value)) = weights.iter().enumerate().find(|(_, value)| !(value.is_finite() && **value >= 0.0))
    else {
        return Ok(());
    };
    let finding = entry_finding(path, name)
        .expected("finite means of squares")
        .found(format_args!("{value} at {place}"))
        .hint("compute the importance matrix again");
    Err(if value.is_finite() { finding.format() } else { finding.not_finite() })
}

#[cfg(test)]
mod tests;
