//! Settings in a YAML file, read key by key: every key is used or refused, and an error says line and key.

use std::path::Path;

use super::{Map, Node, Typed};
use crate::error::{Error, Finding, Result};

/// The keys of a mapping. What [`Keys::finish`] hasn't seen taken is refused.
#[derive(Debug)]
pub(crate) struct Keys<'a> {
    file: &'a Path,
    map: &'a Map,
    /// The key of the mapping itself, as `models[0].parameters`; empty at the top.
    path: String,
    /// The line of that key.
    line: usize,
    /// The keys that were asked for.
    known: Vec<&'static str>,
}

/// The value of a key, or an item of a list.
#[derive(Debug, Clone)]
pub(crate) struct Value<'a> {
    file: &'a Path,
    pub(crate) node: &'a Node,
    path: String,
    line: usize,
}

/// A finding in line `line` about the key `path`.
fn finding(file: &Path, line: usize, path: &str) -> Finding {
    match path {
        "" => Finding::new(file, ""),
        path => Finding::new(file, format!("line {line}: {path}")),
    }
}

impl<'a> Keys<'a> {
    /// The keys of the whole file, whose content is `document`.
    ///
    /// # Errors
    /// [`Error::Format`] if it is no mapping.
    pub(crate) fn of_file(file: &'a Path, document: &'a Node) -> Result<Self> {
        Value { file, node: document, path: String::new(), line: 1 }.keys()
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn value(&self, key: &str) -> Option<Value<'a>> {
        let entry = self.map.entries.iter().find(|entry| entry.name == key)?;
        Some(Value { file: self.file, node: &entry.node, path: self.path_of(key), line: entry.line })
    }

    /// The value of `key`; `None` if it is missing or null.
    pub(crate) fn take(&mut self, key: &'static str) -> Option<Value<'a>> {
        self.known.push(key);
        self.value(key).filter(|value| *value.node != Node::Null)
    }

    /// The value of a key that must be there.
    ///
    /// # Errors
    /// [`Error::Format`], naming the key.
    pub(crate) fn require(&mut self, key: &'static str, what: &str) -> Result<Value<'a>> {
        match self.take(key) {
            Some(value) => Ok(value),
            None => {
                let line = self.map.entries.first().map_or(self.line, |entry| entry.line);
                Err(finding(self.file, line, &self.path_of(key)).expected(what).found("nothing").format())
            }
        }
    }

    /// A finding about the mapping as a whole.
    pub(crate) fn finding(&self) -> Finding {
        finding(self.file, self.line, &self.path)
    }

    /// Every key with its value, where any name is a key.
    ///
    /// # Errors
    /// [`Error::Format`] for a key that isn't text.
    pub(crate) fn all(&self) -> Result<Vec<(&'a str, Value<'a>)>> {
        self.check_texts()?;
        let names = self.map.entries.iter().map(|entry| entry.name.as_str());
        Ok(names.filter_map(|name| Some((name, self.value(name)?))).collect())
    }

    /// Refuses a key that was never asked for.
    ///
    /// # Errors
    /// [`Error::Format`], naming line and key, and the known key that is most similar.
    pub(crate) fn finish(&self) -> Result<()> {
        self.check_texts()?;
        match self.map.entries.iter().find(|entry| !self.known.contains(&entry.name.as_str())) {
            None => Ok(()),
            Some(entry) => Err(self.unknown(&entry.name, entry.line, &self.known)),
        }
    }

    /// The error for the unknown key `name`, where there are only those in `known`.
    fn unknown(&self, name: &str, line: usize, known: &[&str]) -> Error {
        let expected = format!("one of {}", known.join(", "));
        let found = finding(self.file, line, &self.path_of(name)).expected(expected).found("an unknown key");
        found.did_you_mean(name, known).format()
    }

    fn check_texts(&self) -> Result<()> {
        match &self.map.other_key {
            None => Ok(()),
            Some((line, key)) => {
                let found = finding(self.file, *line, &self.path_of(key)).expected("a text as a key");
                Err(found.found(key).hint("quote it if it is one").format())
            }
        }
    }
}

impl<'a> Value<'a> {
    /// A finding about the value.
    pub(crate) fn finding(&self) -> Finding {
        finding(self.file, self.line, &self.path)
    }

    /// The error for a value that should be `what`.
    pub(crate) fn wrong(&self, what: impl std::fmt::Display) -> Error {
        self.finding().expected(what).found(shown(self.node)).format()
    }

    /// The error for a key that isn't one of `known`. Its value is this one.
    pub(crate) fn unknown_key(&self, known: &[&str]) -> Error {
        let name = self.path.rsplit('.').next().unwrap_or_default();
        let finding = self.finding().expected(format_args!("one of {}", known.join(", "))).found("an unknown key");
        finding.did_you_mean(name, known).format()
    }

    /// The keys of a mapping.
    ///
    /// # Errors
    /// [`Error::Format`] for another kind of value, as for all of the following.
    pub(crate) fn keys(&self) -> Result<Keys<'a>> {
        let Node::Map(map) = self.node else { return Err(self.wrong("keys and values")) };
        Ok(Keys { file: self.file, map, path: self.path.clone(), line: self.line, known: Vec::new() })
    }

    /// The items of a list.
    pub(crate) fn items(&self, what: &str) -> Result<Vec<Value<'a>>> {
        let Node::List(items) = self.node else { return Err(self.wrong(what)) };
        let item = |(place, node): (usize, &'a Node)| {
            // Only keys have lines: the first one of an item tells where the item is.
            let line = match node {
                Node::Map(map) => map.entries.first().map_or(self.line, |entry| entry.line),
                _ => self.line,
            };
            Value { file: self.file, node, path: format!("{}[{place}]", self.path), line }
        };
        Ok(items.iter().enumerate().map(item).collect())
    }

