//! The file types of llama-quantize: their names, numbers and base tensor types.
//!
//! Reference: llama.cpp `tools/quantize/quantize.cpp` (`QUANT_OPTIONS`, `try_parse_ftype`), `include/llama.h`
//! (`enum llama_ftype`) and `src/llama-quant.cpp` (`llama_ftype_get_default_type`).

use std::fmt;
use std::str::FromStr;

use crate::dtype::DType;
use crate::error::{Error, Finding};

/// The type to which a whole file is quantized: one tensor type, or a mixture based on one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)] // The names are llama-quantize's own.
pub enum FileType {
    F32,
    F16,
    BF16,
    Q1_0,
    Q2_0,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    MXFP4_MOE,
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_K_S,
    Q4_K_M,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    IQ1_S,
    IQ1_M,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ2_M,
    IQ3_XXS,
    IQ3_XS,
    IQ3_S,
    IQ3_M,
    IQ4_NL,
    IQ4_XS,
    TQ1_0,
    TQ2_0,
    /// Every tensor stays as it is.
    COPY,
}

/// An entry of the table below. `target` is the number for `general.file_type` and the base type; COPY has neither.
struct FileTypeEntry {
    file_type: FileType,
    name: &'static str,
    target: Option<(u32, DType)>,
}

const fn row(file_type: FileType, name: &'static str, number: u32, base: DType) -> FileTypeEntry {
    FileTypeEntry { file_type, name, target: Some((number, base)) }
}

/// In the order of [`FileType`]'s variants, so that a variant is its own index.
const TABLE: [FileTypeEntry; 36] = {
    use FileType::*;
    [
        row(F32, "F32", 0, DType::F32),
        row(F16, "F16", 1, DType::F16),
        row(BF16, "BF16", 32, DType::BF16),
        row(Q1_0, "Q1_0", 40, DType::Q1_0),
        row(Q2_0, "Q2_0", 41, DType::Q2_0),
        row(Q4_0, "Q4_0", 2, DType::Q4_0),
        row(Q4_1, "Q4_1", 3, DType::Q4_1),
        row(Q5_0, "Q5_0", 8, DType::Q5_0),
        row(Q5_1, "Q5_1", 9, DType::Q5_1),
        row(Q8_0, "Q8_0", 7, DType::Q8_0),
        row(MXFP4_MOE, "MXFP4_MOE", 38, DType::MXFP4),
        row(Q2_K, "Q2_K", 10, DType::Q2_K),
        row(Q2_K_S, "Q2_K_S", 21, DType::Q2_K),
        row(Q3_K_S, "Q3_K_S", 11, DType::Q3_K),
        row(Q3_K_M, "Q3_K_M", 12, DType::Q3_K),
        row(Q3_K_L, "Q3_K_L", 13, DType::Q3_K),
        row(Q4_K_S, "Q4_K_S", 14, DType::Q4_K),
        row(Q4_K_M, "Q4_K_M", 15, DType::Q4_K),
        row(Q5_K_S, "Q5_K_S", 16, DType::Q5_K),
        row(Q5_K_M, "Q5_K_M", 17, DType::Q5_K),
        row(Q6_K, "Q6_K", 18, DType::Q6_K),
        row(IQ1_S, "IQ1_S", 24, DType::IQ1_S),
        row(IQ1_M, "IQ1_M", 31, DType::IQ1_M),
        row(IQ2_XXS, "IQ2_XXS", 19, DType::IQ2_XXS),
        row(IQ2_XS, "IQ2_XS", 20, DType::IQ2_XS),
        // The base of the next two is one size below the name; larger types for some tensors make up for it.
        row(IQ2_S, "IQ2_S", 28, DType::IQ2_XS),
        row(IQ2_M, "IQ2_M", 29, DType::IQ2_S),
        row(IQ3_XXS, "IQ3_XXS", 23, DType::IQ3_XXS),
        row(IQ3_XS, "IQ3_XS", 22, DType::IQ3_S),
        row(IQ3_S, "IQ3_S", 26, DType::IQ3_S),
        row(IQ3_M, "IQ3_M", 27, DType::IQ3_S),
        row(IQ4_NL, "IQ4_NL", 25, DType::IQ4_NL),
        row(IQ4_XS, "IQ4_XS", 30, DType::IQ4_XS),
        row(TQ1_0, "TQ1_0", 36, DType::TQ1_0),
        row(TQ2_0, "TQ2_0", 37, DType::TQ2_0),
        FileTypeEntry { file_type: COPY, name: "COPY", target: None },
    ]
};

