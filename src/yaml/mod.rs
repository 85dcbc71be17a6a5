//! YAML of model cards and training files, with the types that PyYAML's safe loader gives it.
//!
//! saphyr-parser reads YAML 1.2 and returns scalars as text. The meaning of a plain scalar follows
//! YAML 1.1 here, because the programs that such files are written for read that: `no` is false, `1.10` a number,
//! `2024-01-31` a date. `1e-4` is a text in YAML 1.1; [`Node::json`] takes it for the number that is meant.
//!
//! Reference: PyYAML 6.0.3 `resolver.py`, `constructor.py` (`SafeConstructor`).

mod keys;
mod mend;
mod scalar;

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};
use serde_json::Value as Json;

pub(crate) use keys::{Keys, Value};
use scalar::plain;

/// The deepest nesting of lists and mappings: a card needs five levels.
const MAX_DEPTH: usize = 64;

/// The most values in a card, counting every use of an alias. Cards with benchmark tables have tens
/// of thousands.
const MAX_NODES: usize = 1 << 20;

/// A YAML value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Node {
    Null,
    Text(String),
    /// A value that isn't text in YAML, and its spelling in the file.
    Typed(Typed, String),
    List(Vec<Node>),
    Map(Map),
}

/// The type and value of a plain scalar that isn't text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Typed {
    Bool(bool),
    /// An integer, clamped to 64 bits.
    Int(i64),
    Float(f64),
    /// A date, or bytes.
    Other,
}

/// A key with its value, and the line in which the key stands; 0 if it is in no file.
#[derive(Debug, Clone, PartialEq)]
struct Entry {
    name: String,
    node: Node,
    line: usize,
}

/// A mapping.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Map {
    entries: Vec<Entry>,
    /// The line of the first key that isn't text, and its spelling. Such keys are left out.
    other_key: Option<(usize, String)>,
}

impl Map {
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        self.entries.iter().find(|entry| entry.name == key).map(|entry| &entry.node)
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries, of which the last of several equal keys has the value, at the position of the first.
    fn of(all: impl IntoIterator<Item = Entry>) -> Self {
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut entries: Vec<Entry> = Vec::new();
        for entry in all {
            match places.get(&entry.name).and_then(|&place| entries.get_mut(place)) {
                Some(earlier) => *earlier = entry,
                None => {
                    places.insert(entry.name.clone(), entries.len());
                    entries.push(entry);
                }
            }
        }
        Self { entries, other_key: None }
    }
}

impl FromIterator<(String, Node)> for Map {
    fn from_iter<I: IntoIterator<Item = (String, Node)>>(pairs: I) -> Self {
        Self::of(pairs.into_iter().map(|(name, node)| Entry { name, node, line: 0 }))
    }
}

impl Node {
    /// Whether Python treats it as false.
    pub(crate) fn is_falsy(&self) -> bool {
        match self {
            Node::Null => true,
            Node::Text(text) => text.is_empty(),
            Node::Typed(Typed::Bool(value), _) => !value,
            Node::Typed(Typed::Int(value), _) => *value == 0,
            Node::Typed(Typed::Float(value), _) => *value == 0.0,
            Node::Typed(Typed::Other, _) => false,
            Node::List(items) => items.is_empty(),
            Node::Map(map) => map.is_empty(),
        }
    }

    /// The same value in JSON, with dates and bytes as they are spelled. A text like `2e-4`, which is a number in YAML
    /// 1.2 but not in 1.1, becomes a number. `None` for NaN and infinities.
    #[cfg(feature = "train")]
    pub(crate) fn json(&self) -> Option<Json> {
        let number = |value: f64| serde_json::Number::from_f64(value).map(Json::Number);
        match self {
            Node::Null => Some(Json::Null),
            Node::Text(text) => match has_exponent(text).then(|| text.parse().ok()).flatten() {
                Some(value) => number(value),
                None => Some(Json::String(text.clone())),
            },
            Node::Typed(Typed::Bool(value), _) => Some(Json::Bool(*value)),
            Node::Typed(Typed::Int(value), _) => Some(Json::from(*value)),
            Node::Typed(Typed::Float(value), _) => number(*value),
            Node::Typed(Typed::Other, text) => Some(Json::String(text.clone())),
            Node::List(items) => items.iter().map(Node::json).collect::<Option<Vec<_>>>().map(Json::Array),
            Node::Map(map) => {
                let entries = map.entries.iter().map(|entry| Some((entry.name.clone(), entry.node.json()?)));
                entries.collect::<Option<_>>().map(Json::Object)
            }
        }
    }

