//! Attention in blocks of queries: the scores of all queries and keys never exist at once.
//!
//! For a block, the scores with the keys that its queries see are computed, become weights, and mix the values. The
//! backward pass computes the weights again, from the logarithm of each query's sum that the forward pass leaves.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::exp::{exp, softmax, vectorized};
use super::product::{Matrix, multiply_alone};
use super::rows::dot;
use crate::model::batch::NEVER;

/// The queries whose scores are computed together.
const BLOCK: usize = 64;

/// Who sees whom: a query at position `q` sees the keys of its own sequence at positions up to `q`, and with a window `w`
/// only those above `q - w`.
pub(crate) struct Sight {
    /// The positions of the queries, `[B * T]`.
    pub(crate) queries: Vec<u32>,
    /// The positions of the keys, `[B * S]`; [`NEVER`] for padding.
    pub(crate) keys: Vec<u32>,
    /// By sequence: the places of its queries and of its keys in these lists. Places ascend, and no two sequences share
    /// one. Queries of no sequence see nothing.
    pub(crate) sequences: Vec<(Range<usize>, Range<usize>)>,
    /// How many positions a query sees, its own included.
    pub(crate) window: Option<usize>,
}

impl Sight {
    pub(super) fn window(&self) -> u32 {
        self.window.and_then(|window| u32::try_from(window).ok()).unwrap_or(NEVER)
    }

    /// `rows` sequences of `tokens` queries and `keys` keys each.
    #[cfg(test)]
    pub(super) fn of_rows(queries: Vec<u32>, keys: Vec<u32>, rows: usize, window: Option<usize>) -> Self {
        let (tokens, count) = (queries.len() / rows, keys.len() / rows);
        let sequences =
            (0..rows).map(|row| (row * tokens..(row + 1) * tokens, row * count..(row + 1) * count)).collect();
        Self { queries, keys, sequences, window }
    }

    /// The places of the first and behind the last of `keys` that one of `queries` sees.
    fn span(&self, queries: &[u32], keys: &[u32]) -> Range<usize> {
        let (last, first) = (queries.iter().max().copied(), queries.iter().min().copied());
        let (Some(last), Some(first)) = (last, first) else { return 0..0 };
        let oldest = first.saturating_sub(self.window().saturating_sub(1));
        let is_seen = |key: &u32| *key <= last && *key >= oldest;
        let start = keys.iter().position(is_seen);
        start.map_or(0..0, |start| start..keys.iter().rposition(is_seen).map_or(start, |end| end + 1))
    }
}

/// The sizes of attention.
#[derive(Clone, Copy)]
pub(crate) struct Heads {
    pub(crate) count: usize,
    /// The heads of keys and values. Query heads that share one are adjacent.
    pub(crate) of_keys: usize,
    /// The width of a head.
    pub(crate) width: usize,
    /// The factor of the scores.
    pub(crate) scale: f32,
}

/// What is done to the scores of queries and keys.
#[derive(Clone, Default)]
pub(crate) struct Scores {
    /// `limit * tanh(score / limit)`
    pub(crate) softcap: Option<f32>,
    /// What each head's scores gain for every position of the key, `[heads]`. Compared with the loss for every token
    /// between query and key, that is the same number more for all keys of a query, which the softmax takes away.
    pub(crate) slopes: Option<Arc<[f32]>>,
    /// A factor of these gains, which are rounded to bf16 before it is applied, as Falcon's are.
    pub(crate) rounded_slopes: Option<f32>,
    /// A score of each head that no key has, which takes its part of the softmax, `[heads]`.
    pub(crate) sinks: Option<Arc<[f32]>>,
}

/// Attention of a batch: the form of scores, and who sees whom.
#[derive(Clone, Copy)]
pub(super) struct Kernel<'a> {
    pub(super) heads: Heads,
    pub(super) form: &'a Scores,
    pub(super) sight: &'a Sight,
}

/// Some queries of one sequence, and where what they get belongs.
struct Block<'a> {
    /// The place of the first query.
    first: usize,
    /// The places of the sequence's keys.
    keys: Range<usize>,
    /// `[count, heads * d]`
    out: &'a mut [f32],
    /// `[count, heads]`
    sums: &'a mut [f32],
}

