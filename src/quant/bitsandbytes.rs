//! Rounding to the types in which bitsandbytes keeps weights, with the bits of its version 0.50 on a CPU.
//!
//! A block of values is divided by its largest magnitude, and each quotient becomes the nearest of sixteen levels. The
//! magnitudes themselves can be rounded to 8 bits.
//!
//! Reference: bitsandbytes `backends/default/ops.py` (`quantize_4bit`, `int8_vectorwise_quant`), `functional.py`
//! (`create_dynamic_map`).

use std::sync::LazyLock;

/// The values of a block.
pub(crate) const BLOCK: usize = 64;

/// The magnitudes of blocks that share a magnitude of their own.
const NESTED_BLOCK: usize = 256;

/// A magnitude below this isn't divided by.
const LEAST: f32 = 1e-38;

/// The largest magnitude of an 8-bit value, and the factor that undoes the multiplication by it.
const INT8: f32 = 127.0;
const INT8_SHARE: f32 = 7.874_015_718_698_502e-3_f64 as f32;

/// Sixteen levels, in ascending order.
type Levels = [f32; 16];

/// The quantiles of the normal distribution (NF4).
const NF4: Levels = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Floats of one sign, two exponent and one mantissa bit, in twelfths (FP4). Small positive values get the negative
/// zero.
const FP4: [f32; 16] = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -0.0625, 0.0, -0.0, 0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

/// A 4-bit type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FourBits {
    /// NF4.
    Nf4,
    /// FP4.
    Fp4,
}

impl FourBits {
    /// The levels, and the values between them from which the next one is nearer.
    fn levels(self) -> &'static (Levels, [f32; 15]) {
        static ALL: LazyLock<[(Levels, [f32; 15]); 2]> = LazyLock::new(|| {
            [NF4, FP4.map(|twelfths| twelfths / 12.0)]
                .map(|levels| (levels, std::array::from_fn(|at| (levels[at] + levels[at + 1]) / 2.0)))
        });
        &ALL[usize::from(self == FourBits::Fp4)]
    }

    /// Rounds a block of at most [`BLOCK`] values; `scale` replaces its largest magnitude in the result.
    pub(crate) fn round(self, block: &mut [f32], scale: Option<f32>) {
        let (levels, bounds) = self.levels();
        let magnitude = magnitude(block);
        let scale = scale.unwrap_or(magnitude);
        let (divisor, inverse) = (magnitude.max(LEAST), 1.0 / magnitude.max(LEAST));
        // The last block of a tensor may be shorter: there, the library divides.
        let is_whole = block.len() == BLOCK;
        for value in block {
            let share = if is_whole { *value * inverse } else { *value / divisor }.clamp(-1.0, 1.0);
            *value = levels[bounds.partition_point(|bound| *bound < share)] * scale;
        }
    }
}

/// The largest magnitude of a block, which the library stores as its scale.
pub(crate) fn magnitude(block: &[f32]) -> f32 {
    let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    if block.len() == BLOCK { largest } else { largest.max(LEAST) }
}

/// Rounds a row to 8-bit whole numbers of the row's largest magnitude.
pub(crate) fn round_to_int8(row: &mut [f32]) {
    let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    // torch divides a number by a tensor with the tensor's reciprocal.
    let factor = (1.0 / largest) * INT8;
    // A row of zeros has no factor, and stays.
    for value in row.iter_mut().filter(|_| largest > 0.0) {
        // A whole number has no negative zero.
        let code = (*value * factor).round_ties_even() + 0.0;
        *value = code * largest * INT8_SHARE;
    }
}

/// Magnitudes of blocks that are rounded themselves (double quantization).
#[derive(Debug, Clone)]
pub(crate) struct NestedScales {
    /// The mean of all magnitudes.
    offset: f32,
    /// For every run of magnitudes, the largest distance from the mean.
    largest: Vec<f32>,
}

impl NestedScales {
    /// The scales for blocks of these magnitudes; `mean` is their mean.
    pub(crate) fn new(magnitudes: &[f32], mean: f32) -> Self {
        let distance = |run: &[f32]| run.iter().fold(0f32, |largest, magnitude| largest.max((magnitude - mean).abs()));
        Self { offset: mean, largest: magnitudes.chunks(NESTED_BLOCK).map(distance).collect() }
    }

