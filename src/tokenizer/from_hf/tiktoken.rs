//! Vocabularies of tiktoken: a file of tokens in base64 with their ranks, as in Qwen's first models,
//! Kimi's and Hunyuan's.
//!
//! The special tokens are defined in the tokenizer's Python code, which isn't run. For known classes, this module lists
//! them; for others, they come from tokenizer_config.json.
//!
//! Reference: llama.cpp `conversion/base.py` (`_set_vocab_qwen`), `set_vocab` of `conversion/deepseek.py`,
//! `kimi_linear.py` and `hunyuan.py`.

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::VocabWriter;
use super::files::{Files, MAX_TOKENS, read_text, shortened};
use super::ranks::Ranks;
use super::sentencepiece::note_some;
use super::special::{SpecialTokens, USUAL, id_key};
use super::vocabulary::Token;
use crate::error::Result;
use crate::formats::gguf::Array;
use crate::tokenizer::keys;
use crate::tokenizer::token::{TokenKind, placeholder};

/// The classes of tokenizers that store their vocabulary in such a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Qwen,
    Kimi,
    HunYuan,
    Other,
}

impl Class {
    fn of(files: &Files) -> Self {
        match files.setting("tokenizer_class").and_then(Json::as_str) {
            Some("QWenTokenizer") => Self::Qwen,
            Some("TikTokenTokenizer") => Self::Kimi,
            Some("HYTokenizer") => Self::HunYuan,
            _ => Self::Other,
        }
    }
}

/// Which token ends a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// The one that the files of the folder name.
    Configured,
    /// The one that tokenizer_config.json names. config.json of Kimi Linear names another one.
    Tokenizer,
}

/// Returns the vocabulary's file, in a folder without tokenizer.json and vocab.json.
pub(super) fn file(files: &Files) -> Result<Option<String>> {
    if files.tokenizer.is_some() || files.folder.join("vocab.json").is_file() {
        return Ok(None);
    }
    let mut names = files.names()?;
    names.retain(|name| name.ends_with(".tiktoken") || name == "tiktoken.model");
    match names.as_slice() {
        [one, other, ..] => {
            let finding = files.finding_in("", "tokenizer").expected("one vocabulary of tiktoken");
            Err(finding.found(format_args!("{one} and {other}")).mismatch())
        }
        names => Ok(names.first().cloned()),
    }
}

impl VocabWriter<'_> {
    /// Writes the vocabulary of tiktoken from the file `name`.
    pub(super) fn tiktoken(&mut self, name: &str, ends: Ends) -> Result<()> {
        let files = self.files;
        let class = Class::of(files);
        let pre = match (self.pre, class) {
            (Some(pre), _) => pre,
            (None, Class::Qwen) => "qwen2",
            (None, Class::Kimi) => "kimi-k2",
            (None, Class::HunYuan) => "hunyuan",
            (None, Class::Other) => {
                return Err(files
                    .finding_in("tokenizer_config.json", "tokenizer_class")
                    .expected("QWenTokenizer, TikTokenTokenizer or HYTokenizer, whose code is known")
                    .found(files.setting("tokenizer_class").map_or("none".to_owned(), Json::to_string))
                    .hint("name the pre-tokenizer of llama.cpp that splits text in the same way with `pre`")
                    .unsupported());
            }
        };
        let tokens = read(files, name)?;
        let count = tokens.len();
        let ranks = Ranks::new(tokens).map_err(|twice| {
            let finding = files.finding_in(name, "tokens").expected("each token once");
            finding.found(format_args!("{:?} twice", String::from_utf8_lossy(&twice))).format()
        })?;
        let special = special(files, class, count)?;
        let size = match files.vocab_size()? {
            Some(size) => size,
            None => special.keys().next_back().map_or(count, |last| count.max(last.saturating_add(1))),
        };
        let (merges, never_made) = ranks.last_merges();
        note_some(self.notes, "tokens that no merge makes, so that text never becomes one", &never_made);
        self.metadata.insert(keys::MODEL, "gpt2");
        self.metadata.insert(keys::PRE, pre);
        self.tokens(by_id(files, name, &ranks, &special, size)?);
        self.metadata.insert(keys::MERGES, Array::texts(merges));
        let mut specials = SpecialTokens::load(files, USUAL, None, self.notes)?;
        let id = |text: &str| special.iter().find(|(_, other)| *other == text).map(|(id, _)| Json::from(*id));
        if class == Class::Qwen
            && let Some(end) = id("<|endoftext|>")
        {
            if specials.is_empty() {
                specials.set(files, "bos", &end, self.notes)?;
                specials.set(files, "eos", &end, self.notes)?;
            }
            specials.set(files, "unk", &end, self.notes)?;
        }
        specials.write(self.metadata);
        let eos =
            files.setting("eos_token").and_then(|token| token.as_str().or_else(|| token.get("content")?.as_str()));
        let eos = eos.filter(|_| ends == Ends::Tokenizer).and_then(id);
        let eos = eos.and_then(|id| u32::try_from(id.as_u64()?).ok());
        if let (Some(eos), Some(key)) = (eos, id_key("eos")) {
            self.metadata.insert(key, eos);
        }
        Ok(())
    }
}

