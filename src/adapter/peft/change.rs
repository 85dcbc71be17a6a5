//! Changes of an adapter to single tensors of its base.

use std::sync::Arc;

use super::tokens::with_rows;
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::plan::{Expr, PlannedTensor, RowMap, Sums};
use crate::quant;

/// A change to one tensor of the base. Values are f32 throughout, or f64 for a base of F64, and are rounded once, in the
/// output.
#[derive(Debug, Clone)]
pub enum Change {
    /// `W + s B A`.
    LowRank(LowRank),
    /// The same for each matrix of a stack, such as the experts of a layer.
    Stack(Vec<LowRank>),
    /// `W + delta`, where `delta` has the tensor's shape.
    Add(Expr),
    /// Another tensor in place of `W`, or a tensor that the base doesn't have.
    Replace(PlannedTensor),
    /// Some rows of `W` replaced by rows of another tensor.
    Rows {
        /// Pairs of a row of `W`, in ascending order, and a row of `delta`.
        rows: Arc<[(usize, usize)]>,
        /// Rows as long as those of `W`.
        delta: Expr,
    },
    /// A function of `W` and of other tensors of its shape.
    Map {
        /// Operands after `W`.
        others: Vec<Expr>,
        /// The function.
        map: Arc<dyn RowMap>,
        /// Whether the function expects the weight as `[d_out, d_in]` while the base stores it transposed.
        transposed: bool,
    },
    /// A change of the kernel of a convolution, seen as a matrix of this many rows and columns: a row for each output, a
    /// column for each tap of each input.
    Kernel {
        /// `[outputs, inputs * taps]`.
        matrix: [usize; 2],
        /// The change of the matrix.
        change: Box<Change>,
    },
}

/// The layout in which a layer stores its weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[d_out, d_in]`: a linear layer.
    OutputsFirst,
    /// `[d_in, d_out]`: Conv1D, and the experts of some classes.
    InputsFirst,
    /// `[d_out, inputs * taps]`: the kernel of a convolution as a matrix, whose update PEFT computes as a convolution.
    Kernel,
    /// `[vocab, hidden]`: an embedding, whose input is a token and whose output is the token's row.
    Embedding,
}

impl WeightLayout {
    /// The layout of a linear layer; `transposed` if its weight is `[d_in, d_out]`.
    pub fn of_linear(transposed: bool) -> Self {
        if transposed { Self::InputsFirst } else { Self::OutputsFirst }
    }

    /// Whether the weight is the transpose of `B A`.
    pub fn is_transposed(self) -> bool {
        !matches!(self, Self::OutputsFirst | Self::Kernel)
    }
}

/// A low-rank update, given by its factors.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Dimensionless.
    pub scale: f64,
    /// The scale times the rank, before the quotient was rounded, where the adapter's settings contain it.
    pub alpha: Option<f64>,
    /// `[r, d_in]`; for an embedding `[r, vocab]`.
    pub a: Expr,
    /// `[d_out, r]`; for an embedding `[hidden, r]`.
    pub b: Expr,
    /// The layout of the base's weight.
    pub layout: WeightLayout,
    /// The type to which the update is rounded before it is added: PEFT does so for embeddings and experts.
    pub rounded: Option<DType>,
}

fn check(of: &[&Expr], scale: f64, finding: impl FnOnce() -> Finding) -> Result<()> {
    if !(scale as f32).is_finite() {
        return Err(finding().expected("a finite scale").found(scale).mismatch());
    }
    of.iter().find_map(|expr| no_numbers(expr)).map_or(Ok(()), Err)
}

impl LowRank {
    /// Like [`Change::check_numbers`].
    pub(crate) fn check_numbers(&self, finding: impl FnOnce() -> Finding) -> Result<()> {
        check(&[&self.a, &self.b], self.scale, finding)
    }

    /// This update multiplied by `weight`.
    pub fn weighted(&self, weight: f64) -> Self {
        Self { scale: self.scale * weight, alpha: None, ..self.clone() }
    }

