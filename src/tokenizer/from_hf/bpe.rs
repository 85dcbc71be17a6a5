//! Byte-level BPE: the keys of its vocabulary, and its merges.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_gpt2`), `gguf-py/gguf/vocab.py`
//! (`SpecialVocab`, merges).

use serde_json::{Value as Json, json};

use super::auto::{Auto, ModelKind, merge_lines};
use super::files::{Files, read_text, shortened};
use super::kinds::{Special, SpecialId};
use super::special::{SpecialTokens, USUAL};
use super::tiktoken::Ends;
use super::vocabulary::{AddedTexts, Token};
use super::{VocabWriter, pre, tiktoken, vocabulary};
use crate::error::Result;
use crate::formats::gguf::Array;
use crate::tokenizer::keys;

impl VocabWriter<'_> {
    /// Byte-level BPE (`_set_vocab_gpt2`), or a file of tiktoken.
    pub(super) fn bpe(&mut self) -> Result<()> {
        match tiktoken::file(self.files)? {
            Some(name) => self.tiktoken(&name, Ends::Configured),
            None => self.bpe_with(AddedTexts::Usual, &[]),
        }
    }

    /// Byte-level BPE, whose added tokens are written in one of the ways, and with further special tokens.
    pub(super) fn bpe_with(&mut self, added_texts: AddedTexts, specials: &[Special]) -> Result<()> {
        let files = self.files;
        let auto = tokenizer(files)?;
        let tokens = vocabulary::tokens(files, &auto, added_texts, self.notes)?;
        self.bpe_tokens(&auto, tokens)?;
        let mut special_tokens = SpecialTokens::load(files, USUAL, None, self.notes)?;
        for special in specials {
            let id = match special.token {
                SpecialId::Id(id) => json!(id),
                SpecialId::Text(text) => json!(added_id(files, &auto, text)?),
            };
            special_tokens.set(files, special.role, &id, self.notes)?;
        }
        special_tokens.write(self.metadata);
        Ok(())
    }

    /// Writes the tokens and merges of BPE.
    pub(super) fn bpe_tokens(&mut self, auto: &Auto, tokens: Vec<Token>) -> Result<()> {
        let pre = pre::find(self.files, auto, self.pre, self.notes)?;
        self.metadata.insert(keys::MODEL, "gpt2");
        self.metadata.insert(keys::PRE, pre);
        self.tokens(tokens);
        self.merges()
    }

    /// Writes the merges.
    pub(super) fn merges(&mut self) -> Result<()> {
        self.metadata.insert(keys::MERGES, Array::texts(merges(self.files, self.notes)?));
        Ok(())
    }
}

/// Returns the tokenizer, which has to be BPE.
pub(super) fn tokenizer(files: &Files) -> Result<Auto<'_>> {
    let auto = Auto::load(files)?;
    match auto.model {
        ModelKind::Bpe => Ok(auto),
        other => {
            let finding = files.finding("model.type").expected("BPE, as this architecture has it");
            Err(finding.found(format_args!("{other:?}")).unsupported())
        }
    }
}

/// Returns the id of the added token `text`, which has to exist.
fn added_id(files: &Files, auto: &Auto, text: &str) -> Result<usize> {
    auto.added.get(text).map(|added| added.id).ok_or_else(|| {
        files
            .finding("added_tokens")
            .expected(format_args!("the token {text:?}, which this architecture has"))
            .found("none")
            .hint("the tokenizer may be of another model")
            .mismatch()
    })
}

/// The merges of tokenizer.json, else of merges.txt, as "left right" in order of rank. Spaces inside
/// a part are written as U+0120. There have to be some.
pub(super) fn merges(files: &Files, notes: &mut Vec<String>) -> Result<Vec<String>> {
    let merges = listed_merges(files, notes)?;
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

/// The same for tokenizers that may have none.
pub(super) fn listed_merges(files: &Files, notes: &mut Vec<String>) -> Result<Vec<String>> {
    let model = files.tokenizer.as_ref().and_then(|tokenizer| tokenizer.get("model"));
    let listed = model.and_then(|model| model.get("merges")).and_then(Json::as_array);
    match listed.filter(|merges| !merges.is_empty()) {
        Some(merges) => merges.iter().map(|merge| read_merge(files, merge)).collect(),
        None => merges_of_text(files, notes),
    }
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
