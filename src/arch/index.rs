//! What the built-in family files are for: their names, classes and architectures, found without reading the rest.
//!
//! A family is read when it is needed, so that the program starts at once.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use serde_json::{Map, Value};

use super::families::FILES;
use super::family::Family;

/// A family file, and the family once it was read.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) name: &'static str,
    pub(super) about: About,
    pub(super) family: OnceLock<Option<&'static Family>>,
}

/// What a file says in its statements `class`, `model_type`, `gguf`, `kind` and `detect`, or takes over from others.
#[derive(Debug, Default, Clone)]
pub(super) struct About {
    pub(super) classes: Vec<&'static str>,
    pub(super) model_types: Vec<&'static str>,
    pub(super) gguf: &'static str,
    pub(super) is_projector: bool,
    /// The tensor by which a folder without config.json is known.
    pub(super) detect: Option<&'static str>,
    /// Whether it is only for some of the class's configs.
    pub(super) has_condition: bool,
    /// The classes whose models run.
    pub(super) runs: Vec<&'static str>,
}

/// The entries of all files that have a class, in the order in which they are asked: one with a condition goes before
/// one without.
pub(super) fn entries() -> &'static [Entry] {
    static ENTRIES: OnceLock<Vec<Entry>> = OnceLock::new();
    ENTRIES.get_or_init(|| {
        let mut known = HashMap::new();
        let mut entries: Vec<Entry> = FILES
            .iter()
            .map(|(name, _)| Entry { name, about: about(name, &mut known, 0), family: OnceLock::new() })
            .filter(|entry| !entry.about.classes.is_empty())
            .collect();
        entries.sort_by_key(|entry| (!entry.about.has_condition, entry.name));
        entries
    })
}

/// Every field of any class.
pub(super) fn fields() -> &'static HashSet<String> {
    static FIELDS: OnceLock<HashSet<String>> = OnceLock::new();
    FIELDS.get_or_init(|| {
        let defaults = FILES.iter().flat_map(|(_, text)| statements(text)).filter(|(word, _)| *word == "defaults");
        let objects = defaults.filter_map(|(_, rest)| serde_json::from_str::<Map<String, Value>>(rest).ok());
        objects.flat_map(|object| object.into_iter().map(|(name, _)| name)).collect()
    })
}

/// What a file is for. `depth` stops files that build on each other in a circle; a test reads every file.
fn about(name: &str, known: &mut HashMap<String, About>, depth: usize) -> About {
    if let Some(about) = known.get(name) {
        return about.clone();
    }
    let Some((_, text)) = FILES.iter().find(|(known, _)| *known == name).filter(|_| depth < 16) else {
        return About::default();
    };
    let mut all = About::default();
    for (word, rest) in statements(text) {
        let words = || rest.split_whitespace().take_while(|word| !word.starts_with('#'));
        match word {
            "from" => words().for_each(|other| all.take_over(about(other, known, depth + 1))),
            "class" => all.classes = words().collect(),
            "model_type" => all.model_types = words().collect(),
            "gguf" => all.gguf = words().next().unwrap_or_default(),
            "kind" => all.is_projector = true,
            "detect" => all.detect = words().next(),
            "when" => all.has_condition = true,
            "runs" => all.runs = words().collect(),
            _ => {}
        }
    }
    known.insert(name.to_owned(), all.clone());
    all
}

impl About {
    /// Whether models of one of its classes run.
    pub(super) fn is_run(&self) -> bool {
        self.classes.iter().any(|class| self.runs.contains(class))
    }

    fn take_over(&mut self, other: About) {
        if !other.classes.is_empty() {
            self.classes = other.classes;
        }
        if !other.model_types.is_empty() {
            self.model_types = other.model_types;
        }
        if !other.gguf.is_empty() {
            self.gguf = other.gguf;
        }
        self.is_projector |= other.is_projector;
        self.detect = other.detect.or(self.detect);
        self.has_condition |= other.has_condition;
        if !other.runs.is_empty() {
            self.runs = other.runs;
        }
    }
}

/// The first words of a file's statements, and what follows them, over all their lines.
fn statements(text: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        while !rest.is_empty() {
            let mut end = 0;
            // A line that begins with a blank goes on with the statement before.
            for line in rest.split_inclusive('\n') {
                if end > 0 && !line.starts_with([' ', '\t']) {
                    break;
                }
                end += line.len();
            }
            let statement = &rest[..end];
            rest = &rest[end..];
            match statement.split_once([' ', '\n']) {
                Some((word, rest)) if !word.is_empty() && !word.starts_with('#') => return Some((word, rest)),
                _ => {}
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::super::registry;
    use super::*;

    #[test]
    fn files_are_for_what_their_families_say() {
        assert!(entries().len() > 250);
        for entry in entries() {
            let family = registry::read_built_in(entry).unwrap();
            let about = &entry.about;
            assert_eq!(about.classes, family.classes, "{}", entry.name);
            assert_eq!(about.model_types, family.model_types, "{}", entry.name);
            assert_eq!((about.gguf, about.is_projector), (family.gguf.as_str(), family.is_projector), "{}", entry.name);
            assert_eq!(about.detect, family.detect.as_deref(), "{}", entry.name);
            assert_eq!(about.has_condition, family.when.is_some(), "{}", entry.name);
            assert_eq!(about.runs, family.runs, "{}", entry.name);
            assert!(family.defaults.keys().all(|field| fields().contains(field)), "{}", entry.name);
        }
    }
}