    fn count(&self) -> usize {
        1 + match self {
            Node::List(items) => items.iter().map(Node::count).sum(),
            Node::Map(map) => map.entries.iter().map(|entry| entry.node.count()).sum(),
            _ => 0,
        }
    }
}

/// Whether a text is a number with an exponent: `1e-4`, `-2.5E3`.
#[cfg(feature = "train")]
fn has_exponent(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = |text: &str| text.strip_prefix(['-', '+']).unwrap_or(text).to_owned();
    let Some((mantissa, exponent)) = text.split_once(['e', 'E']) else { return false };
    let mantissa = unsigned(mantissa);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((&mantissa, "0"));
    (digits(whole) || whole.is_empty() && digits(fraction))
        && (fraction.is_empty() || digits(fraction))
        && digits(&unsigned(exponent))
}

/// Converts a value of a JSON file, which has fewer types.
impl From<&Json> for Node {
    fn from(json: &Json) -> Self {
        match json {
            Json::Null => Node::Null,
            Json::Bool(value) => Node::Typed(Typed::Bool(*value), json.to_string()),
            Json::Number(number) => {
                let typed = match (number.as_i64(), number.as_f64()) {
                    (Some(value), _) => Typed::Int(value),
                    (None, value) => Typed::Float(value.unwrap_or(f64::NAN)),
                };
                Node::Typed(typed, json.to_string())
            }
            Json::String(text) => Node::Text(text.clone()),
            Json::Array(items) => Node::List(items.iter().map(Node::from).collect()),
            Json::Object(map) => Node::Map(map.iter().map(|(name, value)| (name.clone(), value.into())).collect()),
        }
    }
}

/// Parses the only document in `text`, which begins in line `first_line` of its file. The error says in a few words
/// what is wrong.
pub(crate) fn parse(text: &str, first_line: usize) -> Result<Node, String> {
    let straight = Loader::load(text, first_line);
    straight.or_else(|first| match mend::mended(text) {
        Some(again) => Loader::load(&again, first_line).map_err(|_| first),
        None => Err(first),
    })
}

struct Loader<'a> {
    events: Parser<'a, saphyr_parser::StrInput<'a>>,
    anchors: HashMap<usize, Node>,
    nodes_left: usize,
    first_line: usize,
    /// The line in which the last event begins.
    line: usize,
}

impl<'a> Loader<'a> {
    fn load(text: &'a str, first_line: usize) -> Result<Node, String> {
        let events = Parser::new_from_str(text);
        let mut loader =
            Loader { events, anchors: HashMap::new(), nodes_left: MAX_NODES, first_line, line: first_line };
        let mut document = Node::Null;
        let mut documents = 0;
        loop {
            match loader.next()? {
                Event::StreamEnd => return Ok(document),
                Event::DocumentStart(_) => {
                    documents += 1;
                    if documents > 1 {
                        return Err("more than one document".to_owned());
                    }
                    let event = loader.next()?;
                    document = loader.node(event, 0)?;
                }
                _ => {}
            }
        }
    }

