//! `--override-key`: sets single keys of a GGUF's metadata, after everything else.
//!
//! `KEY=VALUE` keeps the key's type; `KEY=TYPE:VALUE` sets it. Types are those of llama.cpp's
//! `--override-kv` (`int`, `float`, `bool`, `str`) and GGUF's own (`u8` to `f64`, `string`). With
//! `[]` after it, a type means an array, whose value is JSON.
//!
//! Reference: llama.cpp `common/common.cpp` (`string_parse_kv_override`).

use std::str::FromStr;

use serde_json::Value as Json;

use super::{Array, Metadata, QUANTIZATION_VERSION_KEY, Value, ValueType};
use crate::error::{Error, Finding, Result};

/// Keys that describe how the tensors are stored, and why they can't be set. With another value the
/// file would be wrong.
const FIXED: &[(&str, &str)] = &[
    (QUANTIZATION_VERSION_KEY, "blocks are written in the version that the file says"),
    ("split.no", "files are split by the options for it"),
    ("split.count", "files are split by the options for it"),
    ("split.tensors.count", "files are split by the options for it"),
];

/// The alignment, which the file's layout follows. It can be set even if the file doesn't have it.
const ALIGNMENT: &str = "general.alignment";

/// The names of types, in the order in which messages list them.
const TYPES: &[(&str, Wanted)] = &[
    ("int", Wanted::Int),
    ("float", Wanted::Float),
    ("bool", Wanted::Exactly(ValueType::Bool)),
    ("str", Wanted::Exactly(ValueType::String)),
    ("string", Wanted::Exactly(ValueType::String)),
    ("u8", Wanted::Exactly(ValueType::U8)),
    ("i8", Wanted::Exactly(ValueType::I8)),
    ("u16", Wanted::Exactly(ValueType::U16)),
    ("i16", Wanted::Exactly(ValueType::I16)),
    ("u32", Wanted::Exactly(ValueType::U32)),
    ("i32", Wanted::Exactly(ValueType::I32)),
    ("u64", Wanted::Exactly(ValueType::U64)),
    ("i64", Wanted::Exactly(ValueType::I64)),
    ("f32", Wanted::Exactly(ValueType::F32)),
    ("f64", Wanted::Exactly(ValueType::F64)),
];

/// A requested type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// The key's own type if that is an integer type, otherwise the first of u32, i32, u64 and i64
    /// that fits.
    Int,
    /// The key's own type if that is a floating-point type, otherwise f32.
    Float,
    Exactly(ValueType),
}

/// A key and its new value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    key: String,
    /// The type, and whether an array of it is meant; `None` keeps the key's type.
    wanted: Option<(Wanted, bool)>,
    text: String,
}

