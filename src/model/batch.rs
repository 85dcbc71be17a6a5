//! Sequences of different lengths as one padded batch.

/// One sequence, and how many of its tokens are the prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// All of its tokens: instruction and prompt, then the completion.
    pub ids: Vec<u32>,
    /// How many of the first tokens are instruction and prompt: those that route.
    pub routed: usize,
    /// The instruction's own tokens, encoded alone; empty where there is none.
    pub instruction: Vec<u32>,
}

/// The position of a padding key: later than every query, so that none sees it.
pub(super) const NEVER: u32 = u32::MAX;

/// Sequences padded on the right to one width. A pass over a batch gives every sequence what it
/// would get alone: padding is never seen as a key, never routes and never counts in a loss.
#[derive(Debug, Clone)]
pub struct Batch {
    /// `[rows * width]`, padding as token 0.
    pub(super) ids: Vec<u32>,
    /// `[rows * width]`: each token's place in its sequence.
    pub(super) positions: Vec<u32>,
    /// `[rows]`: tokens that are not padding.
    pub(super) lengths: Vec<usize>,
    /// `[rows]`: tokens that route.
    pub(crate) routed: Vec<usize>,
    pub(super) width: usize,
}

impl Batch {
    /// Pads `sequences`, each of which has at least one token.
    pub fn new(sequences: &[Sequence]) -> Self {
        let width = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let mut batch = Self { ids: Vec::new(), positions: Vec::new(), lengths: Vec::new(), routed: Vec::new(), width };
        for sequence in sequences {
            batch.ids.extend(&sequence.ids);
            batch.ids.resize(batch.ids.len().next_multiple_of(width.max(1)), 0);
            batch.positions.extend(0..width as u32);
            batch.lengths.push(sequence.ids.len());
            batch.routed.push(sequence.routed);
        }
        batch
    }

    /// One further token for each sequence, which has `lengths` tokens before it.
    pub(crate) fn next(ids: Vec<u32>, lengths: &[usize]) -> Self {
        let rows = ids.len();
        let positions = lengths.iter().map(|n| *n as u32).collect();
        Self { ids, positions, lengths: vec![1; rows], routed: vec![0; rows], width: 1 }
    }

    /// The number of sequences.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// The padded length.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether token `t` of sequence `row` is there, rather than padding.
    pub(crate) fn is_real(&self, row: usize, t: usize) -> bool {
        t < self.lengths[row]
    }

    /// How many tokens of sequence `row` route.
    pub fn routed_len(&self, row: usize) -> usize {
        self.routed[row]
    }

    /// Indices into the flattened `[rows * width]` of all tokens that are not padding.
    pub fn real_places(&self) -> Vec<u32> {
        let places = (0..self.rows()).flat_map(|row| (0..self.lengths[row]).map(move |t| row * self.width + t));
        places.map(|place| place as u32).collect()
    }

    /// The positions of sequence `row` as keys.
    pub(crate) fn key_positions(&self, row: usize) -> impl Iterator<Item = u32> + '_ {
        (0..self.width).map(move |t| match self.is_real(row, t) {
            true => self.positions[row * self.width + t],
            false => NEVER,
        })
    }

    /// Indices into the flattened `[rows * width]` of the positions that predict each sequence's
    /// tokens from number `routed` on, and those tokens.
    pub fn completion(&self) -> (Vec<u32>, Vec<u32>) {
        let mut from = Vec::new();
        let mut targets = Vec::new();
        for row in 0..self.rows() {
            for t in self.routed[row].max(1)..self.lengths[row] {
                from.push((row * self.width + t - 1) as u32);
                targets.push(self.ids[row * self.width + t]);
            }
        }
        (from, targets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_are_predicted_from_the_token_before_them() {
        let row = |ids: &[u32], routed| Sequence { ids: ids.to_vec(), routed, instruction: vec![] };
        let batch = Batch::new(&[row(&[5, 6, 7, 8], 2), row(&[5, 9], 1)]);
        assert_eq!(batch.ids, [5, 6, 7, 8, 5, 9, 0, 0]);
        assert_eq!(batch.completion(), (vec![1, 2, 4], vec![7, 8, 9]));
        assert_eq!(batch.key_positions(1).collect::<Vec<_>>(), [0, 1, NEVER, NEVER]);
    }
}
