//! Compares the tensors of two checkpoints.
//!
//! Values are compared as a reader sees them, decoded to f32, so a quantized model can be compared with its original.
//! Differences are computed and summed in f64, some rows at a time, so memory is bounded however large a tensor is.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::Serialize;

use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::quant;

mod sides;

pub use sides::{sides, sides_of};

/// Number of elements that one task compares.
const CHUNK_ELEMS: usize = 1 << 18;

/// The comparison of two checkpoints, A and B, tensor by tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// Sums over all tensors.
    pub totals: Totals,
    /// All tensors of both: those of A in A's order, then those that only B has in B's order.
    pub tensors: Vec<TensorComparison>,
}

/// Sums over all tensors.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    /// The number of tensors that both have and whose values were compared.
    pub compared: usize,
    /// The number of those with the same values, bit by bit.
    pub identical: usize,
    /// The number of elements that were compared.
    pub elements: u64,
    /// The root mean square of all differences, relative to that of all values of A; `None` if A is all zeros and B
    /// isn't.
    pub relative_error: Option<f64>,
    /// The largest absolute difference.
    pub max_difference: f64,
    /// The tensor with the largest relative error; `None` if no values differ.
    pub worst: Option<String>,
    /// The number of tensors that only A has.
    pub only_in_a: usize,
    /// The number of tensors that only B has.
    pub only_in_b: usize,
    /// The number of tensors with different shapes.
    pub other_shape: usize,
    /// The number of tensors whose values can't be decoded.
    pub not_decoded: usize,
}

/// The comparison of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorComparison {
    /// Its name.
    pub name: String,
    /// Its type and shape in A.
    pub a: Option<Form>,
    /// Its type and shape in B.
    pub b: Option<Form>,
    /// The result.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// A tensor's form in one of the two checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Form {
    /// The name of the type in which it is stored.
    pub dtype: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
}

/// The result of comparing a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// Its values were compared.
    Compared(Difference),
    /// Only A has it.
    OnlyInA,
    /// Only B has it.
    OnlyInB,
    /// The two shapes differ.
    OtherShape,
    /// Its values can't be decoded.
    NotDecoded {
        /// The reason.
        reason: String,
        /// Whether the bytes are the same, if both have the same type.
        same_bytes: Option<bool>,
    },
}

/// The differences between the values of a tensor in A and B.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The number of elements.
    pub elements: u64,
    /// The largest absolute difference.
    pub max_difference: f64,
    /// The root mean square of the differences.
    pub rms_difference: f64,
    /// The root mean square difference, relative to the root mean square of A's values; `None` if A is all zeros and B
    /// isn't.
    pub relative_error: Option<f64>,
    /// Whether all values are the same, bit by bit, so that 0 and -0 differ.
    pub identical: bool,
}

impl Difference {
    /// The relative error as a sort key: a difference from all zeros is the worst.
    pub fn badness(&self) -> f64 {
        self.relative_error.unwrap_or(f64::INFINITY)
    }
}

impl Comparison {
    /// Compares the tensors of `a` and `b` that have the same name, in parallel on rayon's current pool. The result
    /// doesn't depend on the number of threads.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] for a NaN or an infinity in either, naming the tensor;
    /// [`crate::Error::Mismatch`] for a repeated name in one of them, and if they have no tensor of the same
    /// name.
    pub fn of(a: &Plan, b: &Plan) -> Result<Self> {
        Self::watched(a, b, &|_, _| {})
    }

