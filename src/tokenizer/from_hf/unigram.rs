//! Unigram vocabularies of XLM-RoBERTa and encoders like it.
//!
//! Reference: llama.cpp `conversion/bert.py` (`_xlmroberta_set_vocab`).

use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet};
use serde_json::Value as Json;

use super::VocabWriter;
use super::auto::{Auto, ModelKind};
use super::files::{Files, id_of, shortened};
use super::sentencepiece::ScoredTokens;
use crate::error::Result;
use crate::formats::gguf::Array;
use crate::tokenizer::keys;
use crate::tokenizer::sentencepiece::{self, SentencePieceModel};
use crate::tokenizer::token::TokenKind;

/// The model's file, in the folders that have one.
pub(super) const MODEL: &str = "sentencepiece.bpe.model";

/// The first four tokens of these models. The SentencePiece model has three others there.
const FIRST: [(&str, TokenKind); 4] = [
    ("<s>", TokenKind::Control),
    ("<pad>", TokenKind::Control),
    ("</s>", TokenKind::Control),
    ("<unk>", TokenKind::Unknown),
];

/// Whether the mask token, which the model's file lacks, is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mask {
    /// No: its id, the last one, is unused.
    Left,
    /// At the id that Nomic's mixture of experts has for it.
    Nomic,
}

/// The id of the mask token of Nomic's mixture of experts.
const NOMIC_MASK: usize = 250_001;

impl VocabWriter<'_> {
    /// Unigram (`_xlmroberta_set_vocab`).
    pub(super) fn unigram(&mut self, mask: Mask) -> Result<()> {
        let mut unigram = read(self.files)?;
        if mask == Mask::Nomic && self.files.folder.join(MODEL).is_file() {
            let tokens = &mut unigram.tokens;
            if !tokens.set(NOMIC_MASK, "<mask>", 0.0, TokenKind::Control) {
                let count = tokens.texts.len();
                self.notes.push(format!("<mask>: id {NOMIC_MASK} is past the {count} tokens, left out"));
            }
        }
        let count = unigram.tokens.texts.len();
        self.scored("t5", unigram.tokens);
        self.metadata.insert(keys::ADD_SPACE_PREFIX, unigram.add_space_prefix);
        self.metadata.insert(keys::TOKEN_TYPE_COUNT, self.files.type_vocab_size()?);
        self.metadata.insert(keys::REMOVE_EXTRA_WHITESPACES, unigram.remove_extra_whitespaces);
        if !unigram.precompiled_charsmap.is_empty() {
            self.metadata.insert(keys::PRECOMPILED_CHARSMAP, Array::U8(unigram.precompiled_charsmap));
        }
        self.specials(Some(count))
    }
}

/// A Unigram vocabulary, and how text is normalized before it.
pub(super) struct Unigram {
    pub(super) tokens: ScoredTokens,
    pub(super) add_space_prefix: bool,
    pub(super) remove_extra_whitespaces: bool,
    pub(super) precompiled_charsmap: Vec<u8>,
}

/// The vocabulary of [`MODEL`], else of tokenizer.json.
pub(super) fn read(files: &Files) -> Result<Unigram> {
    match files.bytes(MODEL)? {
        Some(bytes) => of_model(files, &bytes),
        None => of_tokenizer(files),
    }
}

fn of_model(files: &Files, bytes: &[u8]) -> Result<Unigram> {
    let model = SentencePieceModel::parse(&files.folder.join(MODEL), bytes)?;
    if model.model_type != sentencepiece::UNIGRAM {
        let finding = files.finding_in(MODEL, "model_type").expected("1, Unigram").found(model.model_type);
        return Err(finding.unsupported());
    }
    let size = files.vocab_size()?.unwrap_or(0).max(model.pieces.len());
    let mut pieces = ScoredTokens::unused(size);
    pieces.set_pieces(&model);
    // The ids of transformers: its own first four tokens, then the pieces without their first three.
    // The last id, the mask token, is not written.
    let mut tokens = ScoredTokens::default();
    for (text, kind) in FIRST {
        tokens.push(text, 0.0, kind);
    }
    let kept = size.saturating_sub(4);
    let pieces = pieces.texts.iter().zip(&pieces.scores).zip(&pieces.kinds);
    for ((text, score), kind) in pieces.skip(3).take(kept) {
        tokens.push(text, *score, *kind);
    }
    Ok(Unigram {
        tokens,
        add_space_prefix: model.add_dummy_prefix,
        remove_extra_whitespaces: model.remove_extra_whitespaces,
        precompiled_charsmap: model.precompiled_charsmap,
    })
}

