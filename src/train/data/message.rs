//! The messages of a chat, as chat templates read them.

use serde_json::{Map, Value, json};

use super::fields::{parsed, text_of};
use super::place::Place;
use super::read::unique;
use crate::chat::REASONING;
use crate::error::{Finding, Result};
use crate::train::DataSettings;

/// The role that chats know by the name `given`.
pub(in crate::train) fn known_role(given: &str) -> Option<&'static str> {
    ROLES.iter().find(|(name, _)| *name == given).map(|(_, role)| *role)
}

/// All names of roles, for a message.
pub(in crate::train) fn role_names() -> String {
    ROLES.map(|(name, _)| name).join(", ")
}

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
    /// What the template reads: the content as one text, arguments of tool calls as objects.
    pub(super) value: Value,
    /// The content, where it was given as a list of parts.
    pub(super) parts: Option<Vec<Value>>,
    /// The tool calls with their arguments as the texts that were given, where there are such.
    pub(super) calls: Option<Value>,
    /// Whether the model writes it.
    pub(super) is_answer: bool,
    /// Whether it is learned.
    pub(super) is_learned: bool,
}

/// How a template gets messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Whether contents that were given as lists of parts are lists.
    pub(super) lists: bool,
    /// Whether arguments of tool calls that were given as texts are texts.
    pub(super) argument_texts: bool,
}

/// Fields that this crate reads, or that only refer to other messages.
const OWN: [&str; 5] = ["role", "content", "name", "tool_call_id", "id"];

impl Message {
    /// The message in a form.
    pub(super) fn in_form(&self, form: Form) -> Value {
        let mut value = self.value.clone();
        let parts = self.parts.as_ref().filter(|_| form.lists).map(|parts| Value::Array(parts.clone()));
        let calls = self.calls.clone().filter(|_| form.argument_texts);
        for (name, given) in [("content", parts), ("tool_calls", calls)] {
            if let (Some(given), Some(place)) = (given, value.get_mut(name)) {
                *place = given;
            }
        }
        value
    }

    /// The message without anything that it says.
    pub(super) fn emptied(&self) -> Value {
        let kept =
            ["role", "name"].into_iter().filter_map(|name| Some((name.to_owned(), self.value.get(name)?.clone())));
        Value::Object(kept.chain([("content".to_owned(), "".into())]).collect())
    }

    /// The texts of its content.
    pub(super) fn texts(&self) -> Vec<&str> {
        match &self.parts {
            Some(parts) => parts.iter().filter_map(|part| part.get("text")?.as_str()).collect(),
            None => vec![self.content()],
        }
    }

    /// The names of the functions that it calls, and its reasoning.
    pub(super) fn calls_and_reasoning(&self) -> Vec<&str> {
        let calls = self.value.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        let names = calls.filter_map(|call| call.get("function")?.get("name")?.as_str());
        names.chain(REASONING.iter().filter_map(|name| self.value.get(*name)?.as_str())).collect()
    }

    /// What it says, in words.
    pub(super) fn said(&self) -> Vec<&'static str> {
        let has = |name: &str| self.value.get(name).is_some_and(|value| !crate::json::is_off(value));
        let said = [
            ("content", !self.content().trim().is_empty()),
            ("tool calls", has("tool_calls")),
            ("reasoning", REASONING.into_iter().any(has)),
        ];
        said.into_iter().filter(|(_, is_said)| *is_said).map(|(name, _)| name).collect()
    }

    /// The names of its fields, without those that have an effect whatever the template is.
    pub(super) fn fields(&self) -> impl Iterator<Item = &str> {
        let names = self.value.as_object().into_iter().flat_map(|fields| fields.keys());
        names.map(String::as_str).filter(|name| !OWN.contains(name))
    }

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
        let name = self.settings.roles.get(&given).unwrap_or(&given);
        let role = known_role(name).ok_or_else(|| {
            finding(": role")
                .expected(format_args!("one of {}", role_names()))
                .found(format!("{given:?}"))
                .hint("data.roles says what others are")
                .format()
        })?;
        if name == FUNCTION_CALL {
            let content = message.shift_remove("content").unwrap_or_default();
            let calls = match parsed(content) {
                Value::Array(calls) => calls,
                call @ Value::Object(_) => vec![call],
                other => return Err(finding(": value").expected("the JSON of a tool call").found(other).format()),
            };
            message.insert("tool_calls".to_owned(), calls.into());
        }
        message.insert("role".to_owned(), role.into());
        let mut as_given = None;
        if let Some(calls) = message.get_mut("tool_calls") {
            let given = tool_calls(calls.take(), || finding(": tool_calls"))?;
            *calls = with_objects(&given);
            as_given = Some(given).filter(|given| given != calls);
        }
        let is_answer = role == "assistant";
        let is_learned = is_answer && may_be_learned && weight.unwrap_or(true);
        let parts = message.get("content").and_then(Value::as_array).cloned();
        self.content(&mut message, is_answer, is_learned, finding)?;
        Ok(Message { value: message.into(), parts, calls: as_given, is_answer, is_learned })
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
        let says_more = is_answer && ["tool_calls"].into_iter().chain(REASONING).any(has);
        let has_old_call = has("function_call");
        let Some(content) = message.get_mut("content") else {
            return match says_more {
                true => Ok(()),
                false => {
                    let finding = finding(": content").expected("a text").found("null or none");
                    Err(match has_old_call {
                        true => finding
                            .hint("function_call isn't read: tool_calls has calls in the form that templates read"),
                        false => finding,
                    }
                    .format())
                }
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

/// Tool calls in the form that templates read: `{"type": "function", "function": {"name", "arguments"}}`.
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
        let function = call.get("function").and_then(Value::as_object);
        if !function.is_some_and(|function| function.get("name").is_some_and(Value::is_string)) {
            return Err(finding().expected("a tool call with a function and its name").found("none").format());
        }
        Ok(Value::Object(call))
    };
    Ok(Value::Array(calls.into_iter().map(call).collect::<Result<Vec<Value>>>()?))
}

/// Tool calls whose arguments that are the JSON text of an object became that object.
fn with_objects(calls: &Value) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        if let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments"))
            && let Some(object) = arguments.as_str().and_then(unique).filter(Value::is_object)
        {
            *arguments = object;
        }
    }
    calls
}
