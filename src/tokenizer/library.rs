//! The tokenizers crate's own tokenizer, of files that it may fail on: it panics where a file contradicts itself (a
//! merge that no token has the length of, a special token that a template names and no list has), and a panic in it
//! is an error here.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use serde::Deserialize;
use serde_json::Value;
use tokenizers::Tokenizer;

thread_local! {
    /// Whether a panic of this thread is caught and told as an error, so that nothing is to be printed.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// What `call` gives; a panic in it is an error with the panic's own words.
pub(crate) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                before(panic);
            }
        }));
    });
    IS_GUARDED.set(true);
    let result = catch_unwind(AssertUnwindSafe(call));
    IS_GUARDED.set(false);
    result.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        Err(format!("one that contradicts itself ({})", said.unwrap_or("the tokenizers library gives up")).into())
    })
}

/// The tokenizer that tokenizer.json says.
///
/// # Errors
/// The library's, and its panics.
pub(crate) fn load(json: &[u8]) -> tokenizers::Result<Tokenizer> {
    check_merges(json)?;
    guarded(|| Tokenizer::from_bytes(json))
}

/// Refuses merges whose second part is no more than a part of `continuing_subword_prefix`: the library cuts the
/// prefix off unseen, in the middle of a character too.
fn check_merges(json: &[u8]) -> tokenizers::Result<()> {
    #[derive(Deserialize)]
    struct File<T> {
        model: Option<T>,
    }
    #[derive(Deserialize)]
    struct Prefix {
        continuing_subword_prefix: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Merges {
        merges: Option<Vec<Value>>,
    }
    // What isn't of this form is the library's to refuse.
    let Ok(File { model: Some(Prefix { continuing_subword_prefix: Some(Value::String(prefix)) }) }) =
        serde_json::from_slice(json)
    else {
        return Ok(());
    };
    let Ok(File { model: Some(Merges { merges: Some(merges) }) }) = serde_json::from_slice(json) else {
        return Ok(());
    };
    let second = |merge: &Value| match merge {
        Value::String(pair) => Some(pair.split_once(' ')?.1.to_owned()),
        other => Some(other.get(1)?.as_str()?.to_owned()),
    };
    match merges.iter().find(|merge| second(merge).is_some_and(|second| !second.is_char_boundary(prefix.len()))) {
        Some(merge) => Err(format!("merge {merge}, without the continuing_subword_prefix {prefix:?}").into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bpe(prefix: Option<&str>, merges: Value) -> Vec<u8> {
        let vocab = json!({"a": 0, "b": 1, "ab": 2, "##b": 3, "\u{e9}\u{e9}": 4, "<s>": 5});
        let model = json!({"type": "BPE", "vocab": vocab, "merges": merges, "continuing_subword_prefix": prefix});
        serde_json::to_vec(&json!({"version": "1.0", "added_tokens": [], "model": model})).unwrap()
    }

    #[test]
    fn merges_are_held_against_the_prefix() {
        for (prefix, merges) in [
            (None, json!([["a", "b"]])),
            (Some(""), json!(["a b"])),
            (Some("##"), json!([["a", "##b"]])),
            (Some("##"), json!(["a ##b"])),
        ] {
            load(&bpe(prefix, merges)).unwrap();
        }
        for (prefix, merges) in [
            (Some("####"), json!([["a", "b"]])),
            (Some("##"), json!(["a b"])),
            (Some("#"), json!([["a", "\u{e9}\u{e9}"]])),
        ] {
            let error = load(&bpe(prefix, merges)).expect_err("accepted").to_string();
            assert!(error.starts_with("merge ") && error.contains("without the continuing_subword_prefix"), "{error}");
        }
        // No token is as long as the merged one would be.
        let error = load(&bpe(None, json!([["\u{e9}\u{e9}", "##b"]]))).expect_err("accepted").to_string();
        assert!(error.starts_with("one that contradicts itself ("), "{error}");
    }

    #[test]
    fn a_panic_is_an_error_and_those_outside_stay_panics() {
        let error = guarded(|| -> tokenizers::Result<()> { panic!("gone {}", 1) }).unwrap_err().to_string();
        assert_eq!(error, "one that contradicts itself (gone 1)");
        assert_eq!(guarded(|| Ok(1)).unwrap(), 1);
        assert!(!IS_GUARDED.get() && catch_unwind(|| panic!("outside")).is_err());
    }
}
