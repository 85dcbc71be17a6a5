//! The other side of a product: rows of f32, in the orders in which weights come out of blocks.

use std::sync::OnceLock;

use super::lanes::PLACES;
use super::weights::Sums;

/// Rows of activations, which are multiplied with the rows of any number of matrices.
pub(crate) struct Activations<'a> {
    values: &'a [f32],
    row_len: usize,
    /// Made when the first matrix needs them.
    in_order: OnceLock<Aligned>,
    by_bytes: OnceLock<Aligned>,
    sums_of_16: OnceLock<Vec<f32>>,
    sums_of_32: OnceLock<Vec<f32>>,
}

impl<'a> Activations<'a> {
    /// `values` holds rows of `row_len` values.
    ///
    /// # Panics
    /// If it doesn't hold whole rows.
    pub(crate) fn new(values: &'a [f32], row_len: usize) -> Self {
        assert!(
            if row_len == 0 { values.is_empty() } else { values.len().is_multiple_of(row_len) },
            "rows of activations"
        );
        let (in_order, by_bytes) = (OnceLock::new(), OnceLock::new());
        let (sums_of_16, sums_of_32) = (OnceLock::new(), OnceLock::new());
        Self { values, row_len, in_order, by_bytes, sums_of_16, sums_of_32 }
    }

    pub(super) fn rows(&self) -> usize {
        self.values.len().checked_div(self.row_len).unwrap_or(0)
    }

    pub(super) fn row_len(&self) -> usize {
        self.row_len
    }

    /// The values in order.
    pub(super) fn in_order(&self) -> &[f32] {
        if self.values.as_ptr().align_offset(LINE) == 0 {
            return self.values;
        }
        let aligned = || {
            let mut aligned = Aligned::zeros(self.values.len());
            aligned.values_mut().copy_from_slice(self.values);
            aligned
        };
        self.in_order.get_or_init(aligned).values()
    }

    /// The values in the order of [`super::lanes::Lanes::bytes`]: of each 64, first those that belong to the first
    /// bytes of words, then those that belong to the second ones, and so on. They are divided by the numbers that bytes
    /// are multiplied by.
    pub(super) fn by_bytes(&self) -> &[f32] {
        self.by_bytes
            .get_or_init(|| {
                let mut aligned = Aligned::zeros(self.values.len());
                for (to, from) in
                    aligned.values_mut().as_chunks_mut::<64>().0.iter_mut().zip(self.values.as_chunks::<64>().0)
                {
                    for (place, to) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                        for (to, from) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                            *to = from[place] * (1.0 / PLACES[place]);
                        }
                    }
                }
                aligned
            })
            .values()
    }

    /// Sixteen sums for each 256 values.
    pub(super) fn sums(&self, of: Sums) -> &[f32] {
        match of {
            Sums::None => &[],
            Sums::Of16 => self.sums_of_16.get_or_init(|| self.values.as_chunks::<16>().0.iter().map(sum).collect()),
            Sums::Of32 => self.sums_of_32.get_or_init(|| {
                let mut sums = vec![0.0; self.values.len() / 16];
                for (sums, values) in sums.as_chunks_mut::<16>().0.iter_mut().zip(self.values.as_chunks::<256>().0) {
                    for (to, values) in sums[8..].iter_mut().zip(values.as_chunks::<32>().0) {
                        *to = sum(values);
                    }
                }
                sums
            }),
        }
    }
}

/// In pairs of halves, which is faster than one after the other, and rounds less.
fn sum<const N: usize>(values: &[f32; N]) -> f32 {
    let (mut sums, mut width) = (*values, N / 2);
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

/// The bytes in a line of the cache. A vector in two lines takes twice as long to load.
const LINE: usize = 64;

/// Values at the start of a line.
struct Aligned {
    room: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn zeros(len: usize) -> Self {
        let most = LINE / size_of::<f32>() - 1;
        let room = vec![0.0f32; len + most];
        // It may answer that it doesn't know.
        let start = room.as_ptr().align_offset(LINE).min(most);
        Self { room, start, len }
    }

    fn values(&self) -> &[f32] {
        &self.room[self.start..self.start + self.len]
    }

    fn values_mut(&mut self) -> &mut [f32] {
        &mut self.room[self.start..self.start + self.len]
    }
}