impl Override {
    /// Parses `KEY=VALUE` or `KEY=TYPE:VALUE`. Whether the value fits the type is checked when it
    /// is set.
    ///
    /// A text that starts like a type needs an explicit type: `str:int:3`.
    ///
    /// # Errors
    /// [`Error::Setting`] for any other form, and for keys that can't be set.
    pub fn parse(argument: &str) -> Result<Self> {
        let Some((key, rest)) = argument.split_once('=').filter(|(key, _)| !key.is_empty()) else {
            let finding = Finding::new("", format!("override_key: {argument}")).expected("KEY=VALUE or KEY=TYPE:VALUE");
            return Err(finding.found("no key and value").setting());
        };
        if let Some((_, reason)) = FIXED.iter().find(|(fixed, _)| *fixed == key) {
            let finding =
                Finding::new("", format!("override_key: {key}")).expected("a key that doesn't describe the tensors");
            return Err(finding.found(format_args!("one that does: {reason}")).setting());
        }
        let typed = rest.split_once(':').and_then(|(name, text)| {
            let (name, is_array) = name.strip_suffix("[]").map_or((name, false), |name| (name, true));
            let (_, wanted) = TYPES.iter().find(|(known, _)| *known == name)?;
            Some(((*wanted, is_array), text))
        });
        let (wanted, text) = typed.map_or((None, rest), |(wanted, text)| (Some(wanted), text));
        Ok(Self { key: key.to_owned(), wanted, text: text.to_owned() })
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Sets the key: at its old position, or at the end if it is new.
    ///
    /// # Errors
    /// [`Error::Setting`] for a value that doesn't fit the type, and for a new key without one.
    pub fn apply(&self, metadata: &mut Metadata) -> Result<()> {
        let old = match metadata.get(&self.key) {
            Some(Value::Array(array)) => Some((array.kind(), true)),
            Some(value) => Some((value.kind(), false)),
            None if self.key == ALIGNMENT => Some((ValueType::U32, false)),
            None => None,
        };
        let (kinds, is_array) = match (self.wanted, old) {
            (Some((wanted, is_array)), old) => (wanted.kinds(old.map(|(kind, _)| kind)), is_array),
            (None, Some((kind, is_array))) => (vec![kind], is_array),
            (None, None) => {
                let names: Vec<&str> = TYPES.iter().map(|(name, _)| *name).collect();
                let (key, text, names) = (&self.key, &self.text, names.join(", "));
                let finding = self.finding().expected("a type, since the file has no such key");
                let hint = format!("write {key}=TYPE:{text} with one of {names}, or {key}=TYPE[]:[...]");
                return Err(finding.found(format_args!("{text:?}")).hint(hint).setting());
            }
        };
        let value = if is_array { self.array(&kinds)?.into() } else { self.single(&kinds)? };
        let aligns = |value: &Value| matches!(value, Value::U32(bytes) if bytes.is_power_of_two());
        if self.key == ALIGNMENT && !aligns(&value) {
            return Err(self.finding().expected("a power of two as u32").found(value).setting());
        }
        metadata.insert(self.key.as_str(), value);
        Ok(())
    }

    fn finding(&self) -> Finding {
        Finding::new("", format!("override_key: {}", self.key))
    }

    fn wrong(&self, expected: &str, kinds: &[ValueType]) -> Error {
        let kinds: Vec<String> = kinds.iter().map(ValueType::to_string).collect();
        let finding = self.finding().expected(format_args!("{expected} {}", kinds.join(" or ")));
        finding.found(format_args!("{:?}", self.text)).setting()
    }

    /// Parses the text as the first of `kinds` that fits. Any text fits as a string.
    fn single(&self, kinds: &[ValueType]) -> Result<Value> {
        if kinds == [ValueType::String] {
            return Ok(Value::from(self.text.as_str()));
        }
        let json: Json = serde_json::from_str(&self.text).unwrap_or_default();
        kinds.iter().find_map(|kind| element(*kind, &json)).ok_or_else(|| self.wrong("a value of type", kinds))
    }

    /// Parses the text, a JSON array, as an array of the first of `kinds` that all elements fit.
    fn array(&self, kinds: &[ValueType]) -> Result<Array> {
        let items: Option<Vec<Json>> = serde_json::from_str(&self.text).ok();
        let array = items.and_then(|items| kinds.iter().find_map(|kind| elements(*kind, &items)));
        array.ok_or_else(|| self.wrong("a JSON array with elements of type", kinds))
    }
}

impl Wanted {
    /// The possible types, in order of preference, where the key's old value has the type `old`.
    fn kinds(self, old: Option<ValueType>) -> Vec<ValueType> {
        use ValueType::{F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        match (self, old) {
            (Wanted::Exactly(kind), _) => vec![kind],
            (Wanted::Int, Some(old @ (U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64))) => vec![old],
            (Wanted::Int, _) => vec![U32, I32, U64, I64],
            (Wanted::Float, Some(old @ (F32 | F64))) => vec![old],
            (Wanted::Float, _) => vec![F32],
        }
    }
}

impl FromStr for Override {
    type Err = Error;

