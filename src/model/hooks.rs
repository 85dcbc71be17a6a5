//! Hooks, by which adapters join a forward pass, and plain LoRA as the simplest of them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::{Device, Tensor, Var};

use super::{Batch, ExpertFactors, ExpertMatrix};
use crate::adapter::{ExpertFactorNames, HostTensor, LinearUpdates, Lora, Tensors, adapted_layers};
use crate::arch::{ExpertPart, LinearLayer};
use crate::error::Result;

/// An adapter's part of linear layers that run as one operation.
#[derive(Default)]
pub struct Factors {
    /// For each, `A` `[rank, d_in]`, `B` `[d_out, rank]` and the scale of its update, if it has one.
    pub of_sites: Vec<Option<(Tensor, Tensor, f64)>>,
    /// What mixes states inside the bottleneck, if anything does.
    pub mix: Option<Mixing>,
}

/// Matrices that mix states inside the bottleneck.
pub struct Mixing {
    /// One for each sequence or each token, `[N, r, r]`.
    pub matrices: Tensor,
    /// For each, the place behind its last token among all tokens of the batch, `[N]`, ascending.
    pub ends: Arc<[usize]>,
}

/// Gives the input of linear layers.
pub type Input<'a> = dyn FnMut() -> Result<Tensor> + 'a;

/// Adds to the outputs of linear layers.
pub trait Hook {
    /// What to add to the output of `site`, `[B, T, d_out]`, for its input `x`, `[B, T, d_in]`;
    /// `None` for nothing. It is called once for every linear layer, in execution order.
    ///
    /// # Errors
    /// Those of the computation.
    fn delta(&mut self, _site: LinearLayer, _x: &Tensor) -> Result<Option<Tensor>> {
        Ok(None)
    }

    /// The state inside the bottleneck of an update of `site` for its input `x`, `[B, T, rank]`, with the update's `B`
    /// `[d_out, rank]` and its scale: it adds `scale * state B^T`. Then [`Hook::delta`] isn't asked.
    ///
    /// # Errors
    /// Those of the computation.
    fn bottleneck(&mut self, _site: LinearLayer, _x: &Tensor) -> Result<Option<(Tensor, Tensor, f64)>> {
        Ok(None)
    }

    /// Sees the inputs of a matrix of an expert, `[n, d_in]`, in a layer with experts.
    ///
    /// # Errors
    /// Those of the computation.
    fn expert(&mut self, _layer: usize, _matrix: ExpertMatrix, _expert: usize, _x: &Tensor) -> Result<()> {
        Ok(())
    }

    /// The low-rank updates of the experts of a layer, by what they are to the experts.
    fn expert_factors(&self, _layer: usize) -> HashMap<ExpertPart, ExpertFactors> {
        HashMap::new()
    }

    /// Is called after every layer.
    ///
    /// # Errors
    /// Those of the computation.
    fn after_layer(&mut self, _layer: usize) -> Result<()> {
        Ok(())
    }

    /// Whether it adds nothing anywhere and sees no inputs.
    fn is_nothing(&self) -> bool {
        false
    }

    /// `A` `[rank, d_in]`, `B` `[d_out, rank]` and the scale of a low-rank update of `site`, for hooks that add nothing
    /// else there. Then [`Hook::delta`] isn't asked.
    ///
    /// # Errors
    /// Those of the computation.
    fn low_rank(&self, _site: LinearLayer) -> Result<Option<(Tensor, Tensor, f64)>> {
        Ok(None)
    }

    /// The magnitudes of the outputs of `site`, `[d_out]`: the rows of the weight with its low-rank update are scaled to
    /// these lengths (DoRA).
    fn magnitude(&self, _site: LinearLayer) -> Option<Tensor> {
        None
    }

    /// The hook's part of linear layers that run as one operation. The first `count` of `sites` have the input that
    /// `input` gives. `None` where the hook has to see the inputs of each: then they run one by one.
    ///
    /// # Errors
    /// Those of the computation.
    fn factors(&mut self, _sites: &[LinearLayer], _count: usize, _input: &mut Input) -> Result<Option<Factors>> {
        Ok(None)
    }

