//! Linear layers with the same input: their products, and their low-rank updates in one.

use std::sync::Arc;

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use super::super::frozen::FrozenMatrix;
use super::super::product::{Matrix, multiply};
use super::super::rows::rows_at_once;

/// A frozen linear layer with a low-rank update.
pub(crate) struct Linear {
    pub(crate) weight: FrozenMatrix,
    pub(crate) bias: Option<Tensor>,
    /// The rank of its update, 0 without one, and the update's scale.
    pub(crate) rank: usize,
    pub(crate) scale: f32,
}

/// Linear layers with the same input.
pub(crate) struct Group {
    linears: Vec<Linear>,
    /// Where their factors begin in the tensor of all factors.
    start: usize,
}

/// Which tokens each of the matrices mixes that mix states inside the bottleneck.
pub(crate) struct MixedBy {
    /// The matrices are `[N, rank, rank]`.
    pub(crate) rank: usize,
    /// For each, the place behind its last token, `[N]`, ascending.
    pub(crate) ends: Arc<[usize]>,
}

/// The matrices that mix states inside the bottleneck, `[N, r, r]`, and the place behind the last token of each.
#[derive(Clone, Copy)]
pub(super) struct Mix<'a> {
    values: &'a [f32],
    rank: usize,
    ends: &'a [usize],
}

impl<'a> Mix<'a> {
    /// With these values of all matrices.
    pub(super) fn of(values: &'a [f32], by: Option<&'a MixedBy>) -> Option<Self> {
        by.map(|by| Self { values, rank: by.rank, ends: &by.ends })
    }
}

/// What the backward pass needs of a group: the states of all tokens, `[m, ranks]`, before they are mixed.
pub(super) type States = Vec<f32>;

impl Group {
    /// A group whose factors begin at `start`.
    pub(crate) fn new(linears: Vec<Linear>, start: usize) -> Self {
        Self { linears, start }
    }

    /// The ranks of all updates together.
    fn ranks(&self) -> usize {
        self.linears.iter().map(|linear| linear.rank).sum()
    }

    /// The number of inputs, and the place behind its factors.
    fn sizes(&self) -> Result<(usize, usize)> {
        let mut d_in = 0;
        let mut end = self.start;
        for linear in &self.linears {
            let (d_out, width) = linear.weight.size()?;
            d_in = width;
            end += linear.rank * (d_out + width);
        }
        Ok((d_in, end))
    }

    /// The number of outputs of each linear layer.
    pub(super) fn widths(&self) -> Vec<usize> {
        self.linears.iter().filter_map(|linear| Some(linear.weight.size().ok()?.0)).collect()
    }

    /// The place behind its factors.
    pub(crate) fn end(&self) -> Result<usize> {
        Ok(self.sizes()?.1)
    }

