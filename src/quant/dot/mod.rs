//! Products of activations with the rows of a stored matrix, without a decoded copy of it: what generation spends its
//! time on.
//!
//! Weights are expanded in registers and multiplied in f32, so that a product differs from that of decoded weights only
//! by the order in which it is summed: by about 1e-6 of the sum of all magnitudes. Activations keep all their bits. The
//! common types have a [`weights::Weights`] each. The others, and rows of odd lengths, are decoded in small pieces.

mod activations;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod decoded;
mod k_quants;
mod lanes;
mod product;
mod scalar;
mod thirty_two;
mod weights;

pub(crate) use activations::Activations;

use super::can_decode;
use crate::dtype::DType;
use crate::kernel::Kernel;
use decoded::Decoded;
use lanes::Lanes;
use product::Product;
use scalar::Scalar;

/// Whether [`multiply_rows`] supports rows of `row_len` elements of `dtype`.
pub(crate) fn can_multiply(dtype: DType, row_len: usize) -> bool {
    can_decode(dtype) && row_len.is_multiple_of(dtype.block_elems())
}

/// Multiplies all rows in `bytes` with all rows of activations. `out` gets, for each row in `bytes`, a value for each
/// row of activations.
///
/// It runs on the calling thread. Callers give each thread some of the rows: the result of one doesn't depend on the
/// others. Other kernels, and other numbers of rows of activations, sum in another order, so their last bits differ.
///
/// # Panics
/// If [`can_multiply`] is false, or the lengths don't fit.
pub(crate) fn multiply_rows(dtype: DType, bytes: &[u8], x: &Activations, out: &mut [f32]) {
    multiply_rows_on(Instructions::of(Kernel::in_use()), dtype, bytes, x, out);
}

/// The instruction sets for which products are compiled.
#[derive(Debug, Clone, Copy)]
enum Instructions {
    Any,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
}

impl Instructions {
    /// The widest ones, unless the kernel is scalar.
    fn of(kernel: Kernel) -> Self {
        match kernel {
            Kernel::SCALAR => Self::Any,
            #[cfg(target_arch = "x86_64")]
            _ => match (avx512::Avx512::try_new(), avx2::Avx2::try_new()) {
                (Some(avx512), _) => Self::Avx512(avx512),
                (None, Some(avx2)) => Self::Avx2(avx2),
                (None, None) => Self::Any,
            },
            #[cfg(not(target_arch = "x86_64"))]
            _ => Self::Any,
        }
    }
}

fn multiply_rows_on(with: Instructions, dtype: DType, bytes: &[u8], x: &Activations, out: &mut [f32]) {
    let (row_len, rows) = (x.row_len() as u64, out.len().checked_div(x.rows()).unwrap_or(0));
    assert!(can_decode(dtype), "{dtype} is not multiplied; callers check can_multiply");
    assert_eq!(rows * x.rows(), out.len(), "a result for each pair of rows");
    let expected = row_len.checked_mul(rows as u64).and_then(|elems| dtype.bytes_of(elems, row_len));
    assert_eq!(expected, Some(bytes.len() as u64), "lengths of {dtype}");
    if row_len == 0 {
        return out.fill(0.0);
    }
    match with {
        Instructions::Any => multiply(Scalar, dtype, bytes, x, out),
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx2(lanes) => multiply(lanes, dtype, bytes, x, out),
        #[cfg(target_arch = "x86_64")]
        Instructions::Avx512(lanes) => multiply(lanes, dtype, bytes, x, out),
    }
}

