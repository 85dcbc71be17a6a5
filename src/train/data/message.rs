//! The messages of a chat, as chat templates read them.

use serde_json::{Map, Value, json};

use super::fields::{parsed, text_of};
use super::place::Place;
use super::read::unique;
use crate::error::{Finding, Result};
use crate::train::DataSettings;

/// Names of roles, each with the name that templates know.
const ROLES: [(&str, &str); 19] = [
    ("system", "system"),
    ("developer", "developer"),
    ("user", "user"),
    ("human", "user"),
    ("prompter", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("bing", "assistant"),
    ("chatgpt", "assistant"),
    ("bard", "assistant"),
    ("model", "assistant"),
    ("bot", "assistant"),
    ("tool", "tool"),
    ("function", "tool"),
    ("observation", "tool"),
    ("function_response", "tool"),
    ("tool_response", "tool"),
    ("ipython", "ipython"),
    (FUNCTION_CALL, "assistant"),
];

/// The role of a turn whose value is the JSON of a tool call.
const FUNCTION_CALL: &str = "function_call";

/// Fields that say whether an answer is learned.
const WEIGHTS: [&str; 3] = ["weight", "train", "training"];

/// A message.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Message {
    /// What the template reads.
    pub(super) value: Value,
    /// Whether the model writes it.
    pub(super) is_answer: bool,
    /// Whether it is learned.
    pub(super) is_learned: bool,
}

impl Message {
    /// The text of its content.
    pub(super) fn content(&self) -> &str {
        self.value.get("content").and_then(Value::as_str).unwrap_or_default()
    }

    /// Whether it is an instruction to the model.
    pub(super) fn is_system(&self) -> bool {
        matches!(self.value.get("role").and_then(Value::as_str), Some("system" | "developer"))
    }
}

/// Reads messages.
pub(super) struct Messages<'a> {
    pub(super) settings: &'a DataSettings,
    pub(super) place: &'a Place,
}

impl Messages<'_> {
    /// The messages of `list`, of which the answers among the first `prompt` aren't learned.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for what is no message, an unknown role, and a content that is missing or no text; for an
    /// empty answer that would be learned.
    pub(super) fn read(&self, list: Vec<Value>, prompt: usize) -> Result<Vec<Message>> {
        if list.is_empty() {
            return Err(self.place.finding().expected("at least one message").found("none").format());
        }
        list.into_iter().enumerate().map(|(i, value)| self.message(i, value, i >= prompt)).collect()
    }

    fn message(&self, i: usize, value: Value, may_be_learned: bool) -> Result<Message> {
        let finding = |field: &str| self.place.field(&format!("message {}{field}", i + 1));
        let Value::Object(fields) = value else {
            return Err(finding("").expected("an object with role and content").found(value).format());
        };
        let mut message = Map::new();
        let mut weight = None;
        for (name, value) in fields {
            // Null is as missing, as in transformers.
            if value.is_null() {
                continue;
            }
            if WEIGHTS.contains(&name.as_str()) {
                let is_learned = learned(&value).ok_or_else(|| {
                    finding(&format!(": {name}")).expected("0, 1, true or false").found(&value).format()
                })?;
                weight = Some(weight.unwrap_or(true) && is_learned);
                continue;
            }
            let name = match name.as_str() {
                "from" => "role",
                "value" => "content",
                other => other,
            };
            if message.contains_key(name) {
                return Err(finding("").expected("one role and one content").found(format!("{name} twice")).format());
            }
            message.insert(name.to_owned(), value);
        }
        let given = match message.get("role") {
            Some(Value::String(role)) => role.clone(),
            other => {
                let found = other.map_or("none".to_owned(), Value::to_string);
                return Err(finding(": role").expected("a role").found(found).format());
            }
        };
        let role = self.role(&given).ok_or_else(|| {
            let known: Vec<&str> = ROLES.iter().map(|(name, _)| *name).collect();
            finding(": role")
                .expected(format_args!("one of {}", known.join(", ")))
                .found(format!("{given:?}"))
                .hint("data.roles says what others are")
                .format()
        })?;
        if given == FUNCTION_CALL {
            let content = message.shift_remove("content").unwrap_or_default();
            let calls = match parsed(content) {
                Value::Array(calls) => calls,
                call @ Value::Object(_) => vec![call],
                other => return Err(finding(": value").expected("the JSON of a tool call").found(other).format()),
            };
            message.insert("tool_calls".to_owned(), calls.into());
        }
        message.insert("role".to_owned(), role.into());
        if let Some(calls) = message.get_mut("tool_calls") {
            *calls = tool_calls(calls.take(), || finding(": tool_calls"))?;
        }
        let is_answer = role == "assistant";
        let is_learned = is_answer && may_be_learned && weight.unwrap_or(true);
        self.content(&mut message, is_answer, is_learned, finding)?;
        Ok(Message { value: message.into(), is_answer, is_learned })
    }

    fn role(&self, given: &str) -> Option<&str> {
        let given = self.settings.roles.get(given).map_or(given, String::as_str);
        ROLES.iter().find(|(name, _)| *name == given).map(|(_, role)| *role)
    }

    /// Checks the content, and makes it one text.
    fn content(
        &self,
        message: &mut Map<String, Value>,
        is_answer: bool,
        is_learned: bool,
        finding: impl Fn(&str) -> Finding,
    ) -> Result<()> {
        let has = |name: &str| message.get(name).is_some_and(|value| !crate::json::is_off(value));
        let says_more = is_answer && ["tool_calls", "reasoning_content", "thinking", "reasoning"].into_iter().any(has);
        let Some(content) = message.get_mut("content") else {
            return match says_more {
                true => Ok(()),
                false => Err(finding(": content").expected("a text").found("null or none").format()),
            };
        };
        let text = match &*content {
            Value::Array(parts) => joined(parts, || finding(": content"))?,
            other => text_of(other, self.settings, || finding(": content"))?,
        };
        if is_learned && !says_more && text.trim().is_empty() && !self.settings.allow_empty {
            let found = if text.is_empty() { "an empty one" } else { "white space alone" };
            let finding = finding(": content").expected("an answer").found(found);
            return Err(finding.hint("data.allow_empty learns empty answers").format());
        }
        *content = text.into();
        Ok(())
    }
}