    /// The rounded magnitude of block number `block`, whose exact one is `magnitude`.
    pub(crate) fn of(&self, block: usize, magnitude: f32) -> f32 {
        let largest = self.largest.get(block / NESTED_BLOCK).copied().unwrap_or_default();
        // If all are the mean, nothing is left to round.
        if largest == 0.0 {
            return self.offset;
        }
        nearest((magnitude - self.offset) * (1.0 / largest)) * largest + self.offset
    }
}

/// The nearest value of the 8-bit map, of which the library keeps a table over a grid of 65536 places.
fn nearest(share: f32) -> f32 {
    const STEPS: f32 = 32767.5;
    let (map, bounds) = &*DYNAMIC;
    let place = ((share + 1.0) * STEPS + 0.5).floor().clamp(0.0, 65535.0);
    let on_grid = place / STEPS - 1.0;
    map[bounds.partition_point(|bound| *bound < on_grid)]
}

/// The values of bitsandbytes' 8-bit type, in ascending order, and those between them: for each power of ten, twice as
/// many steps of a line from 0.1 to 1 as for the smaller one.
static DYNAMIC: LazyLock<(Vec<f32>, Vec<f32>)> = LazyLock::new(|| {
    let mut map = vec![0.0, 1.0];
    for power in 0..7 {
        let line = line(1 << power);
        let factor = 10f64.powi(power - 6) as f32;
        for pair in line.windows(2) {
            let mean = factor * ((pair[0] + pair[1]) / 2.0);
            map.extend([mean, -mean]);
        }
    }
    map.sort_by(f32::total_cmp);
    let bounds = map.windows(2).map(|pair| (pair[0] + pair[1]) / 2.0).collect();
    (map, bounds)
});

/// `torch.linspace(0.1, 1, steps + 1)`: from either end up to the middle, with one rounding.
fn line(steps: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1f32);
    let step = (end - start) / steps as f32;
    let half = steps.div_ceil(2);
    let value = |at: usize| match at < half {
        true => step.mul_add(at as f32, start),
        false => (-step).mul_add((steps - at) as f32, end),
    };
    (0..=steps).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What bitsandbytes 0.50.2 makes of these numbers with torch 2.15.
    #[test]
    fn blocks_have_the_bits_of_bitsandbytes() {
        let values: Vec<f32> = (0..72).map(|i| ((i * 37 % 71) as f32 - 35.0) / 512.0).collect();
        let rounded = |kind: FourBits| {
            let mut values = values.clone();
            values.chunks_mut(BLOCK).for_each(|block| kind.round(block, None));
            values.iter().map(|value| value.to_bits()).fold(0u32, |sum, bits| sum.rotate_left(1) ^ bits)
        };
        assert_eq!((rounded(FourBits::Nf4), rounded(FourBits::Fp4)), (0x0aab_3072, 0x7de7_515d));
    }

    #[test]
    fn the_8_bit_map_has_the_values_of_bitsandbytes() {
        let (map, _) = &*DYNAMIC;
        assert_eq!(map.len(), 256);
        for (at, value) in [(0, -0.992_968_74f32), (26, -0.627_343_8), (98, -0.008_593_75), (211, 0.388_281_23)] {
            assert_eq!(map[at], value, "{at}");
        }
        // Near the middle between two values, the grid decides.
        assert_eq!((nearest(-0.634_378_2), nearest(0.003_814_598_5)), (map[26], map[147]));
    }

    #[test]
    fn a_row_of_zeros_stays() {
        let mut row = [0.0, 0.0];
        round_to_int8(&mut row);
        assert_eq!(row, [0.0, 0.0]);
        let mut row = [0.5, -1.0, 0.25];
        round_to_int8(&mut row);
        assert_eq!(row, [64.0 * INT8_SHARE, -127.0 * INT8_SHARE, 32.0 * INT8_SHARE]);
        // Halves, which the reciprocal moves to either side.
        for (largest, value, code) in [(0.296_875f32, 0.148_437_5f32, 64.0), (0.376_953_13, -0.188_476_56, -63.0)] {
            let mut row = [largest, value];
            round_to_int8(&mut row);
            assert_eq!(row[1], code * largest * INT8_SHARE);
        }
    }
}
