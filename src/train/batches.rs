//! Which rows each step takes, in which forward passes.
//!
//! Everything follows from the settings, the rows' lengths and the step's number, so a resumed run takes the same rows
//! in the same order without any state.

use super::data::{Dataset, order};
use super::packing::packed;
use super::{TrainConfig, TrainingSettings};
use crate::error::{Finding, Result};

/// The number of batches whose rows are sorted by length together. Rows further apart keep their random order.
const SORTED_TOGETHER: usize = 50;

/// The batches of a run.
///
/// An epoch is a list of parts, single rows or whole batches, and a step takes some of the parts that come next. Parts
/// are single rows where batches have a number of rows in the order of the epoch, because then a batch can go on with
/// the next epoch's rows.
pub(super) struct Batches<'a> {
    data: &'a Dataset,
    settings: &'a TrainingSettings,
    seed: u64,
    /// The forward passes of a step: those of all ranks.
    passes: usize,
    /// The number of parts, or of steps where those end with epochs, before each epoch; filled as far as needed.
    before: Vec<usize>,
    /// The most tokens of a sequence of several rows, if rows are packed.
    packed_to: Option<usize>,
    /// The last epoch that was needed, and its parts.
    made: Option<(usize, Vec<Vec<usize>>)>,
}

impl<'a> Batches<'a> {
    /// The batches of the rows of `data`, for a run of `ranks` processes.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a row that has more tokens than a batch may have.
    pub(super) fn new(config: &'a TrainConfig, data: &'a Dataset, ranks: usize) -> Result<Self> {
        let settings = &config.training;
        let longest = (0..data.sequences().len()).max_by_key(|row| data.sequences()[*row].ids.len());
        if let Some(row) = longest.filter(|row| settings.batch_tokens > 0 && length(data, *row) > settings.batch_tokens)
        {
            return Err(Finding::new(&config.file, "training.batch_tokens")
                .expected(format_args!("at least {}, the tokens of {}", length(data, row), data.named(&[row])))
                .found(settings.batch_tokens)
                .mismatch());
        }
        let passes = settings.gradient_accumulation * ranks;
        let packed_to = settings.packing.then_some(config.data.max_length);
        Ok(Self { data, settings, seed: config.seed, passes, before: vec![0], packed_to, made: None })
    }

    /// The number of steps of the run.
    pub(super) fn steps(&mut self) -> usize {
        let epochs = self.settings.epochs;
        if epochs == 0 {
            return self.settings.steps;
        }
        let units = self.before(epochs);
        if self.settings.step_ends_with_epoch { units } else { units.div_ceil(self.parts_of_step()) }
    }

    /// The rows of step `step`, counted from 0, by forward pass. In the last step of a run whose length is a number of
    /// epochs there may be fewer than in the others.
    pub(super) fn step(&mut self, step: usize) -> Vec<Vec<usize>> {
        let count = self.parts_of_step();
        let mut parts: Vec<Vec<usize>> = Vec::new();
        if self.settings.step_ends_with_epoch {
            let (epoch, within) = self.find(step);
            parts.extend(self.epoch(epoch).chunks(count).nth(within).unwrap_or_default().iter().cloned());
        } else {
            let (mut epoch, mut within) = self.find(step * count);
            while parts.len() < count && (self.settings.epochs == 0 || epoch < self.settings.epochs) {
                let left = self.epoch(epoch).get(within..).unwrap_or_default();
                parts.extend(left.iter().take(count - parts.len()).cloned());
                (epoch, within) = (epoch + 1, 0);
            }
        }
        if self.parts_are_rows() {
            let rows = parts.concat();
            return rows.chunks(self.settings.batch_size).map(<[usize]>::to_vec).collect();
        }
        parts
    }

