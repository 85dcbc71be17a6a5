//! The operations of a family's rows with their numbers, and what they do to an expression: forwards, to GGUF, and
//! backwards, to the checkpoint.

use std::sync::Arc;

use super::language::Formula;
use super::params::Params;
use super::procedures::Procedure;
use super::row::{Change, Operation};
pub(crate) use super::shaping::{indexed, joined, reshaped};
use super::shaping::{ordered, permuted};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, ValueMap};
use crate::source::show_shape;

/// An operation with its numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Step {
    /// Indices of a dimension, in this order: some of them, or all.
    Index { dim: usize, of: usize, index: Arc<[usize]> },
    /// All dimensions in another order.
    Permute(Vec<usize>),
    /// Another shape, from this one.
    Reshape { from: Vec<usize>, to: Vec<usize> },
    /// A number added to every value.
    Add(f32),
    /// Every value multiplied.
    Multiply(f32),
    /// The reverse of `Multiply`.
    Unscale(f32),
    /// The reverse of `Add`.
    Subtract(f32),
    /// The reverse of a function of every value.
    Undo(Change),
    /// A function of every value.
    Each(Change),
    /// Zeros appended to a dimension of `from`.
    Pad { dim: usize, from: usize, to: usize },
    /// Zeros put before a dimension of `from`.
    PadFront { dim: usize, from: usize, to: usize },
    /// `1 / x`
    Reciprocal,
    /// The sum over a dimension.
    Sum { dim: usize, of: usize },
    /// A square grid of vectors brought to `side` vectors on a side.
    Grid { from: usize, side: usize },
    /// Rows from `kept` on left out.
    Trim { from: usize, kept: usize },
    /// Values rounded to three.
    Ternary,
    /// Smaller values replaced by this one.
    AtLeast(f32),
    /// A procedure in code.
    Procedure(Procedure),
}

/// The type in which the reference computes with a tensor: F16 for tensors of that type, F32 for all others. Tensors of a
/// folder inside the model's aren't made F32 before.
pub(crate) fn computed_in(dtype: DType, is_of_folder: bool) -> DType {
    match dtype {
        DType::F16 => DType::F16,
        DType::BF16 if is_of_folder => DType::BF16,
        _ => DType::F32,
    }
}

/// Values rounded to the type in which they are computed.
pub(super) fn rounded(of: Expr, dtype: DType) -> Expr {
    match dtype {
        DType::F16 | DType::BF16 => Expr::Round { of: Box::new(of), dtype },
        _ => of,
    }
}

/// Why operations can't be done: what was expected, and what was found.
pub(crate) type Misfit = (String, String);

