//! A base model, the rows of named tasks, and exact match on words that no training has seen.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{D, Tensor};

use super::{Setting, TESTS};
use crate::bank::{DEFAULT_PROMPT_TEMPLATE, InstructionEncoder};
use crate::error::{Finding, Result};
use crate::experiment::names::{Behaviour, Choices};
use crate::experiment::tuning::Choice;
use crate::model::{Batch, Hook, LanguageModel, Sequence};

/// A base with words to train on and words to test with.
pub struct Lab {
    pub(super) model: LanguageModel,
    eos: u32,
    train_words: Vec<String>,
    test_words: Vec<String>,
    /// The settings of methods, by name, that need not be chosen any more.
    chosen: Mutex<BTreeMap<String, Choice>>,
}

/// Rows with the numbers of their tasks.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) sequences: Vec<Sequence>,
    pub(super) tasks: Vec<usize>,
}

impl Rows {
    /// Those of some tasks.
    pub(super) fn of(&self, is_of: impl Fn(usize) -> bool) -> Self {
        let numbered = self.sequences.iter().zip(&self.tasks).filter(|(_, task)| is_of(**task));
        let (sequences, tasks) = numbered.map(|(sequence, task)| (sequence.clone(), *task)).unzip();
        Self { sequences, tasks }
    }
}

/// The rows of some tasks.
pub(super) struct TaskRows {
    pub(super) names: Vec<String>,
    pub(super) train: Rows,
    pub(super) test: Rows,
    /// As `test`, with instructions in other words.
    pub(super) reworded: Rows,
    /// The tokens of each task's instruction.
    pub(super) instructions: Vec<Vec<u32>>,
}

impl TaskRows {
    /// The rows of the first `count` tasks.
    pub(super) fn first(&self, count: usize) -> Self {
        self.some(0..count)
    }

    /// The rows of one task, whose number stays.
    pub(super) fn one(&self, task: usize) -> Self {
        self.some(task..task + 1)
    }

    fn some(&self, tasks: Range<usize>) -> Self {
        let of = |rows: &Rows| rows.of(|task| tasks.contains(&task));
        Self {
            names: self.names[tasks.clone()].to_vec(),
            train: of(&self.train),
            test: of(&self.test),
            reworded: of(&self.reworded),
            instructions: self.instructions[tasks.clone()].to_vec(),
        }
    }
}

/// Sequences in one pass of a test.
pub(super) const TEST_BATCH: usize = 64;

impl Lab {
    /// A lab with `model`, words to train on and others to test with. `chosen` has settings of methods, by their names,
    /// that an earlier experiment chose.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a model without a token that ends texts.
    pub fn new(
        model: LanguageModel,
        train_words: Vec<String>,
        test_words: Vec<String>,
        chosen: BTreeMap<String, Choice>,
    ) -> Result<Self> {
        let Some(&eos) = model.decoder.config().eos_token_ids.first() else {
            let finding = Finding::new(model.decoder.weights().path(), "eos_token_id");
            return Err(finding.expected("a token that ends texts").found("none").mismatch());
        };
        Ok(Self { model, eos, train_words, test_words, chosen: Mutex::new(chosen) })
    }

    /// The settings that are known so far.
    pub(super) fn chosen(&self) -> MutexGuard<'_, BTreeMap<String, Choice>> {
        self.chosen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sequence of an instruction and a word, without an answer.
    pub(super) fn routed(&self, instruction: &str, word: &str) -> Result<Sequence> {
        InstructionEncoder::BaseEmbeddings.routed(&self.model.encoder, DEFAULT_PROMPT_TEMPLATE, instruction, word)
    }

    fn row(&self, instruction: &str, word: &str, answer: &str) -> Result<Sequence> {
        let mut sequence = self.routed(instruction, word)?;
        sequence.ids.extend(self.model.encoder.encode(answer, false)?);
        sequence.ids.push(self.eos);
        Ok(Sequence::completed(sequence.ids, sequence.routed, sequence.instruction))
    }