    /// Like [`Comparison::of`]. `progress` gets the number of elements compared so far, and of all elements.
    ///
    /// # Errors
    /// As [`Comparison::of`].
    pub fn watched(a: &Plan, b: &Plan, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<Self> {
        by_name(a)?;
        let in_b = by_name(b)?;
        let pairs: Vec<Pair> = a.tensors.iter().map(|t| Pair::of(t, in_b.get(t.name.as_str()).copied())).collect();
        check_related(a, b, &pairs)?;
        let tasks: Vec<(usize, Range<usize>)> =
            pairs.iter().enumerate().flat_map(|(i, pair)| pair.chunks().map(move |rows| (i, rows))).collect();
        let total: u64 = pairs.iter().map(Pair::elems).sum();
        let done = AtomicU64::new(0);
        let found: Vec<(usize, Sums)> = tasks
            .into_par_iter()
            .map(|(i, rows)| {
                let sums = pairs[i].sums(rows)?;
                progress(done.fetch_add(sums.elements, Ordering::Relaxed) + sums.elements, total);
                Ok((i, sums))
            })
            .collect::<Result<_>>()?;

        // Added in order, because sums of floats depend on it.
        let mut sums = vec![Sums::default(); pairs.len()];
        for (i, chunk) in &found {
            sums[*i].add(chunk);
        }
        let mut all = Sums::default();
        for (pair, sums) in pairs.iter().zip(&sums) {
            if matches!(pair.how, How::Values(..)) {
                all.add(sums);
            }
        }
        let mut tensors: Vec<TensorComparison> =
            pairs.into_iter().zip(&sums).map(|(pair, sums)| pair.outcome(sums)).collect();
        let in_a: HashSet<&str> = a.tensors.iter().map(|t| t.name.as_str()).collect();
        tensors.extend(b.tensors.iter().filter(|t| !in_a.contains(t.name.as_str())).map(|t| TensorComparison {
            name: t.name.clone(),
            a: None,
            b: Some(Form::of(t)),
            outcome: Outcome::OnlyInB,
        }));
        Ok(Self { totals: Totals::of(&tensors, &all), tensors })
    }
}

impl Totals {
    fn of(tensors: &[TensorComparison], all: &Sums) -> Self {
        let mut totals = Totals {
            elements: all.elements,
            relative_error: all.relative_error(),
            max_difference: all.max_difference,
            ..Totals::default()
        };
        let mut worst = 0.0;
        for tensor in tensors {
            match &tensor.outcome {
                Outcome::Compared(difference) => {
                    totals.compared += 1;
                    totals.identical += usize::from(difference.identical);
                    if difference.badness() > worst {
                        worst = difference.badness();
                        totals.worst = Some(tensor.name.clone());
                    }
                }
                Outcome::OnlyInA => totals.only_in_a += 1,
                Outcome::OnlyInB => totals.only_in_b += 1,
                Outcome::OtherShape => totals.other_shape += 1,
                Outcome::NotDecoded { .. } => totals.not_decoded += 1,
            }
        }
        totals
    }
}

impl Form {
    fn of(tensor: &PlannedTensor) -> Self {
        let mut decoded = tensor.expr.source_dtypes();
        // The type from which a computed tensor is made, if it is only one.
        let single = decoded.next().filter(|first| decoded.all(|other| other == *first));
        let dtype = tensor.expr.raw_dtype().or(single).unwrap_or(tensor.dtype);
        Self { dtype: dtype.name().to_owned(), shape: tensor.shape.clone() }
    }
}

/// Refuses models without a tensor of the same name: there is nothing to compare.
fn check_related(a: &Plan, b: &Plan, pairs: &[Pair<'_>]) -> Result<()> {
    if pairs.iter().any(|pair| pair.b.is_some()) || a.tensors.is_empty() && b.tensors.is_empty() {
        return Ok(());
    }
    let path = |plan: &Plan| plan.tensors.first().map(|t| t.expr.source_path().to_owned()).unwrap_or_default();
    let expected = format!("tensors with the names of those of {}", path(a).display());
    let hint = "compare a model with a converted, merged or finetuned form of it";
    let found = format!("none among its {}", b.tensors.len());
    Err(Finding::new(path(b), "tensors").expected(expected).found(found).hint(hint).mismatch())
}

/// The tensors of `plan` by name.
fn by_name(plan: &Plan) -> Result<HashMap<&str, &PlannedTensor>> {
    let mut found = HashMap::new();
    for tensor in &plan.tensors {
        if found.insert(tensor.name.as_str(), tensor).is_some() {
            let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
            return Err(finding.expected("each name once").found("it twice").mismatch());
        }
    }
    Ok(found)
}

/// A tensor of A, and how to compare it.
struct Pair<'a> {
    a: &'a PlannedTensor,
    b: Option<&'a PlannedTensor>,
    how: How,
}

/// How the two tensors of a pair are compared. The tensors here may be transposed.
enum How {
    /// Decoded.
    Values(Box<PlannedTensor>, Box<PlannedTensor>),
    /// Byte by byte, with the reason why they can't be decoded.
    Bytes(Box<PlannedTensor>, Box<PlannedTensor>, String),
    /// Not at all.
    Not(Outcome),
}

impl<'a> Pair<'a> {
    fn of(a: &'a PlannedTensor, b: Option<&'a PlannedTensor>) -> Self {
        let how = match b {
            None => How::Not(Outcome::OnlyInA),
            Some(b) if a.shape != b.shape => How::Not(Outcome::OtherShape),
            Some(b) => match not_decodable(a).or_else(|| not_decodable(b)) {
                None => {
                    let (a, b) = along_rows(a, b);
                    How::Values(a.into(), b.into())
                }
                Some(reason) if is_bytes(a) && is_bytes(b) && a.dtype == b.dtype => {
                    How::Bytes(a.clone().into(), b.clone().into(), reason)
                }
                Some(reason) => How::Not(Outcome::NotDecoded { reason, same_bytes: None }),
            },
        };
        Self { a, b, how }
    }

    fn both(&self) -> Option<(&PlannedTensor, &PlannedTensor)> {
        match &self.how {
            How::Values(a, b) | How::Bytes(a, b, _) => Some((a, b)),
            How::Not(_) => None,
        }
    }

    fn elems(&self) -> u64 {
        self.both().map_or(0, |(a, _)| a.elems() as u64)
    }

    /// Ranges of rows that together cover the tensor.
    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let (rows, row_len) = match self.both() {
            Some((a, _)) if a.elems() > 0 => (a.rows(), a.row_len()),
            _ => (0, 1),
        };
        let step = (CHUNK_ELEMS / row_len).max(1);
        (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
    }

