//! Chat templates, rendered as transformers renders them: which text a chat becomes, and which parts of it the model
//! would have written.
//!
//! Reference: transformers `utils/chat_template_utils.py`.

mod casing;
mod cycles;
mod environment;
mod escapes;
mod files;
mod filters;
mod generation;
mod json;
mod methods;
mod namespaces;
mod numbers;
mod python;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::Environment;
use serde_json::{Map, Value};

use crate::error::{Finding, Result};
use crate::tokenizer::DEFAULT_TEMPLATE;
use files::Templates;

pub(crate) use files::bos_text;
pub(crate) use json::python_json;

/// The template for chats with tools, if a model has one of its own for them.
const TOOL_USE: &str = "tool_use";

/// The names of the model's reasoning in messages. Templates get it by the first two, whatever its name is.
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A model's chat template.
pub struct ChatTemplate {
    path: PathBuf,
    templates: BTreeMap<&'static str, Compiled>,
    special_tokens: Map<String, Value>,
}

/// A template that is ready to render.
struct Compiled {
    environment: Environment<'static>,
    text: String,
    marks_answers: bool,
}

/// What a template renders.
#[derive(Debug, Clone, Copy)]
pub struct Chat<'a> {
    /// The messages, each an object with `role`, `content` and whatever else the template reads.
    pub messages: &'a [Value],
    /// Descriptions of the tools that the model may call.
    pub tools: Option<&'a Value>,
    /// Documents to answer from.
    pub documents: Option<&'a Value>,
    /// Whether the beginning of an answer follows the last message.
    pub add_generation_prompt: bool,
    /// Further variables of the template.
    pub options: &'a Map<String, Value>,
}

/// A rendered chat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// The ranges of bytes of `text` that the template marks with `{% generation %}`, in order.
    pub answers: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Opens the template of the model folder or GGUF file at `model`, or the one that `choice` names: a file, or one of
    /// several templates of the model. `None` where the model has none.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for a template or a tokenizer_config.json that can't be read, and for a template that
    /// isn't Jinja; [`crate::Error::Mismatch`] for a choice that is neither a file nor a template's name.
    pub fn open(model: &Path, choice: Option<&Path>) -> Result<Option<Self>> {
        let Templates { path, texts, special_tokens } = Templates::find(model, choice)?;
        if texts.is_empty() {
            return Ok(None);
        }
        let mut templates = BTreeMap::new();
        for name in [DEFAULT_TEMPLATE, TOOL_USE] {
            if let Some(text) = texts.get(name) {
                templates.insert(name, Compiled::new(&path, text)?);
            }
        }
        if templates.is_empty() {
            return Err(Finding::new(&path, "chat_template")
                .expected("a template called \"default\"")
                .found(texts.keys().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", "))
                .hint("data.chat_template names one of them")
                .mismatch());
        }
        Ok(Some(Self { path, templates, special_tokens }))
    }

    /// The file that the template is in.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the template for chats with or without `tools` marks what the model writes, with `{% generation %}`.
    pub fn marks_answers(&self, tools: Option<&Value>) -> bool {
        self.choose(tools).is_some_and(|template| template.marks_answers)
    }

    /// Whether `name` is a word of the template for chats with or without `tools`.
    pub fn names(&self, tools: Option<&Value>, name: &str) -> bool {
        let is_part = |c: char| c.is_alphanumeric() || c == '_';
        self.choose(tools).is_some_and(|template| {
            template.text.match_indices(name).any(|(start, _)| {
                let (before, behind) = (&template.text[..start], &template.text[start + name.len()..]);
                !before.ends_with(is_part) && !behind.starts_with(is_part)
            })
        })
    }

    fn choose(&self, tools: Option<&Value>) -> Option<&Compiled> {
        let own = tools.and_then(|_| self.templates.get(TOOL_USE));
        own.or_else(|| self.templates.get(DEFAULT_TEMPLATE))
    }

    /// Renders `chat`. An error completes `finding`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where the template refuses the chat or fails.
    pub fn render(&self, chat: &Chat<'_>, finding: impl Fn() -> Finding) -> Result<Rendered> {
        let refused = |found: String| {
            let expected = format!("a chat that the template of {} takes", self.path.display());
            finding().expected(expected).found(found).mismatch()
        };
        let Some(compiled) = self.choose(chat.tools) else {
            return Err(refused("one without tools, for which the model has no template".to_owned()));
        };
        if chat.messages.iter().any(generation::has_marks) || chat.tools.is_some_and(generation::has_marks) {
            return Err(refused("one with U+FDD0 or U+FDD1, which no text may have".to_owned()));
        }
        let aliased: Vec<Value> = chat.messages.iter().map(with_reasoning_names).collect();
        let mut variables = self.special_tokens.clone();
        variables.extend(chat.options.iter().map(|(name, value)| (name.clone(), value.clone())));
        variables.insert("messages".to_owned(), Value::Array(aliased));
        variables.insert("tools".to_owned(), chat.tools.cloned().unwrap_or_default());
        variables.insert("documents".to_owned(), chat.documents.cloned().unwrap_or_default());
        variables.insert("add_generation_prompt".to_owned(), Value::Bool(chat.add_generation_prompt));
        let rendered = environment::render(&compiled.environment, &variables).map_err(refused)?;
        Ok(generation::split(&rendered))
    }
}

impl Compiled {
    fn new(path: &Path, text: &str) -> Result<Self> {
        let (text, marks_answers) = generation::rewrite(text);
        let environment = environment::compile(text.clone()).map_err(|found| {
            Finding::new(path, "chat_template").expected("a template in the language of Jinja").found(found).format()
        })?;
        Ok(Self { environment, text, marks_answers })
    }
}

/// A message in which the model's reasoning has every name that templates read it by, as in transformers.
fn with_reasoning_names(message: &Value) -> Value {
    let Some(fields) = message.as_object() else { return message.clone() };
    let Some(reasoning) = REASONING.iter().find_map(|name| fields.get(*name).filter(|value| !value.is_null())) else {
        return message.clone();
    };
    let mut all = Map::new();
    all.insert("thinking".to_owned(), reasoning.clone());
    all.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
    all.insert("reasoning_content".to_owned(), reasoning.clone());
    Value::Object(all)
}

#[cfg(test)]
mod tests;
