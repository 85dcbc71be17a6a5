//! Pickles as data: a machine that builds a tree of values and calls nothing.
//!
//! Reference: CPython `Lib/pickletools.py` (what each opcode does) and torch
//! `_weights_only_unpickler.py` (what a checkpoint may ask for).
//!
//! A pickle is a program. Its calls name Python classes and functions; here every name has to be
//! in a fixed table ([`globals`]), and a call makes a value that only describes its result. Values
//! live in one list and refer to each other by number, so that cycles and deep nesting do no harm.

mod calls;
mod globals;
mod input;
mod machine;

use std::path::Path;

pub(super) use globals::{AllowedName, Element};

use crate::error::Result;

/// The longest pickle that is read: the largest real ones, with optimizer states of huge models,
/// have some ten million bytes.
pub(super) const MAX_PICKLE_BYTES: usize = 128 << 20;
/// Objects of one pickle: containers, tensors, storages.
const MAX_OBJECTS: usize = 1 << 22;
/// Values that all containers of one pickle hold together.
const MAX_CELLS: usize = 1 << 24;
/// Values on the stack.
const MAX_STACK: usize = 1 << 22;
/// Open marks: containers being built inside each other.
const MAX_MARKS: usize = 1 << 16;
/// Remembered values.
const MAX_MEMO: usize = 1 << 22;
/// The longest line of a text opcode: a name or a number.
const MAX_LINE_BYTES: usize = 1024;

/// The number of an object in [`Pickle::objects`].
pub(super) type Id = u32;

/// A value on the stack or in a container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Python's `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// A whole number past 64 bits: its bytes (two's complement, little-endian) or its digits.
    Long(&'a [u8]),
    /// A number.
    Float(f64),
    /// A text.
    Str(&'a str),
    /// Bytes, or a text that is not plain enough to be a name.
    Bytes(&'a [u8]),
    /// A class, function or constant of the table.
    Global(&'static AllowedName),
    /// One of the objects.
    Object(Id),
}

/// A value with parts.
#[derive(Debug)]
pub(super) enum Object<'a> {
    /// A tuple.
    Tuple(Vec<Value<'a>>),
    /// A list.
    List(Vec<Value<'a>>),
    /// A set.
    Set(Vec<Value<'a>>),
    /// A dictionary of any class, in its order; a key may occur twice.
    Dict {
        /// Key and value.
        entries: Vec<(Value<'a>, Value<'a>)>,
        /// Attributes of the dictionary object: torch keeps `_metadata` there.
        attributes: Option<Value<'a>>,
    },
    /// Bytes of the file by key.
    Storage(Storage<'a>),
    /// A tensor over a storage.
    Tensor(Tensor),
    /// A tensor of a kind that is not read, by the name of that kind.
    Unread(&'static str),
    /// An instance of a class that is only described, or what a function would have made.
    Opaque {
        /// The class or function.
        class: &'static AllowedName,
        /// Arguments, state, items.
        parts: Vec<Value<'a>>,
    },
}

/// A storage as the pickle refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Its name: the part after `data/` in a zip, a number in the older form.
    pub key: &'a str,
    /// The type of its elements.
    pub element: Element,
    /// How many elements the whole storage has.
    pub elems: u64,
    /// First element and number of elements, where this is a part of it.
    pub view: Option<(u64, u64)>,
}

/// A tensor as the pickle describes it; nothing is checked against the storage yet.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    /// The storage's object.
    pub storage: Id,
    /// The type of the elements.
    pub element: Element,
    /// First element.
    pub offset: u64,
    /// Elements by dimension.
    pub shape: Vec<usize>,
    /// Elements from one index to the next, by dimension.
    pub strides: Vec<u64>,
    /// Whether it has Python attributes, which no other format can hold.
    pub attributes: bool,
}

/// What one pickle built.
pub(super) struct Pickle<'a> {
    /// Every object, in the order of their making.
    pub objects: Vec<Object<'a>>,
    /// The result.
    pub root: Value<'a>,
    /// The length of the pickle in bytes.
    pub byte_len: usize,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle at the start of `bytes`. In files of the older form, other bytes follow it.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where it breaks the rules or a limit, [`crate::Error::Unsupported`]
    /// where it names a class or function that is not in the table.
    pub(super) fn read(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        machine::Machine::new(path, bytes).run()
    }

    /// The object that `value` is, if it is one.
    pub(super) fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(id) => self.objects.get(id as usize),
            _ => None,
        }
    }
}
