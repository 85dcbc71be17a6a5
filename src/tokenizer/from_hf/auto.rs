//! The tokenizer of a folder as transformers' `AutoTokenizer` loads it: the vocabulary of the model,
//! the added tokens, and the named tokens (`bos_token` and others).
//!
//! A folder without tokenizer.json has the files of older classes: `vocab.json` with `merges.txt`, or
//! `vocab.txt`. A tokenizer.json is made of them, with the steps of the class.
//!
//! Reference: transformers `tokenization_utils_base.py` (`_from_pretrained`),
//! `tokenization_utils_tokenizers.py`, `models/*/tokenization_*.py`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use serde_json::{Value as Json, json};

use super::classes::{class, class_tokens};
use super::files::{Files, Object, id_of, read_text, shortened};
use crate::error::Result;
use crate::tokenizer::pre::rules;

/// How a model splits words into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelKind {
    Bpe,
    WordPiece,
    Unigram,
}

/// A token that was added to the model's vocabulary.
#[derive(Debug, PartialEq)]
pub(super) struct Added {
    pub(super) id: usize,
    pub(super) special: bool,
    /// Whether it is searched for in normalized text.
    pub(super) normalized: bool,
}

/// A tokenizer as transformers loads it.
pub(super) struct Auto<'a> {
    /// tokenizer.json, or the one made of older files.
    pub(super) json: Cow<'a, Object>,
    pub(super) model: ModelKind,
    /// Ids by text.
    pub(super) vocab: HashMap<String, usize>,
    /// Added tokens by text.
    pub(super) added: HashMap<String, Added>,
    /// The tokens that have a name or are listed as special, each once.
    pub(super) named: Vec<String>,
    /// Added tokens whose ids are not the listed ones, for a note.
    pub(super) moved: Vec<String>,
    /// The id that the next added token gets.
    next: usize,
}