    fn sums(&self, rows: Range<usize>) -> Result<Sums> {
        match &self.how {
            How::Values(a, b) => Ok(Sums::of(&a.read_rows(rows.clone())?, &b.read_rows(rows)?)),
            How::Bytes(a, b, _) => {
                let (mut scratch, mut of_a, mut of_b) = (Vec::new(), Vec::new(), Vec::new());
                a.encode_rows(rows.clone(), &mut scratch, &mut of_a)?;
                b.encode_rows(rows.clone(), &mut scratch, &mut of_b)?;
                let elements = (rows.len() * a.row_len()) as u64;
                Ok(Sums { differs: of_a != of_b, elements, ..Sums::default() })
            }
            How::Not(_) => Ok(Sums::default()),
        }
    }

    fn outcome(self, sums: &Sums) -> TensorComparison {
        let outcome = match self.how {
            How::Values(..) => Outcome::Compared(sums.difference()),
            How::Bytes(_, _, reason) => Outcome::NotDecoded { reason, same_bytes: Some(!sums.differs) },
            How::Not(outcome) => outcome,
        };
        TensorComparison { name: self.a.name.clone(), a: Some(Form::of(self.a)), b: self.b.map(Form::of), outcome }
    }
}

/// The reason why the values of `tensor` can't be read, if they can't.
fn not_decodable(tensor: &PlannedTensor) -> Option<String> {
    if let Err(error) = (Plan { tensors: vec![tensor.clone()] }).check() {
        return Some(error.to_string());
    }
    // That check accepts types that are only copied.
    (!quant::can_decode(tensor.dtype)).then(|| format!("this version can't decode {}", tensor.dtype))
}

/// Whether the tensor's values are a file's bytes of a plain type.
fn is_bytes(tensor: &PlannedTensor) -> bool {
    tensor.dtype.is_plain() && tensor.expr.raw_dtype() == Some(tensor.dtype)
}

/// Transposes both tensors if that makes rows cheaper to read. Each row of a transposed quantized matrix needs the
/// whole matrix decoded, while columns of a plain tensor can be read alone, so the plain one is transposed instead.
fn along_rows(a: &PlannedTensor, b: &PlannedTensor) -> (PlannedTensor, PlannedTensor) {
    let is_plain = |t: &PlannedTensor| matches!(t.expr, Expr::Take(_)) && is_bytes(t);
    let transposed = |t: &PlannedTensor, expr: Expr| {
        let shape = expr.shape();
        PlannedTensor { name: t.name.clone(), dtype: DType::F32, shape, expr }
    };
    let turned = |t: &PlannedTensor| transposed(t, Expr::Transpose(Box::new(t.expr.clone())));
    // Only if the transposed tensor's type is F32, so that it isn't rounded.
    let straight = |t: &PlannedTensor| match &t.expr {
        Expr::Transpose(of) if t.dtype == DType::F32 && of.raw_dtype().is_some_and(|dtype| !dtype.is_plain()) => {
            Some(transposed(t, (**of).clone()))
        }
        _ => None,
    };
    match (straight(a), straight(b)) {
        (None, Some(b)) if is_plain(a) => (turned(a), b),
        (Some(a), None) if is_plain(b) => (a, turned(b)),
        _ => (a.clone(), b.clone()),
    }
}

/// Sums over elements.
#[derive(Debug, Clone, Default, PartialEq)]
struct Sums {
    elements: u64,
    max_difference: f64,
    /// The sum of squared differences.
    differences: f64,
    /// The sum of A's squared values.
    values: f64,
    /// Whether the bits of any value differ.
    differs: bool,
}

impl Sums {
    fn of(a: &[f32], b: &[f32]) -> Self {
        let mut sums = Sums { elements: a.len() as u64, ..Sums::default() };
        for (a, b) in a.iter().zip(b) {
            let (value, difference) = (f64::from(*a), f64::from(*a) - f64::from(*b));
            sums.max_difference = sums.max_difference.max(difference.abs());
            sums.differences += difference * difference;
            sums.values += value * value;
            sums.differs |= a.to_bits() != b.to_bits();
        }
        sums
    }

    fn add(&mut self, other: &Sums) {
        self.elements += other.elements;
        self.max_difference = self.max_difference.max(other.max_difference);
        self.differences += other.differences;
        self.values += other.values;
        self.differs |= other.differs;
    }

    fn relative_error(&self) -> Option<f64> {
        match (self.differences, self.values) {
            (0.0, _) => Some(0.0),
            (_, 0.0) => None,
            (differences, values) => Some((differences / values).sqrt()),
        }
    }

    fn difference(&self) -> Difference {
        Difference {
            elements: self.elements,
            max_difference: self.max_difference,
            rms_difference: (self.differences / self.elements.max(1) as f64).sqrt(),
            relative_error: self.relative_error(),
            identical: !self.differs,
        }
    }
}

#[cfg(test)]
mod tests;