/// The steps of `operations` for a tensor of shape `shape` in a layer.
///
/// # Errors
/// Errors of the formulas; `Ok(Err(..))` if an operation doesn't fit the shape.
pub(crate) fn steps(
    params: &Params,
    operations: &[Operation],
    shape: &[usize],
    layer: Option<usize>,
    vocab_rows: &dyn Fn() -> Result<usize>,
) -> Result<std::result::Result<Vec<Step>, Misfit>> {
    let mut shape = shape.to_vec();
    let mut steps = Vec::new();
    let size = |formula: &Formula| params.size_of(formula, layer);
    macro_rules! fit {
        ($value:expr) => {
            match $value {
                Ok(value) => value,
                Err(misfit) => return Ok(Err(misfit)),
            }
        };
    }
    for operation in operations {
        let step = match operation {
            Operation::Take(dim, start, len) => {
                let dim = fit!(place(&shape, *dim));
                let Some(start) = params.number_of(start, layer)? else {
                    return Ok(Err((format!("a start in dimension {dim}"), "none".to_owned())));
                };
                let len = size(len)?;
                fit!(fits(
                    start.checked_add(len).is_some_and(|end| end <= shape[dim]),
                    || { format!("at least {} in dimension {dim}", start.saturating_add(len)) },
                    &shape
                ));
                Step::Index { dim, of: shape[dim], index: (start..start + len).collect() }
            }
            Operation::Swap(a, b) => {
                let (a, b) = (fit!(place(&shape, *a)), fit!(place(&shape, *b)));
                let mut order: Vec<usize> = (0..shape.len()).collect();
                order.swap(a, b);
                Step::Permute(order)
            }
            Operation::Permute(order) => {
                fit!(fits(order.len() == shape.len(), || format!("{} dimensions", order.len()), &shape));
                Step::Permute(order.clone())
            }
            Operation::Reshape(sizes) => {
                let to: Vec<usize> = sizes.iter().map(size).collect::<Result<_>>()?;
                fit!(fits(
                    product(&to) == product(&shape),
                    || format!("as many values as {}", show_shape(&to)),
                    &shape
                ));
                Step::Reshape { from: shape.clone(), to }
            }
            Operation::Order(dim, sizes, order) => {
                let dim = fit!(place(&shape, *dim));
                let sizes: Vec<usize> = sizes.iter().map(size).collect::<Result<_>>()?;
                fit!(fits(
                    product(&sizes) == Some(shape[dim]),
                    || {
                        format!(
                            "{} in dimension {dim}",
                            sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
                        )
                    },
                    &shape
                ));
                Step::Index { dim, of: shape[dim], index: ordered(&sizes, order).into() }
            }
            Operation::Pairs(heads, part) | Operation::Halves(heads, part) => {
                let heads = size(heads)?;
                let rows = shape.first().copied().unwrap_or(1);
                let part = part.as_ref().map(size).transpose()?;
                let per_head = rows / heads;
                let rotated = part.unwrap_or(per_head);
                let divides = per_head * heads == rows && rotated <= per_head && rotated.is_multiple_of(2);
                fit!(fits(divides, || format!("{heads} heads of an even number of rows"), &shape));
                let half = rotated / 2;
                let is_pairs = matches!(operation, Operation::Pairs(..));
                let from = |within: usize| match within {
                    _ if within >= rotated => within,
                    _ if is_pairs => within % 2 * half + within / 2,
                    _ => within % half * 2 + within / half,
                };
                let index = (0..rows).map(|row| row / per_head * per_head + from(row % per_head)).collect();
                Step::Index { dim: 0, of: rows, index }
            }
            Operation::Qkv(groups) => {
                let (groups, heads) = (size(groups)?, params.count("heads")?);
                let rows = shape.first().copied().unwrap_or(1);
                let queries = heads / groups;
                let width = rows / (groups * (queries + 2));
                let divides = queries * groups == heads && width * groups * (queries + 2) == rows;
                fit!(fits(divides, || format!("{groups} groups of {queries} queries, a key and a value"), &shape));
                let row = |group: usize, place: usize| {
                    let start = (group * (queries + 2) + place) * width;
                    start..start + width
                };
                let all_queries = (0..groups).flat_map(|group| (0..queries).flat_map(move |q| row(group, q)));
                let keys = (0..groups).flat_map(|group| row(group, queries));
                let values = (0..groups).flat_map(|group| row(group, queries + 1));
                Step::Index { dim: 0, of: rows, index: all_queries.chain(keys).chain(values).collect() }
            }
            Operation::Add(number) | Operation::Multiply(number) => {
                let value = params.value_of(number, layer)?;
                let Some(number) = value.as_f64() else {
                    return Ok(Err(("a number".to_owned(), value.to_string())));
                };
                // The reference multiplies with numbers of double precision, which torch rounds to f32.
                if matches!(operation, Operation::Add(_)) {
                    Step::Add(number as f32)
                } else {
                    Step::Multiply(number as f32)
                }
            }
            Operation::Each(change) => Step::Each(*change),
            Operation::AtLeast(number) => {
                let value = params.value_of(number, layer)?;
                match value.as_f64() {
                    Some(number) => Step::AtLeast(number as f32),
                    None => return Ok(Err(("a number".to_owned(), value.to_string()))),
                }
            }
            Operation::Activation(name) => {
                let value = params.value_of(name, layer)?;
                match value.as_str().and_then(Change::activation) {
                    Some(change) => Step::Each(change),
                    None => return Ok(Err(("the activation silu, gelu or relu".to_owned(), value.to_string()))),
                }
            }
            Operation::Linear { .. } | Operation::Divide(_) => {
                let name = operation.of_several().unwrap_or_default();
                return Ok(Err(("an operation of one tensor".to_owned(), name.to_owned())));
            }
            Operation::Pad(dim, to) | Operation::PadFront(dim, to) => {
                let dim = fit!(place(&shape, *dim));
                let to = size(to)?.max(shape[dim]);
                if to == shape[dim] {
                    continue;
                }
                fit!(fits(
                    is_near(&shape, dim, to),
                    || format!("a dimension {dim} nearer to {to}, to be padded"),
                    &shape
                ));
                match operation {
                    Operation::Pad(..) => Step::Pad { dim, from: shape[dim], to },
                    _ => Step::PadFront { dim, from: shape[dim], to },
                }
            }
            Operation::Reciprocal => Step::Reciprocal,
            Operation::Unsqueeze(dim) => {
                let rank = shape.len() as i64 + 1;
                let at = usize::try_from(if *dim < 0 { dim + rank } else { *dim }).unwrap_or(usize::MAX);
                fit!(fits(at <= shape.len(), || format!("room for a dimension {dim}"), &shape));
                let mut to = shape.clone();
                to.insert(at, 1);
                Step::Reshape { from: shape.clone(), to }
            }
            Operation::Squeeze(dim) => {
                let dim = fit!(place(&shape, *dim));
                fit!(fits(shape[dim] == 1, || format!("1 in dimension {dim}"), &shape));
                let mut to = shape.clone();
                to.remove(dim);
                Step::Reshape { from: shape.clone(), to }
            }
            Operation::Sum(dim) => {
                let dim = fit!(place(&shape, *dim));
                Step::Sum { dim, of: shape[dim] }
            }
            Operation::Grid(side) => {
                let side = size(side)?;
                let from = shape.get(1).map_or(0, |count| count.isqrt());
                let is_square = shape.len() == 3 && shape[0] == 1 && from * from == shape[1] && from > 1;
                fit!(fits(is_square, || "[1, a square number, the width]".to_owned(), &shape));
                if side == from {
                    continue;
                }
                Step::Grid { from, side }
            }
            Operation::TrimVocab => {
                let from = shape.first().copied().unwrap_or_default();
                Step::Trim { from, kept: vocab_rows()?.min(from) }
            }
            Operation::Ternary => Step::Ternary,
            Operation::Procedure(name) => match Procedure::named(name) {
                Some(procedure) => Step::Procedure(procedure),
                None => return Ok(Err(("a procedure that this version has".to_owned(), name.clone()))),
            },
        };
        shape = step.shape(&shape);
        steps.push(step);
    }
    Ok(Ok(steps))
}

