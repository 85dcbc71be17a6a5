//! The plan of a mixture.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::class::{Part, feed_forward, of_layer};
use super::gates::random_words;
use super::noise::expert_weight;
use super::{Expert, Gates, MoeClass, MoeConfig};
use crate::arch::is_buffer;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::linalg::{Normals, Stream};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// What a mixture is made of.
#[derive(Debug, Clone, Copy)]
pub struct Mixture<'a> {
    /// Its class.
    pub class: MoeClass,
    /// The settings.
    pub config: &'a MoeConfig,
    /// The base's tensors, by the names of its class.
    pub base: &'a Plan,
    /// The tensors of every expert's model, in the order of [`MoeConfig::all_experts`].
    pub experts: &'a [&'a Plan],
    /// The number of layers.
    pub layers: usize,
    /// The length of a state.
    pub width: usize,
    /// The seed of random numbers.
    pub seed: u64,
}

/// Weights of feed-forward blocks by layer and part.
type Blocks<'a> = HashMap<(usize, Part), &'a PlannedTensor>;

/// The plan of a mixture. Gates are random if `gates` is `None`. `notes` gets what is left out.
///
/// # Errors
/// [`crate::Error::Mismatch`] for a model without a tensor or with one of another shape, and for a tensor of the base that
/// has no place in the class.
pub fn mixture(of: Mixture<'_>, gates: Option<&Gates>, notes: &mut Vec<String>) -> Result<Plan> {
    let experts: Vec<Blocks> = of.experts.iter().map(|plan| blocks(plan)).collect();
    let (random, noise) = draws(&of, &experts);
    let drawn;
    let gates = match gates {
        Some(gates) => gates,
        None => {
            drawn = Gates::random(&random, of.config.gate_mode, of.layers, of.config.gated().len(), of.width);
            &drawn
        }
    };
    let maker = Maker { of, experts, noise, gates };
    let (mut plan, mut done) = (Plan::default(), HashSet::new());
    for tensor in &of.base.tensors {
        match feed_forward(&tensor.name) {
            Some((layer, _)) if layer < of.layers => {
                if done.insert(layer) {
                    maker.layer(layer, &mut plan)?;
                }
            }
            _ if is_buffer(&tensor.name) => notes.push(format!("{}: a buffer, left out", tensor.name)),
            None if of.class.has(&tensor.name) && of_layer(&tensor.name).is_none_or(|(layer, _)| layer < of.layers) => {
                plan.tensors.push(of.typed(tensor.clone()));
            }
            _ => {
                let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
                let expected = format!("only tensors that {} has", of.class.names().0);
                return Err(finding.expected(expected).found("another one").unsupported());
            }
        }
    }
    if let Some(layer) = (0..of.layers).find(|layer| !done.contains(layer)) {
        maker.layer(layer, &mut plan)?;
    }
    if of.class == MoeClass::Qwen2 {
        add_biases(&of, &mut plan)?;
    }
    Ok(plan)
}

impl Mixture<'_> {
    /// A tensor with the type of the result.
    fn typed(&self, tensor: PlannedTensor) -> PlannedTensor {
        let dtype = self.config.dtype.filter(|_| tensor.dtype.is_float()).unwrap_or(tensor.dtype);
        PlannedTensor { dtype, ..tensor }
    }
}

/// The weights of feed-forward blocks among the tensors of a model.
fn blocks(plan: &Plan) -> Blocks<'_> {
    plan.tensors.iter().filter_map(|tensor| Some((feed_forward(&tensor.name)?, tensor))).collect()
}

/// Where the noise of a weight is drawn, by layer, expert (`None` is the shared one) and part.
type Noises = HashMap<(usize, Option<usize>, Part), Normals>;

/// The sequence of random numbers: those of the gates come first, then the noise of each weight in mergekit's order.
fn draws(of: &Mixture<'_>, experts: &[Blocks<'_>]) -> (Arc<Stream>, Noises) {
    let config = of.config;
    let (count, has_shared) = (config.experts.len(), !config.shared_experts.is_empty());
    let gates = random_words(config.gate_mode, of.layers, config.gated().len(), of.width).unwrap_or(0);
    let all: Vec<&Expert> = config.all_experts().collect();
    let (mut position, mut places) = (gates, Vec::new());
    for layer in 0..of.layers {
        for (expert, part) in of.class.drawn(count, has_shared) {
            let number = expert.unwrap_or(count);
            if let (Some(_), Some(tensor)) = (all[number].noise_scale, experts[number].get(&(layer, part))) {
                places.push(((layer, expert, part), position, tensor.elems() as u64));
                position += Normals::words(tensor.elems() as u64);
            }
        }
    }
    let stream = Arc::new(Stream::new(of.seed, position));
    let normals = |position: u64, count: u64| Normals::new(&stream, position, count);
    let noise = places.into_iter().map(|(key, position, count)| (key, normals(position, count))).collect();
    (stream.clone(), noise)
}

