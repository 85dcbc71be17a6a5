//! Special tokens: their ids, with llama.cpp's defaults where the file has none, and which of them
//! are added to a text.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llama_vocab::impl::load`, `tokenize`).

use serde_json::{Map, Value as Json, json};

use super::TokenizerKind;
use super::vocabulary::Vocabulary;
use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::tokenizer::keys;
use crate::tokenizer::pre::{Letters, PreTokenizer};
use crate::tokenizer::special::SpecialToken;
use crate::tokenizer::token::TokenKind;

/// Special tokens of a vocabulary.
pub(super) struct SpecialTokens {
    /// Ids that the file gives.
    ids: Vec<(SpecialToken, u32)>,
    /// llama.cpp's defaults for the others.
    defaults: &'static [(SpecialToken, u32)],
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    pub(super) add_sep: bool,
    /// Whether the file has a key about separating pairs. A converter reads from a template with the
    /// first token before both texts that pairs aren't separated; from a template without it, nothing.
    says_sep: bool,
}

impl SpecialTokens {
    /// Reads ids and flags.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for ids past the last token, and values of the wrong type.
    pub(super) fn read(
        metadata: &Metadata,
        vocabulary: &Vocabulary,
        kind: TokenizerKind,
        pre: &PreTokenizer,
    ) -> Result<Self> {
        let mut ids = Vec::new();
        for (role, _, key) in SpecialToken::ALL {
            if metadata.get(key).is_none() {
                continue;
            }
            let id = metadata.u32(key)?;
            if vocabulary.text(id).is_none() {
                let expected = format!("an id below {}, the number of tokens", vocabulary.len());
                return Err(metadata.finding(key).expected(expected).found(id).format());
            }
            ids.push((role, id));
        }
        let flag = |key: &str, default: bool| match metadata.get(key) {
            None => Ok(default),
            Some(_) => metadata.bool(key),
        };
        let (bos, eos, sep) = match kind {
            TokenizerKind::Bpe => (pre.add_bos, false, pre.add_sep),
            TokenizerKind::SentencePiece => (true, false, false),
            TokenizerKind::WordPiece => (true, false, true),
            TokenizerKind::Unigram => (false, true, false),
        };
        Ok(Self {
            ids,
            defaults: defaults(kind, pre),
            add_bos: flag(keys::ADD_BOS, bos)? || pre.always_bos,
            add_eos: flag(keys::ADD_EOS, eos)?,
            add_sep: flag(keys::ADD_SEP, sep)?,
            says_sep: metadata.get(keys::ADD_SEP).is_some(),
        })
    }

    /// The id that the file gives.
    pub(super) fn given(&self, role: SpecialToken) -> Option<u32> {
        self.ids.iter().find(|(known, _)| *known == role).map(|(_, id)| *id)
    }

    /// The id that the file gives, or llama.cpp's default.
    pub(super) fn id(&self, role: SpecialToken, vocabulary: &Vocabulary) -> Option<u32> {
        let default = || self.defaults.iter().find(|(known, _)| *known == role).map(|(_, id)| *id);
        self.given(role).or_else(default).filter(|id| vocabulary.text(*id).is_some())
    }

    /// The tokens that the file gives an id, with their names and texts.
    pub(super) fn named<'a>(&self, vocabulary: &Vocabulary<'a>) -> Vec<(SpecialToken, &'static str, &'a str)> {
        let named = SpecialToken::ALL.iter().filter_map(|(role, name, _)| {
            let text = vocabulary.text(self.given(*role)?)?;
            Some((*role, *name, text))
        });
        named.collect()
    }

    /// The `post_processor` of tokenizer.json: which tokens are added around a text and between two.
    pub(super) fn post_processor(&self, kind: TokenizerKind, vocabulary: &Vocabulary) -> Json {
        let id = |role| self.id(role, vocabulary);
        if kind == TokenizerKind::WordPiece {
            // llama.cpp ignores the flags here.
            let around =
                Around { first: id(SpecialToken::Bos), last: id(SpecialToken::Sep), types: true, ..Around::default() };
            return around.template(vocabulary);
        }
        let bos = id(SpecialToken::Bos).filter(|_| self.add_bos);
        let eos = id(SpecialToken::Eos).filter(|_| self.add_eos);
        let sep = id(SpecialToken::Sep).or(id(SpecialToken::Eos)).filter(|_| self.add_sep);
        let again = bos.filter(|_| self.says_sep && sep.is_none());
        Around { first: bos, again, between: sep, last: eos, types: false }.template(vocabulary)
    }
}

/// The ids that llama.cpp takes where the file has none.
fn defaults(kind: TokenizerKind, pre: &PreTokenizer) -> &'static [(SpecialToken, u32)] {
    match kind {
        TokenizerKind::Bpe if pre.letters == Letters::Escaped => &[],
        TokenizerKind::Bpe if pre.default_bos => &[(SpecialToken::Bos, 11), (SpecialToken::Eos, 11)],
        TokenizerKind::Bpe => &[(SpecialToken::Eos, 11)],
        TokenizerKind::SentencePiece => &[(SpecialToken::Bos, 1), (SpecialToken::Eos, 2), (SpecialToken::Unk, 0)],
        TokenizerKind::WordPiece => &[
            (SpecialToken::Bos, 101),
            (SpecialToken::Unk, 100),
            (SpecialToken::Sep, 102),
            (SpecialToken::Pad, 0),
            (SpecialToken::Mask, 103),
        ],
        TokenizerKind::Unigram => &[(SpecialToken::Eos, 1), (SpecialToken::Unk, 2), (SpecialToken::Pad, 0)],
    }
}

