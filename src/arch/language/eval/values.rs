//! Values of formulas: their parts, their truth, and whether they are equal.

use std::borrow::Cow;

use serde_json::Value as Json;

pub(super) const NULL: Cow<'static, Json> = Cow::Owned(Json::Null);

pub(super) fn member<'a>(of: Cow<'a, Json>, name: &str) -> Cow<'a, Json> {
    match of {
        Cow::Borrowed(Json::Object(fields)) => fields.get(name).map_or(NULL, Cow::Borrowed),
        Cow::Owned(Json::Object(mut fields)) => fields.remove(name).map_or(NULL, Cow::Owned),
        _ => NULL,
    }
}

/// The field of an object whose name is the number `index`, with leading zeros or without.
pub(super) fn numbered(of: Cow<Json>, index: i64) -> Cow<Json> {
    let name = match &*of {
        Json::Object(fields) => fields.keys().find(|name| name.parse() == Ok(index)).cloned(),
        _ => None,
    };
    name.map_or(NULL, |name| member(of, &name))
}

pub(super) fn element(of: Cow<Json>, index: i64) -> Cow<Json> {
    let place = |len: usize| usize::try_from(if index < 0 { index + len as i64 } else { index }).ok();
    match of {
        Cow::Borrowed(Json::Array(values)) => {
            place(values.len()).and_then(|index| values.get(index)).map_or(NULL, Cow::Borrowed)
        }
        Cow::Owned(Json::Array(mut values)) => {
            let found = place(values.len()).filter(|index| *index < values.len());
            found.map_or(NULL, |index| Cow::Owned(values.swap_remove(index)))
        }
        Cow::Borrowed(Json::String(text)) => letter(text, place(text.chars().count())),
        Cow::Owned(Json::String(text)) => letter(&text, place(text.chars().count())),
        _ => NULL,
    }
}

/// One character of a text, as Python indexes texts.
fn letter(text: &str, index: Option<usize>) -> Cow<'static, Json> {
    index.and_then(|index| text.chars().nth(index)).map_or(NULL, |c| Cow::Owned(c.to_string().into()))
}

/// Python's truth of a value.
pub(crate) fn holds(value: &Json) -> bool {
    match value {
        Json::Null => false,
        Json::Bool(truth) => *truth,
        Json::Number(number) => number.as_f64() != Some(0.0),
        Json::String(text) => !text.is_empty(),
        Json::Array(values) => !values.is_empty(),
        Json::Object(fields) => !fields.is_empty(),
    }
}

/// Whether two values are equal; numbers are compared as numbers.
pub(crate) fn equal(a: &Json, b: &Json) -> bool {
    match (a, b) {
        (Json::Number(a), Json::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => a == b,
            _ => a.as_f64() == b.as_f64(),
        },
        (Json::Array(a), Json::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b)),
        (Json::Object(a), Json::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, value)| b.get(name).is_some_and(|other| equal(value, other)))
        }
        _ => a == b,
    }
}

/// A value as a whole number, if it is one.
pub(crate) fn whole(value: &Json) -> Option<i64> {
    match value {
        Json::Number(number) => number.as_i64(),
        _ => None,
    }
}
