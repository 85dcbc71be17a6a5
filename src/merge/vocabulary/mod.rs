//! One vocabulary for models of several: the output's tokenizer, and for every model its embeddings and output head with
//! their rows in the order of that tokenizer, as expressions.
//!
//! [`Vocabulary::new`] makes the tokenizer and decides where each token's row comes from ([`TokenizerSource`],
//! [`TokenRow`]); [`Vocabulary::align`] makes the expressions. Then the models are combined like any others.
//!
//! Reference: mergekit 0.1.5 `mergekit/tokenizer/build.py` (tokens, ids, which tokens a model has) and `embed.py` (rows).
//! There, tokens that the union gets from other vocabularies than the base's come in an order that changes from run to
//! run, except for added tokens; here they come in the order of their ids.

mod rows;
mod settings;
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

pub(crate) use rows::padded_with_mean;
pub(crate) use settings::check_multiple;
pub use settings::{TokenName, TokenRow, TokenSettings, TokenizerSource, VocabularySettings};

use crate::arch::Naming;
use crate::arch::vocabulary::{is_by_token, put_vocab_size};
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use tokens::Tokens;

/// The most rows that an output's embeddings can have.
const MAX_ROWS: usize = 1 << 24;

/// The tokenizer that the output gets, and the tokens that each model has.
#[derive(Debug)]
pub struct Vocabulary {
    files: BTreeMap<String, Vec<u8>>,
    /// The texts of the output's tokens by their ids; `None` where an id has no token.
    texts: Vec<Option<String>>,
    /// The number of rows of the output's embeddings.
    rows: usize,
    members: Vec<Tokens>,
    /// For every member and id of the output, the row of the member's embeddings; `None` if it lacks the token.
    places: Vec<Vec<Option<usize>>>,
    /// What the settings say about single tokens, by id of the output.
    chosen: HashMap<usize, TokenSettings>,
    /// The member whose rows are preferred for tokens that others lack.
    base: Option<usize>,
    notes: Vec<String>,
}

impl Vocabulary {
    /// Makes the vocabulary of `models`. `base` is the place of the base model among them, if there is one; without one,
    /// the first model's tokenizer is the base's.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for settings that don't fit the models; [`crate::Error::Mismatch`] if the base has no
    /// tokenizer or a model shares no token with the output; [`crate::Error::Unsupported`] for a tokenizer that can't be
    /// changed where it has to be; errors of reading the files.
    pub fn new(models: &[&Checkpoint], base: Option<usize>, settings: &VocabularySettings) -> Result<Self> {
        settings.check(models.len())?;
        let mut notes = Vec::new();
        let (tokenizer, members) = tokens::of_models(models, base.unwrap_or(0), settings, &mut notes)?;
        let size = tokenizer.tokens().last().map_or(0, |(_, id)| id.saturating_add(1));
        let mut texts: Vec<Option<String>> = Vec::new();
        if size > MAX_ROWS {
            let finding = Finding::new(tokenizer.folder(), "its tokenizer");
            return Err(finding.expected(format_args!("at most {MAX_ROWS} tokens")).found(size).mismatch());
        }
        texts.resize(size, None);
        for (text, id) in tokenizer.tokens() {
            texts[*id] = Some(text.clone());
        }
        let place = |tokens: &Tokens, text: &Option<String>| tokens.id(text.as_deref()?);
        let places: Vec<Vec<Option<usize>>> =
            members.iter().map(|tokens| texts.iter().map(|text| place(tokens, text)).collect()).collect();
        if let Some(stranger) = places.iter().position(|places| places.iter().all(Option::is_none)) {
            let finding = Finding::new(models[stranger].path(), "its tokenizer");
            let expected = format!("tokens that the result's has, which is that of {}", tokenizer.folder().display());
            return Err(finding.expected(expected).found("not one: no row of its embeddings would be used").mismatch());
        }
        let chosen = settings.tokens.iter().filter_map(|(text, of)| Some((tokenizer.id(text)?, of.clone()))).collect();
        let rows = match settings.pad_to_multiple_of {
            Some(multiple) => size.next_multiple_of(multiple),
            None => size,
        };
        Ok(Self { files: tokenizer.files()?, texts, rows, members, places, chosen, base, notes })
    }

    /// The number of rows of the output's embeddings.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The output's tokenizer, by names of files.
    pub fn files(&self) -> &BTreeMap<String, Vec<u8>> {
        &self.files
    }

    /// What the user may not expect.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Gives every model's tensors with a row for each token the output's rows. `plans` are the tensors of all models,
    /// in the order of [`Vocabulary::new`], under the names of a model with the config `config`.
    ///
    /// # Errors
    /// As [`Vocabulary::align_tensor`].
    pub fn align(&self, config: &Map<String, Value>, plans: &mut [Plan]) -> Result<()> {
        let naming = Naming::of(config);
        let mut places: BTreeMap<String, Vec<(usize, usize)>> = BTreeMap::new();
        for (model, plan) in plans.iter().enumerate() {
            for (at, tensor) in plan.tensors.iter().enumerate().filter(|(_, tensor)| is_by_token(naming, tensor)) {
                places.entry(tensor.name.clone()).or_default().push((model, at));
            }
        }
        for places in places.values() {
            let of: Vec<(usize, &PlannedTensor)> =
                places.iter().map(|(model, at)| (*model, &plans[*model].tensors[*at])).collect();
            let aligned = self.align_tensor(&of)?;
            for ((model, at), tensor) in places.iter().zip(aligned) {
                plans[*model].tensors[*at] = tensor;
            }
        }
        Ok(())
    }

    /// The tensors of one name with the output's rows. Each is given with the place of its model in the order of
    /// [`Vocabulary::new`]. Models without the tensor have no part in the rows of tokens that others lack.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for tensors with rows of several lengths, with fewer rows than the model has tokens,
    /// or without a row that the settings ask for.
    pub fn align_tensor(&self, of: &[(usize, &PlannedTensor)]) -> Result<Vec<PlannedTensor>> {
        rows::Alignment::new(self, of)?.tensors()
    }

    /// Sets the number of tokens in config.json.
    pub fn put_size(&self, config: &mut Map<String, Value>) {
        put_vocab_size(config, self.rows);
    }
}

/// A folder with the files of a tokenizer, to be given to a [`Checkpoint`]. It is deleted when it is dropped.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn folder_of(files: &BTreeMap<String, Vec<u8>>) -> Result<tempfile::TempDir> {
    use crate::error::IoContext;
    let temporary = std::env::temp_dir();
    let folder =
        tempfile::Builder::new().prefix("atombank-tokenizer-").tempdir().at(&temporary, "create a folder in")?;
    for (name, bytes) in files {
        let path: PathBuf = folder.path().join(Path::new(name).file_name().unwrap_or_default());
        std::fs::write(&path, bytes).at(&path, "write")?;
    }
    Ok(folder)
}

#[cfg(test)]
mod tests;
