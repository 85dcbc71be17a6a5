//! The tree of a checkpoint: dictionaries and lists become dotted names. Values that aren't tensors are listed too, so
//! that none is dropped silently.

use std::collections::HashMap;
use std::path::Path;

use super::pickle::{Id, Object, Pickle, Value};
use crate::error::{Finding, Result};

/// The deepest nesting of containers.
const MAX_DEPTH: usize = 100;
/// The most places visited. The same container can be at many places, so a few bytes can give more names than a disk
/// can hold.
const MAX_PLACES: usize = 1 << 20;
/// The most bytes in all names together.
const MAX_NAME_BYTES: usize = 128 << 20;
/// The most entries that are listed one by one for a dictionary without tensors.
const LISTED_ENTRIES: usize = 64;
/// How many characters of a text a description quotes.
const QUOTED_CHARS: usize = 40;
/// The name of a tensor that is the whole checkpoint, and of any other such value.
const ALONE: [&str; 2] = ["tensor", "value"];

/// A checkpoint as flat lists.
pub(super) struct Flat {
    /// Names and objects of tensors, in the file's order.
    pub tensors: Vec<(String, Id)>,
    /// Paths and descriptions of everything else.
    pub others: Vec<(String, String)>,
}

/// Names every tensor under `key`, or in the whole checkpoint.
pub(super) fn flatten(path: &Path, pickle: &Pickle<'_>, key: Option<&str>) -> Result<Flat> {
    let mut walk = Walk {
        path,
        pickle,
        reaches: reaching_tensors(pickle),
        flat: Flat { tensors: Vec::new(), others: Vec::new() },
        taken: HashMap::new(),
        places: 0,
        name_bytes: 0,
    };
    let start = key.map_or(Ok(pickle.root), |key| walk.choose(key))?;
    let mut name = match pickle.object(start) {
        Some(Object::Dict { .. }) => String::new(),
        Some(Object::List(_) | Object::Tuple(_)) if walk.reaches(start) => String::new(),
        object => key.unwrap_or(ALONE[usize::from(!matches!(object, Some(Object::Tensor(_))))]).to_owned(),
    };
    walk.visit(&mut name, start, 0)?;
    Ok(walk.flat)
}

/// For each object, whether it is a tensor or contains one.
fn reaching_tensors(pickle: &Pickle<'_>) -> Vec<bool> {
    let mut holders: Vec<Vec<Id>> = vec![Vec::new(); pickle.objects.len()];
    let mut reaches = vec![false; pickle.objects.len()];
    let mut open = Vec::new();
    for (id, object) in pickle.objects.iter().enumerate() {
        let mut note = |part: &Value<'_>| {
            if let Value::Object(part) = part
                && let Some(holders) = holders.get_mut(*part as usize)
            {
                holders.push(id as Id);
            }
        };
        match object {
            Object::Tuple(parts) | Object::List(parts) | Object::Set(parts) | Object::Opaque { parts, .. } => {
                parts.iter().for_each(note);
            }
            Object::Dict { entries, attributes } => {
                for (key, value) in entries {
                    note(key);
                    note(value);
                }
                attributes.iter().for_each(note);
            }
            Object::Storage(_) => {}
            Object::Tensor(_) | Object::Unread(_) => {
                reaches[id] = true;
                open.push(id);
            }
        }
    }
    while let Some(id) = open.pop() {
        for holder in std::mem::take(&mut holders[id]) {
            let holder = holder as usize;
            if !std::mem::replace(&mut reaches[holder], true) {
                open.push(holder);
            }
        }
    }
    reaches
}

struct Walk<'w, 'a> {
    path: &'w Path,
    pickle: &'w Pickle<'a>,
    reaches: Vec<bool>,
    flat: Flat,
    /// Used names, and whether a tensor has them.
    taken: HashMap<String, bool>,
    places: usize,
    name_bytes: usize,
}

