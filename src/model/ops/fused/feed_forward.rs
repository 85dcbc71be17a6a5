//! The feed-forward half of a layer.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};

use super::super::activation::{activated_values, gated_values, of_activated, of_gated};
use super::super::slices::{on_cpu, slice, values};
use super::attention::{halves, joined};
use super::group::{Mix, MixedBy, States};
use super::{Frame, Group};
use crate::arch::computation::Activation;

/// What the first projections of a feed-forward block are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inner {
    /// A gate and up.
    Gated,
    /// Both in one.
    Fused,
    /// No gate.
    Plain,
}

/// The feed-forward half of a layer.
pub(crate) struct FeedForwardHalf {
    pub(crate) frame: Frame,
    pub(crate) inner: Inner,
    pub(crate) into: Group,
    pub(crate) down: Group,
    pub(crate) activation: Activation,
    /// Which tokens each matrix of the third argument mixes; `None` where states aren't mixed.
    pub(crate) mixing: Option<MixedBy>,
    pub(crate) kept: OnceLock<Kept>,
}

/// What the backward pass needs.
pub(crate) struct Kept {
    outs: Vec<Vec<f32>>,
    states: States,
    down_states: States,
    /// What the half gave, before the norm behind it.
    given: Option<Vec<f32>>,
}

impl FeedForwardHalf {
    /// The inputs of the last projection.
    fn activated(&self, outs: &[Vec<f32>]) -> Vec<f32> {
        match self.inner {
            Inner::Gated => gated_values(self.activation, &outs[0], &outs[1]),
            Inner::Fused => {
                let (gate, up) = halves(&outs[0], self.width(&outs[0]));
                gated_values(self.activation, &gate, &up)
            }
            Inner::Plain => activated_values(self.activation, &outs[0]),
        }
    }

    /// The outputs of a fused projection.
    fn width(&self, out: &[f32]) -> usize {
        self.into.widths().first().copied().unwrap_or(out.len())
    }
}

impl CustomOp3 for FeedForwardHalf {
    fn name(&self) -> &'static str {
        "feed-forward"
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
        let normed = self.frame.normed(x)?;
        let (outs, states) = self.into.forward(&normed, factors, mix)?;
        let (mut given, down_states) = self.down.forward(&self.activated(&outs), factors, mix)?;
        let (y, given) = self.frame.ended(x, given.remove(0))?;
        let _ = self.kept.set(Kept { outs, states, down_states, given });
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
        let Some(kept) = self.kept.get() else { candle_core::bail!("feed-forward: backward before forward") };
        let (shapes, gradient) = ([x.shape(), factors.shape(), mix.shape()], gradient.contiguous()?);
        let (x, factors, mix, g) = (&*values(x)?, &*values(factors)?, &*values(mix)?, &*values(&gradient)?);
        let (mut of_factors, mut of_mix) = (vec![0f32; factors.len()], vec![0f32; mix.len()]);
        let mix = Mix::of(mix, self.mixing.as_ref());
        let of_given = self.frame.of_given(kept.given.as_ref(), g)?;
        let activated = self.activated(&kept.outs);
        let sums = (&mut of_factors[..], &mut of_mix[..]);
        let of_activated_ =
            self.down.backward((&activated, factors, mix), &kept.down_states, &[&of_given], sums, true)?;
        let of_outs = match self.inner {
            Inner::Gated => {
                let (gate, up) = of_gated(self.activation, &kept.outs[0], &kept.outs[1], &of_activated_);
                vec![gate, up]
            }
            Inner::Fused => {
                let (gate, up) = halves(&kept.outs[0], self.width(&kept.outs[0]));
                let (gate, up) = of_gated(self.activation, &gate, &up, &of_activated_);
                vec![joined(&gate, &up, self.width(&kept.outs[0]) / 2)]
            }
            Inner::Plain => vec![of_activated(self.activation, &kept.outs[0], &of_activated_)],
        };
        drop((activated, of_activated_));
        let normed = self.frame.normed(x)?;
        let of_outs: Vec<&[f32]> = of_outs.iter().map(Vec::as_slice).collect();
        let sums = (&mut of_factors[..], &mut of_mix[..]);
        let has_gradient = self.frame.has_gradient;
        let of_normed = self.into.backward((&normed, factors, mix), &kept.states, &of_outs, sums, has_gradient)?;
        Ok((
            self.frame.of_input(x, of_normed, g, shapes[0])?,
            on_cpu(of_factors, shapes[1])?,
            on_cpu(of_mix, shapes[2])?,
        ))
    }
}
