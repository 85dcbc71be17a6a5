//! Values as Python writes them: `str(value)` and `repr(value)`.

use std::fmt::Write;

use minijinja::Value;
use minijinja::value::ValueKind;

use super::json::python_float;

/// How dictionaries are written.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Keys {
    /// In the order they have.
    AsTheyAre,
    /// Sorted by their texts.
    Sorted,
}

/// Python's `str(value)`: what a template prints, of undefined values nothing.
pub(super) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Number | ValueKind::Seq | ValueKind::Map => repr(value, Keys::AsTheyAre),
        _ => value.to_string(),
    }
}

/// Python's `repr(value)`: how a value is written inside a list.
pub(super) fn repr(value: &Value, keys: Keys) -> String {
    let mut out = String::new();
    write_repr(&mut out, value, keys);
    out
}

/// Whether Python's `str.isspace` is true of `c`. Unicode's white space lacks the four separators of ASCII.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn write_repr(out: &mut String, value: &Value, keys: Keys) {
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::Number if !value.is_integer() => {
            let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
            out.push_str(if number.is_nan() { "nan".to_owned() } else { python_float(number) }.as_str());
        }
        ValueKind::String => {
            let quoted = quoted(value.as_str().unwrap_or_default());
            match value.is_safe() {
                true => _ = write!(out, "Markup({quoted})"),
                false => out.push_str(&quoted),
            }
        }
        ValueKind::Seq => {
            let items: Vec<String> = value.try_iter().into_iter().flatten().map(|item| repr(&item, keys)).collect();
            _ = match (value.is_tuple(), items.as_slice()) {
                (true, [item]) => write!(out, "({item},)"),
                (true, _) => write!(out, "({})", items.join(", ")),
                (false, _) => write!(out, "[{}]", items.join(", ")),
            };
        }
        ValueKind::Map => {
            let mut names: Vec<Value> = value.try_iter().into_iter().flatten().collect();
            if keys == Keys::Sorted {
                names.sort();
            }
            out.push('{');
            for (place, name) in names.iter().enumerate() {
                out.push_str(if place > 0 { ", " } else { "" });
                write_repr(out, name, keys);
                out.push_str(": ");
                write_repr(out, &value.get_item(name).unwrap_or_default(), keys);
            }
            out.push('}');
        }
        _ => _ = write!(out, "{value:?}"),
    }
}

/// A text in quotes. What Python doesn't print is escaped: controls, separators but the space, and unassigned characters.
fn quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote || c == '\\' => out.extend(['\\', c]),
            c if is_printable(c) => out.push(c),
            c => {
                let code = u32::from(c);
                _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
    out
}

/// Whether Python prints `c`. Rust escapes the same categories; behind a letter, marks that combine are left as they are.
fn is_printable(c: char) -> bool {
    matches!(c, ' '..='~') || (!c.is_ascii() && format!("a{c}").escape_debug().nth(1) == Some(c))
}

#[cfg(test)]
mod tests {
    use minijinja::value::Tuple;

    use super::*;

    /// The expectations are Python's.
    #[test]
    fn values_are_written_as_python_writes_them() {
        for (value, expected) in [
            (Value::from(1e16), "1e+16"),
            (Value::from(1e15), "1000000000000000.0"),
            (Value::from(1e-5), "1e-05"),
            (Value::from(-0.0), "-0.0"),
            (Value::from(f64::NAN), "nan"),
            (Value::from(f64::NEG_INFINITY), "-inf"),
            (Value::from(true), "True"),
            (Value::from("it's"), "it's"),
            (Value::UNDEFINED, ""),
            (Value::from(vec![Value::from(1e20), Value::UNDEFINED, Value::from(())]), "[1e+20, Undefined, None]"),
            (
                Value::from(vec!["it's", "\"'", "\n\u{a0}é\u{7f}\u{200b}\u{301}"]),
                r#"["it's", '"\'', '\n\xa0é\x7f\u200b́']"#,
            ),
            (Value::from(vec!["\u{e000}\u{10ffff}😀\u{2028}\u{378}\\"]), r"['\ue000\U0010ffff😀\u2028\u0378\\']"),
            (Value::from(Tuple::from([Value::from(1)])), "(1,)"),
            (Value::from_pairs([("b", 1.5), ("a", 2.0)]), "{'b': 1.5, 'a': 2.0}"),
        ] {
            assert_eq!(text(&value), expected);
        }
        assert_eq!(repr(&Value::from_pairs([("b", 1), ("a", 2)]), Keys::Sorted), "{'a': 2, 'b': 1}");
    }
}
