//! Byte order: which bytes of an element or a block are reversed in big-endian files.
//!
//! Reference: llama.cpp `gguf-py/gguf/scripts/gguf_convert_endian.py`. It swaps the f16 scales of
//! some block types and refuses the others, whose order isn't known.

use crate::dtype::DType;

/// The order of the bytes of a number in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    /// Turns little-endian rows into rows in this order; `None` if nothing is to be done.
    pub(super) fn recode(self) -> Option<fn(DType, &mut [u8])> {
        (self == Self::Big).then_some(swap)
    }
}

/// Reverses the bytes of every number of whole blocks. Types of unknown byte order are refused before.
pub(super) fn swap(dtype: DType, rows: &mut [u8]) {
    let Some(fields) = swapped_fields(dtype).filter(|fields| !fields.is_nothing()) else { return };
    rows.chunks_exact_mut(dtype.block_bytes()).for_each(|block| fields.apply(block));
}

/// The multi-byte numbers in one block: their width, which is the same for all, and their offsets.
#[derive(Clone, Copy)]
pub(super) struct Swapped {
    width: usize,
    starts: &'static [usize],
}

/// The numbers in a block of `dtype` whose bytes are reversed. There are no offsets if all numbers are single bytes;
/// `None` if the byte order of the type isn't known.
pub(super) fn swapped_fields(dtype: DType) -> Option<Swapped> {
    let (width, starts): (usize, &[usize]) = match dtype {
        DType::Q1_0 | DType::Q4_0 | DType::Q8_0 => (2, &[0]),
        DType::Q4_K => (2, &[0, 2]),
        DType::Q6_K => (2, &[208]),
        DType::TQ2_0 => (2, &[64]),
        // Their scales are single bytes.
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
    /// Whether a block is the same in either byte order.
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
