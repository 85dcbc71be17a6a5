//! What a row is: its form, told by its fields, and the texts in them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::fields::RowFields;
use super::instructions::NamedInstructions;
use super::message::{Message, Messages};
use super::place::Place;
use super::read::Columns;
use crate::error::Result;
use crate::train::{DataSettings, RowFormat};

/// An instruction, a prompt and its completion, which a bank's prompt template combines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingRow {
    /// The instruction; may be empty.
    #[serde(default)]
    pub instruction: String,
    /// The prompt, to which the instruction applies; may be empty.
    #[serde(default)]
    pub prompt: String,
    /// The answer to be learned.
    pub completion: String,
}

/// A row of any form.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Row {
    Plain(TrainingRow),
    Chat(ChatRow),
    Text { text: String, instruction: String },
}

/// A chat.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ChatRow {
    pub(super) messages: Vec<Message>,
    /// The number of leading messages that are a prompt, whose answers aren't learned.
    pub(super) prompt: usize,
    pub(super) tools: Option<Value>,
    pub(super) documents: Option<Value>,
    /// Variables of the template.
    pub(super) options: Map<String, Value>,
    /// What a bank routes by, where that isn't the system turn.
    pub(super) instruction: Option<String>,
}

/// Names of the answer.
const ANSWERS: [&str; 3] = ["completion", "output", "response"];
/// Names of the prompt.
const PROMPTS: [&str; 2] = ["prompt", "input"];
/// Names of the turns in ShareGPT's form.
const TURNS: [&str; 2] = ["conversations", "conversation"];
/// Fields that only rows have which were made for chat templates.
const OF_CHATS: [&str; 5] = ["input", "output", "response", "system", "history"];

/// Tells rows apart.
pub(super) struct Reader<'a> {
    pub(super) settings: &'a DataSettings,
    pub(super) instructions: Option<NamedInstructions>,
    /// Whether there is a chat template.
    pub(super) has_template: bool,
}

/// Whether a row's columns are those of a chat, or of a row that becomes one where there is a template.
pub(super) fn may_be_chat(settings: &DataSettings, columns: &Columns) -> bool {
    use RowFormat::{Alpaca, Messages, Plain, PromptCompletion, Sharegpt, Text};
    match settings.format {
        Alpaca | Messages | Sharegpt | PromptCompletion => return true,
        Plain | Text => return false,
        RowFormat::Auto => {}
    }
    let has = |name: &str| columns.contains_key(settings.fields.get(name).map_or(name, String::as_str));
    let prompt = columns.get(settings.fields.get("prompt").map_or("prompt", String::as_str));
    OF_CHATS.iter().chain(&TURNS).any(|name| has(name)) || has("messages") || prompt.is_some_and(is_list)
}

/// Whether a value is a list, or a text that looks like one.
fn is_list(value: &Value) -> bool {
    match value {
        Value::Array(_) => true,
        Value::String(text) => text.trim_start().starts_with("[{"),
        _ => false,
    }
}