fn place(shape: &[usize], dim: i64) -> Result<usize, Misfit> {
    let place = if dim < 0 { dim + shape.len() as i64 } else { dim };
    let place = usize::try_from(place).ok().filter(|place| *place < shape.len());
    place.ok_or_else(|| (format!("a dimension {dim}"), show_shape(shape)))
}

fn fits(holds: bool, expected: impl Fn() -> String, shape: &[usize]) -> Result<(), Misfit> {
    if holds { Ok(()) } else { Err((expected(), show_shape(shape))) }
}

/// Whether padding a dimension makes no more than some times as many values: a number in a file may be any.
fn is_near(shape: &[usize], dim: usize, to: usize) -> bool {
    let mut padded = shape.to_vec();
    padded[dim] = to;
    let most = product(shape).and_then(|values| values.checked_mul(16)?.checked_add(1 << 20));
    product(&padded).is_some_and(|values| Some(values) <= most)
}

fn product(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |product, size| product.checked_mul(*size))
}

impl Step {
    /// The shape after the step.
    pub(crate) fn shape(&self, of: &[usize]) -> Vec<usize> {
        let mut shape = of.to_vec();
        match self {
            Step::Index { dim, index, .. } => shape[*dim] = index.len(),
            Step::Permute(order) => shape = order.iter().map(|dim| of[*dim]).collect(),
            Step::Reshape { to, .. } => shape = to.clone(),
            Step::Pad { dim, to, .. } | Step::PadFront { dim, to, .. } => shape[*dim] = *to,
            Step::Trim { kept, .. } => shape[0] = *kept,
            Step::Sum { dim, .. } => drop(shape.remove(*dim)),
            Step::Grid { side, .. } => shape[1] = side * side,
            Step::Add(_) | Step::Subtract(_) | Step::Multiply(_) | Step::Unscale(_) | Step::Each(_) => {}
            Step::Procedure(procedure) => shape = procedure.shape(of),
            Step::Undo(_) | Step::Reciprocal | Step::Ternary | Step::AtLeast(_) => {}
        }
        shape
    }

