//! The factors of a low-rank update on the way to GGUF: what a family's operations do to a weight, they do to its update.
//!
//! Reference: llama.cpp `convert_lora_to_gguf.py` (`LoraTorchTensor`), which refuses what needs a larger rank.

use std::sync::Arc;

use crate::adapter::peft::LowRank;
use crate::arch::Change;
use crate::arch::steps::{Step, joined, reshaped};
use crate::dtype::DType;
use crate::plan::Expr;

/// Most zeros that are made for parts without an update.
const MOST_ZEROS: usize = 1 << 28;

/// A low-rank update of a matrix, or of each matrix of a stack: `alpha / rank * B A`.
#[derive(Debug, Clone)]
pub(super) struct Factors {
    /// `[.., r, columns]`; a dimension before them is 1 where all matrices have the same.
    pub(super) a: Expr,
    /// `[.., rows, r]`.
    pub(super) b: Expr,
    /// The scale of the update times `rank`.
    alpha: f64,
    rank: usize,
    /// The update of which `a` has all columns in their order; `None` if it hasn't.
    whole: Option<usize>,
}

impl Factors {
    /// The factors of an update in the layout of its weight. `id` tells it from others.
    pub(super) fn of(update: &LowRank, id: usize) -> Self {
        let rank = crate::source::rows(&update.a.shape());
        let alpha = update.alpha.unwrap_or(update.scale * rank as f64);
        let (a, b) = (update.a.clone(), update.b.clone());
        let (a, b) = if update.layout.is_transposed() { (turned(b), turned(a)) } else { (a, b) };
        Self { a, b, alpha, rank, whole: Some(id) }
    }

    /// The updates of the matrices of a stack.
    pub(super) fn of_stack(updates: &[LowRank], id: usize) -> Option<Self> {
        let all = updates.iter().map(|update| Some(Self::of(update, id))).collect();
        Self::stacked(all)
    }

    /// The rank of the factors as they are written.
    pub(super) fn rank(&self) -> usize {
        self.b.shape().last().copied().unwrap_or_default()
    }

    /// The alpha that the factors need, for an update by alpha / rank.
    pub(super) fn alpha(&self) -> f64 {
        if self.rank() == self.rank { self.alpha } else { self.alpha * self.rank() as f64 / self.rank as f64 }
    }

    /// The factors after a step; `None` if the update is no product of two factors then, or none that llama.cpp applies.
    pub(super) fn after(self, step: &Step) -> Option<Self> {
        let of = self.b.shape();
        let last = of.len().checked_sub(1).filter(|last| *last > 0)?;
        let are_shared = self.a.shape()[..last - 1].iter().all(|size| *size == 1);
        let apply = |of: Expr| step.apply(of, DType::F32).ok();
        let scaled = |factor: f64| {
            let b = Expr::Scale { of: Box::new(self.b.clone()), factor };
            Some(Self { b, ..self.clone() })
        };
        match step {
            Step::Trim { .. } if last > 1 => None,
            Step::Index { dim, .. } | Step::Pad { dim, .. } | Step::PadFront { dim, .. } if *dim == last => {
                Some(Self { a: apply(self.a)?, whole: None, ..self })
            }
            Step::Index { dim, .. } | Step::Pad { dim, .. } | Step::PadFront { dim, .. } => {
                let a = match *dim + 1 == last || self.a.shape()[*dim] == 1 {
                    true => self.a,
                    false => return Some(Self { a: apply(self.a)?, b: apply(self.b)?, whole: None, ..self }),
                };
                Some(Self { a, b: apply(self.b)?, ..self })
            }
            Step::Trim { .. } => Some(Self { b: apply(self.b)?, ..self }),
            Step::Permute(order) if order[last] == last && are_shared => Some(Self { b: apply(self.b)?, ..self }),
            Step::Permute(order) if order[last] == last && order[last - 1] == last - 1 => {
                Some(Self { a: apply(self.a)?, b: apply(self.b)?, whole: None, ..self })
            }
            // Where all matrices have the same A (the heads of latent attention), llama.cpp applies no update.
            Step::Permute(order) if last > 1 && !are_shared && swaps_last(order) => {
                Some(Self { a: apply(self.b)?, b: apply(self.a)?, whole: None, ..self })
            }
            Step::Permute(order) if last == 1 && swaps_last(order) => {
                Some(Self { a: turned(self.b), b: turned(self.a), whole: None, ..self })
            }
            Step::Reshape { to, .. } if to.len() > 1 && to.last() == self.a.shape().last() && are_shared => {
                let ends = to.len() - 1;
                let mut shape_a = vec![1; ends - 1];
                shape_a.extend([self.rank(), to[ends]]);
                let mut shape_b = to.clone();
                shape_b[ends] = self.rank();
                Some(Self { a: reshaped(self.a, shape_a), b: reshaped(self.b, shape_b), ..self })
            }
            // An update of `W + 1` is that of `W`.
            Step::Add(_) | Step::Subtract(_) => Some(self),
            Step::Multiply(factor) => scaled(f64::from(*factor)),
            Step::Each(Change::Negative) => scaled(-1.0),
            _ => None,
        }
    }

