//! The attention half of a layer.

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::super::attention_kernel::{Heads, Kernel, Scores, Sight};
use super::super::norm::RowNorm;
use super::super::rope::Rope;
use super::super::slices::{on_cpu, slice, values};
use super::group::{Mix, MixedBy, States};
use super::{Frame, Group};

/// How queries, keys and values come out of the first projections.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Three projections.
    Separate,
    /// One: all queries, all keys, all values.
    Parts,
    /// One: for each head of keys its queries, the key, the value.
    Groups,
}

/// The attention half of a layer.
pub(crate) struct AttentionHalf {
    pub(crate) frame: Frame,
    pub(crate) order: Order,
    pub(crate) qkv: Group,
    /// Norms of each head's queries and keys, before they are turned.
    pub(crate) q_norm: Option<RowNorm>,
    pub(crate) k_norm: Option<RowNorm>,
    pub(crate) rope: Option<Rope>,
    pub(crate) heads: Heads,
    pub(crate) scores: Scores,
    pub(crate) sight: Arc<Sight>,
    pub(crate) o: Group,
    /// Which tokens each matrix of the third argument mixes; `None` where states aren't mixed.
    pub(crate) mixing: Option<MixedBy>,
    pub(crate) kept: OnceLock<Kept>,
}

/// What the backward pass needs.
pub(crate) struct Kept {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    /// Queries and keys before their norms, if they have some.
    before: Option<[Vec<f32>; 2]>,
    mixed: Vec<f32>,
    sums: Vec<f32>,
    states: States,
    o_states: States,
    /// What the half gave, before the norm behind it.
    given: Option<Vec<f32>>,
}

/// The two halves of rows of `width` values.
pub(super) fn halves(rows: &[f32], width: usize) -> (Vec<f32>, Vec<f32>) {
    let part = |start: usize| rows.chunks_exact(width).flat_map(|row| row[start..start + width / 2].to_vec()).collect();
    (part(0), part(width / 2))
}

/// Rows of two parts of `width` values each.
pub(super) fn joined(first: &[f32], second: &[f32], width: usize) -> Vec<f32> {
    first.chunks_exact(width).zip(second.chunks_exact(width)).flat_map(|(a, b)| [a, b].concat()).collect()
}

impl AttentionHalf {
    /// Where queries, keys and values of a fused projection's row are: the part (0 to 2), and its range.
    fn places(&self) -> Vec<(usize, std::ops::Range<usize>)> {
        let Heads { count, of_keys, width, .. } = self.heads;
        let (q, k) = (count * width, of_keys * width);
        match self.order {
            Order::Separate => Vec::new(),
            Order::Parts => vec![(0, 0..q), (1, q..q + k), (2, q + k..q + 2 * k)],
            Order::Groups => {
                let own = count / of_keys * width;
                let of_group = |start: usize| {
                    [
                        (0, start..start + own),
                        (1, start + own..start + own + width),
                        (2, start + own + width..start + own + 2 * width),
                    ]
                };
                (0..of_keys).flat_map(|group| of_group(group * (own + 2 * width))).collect()
            }
        }
    }

    /// Queries, keys and values by the outputs of the first projections.
    fn split(&self, mut outs: Vec<Vec<f32>>) -> [Vec<f32>; 3] {
        if self.order == Order::Separate {
            let v = outs.remove(2);
            let k = outs.remove(1);
            return [outs.remove(0), k, v];
        }
        let Heads { count, of_keys, width, .. } = self.heads;
        let (all, places) = (outs.remove(0), self.places());
        let row = (count + 2 * of_keys) * width;
        let mut parts = [Vec::new(), Vec::new(), Vec::new()];
        for row in all.chunks_exact(row) {
            places.iter().for_each(|(part, range)| parts[*part].extend_from_slice(&row[range.clone()]));
        }
        parts
    }

    /// The reverse of [`AttentionHalf::split`].
    fn rejoined(&self, parts: [Vec<f32>; 3]) -> Vec<Vec<f32>> {
        if self.order == Order::Separate {
            return parts.into();
        }
        let Heads { count, of_keys, width, .. } = self.heads;
        let (row, places) = ((count + 2 * of_keys) * width, self.places());
        let widths = [count * width, of_keys * width, of_keys * width];
        let tokens = parts[0].len() / widths[0].max(1);
        let mut all = vec![0f32; tokens * row];
        for (token, out) in all.chunks_exact_mut(row).enumerate() {
            let mut taken = [0; 3];
            for (part, range) in &places {
                let from = token * widths[*part] + taken[*part];
                taken[*part] += range.len();
                out[range.clone()].copy_from_slice(&parts[*part][from..from + range.len()]);
            }
        }
        vec![all]
    }

