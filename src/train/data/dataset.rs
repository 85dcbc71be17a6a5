//! Rows of instruction, prompt and completion, as token sequences in a seeded order.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::bank::InstructionEncoder;
use crate::error::{Finding, IoContext, Result};
use crate::model::{Sequence, TextEncoder};

/// One row of a data file.
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

impl TrainingRow {
    /// Reads a file of rows, one JSON object per line.
    ///
    /// # Errors
    /// [`crate::Error::Format`] naming the line; [`crate::Error::Mismatch`] for a file without rows.
    pub fn read_all(path: &Path) -> Result<Vec<TrainingRow>> {
        let mut rows = Vec::new();
        for (number, line) in BufReader::new(File::open(path).at(path, "open")?).lines().enumerate() {
            let line = line.at(path, "read")?;
            if line.trim().is_empty() {
                continue;
            }
            let finding = || Finding::new(path, format!("line {}", number + 1));
            let expected = "{\"instruction\", \"prompt\", \"completion\"}";
            let row: TrainingRow = crate::json::read(line.as_bytes(), || finding().expected(expected))?;
            if row.completion.is_empty() {
                return Err(finding().expected("a completion").found("an empty one").format());
            }
            rows.push(row);
        }
        if rows.is_empty() {
            return Err(Finding::new(path, "").expected("at least one row").found("none").mismatch());
        }
        Ok(rows)
    }
}

/// Tokenized rows.
#[derive(Debug, Clone)]
pub struct Dataset {
    sequences: Vec<Sequence>,
    file: PathBuf,
    /// The number of each row in its file, from 1.
    numbers: Vec<usize>,
    /// The texts of the rows' instructions, each once, in the order of the rows; none for rows without one.
    instructions: Vec<String>,
}

impl Dataset {
    /// Tokenizes `rows` of the file `path`. The filled-in template routes; the completion follows
    /// without special tokens, and `eos` ends it.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a row of more than `max_length` tokens.
    pub fn tokenize(
        path: &Path,
        rows: &[TrainingRow],
        (encoder, instructions): (&TextEncoder, &InstructionEncoder),
        template: &str,
        eos: u32,
        max_length: usize,
    ) -> Result<Self> {
        let mut sequences = Vec::with_capacity(rows.len());
        for (number, row) in rows.iter().enumerate() {
            let mut sequence = instructions.routed(encoder, template, &row.instruction, &row.prompt)?;
            sequence.ids.extend(encoder.encode(&row.completion, false)?);
            sequence.ids.push(eos);
            if sequence.ids.len() > max_length {
                return Err(Finding::new(path, format!("row {}", number + 1))
                    .expected(format_args!("at most {max_length} tokens, by data.max_length and the model's positions"))
                    .found(sequence.ids.len())
                    .hint("shorten the row, or raise data.max_length where the model allows it")
                    .mismatch());
            }
            sequences.push(Sequence::completed(sequence.ids, sequence.routed, sequence.instruction));
        }
        let mut seen = HashSet::new();
        let texts = rows.iter().map(|row| row.instruction.as_str());
        let instructions = texts.filter(|text| !text.is_empty() && seen.insert(*text)).map(str::to_owned).collect();
        let numbers = (1..=sequences.len()).collect();
        Ok(Self { sequences, file: path.to_owned(), numbers, instructions })
    }

    #[cfg(test)]
    pub(super) fn of_sequences(sequences: Vec<Sequence>) -> Self {
        let numbers = (1..=sequences.len()).collect();
        Self { sequences, file: "rows".into(), numbers, instructions: Vec::new() }
    }

    /// The texts of the instructions of all rows of the file, those that are split off too: each once, in the order of
    /// the rows.
    pub fn instructions(&self) -> &[String] {
        &self.instructions
    }

    /// The rows as sequences, in the file's order.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// The number of sequences in an epoch.
    pub fn epoch_len(&self) -> usize {
        self.sequences.len()
    }

