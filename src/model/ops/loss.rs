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

/// What is done to the products with the head: a bias, a factor, a limit `limit * tanh(logit / limit)`.
#[derive(Clone)]
pub(crate) struct LogitForm {
    /// `[vocabulary]`
    pub(crate) bias: Option<Tensor>,
    pub(crate) scale: f32,
    pub(crate) softcap: Option<f32>,
}

impl LogitForm {
    /// The logits, by products with the head.
    pub(crate) fn of(&self, products: &Tensor) -> Result<Tensor> {
        let mut logits = products.clone();
        if let Some(bias) = &self.bias {
            logits = logits.broadcast_add(bias)?;
        }
        if self.scale != 1.0 {
            logits = (logits * f64::from(self.scale))?;
        }
        match self.softcap.map(f64::from) {
            Some(limit) => (logits / limit)?.tanh()? * limit,
            None => Ok(logits),
        }
    }

    /// Makes a row of products logits.
    fn apply(&self, row: &mut [f32], bias: Option<&[f32]>) {
        if let Some(bias) = bias {
            row.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
        }
        if self.scale != 1.0 {
            row.iter_mut().for_each(|logit| *logit *= self.scale);
        }
        if let Some(limit) = self.softcap {
            row.iter_mut().for_each(|logit| *logit = limit * (*logit / limit).tanh());
        }
    }

    /// The factor of a product's gradient, by its logit.
    fn slope(&self, logit: f32) -> f32 {
        let of_limit = self.softcap.map_or(1.0, |limit| 1.0 - (logit / limit) * (logit / limit));
        self.scale * of_limit
    }

    fn is_plain(&self) -> bool {
        self.scale == 1.0 && self.softcap.is_none()
    }
}

/// The sum of -log p of the targets, by normed hidden states.
struct CrossEntropy {
    head: FrozenMatrix,
    form: LogitForm,
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
        let bias = self.form.bias.as_ref().map(|bias| bias.to_vec1::<f32>()).transpose()?;
        let mut gradient = vec![0f32; if self.gradient.is_some() { hidden.len() } else { 0 }];
        let mut sum = 0f64;
        for (number, hidden) in hidden.chunks(count * width).enumerate() {
            let mut logits = self.head.applied(hidden)?;
            let targets = &self.targets[number * count..][..hidden.len() / width];
            // Added in order: the sum has the same bits in every run.
            let one = |(row, id): (&mut [f32], &u32)| {
                self.form.apply(row, bias.as_deref());
                if self.form.is_plain() {
                    return loss(row, *id);
                }
                let logits = row.to_vec();
                let loss = loss(row, *id);
                row.iter_mut().zip(logits).for_each(|(gradient, logit)| *gradient *= self.form.slope(logit));
                loss
            };
            let losses: Vec<f32> = logits.par_chunks_mut(vocabulary).zip(targets).map(one).collect();
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
    form: &LogitForm,
    targets: &[u32],
    with_gradient: bool,
) -> Result<Tensor> {
    if hidden.device().is_cpu() {
        let gradient = with_gradient.then(OnceLock::new);
        let loss = CrossEntropy { head: head.clone(), form: form.clone(), targets: targets.to_vec(), gradient };
        return hidden.contiguous()?.apply_op1(loss);
    }
    plain_cross_entropy(hidden, head, form, targets)
}

fn plain_cross_entropy(hidden: &Tensor, head: &FrozenMatrix, form: &LogitForm, targets: &[u32]) -> Result<Tensor> {
    let log_p = super::log_softmax_last(&form.of(&frozen_linear(hidden, head, None)?)?)?;
    let targets = Tensor::new(targets, log_p.device())?.unsqueeze(1)?;
    log_p.gather(&targets, D::Minus1)?.sum_all()?.neg()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{agree, random};
    use super::*;

    #[test]
    fn the_loss_is_the_composition_with_its_gradient() {
        let head = FrozenMatrix::held(random(&[301, 12], 1));
        let targets: Vec<u32> = (0..9).map(|i| i * 33).collect();
        let plain = LogitForm { bias: None, scale: 1.0, softcap: None };
        let whole = LogitForm { bias: Some(random(&[301], 3)), scale: 0.7, softcap: Some(2.0) };
        for form in [&plain, &whole] {
            agree(
                &[random(&[9, 12], 2)],
                |x| cross_entropy(&x[0], &head, form, &targets, true),
                |x| plain_cross_entropy(&x[0], &head, form, &targets),
            );
        }
        let without = cross_entropy(&random(&[9, 12], 2), &head, &plain, &targets, false).unwrap();
        let with = cross_entropy(&random(&[9, 12], 2), &head, &plain, &targets, true).unwrap();
        assert_eq!(without.to_scalar::<f32>().unwrap(), with.to_scalar::<f32>().unwrap());
    }
}