impl<'a> Walk<'_, 'a> {
    fn named(&self, name: &str) -> Finding {
        Finding::new(self.path, if name.is_empty() { String::new() } else { format!("{name:?}") })
    }

    fn reaches(&self, value: Value<'a>) -> bool {
        match value {
            Value::Object(id) => self.reaches.get(id as usize).copied().unwrap_or(false),
            _ => false,
        }
    }

    /// Adds the value at `name` and its parts to the lists.
    fn visit(&mut self, name: &mut String, value: Value<'a>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            let finding = self.named(name).expected(format_args!("at most {MAX_DEPTH} containers inside each other"));
            return Err(finding.found("more, or one that contains itself").format());
        }
        self.places += 1;
        self.name_bytes += name.len();
        if self.places > MAX_PLACES || self.name_bytes > MAX_NAME_BYTES {
            let finding = Finding::new(self.path, "checkpoint");
            let limits = format!("at most {MAX_PLACES} names of {MAX_NAME_BYTES} bytes together");
            return Err(finding.expected(limits).found("more").format());
        }
        let pickle = self.pickle;
        let reaches = self.reaches(value);
        match (value, pickle.object(value)) {
            (Value::Object(id), Some(Object::Tensor(_))) => {
                self.take(name, true)?;
                self.flat.tensors.push((name.clone(), id));
                Ok(())
            }
            (_, Some(Object::Unread(what))) => {
                let finding = Finding::new(self.path, format!("tensor {name:?}"));
                Err(finding.expected("a plain tensor").found(what).unsupported())
            }
            (_, Some(Object::Dict { entries, attributes })) if reaches || entries.len() <= LISTED_ENTRIES => {
                for (key, value) in entries {
                    self.entry(name, *key, *value, depth)?;
                }
                if depth > 0 && entries.is_empty() {
                    self.describe(name, value)?;
                }
                attributes.map_or(Ok(()), |attributes| self.attributes(name, attributes))
            }
            (_, Some(Object::List(parts) | Object::Tuple(parts))) if reaches => {
                for (number, part) in parts.iter().enumerate() {
                    self.child(name, &number.to_string(), *part, depth)?;
                }
                Ok(())
            }
            _ if reaches => Err(self
                .named(name)
                .expected("tensors in dictionaries and lists")
                .found(format_args!("some in {}", describe(pickle, value)))
                .hint("choose the part with the weights, often state_dict, with `key`")
                .unsupported()),
            _ => self.describe(name, value),
        }
    }

    /// Adds one entry of a dictionary.
    fn entry(&mut self, name: &mut String, key: Value<'a>, value: Value<'a>, depth: usize) -> Result<()> {
        match key {
            Value::Str(key) => self.child(name, key, value, depth),
            Value::Int(number) => self.child(name, &number.to_string(), value, depth),
            _ if self.reaches(value) || self.reaches(key) => Err(self
                .named(name)
                .expected("texts or numbers as keys")
                .found(describe(self.pickle, key))
                .unsupported()),
            key => self.child(name, &format!("({})", describe(self.pickle, key)), value, depth),
        }
    }

    fn child(&mut self, name: &mut String, key: &str, value: Value<'a>, depth: usize) -> Result<()> {
        let length = name.len();
        if depth > 0 {
            name.push('.');
        }
        name.push_str(key);
        self.visit(name, value, depth + 1)?;
        name.truncate(length);
        Ok(())
    }

    /// Adds the attributes of a dictionary: torch stores the versions of modules there, as `_metadata`.
    fn attributes(&mut self, name: &str, attributes: Value<'a>) -> Result<()> {
        if self.reaches(attributes) {
            let finding = self.named(name).expected("tensors in dictionaries and lists");
            return Err(finding.found("some in attributes of a dictionary").unsupported());
        }
        if let Some(Object::Dict { entries, .. }) = self.pickle.object(attributes) {
            for (key, value) in entries {
                let key = if let Value::Str(key) = key { *key } else { "attribute" };
                let path = if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
                let text = format!("attribute of the dictionary, {}", describe(self.pickle, *value));
                self.name_bytes += path.len();
                self.flat.others.push((path, text));
            }
        }
        Ok(())
    }

    /// Adds a value that isn't a tensor.
    fn describe(&mut self, name: &str, value: Value<'a>) -> Result<()> {
        self.take(name, false)?;
        self.flat.others.push((name.to_owned(), describe(self.pickle, value)));
        Ok(())
    }

    /// Refuses a second value with the name of a tensor: programs would differ in which one they read.
    fn take(&mut self, name: &str, tensor: bool) -> Result<()> {
        match self.taken.insert(name.to_owned(), tensor) {
            Some(before) if before || tensor => {
                let finding = Finding::new(self.path, format!("tensor {name:?}"));
                Err(finding.expected("each name once").found("it twice").format())
            }
            _ => Ok(()),
        }
    }

    /// The value under a dotted path.
    fn choose(&self, key: &str) -> Result<Value<'a>> {
        if let Some(found) = self.find(self.pickle.root, key)? {
            return Ok(found);
        }
        let found = match self.pickle.object(self.pickle.root) {
            Some(Object::Dict { entries, .. }) => {
                let keys = entries.iter().take(10).map(|(key, _)| describe_key(self.pickle, *key));
                let more = if entries.len() > 10 { ", ..." } else { "" };
                format!("{}{more}", keys.collect::<Vec<_>>().join(", "))
            }
            _ => describe(self.pickle, self.pickle.root),
        };
        let finding = Finding::new(self.path, "checkpoint").expected(format_args!("something under {key:?}"));
        Err(finding.found(found).mismatch())
    }

    /// The value under `rest`, the remainder of a dotted path. Keys may contain dots, so every key with which the path
    /// begins is tried.
    fn find(&self, value: Value<'a>, rest: &str) -> Result<Option<Value<'a>>> {
        let text = |key: &Value<'a>| match key {
            Value::Str(text) => Some((*text).to_owned()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        };
        let entries: Vec<(String, Value<'a>)> = match self.pickle.object(value) {
            Some(Object::Dict { entries, .. }) => {
                let begins =
                    |key: &str| rest.strip_prefix(key).is_some_and(|tail| tail.is_empty() || tail.starts_with('.'));
                entries.iter().filter_map(|(key, value)| Some((text(key).filter(|key| begins(key))?, *value))).collect()
            }
            Some(Object::List(parts) | Object::Tuple(parts)) => {
                let first = rest.split('.').next().unwrap_or_default();
                let part = first.parse::<usize>().ok().and_then(|number| parts.get(number));
                part.map(|part| (first.to_owned(), *part)).into_iter().collect()
            }
            _ => Vec::new(),
        };
        for (i, (key, value)) in entries.iter().enumerate() {
            if entries.iter().skip(i + 1).any(|(other, _)| other == key) {
                return Err(self.named(key).expected("each name once").found("it twice").format());
            }
            let found = match rest.get(key.len()..).and_then(|tail| tail.strip_prefix('.')) {
                None => Some(*value),
                Some(tail) => self.find(*value, tail)?,
            };
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

fn describe_key(pickle: &Pickle<'_>, key: Value<'_>) -> String {
    match key {
        Value::Str(text) => quote(text),
        key => describe(pickle, key),
    }
}

/// Describes a value in a few words.
fn describe(pickle: &Pickle<'_>, value: Value<'_>) -> String {
    let object = match value {
        Value::None => return "None".to_owned(),
        Value::Bool(true) => return "True".to_owned(),
        Value::Bool(false) => return "False".to_owned(),
        Value::Int(number) => return number.to_string(),
        Value::Long(_) => return "a whole number past 64 bits".to_owned(),
        Value::Float(number) => return number.to_string(),
        Value::Str(text) => return quote(text),
        Value::Bytes(bytes) => return format!("{} bytes", bytes.len()),
        Value::Global(known) => return format!("{}.{}", known.module, known.name),
        value @ Value::Object(_) => pickle.object(value),
    };
    match object {
        Some(Object::Tuple(parts)) => format!("a tuple of {}", parts.len()),
        Some(Object::List(parts)) => format!("a list of {}", parts.len()),
        Some(Object::Set(parts)) => format!("a set of {}", parts.len()),
        Some(Object::Dict { entries, .. }) => format!("a dictionary of {}", entries.len()),
        Some(Object::Storage(storage)) => format!("a storage of {} {}", storage.elems, storage.element.name),
        Some(Object::Tensor(_)) => "a tensor".to_owned(),
        Some(Object::Unread(what)) => (*what).to_owned(),
        Some(Object::Opaque { class, .. }) => match (class.module, class.name) {
            ("_codecs", _) => "bytes".to_owned(),
            (_, "_reconstruct" | "_frombuffer") => "a numpy array".to_owned(),
            (_, "scalar") => "a numpy number".to_owned(),
            (module, name) => format!("{module}.{name}"),
        },
        None => "nothing".to_owned(),
    }
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}
