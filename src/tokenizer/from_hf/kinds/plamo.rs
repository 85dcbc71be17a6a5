//! tokenizer.jsonl of PLaMo 2 and 3: a list of pieces with their scores, one on each line.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_plamo`), `conversion/plamo.py` (`set_vocab`).

use serde_json::Value as Json;

use crate::checkpoint::PLAMO_FILE as PIECES;
use crate::error::Result;
use crate::tokenizer::from_hf::files::{Files, read_text, shortened};
use crate::tokenizer::from_hf::sentencepiece::ScoredTokens;
use crate::tokenizer::from_hf::special::id_key;
use crate::tokenizer::from_hf::{VocabWriter, template};
use crate::tokenizer::token::{ADDED_SCORE, TokenKind, placeholder};

/// The id of `<|plamo:op|>`, which begins the next turn.
const TURN_END: u32 = 4;

impl VocabWriter<'_> {
    pub(in crate::tokenizer::from_hf) fn plamo2(&mut self) -> Result<()> {
        let files = self.files;
        let mut tokens = pieces(files)?;
        let size = files.vocab_size()?.unwrap_or_default();
        // Numbered from one, whatever their ids are.
        for number in 1..=size.saturating_sub(tokens.texts.len()) {
            tokens.push(&placeholder(number), ADDED_SCORE, TokenKind::Unused);
        }
        let mut ids = Vec::new();
        for kind in ["bos", "eos", "pad", "sep", "unk"] {
            let name = format!("{kind}_token");
            let Some(token) = files.setting(&name).filter(|token| !token.is_null()) else { continue };
            let place = tokens.texts.iter().position(|text| token.as_str() == Some(text));
            let Some(id) = place.and_then(|place| u32::try_from(place).ok()) else {
                let finding = files.finding_in("tokenizer_config.json", name);
                return Err(finding
                    .expected(format_args!("a token of {PIECES}"))
                    .found(shortened(&token.to_string()))
                    .mismatch());
            };
            ids.push((kind, id));
        }
        self.scored("plamo2", tokens);
        for (kind, id) in ids.into_iter().chain([("eot", TURN_END)]) {
            if let Some(key) = id_key(kind) {
                self.metadata.insert(key, id);
            }
        }
        self.no_space_prefix()
    }

    /// The same with the chat template of a file of its own, else of tokenizer_config.json.
    pub(in crate::tokenizer::from_hf) fn plamo3(&mut self) -> Result<()> {
        self.plamo2()?;
        if !self.template_of_file()?
            && let Some(template) = self.files.setting("chat_template")
        {
            template::write(self.metadata, template);
        }
        Ok(())
    }
}

/// Returns how many pieces there are.
pub(in crate::tokenizer::from_hf) fn size(files: &Files) -> Result<usize> {
    Ok(pieces(files)?.texts.len())
}

/// Reads the pieces: each is a list of a text, a score and a kind.
fn pieces(files: &Files) -> Result<ScoredTokens> {
    let path = files.folder.join(PIECES);
    if !path.is_file() {
        return Err(files.finding_in("", "tokenizer").expected(PIECES).found("no such file").mismatch());
    }
    let mut tokens = ScoredTokens::default();
    let text = read_text(&path)?;
    for (number, line) in text.split('\n').enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let piece: Json = serde_json::from_str(line).unwrap_or_default();
        let (Some(text), Some(score)) = (piece.get(0).and_then(Json::as_str), piece.get(1).and_then(Json::as_f64))
        else {
            let finding = files.finding_in(PIECES, format!("line {}", number.saturating_add(1)));
            return Err(finding.expected("a list of a text, a score and a kind").found(shortened(line)).format());
        };
        let kind = match piece.get(2).and_then(Json::as_str) {
            Some("UNKNOWN") => TokenKind::Unknown,
            Some("CONTROL") => TokenKind::Control,
            Some("BYTE") => TokenKind::Byte,
            _ if text.starts_with("<|plamo:") && text.ends_with("|>") => TokenKind::Control,
            _ => TokenKind::Normal,
        };
        tokens.push(text, score as f32, kind);
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use crate::tokenizer::from_hf::{Vocab, keys_of};

    fn refusal(pieces: &str, config: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(super::PIECES), pieces).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), config).unwrap();
        let model = serde_json::json!({"vocab_size": 4}).as_object().unwrap().clone();
        keys_of(folder.path(), model, Vocab::Plamo2).unwrap_err().to_string()
    }

    #[test]
    fn lines_and_names_that_fit_nothing_are_refused() {
        for bad in ["{}", "[1, 2]", "[\"a\"]", "[\"a\", \"b\"]", "a"] {
            let message = refusal(&format!("[\"a\", 0.5]\n{bad}\n"), "{}");
            assert!(message.contains("tokenizer.jsonl: line 2: expected a list of a text, a score"), "{message}");
        }
        let message = refusal("[\"a\", 0.5]\n", r#"{"eos_token": "b"}"#);
        assert!(message.contains("eos_token: expected a token of tokenizer.jsonl, found \"b\""), "{message}");
        let none = tempfile::tempdir().unwrap();
        let message = keys_of(none.path(), serde_json::Map::new(), Vocab::Plamo2).unwrap_err().to_string();
        assert!(message.contains("tokenizer: expected tokenizer.jsonl, found no such file"), "{message}");
    }
}
