//! Reads the tokenizer files of a folder, and creates findings about them.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::{Vocab, VocabOptions};
use crate::checkpoint::Checkpoint;
use crate::error::{Finding, IoContext, Result};
use crate::json::read_json_object;
use crate::tokenizer::{keys, record};

pub(super) type Object = Map<String, Json>;

/// The largest number of tokens in a vocabulary, several times as many as in the largest models. config.json gives the
/// number, and it decides how many placeholders are created.
pub(super) const MAX_TOKENS: usize = 1 << 22;

/// The tokenizer files, as JSON.
pub(super) struct Files {
    pub(super) folder: PathBuf,
    /// The folder whose files hold the chat template. It is usually the same folder.
    pub(super) template_folder: PathBuf,
    /// The model's folder, which has config.json. It is usually the same folder.
    model_folder: PathBuf,
    /// config.json
    pub(super) model_config: Object,
    /// tokenizer.json, if it exists.
    pub(super) tokenizer: Option<Object>,
    /// tokenizer_config.json, if it exists and isn't empty.
    pub(super) config: Option<Object>,
    /// Whether the folder is in Mistral's own format.
    pub(super) is_mistral_format: bool,
    /// The number of tokens, if it isn't config.json's `vocab_size`.
    pub(super) size: Option<usize>,
    /// The model's settings, if they aren't those of config.json alone.
    pub(super) settings: Object,
    /// config.json of the model whose tokenizer it is, if it is another model's.
    target: Option<Object>,
}

impl Files {
    /// Opens the tokenizer files of a model.
    pub(super) fn of(model: &Checkpoint) -> Result<Self> {
        let mut files = Self::open(model.tokenizer_folder(), model.config_json.clone())?;
        let mut config = files.config.take().unwrap_or_default();
        model.keep_template(&mut config)?;
        files.config = Some(config).filter(|fields| !fields.is_empty());
        files.template_folder = model.template_folder().to_owned();
        let is_mistral_format = model.is_mistral_format() && model.tokenizer_folder() == model.path();
        Ok(Self { model_folder: model.path().to_owned(), is_mistral_format, ..files })
    }

