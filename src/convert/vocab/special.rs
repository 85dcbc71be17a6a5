//! Special tokens: their ids, whether a tokenizer adds them by itself, and the chat template.
//!
//! Reference: llama.cpp `gguf-py/gguf/vocab.py` (`SpecialVocab`), whose order of keys is kept.

use std::fs;
use std::path::Path;

use serde_json::Value as Json;

use super::{Files, Object};
use crate::checkpoint::read_json_object;
use crate::error::{Finding, IoContext, Result};
use crate::formats::gguf::{Array, Metadata};

/// The kinds of special tokens, in the order of their keys; the last two only where a template
/// takes the end-of-sequence token's place.
const KINDS: [&str; 9] = ["bos", "eos", "unk", "sep", "pad", "cls", "mask", "eot", "eom"];

/// The key of a kind's id; the class token has none in GGUF.
fn id_key(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "bos" => "tokenizer.ggml.bos_token_id",
        "eos" => "tokenizer.ggml.eos_token_id",
        "unk" => "tokenizer.ggml.unknown_token_id",
        // The format's own spelling.
        "sep" => "tokenizer.ggml.seperator_token_id",
        "pad" => "tokenizer.ggml.padding_token_id",
        "mask" => "tokenizer.ggml.mask_token_id",
        "eot" => "tokenizer.ggml.eot_token_id",
        "eom" => "tokenizer.ggml.eom_token_id",
        _ => return None,
    })
}

/// What the tokenizer's files say about special tokens, as it is gathered.
struct Specials {
    /// tokenizer_config.json, completed from the post-processor.
    config: Option<Object>,
    /// How many of [`KINDS`] are looked up.
    kinds: usize,
    /// Ids by kind, the first found.
    ids: Vec<(&'static str, u32)>,
    /// Whether a kind is added to every text.
    adds: Vec<(&'static str, bool)>,
}

/// Writes ids, the flags `add_*_token`, and the chat template.
pub(super) fn write(metadata: &mut Metadata, files: &Files, model_config: &Object) -> Result<()> {
    let mut specials = Specials { config: files.config.clone(), kinds: 7, ids: Vec::new(), adds: Vec::new() };
    specials.post_processor(files.tokenizer.get("post_processor"));
    let mut template = None;
    if let Some(config) = specials.config.take() {
        template = chat_template(&files.folder, &config)?;
        specials.named(files, &config)?;
    }
    for kind in &KINDS[..specials.kinds] {
        if let Some(id) = model_config.get(&format!("{kind}_token_id")) {
            specials.set_id(files, kind, id)?;
        }
    }
    for (kind, id) in &specials.ids {
        if let Some(key) = id_key(kind) {
            metadata.insert(key, *id);
        }
    }
    for (kind, adds) in &specials.adds {
        if matches!(*kind, "bos" | "eos" | "sep") {
            metadata.insert(format!("tokenizer.ggml.add_{kind}_token"), *adds);
        }
    }
    if let Some(template) = template {
        write_template(metadata, &template);
    }
    let mut normalizer = Normalizer::default();
    normalizer.read(files.tokenizer.get("normalizer").unwrap_or(&Json::Null));
    for (key, value) in [("lowercase", normalizer.lowercase), ("strip_accents", normalizer.strip_accents)] {
        if let Some(value) = value {
            metadata.insert(format!("tokenizer.ggml.normalizer.{key}"), value);
        }
    }
    Ok(())
}

impl Specials {
    fn adds(&mut self, kind: &'static str, value: bool) {
        match self.adds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, adds)) => *adds = value,
            None => self.adds.push((kind, value)),
        }
    }

    /// As [`Specials::adds`], where nothing has been said yet.
    fn adds_by_default(&mut self, kind: &'static str, value: bool) {
        if !self.adds.iter().any(|(known, _)| *known == kind) {
            self.adds.push((kind, value));
        }
    }

    /// The first id found for a kind stays; anything but a number says nothing.
    fn set_id(&mut self, files: &Files, kind: &'static str, id: &Json) -> Result<()> {
        if !id.is_i64() && !id.is_u64() {
            return Ok(());
        }
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or_else(|| {
            Finding::new(&files.folder, format!("{kind}_token_id")).expected("a token id").found(id).format()
        })?;
        if !self.ids.iter().any(|(known, _)| *known == kind) {
            self.ids.push((kind, number));
        }
        Ok(())
    }

    /// The tokens that tokenizer_config.json names, with the ids that tokenizer.json gives them.
    fn named(&mut self, files: &Files, config: &Object) -> Result<()> {
        let added = files.tokenizer.get("added_tokens").and_then(Json::as_array);
        for kind in &KINDS[..self.kinds] {
            if let Some(Json::Bool(adds)) = config.get(&format!("add_{kind}_token")) {
                self.adds_by_default(kind, *adds);
            }
            let text = config.get(&format!("{kind}_token")).and_then(|token| match token {
                Json::Object(token) => token.get("content").and_then(Json::as_str),
                other => other.as_str(),
            });
            let Some(text) = text else { continue };
            let token =
                added.into_iter().flatten().find(|token| token.get("content").and_then(Json::as_str) == Some(text));
            if let Some(id) = token.and_then(|token| token.get("id")) {
                self.set_id(files, kind, id)?;
            }
        }
        Ok(())
    }

    /// The token of `kind` that the config names; null where it names none.
    fn token(&self, kind: &str) -> Json {
        self.config.as_ref().and_then(|config| config.get(&format!("{kind}_token"))).cloned().unwrap_or_default()
    }

    fn set_token(&mut self, kind: &str, token: &Json) {
        if let Some(config) = &mut self.config {
            config.insert(format!("{kind}_token"), token.clone());
        }
    }

    /// Which tokens the post-processor puts around a text, and which of them that makes special.
    fn post_processor(&mut self, processor: Option<&Json>) {
        let mut known =
            Known { bos: self.token("bos"), cls: self.token("cls"), eos: self.token("eos"), sep: self.token("sep") };
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
                Some("TemplateProcessing") => self.template(processor, &mut known),
                _ => {}
            }
        }
    }

    /// Reads simple templates: a first, a last, and a token between two texts.
    fn template(&mut self, processor: &Json, known: &mut Known) {
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
                // The token that ended texts so far ends turns now, then messages.
                if let Some(kind) = KINDS.get(self.kinds) {
                    self.set_token(kind, &known.eos);
                    self.kinds += 1;
                }
                self.set_token("eos", last);
                known.eos = last.clone();
            }
            self.adds("eos", *last == known.eos);
        }
        let mut pair = pieces("pair");
        if first.is_some() && pair.first().and_then(special) == first {
            pair = &pair[1..];
        }
        if last.is_some() && pair.last().and_then(special) == last {
            pair = &pair[..pair.len() - 1];
        }
        let sequence =
            |piece: &Json, id: &str| piece.get("Sequence").and_then(|s| s.get("id")).and_then(Json::as_str) == Some(id);
        let [a, between @ .., b] = pair else { return };
        if between.is_empty() || !sequence(a, "A") || !sequence(b, "B") {
            return;
        }
        let separates = |token: &Json| *token == known.sep || *token == known.eos;
        let mut adds = special(&between[0]).is_some_and(|token| separates(&token) && last.is_none());
        if let [_, second] = between {
            adds |= special(second).is_some_and(|token| separates(&token));
        }
        self.adds("sep", adds);
        if adds && !truthy(&known.sep) {
            self.set_token("sep", &known.eos.clone());
        }
    }
}

