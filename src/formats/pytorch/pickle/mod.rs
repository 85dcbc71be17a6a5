//! Pickles as data: a machine that builds a tree of values and calls nothing.
//!
//! Reference: CPython `Lib/pickletools.py` (the meaning of opcodes) and torch
//! `_weights_only_unpickler.py` (what a checkpoint may contain).
//!
//! A pickle is a program, whose calls name Python classes and functions. Here a call only makes a
//! value that describes its result: a tensor or a dictionary, if the name is in a fixed table
//! ([`globals`]), and otherwise an object of which only the class is known. A name that reaches the
//! system ends the reading ([`system`]). All objects are in one list and refer to each other by
//! number, so cycles and deep nesting are harmless.

mod calls;
mod globals;
mod input;
mod machine;
mod system;

use std::path::Path;

pub(super) use globals::{AllowedName, Element};

use crate::error::Result;

/// The longest pickle that is read. The largest real ones, with optimizer states of huge models,
/// have some ten million bytes.
pub(super) const MAX_PICKLE_BYTES: usize = 128 << 20;
/// The most objects of one pickle: containers, tensors, storages.
const MAX_OBJECTS: usize = 1 << 22;
/// The most values in all containers of one pickle together.
const MAX_CELLS: usize = 1 << 24;
/// The most values on the stack.
const MAX_STACK: usize = 1 << 22;
/// The most open marks: containers that are being built inside each other.
const MAX_MARKS: usize = 1 << 16;
/// The most values in the memo.
const MAX_MEMO: usize = 1 << 22;
/// The most classes of one pickle that aren't in the table.
const MAX_CLASSES: usize = 4096;
/// How many characters of a class's name a description has.
const SHOWN_CHARS: usize = 100;
/// The longest line of a text opcode: a name or a number.
const MAX_LINE_BYTES: usize = 1024;

/// The number of an object in [`Pickle::objects`].
pub(super) type Id = u32;

/// A value on the stack or in a container.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value<'a> {
    /// Python's `None`.
    None,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// An integer past 64 bits: its bytes (two's complement, little-endian) or its digits.
    Long(&'a [u8]),
    /// A floating-point number.
    Float(f64),
    /// A text.
    Str(&'a str),
    /// Bytes, or a text that can't be a name.
    Bytes(&'a [u8]),
    /// A class, function or constant of the table.
    Global(&'static AllowedName),
    /// Another class or function: its number in [`Pickle::classes`].
    Other(u32),
    /// A reference to an object.
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
    /// A dictionary of any class, in order; a key may occur twice.
    Dict {
        /// Key and value.
        entries: Vec<(Value<'a>, Value<'a>)>,
        /// Attributes of the dictionary object, where torch stores `_metadata`.
        attributes: Option<Value<'a>>,
        /// Its class, if it is one of settings.
        settings: Option<&'static AllowedName>,
    },
    /// Bytes of the file, found by key.
    Storage(Storage<'a>),
    /// A tensor over a storage.
    Tensor(Tensor),
    /// A kind of tensor that can't be read, described in words, with its type and shape where they are known.
    Unread(String),
    /// An instance of a class that is only described, or the result of a function.
    Opaque {
        /// The class or function: [`Value::Global`] or [`Value::Other`].
        class: Value<'a>,
        /// Arguments, state, items.
        parts: Vec<Value<'a>>,
    },
}

/// A pickle's reference to a storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Storage<'a> {
    /// Its name: the part after `data/` in a zip, a number in the older form.
    pub key: &'a str,
    /// The type of its elements.
    pub element: Element,
    /// How many elements the whole storage has.
    pub elems: u64,
    /// First element and number of elements, if it refers only to a part of the storage.
    pub view: Option<(u64, u64)>,
}

/// A tensor as described by the pickle, not yet checked against the storage.
#[derive(Debug, Clone)]
pub(super) struct Tensor {
    /// The storage's object.
    pub storage: Id,
    /// The type of the elements.
    pub element: Element,
    /// The index of the first element in the storage.
    pub offset: u64,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The distance between neighbours along each dimension, in elements.
    pub strides: Vec<u64>,
    /// Whether it has Python attributes, which no other format can hold.
    pub attributes: bool,
}

/// The result of running a pickle.
pub(super) struct Pickle<'a> {
    /// All objects, in the order in which they were made.
    pub objects: Vec<Object<'a>>,
    /// The result.
    pub root: Value<'a>,
    /// Module and name of each class or function that isn't in the table.
    pub classes: Vec<(&'a str, &'a str)>,
    /// The length of the pickle in bytes.
    pub byte_len: usize,
}

impl<'a> Pickle<'a> {
    /// Runs the pickle at the start of `bytes`. In files of the older form, other bytes follow it.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where it breaks the rules or a limit, [`crate::Error::Unsupported`]
    /// where it names a class or function that reaches the system.
    pub(super) fn read(path: &Path, bytes: &'a [u8]) -> Result<Self> {
        machine::Machine::new(path, bytes).run()
    }

    /// The full name of a class that isn't in the table, for messages.
    pub(super) fn class_name(&self, number: u32) -> String {
        let (module, name) = self.classes.get(number as usize).copied().unwrap_or(("", "?"));
        let full = format!("{}.{}", module.escape_debug(), name.escape_debug());
        match full.char_indices().nth(SHOWN_CHARS) {
            None => full,
            Some((end, _)) => format!("{}...", full.get(..end).unwrap_or_default()),
        }
    }

    /// The object to which `value` refers, if it does.
    pub(super) fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(id) => self.objects.get(id as usize),
            _ => None,
        }
    }
}
