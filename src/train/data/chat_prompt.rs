//! The text before an answer, as a chat template writes it for an instruction and a prompt. A bank that was trained on chats
//! keeps it as its prompt template, so that it is used on texts of the form that it has learned.

use serde_json::json;

use super::row::{ChatRow, Row};
use crate::chat::{Chat, ChatTemplate};
use crate::error::Finding;
use crate::train::DataSettings;

const INSTRUCTION: &str = "{instruction}";
const PROMPT: &str = "{prompt}";

/// Where a chat has its instruction and its prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Form {
    /// The system turn: the instruction, another text, or none.
    system: Option<String>,
    /// The user's turn.
    user: String,
}

impl Form {
    fn of(chat: &ChatRow) -> Option<Self> {
        let first = chat.messages.first()?;
        let system = Some(first).filter(|message| message.is_system()).map(|message| message.content());
        let instruction = chat.instruction.as_deref().or(system).filter(|text| !text.is_empty());
        let user = chat.messages.iter().find(|message| message.value["role"] == "user")?.content();
        let is_instruction = |text: &str| instruction == Some(text);
        let is_in_user = !system.is_some_and(is_instruction) && instruction.is_some_and(|text| user.starts_with(text));
        let user = if is_in_user { format!("{INSTRUCTION}\n{PROMPT}") } else { PROMPT.to_owned() };
        let system = system.map(|text| if is_instruction(text) { INSTRUCTION } else { text }.to_owned());
        Some(Self { system, user })
    }

    /// The text before an answer; `None` where the template refuses such a chat or leaves out a part of it.
    fn text(&self, settings: &DataSettings, template: &ChatTemplate) -> Option<String> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<_> = system.chain([json!({"role": "user", "content": self.user})]).collect();
        let options = &settings.template_options;
        let chat = Chat { messages: &messages, tools: None, documents: None, add_generation_prompt: true, options };
        let text = template.render(&chat, || Finding::new("", "")).ok()?.text;
        let has = |field: &str| text.contains(field);
        let needs_instruction = self.system.as_deref() == Some(INSTRUCTION) || self.user.starts_with(INSTRUCTION);
        (has(PROMPT) && (has(INSTRUCTION) || !needs_instruction)).then_some(text)
    }
}

/// The forms of the chats among rows, each with the number of its rows.
#[derive(Debug, Default)]
pub(super) struct Forms {
    forms: Vec<(Form, usize)>,
    has_plain_rows: bool,
}

impl Forms {
    pub(super) fn add(&mut self, row: &Row) {
        let form = match row {
            Row::Chat(chat) => Form::of(chat),
            Row::Plain(_) => {
                self.has_plain_rows = true;
                None
            }
            Row::Text { .. } => None,
        };
        let Some(form) = form else { return };
        match self.forms.iter_mut().find(|(other, _)| *other == form) {
            Some((_, count)) => *count += 1,
            None => self.forms.push((form, 1)),
        }
    }

    /// The prompt template of the form that most chats have. `None` without chats, and with rows that have a prompt template
    /// already.
    pub(super) fn prompt_template(&self, settings: &DataSettings, template: Option<&ChatTemplate>) -> Option<String> {
        if self.has_plain_rows {
            return None;
        }
        // Of equals the first.
        let (form, _) = self.forms.iter().rev().max_by_key(|(_, count)| *count)?;
        form.text(settings, template?)
    }
}
