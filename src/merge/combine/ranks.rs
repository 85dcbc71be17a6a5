//! DELLA's random choice by the rank of magnitudes within rows.
//!
//! A value is kept if its draw is below the probability of its rank, and probabilities grow with ranks. So few ranks have
//! to be known: values are counted in buckets by magnitude, the bucket bounds a value's rank, and for all but a few
//! draws both bounds decide the same. Only the others are compared with all values of the row.

use super::statistics::magnitude;
use super::working::Working;
use crate::kernel::{Kernel, Routine};

/// The bits that one pass of the sort looks at. Few, because their counts are cleared for every row.
const DIGIT: u32 = 8;

/// The binary orders of magnitude below the largest value that have buckets of their own, as a power of two.
const ORDERS: u32 = 4;

/// Shorter rows are sorted.
const SHORTEST: usize = 64;

/// Keeps random values with probabilities that depend on their rank. The buffers are reused from row to row.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    keys: Vec<u64>,
    sorted: Vec<u64>,
    probabilities: Vec<f32>,
    buckets: Buckets,
}

/// The range of the probabilities of ranks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Probabilities {
    /// That of the smallest value.
    pub(super) least: f32,
    /// The largest value has twice as much more.
    pub(super) epsilon: f32,
    /// The type in which they are computed. mergekit counts ranks in it, too.
    pub(super) working: Working,
}

impl Probabilities {
    /// Those of `count` ranks.
    fn of(self, count: usize) -> impl Iterator<Item = f32> {
        let Self { least, epsilon, working } = self;
        let round = move |value| working.round(value);
        let counted = move |rank: usize| round(round(round(rank as f32) + 1.0) - 1.0);
        // A single value has no rank.
        let last = counted(count.max(2) - 1);
        (0..count).map(move |rank| round(round(round(counted(rank) / last) * 2.0 * epsilon) + least))
    }
}

impl Ranks {
    /// Keeps the values whose draw is below the probability of their rank: `least` for the smallest of a row,
    /// for the largest `2 epsilon` more. `values` are those of a matrix of `columns` columns, and ranks are
    /// those within a column. To prune by rows, pass one row at a time as a single column.
    pub(super) fn thin(&mut self, values: &mut [f32], draws: &[f32], columns: usize, range: Probabilities) {
        let count = values.len() / columns;
        if self.probabilities.len() != count {
            self.probabilities.clear();
            self.probabilities.extend(range.of(count));
        }
        if columns == 1 && count >= SHORTEST {
            let (mut done, probabilities, buckets) = (false, self.probabilities.as_slice(), &mut self.buckets);
            Kernel::in_use().run_wide(Thin { values, draws, probabilities, buckets, done: &mut done });
            if done {
                return;
            }
        }
        for column in 0..columns {
            self.keys.clear();
            let keys = |(i, value): (usize, &f32)| u64::from(magnitude(*value)) << 32 | i as u64;
            match columns {
                1 => self.keys.extend(values.iter().enumerate().map(keys)),
                _ => self.keys.extend(values[column..].iter().step_by(columns).enumerate().map(keys)),
            }
            sort(&mut self.keys, &mut self.sorted);
            for (key, probability) in self.keys.iter().zip(&self.probabilities) {
                let at = (*key as u32) as usize * columns + column;
                values[at] = if draws[at] < *probability { values[at] } else { 0.0 };
            }
        }
    }
}

/// What is known of a row without its ranks.
#[derive(Debug, Default)]
struct Buckets {
    /// The bucket of each value.
    of: Vec<u32>,
    /// The number of values in each bucket.
    counts: Vec<u32>,
    /// The probabilities of the first and of the last rank in each bucket, the smaller one first.
    bounds: Vec<[f32; 2]>,
    /// The values between whose bounds their draw is.
    unsure: Vec<u32>,
    kept: Vec<f32>,
}

/// Thins a row. Where too many values are unsure, it leaves the row as it is.
struct Thin<'a> {
    values: &'a mut [f32],
    draws: &'a [f32],
    /// Those of all ranks. They grow with them or, with a negative epsilon, fall.
    probabilities: &'a [f32],
    buckets: &'a mut Buckets,
    done: &'a mut bool,
}

