//! Settings by pattern: `rank_pattern`, `alpha_pattern`.
//!
//! Reference: huggingface/peft `src/peft/utils/other.py` (`get_pattern_key`).

use regex_lite::Regex;
use serde_json::{Map, Value};

use crate::error::Result;
use crate::json::Fields;

/// A setting for modules whose path ends in a match of a regular expression. The first match wins,
/// in the file's order.
#[derive(Debug)]
pub(crate) struct Patterns<T>(Vec<(Regex, T)>);

impl<T: Copy> Patterns<T> {
    /// The patterns of field `name`; `value` returns `None` for a pattern's value that is invalid.
    pub(crate) fn read(fields: &mut Fields, name: &'static str, value: impl Fn(&Value) -> Option<T>) -> Result<Self> {
        let map: Map<String, Value> = fields.get(name)?.unwrap_or_default();
        let read = map.iter().map(|(key, json)| {
            let value = value(json).ok_or_else(|| {
                let finding = fields.finding(name).expected(format_args!("a number for {key:?}"));
                finding.found(json).format()
            })?;
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$")).map_err(|e| {
                let finding = fields.finding(name).expected("regular expressions without look-around or references");
                finding.found(format_args!("{key:?}: {e}")).unsupported()
            })?;
            Ok((regex, value))
        });
        read.collect::<Result<_>>().map(Self)
    }

    /// The setting of the first pattern that matches `module`.
    pub(crate) fn first_match(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(regex, _)| regex.is_match(module)).map(|(_, value)| *value)
    }
}

/// A rank in a pattern: a count from 1 to 2^31.
pub(crate) fn rank(value: &Value) -> Option<usize> {
    value.as_u64().filter(|rank| (1..=1 << 31).contains(rank)).map(|rank| rank as usize)
}
