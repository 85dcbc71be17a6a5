//! Tokens whose rows were hardly trained: short rows, and rows that are like those of unused tokens.
//!
//! Reference: mergekit 0.1.5 `mergekit/tokensurgeon/magikarp.py` (`well_trained_tokens`). Steps are rounded as there, to the
//! tensors' type.

use std::collections::{HashMap, HashSet};

use super::in_f32;
use super::points::dot;
use crate::error::Result;
use crate::merge::combine::Working;
use crate::plan::PlannedTensor;
use crate::tokenizer::ComparableToken;

/// The share of rows that count as short, or as like those of unused tokens.
const QUANTILE: f64 = 0.01;

/// Cosines up to this are no likeness.
const LEAST_LIKENESS: f32 = 0.5;

/// What divides by a length is at least this.
const LEAST_LENGTH: f32 = 1e-8;

/// Values that are read at a time.
const READ_ELEMS: usize = 1 << 20;

/// The tokens of a vocabulary that were trained.
pub(super) fn trained_tokens<'a>(
    vocabulary: impl Iterator<Item = (&'a ComparableToken, usize)>,
    embeddings: &PlannedTensor,
    head: Option<&PlannedTensor>,
) -> Result<HashSet<ComparableToken>> {
    // Of two spellings of one token, the last counts.
    let vocabulary: HashMap<&ComparableToken, usize> = vocabulary.collect();
    let known: HashSet<usize> = vocabulary.values().copied().collect();
    let mut unused: HashSet<usize> = (0..embeddings.rows()).filter(|row| !known.contains(row)).collect();
    unused.extend(vocabulary.iter().filter(|(token, _)| is_unused(&token.text())).map(|(_, row)| *row));
    let mut bad = unused.clone();
    if head.is_some() {
        let lengths = each_row(embeddings, |row, working| working.round(dot(row, row).sqrt()))?;
        let threshold = quantile(&lengths, QUANTILE);
        bad.extend((0..lengths.len()).filter(|row| lengths[*row] < threshold));
    }
    if !unused.is_empty() {
        for tensor in std::iter::once(embeddings).chain(head) {
            let cosines = likeness(tensor, &unused)?;
            let threshold = quantile(&cosines, 1.0 - QUANTILE).max(LEAST_LIKENESS);
            bad.extend((0..cosines.len()).filter(|row| cosines[*row] > threshold));
        }
    }
    Ok(vocabulary.into_iter().filter(|(_, row)| !bad.contains(row)).map(|(token, _)| token.clone()).collect())
}

fn is_unused(text: &str) -> bool {
    text.contains("unused_token") || text.contains("reserved_special_token")
}

/// The cosine of each row's angle with the mean of the unused ones.
fn likeness(tensor: &PlannedTensor, unused: &HashSet<usize>) -> Result<Vec<f32>> {
    let working = Working::of([tensor.dtype]);
    let mut sums = vec![0.0f64; tensor.row_len()];
    let (mut count, mut place) = (0usize, 0);
    each_row(tensor, |row, _| {
        if unused.contains(&place) {
            sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(*value));
            count += 1;
        }
        place += 1;
        0.0
    })?;
    let mean: Vec<f32> = sums.iter().map(|sum| working.round((sum / count.max(1) as f64) as f32)).collect();
    let unit = |of: &[f32]| -> Vec<f32> {
        let length = working.round(dot(of, of).sqrt()).max(working.round(LEAST_LENGTH));
        of.iter().map(|value| working.round(if length == 0.0 { 0.0 } else { value / length })).collect()
    };
    let mean = unit(&mean);
    each_row(tensor, |row, _| {
        let products =
            unit(row).iter().zip(&mean).map(|(one, other)| f64::from(working.round(one * other))).sum::<f64>();
        working.round(products as f32)
    })
}

/// A number for each row. Rows are read some at a time.
fn each_row(tensor: &PlannedTensor, mut number: impl FnMut(&[f32], Working) -> f32) -> Result<Vec<f32>> {
    let (rows, width, working) = (tensor.rows(), tensor.row_len().max(1), Working::of([tensor.dtype]));
    let (tensor, step) = (in_f32(tensor), (READ_ELEMS / width).max(1));
    let mut numbers = Vec::with_capacity(rows);
    for start in (0..rows).step_by(step) {
        let values = tensor.read_rows(start..(start + step).min(rows))?;
        numbers.extend(values.chunks_exact(width).map(|row| number(row, working)));
    }
    Ok(numbers)
}

/// The value below which a share of the values is, between two of them in proportion, as torch.quantile has it.
fn quantile(values: &[f32], share: f64) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f32::total_cmp);
    let rank = share as f32 * sorted.len().saturating_sub(1) as f32;
    let at = |rank: f32| sorted.get(rank as usize).copied().unwrap_or_default();
    let (below, above, weight) = (at(rank.floor()), at(rank.ceil()), rank - rank.floor());
    if weight < 0.5 { below + weight * (above - below) } else { above - (above - below) * (1.0 - weight) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::tensor;
    use super::*;

    #[test]
    fn quantiles_lie_between_values() {
        // torch.quantile(torch.tensor([3., 1., 2., 10.]), q)
        assert_eq!(quantile(&[3.0, 1.0, 2.0, 10.0], 0.5), 2.5);
        assert_eq!(quantile(&[3.0, 1.0, 2.0, 10.0], 0.25), 1.75);
        assert_eq!(quantile(&[5.0], 0.99), 5.0);
    }

    #[test]
    fn short_rows_and_rows_like_unused_ones_are_not_trained() {
        let tokens: Vec<ComparableToken> =
            ["a", "b", "c", "unused_token_1"].map(|text| ComparableToken::Plain(text.to_owned())).into();
        let rows: [&[f32]; 5] = [&[0.1, 0.0], &[2.0, 0.1], &[0.0, 3.0], &[2.0, -0.3], &[5.0, -0.7]];
        let vocabulary = || tokens.iter().zip(0..);
        let names = |found: HashSet<ComparableToken>| {
            let mut names: Vec<String> = found.iter().map(ComparableToken::text).collect();
            names.sort();
            names.concat()
        };
        // The last row has no token. Only the row that is most like the unused ones' mean is one of them itself.
        assert_eq!(names(trained_tokens(vocabulary(), &tensor(&rows), None).unwrap()), "abc");
        assert_eq!(names(trained_tokens(vocabulary(), &tensor(&rows), Some(&tensor(&rows))).unwrap()), "bc");
    }
}
