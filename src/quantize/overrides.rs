//! `--tensor-type`: types for tensors by patterns of their names, given one by one or in a file.
//!
//! `attn_q=q8_0` gives Q8_0 to every tensor whose name contains `attn_q`. If several patterns match, the first counts.
//! Names are those in the written file, after pruning of layers. Patterns are converted to lower case, because all
//! tensor names in llama.cpp are lower case.
//!
//! Patterns have the syntax of the crate regex-lite, those of llama-quantize that of C++ (ECMAScript): look-ahead and
//! back references are refused here.
//!
//! Reference: llama.cpp `tools/quantize/quantize.cpp` (`parse_tensor_type`, `parse_tensor_type_file`).

use std::fmt;
use std::path::Path;

use regex_lite::Regex;

use super::tensor_type::parse_tensor_type;
use crate::dtype::DType;
use crate::error::{Finding, IoContext, Result};

const OPTION: &str = "tensor_type";

/// A pattern, and the type of the tensors whose names match it.
#[derive(Debug, Clone)]
pub struct TensorTypeRule {
    pattern: Regex,
    /// The type to which they are quantized.
    pub dtype: DType,
}

impl TensorTypeRule {
    /// Parses `PATTERN=TYPE`.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for any other form, an invalid pattern, and types that can't be used.
    pub fn parse(argument: &str) -> Result<Self> {
        let malformed = || {
            let finding =
                Finding::new("", format!("{OPTION}: {argument}")).expected("PATTERN=TYPE, such as attn_q=q8_0");
            finding.found("no pattern and type").setting()
        };
        let (pattern, dtype) = argument.split_once('=').ok_or_else(malformed)?;
        if pattern.is_empty() || dtype.is_empty() {
            return Err(malformed());
        }
        let wrong = |found: &dyn fmt::Display| {
            Finding::new("", format!("{OPTION}: {pattern}")).expected("a regular expression").found(found).setting()
        };
        if let Some(class) = upper_case_class(pattern) {
            // In llama-quantize the letter becomes lower case, which means the opposite class.
            return Err(wrong(&format_args!("one with \\{class}, which lower case changes")));
        }
        let lowered = pattern.to_ascii_lowercase();
        Ok(Self { pattern: Regex::new(&lowered).map_err(|e| wrong(&e))?, dtype: parse_tensor_type(argument, dtype)? })
    }

    /// Reads a file of such rules, separated by spaces or line ends.
    ///
    /// # Errors
    /// As [`TensorTypeRule::parse`]; [`crate::Error::Io`] if the file can't be read, [`crate::Error::Format`] if it
    /// isn't text.
    pub fn read_file(path: &Path) -> Result<Vec<Self>> {
        let bytes = std::fs::read(path).at(path, "read")?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Finding::new(path, "").expected("UTF-8 text").found("other bytes").format())?;
        text.split_ascii_whitespace().map(Self::parse).collect()
    }

    /// Whether its pattern matches this tensor name.
    pub fn is_for(&self, name: &str) -> bool {
        self.pattern.is_match(name)
    }

    /// A finding about its pattern.
    pub(super) fn finding(&self) -> Finding {
        Finding::new("", format!("{OPTION}: {}", self.pattern.as_str()))
    }
}

/// The first character class written with an upper-case letter, such as `\D`.
fn upper_case_class(pattern: &str) -> Option<char> {
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c == '\\'
            && let Some(class) = chars.next().filter(char::is_ascii_uppercase)
        {
            return Some(class);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_found_anywhere_in_lower_case() {
        let rule = TensorTypeRule::parse("blk\\.(0|1[0-9])\\.ATTN_[qk]=Q8_0").unwrap();
        assert_eq!(rule.dtype, DType::Q8_0);
        assert!(rule.is_for("blk.0.attn_q.weight") && rule.is_for("blk.12.attn_k.weight"));
        assert!(!rule.is_for("blk.2.attn_q.weight") && !rule.is_for("blk.0.attn_v.weight"));
        assert!(TensorTypeRule::parse("n_v=f16").unwrap().is_for("blk.0.attn_v.weight"));
        assert!(TensorTypeRule::parse(r"^blk\.\d+\.ffn=f16").unwrap().is_for("blk.31.ffn_up.weight"));
    }

    #[test]
    fn what_is_no_rule_is_named() {
        for (argument, expected) in [
            ("attn_q", "tensor_type: attn_q: expected PATTERN=TYPE"),
            ("=q8_0", "expected PATTERN=TYPE"),
            ("attn_q=", "expected PATTERN=TYPE"),
            ("attn_(q=q8_0", "tensor_type: attn_(q: expected a regular expression, found "),
            (r"(?!attn)q=q8_0", "expected a regular expression, found "),
            (r"blk\.\D=q8_0", r"found one with \D, which lower case changes"),
            ("attn_q=q4_k_m", "attn_q=q4_k_m: expected a tensor type: one of F32"),
            ("attn_q=q8_k", "found \"q8_k\""),
        ] {
            let message = TensorTypeRule::parse(argument).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(TensorTypeRule::parse(r"blk\\D=q8_0").is_ok(), "a backslash, then a letter");
    }

    #[test]
    fn files_hold_one_after_the_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("types.txt");
        std::fs::write(&path, "attn_q=q8_0 attn_k=q6_K\n\n\tffn_down=f16\r\n").unwrap();
        let types: Vec<DType> = TensorTypeRule::read_file(&path).unwrap().iter().map(|rule| rule.dtype).collect();
        assert_eq!(types, [DType::Q8_0, DType::Q6_K, DType::F16]);
        std::fs::write(&path, "attn_q=q8_0 attn_k").unwrap();
        assert!(TensorTypeRule::read_file(&path).unwrap_err().to_string().contains("attn_k: expected PATTERN=TYPE"));
        std::fs::write(&path, [0xff]).unwrap();
        assert!(TensorTypeRule::read_file(&path).unwrap_err().to_string().contains("expected UTF-8 text"));
        assert!(TensorTypeRule::read_file(&folder.path().join("gone")).is_err());
    }
}
