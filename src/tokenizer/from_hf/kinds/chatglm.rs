//! ChatGLM: the SentencePiece of ChatGLM 3, whose special tokens are in its Python code, and BPE of GLM 4.
//!
//! Reference: llama.cpp `conversion/chatglm.py` (`set_vocab`).

use serde_json::Value as Json;

use super::Special;
use crate::error::Result;
use crate::tokenizer::from_hf::VocabWriter;
use crate::tokenizer::from_hf::sentencepiece::{self, Reading, ScoredTokens, kind_of};
use crate::tokenizer::from_hf::vocabulary::AddedTexts;
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece::SentencePieceModel;
use crate::tokenizer::token::{TokenKind, placeholder};

const MODEL: &str = "tokenizer.model";

/// The name by which the converter knows the model whose tokenizer is SentencePiece.
const CHATGLM3: &str = "THUDM/chatglm3-6b";

/// The tokens of the tokenizer's code, behind those of the model.
const ADDED: [&str; 9] =
    ["[MASK]", "[gMASK]", "[sMASK]", "sop", "eop", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"];

impl VocabWriter<'_> {
    pub(in crate::tokenizer::from_hf) fn chatglm(&mut self, specials: &[Special]) -> Result<()> {
        let name = self.files.hparam("_name_or_path").and_then(Json::as_str).unwrap_or_default();
        match self.files.recorded_model() {
            // The special tokens are in the files.
            Some("llama") => self.spm(Reading::Usual),
            None if name.contains(CHATGLM3) => self.chatglm3(),
            _ => self.bpe_with(AddedTexts::Usual, specials),
        }
    }

    fn chatglm3(&mut self) -> Result<()> {
        let files = self.files;
        let Some(bytes) = files.bytes(MODEL)? else { return Err(sentencepiece::missing(files)) };
        let model = SentencePieceModel::parse(&files.folder.join(MODEL), &bytes)?;
        let listed = model.pieces.len().saturating_add(ADDED.len());
        let size = files.size_of("padded_vocab_size")?.unwrap_or(listed);
        if size < listed {
            return Err(sentencepiece::past_the_end(files, MODEL, "tokens", listed, size));
        }
        let mut tokens = ScoredTokens::default();
        for (id, piece) in model.pieces.iter().enumerate() {
            let named = [model.unk_id, model.bos_id, model.eos_id].into_iter().flatten();
            let is_named = named.map(usize::try_from).any(|named| named == Ok(id));
            let text = match id {
                0 => "<unk>",
                1 => "<bos>",
                2 => "<eos>",
                // The tokenizer's code has no text for these.
                _ if is_named => "",
                _ => &piece.text,
            };
            let score = if text.is_empty() { 0.0 } else { piece.score };
            tokens.push(text, score, kind_of(piece));
        }
        for text in ADDED {
            tokens.push(text, 0.0, TokenKind::Control);
        }
        for id in listed..size {
            tokens.push(&placeholder(id), 0.0, TokenKind::Unused);
        }
        self.metadata.insert(keys::MODEL, "llama");
        self.metadata.insert(keys::PRE, "chatglm-spm");
        self.scored_tokens(tokens);
        self.specials(Some(size))
    }
}