    /// The rows of a seed.
    ///
    /// # Errors
    /// Errors of tokenizing.
    pub(super) fn seeded(&self, setting: Setting, seed: u64) -> Result<TaskRows> {
        let mut choices = Choices::new(seed);
        let tasks = choices.behaviours(setting.tasks, 1);
        let mut made = TaskRows {
            names: tasks.iter().map(|task| task.name.clone()).collect(),
            train: Rows::default(),
            test: Rows::default(),
            reworded: Rows::default(),
            instructions: Vec::new(),
        };
        for (number, task) in tasks.iter().enumerate() {
            made.instructions.push(self.model.encoder.encode(&task.name, false)?);
            for word in choices.some(&self.train_words, setting.rows) {
                self.add(&mut made.train, (number, task), &task.name, &word)?;
            }
            for word in choices.some(&self.test_words, TESTS) {
                self.add(&mut made.test, (number, task), &task.name, &word)?;
                for instruction in task.reworded() {
                    self.add(&mut made.reworded, (number, task), &instruction, &word)?;
                }
            }
        }
        Ok(made)
    }

    fn add(&self, rows: &mut Rows, (number, task): (usize, &Behaviour), instruction: &str, word: &str) -> Result<()> {
        rows.sequences.push(self.row(instruction, word, &task.of(word))?);
        rows.tasks.push(number);
        Ok(())
    }

    /// The loss over `sequences`, a scalar.
    ///
    /// # Errors
    /// As [`crate::model::Decoder::hidden`].
    pub(super) fn loss(&self, sequences: &[Sequence], hook: &mut dyn Hook) -> Result<Tensor> {
        let batch = Batch::new(sequences);
        let hidden = self.model.decoder.hidden(&batch, None, hook)?;
        let (places, targets) = batch.targets();
        let sum = self.model.decoder.loss_at(&hidden, &places, &targets, true)?;
        Ok((sum * (1.0 / targets.len().max(1) as f64))?)
    }

    /// The number of sequences whose answer the model gives token by token: each token of it has the largest logit, given
    /// the ones before it, which is what greedy generation takes.
    ///
    /// # Errors
    /// As [`crate::model::Decoder::hidden`].
    pub(super) fn right(&self, sequences: &[Sequence], hook: &mut dyn Hook) -> Result<usize> {
        let batch = Batch::new(sequences);
        let hidden = self.model.decoder.hidden(&batch, None, hook)?;
        let (places, targets) = batch.targets();
        let best = self.model.decoder.logits_at(&hidden, &places)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        let (mut right, mut next) = (0, 0);
        for sequence in sequences {
            let count = sequence.target_count();
            right += usize::from(best[next..next + count] == targets[next..next + count]);
            next += count;
        }
        Ok(right)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use candle_core::Device;

    use super::*;
    use crate::model::Residence;

    /// The demo's base, with few words.
    pub(in super::super) fn lab() -> Lab {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/demo/base");
        let model = LanguageModel::open(&base, Residence::Memory, &Device::Cpu).unwrap();
        let words = |words: &str| words.split(' ').map(str::to_owned).collect();
        Lab::new(model, words("garden window table river"), words("summer paper"), BTreeMap::new()).unwrap()
    }

    #[test]
    fn rows_follow_from_the_seed_and_have_their_tasks() {
        let (lab, setting) = (lab(), Setting { tasks: 12, rows: 3, steps: 1 });
        let rows = lab.seeded(setting, 5).unwrap();
        assert_eq!((rows.train.sequences.len(), rows.test.sequences.len()), (36, 24));
        assert_eq!(rows.reworded.sequences.len(), 48);
        assert_eq!(rows.train.sequences, lab.seeded(setting, 5).unwrap().train.sequences);
        assert_ne!(rows.train.sequences, lab.seeded(setting, 6).unwrap().train.sequences);
        let of_one = rows.train.of(|task| task == 4);
        assert_eq!(of_one.tasks, [4, 4, 4]);
        assert!(of_one.sequences.iter().all(|sequence| sequence.instruction == rows.instructions[4]));
    }
}