/// The special tokens known so far: texts, or objects with a content.
struct Known {
    bos: Json,
    cls: Json,
    eos: Json,
    sep: Json,
}

/// As Python has it: null, false, zero and what is empty are not.
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

/// The chat template: of tokenizer_config.json, else chat_template.jinja, else chat_template.json.
/// A text, or a list of templates with names.
fn chat_template(folder: &Path, config: &Object) -> Result<Option<Json>> {
    if let Some(template) = config.get("chat_template") {
        return Ok(Some(template.clone()).filter(|template| template.is_string() || template.is_array()));
    }
    let jinja = folder.join("chat_template.jinja");
    if jinja.is_file() {
        let default = read_text(&jinja)?;
        let others = additional_templates(&folder.join("additional_chat_templates"))?;
        if others.is_empty() {
            return Ok(Some(Json::String(default)));
        }
        let named = |(name, template): (String, String)| serde_json::json!({ "name": name, "template": template });
        let all = std::iter::once(("default".to_owned(), default)).chain(others);
        return Ok(Some(all.map(named).collect()));
    }
    let json = folder.join("chat_template.json");
    match json.is_file() {
        true => Ok(read_json_object(&json)?.remove("chat_template")),
        false => Ok(None),
    }
}

/// Templates beside the default one, by file name, sorted.
fn additional_templates(folder: &Path) -> Result<Vec<(String, String)>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let mut templates = Vec::new();
    for entry in fs::read_dir(folder).at(folder, "read")? {
        let path = entry.at(folder, "read")?.path();
        if path.extension().is_some_and(|extension| extension == "jinja") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            templates.push((name, read_text(&path)?));
        }
    }
    templates.sort();
    Ok(templates)
}

/// A text file with every line end as `\n`.
fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).at(path, "read")?;
    let text = String::from_utf8(bytes)
        .map_err(|e| Finding::new(path, "").expected("UTF-8 text").found(e.utf8_error()).format())?;
    Ok(text.replace("\r\n", "\n").replace('\r', "\n"))
}

/// One template, or several: the one called default, and the others under their names.
fn write_template(metadata: &mut Metadata, template: &Json) {
    let mut put = |key: String, text: &str| {
        if !text.is_empty() {
            metadata.insert(key, text);
        }
    };
    let key = "tokenizer.chat_template";
    let choices = match template {
        Json::String(text) => return put(key.to_owned(), text),
        other => other.as_array().map_or(&[][..], Vec::as_slice),
    };
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    for choice in choices {
        let text = |field: &str| choice.get(field).and_then(Json::as_str);
        let name: String = text("name").unwrap_or_default().chars().map(plain).collect();
        match (name.as_str(), text("template")) {
            ("", _) | (_, None) => {}
            ("default", Some(template)) => default = Some(template),
            (_, Some(template)) => {
                put(format!("{key}.{name}"), template);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
    }
    if !names.is_empty() {
        metadata.insert("tokenizer.chat_templates", Array::texts(names));
    }
    if let Some(default) = default.filter(|text| !text.is_empty()) {
        metadata.insert(key, default);
    }
}

/// Names of templates become parts of keys: letters and digits only.
fn plain(c: char) -> char {
    if c.is_ascii_alphanumeric() { c } else { '_' }
}

/// What a normalizer does to text, as far as GGUF has keys for it.
#[derive(Default)]
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
                let flag = |name: &str| json.get(name).and_then(Json::as_bool);
                self.lowercase = flag("lowercase").or(self.lowercase);
                self.strip_accents = flag("strip_accents").or(self.strip_accents);
            }
            Some("Sequence") => {
                let steps = json.get("normalizers").and_then(Json::as_array);
                steps.into_iter().flatten().for_each(|step| self.read(step));
            }
            _ => {}
        }
    }
}
