//! SentencePiece vocabularies that exist only as a tokenizer.json, as transformers 5 saves them: BPE with byte
//! fallback.
//!
//! tokenizer.json has the pieces and their ids. The other content of SentencePiece's file is reconstructed. A piece's
//! score is minus its position among the trained pieces, and the merges are ordered by the scores of their results.
//!
//! Reference: transformers `convert_slow_tokenizer.py` (`SpmConverter`, `GemmaConverter`, `generate_merges`), inverted;
//! sentencepiece `src/bpe_model_trainer.cc` for the scores.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::faults;
use super::files::{Files, Object, id_of, shortened};
use super::sentencepiece::{AddedTokens, Reading, ScoredTokens};
use crate::error::Result;
use crate::tokenizer::token::{TokenKind, is_byte};

/// Returns whether tokenizer.json was made from a SentencePiece model of BPE.
pub(super) fn is_spm(tokenizer: &Object) -> bool {
    let type_of = |name: &str| tokenizer.get(name).and_then(|part| part.get("type")).and_then(Json::as_str);
    let falls_back = tokenizer.get("model").and_then(|model| model.get("byte_fallback")).and_then(Json::as_bool);
    type_of("model") == Some("BPE") && falls_back == Some(true) && type_of("decoder") == Some("Sequence")
}

/// Returns the tokens that llama.cpp's converter would read from the original tokenizer.model, with the added tokens of
/// all files; `None` for a tokenizer.json of another kind.
pub(super) fn tokens(files: &Files, reading: Reading, notes: &mut Vec<String>) -> Result<Option<ScoredTokens>> {
    let Some(tokenizer) = files.tokenizer.as_ref().filter(|tokenizer| is_spm(tokenizer)) else { return Ok(None) };
    let pieces = pieces(files, tokenizer)?;
    let added = listed(tokenizer);
    let most = pieces.len().max(added.values().max().map_or(0, |id| id.saturating_add(1)));
    let size = match files.vocab_size()? {
        Some(size) => size,
        None => most,
    };
    if pieces.len() > size {
        return Err(files
            .finding("model.vocab")
            .expected(format_args!("at most vocab_size {size} of config.json"))
            .found(pieces.len())
            .hint("the tokenizer may be of another model")
            .mismatch());
    }
    if let Some(Json::Object(model)) = tokenizer.get("model") {
        faults::check_merges(files, model, pieces.iter().copied().filter(|piece| !added.contains_key(piece)))?;
    }
    let unknown = tokenizer.get("model").and_then(|model| model.get("unk_token")).and_then(Json::as_str);
    let scores = scores(tokenizer, &pieces, notes);
    let mut tokens = AddedTokens::over(files, reading, ScoredTokens::unused(size));
    for (id, text) in pieces.iter().enumerate() {
        // Gemma's first converter replaced the byte token of the tab by the tab itself.
        let text = if *text == "\t" && is_byte_of_tab(&pieces, id) { "<0x09>" } else { *text };
        let kind = match () {
            () if is_byte(text) => TokenKind::Byte,
            () if Some(text) == unknown => TokenKind::Unknown,
            () => TokenKind::Normal,
        };
        tokens.tokens.set(id, text, scores.get(&id).copied().unwrap_or_default(), kind);
    }
    tokens.read_added_tokens()?;
    tokens.read_tokenizer()?;
    tokens.read_config()?;
    tokens.report(notes);
    Ok(Some(tokens.tokens))
}

/// Returns the pieces by id.
fn pieces<'a>(files: &Files, tokenizer: &'a Object) -> Result<Vec<&'a str>> {
    let Some(vocab) = tokenizer.get("model").and_then(|model| model.get("vocab")).and_then(Json::as_object) else {
        return Err(files.finding("model.vocab").expected("an object of ids by token").found("none").format());
    };
    let mut pieces: Vec<Option<&str>> = vec![None; vocab.len()];
    for (text, id) in vocab {
        match id_of(id).and_then(|id| pieces.get_mut(id)) {
            Some(place @ None) => *place = Some(text),
            other => {
                let found = if other.is_some() { "one that another token has" } else { "another" };
                return Err(files
                    .finding(format!("token {text:?}"))
                    .expected(format_args!("an id of its own below {}, the number of tokens", vocab.len()))
                    .found(format_args!("{} ({found})", shortened(&id.to_string())))
                    .format());
            }
        }
    }
    // There are as many pieces as positions, and each has its own, so none is missing.
    Ok(pieces.into_iter().flatten().collect())
}

/// Returns the ids of the added tokens by text.
fn listed(tokenizer: &Object) -> HashMap<&str, usize> {
    fn entry(token: &Json) -> Option<(&str, usize)> {
        Some((token.get("content")?.as_str()?, token.get("id").and_then(id_of)?))
    }
    let tokens = tokenizer.get("added_tokens").and_then(Json::as_array);
    tokens.into_iter().flatten().filter_map(entry).collect()
}