    /// The updates of several matrices as those of a stack. A matrix without one gets zeros.
    pub(super) fn stacked(parts: Vec<Option<Self>>) -> Option<Self> {
        let first = Self::with_scale(parts.iter().flatten())?;
        let rank = parts.iter().flatten().map(Self::rank).max()?;
        let (shape_a, shape_b) = (first.a.shape(), first.b.shape());
        let with_rank = |mut shape: Vec<usize>, dim: usize| {
            shape[dim] = rank;
            shape
        };
        let last = shape_b.len() - 1;
        let (shape_a, shape_b) = (with_rank(shape_a, last - 1), with_rank(shape_b, last));
        let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
        for part in &parts {
            let (a, b) = match part {
                None => (zeros(&shape_a)?, zeros(&shape_b)?),
                Some(part) => {
                    let part = part.clone().at_scale_of(&first).padded(rank)?;
                    (part.a, part.b)
                }
            };
            if a.shape() != shape_a || b.shape() != shape_b {
                return None;
            }
            all_a.push(a);
            all_b.push(b);
        }
        let stack = |of: Vec<Expr>, shape: &[usize]| {
            let shape = [&[of.len()], shape].concat();
            Expr::concat(of, shape)
        };
        let (a, b) = (stack(all_a, &shape_a), stack(all_b, &shape_b));
        Some(Self { a, b, whole: None, ..first })
    }

    /// The updates of several tensors, of these shapes, as that of the tensors joined along a dimension. Parts with
    /// different factors A get them all: the rank is the sum of their ranks.
    pub(super) fn joined(parts: Vec<(Option<Self>, Vec<usize>)>, dim: usize) -> Option<Self> {
        let last = parts.first()?.1.len().checked_sub(1).filter(|last| *last > 0)?;
        if parts.len() == 1 {
            return parts.into_iter().next()?.0;
        }
        if dim == last {
            let swap: Vec<usize> = (0..last - 1).chain([last, last - 1]).collect();
            let turned = |factors: Self| factors.after(&Step::Permute(swap.clone()));
            let parts = parts.into_iter().map(|(factors, mut shape)| {
                shape.swap(last, last - 1);
                match factors {
                    Some(factors) => turned(factors).map(|factors| (Some(factors), shape)),
                    None => Some((None, shape)),
                }
            });
            return turned(Self::joined(parts.collect::<Option<_>>()?, last - 1)?);
        }
        let first = Self::with_scale(parts.iter().flat_map(|(factors, _)| factors))?;
        let parts: Vec<_> =
            parts.into_iter().map(|(part, shape)| (part.map(|part| part.at_scale_of(&first)), shape)).collect();
        if dim + 1 < last {
            return Self::joined_stacks(&first, parts, dim);
        }
        let is_shared = |part: &Option<Self>| {
            part.as_ref().is_none_or(|part| part.whole == first.whole && part.a.shape() == first.a.shape())
        };
        if first.whole.is_some() && parts.iter().all(|(part, _)| is_shared(part)) {
            let of = parts.iter().map(|(part, shape)| match part {
                Some(part) => Some(part.b.clone()),
                None => zeros(&[&shape[..last], &[first.rank()]].concat()),
            });
            return Some(Self { b: joined(of.collect::<Option<_>>()?, dim), ..first });
        }
        let total = parts.iter().flat_map(|(part, _)| part).map(Self::rank).sum();
        let (mut all_a, mut all_b, mut place) = (Vec::new(), Vec::new(), 0);
        for (part, shape) in parts {
            let Some(part) = part else {
                all_b.push(zeros(&[&shape[..last], &[total]].concat())?);
                continue;
            };
            if part.a.shape()[..last - 1] != first.a.shape()[..last - 1] {
                return None;
            }
            all_a.push(part.a.clone());
            let rank = part.rank();
            all_b.push(padded(part.b, last, place, total)?);
            place += rank;
        }
        Some(Self { a: joined(all_a, last - 1), b: joined(all_b, dim), whole: None, ..first })
    }