/// The names that special tokens can have, in the order in which missing ones are added.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl<'a> Auto<'a> {
    pub(super) fn load(files: &'a Files) -> Result<Self> {
        let class = class(files);
        let json = match &files.tokenizer {
            Some(json) => Cow::Borrowed(json),
            None => Cow::Owned(from_older_files(files, &class)?),
        };
        let (model, vocab) = vocabulary(files, &json)?;
        let named = named_tokens(files, &class)?;
        let next = vocab.values().max().map_or(0, |id| id.saturating_add(1));
        let mut auto = Self { json, model, vocab, added: HashMap::new(), named, moved: Vec::new(), next };
        auto.read_added(files)?;
        auto.add_named();
        Ok(auto)
    }

    /// The ids of all tokens, by text; texts in order of ids.
    pub(super) fn ids(&self) -> Vec<(&str, usize)> {
        let mut ids: Vec<(&str, usize)> = self.vocab.iter().map(|(text, id)| (text.as_str(), *id)).collect();
        ids.extend(
            self.added
                .iter()
                .filter(|(text, _)| !self.vocab.contains_key(*text))
                .map(|(text, a)| (text.as_str(), a.id)),
        );
        ids.sort_by_key(|(text, id)| (*id, *text));
        ids
    }

    /// The id of a token.
    pub(super) fn id(&self, text: &str) -> Option<usize> {
        self.vocab.get(text).copied().or_else(|| self.added.get(text).map(|added| added.id))
    }

    /// The ids of the named tokens.
    pub(super) fn special_ids(&self) -> HashSet<usize> {
        self.named.iter().filter_map(|text| self.id(text)).collect()
    }

    /// Adds a token, or changes one. A new token gets the next free id, as in the tokenizers library,
    /// which ignores the listed id.
    fn add(&mut self, text: &str, listed: usize, special: bool, normalized: bool) {
        if let Some(added) = self.added.get_mut(text) {
            (added.special, added.normalized) = (special, normalized);
            return;
        }
        let id = match self.vocab.get(text) {
            Some(&id) => id,
            None => {
                let id = self.next;
                self.next = id.saturating_add(1);
                id
            }
        };
        if id != listed {
            self.moved.push(format!("{text:?} listed as {listed} gets {id}"));
        }
        self.added.insert(text.to_owned(), Added { id, special, normalized });
    }

    /// Reads the added tokens of tokenizer.json, then those of tokenizer_config.json, which may change
    /// which ones are special. Where neither file exists, they come from added_tokens.json.
    fn read_added(&mut self, files: &Files) -> Result<()> {
        let listed = self.json.get("added_tokens").and_then(Json::as_array).cloned();
        for token in listed.into_iter().flatten() {
            let (Some((text, special, normalized)), Some(id)) = (content(&token), token.get("id").and_then(id_of))
            else {
                return Err(files
                    .finding("added_tokens")
                    .expected("tokens with a content and an id")
                    .found(shortened(&token.to_string()))
                    .format());
            };
            self.add(text, id, special, normalized);
        }
        if let Some(Json::Object(decoder)) = files.setting("added_tokens_decoder") {
            let mut tokens = Vec::with_capacity(decoder.len());
            for (id, token) in decoder {
                let (Some(content), Ok(id)) = (content(token), id.parse::<usize>()) else {
                    let finding = files.finding_in("tokenizer_config.json", format!("added_tokens_decoder.{id}"));
                    return Err(finding.expected("a token by its id").found(shortened(&token.to_string())).format());
                };
                tokens.push((id, content));
            }
            tokens.sort_by_key(|(id, _)| *id);
            for (id, (text, special, normalized)) in tokens {
                self.add(text, id, special, normalized);
            }
            return Ok(());
        }
        // added_tokens.json is older than tokenizer.json, whose own list is the valid one.
        if files.tokenizer.is_some() {
            return Ok(());
        }
        let mut tokens = Vec::new();
        for (text, id) in files.json("added_tokens.json")?.unwrap_or_default() {
            let id = id_of(&id).ok_or_else(|| {
                files
                    .finding_in("added_tokens.json", format!("token {text:?}"))
                    .expected("an id")
                    .found(shortened(&id.to_string()))
                    .format()
            })?;
            tokens.push((id, text));
        }
        tokens.sort();
        for (id, text) in tokens {
            let special = self.named.contains(&text);
            self.add(&text, id, special, !special);
        }
        Ok(())
    }

    /// Makes the named tokens added tokens. A named token without an id gets the next one.
    fn add_named(&mut self) {
        for text in self.named.clone() {
            if !self.added.contains_key(&text) {
                let id = self.vocab.get(&text).copied().unwrap_or(self.next);
                self.add(&text, id, true, false);
            }
        }
    }
}

/// The model's kind and its vocabulary: ids by text.
fn vocabulary(files: &Files, json: &Object) -> Result<(ModelKind, HashMap<String, usize>)> {
    let Some(Json::Object(model)) = json.get("model") else {
        let found = json.get("model").map_or("none".to_owned(), Json::to_string);
        return Err(files.finding("model").expected("an object").found(shortened(&found)).format());
    };
    // The first versions of the format have no type.
    let kind = match model.get("type").and_then(Json::as_str) {
        Some("BPE") => ModelKind::Bpe,
        Some("WordPiece") => ModelKind::WordPiece,
        Some("Unigram") => ModelKind::Unigram,
        None if model.contains_key("merges") => ModelKind::Bpe,
        None if model.contains_key("continuing_subword_prefix") => ModelKind::WordPiece,
        None if model.get("vocab").is_some_and(Json::is_array) => ModelKind::Unigram,
        None => ModelKind::Bpe,
        Some(other) => {
            return Err(files
                .finding("model.type")
                .expected("BPE, WordPiece or Unigram")
                .found(shortened(other))
                .hint("GGUF has no vocabulary of this kind")
                .unsupported());
        }
    };
    let vocab = match (kind, model.get("vocab")) {
        (ModelKind::Unigram, Some(Json::Array(pieces))) => pieces
            .iter()
            .enumerate()
            .map(|(id, piece)| {
                let text = piece.get(0).and_then(Json::as_str).ok_or_else(|| {
                    let finding = files.finding(format!("model.vocab[{id}]"));
                    finding.expected("a text and a score").found(shortened(&piece.to_string())).format()
                })?;
                Ok((text.to_owned(), id))
            })
            .collect::<Result<_>>()?,
        (ModelKind::Bpe | ModelKind::WordPiece, Some(Json::Object(vocab))) => vocab
            .iter()
            .map(|(text, id)| match id_of(id) {
                Some(id) => Ok((text.clone(), id)),
                None => {
                    let finding = files.finding(format!("token {text:?}"));
                    Err(finding.expected("an id").found(shortened(&id.to_string())).format())
                }
            })
            .collect::<Result<_>>()?,
        _ => {
            let expected =
                if kind == ModelKind::Unigram { "a list of tokens and scores" } else { "an object of ids by token" };
            return Err(files.finding("model.vocab").expected(expected).found("none").format());
        }
    };
    Ok((kind, vocab))
}