    /// How often the run has gone through the rows after `steps` steps.
    pub(super) fn epochs_after(&mut self, steps: usize) -> f64 {
        let of_step = self.parts_of_step();
        let units = if self.settings.step_ends_with_epoch { steps } else { steps * of_step };
        let (epoch, within) = self.find(units);
        let taken = if self.settings.step_ends_with_epoch { within * of_step } else { within };
        let are_rows = self.parts_are_rows();
        let rows = |parts: &[Vec<usize>]| if are_rows { parts.len() } else { parts.iter().map(Vec::len).sum() };
        let parts = self.epoch(epoch);
        let share = rows(parts.get(..taken).unwrap_or(parts)) as f64 / rows(parts).max(1) as f64;
        let passed = epoch as f64 + share;
        if self.settings.epochs > 0 { passed.min(self.settings.epochs as f64) } else { passed }
    }

    /// Batches of all rows of `data` in their order, for an evaluation.
    pub(super) fn in_order(settings: &TrainingSettings, data: &Dataset) -> Vec<Vec<usize>> {
        cut((0..data.sequences().len()).collect(), settings, data)
    }

    /// Whether the parts of an epoch are rows rather than batches.
    fn parts_are_rows(&self) -> bool {
        self.settings.batch_tokens == 0 && !self.settings.group_by_length && self.packed_to.is_none()
    }

    fn parts_of_step(&self) -> usize {
        let batch = if self.parts_are_rows() { self.settings.batch_size } else { 1 };
        batch * self.passes
    }

    /// The number of parts, or of steps where those end with epochs, before `epoch`.
    fn before(&mut self, epoch: usize) -> usize {
        let of_step = self.parts_of_step();
        let units = |parts: usize, by_steps: bool| if by_steps { parts.div_ceil(of_step) } else { parts };
        let by_steps = self.settings.step_ends_with_epoch;
        if self.parts_are_rows() {
            return epoch * units(self.data.epoch_len(), by_steps);
        }
        while self.before.len() <= epoch {
            let last = self.before.len() - 1;
            let parts = self.epoch(last).len();
            self.before.push(self.before[last] + units(parts, by_steps));
        }
        self.before[epoch]
    }

    /// The epoch of a part or step of the whole run, and its number there.
    fn find(&mut self, unit: usize) -> (usize, usize) {
        if self.parts_are_rows() {
            let of_epoch = self.before(1).max(1);
            return (unit / of_epoch, unit % of_epoch);
        }
        // Every epoch has at least one part.
        let mut epoch = self.before.partition_point(|before| *before <= unit).saturating_sub(1);
        while self.before(epoch + 1) <= unit {
            epoch += 1;
        }
        (epoch, unit - self.before(epoch))
    }

    /// The parts of an epoch.
    fn epoch(&mut self, epoch: usize) -> &[Vec<usize>] {
        if self.made.as_ref().is_none_or(|(made, _)| *made != epoch) {
            self.made = Some((epoch, self.make(epoch)));
        }
        self.made.as_ref().map_or(&[], |(_, parts)| parts)
    }

    fn make(&self, epoch: usize) -> Vec<Vec<usize>> {
        let n = self.data.epoch_len();
        let mut rows = self.data.indices(self.seed, epoch * n, n);
        if !self.settings.shuffle {
            rows.sort_unstable();
        }
        if self.parts_are_rows() {
            return rows.into_iter().map(|row| vec![row]).collect();
        }
        if let Some(limit) = self.packed_to {
            let sequences = packed(&rows, |row| length(self.data, row), limit);
            return sequences.chunks(self.settings.batch_size).map(|sequences| sequences.concat()).collect();
        }
        if !self.settings.group_by_length {
            return cut(rows, self.settings, self.data);
        }
        let mut batches = Vec::new();
        for rows in rows.chunks(self.rows_of_batch().saturating_mul(SORTED_TOGETHER)) {
            let mut rows = rows.to_vec();
            rows.sort_by_key(|row| std::cmp::Reverse(length(self.data, *row)));
            batches.extend(cut(rows, self.settings, self.data));
        }
        if !self.settings.shuffle {
            return batches;
        }
        // The epochs' own orders count from 0, and u64::MAX is that of the held-out share.
        let order = order(self.seed, u64::MAX - 1 - epoch as u64, batches.len());
        order.into_iter().map(|batch| std::mem::take(&mut batches[batch])).collect()
    }

