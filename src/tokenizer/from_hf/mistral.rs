//! Mistral's own tokenizers: tekken.json, and SentencePiece models whose names end in a version.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_mistral`), `conversion/mistral.py`
//! (`get_community_chat_template`), `gguf-py/gguf/vocab.py` (`MistralVocab`); mistral_common
//! `tokens/tokenizers/tekken.py` and `utils.py` (`get_one_valid_tokenizer_file`).

use serde::Deserialize;
use serde_json::Value as Json;

use super::files::{Files, MAX_TOKENS, shortened};
use super::ranks::Ranks;
use super::sentencepiece::ScoredTokens;
use super::special::id_key;
use super::{VocabWriter, template};
use crate::checkpoint::TEKKEN_FILE as TEKKEN;
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata};
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece::SentencePieceModel;
use crate::tokenizer::token::TokenKind;

/// The special tokens if tekken.json lists none: those of the first versions.
const FIRST_SPECIALS: [&str; 20] = [
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[TOOL_CALLS]",
    "[IMG]",
    "<pad>",
    "[IMG_BREAK]",
    "[IMG_END]",
    "[PREFIX]",
    "[MIDDLE]",
    "[SUFFIX]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[TOOL_CONTENT]",
];

/// Names of chat templates built into llama.cpp: version, whether it is tekken, name.
const TEMPLATES: [(u32, bool, &str); 6] = [
    (1, false, "mistral-v1"),
    (1, true, "mistral-v1"),
    (3, false, "mistral-v3"),
    (3, true, "mistral-v3-tekken"),
    (7, false, "mistral-v7"),
    (7, true, "mistral-v7-tekken"),
];

/// The parts of tekken.json that a vocabulary needs.
#[derive(Deserialize)]
struct Tekken {
    config: TekkenConfig,
    vocab: Vec<TekkenToken>,
    special_tokens: Option<Vec<SpecialEntry>>,
}

#[derive(Deserialize)]
struct TekkenConfig {
    pattern: String,
    default_vocab_size: usize,
    default_num_special_tokens: usize,
    version: String,
}

#[derive(Deserialize)]
struct TekkenToken {
    rank: u32,
    token_bytes: String,
}

#[derive(Deserialize)]
struct SpecialEntry {
    rank: usize,
    token_str: String,
}

/// Returns the tokenizer's file: tekken.json, otherwise the SentencePiece model with the last name. A model without a
/// version in its name is Mistral's only in its own format.
pub(super) fn file(files: &Files) -> Result<Option<String>> {
    if files.folder.join(TEKKEN).is_file() {
        return Ok(Some(TEKKEN.to_owned()));
    }
    let known = |name: &String| version_of(name).is_some_and(|_| files.is_mistral_format || !name.ends_with(".model"));
    Ok(files.names()?.into_iter().filter(known).max())
}

/// Returns the version at the end of a SentencePiece model's name: 3 of `tokenizer.model.v3`, 7 of
/// `tokenizer.model.v7m1`.
fn version_of(name: &str) -> Option<u32> {
    let (_, version) = name.rsplit_once(".model")?;
    if version.is_empty() {
        return Some(1);
    }
    let version = version.strip_prefix(".v")?;
    version.split_once('m').map_or(version, |(version, _)| version).parse().ok()
}

