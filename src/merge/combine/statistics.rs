//! Numbers computed from whole tensors by reading their rows: thresholds of magnitudes, sums, scalar products. Only
//! a few rows are in memory at a time.

use std::ops::ControlFlow;

use crate::dtype::DType;
use crate::error::Result;
use crate::kernel::{Kernel, Routine};
use crate::plan::{Expr, PlannedTensor};
use crate::source::{row_len, rows};

/// The number of elements read at a time.
const CHUNK: usize = 1 << 16;

/// Calls `see` for all rows of `of`, some rows at a time, with the index of the first element and the values.
pub(super) fn scan(of: &Expr, mut see: impl FnMut(u64, &[f32])) -> Result<()> {
    scan_all(std::slice::from_ref(of), |start, values| see(start, &values[0]))
}

/// The same for several tensors of one shape: `see` gets the same rows of each.
pub(super) fn scan_all(of: &[Expr], mut see: impl FnMut(u64, &[Vec<f32>])) -> Result<()> {
    scan_while(of, |start, values| {
        see(start, values);
        ControlFlow::Continue(())
    })
}

/// The same, until `see` returns that it needs no more rows.
fn scan_while(of: &[Expr], mut see: impl FnMut(u64, &[Vec<f32>]) -> ControlFlow<()>) -> Result<()> {
    let planned: Vec<PlannedTensor> = of.iter().map(planned).collect();
    let Some(first) = planned.first() else { return Ok(()) };
    let (total, row_len) = (rows(&first.shape), row_len(&first.shape));
    if first.elems() == 0 {
        return Ok(());
    }
    let step = (CHUNK / row_len).max(1);
    let mut values = vec![Vec::new(); planned.len()];
    for start in (0..total).step_by(step) {
        let range = start..(start + step).min(total);
        for (tensor, values) in planned.iter().zip(&mut values) {
            tensor.read_rows_into(range.clone(), values)?;
        }
        if see((start * row_len) as u64, &values).is_break() {
            break;
        }
    }
    Ok(())
}

/// The expression as an f32 tensor whose rows can be read.
pub(super) fn planned(of: &Expr) -> PlannedTensor {
    // Errors name a source; a computed tensor has none of its own.
    PlannedTensor { name: String::new(), dtype: DType::F32, shape: of.shape(), expr: of.clone() }
}

/// The number of elements of an expression.
pub(super) fn elems(of: &Expr) -> u64 {
    of.shape().iter().product::<usize>() as u64
}

/// A number of first elements in an order of magnitudes. Two numbers describe them: the magnitude at the edge, and
/// up to which element those of exactly that magnitude belong to them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Leading {
    order: Order,
    /// Elements of a magnitude before this one are chosen.
    bits: u32,
    /// Elements of exactly this magnitude are chosen if they come before this element.
    before: u64,
}

/// Which magnitudes come first. Equal magnitudes keep the order of their elements, as in a stable sort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Largest,
    Smallest,
}

/// A magnitude as an integer with the same order.
pub(super) fn magnitude(value: f32) -> u32 {
    value.to_bits() & 0x7fff_ffff
}

/// The bits of a magnitude that the first pass counts; the second pass counts the rest.
const LOW: u32 = 15;

impl Leading {
    /// The first `count` elements of `of`, which has at least `count`.
    pub(super) fn of(of: &Expr, order: Order, count: u64) -> Result<Self> {
        match count {
            0 => Ok(Self::none(order)),
            _ => Self::among(of, order, |_| count),
        }
    }

    /// The first elements, as many as `count` returns for the number of elements that aren't 0.
    pub(super) fn among(of: &Expr, order: Order, count: impl FnOnce(u64) -> u64) -> Result<Self> {
        let mut high = vec![0u64; 1 << (31 - LOW)];
        let mut nonzero = 0;
        scan(of, |_, values| {
            values.iter().for_each(|v| high[(magnitude(*v) >> LOW) as usize] += 1);
            nonzero += values.iter().filter(|v| **v != 0.0).count() as u64;
        })?;
        let count = count(nonzero).min(elems(of));
        if count == 0 {
            return Ok(Self::none(order));
        }
        let (upper, left) = find(&high, order, count);
        let mut low = vec![0u64; 1 << LOW];
        scan(of, |_, values| {
            for v in values.iter().map(|v| magnitude(*v)).filter(|v| (v >> LOW) as usize == upper) {
                low[(v & ((1 << LOW) - 1)) as usize] += 1;
            }
        })?;
        let (lower, mut left) = find(&low, order, left);
        let bits = (upper << LOW | lower) as u32;
        if left == low[lower] {
            return Ok(Self { order, bits, before: u64::MAX });
        }
        let mut before = 0;
        scan_while(std::slice::from_ref(of), |start, values| {
            let values = &values[0];
            let here = values.iter().filter(|v| magnitude(**v) == bits).count() as u64;
            if here < left {
                left -= here;
                return ControlFlow::Continue(());
            }
            let same = (0..).zip(values).filter(|(_, v)| magnitude(**v) == bits);
            before = same.take(left as usize).last().map_or(0, |(i, _)| start + i + 1);
            ControlFlow::Break(())
        })?;
        Ok(Self { order, bits, before })
    }

