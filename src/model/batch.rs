//! Sequences of different lengths as one batch.

use std::ops::Range;

use candle_core::Device;

/// One sequence, which of its tokens route, and which of them carry loss.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// All tokens: those of the prompt, then those of answers.
    pub ids: Vec<u32>,
    /// The number of leading tokens that belong to instruction and prompt. These are the tokens
    /// that route.
    pub routed: usize,
    /// For each token whether it carries loss, `[ids.len()]`; empty if none does. The first token never does: there is
    /// nothing before it to predict it from.
    pub targets: Vec<bool>,
    /// The instruction's tokens, encoded alone; empty without an instruction.
    pub instruction: Vec<u32>,
}

impl Sequence {
    /// A prompt of `routed` tokens and its completion, whose tokens carry loss.
    pub fn completed(ids: Vec<u32>, routed: usize, instruction: Vec<u32>) -> Self {
        let targets = (0..ids.len()).map(|t| t >= routed.max(1)).collect();
        Self { ids, routed, targets, instruction }
    }

    /// The number of tokens that carry loss.
    pub fn target_count(&self) -> usize {
        self.targets.iter().skip(1).filter(|is_target| **is_target).count()
    }
}

/// The position of a padding key: later than every query, so that no query attends to it.
pub(super) const NEVER: u32 = u32::MAX;

/// Sequences as one tensor of `[rows, width]` tokens. How they lie in it changes no result: no sequence attends to
/// another, each has its own positions and routes alone, and padding is never attended to, never routes and never counts
/// in a loss.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `[rows * width]`; padding is token 0.
    pub(super) ids: Vec<u32>,
    /// Positions of tokens in their sequences, `[rows * width]`.
    pub(super) positions: Vec<u32>,
    rows: usize,
    width: usize,
    /// The sequences, by their places.
    sequences: Vec<Span>,
    /// Indices into the flattened `[rows * width]` of the tokens that carry loss, in order.
    targets: Vec<u32>,
}

/// A sequence in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// The place of its first token in the flattened `[rows * width]`.
    pub(crate) start: usize,
    /// The number of its tokens.
    pub(crate) len: usize,
    /// The number of its tokens that route.
    pub(crate) routed: usize,
}

impl Span {
    /// The places of its tokens.
    pub(crate) fn places(&self) -> Range<usize> {
        self.start..self.start + self.len
    }
}

impl Batch {
    /// Each sequence in a row of its own, padded on the right. Each must have at least one token.
    pub fn new(sequences: &[Sequence]) -> Self {
        let width = longest(sequences);
        Self::laid(sequences, sequences.len(), width, (0..).map(|row| row * width))
    }

    /// All sequences one after the other in a single row, without padding. Each must have at least one token.
    pub fn joined(sequences: &[Sequence]) -> Self {
        let mut end = 0;
        let starts: Vec<usize> = sequences.iter().map(|sequence| advance(&mut end, sequence.ids.len())).collect();
        Self::laid(sequences, 1, end, starts.into_iter())
    }

