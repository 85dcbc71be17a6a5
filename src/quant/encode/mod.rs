//! Quantization: encodes rows with the same bits as ggml's `ggml_quantize_chunk`.

// Loops over lanes and elements of several arrays are most readable with indices, and are vectorized.
#![allow(clippy::needless_range_loop)]

mod each;
mod fp4;
mod grid;
mod grid_search;
mod iq1;
mod iq2;
mod iq3;
mod iq4;
mod iq_block;
mod k_quants;
mod lanes;
mod legacy;
mod pack;
mod positive;
mod q8;
mod search;
mod split;
mod strip;
mod ternary;

use crate::dtype::DType;
use crate::kernel::{Kernel, Routine};

/// Encodes one row of whole blocks with the importance of its columns, or any number of rows without importance.
pub(super) type Encode = fn(row: &[f32], importance: Option<&[f32]>, out: &mut [u8], kernel: Kernel);

/// The encoder of a block type; `None` for plain types.
pub(super) fn encoder(dtype: DType) -> Option<Encode> {
    Some(match dtype {
        DType::Q4_0 => legacy::q4_0,
        DType::Q4_1 => legacy::q4_1,
        DType::Q5_0 => legacy::q5_0,
        DType::Q5_1 => legacy::q5_1,
        DType::Q8_0 => legacy::q8_0,
        DType::Q2_K => k_quants::q2_k,
        DType::Q3_K => k_quants::q3_k,
        DType::Q4_K => k_quants::q4_k,
        DType::Q5_K => k_quants::q5_k,
        DType::Q6_K => k_quants::q6_k,
        DType::IQ2_XXS => iq2_xxs,
        DType::IQ2_XS => iq2_xs,
        DType::IQ2_S => iq2_s,
        DType::IQ3_XXS => iq3_xxs,
        DType::IQ3_S => iq3_s,
        // Wider vectors don't help these types.
        DType::IQ1_S => |row, importance, out, _| iq1::iq1_s(row, known(importance), out),
        DType::IQ1_M => |row, importance, out, _| iq1::iq1_m(row, importance, out),
        DType::Q8_1 => |row, _, out, kernel| q8::q8_1(row, out, kernel),
        DType::Q8_K => |row, _, out, kernel| q8::q8_k(row, out, kernel),
        DType::IQ4_NL => iq4::iq4_nl,
        DType::IQ4_XS => iq4::iq4_xs,
        DType::TQ1_0 => |row, _, out, kernel| ternary::tq1_0(row, out, kernel),
        DType::TQ2_0 => |row, _, out, kernel| ternary::tq2_0(row, out, kernel),
        DType::Q1_0 => |row, _, out, kernel| ternary::q1_0(row, out, kernel),
        DType::Q2_0 => |row, _, out, kernel| ternary::q2_0(row, out, kernel),
        DType::MXFP4 => |row, _, out, kernel| fp4::mxfp4(row, out, kernel),
        DType::NVFP4 => |row, _, out, kernel| fp4::nvfp4(row, out, kernel),
        _ => return None,
    })
}

/// Defines encoders that work on one run at a time, compiled for each kernel.
macro_rules! compiled_for_kernels {
    ($($name:ident: |$row:ident, $importance:ident, $out:ident| $encode:expr;)*) => {$(
        fn $name(row: &[f32], importance: Option<&[f32]>, out: &mut [u8], kernel: Kernel) {
            struct Job<'a>(&'a [f32], Option<&'a [f32]>, &'a mut [u8]);
            impl Routine for Job<'_> {
                #[inline(always)]
                fn run<const L: usize, const PAIR: usize>(self) {
                    let Job($row, $importance, $out) = self;
                    $encode;
                }
            }
            kernel.run(Job(row, importance, out));
        }
    )*};
}
compiled_for_kernels! {
    iq2_xxs: |row, importance, out| iq2::iq2_xxs(row, known(importance), out);
    iq2_xs: |row, importance, out| iq2::iq2_xs(row, known(importance), out);
    iq2_s: |row, importance, out| iq2::iq2_s(row, importance, out);
    iq3_xxs: |row, importance, out| iq3::iq3_xxs(row, importance, out);
    iq3_s: |row, importance, out| iq3::iq3_s(row, importance, out);
}

/// The importance of a type that needs it.
fn known(importance: Option<&[f32]>) -> &[f32] {
    match importance {
        Some(importance) => importance,
        None => unreachable!("no importance: plans check needs_importance"),
    }
}

/// Whether a type is so coarse that it is only encoded with importance: ggml's `ggml_quantize_requires_imatrix`.
/// Recipes require importance in more cases.
pub fn needs_importance(dtype: DType) -> bool {
    matches!(dtype, DType::IQ1_S | DType::IQ2_XXS | DType::IQ2_XS)
}
