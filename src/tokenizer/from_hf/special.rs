//! Special tokens: their ids, whether the tokenizer adds them to texts, and the chat template.
//!
//! Reference: llama.cpp `gguf-py/gguf/vocab.py` (`SpecialVocab`), whose order of keys is kept.

use serde_json::Value as Json;

use super::files::{Files, Object, shortened};
use super::template;
use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::tokenizer::special::SpecialToken;

/// The kinds of special tokens that most vocabularies have, in the order of their keys.
pub(super) const USUAL: &[&str] = &["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

/// Kinds for the `eos` token of the config. If the template of tokenizer.json ends texts with another token, the
/// config's token gets the first free kind of these.
const AFTER_EOS: [&str; 2] = ["eot", "eom"];

/// Returns the key for a kind's id. The reference writes none for the other kinds, nor for `cls`.
pub(super) fn id_key(kind: &str) -> Option<&'static str> {
    let known = SpecialToken::ALL.iter().find(|(_, name, _)| *name == kind);
    known.filter(|(token, _, _)| *token != SpecialToken::Cls).map(|(_, _, key)| *key)
}

/// The facts about special tokens from the tokenizer's files.
pub(super) struct SpecialTokens {
    /// tokenizer_config.json, completed with the tokens of the post-processor.
    config: Option<Object>,
    /// The kinds to look up.
    kinds: Vec<&'static str>,
    /// The number of tokens, if ids are checked against it.
    n_vocab: Option<usize>,
    /// The first id found for each kind.
    ids: Vec<(&'static str, u32)>,
    /// Whether a kind's token is added to every text.
    adds: Vec<(&'static str, bool)>,
    /// The chat template, a text or a list.
    pub(super) template: Option<Json>,
    normalizer: Normalizer,
}

impl SpecialTokens {
    /// Looks up the tokens of `kinds`. If `n_vocab` is given, ids have to be below it.
    pub(super) fn load(
        files: &Files,
        kinds: &[&'static str],
        n_vocab: Option<usize>,
        notes: &mut Vec<String>,
    ) -> Result<Self> {
        let mut specials = Self {
            config: files.config.clone(),
            kinds: kinds.to_vec(),
            n_vocab,
            ids: Vec::new(),
            adds: Vec::new(),
            template: None,
            normalizer: Normalizer::default(),
        };
        if let Some(tokenizer) = &files.tokenizer {
            specials.normalizer.read(tokenizer.get("normalizer").unwrap_or(&Json::Null));
            specials.post_processor(tokenizer.get("post_processor"), notes);
        }
        let kinds = specials.kinds.clone();
        if let Some(config) = specials.config.take() {
            specials.template = template::find(&files.template_folder, &config, notes)?;
            for kind in &kinds {
                specials.named(files, &config, kind, notes)?;
            }
        }
        for kind in kinds {
            let name = format!("{kind}_token_id");
            let config = files.tokenizer_model();
            let inner = || config.get("text_config").and_then(|inner| inner.get(&name));
            let id = config.get(&name).filter(|id| !id.is_null()).or_else(inner);
            if let Some(id) = id {
                specials.set(files, kind, id, notes)?;
            }
        }
        Ok(specials)
    }

    /// Returns whether no id has been found.
    pub(super) fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Writes the ids, the flags `add_*_token`, and the chat template.
    pub(super) fn write(&self, metadata: &mut Metadata) {
        for (kind, id) in &self.ids {
            if let Some(key) = id_key(kind) {
                metadata.insert(key, *id);
            }
        }
        for (kind, adds) in &self.adds {
            if matches!(*kind, "bos" | "eos" | "sep") {
                metadata.insert(format!("tokenizer.ggml.add_{kind}_token"), *adds);
            }
        }
        if let Some(template) = &self.template {
            template::write(metadata, template);
        }
        let Normalizer { lowercase, strip_accents } = self.normalizer;
        for (key, value) in [("lowercase", lowercase), ("strip_accents", strip_accents)] {
            if let Some(value) = value {
                metadata.insert(format!("tokenizer.ggml.normalizer.{key}"), value);
            }
        }
    }

    /// Returns the id of a kind.
    pub(super) fn id(&self, kind: &str) -> Option<u32> {
        self.ids.iter().find(|(known, _)| *known == kind).map(|(_, id)| *id)
    }

    /// Sets the id of a kind, whatever it was. A kind keeps its place among the keys.
    pub(super) fn replace(&mut self, kind: &'static str, id: u32) {
        match self.ids.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, old)) => *old = id,
            None => self.ids.push((kind, id)),
        }
    }

