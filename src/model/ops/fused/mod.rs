//! Half a decoder layer as one operation: its norm, its projections with their low-rank updates, what is between them, and
//! the sum with its input.
//!
//! The operation keeps what its backward pass needs and no more: queries, keys, values and what attention gives; or gate
//! and up. Norms and products of gate and up are computed again. Gradients are added where they belong, without a tensor
//! for each step between.
//!
//! candle's operations have at most three arguments. All factors of a half are one tensor: the `A`s of linear layers with
//! the same input side by side, then their `B`s.

mod attention;
mod feed_forward;
mod group;

use candle_core::{Result, Shape, Tensor};

pub(crate) use attention::{AttentionHalf, Order};
pub(crate) use feed_forward::{FeedForwardHalf, Inner};
pub(crate) use group::{Group, Linear, MixedBy};

use super::norm::RowNorm;
use super::slices::on_cpu;

/// What both halves have.
pub(crate) struct Frame {
    /// The norm of the input.
    pub(crate) before: Option<RowNorm>,
    /// The norm of what the half gives.
    pub(crate) after: Option<RowNorm>,
    /// The factor of what the half gives.
    pub(crate) scale: f32,
    /// Whether the input is added.
    pub(crate) adds: bool,
    /// Whether the input has a gradient.
    pub(crate) has_gradient: bool,
}

/// The third argument: how each token's state inside the bottleneck is mixed, `[N, r, r]` for `N` sequences or tokens. One
/// value where it isn't mixed.
pub(crate) fn unmixed() -> Result<Tensor> {
    Tensor::zeros(1, candle_core::DType::F32, &candle_core::Device::Cpu)
}

impl Frame {
    fn normed(&self, x: &[f32]) -> Result<Vec<f32>> {
        self.before.as_ref().map_or_else(|| Ok(x.to_vec()), |norm| norm.applied(x))
    }

    /// The result, by what the half gives: that before the norm behind it is returned, too, if there is one.
    fn ended(&self, x: &[f32], mut given: Vec<f32>) -> Result<(Vec<f32>, Option<Vec<f32>>)> {
        let mut before = None;
        if let Some(norm) = &self.after {
            let normed = norm.applied(&given)?;
            before = Some(std::mem::replace(&mut given, normed));
        }
        if self.adds {
            given.iter_mut().zip(x).for_each(|(y, x)| *y = x + *y * self.scale);
        } else if self.scale != 1.0 {
            given.iter_mut().for_each(|y| *y *= self.scale);
        }
        Ok((given, before))
    }

    /// The gradient of what the half gives.
    fn of_given(&self, before: Option<&Vec<f32>>, g: &[f32]) -> Result<Vec<f32>> {
        let mut of_given = g.to_vec();
        if self.scale != 1.0 {
            of_given.iter_mut().for_each(|g| *g *= self.scale);
        }
        match (&self.after, before) {
            (Some(norm), Some(before)) => norm.gradient(before, &of_given),
            _ => Ok(of_given),
        }
    }

    /// The gradient of the input, if it has one, by that of the normed input.
    fn of_input(&self, x: &[f32], of_normed: Vec<f32>, g: &[f32], shape: &Shape) -> Result<Option<Tensor>> {
        if !self.has_gradient {
            return Ok(None);
        }
        let mut of_x = match &self.before {
            Some(norm) => norm.gradient(x, &of_normed)?,
            None => of_normed,
        };
        if self.adds {
            of_x.iter_mut().zip(g).for_each(|(of_x, g)| *of_x += g);
        }
        on_cpu(of_x, shape)
    }
}
