//! The record of a GGUF file's tokenizer in tokenizer_config.json, written and read. It holds what
//! Hugging Face's files have no place for.
//!
//! The record lists the keys in their order, with the values that aren't in other files, and the
//! tokens that would come back with another kind. The files win over the record: a token or a flag
//! that they name counts, and a record for another number of tokens is ignored. So a tokenizer can be
//! changed after the conversion. Libraries that don't know the record ignore it.

use std::collections::HashSet;

use serde_json::{Map, Value as Json, json};

use super::special::SpecialToken;
use super::token::TokenKind;
use super::{keys, pre};
use crate::formats::gguf::{Array, Metadata, Value};

/// The record's name in tokenizer_config.json.
pub(super) const FIELD: &str = "gguf";
const PREFIX: &str = "tokenizer.";

/// Tokens whose kind differs from the one that the files lead to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TypeException {
    pub(super) kind: TokenKind,
    pub(super) instead_of: TokenKind,
    /// Runs of ids, each with its first and last one.
    pub(super) ids: Vec<(u32, u32)>,
}

impl TypeException {
    /// Adds a token that would come back as `instead_of`, if that isn't its kind. Ids have to ascend.
    pub(super) fn add(exceptions: &mut Vec<Self>, id: u32, kind: TokenKind, instead_of: TokenKind) {
        if kind == instead_of {
            return;
        }
        match exceptions.iter_mut().find(|known| known.kind == kind && known.instead_of == instead_of) {
            None => exceptions.push(Self { kind, instead_of, ids: vec![(id, id)] }),
            Some(known) => match known.ids.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(id) => *last = id,
                _ => known.ids.push((id, id)),
            },
        }
    }
}

/// Makes the record of a GGUF file.
pub(super) fn write(metadata: &Metadata, exceptions: Vec<TypeException>, notes: &mut Vec<String>) -> Json {
    let mut keys = Map::new();
    let mut tokens = 0;
    for (key, value) in metadata.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        if let (keys::TOKENS, Value::Array(array)) = (key, value) {
            tokens = array.len();
        }
        if is_in_files(key) {
            keys.insert(key.to_owned(), Json::Null);
            continue;
        }
        match to_json(value) {
            Some(value) => drop(keys.insert(key.to_owned(), value)),
            None => notes.push(format!("{key}: {value}, left out: the tokenizer's files have no place for it")),
        }
    }
    let exceptions: Vec<Json> = exceptions
        .iter()
        .map(|e| json!({"type": e.kind.number(), "instead_of": e.instead_of.number(), "ids": e.ids}))
        .collect();
    json!({"tokens": tokens, "keys": keys, "token_types": exceptions})
}

/// Keys whose values other files hold.
fn is_in_files(key: &str) -> bool {
    [keys::TOKENS, keys::TOKEN_TYPE, keys::SCORES, keys::MERGES, keys::PRECOMPILED_CHARSMAP].contains(&key)
        || key.starts_with(keys::CHAT_TEMPLATE)
}

/// Bools, texts and uint32 as they are, other values with their type. `None` for a value that is too
/// long for a config.
fn to_json(value: &Value) -> Option<Json> {
    const MAX_BYTES: usize = 4096;
    const MAX_ELEMENTS: usize = 1024;
    let typed = |json: Json| Some(json!({value.kind().to_string(): json}));
    match value {
        Value::Bool(flag) => Some(json!(flag)),
        Value::U32(number) => Some(json!(number)),
        Value::String(_) => value.as_text().filter(|text| text.len() <= MAX_BYTES).map(|text| json!(text)),
        Value::I32(number) => typed(json!(number)),
        Value::U64(number) => typed(json!(number)),
        Value::I64(number) => typed(json!(number)),
        Value::F32(number) if number.is_finite() => typed(json!(number)),
        Value::Array(Array::I32(numbers)) if numbers.len() <= MAX_ELEMENTS => typed(json!(numbers)),
        _ => None,
    }
}

fn from_json(json: &Json) -> Option<Value> {
    match json {
        Json::Bool(flag) => Some(Value::Bool(*flag)),
        Json::String(text) => Some(text.as_str().into()),
        Json::Number(_) => Some(Value::U32(u32::try_from(json.as_u64()?).ok()?)),
        Json::Object(typed) => {
            let (kind, json) = typed.iter().next()?;
            Some(match kind.as_str() {
                "int32" => Value::I32(i32::try_from(json.as_i64()?).ok()?),
                "uint64" => Value::U64(json.as_u64()?),
                "int64" => Value::I64(json.as_i64()?),
                "float32" => Value::F32(json.as_f64()? as f32),
                "array" => {
                    let numbers = json.as_array()?.iter().map(|number| i32::try_from(number.as_i64()?).ok());
                    Value::Array(Array::I32(numbers.collect::<Option<_>>()?))
                }
                _ => return None,
            })
        }
        _ => None,
    }
}

/// The recorded name of the pre-tokenizer, if tokenizer.json still has exactly its steps.
pub(super) fn pre_tokenizer_name(tokenizer: &Map<String, Json>, config: Option<&Map<String, Json>>) -> Option<String> {
    let keys = config?.get(FIELD)?.get("keys")?;
    let name = keys.get(keys::PRE).map_or(Some("default"), Json::as_str)?;
    if !keys.get(keys::MODEL).is_some_and(has_steps) {
        return Some(name.to_owned());
    }
    let pre = pre::by_name(name)?;
    let model = tokenizer.get("model")?;
    let ignores = model.get("ignore_merges").and_then(Json::as_bool).unwrap_or(false);
    let bpe = model.get("type").and_then(Json::as_str) == Some("BPE") && pre.ignore_merges == ignores;
    let same = bpe && tokenizer.get("pre_tokenizer") == Some(&pre.pre_tokenizer());
    same.then(|| name.to_owned())
}