    fn next(&mut self) -> Result<Event<'a>, String> {
        let in_file = |line: usize| line.saturating_add(self.first_line).saturating_sub(1);
        match self.events.next_event() {
            Some(Ok((event, span))) => {
                self.line = in_file(span.start.line());
                Ok(event)
            }
            Some(Err(e)) => Err(format!("{} in line {}", e.info(), in_file(e.marker().line()))),
            None => Ok(Event::StreamEnd),
        }
    }

    fn spend(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes_left = self.nodes_left.checked_sub(nodes).ok_or("more than a million values")?;
        Ok(())
    }

    fn node(&mut self, event: Event<'a>, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("more than {MAX_DEPTH} values within each other"));
        }
        self.spend(1)?;
        let (anchor, node) = match event {
            Event::Alias(id) => {
                let node = self.anchors.get(&id).cloned().ok_or("an alias within its own value")?;
                self.spend(node.count())?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => (anchor, scalar(&text, style, tag.as_deref())?),
            Event::SequenceStart(anchor, tag) => {
                collection(tag.as_deref(), "seq")?;
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        Event::SequenceEnd => break (anchor, Node::List(items)),
                        event => items.push(self.node(event, depth + 1)?),
                    }
                }
            }
            Event::MappingStart(anchor, tag) => {
                collection(tag.as_deref(), "map")?;
                (anchor, Node::Map(self.map(depth)?))
            }
            _ => return Err("no value where one belongs".to_owned()),
        };
        if anchor != 0 {
            self.spend(node.count())?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn map(&mut self, depth: usize) -> Result<Map, String> {
        let mut own = Vec::new();
        let mut merged = Vec::new();
        let mut other_key = None;
        loop {
            let event = self.next()?;
            let line = self.line;
            let merges = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text.as_ref() == "<<");
            let key = match event {
                Event::MappingEnd => break,
                // PyYAML treats it as a key like any other.
                Event::Scalar(text, ScalarStyle::Plain, _, None) if text.as_ref() == "=" => {
                    self.spend(1)?;
                    Node::Text("=".to_owned())
                }
                event => self.node(event, depth + 1)?,
            };
            let event = self.next()?;
            let value = self.node(event, depth + 1)?;
            match (merges, key, value) {
                (true, _, Node::Map(map)) => merged.extend(map.entries),
                (true, _, Node::List(maps)) => {
                    // The first mapping of the list takes precedence, so it is applied last.
                    for map in maps.into_iter().rev() {
                        let Node::Map(map) = map else { return Err("a merge of what is no mapping".to_owned()) };
                        merged.extend(map.entries);
                    }
                }
                (true, ..) => return Err("a merge of what is no mapping".to_owned()),
                (false, Node::Text(name), node) => own.push(Entry { name, node, line }),
                (false, Node::List(_) | Node::Map(_), _) => return Err("a list or mapping as a key".to_owned()),
                (false, Node::Typed(_, spelling), _) => other_key = other_key.or(Some((line, spelling))),
                (false, Node::Null, _) => other_key = other_key.or_else(|| Some((line, "null".to_owned()))),
            }
        }
        Ok(Map { other_key, ..Map::of(merged.into_iter().chain(own)) })
    }
}

/// Refuses tags of collections, except the plain ones.
fn collection(tag: Option<&Tag>, name: &str) -> Result<(), String> {
    match tag {
        Some(tag) if !(tag.is_yaml_core_schema() && tag.suffix == name || is_plain(tag)) => unknown(tag),
        _ => Ok(()),
    }
}

fn unknown<T>(tag: &Tag) -> Result<T, String> {
    Err(format!("the tag {}{}, which says nothing here", tag.handle, tag.suffix))
}

