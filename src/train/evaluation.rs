//! Evaluation on held-out rows: the loss over all their tokens, and answers that are generated and compared.

use serde_json::{Value, json};

use super::batches::Batches;
use super::{Dataset, Objective, Ranks, TrainingSettings};
use crate::error::Result;
use crate::model::{Batch, Generation, Sequence, TextEncoder, greedy};

/// The results of an evaluation.
pub(super) struct Results {
    /// The mean of -log p over the tokens that carry loss, and their number.
    pub(super) loss: f64,
    pub(super) tokens: usize,
    /// The share of rows that were answered exactly, and the number of rows that were asked.
    pub(super) exact_match: Option<(f64, usize)>,
    /// Generated answers, each as an object with `row`, `prompt`, `expected` and `generated`.
    pub(super) samples: Vec<Value>,
}

impl Results {
    /// The results as they stand in the metrics.
    pub(super) fn metrics(&self) -> Value {
        let mut line = json!({ "eval_loss": self.loss, "eval_tokens": self.tokens });
        if let Some((share, rows)) = self.exact_match {
            line["exact_match"] = share.into();
            line["exact_match_rows"] = rows.into();
        }
        if !self.samples.is_empty() {
            line["samples"] = self.samples.clone().into();
        }
        line
    }
}

/// A row as a question and its answer.
struct Question {
    /// Everything before the last tokens that carry loss.
    asked: Sequence,
    /// Those tokens, without the one that ends the text.
    answer: Vec<u32>,
    /// Whether the answer ends the text.
    ends: bool,
}

impl Question {
    /// The question of a row, whose text is ended by one of `eos`.
    fn of(row: &Sequence, eos: &[u32]) -> Self {
        let carries = |place: usize| row.targets.get(place).is_some_and(|carries| *carries);
        let end = (1..row.ids.len()).rev().find(|place| carries(*place)).map_or(row.ids.len(), |place| place + 1);
        let start = (1..end).rev().take_while(|place| carries(*place)).last().unwrap_or(end);
        let mut answer = row.ids[start..end].to_vec();
        let ends = answer.last().is_some_and(|last| eos.contains(last));
        if ends {
            answer.pop();
        }
        let ids = row.ids[..start].to_vec();
        let asked = Sequence { routed: row.routed.min(start), ids, targets: Vec::new(), ..row.clone() };
        Self { asked, answer, ends }
    }

    /// Whether what was generated is the answer: the same text and its end, or the same first tokens where the answer
    /// doesn't end the text.
    fn is_answered(&self, generated: &Generation, encoder: &TextEncoder) -> Result<bool> {
        if self.ends {
            let is_same = || Ok(encoder.decode(&generated.ids)? == encoder.decode(&self.answer)?);
            return if generated.ended { is_same() } else { Ok(false) };
        }
        Ok(generated.ids.starts_with(&self.answer))
    }

    /// The number of tokens after which it is known whether the answer is exact.
    fn tokens(&self) -> usize {
        self.answer.len() + usize::from(self.ends)
    }
}

/// Evaluates on the rows of `data`: the loss on all ranks, answers on the first one alone.
///
/// # Errors
/// As [`crate::model::Decoder::hidden`].
pub(super) fn evaluate(
    objective: &Objective,
    ranks: &Ranks,
    encoder: &TextEncoder,
    data: &Dataset,
    settings: &TrainingSettings,
) -> Result<Results> {
    let all = data.sequences();
    let batches = Batches::in_order(settings, data);
    let parts: Vec<&[Sequence]> = batches.iter().map(|rows| &all[rows[0]..rows[0] + rows.len()]).collect();
    let (loss, tokens) = objective.evaluate_on(ranks, &parts)?;
    let mut results = Results { loss, tokens, exact_match: None, samples: Vec::new() };
    let (asked, shown) = (settings.eval_exact_match.min(all.len()), settings.eval_samples.min(all.len()));
    if !loss.is_finite() || asked.max(shown) == 0 || !ranks.is_first() {
        return Ok(results);
    }
    let eos = &objective.decoder.config().eos_token_ids;
    let questions: Vec<Question> = all[..asked.max(shown)].iter().map(|row| Question::of(row, eos)).collect();
    let mut right = 0;
    let mut row = 0;
    for part in questions.chunks(settings.batch_size) {
        let shows = row < shown;
        let most = if shows { settings.eval_max_tokens } else { 0 };
        let generated = answers(objective, part, most)?;
        for (question, generated) in part.iter().zip(&generated) {
            right += usize::from(row < asked && question.is_answered(generated, encoder)?);
            if row < shown {
                let text = |ids: &[u32]| encoder.decode(ids);
                let kept = &generated.ids[..generated.ids.len().min(settings.eval_max_tokens)];
                results.samples.push(json!({ "row": data.named(&[row]), "prompt": text(&question.asked.ids)?,
                    "expected": text(&question.answer)?, "generated": text(kept)? }));
            }
            row += 1;
        }
    }
    if asked > 0 {
        results.exact_match = Some((right as f64 / asked as f64, asked));
    }
    Ok(results)
}

/// Generates answers of at least `most` tokens, and of as many as the longest expected answer has; fewer where the model
/// has no positions for them.
fn answers(objective: &Objective, questions: &[Question], most: usize) -> Result<Vec<Generation>> {
    let asked: Vec<Sequence> = questions.iter().map(|question| question.asked.clone()).collect();
    let longest = asked.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0);
    let room = objective.decoder.config().max_position_embeddings.saturating_sub(longest);
    let wanted = questions.iter().map(Question::tokens).max().unwrap_or(0).max(most).min(room);
    objective.without_record(|| {
        // As `greedy` lays them.
        let batch = Batch::new(&asked);
        let mut hook = objective.trainable.hook(objective.decoder.weights(), &asked, &batch, None)?;
        greedy(objective.decoder, hook.as_hook(), &asked, wanted, false)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_tokens_with_loss_are_the_answer() {
        let row = |targets: &[bool]| Sequence {
            targets: targets.to_vec(),
            ..Sequence::completed((1..=6).collect(), 2, vec![])
        };
        let (yes, no) = (true, false);
        for (targets, asked, answer, ends) in [
            (&[no, no, yes, yes, yes, yes][..], &[1, 2][..], &[3, 4, 5][..], true),
            (&[no, yes, no, yes, yes, no], &[1, 2, 3], &[4, 5], false),
            (&[no, no, no, no, no, yes], &[1, 2, 3, 4, 5], &[], true),
        ] {
            let question = Question::of(&row(targets), &[6]);
            assert_eq!((&*question.asked.ids, &*question.answer, question.ends), (asked, answer, ends));
            assert!(question.asked.routed <= question.asked.ids.len() && question.asked.targets.is_empty());
        }
    }
}
