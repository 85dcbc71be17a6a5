//! Codes of a few bits in 32-bit words.

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::TensorRef;

use super::parts::{check_type, finding};

/// Reads words from a tensor of I32 or U32.
pub(super) fn words(tensor: &TensorRef, elems: Range<usize>) -> Vec<u32> {
    let bytes = tensor.elements(elems);
    bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect()
}

/// Checks that a tensor has one of these types.
pub(super) fn check_words(tensor: &TensorRef) -> Result<()> {
    check_type(tensor, &[DType::I32, DType::U32])
}

/// The code of `bits` bits that starts at bit `at`. Bit 0 is the lowest bit of the first word.
pub(super) fn code(words: &[u32], at: usize, bits: usize) -> u32 {
    let word = |place: usize| u64::from(words.get(place).copied().unwrap_or(0));
    let both = word(at / 32) | word(at / 32 + 1) << 32;
    (both >> (at % 32)) as u32 & ((1u32 << bits) - 1)
}

/// The group of each input, which selects its scale.
pub(super) struct Groups {
    of: Vec<u32>,
}

impl Groups {
    /// The groups in `tensor`, or without it consecutive groups of `size` inputs.
    pub(super) fn new(tensor: Option<&TensorRef>, inputs: usize, size: usize) -> Self {
        let of = match tensor {
            Some(tensor) => words(tensor, 0..inputs),
            None => (0..inputs).map(|input| (input / size.max(1)) as u32).collect(),
        };
        Self { of }
    }

    /// The group of an input.
    pub(super) fn get(&self, input: usize) -> usize {
        self.of[input] as usize
    }

    /// Checks that `tensor` gives every input one of `groups` groups.
    pub(super) fn check(tensor: &TensorRef, inputs: usize, groups: usize) -> Result<()> {
        check_words(tensor)?;
        super::parts::check_shape(tensor, &[inputs], "for each input")?;
        let found = words(tensor, 0..inputs).into_iter().find(|group| *group as usize >= groups);
        match found {
            None => Ok(()),
            Some(group) => {
                let finding: Finding = finding(tensor).expected(format_args!("groups 0 to {}", groups - 1));
                Err(finding.found(group as i32).mismatch())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_go_across_words() {
        let words = [0xc000_0000, 0b1_0000_0001, 1 << 31];
        assert_eq!(code(&words, 30, 3), 0b111);
        assert_eq!(code(&words, 32, 8), 1);
        assert_eq!(code(&words, 95, 1), 1);
        assert_eq!(code(&words, 94, 4), 0b10, "past the end there are zeros");
    }
}