/// One sequence of a batch: its keys, its values, and the positions of both.
#[derive(Clone, Copy)]
struct Keys<'a> {
    k: &'a [f32],
    v: &'a [f32],
    positions: &'a [u32],
    /// The values of a key in all heads.
    stride: usize,
}

impl<'a> Keys<'a> {
    /// The part of one head in some keys, or in their values.
    fn head(&self, of: &'a [f32], head: usize, width: usize, span: &Range<usize>) -> Matrix<'a> {
        let values = &of[(span.start * self.stride + head * width).min(of.len())..];
        Matrix::strided(values, span.len(), width, self.stride)
    }
}

/// What one block of queries sees: positions of queries and keys, the window, and the head's form of scores.
#[derive(Clone, Copy)]
struct Seen<'a> {
    queries: &'a [u32],
    keys: &'a [u32],
    window: u32,
    softcap: Option<f32>,
    slope: Option<f32>,
    rounded: Option<f32>,
}

impl Scores {
    fn seen<'a>(&self, head: usize, (queries, keys, window): (&'a [u32], &'a [u32], u32)) -> Seen<'a> {
        let slope = self.slopes.as_ref().and_then(|slopes| slopes.get(head)).copied();
        Seen { queries, keys, window, softcap: self.softcap, slope, rounded: self.rounded_slopes }
    }
}

/// What a head's score gains by the position of the key.
pub(super) fn gain(slope: f32, rounded: Option<f32>, key: u32) -> f32 {
    // Padding is masked later.
    let key = if key == NEVER { 0.0 } else { key as f32 };
    let round = |value: f32| half::bf16::from_f32(value).to_f32();
    rounded.map_or(slope * key, |factor| round(round(slope) * round(key)) * factor)
}

/// The scores of a block of queries with the keys that they may see, masked: minus infinity where a query doesn't see a
/// key. `slopes_of_limit` gets the slope of each score's limit, where there is one.
fn scores(out: &mut Vec<f32>, slopes_of_limit: &mut Vec<f32>, q: Matrix, keys: Matrix, seen: Seen, scale: f32) {
    let span = seen.keys.len();
    out.resize(seen.queries.len() * span, 0.0);
    multiply_alone(out, span, q, keys.transposed(), scale, false);
    if let Some(limit) = seen.softcap {
        slopes_of_limit.resize(out.len(), 0.0);
        for (score, slope) in out.iter_mut().zip(slopes_of_limit) {
            // tanh(x) = 1 - 2 / (e^2x + 1)
            let share = 1.0 - 2.0 / (exp(2.0 * *score / limit) + 1.0);
            (*score, *slope) = (limit * share, 1.0 - share * share);
        }
    }
    if let Some(slope) = seen.slope {
        let gains: Vec<f32> = seen.keys.iter().map(|key| gain(slope, seen.rounded, *key)).collect();
        for row in out.chunks_exact_mut(span.max(1)) {
            row.iter_mut().zip(&gains).for_each(|(score, gain)| *score += gain);
        }
    }
    mask(out, seen.queries, seen.keys, seen.window);
}

/// Takes the part of a score that no key has from a row of weights: the logarithm of the sum with it.
fn with_sink(weights: &mut [f32], sum: f32, sink: f32) -> f32 {
    // Padding behind a window sees no key, and its weights are zeros.
    if sum == f32::INFINITY {
        return sum;
    }
    let most = sum.max(sink);
    let whole = most + ((sum - most).exp() + (sink - most).exp()).ln();
    let factor = (sum - whole).exp();
    weights.iter_mut().for_each(|weight| *weight *= factor);
    whole
}

vectorized! {
    fn mask<'a>(scores: &'a mut [f32], queries: &'a [u32], keys: &'a [u32], window: u32) {
        for (row, query) in scores.chunks_exact_mut(keys.len().max(1)).zip(queries) {
            for (score, key) in row.iter_mut().zip(keys) {
                let sees = *key <= *query && query.wrapping_sub(*key) < window;
                *score = if sees { *score } else { f32::NEG_INFINITY };
            }
        }
    }
}