impl Routine for Thin<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let Self { values, draws, probabilities, buckets, done } = self;
        buckets.fill(values, probabilities);
        let Buckets { of, bounds, unsure, kept, .. } = buckets;
        kept.resize(values.len(), 0.0);
        unsure.resize(values.len(), 0);
        let mut count = 0;
        for (i, (((value, kept), draw), bucket)) in values.iter().zip(&mut *kept).zip(draws).zip(&*of).enumerate() {
            let [low, high] = bounds[*bucket as usize];
            *kept = if *draw < low { *value } else { 0.0 };
            unsure[count] = i as u32;
            // Zeros stay zeros.
            count += usize::from((*draw >= low) & (*draw < high) & (*value != 0.0));
        }
        // Then many values are the same, or in one bucket beside a far larger one.
        if count > values.len() / 16 {
            return;
        }
        for at in unsure[..count].iter().map(|at| *at as usize) {
            kept[at] = if draws[at] < probabilities[rank(values, at)] { values[at] } else { 0.0 };
        }
        values.copy_from_slice(kept);
        *done = true;
    }
}

impl Buckets {
    /// Puts values into buckets, and bounds the probabilities of these.
    #[inline(always)]
    fn fill(&mut self, values: &[f32], probabilities: &[f32]) {
        let largest = values.iter().fold(0, |largest, value| magnitude(*value).max(largest));
        // Buckets are parts of orders of magnitude, which are the exponents: about a quarter as many as values.
        let shift = 23 + ORDERS - (values.len().ilog2() - 2).min(12);
        let floor = largest.saturating_sub(1 << (23 + ORDERS));
        self.of.resize(values.len(), 0);
        let of = self.of.iter_mut().zip(values);
        of.for_each(|(bucket, value)| *bucket = (magnitude(*value).max(floor) - floor) >> shift);
        self.counts.clear();
        self.counts.resize(((largest - floor) >> shift) as usize + 1, 0);
        self.of.iter().for_each(|bucket| self.counts[*bucket as usize] += 1);
        self.bounds.clear();
        let mut rank = 0;
        self.bounds.extend(self.counts.iter().map(|count| {
            let first = probabilities[rank.min(probabilities.len() - 1)];
            rank += *count as usize;
            let last = probabilities[rank.max(1) - 1];
            [first.min(last), first.max(last)]
        }));
    }
}

/// The number of values before `values[at]` in a stable order of magnitudes.
#[inline(always)]
fn rank(values: &[f32], at: usize) -> usize {
    let size = values[at].abs();
    let (before, behind) = values.split_at(at);
    let count = |values: &[f32], is_before: fn(f32, f32) -> bool| {
        values.iter().fold(0u32, |count, value| count + u32::from(is_before(value.abs(), size)))
    };
    (count(before, |value, size| value <= size) + count(behind, |value, size| value < size)) as usize
}

/// A stable sort by the upper halves. A radix sort, because rows are short and many: it has no branches that depend
/// on values.
fn sort(keys: &mut Vec<u64>, other: &mut Vec<u64>) {
    let Some(first) = keys.first().copied() else { return };
    let varying = (keys.iter().fold(0, |varying, key| varying | (key ^ first)) >> 32) as u32;
    if varying == 0 {
        return;
    }
    // Differences of rounded numbers have trailing zero bits, which need no pass.
    let mut shift = 32 + varying.trailing_zeros();
    let end = 64 - varying.leading_zeros();
    other.resize(keys.len(), 0);
    while shift < end {
        let digit = |key: u64| (key >> shift) as usize & ((1 << DIGIT) - 1);
        let mut places = [0u32; 1 << DIGIT];
        keys.iter().for_each(|key| places[digit(*key)] += 1);
        let mut place = 0;
        for count in &mut places {
            place += std::mem::replace(count, place);
        }
        for key in &*keys {
            let place = &mut places[digit(*key)];
            other[*place as usize] = *key;
            *place += 1;
        }
        std::mem::swap(keys, other);
        shift += DIGIT;
    }
}

#[cfg(test)]
mod tests {
    use super::super::mt19937::Mt19937;
    use super::*;

    #[test]
    fn sorting_is_that_of_the_standard_library() {
        let mut generator = Mt19937::new(1);
        let mut other = Vec::new();
        for count in [0, 1, 2, 3, 255, 256, 1000, 5000] {
            for mask in [u32::MAX >> 1, 0x7f80_0000, 0x7fff_0000, 0xff, 1, 0] {
                let mut keys: Vec<u64> =
                    (0..count).map(|i| u64::from(generator.word() & mask) << 32 | i as u64).collect();
                let mut expected = keys.clone();
                expected.sort_unstable();
                sort(&mut keys, &mut other);
                assert_eq!(keys, expected, "{count} under {mask:x}");
            }
        }
    }