impl VocabWriter<'_> {
    /// Writes Mistral's own tokenizer from the file `name`.
    pub(super) fn mistral(&mut self, name: &str) -> Result<()> {
        if name == TEKKEN { self.tekken() } else { self.versioned(name) }
    }

    fn tekken(&mut self) -> Result<()> {
        let files = self.files;
        let read = read_tekken(files)?;
        let count = read.config.default_vocab_size;
        let specials = specials(files, &read)?;
        let ranks = ranks(files, &read, specials.len())?;
        let unescaped = |pattern: &str| pattern.replace("\\r", "\r").replace("\\n", "\n");
        if unescaped(&read.config.pattern) != unescaped(crate::tokenizer::pre::rules::TEKKEN) {
            self.notes.push(format!(
                "{TEKKEN}: its pattern is not the one that llama.cpp splits text by under the name tekken: {}",
                shortened(&read.config.pattern)
            ));
        }
        let first = 256;
        let merges = ranks.every_merge(first).map_err(|(token, rank)| {
            let finding = files.finding_in(TEKKEN, format!("token {token:?} of rank {rank}"));
            finding.expected("two tokens that it is made of").found("none").format()
        })?;
        self.metadata.insert(keys::MODEL, "gpt2");
        self.metadata.insert(keys::PRE, self.pre.unwrap_or("tekken"));
        self.metadata.insert(keys::MERGES, Array::texts(merges));
        let id = |text: &str| {
            let id = specials.iter().position(|special| special == text).and_then(|id| u32::try_from(id).ok());
            let finding = || files.finding_in(TEKKEN, "special_tokens").expected(format_args!("{text:?} among them"));
            id.ok_or_else(|| finding().found("none").format())
        };
        write_ids(self.metadata, id("<s>")?, id("</s>")?, id("<unk>")?, id("<pad>")?);
        let kinds = (0..count).map(|at| if at < specials.len() { TokenKind::Control } else { TokenKind::Normal });
        let kinds: Vec<i32> = kinds.map(TokenKind::number).collect();
        let texts: Vec<String> = specials.into_iter().chain(ranks.texts().map(|(text, _)| text)).collect();
        self.metadata.insert(keys::TOKENS, Array::texts(texts));
        // The reference writes these scores, but no program reads them.
        self.metadata.insert(keys::SCORES, Array::I32(vec![0; count]));
        self.metadata.insert(keys::TOKEN_TYPE, Array::I32(kinds));
        let version = read.config.version.strip_prefix('v').and_then(|version| version.parse().ok());
        self.finish(TEKKEN, count, version, true)
    }

    /// Writes a SentencePiece model, without the added tokens of other files.
    fn versioned(&mut self, name: &str) -> Result<()> {
        let files = self.files;
        let bytes = files.bytes(name)?.unwrap_or_default();
        let model = SentencePieceModel::parse(&files.folder.join(name), &bytes)?;
        let count = model.pieces.len();
        let id = |id: Option<u32>, what: &str| {
            let finding = || files.finding_in(name, what).expected(format_args!("an id below {count}"));
            let found = |id: Option<u32>| id.map_or("none".to_owned(), |id| id.to_string());
            let known = id.filter(|id| usize::try_from(*id).is_ok_and(|id| id < count));
            known.ok_or_else(|| finding().found(found(id)).format())
        };
        let (bos, eos, unk) = (id(model.bos_id, "bos_id")?, id(model.eos_id, "eos_id")?, id(model.unk_id, "unk_id")?);
        let pad = model.pad_id.map_or(Ok(eos), |pad| id(Some(pad), "pad_id"))?;
        self.metadata.insert(keys::MODEL, "llama");
        write_ids(self.metadata, bos, eos, unk, pad);
        let mut tokens = ScoredTokens::unused(count);
        tokens.set_pieces(&model);
        self.scored_tokens(tokens);
        self.finish(name, count, version_of(name), false)
    }

    /// Writes the keys that follow the tokens.
    fn finish(&mut self, name: &str, count: usize, version: Option<u32>, is_tekken: bool) -> Result<()> {
        let files = self.files;
        if let Some(size) = files.vocab_size()?.filter(|size| *size != count) {
            self.notes.push(format!(
                "{name} has {count} tokens, the model's vocab_size is {size}: llama.cpp may refuse the file"
            ));
        }
        self.metadata.insert(keys::ADD_BOS, true);
        self.metadata.insert(keys::ADD_EOS, false);
        let own =
            template::find(&files.template_folder, files.config.as_ref().unwrap_or(&Default::default()), self.notes)?;
        let named = TEMPLATES.iter().find(|(number, tekken, _)| Some(*number) == version && *tekken == is_tekken);
        match (own, named) {
            (Some(own), _) => template::write(self.metadata, &own),
            (None, Some((_, _, built_in))) => template::write(self.metadata, &Json::from(*built_in)),
            (None, None) => self.notes.push(format!(
                "{name}: llama.cpp has no chat template of its own for this version, and the folder has no \
                 chat_template.jinja: none is written"
            )),
        }
        Ok(())
    }
}