/// Returns the ids of the tokens of the file `name` and of the special ones, by text.
pub(super) fn ids(files: &Files, name: &str) -> Result<Vec<(String, usize)>> {
    let tokens = read(files, name)?;
    let special = special(files, Class::of(files), tokens.len())?;
    let text = |bytes: &[u8]| bytes.iter().map(|byte| super::vocabulary::char_of(*byte)).collect::<String>();
    let tokens = tokens.iter().map(|(bytes, rank)| (text(bytes), usize::try_from(*rank).unwrap_or(usize::MAX)));
    Ok(tokens.chain(special.into_iter().map(|(id, text)| (text, id))).collect())
}

/// Reads the tokens of the file, one per line: base64, a space, the rank.
pub(super) fn read(files: &Files, name: &str) -> Result<Vec<(Vec<u8>, u32)>> {
    let text = read_text(&files.folder.join(name))?;
    let mut tokens = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        let parsed = line.split_once(' ').and_then(|(token, rank)| {
            let rank: u32 = rank.trim_end().parse().ok()?;
            let bytes = super::unigram::decode_base64(token).filter(|bytes| !bytes.is_empty())?;
            usize::try_from(rank).is_ok_and(|rank| rank < MAX_TOKENS).then_some((bytes, rank))
        });
        let Some(token) = parsed else {
            return Err(files
                .finding_in(name, format!("line {}", number.saturating_add(1)))
                .expected(format_args!("bytes in base64, a space, and a rank below {MAX_TOKENS}"))
                .found(shortened(line))
                .format());
        };
        tokens.push(token);
    }
    if tokens.is_empty() {
        return Err(files.finding_in(name, "tokens").expected("one on each line").found("none").format());
    }
    Ok(tokens)
}

/// Returns the special tokens by id.
fn special(files: &Files, class: Class, first: usize) -> Result<BTreeMap<usize, String>> {
    let mut special = BTreeMap::new();
    match class {
        // tokenization_qwen.py has three, followed by 205 unused ones.
        Class::Qwen => {
            let named = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned);
            let texts = named.into_iter().chain((0..205).map(|number| format!("<|extra_{number}|>")));
            special.extend((first..).zip(texts));
        }
        // tokenization_kimi.py has 256. tokenizer_config.json names some of them.
        Class::Kimi => special.extend((first..first + 256).map(|id| (id, format!("<|reserved_token_{id}|>")))),
        // tokenization_hy.py has five, followed by unused ones up to the size of the embedding.
        Class::HunYuan => {
            let named = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"].map(str::to_owned);
            let texts = named.into_iter().chain((0..205).map(|number| format!("<|extra_{number}|>")));
            special.extend((first..).zip(texts));
        }
        Class::Other => {}
    }
    if let Some(Json::Object(decoder)) = files.setting("added_tokens_decoder") {
        for (id, token) in decoder {
            let (Ok(id), Some(text)) = (id.parse(), token.get("content").and_then(Json::as_str)) else {
                let finding = files.finding_in("tokenizer_config.json", format!("added_tokens_decoder.{id}"));
                return Err(finding.expected("a token by its id").found(shortened(&token.to_string())).format());
            };
            special.insert(id, text.to_owned());
        }
    }
    Ok(special)
}

