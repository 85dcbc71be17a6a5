//! What an adapter makes of single tensors of its base.

use std::sync::Arc;

use super::tokens::with_rows;
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::plan::{Expr, PlannedTensor, RowMap};
use crate::quant;

/// What becomes of one tensor of the base. Values are f32 throughout, rounded once in the output.
#[derive(Debug, Clone)]
pub enum Change {
    /// `W + s B A`.
    LowRank(LowRank),
    /// `W + delta`, where `delta` has the tensor's shape.
    Add(Expr),
    /// Another tensor in its place, or one that the base doesn't have.
    Replace(PlannedTensor),
    /// Some rows of another tensor in the place of rows of `W`: pairs of a row of `W`, in order, and one
    /// of `delta`.
    Rows {
        /// Which rows.
        rows: Arc<[(usize, usize)]>,
        /// Rows as long as those of `W`.
        delta: Expr,
    },
    /// A function of `W` and of other tensors of its shape.
    Map {
        /// Operands behind `W`.
        others: Vec<Expr>,
        /// The function.
        map: Arc<dyn RowMap>,
        /// Whether the function takes the weight as `[d_out, d_in]` and the base keeps it transposed.
        transposed: bool,
    },
}

/// How a layer keeps the weight that an update changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightLayout {
    /// `[d_out, d_in]`: a linear layer.
    OutputsFirst,
    /// `[d_in, d_out]`: Conv1D, and the experts of some classes.
    InputsFirst,
    /// `[vocab, hidden]`: an embedding, whose input is a token and whose output is a row.
    Embedding,
}

impl WeightLayout {
    /// That of a linear layer, by whether its weight is `[d_in, d_out]`.
    pub fn of_linear(transposed: bool) -> Self {
        if transposed { Self::InputsFirst } else { Self::OutputsFirst }
    }

    /// Whether the weight is the transpose of `B A`.
    pub fn is_transposed(self) -> bool {
        self != Self::OutputsFirst
    }
}

/// A low-rank update by its factors.
#[derive(Debug, Clone)]
pub struct LowRank {
    /// Dimensionless.
    pub scale: f32,
    /// The scale times the rank, where an adapter's settings say it so: before the quotient was rounded.
    pub alpha: Option<f64>,
    /// `[r, d_in]`; of an embedding `[r, vocab]`.
    pub a: Expr,
    /// `[d_out, r]`; of an embedding `[hidden, r]`.
    pub b: Expr,
    /// How the base keeps the weight.
    pub layout: WeightLayout,
    /// A type that the update is rounded to before it is added: PEFT does so for embeddings and experts.
    pub rounded: Option<DType>,
}

fn check(of: &[&Expr], scale: f32, finding: impl FnOnce() -> Finding) -> Result<()> {
    if !scale.is_finite() {
        return Err(finding().expected("a finite scale").found(scale).mismatch());
    }
    of.iter().find_map(|expr| no_numbers(expr)).map_or(Ok(()), Err)
}

impl LowRank {
    /// As [`Change::check_numbers`].
    pub(crate) fn check_numbers(&self, finding: impl FnOnce() -> Finding) -> Result<()> {
        check(&[&self.a, &self.b], self.scale, finding)
    }

    /// `weight` times this update.
    pub fn weighted(&self, weight: f32) -> Self {
        Self { scale: self.scale * weight, alpha: None, ..self.clone() }
    }

    /// `s B A`, in the shape that the base keeps its weight in.
    pub fn delta(&self) -> Expr {
        let (a, b) = (Box::new(self.a.clone()), Box::new(self.b.clone()));
        let product = match self.layout.is_transposed() {
            false => Expr::Product { scale: self.scale, left: b, right: a },
            true => {
                let transpose = |of: Box<Expr>| Box::new(Expr::Transpose(of));
                Expr::Product { scale: self.scale, left: transpose(a), right: transpose(b) }
            }
        };
        match self.rounded {
            None => product,
            Some(dtype) => Expr::Round { of: Box::new(product), dtype },
        }
    }
}

/// The first tensor that `of` takes whose values are no numbers that this crate can compute with.
pub(super) fn no_numbers(of: &Expr) -> Option<Error> {
    let source = of.sources().into_iter().find(|source| !quant::can_decode(source.info().dtype))?;
    let finding = Finding::new(source.path(), format!("tensor {:?}", source.info().name));
    Some(finding.expected("floating-point numbers").found(source.info().dtype).unsupported())
}

impl Change {
    /// Refuses tensors of the adapter that hold no floating-point numbers, and scales that aren't finite. `finding`
    /// is one about the adapter's settings.
    pub(in crate::adapter) fn check_numbers(&self, finding: impl FnOnce() -> Finding) -> Result<()> {
        let (exprs, scale): (Vec<&Expr>, f32) = match self {
            Change::LowRank(update) => return update.check_numbers(finding),
            Change::Add(Expr::Scale { of, factor }) => (vec![of], *factor),
            Change::Add(delta) | Change::Rows { delta, .. } => (vec![delta], 1.0),
            // A copy takes what is there.
            Change::Replace(tensor) if tensor.expr.raw_dtype() == Some(tensor.dtype) => (Vec::new(), 1.0),
            Change::Replace(tensor) => (vec![&tensor.expr], 1.0),
            Change::Map { others, .. } => (others.iter().collect(), 1.0),
        };
        check(&exprs, scale, finding)
    }

    /// The tensor after the change; `base` is the tensor before it.
    pub fn apply(&self, base: Expr) -> Expr {
        let add = |base, delta| Expr::Add { of: Box::new(base), delta: Box::new(delta) };
        match self {
            Change::LowRank(update) => add(base, update.delta()),
            Change::Add(delta) => add(base, delta.clone()),
            Change::Replace(tensor) => tensor.expr.clone(),
            Change::Rows { rows, delta } => with_rows(base, rows, delta.clone()),
            Change::Map { others, map, transposed } => {
                let turned = |of: Expr| if *transposed { Expr::Transpose(Box::new(of)) } else { of };
                let of = [turned(base)].into_iter().chain(others.iter().cloned()).collect();
                turned(Expr::Map { of, map: map.clone() })
            }
        }
    }
}
