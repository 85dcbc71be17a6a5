//! AdamW whose state is accessible, so that a run can be saved and resumed bit by bit.

use std::collections::BTreeMap;

use candle_core::{Tensor, Var};

use super::step::Gradients;
use crate::error::Result;

/// Moments of all variables, and the number of finished steps.
///
/// Reference: torch `optim/adamw.py`, the single-tensor path, with the same order of operations.
pub struct AdamW {
    /// The number of finished optimizer steps.
    pub steps: usize,
    /// The running means of the gradient and of its square, by variable.
    pub moments: BTreeMap<String, (Tensor, Tensor)>,
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPS: f64 = 1e-8;

impl AdamW {
    /// Makes zero moments for `vars`.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn new(vars: &BTreeMap<String, Var>) -> Result<Self> {
        let zeros = |var: &Var| -> Result<_> {
            Ok((var.as_tensor().zeros_like()?.detach(), var.as_tensor().zeros_like()?.detach()))
        };
        let moments = vars.iter().map(|(name, var)| Ok((name.clone(), zeros(var)?))).collect::<Result<_>>()?;
        Ok(Self { steps: 0, moments })
    }

    /// Takes one step: decays every variable by its learning rate times `weight_decay` and moves it against
    /// its gradient times `factor`, which comes from clipping. Variables without a gradient decay
    /// too, as in torch for a gradient of zero. `learning_rate` gives the rate of the variable of a name.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn step(
        &mut self,
        vars: &BTreeMap<String, Var>,
        gradients: &Gradients,
        factor: f64,
        learning_rate: impl Fn(&str) -> f64,
        weight_decay: f64,
    ) -> Result<()> {
        self.steps += 1;
        let bias1 = 1.0 - BETA1.powi(self.steps as i32);
        let bias2 = 1.0 - BETA2.powi(self.steps as i32);
        for (name, var) in vars {
            let Some((m, v)) = self.moments.get_mut(name) else { continue };
            let learning_rate = learning_rate(name);
            let value = (var.as_tensor() * (1.0 - learning_rate * weight_decay))?;
            if let Some(gradient) = gradients.by_name.get(name) {
                let g = (gradient * factor)?;
                *m = ((&*m * BETA1)? + (&g * (1.0 - BETA1))?)?.detach();
                *v = ((&*v * BETA2)? + (g.sqr()? * (1.0 - BETA2))?)?.detach();
            } else {
                *m = (&*m * BETA1)?.detach();
                *v = (&*v * BETA2)?.detach();
            }
            let denominator = ((v.sqrt()? * (1.0 / bias2.sqrt()))? + EPS)?;
            let value = (value - ((&*m / denominator)? * (learning_rate / bias1))?)?;
            var.set(&value.detach())?;
        }
        Ok(())
    }
}

/// The L2 norm over all gradients, accumulated in f64 over tensors.
///
/// # Errors
/// [`crate::Error::Compute`].
pub fn global_norm(gradients: &Gradients) -> Result<f64> {
    let mut sum = 0.0;
    for gradient in gradients.by_name.values() {
        sum += f64::from(gradient.sqr()?.sum_all()?.to_scalar::<f32>()?);
    }
    Ok(sum.sqrt())
}

/// The factor that reduces the norm of gradients from `norm` to at most `clip` (torch
/// `clip_grad_norm_`); 1 if `clip` is 0.
pub fn clip_factor(norm: f64, clip: f64) -> f64 {
    if clip == 0.0 { 1.0 } else { (clip / (norm + 1e-6)).min(1.0) }
}
