//! The largest values as torch.topk chooses them on the CPU.
//!
//! Which of several equal values at the edge are chosen depends on the C++ standard library: it selects with a heap
//! for small counts and with quickselect otherwise. Both are deterministic, and torch's builds for Linux use
//! libstdc++. On some 7,500 tensors of 1 to 200,000 values and nine of 2^23 and more, most with equal values at the
//! edge, torch 2.15 chose the same elements as this code. Builds for other systems choose differently.
//!
//! Reference: pytorch `aten/src/ATen/native/TopKImpl.h` (`topk_impl_loop`); GCC
//! `libstdc++-v3/include/bits/stl_algo.h` (`__introselect`, `__heap_select`), `stl_heap.h`.

use super::statistics::{Leading, Order, elems, magnitude, scan};
use crate::error::Result;
use crate::plan::Expr;

/// The largest tensor, in elements, for which torch's choice among equal values is reproduced: that takes 8 bytes an
/// element. In larger tensors the first of the equal values are chosen.
const MOST: u64 = 1 << 23;

/// The elements of the largest magnitudes.
#[derive(Debug, Clone)]
pub(super) struct Topk {
    leading: Leading,
    /// The chosen elements of those with the magnitude at the edge, in order; `None` where all of them are.
    tied: Option<Vec<u32>>,
}

impl Topk {
    /// The `count` largest elements of `of`, which has at least `count`.
    pub(super) fn of(of: &Expr, count: u64) -> Result<Self> {
        Self::among(of, |_| count)
    }

    /// The largest elements, as many as `count` returns for the number of elements that aren't 0.
    pub(super) fn among(of: &Expr, count: impl FnOnce(u64) -> u64) -> Result<Self> {
        let mut chosen = 0;
        let leading = Leading::among(of, Order::Largest, |nonzero| {
            chosen = count(nonzero).min(elems(of));
            chosen
        })?;
        let count = chosen;
        let tied = match leading.divided() {
            Some(edge) if elems(of) <= MOST => {
                let mut items = Vec::with_capacity(elems(of) as usize);
                scan(of, |start, values| {
                    items.extend((start as u32..).zip(values).map(|(index, v)| Item { size: magnitude(*v), index }));
                })?;
                let chosen = largest(&mut items, count as usize);
                let mut tied: Vec<u32> =
                    chosen.iter().filter(|item| item.size == edge).map(|item| item.index).collect();
                tied.sort_unstable();
                Some(tied)
            }
            _ => None,
        };
        Ok(Self { leading, tied })
    }

    /// Sets the values that aren't chosen to 0; the first value is element `start`.
    pub(super) fn keep(&self, start: u64, values: &mut [f32]) {
        match self.chooser(start) {
            None => self.leading.keep(start, values, true),
            Some(mut is_chosen) => values.iter_mut().for_each(|v| *v = if is_chosen(*v) { *v } else { 0.0 }),
        }
    }

    /// Sets the values of elements that aren't chosen by their `keys` to 0; the first is element `start`.
    pub(super) fn keep_by(&self, start: u64, keys: &[f32], values: &mut [f32]) {
        match self.chooser(start) {
            None => self.leading.keep_by(start, keys, values),
            Some(mut is_chosen) => {
                values.iter_mut().zip(keys).for_each(|(v, key)| *v = if is_chosen(*key) { *v } else { 0.0 });
            }
        }
    }

    /// Says of one element after the other, from element `start` on, whether it is chosen; `None` if the order of
    /// elements with the magnitude at the edge doesn't matter.
    fn chooser(&self, start: u64) -> Option<impl FnMut(f32) -> bool> {
        let (tied, edge) = (self.tied.as_ref()?, self.leading.divided()?);
        let mut tied = tied[tied.partition_point(|index| u64::from(*index) < start)..].iter().peekable();
        let mut elements = start..;
        Some(move |key: f32| {
            let element = elements.next();
            let is_tied = tied.next_if(|index| Some(u64::from(**index)) == element).is_some();
            magnitude(key) > edge || is_tied
        })
    }
}

/// An element: its magnitude as an ordered number, and its index.
#[derive(Debug, Clone, Copy)]
struct Item {
    size: u32,
    index: u32,
}

impl Item {
    fn is_before(self, other: Item) -> bool {
        self.size > other.size
    }
}

/// The `count` largest, from 1 to all.
fn largest(items: &mut [Item], count: usize) -> &[Item] {
    match count.saturating_mul(64) <= items.len() {
        true => select_by_heap(items, count),
        false => select(items, count - 1),
    }
    &items[..count]
}

/// Moves the item that is `nth` in order to place `nth`, and all items before it in order to its front.
fn select(items: &mut [Item], nth: usize) {
    let (mut first, mut last) = (0, items.len());
    let mut depth = 2 * items.len().ilog2();
    while last - first > 3 {
        if depth == 0 {
            return select_by_heap(&mut items[first..last], nth + 1 - first);
        }
        depth -= 1;
        let cut = first + partition(&mut items[first..last]);
        if cut <= nth {
            first = cut;
        } else {
            last = cut;
        }
    }
    let rest = &mut items[first..last];
    for i in 1..rest.len() {
        let mut at = i;
        while at > 0 && rest[at].is_before(rest[at - 1]) {
            rest.swap(at, at - 1);
            at -= 1;
        }
    }
}

