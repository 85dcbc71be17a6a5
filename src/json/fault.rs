//! What serde says about JSON that it can't read, in plain words: the field, what was expected and what was found.

use std::fmt::Display;

use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::{Error, Value};

use crate::error::{Finding, Result};

/// Words for the types that serde expects. The first names are those of Rust.
const EXPECTED: [(&[&str], &str); 9] = [
    (&["u8", "u16", "u32", "u64", "usize"], "a whole number that is not negative"),
    (&["i8", "i16", "i32", "i64", "isize"], "a whole number"),
    (&["f32", "f64"], "a number"),
    (&["a string", "a borrowed string", "string"], "a text"),
    (&["a boolean"], "true or false"),
    (&["a map"], "an object"),
    (&["a sequence"], "a list"),
    (&["unit", "null"], "null"),
    (&["any valid JSON value"], "a value"),
];

/// What an escape is that stands for no character.
const HALF_PAIR: &str = "\\u of half a surrogate pair, which is no character without its other half";

/// Words for what breaks the rules of JSON, by the beginning of serde's own.
const SYNTAX: [(&str, &str); 12] = [
    ("expected value", "something that is no value"),
    ("expected ident", "something that is no value"),
    ("expected `:`", "a name without `:` after it"),
    ("expected `,`", "two values without `,` between them"),
    ("key must be a string", "something other than a name in quotes"),
    ("trailing comma", "a `,` with nothing after it"),
    ("trailing characters", "more text after the end"),
    ("recursion limit exceeded", "too many lists or objects inside each other"),
    ("number out of range", "a number that is too large"),
    ("unexpected end of hex escape", HALF_PAIR),
    ("invalid unicode code point", "bytes that aren't UTF-8"),
    ("lone leading surrogate in hex escape", HALF_PAIR),
];

/// Reads a `T` from the JSON `text`. An error is `finding` about the field with the fault. Where the text has no field
/// that is wrong, the error keeps what `finding` expects.
pub(crate) fn read<T: DeserializeOwned>(text: &[u8], finding: impl FnOnce() -> Finding) -> Result<T> {
    serde_json::from_slice(text).map_err(|error| about(finding(), text, &error).format())
}

/// Does the same with a value.
pub(crate) fn read_value<T: DeserializeOwned>(value: Value, finding: impl FnOnce() -> Finding) -> Result<T> {
    // Only a text has places by which the field can be found.
    serde_json::from_value(value.clone())
        .or_else(|_| read(value.to_string().as_bytes(), || Finding { found: String::new(), ..finding() }))
}

/// Completes `finding` with what `error` says about `text`.
pub(crate) fn about(finding: Finding, text: &[u8], error: &Error) -> Finding {
    if error.classify() != Category::Data {
        return finding.found(plain(error));
    }
    let message = without_place(&error.to_string());
    let end = offset(text, error.line(), error.column());
    let (path, expected, found) = match types(&message) {
        Some((found, expected)) => (path(text, end, false), Some(expected), found),
        // About an object: a field is missing, or there is one too many.
        None => (path(text, end, !message.starts_with("unknown variant ")), None, reworded(&message)),
    };
    let subject = match (finding.subject.is_empty(), path.is_empty()) {
        (_, true) => finding.subject.clone(),
        (true, false) => path,
        (false, false) if path.starts_with('[') => [&*finding.subject, &*path].concat(),
        (false, false) => [&*finding.subject, &*path].join("."),
    };
    // About the whole text, the finding knows better what it should be.
    let is_whole = subject == finding.subject && !finding.expected.is_empty();
    let expected = expected.filter(|_| !is_whole).unwrap_or_else(|| finding.expected.clone());
    Finding { subject, expected, found, ..finding }
}

/// The message of an error of serde, or of a library that uses it, in plain words.
pub(crate) fn plain(error: &dyn Display) -> String {
    let text = error.to_string();
    let (message, place) = match text.rsplit_once(" at line ") {
        Some((message, place)) if place.contains(" column ") => (message, Some(place)),
        _ => (text.as_str(), None),
    };
    let in_line = |place: &str| place.replace(" column ", ", column ");
    if message.starts_with("EOF while parsing") {
        return match place.and_then(|place| place.split(' ').next()) {
            Some("1") | None => "a text that breaks off in line 1".to_owned(),
            Some(line) => format!("a text that breaks off in line {line}"),
        };
    }
    let syntax = SYNTAX.iter().find(|(start, _)| message.starts_with(start)).map(|(_, words)| *words);
    if let (Some(words), Some(place)) = (syntax, place) {
        return format!("{words}, in line {}", in_line(place));
    }
    let types_at =
        ["invalid type: ", "invalid value: ", "invalid length "].iter().find_map(|start| message.find(start));
    let words = match types_at {
        Some(at) => match types(&message[at..]) {
            Some((found, expected)) => format!("{}{found}, where {expected} is expected", &message[..at]),
            None => message.to_owned(),
        },
        None => reworded(message),
    };
    match place {
        Some(place) => format!("{words}, in line {}", in_line(place)),
        None => words,
    }
}

