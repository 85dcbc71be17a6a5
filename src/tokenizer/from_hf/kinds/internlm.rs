//! SentencePiece of InternLM 2 and 3, whose end of a turn is the end of a text.
//!
//! Reference: llama.cpp `conversion/internlm.py` (`set_vocab`).

use serde_json::Value as Json;

use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::files::{Files, id_of, shortened};
use crate::tokenizer::from_hf::sentencepiece::{self, Reading, ScoredTokens, kind_of};
use crate::tokenizer::from_hf::special::{SpecialTokens, USUAL};
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece::SentencePieceModel;
use crate::tokenizer::token::{ADDED_SCORE, TokenKind, UNUSED_SCORE, placeholder};

const MODEL: &str = "tokenizer.model";
const CONFIG: &str = "tokenizer_config.json";
/// The token at the end of a turn.
const TURN_END: &str = "<|im_end|>";
/// What stands for the character U+0000, which would end a text in llama.cpp.
const NUL: &str = "\u{1f409}";

impl VocabWriter<'_> {
    pub(in crate::tokenizer::from_hf) fn internlm2(&mut self) -> Result<()> {
        let files = self.files;
        let Some(bytes) = files.bytes(MODEL)? else { return Err(sentencepiece::missing(files)) };
        let model = SentencePieceModel::parse(&files.folder.join(MODEL), &bytes)?;
        let size = files.vocab_size()?.unwrap_or(model.pieces.len());
        let mut tokens = ScoredTokens::default();
        for piece in model.pieces.iter().take(size) {
            let kind = if piece.text.starts_with("[UNUSED") { TokenKind::Unused } else { kind_of(piece) };
            tokens.push(if piece.text == "\0" { NUL } else { &piece.text }, piece.score, kind);
        }
        // The reference takes no model with fewer pieces. In a folder made of a GGUF, the rest is listed elsewhere.
        for id in tokens.texts.len()..size {
            tokens.push(&placeholder(id), UNUSED_SCORE, TokenKind::Unused);
        }
        // Behind the others, whatever id is listed.
        for text in files.json("added_tokens.json")?.unwrap_or_default().keys() {
            tokens.push(text, ADDED_SCORE, TokenKind::UserDefined);
        }
        let turn_end = replace_added(files, &mut tokens)?;
        let count = tokens.texts.len();
        self.scored("llama", tokens);
        self.metadata.insert(keys::ADD_SPACE_PREFIX, model.add_dummy_prefix);
        let mut specials = SpecialTokens::load(files, USUAL, Some(count), self.notes)?;
        if let Some(turn_end) = turn_end {
            specials.replace("eos", turn_end);
        }
        specials.write(self.metadata);
        Ok(())
    }

    pub(in crate::tokenizer::from_hf) fn internlm3(&mut self) -> Result<()> {
        let files = self.files;
        let Some(tokens) = sentencepiece::of_model_or_json(files, Reading::Usual, self.notes)? else {
            return Err(sentencepiece::missing(files));
        };
        let count = tokens.texts.len();
        self.scored("llama", tokens);
        let mut specials = SpecialTokens::load(files, USUAL, Some(count), self.notes)?;
        self.configured_prefix();
        for (id, token) in decoder(files) {
            let is = |name: &str, value: &Json| token.get(name) == Some(value);
            if !is("content", &TURN_END.into()) || !is("special", &true.into()) || specials.id("eos").is_none() {
                continue;
            }
            specials.replace("eos", number(files, CONFIG, id.parse().ok(), token)?);
        }
        specials.write(self.metadata);
        Ok(())
    }
}

/// Returns `added_tokens_decoder` of tokenizer_config.json: tokens by id.
fn decoder(files: &Files) -> impl Iterator<Item = (&String, &Json)> {
    files.setting("added_tokens_decoder").and_then(Json::as_object).into_iter().flatten()
}

/// Replaces tokens by the added ones of tokenizer_config.json, then of tokenizer.json. Returns the id of the end of a
/// turn.
fn replace_added(files: &Files, tokens: &mut ScoredTokens) -> Result<Option<u32>> {
    let listed = files.tokenizer.as_ref().and_then(|json| json.get("added_tokens")).and_then(Json::as_array);
    let listed = listed.into_iter().flatten().map(|token| ("tokenizer.json", token.get("id").and_then(id_of), token));
    let mut turn_end = None;
    for (name, id, token) in decoder(files).map(|(id, token)| (CONFIG, id.parse().ok(), token)).chain(listed) {
        let number = number(files, name, id, token)?;
        let text = token.get("content").and_then(Json::as_str).unwrap_or_default();
        if text == TURN_END {
            turn_end = Some(number);
        }
        // A folder made of a GGUF lists tokens here that tokenizer.model has with their scores.
        let is_known = id.and_then(|id| tokens.texts.get(id)).is_some_and(|known| known == text);
        if name == "tokenizer.json" && is_known && files.recorded_model().is_some() {
            continue;
        }
        let special = token.get("special").and_then(Json::as_bool) == Some(true);
        let kind = if special { TokenKind::Control } else { TokenKind::UserDefined };
        if !tokens.set(id.unwrap_or(usize::MAX), text, ADDED_SCORE, kind) {
            return Err(files
                .finding_in(name, format!("token {text:?}"))
                .expected(format_args!("an id below {}, the number of tokens", tokens.texts.len()))
                .found(number)
                .hint("the tokenizer may be of another model")
                .mismatch());
        }
    }
    Ok(turn_end)
}

/// Returns the id of an added token, which has to have a text too.
fn number(files: &Files, name: &str, id: Option<usize>, token: &Json) -> Result<u32> {
    let id = id.and_then(|id| u32::try_from(id).ok()).filter(|_| token.get("content").is_some_and(Json::is_string));
    id.ok_or_else(|| {
        let finding = files.finding_in(name, "added tokens").expected("tokens with an id and a content");
        finding.found(shortened(&token.to_string())).format()
    })
}
