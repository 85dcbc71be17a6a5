//! The operations without vector instructions of its own: loops over arrays.

use std::array::from_fn;

use half::{bf16, f16};

use super::lanes::{Lanes, PLACES, sum_of_8};

/// Any processor.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

type Floats = [f32; 16];
type Words = [u32; 16];

/// Rotates, so that one operation shifts in both directions.
fn turned(word: u32, by: i32) -> u32 {
    word.rotate_left(by.rem_euclid(32) as u32)
}

impl Lanes for Scalar {
    type Floats = Floats;
    type Words = Words;

    #[inline(always)]
    fn run<F: pulp::NullaryFnOnce>(self, routine: F) -> F::Output {
        routine.call()
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        [value; 16]
    }

    #[inline(always)]
    fn halves(self, low: Floats, high: Floats) -> Floats {
        from_fn(|i| if i < 8 { low[i] } else { high[i] })
    }

    #[inline(always)]
    fn load(self, values: &[f32; 16]) -> Floats {
        *values
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sum(self, values: Floats) -> f32 {
        let halves = values.as_chunks::<8>().0;
        sum_of_8(from_fn(|i| halves[0][i] + halves[1][i]))
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        from_fn(|i| a[i] * b[i])
    }

    /// Not `f32::mul_add`, which is a call of the C library where the processor is not known to have the instruction.
    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn add_where(self, bits: u16, value: f32, to: Floats) -> Floats {
        from_fn(|i| to[i] + if bits >> i & 1 == 1 { value } else { 0.0 })
    }

    #[inline(always)]
    fn two_of(self, values: Floats, pair: usize) -> Floats {
        from_fn(|i| values[2 * pair + i / 8])
    }

    #[inline(always)]
    fn four_of(self, values: Floats, quarter: usize) -> Floats {
        from_fn(|i| values[4 * quarter + i / 4])
    }

    #[inline(always)]
    fn half(self, bytes: &[u8; 2]) -> Floats {
        [f16::from_le_bytes(*bytes).to_f32(); 16]
    }

    #[inline(always)]
    fn singles(self, bytes: &[u8; 64]) -> Floats {
        let words = bytes.as_chunks::<4>().0;
        from_fn(|i| f32::from_le_bytes(words[i]))
    }

    #[inline(always)]
    fn halfs(self, bytes: &[u8; 32]) -> Floats {
        from_fn(|i| f16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn brains(self, bytes: &[u8; 32]) -> Floats {
        from_fn(|i| bf16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]).to_f32())
    }

    #[inline(always)]
    fn unsigned(self, bytes: &[u8; 16]) -> Floats {
        bytes.map(f32::from)
    }

    #[inline(always)]
    fn signed(self, bytes: &[u8; 16]) -> Floats {
        bytes.map(|byte| f32::from(byte as i8))
    }

    #[inline(always)]
    fn nibbles(self, bytes: &[u8; 16]) -> [Floats; 2] {
        [bytes.map(|byte| f32::from(byte & 15)), bytes.map(|byte| f32::from(byte >> 4))]
    }

    #[inline(always)]
    fn looked_up(self, bytes: &[u8; 16], values: &[i8; 16]) -> [Floats; 2] {
        let value = |nibble: u8| f32::from(values[usize::from(nibble)]);
        [bytes.map(|byte| value(byte & 15)), bytes.map(|byte| value(byte >> 4))]
    }

    #[inline(always)]
    fn words(self, bytes: &[u8; 64]) -> Words {
        let words = bytes.as_chunks::<4>().0;
        from_fn(|i| u32::from_le_bytes(words[i]))
    }

    #[inline(always)]
    fn twice(self, bytes: &[u8; 32]) -> Words {
        let words = bytes.as_chunks::<4>().0;
        from_fn(|i| u32::from_le_bytes(words[i % 8]))
    }

    #[inline(always)]
    fn quarters_twice(self, bytes: &[u8; 32]) -> Words {
        let words = bytes.as_chunks::<4>().0;
        from_fn(|i| u32::from_le_bytes(words[i / 8 * 4 + i % 4]))
    }

    #[inline(always)]
    fn or(self, a: Words, b: Words) -> Words {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn and(self, a: Words, low: u8, high: u8) -> Words {
        from_fn(|i| a[i] & u32::from_le_bytes([if i < 8 { low } else { high }; 4]))
    }

    #[inline(always)]
    fn shift(self, a: Words, low: i32, high: i32) -> Words {
        from_fn(|i| turned(a[i], if i < 8 { low } else { high }))
    }

    #[inline(always)]
    fn shift_quarters(self, a: Words, even: i32, odd: i32) -> Words {
        from_fn(|i| turned(a[i], if i % 8 < 4 { even } else { odd }))
    }

    #[inline(always)]
    fn values_of(self, a: Words, values: &[u8; 16]) -> Words {
        a.map(|word| u32::from_le_bytes(word.to_le_bytes().map(|byte| values[usize::from(byte & 15)])))
    }

    #[inline(always)]
    fn bytes(self, a: Words) -> [Floats; 4] {
        from_fn(|place| a.map(|word| f32::from((word >> (8 * place)) as u8) * PLACES[place]))
    }
}