/// Makes the layers of a mixture.
struct Maker<'a> {
    of: Mixture<'a>,
    experts: Vec<Blocks<'a>>,
    noise: Noises,
    gates: &'a Gates,
}

impl Maker<'_> {
    /// Adds the router and the experts of a layer.
    fn layer(&self, layer: usize, plan: &mut Plan) -> Result<()> {
        let (class, config) = (self.of.class, self.of.config);
        let width = self.of.width;
        let (routed, shared) = self.gates.by_layer[layer].split_at(config.experts.len() * width);
        plan.tensors.push(self.gate(class.router(layer), routed));
        for number in 0..config.experts.len() {
            for part in Part::ALL {
                let name = class.expert(layer, number, part);
                plan.tensors.push(self.weight(layer, Some(number), part, name)?);
            }
        }
        if config.shared_experts.is_empty() {
            return Ok(());
        }
        if let Some(name) = class.shared_router(layer) {
            plan.tensors.push(self.gate(name, shared));
        }
        for part in Part::ALL {
            plan.tensors.push(self.weight(layer, None, part, class.shared(layer, part))?);
        }
        Ok(())
    }

    /// A matrix of gates.
    fn gate(&self, name: String, values: &[f32]) -> PlannedTensor {
        let shape = vec![values.len() / self.of.width.max(1), self.of.width];
        let dtype = self.of.config.dtype.unwrap_or_else(|| match self.of.base.main_dtype() {
            dtype @ (DType::F16 | DType::BF16) => dtype,
            _ => DType::F32,
        });
        PlannedTensor { name, dtype, shape: shape.clone(), expr: Expr::Values { shape, values: values.into() } }
    }

    /// A weight of an expert.
    fn weight(&self, layer: usize, expert: Option<usize>, part: Part, name: String) -> Result<PlannedTensor> {
        let number = expert.unwrap_or(self.of.config.experts.len());
        let dense = format!("model.layers.{layer}.mlp.{}.weight", part.name());
        let Some(tensor) = self.experts[number].get(&(layer, part)) else {
            let file = self.of.experts[number].tensors.first().map(|tensor| tensor.expr.source_path());
            let finding = Finding::new(file.unwrap_or_default(), format!("tensor {dense:?}"));
            return Err(finding.expected("one of that name").found("none").mismatch());
        };
        // All experts have the shape of the first.
        if let Some(first) = self.experts[0].get(&(layer, part)).filter(|first| first.shape != tensor.shape) {
            let finding = Finding::new(tensor.expr.source_path(), format!("tensor {dense:?}"));
            let expected = format!("{}, as the first expert has", show_shape(&first.shape));
            return Err(finding.expected(expected).found(show_shape(&tensor.shape)).mismatch());
        }
        let Some(described) = self.of.config.all_experts().nth(number) else { unreachable!("an expert is described") };
        let normals = self.noise.get(&(layer, expert, part)).cloned();
        let expr = expert_weight(tensor, described, normals, part == Part::Down);
        Ok(self.of.typed(PlannedTensor { name, dtype: tensor.dtype, shape: tensor.shape.clone(), expr }))
    }
}

/// Adds biases of zero, which Qwen's attention needs, where the base has none.
fn add_biases(of: &Mixture<'_>, plan: &mut Plan) -> Result<()> {
    let names: HashSet<String> = plan.tensors.iter().map(|tensor| tensor.name.clone()).collect();
    for layer in 0..of.layers {
        for part in ["q_proj", "k_proj", "v_proj"] {
            let name = |end: &str| format!("model.layers.{layer}.self_attn.{part}.{end}");
            let Some(weight) = plan.get(&name("weight")).filter(|_| !names.contains(&name("bias"))) else { continue };
            let (dtype, shape) = (weight.dtype, vec![weight.shape.first().copied().unwrap_or(0)]);
            let expr = Expr::Values { shape: shape.clone(), values: vec![0.0; shape[0]].into() };
            plan.tensors.push(PlannedTensor { name: name("bias"), dtype, shape, expr });
        }
    }
    Ok(())
}