fn without_place(text: &str) -> String {
    text.rsplit_once(" at line ").map_or(text, |(message, _)| message).to_owned()
}

/// What was found and what was expected, of a message about types.
fn types(message: &str) -> Option<(String, String)> {
    let rest = ["invalid type: ", "invalid value: ", "invalid length "].iter().find_map(|s| message.strip_prefix(s))?;
    let (found, expected) = rest.rsplit_once(", expected ")?;
    let found = match message.starts_with("invalid length") {
        true => format!("{found} of them"),
        false => found_words(found),
    };
    Some((found, expected_words(expected)))
}

fn found_words(found: &str) -> String {
    let inner = |start: &str| found.strip_prefix(start).map(|rest| rest.trim_matches('`').to_owned());
    let bare = ["integer ", "floating point ", "boolean ", "character "].iter().find_map(|start| inner(start));
    match (bare, found) {
        (Some(value), _) => value,
        (None, "map") => "an object".to_owned(),
        (None, "sequence") => "a list".to_owned(),
        (None, "unit value" | "Option value") => "null".to_owned(),
        (None, other) => other.strip_prefix("string ").unwrap_or(other).to_owned(),
    }
}

fn expected_words(expected: &str) -> String {
    let known = EXPECTED.iter().find(|(names, _)| names.contains(&expected)).map(|(_, words)| *words);
    match known {
        Some(words) => words.to_owned(),
        // `struct Name with 2 elements`, `enum Name`.
        None if expected.contains("struct ") => "an object".to_owned(),
        None if expected.starts_with("enum ") => "one of the known words".to_owned(),
        None => match expected.strip_prefix("a tuple of size ") {
            Some(size) => format!("a list of {size}"),
            None => expected.replace("a map", "an object").replace("a sequence", "a list"),
        },
    }
}

/// A message about the fields of an object.
fn reworded(message: &str) -> String {
    let name = |rest: &str| rest.trim_matches('`').to_owned();
    let after = |start: &str| message.find(start).map(|at| (&message[..at], &message[at + start.len()..]));
    if let Some((before, field)) = after("missing field ") {
        return format!("{before}no field {:?}", name(field));
    }
    if let Some((before, field)) = after("duplicate field ") {
        return format!("{before}the field {:?} twice", name(field));
    }
    message.to_owned()
}

/// The number of bytes up to a place that serde names.
fn offset(text: &[u8], line: usize, column: usize) -> usize {
    let before: usize = text.split(|byte| *byte == b'\n').take(line.saturating_sub(1)).map(|line| line.len() + 1).sum();
    (before + column).min(text.len())
}

