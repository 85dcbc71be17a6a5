//! BPE with merges by rank: byte-level as in GPT-2, and on plain text.
//!
//! Reference: llama.cpp `src/llama-vocab.cpp` (`llm_tokenizer_bpe_session`).

use serde_json::{Map, Value as Json, json};

use super::special::added_tokens;
use super::vocabulary::Vocabulary;
use super::{GgufTokenizer, HfParts};
use crate::error::Result;
use crate::tokenizer::keys;
use crate::tokenizer::pre::Letters;

/// The parts of tokenizer.json that are specific to BPE.
pub(super) fn make(parts: &GgufTokenizer, notes: &mut Vec<String>) -> Result<HfParts> {
    let GgufTokenizer { metadata, vocabulary, specials, pre, .. } = parts;
    let has_merges = metadata.get(keys::MERGES).is_some();
    // Whole words need none.
    if !has_merges && pre.letters != Letters::Words {
        return Err(metadata
            .finding(keys::MERGES)
            .expected("merges")
            .found("none")
            .hint("BPE needs them; take the tokenizer from the original model")
            .unsupported());
    }
    if vocabulary.scores.is_some() && pre.letters == Letters::Bytes {
        notes.push(format!("{}: left out, byte-level BPE goes by its merges", keys::SCORES));
    }
    let byte_fallback = pre.letters != Letters::Bytes && vocabulary.has_all_bytes();
    let merges = if has_merges { vocabulary.merges()? } else { Vec::new() };
    let merges: Vec<Json> = merges.into_iter().map(|(left, right)| json!([left, right])).collect();
    let model = json!({
        "type": "BPE",
        "dropout": null,
        "unk_token": null,
        "continuing_subword_prefix": null,
        "end_of_word_suffix": null,
        "fuse_unk": false,
        "byte_fallback": byte_fallback,
        "ignore_merges": pre.ignore_merges,
        "vocab": vocab(vocabulary),
        "merges": merges,
    });
    let lowercase = metadata.get(keys::LOWERCASE).is_some() && metadata.bool(keys::LOWERCASE)?;
    let (normalizer, decoder) = match pre.letters {
        Letters::Bytes => (
            Json::Null,
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        ),
        Letters::Escaped => (
            json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}),
            json!({"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ]}),
        ),
        Letters::Words if lowercase => (json!({"type": "Lowercase"}), json!({"type": "Fuse"})),
        Letters::Words => (Json::Null, json!({"type": "Fuse"})),
    };
    Ok(HfParts {
        normalizer,
        pre_tokenizer: pre.pre_tokenizer(),
        decoder,
        model,
        added: added_tokens(metadata, vocabulary, specials, &|_, _, _| None),
        // Byte-level text isn't normalized, so the flag doesn't change any tokens. It tells a converter
        // that the token is text and not bytes.
        normalized: match pre.letters {
            Letters::Bytes => |text| !text.is_ascii(),
            _ => |_| false,
        },
        files: Vec::new(),
        settings: Vec::new(),
    })
}

/// Ids by token, in order of ids; placeholders are left out.
pub(super) fn vocab(vocabulary: &Vocabulary) -> Json {
    let kept = vocabulary.iter().filter(|(id, text, kind)| !vocabulary.is_placeholder(*id, text, *kind));
    Json::Object(kept.map(|(id, text, _)| (text.to_owned(), json!(id))).collect::<Map<String, Json>>())
}
