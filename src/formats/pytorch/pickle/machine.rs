//! The machine: executes opcodes of protocols 0 to 5 one after the other, with a stack and a memo.
//!
//! Before anything is allocated, lengths are checked against the remaining bytes, and counts against a limit. Opcodes
//! that refer to something outside the pickle (extension codes, out-of-band buffers, persistent names of protocol 0)
//! are refused: torch doesn't write them.

use std::collections::HashMap;
use std::path::Path;

use super::globals;
use super::system::reaches_system;
use super::{
    Id, MAX_CELLS, MAX_CLASSES, MAX_LINE_BYTES, MAX_MARKS, MAX_MEMO, MAX_OBJECTS, MAX_PICKLE_BYTES, MAX_STACK, Object,
    Pickle, Value,
};
use crate::error::Result;

/// A pickle that is being run.
pub(super) struct Machine<'p, 'a> {
    pub(super) path: &'p Path,
    pub(super) bytes: &'a [u8],
    /// The next byte to read.
    pub(super) at: usize,
    stack: Vec<Value<'a>>,
    /// The stack's height at the start of each open container.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    pub(super) objects: Vec<Object<'a>>,
    classes: Vec<(&'a str, &'a str)>,
    /// The names that were used before.
    names: HashMap<(&'a str, &'a str), Value<'a>>,
    cells: usize,
}

impl<'p, 'a> Machine<'p, 'a> {
    pub(super) fn new(path: &'p Path, bytes: &'a [u8]) -> Self {
        let bytes = bytes.get(..MAX_PICKLE_BYTES).unwrap_or(bytes);
        Self {
            path,
            bytes,
            at: 0,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
            objects: Vec::new(),
            classes: Vec::new(),
            names: HashMap::new(),
            cells: 0,
        }
    }

