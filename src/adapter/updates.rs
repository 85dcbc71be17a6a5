//! The updates of an adapter to the linear layers of a decoder, in memory: to run it, and to make banks of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::experts::ExpertFactorNames;
use super::peft::{Base, Change, Changes, LowRank};
use super::{HostTensor, Lora};
use crate::arch::{ExpertPart, Linear, LinearLayer, ModelConfig};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, PlannedTensor};
use crate::source::show_shape;

/// The low-rank update of one linear layer, `scale * B A`.
#[derive(Debug, Clone)]
pub struct LinearUpdate {
    /// Dimensionless.
    pub scale: f32,
    /// `[r, d_in]`.
    pub a: HostTensor,
    /// `[d_out, r]`.
    pub b: HostTensor,
}

impl LinearUpdate {
    /// The rank of its factors.
    pub fn rank(&self) -> usize {
        self.a.shape.first().copied().unwrap_or_default()
    }
}

/// An adapter as low-rank updates of linear layers, each with its own rank and scale.
#[derive(Debug, Clone)]
pub struct LinearUpdates {
    /// The adapter's path; errors name it.
    pub path: PathBuf,
    updates: BTreeMap<LinearLayer, LinearUpdate>,
    /// Updates of the experts of a layer, with the number of experts: `a` is `[experts * r, d_in]`, the rows of an expert
    /// follow each other; `b` is `[d_out, r * experts]`, the columns of all experts take turns.
    experts: BTreeMap<(usize, ExpertPart), (LinearUpdate, usize)>,
}

/// The factors of one expert, and the number of the expert.
type OfExpert = (usize, LinearUpdate);

impl LinearUpdates {
    /// Reads the updates that the adapter at `path` makes to `base`, whose typed config is `config`. The adapter may be
    /// any that [`super::open`] reads, if it changes nothing else.
    ///
    /// # Errors
    /// As [`super::open`]; [`crate::Error::Unsupported`] for an adapter that changes anything else, naming it.
    pub fn open(path: &Path, base: &Base, config: &ModelConfig) -> Result<Self> {
        let updates = Self::of(&super::open(path, base)?.without_copies(base)?, base, config)?;
        updates.check_base(config)?;
        Ok(Self { path: path.to_owned(), ..updates })
    }

    /// Reads `changes` as updates of linear layers and experts of `base`, whose typed config is `config`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a change of another kind, or of a tensor that isn't a linear layer's weight.
    pub fn of(changes: &Changes, base: &Base, config: &ModelConfig) -> Result<Self> {
        let mut updates = BTreeMap::new();
        let mut experts: BTreeMap<(usize, ExpertPart), Vec<OfExpert>> = BTreeMap::new();
        for (name, change) in &changes.changes {
            let refused = |found: &str| {
                Finding::new(&changes.path, format!("the change of {name:?}"))
                    .expected("a low-rank update of a decoder's linear layer or experts, all that runs beside a model")
                    .found(found)
                    .hint("merge the adapter into its base with `jobs::merge`")
                    .unsupported()
            };
            let all = match change {
                Change::LowRank(update) => std::slice::from_ref(update),
                Change::Stack(updates) => updates.as_slice(),
                _ => return Err(refused("another kind of change")),
            };
            let own_name = base.own_name(name);
            let read = |update: &LowRank| -> Result<LinearUpdate> {
                Ok(LinearUpdate { scale: update.scale as f32, a: read(name, &update.a)?, b: read(name, &update.b)? })
            };
            if let (Some(layer), [update]) = (LinearLayer::of_weight(&own_name), all) {
                updates.insert(layer, read(update)?);
                continue;
            }
            let Some((layer, part, expert)) = config.of_experts(&own_name) else {
                return Err(refused("another tensor"));
            };
            let of_part = experts.entry((layer, part)).or_default();
            for (place, update) in all.iter().enumerate() {
                of_part.push((expert.unwrap_or(place), read(update)?));
            }
        }
        let count = config.expert_parameters().first().map_or(0, |parameter| parameter.experts);
        let finding = || Finding::new(&changes.path, "the changes of experts").expected("factors that fit each other");
        let joined = |(site, of_part)| {
            let joined = joined(of_part, count).ok_or_else(|| finding().found("others").mismatch())?;
            Ok((site, (joined, count)))
        };
        let experts = experts.into_iter().map(joined).collect::<Result<_>>()?;
        Ok(Self { path: changes.path.clone(), updates, experts })
    }

    /// The changed linear layers, in the order in which a forward pass calls them.
    pub fn layers(&self) -> impl Iterator<Item = LinearLayer> {
        self.updates.keys().copied()
    }

    /// The update of a linear layer, if there is one.
    pub fn get(&self, layer: LinearLayer) -> Option<&LinearUpdate> {
        self.updates.get(&layer)
    }

    /// The updates of experts, by layer and part, with the number of experts.
    pub fn experts(&self) -> impl Iterator<Item = ((usize, ExpertPart), &LinearUpdate, usize)> {
        self.experts.iter().map(|(site, (update, count))| (*site, update, *count))
    }

