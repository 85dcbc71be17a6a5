//! One plan, one pass: a plan describes the output as data before any tensor data is read or written.
//!
//! A [`Plan`] lists output tensors; each says by an [`Expr`] how its numbers come from source
//! tensors. Commands differ in the plans that they make; [`execute_all`] is the one way to run them.

mod checksum;
mod eval;
mod execute;
mod expr;
mod number;
mod packed;
mod product;
mod read;
mod scratch;
mod shared;
mod spill;
mod staging;
#[cfg(feature = "train")]
mod stored_rows;
mod tensor_ref;
mod torch_sum;
mod unfinished;
mod value_map;
mod whole_numbers;

use std::path::PathBuf;
use std::sync::Arc;

pub use checksum::Checksum;
pub use execute::{Options, Progress, Work, execute, execute_all};
pub use expr::{Expr, Pick, RowMap, Sums};
pub(crate) use number::Number;
pub use packed::Packing;
pub(crate) use product::{add_product, fuses_einsum, is_fused, run_len};
pub use shared::Alias;
pub use staging::{Staging, remove_unfinished};
#[cfg(feature = "train")]
pub(crate) use stored_rows::{Run, StoredRows};
pub use tensor_ref::TensorRef;
pub(crate) use torch_sum::torch_sum;
#[cfg(feature = "hub")]
pub(crate) use unfinished::Unfinished;
#[cfg(feature = "hub")]
pub(crate) use unfinished::{folder_start, remove_abandoned_folders};
pub(crate) use value_map::{ValueMap, erf, sleef_exp, ternary};

use crate::dtype::DType;
use crate::error::{Error, Finding, Result};

use crate::quant;
use crate::source::{self, Source, TensorInfo, show_shape};

/// One tensor of the output.
#[derive(Debug, Clone)]
pub struct PlannedTensor {
    /// Its name in the output.
    pub name: String,
    /// Its type in the output: values are rounded to it once, at the very end.
    pub dtype: DType,
    /// Its shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Where its values come from.
    pub expr: Expr,
}

impl PlannedTensor {
    /// Name, type and shape in the output.
    pub fn info(&self) -> TensorInfo {
        TensorInfo { name: self.name.clone(), dtype: self.dtype, shape: self.shape.clone() }
    }

    /// The values, if it is a tensor of whole numbers that is taken as it is.
    pub(crate) fn whole_numbers(&self) -> Option<Vec<i64>> {
        let Expr::Take(tensor) = &self.expr else { return None };
        tensor.whole_numbers()
    }

    /// The number of elements.
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }

    /// Elements in one row: the last dimension; 1 for vectors and scalars, whose rows are elements.
    pub fn row_len(&self) -> usize {
        source::row_len(&self.shape)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        source::rows(&self.shape)
    }

    /// Bytes in the output. Requires rows of whole blocks, which [`Plan::check`] makes sure of.
    pub fn byte_len(&self) -> u64 {
        self.dtype
            .bytes_of(self.elems() as u64, self.row_len().max(self.dtype.block_elems()) as u64)
            .unwrap_or(u64::MAX)
    }
}

impl PlannedTensor {
    /// Checks that every source has rows of whole blocks. A vector of blocks can be listed and copied whole, but has no
    /// rows to work with.
    fn check_blocks(&self) -> Result<()> {
        let broken = |source: &&&TensorRef| {
            let info = source.info();
            !info.row_len().is_multiple_of(info.dtype.block_elems())
        };
        let Some(source) = self.expr.sources().iter().find(broken).copied() else { return Ok(()) };
        let info = source.info();
        Err(Finding::new(source.path(), format!("tensor {:?}", info.name))
            .expected(format_args!("rows of whole {} blocks", info.dtype))
            .found(format_args!("shape {}", show_shape(&info.shape)))
            .unsupported())
    }

    /// Checks that its values can be made: its types can be decoded and encoded, unless bytes are only copied.
    fn check_types(&self) -> Result<()> {
        if self.expr.raw_dtype() == Some(self.dtype) {
            return Ok(());
        }
        if let Some(dtype) = self.expr.source_dtypes().find(|dtype| !quant::can_decode(*dtype)) {
            return Err(self.undecodable(dtype));
        }
        let finding = || Finding::new(self.expr.source_path(), format!("tensor {:?}", self.name));
        if quant::needs_importance(self.dtype) && !matches!(self.expr, Expr::Weighted { .. }) {
            return Err(finding()
                .expected(format_args!("importance of its columns, without which {} is too coarse", self.dtype))
                .found("none")
                .hint("give an importance matrix (`imatrix`), or choose another type for this tensor")
                .mismatch());
        }
        if self.dtype == DType::F64 {
            let Some(part) = self.expr.without_f64() else { return Ok(()) };
            let finding = finding().expected("values that this version computes in F64");
            let hint = "with `type` f32 all is computed and written in F32";
            return Err(finding.found(format_args!("{part}, which it has in F32 alone")).hint(hint).unsupported());
        }
        match quant::can_encode(self.dtype) {
            true => Ok(()),
            false => Err(finding().expected("a type this version can write").found(self.dtype).unsupported()),
        }
    }

