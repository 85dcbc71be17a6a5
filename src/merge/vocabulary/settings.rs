//! What is said about the vocabulary of a merged model: mergekit's `tokenizer_source` and `tokenizer`.

use std::path::PathBuf;

use crate::error::{Finding, Result};

/// Where the output's tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenizerSource {
    /// The base's tokenizer, without tokens for which the base has no row.
    Base,
    /// The base's tokenizer, and the tokens that only other models have.
    Union,
    /// The tokenizer in this folder.
    Folder(PathBuf),
}

/// A token of a model's own vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenName {
    /// By its id.
    Id(usize),
    /// By its text.
    Text(String),
}

/// Where the row of a token comes from. Models are given by their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRow {
    /// Zeros.
    Zero,
    /// This model's row of the same token.
    Model(usize),
    /// This model's row of another token.
    Token {
        /// The model.
        model: usize,
        /// The token.
        token: TokenName,
    },
}

/// What is said about a single token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenSettings {
    /// The row of models that lack the token.
    pub row: Option<TokenRow>,
    /// Whether models that have the token get this row, too.
    pub force: bool,
}

/// The vocabulary of a merged model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VocabularySettings {
    /// Where the output's tokens come from.
    pub source: TokenizerSource,
    /// What is said about single tokens, by their texts. Tokens that the source lacks are added.
    pub tokens: Vec<(String, TokenSettings)>,
    /// The number of rows is made a multiple of this. Rows without a token are the mean of the others.
    pub pad_to_multiple_of: Option<usize>,
}

impl VocabularySettings {
    /// The tokens of `source`, and nothing else.
    pub fn new(source: TokenizerSource) -> Self {
        Self { source, tokens: Vec::new(), pad_to_multiple_of: None }
    }

    /// Checks the numbers for this many models.
    pub(super) fn check(&self, models: usize) -> Result<()> {
        let finding = |field: &str| Finding::new("", field);
        if models == 0 {
            return Err(finding("models").expected("a model").found("none").setting());
        }
        self.pad_to_multiple_of.map_or(Ok(()), check_multiple)?;
        for (text, settings) in &self.tokens {
            let finding = || finding("tokens").found(format!("{text:?}"));
            match &settings.row {
                Some(TokenRow::Model(model) | TokenRow::Token { model, .. }) if *model >= models => {
                    return Err(finding().expected("rows of the models that are merged").setting());
                }
                None if settings.force => {
                    return Err(finding().expected("a source of the row, where `force` is set").setting());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The largest multiple to which embeddings are padded.
const MAX_MULTIPLE: usize = 1 << 20;

/// Checks the number whose multiple the rows of embeddings become.
///
/// # Errors
/// [`crate::Error::Setting`].
pub(crate) fn check_multiple(multiple: usize) -> Result<()> {
    match (1..=MAX_MULTIPLE).contains(&multiple) {
        true => Ok(()),
        false => {
            let finding = Finding::new("", "pad_to_multiple_of");
            Err(finding.expected(format_args!("a number from 1 to {MAX_MULTIPLE}")).found(multiple).setting())
        }
    }
}