    /// Stacks as one.
    fn joined_stacks(first: &Self, parts: Vec<(Option<Self>, Vec<usize>)>, dim: usize) -> Option<Self> {
        let last = first.b.shape().len() - 1;
        let rank = parts.iter().flat_map(|(part, _)| part).map(Self::rank).max()?;
        let (mut all_a, mut all_b) = (Vec::new(), Vec::new());
        for (part, shape) in parts {
            let (a, b) = match part {
                None => {
                    let shape_a = [&shape[..last - 1], &[rank, shape[last]]].concat();
                    (zeros(&shape_a)?, zeros(&[&shape[..last], &[rank]].concat())?)
                }
                Some(part) if part.a.shape()[..last - 1] == part.b.shape()[..last - 1] => {
                    let part = part.padded(rank)?;
                    (part.a, part.b)
                }
                Some(_) => return None,
            };
            all_a.push(a);
            all_b.push(b);
        }
        Some(Self { a: joined(all_a, dim), b: joined(all_b, dim), whole: None, ..first.clone() })
    }

    /// The first whose scale others can have: one that isn't 0, unless all are.
    fn with_scale<'a>(mut parts: impl Iterator<Item = &'a Self> + Clone) -> Option<Self> {
        parts.clone().find(|part| part.alpha != 0.0).or_else(|| parts.next()).cloned()
    }

    /// The same update with the scale of another.
    fn at_scale_of(self, other: &Self) -> Self {
        // Quotients are compared without division.
        if self.alpha * other.rank as f64 == other.alpha * self.rank as f64 {
            return self;
        }
        let factor = self.alpha / self.rank as f64 / (other.alpha / other.rank as f64);
        let b = Expr::Scale { of: Box::new(self.b), factor };
        Self { b, alpha: other.alpha, rank: other.rank, ..self }
    }

    /// Zeros behind the ranks, up to `total` of them.
    fn padded(self, total: usize) -> Option<Self> {
        let last = self.b.shape().len() - 1;
        let a = padded(self.a, last - 1, 0, total)?;
        Some(Self { a, b: padded(self.b, last, 0, total)?, whole: None, ..self })
    }
}

/// Whether nothing but the last two dimensions are exchanged.
fn swaps_last(order: &[usize]) -> bool {
    let last = order.len() - 1;
    order[last] == last - 1 && order[last - 1] == last && order[..last - 1].iter().copied().eq(0..last - 1)
}

/// A factor transposed.
pub(super) fn turned(of: Expr) -> Expr {
    match of {
        Expr::Transpose(of) => *of,
        of => Expr::Transpose(Box::new(of)),
    }
}

/// A dimension with `before` zeros before its values and zeros behind them, up to `total`.
fn padded(of: Expr, dim: usize, before: usize, total: usize) -> Option<Expr> {
    let from = of.shape()[dim];
    let to = before + from;
    let steps = [Step::PadFront { dim, from, to }, Step::Pad { dim, from: to, to: total }];
    let needed = [before > 0, to < total];
    let mut steps = steps.iter().zip(needed).filter(|(_, is_needed)| *is_needed);
    steps.try_fold(of, |of, (step, _)| step.apply(of, DType::F32).ok())
}

/// Zeros, unless there are too many.
fn zeros(shape: &[usize]) -> Option<Expr> {
    let count = shape.iter().try_fold(1usize, |count, size| count.checked_mul(*size))?;
    (count <= MOST_ZEROS).then(|| Expr::Values { shape: shape.to_vec(), values: Arc::from(vec![0.0; count]) })
}