    /// Whether the values stay as they are.
    pub(crate) fn keeps_values(&self) -> bool {
        matches!(
            self,
            Step::Index { .. }
                | Step::Permute(_)
                | Step::Reshape { .. }
                | Step::Pad { .. }
                | Step::PadFront { .. }
                | Step::Trim { .. }
        )
    }

    /// The expression after the step. `dtype` is the type in which torch computes: see [`computed_in`].
    pub(crate) fn apply(&self, of: Expr, dtype: DType) -> Result<Expr> {
        let rounded = |of: Expr| rounded(of, dtype);
        let mapped = |of: Expr, map: ValueMap| Expr::Map { of: vec![of], map: Arc::new(map) };
        Ok(match self {
            Step::Index { dim, index, .. } => indexed(of, *dim, index),
            Step::Permute(order) => permuted(of, order),
            Step::Reshape { to, .. } => reshaped(of, to.clone()),
            Step::Add(constant) => rounded(Expr::AddConstant { of: Box::new(of), constant: *constant }),
            Step::Multiply(factor) => rounded(Expr::Scale { of: Box::new(of), factor: f64::from(*factor) }),
            Step::Unscale(factor) => mapped(of, ValueMap::Unscale { factor: *factor }),
            Step::Subtract(summand) => mapped(of, ValueMap::Subtract { summand: *summand }),
            Step::Undo(Change::Exp) => mapped(of, ValueMap::Logarithm { sign: 1.0 }),
            Step::Undo(Change::NegativeExp) => mapped(of, ValueMap::Logarithm { sign: -1.0 }),
            Step::Undo(Change::Softplus) => mapped(of, ValueMap::InverseSoftplus),
            // Nothing undoes these.
            Step::Undo(Change::Silu | Change::Gelu | Change::Relu) => of,
            Step::Each(Change::Silu) => rounded(mapped(of, ValueMap::Silu)),
            Step::Each(Change::Gelu) => rounded(mapped(of, ValueMap::Gelu)),
            Step::Each(Change::Relu) => mapped(of, ValueMap::AtLeast { least: 0.0 }),
            Step::AtLeast(least) => rounded(mapped(of, ValueMap::AtLeast { least: *least })),
            Step::Each(Change::Negative) | Step::Undo(Change::Negative) => {
                Expr::Scale { of: Box::new(of), factor: -1.0 }
            }
            Step::Each(Change::Exp) => rounded(mapped(of, ValueMap::Exp)),
            Step::Each(Change::NegativeExp) => rounded(mapped(of, ValueMap::NegativeExp)),
            Step::Each(Change::Softplus) => rounded(mapped(of, ValueMap::Softplus)),
            Step::Reciprocal => rounded(mapped(of, ValueMap::Reciprocal)),
            Step::PadFront { dim, from, to } => {
                let mut shape = of.shape();
                shape[*dim] = to - from;
                let values = vec![0.0; shape.iter().product()].into();
                joined(vec![Expr::Values { shape, values }, of], *dim)
            }
            Step::Pad { dim, from, to } => {
                let mut shape = of.shape();
                shape[*dim] = to - from;
                let values = vec![0.0; shape.iter().product()].into();
                joined(vec![of, Expr::Values { shape, values }], *dim)
            }
            Step::Trim { kept, .. } => indexed(of, 0, &(0..*kept).collect::<Vec<_>>()),
            Step::Sum { dim, of: count } => {
                let mut shape = of.shape();
                shape.remove(*dim);
                let parts = (0..*count).map(|place| reshaped(indexed(of.clone(), *dim, &[place]), shape.clone()));
                let sum = parts.reduce(|sum, part| Expr::Add { of: Box::new(sum), delta: Box::new(part) });
                rounded(sum.unwrap_or(Expr::Values { shape, values: Arc::from([]) }))
            }
            Step::Grid { from, side } => super::procedures::grid(of, *from, *side)?,
            Step::Ternary => crate::plan::ternary(of.as_llama_cpp().unwrap_or(of))?,
            Step::Procedure(procedure) => procedure.apply(of)?,
        })
    }

