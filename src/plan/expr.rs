//! Expressions: how the values of an output tensor come from source tensors.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::dtype::DType;
use crate::formats::{Source, TensorInfo};

/// A tensor of an open file.
#[derive(Clone)]
pub struct TensorRef {
    source: Arc<dyn Source>,
    index: usize,
}

impl TensorRef {
    /// Every tensor of `source`, in its order.
    pub fn all(source: &Arc<dyn Source>) -> impl Iterator<Item = TensorRef> {
        (0..source.tensors().len()).map(|index| TensorRef { source: source.clone(), index })
    }

    /// Name, type and shape.
    pub fn info(&self) -> &TensorInfo {
        &self.source.tensors()[self.index]
    }

    /// The file it stands in.
    pub fn path(&self) -> &std::path::Path {
        self.source.path()
    }

    /// Its bytes, out of the map.
    pub fn bytes(&self) -> &[u8] {
        self.source.bytes(self.index)
    }
}

impl fmt::Debug for TensorRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info();
        write!(f, "{} {} {:?}", info.name, info.dtype, info.shape)
    }
}

/// A product of two thin matrices times a number: `scale * (left @ right)`.
#[derive(Clone, PartialEq)]
pub struct LowRank {
    /// Dimensionless factor, applied to the finished f32 sum.
    pub scale: f32,
    /// The inner dimension.
    pub rank: usize,
    /// `[rows, rank]`, row by row: `B`, or `B M` for a routed update.
    pub left: Vec<f32>,
    /// `[rank, cols]`, row by row: `A`.
    pub right: Vec<f32>,
}

impl LowRank {
    /// The shape of the product.
    pub fn shape(&self) -> [usize; 2] {
        match self.rank {
            0 => [0, 0],
            r => [self.left.len() / r, self.right.len() / r],
        }
    }
}

impl fmt::Debug for LowRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} * rank {} {:?}", self.scale, self.rank, self.shape())
    }
}

/// Where values come from. All operations work row by row, so that any range of rows can be made
/// without the rest: that keeps memory flat however large a tensor is.
#[derive(Debug, Clone)]
pub enum Expr {
    /// A source tensor as it is.
    Take(TensorRef),
    /// Numbers known when the plan is made.
    Values {
        /// Their shape.
        shape: Vec<usize>,
        /// Row by row.
        values: Arc<[f32]>,
    },
    /// `of` with the rows of each head regrouped from two halves to adjacent pairs:
    /// `reshape(heads, 2, d/2, ..).swap(1, 2)`, d the rows of a head. It turns Hugging Face's
    /// rotary layout into ggml's (llama.cpp `conversion/llama.py`, `LlamaModel.permute`).
    PermuteHalves {
        /// What is regrouped.
        of: Box<Expr>,
        /// The number of heads.
        heads: usize,
    },
    /// `of + scale * (left @ right)`, summed in f32.
    AddLowRank {
        /// The base weight, `[rows, cols]`.
        of: Box<Expr>,
        /// The update.
        update: Arc<LowRank>,
    },
    /// `scale * (left @ right)` alone: a tensor that is the product of two others.
    Product(Arc<LowRank>),
}

impl Expr {
    /// The shape of the values.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Expr::Take(tensor) => tensor.info().shape.clone(),
            Expr::Values { shape, .. } => shape.clone(),
            Expr::PermuteHalves { of, .. } | Expr::AddLowRank { of, .. } => of.shape(),
            Expr::Product(product) => product.shape().to_vec(),
        }
    }

    /// The type of the bytes where the values are a source's rows unchanged; such rows can be
    /// copied without decoding.
    pub fn raw_dtype(&self) -> Option<DType> {
        match self {
            Expr::Take(tensor) => Some(tensor.info().dtype),
            Expr::PermuteHalves { of, .. } => of.raw_dtype(),
            Expr::Values { .. } | Expr::AddLowRank { .. } | Expr::Product(_) => None,
        }
    }

    /// The source tensors that the values come from.
    pub fn sources(&self) -> Vec<&TensorRef> {
        match self {
            Expr::Take(tensor) => vec![tensor],
            Expr::PermuteHalves { of, .. } | Expr::AddLowRank { of, .. } => of.sources(),
            Expr::Values { .. } | Expr::Product(_) => Vec::new(),
        }
    }

    /// The types that have to be decoded.
    pub fn source_dtypes(&self) -> impl Iterator<Item = DType> {
        self.sources().into_iter().map(|t| t.info().dtype).collect::<Vec<_>>().into_iter()
    }

    /// The file of the first source, for messages; empty where there is none.
    pub fn source_path(&self) -> PathBuf {
        self.sources().first().map(|t| t.path().to_owned()).unwrap_or_default()
    }
}
