//! The tokenizer of a folder with tokens added or left out.
//!
//! Reference: the tokenizers library, `tokenizer/added_vocabulary.rs` (`add_tokens`), for the ids of added tokens.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::from_hf::{ListedToken, Listing};
use super::record;
use crate::checkpoint::{has_tokenizer, tokenizer_files};
use crate::error::{Finding, IoContext, Result};
use crate::json::read_json_object;

/// Files that stay beside a changed tokenizer.json. The others hold the old vocabulary in another form.
const KEPT: &[&str] =
    &["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"];

/// A tokenizer that can be changed.
#[derive(Debug)]
pub(crate) struct EditedTokenizer {
    folder: PathBuf,
    listing: Listing,
    /// Ids by text.
    ids: HashMap<String, usize>,
    /// The texts of the added tokens.
    added: HashSet<String>,
    is_changed: bool,
}

impl EditedTokenizer {
    /// Reads the tokenizer in `folder`, whose config.json is `config`. `None` if it has none.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for malformed files, and what reading them meets.
    pub(crate) fn of(folder: &Path, config: &Map<String, Value>) -> Result<Option<Self>> {
        let Some(listing) = Listing::of(folder, config)? else { return Ok(None) };
        let ids = listing.ids.iter().cloned().collect();
        let added = listing.added.iter().map(|token| token.text.clone()).collect();
        Ok(Some(Self { folder: folder.to_owned(), listing, ids, added, is_changed: false }))
    }

    /// The folder that it was read from.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The id of the token `text`.
    pub(crate) fn id(&self, text: &str) -> Option<usize> {
        self.ids.get(text).copied()
    }

    /// All tokens with their ids, in order of ids.
    pub(crate) fn tokens(&self) -> &[(String, usize)] {
        &self.listing.ids
    }

    /// The added tokens, in order of ids.
    pub(crate) fn added(&self) -> &[ListedToken] {
        &self.listing.added
    }

    /// The texts of tokens that have a name, such as `bos_token`.
    pub(crate) fn named(&self) -> &[String] {
        &self.listing.named
    }

    /// Leaves out the tokens with ids from `rows` on, for which the model has no rows.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] where tokens have to go and the model isn't BPE in a tokenizer.json.
    pub(crate) fn strip(&mut self, rows: usize) -> Result<()> {
        let unused: HashSet<String> =
            self.listing.ids.iter().filter(|(_, id)| *id >= rows).map(|(text, _)| text.clone()).collect();
        if unused.is_empty() {
            return Ok(());
        }
        let finding = Finding::new(&self.folder, "its tokenizer").found(format!("{} tokens without one", unused.len()));
        let finding = finding.expected(format!("tokens with ids below {rows}, for which the model has rows"));
        let model = self.listing.json.as_mut().and_then(|json| json.get_mut("model")?.as_object_mut());
        let Some(model) = model.filter(|model| model.get("vocab").is_some_and(Value::is_object)) else {
            return Err(finding.hint("tokens can be left out of a tokenizer.json with BPE only").unsupported());
        };
        if let Some(vocab) = model.get_mut("vocab").and_then(Value::as_object_mut) {
            vocab.retain(|text, _| !unused.contains(text));
            self.listing.own = vocab.len();
        }
        if let Some(merges) = model.get_mut("merges").and_then(Value::as_array_mut) {
            merges.retain(|merge| {
                let parts: Vec<&str> = match merge {
                    Value::String(pair) => pair.split(' ').collect(),
                    pair => pair.as_array().into_iter().flatten().filter_map(Value::as_str).collect(),
                };
                !parts.iter().any(|part| unused.contains(*part)) && !unused.contains(&parts.concat())
            });
        }
        self.listing.ids.retain(|(_, id)| *id < rows);
        self.listing.added.retain(|token| token.id < rows);
        self.ids.retain(|_, id| *id < rows);
        self.added.retain(|text| !unused.contains(text));
        self.is_changed = true;
        Ok(())
    }

    /// Adds a token. One that is there already as an added token stays as it is; one of the model's own becomes an added
    /// token; another gets the next id.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] if the tokenizer isn't a tokenizer.json.
    pub(crate) fn add(&mut self, token: &ListedToken) -> Result<()> {
        if token.text.is_empty() || self.added.contains(&token.text) {
            return Ok(());
        }
        if self.listing.json.is_none() {
            let finding = Finding::new(&self.folder, format!("token {:?}", token.text)).expected("a tokenizer.json");
            let hint = "save the tokenizer with save_pretrained of transformers, which makes one";
            return Err(finding
                .found("a vocabulary in another form, to which nothing is added")
                .hint(hint)
                .unsupported());
        }
        let own = self.listing.own;
        let id = self.id(&token.text).unwrap_or_else(|| match self.listing.added.last().map(|added| added.id) {
            Some(last) if last >= own => last.saturating_add(1),
            _ => own,
        });
        if self.ids.insert(token.text.clone(), id).is_none() {
            let place = self.listing.ids.partition_point(|(_, other)| *other <= id);
            self.listing.ids.insert(place, (token.text.clone(), id));
        }
        self.added.insert(token.text.clone());
        let place = self.listing.added.partition_point(|added| added.id <= id);
        self.listing.added.insert(place, token.with_id(id));
        self.is_changed = true;
        Ok(())
    }