impl Reader<'_> {
    /// The row of `columns`.
    ///
    /// # Errors
    /// [`crate::Error::Format`], naming row and field: for a form that isn't known, a field that the form doesn't have,
    /// a value that is no text, an unknown role, an empty answer.
    pub(super) fn row(&self, place: &Place, columns: Columns) -> Result<Row> {
        let mut fields = RowFields::new(self.settings, place, columns)?;
        let route = self.instruction(&mut fields)?;
        let row = match self.form(&fields)? {
            RowFormat::Messages => self.messages(&mut fields, route)?,
            RowFormat::Sharegpt => self.turns(&mut fields, route)?,
            RowFormat::PromptCompletion => self.prompt_and_completion(&mut fields, route)?,
            RowFormat::Text => {
                let text = fields.need_text(&["text"])?;
                if text.is_empty() {
                    return Err(fields.finding("text").expected("a text").found("an empty one").format());
                }
                Row::Text { text, instruction: self.named(&mut fields, route)?.unwrap_or_default() }
            }
            RowFormat::Alpaca => self.alpaca(&mut fields, route)?,
            RowFormat::Plain | RowFormat::Auto => {
                let instruction = self.named(&mut fields, route)?.unwrap_or_default();
                let prompt = fields.text(&PROMPTS)?.unwrap_or_default();
                let completion = self.answer(&mut fields)?;
                Row::Plain(TrainingRow { instruction, prompt, completion })
            }
        };
        fields.finish()?;
        Ok(row)
    }

    fn form(&self, fields: &RowFields<'_>) -> Result<RowFormat> {
        if self.settings.format != RowFormat::Auto {
            return Ok(self.settings.format);
        }
        let any = |names: &[&str]| names.iter().any(|name| fields.has(name));
        if fields.has("messages") {
            return Ok(RowFormat::Messages);
        }
        if any(&TURNS) {
            return Ok(RowFormat::Sharegpt);
        }
        if any(&ANSWERS) {
            if fields.get("prompt").is_some_and(is_list) {
                return Ok(RowFormat::PromptCompletion);
            }
            let is_chat = self.has_template && any(&OF_CHATS);
            return Ok(if is_chat { RowFormat::Alpaca } else { RowFormat::Plain });
        }
        if fields.has("text") {
            return Ok(RowFormat::Text);
        }
        Err(fields
            .place()
            .finding()
            .expected("fields of a known form: completion, output or response; messages; conversations; or text")
            .found(fields.names())
            .hint("data.fields says which columns are which")
            .format())
    }

    /// The instruction in the column that the settings name.
    fn instruction(&self, fields: &mut RowFields<'_>) -> Result<Option<String>> {
        let Some(name) = &self.settings.instruction_field else { return Ok(None) };
        fields.text(&[name])
    }

    /// The instruction, by its name where instructions have names.
    fn named(&self, fields: &mut RowFields<'_>, route: Option<String>) -> Result<Option<String>> {
        let own = match self.settings.instruction_field.as_deref() {
            Some("instruction") => None,
            _ => fields.text(&["instruction"])?,
        };
        let Some(instruction) = route.or(own).filter(|text| !text.is_empty()) else { return Ok(None) };
        let Some(named) = &self.instructions else { return Ok(Some(instruction)) };
        let name = self.settings.instruction_field.as_deref().unwrap_or("instruction");
        named.get(&instruction, || fields.finding(name)).map(|text| Some(text.to_owned()))
    }

    /// The answer, which must not be empty.
    fn answer(&self, fields: &mut RowFields<'_>) -> Result<String> {
        let answer = fields.need_text(&ANSWERS)?;
        if answer.trim().is_empty() && !self.settings.allow_empty {
            let name = ANSWERS.into_iter().find(|name| fields.has(name)).unwrap_or("completion");
            let found = if answer.is_empty() { "an empty one" } else { "white space alone" };
            let finding = fields.finding(name).expected("a completion").found(found);
            return Err(finding.hint("data.allow_empty learns empty answers").format());
        }
        Ok(answer)
    }

    /// Instruction, input and output as the last turns of a chat.
    fn alpaca(&self, fields: &mut RowFields<'_>, route: Option<String>) -> Result<Row> {
        let task = fields.text(&["instruction"])?.unwrap_or_default();
        let input = fields.text(&PROMPTS)?.unwrap_or_default();
        let answer = self.answer(fields)?;
        let mut list = Vec::new();
        let mut say = |role: &str, content: &str| list.push(json!({"role": role, "content": content}));
        if let Some(system) = fields.text(&["system"])? {
            say("system", &system);
        }
        for (question, answer) in fields.pairs("history")? {
            say("user", &question);
            say("assistant", &answer);
        }
        let parts: Vec<&str> = [task.as_str(), &input].into_iter().filter(|part| !part.is_empty()).collect();
        say("user", &parts.join("\n"));
        say("assistant", &answer);
        let instruction = match (route, &self.instructions) {
            (Some(route), Some(named)) => {
                let name = self.settings.instruction_field.as_deref().unwrap_or_default();
                Some(named.get(&route, || fields.finding(name))?.to_owned())
            }
            (Some(route), None) => Some(route),
            (None, _) => Some(task).filter(|task| !task.is_empty()),
        };
        self.chat(fields, list, 0, instruction)
    }

    fn messages(&self, fields: &mut RowFields<'_>, route: Option<String>) -> Result<Row> {
        let list = fields.need_list(&["messages"])?;
        let list = with_system(fields, list)?;
        let instruction = self.named(fields, route)?;
        self.chat(fields, list, 0, instruction)
    }

    fn turns(&self, fields: &mut RowFields<'_>, route: Option<String>) -> Result<Row> {
        let list = fields.need_list(&TURNS)?;
        let list = with_system(fields, list)?;
        let instruction = self.named(fields, route)?;
        self.chat(fields, list, 0, instruction)
    }

    fn prompt_and_completion(&self, fields: &mut RowFields<'_>, route: Option<String>) -> Result<Row> {
        let prompt = fields.need_list(&["prompt"])?;
        let prompt = with_system(fields, prompt)?;
        let completion = fields.need_list(&["completion"])?;
        let instruction = self.named(fields, route)?;
        let length = prompt.len();
        self.chat(fields, [prompt, completion].concat(), length, instruction)
    }

    fn chat(
        &self,
        fields: &mut RowFields<'_>,
        list: Vec<Value>,
        prompt: usize,
        instruction: Option<String>,
    ) -> Result<Row> {
        let tools = fields.list(&["tools"])?.filter(|tools| !tools.is_empty()).map(Value::Array);
        let documents = fields.list(&["documents"])?.map(Value::Array);
        let options = fields.object("chat_template_kwargs")?.unwrap_or_default();
        let messages = Messages { settings: self.settings, place: fields.place() }.read(list, prompt)?;
        Ok(Row::Chat(ChatRow { messages, prompt, tools, documents, options, instruction }))
    }
}

/// The messages with the text of a field `system` as the first of them.
fn with_system(fields: &mut RowFields<'_>, mut list: Vec<Value>) -> Result<Vec<Value>> {
    let Some(system) = fields.text(&["system"])? else { return Ok(list) };
    let role = |message: &Value| message.get("role").or_else(|| message.get("from")).cloned();
    if list.first().and_then(role).is_some_and(|role| role == "system") {
        return Err(fields.finding("system").expected("one system turn").found("a first message besides").format());
    }
    list.insert(0, json!({"role": "system", "content": system}));
    Ok(list)
}