    pub(super) fn run(mut self) -> Result<Pickle<'a>> {
        loop {
            let opcode = self.byte()?;
            if opcode == b'.' {
                let root = self.pop()?;
                return Ok(Pickle { objects: self.objects, root, classes: self.classes, byte_len: self.at });
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<()> {
        match opcode {
            // Protocol and framing.
            0x80 => match self.byte()? {
                0..=5 => Ok(()),
                other => Err(self.breach("a protocol from 0 to 5", other)),
            },
            0x95 => {
                let length = self.u64()?;
                let left = (self.bytes.len() - self.at) as u64;
                if length > left {
                    return Err(self.breach(format_args!("a frame of at most {left} bytes"), length));
                }
                Ok(())
            }
            // The stack.
            b'(' => {
                if self.marks.len() >= MAX_MARKS {
                    return Err(self.too_many("open marks", MAX_MARKS));
                }
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => {
                // Python lets POP remove a mark, too.
                if self.marks.last() == Some(&self.stack.len()) {
                    self.marks.pop();
                    return Ok(());
                }
                self.pop().map(drop)
            }
            b'1' => self.pop_mark().map(drop),
            b'2' => {
                let top = self.top()?;
                self.push(top)
            }
            // Plain values.
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let number = i32::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()))
            }
            b'K' => {
                let number = self.byte()?;
                self.push(Value::Int(number.into()))
            }
            b'M' => {
                let number = u16::from_le_bytes(self.array()?);
                self.push(Value::Int(number.into()))
            }
            b'G' => {
                let number = f64::from_be_bytes(self.array()?);
                self.push(Value::Float(number))
            }
            0x8a => {
                let length = self.byte()?;
                self.long(length.into())
            }
            0x8b => {
                let length = self.u32()?;
                self.long(length.into())
            }
            b'I' => {
                let value = match self.line()? {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    digits => self.digits(digits)?,
                };
                self.push(value)
            }
            b'L' => {
                let line = self.line()?;
                let value = self.digits(line.strip_suffix('L').unwrap_or(line))?;
                self.push(value)
            }
            b'F' => {
                let line = self.line()?;
                let number = line.parse().map_err(|_| self.breach("a number", format_args!("{line:?}")))?;
                self.push(Value::Float(number))
            }
            // Texts and bytes.
            b'X' => {
                let length = self.u32()?;
                self.text(length.into())
            }
            0x8c => {
                let length = self.byte()?;
                self.text(length.into())
            }
            0x8d => {
                let length = self.u64()?;
                self.text(length)
            }
            b'U' => {
                let length = self.byte()?;
                self.old_text(length.into())
            }
            b'T' => {
                let length = self.u32()?;
                self.old_text(length.into())
            }
            b'C' => {
                let length = self.byte()?;
                self.raw(length.into())
            }
            b'B' => {
                let length = self.u32()?;
                self.raw(length.into())
            }
            0x8e | 0x96 => {
                let length = self.u64()?;
                self.raw(length)
            }
            b'S' => {
                let line = self.line()?;
                let inner = [b'\'', b'"'].into_iter().find_map(|quote| {
                    line.as_bytes().strip_prefix(&[quote])?.strip_suffix(&[quote])?;
                    line.get(1..line.len() - 1)
                });
                let inner = inner.ok_or_else(|| self.breach("a quoted text", format_args!("{line:?}")))?;
                self.push(Value::plain_text(inner))
            }
            b'V' => {
                let line = self.line()?;
                self.push(Value::plain_text(line))
            }
            // Containers.
            b')' => self.make(Object::Tuple(Vec::new())),
            b']' => self.make(Object::List(Vec::new())),
            b'}' => self.make(Object::Dict { entries: Vec::new(), attributes: None, settings: None }),
            0x8f => self.make(Object::Set(Vec::new())),
            b't' => {
                let parts = self.pop_mark()?;
                self.make(Object::Tuple(parts))
            }
            0x85..=0x87 => {
                let parts = self.pop_many(usize::from(opcode - 0x84))?;
                self.make(Object::Tuple(parts))
            }
            b'l' => {
                let parts = self.pop_mark()?;
                self.make(Object::List(parts))
            }
            0x91 => {
                let parts = self.pop_mark()?;
                self.make(Object::Set(parts))
            }
            b'd' => {
                let parts = self.pop_mark()?;
                let entries = self.pairs(parts)?;
                self.make(Object::Dict { entries, attributes: None, settings: None })
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(pair)
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(items)
            }
            // The memo.
            b'q' => {
                let index = self.byte()?;
                self.remember(index.into())
            }
            b'r' => {
                let index = self.u32()?;
                self.remember(index)
            }
            b'p' => {
                let index = self.memo_number()?;
                self.remember(index)
            }
            0x94 => {
                let index = self.memo.len() as u32;
                self.remember(index)
            }
            b'h' => {
                let index = self.byte()?;
                self.recall(index.into())
            }
            b'j' => {
                let index = self.u32()?;
                self.recall(index)
            }
            b'g' => {
                let index = self.memo_number()?;
                self.recall(index)
            }
            // Names and calls.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                let named = self.named(module, name)?;
                self.push(named)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Str(module), Value::Str(name)) = (module, name) else {
                    return Err(self.breach("two texts as a name", "something else"));
                };
                let named = self.named(module, name)?;
                self.push(named)
            }
            b'R' | 0x81 => {
                let arguments = self.pop()?;
                let arguments = self.tuple(arguments)?;
                let function = self.pop()?;
                let result = self.call(function, arguments)?;
                self.push(result)
            }
            0x92 => {
                let keywords = self.pop()?;
                let arguments = self.pop()?;
                let mut arguments = self.tuple(arguments)?;
                let class = self.pop()?;
                // Like Python, ignore an empty dictionary of keywords.
                if !matches!(keywords, Value::Object(id) if matches!(&self.objects[id as usize], Object::Dict { entries, .. } if entries.is_empty()))
                {
                    arguments.push(keywords);
                }
                let result = self.call(class, arguments)?;
                self.push(result)
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                let named = self.named(module, name)?;
                let arguments = self.pop_mark()?;
                let result = self.call(named, arguments)?;
                self.push(result)
            }
            b'o' => {
                let parts = self.pop_mark()?;
                let Some((class, arguments)) = parts.split_first() else {
                    return Err(self.breach("a class", "nothing"));
                };
                let result = self.call(*class, arguments.to_vec())?;
                self.push(result)
            }
            b'b' => {
                let state = self.pop()?;
                let instance = self.top()?;
                self.build(instance, state)
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.make(Object::Storage(storage))
            }
            b'P' => Err(self.breach("storages named by tuples", "one named by a line of text")),
            0x82..=0x84 => Err(self.breach("names in full", "an extension code")),
            0x97 | 0x98 => Err(self.breach("all data in the pickle", "a buffer outside it")),
            other => Err(self
                .finding()
                .expected("an opcode of pickle")
                .found(format_args!("byte {other:#04x}"))
                .hint("the file is cut short or damaged; fetch it again")
                .format()),
        }
    }

    // The stack.

    pub(super) fn push(&mut self, value: Value<'a>) -> Result<()> {
        if self.stack.len() >= MAX_STACK {
            return Err(self.too_many("values on the stack", MAX_STACK));
        }
        self.stack.push(value);
        Ok(())
    }

    /// The stack's height at the start of the innermost open container. Nothing below may be taken.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Value<'a>> {
        if self.stack.len() <= self.floor() {
            return Err(self.breach("a value on the stack", "none"));
        }
        self.stack.pop().ok_or_else(|| self.breach("a value on the stack", "none"))
    }

    fn top(&self) -> Result<Value<'a>> {
        let top = self.stack.last().filter(|_| self.stack.len() > self.floor());
        top.copied().ok_or_else(|| self.breach("a value on the stack", "none"))
    }

    fn pop_many(&mut self, count: usize) -> Result<Vec<Value<'a>>> {
        if self.stack.len() < self.floor() + count {
            return Err(self.breach(format_args!("{count} values on the stack"), self.stack.len() - self.floor()));
        }
        Ok(self.stack.split_off(self.stack.len() - count))
    }

    fn pop_mark(&mut self) -> Result<Vec<Value<'a>>> {
        let start = self.marks.pop().ok_or_else(|| self.breach("a mark on the stack", "none"))?;
        Ok(self.stack.split_off(start))
    }

    fn remember(&mut self, index: u32) -> Result<()> {
        let top = self.top()?;
        if self.memo.len() >= MAX_MEMO {
            return Err(self.too_many("remembered values", MAX_MEMO));
        }
        self.memo.insert(index, top);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<()> {
        let value = self.memo.get(&index).copied();
        let value = value.ok_or_else(|| self.breach("a remembered value", format_args!("none at {index}")))?;
        self.push(value)
    }

    // Objects.

    /// Adds an object and pushes it.
    fn make(&mut self, object: Object<'a>) -> Result<()> {
        let value = self.add(object)?;
        self.push(value)
    }

    /// Adds an object.
    pub(super) fn add(&mut self, object: Object<'a>) -> Result<Value<'a>> {
        if self.objects.len() >= MAX_OBJECTS {
            return Err(self.too_many("objects", MAX_OBJECTS));
        }
        self.count(match &object {
            Object::Tuple(parts) | Object::List(parts) | Object::Set(parts) | Object::Opaque { parts, .. } => {
                parts.len()
            }
            Object::Dict { entries, .. } => 2 * entries.len(),
            Object::Storage(_) | Object::Unread(_) => 0,
            Object::Tensor(tensor) => 2 * tensor.shape.len(),
        })?;
        let id = self.objects.len() as Id;
        self.objects.push(object);
        Ok(Value::Object(id))
    }

    /// Adds to the total size of all containers, and checks it against the limit.
    pub(super) fn count(&mut self, cells: usize) -> Result<()> {
        self.cells = self.cells.saturating_add(cells);
        if self.cells > MAX_CELLS {
            return Err(self.too_many("values in containers", MAX_CELLS));
        }
        Ok(())
    }

    /// The object to which `value` refers.
    pub(super) fn object(&self, value: Value<'a>) -> Option<&Object<'a>> {
        match value {
            Value::Object(id) => self.objects.get(id as usize),
            _ => None,
        }
    }

    /// The parts of a tuple.
    pub(super) fn tuple(&mut self, value: Value<'a>) -> Result<Vec<Value<'a>>> {
        let Some(Object::Tuple(parts)) = self.object(value) else {
            return Err(self.breach("a tuple", "something else"));
        };
        let parts = parts.clone();
        // A copy counts like a container: otherwise a tuple used in a thousand calls would take memory without limit.
        self.count(parts.len())?;
        Ok(parts)
    }

    pub(super) fn pairs(&self, parts: Vec<Value<'a>>) -> Result<Vec<(Value<'a>, Value<'a>)>> {
        let (pairs, rest) = parts.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(self.breach("a value for each key", "a key without one"));
        }
        Ok(pairs.iter().map(|[key, value]| (*key, *value)).collect())
    }

    fn extend(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        self.count(items.len())?;
        match self.top_object() {
            Some(Object::List(parts) | Object::Set(parts) | Object::Opaque { parts, .. }) => parts.extend(items),
            _ => return Err(self.breach("a list or a set to add to", "something else")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value<'a>>) -> Result<()> {
        self.count(items.len())?;
        let pairs = self.pairs(items)?;
        match self.top_object() {
            Some(Object::Dict { entries, .. }) => entries.extend(pairs),
            Some(Object::Opaque { parts, .. }) => parts.extend(pairs.into_iter().flat_map(|(key, value)| [key, value])),
            _ => return Err(self.breach("a dictionary to add to", "something else")),
        }
        Ok(())
    }

    fn top_object(&mut self) -> Option<&mut Object<'a>> {
        match self.top() {
            Ok(Value::Object(id)) => self.objects.get_mut(id as usize),
            _ => None,
        }
    }

    /// The class, function or constant of this name.
    fn named(&mut self, module: &'a str, name: &'a str) -> Result<Value<'a>> {
        if let Some(value) = self.names.get(&(module, name)) {
            return Ok(*value);
        }
        let (of, own) = globals::in_python_3(module, name);
        let value = match globals::find(of, own) {
            Some(known) => Value::Global(known),
            None if reaches_system(of, own) => {
                return Err(self
                    .finding()
                    .expected("only classes and functions that checkpoints need")
                    .found(format_args!("{}.{}", module.escape_default(), name.escape_default()))
                    .hint("loading this file with Python may run code; it was read as data only, and nothing was run")
                    .unsupported());
            }
            None if module.len().max(name.len()) > MAX_LINE_BYTES => {
                return Err(self.breach(format_args!("a name of at most {MAX_LINE_BYTES} bytes"), "a longer one"));
            }
            None if self.classes.len() >= MAX_CLASSES => {
                return Err(self.too_many("classes that aren't known", MAX_CLASSES));
            }
            None => {
                self.classes.push((module, name));
                Value::Other((self.classes.len() - 1) as u32)
            }
        };
        self.names.insert((module, name), value);
        Ok(value)
    }
}