    /// Names some of the sequences by their rows in the file.
    pub fn named(&self, indices: &[usize]) -> String {
        let numbers: Vec<String> = indices.iter().map(|i| self.numbers[*i].to_string()).collect();
        let what = if numbers.len() == 1 { "row" } else { "rows" };
        format!("{}: {what} {}", self.file.display(), numbers.join(", "))
    }

    /// Splits off a share of the rows, chosen by `seed`. Returns the rest and the share.
    pub fn split(self, fraction: f64, seed: u64) -> (Self, Option<Self>) {
        let held_out = (self.sequences.len() as f64 * fraction).round() as usize;
        if held_out == 0 || held_out >= self.sequences.len() {
            return (self, None);
        }
        // Training never reaches epoch u64::MAX, so the split has its own order.
        let order = order(seed, u64::MAX, self.sequences.len());
        let pick = |indices: &[usize]| Self {
            sequences: indices.iter().map(|i| self.sequences[*i].clone()).collect(),
            file: self.file.clone(),
            numbers: indices.iter().map(|i| self.numbers[*i]).collect(),
            instructions: self.instructions.clone(),
        };
        (pick(&order[held_out..]), Some(pick(&order[..held_out])))
    }

    /// The `count` sequences of a step that starts after `start` sequences of the run. Every epoch
    /// has its own permutation. `start` is the run's whole position in the data.
    pub fn take(&self, seed: u64, start: usize, count: usize) -> Vec<Sequence> {
        self.indices(seed, start, count).into_iter().map(|i| self.sequences[i].clone()).collect()
    }

    /// The indices of these sequences among all.
    pub fn indices(&self, seed: u64, start: usize, count: usize) -> Vec<usize> {
        let n = self.epoch_len();
        let mut taken = Vec::with_capacity(count);
        let mut current: Option<(usize, Vec<usize>)> = None;
        for i in start..start + count {
            let (epoch, within) = (i / n, i % n);
            if current.as_ref().is_none_or(|(e, _)| *e != epoch) {
                current = Some((epoch, order(seed, epoch as u64, n)));
            }
            if let Some((_, order)) = &current {
                taken.push(order[within]);
            }
        }
        taken
    }
}

/// A permutation of `0..n` that depends only on seed and epoch (Fisher-Yates shuffle).
pub(super) fn order(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        // The bias of the remainder is n / 2^64.
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dataset(n: u32) -> Dataset {
        Dataset::of_sequences((0..n).map(|i| Sequence::completed(vec![i], 1, vec![])).collect())
    }

    #[test]
    fn every_epoch_sees_every_row_once_wherever_steps_begin() {
        let data = dataset(10);
        let ids = |start, count| data.take(3, start, count).iter().map(|s| s.ids[0]).collect::<Vec<_>>();
        let all = ids(0, 20);
        for epoch in all.chunks(10) {
            let mut sorted = epoch.to_vec();
            sorted.sort();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(all[..10], all[10..]);
        assert_eq!([ids(0, 7), ids(7, 7), ids(14, 6)].concat(), all);
    }

    #[test]
    fn a_split_shares_no_row() {
        let (train, eval) = dataset(10).split(0.3, 1);
        let mut ids: Vec<u32> = train.sequences.iter().chain(&eval.unwrap().sequences).map(|s| s.ids[0]).collect();
        ids.sort();
        assert_eq!(ids, (0..10).collect::<Vec<_>>());
        assert_eq!(train.sequences.len(), 7);
        let number = train.sequences[0].ids[0] + 1;
        assert_eq!(train.named(&[0]), format!("rows: row {number}"));
    }

    #[test]
    fn bad_rows_are_named_by_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for (text, expected) in [
            ("", "expected at least one row"),
            ("{\"prompt\": \"x\", \"completion\": \"y\"}\n\n{\"prompt\": \"x\"}", "line 3: expected"),
            ("{\"prompt\": \"x\", \"completion\": \"\"}", "line 1: expected a completion, found an empty one"),
            ("{\"completion\": \"y\", \"label\": 1}", "unknown field `label`"),
            ("not json", "line 1"),
        ] {
            std::fs::write(file.path(), text).unwrap();
            let error = TrainingRow::read_all(file.path()).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
