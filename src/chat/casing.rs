//! Upper and lower case where Python's rules are others than Rust's.

use minijinja::{Error, State, Value};

/// Python's `str.title`: every letter behind one that has no case begins a word.
pub(super) fn title(state: &mut State<'_, '_>, text: &str) -> Result<String, Error> {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for (c, lower) in with_lower(text, &text.to_lowercase()) {
        match (inside, c.is_ascii()) {
            (true, _) => out.push_str(lower),
            (false, true) => out.push(c.to_ascii_uppercase()),
            // The filter knows the letters whose title case isn't their upper case.
            (false, false) => {
                let letter = state.apply_filter("capitalize", &[Value::from(c.to_string())])?;
                out.push_str(letter.as_str().unwrap_or_default());
            }
        }
        inside = is_cased(c);
    }
    Ok(out)
}

/// Python's `str.swapcase`.
pub(super) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (c, lower) in with_lower(text, &text.to_lowercase()) {
        match (c.is_uppercase(), c.is_lowercase()) {
            (true, _) => out.push_str(lower),
            (_, true) => out.extend(c.to_uppercase()),
            _ => out.push(c),
        }
    }
    out
}

/// Python's `str.casefold`: the lower case of the upper case, but for the letters below.
pub(super) fn casefold(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            // The dotless i, and Cherokee, whose upper case is what others fold to.
            'ı' | '\u{13a0}'..='\u{13f5}' => out.push(c),
            '\u{13f8}'..='\u{13fd}' => out.extend(char::from_u32(u32::from(c) - 0x8)),
            '\u{ab70}'..='\u{abbf}' => out.extend(char::from_u32(u32::from(c) - 0xab70 + 0x13a0)),
            'ẞ' => out.push_str("ss"),
            c => out.extend(c.to_uppercase().flat_map(char::to_lowercase)),
        }
    }
    out
}

/// The letters of `text` with their part of `lowered`. The lower case of a sigma depends on the word, its length doesn't.
fn with_lower<'a>(text: &'a str, lowered: &'a str) -> impl Iterator<Item = (char, &'a str)> {
    let mut rest = lowered;
    text.chars().map(move |c| {
        let length: usize = c.to_lowercase().map(char::len_utf8).sum();
        let (lower, behind) = rest.split_at(length.min(rest.len()));
        rest = behind;
        (c, lower)
    })
}

/// Whether `c` has a case: upper, lower or title.
fn is_cased(c: char) -> bool {
    let is_title = matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}')
        || matches!(c, '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}');
    c.is_lowercase() || c.is_uppercase() || is_title
}
