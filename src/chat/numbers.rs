//! Numbers in texts, as Python's `int` and `float` read them.

use super::python::is_space;

/// What a text is.
pub(super) enum Parsed<T> {
    /// A number.
    Number(T),
    /// A number that Python reads and this module doesn't, in words.
    Unread(String),
    /// No number.
    None,
}

/// The whole number in `text`, to a base from 2 to 36.
pub(super) fn int(text: &str, base: u32) -> Parsed<i128> {
    if !(2..=36).contains(&base) {
        return Parsed::Unread(format!("int takes a base from 2 to 36, found {base}"));
    }
    if has_other_digits(text) {
        return Parsed::Unread(format!("a number in other digits than those of ASCII, {text:?}"));
    }
    let text = text.trim_matches(is_space);
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    let prefix = match base {
        2 => "0b",
        8 => "0o",
        16 => "0x",
        _ => "",
    };
    let digits =
        match digits.get(..prefix.len()).filter(|start| !prefix.is_empty() && start.eq_ignore_ascii_case(prefix)) {
            // One underscore may stand behind the prefix.
            Some(_) => digits[prefix.len()..].strip_prefix('_').unwrap_or(&digits[prefix.len()..]),
            None => digits,
        };
    let parts: Vec<&str> = digits.split('_').collect();
    if parts.iter().any(|part| part.is_empty() || !part.chars().all(|c| c.is_digit(base))) {
        return Parsed::None;
    }
    match i128::from_str_radix(&parts.concat(), base) {
        Ok(number) => Parsed::Number(if text.starts_with('-') { -number } else { number }),
        Err(_) => Parsed::Unread(format!("int of {text:?}, which is too large")),
    }
}

/// The number in `text`.
pub(super) fn float(text: &str) -> Parsed<f64> {
    if has_other_digits(text) {
        return Parsed::Unread(format!("a number in other digits than those of ASCII, {text:?}"));
    }
    let text = text.trim_matches(is_space);
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    // Underscores stand between digits only.
    let parts: Vec<&str> = text.split('_').collect();
    let joined = parts.windows(2).all(|pair| is_digit(pair[0].chars().last()) && is_digit(pair[1].chars().next()));
    match parts.concat().parse() {
        Ok(number) if joined => Parsed::Number(number),
        _ => Parsed::None,
    }
}

/// Whether Python might read digits of another script in `text`.
fn has_other_digits(text: &str) -> bool {
    text.chars().any(|c| !c.is_ascii() && c.is_numeric())
}