    /// Several sequences in each row, as many in their order as fit in the length of the longest, padded on the right.
    /// Each must have at least one token.
    pub fn packed(sequences: &[Sequence]) -> Self {
        let width = longest(sequences);
        let (mut row, mut end) = (0, 0);
        let mut starts = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            if end + sequence.ids.len() > width {
                (row, end) = (row + 1, 0);
            }
            starts.push(row * width + advance(&mut end, sequence.ids.len()));
        }
        Self::laid(sequences, row + 1, width, starts.into_iter())
    }

    /// In the layout that computes least on a device: without padding on the CPU, whose attention goes through the
    /// sequences one by one; elsewhere packed, because attention is computed for whole rows there.
    pub fn compact(sequences: &[Sequence], device: &Device) -> Self {
        if device.is_cpu() { Self::joined(sequences) } else { Self::packed(sequences) }
    }

    /// Sequences that begin at ascending places.
    fn laid(sequences: &[Sequence], rows: usize, width: usize, starts: impl Iterator<Item = usize>) -> Self {
        let mut batch = Self {
            ids: vec![0; rows * width],
            positions: vec![0; rows * width],
            rows,
            width,
            sequences: Vec::with_capacity(sequences.len()),
            targets: Vec::new(),
        };
        for (sequence, start) in sequences.iter().zip(starts) {
            let len = sequence.ids.len();
            let targets = (1..len).filter(|t| sequence.targets.get(*t) == Some(&true));
            batch.targets.extend(targets.map(|t| (start + t) as u32));
            batch.ids[start..start + len].copy_from_slice(&sequence.ids);
            batch.positions[start..start + len].iter_mut().zip(0..).for_each(|(position, t)| *position = t);
            batch.sequences.push(Span { start, len, routed: sequence.routed });
        }
        batch
    }

    /// A batch with one more token for each sequence, after the `lengths` tokens that it has
    /// already.
    pub(crate) fn next(ids: Vec<u32>, lengths: &[usize]) -> Self {
        let rows = ids.len();
        let positions = lengths.iter().map(|n| *n as u32).collect();
        let sequences = (0..rows).map(|start| Span { start, len: 1, routed: 0 }).collect();
        Self { ids, positions, rows, width: 1, sequences, targets: Vec::new() }
    }

    /// The number of rows of its tensors.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The number of tokens in a row, padding included.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Its sequences, in their order.
    pub(crate) fn sequences(&self) -> &[Span] {
        &self.sequences
    }

    /// How many tokens of a sequence route.
    pub fn routed_len(&self, sequence: usize) -> usize {
        self.sequences[sequence].routed
    }

    /// Indices into the flattened `[rows * width]` of all tokens that aren't padding.
    pub fn real_places(&self) -> Vec<u32> {
        self.sequences.iter().flat_map(Span::places).map(|place| place as u32).collect()
    }

    /// For every token of `[rows * width]` the number of its sequence; for padding that of some sequence.
    pub(crate) fn sequence_of_places(&self) -> Vec<u32> {
        let mut all = vec![0; self.rows * self.width];
        for (number, span) in self.sequences.iter().enumerate() {
            all[span.places()].fill(number as u32);
        }
        all
    }

    /// The positions of all tokens as keys, by row.
    pub(crate) fn key_positions(&self) -> Vec<Vec<u32>> {
        let mut all = vec![NEVER; self.rows * self.width];
        for span in &self.sequences {
            all[span.places()].copy_from_slice(&self.positions[span.places()]);
        }
        (0..self.rows).map(|row| all[row * self.width..(row + 1) * self.width].to_vec()).collect()
    }

    /// Two lists for all tokens that carry loss: indices into the flattened `[rows * width]` of the positions that
    /// predict them, and the tokens.
    pub fn targets(&self) -> (Vec<u32>, Vec<u32>) {
        self.targets.iter().map(|t| (t - 1, self.ids[*t as usize])).unzip()
    }
}

/// The length of the longest sequence.
fn longest(sequences: &[Sequence]) -> usize {
    sequences.iter().map(|sequence| sequence.ids.len()).max().unwrap_or(0)
}

/// Moves `end` by `len` and returns where it was.
fn advance(end: &mut usize, len: usize) -> usize {
    *end += len;
    *end - len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], routed: usize) -> Sequence {
        Sequence::completed(ids.to_vec(), routed, vec![])
    }

    #[test]
    fn targets_are_predicted_from_the_token_before_them() {
        let batch = Batch::new(&[row(&[5, 6, 7, 8], 2), row(&[5, 9], 0)]);
        assert_eq!(batch.ids, [5, 6, 7, 8, 5, 9, 0, 0]);
        assert_eq!(batch.targets(), (vec![1, 2, 4], vec![7, 8, 9]));
        assert_eq!(batch.key_positions(), [[0, 1, 2, 3], [0, 1, NEVER, NEVER]]);
    }

    #[test]
    fn sequences_that_share_a_row_keep_their_positions_and_their_targets() {
        let sequences = [row(&[1, 2], 1), row(&[3, 4, 5, 6], 2), row(&[7], 0), row(&[8, 9, 10], 1)];
        let joined = Batch::joined(&sequences);
        assert_eq!((joined.rows(), joined.width()), (1, 10));
        assert_eq!(joined.positions, [0, 1, 0, 1, 2, 3, 0, 0, 1, 2]);
        assert_eq!(joined.targets(), (vec![0, 3, 4, 7, 8], vec![2, 5, 6, 9, 10]), "none across a border");
        let packed = Batch::packed(&sequences);
        assert_eq!((packed.rows(), packed.width()), (3, 4));
        assert_eq!(packed.ids, [1, 2, 0, 0, 3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(packed.key_positions(), [[0, 1, NEVER, NEVER], [0, 1, 2, 3], [0, 0, 1, 2]]);
        assert_eq!(packed.real_places(), [0, 1, 4, 5, 6, 7, 8, 9, 10, 11]);
        assert_eq!(packed.sequence_of_places(), [0, 0, 0, 0, 1, 1, 1, 1, 2, 3, 3, 3]);
    }
}