    fn range(least: f32, epsilon: f32) -> Probabilities {
        Probabilities { least, epsilon, working: Working::F32 }
    }

    #[test]
    fn ranks_are_counted_in_the_type_of_the_values() {
        // torch: ((torch.arange(4).bfloat16() * 100).bfloat16() - 1) and so on; 301 is 300 in bf16.
        let range = Probabilities { least: 0.25, epsilon: 0.25, working: Working::BF16 };
        let all: Vec<f32> = range.of(301).collect();
        assert_eq!((all[0], all[150], all[300]), (0.25, 0.5, 0.75));
        assert_eq!(all[257], all[256], "257 is 256 in bf16");
    }

    #[test]
    fn ranks_are_those_of_a_column() {
        // The smallest is kept below a draw of 0.1, the one between them of 0.5, the largest of 0.9.
        let mut row = [3.0, -1.0, 2.0];
        Ranks::default().thin(&mut row, &[0.8, 0.2, 0.6], 1, range(0.1, 0.4));
        assert_eq!(row, [3.0, 0.0, 0.0]);
        let mut columns = [3.0, 1.0, -1.0, -2.0, 2.0, 3.0];
        Ranks::default().thin(&mut columns, &[0.8, 0.8, 0.2, 0.4, 0.6, 0.8], 2, range(0.1, 0.4));
        assert_eq!(columns, [3.0, 0.0, 0.0, -2.0, 0.0, 3.0]);
    }

    /// Rows of all kinds: near to each other and far apart, rounded, mostly zero, one far larger than the others.
    fn rows(count: usize, generator: &mut Mt19937) -> Vec<Vec<f32>> {
        let mut uniform = || generator.uniform() - 0.5;
        let plain: Vec<f32> = (0..count).map(|_| uniform() * uniform()).collect();
        let mut outlier = plain.clone();
        outlier[count / 3] = 1e30;
        vec![
            plain.iter().map(|v| (v * 16.0).round() / 16.0).collect(),
            plain.iter().map(|v| (v * 1000.0).round() / 1000.0).collect(),
            plain.iter().map(|v| if v.abs() < 0.1 { 0.0 } else { *v }).collect(),
            plain.iter().map(|v| v.powi(15)).collect(),
            vec![-2.0; count],
            vec![0.0; count],
            outlier,
            plain,
        ]
    }

    #[test]
    fn what_buckets_keep_is_what_ranks_keep() {
        let mut generator = Mt19937::new(5);
        let mut ranks = Ranks::default();
        for count in [SHORTEST, 100, 1000, 4097] {
            for row in rows(count, &mut generator) {
                for (least, epsilon) in [(0.35, 0.15), (0.01, 0.49), (0.6, -0.2)] {
                    let draws: Vec<f32> = (0..count).map(|_| generator.uniform()).collect();
                    let mut order: Vec<usize> = (0..count).collect();
                    order.sort_by_key(|i| magnitude(row[*i]));
                    let mut expected = vec![0.0; count];
                    for (rank, at) in order.into_iter().enumerate() {
                        let probability = rank as f32 / (count - 1) as f32 * 2.0 * epsilon + least;
                        expected[at] = if draws[at] < probability { row[at] } else { 0.0 };
                    }
                    let mut found = row.clone();
                    ranks.probabilities.clear();
                    ranks.thin(&mut found, &draws, 1, range(least, epsilon));
                    assert_eq!(found, expected, "{count} {least}");
                }
            }
        }
    }

    #[test]
    fn few_values_of_a_row_need_their_rank() {
        let mut generator = Mt19937::new(6);
        let mut row = rows(2000, &mut generator).pop().unwrap();
        let draws: Vec<f32> = (0..row.len()).map(|_| generator.uniform()).collect();
        let probabilities: Vec<f32> = (0..2000).map(|rank| rank as f32 / 1999.0 * 0.3 + 0.35).collect();
        let (mut buckets, mut done) = (Buckets::default(), false);
        let (values, probabilities) = (&mut row[..], &probabilities[..]);
        Thin { values, draws: &draws, probabilities, buckets: &mut buckets, done: &mut done }.run::<1, 1>();
        assert!(done);
    }
}
