//! The rows of a run: read from files, recognized by their fields, and made sequences of tokens with a loss on some.

mod chat_prompt;
mod dataset;
mod encode;
mod fields;
mod instructions;
mod message;
mod place;
mod preview;
mod read;
mod rendering;
mod row;
mod unread;

use std::ops::Range;
use std::path::Path;

use super::config::{DataSettings, DataSource, DataSources};
use crate::bank::{DEFAULT_PROMPT_TEMPLATE, InstructionEncoder};
use crate::chat::ChatTemplate;
use crate::error::{Finding, Result};
use crate::model::{Decoder, LanguageModel, Sequence, TextEncoder};
use chat_prompt::Forms;
use encode::{Encoded, Noted, RowEncoder};
use instructions::NamedInstructions;
use place::{Refusals, counted};
use read::RawRow;
use row::{Reader, Row, may_be_chat};

pub use dataset::Dataset;
pub(super) use dataset::order;
pub(super) use message::{known_role, role_names};
pub use place::{Place, Unit};
pub use preview::{Preview, PreviewRow, preview};
pub use row::TrainingRow;

impl TrainingRow {
    /// Reads a file of rows with instruction, prompt and completion.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming lines or rows; [`crate::Error::Mismatch`] for a file without rows.
    pub fn read_all(path: &Path) -> Result<Vec<TrainingRow>> {
        let settings = DataSettings::of(path);
        let reader = Reader { settings: &settings, instructions: None, has_template: false };
        let (mut rows, mut refusals) = (Vec::new(), Refusals::default());
        for RawRow { place, columns } in read::rows(path, &[])? {
            let row = columns.and_then(|columns| reader.row(&place, columns)).and_then(|row| match row {
                Row::Plain(row) => Ok(row),
                Row::Chat(_) | Row::Text { .. } => {
                    let finding = place.finding().expected("instruction, prompt and completion");
                    Err(finding.found("a row of another form").format())
                }
            });
            rows.extend(refusals.keep(&place, row));
        }
        refusals.finish()?;
        Ok(rows)
    }
}

/// The rows of `settings.train` as sequences for `model`, whose folder or file is `base`, and what a user should know about
/// them, a line each. Plain rows have the prompt template that is the default of training.
///
/// # Errors
/// As [`crate::train::train`], of what concerns rows.
pub fn sequences_of(
    model: &LanguageModel,
    base: &Path,
    settings: &DataSettings,
) -> Result<(Vec<Sequence>, Vec<String>)> {
    let loader = Loader {
        settings,
        base,
        decoder: &model.decoder,
        encoder: &model.encoder,
        instructions: &InstructionEncoder::BaseEmbeddings,
        prompt_template: DEFAULT_PROMPT_TEMPLATE,
    };
    let Sequences { rows, notes, .. } = loader.sequences(&settings.train)?;
    Ok((rows.into_iter().map(|row| row.sequence).collect(), notes))
}

/// Rows as the trainer takes them.
pub(super) struct Loaded {
    pub(super) train: Dataset,
    pub(super) eval: Option<Dataset>,
    /// The text before an answer where all rows for training are chats, with places for instruction and prompt.
    pub(super) prompt_template: Option<String>,
    /// What a user should know about the rows, a line each.
    pub(super) notes: Vec<String>,
}

/// What rows are made sequences with.
pub(super) struct Loader<'a> {
    pub(super) settings: &'a DataSettings,
    /// The base model's folder or file.
    pub(super) base: &'a Path,
    pub(super) decoder: &'a Decoder,
    pub(super) encoder: &'a TextEncoder,
    pub(super) instructions: &'a InstructionEncoder,
    /// The text before the completion of plain rows.
    pub(super) prompt_template: &'a str,
}

/// Sequences of several sources.
struct Sequences {
    rows: Vec<Encoded>,
    /// The rows of each source, and its weight.
    shares: Vec<(Range<usize>, f64)>,
    prompt_template: Option<String>,
    notes: Vec<String>,
}

