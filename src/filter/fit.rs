//! What atoms keep of a kernel, measured in a pass over its rows.

use rayon::prelude::*;

use super::atoms::Atoms;
use super::moment::Taps;
use crate::error::Result;

/// Rows that one task measures. Sums are those of whole tasks, so that they don't depend on the number of threads.
const TASK_ROWS: usize = 256;

/// Squared norms of a kernel, and of what atoms miss of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Missed {
    /// The kernel's squared norm.
    pub norm_sqr: f64,
    /// The squared norm of the difference.
    pub missed_sqr: f64,
}

impl Missed {
    /// The relative error, in the Frobenius norm; 0 for a kernel of zeros.
    pub fn error(&self) -> f64 {
        if self.norm_sqr > 0.0 { (self.missed_sqr / self.norm_sqr).sqrt() } else { 0.0 }
    }

    /// The share of the squared norm that is kept; 1 for a kernel of zeros.
    pub fn energy(&self) -> f64 {
        1.0 - self.error() * self.error()
    }

    /// The norms of both kernels together.
    pub fn and(self, other: Self) -> Self {
        Self { norm_sqr: self.norm_sqr + other.norm_sqr, missed_sqr: self.missed_sqr + other.missed_sqr }
    }
}

/// Measures what `atoms`, whose rows are orthonormal, miss of `taps`, in f64.
///
/// # Errors
/// Those of reading.
pub fn missed(taps: &Taps, atoms: &Atoms) -> Result<Missed> {
    let shape = Shape::of(atoms);
    let mut all = Missed::default();
    taps.each_run(|run| {
        let tasks: Vec<Missed> = run
            .par_chunks(TASK_ROWS * shape.taps())
            .map(|rows| {
                let mut work = vec![0.0; shape.scratch()];
                rows.chunks_exact(shape.taps())
                    .map(|row| shape.missed(row, &mut work))
                    .fold(Missed::default(), Missed::and)
            })
            .collect();
        all = tasks.into_iter().fold(all, Missed::and);
        Ok(())
    })?;
    Ok(all)
}

/// Atoms row by row, and their numbers.
struct Shape {
    n: usize,
    m: usize,
    time: usize,
    area: usize,
    temporal: Vec<f64>,
    spatial: Vec<f64>,
}

impl Shape {
    fn of(atoms: &Atoms) -> Self {
        let (n, m) = atoms.counts();
        Self {
            n,
            m,
            time: atoms.temporal.ncols(),
            area: atoms.spatial.ncols(),
            temporal: atoms.temporal.transpose().as_slice().to_vec(),
            spatial: atoms.spatial.transpose().as_slice().to_vec(),
        }
    }

    fn taps(&self) -> usize {
        self.time * self.area
    }

    fn scratch(&self) -> usize {
        2 * self.taps() + 2 * self.n * self.area + self.n * self.m
    }

    /// Projects one row of taps on the atoms and measures the rest.
    fn missed(&self, row: &[f32], work: &mut [f64]) -> Missed {
        let &Self { n, m, time, area, .. } = self;
        let (taps, work) = work.split_at_mut(time * area);
        let (back, work) = work.split_at_mut(time * area);
        let (mixed, work) = work.split_at_mut(n * area);
        let (spread, coefficients) = work.split_at_mut(n * area);
        taps.iter_mut().zip(row).for_each(|(tap, value)| *tap = f64::from(*value));
        product(&self.temporal, taps, n, time, area, mixed);
        for k in 0..n {
            for j in 0..m {
                let (mixed, atom) = (&mixed[k * area..][..area], &self.spatial[j * area..][..area]);
                coefficients[k * m + j] = mixed.iter().zip(atom).map(|(value, atom)| value * atom).sum();
            }
        }
        product(coefficients, &self.spatial, n, m, area, spread);
        back.fill(0.0);
        for k in 0..n {
            for t in 0..time {
                let factor = self.temporal[k * time + t];
                let spread = &spread[k * area..][..area];
                back[t * area..][..area].iter_mut().zip(spread).for_each(|(sum, value)| *sum += factor * value);
            }
        }
        let norm_sqr = taps.iter().map(|tap| tap * tap).sum();
        let missed_sqr = taps.iter().zip(&*back).map(|(tap, back)| (tap - back).powi(2)).sum();
        Missed { norm_sqr, missed_sqr }
    }
}

/// `left @ right` for row-major matrices of `[rows, inner]` and `[inner, cols]`.
fn product(left: &[f64], right: &[f64], rows: usize, inner: usize, cols: usize, out: &mut [f64]) {
    for (row, out) in out.chunks_exact_mut(cols).enumerate().take(rows) {
        out.fill(0.0);
        for i in 0..inner {
            let factor = left[row * inner + i];
            out.iter_mut().zip(&right[i * cols..][..cols]).for_each(|(sum, value)| *sum += factor * value);
        }
    }
}