    fn from_str(argument: &str) -> Result<Self> {
        Self::parse(argument)
    }
}

/// The JSON value as type `kind`, if it fits. Floating-point numbers are rounded, but must stay
/// finite.
fn element(kind: ValueType, json: &Json) -> Option<Value> {
    Some(match elements(kind, std::slice::from_ref(json))? {
        Array::U8(v) => Value::U8(*v.first()?),
        Array::I8(v) => Value::I8(*v.first()?),
        Array::U16(v) => Value::U16(*v.first()?),
        Array::I16(v) => Value::I16(*v.first()?),
        Array::U32(v) => Value::U32(*v.first()?),
        Array::I32(v) => Value::I32(*v.first()?),
        Array::F32(v) => Value::F32(*v.first()?),
        Array::Bool(v) => Value::Bool(*v.first()?),
        Array::String(v) => Value::String(v.into_iter().next()?),
        Array::U64(v) => Value::U64(*v.first()?),
        Array::I64(v) => Value::I64(*v.first()?),
        Array::F64(v) => Value::F64(*v.first()?),
    })
}

/// An array of type `kind`, if all values fit.
fn elements(kind: ValueType, items: &[Json]) -> Option<Array> {
    fn all<T>(items: &[Json], one: impl Fn(&Json) -> Option<T>) -> Option<Vec<T>> {
        items.iter().map(one).collect()
    }
    fn whole<T: TryFrom<i128>>(json: &Json) -> Option<T> {
        let number = json.as_i64().map(i128::from).or_else(|| json.as_u64().map(i128::from));
        number.and_then(|number| number.try_into().ok())
    }
    let single = |json: &Json| json.as_f64().map(|v| v as f32).filter(|v| v.is_finite());
    Some(match kind {
        ValueType::U8 => Array::U8(all(items, whole)?),
        ValueType::I8 => Array::I8(all(items, whole)?),
        ValueType::U16 => Array::U16(all(items, whole)?),
        ValueType::I16 => Array::I16(all(items, whole)?),
        ValueType::U32 => Array::U32(all(items, whole)?),
        ValueType::I32 => Array::I32(all(items, whole)?),
        ValueType::U64 => Array::U64(all(items, whole)?),
        ValueType::I64 => Array::I64(all(items, whole)?),
        ValueType::F32 => Array::F32(all(items, single)?),
        ValueType::F64 => Array::F64(all(items, Json::as_f64)?),
        ValueType::Bool => Array::Bool(all(items, Json::as_bool)?),
        ValueType::String => Array::texts(items.iter().map(Json::as_str).collect::<Option<Vec<_>>>()?),
        ValueType::Array => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::gguf::layout;

    fn metadata() -> Metadata {
        let mut metadata = Metadata::new("m.gguf");
        metadata.insert("general.name", "Old");
        metadata.insert("llama.block_count", 4u32);
        metadata.insert("llama.rope.freq_base", 10_000f32);
        metadata.insert("tokenizer.ggml.add_bos_token", true);
        metadata.insert("tokenizer.ggml.scores", Array::F32(vec![1.0]));
        metadata.insert("general.tags", Array::texts(["a"]));
        metadata.insert("wide", 1u64);
        metadata
    }

    fn applied(argument: &str) -> Result<Value> {
        let mut metadata = metadata();
        let set = Override::parse(argument)?;
        set.apply(&mut metadata)?;
        Ok(metadata.get(set.key()).unwrap().clone())
    }

    #[test]
    fn values_get_the_type_of_the_key_or_the_one_that_is_named() {
        let cases: [(&str, Value); 28] = [
            ("general.name=New: a = b", "New: a = b".into()),
            ("general.name=", "".into()),
            ("general.name=str:int:3", "int:3".into()),
            ("general.name=i8:3", 3i8.into()),
            ("llama.block_count=7", 7u32.into()),
            ("llama.block_count=int:7", 7u32.into()),
            ("llama.block_count=u64:7", 7u64.into()),
            ("llama.block_count=string:7", "7".into()),
            ("llama.rope.freq_base=5e5", 500_000f32.into()),
            ("llama.rope.freq_base=1", 1f32.into()),
            ("llama.rope.freq_base=float:0.1", 0.1f32.into()),
            ("llama.rope.freq_base=f64:0.1", 0.1f64.into()),
            ("tokenizer.ggml.add_bos_token=false", false.into()),
            ("tokenizer.ggml.scores=[1, -2.5]", Array::F32(vec![1.0, -2.5]).into()),
            ("tokenizer.ggml.scores=[]", Array::F32(vec![]).into()),
            ("tokenizer.ggml.scores=i32[]:[1]", Array::I32(vec![1]).into()),
            ("general.tags=[\"b\", \"\"]", Array::texts(["b", ""]).into()),
            ("new=int:4294967295", u32::MAX.into()),
            ("new=int:4294967296", (1u64 << 32).into()),
            ("new=int:-1", (-1i32).into()),
            ("new=int:-3000000000", (-3_000_000_000i64).into()),
            ("new=float:1", 1f32.into()),
            ("new=bool:true", true.into()),
            ("new=str:", "".into()),
            ("new=u16:65535", u16::MAX.into()),
            ("new=int[]:[1, -1]", Array::I32(vec![1, -1]).into()),
            ("new=str[]:[\"x\"]", Array::texts(["x"]).into()),
            ("general.alignment=64", 64u32.into()),
        ];
        for (argument, expected) in cases {
            assert_eq!(applied(argument).unwrap(), expected, "{argument}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_in_one_line() {
        let cases = [
            ("general.name", "override_key: general.name: expected KEY=VALUE or KEY=TYPE:VALUE"),
            ("=x", "expected KEY=VALUE or KEY=TYPE:VALUE"),
            ("llama.block_count=x", "llama.block_count: expected a value of type uint32, found \"x\""),
            ("llama.block_count=-1", "expected a value of type uint32, found \"-1\""),
            ("llama.block_count=1.5", "expected a value of type uint32, found \"1.5\""),
            ("llama.block_count=4294967296", "expected a value of type uint32"),
            ("llama.block_count=[1]", "expected a value of type uint32"),
            ("llama.block_count=", "expected a value of type uint32, found \"\""),
            ("wide=int:-1", "expected a value of type uint64, found \"-1\""),
            ("new=int:1.5", "expected a value of type uint32 or int32 or uint64 or int64, found \"1.5\""),
            ("new=u8:256", "expected a value of type uint8"),
            ("new=f32:1e39", "expected a value of type float32"),
            ("new=bool:yes", "expected a value of type bool, found \"yes\""),
            ("tokenizer.ggml.scores=1", "expected a JSON array with elements of type float32, found \"1\""),
            ("tokenizer.ggml.scores=[\"a\"]", "expected a JSON array with elements of type float32"),
            ("general.tags=a", "expected a JSON array with elements of type string, found \"a\""),
            (
                "new=3",
                "override_key: new: expected a type, since the file has no such key, found \"3\"; write new=TYPE:3 \
                 with one of int, float, bool, str",
            ),
            ("new=what:3", "expected a type, since the file has no such key"),
            ("general.alignment=3", "general.alignment: expected a power of two as u32, found uint32 3"),
            ("general.alignment=0", "expected a power of two as u32, found uint32 0"),
            ("general.alignment=u64:64", "expected a power of two as u32, found uint64 64"),
            (
                "general.quantization_version=3",
                "general.quantization_version: expected a key that doesn't describe the tensors, found one that does: \
                 blocks are written in the version that the file says",
            ),
            ("split.count=u16:2", "split.count: expected a key that doesn't describe the tensors"),
        ];
        for (argument, expected) in cases {
            let message = applied(argument).unwrap_err().to_string();
            assert!(message.contains(expected), "{argument}: {message}");
        }
    }

    #[test]
    fn keys_keep_their_place_and_new_ones_come_last() {
        let mut metadata = metadata();
        for argument in ["llama.block_count=7", "new=int:1", "general.name=New"] {
            argument.parse::<Override>().unwrap().apply(&mut metadata).unwrap();
        }
        let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
        assert_eq!(keys[..2], ["general.name", "llama.block_count"]);
        assert_eq!(keys.last(), Some(&"new"));
        assert_eq!(keys.len(), 8);
    }

    #[test]
    fn the_layout_follows_an_overridden_alignment() {
        let mut metadata = metadata();
        Override::parse("general.alignment=256").unwrap().apply(&mut metadata).unwrap();
        let layout = layout(&metadata, &[]).unwrap();
        assert_eq!(layout.files[0].byte_len % 256, 0);
    }
}
