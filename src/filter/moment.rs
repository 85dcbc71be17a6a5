//! The second moment of a kernel's taps: all that finding atoms needs of a layer, gathered in one pass over its rows.

use rayon::prelude::*;

use super::size::KernelSize;
use crate::error::Result;
use crate::linalg::Matrix;
use crate::plan::PlannedTensor;

/// Values of a kernel in memory at a time.
const CHUNK_ELEMS: usize = 1 << 19;

/// A kernel's weight as rows of taps: a row for each pair of channels.
#[derive(Debug, Clone)]
pub struct Taps<'a> {
    weight: &'a PlannedTensor,
    size: KernelSize,
}

impl<'a> Taps<'a> {
    /// The rows of a convolution's weight, whose kernel size is `size`.
    pub(super) fn new(weight: &'a PlannedTensor, size: KernelSize) -> Self {
        Self { weight, size }
    }

    /// The kernel size.
    pub fn size(&self) -> KernelSize {
        self.size
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.weight.shape[0] * self.weight.shape[1]
    }

    /// Calls `work` with runs of whole rows, in their order.
    ///
    /// # Errors
    /// Those of reading, such as a number that isn't finite, and those of `work`.
    pub fn each_run(&self, mut work: impl FnMut(&[f32]) -> Result<()>) -> Result<()> {
        let taps = self.size.taps();
        let at_a_time = (CHUNK_ELEMS / taps).max(1);
        // How many rows of the tensor a row of taps is; a vector's rows are elements.
        let stored = taps / self.weight.row_len();
        let mut values = Vec::new();
        for start in (0..self.rows()).step_by(at_a_time) {
            let end = (start + at_a_time).min(self.rows());
            values.resize((end - start) * taps, 0.0);
            self.weight.fill(start * stored..end * stored, &mut values)?;
            work(&values)?;
        }
        Ok(())
    }
}

/// The sum over rows of the products of every two taps, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Moment {
    size: KernelSize,
    /// `[T H W, T H W]`, symmetric.
    values: Vec<f64>,
}

impl Moment {
    /// The moment of no rows.
    pub fn zero(size: KernelSize) -> Self {
        Self { size, values: vec![0.0; size.taps() * size.taps()] }
    }

    /// The moment of `taps`. Every number is a sum over the rows in their order, whatever the number of threads.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of(taps: &Taps) -> Result<Self> {
        let count = taps.size.taps();
        let mut moment = Self::zero(taps.size);
        taps.each_run(|run| {
            moment.values.par_chunks_mut(count).enumerate().for_each(|(i, sums)| {
                for row in run.chunks_exact(count) {
                    let factor = f64::from(row[i]);
                    for (sum, value) in sums[i..].iter_mut().zip(&row[i..]) {
                        *sum += factor * f64::from(*value);
                    }
                }
            });
            Ok(())
        })?;
        for i in 0..count {
            for j in 0..i {
                moment.values[i * count + j] = moment.values[j * count + i];
            }
        }
        Ok(moment)
    }

    /// The kernel size.
    pub fn size(&self) -> KernelSize {
        self.size
    }

    /// The squared norm of all rows.
    pub fn total(&self) -> f64 {
        let count = self.size.taps();
        (0..count).map(|i| self.values[i * count + i]).sum()
    }

    /// Adds the moment of another layer, at unit norm: layers that share atoms count alike, whatever their scale.
    pub fn add_at_unit_norm(&mut self, other: &Moment) {
        let total = other.total();
        if total > 0.0 {
            self.values.iter_mut().zip(&other.values).for_each(|(sum, value)| *sum += value / total);
        }
    }

    /// The moment of the temporal mode, `[T, T]`, with the spatial one weighted by `weights`, `[H W, H W]`.
    pub(super) fn temporal(&self, weights: &Matrix) -> Matrix {
        let (time, area, count) = (self.size.time, self.size.area(), self.size.taps());
        Matrix::from_fn(time, time, |t, u| {
            let mut sum = 0.0;
            for a in 0..area {
                let row = &self.values[(t * area + a) * count + u * area..][..area];
                // The weights are symmetric: a column is a row.
                sum += row.iter().zip(weights.column(a).iter()).map(|(value, weight)| value * weight).sum::<f64>();
            }
            sum
        })
    }

    /// The moment of the spatial mode, `[H W, H W]`, with the temporal one weighted by `weights`, `[T, T]`.
    pub(super) fn spatial(&self, weights: &Matrix) -> Matrix {
        let (time, area, count) = (self.size.time, self.size.area(), self.size.taps());
        Matrix::from_fn(area, area, |a, b| {
            let mut sum = 0.0;
            for t in 0..time {
                for u in 0..time {
                    sum += weights[(t, u)] * self.values[(t * area + a) * count + u * area + b];
                }
            }
            sum
        })
    }
}