/// Partitions by a pivot and returns where the second part begins. The pivot is the median of the second, the middle
/// and the last item, and stays in front.
fn partition(items: &mut [Item]) -> usize {
    let (a, b, c) = (1, items.len() / 2, items.len() - 1);
    let is_before = |x: usize, y: usize| items[x].is_before(items[y]);
    let median = match is_before(a, b) {
        true if is_before(b, c) => b,
        true if is_before(a, c) => c,
        true => a,
        false if is_before(a, c) => a,
        false if is_before(b, c) => c,
        false => b,
    };
    items.swap(0, median);
    let pivot = items[0];
    let (mut first, mut last) = (1, items.len());
    loop {
        while items[first].is_before(pivot) {
            first += 1;
        }
        last -= 1;
        while pivot.is_before(items[last]) {
            last -= 1;
        }
        if first >= last {
            return first;
        }
        items.swap(first, last);
        first += 1;
    }
}

/// Moves the first `count` items in order to the front, as a heap whose root is the last of them in order.
fn select_by_heap(items: &mut [Item], count: usize) {
    let (heap, others) = items.split_at_mut(count);
    for hole in (0..count / 2).rev() {
        sift(heap, hole, heap[hole]);
    }
    for other in others {
        if other.is_before(heap[0]) {
            let item = std::mem::replace(other, heap[0]);
            sift(heap, 0, item);
        }
    }
}

/// Puts `item` into the heap below `hole`: the hole sinks to a leaf, and the item rises from there.
fn sift(heap: &mut [Item], hole: usize, item: Item) {
    let (top, mut hole) = (hole, hole);
    while 2 * hole + 1 < heap.len() {
        let (left, right) = (2 * hole + 1, 2 * hole + 2);
        let child = if right < heap.len() && !heap[right].is_before(heap[left]) { right } else { left };
        heap[hole] = heap[child];
        hole = child;
    }
    while hole > top && heap[(hole - 1) / 2].is_before(item) {
        heap[hole] = heap[(hole - 1) / 2];
        hole = (hole - 1) / 2;
    }
    heap[hole] = item;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The elements that are kept of a tensor of these values.
    fn kept(values: &[f32], count: u64) -> Vec<usize> {
        let of = Expr::Values { shape: vec![values.len()], values: values.into() };
        let topk = Topk::of(&of, count).unwrap();
        let mut found = values.to_vec();
        // In pieces, as rows come.
        for (i, values) in found.chunks_mut(7).enumerate() {
            topk.keep(7 * i as u64, values);
        }
        (0..values.len()).filter(|i| found[*i] != 0.0).collect()
    }

    #[test]
    fn of_equal_values_those_are_kept_that_torch_keeps() {
        // sorted(torch.topk(torch.tensor(values), count).indices.tolist())
        let values = [3., 1., 2., 2., 1., 2., 3., 2., 0., 2., 1., 2., 2., 3., 2.];
        for (count, expected) in [
            (0, &[][..]),
            (1, &[0]),
            (2, &[0, 6]),
            (3, &[0, 6, 13]),
            (5, &[0, 6, 9, 11, 13]),
            (7, &[0, 6, 7, 9, 11, 12, 13]),
            (8, &[0, 6, 7, 9, 11, 12, 13, 14]),
            (10, &[0, 2, 3, 6, 7, 9, 11, 12, 13, 14]),
            (12, &[0, 1, 2, 3, 5, 6, 7, 9, 11, 12, 13, 14]),
        ] {
            assert_eq!(kept(&values, count), expected, "{count}");
        }
    }

    #[test]
    fn few_of_many_are_those_of_a_heap_and_more_those_of_quickselect() {
        // y = (torch.arange(1000) * 7919 % 11).float(); of torch.topk(y, count).indices those where y is at the edge.
        let values: Vec<f32> = (0..1000).map(|i| -((i * 7919 % 11) as f32)).collect();
        for (count, edge, of_edge, sum, first) in [
            (3, 10.0, 3, 36, [1, 12, 23]),
            (15, 10.0, 15, 1170, [1, 12, 23]),
            (16, 10.0, 16, 7947, [166, 177, 188]),
            (100, 9.0, 9, 4792, [35, 167, 332]),
            (400, 6.0, 36, 25084, [423, 434, 445]),
        ] {
            let found = kept(&values, count);
            assert_eq!(found.len() as u64, count);
            let tied: Vec<usize> = found.into_iter().filter(|i| values[*i] == -edge).collect();
            assert_eq!((tied.len(), tied.iter().sum::<usize>(), &tied[..3]), (of_edge, sum, &first[..]), "{count}");
        }
    }
}