    /// How many layers, from a multiple of this number on, share what the adapter makes at the first of them.
    fn layers_together(&self) -> usize {
        1
    }

    /// What later layers take from earlier ones besides their states, in the order in which it was made.
    fn kept(&self) -> Vec<Tensor> {
        Vec::new()
    }

    /// Replaces it by other tensors of the same values, as many as there were at some point of the pass.
    fn keep(&mut self, _kept: &[Tensor]) {}

    /// Prepares for `batch`, which continues the sequences of the last pass with further tokens.
    ///
    /// # Errors
    /// Those of the computation.
    fn continue_with(&mut self, _batch: &Batch) -> Result<()> {
        Ok(())
    }
}

/// The base model alone.
pub struct NoAdapter;

impl Hook for NoAdapter {
    fn factors(&mut self, _sites: &[LinearLayer], _count: usize, _input: &mut Input) -> Result<Option<Factors>> {
        Ok(Some(Factors::default()))
    }

    fn is_nothing(&self) -> bool {
        true
    }
}

/// What an adapter has for a linear layer.
struct Site {
    /// The names of `lora_A` and `lora_B`.
    a: String,
    b: String,
    /// The name of its magnitudes, if it has some.
    magnitude: Option<String>,
    /// The factors of the update that the base has already, and that is taken away: `A`, and `B` with the other sign.
    start: Option<(Tensor, Tensor)>,
    scale: f64,
}

/// An adapter's tensors on a device, including the factors of linear layers.
///
/// With trainable tensors, a pass records its computation for the backward pass, and keeps all
/// weights that it used in memory until the result is dropped. With frozen ones it doesn't.
pub struct LoadedAdapter {
    tensors: BTreeMap<String, Tensor>,
    /// The same tensors as variables, if they are trained.
    vars: BTreeMap<String, Var>,
    /// The variables' values without their record.
    untracked: BTreeMap<String, Tensor>,
    is_tracked: AtomicBool,
    layers: HashMap<LinearLayer, Site>,
    /// By layer and part: the factors' names and the number of experts.
    experts: HashMap<(usize, ExpertPart), (String, String, usize)>,
    scale: f64,
}

impl LoadedAdapter {
    /// Copies `tensors` to `device`, without gradients. `scale` is the factor of every update.
    ///
    /// # Errors
    /// [`crate::Error::Compute`] where the device has no room.
    pub fn frozen(tensors: &Tensors, scale: f32, device: &Device) -> Result<Self> {
        let site = |layer: LinearLayer| {
            let magnitude = Some(layer.magnitude_name()).filter(|name| tensors.contains_key(name));
            let (a, b) = (layer.factor_name('A'), layer.factor_name('B'));
            (layer, Site { a, b, magnitude, start: None, scale: f64::from(scale) })
        };
        let layers = adapted_layers(tensors).into_iter().map(site).collect();
        let on_device = |t: &HostTensor| Tensor::from_slice(&t.values, t.shape.as_slice(), device);
        let tensors =
            tensors.iter().map(|(name, t)| Ok((name.clone(), on_device(t)?))).collect::<Result<BTreeMap<_, _>>>()?;
        Ok(Self {
            tensors,
            vars: BTreeMap::new(),
            untracked: BTreeMap::new(),
            is_tracked: AtomicBool::new(true),
            layers,
            experts: HashMap::new(),
            scale: f64::from(scale),
        })
    }

    /// With the scales that `lora`, of which this was made, gives single modules, and its factors for experts.
    #[must_use]
    pub fn with_settings(mut self, lora: &Lora) -> Self {
        for (layer, site) in &mut self.layers {
            site.scale = f64::from(lora.config.scale_of(*layer));
        }
        for ExpertFactorNames { layer, part, a, b } in lora.expert_factors() {
            let experts = lora.tensors[&a].shape[0] / lora.config.r.max(1);
            self.experts.insert((layer, part), (a, b, experts));
        }
        self
    }