    fn kernel(&self) -> Kernel<'_> {
        Kernel { heads: self.heads, form: &self.scores, sight: &self.sight }
    }

    fn turned(&self, x: Vec<f32>, heads: usize) -> Result<Vec<f32>> {
        match &self.rope {
            Some(rope) => rope.turned(&x, heads, self.heads.width),
            None => Ok(x),
        }
    }
}

fn normed(norm: &Option<RowNorm>, x: Vec<f32>) -> Result<Vec<f32>> {
    match norm {
        Some(norm) => norm.applied(&x),
        None => Ok(x),
    }
}

impl CustomOp3 for AttentionHalf {
    fn name(&self) -> &'static str {
        "attention-half"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        factors: &CpuStorage,
        factors_layout: &Layout,
        mix: &CpuStorage,
        mix_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, factors, mix) = (slice(x, x_layout)?, slice(factors, factors_layout)?, slice(mix, mix_layout)?);
        let mix = Mix::of(mix, self.mixing.as_ref());
        let (outs, states) = self.qkv.forward(&self.frame.normed(x)?, factors, mix)?;
        let [q, k, v] = self.split(outs);
        let has_norms = self.q_norm.is_some() || self.k_norm.is_some();
        let before = has_norms.then(|| [q.clone(), k.clone()]);
        let q = self.turned(normed(&self.q_norm, q)?, self.heads.count)?;
        let k = self.turned(normed(&self.k_norm, k)?, self.heads.of_keys)?;
        let (mixed, sums) = self.kernel().forward(&q, &k, &v);
        let (mut given, o_states) = self.o.forward(&mixed, factors, mix)?;
        let (y, given) = self.frame.ended(x, given.remove(0))?;
        let _ = self.kept.set(Kept { q, k, v, before, mixed, sums, states, o_states, given });
        Ok((CpuStorage::F32(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        factors: &Tensor,
        mix: &Tensor,
        _: &Tensor,
        gradient: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(kept) = self.kept.get() else { candle_core::bail!("attention-half: backward before forward") };
        let (shapes, gradient) = ([x.shape(), factors.shape(), mix.shape()], gradient.contiguous()?);
        let (x, factors, mix, g) = (&*values(x)?, &*values(factors)?, &*values(mix)?, &*values(&gradient)?);
        let (mut of_factors, mut of_mix) = (vec![0f32; factors.len()], vec![0f32; mix.len()]);
        let mix = Mix::of(mix, self.mixing.as_ref());
        let of_given = self.frame.of_given(kept.given.as_ref(), g)?;
        let sums = (&mut of_factors[..], &mut of_mix[..]);
        let of_mixed = self.o.backward((&kept.mixed, factors, mix), &kept.o_states, &[&of_given], sums, true)?;
        let [mut q, mut k, v] =
            self.kernel().backward([&kept.q, &kept.k, &kept.v], (&kept.mixed, &kept.sums), &of_mixed);
        if let Some(rope) = &self.rope {
            let back = rope.back();
            let d = self.heads.width;
            (q, k) = (back.turned(&q, self.heads.count, d)?, back.turned(&k, self.heads.of_keys, d)?);
        }
        if let Some([q_before, k_before]) = &kept.before {
            if let Some(norm) = &self.q_norm {
                q = norm.gradient(q_before, &q)?;
            }
            if let Some(norm) = &self.k_norm {
                k = norm.gradient(k_before, &k)?;
            }
        }
        let of_outs = self.rejoined([q, k, v]);
        let of_outs: Vec<&[f32]> = of_outs.iter().map(Vec::as_slice).collect();
        let normed = self.frame.normed(x)?;
        let sums = (&mut of_factors[..], &mut of_mix[..]);
        let has_gradient = self.frame.has_gradient;
        let of_normed = self.qkv.backward((&normed, factors, mix), &kept.states, &of_outs, sums, has_gradient)?;
        Ok((
            self.frame.of_input(x, of_normed, g, shapes[0])?,
            on_cpu(of_factors, shapes[1])?,
            on_cpu(of_mix, shapes[2])?,
        ))
    }
}