/// A row of a file as a bank routes it.
pub struct RoutedRow {
    /// Its instruction; empty if it has none.
    pub instruction: String,
    /// Its prompt: of a chat, all of the text that routes.
    pub prompt: String,
    /// The tokens that route.
    pub sequence: Sequence,
}

/// The rows of a file as training reads them, for routing: up to the first token that carries loss. With what a user should
/// know about the rows, a line each.
///
/// # Errors
/// As [`crate::train::train`], of what concerns rows.
pub fn routed_rows(
    path: &Path,
    base: &Path,
    model: &LanguageModel,
    instructions: &InstructionEncoder,
    prompt_template: &str,
) -> Result<(Vec<RoutedRow>, Vec<String>)> {
    let LanguageModel { decoder, encoder } = model;
    let settings = &DataSettings { max_length: usize::MAX, ..DataSettings::of(path) };
    let loader = Loader { settings, base, decoder, encoder, instructions, prompt_template };
    let row = |row: Encoded| {
        let Encoded { instruction, prompt, sequence, .. } = row;
        let (ids, routed) = (sequence.ids[..sequence.routed].to_vec(), sequence.routed);
        let prompt = prompt.map_or_else(|| encoder.decode(&ids), Ok)?;
        let sequence = Sequence { ids, routed, instruction: sequence.instruction, ..Sequence::default() };
        Ok(RoutedRow { instruction, prompt, sequence })
    };
    let Sequences { rows, notes, .. } = loader.sequences(&settings.train)?;
    Ok((rows.into_iter().map(row).collect::<Result<_>>()?, notes))
}