/// Returns all tokens by id. Special tokens replace others with the same id.
fn by_id(
    files: &Files,
    name: &str,
    ranks: &Ranks,
    special: &BTreeMap<usize, String>,
    size: usize,
) -> Result<Vec<Token>> {
    let mut tokens: Vec<Token> = (0..size).map(|id| Token { text: placeholder(id), kind: TokenKind::Unused }).collect();
    for (text, rank) in ranks.texts() {
        let id = usize::try_from(rank).unwrap_or(usize::MAX);
        let Some(place) = tokens.get_mut(id) else {
            return Err(files
                .finding_in(name, format!("token {text:?}"))
                .expected(format_args!("a rank below vocab_size {size} of config.json"))
                .found(rank)
                .hint("the tokenizer may be of another model")
                .mismatch());
        };
        if place.kind == TokenKind::Normal {
            let finding = files.finding_in(name, format!("token {text:?}")).expected("a rank of its own");
            return Err(finding.found(format_args!("{rank}, which {:?} has too", place.text)).format());
        }
        *place = Token { text, kind: TokenKind::Normal };
    }
    // The special tokens are numbered after the others, and tiktoken refuses a vocabulary with a gap.
    let count = ranks.texts().count();
    let missing = (0..count).find(|rank| tokens.get(*rank).is_none_or(|token| token.kind != TokenKind::Normal));
    if let Some(rank) = missing {
        let finding = files.finding_in(name, format!("rank {rank}"));
        return Err(finding.expected(format_args!("a token, as the file has {count}")).found("none").format());
    }
    for (id, text) in special {
        // The reserved tokens of a class may have ids beyond the embedding.
        if let Some(place) = tokens.get_mut(*id) {
            *place = Token { text: text.clone(), kind: TokenKind::Control };
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;
    use crate::tokenizer::from_hf::{Vocab, keys_of};

    fn refusal(text: &str, config: &Json, size: usize) -> String {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("qwen.tiktoken"), text).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let model = json!({"vocab_size": size}).as_object().unwrap().clone();
        keys_of(dir.path(), model, Vocab::Bpe).unwrap_err().to_string()
    }

    #[test]
    fn lines_that_are_no_tokens_are_refused() {
        let qwen = json!({"tokenizer_class": "QWenTokenizer"});
        for (text, expected) in [
            ("YQ== 0\nYg==\n", "line 2: expected bytes in base64, a space, and a rank below 4194304, found Yg=="),
            ("YQ== 4194304\n", "line 1: expected bytes in base64, a space, and a rank below 4194304"),
            ("Y 0\n", "line 1: expected bytes in base64"),
            ("YQ== 0\nYQ== 1\n", "tokens: expected each token once, found \"a\" twice"),
            ("YQ== 0\nYg== 0\n", "token \"b\": expected a rank of its own, found 0, which \"a\" has too"),
            ("YQ== 0\nYg== 2\n", "rank 1: expected a token, as the file has 2, found none"),
            ("YQ== 9\n", "token \"a\": expected a rank below vocab_size 4 of config.json, found 9"),
            ("\n", "tokens: expected one on each line, found none"),
        ] {
            let message = refusal(text, &qwen, 4);
            assert!(message.contains(expected), "{message}");
        }
        let message = refusal("YQ== 0\n", &json!({"tokenizer_class": "OtherTokenizer"}), 4);
        assert!(
            message.contains("tokenizer_class: expected QWenTokenizer, TikTokenTokenizer or HYTokenizer"),
            "{message}"
        );
    }
}