fn read_tekken(files: &Files) -> Result<Tekken> {
    let bytes = files.bytes(TEKKEN)?.unwrap_or_default();
    crate::json::read(&bytes, || files.finding_in(TEKKEN, "").expected("Mistral's tokenizer"))
}

/// Returns how many tokens tekken.json has.
pub(super) fn tekken_size(files: &Files) -> Result<usize> {
    Ok(read_tekken(files)?.config.default_vocab_size)
}

/// Returns the special tokens by id: the listed ones, then fillers.
fn specials(files: &Files, read: &Tekken) -> Result<Vec<String>> {
    let count = read.config.default_num_special_tokens;
    let finding = |what: &str| files.finding_in(TEKKEN, what);
    if count > MAX_TOKENS {
        let finding = finding("config.default_num_special_tokens").expected(format_args!("at most {MAX_TOKENS}"));
        return Err(finding.found(count).format());
    }
    let mut specials: Vec<String> = match &read.special_tokens {
        None => FIRST_SPECIALS.iter().map(|text| (*text).to_owned()).collect(),
        Some(listed) => listed.iter().map(|entry| entry.token_str.clone()).collect(),
    };
    if specials.len() > count {
        let finding = finding("special_tokens").expected(format_args!("at most {count}, as config says"));
        return Err(finding.found(specials.len()).format());
    }
    let listed = read.special_tokens.iter().flatten().enumerate();
    if let Some((place, entry)) = listed.into_iter().find(|(place, entry)| *place != entry.rank) {
        let finding = finding("special_tokens").expected(format_args!("the rank {place} of {:?}", entry.token_str));
        return Err(finding.found(entry.rank).format());
    }
    specials.extend((specials.len()..count).map(|id| format!("<SPECIAL_{id}>")));
    let mut seen = std::collections::HashSet::new();
    match specials.iter().find(|text| !seen.insert(text.as_str())) {
        Some(twice) => {
            Err(finding("special_tokens").expected("each once").found(format_args!("{twice:?} twice")).format())
        }
        None => Ok(specials),
    }
}

/// Returns the tokens of bytes, as many as the vocabulary has room for.
fn ranks(files: &Files, read: &Tekken, specials: usize) -> Result<Ranks> {
    let count = read.config.default_vocab_size;
    let finding = |what: String| files.finding_in(TEKKEN, what);
    let Some(most) = count.checked_sub(specials).filter(|most| *most <= read.vocab.len()) else {
        let finding = finding("config.default_vocab_size".to_owned())
            .expected(format_args!("from {specials} to {}, by its tokens", specials.saturating_add(read.vocab.len())));
        return Err(finding.found(count).format());
    };
    let mut tokens = Vec::with_capacity(most);
    for (token, place) in read.vocab[..most].iter().zip(0u32..) {
        let bytes = super::unigram::decode_base64(&token.token_bytes);
        let is_byte = |bytes: &[u8]| place >= 256 || bytes.len() == 1 && u32::from(bytes[0]) == place;
        let bytes = bytes.filter(|bytes| token.rank == place && !bytes.is_empty() && is_byte(bytes));
        let Some(bytes) = bytes else {
            let expected = if place < 256 { "the byte of its place" } else { "bytes in base64, and its place as rank" };
            let found = format!("{} of rank {}", shortened(&token.token_bytes), token.rank);
            return Err(finding(format!("vocab[{place}]")).expected(expected).found(found).format());
        };
        tokens.push((bytes, place));
    }
    Ranks::new(tokens).map_err(|twice| {
        let finding = finding("vocab".to_owned()).expected("each token once");
        finding.found(format_args!("{:?} twice", String::from_utf8_lossy(&twice))).format()
    })
}

fn write_ids(metadata: &mut Metadata, bos: u32, eos: u32, unk: u32, pad: u32) {
    for (kind, id) in [("bos", bos), ("eos", eos), ("unk", unk), ("pad", pad)] {
        if let Some(key) = id_key(kind) {
            metadata.insert(key, id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_stand_in_names() {
        let of = |name: &str| version_of(name);
        assert_eq!([of("tokenizer.model"), of("tokenizer.model.v3"), of("a.model.v7m1")], [Some(1), Some(3), Some(7)]);
        assert_eq!([of("tokenizer.json"), of("tokenizer.model.old"), of("model.safetensors")], [None; 3]);
    }
}