    /// `s B A`, in the layout of the base's weight.
    pub fn delta(&self) -> Expr {
        let (a, b) = (Box::new(self.a.clone()), Box::new(self.b.clone()));
        let product = match self.layout.is_transposed() {
            false => {
                let is_kernel = self.layout == WeightLayout::Kernel;
                let sums = if is_kernel { Sums::Convolution } else { Sums::Product };
                Expr::Product { scale: self.scale, left: b, right: a, sums }
            }
            true => {
                let transpose = |of: Box<Expr>| Box::new(Expr::Transpose(of));
                Expr::Product { scale: self.scale, left: transpose(a), right: transpose(b), sums: Sums::ProductTurned }
            }
        };
        match self.rounded {
            None => product,
            Some(dtype) => Expr::Round { of: Box::new(product), dtype },
        }
    }
}

/// An error for the first source of `of` that doesn't hold numbers with which this crate can compute.
pub(super) fn no_numbers(of: &Expr) -> Option<Error> {
    let source = of.sources().into_iter().find(|source| !quant::can_decode(source.info().dtype))?;
    let finding = Finding::new(source.path(), format!("tensor {:?}", source.info().name));
    Some(finding.expected("floating-point numbers").found(source.info().dtype).unsupported())
}

/// The updates of the matrices of a stack as one tensor.
pub(crate) fn stack_delta(updates: &[LowRank]) -> Expr {
    let deltas: Vec<Expr> = updates.iter().map(LowRank::delta).collect();
    let shape = deltas.first().map(Expr::shape).unwrap_or_default();
    let shape = [vec![deltas.len()], shape].concat();
    Expr::concat(deltas, shape)
}

impl Change {
    /// Refuses tensors of the adapter that don't hold floating-point numbers, and scales that aren't finite. `finding`
    /// makes a finding about the adapter's settings.
    pub(in crate::adapter) fn check_numbers(&self, finding: impl FnOnce() -> Finding) -> Result<()> {
        let (exprs, scale): (Vec<&Expr>, f64) = match self {
            Change::LowRank(update) => return update.check_numbers(finding),
            Change::Stack(updates) => {
                let exprs = updates.iter().flat_map(|update| [&update.a, &update.b]).collect();
                (exprs, updates.first().map_or(1.0, |update| update.scale))
            }
            Change::Add(Expr::Scale { of, factor }) => (vec![of], *factor),
            Change::Add(delta) | Change::Rows { delta, .. } => (vec![delta], 1.0),
            // A copied tensor can have any type.
            Change::Replace(tensor) if tensor.expr.raw_dtype() == Some(tensor.dtype) => (Vec::new(), 1.0),
            Change::Replace(tensor) => (vec![&tensor.expr], 1.0),
            Change::Map { others, .. } => (others.iter().collect(), 1.0),
            Change::Kernel { change, .. } => return change.check_numbers(finding),
        };
        check(&exprs, scale, finding)
    }

    /// The tensor after the change; `base` is the tensor before it.
    pub fn apply(&self, base: Expr) -> Expr {
        let add = |base, delta| Expr::Add { of: Box::new(base), delta: Box::new(delta) };
        match self {
            Change::LowRank(update) => add(base, update.delta()),
            Change::Stack(updates) => add(base, stack_delta(updates)),
            Change::Add(delta) => add(base, delta.clone()),
            Change::Replace(tensor) => tensor.expr.clone(),
            Change::Rows { rows, delta } => with_rows(base, rows, delta.clone()),
            Change::Map { others, map, transposed } => {
                let turned = |of: Expr| if *transposed { Expr::Transpose(Box::new(of)) } else { of };
                let of = [turned(base)].into_iter().chain(others.iter().cloned()).collect();
                turned(Expr::Map { of, map: map.clone() })
            }
            Change::Kernel { matrix, change } => {
                let (of, shape) = (Box::new(base.clone()), base.shape());
                let changed = change.apply(Expr::Reshape { of, shape: matrix.to_vec() });
                Expr::Reshape { of: Box::new(changed), shape }
            }
        }
    }
}
