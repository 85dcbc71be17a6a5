//! How far two rows of weights are apart as distributions: the Kullback-Leibler divergence of their softmaxes.
//!
//! For rows that hardly differ, most of what torch computes is rounding, so its order of operations is kept: bits are
//! those of torch 2.15 on processors with AVX-512, but for MKL's logarithm, whose last bit differs in 3 of 1000 numbers
//! near 1. Here logarithms are rounded correctly.
//!
//! Reference: mergekit `mergekit/merge_methods/arcee_fusion.py` (`_compute_importance`); pytorch
//! `aten/src/ATen/native/cpu/SoftMaxKernel.cpp`, `ATen/cpu/vec/functional_base.h` (`vec_reduce_all`).

use super::working::Working;
use crate::kernel::{Kernel, Routine};
use crate::plan::{sleef_exp, torch_sum};

/// What is added to each probability.
const EPSILON: f32 = 1e-8;

/// Values that torch adds side by side: those of one AVX-512 register.
const LANES: usize = 16;

/// The buffers of a computation, which are reused from row to row.
#[derive(Debug, Default)]
pub(super) struct Divergence {
    p: Vec<f32>,
    q: Vec<f32>,
    working: Working,
}

impl Divergence {
    /// Divergences of values of a type, to which every intermediate result is rounded.
    pub(super) fn of(working: Working) -> Self {
        Self { working, ..Self::default() }
    }

    /// The divergence of the softmax of `of` from that of `from`, rows of one length.
    pub(super) fn between(&mut self, of: &[f32], from: &[f32]) -> f32 {
        for (values, probabilities) in [(of, &mut self.p), (from, &mut self.q)] {
            probabilities.clear();
            probabilities.extend_from_slice(values);
        }
        let (p, q, working) = (&mut self.p, &mut self.q, self.working);
        Kernel::in_use().run_wide(Terms { p, q, working });
        working.round(torch_sum(p))
    }
}

/// Makes rows of values the terms of their divergence, `p log(p / q)`.
struct Terms<'a> {
    p: &'a mut [f32],
    q: &'a mut [f32],
    working: Working,
}

impl Routine for Terms<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let Self { p, q, working } = self;
        softmax(p);
        softmax(q);
        if working != Working::F32 {
            return rounded_terms(p, q, working);
        }
        for (p, q) in p.chunks_mut(LANES).zip(q.chunks(LANES)) {
            let mut ratios = [1f32; LANES];
            for ((ratio, p), q) in ratios.iter_mut().zip(&mut *p).zip(q) {
                *p += EPSILON;
                *ratio = *p / (*q + EPSILON);
            }
            logarithms(&mut ratios);
            p.iter_mut().zip(&ratios).for_each(|(p, logarithm)| *p *= logarithm);
        }
    }
}

/// The same with every result rounded.
fn rounded_terms(p: &mut [f32], q: &[f32], working: Working) {
    for (p, q) in p.iter_mut().zip(q) {
        let of = |probability: f32| working.round(working.round(probability) + EPSILON);
        let (own, other) = (of(*p), of(*q));
        let logarithm = f64::from(working.round(own / other)).ln() as f32;
        *p = working.round(own * working.round(logarithm));
    }
}

/// `exp(x - max) / sum`, with torch's sum and division.
#[inline(always)]
fn softmax(values: &mut [f32]) {
    let mut largest = [f32::NEG_INFINITY; LANES];
    for values in values.chunks(LANES) {
        largest.iter_mut().zip(values).for_each(|(largest, value)| *largest = largest.max(*value));
    }
    let largest = largest.iter().fold(f32::NEG_INFINITY, |largest, value| largest.max(*value));
    values.iter_mut().for_each(|value| *value = sleef_exp(*value - largest));
    let inverse = 1.0 / sum(values);
    values.iter_mut().for_each(|value| *value *= inverse);
}

/// The sum of one row in a kernel of torch: lane by lane, then halves of the register onto each other. Fewer values than
/// lanes are added one after the other.
#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let Some((first, rest)) = values.split_first_chunk::<LANES>() else {
        return values.iter().copied().reduce(|sum, value| sum + value).unwrap_or_default();
    };
    let mut lanes = *first;
    for values in rest.chunks(LANES) {
        lanes.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
    }
    // Halves, then neighbouring quarters, then halves and neighbours within quarters.
    for distance in [8, 4, 2, 1] {
        let before = lanes;
        lanes.iter_mut().enumerate().for_each(|(lane, sum)| *sum += before[lane ^ distance]);
    }
    lanes[0]
}

/// The natural logarithms of positive numbers, computed in f64.
#[inline(always)]
fn logarithms(of: &mut [f32; LANES]) {
    if of.iter().fold(false, |far, value| far | !(0.75..1.25).contains(value)) {
        return of.iter_mut().for_each(|value| *value = f64::from(*value).ln() as f32);
    }
    for value in of {
        // 2 artanh(s), whose series in s^2 is at an end after few terms, because s is less than a seventh.
        let s = (f64::from(*value) - 1.0) / (f64::from(*value) + 1.0);
        let square = s * s;
        let series = (0..10).rev().fold(0.0, |sum, term| sum * square + 1.0 / f64::from(2 * term + 1));
        *value = (2.0 * s * series) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Row lengths, and the divergences that torch 2.15 has on a processor with AVX-512:
    /// p, q = torch.softmax(y, -1) + 1e-8, torch.softmax(x, -1) + 1e-8; torch.sum(p * torch.log(p / q), -1)
    const TORCH: [(u64, u32); 8] = [
        (3, 0x3317_f000),
        (8, 0x3509_2000),
        (12, 0x35a8_47c0),
        (16, 0x3609_a600),
        (40, 0x3673_3e40),
        (100, 0x368c_7dd0),
        (1000, 0x368f_2cb4),
        (2816, 0x3687_1b7c),
    ];

    #[test]
    fn divergences_have_the_bits_of_torch() {
        for (count, bits) in TORCH {
            let part = |i: u64, factor: u64, of: u64| (i * factor % of) as f64 / of as f64 - 0.5;
            let x: Vec<f32> = (0..count).map(|i| part(i, 7919, 1013) as f32 * 0.25).collect();
            let y: Vec<f32> = (0..).zip(&x).map(|(i, x)| x + (part(i, 104_729, 997) * 0.01) as f32).collect();
            assert_eq!(Divergence::default().between(&y, &x).to_bits(), bits, "{count}");
        }
    }

    #[test]
    fn logarithms_near_one_are_rounded_correctly() {
        for i in 0..4000 {
            let value = 0.75 + i as f32 * 1.2499e-4;
            let mut found = [value; LANES];
            logarithms(&mut found);
            assert_eq!(found, [f64::from(value).ln() as f32; LANES], "{value}");
        }
        let mut far = [2.0; LANES];
        far[3] = 1.0;
        logarithms(&mut far);
        assert_eq!((far[0], far[3]), (std::f32::consts::LN_2, 0.0));
    }
}
