//! Byte order: which bytes of an element or a block change places in the files of big-endian machines.
//!
//! Reference: llama.cpp `gguf-py/gguf/scripts/gguf_convert_endian.py`. It swaps the f16 scales of
//! some block types and refuses the others, whose order isn't known.

use crate::dtype::DType;

/// The numbers of several bytes in one block: all of one width, and where each starts.
#[derive(Clone, Copy)]
pub(super) struct Swapped {
    width: usize,
    starts: &'static [usize],
}

/// The numbers of a block of `dtype` whose bytes change places. No starts where all numbers are single bytes; `None`
/// where the order isn't known.
pub(super) fn swapped_fields(dtype: DType) -> Option<Swapped> {
    let (width, starts): (usize, &[usize]) = match dtype {
        DType::Q1_0 | DType::Q4_0 | DType::Q8_0 => (2, &[0]),
        DType::Q4_K => (2, &[0, 2]),
        DType::Q6_K => (2, &[208]),
        DType::TQ2_0 => (2, &[64]),
        // Scales of one byte.
        DType::MXFP4 | DType::NVFP4 => (1, &[]),
        _ if dtype.is_plain() => match dtype.block_bytes() {
            1 => (1, &[]),
            width => (width, &[0]),
        },
        _ => return None,
    };
    Some(Swapped { width, starts })
}

impl Swapped {
    /// Whether a block is the same in either order.
    pub(super) fn is_nothing(self) -> bool {
        self.starts.is_empty()
    }

    /// Reverses the bytes of the numbers of one block.
    pub(super) fn apply(self, block: &mut [u8]) {
        for start in self.starts {
            block[*start..start + self.width].reverse();
        }
    }
}
