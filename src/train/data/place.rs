//! Where rows stand, and rows that can't be used: they are named together.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{self, Error, Finding, Result};

/// The number of rows that a message names.
const NAMED: usize = 5;
/// The number of characters that a message has for what is wrong with the rows, and for hints.
const CHARS: usize = 600;
const HINT_CHARS: usize = 380;

/// The place of a row: its file, and its number there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// What the number counts.
    pub unit: Unit,
    /// The number, from 1.
    pub number: usize,
}

/// What rows of a file are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Lines of text.
    Line,
    /// Rows.
    Row,
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Line => "line",
            Self::Row => "row",
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} {}", self.file.display(), self.unit, self.number)
    }
}

impl Place {
    /// A finding about the row.
    pub(super) fn finding(&self) -> Finding {
        Finding::new(&self.file, format!("{} {}", self.unit, self.number))
    }

    /// A finding about a field of the row.
    pub(super) fn field(&self, name: &str) -> Finding {
        Finding::new(&self.file, format!("{} {}: {name}", self.unit, self.number))
    }
}

/// `3 rows (rows.jsonl: lines 1, 2, 5)`: how many there are, and the first of them.
pub(super) fn counted(places: &[Place]) -> String {
    let rows = error::counted(places.len(), "row");
    match places.first() {
        None => rows,
        Some(first) => format!("{rows} ({}: {})", first.file.display(), numbers(places)),
    }
}

/// `lines 5, 6, 7, 8, 9 and 12 more`, of the places in the first one's file; `and 3 in other files`.
pub(super) fn numbers(places: &[Place]) -> String {
    let Some(first) = places.first() else { return String::new() };
    let mut numbers: Vec<usize> = places.iter().filter(|place| place.file == first.file).map(|p| p.number).collect();
    let elsewhere = places.len() - numbers.len();
    numbers.dedup();
    let plural = if numbers.len() == 1 { "" } else { "s" };
    let shown: Vec<String> = numbers.iter().take(NAMED).map(usize::to_string).collect();
    let mut text = format!("{}{plural} {}", first.unit, shown.join(", "));
    if numbers.len() > NAMED {
        text += &format!(" and {} more", numbers.len() - NAMED);
    }
    if elsewhere > 0 {
        text += &format!(", and {elsewhere} in other files");
    }
    text
}

/// Rows that can't be used.
#[derive(Default)]
pub(super) struct Refusals(Vec<(Place, Error)>);

impl Refusals {
    /// Keeps a value, or notes why the row can't be used.
    pub(super) fn keep<T>(&mut self, place: &Place, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.0.push((place.clone(), error))).ok()
    }

    /// One error about all of them.
    pub(super) fn finish(mut self) -> Result<()> {
        if self.0.len() < 2 {
            return self.0.pop().map_or(Ok(()), |(_, error)| Err(error));
        }
        // In the order of the file: some rows are refused when they are read, others when they become tokens.
        let order: Vec<Arc<Path>> = self.0.iter().map(|(place, _)| place.file.clone()).collect();
        let rank = |file: &Arc<Path>| order.iter().position(|other| other == file);
        self.0.sort_by_key(|(place, _)| (rank(&place.file), place.number));
        let (places, mut errors): (Vec<Place>, Vec<Error>) = self.0.into_iter().unzip();
        let Some(first) = places.first() else { return Ok(()) };
        // Several rows mostly have the same fault: what to try is said once.
        let hint = together(errors.iter_mut().map(Error::take_hint));
        let file = format!("{}: ", first.file.display());
        let texts = errors.iter().take(NAMED).map(|error| {
            let text = error.to_string();
            text.strip_prefix(&file).unwrap_or(&text).to_owned()
        });
        let found = within(texts.collect(), CHARS).join("; ");
        Err(Finding::new(&first.file, numbers(&places)).found(found).hint(hint).format())
    }
}

/// Different hints, each once and whole, as many as there is room for.
fn together(hints: impl Iterator<Item = String>) -> String {
    let mut all: Vec<String> = Vec::new();
    let mut left = HINT_CHARS;
    for hint in hints {
        let length = hint.chars().count() + 2;
        if !hint.is_empty() && !all.contains(&hint) && length <= left {
            left -= length;
            all.push(hint);
        }
    }
    all.join("; ")
}

/// The texts, shortened so that all of them have at most `most` characters: what short ones leave goes to longer ones.
fn within(texts: Vec<String>, most: usize) -> Vec<String> {
    let mut lengths: Vec<usize> = texts.iter().map(|text| text.chars().count() + 2).collect();
    lengths.sort_unstable();
    let (mut left, mut share) = (most, most);
    for (i, length) in lengths.iter().enumerate() {
        share = left / (lengths.len() - i);
        left = left.saturating_sub((*length).min(share));
    }
    texts.iter().map(|text| shortened(text, share.saturating_sub(2))).collect()
}

/// The first `most` characters.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most.saturating_sub(3)) {
        Some((end, _)) if text.chars().count() > most => format!("{}...", text.get(..end).unwrap_or_default()),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(file: &str, number: usize) -> Place {
        Place { file: Path::new(file).into(), unit: Unit::Line, number }
    }

    fn refused(places: &[Place]) -> String {
        let mut refusals = Refusals::default();
        for place in places {
            let error = place.field("output").expected("a text").found(2).format();
            assert!(refusals.keep::<()>(place, Err(error)).is_none());
        }
        refusals.finish().unwrap_err().to_string()
    }

    #[test]
    fn all_rows_are_named_in_one_line() {
        assert!(Refusals::default().finish().is_ok());
        assert_eq!(refused(&[place("a", 3)]), "a: line 3: output: expected a text, found 2");
        assert_eq!(
            refused(&[place("a", 7), place("a", 3)]),
            "a: lines 3, 7: line 3: output: expected a text, found 2; line 7: output: expected a text, found 2"
        );
        let many: Vec<Place> = (1..=9).map(|n| place("a", n)).chain([place("b", 1)]).collect();
        let text = refused(&many);
        assert!(text.starts_with("a: lines 1, 2, 3, 4, 5 and 4 more, and 1 in other files: line 1: output"), "{text}");
        assert_eq!(counted(&many[..2]), "2 rows (a: lines 1, 2)");
    }

    #[test]
    fn what_to_try_is_said_once_and_whole() {
        let mut refusals = Refusals::default();
        for number in 1..=4 {
            let place = place("a", number);
            let found = "x".repeat(if number == 4 { 900 } else { 70 });
            let error =
                place.field("output").expected("a text").found(found).hint("data.json_values writes values as JSON");
            refusals.keep::<()>(&place, Err(error.format()));
        }
        let text = refusals.finish().unwrap_err().to_string();
        assert_eq!(text.matches("data.json_values").count(), 1, "{text}");
        assert!(text.ends_with("; data.json_values writes values as JSON"), "{text}");
        // Short texts stay whole, and the long one gets what they leave.
        assert_eq!(text.matches(&"x".repeat(70)).count(), 6, "{text}");
        assert_eq!(text.matches("...").count(), 1, "{text}");
    }
}