fn of_tokenizer(files: &Files) -> Result<Unigram> {
    let Some(tokenizer) = &files.tokenizer else {
        return Err(files
            .finding_in("", "tokenizer")
            .expected(format_args!("{MODEL} or tokenizer.json"))
            .found("neither")
            .mismatch());
    };
    let auto = Auto::load(files)?;
    if auto.model != ModelKind::Unigram {
        let finding = files.finding("model.type").expected("Unigram, as this architecture has it");
        return Err(finding.found(format_args!("{:?}", auto.model)).unsupported());
    }
    let model = tokenizer.get("model").unwrap_or(&Json::Null);
    let pieces = model.get("vocab").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
    let size = files.vocab_size()?.unwrap_or(0).max(pieces.len());
    let added = |text: &str| auto.added.get(text).map(|added| added.id);
    let unknown = files.setting("unk_token").and_then(Json::as_str).and_then(added);
    let unknown = unknown.or_else(|| model.get("unk_id").map_or(Some(3), id_of));
    if let Some(id) = model.get("unk_id").filter(|id| !id.is_null() && id_of(id).is_none_or(|id| id >= pieces.len())) {
        let finding = files.finding("model.unk_id").expected(format_args!("an id below {}", pieces.len()));
        return Err(finding.found(shortened(&id.to_string())).format());
    }
    let special = auto.special_ids();
    let mut tokens = ScoredTokens::unused(size);
    for (id, piece) in pieces.iter().enumerate() {
        let (Some(text), Some(score)) = (piece.get(0).and_then(Json::as_str), piece.get(1).and_then(Json::as_f64))
        else {
            let finding = files.finding(format!("model.vocab[{id}]"));
            return Err(finding.expected("a text and a score").found(shortened(&piece.to_string())).format());
        };
        let kind = match () {
            () if Some(id) == unknown => TokenKind::Unknown,
            () if special.contains(&id) => TokenKind::Control,
            () if added(text) == Some(id) => TokenKind::UserDefined,
            () => TokenKind::Normal,
        };
        tokens.set(id, text, score as f32, kind);
    }
    let setting = |name: &str, default: bool| files.setting(name).and_then(Json::as_bool).unwrap_or(default);
    Ok(Unigram {
        tokens,
        add_space_prefix: setting("add_prefix_space", true),
        remove_extra_whitespaces: setting("clean_up_tokenization_spaces", false),
        precompiled_charsmap: charsmap(files, tokenizer.get("normalizer").unwrap_or(&Json::Null))?,
    })
}

/// The compiled replacements of a normalizer, or of its first step that has some.
fn charsmap(files: &Files, normalizer: &Json) -> Result<Vec<u8>> {
    if let Some(text) = normalizer.get("precompiled_charsmap").and_then(Json::as_str) {
        return decode_base64(text).ok_or_else(|| {
            let finding = files.finding("normalizer.precompiled_charsmap");
            finding.expected("base64").found(shortened(text)).format()
        });
    }
    let steps = normalizer.get("normalizers").and_then(Json::as_array);
    for step in steps.into_iter().flatten() {
        let map = charsmap(files, step)?;
        if !map.is_empty() {
            return Ok(map);
        }
    }
    Ok(Vec::new())
}

/// The bytes of base64 text (RFC 4648, section 4); `None` for anything else. As in Python, bits that
/// are left over after the last byte don't matter.
pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    const CONFIG: GeneralPurposeConfig = GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(&alphabet::STANDARD, CONFIG).decode(text).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn base64_is_read_or_refused() {
        let cases = [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")];
        for (text, expected) in cases {
            assert_eq!(decode_base64(text).unwrap(), expected.as_bytes());
        }
        assert_eq!(decode_base64("+/8A").unwrap(), [0xfb, 0xff, 0]);
        assert_eq!(decode_base64("Zh==").unwrap(), b"f");
        for bad in ["Z", "Zg", "Zg=", "Z===", "Zm9\u{e9}", "Zm 9", "Zg==Zg=="] {
            assert_eq!(decode_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn kinds_of_a_tokenizer_follow_names_and_added_tokens() {
        let tokenizer = json!({
            "added_tokens": [{"id": 0, "content": "<s>", "special": true}, {"id": 4, "content": "x", "special": false}],
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": "AAE="}]},
            "model": {"type": "Unigram", "unk_id": 3, "vocab": [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0], ["<unk>", 0.0], ["x", -1.5], ["y", -2]]}
        });
        let config = json!({"tokenizer_class": "XLMRobertaTokenizer", "unk_token": "<unk>"});
        let files = Files::for_test(tokenizer, config, json!({"vocab_size": 7}));
        let unigram = read(&files).unwrap();
        let kinds: Vec<i32> = unigram.tokens.kinds.iter().map(|kind| kind.number()).collect();
        assert_eq!(kinds, [3, 3, 3, 2, 4, 1, 5]);
        assert_eq!(unigram.tokens.scores[4..], [-1.5, -2.0, -10000.0]);
        assert_eq!(unigram.precompiled_charsmap, [0, 1]);
        assert!(unigram.add_space_prefix && !unigram.remove_extra_whitespaces);
    }

    #[test]
    fn other_models_and_broken_maps_are_refused() {
        let refusal =
            |tokenizer: Json| read(&Files::for_test(tokenizer, json!({}), json!({}))).err().unwrap().to_string();
        let message = refusal(json!({"model": {"type": "BPE", "vocab": {}}}));
        assert!(message.contains("model.type: expected Unigram, as this architecture has it, found Bpe"), "{message}");
        let message = refusal(json!({"model": {"type": "Unigram", "vocab": [["a"]]}}));
        assert!(message.contains("model.vocab[0]: expected a text and a score, found [\"a\"]"), "{message}");
        let message = refusal(json!({
            "normalizer": {"precompiled_charsmap": "!"}, "model": {"type": "Unigram", "vocab": []}
        }));
        assert!(message.contains("normalizer.precompiled_charsmap: expected base64, found !"), "{message}");
    }
}