    /// Like [`LoadedAdapter::frozen`], but as variables for which a backward pass computes
    /// gradients, but for those of `fixed` names.
    ///
    /// # Errors
    /// As [`LoadedAdapter::frozen`].
    pub fn trainable(tensors: &Tensors, fixed: &[&str], scale: f32, device: &Device) -> Result<Self> {
        let mut loaded = Self::frozen(tensors, scale, device)?;
        for (name, tensor) in loaded.tensors.iter_mut().filter(|(name, _)| !fixed.contains(&name.as_str())) {
            let var = Var::from_tensor(tensor)?;
            *tensor = var.as_tensor().clone();
            loaded.untracked.insert(name.clone(), var.as_detached_tensor());
            loaded.vars.insert(name.clone(), var);
        }
        Ok(loaded)
    }

    /// Takes an update away from that of every linear layer: the one whose factors have the same names in `start`, with
    /// the same scale.
    ///
    /// # Errors
    /// As [`LoadedAdapter::frozen`].
    pub(crate) fn without(mut self, start: &Tensors) -> Result<Self> {
        for site in self.layers.values_mut() {
            if let (Some(a), Some(b)) = (start.get(&site.a), start.get(&site.b)) {
                let on_device =
                    |t: &HostTensor, like: &Tensor| Tensor::from_slice(&t.values, t.shape.as_slice(), like.device());
                let (like_a, like_b) = (&self.tensors[&site.a], &self.tensors[&site.b]);
                site.start = Some((on_device(a, like_a)?, on_device(b, like_b)?.neg()?));
            }
        }
        Ok(self)
    }

    /// Every variable by its tensor's name, sorted; empty if the adapter is frozen.
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// Copies the current values to the host.
    ///
    /// # Errors
    /// [`crate::Error::Compute`].
    pub fn to_host(&self) -> Result<Tensors> {
        self.tensors.iter().map(|(name, tensor)| Ok((name.clone(), to_host(tensor)?))).collect()
    }

    /// The tensor called `name`, which must exist.
    pub(crate) fn get(&self, name: &str) -> &Tensor {
        match self.untracked.get(name).filter(|_| !self.is_tracked.load(Ordering::Relaxed)) {
            Some(tensor) => tensor,
            None => &self.tensors[name],
        }
    }

    /// The tensor called `name`, if there is one.
    pub(crate) fn find(&self, name: &str) -> Option<&Tensor> {
        self.tensors.contains_key(name).then(|| self.get(name))
    }

    /// Chooses whether passes record their computation for the backward pass, as they do at first.
    pub(crate) fn track(&self, is_tracked: bool) {
        self.is_tracked.store(is_tracked, Ordering::Relaxed);
    }

    /// A and B of a linear layer, if the adapter changes it.
    pub(crate) fn factors(&self, layer: LinearLayer) -> Option<(&Tensor, &Tensor)> {
        self.layers.get(&layer).map(|site| (self.get(&site.a), self.get(&site.b)))
    }

    /// `A`, `B` and the scale of what the adapter adds to a linear layer.
    fn low_rank(&self, layer: LinearLayer) -> Result<Option<(Tensor, Tensor, f64)>> {
        let Some(Site { a, b, start, scale, .. }) = self.layers.get(&layer) else { return Ok(None) };
        let (a, b) = (self.get(a), self.get(b));
        Ok(Some(match start {
            Some((first_a, first_b)) => (Tensor::cat(&[a, first_a], 0)?, Tensor::cat(&[b, first_b], 1)?, *scale),
            None => (a.clone(), b.clone(), *scale),
        }))
    }

    /// The magnitudes of a linear layer's outputs, if the adapter has some for it.
    fn magnitude(&self, layer: LinearLayer) -> Option<&Tensor> {
        self.layers.get(&layer)?.magnitude.as_ref().map(|name| self.get(name))
    }