/// Whether a weight has the answer learned: 0 and 1, as numbers or not. `None` for other values.
fn learned(weight: &Value) -> Option<bool> {
    match weight {
        Value::Bool(weight) => Some(*weight),
        Value::Number(weight) if weight.as_f64() == Some(0.0) => Some(false),
        Value::Number(weight) if weight.as_f64() == Some(1.0) => Some(true),
        _ => None,
    }
}

/// The texts of a content in parts, one after the other, each on a line.
fn joined(parts: &[Value], finding: impl Fn() -> Finding) -> Result<String> {
    let text = |part: &Value| match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (Some("text") | None, Some(Value::String(text))) => Ok(text.clone()),
        _ => Err(finding().expected("parts of text").found(part).hint("images and sound can't be trained on").format()),
    };
    Ok(parts.iter().map(text).collect::<Result<Vec<String>>>()?.join("\n"))
}

/// Tool calls in the form that templates read: `{"type": "function", "function": {"name", "arguments"}}`. Arguments that
/// are the JSON text of an object become that object.
fn tool_calls(calls: Value, finding: impl Fn() -> Finding) -> Result<Value> {
    let Value::Array(calls) = parsed(calls) else {
        return Err(finding().expected("a list of tool calls").found("another value").format());
    };
    let call = |call: Value| {
        let Value::Object(mut call) = call else {
            return Err(finding().expected("a tool call: an object").found(call).format());
        };
        if !call.contains_key("function") && call.contains_key("name") {
            let function =
                ["name", "arguments"].into_iter().filter_map(|name| Some((name.to_owned(), call.shift_remove(name)?)));
            let function: Map<String, Value> = function.collect();
            call.insert("type".to_owned(), json!("function"));
            call.insert("function".to_owned(), function.into());
        }
        let function = call.get_mut("function").and_then(Value::as_object_mut);
        let Some(function) = function.filter(|function| function.get("name").is_some_and(Value::is_string)) else {
            return Err(finding().expected("a tool call with a function and its name").found("none").format());
        };
        if let Some(arguments) = function.get_mut("arguments")
            && let Some(object) = arguments.as_str().and_then(unique).filter(Value::is_object)
        {
            *arguments = object;
        }
        Ok(Value::Object(call))
    };
    Ok(Value::Array(calls.into_iter().map(call).collect::<Result<Vec<Value>>>()?))
}
