//! From the vocabulary of a GGUF to the tokenizer files that Hugging Face's libraries read.
//!
//! GGUF holds a vocabulary, the name of a pre-tokenizer and a few flags; how text is split, merged
//! and normalized is in llama.cpp's code. `tokenizer.json` describes these steps, so that both give
//! the same tokens. Values that have no place in the files are kept in a record ([`super::record`]),
//! so that a conversion back gives the same keys.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp`; transformers `convert_slow_tokenizer.py`,
//! `tokenization_utils_tokenizers.py`.

mod bpe;
mod config;
mod lists;
mod sentencepiece;
mod special;
mod template;
mod token_types;
mod unigram;
mod vocabulary;
mod wordpiece;

use serde_json::{Map, Value as Json, json};

use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::tokenizer::keys;
use crate::tokenizer::pre::{self, PreTokenizer};
use crate::tokenizer::record;

use special::{Added, SpecialTokens};
use vocabulary::Vocabulary;

/// The algorithms of tokenizers that can be converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TokenizerKind {
    /// Merges by rank.
    Bpe,
    /// SentencePiece: merges by score, and bytes for characters without a token.
    SentencePiece,
    /// The longest tokens, from the left.
    WordPiece,
    /// The tokens with the best sum of scores.
    Unigram,
}

/// The tokenizer of a GGUF file: what the parts of the new files are made of.
struct GgufTokenizer<'a> {
    metadata: &'a Metadata,
    vocabulary: Vocabulary<'a>,
    specials: SpecialTokens,
    kind: TokenizerKind,
    pre: &'static PreTokenizer,
}

/// The parts of tokenizer.json that depend on the algorithm, and further files.
struct HfParts {
    normalizer: Json,
    pre_tokenizer: Json,
    decoder: Json,
    model: Json,
    added: Vec<Added>,
    /// Whether an added token is searched for in normalized text.
    normalized: fn(&str) -> bool,
    /// Names and contents of further files.
    files: Vec<(String, Vec<u8>)>,
    /// Settings of tokenizer_config.json that only this algorithm has.
    settings: Vec<(&'static str, Json)>,
}

/// The tokenizer's files, by name: `tokenizer.json`, `tokenizer_config.json`, and for some
/// tokenizers `tokenizer.model`, `spiece.model`, `added_tokens.json` and `chat_template.jinja`. A
/// vocabulary that tokenizer.json can't describe becomes a file of its model's own tokenizer, if there is one. A GGUF
/// file without a vocabulary gives no files and a note.
///
/// # Errors
/// [`crate::Error::Format`] for keys that break the rules of a vocabulary, naming file and key;
/// [`crate::Error::Unsupported`] for a tokenizer that Hugging Face's files can't describe.
pub(crate) fn to_hf(metadata: &Metadata, notes: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    if !metadata.iter().any(|(key, _)| key.starts_with("tokenizer.")) {
        notes.push("no vocabulary in the GGUF file: no tokenizer files".to_owned());
        return Ok(Vec::new());
    }
    let model = metadata.text(keys::MODEL)?;
    let (kind, default_pre) = match model {
        "none" | "no_vocab" => {
            notes.push(format!("{} is {model:?}: no tokenizer files", keys::MODEL));
            return Ok(Vec::new());
        }
        "gpt2" => (TokenizerKind::Bpe, None),
        // llama.cpp has a fixed pre-tokenizer for these two.
        "gemma4" => (TokenizerKind::Bpe, Some("gemma4")),
        "whitespace" => (TokenizerKind::Bpe, Some("whitespace")),
        "llama" => (TokenizerKind::SentencePiece, Some("default")),
        "bert" => (TokenizerKind::WordPiece, Some("default")),
        "t5" => (TokenizerKind::Unigram, Some("default")),
        "rwkv" => return lists::rwkv(metadata, notes),
        "plamo2" => return lists::plamo(metadata, notes),
        other => {
            return Err(metadata
                .finding(keys::MODEL)
                .expected("gpt2, gemma4, whitespace, llama, bert, t5, rwkv or plamo2")
                .found(format!("{other:?}, which tokenizer.json can't describe"))
                .hint("convert without a vocabulary, and take the tokenizer from the original model")
                .unsupported());
        }
    };
    let pre = pre_tokenizer(metadata, default_pre)?;
    let vocabulary = Vocabulary::read(metadata)?;
    let specials = SpecialTokens::read(metadata, &vocabulary, kind, pre)?;
    let parts = GgufTokenizer { metadata, vocabulary, specials, kind, pre };
    if kind == TokenizerKind::Bpe
        && metadata.text("general.architecture").ok() == Some("qwen2")
        && !parts.pre.is_qwen2()
    {
        notes.push(format!(
            "{}: transformers reads models of the type qwen2 with Qwen2's own rules, tokens may differ from llama.cpp's there",
            keys::PRE
        ));
    }
    let made = match kind {
        TokenizerKind::Bpe => bpe::make(&parts, notes)?,
        TokenizerKind::SentencePiece => sentencepiece::make(&parts, notes)?,
        TokenizerKind::WordPiece => wordpiece::make(&parts)?,
        TokenizerKind::Unigram => unigram::make(&parts, notes)?,
    };
    assemble(&parts, made, notes)
}

fn pre_tokenizer(metadata: &Metadata, fixed: Option<&str>) -> Result<&'static PreTokenizer> {
    let name = match fixed {
        Some(name) => name,
        None if metadata.get(keys::PRE).is_none() => "",
        None => metadata.text(keys::PRE)?,
    };
    pre::by_name(name).ok_or_else(|| {
        metadata
            .finding(keys::PRE)
            .expected("the name of a pre-tokenizer of llama.cpp")
            .found(format!("{name:?}, which this version doesn't know"))
            .hint("take the tokenizer from the original model")
            .unsupported()
    })
}

/// Makes the files of their parts.
fn assemble(parts: &GgufTokenizer, made: HfParts, notes: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    let added: Vec<Json> = made.added.iter().map(|token| token.json((made.normalized)(&token.text))).collect();
    let tokenizer = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": made.normalizer,
        "pre_tokenizer": made.pre_tokenizer,
        "post_processor": parts.specials.post_processor(parts.kind, &parts.vocabulary),
        "decoder": made.decoder,
        "model": made.model,
    });
    let mut settings = Map::new();
    let mut files = vec![("tokenizer.json".to_owned(), tokenizer.to_string().into_bytes())];
    files.extend(made.files);
    files.extend(config::fill(&mut settings, parts, made.settings)?);
    let kinds = token_types::exceptions(parts, &made.added);
    settings.insert(record::FIELD.to_owned(), record::write(parts.metadata, kinds, notes));
    files.push(("tokenizer_config.json".to_owned(), pretty(parts.metadata, settings)?));
    Ok(files)
}

/// The text of tokenizer_config.json.
fn pretty(metadata: &Metadata, settings: Map<String, Json>) -> Result<Vec<u8>> {
    let text = serde_json::to_vec_pretty(&Json::Object(settings));
    let mut text = text.map_err(|e| metadata.finding("tokenizer").expected("settings").found(e).format())?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests;
