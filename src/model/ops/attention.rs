//! Attention as an operation of candle's, and its composition of other operations.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::attention_kernel::{Heads, Kernel, Scores, Sight, gain};
use super::slices::{on_cpu, slice, values};

struct Attention {
    heads: Heads,
    form: Scores,
    sight: Arc<Sight>,
    /// The logarithm of the sum of each query's exponentials, `[B * T * heads]`.
    sums: OnceLock<Vec<f32>>,
}

impl Attention {
    fn kernel(&self) -> Kernel<'_> {
        Kernel { heads: self.heads, form: &self.form, sight: &self.sight }
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_layout: &Layout,
        k: &CpuStorage,
        k_layout: &Layout,
        v: &CpuStorage,
        v_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, sums) = self.kernel().forward(slice(q, q_layout)?, slice(k, k_layout)?, slice(v, v_layout)?);
        let _ = self.sums.set(sums);
        Ok((CpuStorage::F32(out), q_layout.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        out: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (shapes, gradient) = ([q.shape(), k.shape(), v.shape()], gradient.contiguous()?);
        let (q, k, v, out, gradient) = (values(q)?, values(k)?, values(v)?, values(out)?, values(&gradient)?);
        let Some(sums) = self.sums.get() else { candle_core::bail!("attention: backward before forward") };
        let [dq, dk, dv] = self.kernel().backward([&q, &k, &v], (&out, sums), &gradient);
        Ok((on_cpu(dq, shapes[0])?, on_cpu(dk, shapes[1])?, on_cpu(dv, shapes[2])?))
    }
}

/// Grouped-query attention: `q` `[B, T, heads * d]`, `k` and `v` `[B, S, kv_heads * d]` -> `[B, T, heads * d]`.
pub(crate) fn attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    form: &Scores,
    sight: &Arc<Sight>,
) -> Result<Tensor> {
    if !q.device().is_cpu() {
        return plain_attention(q, k, v, heads, form, sight);
    }
    let attention = Attention { heads, form: form.clone(), sight: sight.clone(), sums: OnceLock::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, attention)
}

