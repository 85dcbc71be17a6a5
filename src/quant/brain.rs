//! BF16: the upper half of an F32, rounded to nearest even.
//!
//! It works on bits only, in the widest vectors available: plain merges and conversions spend much
//! of their time here. NaNs stay NaNs but become quiet, as in torch and the `half` crate.

use crate::kernel::{Kernel, Routine};

const INFINITY: u32 = 0x7f80_0000;
const MAGNITUDE: u32 = 0x7fff_ffff;

/// Decodes little-endian BF16 to f32, exactly.
pub(super) fn decode(bytes: &[u8], out: &mut [f32]) {
    Kernel::in_use().run_wide(Decode { bytes, out });
}

/// Encodes f32 as little-endian BF16.
pub(super) fn encode(values: &[f32], out: &mut [u8]) {
    Kernel::in_use().run_wide(Encode { values, out });
}

struct Decode<'a> {
    bytes: &'a [u8],
    out: &'a mut [f32],
}

impl Routine for Decode<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        for (out, b) in self.out.iter_mut().zip(self.bytes.as_chunks::<2>().0) {
            let bits = u32::from(u16::from_le_bytes(*b)) << 16;
            let quiet = if bits & MAGNITUDE > INFINITY { 0x0040_0000 } else { 0 };
            *out = f32::from_bits(bits | quiet);
        }
    }
}

struct Encode<'a> {
    values: &'a [f32],
    out: &'a mut [u8],
}

impl Routine for Encode<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        for (b, v) in self.out.as_chunks_mut::<2>().0.iter_mut().zip(self.values) {
            let bits = v.to_bits();
            let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
            let nan = bits >> 16 | 0x0040;
            *b = (if bits & MAGNITUDE > INFINITY { nan } else { rounded } as u16).to_le_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn every_value_is_what_the_half_crate_makes_of_it() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut decoded = vec![0.0; 1 << 16];
        decode(&all, &mut decoded);
        for (bits, value) in (0..=u16::MAX).zip(&decoded) {
            assert_eq!(value.to_bits(), bf16::from_bits(bits).to_f32().to_bits(), "{bits:x}");
        }
        // Numbers around every halfway point, and NaNs of all kinds.
        let bits = (0..=u16::MAX).flat_map(|high| {
            [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits(u32::from(high) << 16 | low))
        });
        let values: Vec<f32> = bits.collect();
        let mut encoded = vec![0; 2 * values.len()];
        encode(&values, &mut encoded);
        for (value, b) in values.iter().zip(encoded.as_chunks::<2>().0) {
            assert_eq!(u16::from_le_bytes(*b), bf16::from_f32(*value).to_bits(), "{:x}", value.to_bits());
        }
    }
}