    /// Sets the id of a kind that has none yet. Values that aren't numbers are ignored.
    pub(super) fn set(&mut self, files: &Files, kind: &'static str, id: &Json, notes: &mut Vec<String>) -> Result<()> {
        if !id.is_i64() && !id.is_u64() {
            return Ok(());
        }
        if id.as_i64() == Some(-1) {
            notes.push(format!("special token {kind}: id -1 means that there is none: left out"));
            return Ok(());
        }
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or_else(|| {
            files
                .finding_in("", format!("{kind}_token_id"))
                .expected("a token id")
                .found(shortened(&id.to_string()))
                .format()
        })?;
        match self.n_vocab {
            Some(size) if usize::try_from(number).map_or(true, |id| id >= size) => {
                notes.push(format!(
                    "special token {kind}: id {number} is past the {size} tokens of the vocabulary, left out"
                ));
            }
            _ if self.id(kind).is_some() => {}
            _ => self.ids.push((kind, number)),
        }
        Ok(())
    }

    fn adds(&mut self, kind: &'static str, value: bool) {
        match self.adds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, adds)) => *adds = value,
            None => self.adds.push((kind, value)),
        }
    }

    /// Sets the flag of a kind that has none yet. Returns the flag in effect.
    fn adds_by_default(&mut self, kind: &'static str, value: bool) -> bool {
        match self.adds.iter().find(|(known, _)| *known == kind) {
            Some((_, adds)) => *adds,
            None => {
                self.adds.push((kind, value));
                value
            }
        }
    }

    /// Looks up the token of `kind` that tokenizer_config.json names, with its id in tokenizer.json.
    fn named(&mut self, files: &Files, config: &Object, kind: &'static str, notes: &mut Vec<String>) -> Result<()> {
        if let Some(Json::Bool(adds)) = config.get(&format!("add_{kind}_token")) {
            let stands = self.adds_by_default(kind, *adds);
            if stands != *adds {
                notes.push(format!(
                    "add_{kind}_token: the post-processor of tokenizer.json says {stands}, tokenizer_config.json {adds}: \
                     {stands} is written"
                ));
            }
        }
        let text = config.get(&format!("{kind}_token")).and_then(|token| match token {
            Json::Object(token) => token.get("content").and_then(Json::as_str),
            other => other.as_str(),
        });
        let Some(text) = text else { return Ok(()) };
        let added = files.tokenizer.as_ref().and_then(|json| json.get("added_tokens")).and_then(Json::as_array);
        let token = added.into_iter().flatten().find(|token| token.get("content").and_then(Json::as_str) == Some(text));
        match token.and_then(|token| token.get("id")) {
            Some(id) => self.set(files, kind, id, notes),
            None => Ok(()),
        }
    }

    /// Returns the token of `kind` that the config names; null if it names none.
    fn token(&self, kind: &str) -> Json {
        self.config.as_ref().and_then(|config| config.get(&format!("{kind}_token"))).cloned().unwrap_or_default()
    }

    fn set_token(&mut self, kind: &str, token: &Json) {
        if let Some(config) = &mut self.config {
            config.insert(format!("{kind}_token"), token.clone());
        }
    }

    /// Reads which tokens the post-processor adds to a text, and the kinds of these tokens.
    fn post_processor(&mut self, processor: Option<&Json>, notes: &mut Vec<String>) {
        let mut known = NamedTokens {
            bos: self.token("bos"),
            cls: self.token("cls"),
            eos: self.token("eos"),
            sep: self.token("sep"),
        };
        if !truthy(&known.bos) && truthy(&known.cls) {
            self.set_token("bos", &known.cls);
            known.bos = known.cls.clone();
        }
        if !truthy(&known.eos) && truthy(&known.sep) {
            self.set_token("eos", &known.sep);
            known.eos = known.sep.clone();
        }
        let Some(processor) = processor.filter(|processor| truthy(processor)) else { return };
        let one = std::slice::from_ref(processor);
        let processors = processor.get("processors").and_then(Json::as_array).map_or(one, Vec::as_slice);
        for processor in processors {
            match processor.get("type").and_then(Json::as_str) {
                Some("ByteLevel") => {
                    self.adds_by_default("bos", false);
                    self.adds_by_default("eos", false);
                }
                Some("RobertaProcessing") => {
                    for kind in ["bos", "eos", "sep"] {
                        self.adds(kind, true);
                    }
                    for (kind, token, fallback) in
                        [("cls", &mut known.cls, &known.bos), ("sep", &mut known.sep, &known.eos)]
                    {
                        if !truthy(token) && self.config.is_some() {
                            *token = processor.get(kind).and_then(|pair| pair.get(0)).unwrap_or(fallback).clone();
                            self.set_token(kind, token);
                        }
                    }
                }
                Some("TemplateProcessing") => self.read_template(processor, &mut known, notes),
                _ => {}
            }
        }
    }

    /// Reads a template that adds at most a first token, a last token, and tokens between two texts.
    fn read_template(&mut self, processor: &Json, known: &mut NamedTokens, notes: &mut Vec<String>) {
        let pieces = |name: &str| processor.get(name).and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
        let special =
            |piece: &Json| piece.get("SpecialToken").and_then(|token| token.get("id")).filter(|id| truthy(id)).cloned();
        let (mut first, mut last) = (None, None);
        if let [start, .., end] = pieces("single") {
            first = special(start);
            last = special(end);
        }
        if let Some(first) = &first {
            if self.config.is_none() {
                known.bos = first.clone();
            } else if *first != known.bos && *first != known.cls {
                if !truthy(&known.bos) {
                    self.set_token("bos", first);
                    known.bos = first.clone();
                }
                if !truthy(&known.cls) {
                    self.set_token("cls", first);
                    known.cls = first.clone();
                }
            }
            self.adds("bos", *first == known.bos || *first == known.cls);
        }
        if let Some(last) = &last {
            if self.config.is_none() {
                known.eos = last.clone();
            } else if *last != known.eos {
                // The old end-of-text token becomes the end of a turn, or if that is taken, of a message.
                match AFTER_EOS.into_iter().find(|kind| !self.kinds.contains(kind)) {
                    Some(kind) => {
                        self.set_token(kind, &known.eos);
                        self.kinds.push(kind);
                    }
                    None => notes.push(format!(
                        "special token eos: {} of tokenizer.json replaces {}",
                        shortened(&last.to_string()),
                        shortened(&known.eos.to_string())
                    )),
                }
                self.set_token("eos", last);
                known.eos = last.clone();
            }
            self.adds("eos", *last == known.eos);
        }
        let mut pair = pieces("pair");
        if let (Some(first), [start, rest @ ..]) = (&first, pair)
            && special(start).as_ref() == Some(first)
        {
            pair = rest;
        }
        if let (Some(last), [rest @ .., end]) = (&last, pair)
            && special(end).as_ref() == Some(last)
        {
            pair = rest;
        }
        let sequence =
            |piece: &Json, id: &str| piece.get("Sequence").and_then(|s| s.get("id")).and_then(Json::as_str) == Some(id);
        let [a, between @ .., b] = pair else { return };
        let [separator, more @ ..] = between else { return };
        if !sequence(a, "A") || !sequence(b, "B") {
            return;
        }
        let separates = |token: &Json| *token == known.sep || *token == known.eos;
        let mut adds = special(separator).is_some_and(|token| separates(&token) && last.is_none());
        if let [second] = more {
            adds |= special(second).is_some_and(|token| separates(&token));
        }
        self.adds("sep", adds);
        if adds && !truthy(&known.sep) {
            self.set_token("sep", &known.eos.clone());
        }
    }
}

