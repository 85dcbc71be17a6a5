//! Normally distributed numbers as torch draws them on the CPU.
//!
//! torch.randn of a float32 tensor first draws a uniform number for every element. Every 16 of them become 16 normal
//! numbers by Box and Muller's method: the first eight give radii, the others angles. If the number of elements isn't a
//! multiple of 16, the last 16 elements are drawn once more, from 16 further words. Logarithm, sine and cosine are
//! Cephes' polynomials with fused multiply-adds, as torch's AVX2 kernel has them.
//!
//! torch draws fewer than 16 elements in another way, and the end of a tensor of a 16-bit type whose elements aren't a
//! multiple of 16; those numbers differ.
//!
//! Reference: pytorch `aten/src/ATen/native/cpu/DistributionTemplates.h` (`normal_fill_AVX2`), `avx_mathfun.h`; measured
//! on torch 2.15.

use std::sync::Arc;

use super::mt19937::Stream;

/// The numbers that are made together.
const GROUP: usize = 16;

/// A tensor of normally distributed numbers within a sequence of draws.
#[derive(Debug, Clone)]
pub(crate) struct Normals {
    stream: Arc<Stream>,
    /// The number of draws before the tensor's first.
    position: u64,
    /// The number of its elements.
    count: u64,
}

impl Normals {
    /// `count` numbers that are drawn after `position` words of `stream`.
    pub(crate) fn new(stream: &Arc<Stream>, position: u64, count: u64) -> Self {
        Self { stream: stream.clone(), position, count }
    }

    /// How many words `count` numbers take.
    pub(crate) fn words(count: u64) -> u64 {
        count + if count.is_multiple_of(GROUP as u64) { 0 } else { GROUP as u64 }
    }

    /// The numbers from element `start` on.
    pub(crate) fn fill(&self, start: u64, out: &mut [f32]) {
        let (group, end) = (GROUP as u64, start + out.len() as u64);
        let put = |numbers: &[f32; GROUP], first: u64, out: &mut [f32]| {
            for (place, number) in (first..).zip(numbers).filter(|(place, _)| (start..end).contains(place)) {
                out[(place - start) as usize] = *number;
            }
        };
        let mut first = start / group * group;
        let mut generator = self.stream.at(self.position + first);
        let mut numbers = [0.0; GROUP];
        while first < end {
            generator.fill(&mut numbers);
            box_muller(&mut numbers);
            put(&numbers, first, out);
            first += group;
        }
        let last = self.count.saturating_sub(group);
        if !self.count.is_multiple_of(group) && end > last {
            self.stream.at(self.position + self.count).fill(&mut numbers);
            box_muller(&mut numbers);
            put(&numbers, last, out);
        }
    }
}

/// Turns uniform numbers into normal ones.
fn box_muller(numbers: &mut [f32; GROUP]) {
    const TURN: f32 = std::f32::consts::TAU;
    let (radii, angles) = numbers.split_at_mut(GROUP / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        let radius = (-2.0 * logarithm(1.0 - *first)).sqrt();
        let (sine, cosine) = sine_and_cosine(TURN * *second);
        (*first, *second) = (radius * cosine, radius * sine);
    }
}

/// A polynomial by Horner's rule, with fused multiply-adds.
fn polynomial(x: f32, factors: &[f32]) -> f32 {
    factors[1..].iter().fold(factors[0], |sum, factor| sum.mul_add(x, *factor))
}

/// The natural logarithm of a positive number.
fn logarithm(x: f32) -> f32 {
    const FACTORS: [f32; 9] = [
        7.037_683_6e-2,
        -1.151_461e-1,
        1.167_699_9e-1,
        -1.242_014_1e-1,
        1.424_932_3e-1,
        -1.666_805_8e-1,
        2.000_071_5e-1,
        -2.499_999_4e-1,
        3.333_333e-1,
    ];
    // ln 2 in two parts, the second of which has few bits.
    const SMALL: f32 = -2.121_944_4e-4;
    const LARGE: f32 = 0.693_359_4;
    // x is 2^exponent times a fraction from the root of a half to the root of 2, of which 1 is taken away.
    let mut exponent = ((x.to_bits() >> 23) as i32 - 126) as f32;
    let fraction = f32::from_bits(x.to_bits() & !0x7f80_0000 | 0.5f32.to_bits());
    let mut rest = fraction - 1.0;
    if fraction < std::f32::consts::FRAC_1_SQRT_2 {
        exponent -= 1.0;
        rest += fraction;
    }
    let square = rest * rest;
    let sum = polynomial(rest, &FACTORS) * rest;
    let sum = sum.mul_add(square, exponent * SMALL);
    let sum = square.mul_add(-0.5, sum);
    exponent.mul_add(LARGE, rest + sum)
}

