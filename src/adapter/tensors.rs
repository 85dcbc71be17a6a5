//! The tensors of an adapter in memory, by name, including the factors of linear layers.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::arch::{Linear, LinearLayer, ModelConfig, Module};
use crate::checkpoint::ADAPTER_CONFIG;
use crate::dtype::DType;
use crate::error::{Finding, IoContext, Result};
use crate::linalg::Random;
use crate::output::{Destination, Output};
use crate::plan::{self, Expr, Plan, PlannedTensor, Staging};
use crate::source::show_shape;

/// A tensor in memory, in f32: adapters are small.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The values, row by row.
    pub values: Arc<[f32]>,
}

/// Tensors by their names in the adapter's file.
pub type Tensors = BTreeMap<String, HostTensor>;

pub(crate) const WEIGHTS_FILE: &str = "adapter_model.safetensors";

/// Reads all tensors of `plan` in f32.
pub(crate) fn read_tensors(plan: &Plan) -> Result<Tensors> {
    let tensors = plan.tensors.iter().map(|tensor| PlannedTensor { dtype: DType::F32, ..tensor.clone() }).collect();
    let plan = Plan { tensors };
    plan.check()?;
    let mut tensors = Tensors::new();
    for tensor in plan.tensors {
        let values = tensor.read()?.into();
        tensors.insert(tensor.name, HostTensor { shape: tensor.shape, values });
    }
    Ok(tensors)
}

/// The linear layers that have a `lora_A`, in the order in which a forward pass calls them.
pub(crate) fn adapted_layers(tensors: &Tensors) -> Vec<LinearLayer> {
    let mut layers: Vec<LinearLayer> = tensors.keys().filter_map(|name| LinearLayer::of_factor(name, 'A')).collect();
    layers.sort();
    layers
}

/// The names of the modules in `layers`, and the numbers of their decoder layers.
pub(crate) fn modules_and_layers(layers: &[LinearLayer]) -> (Vec<String>, Vec<usize>) {
    let mut modules: Vec<Module> = layers.iter().map(|layer| layer.module).collect();
    modules.sort();
    modules.dedup();
    let mut numbers: Vec<usize> = layers.iter().map(|layer| layer.layer).collect();
    numbers.dedup();
    let mut names: Vec<String> = modules.into_iter().map(|module| module.name().to_owned()).collect();
    names.dedup();
    (names, numbers)
}

/// Checks that every tensor of `file` is a factor that has its partner, or one of the adapter's
/// `own` tensors. Factors must belong to one of `targets`, if given.
pub(crate) fn check_factor_names(
    file: &Path,
    tensors: &Tensors,
    targets: Option<&[String]>,
    own: impl Fn(&str) -> bool,
) -> Result<()> {
    let finding = |name: &str| Finding::new(file, format!("tensor {name:?}"));
    for name in tensors.keys().filter(|name| !own(name)) {
        let (layer, partner) = match (LinearLayer::of_factor(name, 'A'), LinearLayer::of_factor(name, 'B')) {
            (Some(layer), _) => (layer, 'B'),
            (_, Some(layer)) => (layer, 'A'),
            _ => {
                return Err(finding(name)
                    .expected("a tensor this kind of adapter has")
                    .found("one that nothing here uses")
                    .unsupported());
            }
        };
        if !tensors.contains_key(&layer.factor_name(partner)) {
            return Err(finding(&layer.factor_name(partner)).expected("a tensor of this name").found("none").format());
        }
        if let Some(targets) = targets.filter(|targets| !targets.iter().any(|t| layer.is_selected_by(t))) {
            return Err(finding(name)
                .expected(format_args!("only target_modules {targets:?}"))
                .found(layer.module.name())
                .mismatch());
        }
    }
    if !tensors.keys().any(|name| name.ends_with(".lora_A.weight")) {
        return Err(Finding::new(file, "").expected("lora_A and lora_B tensors").found("none").format());
    }
    Ok(())
}

