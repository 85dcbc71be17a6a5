//! What can be learned of a whole tensor by going through its rows: the place of a value in the order of
//! magnitudes, sums, products of pairs. No more than some rows are in memory at a time.

use crate::dtype::DType;
use crate::error::Result;
use crate::formats::{row_len, rows};
use crate::plan::{Expr, PlannedTensor};

/// Elements seen at a time.
const CHUNK: usize = 1 << 16;

/// Shows all rows of `of` to `see`, some rows at a time: the number of the first element, and the values.
pub(super) fn scan(of: &Expr, mut see: impl FnMut(u64, &[f32])) -> Result<()> {
    scan_all(std::slice::from_ref(of), |start, values| see(start, &values[0]))
}

/// Shows the same rows of each of `of`, which have one shape.
pub(super) fn scan_all(of: &[Expr], mut see: impl FnMut(u64, &[Vec<f32>])) -> Result<()> {
    let planned: Vec<PlannedTensor> = of.iter().map(planned).collect();
    let Some(first) = planned.first() else { return Ok(()) };
    let (total, row_len) = (rows(&first.shape), row_len(&first.shape));
    if first.elems() == 0 {
        return Ok(());
    }
    let step = (CHUNK / row_len).max(1);
    for start in (0..total).step_by(step) {
        let range = start..(start + step).min(total);
        let values = planned.iter().map(|t| t.read_rows(range.clone())).collect::<Result<Vec<_>>>()?;
        see((start * row_len) as u64, &values);
    }
    Ok(())
}

/// The expression as a tensor of f32, whose rows can be read.
pub(super) fn planned(of: &Expr) -> PlannedTensor {
    // Errors name a source; a computed tensor has none of its own.
    PlannedTensor { name: String::new(), dtype: DType::F32, shape: of.shape(), expr: of.clone() }
}

/// Elements of an expression.
pub(super) fn elems(of: &Expr) -> u64 {
    of.shape().iter().product::<usize>() as u64
}

/// The first elements in an order of magnitudes: which they are takes no more than a magnitude and, of
/// those that have just this one, where to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Leading {
    order: Order,
    /// Elements that come before this magnitude in the order are among the first.
    bits: u32,
    /// Of those with just this magnitude, those before this element are.
    before: u64,
}

/// Which magnitudes come first; among the same ones always those of the first elements, as in a stable
/// sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Largest,
    Smallest,
}

/// A magnitude as a number that is ordered as magnitudes are.
fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// Bits of a magnitude that are counted in one go; the rest in another.
const LOW: u32 = 15;

impl Leading {
    /// The first `count` elements of `of`, whose elements are `count` or more.
    pub(super) fn of(of: &Expr, order: Order, count: u64) -> Result<Self> {
        let none = Self { order, bits: 0, before: 0 };
        if count == 0 {
            // Nothing comes before the last magnitude there is.
            let bits = if order == Order::Largest { u32::MAX } else { 0 };
            return Ok(Self { bits, ..none });
        }
        let mut high = vec![0u64; 1 << (31 - LOW)];
        scan(of, |_, values| values.iter().for_each(|v| high[(magnitude(*v) >> LOW) as usize] += 1))?;
        let (upper, left) = find(&high, order, count);
        let mut low = vec![0u64; 1 << LOW];
        scan(of, |_, values| {
            for v in values.iter().map(|v| magnitude(*v)).filter(|v| (v >> LOW) as usize == upper) {
                low[(v & ((1 << LOW) - 1)) as usize] += 1;
            }
        })?;
        let (lower, left) = find(&low, order, left);
        let bits = (upper << LOW | lower) as u32;
        if left == low[lower] {
            return Ok(Self { bits, before: u64::MAX, ..none });
        }
        let (mut before, mut left) = (0, left);
        scan(of, |start, values| {
            for (i, v) in values.iter().enumerate() {
                if left > 0 && magnitude(*v) == bits {
                    left -= 1;
                    before = start + i as u64 + 1;
                }
            }
        })?;
        Ok(Self { bits, before, ..none })
    }

