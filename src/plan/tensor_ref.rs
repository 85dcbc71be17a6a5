//! A tensor of an open file, from which expressions take values.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::Result;
use crate::quant;
use crate::source::{Source, Step, TensorInfo};

/// A tensor of an open file.
#[derive(Clone)]
pub struct TensorRef {
    source: Arc<dyn Source>,
    index: usize,
}

impl TensorRef {
    /// Returns every tensor of `source`, in its order.
    pub fn all(source: &Arc<dyn Source>) -> impl Iterator<Item = TensorRef> {
        (0..source.tensors().len()).map(|index| TensorRef { source: source.clone(), index })
    }

    /// Returns name, type and shape.
    pub fn info(&self) -> &TensorInfo {
        &self.source.tensors()[self.index]
    }

    /// Returns the path of the tensor's file.
    pub fn path(&self) -> &std::path::Path {
        self.source.path()
    }

    /// Returns the texts in its file's header: see [`Source::text_metadata`].
    pub fn text_metadata(&self) -> Option<&std::collections::BTreeMap<String, String>> {
        self.source.text_metadata()
    }

    /// Returns its open file, by address, and the number of the first tensor in it that is the same: see
    /// [`Source::first_of_same`].
    pub(super) fn storage(&self) -> (usize, usize) {
        (Arc::as_ptr(&self.source).cast::<()>() as usize, self.source.first_of_same(self.index))
    }

    /// Returns whether its file has the same tensor under a name before this one.
    pub(crate) fn is_second_name(&self) -> bool {
        self.source.first_of_same(self.index) != self.index
    }

    /// Returns the keys that lead to it in its file: see [`Source::steps`].
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.source.steps(self.index)
    }

    /// Returns whether both belong to the same open file.
    pub(super) fn is_of_file(&self, other: &TensorRef) -> bool {
        Arc::ptr_eq(&self.source, &other.source)
    }

    /// Whether both are the same tensor.
    #[cfg(feature = "train")]
    pub(super) fn is_same(&self, other: &TensorRef) -> bool {
        self.is_of_file(other) && self.index == other.index
    }

    /// Checks that its file hasn't changed: see [`Source::check_unchanged`].
    pub(super) fn check_unchanged(&self) -> Result<()> {
        self.source.check_unchanged()
    }

    /// Checks that its values are available: see [`Source::check_values`].
    pub(super) fn check_values(&self) -> Result<()> {
        self.source.check_values()
    }

    /// Returns whether its values include a NaN or an infinity.
    pub(super) fn has_non_finite(&self) -> bool {
        const ROWS: usize = 1024;
        let info = self.info();
        // A shape without elements can still have a huge number of rows.
        let total = if info.elems() == 0 { 0 } else { info.rows() };
        (0..total)
            .step_by(ROWS)
            .any(|start| quant::has_non_finite(info.dtype, &self.rows(start..(start + ROWS).min(total))))
    }

    /// Returns the bytes of rows `rows`: see [`Source::rows`].
    pub fn rows(&self, rows: Range<usize>) -> Cow<'_, [u8]> {
        self.source.rows(self.index, rows)
    }

    /// Returns the bytes of elements `elems`. Only for types that store each element separately, not in blocks.
    pub(crate) fn elements(&self, elems: Range<usize>) -> Cow<'_, [u8]> {
        let (row_len, size) = (self.info().row_len().max(1), self.info().dtype.block_bytes());
        let rows = elems.start / row_len..elems.end.div_ceil(row_len);
        let skipped = (elems.start - rows.start * row_len) * size;
        let cut = skipped..skipped + elems.len() * size;
        match self.rows(rows) {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[cut]),
            Cow::Owned(bytes) => Cow::Owned(bytes[cut].to_vec()),
        }
    }
}

impl fmt::Debug for TensorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        write!(f, "{} {} {:?}", info.name, info.dtype, info.shape)
    }
}
