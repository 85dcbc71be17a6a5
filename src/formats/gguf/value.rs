//! The thirteen value types of GGUF metadata.

use std::fmt;

/// A metadata value with its type in the file.
///
/// Strings are byte strings, as in the file: tokens need not be valid UTF-8.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // The variants are the format's own types.
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Vec<u8>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of one element type. Arrays of arrays are not supported, as in ggml.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // As above.
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<Vec<u8>>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// A value's type, which files give as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the format's own.
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [(ValueType, &'static str); 13] = [
        (ValueType::U8, "uint8"),
        (ValueType::I8, "int8"),
        (ValueType::U16, "uint16"),
        (ValueType::I16, "int16"),
        (ValueType::U32, "uint32"),
        (ValueType::I32, "int32"),
        (ValueType::F32, "float32"),
        (ValueType::Bool, "bool"),
        (ValueType::String, "string"),
        (ValueType::Array, "array"),
        (ValueType::U64, "uint64"),
        (ValueType::I64, "int64"),
        (ValueType::F64, "float64"),
    ];

    /// The type with this number in files.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(id as usize).map(|(kind, _)| *kind)
    }

    /// The number of this type in files.
    pub fn id(self) -> u32 {
        self as u32
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL[*self as usize].1)
    }
}

impl Value {
    /// The value's type.
    pub fn kind(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// The value as text; `None` for other types and for bytes that aren't UTF-8.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value as JSON. Bytes that aren't UTF-8 become replacement characters, and numbers that aren't finite null.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::json;
        fn list<T: Copy + serde::Serialize>(values: &[T]) -> serde_json::Value {
            values.iter().map(|value| json!(value)).collect()
        }
        // A float32 as the shortest decimal that parses to it: 1e-6, not 9.99999997e-7.
        fn decimal(value: f32) -> serde_json::Value {
            json!(value.to_string().parse::<f64>().unwrap_or(f64::from(value)))
        }
        let text = |bytes: &[u8]| json!(String::from_utf8_lossy(bytes));
        match self {
            Value::U8(v) => json!(v),
            Value::I8(v) => json!(v),
            Value::U16(v) => json!(v),
            Value::I16(v) => json!(v),
            Value::U32(v) => json!(v),
            Value::I32(v) => json!(v),
            Value::U64(v) => json!(v),
            Value::I64(v) => json!(v),
            Value::F64(v) => json!(v),
            Value::F32(v) => decimal(*v),
            Value::Bool(v) => json!(v),
            Value::String(bytes) => text(bytes),
            Value::Array(array) => match array {
                Array::U8(v) => list(v),
                Array::I8(v) => list(v),
                Array::U16(v) => list(v),
                Array::I16(v) => list(v),
                Array::U32(v) => list(v),
                Array::I32(v) => list(v),
                Array::U64(v) => list(v),
                Array::I64(v) => list(v),
                Array::F64(v) => list(v),
                Array::Bool(v) => list(v),
                Array::F32(v) => v.iter().map(|v| decimal(*v)).collect(),
                Array::String(v) => v.iter().map(|v| text(v)).collect(),
            },
        }
    }

    /// The value of any integer type that is not negative.
    pub fn as_unsigned(&self) -> Option<u64> {
        match *self {
            Value::U8(v) => Some(v.into()),
            Value::U16(v) => Some(v.into()),
            Value::U32(v) => Some(v.into()),
            Value::U64(v) => Some(v),
            Value::I8(v) => v.try_into().ok(),
            Value::I16(v) => v.try_into().ok(),
            Value::I32(v) => v.try_into().ok(),
            Value::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }
}

impl Array {
    /// The type of its elements.
    pub fn kind(&self) -> ValueType {
        match self {
            Array::U8(_) => ValueType::U8,
            Array::I8(_) => ValueType::I8,
            Array::U16(_) => ValueType::U16,
            Array::I16(_) => ValueType::I16,
            Array::U32(_) => ValueType::U32,
            Array::I32(_) => ValueType::I32,
            Array::F32(_) => ValueType::F32,
            Array::Bool(_) => ValueType::Bool,
            Array::String(_) => ValueType::String,
            Array::U64(_) => ValueType::U64,
            Array::I64(_) => ValueType::I64,
            Array::F64(_) => ValueType::F64,
        }
    }

    /// The number of its elements.
    pub fn len(&self) -> usize {
        match self {
            Array::U8(v) => v.len(),
            Array::I8(v) => v.len(),
            Array::U16(v) => v.len(),
            Array::I16(v) => v.len(),
            Array::U32(v) => v.len(),
            Array::I32(v) => v.len(),
            Array::F32(v) => v.len(),
            Array::Bool(v) => v.len(),
            Array::String(v) => v.len(),
            Array::U64(v) => v.len(),
            Array::I64(v) => v.len(),
            Array::F64(v) => v.len(),
        }
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An array of texts.
    pub fn texts<S: Into<String>>(texts: impl IntoIterator<Item = S>) -> Self {
        Array::String(texts.into_iter().map(|text| text.into().into_bytes()).collect())
    }
}

/// For messages: the type and the value, or its size if the value is long.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN_BYTES: usize = 60;
        write!(f, "{} ", self.kind())?;
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(v) if v.len() <= SHOWN_BYTES => write!(f, "{:?}", String::from_utf8_lossy(v)),
            Value::String(v) => write!(f, "of {} bytes", v.len()),
            Value::Array(v) => write!(f, "of {} x {}", v.len(), v.kind()),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
        }
    }
}

macro_rules! from {
    ($($from:ty => $variant:ident),*) => {$(
        impl From<$from> for Value {
            fn from(value: $from) -> Self {
                Value::$variant(value)
            }
        }
    )*};
}

from!(u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, f32 => F32, bool => Bool,
    Vec<u8> => String, Array => Array, u64 => U64, i64 => I64, f64 => F64);

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::String(text.as_bytes().to_vec())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Value::String(text.into_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_names_the_type_at_its_place() {
        for (i, (kind, _)) in ValueType::ALL.iter().enumerate() {
            assert_eq!(kind.id(), i as u32);
            assert_eq!(ValueType::from_id(i as u32), Some(*kind));
        }
        assert_eq!(ValueType::from_id(13), None);
        assert_eq!(ValueType::from_id(u32::MAX), None);
    }
}
