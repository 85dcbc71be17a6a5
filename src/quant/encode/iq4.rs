//! Quantizes to IQ4_NL and IQ4_XS: a search for the scale of each run of 32 values.
//!
//! Sixteen scales are tried for a run. The first maps the value of largest magnitude to the positive end of the table;
//! the other fifteen map it near the negative end, where the table reaches furthest. These fifteen differ by less than
//! the distance between two neighbouring edges of levels. So a value crosses at most one edge between the first and the
//! last of them: its two candidate levels are found once, and each try only selects one of them.
//!
//! Reference: ggml `ggml-quants.c`, `quantize_row_iq4_nl_impl`, `best_index_int8`, `quantize_iq4_nl`,
//! `quantize_iq4_xs`.

use half::f16;

use super::lanes::{Lanes, Runs};
use crate::kernel::{Kernel, Routine};
use crate::quant::iq4::VALUES;

/// Number of values with one scale.
const RUN: usize = 32;

/// Number of runs in an IQ4_XS block.
const RUNS: usize = 8;

/// Number of runs whose scales are searched before their bytes are written. These are enough blocks of IQ4_XS that the
/// sums of several blocks, each taken in order, can run side by side.
const SPAN: usize = 8 * RUNS;

/// Number of scales tried after the first one.
const TRIES: usize = 15;

/// Number of tries that are summed up together. More would leave too few registers for the terms.
const TOGETHER: usize = 3;
const _: () = assert!(TRIES.is_multiple_of(TOGETHER));

/// Runs with all magnitudes below this are encoded as zeros.
const TOO_SMALL: f32 = 1e-15;

/// The values for which the levels stand.
const LEVELS: [f32; 16] = {
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        levels[i] = VALUES[i] as f32;
        i += 1;
    }
    levels
};

/// The levels as numbers.
const INDICES: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// `EDGES[i]` is the midpoint of levels `i` and `i + 1`, and rounds to the upper one. Near an edge, the reference's
/// distances to both levels are exact, so comparing with the edge gives the same result.
const EDGES: [f32; 15] = {
    let mut edges = [0.0; 15];
    let mut i = 0;
    while i < 15 {
        edges[i] = (LEVELS[i] + LEVELS[i + 1]) * 0.5;
        i += 1;
    }
    edges
};

/// Encodes one row as IQ4_NL, or several rows as one. `importance` is given for all of these values.
pub(super) fn iq4_nl(row: &[f32], importance: Option<&[f32]>, out: &mut [u8], kernel: Kernel) {
    kernel.run(Nonlinear { row, importance, out });
}

/// Like [`iq4_nl`], for IQ4_XS.
pub(super) fn iq4_xs(row: &[f32], importance: Option<&[f32]>, out: &mut [u8], kernel: Kernel) {
    kernel.run(SuperBlocks { row, importance, out });
}

struct Nonlinear<'a> {
    row: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl Routine for Nonlinear<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let mut scales = [0.0; SPAN];
        let out = self.out.as_chunks_mut::<18>().0;
        for (k, (row, out)) in self.row.chunks(SPAN * RUN).zip(out.chunks_mut(SPAN)).enumerate() {
            let importance = self.importance.map(|all| &all[k * SPAN * RUN..][..row.len()]);
            find_scales::<L, 1>(row, importance, &mut scales);
            for ((values, out), scale) in row.as_chunks::<RUN>().0.iter().zip(out).zip(scales) {
                out[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                out[2..].copy_from_slice(&nibbles::<L>(values, inverse_or_zero(scale)));
            }
        }
    }
}

struct SuperBlocks<'a> {
    row: &'a [f32],
    importance: Option<&'a [f32]>,
    out: &'a mut [u8],
}

impl Routine for SuperBlocks<'_> {
    #[inline(always)]
    fn run<const L: usize, const PAIR: usize>(self) {
        let mut scales = [0.0; SPAN];
        let out = self.out.as_chunks_mut::<136>().0;
        for (k, (row, out)) in self.row.chunks(SPAN * RUN).zip(out.chunks_mut(SPAN / RUNS)).enumerate() {
            let importance = self.importance.map(|all| &all[k * SPAN * RUN..][..row.len()]);
            find_scales::<L, RUNS>(row, importance, &mut scales);
            let blocks = row.as_chunks::<{ RUNS * RUN }>().0.iter().zip(scales.as_chunks().0);
            for ((values, scales), out) in blocks.zip(out) {
                super_block::<L>(values, scales, out);
            }
        }
    }
}