    /// The magnitude at the edge, where only some of its elements are chosen.
    pub(super) fn divided(&self) -> Option<u32> {
        (self.before != u64::MAX && self.before != 0).then_some(self.bits)
    }

    /// No elements.
    fn none(order: Order) -> Self {
        // No magnitude comes before the first one in the order.
        Self { order, bits: if order == Order::Largest { u32::MAX } else { 0 }, before: 0 }
    }

    /// Sets values to 0; the first is element `start` of the tensor. With `among` the values that aren't chosen are
    /// set to 0, without it those that are chosen.
    pub(super) fn keep(&self, start: u64, values: &mut [f32], among: bool) {
        // Elements of the magnitude at the edge are chosen up to one element, and not chosen behind it.
        let split = self.before.saturating_sub(start).min(values.len() as u64) as usize;
        let (first, rest) = values.split_at_mut(split);
        for (values, inclusive) in [(first, true), (rest, false)] {
            let bits = self.bits;
            match (self.order, inclusive) {
                (Order::Largest, true) => select(values, |v| (magnitude(v) >= bits) == among),
                (Order::Largest, false) => select(values, |v| (magnitude(v) > bits) == among),
                (Order::Smallest, true) => select(values, |v| (magnitude(v) <= bits) == among),
                (Order::Smallest, false) => select(values, |v| (magnitude(v) < bits) == among),
            }
        }
    }

    /// Sets the values that aren't chosen to 0, where the order is that of `keys`, one for each value.
    pub(super) fn keep_by(&self, start: u64, keys: &[f32], values: &mut [f32]) {
        for (i, (value, key)) in values.iter_mut().zip(keys).enumerate() {
            *value = if self.has(start + i as u64, *key) { *value } else { 0.0 };
        }
    }

    /// Whether element `index`, which has this value, is chosen.
    pub(super) fn has(&self, index: u64, value: f32) -> bool {
        let bits = magnitude(value);
        let ahead = match self.order {
            Order::Largest => bits > self.bits,
            Order::Smallest => bits < self.bits,
        };
        ahead | ((bits == self.bits) & (index < self.before))
    }
}

/// Sets values that are not kept to 0. Without a branch, because a processor can't predict which these are.
fn select(values: &mut [f32], kept: impl Fn(f32) -> bool) {
    values.iter_mut().for_each(|v| *v = if kept(*v) { *v } else { 0.0 });
}

/// The sum of `of(value)`. Several partial sums are taken at once, because each addition waits for the one before.
pub(super) fn sum_of(values: &[f32], of: impl Fn(f32) -> f64) -> f64 {
    let mut sums = [0f64; 8];
    let (pieces, rest) = values.as_chunks::<8>();
    for piece in pieces {
        sums.iter_mut().zip(piece).for_each(|(sum, v)| *sum += of(*v));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| of(*v)).sum::<f64>()
}

/// The bucket that holds the `count`-th element, and the element's number in it.
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

/// The scalar products of all pairs of several tensors of one shape, in f64, row by row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gram {
    products: Vec<f64>,
    count: usize,
}

impl Gram {
    /// Products of whole tensors, seen as long vectors.
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
                let mut sum = 0.0;
                let (a, b) = (pieces[i].as_ref(), pieces[j].as_ref());
                Kernel::in_use().run_wide(Dot { a, b, sum: &mut sum });
                self.products[i * self.count + j] += sum;
            }
        }
    }

    /// The product of tensors `i` and `j`.
    pub(super) fn dot(&self, i: usize, j: usize) -> f64 {
        self.products[i.max(j) * self.count + i.min(j)]
    }

    /// The length of one tensor as a vector.
    pub(super) fn norm(&self, i: usize) -> f64 {
        self.dot(i, i).sqrt()
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }
}

/// A scalar product in f64. Several partial sums are taken at once, the same ones by every kernel.
struct Dot<'a> {
    a: &'a [f32],
    b: &'a [f32],
    sum: &'a mut f64,
}

impl Routine for Dot<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        const SUMS: usize = 16;
        let (mut sums, mut last) = ([0f64; SUMS], 0.0);
        let ((a, a_rest), (b, b_rest)) = (self.a.as_chunks::<SUMS>(), self.b.as_chunks::<SUMS>());
        for (a, b) in a.iter().zip(b) {
            for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                *sum += f64::from(*a) * f64::from(*b);
            }
        }
        for (a, b) in a_rest.iter().zip(b_rest) {
            last += f64::from(*a) * f64::from(*b);
        }
        *self.sum = sums.iter().sum::<f64>() + last;
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
