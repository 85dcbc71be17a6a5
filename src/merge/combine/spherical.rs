//! Spherical methods: models are long vectors, combined by the angles between them.
//!
//! Each result is a linear combination of the models. Its coefficients follow from lengths and scalar products,
//! which are summed in f64. The references sum in f32: for models that are nearly the same few digits of the angle
//! are right then, but in that case the coefficients hardly depend on it.
//!
//! Reference: mergekit `mergekit/merge_methods/slerp.py`, `nuslerp.py`, `karcher.py`, `model_stock.py`.

use std::ops::Range;
use std::sync::Arc;

use super::lazy::Measure;
use super::rounded::{self, Arc2, Stock};
use super::statistics::{Gram, scan_all};
use super::working::Working;
use crate::error::Result;
use crate::plan::{Expr, RowMap};
use crate::source::row_len;

/// The number of elements that are summed at a time, so that they stay in the processor's cache.
pub(super) const BLOCK: usize = 1 << 12;

/// A sum of the operands, each times a number.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) factors: Vec<f32>,
    /// The divisor of the sum.
    pub(super) divisor: Option<f32>,
}

impl RowMap for Linear {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for (block, out) in out.chunks_mut(BLOCK).enumerate() {
            out.iter_mut().for_each(|out| *out *= self.factors[0]);
            for (factor, other) in self.factors[1..].iter().zip(others) {
                let other = &other[block * BLOCK..][..out.len()];
                out.iter_mut().zip(other).for_each(|(out, other)| *out += factor * other);
            }
            if let Some(divisor) = self.divisor {
                out.iter_mut().for_each(|out| *out /= divisor);
            }
        }
    }
}

fn linear(factors: impl IntoIterator<Item = f64>) -> Arc<dyn RowMap> {
    Arc::new(Linear { factors: factors.into_iter().map(|f| f as f32).collect(), divisor: None })
}

/// From the first operand to the second along the great circle.
#[derive(Debug)]
pub(super) struct Slerp {
    /// The position between them, from 0 to 1.
    pub(super) t: f64,
}

impl Measure for Slerp {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        let gram = Gram::of(of)?;
        // A vector of almost no length is not normalized.
        let length = |i| if gram.norm(i) > 1e-8 { gram.norm(i) } else { 1.0 };
        let dot = gram.dot(0, 1) / (length(0) * length(1));
        if dot.abs() > 0.9995 {
            return Ok(linear([1.0 - self.t, self.t]));
        }
        let angle = dot.acos();
        Ok(linear([((1.0 - self.t) * angle).sin() / angle.sin(), (self.t * angle).sin() / angle.sin()]))
    }
}

/// [`Slerp`] with an angle for the tensor, or for each row or column.
#[derive(Debug, Clone, Copy)]
pub(super) struct NuSlerp {
    pub(super) t: f64,
    pub(super) by: By,
    /// The type of every intermediate result.
    pub(super) working: Working,
}

/// What shares one angle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Tensor,
    Row,
    Column,
}

impl NuSlerp {
    fn factors(&self, first: f64, dot: f64, second: f64) -> [f32; 2] {
        let cosine = dot / (first.sqrt().max(1e-7) * second.sqrt().max(1e-7));
        let angle = cosine.clamp(-1.0, 1.0).acos();
        let factors = match angle.sin().abs() < 1e-8 {
            true => [1.0 - self.t, self.t],
            false => [((1.0 - self.t) * angle).sin() / angle.sin(), (self.t * angle).sin() / angle.sin()],
        };
        factors.map(|f| f as f32)
    }
}

