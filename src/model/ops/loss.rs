//! The cross-entropy of tokens: the logits of all tokens never exist at once.

use std::sync::OnceLock;

use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::exp::softmax;
use super::frozen::{FrozenMatrix, frozen_linear};
use super::slices::slice;

/// The logits that exist at a time: 28 MiB.
const LOGITS: usize = 7 << 20;

/// The fewest tokens whose logits are computed together, so that a large vocabulary's head isn't read too often.
const TOKENS: usize = 64;

/// The sum of -log p of the targets, by normed hidden states.
struct CrossEntropy {
    head: FrozenMatrix,
    targets: Vec<u32>,
    /// The gradient of the hidden states, if it is wanted. It is computed together with the loss.
    gradient: Option<OnceLock<Vec<f32>>>,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, hidden: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (hidden, (vocabulary, width)) = (slice(hidden, layout)?, self.head.size()?);
        let count = (LOGITS / vocabulary.max(1)).max(TOKENS);
        let mut gradient = vec![0f32; if self.gradient.is_some() { hidden.len() } else { 0 }];
        let mut sum = 0f64;
        for (number, hidden) in hidden.chunks(count * width).enumerate() {
            let mut logits = self.head.applied(hidden)?;
            let targets = &self.targets[number * count..][..hidden.len() / width];
            // Added in order: the sum has the same bits in every run.
            let losses: Vec<f32> =
                logits.par_chunks_mut(vocabulary).zip(targets).map(|(row, id)| loss(row, *id)).collect();
            sum += losses.into_iter().map(f64::from).sum::<f64>();
            if self.gradient.is_some() {
                self.head.add_turned(&logits, &mut gradient[number * count * width..][..hidden.len()])?;
            }
        }
        if let Some(kept) = &self.gradient {
            let _ = kept.set(gradient);
        }
        Ok((CpuStorage::F32(vec![sum as f32]), Shape::from(())))
    }

    fn bwd(&self, hidden: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let Some(kept) = self.gradient.as_ref().and_then(OnceLock::get) else {
            candle_core::bail!("cross-entropy: no gradient was asked for")
        };
        let factor = gradient.to_scalar::<f32>()?;
        let values = kept.par_iter().map(|value| value * factor).collect::<Vec<f32>>();
        Ok(Some(Tensor::from_vec(values, hidden.shape(), hidden.device())?))
    }
}

/// -log p of the target, by its row of logits, which becomes the gradient of the loss.
fn loss(row: &mut [f32], target: u32) -> f32 {
    let own = row.get(target as usize).copied().unwrap_or(f32::NAN);
    let sum = softmax(row);
    if let Some(logit) = row.get_mut(target as usize) {
        *logit -= 1.0;
    }
    sum - own
}

/// The sum of -log p of `targets`, `[]`: `hidden` `[n, d]` are normed hidden states, `head` `[vocabulary, d]`. Gradients
/// are computed if `with_gradient`.
pub(crate) fn cross_entropy(
    hidden: &Tensor,
    head: &FrozenMatrix,
    targets: &[u32],
    with_gradient: bool,
) -> Result<Tensor> {
    if hidden.device().is_cpu() {
        let gradient = with_gradient.then(OnceLock::new);
        let loss = CrossEntropy { head: head.clone(), targets: targets.to_vec(), gradient };
        return hidden.contiguous()?.apply_op1(loss);
    }
    plain_cross_entropy(hidden, head, targets)
}

fn plain_cross_entropy(hidden: &Tensor, head: &FrozenMatrix, targets: &[u32]) -> Result<Tensor> {
    let log_p = super::log_softmax_last(&frozen_linear(hidden, head, None)?)?;
    let targets = Tensor::new(targets, log_p.device())?.unsqueeze(1)?;
    log_p.gather(&targets, D::Minus1)?.sum_all()?.neg()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn the_loss_is_the_composition_with_its_gradient() {
        let head = FrozenMatrix::Held(random(&[301, 12], 1));
        let targets: Vec<u32> = (0..9).map(|i| i * 33).collect();
        agree(
            &[random(&[9, 12], 2)],
            |x| cross_entropy(&x[0], &head, &targets, true),
            |x| plain_cross_entropy(&x[0], &head, &targets),
        );
        let without = cross_entropy(&random(&[9, 12], 2), &head, &targets, false).unwrap();
        let with = cross_entropy(&random(&[9, 12], 2), &head, &targets, true).unwrap();
        assert_eq!(without.to_scalar::<f32>().unwrap(), with.to_scalar::<f32>().unwrap());
    }
}
