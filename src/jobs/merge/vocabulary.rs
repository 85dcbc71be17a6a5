//! Models of several vocabularies in one merge.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::super::settings::{name_of, setting};
use super::super::tokenizer::TokenizerChoice;
use super::MergeSettings;
use crate::adapter::peft::Base;
use crate::adapter::{AdapterFiles, resized};
use crate::arch::Naming;
use crate::arch::vocabulary::{is_by_token, put_vocab_size};
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, Result};
use crate::merge::vocabulary::{
    TokenizerSource, Vocabulary, VocabularySettings, check_multiple, folder_of, padded_with_mean,
};
use crate::plan::{Plan, PlannedTensor};
use crate::tokenizer::ids_differ;

/// How the vocabulary of several models is made one: mergekit's `tokenizer_source`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VocabularyChoice {
    /// The base's tokens.
    Base,
    /// The base's tokens, and those that only others have.
    Union,
    /// The tokens of the tokenizer in this folder.
    Folder(PathBuf),
}

impl VocabularyChoice {
    fn source(&self) -> TokenizerSource {
        match self {
            Self::Base => TokenizerSource::Base,
            Self::Union => TokenizerSource::Union,
            Self::Folder(folder) => TokenizerSource::Folder(folder.clone()),
        }
    }
}

/// Gives the tensors of all models, those of the base first, the rows of one vocabulary if the settings ask for it, and
/// the base's folder its size and its tokenizer. Returns the tokenizer's folder, which has to outlive the output's
/// making. Otherwise, checks that the models have as many rows.
///
/// # Errors
/// [`crate::Error::Setting`] for settings that contradict each other; [`crate::Error::Mismatch`] for models of several
/// vocabularies; errors of making the vocabulary.
pub(super) fn aligned(
    settings: &MergeSettings,
    base: &mut Checkpoint,
    models: &[Checkpoint],
    weights: &mut [Plan],
    notes: &mut Vec<String>,
) -> Result<Option<tempfile::TempDir>> {
    let Some(choice) = &settings.tokenizer_source else {
        if settings.pad_to_multiple_of.is_some() {
            let finding = setting("pad_to_multiple_of").expected("a `tokenizer_source`, for models").found("none");
            return Err(finding.setting());
        }
        compare(settings, base, models, weights, notes)?;
        return Ok(None);
    };
    if settings.tokenizer != TokenizerChoice::Auto {
        let finding = setting("tokenizer").expected("none beside a `tokenizer_source`, which says what it is");
        return Err(finding.found("one").setting());
    }
    let of_vocabulary = VocabularySettings {
        pad_to_multiple_of: settings.pad_to_multiple_of,
        ..VocabularySettings::new(choice.source())
    };
    let all: Vec<&Checkpoint> = std::iter::once(&*base).chain(models).collect();
    let vocabulary = Vocabulary::new(&all, Some(0), &of_vocabulary)?;
    vocabulary.align(&base.config_json, weights)?;
    vocabulary.put_size(&mut base.config_json);
    notes.extend(vocabulary.notes().iter().cloned());
    let folder = folder_of(vocabulary.files())?;
    base.take_tokenizer_of(folder.path().to_owned())?;
    Ok(Some(folder))
}

/// Pads the tensors of a merged model that have a row for each token, if the settings ask for it. `embeddings` are the
/// input embeddings.
///
/// # Errors
/// [`crate::Error::Setting`] for settings that don't fit adapters.
pub(super) fn pad(
    settings: &MergeSettings,
    config: &mut Map<String, Value>,
    plan: &mut Plan,
    embeddings: Option<&str>,
) -> Result<()> {
    check_for_adapters(settings)?;
    let Some(multiple) = settings.pad_to_multiple_of else { return Ok(()) };
    let own = embeddings.and_then(|name| plan.get(name)).and_then(|tensor| tensor.shape.first().copied());
    let Some(own) = own.filter(|own| *own > 0) else {
        let finding = setting("pad_to_multiple_of").expected("a model with embeddings of tokens");
        return Err(finding.found("none that are known").setting());
    };
    let count = own.next_multiple_of(multiple) - own;
    if count == 0 {
        return Ok(());
    }
    let naming = Naming::of(config);
    let is_bias = |tensor: &PlannedTensor| tensor.name.ends_with("lm_head.bias") && tensor.shape == [own];
    for tensor in &mut plan.tensors {
        if is_by_token(naming, tensor) && tensor.shape[0] == own || is_bias(tensor) {
            tensor.expr = padded_with_mean(tensor.clone(), count);
            tensor.shape[0] = own + count;
        }
    }
    put_vocab_size(config, own + count);
    Ok(())
}

