//! `{% generation %}`: transformers' tag around what the model writes. Marks in the text take its place, inside a block that
//! keeps variables to itself, as the call block does that transformers makes of it.

use std::ops::Range;

use regex_lite::Regex;

use super::Rendered;

/// Marks around what the model writes. They are no characters: no text has them.
const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// The template with marks in place of the tags, and whether there are any. Of the two tags on each side of a mark, the outer
/// one trims white space before it, and the inner one behind it.
pub(super) fn rewrite(template: &str) -> (String, bool) {
    let tag = |name: &str| Regex::new(&format!(r"\{{%([-+]?)\s*{name}\s*([-+]?)%\}}")).expect("a pattern");
    let (start, end) = (tag("generation"), tag("endgeneration"));
    let marks_answers = start.is_match(template);
    let template = start.replace_all(template, format!("{{%$1 with %}}{START}{{% if true $2%}}"));
    (end.replace_all(&template, format!("{{%$1 endif %}}{END}{{% endwith $2%}}")).into_owned(), marks_answers)
}

/// Whether a text inside `value` has a mark in it.
pub(super) fn has_marks(value: &serde_json::Value) -> bool {
    match value {
        serde_json::Value::String(text) => text.contains([START, END]),
        serde_json::Value::Array(values) => values.iter().any(has_marks),
        serde_json::Value::Object(fields) => {
            fields.iter().any(|(name, value)| name.contains([START, END]) || has_marks(value))
        }
        _ => false,
    }
}

/// The text without its marks, and the ranges of bytes between them. Ranges inside others belong to those.
pub(super) fn split(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut answers: Vec<Range<usize>> = Vec::new();
    let (mut depth, mut start) = (0_usize, 0);
    for c in marked.chars() {
        match c {
            START => {
                if depth == 0 {
                    start = text.len();
                }
                depth += 1;
            }
            END => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    answers.push(start..text.len());
                }
            }
            c => text.push(c),
        }
    }
    Rendered { text, answers }
}