/// The same as [`attention`], composed of candle's operations.
fn plain_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: Heads, form: &Scores, sight: &Sight) -> Result<Tensor> {
    let ((rows, tokens, width), keys, d) = (q.dims3()?, k.dim(1)?, heads.width);
    let split = |x: &Tensor, tokens, heads| x.reshape((rows, tokens, heads, d))?.transpose(1, 2)?.contiguous();
    let shared = heads.count / heads.of_keys;
    let q = split(q, tokens, heads.count)?.reshape((rows, heads.of_keys, shared * tokens, d))?;
    let (k, v) = (split(k, keys, heads.of_keys)?, split(v, keys, heads.of_keys)?);
    let mut scores = (q.matmul(&k.transpose(2, 3)?.contiguous()?)? * f64::from(heads.scale))?;
    if let Some(limit) = form.softcap.map(f64::from) {
        scores = ((scores / limit)?.tanh()? * limit)?;
    }
    let mut scores = scores.reshape((rows, heads.count, tokens, keys))?;
    let of_heads = |values: &Arc<[f32]>| Tensor::from_slice(values, (1, heads.count, 1, 1), q.device());
    let window = sight.window();
    // Not -inf, because its gradient is NaN. e^-1e30 is zero as well.
    let mut mask = vec![-1e30f32; rows * tokens * keys];
    for (of_sequence, places) in &sight.sequences {
        for place in of_sequence.clone() {
            let (query, start) = (sight.queries[place], places.start % keys.max(1));
            let seen = &mut mask[place * keys + start..][..places.len()];
            for (mask, key) in seen.iter_mut().zip(&sight.keys[places.clone()]) {
                if *key <= query && query - key < window {
                    *mask = 0.0;
                }
            }
        }
    }
    if let Some(slopes) = &form.slopes {
        let of_head = |slope: &f32| sight.keys.iter().map(|key| gain(*slope, form.rounded_slopes, *key)).collect();
        let gains: Vec<Vec<f32>> = slopes.iter().map(of_head).collect();
        let gains = Tensor::from_vec(gains.concat(), (heads.count, rows, 1, keys), q.device())?;
        scores = scores.broadcast_add(&gains.transpose(0, 1)?)?;
    }
    let mask = Tensor::from_vec(mask, (rows, 1, tokens, keys), q.device())?;
    let mut scores = scores.broadcast_add(&mask)?;
    if let Some(sinks) = &form.sinks {
        let sinks = of_heads(sinks)?.broadcast_as((rows, heads.count, tokens, 1))?;
        scores = Tensor::cat(&[scores, sinks.contiguous()?], 3)?;
    }
    let weights = super::softmax_last(&scores)?.narrow(3, 0, keys)?.contiguous()?;
    let weights = weights.reshape((rows, heads.of_keys, shared * tokens, keys))?;
    let mixed = weights.matmul(&v)?.reshape((rows, heads.count, tokens, d))?;
    mixed.transpose(1, 2)?.reshape((rows, tokens, width))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;
    use crate::model::batch::NEVER;

    #[test]
    fn attention_in_blocks_is_the_composition_with_its_gradients() {
        let heads = Heads { count: 6, of_keys: 2, width: 8, scale: 0.35 };
        // Rows of 150 and 120 tokens, padded to 150; then two more queries behind cached keys, of which some are padding.
        let padded = |length: u32| (0..150).map(move |key| if key < length { key } else { NEVER });
        let (whole, next) = ((0..150).collect::<Vec<u32>>(), [[150, 151], [120, 121]].concat());
        let short = padded(150).chain(padded(120)).collect::<Vec<_>>();
        let cached = [padded(150).chain(150..152).collect::<Vec<_>>(), padded(120).chain(120..122).collect()].concat();
        let twice = [whole.clone(), whole].concat();
        for (queries, keys, window) in [
            (&twice, &short, None),
            (&twice, &short, Some(40)),
            (&twice, &short, Some(1000)),
            (&twice, &twice, Some(1)),
            (&next, &cached, None),
            (&next, &cached, Some(1)),
            (&next, &cached, Some(40)),
        ] {
            let (tokens, count) = (queries.len() / 2, keys.len() / 2);
            let sight = Arc::new(Sight::of_rows(queries.clone(), keys.clone(), 2, window));
            let (q, kv) = ([2, tokens, 48], [2, count, 16]);
            let list = |factor: f32| Some((0..6).map(|head| factor * head as f32).collect::<Vec<_>>().into());
            let whole = Scores { softcap: Some(0.5), slopes: list(0.03), rounded_slopes: None, sinks: list(0.2) };
            let rounded = Scores { slopes: list(0.03), rounded_slopes: Some(0.3), ..Scores::default() };
            for form in [Scores::default(), whole, rounded] {
                agree(
                    &[random(&q, 1), random(&kv, 2), random(&kv, 3)],
                    |x| attention(&x[0], &x[1], &x[2], heads, &form, &sight),
                    |x| plain_attention(&x[0], &x[1], &x[2], heads, &form, &sight),
                );
            }
        }
        // Three sequences in one row: nobody sees another's keys.
        let positions: Vec<u32> = (0..90).chain(0..3).chain(0..77).collect();
        let sequences = [0..90, 90..93, 93..170].map(|places| (places.clone(), places)).to_vec();
        for window in [None, Some(40)] {
            let (queries, keys) = (positions.clone(), positions.clone());
            let sight = Arc::new(Sight { queries, keys, sequences: sequences.clone(), window });
            let (q, kv) = ([1, 170, 48], [1, 170, 16]);
            agree(
                &[random(&q, 1), random(&kv, 2), random(&kv, 3)],
                |x| attention(&x[0], &x[1], &x[2], heads, &Scores::default(), &sight),
                |x| {
                    let of = |x: &Tensor, (places, _): &(std::ops::Range<usize>, _)| {
                        x.narrow(1, places.start, places.len())?.contiguous()
                    };
                    let alone = sequences.iter().map(|part| {
                        let positions: Vec<u32> = (0..part.0.len() as u32).collect();
                        let sight = Sight::of_rows(positions.clone(), positions, 1, window);
                        let (q, k, v) = (of(&x[0], part)?, of(&x[1], part)?, of(&x[2], part)?);
                        plain_attention(&q, &k, &v, heads, &Scores::default(), &sight)
                    });
                    Tensor::cat(&alone.collect::<Result<Vec<_>>>()?, 1)
                },
            );
            agree(
                &[random(&q, 1), random(&kv, 2), random(&kv, 3)],
                |x| attention(&x[0], &x[1], &x[2], heads, &Scores::default(), &sight),
                |x| plain_attention(&x[0], &x[1], &x[2], heads, &Scores::default(), &sight),
            );
        }
        // Padding that sees no key: its part is the sink's alone.
        let sight = Arc::new(Sight::of_rows(twice, short, 2, Some(10)));
        let form = Scores { sinks: Some([0.3, 0.0, -1.0, 2.0, 0.5, 0.1].into()), ..Scores::default() };
        agree(
            &[random(&[2, 150, 48], 1), random(&[2, 150, 16], 2), random(&[2, 150, 16], 3)],
            |x| attention(&x[0], &x[1], &x[2], heads, &form, &sight),
            |x| plain_attention(&x[0], &x[1], &x[2], heads, &form, &sight),
        );
    }
}
