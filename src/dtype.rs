//! Element and block types: names, sizes, and the numbers that the file formats give them.

use std::fmt;

/// The type of a tensor's elements: a plain number or a block of quantized ones.
///
/// Covers every type of safetensors and GGUF files, so that any file can be listed and its sizes checked.
/// [`crate::quant`] says which types can be decoded and encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)] // The names are the formats' own.
pub enum DType {
    F32,
    F16,
    BF16,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    BOOL,
    C64,
    F8_E4M3,
    F8_E5M2,
    F8_E8M0,
    F8_E4M3FNUZ,
    F8_E5M2FNUZ,
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
}

/// An entry of the table below.
struct DTypeEntry {
    dtype: DType,
    name: &'static str,
    block_elems: usize,
    block_bytes: usize,
    ggml: Option<u32>,
    safetensors: bool,
}

const fn row(
    dtype: DType,
    name: &'static str,
    block: (usize, usize),
    ggml: Option<u32>,
    safetensors: bool,
) -> DTypeEntry {
    DTypeEntry { dtype, name, block_elems: block.0, block_bytes: block.1, ggml, safetensors }
}

/// In the order of [`DType`]'s variants, so that a variant is its own index. Sizes and numbers are from ggml `ggml.h`
/// (`enum ggml_type`) and gguf-py `constants.py` (`GGML_QUANT_SIZES`).
const TABLE: [DTypeEntry; 46] = {
    use DType::*;
    [
        row(F32, "F32", (1, 4), Some(0), true),
        row(F16, "F16", (1, 2), Some(1), true),
        row(BF16, "BF16", (1, 2), Some(30), true),
        row(F64, "F64", (1, 8), Some(28), true),
        row(I8, "I8", (1, 1), Some(24), true),
        row(I16, "I16", (1, 2), Some(25), true),
        row(I32, "I32", (1, 4), Some(26), true),
        row(I64, "I64", (1, 8), Some(27), true),
        row(U8, "U8", (1, 1), None, true),
        row(U16, "U16", (1, 2), None, true),
        row(U32, "U32", (1, 4), None, true),
        row(U64, "U64", (1, 8), None, true),
        row(BOOL, "BOOL", (1, 1), None, true),
        row(C64, "C64", (1, 8), None, true),
        row(F8_E4M3, "F8_E4M3", (1, 1), None, true),
        row(F8_E5M2, "F8_E5M2", (1, 1), None, true),
        row(F8_E8M0, "F8_E8M0", (1, 1), None, true),
        row(F8_E4M3FNUZ, "F8_E4M3FNUZ", (1, 1), None, true),
        row(F8_E5M2FNUZ, "F8_E5M2FNUZ", (1, 1), None, true),
        row(Q4_0, "Q4_0", (32, 18), Some(2), false),
        row(Q4_1, "Q4_1", (32, 20), Some(3), false),
        row(Q5_0, "Q5_0", (32, 22), Some(6), false),
        row(Q5_1, "Q5_1", (32, 24), Some(7), false),
        row(Q8_0, "Q8_0", (32, 34), Some(8), false),
        row(Q8_1, "Q8_1", (32, 36), Some(9), false),
        row(Q2_K, "Q2_K", (256, 84), Some(10), false),
        row(Q3_K, "Q3_K", (256, 110), Some(11), false),
        row(Q4_K, "Q4_K", (256, 144), Some(12), false),
        row(Q5_K, "Q5_K", (256, 176), Some(13), false),
        row(Q6_K, "Q6_K", (256, 210), Some(14), false),
        row(Q8_K, "Q8_K", (256, 292), Some(15), false),
        row(IQ2_XXS, "IQ2_XXS", (256, 66), Some(16), false),
        row(IQ2_XS, "IQ2_XS", (256, 74), Some(17), false),
        row(IQ3_XXS, "IQ3_XXS", (256, 98), Some(18), false),
        row(IQ1_S, "IQ1_S", (256, 50), Some(19), false),
        row(IQ4_NL, "IQ4_NL", (32, 18), Some(20), false),
        row(IQ3_S, "IQ3_S", (256, 110), Some(21), false),
        row(IQ2_S, "IQ2_S", (256, 82), Some(22), false),
        row(IQ4_XS, "IQ4_XS", (256, 136), Some(23), false),
        row(IQ1_M, "IQ1_M", (256, 56), Some(29), false),
        row(TQ1_0, "TQ1_0", (256, 54), Some(34), false),
        row(TQ2_0, "TQ2_0", (256, 66), Some(35), false),
        row(MXFP4, "MXFP4", (32, 17), Some(39), false),
        row(NVFP4, "NVFP4", (64, 36), Some(40), false),
        row(Q1_0, "Q1_0", (128, 18), Some(41), false),
        row(Q2_0, "Q2_0", (64, 18), Some(42), false),
    ]
};

