//! Vocabularies whose added tokens are read in a way of their own: Arctic and Xverse.
//!
//! Reference: llama.cpp `set_vocab` of `conversion/arctic.py` and `xverse.py`.

use serde_json::Value as Json;

use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::auto::Auto;
use crate::tokenizer::from_hf::files::shortened;
use crate::tokenizer::from_hf::sentencepiece::{self, ScoredTokens};
use crate::tokenizer::from_hf::vocabulary::Token;
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece::SentencePieceModel;
use crate::tokenizer::token::{TokenKind, UNUSED_SCORE, is_byte};

const MODEL: &str = "tokenizer.model";

impl VocabWriter<'_> {
    /// SentencePiece. tokenizer_config.json makes the model's last pieces the beginning and the end of texts: Arctic.
    pub(in crate::tokenizer::from_hf) fn arctic(&mut self) -> Result<()> {
        let files = self.files;
        let Some(bytes) = files.bytes(MODEL)? else { return Err(sentencepiece::missing(files)) };
        let model = SentencePieceModel::parse(&files.folder.join(MODEL), &bytes)?;
        let size = files.vocab_size()?.unwrap_or(model.pieces.len());
        if model.pieces.len() > size {
            return Err(sentencepiece::past_the_end(files, MODEL, "pieces", model.pieces.len(), size));
        }
        let mut tokens = ScoredTokens::unused(size);
        tokens.set_pieces(&model);
        let unknown = files.setting("unk_token");
        let mut left_out = Vec::new();
        for (id, token) in files.setting("added_tokens_decoder").and_then(Json::as_object).into_iter().flatten() {
            let (Ok(number), Some(text)) = (id.parse(), token.get("content").and_then(Json::as_str)) else {
                let finding = files.finding_in("tokenizer_config.json", format!("added_tokens_decoder.{id}"));
                return Err(finding.expected("a token by its id").found(shortened(&token.to_string())).format());
            };
            let special = token.get("special").and_then(Json::as_bool) == Some(true);
            let (kind, score) = match special {
                true if unknown == Some(&text.into()) => (TokenKind::Unknown, 0.0),
                true => (TokenKind::Control, 0.0),
                false => (TokenKind::UserDefined, UNUSED_SCORE),
            };
            if !tokens.set(number, text, score, kind) {
                left_out.push(format!("{text:?} ({id})"));
            }
        }
        sentencepiece::note_some(self.notes, "added tokens past the end of the vocabulary left out", &left_out);
        self.llama_tokens(tokens)
    }

    /// BPE that falls back to bytes, written without scores: Xverse.
    pub(in crate::tokenizer::from_hf) fn xverse(&mut self) -> Result<()> {
        let files = self.files;
        let auto = Auto::load(files)?;
        let size = match files.vocab_size()? {
            Some(size) => size,
            None => auto.ids().len(),
        };
        let mut tokens: Vec<Token> = Vec::with_capacity(size);
        for (text, id) in auto.ids() {
            if id != tokens.len() || id >= size {
                return Err(files
                    .finding(format!("token {text:?}"))
                    .expected(format_args!("the next id, {}, of {size}", tokens.len()))
                    .found(id)
                    .hint("ids must follow each other without a gap")
                    .format());
            }
            let (kind, text) = match (text, auto.added.get(text)) {
                // The character U+0000 would end the text in llama.cpp.
                ("\0", _) => (TokenKind::Byte, r"<b'\x00'>"),
                (text, _) if is_byte(text) => (TokenKind::Byte, text),
                (text, Some(added)) if added.special => (TokenKind::Control, text),
                (text, Some(_)) => (TokenKind::UserDefined, text),
                (text, None) => (TokenKind::Normal, text),
            };
            tokens.push(Token { text: text.to_owned(), kind });
        }
        if tokens.len() != size {
            let finding = files.finding("model.vocab").expected(format_args!("{size} tokens, as config.json says"));
            return Err(finding.found(tokens.len()).hint("the tokenizer may be of another model").mismatch());
        }
        self.metadata.insert(keys::MODEL, "llama");
        self.metadata.insert(keys::PRE, "default");
        self.tokens(tokens);
        self.specials(Some(size))
    }
}
