//! The tree of a checkpoint: dictionaries and lists become dotted names. Values that aren't tensors are listed too, so
//! that none is dropped silently.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::pickle::{Id, Object, Pickle, Tensor, Value};
use crate::error::{Finding, Result};
use crate::source::{Step, show_shape};

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
    /// Names and objects of tensors, in the file's order, and the node of each.
    pub tensors: Vec<(String, Id, u32)>,
    /// The containers and tensors that names lead through. The first is the outermost container.
    pub nodes: Nodes,
    /// Paths and descriptions of tensors of kinds and types that aren't read.
    pub unread: Vec<(String, String)>,
    /// Paths and descriptions of everything else.
    pub others: Vec<(String, String)>,
    /// How many tensors are inside objects, where no name can reach them.
    pub out_of_reach: usize,
}

/// The ways to tensors: each node with the one before it, and the step between them.
#[derive(Default)]
pub(super) struct Nodes(Vec<(u32, Step)>);

impl Nodes {
    /// The steps that lead to a node, whose number counts from 1; 0 is the outermost container.
    pub(super) fn steps(&self, mut node: u32) -> Vec<Step> {
        let mut steps = Vec::new();
        while let Some((before, step)) = (node as usize).checked_sub(1).and_then(|place| self.0.get(place)) {
            steps.push(step.clone());
            node = *before;
        }
        steps.reverse();
        steps
    }
}

