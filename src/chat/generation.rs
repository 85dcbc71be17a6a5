//! `{% generation %}`: transformers' tag around what the model writes. It becomes a call block, as it does in
//! transformers, whose function puts marks around the text.

use std::ops::Range;

use minijinja::value::Kwargs;
use minijinja::{Error, State, Value};
use regex_lite::Regex;

use super::Rendered;

/// The function that the tag calls.
pub(super) const FUNCTION: &str = "_generation_support";

/// Marks around what the model writes. They are no characters: no text has them.
const START: char = '\u{fdd0}';
const END: char = '\u{fdd1}';

/// The template with call blocks in place of the tags, and whether there are any.
pub(super) fn rewrite(template: &str) -> (String, bool) {
    let tag = |name: &str| Regex::new(&format!(r"\{{%([-+]?)\s*{name}\s*([-+]?)%\}}")).expect("a pattern");
    let (start, end) = (tag("generation"), tag("endgeneration"));
    let marks_answers = start.is_match(template);
    let template = start.replace_all(template, format!("{{%$1 call {FUNCTION}() $2%}}"));
    (end.replace_all(&template, "{%$1 endcall $2%}").into_owned(), marks_answers)
}

/// The text of a call block, between marks.
pub(super) fn marked(state: &mut State<'_, '_>, kwargs: Kwargs) -> Result<String, Error> {
    let caller: Value = kwargs.get("caller")?;
    let text = caller.call(state, &[])?;
    Ok(format!("{START}{text}{END}"))
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
