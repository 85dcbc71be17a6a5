//! Sequences in a seeded order.

use std::collections::HashSet;
use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::encode::Encoded;
use super::place::{Place, numbers};
use crate::model::Sequence;

/// The stream of the order in which the rows of the first source with a fraction as weight are taken; the next ones
/// count down. Training doesn't reach epochs of these numbers.
const FRACTIONS: u64 = u64::MAX - 1;

/// Tokenized rows.
#[derive(Debug, Clone)]
pub struct Dataset {
    sequences: Vec<Sequence>,
    places: Vec<Place>,
    shares: Vec<Share>,
    /// The texts of the rows' instructions, each once, in the order of the rows; none for rows without one.
    instructions: Vec<String>,
}

/// The rows of one source, and how often each is in an epoch.
#[derive(Debug, Clone)]
struct Share {
    rows: Vec<usize>,
    weight: f64,
}

impl Share {
    /// How often every row is in an epoch, and how many rows are in it once more.
    fn counts(&self) -> (usize, usize) {
        let whole = self.weight.floor();
        (whole as usize, ((self.weight - whole) * self.rows.len() as f64).round() as usize)
    }

    fn len(&self) -> usize {
        let (whole, more) = self.counts();
        whole * self.rows.len() + more
    }

    /// The rows of an epoch. Those that are in it once more follow each other in an order of the seed, epoch by epoch, so
    /// that all have their turn before one has its second.
    fn epoch(&self, seed: u64, stream: u64, epoch: u64) -> Vec<usize> {
        let (whole, more) = self.counts();
        let mut rows = self.rows.repeat(whole);
        if more > 0 {
            let order = order(seed, stream, self.rows.len());
            let start = (u128::from(epoch) * more as u128 % order.len() as u128) as usize;
            rows.extend((start..start + more).map(|i| self.rows[order[i % order.len()]]));
        }
        rows
    }
}

impl Dataset {
    /// The sequences of `rows`. Each share is a range of them and the number of times that each is in an epoch.
    pub(super) fn new(rows: Vec<Encoded>, shares: Vec<(Range<usize>, f64)>) -> Self {
        let mut seen = HashSet::new();
        let texts = rows.iter().map(|row| row.instruction.as_str());
        let instructions = texts.filter(|text| !text.is_empty() && seen.insert(*text)).map(str::to_owned).collect();
        let (sequences, places) = rows.into_iter().map(|row| (row.sequence, row.place)).unzip();
        let shares = shares.into_iter().map(|(rows, weight)| Share { rows: rows.collect(), weight }).collect();
        Self { sequences, places, shares, instructions }
    }

    #[cfg(test)]
    pub(in crate::train) fn of_sequences(sequences: Vec<Sequence>) -> Self {
        let row = |(i, sequence): (usize, Sequence)| Encoded {
            place: Place { file: std::path::Path::new("rows").into(), unit: super::Unit::Row, number: i + 1 },
            text: String::new(),
            instruction: String::new(),
            prompt: None,
            sequence,
        };
        let count = sequences.len();
        Self::new(sequences.into_iter().enumerate().map(row).collect(), vec![(0..count, 1.0)])
    }

    /// The texts of the instructions of all rows, those that are split off too: each once, in the order of the rows.
    pub fn instructions(&self) -> &[String] {
        &self.instructions
    }

    /// Names some of the sequences by their rows in the files.
    pub fn named(&self, indices: &[usize]) -> String {
        let places: Vec<Place> = indices.iter().map(|i| self.places[*i].clone()).collect();
        match places.first() {
            Some(first) => format!("{}: {}", first.file.display(), numbers(&places)),
            None => "no row".to_owned(),
        }
    }

    /// The rows as sequences, in the file's order.
    pub fn sequences(&self) -> &[Sequence] {
        &self.sequences
    }

    /// Where each of the sequences comes from, in the same order.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The number of sequences in an epoch: of all rows, or by the weights of their sources.
    pub fn epoch_len(&self) -> usize {
        self.shares.iter().map(Share::len).sum()
    }

    /// Splits off a share of the rows, chosen by `seed`. Returns the rest and the share.
    pub fn split(self, fraction: f64, seed: u64) -> (Self, Option<Self>) {
        let held_out = (self.sequences.len() as f64 * fraction).round() as usize;
        if held_out == 0 || held_out >= self.sequences.len() {
            return (self, None);
        }
        // Training never reaches epoch u64::MAX, so the split has its own order.
        let order = order(seed, u64::MAX, self.sequences.len());
        (self.pick(&order[held_out..]), Some(self.pick(&order[..held_out])))
    }