    /// A text.
    pub(crate) fn text(&self, what: &str) -> Result<&'a str> {
        match self.node {
            Node::Text(text) => Ok(text),
            _ => Err(self.wrong(what)),
        }
    }

    /// A whole number that isn't negative.
    pub(crate) fn count(&self, what: &str) -> Result<usize> {
        match self.node {
            Node::Typed(Typed::Int(value), _) => usize::try_from(*value).map_err(|_| self.wrong(what)),
            _ => Err(self.wrong(what)),
        }
    }

    /// True or false.
    pub(crate) fn flag(&self) -> Result<bool> {
        match self.node {
            Node::Typed(Typed::Bool(value), _) => Ok(*value),
            _ => Err(self.wrong("true or false")),
        }
    }
}

/// A value as a message shows it.
fn shown(node: &Node) -> String {
    match node {
        Node::Null => "nothing".to_owned(),
        Node::Text(text) => format!("{text:?}"),
        Node::Typed(_, spelling) => spelling.clone(),
        Node::List(items) if items.is_empty() => "an empty list".to_owned(),
        Node::List(_) => "a list".to_owned(),
        Node::Map(_) => "keys and values".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn errors_say_line_and_key() {
        let text = "a: 1\n\nlist:\n  - b: x\n    c: [1]\n  - color: y\n";
        let document = parse(text, 1).unwrap();
        let mut keys = Keys::of_file(Path::new("f.yml"), &document).unwrap();
        assert_eq!(keys.take("a").unwrap().count("a number").unwrap(), 1);
        assert!(keys.take("missing").is_none());
        let items = keys.take("list").unwrap().items("a list").unwrap();
        keys.finish().unwrap();
        let mut first = items[0].keys().unwrap();
        assert_eq!(first.take("b").unwrap().text("a text").unwrap(), "x");
        let wrong = first.take("c").unwrap().flag().unwrap_err().to_string();
        assert_eq!(wrong, "f.yml: line 5: list[0].c: expected true or false, found a list");
        let mut second = items[1].keys().unwrap();
        assert!(second.take("colour").is_none());
        let unknown = second.finish().unwrap_err().to_string();
        assert_eq!(
            unknown,
            "f.yml: line 6: list[1].color: expected one of colour, found an unknown key; did you mean colour?"
        );
        let missing = second.require("d", "a text").unwrap_err().to_string();
        assert_eq!(missing, "f.yml: line 6: list[1].d: expected a text, found nothing");
        let document = parse("x:\n  1: 2\n", 1).unwrap();
        let mut keys = Keys::of_file(Path::new("f.yml"), &document).unwrap();
        let number = keys.take("x").unwrap().keys().unwrap().finish().unwrap_err().to_string();
        assert_eq!(number, "f.yml: line 2: x.1: expected a text as a key, found 1; quote it if it is one");
    }
}
