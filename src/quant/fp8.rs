//! Eight-bit floats: a table has the value of every byte.
//!
//! Reference: the OCP formats E4M3 and E5M2 (torch's `float8_e4m3fn`, `float8_e5m2`), their variants without a
//! negative zero (`fnuz`), and the scales of MX formats, E8M0.

use crate::dtype::DType;

/// The value of each byte.
type Table = [f32; 256];

static E4M3: Table = table(3, 7, Odd::E4M3);
static E5M2: Table = table(2, 15, Odd::Ieee);
static E4M3FNUZ: Table = table(3, 8, Odd::Fnuz);
static E5M2FNUZ: Table = table(2, 16, Odd::Fnuz);
static E8M0: Table = powers();

/// Which bytes aren't numbers.
#[derive(Clone, Copy)]
enum Odd {
    /// All bits one except the sign: NaN. There is no infinity.
    E4M3,
    /// All exponent bits one: infinity or NaN.
    Ieee,
    /// Negative zero: NaN.
    Fnuz,
}

/// The values of `dtype`, if it is an eight-bit float.
pub(super) fn table_of(dtype: DType) -> Option<&'static Table> {
    match dtype {
        DType::F8_E4M3 => Some(&E4M3),
        DType::F8_E5M2 => Some(&E5M2),
        DType::F8_E4M3FNUZ => Some(&E4M3FNUZ),
        DType::F8_E5M2FNUZ => Some(&E5M2FNUZ),
        DType::F8_E8M0 => Some(&E8M0),
        _ => None,
    }
}

/// Makes a table from sign, exponent, and `mantissa` bits.
const fn table(mantissa: u32, bias: u32, odd: Odd) -> Table {
    let mut values = [0.0; 256];
    let mut byte = 0;
    while byte < 256 {
        let bits = byte as u32;
        let (sign, exponent) = (bits >> 7 << 31, (bits & 0x7f) >> mantissa);
        let fraction = bits & ((1 << mantissa) - 1);
        let magnitude = match exponent {
            0 => fraction as f32 * f32::from_bits((128 - bias - mantissa) << 23),
            _ => f32::from_bits((exponent + 127 - bias) << 23 | fraction << (23 - mantissa)),
        };
        values[byte] = match odd {
            Odd::E4M3 if bits & 0x7f == 0x7f => f32::NAN,
            Odd::Fnuz if bits == 0x80 => f32::NAN,
            Odd::Ieee if exponent == 31 && fraction > 0 => f32::NAN,
            Odd::Ieee if exponent == 31 => f32::from_bits(0x7f80_0000 | sign),
            _ => f32::from_bits(magnitude.to_bits() | sign),
        };
        byte += 1;
    }
    values
}

/// Makes the table of E8M0: powers of two, with 255 for NaN.
const fn powers() -> Table {
    let mut values = [f32::NAN; 256];
    // The smallest is subnormal in f32.
    values[0] = f32::from_bits(0x0040_0000);
    let mut byte = 1;
    while byte < 255 {
        values[byte] = f32::from_bits((byte as u32) << 23);
        byte += 1;
    }
    values
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn values_are_those_of_the_formats() {
        for byte in 0..=255u8 {
            // E5M2 is the upper half of an F16.
            let half = f16::from_bits(u16::from(byte) << 8).to_f32();
            let value = E5M2[usize::from(byte)];
            assert!(value.to_bits() == half.to_bits() || value.is_nan() && half.is_nan(), "{byte:#x}");
        }
        for (byte, value) in [(0x00, 0.0), (0x01, 0.001953125), (0x08, 0.015625), (0x38, 1.0), (0x7e, 448.0)] {
            assert_eq!(E4M3[byte], value, "{byte:#x}");
            assert_eq!(E4M3[byte | 0x80].to_bits(), (-value).to_bits(), "{byte:#x}");
        }
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        for (byte, value) in [(0x01, 0.0009765625), (0x40, 1.0), (0x7f, 240.0)] {
            assert_eq!(E4M3FNUZ[byte], value, "{byte:#x}");
        }
        for (byte, value) in [(0x40, 1.0), (0x7f, 57344.0)] {
            assert_eq!(E5M2FNUZ[byte], value, "{byte:#x}");
        }
        assert!(E4M3FNUZ[0x80].is_nan() && E5M2FNUZ[0x80].is_nan());
        for (byte, exponent) in [(0, -127), (1, -126), (127, 0), (254, 127)] {
            assert_eq!(E8M0[byte], f64::from(exponent).exp2() as f32);
        }
        assert!(E8M0[255].is_nan());
    }
}