    /// The tokenizer's files, by name.
    ///
    /// # Errors
    /// [`crate::Error::Io`], and malformed files.
    pub(crate) fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for name in tokenizer_files(&self.folder) {
            if !self.is_changed || KEPT.contains(&name.as_str()) {
                let path = self.folder.join(&name);
                files.insert(name, fs::read(&path).at(&path, "read")?);
            }
        }
        let Some(mut json) = self.listing.json.clone().filter(|_| self.is_changed) else { return Ok(files) };
        let added: Vec<Value> = self.listing.added.iter().map(|token| token.json.clone().into()).collect();
        json.insert("added_tokens".to_owned(), added.into());
        files.insert("tokenizer.json".to_owned(), text(json));
        let path = self.folder.join("tokenizer_config.json");
        if path.is_file() {
            let mut config = read_json_object(&path)?;
            // It describes the tokens of a GGUF that had the old ones.
            config.remove(record::FIELD);
            if config.contains_key("added_tokens_decoder") {
                config.insert("added_tokens_decoder".to_owned(), self.decoder().into());
            }
            files.insert("tokenizer_config.json".to_owned(), text(config));
        }
        Ok(files)
    }

    /// The added tokens as tokenizer_config.json lists them.
    fn decoder(&self) -> Map<String, Value> {
        let without_id = |token: &ListedToken| {
            let mut json = token.json.clone();
            json.remove("id");
            (token.id.to_string(), Value::from(json))
        };
        self.listing.added.iter().map(without_id).collect()
    }
}

/// Whether two folders have tokenizers that give the tokens other ids, or tokens of other texts. Folders without a
/// tokenizer, or with one that can't be read, are not compared.
pub(crate) fn ids_differ(one: &Path, other: &Path) -> bool {
    if !has_tokenizer(one) || !has_tokenizer(other) {
        return false;
    }
    let same = |name: &str| {
        let read = |folder: &Path| fs::read(folder.join(name)).ok();
        read(one) == read(other)
    };
    if ["tokenizer.json", "tokenizer_config.json", "tokenizer.model"].into_iter().all(same) {
        return false;
    }
    let ids = |folder: &Path| Listing::of(folder, &Map::new()).ok().flatten().map(|listing| listing.ids);
    ids(one).zip(ids(other)).is_some_and(|(one, other)| one != other)
}

fn text(json: Map<String, Value>) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(&Value::from(json)).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A tokenizer with the tokens a, b, ab, and `<s>`.
    fn tokenizer(config: Value) -> (tempfile::TempDir, EditedTokenizer) {
        let folder = tempfile::tempdir().unwrap();
        let json = json!({
            "added_tokens": [{"id": 3, "content": "<s>", "special": true, "lstrip": true, "normalized": false}],
            "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]},
        });
        fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        fs::write(folder.path().join("vocab.json"), "{}").unwrap();
        let edited = EditedTokenizer::of(folder.path(), &Map::new()).unwrap().unwrap();
        (folder, edited)
    }

    fn written(tokenizer: &EditedTokenizer, name: &str) -> Value {
        serde_json::from_slice(&tokenizer.files().unwrap()[name]).unwrap()
    }

    #[test]
    fn an_unchanged_tokenizer_keeps_its_files() {
        let (folder, tokenizer) = tokenizer(json!({"bos_token": "<s>"}));
        let files = tokenizer.files().unwrap();
        assert_eq!(files.keys().collect::<Vec<_>>(), ["tokenizer.json", "tokenizer_config.json", "vocab.json"]);
        assert_eq!(files["tokenizer.json"], fs::read(folder.path().join("tokenizer.json")).unwrap());
    }

    #[test]
    fn added_tokens_get_the_next_ids_and_the_files_of_the_old_vocabulary_go() {
        let (_folder, mut tokenizer) = tokenizer(json!({"pad_token": "<pad>", "added_tokens_decoder": {}, "gguf": {}}));
        // The named token has no place in the list, and its id comes first.
        for text in ["<x>", "b", "<x>", "<s>", ""] {
            tokenizer.add(&ListedToken::plain(text)).unwrap();
        }
        let ids: Vec<(&str, usize)> = tokenizer.tokens().iter().map(|(text, id)| (text.as_str(), *id)).collect();
        assert_eq!(ids, [("a", 0), ("b", 1), ("ab", 2), ("<s>", 3), ("<pad>", 4), ("<x>", 5)]);
        let listed = written(&tokenizer, "tokenizer.json")["added_tokens"].clone();
        let of = |place: usize, field: &str| listed[place][field].clone();
        assert_eq!(of(0, "content"), "b");
        assert_eq!((of(1, "id"), of(1, "lstrip"), of(1, "special")), (json!(3), json!(true), json!(true)));
        assert_eq!((of(2, "content"), of(2, "special")), (json!("<pad>"), json!(true)));
        assert_eq!((of(3, "content"), of(3, "normalized")), (json!("<x>"), json!(true)));
        let config = written(&tokenizer, "tokenizer_config.json");
        assert_eq!(config["added_tokens_decoder"]["5"]["content"], "<x>");
        assert!(config.get("gguf").is_none() && !tokenizer.files().unwrap().contains_key("vocab.json"));
    }

    #[test]
    fn tokens_without_rows_are_left_out_with_their_merges() {
        let (_folder, mut tokenizer) = tokenizer(json!({}));
        tokenizer.strip(2).unwrap();
        assert_eq!((tokenizer.id("ab"), tokenizer.id("<s>"), tokenizer.id("b")), (None, None, Some(1)));
        let json = written(&tokenizer, "tokenizer.json");
        assert_eq!((json["added_tokens"].clone(), json["model"]["merges"].clone()), (json!([]), json!([])));
        assert_eq!(json["model"]["vocab"], json!({"a": 0, "b": 1}));
    }
}