fn multiply<L: Lanes>(lanes: L, dtype: DType, bytes: &[u8], x: &Activations, out: &mut [f32]) {
    let whole = x.row_len().is_multiple_of(32);
    let product = Product { bytes, x, out };
    match dtype {
        DType::F32 if whole => product.of::<L, thirty_two::F32, _, _, _>(lanes),
        DType::F16 if whole => product.of::<L, thirty_two::F16, _, _, _>(lanes),
        DType::BF16 if whole => product.of::<L, thirty_two::BF16, _, _, _>(lanes),
        DType::Q4_0 => product.of::<L, thirty_two::Q4_0, _, _, _>(lanes),
        DType::Q4_1 => product.of::<L, thirty_two::Q4_1, _, _, _>(lanes),
        DType::Q5_0 => product.of::<L, thirty_two::Q5_0, _, _, _>(lanes),
        DType::Q5_1 => product.of::<L, thirty_two::Q5_1, _, _, _>(lanes),
        DType::Q8_0 => product.of::<L, thirty_two::Q8_0, _, _, _>(lanes),
        DType::IQ4_NL => product.of::<L, thirty_two::IQ4_NL, _, _, _>(lanes),
        DType::MXFP4 => product.of::<L, thirty_two::Mxfp4, _, _, _>(lanes),
        DType::Q2_K => product.of::<L, k_quants::Q2_K, _, _, _>(lanes),
        DType::Q3_K => product.of::<L, k_quants::Q3_K, _, _, _>(lanes),
        DType::Q4_K => product.of::<L, k_quants::Q4_K, _, _, _>(lanes),
        DType::Q5_K => product.of::<L, k_quants::Q5_K, _, _, _>(lanes),
        DType::Q6_K => product.of::<L, k_quants::Q6_K, _, _, _>(lanes),
        DType::IQ4_XS => product.of::<L, k_quants::IQ4_XS, _, _, _>(lanes),
        _ => lanes.run(Decoded { lanes, dtype, bytes, x, out: product.out }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{decode, has_non_finite};

    /// Every type that can be decoded.
    const TYPES: [DType; 36] = {
        use DType::*;
        [
            F32,
            F16,
            BF16,
            F64,
            F8_E4M3,
            F8_E5M2,
            F8_E8M0,
            Q4_0,
            Q4_1,
            Q5_0,
            Q5_1,
            Q8_0,
            Q8_1,
            Q2_K,
            Q3_K,
            Q4_K,
            Q5_K,
            Q6_K,
            Q8_K,
            IQ2_XXS,
            IQ2_XS,
            IQ3_XXS,
            IQ1_S,
            IQ4_NL,
            IQ3_S,
            IQ2_S,
            IQ4_XS,
            IQ1_M,
            TQ1_0,
            TQ2_0,
            MXFP4,
            NVFP4,
            Q1_0,
            Q2_0,
            F8_E4M3FNUZ,
            F8_E5M2FNUZ,
        ]
    };

    /// A sequence of bits that looks random.
    struct Bits(u64);

    impl Bits {
        fn next(&mut self) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0
        }

        /// Between -1 and 1, or a hundred times that.
        fn value(&mut self) -> f32 {
            let value = (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
            if self.next().is_multiple_of(64) { 100.0 * value } else { value }
        }

        /// A block with any bits, if its values are moderate.
        fn block(&mut self, dtype: DType) -> Vec<u8> {
            loop {
                let bytes: Vec<u8> = (0..dtype.block_bytes()).map(|_| (self.next() >> 32) as u8).collect();
                let mut values = vec![0.0; dtype.block_elems()];
                decode(dtype, &bytes, &mut values);
                if !has_non_finite(dtype, &bytes) && values.iter().all(|v| v.abs() < 1e9) {
                    return bytes;
                }
            }
        }
    }

    fn all_instructions() -> Vec<Instructions> {
        let mut all = vec![Instructions::Any];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::Avx2::try_new().map(Instructions::Avx2));
            all.extend(avx512::Avx512::try_new().map(Instructions::Avx512));
        }
        all
    }

    /// Compares a product with decoded weights and sums in f64. Returns the largest error, in parts of the sum of all
    /// magnitudes.
    fn error_of(with: Instructions, dtype: DType, rows: usize, row_len: usize, x_rows: usize, bits: &mut Bits) -> f64 {
        let values: Vec<f32> = (0..x_rows * row_len).map(|_| bits.value()).collect();
        let bytes: Vec<u8> = (0..rows * row_len / dtype.block_elems()).flat_map(|_| bits.block(dtype)).collect();
        let mut weights = vec![0.0; rows * row_len];
        decode(dtype, &bytes, &mut weights);
        let mut out = vec![f32::NAN; rows * x_rows];
        multiply_rows_on(with, dtype, &bytes, &Activations::new(&values, row_len), &mut out);
        let mut worst = 0f64;
        for (weights, out) in weights.chunks_exact(row_len).zip(out.chunks_exact(x_rows)) {
            for (x, out) in values.chunks_exact(row_len).zip(out) {
                let products = || weights.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
                let (sum, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
                let error = (f64::from(*out) - sum).abs();
                assert!(error.is_finite(), "{with:?} {dtype} {row_len}: {out} is not {sum}");
                worst = worst.max(if error == 0.0 { 0.0 } else { error / size });
            }
        }
        worst
    }

    #[test]
    fn products_are_those_of_decoded_weights() {
        let bits = &mut Bits(88_172_645_463_325_252);
        for with in all_instructions() {
            for dtype in TYPES {
                for (rows, blocks, x_rows) in [(1, 1, 1), (3, 2, 1), (2, 3, 2), (5, 1, 3), (1, 8, 4), (2, 5, 7)] {
                    let row_len = blocks * dtype.block_elems().max(32);
                    let error = error_of(with, dtype, rows, row_len, x_rows, bits);
                    assert!(error < 1e-6, "{with:?} {dtype}, {rows} rows of {row_len}, {x_rows}: {error}");
                }
            }
        }
    }

    #[test]
    fn rows_of_plain_numbers_have_any_length() {
        let bits = &mut Bits(362_436_069);
        for with in all_instructions() {
            for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64, DType::F8_E4M3] {
                for (row_len, x_rows) in [(1, 1), (7, 3), (33, 2), (255, 1), (257, 2), (300, 5)] {
                    let error = error_of(with, dtype, 3, row_len, x_rows, bits);
                    assert!(error < 1e-6, "{with:?} {dtype}, rows of {row_len}, {x_rows}: {error}");
                }
            }
        }
    }

    #[test]
    fn a_row_is_the_same_alone_and_among_others() {
        let bits = &mut Bits(521_288_629);
        for with in all_instructions() {
            for dtype in [DType::Q4_K, DType::Q8_0, DType::F16, DType::IQ2_XS] {
                let values: Vec<f32> = (0..768).map(|_| bits.value()).collect();
                let bytes: Vec<u8> = (0..5 * 768 / dtype.block_elems()).flat_map(|_| bits.block(dtype)).collect();
                let (x, mut all) = (Activations::new(&values, 768), [0.0; 5]);
                multiply_rows_on(with, dtype, &bytes, &x, &mut all);
                for (bytes, expected) in bytes.chunks_exact(bytes.len() / 5).zip(all) {
                    let mut one = [0.0];
                    multiply_rows_on(with, dtype, bytes, &x, &mut one);
                    assert_eq!(one, [expected], "{with:?} {dtype}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_multiplied_without_a_panic() {
        for with in all_instructions() {
            multiply_rows_on(with, DType::Q4_K, &[], &Activations::new(&[], 256), &mut []);
            multiply_rows_on(with, DType::Q4_K, &[], &Activations::new(&[1.0; 256], 256), &mut []);
            multiply_rows_on(with, DType::F32, &[], &Activations::new(&[], 0), &mut []);
        }
        assert!(can_multiply(DType::Q4_K, 512) && !can_multiply(DType::Q4_K, 288) && !can_multiply(DType::I32, 32));
    }

    #[test]
    fn infinite_weights_stay_infinite() {
        for with in all_instructions() {
            let x = Activations::new(&[1.0; 32], 32);
            for (dtype, infinity) in [(DType::F16, 0x7c00u16), (DType::BF16, 0x7f80)] {
                let mut bytes = [0; 64];
                bytes[..2].copy_from_slice(&infinity.to_le_bytes());
                let mut out = [0.0];
                multiply_rows_on(with, dtype, &bytes, &x, &mut out);
                assert_eq!(out, [f32::INFINITY], "{with:?} {dtype}");
            }
        }
    }
}
