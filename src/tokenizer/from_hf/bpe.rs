//! Byte-level BPE: the keys of its vocabulary, and its merges.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_gpt2`), `gguf-py/gguf/vocab.py`
//! (`SpecialVocab`, merges).

use serde_json::Value as Json;

use super::auto::{Auto, ModelKind, merge_lines};
use super::files::{Files, read_text, shortened};
use super::{VocabWriter, pre, tiktoken, vocabulary};
use crate::error::Result;
use crate::formats::gguf::Array;
use crate::tokenizer::keys;

impl VocabWriter<'_> {
    /// Byte-level BPE (`_set_vocab_gpt2`).
    pub(super) fn bpe(&mut self) -> Result<()> {
        let files = self.files;
        if let Some(name) = tiktoken::file(files)? {
            return self.tiktoken(&name);
        }
        let auto = Auto::load(files)?;
        if auto.model != ModelKind::Bpe {
            return Err(files
                .finding("model.type")
                .expected("BPE, as this architecture has it")
                .found(format_args!("{:?}", auto.model))
                .unsupported());
        }
        let tokens = vocabulary::tokens(files, &auto, self.notes)?;
        let pre = pre::find(files, &auto, self.pre, self.notes)?;
        self.metadata.insert(keys::MODEL, "gpt2");
        self.metadata.insert(keys::PRE, pre);
        self.tokens(tokens);
        self.metadata.insert(keys::MERGES, Array::texts(merges(files, self.notes)?));
        self.specials(None)
    }
}

/// The merges of tokenizer.json, else of merges.txt, as "left right" in order of rank. Spaces inside
/// a part are written as U+0120.
pub(super) fn merges(files: &Files, notes: &mut Vec<String>) -> Result<Vec<String>> {
    let model = files.tokenizer.as_ref().and_then(|tokenizer| tokenizer.get("model"));
    let listed = model.and_then(|model| model.get("merges")).and_then(Json::as_array);
    let merges = match listed.filter(|merges| !merges.is_empty()) {
        Some(merges) => merges.iter().map(|merge| read_merge(files, merge)).collect::<Result<_>>()?,
        None => merges_of_text(files, notes)?,
    };
    if merges.is_empty() {
        return Err(files
            .finding("model.merges")
            .expected("merges")
            .found("none")
            .hint("llama.cpp can't tokenize without them")
            .format());
    }
    Ok(merges)
}

fn merges_of_text(files: &Files, notes: &mut Vec<String>) -> Result<Vec<String>> {
    let path = files.folder.join("merges.txt");
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let mut merges = Vec::new();
    for merge in merge_lines(&read_text(&path)?) {
        match merge {
            Ok(merge) => merges.push(merge),
            Err(line) => notes.push(format!("merges.txt, line {line}: not two parts, left out")),
        }
    }
    Ok(merges)
}

fn read_merge(files: &Files, merge: &Json) -> Result<String> {
    let read = match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(pair) => match pair.as_slice() {
            [Json::String(left), Json::String(right)] => {
                Some(format!("{} {}", left.replace(' ', "\u{120}"), right.replace(' ', "\u{120}")))
            }
            _ => None,
        },
        _ => None,
    };
    read.ok_or_else(|| {
        let found = shortened(&merge.to_string());
        files.finding("model.merges").expected("\"left right\" or [\"left\", \"right\"]").found(found).format()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn merges_come_in_two_forms() {
        let with = |merges: Json| {
            let files = Files::for_test(json!({"model": {"merges": merges}}), json!({}), json!({}));
            merges_of(&files)
        };
        assert_eq!(with(json!(["a b", "ab c"])).unwrap(), ["a b", "ab c"]);
        assert_eq!(with(json!([["a", "b"], ["a b", " "]])).unwrap(), ["a b", "a\u{120}b \u{120}"]);
        assert!(with(json!([["a"]])).is_err());
        assert!(with(json!([])).unwrap_err().to_string().contains("model.merges: expected merges, found none"));
    }

    fn merges_of(files: &Files) -> Result<Vec<String>> {
        merges(files, &mut Vec::new())
    }
}