    /// The factors for the experts of a layer.
    fn expert_factors(&self, layer: usize) -> HashMap<ExpertPart, ExpertFactors> {
        let of_layer = self.experts.iter().filter(|((of, _), _)| *of == layer);
        let factors = |(key, (a, b, experts)): (&(usize, ExpertPart), &(String, String, usize))| {
            let (a, b) = (self.get(a).clone(), self.get(b).clone());
            (key.1, ExpertFactors { a, b, experts: *experts, scale: self.scale })
        };
        of_layer.map(factors).collect()
    }

    /// The factor of every update. Dimensionless.
    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }
}

/// Low-rank updates on a device, each with its own scale: `scale * B A x`.
pub struct LoadedUpdates {
    linears: HashMap<LinearLayer, (Tensor, Tensor, f64)>,
    experts: HashMap<(usize, ExpertPart), ExpertFactors>,
}

impl LoadedUpdates {
    /// Copies `updates` to `device`.
    ///
    /// # Errors
    /// [`crate::Error::Compute`] where the device has no room.
    pub fn new(updates: &LinearUpdates, device: &Device) -> Result<Self> {
        let on_device = |t: &HostTensor| Tensor::from_slice(&t.values, t.shape.as_slice(), device);
        let mut linears = HashMap::new();
        for layer in updates.layers() {
            if let Some(update) = updates.get(layer) {
                linears.insert(layer, (on_device(&update.a)?, on_device(&update.b)?, f64::from(update.scale)));
            }
        }
        let mut experts = HashMap::new();
        for (site, update, count) in updates.experts() {
            let (a, b, scale) = (on_device(&update.a)?, on_device(&update.b)?, f64::from(update.scale));
            experts.insert(site, ExpertFactors { a, b, experts: count, scale });
        }
        Ok(Self { linears, experts })
    }
}

impl Hook for &LoadedUpdates {
    fn factors(&mut self, sites: &[LinearLayer], _count: usize, _input: &mut Input) -> Result<Option<Factors>> {
        Ok(Some(Factors { of_sites: sites.iter().map(|site| self.linears.get(site).cloned()).collect(), mix: None }))
    }

    fn low_rank(&self, site: LinearLayer) -> Result<Option<(Tensor, Tensor, f64)>> {
        Ok(self.linears.get(&site).cloned())
    }

    fn expert_factors(&self, layer: usize) -> HashMap<ExpertPart, ExpertFactors> {
        let of_layer = self.experts.iter().filter(|((of, _), _)| *of == layer);
        of_layer.map(|((_, part), factors)| (*part, factors.clone())).collect()
    }
}

/// Copies a tensor's values to the host.
pub(crate) fn to_host(tensor: &Tensor) -> Result<HostTensor> {
    let values = tensor.flatten_all()?.to_vec1::<f32>()?.into();
    Ok(HostTensor { shape: tensor.dims().to_vec(), values })
}

/// Plain LoRA: `scale * B A x`; with magnitudes, DoRA.
pub struct LoraHook<'a>(pub &'a LoadedAdapter);

impl Hook for LoraHook<'_> {
    fn factors(&mut self, sites: &[LinearLayer], _count: usize, _input: &mut Input) -> Result<Option<Factors>> {
        if sites.iter().any(|site| self.0.magnitude(*site).is_some()) {
            return Ok(None);
        }
        let of_sites = sites.iter().map(|site| self.low_rank(*site)).collect::<Result<_>>()?;
        Ok(Some(Factors { of_sites, mix: None }))
    }

    fn low_rank(&self, site: LinearLayer) -> Result<Option<(Tensor, Tensor, f64)>> {
        self.0.low_rank(site)
    }

    fn magnitude(&self, site: LinearLayer) -> Option<Tensor> {
        self.0.magnitude(site).cloned()
    }

    fn expert_factors(&self, layer: usize) -> HashMap<ExpertPart, ExpertFactors> {
        self.0.expert_factors(layer)
    }
}