impl Loader<'_> {
    /// Loads the rows for training and for evaluation. `seed` chooses those that are held out.
    ///
    /// # Errors
    /// Those of the files, of rows that can't be used, together in one, and [`crate::Error::Mismatch`] where no row has a
    /// token that carries loss.
    pub(super) fn load(&self, seed: u64) -> Result<Loaded> {
        let Sequences { rows, shares, prompt_template, mut notes } = self.sequences(&self.settings.train)?;
        let train = self.full(Dataset::new(rows, shares))?;
        let Some(sources) = &self.settings.eval else {
            let (rows, fraction) = (train.places().len(), self.settings.eval_fraction);
            let (train, eval) = train.split(fraction, seed);
            if fraction > 0.0 && eval.is_none() {
                let finding = Finding::new("", "data.eval_fraction");
                let expected = "a share that leaves a row to train on, and one to hold out";
                return Err(finding.expected(expected).found(format_args!("{fraction} of {rows}")).setting());
            }
            return Ok(Loaded { train: self.full(train)?, eval, prompt_template, notes });
        };
        let Sequences { rows, shares, notes: more, .. } = self.sequences(sources)?;
        notes.extend(more.into_iter().map(|note| format!("evaluation: {note}")));
        Ok(Loaded { train, eval: Some(Dataset::new(rows, shares)), prompt_template, notes })
    }

    /// The data, if its weights leave any row in an epoch.
    fn full(&self, data: Dataset) -> Result<Dataset> {
        if data.epoch_len() > 0 {
            return Ok(data);
        }
        let file = data.places().first().map_or(Path::new(""), |place| &place.file);
        let finding = Finding::new(file, "data.train").expected("weights that leave rows in an epoch");
        Err(finding.found(format!("none of {}", data.sequences().len())).mismatch())
    }

    fn sequences(&self, DataSources(sources): &DataSources) -> Result<Sequences> {
        let mut read = Vec::new();
        for DataSource { path, weight } in sources {
            let mut rows = Vec::new();
            for file in read::files(path)? {
                rows.extend(read::rows(&file, &self.settings.ignore_fields)?);
            }
            read.push((rows, *weight));
        }
        let has_chats =
            |rows: &[RawRow]| rows.iter().any(|row| matches!(&row.columns, Ok(c) if may_be_chat(self.settings, c)));
        let chat_template = match read.iter().any(|(rows, _)| has_chats(rows)) || self.settings.chat_template.is_some()
        {
            true => ChatTemplate::open(self.base, self.settings.chat_template.as_deref())?,
            false => None,
        };
        let instructions = self.settings.instructions.as_deref().map(NamedInstructions::open).transpose()?;
        let reader = Reader { settings: self.settings, instructions, has_template: chat_template.is_some() };
        let encoder = RowEncoder {
            loader: self,
            chat_template: chat_template.as_ref(),
            eos: self.decoder.config().eos_token_ids.first().copied(),
            limit: self.settings.max_length.min(self.decoder.config().max_position_embeddings),
            special_texts: self.encoder.special_texts(),
        };
        let (mut rows, mut shares, mut forms) = (Vec::new(), Vec::new(), Forms::default());
        let (mut noted, mut refusals) = (Noted::default(), Refusals::default());
        for (raw, weight) in read {
            let start = rows.len();
            for RawRow { place, columns } in raw {
                let row = columns.and_then(|columns| reader.row(&place, columns));
                let Some(row) = refusals.keep(&place, row) else { continue };
                self.check_base(&row, &encoder)?;
                forms.add(&row);
                let made = encoder.encode(&place, &row, &mut noted);
                rows.extend(refusals.keep(&place, made).into_iter().flatten());
            }
            shares.push((start..rows.len(), weight));
        }
        refusals.finish()?;
        if rows.is_empty() {
            let left: Vec<_> = noted.without_loss.iter().chain(&noted.too_long).cloned().collect();
            let file = left.first().map_or(Path::new(""), |place| &place.file);
            return Err(Finding::new(file, "")
                .expected("rows with tokens that carry loss")
                .found(format!("none: {}", noted.in_words(self.settings).join("; ")))
                .mismatch());
        }
        let prompt_template = forms.prompt_template(self.settings, chat_template.as_ref());
        Ok(Sequences { rows, shares, prompt_template, notes: noted.in_words(self.settings) })
    }

    /// Refuses a base that lacks what the row needs.
    fn check_base(&self, row: &Row, encoder: &RowEncoder<'_>) -> Result<()> {
        match row {
            Row::Chat(_) if encoder.chat_template.is_none() => {
                let finding =
                    Finding::new(self.base, "chat_template").expected("a template, by which chats become text");
                Err(finding.found("none").hint("data.chat_template names a file with one").mismatch())
            }
            Row::Plain(_) | Row::Text { .. } if encoder.eos.is_none() && self.ends(row) => {
                let path = self.decoder.weights().path();
                let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
                let finding = Finding::new(file, "eos_token_id");
                Err(finding.expected("the token that ends a completion").found("none").mismatch())
            }
            _ => Ok(()),
        }
    }

    /// Whether an end token follows the row.
    fn ends(&self, row: &Row) -> bool {
        matches!(row, Row::Plain(_)) || self.settings.end_of_text
    }
}

impl Noted {
    /// A line for each group of rows.
    fn in_words(&self, settings: &DataSettings) -> Vec<String> {
        let cut = match settings.truncate {
            super::Truncate::Left => "cut at the beginning to data.max_length",
            _ => "cut at the end to data.max_length",
        };
        // What is said of one row, or of several.
        let left_out = |why: &str| [format!("{why} is left out"), format!("{why} are left out")];
        let have = |what: &str| [format!("has {what}"), format!("have {what}")];
        let groups = [
            (&self.without_loss, left_out("without a token that carries loss")),
            (&self.too_long, left_out("longer than data.max_length")),
            (&self.cut, [cut.to_owned(), cut.to_owned()]),
            (&self.control_tokens, have("texts of control tokens in messages, which become those tokens")),
            (
                &self.shortened,
                have(
                    "answers of which the template leaves out a part, such as earlier thinking: that part isn't learned, \
                     except with data.split_turns",
                ),
            ),
        ];
        let groups = groups.into_iter().filter(|(places, _)| !places.is_empty());
        let words = |(places, [one, several]): (&Vec<Place>, [String; 2])| {
            format!("{} {}", counted(places), if places.len() == 1 { one } else { several })
        };
        groups.map(words).chain(self.unread.in_words()).collect()
    }
}

#[cfg(test)]
mod tests;