impl Measure for NuSlerp {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        match self.by {
            By::Row => Ok(Arc::new(*self)),
            By::Tensor if self.working != Working::F32 => Arc2::of(self.t, of, self.working),
            By::Tensor => {
                let gram = Gram::of(of)?;
                let factors = self.factors(gram.dot(0, 0), gram.dot(0, 1), gram.dot(1, 1));
                Ok(Arc::new(Linear { factors: factors.to_vec(), divisor: None }))
            }
            By::Column if self.working != Working::F32 => Arc2::of_columns(self.t, of, self.working),
            By::Column => {
                let cols = row_len(&of[0].shape()).max(1);
                let mut sums = vec![[0f64; 3]; cols];
                scan_all(of, |_, values| {
                    for (a, b) in values[0].chunks(cols).zip(values[1].chunks(cols)) {
                        for ((a, b), sums) in a.iter().zip(b).zip(&mut sums) {
                            let (a, b) = (*a as f64, *b as f64);
                            sums.iter_mut().zip([a * a, a * b, b * b]).for_each(|(sum, product)| *sum += product);
                        }
                    }
                })?;
                Ok(Arc::new(Columns(
                    sums.iter().map(|[first, dot, second]| self.factors(*first, *dot, *second)).collect(),
                )))
            }
        }
    }
}

/// Row by row.
impl RowMap for NuSlerp {
    fn apply(&self, _: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for (a, b) in out.chunks_mut(row_len.max(1)).zip(others[0].chunks(row_len.max(1))) {
            if self.working != Working::F32 {
                Arc2::between(self.t, a, b, self.working);
                continue;
            }
            let mut gram = Gram::new(2);
            gram.add(&[&*a, b]);
            let [first, second] = self.factors(gram.dot(0, 0), gram.dot(0, 1), gram.dot(1, 1));
            a.iter_mut().zip(b).for_each(|(a, b)| *a = first * *a + second * b);
        }
    }
}

/// Factors for each column.
#[derive(Debug)]
struct Columns(Vec<[f32; 2]>);

impl RowMap for Columns {
    fn apply(&self, _: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for (a, b) in out.chunks_mut(row_len.max(1)).zip(others[0].chunks(row_len.max(1))) {
            for ((a, b), [first, second]) in a.iter_mut().zip(b).zip(&self.0) {
                *a = first * *a + second * b;
            }
        }
    }
}

/// Interpolates between the base and the mean of the models: the smaller the angles between the models' differences
/// from the base, the closer to the mean. The operands are the base, then the models.
#[derive(Debug, Clone, Copy)]
pub(super) struct ModelStock {
    /// Whether angles are taken row by row.
    pub(super) filter_wise: bool,
    /// The type of every intermediate result.
    pub(super) working: Working,
}

/// The position between the base, 0, and the mean, 1.
fn stock(updates: &Gram) -> f32 {
    let count = updates.len();
    let mut cosines = Vec::new();
    for i in 0..count {
        for j in i + 1..count {
            let lengths = (updates.norm(i) * updates.norm(j)).max(1e-6);
            cosines.push((updates.dot(i, j) / lengths).clamp(-1.0, 1.0));
        }
    }
    let cosine = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let divisor = 1.0 + (count - 1) as f64 * cosine;
    // Updates that cancel each other out say nothing about a mean: the base stays.
    if divisor.abs() < 1e-6 { 0.0 } else { (count as f64 * cosine / divisor) as f32 }
}

fn toward_mean(t: f32, base: &mut [f32], models: &[&[f32]]) {
    for (i, base) in base.iter_mut().enumerate() {
        let mean = models.iter().map(|m| m[i]).fold(0.0, |sum, v| sum + v) / models.len() as f32;
        *base = t * mean + (1.0 - t) * *base;
    }
}

impl Measure for ModelStock {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        if self.filter_wise {
            return Ok(Arc::new(*self));
        }
        let working = self.working;
        if working != Working::F32 {
            let mut stock = Stock::new(of.len() - 1, working);
            scan_all(of, |_, values| stock.add(&rounded_updates(&values[0], &values[1..], working)))?;
            return Ok(Arc::new(TowardMean { t: stock.position(), working }));
        }
        let mut gram = Gram::new(of.len() - 1);
        scan_all(of, |_, values| gram.add(&updates(&values[0], &values[1..])))?;
        Ok(Arc::new(TowardMean { t: stock(&gram), working }))
    }
}

