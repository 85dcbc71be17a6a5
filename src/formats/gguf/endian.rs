//! Byte order: which bytes of an element or a block change places in the files of big-endian machines.
//!
//! Reference: llama.cpp `gguf-py/gguf/scripts/gguf_convert_endian.py`. It swaps the f16 scales of
//! some block types and refuses the others; no machine at hand says how those would stand.

use std::borrow::Cow;
use std::ops::Range;

use crate::dtype::DType;

/// The fields of one block that are numbers of several bytes. Empty where all numbers are single
/// bytes; `None` where the order isn't known.
pub(super) fn swapped_fields(dtype: DType) -> Option<Cow<'static, [Range<usize>]>> {
    const SCALE_FIRST: &[Range<usize>] = &[0..2];
    const TWO_SCALES_FIRST: &[Range<usize>] = &[0..2, 2..4];
    const Q6_K_SCALE: &[Range<usize>] = &[208..210];
    const TQ2_0_SCALE: &[Range<usize>] = &[64..66];
    Some(Cow::Borrowed(match dtype {
        DType::Q1_0 | DType::Q4_0 | DType::Q8_0 => SCALE_FIRST,
        DType::Q4_K => TWO_SCALES_FIRST,
        DType::Q6_K => Q6_K_SCALE,
        DType::TQ2_0 => TQ2_0_SCALE,
        // Scales of one byte.
        DType::MXFP4 | DType::NVFP4 => &[],
        _ if dtype.is_plain() => match dtype.block_bytes() {
            1 => &[],
            bytes => return Some(Cow::Owned(vec![0..bytes])),
        },
        _ => return None,
    }))
}

/// Turns `fields` of one block around.
pub(super) fn swap_block(block: &mut [u8], fields: &[Range<usize>]) {
    for field in fields {
        block[field.clone()].reverse();
    }
}
