//! Expressions: how the values of an output tensor are computed from source tensors.

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::TensorRef;
use super::packed::Packing;
use crate::dtype::DType;
use crate::error::Result;
use crate::source::{row_len, rows, show_shape};

/// Some rows of one operand of [`Expr::Rows`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    /// The index of the operand.
    pub of: usize,
    /// The first row.
    pub start: usize,
    /// The number of rows.
    pub len: usize,
}

/// A function of rows: computes rows of a result from the same rows of its operands. `T` is the type in which it
/// computes: f32, or f64 for outputs of F64.
pub trait RowMap<T = f32>: fmt::Debug + Send + Sync {
    /// Computes rows `rows` of the result, each of `row_len` values, into `out`. When it is called, `out` holds
    /// the first operand's values of these rows; `others` holds those of the other operands, each as long as `out`.
    fn apply(&self, rows: Range<usize>, row_len: usize, others: &[Vec<T>], out: &mut [T]);

    /// Returns, for messages, which finite values of the operands result in a NaN or an infinity.
    fn not_finite(&self) -> Option<&str> {
        None
    }

    /// The same function in f64; `None` if it is known in f32 alone.
    fn in_f64(&self) -> Option<&dyn RowMap<f64>> {
        None
    }
}

/// The operation of torch whose sums a product has. Large ones are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sums {
    /// `left @ right`.
    Product,
    /// The transpose of `right^T @ left^T`.
    ProductTurned,
    /// A product within an einsum.
    Einsum,
    /// The same, of a tensor that is summed over its first dimension.
    EinsumTurned,
    /// A convolution with one tap.
    Convolution,
}

/// The origin of values. All operations work row by row, so any range of rows can be computed without the rest. Memory
/// use therefore doesn't grow with the size of a tensor.
#[derive(Debug, Clone)]
pub enum Expr {
    /// A source tensor as it is.
    Take(TensorRef),
    /// Numbers known when the plan is made.
    Values {
        /// Their shape.
        shape: Vec<usize>,
        /// The numbers, row by row.
        values: Arc<[f32]>,
    },
    /// Rows of other tensors, one pick after another: slices, concatenations, stacks, regroupings. No value changes.
    Rows {
        /// The shape of the result; its rows are as long as the operands'.
        shape: Vec<usize>,
        /// The operands.
        of: Vec<Expr>,
        /// The chosen rows, in the result's order.
        picks: Arc<[Pick]>,
    },
    /// The same values in another shape. The rows of one shape divide evenly into rows of the other.
    Reshape {
        /// The values to reshape.
        of: Box<Expr>,
        /// The shape of the result.
        shape: Vec<usize>,
    },
    /// The same bytes read as another type of the same size, for formats that lack a type. Bytes are copied unchecked.
    Bits {
        /// The tensor whose bytes are used; it has an [`Expr::raw_dtype`].
        of: Box<Expr>,
        /// The type under which the bytes are read.
        dtype: DType,
    },
    /// Some columns of every row, in the order of `index`.
    Columns {
        /// The values.
        of: Box<Expr>,
        /// For each column of the result, its column in `of`.
        index: Arc<[u32]>,
    },
    /// A matrix with its rows and columns exchanged.
    Transpose(Box<Expr>),
    /// `of + constant`, in f32, or in f64 for an output of F64.
    AddConstant {
        /// The first summand.
        of: Box<Expr>,
        /// The number that is added to every value.
        constant: f32,
    },
    /// `of * factor`, in f32, or in f64 for an output of F64. The factor is rounded to that type.
    Scale {
        /// The values to multiply.
        of: Box<Expr>,
        /// The factor of every value.
        factor: f64,
    },
    /// `of` rounded to a type and back, for references that round midway.
    Round {
        /// The values to round.
        of: Box<Expr>,
        /// The type.
        dtype: DType,
    },
    /// `of + delta`, in f32, or in f64 for an output of F64.
    Add {
        /// The first summand: the base weight.
        of: Box<Expr>,
        /// The second summand, of the same shape.
        delta: Box<Expr>,
    },
    /// `scale * (left @ right)`, summed in f32 or, for an output of F64, in f64, and then scaled: `left` is `[rows, k]`, `right` is `[k, cols]`. Every
    /// row needs all of `right`, so `right` should be the smaller one.
    Product {
        /// The factor of the product.
        scale: f64,
        /// `B`, or `B M` for a routed update.
        left: Box<Expr>,
        /// `A`.
        right: Box<Expr>,
        /// The order of operations.
        sums: Sums,
    },
    /// The Kronecker product of two matrices: every value of `left` multiplied by the whole of `right`.
    Kronecker {
        /// `[a, c]`.
        left: Box<Expr>,
        /// `[b, d]`; the result is `[a b, c d]`.
        right: Box<Expr>,
    },
    /// The result of a function of rows. All operands have the result's shape.
    Map {
        /// The operands.
        of: Vec<Expr>,
        /// The function.
        map: Arc<dyn RowMap>,
    },
    /// A tensor that a quantizer has packed into several others.
    Packed {
        /// Its shape.
        shape: Vec<usize>,
        /// The tensors that store it, as `packing` expects them: the one with the values comes first.
        parts: Vec<TensorRef>,
        /// How they are packed.
        packing: Arc<dyn Packing>,
    },
    /// The same values, with a weight for each column's quantization error. Only used if this is the outermost
    /// expression.
    Weighted {
        /// The values.
        of: Box<Expr>,
        /// One weight per column, for each of the tensor's matrices in turn: one matrix, or one per expert.
        importance: Arc<[f32]>,
    },
}

