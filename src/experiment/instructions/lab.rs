//! A base model, the rows of named tasks, and exact match on words that no training has seen.

use candle_core::{D, Tensor};

use super::words::{Named, reworded, tasks};
use super::{Setting, TESTS};
use crate::bank::{DEFAULT_PROMPT_TEMPLATE, InstructionEncoder};
use crate::error::Result;
use crate::linalg::Random;
use crate::model::{Batch, Hook, LanguageModel, Sequence};

/// A base with words to train on and words to test with.
pub struct Lab {
    pub(super) model: LanguageModel,
    eos: u32,
    train_words: Vec<String>,
    test_words: Vec<String>,
}

/// Rows with the numbers of their tasks.
#[derive(Default)]
pub(super) struct Rows {
    pub(super) sequences: Vec<Sequence>,
    pub(super) tasks: Vec<usize>,
}

/// The rows of some tasks.
pub(super) struct TaskRows {
    pub(super) train: Rows,
    pub(super) test: Rows,
    /// As `test`, with instructions in other words.
    pub(super) reworded: Rows,
    /// The tokens of each task's instruction.
    pub(super) instructions: Vec<Vec<u32>>,
}

/// Sequences in one pass of a test.
pub(super) const TEST_BATCH: usize = 64;

impl Lab {
    /// A lab with `model`, whose texts end with `eos`.
    pub fn new(model: LanguageModel, eos: u32, train_words: Vec<String>, test_words: Vec<String>) -> Self {
        Self { model, eos, train_words, test_words }
    }

    fn row(&self, instruction: &str, word: &str, answer: &str) -> Result<Sequence> {
        let (encoder, base) = (&InstructionEncoder::BaseEmbeddings, &self.model.encoder);
        let mut sequence = encoder.routed(base, DEFAULT_PROMPT_TEMPLATE, instruction, word)?;
        sequence.ids.extend(base.encode(answer, false)?);
        sequence.ids.push(self.eos);
        Ok(Sequence::completed(sequence.ids, sequence.routed, sequence.instruction))
    }

    /// `rows` training rows of each of `tasks`, and `tests` test rows.
    ///
    /// # Errors
    /// Errors of tokenizing.
    fn rows(&self, tasks: &[Named], rows: usize, tests: usize, random: &mut Random) -> Result<TaskRows> {
        let mut made = TaskRows {
            train: Rows::default(),
            test: Rows::default(),
            reworded: Rows::default(),
            instructions: Vec::new(),
        };
        for (number, task) in tasks.iter().enumerate() {
            made.instructions.push(self.model.encoder.encode(&task.name, false)?);
            for word in some(&self.train_words, rows, random) {
                made.train.sequences.push(self.row(&task.name, word, &task.change.of(word))?);
                made.train.tasks.push(number);
            }
            for word in some(&self.test_words, tests, random) {
                let answer = task.change.of(word);
                made.test.sequences.push(self.row(&task.name, word, &answer)?);
                made.test.tasks.push(number);
                for instruction in reworded(&task.name) {
                    made.reworded.sequences.push(self.row(&instruction, word, &answer)?);
                    made.reworded.tasks.push(number);
                }
            }
        }
        Ok(made)
    }

    /// The rows of a seed, and the generator behind them.
    ///
    /// # Errors
    /// Errors of tokenizing.
    pub(super) fn seeded(&self, setting: Setting, seed: u64) -> Result<(TaskRows, Random)> {
        let mut random = Random::new(seed);
        let tasks = tasks(setting.tasks, &mut random);
        Ok((self.rows(&tasks, setting.rows, TESTS, &mut random)?, random))
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

/// `count` of `words`, each at most once.
fn some<'a>(words: &'a [String], count: usize, random: &mut Random) -> Vec<&'a str> {
    let mut places: Vec<usize> = (0..words.len()).collect();
    for i in (1..places.len()).rev() {
        places.swap(i, (random.uniform() * (i + 1) as f32) as usize);
    }
    places.into_iter().take(count).map(|place| words[place].as_str()).collect()
}