/// Sine and cosine of an angle that isn't negative.
fn sine_and_cosine(x: f32) -> (f32, f32) {
    const SINE: [f32; 3] = [-1.951_529_6e-4, 8.332_161e-3, -1.666_665_5e-1];
    const COSINE: [f32; 3] = [2.443_315_7e-5, -1.388_731_6e-3, 4.166_664_6e-2];
    // A quarter of pi in three parts.
    const QUARTER: [f32; 3] = [-0.785_156_25, -2.418_756_5e-4, -3.774_895e-8];
    let octant = ((x * 1.273_239_6) as i32 + 1) & !1;
    let steps = octant as f32;
    let rest = QUARTER.iter().fold(x, |rest, part| steps.mul_add(*part, rest));
    let square = rest * rest;
    let cosine = (polynomial(square, &COSINE) * square).mul_add(square, -(square * 0.5)) + 1.0;
    let sine = (polynomial(square, &SINE) * square).mul_add(rest, rest);
    let (sine, cosine) = if octant & 2 == 0 { (sine, cosine) } else { (cosine, sine) };
    let signed = |value: f32, is_negative: bool| if is_negative { -value } else { value };
    (signed(sine, octant & 4 != 0), signed(cosine, (octant - 2) & 4 == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normals(seed: u64, position: u64, count: u64) -> Normals {
        let words = position + Normals::words(count);
        Normals::new(&Arc::new(Stream::new(seed, words)), position, count)
    }

    #[test]
    fn numbers_are_those_of_torch() {
        // torch.manual_seed(SEED); torch.randn(COUNT), as bits.
        for (seed, count, first, last) in TORCH {
            let mut numbers = vec![0.0; count];
            normals(seed, 0, count as u64).fill(0, &mut numbers);
            assert_eq!(numbers[..4].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), first, "{seed}, {count}");
            assert_eq!(numbers[count - 4..].iter().map(|v| v.to_bits()).collect::<Vec<_>>(), last, "{seed}, {count}");
        }
    }

    #[test]
    fn any_range_can_be_drawn_alone() {
        for count in [16, 40, 1000] {
            let normals = normals(9, 7, count);
            let mut all = vec![0.0; count as usize];
            normals.fill(0, &mut all);
            for start in [0, 1, 13, count as usize - 9] {
                for end in [start + 1, start + 9, count as usize] {
                    let mut some = vec![0.0; end.min(count as usize) - start];
                    normals.fill(start as u64, &mut some);
                    assert_eq!(some, all[start..end.min(count as usize)], "{count}: {start}..{end}");
                }
            }
        }
    }

    /// Seed, count, and the first and the last four numbers.
    const TORCH: [(u64, usize, [u32; 4], [u32; 4]); 4] = [
        (
            7,
            16,
            [0xbf51_f456, 0x3eca_902b, 0x3f66_1ede, 0xbfb1_b738],
            [0x3f35_62d1, 0x3f81_a1f8, 0x3e6b_ed28, 0x3f8b_8a88],
        ),
        (
            7,
            40,
            [0xbf51_f456, 0x3eca_902b, 0x3f66_1ede, 0xbfb1_b738],
            [0xbdce_4dcb, 0x3e72_b3f4, 0x3f21_f774, 0xbdbb_c13d],
        ),
        (
            5489,
            10007,
            [0x3f77_cd64, 0x3f95_e8a2, 0x4002_3688, 0x3fb8_47c0],
            [0x3ee3_11c9, 0xbf05_5a6e, 0xbf80_9584, 0xbfa2_1b77],
        ),
        (
            1234567890123,
            65536,
            [0xbf11_8bf0, 0xbe4b_ff8d, 0x3f85_1e36, 0xbeff_c6bc],
            [0x3f37_a696, 0x3e27_eb5f, 0x3f60_fae4, 0xbd80_eb7c],
        ),
    ];
}