fn updates<V: AsRef<[f32]>>(base: &[f32], models: &[V]) -> Vec<Vec<f32>> {
    models.iter().map(|m| m.as_ref().iter().zip(base).map(|(m, base)| m - base).collect()).collect()
}

fn rounded_updates<V: AsRef<[f32]>>(base: &[f32], models: &[V], working: Working) -> Vec<Vec<f32>> {
    let mut updates = updates(base, models);
    updates.iter_mut().for_each(|update| working.round_all(update));
    updates
}

/// Row by row.
impl RowMap for ModelStock {
    fn apply(&self, _: Range<usize>, row_len: usize, others: &[Vec<f32>], out: &mut [f32]) {
        for (r, row) in out.chunks_mut(row_len.max(1)).enumerate() {
            let models: Vec<&[f32]> = others.iter().map(|m| &m[r * row_len..][..row.len()]).collect();
            if self.working != Working::F32 {
                let mut stock = Stock::new(models.len(), self.working);
                stock.add(&rounded_updates(row, &models, self.working));
                rounded::toward_mean(stock.position(), row, &models, self.working);
                continue;
            }
            let mut gram = Gram::new(models.len());
            gram.add(&updates(row, &models));
            toward_mean(stock(&gram), row, &models);
        }
    }
}

#[derive(Debug)]
struct TowardMean {
    t: f32,
    working: Working,
}

impl RowMap for TowardMean {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<f32>], out: &mut [f32]) {
        let models: Vec<&[f32]> = others.iter().map(Vec::as_slice).collect();
        match self.working {
            Working::F32 => toward_mean(self.t, out, &models),
            working => rounded::toward_mean(self.t, out, &models, working),
        }
    }
}

/// The mean direction on the sphere, with the models' mean length. In f32 whatever the type: mergekit rounds the whole
/// tensor after every iteration, so its state can't be a handful of numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Karcher {
    pub(super) max_iter: usize,
    pub(super) tol: f64,
}

impl Karcher {
    /// The coefficient of each model. Every iterate is a linear combination of the models, so their scalar products
    /// are all that is needed.
    fn factors(&self, gram: &Gram) -> Vec<f64> {
        let count = gram.len();
        if count == 1 {
            return vec![1.0];
        }
        let norms: Vec<f64> = (0..count).map(|i| gram.norm(i)).collect();
        let valid: Vec<usize> = (0..count).filter(|i| norms[*i] > self.tol).collect();
        if valid.is_empty() {
            return vec![0.0; count];
        }
        let weight = 1.0 / valid.len() as f64;
        let unit = |i: usize, j: usize| gram.dot(valid[i], valid[j]) / (norms[valid[i]] * norms[valid[j]]);
        let dot = |a: &[f64], j: usize| -> f64 { a.iter().enumerate().map(|(i, a)| a * unit(i, j)).sum() };
        let length = |a: &[f64]| a.iter().enumerate().map(|(j, b)| b * dot(a, j)).sum::<f64>().max(0.0).sqrt();
        let mut mean = vec![weight; valid.len()];
        match length(&mean) {
            short if short < self.tol => {
                mean.fill(0.0);
                mean[0] = 1.0;
            }
            length => mean.iter_mut().for_each(|m| *m /= length),
        }
        for _ in 0..self.max_iter {
            let mut step = vec![0.0; valid.len()];
            for i in 0..valid.len() {
                let cosine = dot(&mean, i).clamp(-1.0, 1.0);
                let angle = cosine.acos();
                if angle < self.tol {
                    continue;
                }
                let pull = weight * angle / angle.sin();
                step.iter_mut().zip(&mean).for_each(|(step, m)| *step -= pull * cosine * m);
                step[i] += pull;
            }
            let far = length(&step);
            if far < self.tol {
                break;
            }
            mean.iter_mut().zip(&step).for_each(|(m, step)| *m = far.cos() * *m + far.sin() * step / far);
            let length = length(&mean);
            if length > self.tol {
                mean.iter_mut().for_each(|m| *m /= length);
            }
        }
        let scale = norms.iter().sum::<f64>() / count as f64;
        let mut factors = vec![0.0; count];
        valid.iter().zip(&mean).for_each(|(i, m)| factors[*i] = scale * m / norms[*i]);
        factors
    }
}

