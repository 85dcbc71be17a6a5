//! The type that a method computes in.
//!
//! torch rounds the result of every operation to the type of its operands, and mergekit computes in the models' type
//! unless its configuration says `dtype: float32`.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::DType;
use crate::plan::Expr;

/// The type to which every intermediate result is rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Working {
    /// Values of f32 are not rounded midway.
    #[default]
    F32,
    /// Every result is rounded to f16.
    F16,
    /// Every result is rounded to bf16.
    BF16,
}

/// Values that are rounded at a time.
const RUN: usize = 256;

impl Working {
    /// The type in which torch combines tensors of these types: that of them that holds all their values.
    pub fn of(dtypes: impl IntoIterator<Item = DType>) -> Self {
        let of_one = |dtype| match dtype {
            DType::F16 => Self::F16,
            DType::BF16 => Self::BF16,
            _ => Self::F32,
        };
        let promoted = |one: Self, other: Self| if one == other { one } else { Self::F32 };
        dtypes.into_iter().map(of_one).reduce(promoted).unwrap_or_default()
    }

    /// The type of tensors with such values.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }

    /// A number, rounded.
    pub(crate) fn round(self, value: f32) -> f32 {
        match self {
            Self::F32 => value,
            Self::F16 => f16::from_f32(value).to_f32(),
            Self::BF16 => bf16::from_f32(value).to_f32(),
        }
    }

    /// Rounds every value.
    pub(super) fn round_all(self, values: &mut [f32]) {
        match self {
            Self::F32 => {}
            Self::BF16 => values.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32()),
            Self::F16 => {
                let mut halves = [f16::ZERO; RUN];
                for values in values.chunks_mut(RUN) {
                    let halves = &mut halves[..values.len()];
                    halves.convert_from_f32_slice(values);
                    halves.convert_to_f32_slice(values);
                }
            }
        }
    }

    /// The values of an expression, rounded.
    pub(super) fn rounded(self, of: Expr) -> Expr {
        match self {
            Self::F32 => of,
            _ => Expr::Round { of: Box::new(of), dtype: self.dtype() },
        }
    }

    /// The type in which mergekit draws masks and rescales what they keep: torch has no random numbers of f16.
    pub(super) fn of_random_masks(self) -> Self {
        if self == Self::F16 { Self::F32 } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promoted_type_holds_the_values_of_all() {
        assert_eq!(Working::of([DType::BF16, DType::BF16]), Working::BF16);
        assert_eq!(Working::of([DType::F16, DType::BF16]), Working::F32);
        assert_eq!(Working::of([DType::F16, DType::F32]), Working::F32);
        assert_eq!(Working::of([]), Working::F32);
    }

    #[test]
    fn values_are_rounded_to_the_nearest_even() {
        let mut values = [1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 2049.0f32, -0.0];
        Working::BF16.round_all(&mut values);
        assert_eq!(values.map(f32::to_bits), [1.0f32, 1.015625, 2048.0, -0.0].map(f32::to_bits));
        let mut values = [2049.0f32, 2051.0];
        Working::F16.round_all(&mut values);
        assert_eq!(values, [2048.0, 2052.0]);
        assert_eq!(Working::F32.round(2049.0), 2049.0);
    }
}
