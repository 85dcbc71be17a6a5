//! JSON lines and JSON arrays. What is no JSON, and what another reader would read otherwise, is refused: a name that
//! stands twice in an object, half a surrogate pair, NaN, several values on a line.

use std::cell::Cell;
use std::collections::HashSet;
use std::fmt;
use std::io::{BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{Columns, RawRow, Unit, place, text};
use crate::error::{Error, Finding, IoContext, Result};
use crate::json::{plain, read};

/// The rows of a file with an object on each line, or with a list of objects. Blank lines are skipped.
pub(super) fn rows(path: &Path) -> Result<Vec<RawRow>> {
    let file: Arc<Path> = path.into();
    let mut text = text(path)?;
    let (mut rows, mut line, mut number) = (Vec::new(), Vec::new(), 0);
    loop {
        line.clear();
        // Only a line feed ends a line: texts may have U+2028 and its like inside.
        if text.read_until(b'\n', &mut line).at(path, "read")? == 0 {
            return Ok(rows);
        }
        number += 1;
        let content = line.trim_ascii();
        if content.is_empty() {
            continue;
        }
        if rows.is_empty() && content.starts_with(b"[") {
            text.read_to_end(&mut line).at(path, "read")?;
            return array(&file, &line);
        }
        let place = place(&file, Unit::Line, number);
        let columns = object(content, || place.finding());
        rows.push(RawRow { place, columns });
    }
}

/// The fields of the object `text`. An error completes `finding`.
pub(in super::super) fn object(text: &[u8], finding: impl Fn() -> Finding) -> Result<Columns> {
    if let Err(error) = std::str::from_utf8(text) {
        let found = format!("other bytes, from column {}", error.valid_up_to() + 1);
        return Err(finding().expected("UTF-8 text").found(found).format());
    }
    let expected = || finding().expected("one JSON object");
    match parse(text, expected).map_err(in_one_line)? {
        Value::Object(columns) => Ok(columns),
        other => Err(expected().found(other).format()),
    }
}

/// The value of a JSON text, in which no object has two fields of one name.
fn parse(text: &[u8], finding: impl Fn() -> Finding) -> Result<Value> {
    read::<Checked>(text, &finding)?;
    read(text, finding)
}

/// A fault's place inside the line is the column alone: the line is known already.
fn in_one_line(error: Error) -> Error {
    error.map_texts(&|text| text.replace(", in line 1, column ", ", at column ").replace(" in line 1", ""))
}

/// The rows of a list. A fault is that of the row in which it is.
fn array(file: &Arc<Path>, text: &[u8]) -> Result<Vec<RawRow>> {
    let (good, mut deserializer) = (Cell::new(0), serde_json::Deserializer::from_slice(text));
    CheckedRows(&good).deserialize(&mut deserializer).map_err(|error| {
        let row = place(file, Unit::Row, good.get() + 1).finding();
        row.expected("a JSON object").found(plain(&error)).format()
    })?;
    let whole = || Finding::new(file, "").expected("one list of JSON objects");
    deserializer.end().map_err(|error| whole().found(plain(&error)).format())?;
    let values: Vec<Value> = read(text, whole)?;
    let row = |(i, value): (usize, Value)| {
        let place = place(file, Unit::Row, i + 1);
        let columns = match value {
            Value::Object(columns) => Ok(columns),
            other => Err(place.finding().expected("a JSON object").found(other).format()),
        };
        RawRow { place, columns }
    };
    Ok(values.into_iter().enumerate().map(row).collect())
}

/// The value of a JSON text that stands in a field. `None` for a text that isn't JSON.
pub(in super::super) fn unique(text: &str) -> Option<Value> {
    parse(text.as_bytes(), || Finding::new("", "")).ok()
}

/// Counts the values of a list that can be read.
struct CheckedRows<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for CheckedRows<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for CheckedRows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of JSON objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<(), A::Error> {
        while list.next_element::<Checked>()?.is_some() {
            self.0.set(self.0.get() + 1);
        }
        Ok(())
    }
}

/// A text without objects that have two fields of one name. The values are read apart from that: what a number is to a
/// visitor depends on serde_json's features.
struct Checked;

impl<'de> Deserialize<'de> for Checked {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct AnyValue;

        impl<'de> Visitor<'de> for AnyValue {
            type Value = Checked;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any valid JSON value")
            }

            fn visit_bool<E>(self, _: bool) -> std::result::Result<Checked, E> {
                Ok(Checked)
            }

            fn visit_i64<E>(self, _: i64) -> std::result::Result<Checked, E> {
                Ok(Checked)
            }

            fn visit_u64<E>(self, _: u64) -> std::result::Result<Checked, E> {
                Ok(Checked)
            }

            fn visit_f64<E>(self, _: f64) -> std::result::Result<Checked, E> {
                Ok(Checked)
            }

            fn visit_str<E>(self, _: &str) -> std::result::Result<Checked, E> {
                Ok(Checked)
            }

            fn visit_unit<E>(self) -> std::result::Result<Checked, E> {
                Ok(Checked)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Checked, A::Error> {
                while list.next_element::<Checked>()?.is_some() {}
                Ok(Checked)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Checked, A::Error> {
                let mut names = HashSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if names.contains(&name) {
                        return Err(A::Error::custom(format_args!("the field {name:?} twice")));
                    }
                    names.insert(name);
                    map.next_value::<Checked>()?;
                }
                Ok(Checked)
            }
        }

        deserializer.deserialize_any(AnyValue)
    }
}