impl Expr {
    /// `left @ right`, summed as torch does it.
    pub fn product(left: Expr, right: Expr) -> Expr {
        Expr::Product { scale: 1.0, left: Box::new(left), right: Box::new(right), sums: Sums::Product }
    }

    /// Takes rows `start..start + len` of `of`, in the shape `shape`.
    pub fn slice(of: Expr, start: usize, len: usize, shape: Vec<usize>) -> Expr {
        Expr::Rows { shape, of: vec![of], picks: Arc::from([Pick { of: 0, start, len }]) }
    }

    /// Joins the rows of several tensors: a concatenation along the first dimension, or a stack, depending on `shape`.
    pub fn concat(of: Vec<Expr>, shape: Vec<usize>) -> Expr {
        let picks = of.iter().enumerate().map(|(i, e)| Pick { of: i, start: 0, len: rows(&e.shape()) }).collect();
        Expr::Rows { shape, of, picks }
    }

    /// Puts the rows of `of` into the order that `from` gives: row `i` of the result is row `from(i)` of `of`.
    pub fn reordered(of: Expr, from: impl Fn(usize) -> usize) -> Expr {
        let shape = of.shape();
        let mut picks: Vec<Pick> = Vec::new();
        for row in 0..rows(&shape) {
            let start = from(row);
            match picks.last_mut() {
                Some(last) if last.start + last.len == start => last.len += 1,
                _ => picks.push(Pick { of: 0, start, len: 1 }),
            }
        }
        Expr::Rows { shape, of: vec![of], picks: picks.into() }
    }

    /// Takes rows of `of` in the order of `ranges`, which are starts and lengths.
    pub fn picked(of: Expr, ranges: impl Iterator<Item = (usize, usize)>, shape: Vec<usize>) -> Expr {
        Self::picked_of(vec![of], ranges.map(|(start, len)| (0, start, len)), shape)
    }

    /// Takes rows of several tensors in the order of `ranges`, which are operands, starts and lengths.
    pub fn picked_of(
        of: Vec<Expr>,
        ranges: impl IntoIterator<Item = (usize, usize, usize)>,
        shape: Vec<usize>,
    ) -> Expr {
        let mut picks: Vec<Pick> = Vec::new();
        for (operand, start, len) in ranges {
            match picks.last_mut() {
                Some(last) if last.of == operand && last.start + last.len == start => last.len += len,
                _ => picks.push(Pick { of: operand, start, len }),
            }
        }
        Expr::Rows { shape, of, picks: picks.into() }
    }

