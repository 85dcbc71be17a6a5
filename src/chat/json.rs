//! JSON as Python's `json.dumps` writes it.

use std::fmt::Write;

use serde_json::Value;

/// How values are laid out.
pub(super) struct Layout {
    /// Whether letters outside ASCII are escaped.
    pub(super) ensure_ascii: bool,
    /// Whether the fields of objects are sorted by name.
    pub(super) sort_keys: bool,
    /// What each level is indented by, if every value has a line of its own.
    pub(super) indent: Option<String>,
    /// What stands between values, and between a name and its value.
    pub(super) separators: (String, String),
}

/// `value` as `json.dumps(value, ensure_ascii=False)` writes it.
pub(crate) fn python_json(value: &Value) -> String {
    let separators = (", ".to_owned(), ": ".to_owned());
    python_json_with(value, &Layout { ensure_ascii: false, sort_keys: false, indent: None, separators })
}

/// `value` in another layout.
pub(super) fn python_json_with(value: &Value, layout: &Layout) -> String {
    let mut out = String::new();
    write_value(&mut out, value, layout, 0);
    out
}

fn write_value(out: &mut String, value: &Value, layout: &Layout, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => out.push_str(&python_float(float)),
            None => _ = write!(out, "{number}"),
        },
        Value::String(text) => write_text(out, text, layout.ensure_ascii),
        Value::Array(values) => {
            write_items(out, ('[', ']'), values.iter(), layout, depth, |out, value| {
                write_value(out, value, layout, depth + 1);
            });
        }
        Value::Object(fields) => {
            let mut fields: Vec<(&String, &Value)> = fields.iter().collect();
            if layout.sort_keys {
                fields.sort_by_key(|(name, _)| *name);
            }
            write_items(out, ('{', '}'), fields.into_iter(), layout, depth, |out, (name, value)| {
                write_text(out, name, layout.ensure_ascii);
                out.push_str(&layout.separators.1);
                write_value(out, value, layout, depth + 1);
            });
        }
    }
}

fn write_items<T>(
    out: &mut String,
    (open, close): (char, char),
    items: impl ExactSizeIterator<Item = T>,
    layout: &Layout,
    depth: usize,
    write_item: impl Fn(&mut String, T),
) {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    let is_empty = items.len() == 0;
    out.push(open);
    for (place, item) in items.enumerate() {
        if place > 0 {
            out.push_str(&layout.separators.0);
        }
        new_line(out, depth + 1);
        write_item(out, item);
    }
    if !is_empty {
        new_line(out, depth);
    }
    out.push(close);
}

fn write_text(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A number as Python's `repr` writes it: the shortest digits that give it again, and an exponent of two digits.
pub(super) fn python_float(number: f64) -> String {
    let text = format!("{number:?}");
    match text.split_once('e') {
        Some((digits, exponent)) => match exponent.strip_prefix('-') {
            Some(exponent) => format!("{digits}e-{exponent:0>2}"),
            None => format!("{digits}e+{exponent:0>2}"),
        },
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The expectations are Python's.
    #[test]
    fn values_are_written_as_python_writes_them() {
        for (value, expected) in [
            (json!({"b": [1, null, true], "a": {}}), r#"{"b": [1, null, true], "a": {}}"#),
            (json!("<'ü'>&\"\\\n\u{1}\u{7f}"), "\"<'ü'>&\\\"\\\\\\n\\u0001\u{7f}\""),
            (json!([1.0, 1e16, 1e-5, 0.0001, 123456789.125]), "[1.0, 1e+16, 1e-05, 0.0001, 123456789.125]"),
            (json!([]), "[]"),
        ] {
            assert_eq!(python_json(&value), expected);
        }
    }

    #[test]
    fn layouts_are_those_of_python() {
        let value = json!({"b": [1, {"c": []}], "a": "é\u{1f600}"});
        let layout = |indent: Option<&str>, ensure_ascii, sort_keys, separators: (&str, &str)| Layout {
            ensure_ascii,
            sort_keys,
            indent: indent.map(str::to_owned),
            separators: (separators.0.to_owned(), separators.1.to_owned()),
        };
        let written = python_json_with(&value, &layout(Some("  "), true, true, (",", ": ")));
        let expected =
            "{\n  \"a\": \"\\u00e9\\ud83d\\ude00\",\n  \"b\": [\n    1,\n    {\n      \"c\": []\n    }\n  ]\n}";
        assert_eq!(written, expected);
        let written = python_json_with(&value, &layout(None, false, false, (",", ":")));
        assert_eq!(written, "{\"b\":[1,{\"c\":[]}],\"a\":\"é\u{1f600}\"}");
    }
}