/// Checks that all factors have the ranks that `rank` gives and fit the linear layers of `base`, and that magnitudes do.
pub(crate) fn check_factor_shapes(
    file: &Path,
    tensors: &Tensors,
    rank: impl Fn(LinearLayer) -> usize,
    base: &ModelConfig,
) -> Result<()> {
    let finding = |name: &str| Finding::new(file, format!("tensor {name:?}"));
    for layer in adapted_layers(tensors) {
        if layer.layer >= base.num_hidden_layers {
            return Err(finding(&layer.factor_name('A'))
                .expected(format_args!("layers below the base model's {}", base.num_hidden_layers))
                .found(format_args!("layer {}", layer.layer))
                .hint("this adapter belongs to another base model")
                .mismatch());
        }
        let Some(Linear { d_out, d_in, .. }) = base.linear(layer) else {
            return Err(finding(&layer.factor_name('A'))
                .expected("a linear layer of the base model")
                .found("none of this name")
                .hint("this adapter belongs to another base model")
                .mismatch());
        };
        let r = rank(layer);
        let factors = [(layer.factor_name('A'), vec![r, d_in]), (layer.factor_name('B'), vec![d_out, r])];
        let magnitude = (layer.magnitude_name(), vec![d_out]);
        for (name, shape) in factors.into_iter().chain([magnitude]) {
            let Some(found) = tensors.get(&name).map(|tensor| &tensor.shape) else { continue };
            if found != &shape {
                return Err(finding(&name)
                    .expected(format_args!("{} for this base model", show_shape(&shape)))
                    .found(show_shape(found))
                    .hint("this adapter belongs to another base model, or its r is not what its config says")
                    .mismatch());
            }
        }
    }
    Ok(())
}

/// Adds fresh factors of rank `r` for every module of `targets` in every layer: A is
/// Kaiming-uniform with a = sqrt 5, B is zero.
pub(crate) fn add_fresh_factors(
    tensors: &mut Tensors,
    targets: &[String],
    r: usize,
    base: &ModelConfig,
    random: &mut Random,
) {
    base.selected(targets).for_each(|linear| add_fresh_factor(tensors, linear, r, random));
}

/// Adds fresh factors of rank `r` for one linear layer, as [`add_fresh_factors`].
pub(crate) fn add_fresh_factor(tensors: &mut Tensors, linear: Linear, r: usize, random: &mut Random) {
    let Linear { site, d_out, d_in, .. } = linear;
    // Kaiming-uniform with a = sqrt 5 has the bound 1 / sqrt(fan-in).
    let bound = 1.0 / (d_in as f32).sqrt();
    let a = (0..r * d_in).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect();
    tensors.insert(site.factor_name('A'), HostTensor { shape: vec![r, d_in], values: a });
    let b = HostTensor { shape: vec![d_out, r], values: vec![0.0; d_out * r].into() };
    tensors.insert(site.factor_name('B'), b);
}

/// The folder of an adapter with these settings and tensors, in f32.
pub(crate) fn adapter_output(config: &Value, tensors: &Tensors) -> Output {
    Output::adapter(config, planned(tensors))
}

/// Writes the two files of an adapter into `folder`, each by a rename; other files there stay.
pub(crate) fn replace_adapter(adapter: &Output, folder: &Path) -> Result<()> {
    let staging = Staging::folder(&folder.join("adapter"), false)?;
    adapter.write_into(&staging, plan::Options::default())?;
    for name in [WEIGHTS_FILE, ADAPTER_CONFIG] {
        let target = folder.join(name);
        std::fs::rename(staging.path().join(name), &target).at(&target, "write")?;
    }
    Ok(())
}

/// Writes named f32 tensors as `{stem}.safetensors` into the new folder `folder`.
///
/// # Errors
/// [`crate::Error::Exists`], [`crate::Error::Io`], [`crate::Error::NotFinite`].
pub fn save_tensors(tensors: &Tensors, stem: &str, folder: &Path) -> Result<()> {
    tensors_output(tensors, stem).write(&Destination::new(folder), &|_| ()).map(drop)
}

/// Named f32 tensors as `{stem}.safetensors` in a folder.
pub(crate) fn tensors_output(tensors: &Tensors, stem: &str) -> Output {
    Output::folder(stem, planned(tensors))
}

/// The plan that writes `tensors` as they are.
pub(super) fn planned(tensors: &Tensors) -> Plan {
    let planned = tensors.iter().map(|(name, t)| PlannedTensor {
        name: name.clone(),
        dtype: DType::F32,
        shape: t.shape.clone(),
        expr: Expr::Values { shape: t.shape.clone(), values: t.values.clone() },
    });
    Plan { tensors: planned.collect() }
}
