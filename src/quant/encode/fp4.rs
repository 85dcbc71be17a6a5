//! Quantizes to MXFP4 and NVFP4: four-bit floats (E2M1) with scales that are eight-bit floats.
//!
//! ggml doesn't use importance for these types, and their blocks don't depend on where rows end.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_mxfp4_ref`, `quantize_row_nvfp4_ref`,
//! `best_index_mxfp4`; `ggml-impl.h`, `ggml_fp32_to_ue4m3`.

use super::each::{EncodeBlock, each_block, largest_magnitude};
use crate::kernel::Kernel;
use crate::quant::fp4::{DOUBLED, half_of_e8m0, half_of_ue4m3};

/// Encodes one or more rows as MXFP4.
pub(super) fn mxfp4(row: &[f32], out: &mut [u8], kernel: Kernel) {
    each_block(Mxfp4, row, out, kernel);
}

/// Encodes one or more rows as NVFP4.
pub(super) fn nvfp4(row: &[f32], out: &mut [u8], kernel: Kernel) {
    each_block(Nvfp4, row, out, kernel);
}

/// The midpoints of neighbouring magnitudes, which round to the lower one.
const EDGES: [f32; 7] = {
    let mut edges = [0.0; 7];
    let mut i = 0;
    while i < 7 {
        edges[i] = (DOUBLED[i] + DOUBLED[i + 1]) as f32 * 0.5;
        i += 1;
    }
    edges
};

/// The nibbles nearest to `values` for a scale whose half is `unit`. `largest` is the largest magnitude among the
/// values.
#[inline(always)]
fn nibbles<const N: usize>(values: &[f32; N], largest: f32, unit: f32) -> [u8; N] {
    let mut nibbles = [0; N];
    // Below this limit, the distances to different levels are different numbers. Above it, rounding makes some of them
    // equal, and a unit of zero makes all of them equal; then the reference takes the first level.
    if largest < unit * 1e6 {
        for (nibble, value) in nibbles.iter_mut().zip(values) {
            let mut level = 0;
            for edge in EDGES {
                level += u32::from(value.abs() > edge * unit);
            }
            // There is no level for minus zero.
            *nibble = (level | u32::from(*value < 0.0 && level > 0) << 3) as u8;
        }
    } else {
        for (nibble, value) in nibbles.iter_mut().zip(values) {
            *nibble = first_nearest(*value, unit);
        }
    }
    nibbles
}

fn first_nearest(value: f32, unit: f32) -> u8 {
    let distance = |level: u8| (f32::from(DOUBLED[usize::from(level)]) * unit - value).abs();
    (1..16).fold(0, |best, level| if distance(level) < distance(best) { level } else { best })
}

/// Packs nibbles: the first half in the low bits of bytes, the second in the high bits.
#[inline(always)]
fn pack<const N: usize, const BYTES: usize>(nibbles: &[u8; N]) -> [u8; BYTES] {
    let mut out = [0; BYTES];
    for (i, out) in out.iter_mut().enumerate() {
        *out = nibbles[i] | nibbles[BYTES + i] << 4;
    }
    out
}

/// `floorf(log2f(v))`: the exponent of the power of two at or below `v`, except that a magnitude so close to the next
/// power that its logarithm rounds up gets the exponent of that.
#[inline(always)]
fn exponent(v: f32) -> i32 {
    // Scale subnormal numbers up by a power of two, so that they have a fraction of 23 bits.
    let (v, shift) = if v < f32::MIN_POSITIVE { (v * 16_777_216.0, 24) } else { (v, 0) };
    let exponent = (v.to_bits() >> 23) as i32 - 127 - shift;
    let steps_to_next = (1 << 23) - (v.to_bits() & 0x007f_ffff);
    // The larger a logarithm, the coarser is f32 around it. For a logarithm with 8 bits before the point, it rounds up
    // if `v` is at most 88 steps below the power; for fewer bits, correspondingly less.
    let magnitude = (exponent ^ (exponent >> 31)) as u32;
    let rounding_up = 88 >> (magnitude.leading_zeros() - 24);
    exponent + i32::from(steps_to_next <= rounding_up)
}

struct Mxfp4;

impl EncodeBlock<17, 32> for Mxfp4 {
    #[inline(always)]
    fn encode(values: &[f32; 32], out: &mut [u8; 17]) {
        let largest = largest_magnitude(values);
        // The exponent is biased, minus 2 because the largest level is 1.5 * 2^2. The reference keeps the low byte of a
        // negative number.
        let e = if largest > 0.0 { (exponent(largest) - 2 + 127) as u8 } else { 0 };
        out[0] = e;
        out[1..].copy_from_slice(&pack::<_, 16>(&nibbles(values, largest, half_of_e8m0(e))));
    }
}