/// Whether the tag is `!`, which specifies no type.
fn is_plain(tag: &Tag) -> bool {
    tag.handle.is_empty() && tag.suffix == "!"
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Node, String> {
    let as_text = || Node::Text(text.to_owned());
    match tag.filter(|tag| !is_plain(tag)) {
        None if style != ScalarStyle::Plain => Ok(as_text()),
        None => plain(text),
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(as_text()),
        Some(tag) if tag.is_yaml_core_schema() => match (tag.suffix.as_str(), plain(text).unwrap_or(Node::Null)) {
            ("null", _) => Ok(Node::Null),
            ("bool", node @ Node::Typed(Typed::Bool(_), _))
            | ("int", node @ Node::Typed(Typed::Int(_), _))
            | ("float", node @ Node::Typed(Typed::Float(_), _))
            | ("timestamp", node @ Node::Typed(Typed::Other, _)) => Ok(node),
            ("binary", _) => Ok(Node::Typed(Typed::Other, text.to_owned())),
            ("float", node) if !matches!(node, Node::Null) => match text.replace('_', "").parse() {
                Ok(value) => Ok(Node::Typed(Typed::Float(value), text.to_owned())),
                Err(_) => unknown(tag),
            },
            _ => unknown(tag),
        },
        Some(tag) => unknown(tag),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(typed: Typed, text: &str) -> Node {
        Node::Typed(typed, text.to_owned())
    }

    fn map(text: &str) -> Map {
        match parse(text, 2) {
            Ok(Node::Map(map)) => map,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn quotes_and_tags_make_text() {
        let map = map("a: 'no'\nb: !!str 1.0\nc: \"\\u00e9\"\nd: >-\n  x\n  y\ne: !!float 3\n");
        assert_eq!(map.get("a"), Some(&Node::Text("no".to_owned())));
        assert_eq!(map.get("b"), Some(&Node::Text("1.0".to_owned())));
        assert_eq!(map.get("c"), Some(&Node::Text("é".to_owned())));
        assert_eq!(map.get("d"), Some(&Node::Text("x y".to_owned())));
        assert_eq!(map.get("e"), Some(&typed(Typed::Float(3.0), "3")));
    }

    #[test]
    fn aliases_merges_and_repeated_keys_resolve() {
        let map = map("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\nb2:\n  <<: [{x: 4}, *a]\nc: one\nc: two\n7: x\n");
        let get = |key: &str, inner: &str| match map.get(key) {
            Some(Node::Map(map)) => map.get(inner).cloned(),
            _ => None,
        };
        assert_eq!(get("b", "x"), Some(typed(Typed::Int(1), "1")));
        assert_eq!(get("b", "y"), Some(typed(Typed::Int(3), "3")));
        assert_eq!(get("b2", "x"), Some(typed(Typed::Int(4), "4")));
        assert_eq!(map.get("c"), Some(&Node::Text("two".to_owned())));
        let keys: Vec<&str> = map.entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(keys, ["a", "b", "b2", "c"]);
    }

    #[test]
    fn what_is_no_yaml_says_where() {
        let cases = [
            ("a: b: c\n", "mapping values are not allowed in this context in line 2"),
            ("a: 1\n---\nb: 2\n", "more than one document"),
            ("a: &a [*a]\n", "an alias within its own value"),
            ("a: *a\n", "unknown anchor"),
            ("a: !x y\n", "the tag !x"),
            ("[a]: b\n", "a list or mapping as a key"),
            ("a: =\n", "the value \"=\""),
            ("<<: x\n", "a merge of what is no mapping"),
        ];
        for (text, expected) in cases {
            let message = parse(text, 2).unwrap_err();
            assert!(message.contains(expected), "{text:?}: {message}");
        }
    }

    #[cfg(feature = "train")]
    #[test]
    fn json_has_the_numbers_that_are_meant() {
        let json = |text: &str| parse(text, 1).unwrap().json();
        let values = "a: 2e-4\nb: 1.0e-4\nc: 3\nd: [no, x]\ne: 2024-01-31\nf: +.5E1\ng: e5\nh: 1e\n";
        let expected = serde_json::json!({"a": 2e-4, "b": 1e-4, "c": 3, "d": [false, "x"], "e": "2024-01-31", "f": 5.0,
            "g": "e5", "h": "1e"});
        assert_eq!(json(values), Some(expected));
        assert_eq!(json("a: .nan\n"), None);
    }

    #[test]
    fn deep_and_multiplying_documents_are_refused() {
        for (depth, expected) in [(100, "more than 64 values within each other"), (10_000, "recursion limit exceeded")]
        {
            let message = parse(&format!("a: {}{}\n", "[".repeat(depth), "]".repeat(depth)), 2).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        let mut text = "a0: &a0 [x, x]\n".to_owned();
        for i in 1..40 {
            text.push_str(&format!("a{i}: &a{i} [*a{}, *a{}]\n", i - 1, i - 1));
        }
        let message = parse(&text, 2).unwrap_err();
        assert!(message.contains("more than a million values"), "{message}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-\\[\\]{}:,?!&*#|>@`'\"%=~<a0. \\n\\t\\\\é]{0,60}") {
            let _ = parse(&text, 2);
        }
    }
}