/// An added token's text, whether it is special, and whether it is normalized.
fn content(token: &Json) -> Option<(&str, bool, bool)> {
    let flag = |name: &str| token.get(name).and_then(Json::as_bool);
    let special = flag("special").unwrap_or(false);
    Some((token.get("content")?.as_str()?, special, flag("normalized").unwrap_or(!special)))
}

/// The text of a named token, which is a text or an object with a content.
fn text_of(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The texts of the named tokens, each once: bos to mask, then the additional special tokens.
fn named_tokens(files: &Files, class: &str) -> Result<Vec<String>> {
    let map = special_tokens_map(files)?;
    let mut named: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    let mut put = |text: &str| {
        if !text.is_empty() && seen.insert(text.to_owned()) {
            named.push(text.to_owned());
        }
    };
    roles(files, &map, class).iter().for_each(|(_, text)| put(text));
    for name in ["extra_special_tokens", "additional_special_tokens"] {
        match map.get(name).or_else(|| files.setting(name)) {
            Some(Json::Array(tokens)) => tokens.iter().filter_map(text_of).for_each(&mut put),
            Some(Json::Object(tokens)) => tokens.values().filter_map(text_of).for_each(&mut put),
            _ => {}
        }
    }
    Ok(named)
}

/// special_tokens_map.json, which is older than the list of added tokens in tokenizer_config.json.
fn special_tokens_map(files: &Files) -> Result<Object> {
    match files.setting("added_tokens_decoder") {
        Some(_) => Ok(Object::new()),
        None => Ok(files.json("special_tokens_map.json")?.unwrap_or_default()),
    }
}

/// The names from bos to mask that a token has, with its text.
fn roles(files: &Files, map: &Object, class: &str) -> Vec<(&'static str, String)> {
    let text = |(name, default): (&'static str, &'static str)| {
        let text = match map.get(name).or_else(|| files.setting(name)) {
            Some(token) => text_of(token).unwrap_or_default(),
            None => default,
        };
        (!text.is_empty()).then(|| (name, text.to_owned()))
    };
    NAMED.into_iter().zip(class_tokens(class)).filter_map(text).collect()
}

/// The names from bos to mask that a token of the folder has, with its text.
pub(super) fn token_roles(files: &Files) -> Result<Vec<(&'static str, String)>> {
    Ok(roles(files, &special_tokens_map(files)?, &class(files)))
}

/// A tokenizer.json made of the files of older classes.
fn from_older_files(files: &Files, class: &str) -> Result<Object> {
    let json = if files.folder.join("vocab.json").is_file() {
        byte_level(files, class)?
    } else if files.folder.join("vocab.txt").is_file() {
        word_piece(files)?
    } else {
        return Err(files
            .finding_in("", "tokenizer")
            .expected("tokenizer.json, vocab.json with merges.txt, or vocab.txt")
            .found("none of them")
            .hint("save the tokenizer with save_pretrained of transformers, or convert without a vocabulary")
            .mismatch());
    };
    Ok(json.as_object().cloned().unwrap_or_default())
}

/// The tokenizer of vocab.json and merges.txt, as GPT-2 has them.
fn byte_level(files: &Files, class: &str) -> Result<Json> {
    let vocab = files.json("vocab.json")?.unwrap_or_default();
    let path = files.folder.join("merges.txt");
    if !path.is_file() {
        return Err(files
            .finding_in("", "merges.txt")
            .expected("a file of merges beside vocab.json")
            .found("no such file")
            .mismatch());
    }
    let text = read_text(&path)?;
    let merges: Vec<String> = merge_lines(&text).filter_map(Result::ok).collect();
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let (pre_tokenizer, post_processor) = match class {
        "Qwen2Tokenizer" => {
            let split =
                json!({"type": "Split", "pattern": {"Regex": rules::QWEN2}, "behavior": "Isolated", "invert": false});
            let bytes =
                json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
            (json!({"type": "Sequence", "pretokenizers": [split, bytes]}), Json::Null)
        }
        "RobertaTokenizer" => {
            let id = |text: &str| vocab.get(text).cloned().unwrap_or_default();
            let processor = json!({
                "type": "RobertaProcessing", "sep": ["</s>", id("</s>")], "cls": ["<s>", id("<s>")],
                "trim_offsets": true, "add_prefix_space": false,
            });
            (byte_level.clone(), processor)
        }
        _ => (byte_level.clone(), Json::Null),
    };
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": merges,
        },
    }))
}