    /// Whether element `index`, of this value, is among them.
    pub(super) fn has(&self, index: u64, value: f32) -> bool {
        let bits = magnitude(value);
        let ahead = match self.order {
            Order::Largest => bits > self.bits,
            Order::Smallest => bits < self.bits,
        };
        ahead || (bits == self.bits && index < self.before)
    }
}

/// The bucket in which the `count`-th element is, and its number there.
fn find(buckets: &[u64], order: Order, count: u64) -> (usize, u64) {
    let mut left = count;
    let mut step = |i: usize| {
        if left <= buckets[i] {
            return true;
        }
        left -= buckets[i];
        false
    };
    let found = match order {
        Order::Largest => (0..buckets.len()).rev().find(|i| step(*i)),
        Order::Smallest => (0..buckets.len()).find(|i| step(*i)),
    };
    (found.unwrap_or(0), left)
}

/// The scalar products of every two of some tensors of one shape, in f64, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gram {
    products: Vec<f64>,
    count: usize,
}

impl Gram {
    /// Of tensors as long vectors.
    pub(super) fn of(tensors: &[Expr]) -> Result<Self> {
        let mut gram = Self::new(tensors.len());
        scan_all(tensors, |_, values| gram.add(values))?;
        Ok(gram)
    }

    pub(super) fn new(count: usize) -> Self {
        Self { products: vec![0.0; count * count], count }
    }

    /// Adds the products of pieces of the vectors.
    pub(super) fn add<V: AsRef<[f32]>>(&mut self, pieces: &[V]) {
        for i in 0..self.count {
            for j in 0..=i {
                let (a, b) = (pieces[i].as_ref(), pieces[j].as_ref());
                self.products[i * self.count + j] += a.iter().zip(b).map(|(a, b)| *a as f64 * *b as f64).sum::<f64>();
            }
        }
    }

    /// The product of two.
    pub(super) fn dot(&self, i: usize, j: usize) -> f64 {
        self.products[i.max(j) * self.count + i.min(j)]
    }

    /// The length of one.
    pub(super) fn norm(&self, i: usize) -> f64 {
        self.dot(i, i).sqrt()
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(values: &[f32]) -> Expr {
        Expr::Values { shape: vec![values.len()], values: values.into() }
    }

    fn kept(values: &[f32], order: Order, count: u64) -> Vec<usize> {
        let leading = Leading::of(&vector(values), order, count).unwrap();
        (0..values.len()).filter(|i| leading.has(*i as u64, values[*i])).collect()
    }

    #[test]
    fn the_first_of_equal_magnitudes_are_the_first_elements() {
        let values = [1.0, -3.0, 0.0, 3.0, 1.0, -1.0, 2.0];
        assert_eq!(kept(&values, Order::Largest, 0), [0; 0]);
        assert_eq!(kept(&values, Order::Largest, 1), [1]);
        assert_eq!(kept(&values, Order::Largest, 4), [0, 1, 3, 6]);
        assert_eq!(kept(&values, Order::Largest, 5), [0, 1, 3, 4, 6]);
        assert_eq!(kept(&values, Order::Largest, 7), [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(kept(&values, Order::Smallest, 0), [0; 0]);
        assert_eq!(kept(&values, Order::Smallest, 1), [2]);
        assert_eq!(kept(&values, Order::Smallest, 3), [0, 2, 4]);
    }

    #[test]
    fn magnitudes_that_differ_in_the_last_bit_are_told_apart() {
        let one = 1.0f32;
        let next = f32::from_bits(one.to_bits() + 1);
        assert_eq!(kept(&[one, next, -one, -next], Order::Largest, 2), [1, 3]);
        assert_eq!(kept(&[next, one, f32::MIN_POSITIVE / 2.0], Order::Smallest, 2), [1, 2]);
    }

    #[test]
    fn products_of_pairs() {
        let gram = Gram::of(&[vector(&[1.0, 2.0]), vector(&[3.0, -1.0])]).unwrap();
        assert_eq!((gram.dot(0, 1), gram.dot(1, 0), gram.norm(1)), (1.0, 1.0, 10f64.sqrt()));
    }
}