vectorized! {
    /// Makes a row of scores weights, by the logarithm of their sum, and the weights' gradients the scores'. `out` is
    /// what the weights gave, `g` its gradient.
    fn of_softmax<'a>(
        scores: &'a mut [f32],
        gradients: &'a mut [f32],
        out: &'a [f32],
        g: &'a [f32],
        sum: f32,
        scale: f32,
    ) {
        let mean = dot(out, g);
        for (weight, gradient) in scores.iter_mut().zip(gradients) {
            *weight = exp(*weight - sum);
            *gradient = *weight * (*gradient - mean) * scale;
        }
    }
}

impl Kernel<'_> {
    /// The queries of all sequences in blocks, each with its part of `out` and `sums`.
    fn blocks<'b>(&self, mut out: &'b mut [f32], mut sums: &'b mut [f32]) -> Vec<Block<'b>> {
        let Heads { count: heads, width, .. } = self.heads;
        let (mut blocks, mut place) = (Vec::new(), 0);
        for (queries, keys) in &self.sight.sequences {
            for first in queries.clone().step_by(BLOCK) {
                let end = queries.end.min(first + BLOCK);
                let part = |all: &mut &'b mut [f32], width: usize| {
                    let rest = std::mem::take(all).split_at_mut((first - place) * width).1;
                    let (part, rest) = rest.split_at_mut((end - first) * width);
                    *all = rest;
                    part
                };
                let (out, sums) = (part(&mut out, heads * width), part(&mut sums, heads));
                blocks.push(Block { first, keys: keys.clone(), out, sums });
                place = end;
            }
        }
        blocks
    }

    /// The keys at `places`, and their values.
    fn keys<'b>(&'b self, k: &'b [f32], v: &'b [f32], places: &Range<usize>) -> Keys<'b> {
        let stride = self.heads.of_keys * self.heads.width;
        let values = places.start * stride..places.end * stride;
        Keys { k: &k[values.clone()], v: &v[values], positions: &self.sight.keys[places.clone()], stride }
    }

    /// What queries `[queries, heads * d]` get of keys and values `[keys, of_keys * d]`, and the logarithm of the sum of
    /// each query's exponentials, `[queries * heads]`. Queries of no sequence get zeros.
    pub(super) fn forward(&self, q: &[f32], k: &[f32], v: &[f32]) -> (Vec<f32>, Vec<f32>) {
        let (heads, sight) = (self.heads, self.sight);
        let width = heads.count * heads.width;
        let (d, shared, window) = (heads.width, heads.count / heads.of_keys, sight.window());
        let mut out = vec![0f32; q.len()];
        let mut sums = vec![0f32; q.len() / d];
        self.blocks(&mut out, &mut sums).into_par_iter().for_each_init(
            Default::default,
            |(weights, slopes): &mut (Vec<f32>, Vec<f32>), Block { first, keys, out, sums }| {
                let keys = self.keys(k, v, &keys);
                let count = out.len() / width;
                let queries = &sight.queries[first..first + count];
                let span = sight.span(queries, keys.positions);
                let seen = &keys.positions[span.clone()];
                for head in 0..heads.count {
                    let q = Matrix::strided(&q[first * width + head * d..], count, d, width);
                    let of_keys = keys.head(keys.k, head / shared, d, &span);
                    let seen = self.form.seen(head, (queries, seen, window));
                    scores(weights, slopes, q, of_keys, seen, heads.scale);
                    for (i, row) in weights.chunks_exact_mut(span.len().max(1)).enumerate() {
                        let sum = softmax(row);
                        let sink = self.form.sinks.as_ref().map(|sinks| sinks[head]);
                        sums[i * heads.count + head] = sink.map_or(sum, |sink| with_sink(row, sum, sink));
                    }
                    let weights = Matrix::new(weights, count, span.len());
                    let of_values = keys.head(keys.v, head / shared, d, &span);
                    multiply_alone(&mut out[head * d..], width, weights, of_values, 1.0, false);
                }
            },
        );
        (out, sums)
    }

    /// The gradients of queries, keys and values, by what [`Kernel::forward`] gave for them, `out` and `sums`, and the
    /// gradient of `out`.
    pub(super) fn backward(
        &self,
        [q, k, v]: [&[f32]; 3],
        (out, sums): (&[f32], &[f32]),
        gradient: &[f32],
    ) -> [Vec<f32>; 3] {
        let (heads, sight) = (self.heads, self.sight);
        let width = heads.count * heads.width;
        let (d, shared, window) = (heads.width, heads.count / heads.of_keys, sight.window());
        // Each task has the heads that share keys and values, in one sequence of the batch.
        let one = |task: usize| {
            let ((of_sequence, places), key_head) = (&sight.sequences[task / heads.of_keys], task % heads.of_keys);
            let keys = self.keys(k, v, places);
            let mut dq = vec![0f32; of_sequence.len() * shared * d];
            let (mut dk, mut dv) = (vec![0f32; places.len() * d], vec![0f32; places.len() * d]);
            let (mut weights, mut of_weights, mut slopes) = (Vec::new(), Vec::new(), Vec::new());
            for start in (0..of_sequence.len()).step_by(BLOCK) {
                let count = BLOCK.min(of_sequence.len() - start);
                let first = of_sequence.start + start;
                let queries = &sight.queries[first..first + count];
                let span = sight.span(queries, keys.positions);
                let seen = &keys.positions[span.clone()];
                let (of_keys, of_values) =
                    (keys.head(keys.k, key_head, d, &span), keys.head(keys.v, key_head, d, &span));
                for near in 0..shared {
                    let head = key_head * shared + near;
                    let of_head = |all: &'_ [f32]| first * width + head * d..all.len();
                    let (q, g) = (&q[of_head(q)], &gradient[of_head(gradient)]);
                    let (q_block, g_block) = (Matrix::strided(q, count, d, width), Matrix::strided(g, count, d, width));
                    let seen = self.form.seen(head, (queries, seen, window));
                    scores(&mut weights, &mut slopes, q_block, of_keys, seen, heads.scale);
                    of_weights.resize(weights.len(), 0.0);
                    multiply_alone(&mut of_weights, span.len(), g_block, of_values.transposed(), 1.0, false);
                    let o = &out[of_head(out)];
                    let width_of_row = span.len().max(1);
                    let both = weights.chunks_exact_mut(width_of_row).zip(of_weights.chunks_exact_mut(width_of_row));
                    for (i, (scores, gradients)) in both.enumerate() {
                        let (o, g) = (&o[i * width..i * width + d], &g[i * width..i * width + d]);
                        of_softmax(scores, gradients, o, g, sums[(first + i) * heads.count + head], heads.scale);
                    }
                    if self.form.softcap.is_some() {
                        of_weights.iter_mut().zip(&slopes).for_each(|(gradient, slope)| *gradient *= slope);
                    }
                    let (weights, of_scores) =
                        (Matrix::new(&weights, count, span.len()), Matrix::new(&of_weights, count, span.len()));
                    multiply_alone(&mut dq[(start * shared + near) * d..], shared * d, of_scores, of_keys, 1.0, false);
                    let (dk, dv) = (&mut dk[span.start * d..], &mut dv[span.start * d..]);
                    multiply_alone(dk, d, of_scores.transposed(), q_block, 1.0, true);
                    multiply_alone(dv, d, weights.transposed(), g_block, 1.0, true);
                }
            }
            [dq, dk, dv]
        };
        let tasks = sight.sequences.len() * heads.of_keys;
        let parts: Vec<[Vec<f32>; 3]> = (0..tasks).into_par_iter().map(one).collect();
        // A task's heads stand side by side in each token.
        let joined = |number: usize, len: usize, width: usize| {
            let mut all = vec![0f32; len];
            let stride = width * heads.of_keys;
            for ((queries, keys), parts) in sight.sequences.iter().zip(parts.chunks(heads.of_keys)) {
                let places = if number == 0 { queries } else { keys };
                let tokens = all[places.start * stride..places.end * stride].chunks_exact_mut(stride);
                for (token, out) in tokens.enumerate() {
                    for (part, out) in parts.iter().zip(out.chunks_exact_mut(width)) {
                        out.copy_from_slice(&part[number][token * width..(token + 1) * width]);
                    }
                }
            }
            all
        };
        [joined(0, q.len(), shared * d), joined(1, k.len(), d), joined(2, v.len(), d)]
    }
}
