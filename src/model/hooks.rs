//! Where adapters join a forward pass, and plain LoRA as the simplest of them.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Device, Tensor, Var};

use super::{InstructionEncoder, ops};
use crate::adapter::{Adapter, HostTensor};
use crate::arch::LinearLayer;
use crate::error::Result;

/// Something that adds to the outputs of linear layers.
pub trait Hook {
    /// What is added to the output of `site` for its input `x`, `[B, T, d_in]`: `[B, T, d_out]`,
    /// or nothing. Called once for every linear layer, in execution order.
    ///
    /// # Errors
    /// What the computation meets.
    fn delta(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<Tensor>>;
}

/// The base model alone.
pub struct NoAdapter;

impl Hook for NoAdapter {
    fn delta(&mut self, _site: LinearLayer, _x: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }
}

/// An adapter's tensors on a device.
///
/// Frozen ones leave no trace: with trainable ones every pass records how its values came about,
/// and holds on to all weights it met until the result is dropped.
pub struct LoadedAdapter {
    tensors: BTreeMap<String, Tensor>,
    /// The same tensors as variables, where they are trained.
    vars: BTreeMap<String, Var>,
    sites: HashMap<LinearLayer, (String, String)>,
    scale: f64,
    instruction_encoder: InstructionEncoder,
}

impl LoadedAdapter {
    /// Copies the tensors of `adapter` to `device`, to be used as they are.
    ///
    /// # Errors
    /// [`crate::Error::Compute`] where the device has no room; as [`InstructionEncoder::of`].
    pub fn frozen(adapter: &Adapter, device: &Device) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, t) in &adapter.tensors {
            tensors.insert(name.clone(), Tensor::from_slice(&t.values, t.shape.as_slice(), device)?);
        }
        let sites = adapter.sites().into_iter().map(|s| (s, (s.factor_name('A'), s.factor_name('B')))).collect();
        let instruction_encoder = InstructionEncoder::of(&adapter.config, &adapter.path, device)?;
        let scale = f64::from(adapter.config.scale());
        Ok(Self { tensors, vars: BTreeMap::new(), sites, scale, instruction_encoder })
    }

    /// The same as variables that a backward pass gives gradients for.
    ///
    /// # Errors
    /// As [`LoadedAdapter::frozen`].
    pub fn trainable(adapter: &Adapter, device: &Device) -> Result<Self> {
        let mut loaded = Self::frozen(adapter, device)?;
        for (name, tensor) in &mut loaded.tensors {
            let var = Var::from_tensor(tensor)?;
            *tensor = var.as_tensor().clone();
            loaded.vars.insert(name.clone(), var);
        }
        Ok(loaded)
    }

    /// Every variable by its tensor's name, sorted; none where frozen.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// What makes embeddings of instructions for it.
    pub fn instruction_encoder(&self) -> &InstructionEncoder {
        &self.instruction_encoder
    }

    /// The current values.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn to_host(&self) -> Result<BTreeMap<String, HostTensor>> {
        self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), to_host(tensor)?))).collect()
    }

    pub(crate) fn get(&self, name: &str) -> &Tensor {
        &self.tensors[name]
    }

    /// A, B of a site, where the adapter acts on it.
    pub(crate) fn factors(&self, site: LinearLayer) -> Option<(&Tensor, &Tensor)> {
        self.sites.get(&site).map(|(a, b)| (self.get(a), self.get(b)))
    }

    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }
}

/// A tensor's values in memory.
pub(crate) fn to_host(tensor: &Tensor) -> Result<HostTensor> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?.into();
    Ok(HostTensor { shape: tensor.dims().to_vec(), values })
}

/// Plain LoRA: `scale * B A x`.
pub struct LoraHook<'a>(pub &'a LoadedAdapter);

impl Hook for LoraHook<'_> {
    fn delta(&mut self, site: LinearLayer, x: &Tensor) -> Result<Option<Tensor>> {
        let Some((a, b)) = self.0.factors(site) else { return Ok(None) };
        let update = ops::linear(&ops::linear(x, a)?, b)?;
        Ok(Some((update * self.0.scale())?))
    }
}