struct Nvfp4;

/// Unsigned E4M3, rounding halves up. Values from 256 on become 448.
#[inline(always)]
fn ue4m3(v: f32) -> u8 {
    const LARGEST: u32 = 0x7e;
    // The exponent's bias changes from 127 to 7.
    const BIAS: u32 = 120 << 3;
    const LEAST_NORMAL: f32 = 1.0 / 64.0;
    if v < LEAST_NORMAL {
        ((v * 512.0 + 0.5) as u8).min(7)
    } else {
        let rounded = ((v.to_bits() + (1 << 19)) >> 20) - BIAS;
        if rounded < 15 << 3 { rounded as u8 } else { LARGEST as u8 }
    }
}

impl EncodeBlock<36, 64> for Nvfp4 {
    #[inline(always)]
    fn encode(values: &[f32; 64], out: &mut [u8; 36]) {
        let (scales, out) = out.split_at_mut(4);
        let runs = values.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<8>().0);
        for ((values, out), scale) in runs.zip(scales) {
            let largest = largest_magnitude(values);
            *scale = ue4m3(largest / 6.0);
            *out = pack(&nibbles(values, largest, half_of_ue4m3(*scale)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponents_are_those_of_the_rounded_logarithm() {
        let check = |v: f32| {
            // The logarithm in double precision, rounded once.
            assert_eq!(exponent(v), (f64::from(v).log2() as f32).floor() as i32, "{v:e}");
        };
        for power in -149..128 {
            let v = f64::from(power).exp2() as f32;
            (0..100.min(v.to_bits())).for_each(|step| check(f32::from_bits(v.to_bits() - step)));
            (0..1000).for_each(|step| check(f32::from_bits(v.to_bits() + step * 8388)));
        }
        check(f32::MAX);
    }

    #[test]
    fn middles_belong_to_the_lower_magnitude() {
        let values =
            [0.5, 0.500_001, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0, 10.000_001, -0.5, -0.6, -10.0, -16.0, -0.0, 0.0, 12.0];
        let expected = [0, 1, 1, 2, 3, 4, 5, 6, 7, 0, 9, 14, 15, 0, 0, 7];
        assert_eq!(nibbles(&values, 16.0, 1.0), expected);
        assert_eq!(values.map(|value| first_nearest(value, 1.0)), expected);
    }

    #[test]
    fn values_far_above_all_levels_get_the_first() {
        assert_eq!(nibbles(&[1e30, -1e30, 1e9, 3.0], 1e30, 224.0)[..2], [0, 0]);
        assert_eq!(nibbles(&[0.0, 1e-9, -1e-9], 1e-9, 0.0), [0; 3]);
    }

    #[test]
    fn scales_round_halves_up() {
        let cases = [
            (0.0, 0),
            (0.9 / 1024.0, 0),
            (1.0 / 1024.0, 1),
            (7.6 / 512.0, 7),
            (1.0 / 64.0, 8),
            (1.0, 0x38),
            (1.0625, 0x39),
            (1.062_499_9, 0x38),
            (1.9375, 0x40),
            (240.0, 0x77),
            (248.0, 0x7e),
            (256.0, 0x7e),
            (1e38, 0x7e),
        ];
        for (v, scale) in cases {
            assert_eq!(ue4m3(v), scale, "{v}");
        }
    }

    #[test]
    fn kernels_agree_and_zeros_stay() {
        let mut row: Vec<f32> = (0..64 * 9).map(|i| (i * i % 97) as f32 - 48.0).collect();
        row[64..128].fill(0.0);
        let encode = |kernel| {
            let (mut mx, mut nv) = (vec![0xaa; row.len() / 32 * 17], vec![0xaa; row.len() / 64 * 36]);
            mxfp4(&row, &mut mx, kernel);
            nvfp4(&row, &mut nv, kernel);
            (mx, nv)
        };
        let scalar = encode(Kernel::SCALAR);
        assert_eq!(scalar.0[2 * 17..4 * 17], [0; 34]);
        assert_eq!(scalar.1[36..72], [0; 36]);
        assert!(Kernel::NAMES.into_iter().filter_map(Kernel::named).all(|kernel| encode(kernel) == scalar));
    }
}