    /// The error where values of `dtype` are needed but can't be decoded. It names the tensor as its source file does,
    /// where there is one.
    fn undecodable(&self, dtype: DType) -> Error {
        let sources = self.expr.sources();
        let source = sources.iter().find(|source| source.info().dtype == dtype);
        let name = source.map_or(&self.name, |source| &source.info().name);
        let file = source.map_or_else(|| self.expr.source_path(), |source| source.path().to_owned());
        Finding::new(file, format!("tensor {name:?}"))
            .expected("a type this version can decode")
            .found(dtype)
            .unsupported()
    }
}

/// The tensors of an output, in its order.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The output's tensors.
    pub tensors: Vec<PlannedTensor>,
}

impl Plan {
    /// The plan that takes every tensor of `source` as it is, in its order.
    pub fn taking(source: &Arc<dyn Source>) -> Plan {
        TensorRef::all(source).collect()
    }

    /// The tensor called `name`.
    pub fn get(&self, name: &str) -> Option<&PlannedTensor> {
        self.tensors.iter().find(|t| t.name == name)
    }

    /// The type of most matrix elements; F32 if there are no matrices.
    pub fn main_dtype(&self) -> DType {
        let mut counts: Vec<(DType, usize)> = Vec::new();
        for tensor in self.tensors.iter().filter(|tensor| tensor.shape.len() > 1) {
            match counts.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
                Some((_, count)) => *count += tensor.elems(),
                None => counts.push((tensor.dtype, tensor.elems())),
            }
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map_or(DType::F32, |(dtype, _)| dtype)
    }

    /// Checks every tensor before anything is read: shapes of operands agree, types can be decoded and encoded, rows
    /// divide into blocks, and each name occurs once.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] or [`crate::Error::Unsupported`], naming the source file and tensor.
    pub fn check(&self) -> Result<()> {
        let mut names = std::collections::HashSet::new();
        for tensor in &self.tensors {
            let file = tensor.expr.source_path();
            let finding = || Finding::new(&file, format!("tensor {:?}", tensor.name));
            if !names.insert(&tensor.name) {
                return Err(finding().expected("each name once in the output").found("it twice").mismatch());
            }
            if let Err((expected, found)) = tensor.expr.check() {
                return Err(finding().expected(expected).found(found).mismatch());
            }
            let shape = tensor.expr.shape();
            if shape != tensor.shape {
                return Err(finding().expected(show_shape(&tensor.shape)).found(show_shape(&shape)).mismatch());
            }
            tensor.check_blocks()?;
            if tensor.dtype.bytes_of(tensor.elems() as u64, tensor.row_len() as u64).is_none() {
                return Err(finding()
                    .expected(format_args!(
                        "rows that divide into blocks of {} for {}",
                        tensor.dtype.block_elems(),
                        tensor.dtype
                    ))
                    .found(format_args!("rows of {}", tensor.row_len()))
                    .mismatch());
            }
            tensor.check_types()?;
        }
        Ok(())
    }
}

impl FromIterator<TensorRef> for Plan {
    /// The plan that takes each tensor as it is.
    fn from_iter<T: IntoIterator<Item = TensorRef>>(tensors: T) -> Self {
        let taken = tensors.into_iter().map(|tensor| {
            let info = tensor.info().clone();
            PlannedTensor { name: info.name, dtype: info.dtype, shape: info.shape, expr: Expr::Take(tensor) }
        });
        Plan { tensors: taken.collect() }
    }
}

/// Where every tensor of a plan goes: files with their heads, and a place for each tensor.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The files to be written.
    pub files: Vec<FileLayout>,
    /// For every tensor of the plan, in its order, its file and offset.
    pub places: Vec<Place>,
    /// Turns encoded rows of a type into their form in the files, where that isn't the usual one.
    pub recode: Option<fn(DType, &mut [u8])>,
}

/// One output file: its length, and all bytes that don't belong to tensors.
#[derive(Debug, Clone, Default)]
pub struct FileLayout {
    /// The name, relative to the output folder; ignored where the output is one file.
    pub name: PathBuf,
    /// The header: everything before the tensors.
    pub head: Vec<u8>,
    /// Bytes between the tensors and after them: the offset of each piece, and its content.
    pub pieces: Vec<(u64, Vec<u8>)>,
    /// Checksums of parts of the file, filled in when those parts are written.
    pub checksums: Vec<Checksum>,
    /// A file of the same length, whose bytes this one has wherever nothing else is written.
    pub copy_of: Option<PathBuf>,
    /// The whole file's length in bytes.
    pub byte_len: u64,
}

impl FileLayout {
    /// A file that starts with `head`, followed by its tensors, if any.
    pub fn new(name: impl Into<PathBuf>, head: Vec<u8>, byte_len: u64) -> Self {
        Self { name: name.into(), head, byte_len, ..Self::default() }
    }

    /// A file that holds nothing but `text`.
    pub fn text(name: impl Into<PathBuf>, text: String) -> Self {
        let byte_len = text.len() as u64;
        Self::new(name, text.into_bytes(), byte_len)
    }
}

/// Where one tensor's bytes start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Index into [`Layout::files`].
    pub file: usize,
    /// Bytes from the file's start.
    pub offset: u64,
}
