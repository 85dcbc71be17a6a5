//! Fields of messages that a chat template doesn't name, so that they have no effect.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::place::Place;
use crate::chat::{ChatTemplate, REASONING};
use crate::error::counted;

/// The fields of a file's messages, each with the number of messages that have it.
struct OfFile {
    file: Arc<Path>,
    fields: Vec<(String, usize)>,
}

/// Fields by file.
#[derive(Default)]
pub(super) struct Unread {
    files: Vec<OfFile>,
    /// Whether the templates without and with tools name a field.
    known: [HashMap<String, bool>; 2],
}

impl Unread {
    /// Whether the template of chats with or without `tools` names the field.
    pub(super) fn is_named(&mut self, template: &ChatTemplate, tools: Option<&Value>, name: &str) -> bool {
        let known = &mut self.known[usize::from(tools.is_some())];
        if let Some(is_named) = known.get(name) {
            return *is_named;
        }
        let others = if REASONING.contains(&name) { &REASONING[..2] } else { &[] };
        let is_named = template.names(tools, name) || others.iter().any(|name| template.names(tools, name));
        known.insert(name.to_owned(), is_named);
        is_named
    }

    /// Counts a message with the field.
    pub(super) fn add(&mut self, place: &Place, name: &str) {
        let file = self.files.iter().position(|of| of.file == place.file).unwrap_or_else(|| {
            self.files.push(OfFile { file: place.file.clone(), fields: Vec::new() });
            self.files.len() - 1
        });
        let fields = &mut self.files[file].fields;
        match fields.iter_mut().find(|(other, _)| other == name) {
            Some((_, count)) => *count += 1,
            None => fields.push((name.to_owned(), 1)),
        }
    }

    /// A line for each file.
    pub(super) fn in_words(&self) -> Vec<String> {
        let line = |OfFile { file, fields }: &OfFile| {
            let fields: Vec<String> =
                fields.iter().map(|(name, count)| format!("{name} ({})", counted(*count, "message"))).collect();
            let (file, fields) = (file.display(), fields.join(", "));
            format!("{file}: fields of messages that the chat template doesn't name have no effect: {fields}")
        };
        self.files.iter().map(line).collect()
    }
}