    /// The outputs of each linear layer, and the states.
    pub(super) fn forward(&self, x: &[f32], factors: &[f32], mix: Option<Mix>) -> Result<(Vec<Vec<f32>>, States)> {
        let ((d_in, _), ranks) = (self.sizes()?, self.ranks());
        let m = x.len() / d_in.max(1);
        let mut states = vec![0f32; m * ranks];
        if ranks > 0 {
            let a = Matrix::new(&factors[self.start..self.start + ranks * d_in], ranks, d_in);
            multiply(&mut states, ranks, Matrix::new(x, m, d_in), a.transposed(), 1.0, false);
        }
        let mixed = self.mixed(&states, mix);
        let mixed = mixed.as_ref().unwrap_or(&states);
        let (mut place, mut column) = (self.start + ranks * d_in, 0);
        let mut outs = Vec::with_capacity(self.linears.len());
        for linear in &self.linears {
            let d_out = linear.weight.size()?.0;
            let mut out = linear.weight.applied(x)?;
            if let Some(bias) = &linear.bias {
                let bias = bias.to_vec1::<f32>()?;
                out.chunks_exact_mut(d_out).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, bias)| *y += bias));
            }
            let rank = linear.rank;
            if rank > 0 {
                let b = Matrix::new(&factors[place..place + d_out * rank], d_out, rank);
                let states = Matrix::strided(&mixed[column..], m, rank, ranks);
                multiply(&mut out, d_out, states, b.transposed(), linear.scale, true);
            }
            place += d_out * rank;
            column += rank;
            outs.push(out);
        }
        Ok((outs, states))
    }

    /// Every token's state, mixed by its matrix; `None` where there is none.
    fn mixed(&self, states: &[f32], mix: Option<Mix>) -> Option<Vec<f32>> {
        let mix = mix.filter(|_| !states.is_empty())?;
        let (ranks, r) = (self.ranks(), mix.rank);
        let mut mixed = vec![0f32; states.len()];
        let part = rows_at_once(ranks * r);
        mixed.par_chunks_mut(part * ranks).zip(states.par_chunks(part * ranks)).enumerate().for_each(
            |(number, (out, z))| {
                let mut of = mix.ends.partition_point(|end| *end <= number * part);
                for (i, (out, z)) in out.chunks_exact_mut(ranks).zip(z.chunks_exact(ranks)).enumerate() {
                    while mix.ends[of] <= number * part + i {
                        of += 1;
                    }
                    let matrix = &mix.values[of * r * r..][..r * r];
                    for (out, z) in out.chunks_exact_mut(r).zip(z.chunks_exact(r)) {
                        for (out, row) in out.iter_mut().zip(matrix.chunks_exact(r)) {
                            *out = row.iter().zip(z).map(|(m, z)| m * z).sum();
                        }
                    }
                }
            },
        );
        Some(mixed)
    }

    /// Adds the gradients of factors and mixing matrices to theirs, by the gradients of the outputs, and returns that of
    /// the input, if it has one.
    pub(super) fn backward(
        &self,
        (x, factors, mix): (&[f32], &[f32], Option<Mix>),
        states: &States,
        gradients: &[&[f32]],
        (of_factors, of_mix): (&mut [f32], &mut [f32]),
        has_gradient: bool,
    ) -> Result<Vec<f32>> {
        let ((d_in, _), ranks) = (self.sizes()?, self.ranks());
        let m = x.len() / d_in.max(1);
        let mixed = self.mixed(states, mix);
        let mixed = mixed.as_ref().unwrap_or(states);
        let mut of_states = vec![0f32; m * ranks];
        let (mut place, mut column) = (self.start + ranks * d_in, 0);
        for (linear, g) in self.linears.iter().zip(gradients) {
            let (d_out, rank) = (linear.weight.size()?.0, linear.rank);
            if rank > 0 {
                let b = Matrix::new(&factors[place..place + d_out * rank], d_out, rank);
                let g = Matrix::new(g, m, d_out);
                multiply(&mut of_states[column..], ranks, g, b, linear.scale, false);
                let of_b = &mut of_factors[place..place + d_out * rank];
                let states = Matrix::strided(&mixed[column..], m, rank, ranks);
                multiply(of_b, rank, g.transposed(), states, linear.scale, true);
            }
            place += d_out * rank;
            column += rank;
        }
        if let Some(mix) = mix.filter(|_| ranks > 0) {
            of_states = self.unmixed(states, &of_states, mix, of_mix);
        }
        let of_states = Matrix::new(&of_states, m, ranks);
        if ranks > 0 {
            let of_a = &mut of_factors[self.start..self.start + ranks * d_in];
            multiply(of_a, d_in, of_states.transposed(), Matrix::new(x, m, d_in), 1.0, true);
        }
        if !has_gradient {
            return Ok(Vec::new());
        }
        let mut of_x = vec![0f32; m * d_in];
        if ranks > 0 {
            let a = Matrix::new(&factors[self.start..self.start + ranks * d_in], ranks, d_in);
            multiply(&mut of_x, d_in, of_states, a, 1.0, false);
        }
        for (linear, g) in self.linears.iter().zip(gradients) {
            linear.weight.add_turned(g, &mut of_x)?;
        }
        Ok(of_x)
    }

    /// The gradients of states before they were mixed; adds those of the matrices to `of_mix`.
    fn unmixed(&self, states: &[f32], of_mixed: &[f32], mix: Mix, of_mix: &mut [f32]) -> Vec<f32> {
        let (ranks, r) = (self.ranks(), mix.rank);
        let mut of_states = vec![0f32; states.len()];
        // The tokens of each matrix.
        let (mut parts, mut rest, mut start) = (Vec::with_capacity(mix.ends.len()), &mut of_states[..], 0);
        for end in mix.ends {
            let (part, others) = std::mem::take(&mut rest).split_at_mut((end - start) * ranks);
            parts.push((start * ranks..end * ranks, part));
            (rest, start) = (others, *end);
        }
        let out = parts.into_par_iter().zip(of_mix.par_chunks_mut(r * r)).zip(mix.values.par_chunks(r * r));
        out.for_each(|(((places, of_states), of_matrix), matrix)| {
            let given = states[places.clone()].chunks_exact(r).zip(of_mixed[places].chunks_exact(r));
            let rows = of_states.chunks_exact_mut(r).zip(given).map(|(of, (state, of_mixed))| ((of, state), of_mixed));
            for ((of_state, state), of_mixed) in rows {
                for ((of_mixed, row), of_row) in
                    of_mixed.iter().zip(matrix.chunks_exact(r)).zip(of_matrix.chunks_exact_mut(r))
                {
                    for ((of_state, m), (of_m, state)) in of_state.iter_mut().zip(row).zip(of_row.iter_mut().zip(state))
                    {
                        *of_state += of_mixed * m;
                        *of_m += of_mixed * state;
                    }
                }
            }
        });
        of_states
    }
}