    /// The number of rows in a batch, in the mean where a batch has a number of tokens.
    fn rows_of_batch(&self) -> usize {
        if self.settings.batch_tokens == 0 {
            return self.settings.batch_size;
        }
        let tokens: usize = self.data.sequences().iter().map(|sequence| sequence.ids.len()).sum();
        let mean = (tokens / self.data.sequences().len().max(1)).max(1);
        (self.settings.batch_tokens / mean).max(1)
    }
}

fn length(data: &Dataset, row: usize) -> usize {
    data.sequences()[row].ids.len()
}

/// Cuts rows into batches: of `batch_size` rows, or of as many as have at most `batch_tokens` tokens when padded.
fn cut(rows: Vec<usize>, settings: &TrainingSettings, data: &Dataset) -> Vec<Vec<usize>> {
    if settings.batch_tokens == 0 {
        return rows.chunks(settings.batch_size).map(<[usize]>::to_vec).collect();
    }
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut longest = 0;
    for row in rows {
        let with_row = longest.max(length(data, row));
        match batches.last_mut() {
            Some(batch) if (batch.len() + 1) * with_row <= settings.batch_tokens => {
                batch.push(row);
                longest = with_row;
            }
            _ => {
                longest = length(data, row);
                batches.push(vec![row]);
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Sequence;
    use crate::train::config::tests::{SHORT, open};

    /// Rows of 2, 3, .. tokens.
    fn data(rows: usize) -> Dataset {
        let sequences = (0..rows).map(|row| Sequence::completed(vec![row as u32; row + 2], 1, vec![])).collect();
        Dataset::of_sequences(sequences)
    }

    fn steps(rows: usize, settings: &[&str]) -> Vec<Vec<Vec<usize>>> {
        let config = open(SHORT, settings).unwrap();
        let data = data(rows);
        let mut batches = Batches::new(&config, &data, 1).unwrap();
        let count = batches.steps();
        let straight: Vec<_> = (0..count).map(|step| batches.step(step)).collect();
        // Whichever step a run is resumed at, it takes the same rows.
        for step in (0..count).rev() {
            let mut resumed = Batches::new(&config, &data, 1).unwrap();
            assert_eq!(resumed.step(step), straight[step], "{settings:?}: step {step}");
        }
        straight
    }

    fn sorted(mut rows: Vec<usize>) -> Vec<usize> {
        rows.sort_unstable();
        rows
    }

    #[test]
    fn no_row_is_lost_or_taken_twice_in_an_epoch() {
        for settings in [
            &["training.batch_size=3"][..],
            &["training.batch_size=2", "training.gradient_accumulation=2"],
            &["training.batch_size=2", "training.gradient_accumulation=2", "training.step_ends_with_epoch=true"],
            &["training.batch_size=3", "training.group_by_length=true"],
            &["training.batch_tokens=20", "training.gradient_accumulation=2"],
            &["training.batch_tokens=20", "training.group_by_length=true", "training.step_ends_with_epoch=true"],
            &["training.batch_size=3", "training.shuffle=false", "training.group_by_length=true"],
        ] {
            let taken = steps(11, &[&["training.epochs=3"], settings].concat());
            let rows = taken.concat().concat();
            assert_eq!(rows.len(), 33, "{settings:?}");
            let epochs: Vec<Vec<usize>> = rows.chunks(11).map(<[usize]>::to_vec).collect();
            for epoch in &epochs {
                assert_eq!(sorted(epoch.clone()), (0..11).collect::<Vec<_>>(), "{settings:?}");
            }
            let repeats = settings.contains(&"training.shuffle=false");
            assert_eq!(epochs[0] == epochs[1], repeats, "{settings:?}");
        }
    }

    #[test]
    fn steps_run_on_over_the_end_of_an_epoch_or_end_with_it() {
        let one_by_one = ["training.batch_size=1", "training.gradient_accumulation=4", "training.shuffle=false"];
        let rows = |more: &[&str]| steps(7, &[&one_by_one[..], more].concat());
        let flat = |steps: Vec<Vec<Vec<usize>>>| steps.into_iter().map(|step| step.concat()).collect::<Vec<_>>();
        let runs_on = flat(rows(&["training.steps=4"]));
        assert_eq!(runs_on, [[0, 1, 2, 3], [4, 5, 6, 0], [1, 2, 3, 4], [5, 6, 0, 1]]);
        let ends = flat(rows(&["training.steps=4", "training.step_ends_with_epoch=true"]));
        assert_eq!(ends, [vec![0, 1, 2, 3], vec![4, 5, 6], vec![0, 1, 2, 3], vec![4, 5, 6]]);
        // The run ends with its last epoch.
        assert_eq!(flat(rows(&["training.epochs=2"])).last().unwrap(), &[5, 6]);
        assert_eq!(rows(&["training.epochs=2"])[3], [[5], [6]]);
    }

    #[test]
    fn batches_of_tokens_are_filled_and_never_exceeded() {
        let taken = steps(11, &["training.epochs=1", "training.batch_tokens=24", "training.group_by_length=true"]);
        for batch in taken.concat() {
            let longest = batch.iter().map(|row| row + 2).max().unwrap();
            assert!(batch.len() * longest <= 24, "{batch:?}");
        }
        let rows = taken.concat();
        assert!(rows.len() <= 6, "sorted rows waste little: {rows:?}");
        let config = open(SHORT, &["training.batch_tokens=11"]).unwrap();
        let error = Batches::new(&config, &data(11), 1).err().unwrap().to_string();
        assert!(error.contains("training.batch_tokens: expected at least 12, the tokens of rows: row 11"), "{error}");
    }

    #[test]
    fn packed_sequences_have_their_rows_whole_and_few_tokens() {
        let settings = ["training.epochs=3", "training.packing=true", "training.batch_size=2", "data.max_length=12"];
        let steps = steps(9, &settings);
        let passes = steps.concat();
        let mut rows = passes.concat();
        rows.sort_unstable();
        assert_eq!(rows, (0..9).flat_map(|row| [row; 3]).collect::<Vec<_>>());
        // Rows of 2 to 10 tokens, 54 together: five sequences of at most 12, two in a pass.
        assert_eq!(passes.len(), 9);
        assert!(passes.iter().all(|rows| rows.iter().map(|row| row + 2).sum::<usize>() <= 24), "{passes:?}");
        assert_ne!(passes[..3], passes[3..6]);
    }

    #[test]
    fn epochs_are_counted() {
        let config = open(SHORT, &["training.epochs=2", "training.batch_size=4"]).unwrap();
        let data = data(10);
        let mut batches = Batches::new(&config, &data, 1).unwrap();
        let after: Vec<f64> = [0, 1, 3, 5].map(|steps| batches.epochs_after(steps)).to_vec();
        assert_eq!((after, batches.steps()), (vec![0.0, 0.4, 1.2, 2.0], 5));
        // A share of the rows, also where the last step of an epoch or some passes have fewer of them.
        let after = |settings: &[&str], steps: [usize; 4]| {
            let config = open(SHORT, &[&["training.epochs=2"], settings].concat()).unwrap();
            let mut batches = Batches::new(&config, &data, 1).unwrap();
            steps.map(|steps| batches.epochs_after(steps))
        };
        let ends = ["training.batch_size=4", "training.step_ends_with_epoch=true"];
        assert_eq!(after(&ends, [1, 2, 3, 4]), [0.4, 0.8, 1.0, 1.4]);
        let batches = ["training.batch_size=4", "training.group_by_length=true", "training.shuffle=false"];
        assert_eq!(after(&batches, [1, 2, 3, 4]), [0.4, 0.8, 1.0, 1.4]);
    }
}
