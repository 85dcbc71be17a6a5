//! The feed-forward block of a decoder layer: dense, or experts that a router chooses.

use std::collections::HashMap;

use candle_core::{D, Result, Tensor};

use super::attention::{Apply, one};
use super::layer::{Experts, FeedForward, FeedForwardKind, InnerExperts, InnerWeights};
use super::ops::{self, ExpertFactors, RowsOfExperts};
use crate::arch::ExpertPart;
use crate::arch::computation::{Activation, Computation, Gating, Routing};

/// A matrix of a layer with experts, for hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertMatrix {
    /// The router.
    Router,
    /// Gate and up, which have the same inputs.
    Inner,
    /// Down.
    Down,
}

/// Tells a hook the inputs of an expert's matrices: the matrix, the expert, its inputs `[n, d_in]`.
pub(super) type Observe<'a> = dyn FnMut(ExpertMatrix, usize, &Tensor) -> crate::Result<()> + 'a;

/// An adapter's low-rank updates of the experts of one layer.
#[derive(Default)]
pub(super) struct ExpertAdapter(pub(super) HashMap<ExpertPart, ExpertFactors>);

impl ExpertAdapter {
    fn is_tracked(&self) -> bool {
        self.0.values().any(|factors| factors.a.track_op() || factors.b.track_op())
    }
}

/// The block's outputs for normed states `x`, `[B, T, hidden_size]`.
pub(super) fn feed_forward(
    block: &FeedForwardKind,
    x: &Tensor,
    activation: Activation,
    computation: &Computation,
    apply: &mut Apply,
    adapter: &ExpertAdapter,
    observe: &mut Observe,
) -> crate::Result<Tensor> {
    match block {
        FeedForwardKind::Dense(block) => dense(block, x, activation, apply),
        FeedForwardKind::Experts(block) => {
            let Some(routing) = &computation.routing else {
                return Err(candle_core::Error::Msg("experts without a routing".to_owned()).into());
            };
            let shared = match &block.shared {
                None => None,
                Some(shared) => {
                    let y = dense(shared, x, activation, apply)?;
                    Some(match &block.shared_gate {
                        None => y,
                        Some(gate) => y.broadcast_mul(&sigmoid(&one(apply, gate, x)?)?)?,
                    })
                }
            };
            let flat = x.reshape(((), x.dim(D::Minus1)?))?;
            observe(ExpertMatrix::Router, 0, &flat)?;
            let y = experts(block, &flat, routing, activation, adapter, observe)?.reshape(x.shape())?;
            Ok(match shared {
                Some(shared) => (y + shared)?,
                None => y,
            })
        }
    }
}

fn dense(block: &FeedForward, x: &Tensor, activation: Activation, apply: &mut Apply) -> crate::Result<Tensor> {
    let inner = match &block.inner {
        InnerWeights::Gated { gate, up } => {
            let both = apply(&[gate, up], x)?;
            ops::gated(&both[0], &both[1], activation)?
        }
        InnerWeights::Fused(both) => {
            let both = one(apply, both, x)?;
            let half = both.dim(D::Minus1)? / 2;
            let part = |start: usize| both.narrow(D::Minus1, start, half)?.contiguous();
            ops::gated(&part(0)?, &part(half)?, activation)?
        }
        InnerWeights::Plain(up) => ops::activated(&one(apply, up, x)?, activation)?,
    };
    one(apply, &block.down, &inner)
}

/// Below -87, where it is 1e-38, it stays there: the exponential would overflow, and candle's gradient of it be NaN.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    ((x.clamp(-87.0, f64::INFINITY)?.neg()?.exp()? + 1.0)?).recip()
}

/// The most rows of experts that run together where no gradients are computed.
const ROWS: usize = 4096;

/// The weighted sum of the chosen experts' outputs for every token, `[n, hidden_size]`.
fn experts(
    block: &Experts,
    x: &Tensor,
    routing: &Routing,
    activation: Activation,
    adapter: &ExpertAdapter,
    observe: &mut Observe,
) -> crate::Result<Tensor> {
    let logits = ops::frozen_linear(x, &block.router, block.router_bias.as_ref())?;
    let scores = match routing.gating {
        Gating::Softmax => ops::softmax_last(&logits)?,
        Gating::Sigmoid => sigmoid(&logits)?,
        Gating::SoftmaxOfChosen => logits,
    };
    let chosen = chosen(&scores, block.choice_bias.as_ref(), routing)?;
    let (tokens, used) = (x.dim(0)?, routing.used);
    let indices = Tensor::from_vec(chosen.clone(), (tokens, used), x.device())?;
    let mut weights = scores.gather(&indices, D::Minus1)?;
    if routing.gating == Gating::SoftmaxOfChosen {
        weights = ops::softmax_last(&weights)?;
    }
    if routing.is_normalized {
        // What DeepSeek's classes add is too small to change a sum that isn't zero.
        weights = weights.broadcast_div(&(weights.sum_keepdim(D::Minus1)? + 1e-20)?)?;
    }
    let weights = (weights * routing.scale)?.flatten_all()?;
    // Sorted by expert; an expert's tokens stay in order.
    let mut places: Vec<u32> = (0..chosen.len() as u32).collect();
    places.sort_by_key(|place| chosen[*place as usize]);
    let mut counts = vec![0; block.down.len()];
    chosen.iter().for_each(|expert| counts[*expert as usize] += 1);
    let is_tracked = x.track_op() || adapter.is_tracked();
    let mut all = x.zeros_like()?;
    let mut first = 0;
    let mut rest = places.as_slice();
    while first < counts.len() {
        // Without gradients only some experts' states are in memory at a time.
        let mut taken = counts[first];
        let mut end = first + 1;
        while end < counts.len() && (is_tracked || taken + counts[end] <= ROWS) {
            taken += counts[end];
            end += 1;
        }
        let (now, later) = rest.split_at(taken);
        if !now.is_empty() {
            let rows = RowsOfExperts::new(first, &counts[first..end]);
            let of_tokens: Vec<u32> = now.iter().map(|place| place / used as u32).collect();
            let (places, of_tokens) = (Tensor::new(now, x.device())?, Tensor::new(of_tokens, x.device())?);
            let y = of_rows(block, &x.index_select(&of_tokens, 0)?, activation, &rows, adapter, observe)?;
            let y = y.broadcast_mul(&weights.index_select(&places, 0)?.unsqueeze(1)?)?;
            all = all.index_add(&of_tokens, &y, 0)?;
        }
        (first, rest) = (end, later);
    }
    Ok(all)
}

