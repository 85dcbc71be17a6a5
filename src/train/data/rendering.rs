//! A chat as its template writes it: in the form that the template takes, with the ranges of its answers.

use std::ops::Range;

use serde_json::{Map, Value};

use super::message::{Form, Message};
use super::place::Place;
use super::row::ChatRow;
use crate::chat::{Chat, ChatTemplate, Rendered};
use crate::error::{Error, Finding, Result};
use crate::train::DataSettings;

/// A chat and its template.
pub(super) struct Rendering<'a> {
    template: &'a ChatTemplate,
    place: &'a Place,
    chat: &'a ChatRow,
    messages: Vec<Value>,
    options: Map<String, Value>,
}

impl<'a> Rendering<'a> {
    /// The first `count` messages of a chat, in the form that the template takes, and their text. Contents that are lists of
    /// parts stay lists, as in transformers, unless the template fails on them or writes them as Python would; arguments of
    /// tool calls are objects, unless the template fails on them and takes the text that was given.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a chat that the template takes in no form.
    pub(super) fn open(
        settings: &DataSettings,
        template: &'a ChatTemplate,
        place: &'a Place,
        chat: &'a ChatRow,
        count: usize,
    ) -> Result<(Self, Rendered)> {
        let mut options = settings.template_options.clone();
        options.extend(chat.options.clone());
        let mut rendering = Self { template, place, chat, messages: Vec::new(), options };
        let has = |has: fn(&Message) -> bool| chat.messages.iter().take(count).any(has);
        let has_lists = has(|message| message.parts.is_some());
        let mut refused: Option<Error> = None;
        for argument_texts in [false, true].into_iter().take(if has(|message| message.calls.is_some()) { 2 } else { 1 })
        {
            let joined = rendering.in_form(Form { lists: false, argument_texts }, count);
            if has_lists {
                let listed = rendering.in_form(Form { lists: true, argument_texts }, count);
                if let Ok(whole) = listed
                    && takes_lists(&chat.messages[..count], &whole, joined.as_ref().ok())
                {
                    return Ok((rendering, whole));
                }
                rendering.set_form(Form { lists: false, argument_texts });
            }
            match joined {
                Ok(whole) => return Ok((rendering, whole)),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(refused
            .unwrap_or_else(|| place.finding().expected("a chat that the template takes").found("none").mismatch()))
    }

    fn set_form(&mut self, form: Form) {
        self.messages = self.chat.messages.iter().map(|message| message.in_form(form)).collect();
    }

    /// The text of the first `count` messages in `form`, which the messages then have.
    fn in_form(&mut self, form: Form, count: usize) -> Result<Rendered> {
        self.set_form(form);
        self.text(count, false)
    }

    /// The first `count` messages.
    fn text(&self, count: usize, add_generation_prompt: bool) -> Result<Rendered> {
        self.text_of(&self.messages[..count], add_generation_prompt)
    }

    fn text_of(&self, messages: &[Value], add_generation_prompt: bool) -> Result<Rendered> {
        let chat = Chat {
            messages,
            tools: self.chat.tools.as_ref(),
            documents: self.chat.documents.as_ref(),
            add_generation_prompt,
            options: &self.options,
        };
        self.template.render(&chat, || self.place.finding())
    }

    /// The ranges of the answers `wanted` in `whole`, the text of the first `count` messages.
    pub(super) fn answers(&self, whole: &Rendered, count: usize, wanted: &[usize]) -> Result<Vec<Range<usize>>> {
        if !self.template.marks_answers(self.chat.tools.as_ref()) {
            return wanted.iter().map(|answer| self.by_prefixes(whole, count, *answer)).collect();
        }
        let answers: Vec<usize> = (0..count).filter(|i| self.chat.messages[*i].is_answer).collect();
        if answers == wanted {
            return Ok(whole.answers.clone());
        }
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        if answers.len() != whole.answers.len() {
            let finding =
                self.place.finding().expected("a {% generation %} block for each answer, to choose answers by");
            let found = format!("{} blocks for {} answers", whole.answers.len(), answers.len());
            return Err(finding.found(found).hint("data.split_turns makes a row of each answer").mismatch());
        }
        let of = |answer: &usize| answers.iter().position(|i| i == answer);
        Ok(wanted.iter().filter_map(of).map(|place| whole.answers[place].clone()).collect())
    }

    /// The range of an answer: what the text up to and with it has, and the text before it, with the beginning of an
    /// answer, doesn't have. Both must be beginnings of the whole text.
    fn by_prefixes(&self, whole: &Rendered, count: usize, answer: usize) -> Result<Range<usize>> {
        let start = self.start(whole, answer)?;
        if answer + 1 == count {
            return Ok(start..whole.text.len());
        }
        let with = self.text(answer + 1, false)?.text;
        if !whole.text.starts_with(&with) || with.len() < start {
            return Err(self.no_prefix(answer, "the text up to this answer to begin the text of the chat"));
        }
        Ok(start..with.len())
    }

    /// Where an answer begins.
    fn start(&self, whole: &Rendered, answer: usize) -> Result<usize> {
        let before = self.text(answer, true)?.text;
        match whole.text.starts_with(&before) {
            true => Ok(before.len()),
            false => Err(self
                .no_prefix(answer, "the text before this answer, with a generation prompt, to begin that of the chat")),
        }
    }

    fn no_prefix(&self, answer: usize, expected: &str) -> crate::Error {
        let finding: Finding = self.place.field(&format!("message {}", answer + 1)).expected(expected);
        let path = self.template.path().display();
        // A row that ends with the answer has the same fault where the generation prompt isn't in the chat's text.
        let texts = (self.text(answer + 1, false), self.text(answer, true));
        let splits = matches!(texts, (Ok(with), Ok(before)) if with.text.starts_with(&before.text));
        let hint = match splits {
            true => {
                "data.split_turns makes a row of each answer; or give data.chat_template a template with {% generation %}"
            }
            false => "give data.chat_template a template with {% generation %}",
        };
        finding
            .found(format_args!("a template that writes it otherwise, and has no {{% generation %}} ({path})"))
            .hint(hint)
            .mismatch()
    }

    /// Everything behind the beginning of the answer: of a prompt and its completion, of the completion.
    pub(super) fn completion(&self, whole: &Rendered, wanted: &[usize]) -> Result<Vec<Range<usize>>> {
        let Some(last) = wanted.last() else { return Ok(Vec::new()) };
        let first = if self.chat.prompt > 0 { self.chat.prompt } else { *last };
        let behind = self.start(whole, first)?..whole.text.len();
        Ok(vec![behind])
    }

    /// Refuses an answer of which the template prints nothing. `range` is its place in `whole`, the text of the first
    /// `count` messages, where that is known; a text inside one of `special_texts` says nothing.
    pub(super) fn check_printed(
        &self,
        whole: &Rendered,
        count: usize,
        answer: usize,
        range: Option<&Range<usize>>,
        special_texts: &[String],
    ) -> Result<()> {
        let message = &self.chat.messages[answer];
        let text = range.map_or(whole.text.as_str(), |range| &whole.text[range.clone()]);
        let is_there = |part: &str| {
            let part = part.trim();
            !part.is_empty() && text.contains(part) && !special_texts.iter().any(|special| special.contains(part))
        };
        // Tools have the names of functions too, so that they say something in the answer's range alone.
        let further = range.map(|_| message.calls_and_reasoning()).unwrap_or_default();
        if message.texts().into_iter().chain(further).any(is_there) {
            return Ok(());
        }
        let mut messages = self.messages[..count].to_vec();
        messages[answer] = message.emptied();
        if !self.text_of(&messages, false).is_ok_and(|emptied| emptied.text == whole.text) {
            return Ok(());
        }
        let (with, without) = (&self.messages[..=answer], &messages[..=answer]);
        let texts = (self.text_of(with, false), self.text_of(without, false));
        let hint = match matches!(texts, (Ok(with), Ok(without)) if with.text != without.text) {
            true => {
                "data.split_turns gives it to the template as the last message; data.allow_empty learns empty answers"
            }
            false => "data.chat_template names another template; data.allow_empty learns empty answers",
        };
        Err(self
            .place
            .field(&format!("message {}", answer + 1))
            .expected("an answer of which the template prints something")
            .found(format_args!(
                "an empty one: the template prints none of its {} ({})",
                message.said().join(" and "),
                self.template.path().display()
            ))
            .hint(hint)
            .format())
    }
}

/// Whether a template that made `listed` of contents in lists takes them: it doesn't write them as Python or JSON would, and
/// has no fewer of their texts than `joined`, which has them as texts.
fn takes_lists(messages: &[Message], listed: &Rendered, joined: Option<&Rendered>) -> bool {
    let with_parts = || messages.iter().filter_map(|message| Some((message, message.parts.as_ref()?)));
    let is_written = with_parts().any(|(_, parts)| {
        let name = parts.first().and_then(Value::as_object).and_then(|part| part.keys().next());
        name.is_some_and(|name| {
            listed.text.contains(&format!("[{{'{name}'")) || listed.text.contains(&format!("[{{\"{name}\""))
        })
    });
    let kept = |text: &str| with_parts().flat_map(|(m, _)| m.texts()).filter(|part| text.contains(part.trim())).count();
    !is_written && joined.is_none_or(|joined| kept(&listed.text) >= kept(&joined.text))
}
