//! The files of a folder that belong to its tokenizer, and the choice of another folder's
//! tokenizer.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Checkpoint;
use crate::error::Result;
use crate::json::read_json_object;

/// How a file holds a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum VocabularyForm {
    /// tokenizer.json, or a file of an older class that one is made of.
    Tokenizer,
    SentencePiece,
    /// Mistral's tekken.json.
    Tekken,
    Tiktoken,
    /// PLaMo's list of pieces.
    Plamo,
    /// The list of RWKV's World models.
    Rwkv,
}

pub(crate) const TEKKEN_FILE: &str = "tekken.json";
pub(crate) const PLAMO_FILE: &str = "tokenizer.jsonl";
pub(crate) const RWKV_FILE: &str = "rwkv_vocab_v20230424.txt";

/// Names of files that hold a vocabulary. Every folder with a tokenizer has at least one of them, or one of
/// [`vocabulary_form`]. Where it has several, the first one counts.
const VOCABULARIES: &[(&str, VocabularyForm)] = &[
    ("tokenizer.json", VocabularyForm::Tokenizer),
    ("vocab.json", VocabularyForm::Tokenizer),
    ("vocab.txt", VocabularyForm::Tokenizer),
    ("tokenizer.model", VocabularyForm::SentencePiece),
    ("spiece.model", VocabularyForm::SentencePiece),
    ("sentencepiece.bpe.model", VocabularyForm::SentencePiece),
    (TEKKEN_FILE, VocabularyForm::Tekken),
    ("tiktoken.model", VocabularyForm::Tiktoken),
    (PLAMO_FILE, VocabularyForm::Plamo),
    (RWKV_FILE, VocabularyForm::Rwkv),
];

/// Files that can hold nothing but a chat template.
const TEMPLATES: &[&str] = &["chat_template.jinja", "chat_template.json"];

const CONFIG: &str = "tokenizer_config.json";

/// The field of [`CONFIG`] with a chat template.
const TEMPLATE: &str = "chat_template";

/// Other files that belong to a vocabulary: merges, settings, special tokens.
const SETTINGS: &[&str] = &["added_tokens.json", "merges.txt", "special_tokens_map.json", CONFIG];

/// How the file called `name` holds a vocabulary; `None` if it holds none.
fn vocabulary_form(name: &str) -> Option<VocabularyForm> {
    let known = VOCABULARIES.iter().find(|(known, _)| *known == name).map(|(_, form)| *form);
    // qwen.tiktoken; tokenizer.model.v3 of Mistral.
    let is_version = |(_, version): (&str, &str)| version.starts_with(|c: char| c.is_ascii_digit());
    known
        .or_else(|| name.ends_with(".tiktoken").then_some(VocabularyForm::Tiktoken))
        .or_else(|| name.rsplit_once(".model.v").is_some_and(is_version).then_some(VocabularyForm::SentencePiece))
}

/// The place of a vocabulary's file among several.
fn rank(name: &str) -> (VocabularyForm, usize) {
    let place = VOCABULARIES.iter().position(|(known, _)| *known == name).unwrap_or(VOCABULARIES.len());
    (vocabulary_form(name).unwrap_or(VocabularyForm::Rwkv), place)
}

/// The names of the files of `folder`; none if there is no such folder.
fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_file()).filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// The vocabulary's file in `folder` and its form.
pub(crate) fn vocabulary_file(folder: &Path) -> Option<(String, VocabularyForm)> {
    let name =
        files(folder).into_iter().filter(|name| vocabulary_form(name).is_some()).min_by_key(|name| rank(name))?;
    let form = vocabulary_form(&name)?;
    Some((name, form))
}

/// The names of the tokenizer's files that `folder` has: those of vocabularies first.
pub(crate) fn tokenizer_files(folder: &Path) -> Vec<String> {
    let mut names = files(folder);
    names.retain(|name| is_tokenizer_file(name));
    names.sort_by_cached_key(|name| (vocabulary_form(name).is_none(), rank(name), name.clone()));
    names
}

/// Whether `folder` has a whole tokenizer: settings without a vocabulary don't count.
pub(crate) fn has_tokenizer(folder: &Path) -> bool {
    vocabulary_file(folder).is_some()
}

/// Whether `name` is the name of a tokenizer's file.
pub(crate) fn is_tokenizer_file(name: &str) -> bool {
    vocabulary_form(name).is_some() || TEMPLATES.contains(&name) || SETTINGS.contains(&name)
}

