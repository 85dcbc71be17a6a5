//! Settings by pattern: `rank_pattern`, `alpha_pattern`.
//!
//! Reference: huggingface/peft `src/peft/utils/other.py` (`get_pattern_key`).

use regex_lite::Regex;
use serde_json::{Map, Value};

use crate::error::{Finding, Result};
use crate::json::Fields;

/// A setting for modules whose path ends in a match of a regular expression. The first match wins,
/// in the file's order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Patterns<T>(Vec<Pattern<T>>);

#[derive(Debug, Clone)]
struct Pattern<T> {
    key: String,
    regex: Regex,
    value: T,
}

impl<T: PartialEq> PartialEq for Pattern<T> {
    fn eq(&self, other: &Self) -> bool {
        (&self.key, &self.value) == (&other.key, &other.value)
    }
}

impl<T: Copy> Patterns<T> {
    /// The patterns of field `name`; `value` returns `None` for a pattern's value that is invalid.
    pub(crate) fn read(fields: &mut Fields, name: &'static str, value: impl Fn(&Value) -> Option<T>) -> Result<Self> {
        let map: Map<String, Value> = fields.get(name)?.unwrap_or_default();
        Self::of(&map, || fields.finding(name), value)
    }

    /// The patterns of `map`, as [`Patterns::read`]; `finding` makes a finding about it.
    pub(crate) fn of(
        map: &Map<String, Value>,
        finding: impl Fn() -> Finding,
        value: impl Fn(&Value) -> Option<T>,
    ) -> Result<Self> {
        let read = map.iter().map(|(key, json)| {
            let value = value(json)
                .ok_or_else(|| finding().expected(format_args!("a number for {key:?}")).found(json).format())?;
            let regex = Regex::new(&format!(r"^(.*\.)?({key})$")).map_err(|e| {
                let finding = finding().expected("regular expressions without look-around or references");
                finding.found(format_args!("{key:?}: {e}")).unsupported()
            })?;
            Ok(Pattern { key: key.clone(), regex, value })
        });
        read.collect::<Result<_>>().map(Self)
    }

    /// The setting of the first pattern that matches `module`.
    pub(crate) fn first_match(&self, module: &str) -> Option<T> {
        self.0.iter().find(|pattern| pattern.regex.is_match(module)).map(|pattern| pattern.value)
    }

    /// The keys of the patterns that match none of `modules`.
    #[cfg(feature = "train")]
    pub(crate) fn unused<'a>(&'a self, modules: &'a [String]) -> impl Iterator<Item = &'a str> {
        let is_unused = |pattern: &&Pattern<T>| !modules.iter().any(|module| pattern.regex.is_match(module));
        self.0.iter().filter(is_unused).map(|pattern| pattern.key.as_str())
    }

    /// The values of all patterns.
    #[cfg(feature = "train")]
    pub(crate) fn values(&self) -> impl Iterator<Item = T> + '_ {
        self.0.iter().map(|pattern| pattern.value)
    }

    /// The same patterns with other values.
    #[cfg(feature = "train")]
    pub(crate) fn map(&self, value: impl Fn(T) -> T) -> Self {
        Self(self.0.iter().map(|pattern| Pattern { value: value(pattern.value), ..pattern.clone() }).collect())
    }
}

impl<T: Copy + Into<Value>> Patterns<T> {
    /// The field's value.
    pub(crate) fn to_json(&self) -> Value {
        Value::Object(self.0.iter().map(|pattern| (pattern.key.clone(), pattern.value.into())).collect())
    }
}

/// A rank in a pattern: a count from 1 to 2^31.
pub(crate) fn rank(value: &Value) -> Option<usize> {
    value.as_u64().filter(|rank| (1..=1 << 31).contains(rank)).map(|rank| rank as usize)
}
