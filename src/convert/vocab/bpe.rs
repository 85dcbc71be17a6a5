//! Tokens and merges of a byte-level BPE tokenizer.

use std::collections::HashMap;

use serde_json::Value as Json;

use super::{Files, Object, shortened};
use crate::error::Result;

/// What a token is for (llama.cpp `gguf-py/gguf/constants.py`, `TokenType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text like any other.
    Normal = 1,
    /// Steers the model: never printed, never read out of text.
    Control = 3,
    /// Added by hand, whole in any text.
    UserDefined = 4,
    /// An id without a token.
    Unused = 5,
}

/// A token of the output.
pub(super) struct Token {
    pub(super) text: String,
    pub(super) kind: Kind,
}

/// A token on top of the model's vocabulary.
struct Added {
    id: usize,
    special: bool,
}

/// The special tokens that tokenizer_config.json names.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Tokens by id, `vocab_size` of them; ids without one get a placeholder, as the reference has it.
pub(super) fn tokens(files: &Files, vocab_size: usize) -> Result<Vec<Token>> {
    let vocab = vocabulary(files)?;
    let added = added_tokens(files, &vocab)?;
    let mut tokens: Vec<Option<Token>> = (0..vocab_size).map(|_| None).collect();
    let mut texts: Vec<(&str, usize)> = vocab.iter().map(|(text, id)| (*text, *id)).collect();
    texts.extend(
        added.iter().filter(|(text, _)| !vocab.contains_key(text.as_str())).map(|(text, a)| (text.as_str(), a.id)),
    );
    for (text, id) in texts {
        let finding = || files.finding(format!("token {text:?}"));
        let kind = match added.get(text) {
            None => Kind::Normal,
            Some(added) if added.special || looks_special(text) => Kind::Control,
            Some(_) => Kind::UserDefined,
        };
        // Spaces of user-defined tokens stand in the text as they are.
        let text = if kind == Kind::UserDefined { text.replace('\u{2581}', " ") } else { text.to_owned() };
        let place = tokens.get_mut(id).ok_or_else(|| {
            finding()
                .expected(format_args!("an id below vocab_size {vocab_size} of config.json"))
                .found(id)
                .hint("the tokenizer may be of another model")
                .mismatch()
        })?;
        if let Some(other) = place {
            let found = format!("id {id}, which {:?} has too", other.text);
            return Err(finding().expected("an id of its own").found(found).format());
        }
        *place = Some(Token { text, kind });
    }
    let unused = |id| Token { text: format!("[PAD{id}]"), kind: Kind::Unused };
    Ok(tokens.into_iter().enumerate().map(|(id, token)| token.unwrap_or_else(|| unused(id))).collect())
}

/// The model's vocabulary: ids by text.
fn vocabulary(files: &Files) -> Result<HashMap<&str, usize>> {
    let model = files.object("model")?;
    let kind = model.get("type").and_then(Json::as_str).unwrap_or("BPE");
    let byte_fallback = model.get("byte_fallback").and_then(Json::as_bool).unwrap_or(false);
    if kind != "BPE" || byte_fallback {
        let found = if kind == "BPE" { "BPE with byte fallback (SentencePiece)" } else { kind };
        return Err(files
            .finding("model.type")
            .expected("byte-level BPE")
            .found(format_args!("{found}, which this version can't convert yet"))
            .hint("convert this model with llama.cpp's convert_hf_to_gguf.py")
            .unsupported());
    }
    let Some(Json::Object(vocab)) = model.get("vocab") else {
        return Err(files.finding("model.vocab").expected("an object of ids by token").found("none").format());
    };
    vocab.iter().map(|(text, id)| Ok((text.as_str(), id_of(files, text, id)?))).collect()
}

fn id_of(files: &Files, text: &str, id: &Json) -> Result<usize> {
    let number = id.as_u64().and_then(|id| usize::try_from(id).ok());
    number.ok_or_else(|| files.finding(format!("token {text:?}")).expected("an id").found(id).format())
}

/// Added tokens by text, as transformers puts them together: those of tokenizer.json, then those
/// of tokenizer_config.json, which may change what is special, then the named special tokens.
///
/// A named token that has no id yet would be the next one after all others; it has no row in the
/// embedding and is left out.
fn added_tokens(files: &Files, vocab: &HashMap<&str, usize>) -> Result<HashMap<String, Added>> {
    let mut added: HashMap<String, Added> = HashMap::new();
    let mut add = |text: &str, id: usize, special: bool| {
        let entry = added.entry(text.to_owned()).or_insert(Added { id, special });
        entry.special = special;
    };
    let listed = files.tokenizer.get("added_tokens").and_then(Json::as_array);
    for token in listed.into_iter().flatten() {
        let (text, special) = content(token).ok_or_else(|| {
            files
                .finding("added_tokens")
                .expected("tokens with a content")
                .found(shortened(&token.to_string()))
                .format()
        })?;
        add(text, id_of(files, text, &token["id"])?, special);
    }
    let Some(config) = &files.config else { return Ok(added) };
    if let Some(Json::Object(decoder)) = config.get("added_tokens_decoder") {
        for (id, token) in decoder {
            if let (Some((text, special)), Ok(id)) = (content(token), id.parse()) {
                add(text, vocab.get(text).copied().unwrap_or(id), special);
            }
        }
    }
    for text in named_tokens(config) {
        if let (false, Some(&id)) = (added.contains_key(text), vocab.get(text)) {
            added.insert(text.to_owned(), Added { id, special: true });
        }
    }
    Ok(added)
}

