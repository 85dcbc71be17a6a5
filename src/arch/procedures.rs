//! Procedures of family files (`proc NAME`): what is no expression of the language. They work on a whole tensor in memory,
//! and have no reverse.
//!
//! Reference: llama.cpp `conversion/bailingmoe.py`, `gemma.py` (`ConformerAudioModel`), `kimi_k3.py`, `nemotron.py`.

use std::sync::Arc;

use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, PlannedTensor, RowMap};

/// A procedure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Procedure {
    /// Every value less the mean of all.
    ZeroMean,
    /// Every column divided by its length, as `norm_head` of Bailing has it.
    NormHead,
    /// The first half of the values times the second.
    Product,
    /// Each value plus its place: distances to the tokens of another vocabulary become their ids.
    AbsoluteIds,
    /// A batch norm as a factor: `weight / sqrt(variance + 1e-5)`, of both joined.
    BatchNormWeight,
    /// A batch norm as a summand: `bias - mean * weight / sqrt(variance + 1e-5)`, of bias, mean, weight and variance
    /// joined.
    BatchNormBias,
}

/// The procedures by their names in family files.
const NAMES: &[(&str, Procedure)] = &[
    ("zero_mean", Procedure::ZeroMean),
    ("norm_head", Procedure::NormHead),
    ("product", Procedure::Product),
    ("absolute_ids", Procedure::AbsoluteIds),
    ("batch_norm_weight", Procedure::BatchNormWeight),
    ("batch_norm_bias", Procedure::BatchNormBias),
];

/// What PyTorch adds to a variance.
const EPSILON: f32 = 1e-5;

impl Procedure {
    /// The procedure of this name.
    pub(crate) fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(known, _)| *known == name).map(|(_, procedure)| *procedure)
    }

    /// The shape of the result.
    pub(crate) fn shape(self, of: &[usize]) -> Vec<usize> {
        let parts = match self {
            Procedure::ZeroMean | Procedure::NormHead | Procedure::AbsoluteIds => 1,
            Procedure::Product | Procedure::BatchNormWeight => 2,
            Procedure::BatchNormBias => 4,
        };
        let mut shape = of.to_vec();
        if let Some(first) = shape.first_mut() {
            *first /= parts;
        }
        shape
    }

    /// Whether the result stands for the tensor on the way back: it computes the same.
    pub(crate) fn is_equivalent(self) -> bool {
        matches!(self, Procedure::ZeroMean | Procedure::NormHead)
    }

    /// The result as an expression.
    ///
    /// # Errors
    /// Errors of reading the tensor.
    pub(crate) fn apply(self, of: Expr) -> Result<Expr> {
        let shape = self.shape(&of.shape());
        let whole = PlannedTensor { name: String::new(), dtype: DType::F32, shape: of.shape(), expr: of };
        if self == Procedure::NormHead {
            return norm_head(whole);
        }
        let values = whole.read()?;
        let part = |number: usize, of: usize| {
            let len = values.len() / of;
            &values[number * len..(number + 1) * len]
        };
        let factor = |weight: f32, variance: f32| weight / (variance + EPSILON).sqrt();
        let result: Vec<f32> = match self {
            Procedure::ZeroMean => {
                let mean = values.iter().sum::<f32>() / values.len().max(1) as f32;
                values.iter().map(|value| value - mean).collect()
            }
            Procedure::AbsoluteIds => values.iter().zip(0u32..).map(|(value, place)| value + place as f32).collect(),
            Procedure::Product => part(0, 2).iter().zip(part(1, 2)).map(|(a, b)| a * b).collect(),
            Procedure::BatchNormWeight => part(0, 2).iter().zip(part(1, 2)).map(|(w, v)| factor(*w, *v)).collect(),
            Procedure::BatchNormBias | Procedure::NormHead => (0..part(0, 4).len())
                .map(|i| part(0, 4)[i] - part(1, 4)[i] * factor(part(2, 4)[i], part(3, 4)[i]))
                .collect(),
        };
        Ok(Expr::Values { shape, values: result.into() })
    }
}

/// A square grid of `from * from` vectors, brought to `side * side`: each is made of the four around its place, in
/// proportion, and the corners stay (torch's `interpolate`, bilinear, with `align_corners`), in f32 and with its roundings.
pub(crate) fn grid(of: Expr, from: usize, side: usize) -> Result<Expr> {
    let whole = PlannedTensor { name: String::new(), dtype: DType::F32, shape: of.shape(), expr: of };
    let (values, width) = (whole.read()?, whole.row_len());
    let scale = if side > 1 { (from - 1) as f32 / (side - 1) as f32 } else { 0.0 };
    // For a place: the vectors before and behind it, and the share of the one behind.
    let around = |place: usize| {
        let at = scale * place as f32;
        let before = (at as usize).min(from - 1);
        (before, (before + 1).min(from - 1), at - before as f32)
    };
    let mut result = Vec::with_capacity(side * side * width);
    for (top, bottom, down) in (0..side).map(around) {
        for (left, right, across) in (0..side).map(around) {
            let (up, back) = (1.0 - down, 1.0 - across);
            let shares = [up * back, up * across, down * across, down * back];
            let value = |row: usize, column: usize, k: usize| values[(row * from + column) * width + k];
            result.extend((0..width).map(|k| {
                let last = value(bottom, left, k) * shares[3];
                let sum = value(bottom, right, k).mul_add(shares[2], last);
                let sum = value(top, right, k).mul_add(shares[1], sum);
                value(top, left, k).mul_add(shares[0], sum)
            }));
        }
    }
    Ok(Expr::Values { shape: vec![1, side * side, width], values: result.into() })
}

/// The columns' lengths are computed from a pass over the tensor; the tensor itself isn't kept.
fn norm_head(whole: PlannedTensor) -> Result<Expr> {
    let width = whole.row_len();
    // Summed row by row in f32, as torch does.
    let mut squares = vec![0f32; width];
    let mut values = Vec::new();
    for start in (0..whole.rows()).step_by(256) {
        whole.read_rows_into(start..(start + 256).min(whole.rows()), &mut values)?;
        for row in values.chunks_exact(width.max(1)) {
            squares.iter_mut().zip(row).for_each(|(sum, v)| *sum += v * v);
        }
    }
    let lengths: Vec<f32> = squares.into_iter().map(|sum| sum.sqrt() + 1e-7).collect();
    Ok(Expr::Map { of: vec![whole.expr], map: Arc::new(Columns(lengths.into())) })
}

/// Divides every value by its column's number.
#[derive(Debug)]
struct Columns(Arc<[f32]>);

impl RowMap for Columns {
    fn apply(&self, _: std::ops::Range<usize>, row_len: usize, _: &[Vec<f32>], out: &mut [f32]) {
        for row in out.chunks_exact_mut(row_len.max(1)) {
            row.iter_mut().zip(self.0.iter()).for_each(|(value, length)| *value /= length);
        }
    }
}
