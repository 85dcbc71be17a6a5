//! Rows as sequences: the text that a row becomes, its tokens, and which of them carry loss.

use std::ops::Range;

use super::Loader;
use super::place::Place;
use super::rendering::Rendering;
use super::row::{ChatRow, Row, TrainingRow};
use super::unread::Unread;
use crate::bank::fill_template;
use crate::chat::ChatTemplate;
use crate::error::Result;
use crate::model::Sequence;
use crate::train::{Loss, Truncate};

/// A row as the model sees it.
pub(super) struct Encoded {
    pub(super) place: Place,
    /// The text of all tokens, without those that the tokenizer or this crate adds.
    pub(super) text: String,
    /// The text of the instruction that a bank routes by; empty without one.
    pub(super) instruction: String,
    /// The prompt, of a row that has one by itself.
    pub(super) prompt: Option<String>,
    pub(super) sequence: Sequence,
}

/// A text, the instruction in it, and what becomes of it.
struct Made {
    text: String,
    instruction: String,
    sequence: Sequence,
}

/// Rows that a user should know of.
#[derive(Default)]
pub(super) struct Noted {
    /// Rows without a token that carries loss, which aren't trained on.
    pub(super) without_loss: Vec<Place>,
    /// Rows that were cut.
    pub(super) cut: Vec<Place>,
    /// Rows that were too long and are left out.
    pub(super) too_long: Vec<Place>,
    /// Rows with the texts of control tokens in their messages.
    pub(super) control_tokens: Vec<Place>,
    /// Rows of whose answers the template leaves a part out.
    pub(super) shortened: Vec<Place>,
    /// Fields of messages that the template doesn't name.
    pub(super) unread: Unread,
}

/// Makes sequences of rows.
pub(super) struct RowEncoder<'a> {
    pub(super) loader: &'a Loader<'a>,
    pub(super) chat_template: Option<&'a ChatTemplate>,
    /// The token that ends a completion.
    pub(super) eos: Option<u32>,
    /// The longest row, in tokens.
    pub(super) limit: usize,
    /// The texts of special tokens.
    pub(super) special_texts: Vec<String>,
}