impl Measure for Karcher {
    fn measure(&self, of: &[Expr]) -> Result<Arc<dyn RowMap>> {
        Ok(linear(self.factors(&Gram::of(of)?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(measure: &dyn Measure, of: &[&[f32]]) -> Vec<f32> {
        let exprs: Vec<Expr> =
            of.iter().map(|v| Expr::Values { shape: vec![v.len()], values: Arc::from(*v) }).collect();
        let others: Vec<Vec<f32>> = of[1..].iter().map(|v| v.to_vec()).collect();
        let mut out = of[0].to_vec();
        measure.measure(&exprs).unwrap().apply(0..out.len(), 1, &others, &mut out);
        out
    }

    fn near(found: &[f32], expected: &[f32]) {
        let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
        assert!(close && found.len() == expected.len(), "{found:?}");
    }

    #[test]
    fn half_way_between_right_angles_is_the_diagonal() {
        let (a, b) = ([2.0, 0.0], [0.0, 2.0]);
        let root = 2f32.sqrt();
        near(&mapped(&Slerp { t: 0.5 }, &[&a, &b]), &[root, root]);
        near(&mapped(&NuSlerp { t: 0.5, by: By::Tensor, working: Working::F32 }, &[&a, &b]), &[root, root]);
        near(&mapped(&Karcher { max_iter: 10, tol: 1e-5 }, &[&a, &b]), &[root, root]);
        near(&mapped(&Slerp { t: 0.25 }, &[&a, &[4.0, 0.0]]), &[2.5, 0.0]);
        near(&mapped(&Karcher { max_iter: 10, tol: 1e-5 }, &[&a, &[0.0, 0.0]]), &[1.0, 0.0]);
        assert_eq!(mapped(&Karcher { max_iter: 10, tol: 1e-5 }, &[&[1e-6, 0.0]]), [1e-6, 0.0], "one is itself");
    }

    #[test]
    fn model_stock_stays_at_the_base_for_updates_at_right_angles() {
        let base = [1.0, 1.0];
        let stock = ModelStock { filter_wise: false, working: Working::F32 };
        near(&mapped(&stock, &[&base, &[2.0, 1.0], &[1.0, 2.0]]), &base);
        near(&mapped(&stock, &[&base, &[2.0, 1.0], &[4.0, 1.0]]), &[3.0, 1.0]);
        near(&mapped(&stock, &[&base, &[2.0, 1.0], &[-3.0, 1.0]]), &base);
    }

    #[test]
    fn rows_and_columns_have_angles_of_their_own() {
        let values = |v: [f32; 4]| Expr::Values { shape: vec![2, 2], values: Arc::from(v) };
        let (a, b) = ([2.0, 0.0, 0.0, 2.0], [0.0, 2.0, 0.0, 4.0]);
        let run = |by| {
            let map = NuSlerp { t: 0.5, by, working: Working::F32 }.measure(&[values(a), values(b)]).unwrap();
            let mut out = a;
            map.apply(0..2, 2, &[b.to_vec()], &mut out);
            out
        };
        let root = 2f32.sqrt();
        near(&run(By::Row), &[root, root, 0.0, 3.0]);
        // The first column of b is zero, so it is orthogonal to every vector.
        let column = run(By::Column);
        near(&column[..1], &[root]);
    }
}