/// Whether the pre-tokenizer's name decides the steps of tokenizer.json.
fn has_steps(model: &Json) -> bool {
    !matches!(model.as_str(), Some("llama" | "bert" | "t5"))
}

/// Completes the keys that a conversion `derived` from the tokenizer's files: they get the record's
/// order and the keys that files can't name, and lose keys that the record doesn't have and no file
/// names. The name of the pre-tokenizer stays if the user asked for it.
pub(super) fn complete(
    derived: Metadata,
    config: Option<&Map<String, Json>>,
    model_config: &Map<String, Json>,
    asked_for_pre: bool,
) -> Metadata {
    let record = config.and_then(|config| config.get(FIELD));
    let Some((record, keys)) = record.and_then(|record| Some((record, record.get("keys")?.as_object()?))) else {
        return derived;
    };
    let tokens = derived.strings(keys::TOKENS).map_or(0, <[_]>::len) as u64;
    let model = derived.text(keys::MODEL).ok();
    if record.get("tokens").and_then(Json::as_u64) != Some(tokens)
        || keys.get(keys::MODEL).and_then(Json::as_str) != model
    {
        return derived;
    }
    let mut result = Metadata::new(derived.file());
    for (key, value) in keys.iter().filter(|(key, _)| key.starts_with(PREFIX)) {
        let fixed = key == keys::PRE && !asked_for_pre && !keys.get(keys::MODEL).is_some_and(has_steps);
        match derived.get(key).filter(|_| !fixed) {
            Some(value) => drop(result.insert(key.as_str(), value.clone())),
            None if has_a_name(key) => {}
            None => {
                if let Some(value) = from_json(value) {
                    result.insert(key.as_str(), value);
                }
            }
        }
    }
    for (key, value) in derived.iter() {
        let stands = [keys::TOKENS, keys::MERGES].contains(&key) || (key == keys::PRE && asked_for_pre);
        if result.get(key).is_none() && (stands || is_named(key, config, model_config)) {
            result.insert(key, value.clone());
        }
    }
    if let Some(Value::Array(Array::I32(kinds))) = result.get(keys::TOKEN_TYPE) {
        let mut kinds = kinds.clone();
        set_kinds(&mut kinds, record.get("token_types"));
        result.insert(keys::TOKEN_TYPE, Array::I32(kinds));
    }
    result
}

/// The name of the special token whose id a key holds, and whether files can name the token.
fn role(key: &str) -> Option<(&'static str, bool)> {
    let (role, name, _) = SpecialToken::ALL.iter().find(|(_, _, known)| *known == key)?;
    Some((name, !matches!(role, SpecialToken::Cls | SpecialToken::Eot | SpecialToken::Eom)))
}

/// Whether a key is for a token that files can name: if they don't, there is no such token.
fn has_a_name(key: &str) -> bool {
    role(key).is_some_and(|(_, has)| has)
}

/// Whether a key's value comes from a file, and not from a rule of the converter.
fn is_named(key: &str, config: Option<&Map<String, Json>>, model_config: &Map<String, Json>) -> bool {
    let set = |name: &str| config.and_then(|config| config.get(name)).is_some_and(|value| !value.is_null());
    if let Some((name, _)) = role(key) {
        let id = model_config.get(&format!("{name}_token_id"));
        return set(&format!("{name}_token")) || id.is_some_and(Json::is_u64);
    }
    match key.strip_prefix("tokenizer.ggml.") {
        Some(flag @ ("add_bos_token" | "add_eos_token" | "add_sep_token")) => set(flag),
        Some("add_space_prefix") => set("add_prefix_space"),
        _ => key.starts_with(keys::CHAT_TEMPLATE),
    }
}

/// Sets the recorded kinds of tokens that have the kinds that these replace. Each pair of kinds counts
/// once and its runs of ids have to ascend, so that no record makes more work than there are tokens.
fn set_kinds(kinds: &mut [i32], exceptions: Option<&Json>) {
    let kind = |json: &Json, name: &str| TokenKind::from_number(json.get(name)?.as_i64()?).map(TokenKind::number);
    let mut seen = HashSet::new();
    for exception in exceptions.and_then(Json::as_array).into_iter().flatten() {
        let (Some(new), Some(old)) = (kind(exception, "type"), kind(exception, "instead_of")) else { continue };
        if !seen.insert((new, old)) {
            continue;
        }
        let mut next = 0;
        for run in exception.get("ids").and_then(Json::as_array).into_iter().flatten() {
            let end = |place: usize| run.get(place).and_then(Json::as_u64).and_then(|id| usize::try_from(id).ok());
            let (Some(first), Some(last)) = (end(0), end(1)) else { continue };
            if first < next || last < first {
                continue;
            }
            next = last.saturating_add(1);
            for id in kinds.get_mut(first..).into_iter().flatten().take(next.saturating_sub(first)) {
                if *id == old {
                    *id = new;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_ids_that_do_not_ascend_are_ignored() {
        let mut kinds = vec![1; 6];
        let exceptions = json!([
            {"type": 4, "instead_of": 1, "ids": [[1, 2], [0, 5], [3, 2], [5, 99]]},
            {"type": 4, "instead_of": 1, "ids": [[0, 5]]},
        ]);
        set_kinds(&mut kinds, Some(&exceptions));
        assert_eq!(kinds, [1, 4, 4, 1, 1, 4]);
    }
}