/// Names every tensor under `key`, or in the whole checkpoint.
pub(super) fn flatten(path: &Path, pickle: &Pickle<'_>, key: Option<&str>) -> Result<Flat> {
    let mut walk = Walk {
        path,
        pickle,
        reaches: reaching_tensors(pickle),
        flat: Flat {
            tensors: Vec::new(),
            nodes: Nodes::default(),
            unread: Vec::new(),
            others: Vec::new(),
            out_of_reach: 0,
        },
        node: 0,
        counted: HashSet::new(),
        taken: HashMap::new(),
        places: 0,
        name_bytes: 0,
    };
    let start = key.map_or(Ok(pickle.root), |key| walk.choose(key))?;
    let mut name = match pickle.object(start) {
        Some(Object::Dict { .. }) => String::new(),
        Some(Object::List(_) | Object::Tuple(_)) if walk.reaches(start) => String::new(),
        object => {
            key.unwrap_or(ALONE[usize::from(!matches!(object, Some(Object::Tensor(_) | Object::Unread(_))))]).to_owned()
        }
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
            Object::Dict { entries, attributes, .. } => {
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
    /// The node of the value that is visited.
    node: u32,
    /// The objects whose tensors were counted as out of reach.
    counted: HashSet<Id>,
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
            (_, Some(Object::Tensor(Tensor { element, shape, .. }))) if element.dtype.is_none() => {
                self.take(name, true)?;
                self.flat.unread.push((name.clone(), format!("{} {}", element.name, show_shape(shape))));
                Ok(())
            }
            (Value::Object(id), Some(Object::Tensor(_))) => {
                self.take(name, true)?;
                self.flat.tensors.push((name.clone(), id, self.node));
                Ok(())
            }
            (_, Some(Object::Unread(what))) => {
                self.take(name, true)?;
                self.flat.unread.push((name.clone(), what.clone()));
                Ok(())
            }
            (_, Some(Object::Dict { entries, attributes, settings: Some(_) })) => {
                self.settings(name, value, entries, *attributes, depth)
            }
            (_, Some(Object::Dict { entries, attributes, .. })) if reaches || entries.len() <= LISTED_ENTRIES => {
                for (key, value) in entries {
                    self.entry(name, *key, *value, depth)?;
                }
                if depth > 0 && entries.is_empty() {
                    self.describe(name, value)?;
                }
                attributes.map_or(Ok(()), |attributes| self.attributes(name, attributes))
            }
            (_, Some(object @ (Object::List(parts) | Object::Tuple(parts)))) if reaches => {
                let (of, tuple) = (parts.len(), matches!(object, Object::Tuple(_)));
                for (index, part) in parts.iter().enumerate() {
                    self.child(name, &index.to_string(), Step::Item { index, of, tuple }, *part, depth)?;
                }
                Ok(())
            }
            _ => self.describe(name, value),
        }
    }

    /// Adds an object of settings, and its entries.
    fn settings(
        &mut self,
        name: &mut String,
        value: Value<'a>,
        entries: &[(Value<'a>, Value<'a>)],
        attributes: Option<Value<'a>>,
        depth: usize,
    ) -> Result<()> {
        // Classes of settings keep their entries twice, as items and as attributes, or as attributes alone.
        let fields = match attributes.and_then(|attributes| self.pickle.object(attributes)) {
            Some(Object::Dict { entries: state, .. }) if entries.is_empty() => {
                let fields = state.iter().find(|(key, _)| *key == Value::Str("_fields"));
                fields.and_then(|(_, fields)| self.pickle.object(*fields))
            }
            _ => None,
        };
        let entries = match fields {
            Some(Object::Dict { entries, .. }) => entries,
            _ => entries,
        };
        let reached = entries.iter().any(|(_, value)| self.reaches(*value));
        if depth > 0 {
            match reached {
                true => self.flat.others.push((name.clone(), describe(self.pickle, value))),
                false => self.describe(name, value)?,
            }
        }
        if reached || entries.len() <= LISTED_ENTRIES {
            for (key, value) in entries {
                self.entry(name, *key, *value, depth)?;
            }
        }
        Ok(())
    }

    /// Adds one entry of a dictionary.
    fn entry(&mut self, name: &mut String, key: Value<'a>, value: Value<'a>, depth: usize) -> Result<()> {
        match key {
            Value::Str(key) => self.child(name, key, Step::Key(key.to_owned()), value, depth),
            Value::Int(number) => self.child(name, &number.to_string(), Step::Number(number), value, depth),
            _ if self.reaches(value) || self.reaches(key) => Err(self
                .named(name)
                .expected("texts or numbers as keys")
                .found(describe(self.pickle, key))
                .unsupported()),
            key => {
                let key = format!("({})", describe(self.pickle, key));
                self.child(name, &key, Step::Key(key.clone()), value, depth)
            }
        }
    }

    /// Visits the value under `key` of the container at `name`.
    fn child(&mut self, name: &mut String, key: &str, step: Step, value: Value<'a>, depth: usize) -> Result<()> {
        let (length, node) = (name.len(), self.node);
        if self.reaches(value) {
            self.flat.nodes.0.push((node, step));
            self.node = self.flat.nodes.0.len() as u32;
        }
        if depth > 0 {
            name.push('.');
        }
        name.push_str(key);
        self.visit(name, value, depth + 1)?;
        self.node = node;
        name.truncate(length);
        Ok(())
    }

    /// Adds the attributes of a dictionary: torch stores the versions of modules there, as `_metadata`.
    fn attributes(&mut self, name: &str, attributes: Value<'a>) -> Result<()> {
        if let Some(Object::Dict { entries, .. }) = self.pickle.object(attributes) {
            for (key, value) in entries {
                let key = if let Value::Str(key) = key { *key } else { "attribute" };
                let path = if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
                let text = format!("attribute of the dictionary, {}", self.described(*value));
                self.name_bytes += path.len();
                self.flat.others.push((path, text));
            }
        }
        Ok(())
    }

    /// Adds a value that isn't a tensor. Tensors inside it are out of reach.
    fn describe(&mut self, name: &str, value: Value<'a>) -> Result<()> {
        self.take(name, false)?;
        let text = self.described(value);
        self.flat.others.push((name.to_owned(), text));
        Ok(())
    }

    /// Describes a value, and counts the tensors inside it.
    fn described(&mut self, value: Value<'a>) -> String {
        let mut text = describe(self.pickle, value);
        if self.reaches(value) {
            let count = self.count_inside(value);
            self.flat.out_of_reach += count;
            let tensors = if count == 1 { "tensor" } else { "tensors" };
            text.push_str(&format!(", with {count} {tensors} out of reach"));
        }
        text
    }

    /// The number of tensors inside a value, without those inside values that were counted before.
    fn count_inside(&mut self, value: Value<'a>) -> usize {
        let (mut open, mut count) = (vec![value], 0);
        while let Some(value) = open.pop() {
            let Value::Object(id) = value else { continue };
            if !self.reaches(value) || !self.counted.insert(id) {
                continue;
            }
            match self.pickle.object(value) {
                Some(Object::Tensor(_) | Object::Unread(_)) => count += 1,
                Some(
                    Object::Tuple(parts) | Object::List(parts) | Object::Set(parts) | Object::Opaque { parts, .. },
                ) => open.extend(parts),
                Some(Object::Dict { entries, attributes, .. }) => {
                    open.extend(entries.iter().flat_map(|(key, value)| [*key, *value]));
                    open.extend(attributes);
                }
                Some(Object::Storage(_)) | None => {}
            }
        }
        count
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

/// A note for each class that isn't known, with the number of its objects. The first word of a class's note is the
/// class.
pub(super) fn class_notes(pickle: &Pickle<'_>) -> Vec<String> {
    let mut counts = vec![0usize; pickle.classes.len()];
    let mut settings: Vec<(String, usize)> = Vec::new();
    for object in &pickle.objects {
        match object {
            Object::Opaque { class: Value::Other(number), .. } => {
                counts.get_mut(*number as usize).into_iter().for_each(|count| *count += 1);
            }
            Object::Dict { settings: Some(class), .. } => {
                let name = format!("{}.{}", class.module, class.name);
                match settings.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, count)) => *count += 1,
                    None => settings.push((name, 1)),
                }
            }
            _ => {}
        }
    }
    let objects = |count: usize| match count {
        0 => "it is named and has no object".to_owned(),
        1 => "its one object is described, and was not made".to_owned(),
        count => format!("its {count} objects are described, and none was made"),
    };
    let of_settings = settings.iter().map(|(name, count)| format!("{name}: a class of settings: {}", objects(*count)));
    let others = counts.iter().enumerate().map(|(number, count)| {
        format!("{}: a class that is not read: {}", pickle.class_name(number as u32), objects(*count))
    });
    of_settings.chain(others).collect()
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
        Value::Other(number) => return pickle.class_name(number),
        value @ Value::Object(_) => pickle.object(value),
    };
    match object {
        Some(Object::Tuple(parts)) => format!("a tuple of {}", parts.len()),
        Some(Object::List(parts)) => format!("a list of {}", parts.len()),
        Some(Object::Set(parts)) => format!("a set of {}", parts.len()),
        Some(Object::Dict { settings: Some(class), .. }) => format!("{}.{}", class.module, class.name),
        Some(Object::Dict { entries, .. }) => format!("a dictionary of {}", entries.len()),
        Some(Object::Storage(storage)) => format!("a storage of {} {}", storage.elems, storage.element.name),
        Some(Object::Tensor(_)) => "a tensor".to_owned(),
        Some(Object::Unread(what)) => what.clone(),
        Some(Object::Opaque { class: Value::Global(class), .. }) => match (class.module, class.name) {
            ("_codecs", _) => "bytes".to_owned(),
            (_, "_reconstruct" | "_frombuffer") => "a numpy array".to_owned(),
            (_, "scalar") => "a numpy number".to_owned(),
            (module, name) => format!("{module}.{name}"),
        },
        Some(Object::Opaque { class, .. }) => describe(pickle, *class),
        None => "nothing".to_owned(),
    }
}

fn quote(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
    }
}