    /// Opens the files of `folder`, whose config.json is `model_config`.
    pub(super) fn open(folder: &Path, model_config: Object) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            path.is_file().then(|| read_json_object(&path)).transpose()
        };
        let (tokenizer, config) = (read("tokenizer.json")?, read("tokenizer_config.json")?);
        let config = config.filter(|fields| !fields.is_empty());
        let [folder, template_folder, model_folder] = [(); 3].map(|()| folder.to_owned());
        Ok(Self {
            model_config,
            tokenizer,
            config,
            folder,
            template_folder,
            model_folder,
            is_mistral_format: false,
            size: None,
            settings: Object::new(),
            target: None,
        })
    }

    /// Creates a finding about `subject` in the file `name`, or in the folder if `name` is empty.
    pub(super) fn finding_in(&self, name: &str, subject: impl Into<String>) -> Finding {
        let folder = if name == "config.json" { &self.model_folder } else { &self.folder };
        let path = if name.is_empty() { folder.clone() } else { folder.join(name) };
        Finding::new(path, subject)
    }

    /// Creates a finding about `subject` in tokenizer.json.
    pub(super) fn finding(&self, subject: impl Into<String>) -> Finding {
        self.finding_in("tokenizer.json", subject)
    }

    /// Returns the field `name` of tokenizer_config.json.
    pub(super) fn setting(&self, name: &str) -> Option<&Json> {
        self.config.as_ref().and_then(|config| config.get(name))
    }

    /// Returns the kind of the vocabulary that the folder was made of, if it was made of a GGUF.
    pub(super) fn recorded_model(&self) -> Option<&str> {
        self.setting(record::FIELD)?.get("keys")?.get(keys::MODEL)?.as_str()
    }

    /// Reads the file `name`, if it exists.
    pub(super) fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.folder.join(name);
        if !path.is_file() {
            return Ok(None);
        }
        std::fs::read(&path).at(&path, "read").map(Some)
    }

    /// Returns the names of the folder's files, in order; none if there is no folder.
    pub(super) fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        if self.folder.is_dir() {
            for entry in std::fs::read_dir(&self.folder).at(&self.folder, "read")? {
                let path = entry.at(&self.folder, "read")?.path();
                if path.is_file() {
                    names.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// Reads the JSON object in the file `name`, if it exists.
    pub(super) fn json(&self, name: &str) -> Result<Option<Object>> {
        let path = self.folder.join(name);
        path.is_file().then(|| read_json_object(&path)).transpose()
    }

    /// Returns a field of config.json. In a larger model, the fields of its text model come first. Given settings come
    /// before both.
    pub(super) fn hparam(&self, name: &str) -> Option<&Json> {
        if let Some(value) = self.settings.get(name).filter(|value| !value.is_null()) {
            return Some(value);
        }
        let inner = self.model_config.get("text_config").and_then(|inner| inner.get(name));
        inner.or_else(|| self.model_config.get(name)).filter(|value| !value.is_null())
    }

    /// Returns config.json of the model whose tokenizer it is.
    pub(super) fn tokenizer_model(&self) -> &Object {
        self.target.as_ref().unwrap_or(&self.model_config)
    }

    /// Returns the text model's type from config.json.
    pub(super) fn model_type(&self) -> &str {
        self.hparam("model_type").and_then(Json::as_str).unwrap_or_default()
    }

    /// Sets the number of tokens and the settings that the caller gives, and pads the number for a kind that pads.
    pub(super) fn fit(&mut self, vocab: Vocab, options: &VocabOptions) -> Result<()> {
        self.settings = options.settings.clone().unwrap_or_default();
        self.target = options.target.clone();
        self.size = match options.vocab_size {
            Some(size) => self.checked_size("vocab_size", &Json::from(size))?,
            None => None,
        };
        if let Some(padded) = self.padded_size(vocab)? {
            self.size = Some(padded);
        }
        Ok(())
    }

    /// Returns the number of tokens: the given one, else `vocab_size` of config.json, else the default for the type of
    /// model.
    pub(super) fn vocab_size(&self) -> Result<Option<usize>> {
        if self.size.is_some() {
            return Ok(self.size);
        }
        match self.hparam("vocab_size") {
            Some(size) => self.checked_size("vocab_size", size),
            None => Ok(default_vocab_size(self.model_type())),
        }
    }

    /// Returns the field `name` of config.json, which is a number of tokens, if it has one.
    pub(super) fn size_of(&self, name: &str) -> Result<Option<usize>> {
        self.hparam(name).map_or(Ok(None), |size| self.checked_size(name, size))
    }

    fn checked_size(&self, name: &str, size: &Json) -> Result<Option<usize>> {
        let number = size.as_u64().and_then(|size| usize::try_from(size).ok());
        match number.filter(|size| (1..=MAX_TOKENS).contains(size)) {
            Some(size) => Ok(Some(size)),
            None => Err(self
                .finding_in("config.json", name)
                .expected(format_args!("a count from 1 to {MAX_TOKENS}"))
                .found(shortened(&size.to_string()))
                .format()),
        }
    }

    /// Returns a number of tokens in `talker_config`, the part of Qwen3-TTS that speaks.
    pub(super) fn talker_size(&self, name: &str) -> Result<Option<usize>> {
        let size = self.model_config.get("talker_config").and_then(|talker| talker.get(name));
        size.map_or(Ok(None), |size| self.checked_size(&format!("talker_config.{name}"), size))
    }

    /// Returns `type_vocab_size` of config.json: how many types of segments the model distinguishes.
    pub(super) fn type_vocab_size(&self) -> Result<u32> {
        let Some(size) = self.hparam("type_vocab_size") else {
            return Ok(if matches!(self.model_type(), "bert" | "roberta" | "xlm-roberta") { 2 } else { 1 });
        };
        size.as_u64().and_then(|size| u32::try_from(size).ok()).ok_or_else(|| {
            self.finding_in("config.json", "type_vocab_size")
                .expected("a count")
                .found(shortened(&size.to_string()))
                .format()
        })
    }
}

/// Returns transformers' default for `vocab_size`, which config.json may omit. The reference reads the config through
/// transformers and so gets this default.
fn default_vocab_size(model_type: &str) -> Option<usize> {
    Some(match model_type {
        "llama" | "mistral" | "mixtral" | "granite" | "granitemoe" => 32000,
        "qwen2" | "qwen3" | "qwen2_moe" | "qwen3_moe" => 151_936,
        "gemma" | "gemma2" => 256_000,
        "gemma3" | "gemma3_text" => 262_208,
        "phi3" => 32064,
        "bert" | "distilbert" | "xlm-roberta" => 30522,
        "roberta" => 50265,
        "gpt2" => 50257,
        "gpt_neox" => 50432,
        "falcon" => 65024,
        "starcoder2" => 49152,
        "stablelm" | "olmo2" => 50304,
        "smollm3" => 128_256,
        _ => return None,
    })
}

/// Reads a text file, with every line ending converted to `\n`.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).at(path, "read")?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Finding::new(path, "").expected("UTF-8 text").found(e.utf8_error()).format())?;
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

/// Returns text for a message, shortened if it is long.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN_CHARS: usize = 200;
    match text.char_indices().nth(SHOWN_CHARS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// Converts `json` to an id.
pub(super) fn id_of(json: &Json) -> Option<usize> {
    json.as_u64().and_then(|id| usize::try_from(id).ok())
}

#[cfg(test)]
impl Files {
    /// Creates the files for a test, without a folder.
    pub(super) fn for_test(tokenizer: Json, config: Json, model_config: Json) -> Self {
        let object = |json: Json| json.as_object().cloned().filter(|fields| !fields.is_empty());
        Self {
            folder: PathBuf::from("m"),
            template_folder: PathBuf::from("m"),
            model_folder: PathBuf::from("m"),
            model_config: object(model_config).unwrap_or_default(),
            tokenizer: object(tokenizer),
            config: object(config),
            is_mistral_format: false,
            size: None,
            settings: Object::new(),
            target: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_size_of_the_vocabulary_is_a_sane_count_or_absent() {
        let size = |config: Json| Files::for_test(json!({}), json!({}), config).vocab_size();
        assert_eq!(size(json!({"vocab_size": 32000})).unwrap(), Some(32000));
        assert_eq!(size(json!({"vocab_size": 1, "text_config": {"vocab_size": 2}})).unwrap(), Some(2));
        assert_eq!(size(json!({"vocab_size": null})).unwrap(), None);
        assert_eq!(size(json!({"model_type": "gpt2"})).unwrap(), Some(50257));
        for hostile in [json!(0), json!(-1), json!(1u64 << 40), json!("many"), json!(1.5)] {
            let message = size(json!({"vocab_size": hostile})).unwrap_err().to_string();
            assert!(message.contains("config.json: vocab_size: expected a count from 1 to 4194304"), "{message}");
        }
    }
}