const _: () = {
    let mut i = 0;
    while i < TABLE.len() {
        assert!(TABLE[i].dtype as usize == i, "the table is out of the variants' order");
        i += 1;
    }
};

impl DType {
    const fn row(self) -> &'static DTypeEntry {
        &TABLE[self as usize]
    }

    /// The name in the file formats: `BF16`, `Q4_K`.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The name in torch and transformers, for types in which models are trained.
    pub const fn torch_name(self) -> Option<&'static str> {
        match self {
            DType::F32 => Some("float32"),
            DType::F16 => Some("float16"),
            DType::BF16 => Some("bfloat16"),
            _ => None,
        }
    }

    /// Whether it is a floating-point type of 16 bits or more. A change of a model's type applies to tensors of these
    /// types.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F16 | DType::BF16 | DType::F64)
    }

    /// Elements in one block; 1 for plain numbers.
    pub const fn block_elems(self) -> usize {
        self.row().block_elems
    }

    /// Bytes of one block.
    pub const fn block_bytes(self) -> usize {
        self.row().block_bytes
    }

    /// Whether elements are plain numbers, not parts of a block.
    pub const fn is_plain(self) -> bool {
        self.block_elems() == 1
    }

    /// The number of this type in GGUF files; `None` where GGUF has none.
    pub const fn ggml_id(self) -> Option<u32> {
        self.row().ggml
    }

    /// The type with this number in GGUF files.
    pub fn from_ggml_id(id: u32) -> Option<Self> {
        TABLE.iter().find(|row| row.ggml == Some(id)).map(|row| row.dtype)
    }

    /// The type with this name in safetensors headers.
    pub fn from_safetensors(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.safetensors && row.name == name).map(|row| row.dtype)
    }

    /// Whether safetensors files can hold it.
    pub const fn in_safetensors(self) -> bool {
        self.row().safetensors
    }

    /// The size in bytes of `elems` elements in rows of `row_len`; `None` on overflow, or where rows don't divide into
    /// blocks.
    pub fn bytes_of(self, elems: u64, row_len: u64) -> Option<u64> {
        let block = self.block_elems() as u64;
        if !row_len.is_multiple_of(block) {
            return None;
        }
        (elems / block).checked_mul(self.block_bytes() as u64)
    }
}

/// Serializes as the name.
impl serde::Serialize for DType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_find_their_type_again() {
        for row in &TABLE {
            if let Some(id) = row.ggml {
                assert_eq!(DType::from_ggml_id(id), Some(row.dtype));
            }
            if row.safetensors {
                assert_eq!(DType::from_safetensors(row.name), Some(row.dtype));
            }
        }
        assert_eq!(DType::from_ggml_id(4), None, "Q4_2 was removed from ggml");
    }

    #[test]
    fn sizes_reject_partial_blocks_and_overflow() {
        assert_eq!(DType::Q8_0.bytes_of(64, 32), Some(68));
        assert_eq!(DType::Q8_0.bytes_of(64, 16), None);
        assert_eq!(DType::F32.bytes_of(u64::MAX, 1), None);
    }
}