/// Refuses settings of models' vocabularies where adapters are merged.
fn check_for_adapters(settings: &MergeSettings) -> Result<()> {
    match settings.tokenizer_source {
        None => Ok(()),
        Some(_) => {
            let finding = setting("tokenizer_source").expected("models to combine, with a `method`");
            Err(finding.found("adapters").hint("`tokenizer` chooses the tokenizer of a model with adapters").setting())
        }
    }
}

const HINT: &str = "take the Hugging Face folder of the model as the base: a GGUF keeps its tokens";

/// Refuses to pad what has no rows for tokens, or keeps them.
///
/// # Errors
/// [`crate::Error::Setting`].
pub(super) fn check_pad(settings: &MergeSettings) -> Result<()> {
    let Some(multiple) = settings.pad_to_multiple_of else { return Ok(()) };
    check_multiple(multiple)?;
    let finding = setting("pad_to_multiple_of");
    if settings.output.kind().is_lora() {
        return Err(finding.expected("a model as output").found("a LoRA, which has no rows for tokens").setting());
    }
    if !settings.has_folder() {
        return Err(finding.expected("a model's folder as base").found("a file").hint(HINT).setting());
    }
    Ok(())
}

/// Refuses another vocabulary where the base is a GGUF, which keeps its tokens.
///
/// # Errors
/// [`crate::Error::Mismatch`] for adapters that were trained with another number of rows; [`crate::Error::Setting`].
pub(super) fn check_of_gguf(
    settings: &MergeSettings,
    base: &Base,
    plan: &Plan,
    adapters: &[AdapterFiles],
) -> Result<()> {
    check_for_adapters(settings)?;
    check_rows_of_gguf(base, plan, adapters)
}

/// Refuses adapters that were trained with another number of rows than a GGUF has.
///
/// # Errors
/// [`crate::Error::Mismatch`].
pub(super) fn check_rows_of_gguf(base: &Base, plan: &Plan, adapters: &[AdapterFiles]) -> Result<()> {
    match resized(base, plan, adapters)? {
        None => Ok(()),
        Some(resized) => {
            let finding = Finding::new(base.path(), "vocabulary");
            let expected = format!("{} rows, as the adapter was trained with", resized.rows);
            let own = base.embeddings().map_or(0, PlannedTensor::rows);
            Err(finding.expected(expected).found(own).hint(HINT).mismatch())
        }
    }
}

/// The tensor of `plan` with a row for each token that comes first.
fn by_token<'a>(config: &Map<String, Value>, plan: &'a Plan) -> Option<&'a PlannedTensor> {
    let naming = Naming::of(config);
    plan.tensors.iter().find(|tensor| is_by_token(naming, tensor))
}

/// Refuses models of several vocabularies, and says where only the tokens differ.
fn compare(
    settings: &MergeSettings,
    base: &Checkpoint,
    models: &[Checkpoint],
    weights: &[Plan],
    notes: &mut Vec<String>,
) -> Result<()> {
    let hint = "`tokenizer_source` base or union matches rows by token";
    let of_base = by_token(&base.config_json, &weights[0]);
    for ((model, plan), other) in models.iter().zip(&weights[1..]).zip(&settings.others) {
        let (base_name, name) =
            (name_of(settings.base_id.as_deref(), &settings.base), name_of(other.id.as_deref(), &other.path));
        let Some(of_base) = of_base else { continue };
        let Some(of_model) = plan.get(&of_base.name) else { continue };
        if of_model.shape.first() != of_base.shape.first() {
            let finding = Finding::new(model.path(), "vocabulary");
            let expected = format!("{} rows, the vocabulary of {base_name}", of_base.rows());
            let found = format!("{}, the vocabulary of {name}", of_model.rows());
            return Err(finding.expected(expected).found(found).hint(hint).mismatch());
        }
        if ids_differ(base.tokenizer_folder(), model.tokenizer_folder()) {
            notes.push(format!(
                "{name}: other tokens, or other ids, than in {base_name}: rows are combined by place; {hint}"
            ));
        }
    }
    Ok(())
}