/// The outputs of experts for rows that are sorted by expert, `[n, hidden_size]`.
fn of_rows(
    block: &Experts,
    x: &Tensor,
    activation: Activation,
    rows: &RowsOfExperts,
    adapter: &ExpertAdapter,
    observe: &mut Observe,
) -> crate::Result<Tensor> {
    let mut see = |matrix: ExpertMatrix, x: &Tensor| -> crate::Result<()> {
        rows.used().try_for_each(|(expert, rows)| observe(matrix, expert, &x.narrow(0, rows.start, rows.len())?))
    };
    let updated = |y: Tensor, x: &Tensor, part: ExpertPart| match adapter.0.get(&part) {
        Some(factors) => y + ops::expert_update(x, factors, rows)?,
        None => Ok(y),
    };
    see(ExpertMatrix::Inner, x)?;
    let (gate, up) = match &block.inner {
        InnerExperts::Separate { gate, up } => {
            let gate = ops::expert_linear(x, gate, None, rows)?;
            let up = ops::expert_linear(x, up, None, rows)?;
            match adapter.0.get(&ExpertPart::GateUp) {
                Some(factors) => {
                    let (update, width) = (ops::expert_update(x, factors, rows)?, gate.dim(1)?);
                    ((gate + update.narrow(1, 0, width)?)?, (up + update.narrow(1, width, width)?)?)
                }
                None => (gate, up),
            }
        }
        InnerExperts::Fused { both, in_turns, bias } => {
            let both = ops::expert_linear(x, both, bias.as_ref(), rows)?;
            let both = updated(both, x, ExpertPart::GateUp)?;
            let (rows, width) = both.dims2()?;
            match in_turns {
                true => {
                    let both = both.reshape((rows, width / 2, 2))?;
                    let part = |number: usize| both.narrow(2, number, 1)?.squeeze(2)?.contiguous();
                    (part(0)?, part(1)?)
                }
                false => {
                    let part = |start: usize| both.narrow(1, start, width / 2)?.contiguous();
                    (part(0)?, part(width / 2)?)
                }
            }
        }
    };
    let (gate, up) = (updated(gate, x, ExpertPart::Gate)?, updated(up, x, ExpertPart::Up)?);
    let inner = ops::gated(&gate, &up, activation)?;
    see(ExpertMatrix::Down, &inner)?;
    let y = ops::expert_linear(&inner, &block.down, block.down_bias.as_ref(), rows)?;
    Ok(updated(y, &inner, ExpertPart::Down)?)
}

/// The experts of each token, best first: `tokens * used` numbers. Of equal scores, the lower number wins.
fn chosen(scores: &Tensor, bias: Option<&Tensor>, routing: &Routing) -> Result<Vec<u32>> {
    let scores = match bias {
        Some(bias) => scores.broadcast_add(bias)?,
        None => scores.clone(),
    };
    let mut all = Vec::new();
    for mut row in scores.to_vec2::<f32>()? {
        if let Some((groups, used, best)) = routing.groups {
            let size = row.len() / groups;
            let sums: Vec<f32> =
                row.chunks_exact(size).map(|group| largest(group, best).map(|i| group[i]).sum()).collect();
            let taken: Vec<usize> = largest(&sums, used).collect();
            for (number, group) in row.chunks_exact_mut(size).enumerate() {
                if !taken.contains(&number) {
                    group.fill(f32::NEG_INFINITY);
                }
            }
        }
        all.extend(largest(&row, routing.used).map(|expert| expert as u32));
    }
    Ok(all)
}

/// The places of the `count` largest values, the largest first.
fn largest(values: &[f32], count: usize) -> impl Iterator<Item = usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    places.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    places.into_iter().take(count)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn gates_far_below_0_have_a_gradient_of_0() {
        let x = Var::new(&[-1000.0_f32, -89.0, 0.0, 1000.0], &Device::Cpu).unwrap();
        let y = sigmoid(&x).unwrap();
        let gradients = y.backward().unwrap();
        let gradient = gradients.get(&x).unwrap().to_vec1::<f32>().unwrap();
        for (found, expected) in
            [(y.to_vec1::<f32>().unwrap(), [0.0, 0.0, 0.5, 1.0]), (gradient, [0.0, 0.0, 0.25, 0.0])]
        {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-30), "{found:?}");
        }
    }
}
