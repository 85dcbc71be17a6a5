//! Sequences of different lengths as one padded batch.

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

/// Sequences, padded on the right to the same width. Padding doesn't affect results: it is never
/// attended to, never routes and never counts in a loss.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Token ids, `[rows * width]`; padding is token 0.
    pub(super) ids: Vec<u32>,
    /// Positions of tokens in their sequences, `[rows * width]`.
    pub(super) positions: Vec<u32>,
    /// The number of tokens that aren't padding, `[rows]`.
    pub(super) lengths: Vec<usize>,
    /// The number of tokens that route, `[rows]`.
    pub(crate) routed: Vec<usize>,
    /// Indices into the flattened `[rows * width]` of the tokens that carry loss, in order.
    targets: Vec<u32>,
    pub(super) width: usize,
}

impl Batch {
    /// Pads `sequences`. Each must have at least one token.
    pub fn new(sequences: &[Sequence]) -> Self {
        let width = sequences.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let mut batch = Self {
            ids: Vec::new(),
            positions: Vec::new(),
            lengths: Vec::new(),
            routed: Vec::new(),
            targets: Vec::new(),
            width,
        };
        for (row, sequence) in sequences.iter().enumerate() {
            let targets = (1..sequence.ids.len()).filter(|t| sequence.targets.get(*t) == Some(&true));
            batch.targets.extend(targets.map(|t| (row * width + t) as u32));
            batch.ids.extend(&sequence.ids);
            batch.ids.resize(batch.ids.len().next_multiple_of(width.max(1)), 0);
            batch.positions.extend(0..width as u32);
            batch.lengths.push(sequence.ids.len());
            batch.routed.push(sequence.routed);
        }
        batch
    }

    /// A batch with one more token for each sequence, after the `lengths` tokens that it has
    /// already.
    pub(crate) fn next(ids: Vec<u32>, lengths: &[usize]) -> Self {
        let rows = ids.len();
        let positions = lengths.iter().map(|n| *n as u32).collect();
        Self { ids, positions, lengths: vec![1; rows], routed: vec![0; rows], targets: Vec::new(), width: 1 }
    }

    /// The number of sequences.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// The padded length.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether token `t` of sequence `row` isn't padding.
    pub(crate) fn is_real(&self, row: usize, t: usize) -> bool {
        t < self.lengths[row]
    }

    /// How many tokens of sequence `row` route.
    pub fn routed_len(&self, row: usize) -> usize {
        self.routed[row]
    }

    /// Indices into the flattened `[rows * width]` of all tokens that aren't padding.
    pub fn real_places(&self) -> Vec<u32> {
        let places = (0..self.rows()).flat_map(|row| (0..self.lengths[row]).map(move |t| row * self.width + t));
        places.map(|place| place as u32).collect()
    }

    /// The positions of the tokens of sequence `row`, as keys.
    pub(crate) fn key_positions(&self, row: usize) -> impl Iterator<Item = u32> + '_ {
        (0..self.width).map(move |t| match self.is_real(row, t) {
            true => self.positions[row * self.width + t],
            false => NEVER,
        })
    }

    /// Two lists for all tokens that carry loss: indices into the flattened `[rows * width]` of the positions that
    /// predict them, and the tokens.
    pub fn targets(&self) -> (Vec<u32>, Vec<u32>) {
        self.targets.iter().map(|t| (t - 1, self.ids[*t as usize])).unzip()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_predicted_from_the_token_before_them() {
        let row = |ids: &[u32], routed| Sequence::completed(ids.to_vec(), routed, vec![]);
        let batch = Batch::new(&[row(&[5, 6, 7, 8], 2), row(&[5, 9], 0)]);
        assert_eq!(batch.ids, [5, 6, 7, 8, 5, 9, 0, 0]);
        assert_eq!(batch.targets(), (vec![1, 2, 4], vec![7, 8, 9]));
        assert_eq!(batch.key_positions(1).collect::<Vec<_>>(), [0, 1, NEVER, NEVER]);
    }
}
