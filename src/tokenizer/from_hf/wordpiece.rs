//! WordPiece: the keys of BERT's vocabularies.
//!
//! Reference: llama.cpp `conversion/bert.py` (`BertModel.set_vocab`).

use super::auto::{Auto, ModelKind};
use super::vocabulary::{self, AddedTexts};
use super::{VocabWriter, pre};
use crate::error::Result;
use crate::tokenizer::keys;
use crate::tokenizer::token::TokenKind;

impl VocabWriter<'_> {
    /// WordPiece of BERT.
    pub(super) fn word_piece(&mut self) -> Result<()> {
        let files = self.files;
        let auto = Auto::load(files)?;
        if auto.model != ModelKind::WordPiece {
            return Err(files
                .finding("model.type")
                .expected("WordPiece, as BERT has it")
                .found(format_args!("{:?}", auto.model))
                .hint("the reference writes a vocabulary that llama.cpp can't use here")
                .unsupported());
        }
        let mut tokens = vocabulary::tokens(files, &auto, AddedTexts::Usual, self.notes)?;
        let pre = pre::find(files, &auto, self.pre, self.notes)?;
        self.metadata.insert(keys::TOKEN_TYPE_COUNT, files.type_vocab_size()?);
        // llama.cpp marks tokens that begin a word, WordPiece marks tokens that continue one.
        for token in tokens.iter_mut().filter(|token| token.kind != TokenKind::Control) {
            token.text = match token.text.strip_prefix("##") {
                Some(rest) => rest.to_owned(),
                None => format!("\u{2581}{}", token.text),
            };
        }
        let count = tokens.len();
        self.metadata.insert(keys::MODEL, "bert");
        self.metadata.insert(keys::PRE, pre);
        self.tokens(tokens);
        self.specials(Some(count))
    }
}