    /// The step that undoes this one, where it takes nothing away; `None` for what can't be undone.
    pub(crate) fn inverse(&self) -> Option<Step> {
        Some(match self {
            Step::Index { dim, of, index } => {
                if index.len() != *of {
                    return None;
                }
                let mut back = vec![0; *of];
                index.iter().enumerate().for_each(|(there, &here)| back[here] = there);
                Step::Index { dim: *dim, of: *of, index: back.into() }
            }
            Step::Permute(order) => {
                let mut back = vec![0; order.len()];
                order.iter().enumerate().for_each(|(there, &here)| back[here] = there);
                Step::Permute(back)
            }
            Step::Reshape { from, to } => Step::Reshape { from: to.clone(), to: from.clone() },
            Step::Add(number) => Step::Subtract(*number),
            Step::Pad { dim, from, to } => Step::Index { dim: *dim, of: *to, index: (0..*from).collect() },
            Step::Multiply(factor) if *factor != 0.0 => Step::Unscale(*factor),
            Step::PadFront { dim, from, to } => Step::Index { dim: *dim, of: *to, index: (to - from..*to).collect() },
            Step::Reciprocal => Step::Reciprocal,
            Step::Each(Change::Silu | Change::Gelu | Change::Relu) | Step::AtLeast(_) => return None,
            Step::Each(change) => Step::Undo(*change),
            Step::Trim { .. } | Step::Multiply(_) | Step::Unscale(_) | Step::Subtract(_) | Step::Undo(_) => {
                return None;
            }
            Step::Sum { .. } | Step::Grid { .. } | Step::Ternary | Step::Procedure(_) => return None,
        })
    }

    /// The operation's name in family files.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Step::Index { of, index, .. } if index.len() == *of => "order",
            Step::Index { .. } => "take",
            Step::Permute(_) => "permute",
            Step::Reshape { .. } => "reshape",
            Step::Add(_) | Step::Subtract(_) => "add",
            Step::Multiply(_) | Step::Unscale(_) => "mul",
            Step::Each(change) | Step::Undo(change) => match change {
                Change::Negative => "neg",
                Change::Exp => "exp",
                Change::NegativeExp => "negexp",
                Change::Softplus => "softplus",
                Change::Silu => "silu",
                Change::Gelu => "gelu",
                Change::Relu => "relu",
            },
            Step::Pad { .. } => "pad",
            Step::PadFront { .. } => "pad_front",
            Step::Reciprocal => "recip",
            Step::Sum { .. } => "sum",
            Step::Grid { .. } => "grid",
            Step::Trim { .. } => "trim_vocab",
            Step::Ternary => "ternary",
            Step::AtLeast(_) => "at_least",
            Step::Procedure(_) => "proc",
        }
    }

    /// Whether the step takes a part of the tensor.
    pub(crate) fn is_part(&self) -> bool {
        matches!(self, Step::Index { of, index, .. } if index.len() != *of)
    }
}