/// The special tokens around a text, and between two.
#[derive(Default)]
struct Around {
    first: Option<u32>,
    /// Before the second text.
    again: Option<u32>,
    /// Between two texts, after the last token of the first text.
    between: Option<u32>,
    last: Option<u32>,
    /// Whether the second text and its last token are of type 1.
    types: bool,
}

impl Around {
    /// The `TemplateProcessing` of tokenizer.json; null where nothing is added.
    fn template(&self, vocabulary: &Vocabulary) -> Json {
        let special = |id: Option<u32>, kind: u32| {
            let text = vocabulary.text(id?)?;
            Some(json!({"SpecialToken": {"id": text, "type_id": kind}}))
        };
        let sequence = |name: &str, kind: u32| Some(json!({"Sequence": {"id": name, "type_id": kind}}));
        let Self { first, again, between, last, types } = *self;
        if [first, between, last].iter().all(Option::is_none) {
            return Json::Null;
        }
        let second = u32::from(types || between.is_none());
        let single: Vec<Json> = [special(first, 0), sequence("A", 0), special(last, 0)].into_iter().flatten().collect();
        let pair = [
            special(first, 0),
            sequence("A", 0),
            special(last, 0),
            special(between, 0),
            special(again, second),
            sequence("B", second),
            special(last, second),
        ];
        let pair: Vec<Json> = pair.into_iter().flatten().collect();
        let mut tokens = Map::new();
        for id in [first, between, last].into_iter().flatten() {
            if let Some(text) = vocabulary.text(id) {
                tokens.insert(text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]}));
            }
        }
        json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
    }
}

/// Whether llama.cpp takes a token for a control token because of its text.
fn is_control_by_text(text: &str) -> bool {
    const TEXTS: [&str; 46] = [
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<\u{ff5c}end\u{2581}of\u{2581}sentence\u{ff5c}>",
        "[e~[",
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\u{ff5c}fim\u{2581}begin\u{ff5c}>",
        "<PRE>",
        "\u{2581}<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\u{ff5c}fim\u{2581}hole\u{ff5c}>",
        "<SUF>",
        "\u{2581}<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\u{ff5c}fim\u{2581}end\u{ff5c}>",
        "<MID>",
        "\u{2581}<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ];
    TEXTS.contains(&text)
}

/// The `added_tokens` of tokenizer.json: tokens that are found in text before it is split.
pub(super) fn added_tokens(
    metadata: &Metadata,
    vocabulary: &Vocabulary,
    specials: &SpecialTokens,
    rewritten: &dyn Fn(u32, &str, TokenKind) -> Option<String>,
) -> Vec<Added> {
    let named: Vec<u32> = SpecialToken::ALL.iter().filter_map(|(role, _, _)| specials.given(*role)).collect();
    let strips = Strips::of(metadata);
    let added = vocabulary.iter().filter_map(|(id, text, kind)| {
        if text.is_empty() || vocabulary.is_placeholder(id, text, kind) {
            return None;
        }
        let special = match kind {
            TokenKind::Control | TokenKind::Unknown => true,
            TokenKind::UserDefined => named.contains(&id),
            TokenKind::Unused | TokenKind::Byte => return None,
            TokenKind::Normal | TokenKind::Undefined if named.contains(&id) || is_control_by_text(text) => true,
            TokenKind::Normal | TokenKind::Undefined => return None,
        };
        let text = rewritten(id, text, kind).unwrap_or_else(|| text.to_owned());
        let (lstrip, rstrip) = strips.of_token(&text, kind);
        Some(Added { id, text, special, lstrip, rstrip })
    });
    added.collect()
}

/// An added token.
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) text: String,
    pub(super) special: bool,
    lstrip: bool,
    rstrip: bool,
}

impl Added {
    /// The token in tokenizer.json. `normalized` says that it is searched for in normalized text.
    pub(super) fn json(&self, normalized: bool) -> Json {
        json!({
            "id": self.id,
            "content": self.text,
            "single_word": false,
            "lstrip": self.lstrip,
            "rstrip": self.rstrip,
            "normalized": normalized,
            "special": self.special,
        })
    }

    /// The token in tokenizer_config.json.
    pub(super) fn json_of_config(&self) -> Json {
        json!({
            "content": self.text,
            "lstrip": self.lstrip,
            "normalized": false,
            "rstrip": self.rstrip,
            "single_word": false,
            "special": self.special,
        })
    }
}

/// The special tokens that include the spaces before or after them. GGUF has no key for this;
/// llama.cpp goes by the names of models.
struct Strips {
    mask: Option<&'static str>,
    phi3: bool,
}

impl Strips {
    fn of(metadata: &Metadata) -> Self {
        let text = |key: &str| metadata.text(key).unwrap_or_default();
        let (pre, architecture) = (text(keys::PRE), text("general.architecture"));
        let name = text("general.name").to_ascii_lowercase();
        let jina = ["jina-v2-de", "jina-v2-es", "jina-v2-code"].iter().any(|part| pre.contains(part));
        let xlm = ["nomic-bert-moe", "jina-bert-v3"].iter().any(|part| architecture.contains(part));
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let mask = match (jina || xlm, phi3, name.contains("modern-bert")) {
            (true, _, _) => Some("<mask>"),
            (false, false, true) => Some("[MASK]"),
            _ => None,
        };
        Self { mask, phi3: phi3 && !jina && !xlm }
    }

    /// Whether a token includes the spaces before it, and those after it.
    fn of_token(&self, text: &str, kind: TokenKind) -> (bool, bool) {
        let cached = matches!(kind, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown);
        let spared = ["<unk>", "<s>", "<|endoftext|>"].contains(&text);
        (self.mask == Some(text), self.phi3 && (cached || text == "</s>") && !spared)
    }
}