/// The tokenizer of vocab.txt, as BERT has it: one token on each line. Where two lines are equal, the
/// later one counts.
fn word_piece(files: &Files) -> Result<Json> {
    let text = read_text(&files.folder.join("vocab.txt"))?;
    let mut lines: Vec<&str> = text.split('\n').collect();
    if lines.last() == Some(&"") {
        lines.pop();
    }
    let vocab: Object = lines.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    let flag = |name: &str, default: Json| files.setting(name).cloned().unwrap_or(default);
    let id = |text: &str| vocab.get(text).cloned().unwrap_or_default();
    let special = |text: &str| (text.to_owned(), json!({"id": text, "ids": [id(text)], "tokens": [text]}));
    let specials: Object = [special("[CLS]"), special("[SEP]")].into_iter().collect();
    let piece = |text: &str, segment: u8| json!({"SpecialToken": {"id": text, "type_id": segment}});
    let sequence = |text: &str, segment: u8| json!({"Sequence": {"id": text, "type_id": segment}});
    Ok(json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": flag("tokenize_chinese_chars", json!(true)),
            "strip_accents": flag("strip_accents", Json::Null), "lowercase": flag("do_lower_case", json!(true)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [piece("[CLS]", 0), sequence("A", 0), piece("[SEP]", 0)],
            "pair": [piece("[CLS]", 0), sequence("A", 0), piece("[SEP]", 0), sequence("B", 1), piece("[SEP]", 1)],
            "special_tokens": specials,
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab,
        },
    }))
}

/// The merges of a merges.txt as "left right", or the number of a line that isn't a pair.
pub(super) fn merge_lines(text: &str) -> impl Iterator<Item = std::result::Result<String, usize>> {
    // The first line may have the file's version. Later lines that begin with "#" are merges.
    let about = |number: usize, line: &str| number == 0 && line.starts_with('#');
    let lines = text.lines().map(str::trim).enumerate();
    let lines = lines.filter(move |(number, line)| !line.is_empty() && !about(*number, line));
    lines.map(|(number, line)| match line.split_whitespace().collect::<Vec<_>>().as_slice() {
        [left, right] => Ok(format!("{left} {right}")),
        _ => Err(number.saturating_add(1)),
    })
}

#[cfg(test)]
mod tests;