    /// The sequences at `indices`, which keep the weights of their sources.
    fn pick(&self, indices: &[usize]) -> Self {
        let mut share_of = vec![0; self.sequences.len()];
        for (share, rows) in self.shares.iter().enumerate() {
            rows.rows.iter().for_each(|row| share_of[*row] = share);
        }
        let mut shares: Vec<Share> =
            self.shares.iter().map(|share| Share { rows: Vec::new(), weight: share.weight }).collect();
        for (new, old) in indices.iter().enumerate() {
            shares[share_of[*old]].rows.push(new);
        }
        Self {
            sequences: indices.iter().map(|i| self.sequences[*i].clone()).collect(),
            places: indices.iter().map(|i| self.places[*i].clone()).collect(),
            shares,
            instructions: self.instructions.clone(),
        }
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
                current = Some((epoch, self.epoch(seed, epoch as u64)));
            }
            if let Some((_, rows)) = &current {
                taken.push(rows[within]);
            }
        }
        taken
    }

    /// All indices of an epoch, in its order.
    fn epoch(&self, seed: u64, epoch: u64) -> Vec<usize> {
        let of_share = |(i, share): (usize, &Share)| share.epoch(seed, FRACTIONS - i as u64, epoch);
        let rows: Vec<usize> = self.shares.iter().enumerate().flat_map(of_share).collect();
        order(seed, epoch, rows.len()).into_iter().map(|i| rows[i]).collect()
    }
}

/// A permutation of `0..n` that depends only on seed and epoch (Fisher-Yates shuffle).
pub(in crate::train) fn order(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
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
    use std::path::Path;

    use super::super::place::Unit;
    use super::*;

    fn weighted(shares: &[(usize, f64)]) -> Dataset {
        let place = |i| Place { file: Path::new("rows").into(), unit: Unit::Line, number: i + 1 };
        let row = |i: usize| Encoded {
            place: place(i),
            text: String::new(),
            instruction: format!("{}", i % 3),
            prompt: None,
            sequence: Sequence::completed(vec![i as u32], 1, vec![]),
        };
        let (mut rows, mut ranges) = (Vec::new(), Vec::new());
        for (count, weight) in shares {
            let start = rows.len();
            rows.extend((start..start + count).map(row));
            ranges.push((start..rows.len(), *weight));
        }
        Dataset::new(rows, ranges)
    }

    fn dataset(n: usize) -> Dataset {
        weighted(&[(n, 1.0)])
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
        for (sequence, place) in train.sequences.iter().zip(train.places()) {
            assert_eq!(sequence.ids[0] as usize + 1, place.number);
        }
        assert_eq!(train.instructions(), ["0", "1", "2"]);
        assert_eq!(train.named(&[0]), format!("rows: line {}", train.sequences[0].ids[0] + 1));
    }

    #[test]
    fn weights_say_how_often_rows_are_in_an_epoch() {
        let data = weighted(&[(4, 2.0), (6, 0.5), (2, 1.0)]);
        assert_eq!(data.epoch_len(), 8 + 3 + 2);
        let epoch = |number: usize| data.indices(7, number * 13, 13);
        let mut halves = Vec::new();
        for number in 0..4 {
            let rows = epoch(number);
            let count = |row: usize| rows.iter().filter(|i| **i == row).count();
            assert!((0..4).all(|row| count(row) == 2) && (10..12).all(|row| count(row) == 1), "{rows:?}");
            let mut half: Vec<usize> = rows.into_iter().filter(|row| (4..10).contains(row)).collect();
            half.sort();
            halves.push(half);
        }
        // Two epochs see all rows of the source once.
        for two in halves.chunks(2) {
            let mut all = two.concat();
            all.sort();
            assert_eq!(all, (4..10).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0), epoch(1));
        // Weights stay with the rows when a part is held out.
        let (train, _) = data.split(0.25, 1);
        let doubled = (0..train.sequences.len()).filter(|i| train.sequences[*i].ids[0] < 4).count();
        let once = (0..train.sequences.len()).filter(|i| train.sequences[*i].ids[0] >= 10).count();
        let half = train.sequences.len() - doubled - once;
        assert_eq!(train.epoch_len(), 2 * doubled + once + half.div_ceil(2));
    }
}
