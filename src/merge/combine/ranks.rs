//! DELLA's random choice by the rank of magnitudes within rows.

use super::statistics::magnitude;

/// The bits that one pass of the sort looks at. Few, because their counts are cleared for every row.
const DIGIT: u32 = 8;

/// Keeps random values with probabilities that depend on their rank. The buffers are reused from row to row.
#[derive(Debug, Default)]
pub(super) struct Ranks {
    keys: Vec<u64>,
    sorted: Vec<u64>,
    probabilities: Vec<f32>,
}

impl Ranks {
    /// Keeps the values whose draw is below the probability of their rank: `least` for the smallest of a row,
    /// for the largest `2 epsilon` more. `values` are those of a matrix of `columns` columns, and ranks are
    /// those within a column. To prune by rows, pass one row at a time as a single column.
    pub(super) fn thin(&mut self, values: &mut [f32], draws: &[f32], columns: usize, least: f32, epsilon: f32) {
        let count = values.len() / columns;
        if self.probabilities.len() != count {
            // A single value has no rank.
            let last = (count.max(2) - 1) as f32;
            self.probabilities.clear();
            self.probabilities.extend((0..count).map(|rank| rank as f32 / last * 2.0 * epsilon + least));
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
    use super::*;
    use crate::linalg::Mt19937;

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

    #[test]
    fn ranks_are_those_of_a_column() {
        // The smallest is kept below a draw of 0.1, the one between them of 0.5, the largest of 0.9.
        let mut row = [3.0, -1.0, 2.0];
        Ranks::default().thin(&mut row, &[0.8, 0.2, 0.6], 1, 0.1, 0.4);
        assert_eq!(row, [3.0, 0.0, 0.0]);
        let mut columns = [3.0, 1.0, -1.0, -2.0, 2.0, 3.0];
        Ranks::default().thin(&mut columns, &[0.8, 0.8, 0.2, 0.4, 0.6, 0.8], 2, 0.1, 0.4);
        assert_eq!(columns, [3.0, 0.0, 0.0, -2.0, 0.0, 3.0]);
    }
}