/// An added token's text and whether it is special.
fn content(token: &Json) -> Option<(&str, bool)> {
    let special = token.get("special").and_then(Json::as_bool).unwrap_or(false);
    Some((token.get("content")?.as_str()?, special))
}

/// The texts of the special tokens that the config names, one by one or in lists.
fn named_tokens(config: &Object) -> Vec<&str> {
    let single = NAMED.iter().filter_map(|name| config.get(*name));
    let lists = ["additional_special_tokens", "extra_special_tokens"].iter().filter_map(|name| config.get(*name));
    let listed = lists.flat_map(|list| match list {
        Json::Array(tokens) => tokens.iter().collect::<Vec<_>>(),
        Json::Object(tokens) => tokens.values().collect(),
        _ => Vec::new(),
    });
    single.chain(listed).filter_map(|token| token.as_str().or_else(|| content(token).map(|(text, _)| text))).collect()
}

/// Tokens that some models forgot to call special (conversion/base.py, `does_token_look_special`).
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || between("<|", "|>")
        || between("<\u{ff5c}", "\u{ff5c}>")
        || between("<unused", ">")
}

/// Merges as "left right", in order of rank. Spaces inside a part are written as U+0120.
pub(super) fn merges(files: &Files) -> Result<Vec<String>> {
    let merges = files.object("model")?.get("merges").and_then(Json::as_array);
    let merges = merges.filter(|merges| !merges.is_empty()).ok_or_else(|| {
        files
            .finding("model.merges")
            .expected("merges")
            .found("none")
            .hint("llama.cpp can't tokenize without them")
            .format()
    })?;
    let read = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(left), Json::String(right)] => {
                Some(format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}")))
            }
            _ => None,
        },
        _ => None,
    };
    merges
        .iter()
        .map(|merge| {
            read(merge).ok_or_else(|| {
                let found = shortened(&merge.to_string());
                files.finding("model.merges").expected("\"left right\" or [\"left\", \"right\"]").found(found).format()
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    fn files(tokenizer: Json, config: Json) -> Files {
        let object = |json: Json| json.as_object().cloned().unwrap();
        Files { folder: PathBuf::from("m"), tokenizer: object(tokenizer), config: Some(object(config)) }
    }

    fn bpe(added: Json) -> Json {
        json!({"added_tokens": added, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 3}, "merges": ["a b"]}})
    }

    #[test]
    fn kinds_follow_flags_looks_and_names() {
        let added = json!([
            {"id": 4, "content": "<s>", "special": true},
            {"id": 5, "content": "<|fim|>", "special": false},
            {"id": 6, "content": "\u{2581}x", "special": false},
            {"id": 7, "content": "<late>", "special": false}
        ]);
        let config = json!({
            "added_tokens_decoder": {"7": {"content": "<late>", "special": true}, "8": {"content": "new", "special": false}},
            "eos_token": {"content": "b"}, "pad_token": "[absent]", "bos_token": null
        });
        let tokens = tokens(&files(bpe(added), config), 10).unwrap();
        let shown: Vec<String> = tokens.iter().map(|t| format!("{}:{}", t.text, t.kind as i32)).collect();
        assert_eq!(
            shown,
            ["a:1", "b:3", "[PAD2]:5", "ab:1", "<s>:3", "<|fim|>:3", " x:4", "<late>:3", "new:4", "[PAD9]:5"]
        );
    }

    #[test]
    fn ids_past_the_embedding_or_shared_are_refused() {
        let error = |added: Json, size: usize| tokens(&files(bpe(added), json!({})), size).err().unwrap().to_string();
        let message = error(json!([{"id": 9, "content": "z"}]), 8);
        assert!(
            message.contains("token \"z\": expected an id below vocab_size 8 of config.json, found 9"),
            "{message}"
        );
        let message = error(json!([{"id": 1, "content": "z"}]), 8);
        assert!(
            message.contains("token \"z\": expected an id of its own, found id 1, which \"b\" has too"),
            "{message}"
        );
    }

    #[test]
    fn other_models_are_refused() {
        for (model, found) in [
            (json!({"type": "Unigram", "vocab": []}), "found Unigram, which"),
            (json!({"type": "BPE", "byte_fallback": true, "vocab": {}}), "found BPE with byte fallback"),
            (json!({"type": "BPE"}), "model.vocab: expected an object of ids by token"),
        ] {
            let message = tokens(&files(json!({"model": model}), json!({})), 8).err().unwrap().to_string();
            assert!(message.contains(found), "{message}");
        }
    }

    #[test]
    fn merges_come_in_two_forms() {
        let with = |merges: Json| merges_of(json!({"model": {"merges": merges}}));
        assert_eq!(with(json!(["a b", "ab c"])).unwrap(), ["a b", "ab c"]);
        assert_eq!(with(json!([["a", "b"], ["a b", " "]])).unwrap(), ["a b", "a\u{120}b \u{120}"]);
        assert!(with(json!([["a"]])).is_err());
        assert!(with(json!([])).is_err());
    }

    fn merges_of(tokenizer: Json) -> Result<Vec<String>> {
        merges(&files(tokenizer, json!({})))
    }
}
