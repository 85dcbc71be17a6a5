//! Packing: several rows in one sequence.
//!
//! Rows that share a sequence don't see each other: attention, positions, targets and routing are those of each row
//! alone ([`crate::model::Batch`]). What packing decides is only which rows one forward pass has.

use std::collections::BTreeSet;

/// Puts the rows of an epoch into sequences of at most `limit` tokens, in few of them: the longest rows first, each into
/// the sequence with the least room that suffices (best-fit decreasing). `order` is the epoch's order of rows, which are
/// numbers; `length` gives a row's tokens. A row that is longer than `limit` has a sequence of its own.
///
/// Rows of the same length, and the sequences themselves, keep the epoch's order, so that every epoch has other
/// sequences in another order.
pub(super) fn packed(order: &[usize], length: impl Fn(usize) -> usize, limit: usize) -> Vec<Vec<usize>> {
    let mut places: Vec<usize> = (0..order.len()).collect();
    // The sort is stable.
    places.sort_by_key(|place| std::cmp::Reverse(length(order[*place])));
    let mut sequences: Vec<(usize, Vec<usize>)> = Vec::new();
    // The room of each sequence that has some, and its number.
    let mut open = BTreeSet::new();
    for place in places {
        let tokens = length(order[place]);
        let (room, sequence) = match open.range((tokens, 0)..).next().copied() {
            Some(best) => {
                open.remove(&best);
                best
            }
            None => {
                sequences.push((place, Vec::new()));
                (limit.max(tokens), sequences.len() - 1)
            }
        };
        sequences[sequence].1.push(order[place]);
        if room > tokens {
            open.insert((room - tokens, sequence));
        }
    }
    sequences.sort_by_key(|(first, _)| *first);
    sequences.into_iter().map(|(_, rows)| rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// First-fit decreasing, for comparison.
    fn first_fit(lengths: &[usize], limit: usize) -> usize {
        let mut lengths = lengths.to_vec();
        lengths.sort_by_key(|length| std::cmp::Reverse(*length));
        let mut rooms: Vec<usize> = Vec::new();
        for length in lengths {
            match rooms.iter_mut().find(|room| **room >= length) {
                Some(room) => *room -= length,
                None => rooms.push(limit - length),
            }
        }
        rooms.len()
    }

    #[test]
    fn every_row_is_whole_in_one_sequence_of_few() {
        // The rows of a public report, and more of many lengths.
        let short = vec![5, 2, 3, 1, 4, 4, 7, 1];
        let many: Vec<usize> = (0..500).map(|i| 1 + i * i * 7919 % 97).collect();
        let cases = [(short.clone(), 7, 4), (short.clone(), 8, 4), (short, 9, 3)];
        let many = [(many.clone(), 97, first_fit(&many, 97)), (many.clone(), 128, first_fit(&many, 128))];
        for (lengths, limit, most) in cases.into_iter().chain(many) {
            let order: Vec<usize> = (0..lengths.len()).rev().collect();
            let sequences = packed(&order, |row| lengths[row], limit);
            let mut rows = sequences.concat();
            rows.sort();
            assert_eq!(rows, (0..lengths.len()).collect::<Vec<_>>(), "every row once");
            let tokens = |rows: &Vec<usize>| rows.iter().map(|row| lengths[*row]).sum::<usize>();
            assert!(sequences.iter().all(|rows| (1..=limit).contains(&tokens(rows))), "{limit}: {sequences:?}");
            assert!(sequences.len() <= most, "{limit}: {} sequences, {most} by first fit", sequences.len());
        }
    }
}