    /// Returns the shape of the values.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Expr::Take(tensor) => tensor.info().shape.clone(),
            Expr::Values { shape, .. }
            | Expr::Rows { shape, .. }
            | Expr::Reshape { shape, .. }
            | Expr::Packed { shape, .. } => shape.clone(),
            Expr::Transpose(of) => of.shape().into_iter().rev().collect(),
            Expr::Columns { of, index } => {
                let mut shape = of.shape();
                if let Some(last) = shape.last_mut() {
                    *last = index.len();
                }
                shape
            }
            Expr::Bits { of, .. }
            | Expr::AddConstant { of, .. }
            | Expr::Scale { of, .. }
            | Expr::Round { of, .. }
            | Expr::Add { of, .. }
            | Expr::Weighted { of, .. } => of.shape(),
            Expr::Product { left, right, .. } => vec![rows(&left.shape()), right.row_len()],
            Expr::Kronecker { left, right } => {
                left.shape().iter().zip(right.shape()).map(|(left, right)| left * right).collect()
            }
            Expr::Map { of, .. } => of.first().map(Expr::shape).unwrap_or_default(),
        }
    }

    /// Returns the type of the bytes if the values are unchanged source rows, which can be copied without decoding.
    pub fn raw_dtype(&self) -> Option<DType> {
        match self {
            Expr::Take(tensor) => Some(tensor.info().dtype),
            Expr::Rows { of, .. } => {
                let first = of.first()?.raw_dtype()?;
                of.iter().all(|e| e.raw_dtype() == Some(first)).then_some(first)
            }
            Expr::Reshape { of, .. } | Expr::Weighted { of, .. } => of.raw_dtype(),
            Expr::Bits { of, dtype } => of.raw_dtype().map(|_| *dtype),
            Expr::Packed { packing, .. } => packing.raw_dtype(),
            Expr::Values { .. }
            | Expr::Columns { .. }
            | Expr::Transpose(_)
            | Expr::AddConstant { .. }
            | Expr::Scale { .. }
            | Expr::Round { .. }
            | Expr::Add { .. }
            | Expr::Product { .. }
            | Expr::Kronecker { .. }
            | Expr::Map { .. } => None,
        }
    }

    /// Returns how many rows of values are in memory at a time for each row that is computed.
    pub(super) fn buffers(&self) -> usize {
        match self {
            Expr::Take(_) | Expr::Values { .. } => 1,
            // To change the order of rows, up to twice as many rows may be computed as are used.
            Expr::Rows { of, .. } => {
                of.iter().map(|of| if of.raw_dtype().is_some() { 1 } else { 2 + of.buffers() }).max().unwrap_or(1)
            }
            Expr::Map { of, .. } => of.len() + of.iter().map(Expr::buffers).max().unwrap_or(0),
            Expr::Add { of, delta } => of.buffers().max(1 + delta.buffers()),
            Expr::Product { .. } | Expr::Kronecker { .. } | Expr::Packed { .. } => 2,
            Expr::Reshape { of, .. } | Expr::Transpose(of) | Expr::Columns { of, .. } => 1 + of.buffers(),
            Expr::Bits { of, .. }
            | Expr::AddConstant { of, .. }
            | Expr::Scale { of, .. }
            | Expr::Round { of, .. }
            | Expr::Weighted { of, .. } => of.buffers(),
        }
    }

    /// Returns the operands, in order; none for source tensors and constants.
    fn operands(&self) -> Vec<&Expr> {
        match self {
            Expr::Take(_) | Expr::Values { .. } | Expr::Packed { .. } => Vec::new(),
            Expr::Rows { of, .. } | Expr::Map { of, .. } => of.iter().collect(),
            Expr::Add { of, delta: other }
            | Expr::Product { left: of, right: other, .. }
            | Expr::Kronecker { left: of, right: other } => vec![of, other],
            Expr::Reshape { of, .. }
            | Expr::Bits { of, .. }
            | Expr::Columns { of, .. }
            | Expr::Transpose(of)
            | Expr::AddConstant { of, .. }
            | Expr::Scale { of, .. }
            | Expr::Round { of, .. }
            | Expr::Weighted { of, .. } => vec![of],
        }
    }

    /// Returns a packed tensor with its last two dimensions exchanged, if its packing can be read in that order. For
    /// blocks that GGUF also has, this exchange is needed to make them rows of the tensor.
    pub fn turned(&self) -> Option<Expr> {
        let Expr::Packed { shape, parts, packing } = self else { return None };
        let (packing, mut shape) = (packing.turned()?, shape.clone());
        let last = shape.len().checked_sub(2)?;
        shape[last..].reverse();
        Some(Expr::Packed { shape, parts: parts.clone(), packing })
    }

    /// Returns, for a packed tensor, the part with the values.
    pub(crate) fn packed_in(&self) -> Option<&TensorRef> {
        match self {
            Expr::Packed { parts, .. } => parts.first(),
            Expr::Round { of, .. } | Expr::Add { of, .. } => of.packed_in(),
            _ => None,
        }
    }

    /// Returns a packed tensor as llama.cpp's converter reads it, where that differs.
    pub(crate) fn as_llama_cpp(&self) -> Option<Expr> {
        match self {
            Expr::Packed { shape, parts, packing } => {
                let packing = packing.as_llama_cpp()?;
                Some(Expr::Packed { shape: shape.clone(), parts: parts.clone(), packing })
            }
            _ => None,
        }
    }

    /// Returns the source tensors of the values.
    pub fn sources(&self) -> Vec<&TensorRef> {
        match self {
            Expr::Take(tensor) => vec![tensor],
            Expr::Packed { parts, .. } => parts.iter().collect(),
            _ => self.operands().into_iter().flat_map(Expr::sources).collect(),
        }
    }

    /// Returns which finite values result in a NaN or an infinity, if the operation knows.
    pub(super) fn not_finite(&self) -> Option<&str> {
        let own = if let Expr::Map { map, .. } = self { map.not_finite() } else { None };
        own.or_else(|| self.operands().into_iter().find_map(Expr::not_finite))
    }

    /// Returns a part that can't be computed in f64, as PEFT and torch do where the output is F64.
    pub(super) fn without_f64(&self) -> Option<String> {
        match self {
            Expr::Map { map, .. } if map.in_f64().is_none() => {
                let name = format!("{map:?}");
                let end = name.find(|c: char| !c.is_alphanumeric()).unwrap_or(name.len());
                Some(format!("a function ({})", &name[..end]))
            }
            Expr::Round { dtype, .. } => Some(format!("a rounding to {dtype} midway")),
            _ => self.operands().into_iter().find_map(Expr::without_f64),
        }
    }

    /// Returns the types that have to be decoded.
    pub fn source_dtypes(&self) -> impl Iterator<Item = DType> {
        let mut dtypes = Vec::new();
        self.push_source_dtypes(&mut dtypes);
        dtypes.into_iter()
    }

    fn push_source_dtypes(&self, dtypes: &mut Vec<DType>) {
        match self {
            Expr::Take(tensor) => dtypes.push(tensor.info().dtype),
            // The packing knows the types of its parts.
            Expr::Packed { packing, .. } => dtypes.extend(packing.raw_dtype()),
            // The bytes are decoded as this type, whatever the type in the source.
            Expr::Bits { dtype, .. } => dtypes.push(*dtype),
            _ => self.operands().into_iter().for_each(|e| e.push_source_dtypes(dtypes)),
        }
    }

    /// Returns the file of the first source, for messages; empty if there is none.
    pub fn source_path(&self) -> PathBuf {
        self.sources().first().map(|t| t.path().to_owned()).unwrap_or_default()
    }

    /// Checks recursively that operands and results fit together. The error gives what was expected and what was found.
    pub(super) fn check(&self) -> Result<(), (String, String)> {
        match self {
            Expr::Take(_) | Expr::Packed { .. } => Ok(()),
            Expr::Values { shape, values } => {
                let elems: usize = shape.iter().product();
                expect(values.len() == elems, || format!("{elems} values"), || values.len().to_string())
            }
            Expr::Rows { shape, of, picks } => {
                let mut total = 0;
                for pick in picks.iter() {
                    let operand = of.get(pick.of).map(Expr::shape).unwrap_or_default();
                    let fits = row_len(&operand) == row_len(shape)
                        && pick.start.checked_add(pick.len).is_some_and(|end| end <= rows(&operand));
                    expect(
                        fits,
                        || format!("rows {} to {} of {}", pick.start, pick.start + pick.len, row_len(shape)),
                        || show_shape(&operand),
                    )?;
                    total += pick.len;
                }
                expect(total == rows(shape), || format!("{} rows", rows(shape)), || total.to_string())?;
                of.iter().try_for_each(Expr::check)
            }
            Expr::Reshape { of, shape } => {
                let operand = of.shape();
                let elems = |shape: &[usize]| shape.iter().product::<usize>();
                let (ours, theirs) = (row_len(shape).max(1), row_len(&operand).max(1));
                let fits =
                    elems(&operand) == elems(shape) && (ours.is_multiple_of(theirs) || theirs.is_multiple_of(ours));
                expect(fits, || show_shape(shape), || show_shape(&operand))?;
                of.check()
            }
            Expr::Bits { of, dtype } => {
                let same =
                    |raw: DType| raw.block_bytes() == dtype.block_bytes() && raw.block_elems() == dtype.block_elems();
                let found = of.raw_dtype();
                expect(
                    found.is_some_and(same),
                    || format!("bytes of {dtype}'s size"),
                    || found.map_or("values that are computed".to_owned(), |raw| raw.to_string()),
                )?;
                of.check()
            }
            Expr::Columns { of, index } => {
                let operand = of.shape();
                let fits = operand.len() > 1 && index.iter().all(|column| (*column as usize) < row_len(&operand));
                expect(fits, || "columns that there are".to_owned(), || show_shape(&operand))?;
                of.check()
            }
            Expr::Transpose(of) => {
                let operand = of.shape();
                expect(operand.len() == 2, || "a matrix".to_owned(), || show_shape(&operand))?;
                of.check()
            }
            Expr::Add { of, delta } => {
                let (ours, theirs) = (of.shape(), delta.shape());
                expect(ours == theirs, || show_shape(&ours), || show_shape(&theirs))?;
                of.check()?;
                delta.check()
            }
            Expr::Product { left, right, .. } => {
                let (left_shape, right_shape) = (left.shape(), right.shape());
                expect(
                    left_shape.len() == 2 && right_shape.len() == 2 && left_shape[1] == right_shape[0],
                    || format!("two matrices, the second of as many rows as {} has columns", show_shape(&left_shape)),
                    || show_shape(&right_shape),
                )?;
                left.check()?;
                right.check()
            }
            Expr::Kronecker { left, right } => {
                for operand in [left, right] {
                    let shape = operand.shape();
                    expect(shape.len() == 2, || "a matrix".to_owned(), || show_shape(&shape))?;
                    operand.check()?;
                }
                Ok(())
            }
            Expr::Map { of, .. } => {
                let shape = self.shape();
                expect(!of.is_empty(), || "operands".to_owned(), || "none".to_owned())?;
                for operand in of {
                    let found = operand.shape();
                    expect(found == shape, || show_shape(&shape), || show_shape(&found))?;
                    operand.check()?;
                }
                Ok(())
            }
            Expr::Weighted { of, importance } => {
                let shape = of.shape();
                let matrices = importance.len() / row_len(&shape).max(1);
                let fits = matrices > 0
                    && matrices * row_len(&shape) == importance.len()
                    && rows(&shape).is_multiple_of(matrices);
                expect(
                    fits,
                    || format!("importance of columns of {}", show_shape(&shape)),
                    || importance.len().to_string(),
                )?;
                of.check()
            }
            Expr::AddConstant { of, .. } | Expr::Scale { of, .. } | Expr::Round { of, .. } => of.check(),
        }
    }
}

fn expect(
    holds: bool,
    expected: impl FnOnce() -> String,
    found: impl FnOnce() -> String,
) -> Result<(), (String, String)> {
    if holds { Ok(()) } else { Err((expected(), found())) }
}