/// Returns the scores of the trained pieces by id. Bytes and added tokens have none.
///
/// Training numbers its pieces in order, so the merges of a tokenizer.json made from its model are in the order of ids.
/// If they aren't, the scores follow the order of the merges. Text is then split in the same way, although the scores
/// may differ from the original ones.
pub(super) fn scores(tokenizer: &Object, pieces: &[&str], notes: &mut Vec<String>) -> HashMap<usize, f32> {
    let added = listed(tokenizer);
    let unknown = tokenizer.get("model").and_then(|model| model.get("unk_token")).and_then(Json::as_str);
    let is_trained = |id: usize| {
        let other = is_byte(pieces[id]) || is_byte_of_tab(pieces, id) || added.contains_key(pieces[id]);
        !other && Some(pieces[id]) != unknown
    };
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, text)| (*text, id)).collect();
    let merges = tokenizer.get("model").and_then(|model| model.get("merges")).and_then(Json::as_array);
    let results: Vec<usize> = merges
        .into_iter()
        .flatten()
        .filter_map(|merge| ids.get(result(merge)?.as_str()).copied())
        .filter(|id| is_trained(*id))
        .collect();
    let mut order: Vec<usize> = (0..pieces.len()).filter(|id| is_trained(*id)).collect();
    if !results.is_sorted() {
        notes.push(
            "the merges of tokenizer.json are not in the order of ids: scores are made by their order, and may be other \
             numbers than those of the SentencePiece model"
                .to_owned(),
        );
        let mut seen = HashSet::new();
        let unmerged = order.clone();
        order = results.into_iter().chain(unmerged).filter(|id| seen.insert(*id)).collect();
    }
    // The first score is minus zero, as in SentencePiece.
    order.into_iter().enumerate().map(|(place, id)| (id, -(place as f32))).collect()
}

/// Returns the result of a merge, which is "left right" or ["left", "right"].
fn result(merge: &Json) -> Option<String> {
    match merge {
        Json::String(text) => text.split_once(' ').map(|(left, right)| [left, right].concat()),
        pair => Some([pair.get(0)?.as_str()?, pair.get(1)?.as_str()?].concat()),
    }
}

/// Returns whether the piece is the tab, between the byte tokens before and after the tab's.
fn is_byte_of_tab(pieces: &[&str], id: usize) -> bool {
    let is = |id: Option<usize>, text: &str| id.and_then(|id| pieces.get(id)) == Some(&text);
    is(Some(id), "\t") && is(id.checked_sub(1), "<0x08>") && is(id.checked_add(1), "<0x0A>")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn tokenizer(pieces: &[&str], merges: Json, added: Json) -> Json {
        let vocab: Object = pieces.iter().enumerate().map(|(id, text)| ((*text).to_owned(), json!(id))).collect();
        json!({"added_tokens": added, "decoder": {"type": "Sequence"},
            "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>", "vocab": vocab, "merges": merges}})
    }

    fn read(tokenizer: Json, size: usize) -> Result<(Vec<String>, Vec<String>)> {
        let files = Files::for_test(tokenizer, json!({}), json!({"vocab_size": size}));
        let mut notes = Vec::new();
        let tokens = tokens(&files, Reading::Usual, &mut notes)?.unwrap();
        let scored = tokens.texts.iter().zip(&tokens.scores).zip(&tokens.kinds);
        Ok((scored.map(|((text, score), kind)| format!("{text} {score} {}", kind.number())).collect(), notes))
    }

    #[test]
    fn pieces_of_training_are_numbered_and_others_are_not() {
        let added = json!([{"id": 1, "content": "<s>", "special": true}, {"id": 2, "content": "\u{2581}\u{2581}"}]);
        let pieces = ["<unk>", "<s>", "\u{2581}\u{2581}", "<0x08>", "\t", "<0x0A>", "ab", "abc", "a"];
        // The first merge makes a piece that was put in by hand.
        let merges = json!([["\u{2581}", "\u{2581}"], ["a", "b"], "ab c", ["a", "bc"]]);
        let (tokens, notes) = read(tokenizer(&pieces, merges, added), 10).unwrap();
        let expected = [
            "<unk> 0 2",
            "<s> -1000 3",
            "   -1000 4",
            "<0x08> 0 6",
            "<0x09> 0 6",
            "<0x0A> 0 6",
            "ab -0 1",
            "abc -1 1",
            "a -2 1",
            "[PAD9] -10000 5",
        ];
        assert_eq!(tokens, expected);
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn merges_in_another_order_than_ids_count() {
        let pieces = ["<unk>", "abc", "ab", "a"];
        let (tokens, notes) = read(tokenizer(&pieces, json!(["a b", "ab c"]), json!([])), 4).unwrap();
        assert_eq!(tokens, ["<unk> 0 2", "abc -1 1", "ab -0 1", "a -2 1"]);
        assert!(notes[0].starts_with("the merges of tokenizer.json are not in the order of ids"), "{notes:?}");
    }

    #[test]
    fn ids_are_those_of_the_pieces() {
        let mut gap = tokenizer(&["a", "b"], json!([]), json!([]));
        gap["model"]["vocab"]["b"] = json!(2);
        let message = read(gap.clone(), 9).unwrap_err().to_string();
        assert!(
            message.contains("token \"b\": expected an id of its own below 2, the number of tokens, found 2"),
            "{message}"
        );
        gap["model"]["vocab"]["b"] = json!(0);
        assert!(read(gap, 9).unwrap_err().to_string().contains("found 0 (one that another token has)"));
        let message = read(tokenizer(&["a", "b"], json!([]), json!([])), 1).unwrap_err().to_string();
        assert!(message.contains("model.vocab: expected at most vocab_size 1 of config.json, found 2"), "{message}");
    }
}