/// The special tokens known so far: texts, or objects with `content`.
struct NamedTokens {
    bos: Json,
    cls: Json,
    eos: Json,
    sep: Json,
}

/// Returns whether Python treats a value as true. Null, false, zero and empty values are false.
fn truthy(json: &Json) -> bool {
    match json {
        Json::Null => false,
        Json::Bool(value) => *value,
        Json::Number(number) => number.as_f64() != Some(0.0),
        Json::String(text) => !text.is_empty(),
        Json::Array(items) => !items.is_empty(),
        Json::Object(fields) => !fields.is_empty(),
    }
}

/// The settings of a normalizer for which GGUF has keys.
#[derive(Default, Clone, Copy)]
struct Normalizer {
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

impl Normalizer {
    fn read(&mut self, json: &Json) {
        match json.get("type").and_then(Json::as_str) {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                // A null removes the value of an earlier step.
                if let Some(flag) = json.get("lowercase") {
                    self.lowercase = flag.as_bool();
                }
                if let Some(flag) = json.get("strip_accents") {
                    self.strip_accents = flag.as_bool();
                }
            }
            Some("Sequence") => {
                let steps = json.get("normalizers").and_then(Json::as_array);
                steps.into_iter().flatten().for_each(|step| self.read(step));
            }
            _ => {}
        }
    }
}
