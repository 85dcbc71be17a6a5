//! The types in which plans compute: f32, and f64 for outputs of F64, as torch does.

use std::cell::RefCell;
use std::ops::{Add, AddAssign, Div, Mul, MulAssign, Sub};
use std::thread::LocalKey;

use super::RowMap;
use crate::dtype::DType;
use crate::quant;

/// A type in which expressions are evaluated.
pub(crate) trait Number:
    Copy
    + Default
    + From<f32>
    + PartialOrd
    + Send
    + Sync
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + AddAssign
    + MulAssign
    + 'static
{
    /// Values in 32 bytes: the lanes of torch's norms.
    const LANES: usize;

    /// The longest run of an inner dimension of `k` that MKL sums in one go.
    fn run_len(k: usize) -> usize;

    /// How many leading rows and columns of a product `[rows, cols]` MKL sums with fused multiply-adds.
    fn fused(rows: usize, cols: usize) -> (usize, usize);

    /// The same of a convolution with one tap, where the columns are the taps of all inputs.
    fn fused_convolution(rows: usize, cols: usize) -> (usize, usize);

    /// `value`, rounded to nearest even.
    fn of(value: f64) -> Self;

    /// `self * factor + summand` with one rounding.
    fn mul_add(self, factor: Self, summand: Self) -> Self;

    /// The square root.
    fn sqrt(self) -> Self;

    /// Whether it is neither a NaN nor an infinity.
    fn is_finite(self) -> bool;

    /// Lets `fill` write values of f32, which are then put into `out` as they are.
    fn fill(out: &mut [Self], fill: impl FnOnce(&mut [f32]));

    /// Decodes the little-endian `bytes` of `out.len()` elements.
    fn decode(dtype: DType, bytes: &[u8], out: &mut [Self]);

    /// Encodes `values`, each rounded once. f64 is written as F64 alone.
    fn encode(dtype: DType, values: &[Self], out: &mut [u8]);

    /// Those of two slices whose values are of this type.
    fn either<'a>(narrow: &'a [f32], wide: &'a [f64]) -> &'a [Self];

    /// The form of `map` that computes in this type.
    fn form(map: &dyn RowMap) -> Option<&dyn RowMap<Self>>;

    /// The buffers that this thread keeps.
    fn kept() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>>;
}

impl Number for f32 {
    const LANES: usize = 8;

    fn run_len(k: usize) -> usize {
        super::product::run_len(k)
    }

    fn fused(rows: usize, cols: usize) -> (usize, usize) {
        if super::product::is_fused(rows, cols) { (rows, cols) } else { (0, 0) }
    }

    fn fused_convolution(rows: usize, cols: usize) -> (usize, usize) {
        (rows, cols)
    }

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        f32::mul_add(self, factor, summand)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }

    fn fill(out: &mut [Self], fill: impl FnOnce(&mut [f32])) {
        fill(out);
    }

    fn decode(dtype: DType, bytes: &[u8], out: &mut [Self]) {
        quant::decode(dtype, bytes, out);
    }

    fn encode(dtype: DType, values: &[Self], out: &mut [u8]) {
        quant::encode(dtype, values, out);
    }

    fn either<'a>(narrow: &'a [f32], _: &'a [f64]) -> &'a [Self] {
        narrow
    }

    fn form(map: &dyn RowMap) -> Option<&dyn RowMap> {
        Some(map)
    }

    fn kept() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>> {
        thread_local!(static KEPT: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) });
        &KEPT
    }
}

impl Number for f64 {
    const LANES: usize = 4;

    fn run_len(k: usize) -> usize {
        k.max(1)
    }

    fn fused(rows: usize, cols: usize) -> (usize, usize) {
        (rows / 4 * 4, cols / 12 * 12)
    }

    fn fused_convolution(_: usize, _: usize) -> (usize, usize) {
        (0, 0)
    }

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        f64::mul_add(self, factor, summand)
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    #[inline(always)]
    fn is_finite(self) -> bool {
        f64::is_finite(self)
    }

    fn fill(out: &mut [Self], fill: impl FnOnce(&mut [f32])) {
        let mut values = super::scratch::take(out.len());
        fill(&mut values);
        out.iter_mut().zip(&values).for_each(|(out, value)| *out = f64::from(*value));
        super::scratch::give_back(values);
    }

    fn decode(dtype: DType, bytes: &[u8], out: &mut [Self]) {
        match dtype {
            DType::F64 => {
                assert_eq!(bytes.len(), 8 * out.len(), "lengths of {dtype}");
                let bytes = bytes.as_chunks::<8>().0;
                out.iter_mut().zip(bytes).for_each(|(out, bytes)| *out = f64::from_le_bytes(*bytes));
            }
            // Values of all other types are values of f32.
            _ => Self::fill(out, |values| quant::decode(dtype, bytes, values)),
        }
    }

    fn encode(dtype: DType, values: &[Self], out: &mut [u8]) {
        assert!(dtype == DType::F64 && out.len() == 8 * values.len(), "plans compute nothing but F64 in f64");
        let out = out.as_chunks_mut::<8>().0;
        out.iter_mut().zip(values).for_each(|(out, value)| *out = value.to_le_bytes());
    }

    fn either<'a>(_: &'a [f32], wide: &'a [f64]) -> &'a [Self] {
        wide
    }

    fn form(map: &dyn RowMap) -> Option<&dyn RowMap<f64>> {
        map.in_f64()
    }

    fn kept() -> &'static LocalKey<RefCell<Vec<Vec<Self>>>> {
        thread_local!(static KEPT: RefCell<Vec<Vec<f64>>> = const { RefCell::new(Vec::new()) });
        &KEPT
    }
}