const _: () = {
    let mut i = 0;
    while i < TABLE.len() {
        assert!(TABLE[i].file_type as usize == i, "the table is out of the variants' order");
        i += 1;
    }
};

/// Short names for the middle size of a family.
const ALIASES: [(&str, FileType); 3] =
    [("Q3_K", FileType::Q3_K_M), ("Q4_K", FileType::Q4_K_M), ("Q5_K", FileType::Q5_K_M)];

impl FileType {
    /// All file types.
    pub fn all() -> impl ExactSizeIterator<Item = Self> {
        TABLE.iter().map(|row| row.file_type)
    }

    /// llama-quantize's name, such as `Q4_K_M`.
    pub const fn name(self) -> &'static str {
        TABLE[self as usize].name
    }

    /// The number for `general.file_type`; `None` for COPY, which keeps the file's number.
    pub fn number(self) -> Option<u32> {
        TABLE[self as usize].target.map(|(number, _)| number)
    }

    /// The type of a tensor to which no rule applies; `None` for COPY, which keeps each tensor's type.
    pub fn base(self) -> Option<DType> {
        TABLE[self as usize].target.map(|(_, base)| base)
    }
}

/// Parses a name (ignoring case), one of the aliases `Q3_K`, `Q4_K` and `Q5_K`, or a number of `general.file_type`.
///
/// llama-quantize accepts any text that starts with a number (`15x` is 15); this requires a whole number.
impl FromStr for FileType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let number = text.parse().ok();
        let row = TABLE
            .iter()
            .find(|row| row.name.eq_ignore_ascii_case(text) || (number.is_some() && row.file_type.number() == number));
        let alias = || ALIASES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text)).map(|(_, of)| *of);
        row.map(|row| row.file_type).or_else(alias).ok_or_else(|| {
            let names: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
            let expected = format!("one of {}", names.join(", "));
            Finding::new("", "type")
                .expected(expected)
                .found(format_args!("{text:?}"))
                .did_you_mean(text, &names)
                .setting()
        })
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_aliases_and_numbers_find_their_file_type() {
        for file_type in FileType::all() {
            assert_eq!(file_type.name().parse::<FileType>().unwrap(), file_type);
            assert_eq!(file_type.to_string().to_lowercase().parse::<FileType>().unwrap(), file_type);
            if let Some(number) = file_type.number() {
                assert_eq!(number.to_string().parse::<FileType>().unwrap(), file_type, "{number}");
            }
        }
        for (text, file_type) in
            [("q4_k", FileType::Q4_K_M), ("Q3_K", FileType::Q3_K_M), ("Q5_k", FileType::Q5_K_M), ("7", FileType::Q8_0)]
        {
            assert_eq!(text.parse::<FileType>().unwrap(), file_type);
        }
    }

    #[test]
    fn what_is_no_file_type_is_told_what_there_is() {
        // 39 is NVFP4, which llama-quantize doesn't offer; 4 to 6 and 33 to 35 don't exist any more.
        for text in ["", "Q4_K_XL", "NVFP4", "39", "4", "15x", "-1", "99999999999"] {
            let message = text.parse::<FileType>().unwrap_err().to_string();
            assert!(message.contains("expected one of F32, F16, BF16, "), "{message}");
            assert!(message.contains(&format!("COPY, found {text:?}")), "{message}");
        }
    }
}