impl RowEncoder<'_> {
    /// The sequences of a row: one, or none that can be learned from, or one for each answer.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a chat that the template refuses, one whose answers can't be told from the rest, and
    /// a row that is too long; those of the tokenizer.
    pub(super) fn encode(&self, place: &Place, row: &Row, noted: &mut Noted) -> Result<Vec<Encoded>> {
        let prompt = match row {
            Row::Plain(row) => Some(row.prompt.clone()),
            Row::Text { .. } | Row::Chat(_) => None,
        };
        let made = match row {
            Row::Plain(row) => vec![self.plain(place, row)?],
            Row::Text { text, instruction } => vec![self.text(place, text, instruction)?],
            Row::Chat(chat) => self.chat(place, chat, noted)?,
        };
        let mut kept = Vec::with_capacity(made.len());
        for Made { text, instruction, sequence } in made {
            let Some(sequence) = self.fit(place, sequence, noted)? else { continue };
            match sequence.target_count() {
                0 => noted.without_loss.push(place.clone()),
                _ => kept.push(Encoded { place: place.clone(), text, instruction, prompt: prompt.clone(), sequence }),
            }
        }
        if kept.is_empty() && noted.without_loss.last() != Some(place) && noted.too_long.last() != Some(place) {
            // A chat without an answer to split off.
            noted.without_loss.push(place.clone());
        }
        Ok(kept)
    }

    fn plain(&self, place: &Place, row: &TrainingRow) -> Result<Made> {
        let prompt = self.loader.instructions.routed(
            self.loader.encoder,
            self.loader.prompt_template,
            &row.instruction,
            &row.prompt,
        )?;
        let mut text = fill_template(self.loader.prompt_template, &row.instruction, &row.prompt);
        text += &row.completion;
        let Sequence { mut ids, routed, instruction, .. } = prompt;
        ids.extend(self.loader.encoder.encode(&row.completion, false)?);
        ids.extend(self.eos);
        let sequence = match self.loader.settings.loss {
            Some(Loss::All) => Sequence { targets: all_but_first(ids.len()), ids, routed, instruction },
            Some(Loss::Assistant | Loss::Last | Loss::Completion) | None => {
                Sequence::completed(ids, routed, instruction)
            }
        };
        Ok(Made { text, instruction: row.instruction.clone(), sequence: self.checked(place, sequence)? })
    }

    fn text(&self, place: &Place, text: &str, instruction: &str) -> Result<Made> {
        if let Some(loss @ (Loss::Assistant | Loss::Last | Loss::Completion)) = self.loader.settings.loss {
            let loss = serde_json::to_value(loss).unwrap_or_default();
            let finding = place.finding().expected(format_args!("answers, for data.loss = {loss}"));
            return Err(finding.found("plain text").hint("data.loss = \"all\" learns all of a text").mismatch());
        }
        let mut ids = self.loader.encoder.encode_whole(text)?;
        if self.loader.settings.end_of_text && ids.last().copied() != self.eos {
            ids.extend(self.eos);
        }
        let tokens = self.loader.instructions.tokens(self.loader.encoder, instruction)?;
        let routed = 1.min(ids.len());
        let sequence = Sequence { targets: all_but_first(ids.len()), ids, routed, instruction: tokens };
        let sequence = self.checked(place, sequence)?;
        Ok(Made { text: text.to_owned(), instruction: instruction.to_owned(), sequence })
    }

    fn checked(&self, place: &Place, sequence: Sequence) -> Result<Sequence> {
        match sequence.ids.is_empty() {
            true => Err(place.finding().expected("at least one token").found("none").mismatch()),
            false => Ok(sequence),
        }
    }

    /// A chat, or with `split_turns` one for each answer that is learned.
    fn chat(&self, place: &Place, chat: &ChatRow, noted: &mut Noted) -> Result<Vec<Made>> {
        let texts = chat.messages.iter().map(|message| message.content());
        if texts.clone().any(|text| self.special_texts.iter().any(|special| text.contains(special.as_str()))) {
            noted.control_tokens.push(place.clone());
        }
        self.check_fields(place, chat, noted)?;
        let answers: Vec<usize> = (0..chat.messages.len()).filter(|i| chat.messages[*i].is_learned).collect();
        let last = answers.last().copied();
        let wanted = match self.loader.settings.loss {
            Some(Loss::Last | Loss::Completion) => answers.into_iter().filter(|i| Some(*i) == last).collect(),
            _ => answers,
        };
        if !self.loader.settings.split_turns {
            return Ok(vec![self.rendered(place, chat, chat.messages.len(), &wanted, noted)?]);
        }
        wanted.iter().map(|answer| self.rendered(place, chat, answer + 1, &[*answer], noted)).collect()
    }

    /// Notes the fields of messages that the template doesn't name, and refuses those that say what is learned or called.
    fn check_fields(&self, place: &Place, chat: &ChatRow, noted: &mut Noted) -> Result<()> {
        let Some(template) = self.chat_template else { return Ok(()) };
        for (i, message) in chat.messages.iter().enumerate() {
            for name in message.fields() {
                if noted.unread.is_named(template, chat.tools.as_ref(), name) {
                    continue;
                }
                let hint = match name {
                    "train_detail" | "training_detail" => "train says whether a whole answer is learned",
                    "function_call" => "tool_calls has calls in the form that templates read",
                    _ => {
                        noted.unread.add(place, name);
                        continue;
                    }
                };
                let finding = place.field(&format!("message {}: {name}", i + 1));
                let found = format!("one that nothing reads ({})", template.path().display());
                return Err(finding.expected("a field that the template reads").found(found).hint(hint).format());
            }
        }
        Ok(())
    }

    /// The first `count` messages of a chat, with loss on the answers `wanted`.
    fn rendered(
        &self,
        place: &Place,
        chat: &ChatRow,
        count: usize,
        wanted: &[usize],
        noted: &mut Noted,
    ) -> Result<Made> {
        let Some(template) = self.chat_template else {
            return Err(place.finding().expected("a chat template").found("none").mismatch());
        };
        let (rendering, whole) = Rendering::open(self.loader.settings, template, place, chat, count)?;
        let learned: Vec<Range<usize>> = match self.loader.settings.loss {
            Some(Loss::All) => std::iter::once(0..whole.text.len()).collect(),
            Some(Loss::Completion) => rendering.completion(&whole, wanted)?,
            Some(Loss::Assistant | Loss::Last) | None => rendering.answers(&whole, count, wanted)?,
        };
        if !self.loader.settings.allow_empty {
            let is_each = !matches!(self.loader.settings.loss, Some(Loss::All | Loss::Completion));
            for (place, answer) in wanted.iter().enumerate() {
                let range = learned.get(place).filter(|_| is_each && learned.len() == wanted.len());
                rendering.check_printed(&whole, count, *answer, range, &self.special_texts)?;
            }
        }
        let is_whole =
            |answer: &usize| chat.messages[*answer].texts().iter().all(|text| whole.text.contains(text.trim()));
        if !wanted.iter().all(is_whole) {
            noted.shortened.push(place.clone());
        }
        let (ids, ranges) = self.loader.encoder.encode_with_ranges(&whole.text)?;
        let targets = targets(&ranges, &learned);
        let first = targets.iter().position(|is_target| *is_target).unwrap_or(ids.len());
        let system = chat.messages.first().filter(|message| message.is_system()).map(|message| message.content());
        let instruction = chat.instruction.as_deref().or(system).unwrap_or_default();
        let tokens = self.loader.instructions.tokens(self.loader.encoder, instruction)?;
        let sequence = self.checked(place, Sequence { ids, routed: first, targets, instruction: tokens })?;
        Ok(Made { text: whole.text, instruction: instruction.to_owned(), sequence })
    }

    /// The sequence, no longer than allowed; `None` for one that is left out.
    fn fit(&self, place: &Place, sequence: Sequence, noted: &mut Noted) -> Result<Option<Sequence>> {
        let length = sequence.ids.len();
        let Some(surplus) = length.checked_sub(self.limit).filter(|surplus| *surplus > 0) else {
            return Ok(Some(sequence));
        };
        let Sequence { mut ids, routed, mut targets, instruction } = sequence;
        let routed = match self.loader.settings.truncate {
            Truncate::Error => {
                return Err(place
                    .finding()
                    .expected(format_args!(
                        "at most {} tokens, by data.max_length and the model's positions",
                        self.limit
                    ))
                    .found(length)
                    .hint("data.max_length can be raised as far as the model allows; data.truncate cuts or drops rows")
                    .mismatch());
            }
            Truncate::Drop => {
                noted.too_long.push(place.clone());
                return Ok(None);
            }
            Truncate::Left => {
                ids.drain(..surplus);
                targets.drain(..surplus.min(targets.len()));
                routed.saturating_sub(surplus)
            }
            Truncate::Right => {
                ids.truncate(self.limit);
                targets.truncate(self.limit);
                routed.min(self.limit)
            }
        };
        noted.cut.push(place.clone());
        if let Some(first) = targets.first_mut() {
            *first = false;
        }
        Ok(Some(Sequence { ids, routed: routed.max(1), targets, instruction }))
    }
}

fn all_but_first(length: usize) -> Vec<bool> {
    (0..length).map(|i| i > 0).collect()
}

/// For each token whether it stands for a part of a learned range of bytes. A token across the beginning of a range
/// belongs to it. The first token has nothing before it to be predicted from.
fn targets(tokens: &[Range<usize>], learned: &[Range<usize>]) -> Vec<bool> {
    let is_inside = |token: &Range<usize>| {
        token.start < token.end && learned.iter().any(|range| token.start < range.end && range.start < token.end)
    };
    tokens.iter().enumerate().map(|(i, token)| i > 0 && is_inside(token)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_range_are_all_that_have_a_part_of_it() {
        // A character of three tokens, a token across the beginning, one without text, and one behind.
        let tokens = [0..2, 2..4, 4..7, 4..7, 4..7, 7..7, 7..9];
        assert_eq!(targets(&tokens, std::slice::from_ref(&(3..7))), [false, true, true, true, true, false, false]);
        assert_eq!(targets(&tokens, &[0..1, 8..9]), [false, false, false, false, false, false, true]);
        assert_eq!(targets(&tokens, std::slice::from_ref(&(2..2))), [false; 7]);
    }
}
