//! Values of GGUF keys in the form of the fixtures' `expected/`, here and inside the library.

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

// Imported through the parent, because the library's own tests and those of its users name the
// types differently.
use super::{Array, Value, ValueType};

/// A value as the fixtures describe it.
pub fn described(value: &Value) -> Json {
    let text = |bytes: &[u8]| Json::from(std::str::from_utf8(bytes).unwrap());
    let name = |kind: ValueType| kind.to_string().to_uppercase();
    let plain = match value {
        Value::U32(v) => json!(v),
        Value::I32(v) => json!(v),
        Value::Bool(v) => json!(v),
        Value::String(v) => text(v),
        Value::Array(array) => {
            let items: Vec<Json> = match array {
                Array::String(v) => v.iter().map(|s| text(s)).collect(),
                Array::I32(v) => v.iter().map(|i| json!(i)).collect(),
                Array::U8(v) => v.iter().map(|i| json!(i)).collect(),
                Array::F32(v) => v.iter().map(|i| json!(f64::from(*i))).collect(),
                other => panic!("no reference for arrays of {}", other.kind()),
            };
            let value = if items.len() > 64 {
                let json = format!("[{}]", items.iter().map(python_json).collect::<Vec<_>>().join(", "));
                json!({"len": items.len(), "sha256_of_json": sha256(json.as_bytes()), "head": items[..8]})
            } else {
                Json::from(items)
            };
            return json!({"type": ["ARRAY", name(array.kind())], "value": value});
        }
        other => panic!("no reference for {other}"),
    };
    json!({"type": [name(value.kind())], "value": plain})
}

/// Formats like Python's `json.dumps` with `ensure_ascii`: characters that aren't ASCII become
/// UTF-16 escapes.
fn python_json(value: &Json) -> String {
    let mut out = String::new();
    for c in value.to_string().chars() {
        match c {
            '\u{7f}' | '\0'..='~' => out.push(c),
            _ => c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}"))),
        }
    }
    out
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
