//! The tokens of the models, and the tokenizer made of them.

use std::collections::{HashMap, HashSet};

use super::settings::{TokenizerSource, VocabularySettings};
use crate::arch::vocabulary::vocab_size;
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, Result};
use crate::tokenizer::{EditedTokenizer, ListedToken};

/// The tokens of a model.
#[derive(Debug)]
pub(super) struct Tokens {
    /// Ids by text. Some can be past the rows of the embeddings.
    ids: HashMap<String, usize>,
    /// How many rows the embeddings have.
    rows: usize,
}

impl Tokens {
    fn of(tokenizer: &EditedTokenizer, rows: usize) -> Self {
        Self { ids: tokenizer.tokens().iter().cloned().collect(), rows }
    }

    /// The row of the token `text`; `None` if there is no such token, or no row for it.
    pub(super) fn id(&self, text: &str) -> Option<usize> {
        self.ids.get(text).copied().filter(|id| *id < self.rows)
    }
}

/// The rows of a model's embeddings, by config.json or else by its tokenizer.
fn rows_of(model: &Checkpoint, tokenizer: &EditedTokenizer) -> usize {
    vocab_size(&model.config_json).unwrap_or_else(|| tokenizer.tokens().len())
}

fn read(model: &Checkpoint) -> Result<Option<EditedTokenizer>> {
    EditedTokenizer::of(model.tokenizer_folder(), &model.config_json)
}

/// The output's tokenizer, and the tokens of every model. `base` is the place of the model with the base's tokenizer.
pub(super) fn of_models(
    models: &[&Checkpoint],
    base: usize,
    settings: &VocabularySettings,
    notes: &mut Vec<String>,
) -> Result<(EditedTokenizer, Vec<Tokens>)> {
    let first = models[base];
    let Some(mut of_base) = read(first)? else {
        let finding = Finding::new(first.path(), "tokenizer").expected("tokenizer.json, or a file of SentencePiece");
        return Err(finding
            .found("none")
            .hint("rows can be matched by token only with the base's tokenizer")
            .mismatch());
    };
    let base_rows = rows_of(first, &of_base);
    of_base.strip(base_rows)?;
    let mut tokenizers = Vec::with_capacity(models.len());
    for (place, model) in models.iter().enumerate() {
        let own = if place == base { None } else { read(model)? };
        if own.is_none() && place != base {
            notes.push(format!(
                "{}: no tokenizer: its rows are taken to be those of {}",
                model.path().display(),
                first.path().display()
            ));
        }
        tokenizers.push(own);
    }
    let members = models.iter().zip(&tokenizers).map(|(model, own)| {
        let own = own.as_ref().unwrap_or(&of_base);
        Tokens::of(own, rows_of(model, own))
    });
    let mut members: Vec<Tokens> = members.collect();
    let mut made = match &settings.source {
        TokenizerSource::Base => of_base,
        TokenizerSource::Union => {
            let others = (0..models.len()).filter(|place| *place != base);
            let others: Vec<(&EditedTokenizer, usize)> =
                others.filter_map(|place| Some((tokenizers[place].as_ref()?, members[place].rows))).collect();
            union(of_base, base_rows, &others)?
        }
        TokenizerSource::Folder(folder) => {
            let is_model = folder.join("config.json").is_file();
            let config = match is_model {
                true => Checkpoint::without_weights(folder)?.config_json,
                false => serde_json::Map::new(),
            };
            let Some(tokenizer) = EditedTokenizer::of(folder, &config)? else {
                let finding = Finding::new(folder, "").expected("base, union, or a folder that has a tokenizer");
                return Err(finding.found("none there").mismatch());
            };
            tokenizer
        }
    };
    for (text, _) in &settings.tokens {
        if made.id(text).is_none() {
            made.add(&ListedToken::plain(text))?;
        }
    }
    if settings.source == TokenizerSource::Base {
        // Like mergekit, this takes the added tokens for the base's own, where its embeddings have rows for them.
        members[base] = Tokens::of(&made, base_rows);
    }
    Ok((made, members))
}

/// The base's tokenizer with the tokens that only others have: first those of their own vocabularies, then the added
/// ones. A token that any model has as an added token is one in the output, with the settings of the first.
fn union(mut of_base: EditedTokenizer, rows: usize, others: &[(&EditedTokenizer, usize)]) -> Result<EditedTokenizer> {
    // transformers adds these again when it loads the tokenizer without them.
    for text in of_base.named().to_vec() {
        if of_base.id(&text).is_none() {
            of_base.add(&ListedToken::named(&text))?;
        }
    }
    let mut added: Vec<ListedToken> = Vec::new();
    let mut seen: HashSet<String> = HashSet::new();
    let mut list = |tokenizer: &EditedTokenizer, rows: usize| {
        for token in tokenizer.added().iter().filter(|token| token.id < rows) {
            if seen.insert(token.text.clone()) {
                added.push(token.clone());
            }
        }
    };
    list(&of_base, rows);
    others.iter().for_each(|(other, rows)| list(other, *rows));
    let added_texts: HashSet<&str> = added.iter().map(|token| token.text.as_str()).collect();
    for (other, rows) in others {
        let own: HashSet<&str> = other.added().iter().map(|token| token.text.as_str()).collect();
        for (text, id) in other.tokens() {
            let is_plain = *id < *rows && !own.contains(text.as_str()) && !added_texts.contains(text.as_str());
            if is_plain && of_base.id(text).is_none() {
                of_base.add(&ListedToken::plain(text))?;
            }
        }
    }
    added.iter().try_for_each(|token| of_base.add(token))?;
    Ok(of_base)
}
