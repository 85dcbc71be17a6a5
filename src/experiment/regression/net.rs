//! The net that is adapted: a frozen MLP whose hidden layers take adapters as a decoder's do.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor, Var};
use serde_json::json;

use super::tasks::{Data, Rows, Task};
use crate::arch::{LinearLayer, ModelConfig, Module};
use crate::error::Result;
use crate::experiment::tuning::gradients;
use crate::linalg::Random;
use crate::model::hooks::Hook;
use crate::model::ops;
use crate::train::AdamW;

/// Values of a hidden layer.
pub(super) const WIDTH: usize = 64;

/// Hidden layers.
pub(super) const LAYERS: usize = 4;

/// The rows of a step of pretraining.
const ROWS: usize = 128;

/// The site of a hidden layer, for adapters.
pub(super) fn site(layer: usize) -> LinearLayer {
    let Some(module) = Module::of_path("model.layers.{l}.mlp.up_proj") else { unreachable!("a module of Llama") };
    LinearLayer { layer, module }
}

/// The entry of `target_modules` that selects all hidden layers.
pub(super) const TARGET: &str = "up_proj";

/// A config whose `up_proj` have the sizes of the hidden layers.
///
/// # Errors
/// None for these values.
pub(super) fn config() -> Result<ModelConfig> {
    let json = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": WIDTH, "intermediate_size": WIDTH,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 8,
        "max_position_embeddings": 8,
    });
    ModelConfig::from_json(Path::new("experiment"), json.as_object().unwrap_or(&serde_json::Map::new()))
}

/// Weights and biases, by name. Frozen once the net is pretrained.
pub(super) struct Net {
    values: BTreeMap<String, Tensor>,
}

/// Rows on the device.
pub(super) struct Batch {
    /// `[n, inputs]`
    x: Tensor,
    /// `[n]`
    y: Tensor,
}

impl Batch {
    /// Some rows; a net that sees instructions gets their embeddings as further inputs.
    pub(super) fn new(task: Task, data: &Data, rows: &Rows, which: &[usize]) -> Result<Self> {
        let inputs = task.inputs();
        let mut x: Vec<f32> = Vec::new();
        for row in which {
            x.extend(&rows.x[row * inputs..(row + 1) * inputs]);
            if task == Task::RegimesSeen {
                x.extend(&data.instructions[rows.regime[*row]]);
            }
        }
        let y: Vec<f32> = which.iter().map(|row| rows.y[*row]).collect();
        let n = which.len();
        let width = x.len() / n.max(1);
        Ok(Self { x: Tensor::from_vec(x, (n, width), &Device::Cpu)?, y: Tensor::from_vec(y, n, &Device::Cpu)? })
    }

    pub(super) fn len(&self) -> usize {
        self.y.elem_count()
    }
}

impl Net {
    /// A net that has learned the source of the task's data in so many steps.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub(super) fn pretrained(task: Task, data: &Data, seed: u64, steps: usize) -> Result<Self> {
        let mut random = Random::new(seed ^ 0x5eed);
        let inputs = if task == Task::RegimesSeen { task.inputs() + WIDTH } else { task.inputs() };
        let mut vars = BTreeMap::new();
        let mut matrix = |name: String, rows: usize, columns: usize, factor: f32| -> Result<()> {
            let std = factor * (2.0 / columns as f32).sqrt();
            let values: Vec<f32> = (0..rows * columns).map(|_| std * random.normal()).collect();
            vars.insert(format!("{name}.weight"), Var::from_vec(values, (rows, columns), &Device::Cpu)?);
            vars.insert(format!("{name}.bias"), Var::from_vec(vec![0f32; rows], rows, &Device::Cpu)?);
            Ok(())
        };
        matrix("in".to_owned(), WIDTH, inputs, 1.0)?;
        for layer in 0..LAYERS {
            matrix(layer.to_string(), WIDTH, WIDTH, 1.0)?;
        }
        matrix("out".to_owned(), 1, WIDTH, 0.3)?;
        let tensors = |vars: &BTreeMap<String, Var>| {
            vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect()
        };
        let net = Self { values: tensors(&vars) };
        let mut optimizer = AdamW::new(&vars)?;
        for step in 0..steps {
            let rows: Vec<usize> = (0..ROWS).map(|i| (step * ROWS + i) % data.source.y.len()).collect();
            let batch = Batch::new(task, data, &data.source, &rows)?;
            let loss = net.loss(&batch, &mut crate::model::NoAdapter)?;
            let rate = 3e-3 * (1.0 - step as f64 / steps as f64);
            optimizer.step(&vars, &gradients(&loss, &vars)?, 1.0, |_| rate, 0.0)?;
        }
        Ok(Self { values: net.values.into_iter().map(|(name, tensor)| (name, tensor.detach())).collect() })
    }

    fn linear(&self, name: &str, x: &Tensor) -> Result<Tensor> {
        let y = ops::linear(x, &self.values[&format!("{name}.weight")])?;
        Ok(y.broadcast_add(&self.values[&format!("{name}.bias")])?)
    }

    /// The outputs for `batch`, `[n]`, with what `hook` adds to the hidden layers.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub(super) fn outputs(&self, batch: &Batch, hook: &mut dyn Hook) -> Result<Tensor> {
        let mut x = self.linear("in", &batch.x)?.gelu()?;
        for layer in 0..LAYERS {
            let y = self.linear(&layer.to_string(), &x)?;
            // A row is a sequence of one token.
            let input = x.unsqueeze(1)?;
            let delta = match (hook.low_rank(site(layer))?, hook.bottleneck(site(layer), &input)?) {
                (Some((a, b, scale)), _) => Some((ops::linear(&ops::linear(&input, &a)?, &b)? * scale)?),
                (None, Some((state, b, scale))) => Some((ops::linear(&state, &b)? * scale)?),
                (None, None) => hook.delta(site(layer), &input)?,
            };
            let y = match delta {
                Some(delta) => (y + delta.squeeze(1)?)?,
                None => y,
            };
            hook.after_layer(layer)?;
            x = y.gelu()?;
        }
        Ok(self.linear("out", &x)?.squeeze(1)?)
    }

    /// The mean squared error, a scalar.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub(super) fn loss(&self, batch: &Batch, hook: &mut dyn Hook) -> Result<Tensor> {
        Ok((self.outputs(batch, hook)? - &batch.y)?.sqr()?.mean_all()?)
    }
}
