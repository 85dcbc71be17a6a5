//! PEANuT: a small network that makes the update of each input's weights out of these weights.
//!
//! Reference: huggingface/peft `src/peft/tuners/peanut/layer.py` (`_compute_delta_weight`): everything in f32; the update
//! is rounded to the weight's type before it is added. Activations other than the rectified ones are computed in f64: torch's
//! can differ in the last bits.

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::modules::each_module;
use super::weights::times_weight;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, add_product, erf, is_fused};

/// A function of every value.
type Activation = fn(f64) -> f64;

/// Activations by transformers' names.
const ACTIVATIONS: &[(&str, Activation)] = &[
    ("gelu", gelu),
    ("gelu_accurate", gelu_tanh),
    ("gelu_fast", gelu_tanh),
    ("gelu_new", gelu_tanh),
    ("gelu_python", gelu),
    ("gelu_python_tanh", gelu_tanh),
    ("gelu_pytorch_tanh", gelu_tanh),
    ("leaky_relu", |x| if x < 0.0 { f64::from(0.01f32) * x } else { x }),
    ("linear", |x| x),
    ("mish", |x| x * x.exp().ln_1p().tanh()),
    ("quick_gelu", |x| x * sigmoid(f64::from(1.702f32) * x)),
    ("relu", |x| x.max(0.0)),
    ("relu2", |x| x.max(0.0) * x.max(0.0)),
    ("relu6", |x| x.clamp(0.0, 6.0)),
    ("sigmoid", sigmoid),
    ("silu", |x| x * sigmoid(x)),
    ("swish", |x| x * sigmoid(x)),
    ("tanh", f64::tanh),
];

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
}

/// The changes of a PEANuT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let r = fields.count_or("r", 32)?;
    let depth: usize = fields.get("depth")?.unwrap_or(0);
    let name: String = fields.get("act_fn")?.unwrap_or_else(|| "relu".to_owned());
    let Some((_, activation)) = ACTIVATIONS.iter().find(|(known, _)| *known == name) else {
        let names: Vec<&str> = ACTIVATIONS.iter().map(|(name, _)| *name).collect();
        return Err(fields
            .finding("act_fn")
            .expected(format!("one of {}", names.join(", ")))
            .found(name)
            .unsupported());
    };
    let scaling: f64 = fields.get("scaling")?.unwrap_or(1.0);
    fields.ignore(&["init_weights"]);
    each_module(fields, entries, base, "peanut_A.weight", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "PEANuT")?;
        let (d_out, d_in) = (weight.d_out, weight.d_in);
        let a = entries.shaped(name, &[r, d_out])?.read()?;
        // A row for each of the r values in between, a column for each input.
        let mut hidden = times_weight(&a, r, &weight, is_fused(d_in, r))?;
        activate(&mut hidden, *activation);
        let mut layer = |side: &str, number: usize, hidden: &[f32]| -> Result<Vec<f32>> {
            let factors = entries.shaped(&format!("{module}.peanut_{side}.{number}.weight"), &[r, r])?.read()?;
            let mut out = vec![0.0; hidden.len()];
            add_product(&factors, hidden, r, is_fused(d_in, r), &mut out);
            activate(&mut out, *activation);
            Ok(out)
        };
        let mut residuals = Vec::new();
        for number in 0..depth {
            let encoded = layer("encoders", number, &hidden)?;
            residuals.push(std::mem::replace(&mut hidden, encoded));
        }
        for number in 0..depth {
            hidden = layer("decoders", number, &hidden)?;
            let residual = residuals.pop().unwrap_or_default();
            hidden.iter_mut().zip(&residual).for_each(|(value, residual)| *value += residual);
        }
        let b = entries.shaped(&format!("{module}.peanut_B.weight"), &[d_out, r])?.expr;
        let hidden = Expr::Values { shape: vec![r, d_in], values: hidden.into() };
        let scaled = Expr::Scale { of: Box::new(Expr::product(b, hidden)), factor: scaling };
        let delta = base.rounded(scaled, weight.tensor.dtype);
        Ok((weight, vec![weight.change(Change::Add(delta))]))
    })
}

fn activate(values: &mut [f32], activation: Activation) {
    values.iter_mut().for_each(|value| *value = activation(f64::from(*value)) as f32);
}