    /// The highest rank of an update.
    pub fn rank(&self) -> usize {
        self.updates.values().map(LinearUpdate::rank).max().unwrap_or_default()
    }

    /// Checks that every update fits the linear layers of `base`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`], naming the layer.
    pub fn check_base(&self, base: &ModelConfig) -> Result<()> {
        for (layer, update) in &self.updates {
            let finding = || Finding::new(&self.path, format!("the change of {:?}", layer.weight_name()));
            if layer.layer >= base.num_hidden_layers {
                return Err(finding()
                    .expected(format_args!("layers below the base model's {}", base.num_hidden_layers))
                    .found(format_args!("layer {}", layer.layer))
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            }
            let Some(Linear { d_out, d_in, .. }) = base.linear(*layer) else {
                return Err(finding()
                    .expected("a linear layer of the base model")
                    .found("none of this name")
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            };
            let rank = update.rank();
            for (factor, shape) in [(&update.a, [rank, d_in]), (&update.b, [d_out, rank])] {
                if factor.shape != shape {
                    return Err(finding()
                        .expected(format_args!("a factor of {} for this base model", show_shape(&shape)))
                        .found(show_shape(&factor.shape))
                        .hint("this adapter belongs to another base model")
                        .mismatch());
                }
            }
        }
        for ((layer, part), (update, experts)) in &self.experts {
            let parameters = base.expert_parameters().iter().filter(|parameter| parameter.layer == *layer);
            let size = |part: ExpertPart| {
                let found = parameters.clone().find(|parameter| parameter.part == part)?;
                Some((found.d_out, found.d_in))
            };
            let size = match part {
                // Halves of one matrix.
                ExpertPart::Gate | ExpertPart::Up => size(ExpertPart::GateUp).map(|(out, inputs)| (out / 2, inputs)),
                part => size(*part),
            };
            let rank = update.b.shape.get(1).copied().unwrap_or_default();
            let fits = size.is_some_and(|(d_out, d_in)| update.a.shape == [rank, d_in] && update.b.shape[0] == d_out);
            if !fits || !rank.is_multiple_of((*experts).max(1)) {
                return Err(Finding::new(&self.path, format!("the change of the experts of layer {layer}"))
                    .expected("factors that fit the experts of the base model")
                    .found(format_args!("{} and {}", show_shape(&update.a.shape), show_shape(&update.b.shape)))
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            }
        }
        Ok(())
    }
}

/// The updates of `count` experts as one, of the scale of the first. Experts that have none, or one of a lower rank, get
/// zeros. `None` for factors that don't fit each other.
fn joined(all: Vec<OfExpert>, count: usize) -> Option<LinearUpdate> {
    let (_, first) = all.first()?;
    let rank = all.iter().map(|(_, update)| update.rank()).max()?;
    let (d_in, d_out, scale) = (*first.a.shape.get(1)?, *first.b.shape.first()?, first.scale);
    let (mut a, mut b) = (vec![0f32; count * rank * d_in], vec![0f32; d_out * rank * count]);
    for (expert, update) in &all {
        let own = update.rank();
        if *expert >= count || update.a.shape != [own, d_in] || update.b.shape != [d_out, own] {
            return None;
        }
        a[expert * rank * d_in..][..own * d_in].copy_from_slice(&update.a.values);
        // Scales of one parameter are the same, but experts may have been adapted one by one.
        let factor = if update.scale == scale { 1.0 } else { update.scale / scale };
        for (row, values) in update.b.values.chunks_exact(own.max(1)).enumerate() {
            for (k, value) in values.iter().enumerate() {
                b[row * rank * count + k * count + expert] = value * factor;
            }
        }
    }
    let a = HostTensor { shape: vec![count * rank, d_in], values: a.into() };
    Some(LinearUpdate { scale, a, b: HostTensor { shape: vec![d_out, rank * count], values: b.into() } })
}

/// Reads a factor of the update of `name`.
fn read(name: &str, factor: &Expr) -> Result<HostTensor> {
    let shape = factor.shape();
    let tensor = PlannedTensor { name: name.to_owned(), dtype: DType::F32, shape: shape.clone(), expr: factor.clone() };
    Ok(HostTensor { shape, values: tensor.read()?.into() })
}

impl From<&Lora> for LinearUpdates {
    fn from(lora: &Lora) -> Self {
        let update = |layer: LinearLayer| {
            let (a, b) = lora.factors(layer);
            (layer, LinearUpdate { scale: lora.config.scale_of(layer), a: a.clone(), b: b.clone() })
        };
        let experts = lora.expert_factors().into_iter().map(|ExpertFactorNames { layer, part, a, b }| {
            let (a, b) = (lora.tensors[&a].clone(), lora.tensors[&b].clone());
            let count = a.shape[0] / lora.config.r.max(1);
            ((layer, part), (LinearUpdate { scale: lora.config.scale(), a, b }, count))
        });
        Self {
            path: lora.path.clone(),
            updates: lora.layers().into_iter().map(update).collect(),
            experts: experts.collect(),
        }
    }
}