/// The path of the value at `end` in the valid JSON `text`: `vocab[3].rank`; or, with `of_object`, of the object that
/// ends there.
fn path(text: &[u8], end: usize, of_object: bool) -> String {
    enum Inside<'a> {
        Object { name: Option<&'a [u8]>, is_named: bool },
        List(usize),
    }
    let mut open: Vec<Inside<'_>> = Vec::new();
    let mut at = 0;
    while at < end {
        match text[at] {
            b'"' => {
                let start = at + 1;
                at = start;
                while at < text.len() && text[at] != b'"' {
                    at += if text[at] == b'\\' { 2 } else { 1 };
                }
                if let Some(Inside::Object { name, is_named: false }) = open.last_mut() {
                    *name = text.get(start..at);
                }
            }
            b':' => {
                if let Some(Inside::Object { is_named, .. }) = open.last_mut() {
                    *is_named = true;
                }
            }
            b',' => match open.last_mut() {
                Some(Inside::Object { name, is_named }) => (*name, *is_named) = (None, false),
                Some(Inside::List(place)) => *place += 1,
                None => {}
            },
            b'{' => open.push(Inside::Object { name: None, is_named: false }),
            b'[' => open.push(Inside::List(0)),
            // The object with the fault may have been read to its end.
            b'}' if of_object && at + 1 == end => {}
            b'}' | b']' => drop(open.pop()),
            _ => {}
        }
        at += 1;
    }
    if of_object {
        while matches!(open.pop(), Some(Inside::List(_))) {}
    }
    let mut path = String::new();
    for inside in &open {
        match inside {
            Inside::Object { name: Some(name), .. } => {
                let dot = if path.is_empty() { "" } else { "." };
                path.push_str(&format!("{dot}{}", String::from_utf8_lossy(name)));
            }
            Inside::Object { name: None, .. } => {}
            Inside::List(place) => path.push_str(&format!("[{place}]")),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code)]
    struct Inner {
        rank: u32,
        text: Option<String>,
        pair: Option<(f32, f32)>,
        flag: Option<bool>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[expect(dead_code)]
    struct Outer {
        list: Vec<Inner>,
        map: Option<BTreeMap<String, Vec<u8>>>,
    }

    fn said<T: DeserializeOwned>(text: &str) -> String {
        let finding = || Finding::new("f.json", "").expected("an object with a list");
        read::<T>(text.as_bytes(), finding).err().unwrap().to_string()
    }

    #[test]
    fn the_field_is_named_in_plain_words() {
        for (text, expected) in [
            (
                r#"{"list": [{"rank": 1}, {"rank": "x"}]}"#,
                "list[1].rank: expected a whole number that is not negative, found \"x\"",
            ),
            (r#"{"list": [{"rank": -1}]}"#, "list[0].rank: expected a whole number that is not negative, found -1"),
            (r#"{"list": [{"rank": 1.5}]}"#, "list[0].rank: expected a whole number that is not negative, found 1.5"),
            (r#"{"list": [{"rank": null}]}"#, "list[0].rank: expected a whole number that is not negative, found null"),
            (r#"{"list": {"a": 1}}"#, "list: expected a list, found an object"),
            (r#"{"list": [1]}"#, "list[0]: expected an object, found 1"),
            (r#"{"list": [{"rank": 1, "text": ["a"]}]}"#, "list[0].text: expected a text, found a list"),
            (r#"{"list": [{"rank": 1, "flag": "yes"}]}"#, "list[0].flag: expected true or false, found \"yes\""),
            (
                r#"{"list": [], "map": {"a\"b": [1, 2, "3"]}}"#,
                "map.a\\\"b[2]: expected a whole number that is not negative, found \"3\"",
            ),
            (
                r#"{"list": [{"rank": 1}, {"text": "a"}]}"#,
                "list[1]: expected an object with a list, found no field \"rank\"",
            ),
            (r#"{"map": {}}"#, "f.json: expected an object with a list, found no field \"list\""),
            (r#"{"list": [], "list": []}"#, "f.json: expected an object with a list, found the field \"list\" twice"),
            ("3", "f.json: expected an object with a list, found 3"),
        ] {
            let message = said::<Outer>(text);
            assert!(message.ends_with(expected), "{text}: {message}");
        }
    }

    #[test]
    fn what_is_no_json_is_said_in_plain_words() {
        for (text, expected) in [
            ("{\n\"list\": [", "found a text that breaks off in line 2"),
            ("", "found a text that breaks off in line 1"),
            ("{\"list\": [],}", "found a `,` with nothing after it, in line 1, column 13"),
            ("{\"list\" []}", "found a name without `:` after it, in line 1, column 9"),
            ("{list: []}", "found something other than a name in quotes, in line 1, column 2"),
            ("{\"list\": []} x", "found more text after the end, in line 1, column 14"),
            ("{\"list\": [x]}", "found something that is no value, in line 1, column 11"),
        ] {
            let message = said::<Outer>(text);
            assert!(message.ends_with(expected), "{text}: {message}");
        }
    }

    #[test]
    fn values_are_refused_as_texts_are() {
        let value = serde_json::json!({"list": [{"rank": 1}, {"rank": true}]});
        let error = read_value::<Outer>(value, || Finding::new("f.json", "field")).unwrap_err().to_string();
        assert_eq!(error, "f.json: field.list[1].rank: expected a whole number that is not negative, found true");
    }

    #[test]
    fn other_libraries_messages_lose_the_names_of_types() {
        let said = |text: &str| plain(&text);
        assert_eq!(said("invalid type: string \"x\", expected f64"), "\"x\", where a number is expected");
        assert_eq!(
            said("in \"w\": invalid type: null, expected a sequence at line 1 column 3"),
            "in \"w\": null, where a list is expected, in line 1, column 3"
        );
        assert_eq!(said("unknown variant `x`, expected `a` or `b`"), "unknown variant `x`, expected `a` or `b`");
    }
}