/// Writes a block of IQ4_XS. The scales of runs become multiples of a 32nd of the largest.
#[inline(always)]
fn super_block<const L: usize>(values: &[f32; RUNS * RUN], scales: &[f32; RUNS], out: &mut [u8; 136]) {
    let mut largest = 0f32;
    for scale in scales {
        if scale.abs() > largest.abs() {
            largest = *scale;
        }
    }
    let d = -largest / 32.0;
    let multiples = (Lanes::splat(inverse_or_zero(d)) * Lanes(*scales)).nearest().clamp(-32, 31);
    let (mut high, mut low) = (0, 0);
    for (run, multiple) in multiples.0.into_iter().enumerate() {
        let bits = (multiple + 32) as u32;
        low |= (bits & 15) << (4 * run);
        high |= (bits >> 4) << (2 * run);
    }
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    out[2..4].copy_from_slice(&(high as u16).to_le_bytes());
    out[4..8].copy_from_slice(&low.to_le_bytes());
    let runs = values.as_chunks().0.iter().zip(out[8..].as_chunks_mut::<{ RUN / 2 }>().0);
    for ((values, out), multiple) in runs.zip(multiples.to_f32().0) {
        *out = nibbles::<L>(values, inverse_or_zero(d * multiple));
    }
}

#[inline(always)]
fn inverse_or_zero(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The levels nearest to `inverse * values`, packed: the first half of a run is in the low nibbles.
#[inline(always)]
fn nibbles<const L: usize>(values: &[f32; RUN], inverse: f32) -> [u8; RUN / 2] {
    // Adding this to a whole number leaves the number in the float's lowest bits.
    const SHIFT: f32 = 8_388_608.0;
    let mut levels = [0; RUN];
    for (levels, values) in levels.as_chunks_mut::<L>().0.iter_mut().zip(values.as_chunks::<L>().0) {
        let nearest = nearest(Lanes::splat(inverse) * Lanes(*values), &INDICES) + Lanes::splat(SHIFT);
        for (level, nearest) in levels.iter_mut().zip(nearest.0) {
            *level = nearest.to_bits() as u8;
        }
    }
    let mut out = [0; RUN / 2];
    for (i, out) in out.iter_mut().enumerate() {
        *out = levels[i] | levels[RUN / 2 + i] << 4;
    }
    out
}

/// The best scale of each run of `row`. A block has `RUNS` runs.
#[inline(always)]
fn find_scales<const L: usize, const RUNS: usize>(row: &[f32], importance: Option<&[f32]>, scales: &mut [f32; SPAN]) {
    let mut spread = [0.0; SPAN];
    if importance.is_some() {
        spread_of_blocks::<RUNS>(row, &mut spread);
    }
    for (k, (scales, spread)) in scales.as_chunks_mut().0.iter_mut().zip(spread.as_chunks().0).enumerate() {
        let first = k * L;
        if first * RUN >= row.len() {
            break;
        }
        let values = Runs::load(row, first);
        *scales = match importance {
            None => best_scales::<L, false>(&values, &values, Lanes(*spread)).0,
            Some(importance) => best_scales::<L, true>(&values, &Runs::load(importance, first), Lanes(*spread)).0,
        };
    }
}

/// Twice the mean square of each block, for each of its runs. Each sum is in order, with several blocks side by side.
#[inline(always)]
fn spread_of_blocks<const RUNS: usize>(row: &[f32], spread: &mut [f32; SPAN]) {
    const SIDE_BY_SIDE: usize = 8;
    let block = RUNS * RUN;
    for (row, spread) in row.chunks(SIDE_BY_SIDE * block).zip(spread.chunks_mut(SIDE_BY_SIDE * RUNS)) {
        let mut sums = [0.0; SIDE_BY_SIDE];
        if row.len() == SIDE_BY_SIDE * block {
            for e in 0..block {
                for (sum, row) in sums.iter_mut().zip(row.chunks_exact(block)) {
                    *sum += row[e] * row[e];
                }
            }
        } else {
            for (sum, row) in sums.iter_mut().zip(row.chunks_exact(block)) {
                *sum = row.iter().fold(0.0, |sum, x| sum + x * x);
            }
        }
        for (spread, sum) in spread.chunks_mut(RUNS).zip(sums) {
            spread.fill(sum * (2.0 / block as f32));
        }
    }
}

/// The terms that a value adds to the sums of a try: `weight * level * value` and `weight * level * level`.
#[derive(Clone, Copy)]
struct Term<const L: usize> {
    value: Lanes<L>,
    /// The terms of the first try.
    first: [Lanes<L>; 2],
    /// The edge between the two candidate levels of the other tries.
    edge: Lanes<L>,
    lower: [Lanes<L>; 2],
    upper: [Lanes<L>; 2],
}

impl<const L: usize> Term<L> {
    #[inline(always)]
    fn new(value: Lanes<L>, weight: Lanes<L>, first: Lanes<L>, [second, last]: [Lanes<L>; 2]) -> Self {
        let level = nearest(first * value, &LEVELS);
        // The edge that may be crossed is the last one below the largest of the scaled values. Values below all edges
        // get the first edge, and stay below it.
        let largest = (second * value).max(last * value);
        let (mut lower, mut upper) = (Lanes::splat(LEVELS[0]), Lanes::splat(LEVELS[1]));
        for i in 1..EDGES.len() {
            let below = Lanes::splat(EDGES[i]).above(largest);
            lower = below.pick(lower, Lanes::splat(LEVELS[i]));
            upper = below.pick(upper, Lanes::splat(LEVELS[i + 1]));
        }
        Self {
            value,
            first: [weight * level * value, weight * level * level],
            edge: (lower + upper) * Lanes::splat(0.5),
            lower: [weight * lower * value, weight * lower * lower],
            upper: [weight * upper * value, weight * upper * upper],
        }
    }
}

/// The scales of `L` runs with the smallest weighted error. With `IMPORTANT`, a value's weight is computed from its
/// importance and the spread of its block.
///
/// Each loop over the values either builds vectors or sums them. If a loop did both, or very little, compilers would
/// split it up.
#[inline(always)]
fn best_scales<const L: usize, const IMPORTANT: bool>(
    values: &Runs<L, RUN>,
    importance: &Runs<L, RUN>,
    spread: Lanes<L>,
) -> Lanes<L> {
    let zero = Lanes::splat(0.0);
    let (mut magnitude, mut largest) = (zero, zero);
    for value in &values.0 {
        let larger = value.abs().above(magnitude);
        magnitude = larger.pick(value.abs(), magnitude);
        largest = larger.pick(*value, largest);
    }

    let first = Lanes::splat(1.0) / (-largest / Lanes::splat(LEVELS[0]));
    let inverse = |i: usize| Lanes::splat(LEVELS[0] + i as f32 - (TRIES / 2) as f32) / largest;
    let ends = [inverse(0), inverse(TRIES - 1)];
    let none = [zero; 2];
    let mut terms = [Term { value: zero, first: none, edge: zero, lower: none, upper: none }; RUN];
    for (term, (value, importance)) in terms.iter_mut().zip(values.0.iter().zip(&importance.0)) {
        let square = *value * *value;
        let weight = if IMPORTANT { *importance * (spread + square).sqrt() } else { square };
        *term = Term::new(*value, weight, first, ends);
    }

    let (mut products, mut squares) = (zero, zero);
    for term in &terms {
        products = products + term.first[0];
        squares = squares + term.first[1];
    }
    let mut scale = squares.above(zero).pick(products / squares, zero);
    let mut best = scale * products;

    for tries in (0..TRIES).step_by(TOGETHER) {
        let mut inverses = [zero; TOGETHER];
        for (i, next) in inverses.iter_mut().enumerate() {
            *next = inverse(tries + i);
        }
        let mut products = [zero; TOGETHER];
        let mut squares = [zero; TOGETHER];
        for term in &terms {
            for i in 0..TOGETHER {
                let below = term.edge.above(inverses[i] * term.value);
                products[i] = products[i] + below.pick(term.lower[0], term.upper[0]);
                squares[i] = squares[i] + below.pick(term.lower[1], term.upper[1]);
            }
        }
        for (products, squares) in products.into_iter().zip(squares) {
            let better = squares.above(zero).and((products * products).above(best * squares));
            let quotient = products / squares;
            scale = better.pick(quotient, scale);
            best = better.pick(quotient * products, best);
        }
    }
    Lanes::splat(TOO_SMALL).above(magnitude).pick(zero, scale)
}

/// The entry of `table` for the level nearest to `x`. NaN isn't below any edge and gets the last entry, as in the
/// reference.
#[inline(always)]
fn nearest<const L: usize>(x: Lanes<L>, table: &[f32; 16]) -> Lanes<L> {
    let mut found = Lanes::splat(table[0]);
    for (edge, upper) in EDGES.into_iter().zip(&table[1..]) {
        found = Lanes::splat(edge).above(x).pick(found, Lanes::splat(*upper));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernels() -> impl Iterator<Item = Kernel> {
        Kernel::NAMES.into_iter().filter_map(Kernel::named)
    }

    /// Values of many sizes, with no two runs alike.
    fn row(len: usize) -> Vec<f32> {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..len).map(|i| next() * next() * (i / 32 + 1) as f32).collect()
    }

    #[test]
    fn no_value_passes_two_edges_in_all_tries() {
        let widest = (LEVELS[0] - 7.0) / (LEVELS[0] + 7.0);
        for pair in EDGES.windows(2).filter(|pair| pair[0] * pair[1] > 0.0) {
            let (near, far) = if pair[0] > 0.0 { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
            assert!(far / near > widest * 1.001, "{near} {far}");
        }
    }

    #[test]
    fn edges_belong_to_the_upper_level() {
        for (i, edge) in EDGES.into_iter().enumerate() {
            let found = nearest(Lanes([edge.next_down(), edge, edge.next_up()]), &INDICES);
            assert_eq!(found.0, [i as f32, i as f32 + 1.0, i as f32 + 1.0]);
        }
        assert_eq!(
            nearest(Lanes([f32::NEG_INFINITY, -0.0, f32::INFINITY, f32::NAN]), &INDICES).0,
            [0.0, 8.0, 15.0, 15.0]
        );
    }

    #[test]
    fn kernels_agree_on_rows_of_any_length() {
        for blocks in [1, 2, 3, 7, 8, 9, 17] {
            let row = row(blocks * 256);
            let importance: Vec<f32> = row.iter().rev().map(|v| v * v).collect();
            for importance in [None, Some(&importance[..])] {
                let encode = |kernel| {
                    let mut xs = vec![0xaa; blocks * 136];
                    iq4_xs(&row, importance, &mut xs, kernel);
                    // A number of runs that isn't a multiple of any vector width.
                    let len = row.len() - 32;
                    let mut nl = vec![0xaa; len / 32 * 18];
                    iq4_nl(&row[..len], importance.map(|i| &i[..len]), &mut nl, kernel);
                    (xs, nl)
                };
                let scalar = encode(Kernel::SCALAR);
                assert!(kernels().all(|kernel| encode(kernel) == scalar), "{blocks} blocks");
            }
        }
    }

    #[test]
    fn runs_of_zeros_have_a_zero_scale_and_the_level_nearest_to_zero() {
        for kernel in kernels() {
            let mut out = [0xaa; 18];
            iq4_nl(&[0.0; 32], None, &mut out, kernel);
            assert_eq!((&out[..2], &out[2..]), (&[0; 2][..], &[0x88; 16][..]));
            let mut out = [0xaa; 136];
            iq4_xs(&[0.0; 256], Some(&[1.0; 256]), &mut out, kernel);
            // The scale is minus zero, from the negated largest scale; the scales of runs are stored as 32, which means
            // 0.
            assert_eq!((&out[..8], &out[8..]), (&[0, 0x80, 0xaa, 0xaa, 0, 0, 0, 0][..], &[0x88; 128][..]));
        }
    }

    #[test]
    fn the_table_itself_is_kept() {
        let mut row = [0.0; 32];
        for (value, level) in row.iter_mut().zip(LEVELS.iter().cycle()) {
            *value = level * 0.5;
        }
        let mut out = [0; 18];
        iq4_nl(&row, None, &mut out, Kernel::best());
        let mut back = [0.0; 32];
        crate::quant::decode(crate::dtype::DType::IQ4_NL, &out, &mut back);
        assert_eq!(back, row);
    }
}
