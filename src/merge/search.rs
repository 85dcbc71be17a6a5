//! A search for the least value of a function of a few numbers, by Hooke and Jeeves' pattern search.
//!
//! The function is expensive and smooth: the loss of a merged model by the weights of the merge. After a few random points,
//! the search goes from the best one along one number after the other, as far as it gets better, and halves its steps where
//! no step does. Points lie on a grid, so that the same seed gives the same points to the last bit.
//!
//! Reference: R. Hooke, T. A. Jeeves, "Direct search" solution of numerical and statistical problems, 1961.

use crate::error::Result;
use crate::linalg::Random;

/// The number of steps of the grid from 0 to 1.
const GRID: f64 = 1024.0;
/// The first step, and the smallest.
const FIRST_STEP: f64 = 0.25;
const LAST_STEP: f64 = 1.0 / 128.0;

/// Numbers from 0 to 1.
pub type Point = Vec<f64>;

/// Gives the value of a point; `None` ends the search.
pub type Evaluate<'a> = &'a mut dyn FnMut(&[f64]) -> Result<Option<f64>>;

/// Searches from `start`, after `probes` random points, until steps are small or `evaluate` ends it.
///
/// # Errors
/// Those of `evaluate`.
pub fn minimize(start: &[f64], probes: usize, seed: u64, evaluate: Evaluate<'_>) -> Result<()> {
    let mut random = Random::new(seed);
    let mut order: Vec<usize> = (0..start.len()).collect();
    for last in (1..order.len()).rev() {
        order.swap(last, random.below(last + 1));
    }
    let mut search = Search { best: start.iter().map(|x| on_grid(*x)).collect(), value: f64::INFINITY, evaluate };
    let first = search.best.clone();
    if search.tries(first)?.is_none() {
        return Ok(());
    }
    for _ in 0..probes {
        let point = start.iter().map(|_| on_grid(f64::from(random.uniform()))).collect();
        if search.tries(point)?.is_none() {
            return Ok(());
        }
    }
    search.descend(&order).map(drop)
}

fn on_grid(x: f64) -> f64 {
    (x.clamp(0.0, 1.0) * GRID).round() / GRID
}

struct Search<'a> {
    best: Point,
    value: f64,
    evaluate: Evaluate<'a>,
}

impl Search<'_> {
    /// Whether a point is better than the best one, which it replaces then; `None` at the end of the search.
    fn tries(&mut self, point: Point) -> Result<Option<bool>> {
        let Some(value) = (self.evaluate)(&point)? else { return Ok(None) };
        let is_better = value < self.value;
        if is_better {
            (self.best, self.value) = (point, value);
        }
        Ok(Some(is_better))
    }

    /// The best point, moved: `None` where that is no other point.
    fn moved(&self, by: impl Fn(usize) -> f64) -> Option<Point> {
        let point: Point = self.best.iter().enumerate().map(|(i, x)| on_grid(x + by(i))).collect();
        (point != self.best).then_some(point)
    }

    /// Walks down from the best point; `None` where the search was ended.
    fn descend(&mut self, order: &[usize]) -> Result<Option<()>> {
        let mut signs = vec![1.0; order.len()];
        let mut step = FIRST_STEP;
        while step >= LAST_STEP {
            let before = self.best.clone();
            for &number in order {
                for sign in [signs[number], -signs[number]] {
                    let Some(point) = self.moved(|i| if i == number { sign * step } else { 0.0 }) else { continue };
                    let Some(is_better) = self.tries(point)? else { return Ok(None) };
                    if is_better {
                        signs[number] = sign;
                        break;
                    }
                }
            }
            if self.best == before {
                step /= 2.0;
                continue;
            }
            // What was good for all numbers together may be good once more.
            let last = self.best.clone();
            if let Some(point) = self.moved(|i| last[i] - before[i])
                && self.tries(point)?.is_none()
            {
                return Ok(None);
            }
        }
        Ok(Some(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(dimensions: usize, trials: usize, seed: u64, function: impl Fn(&[f64]) -> f64) -> (Point, Vec<Point>) {
        let mut tried: Vec<Point> = Vec::new();
        let mut evaluate = |point: &[f64]| {
            if tried.len() == trials {
                return Ok(None);
            }
            tried.push(point.to_vec());
            Ok(Some(function(point)))
        };
        minimize(&vec![0.5; dimensions], 2 * dimensions, seed, &mut evaluate).unwrap();
        let best = tried.iter().min_by(|a, b| function(a).total_cmp(&function(b))).unwrap().clone();
        (best, tried)
    }

    #[test]
    fn the_least_value_of_a_valley_is_found() {
        // A valley along a diagonal.
        let valley = |x: &[f64]| (x[0] - 0.3).powi(2) + 4.0 * (x[0] + x[1] - 1.1).powi(2);
        for seed in 0..5 {
            let (best, tried) = found(2, 80, seed, valley);
            assert!((best[0] - 0.3).abs() < 0.05 && (best[1] - 0.8).abs() < 0.05, "{seed}: {best:?}");
            assert_eq!(tried, found(2, 80, seed, valley).1, "the same seed gives the same points");
        }
        let (best, tried) = found(1, 100, 1, |x| (x[0] - 0.9).abs());
        assert!((best[0] - 0.9).abs() < 0.01 && tried.len() < 40, "{best:?} after {}", tried.len());
        let (best, _) = found(1, 30, 1, |x| -x[0]);
        assert_eq!(best, [1.0], "at the border");
        assert_eq!(found(3, 7, 1, |x| x[0]).1.len(), 7);
    }
}