/// The chat template in tokenizer_config.json of `folder`.
fn configured_template(folder: &Path) -> Result<Option<Value>> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Ok(None);
    }
    let template = read_json_object(&path)?.remove(TEMPLATE);
    Ok(template.filter(|template| !crate::json::is_off(template)))
}

/// Whether the tokenizer's files in `folder` hold a chat template.
fn has_template(folder: &Path) -> Result<bool> {
    Ok(TEMPLATES.iter().any(|name| folder.join(name).is_file()) || configured_template(folder)?.is_some())
}

/// The tokenizer of another folder, in place of the model's own.
pub(super) struct OtherTokenizer {
    folder: PathBuf,
    /// Whether the model's own chat template stays, because the other folder has none.
    keeps_template: bool,
}

impl OtherTokenizer {
    /// The tokenizer's files.
    pub(super) fn files(&self) -> impl Iterator<Item = PathBuf> {
        tokenizer_files(&self.folder).into_iter().map(|name| self.folder.join(name))
    }

    /// Whether it replaces the model's own file called `name`.
    pub(super) fn replaces(&self, name: &str) -> bool {
        is_tokenizer_file(name) && !(self.keeps_template && TEMPLATES.contains(&name))
    }
}

impl Checkpoint {
    /// The folder from which the tokenizer is read: the model's, unless
    /// [`Checkpoint::take_tokenizer_of`] set another.
    pub(crate) fn tokenizer_folder(&self) -> &Path {
        self.tokenizer.as_ref().map_or(&self.path, |other| &other.folder)
    }

    /// Uses all tokenizer files of `folder` instead of the model's. If they hold no chat template, the model's own one
    /// stays; then this returns true.
    ///
    /// # Errors
    /// Malformed files.
    pub(crate) fn take_tokenizer_of(&mut self, folder: PathBuf) -> Result<bool> {
        let keeps_template = !has_template(&folder)? && has_template(&self.path)?;
        self.tokenizer = Some(OtherTokenizer { folder, keeps_template });
        Ok(keeps_template)
    }

    /// The folder whose files hold the chat template.
    pub(crate) fn template_folder(&self) -> &Path {
        match &self.tokenizer {
            Some(other) if !other.keeps_template => &other.folder,
            _ => &self.path,
        }
    }

    /// Gives tokenizer_config.json of another tokenizer the chat template that the model's own one has, where the
    /// model's own template stays.
    ///
    /// # Errors
    /// Malformed files.
    pub(crate) fn keep_template(&self, config: &mut serde_json::Map<String, Value>) -> Result<()> {
        if self.tokenizer.as_ref().is_some_and(|other| other.keeps_template) {
            config.remove(TEMPLATE);
            if let Some(template) = configured_template(&self.path)? {
                config.insert(TEMPLATE.to_owned(), template);
            }
        }
        Ok(())
    }

    /// Puts the model's own chat template into the files of another tokenizer, where it stays.
    pub(super) fn keep_template_in(&self, files: &mut std::collections::BTreeMap<String, Vec<u8>>) -> Result<()> {
        let old = match files.get(CONFIG) {
            Some(bytes) => serde_json::from_slice(bytes).unwrap_or_default(),
            None => serde_json::Map::new(),
        };
        let mut config = old.clone();
        self.keep_template(&mut config)?;
        if config != old {
            files.insert(CONFIG.to_owned(), (crate::output::json_text(&config) + "\n").into_bytes());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vocabulary_is_a_tokenizer() {
        for (name, form) in [
            ("tokenizer.json", VocabularyForm::Tokenizer),
            ("tekken.json", VocabularyForm::Tekken),
            ("qwen.tiktoken", VocabularyForm::Tiktoken),
            ("tiktoken.model", VocabularyForm::Tiktoken),
            ("tokenizer.model.v3", VocabularyForm::SentencePiece),
            ("sentencepiece.bpe.model", VocabularyForm::SentencePiece),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("tokenizer_config.json"), "{}").unwrap();
            assert!(!has_tokenizer(folder.path()));
            fs::write(folder.path().join(name), "").unwrap();
            assert_eq!(vocabulary_file(folder.path()), Some((name.to_owned(), form)));
            assert_eq!(tokenizer_files(folder.path()), [name, "tokenizer_config.json"]);
        }
        assert_eq!(vocabulary_form("consolidated.model.vision"), None);
    }
}
