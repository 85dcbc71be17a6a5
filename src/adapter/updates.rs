//! The updates of an adapter to the linear layers of a decoder, in memory: to run it, and to make banks of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::peft::{Base, Change, Changes};
use super::{HostTensor, Lora};
use crate::arch::{Linear, LinearLayer, ModelConfig};
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
}

impl LinearUpdates {
    /// Reads the updates that the adapter at `path` makes to `base`, whose typed config is `config`. The adapter may be
    /// any that [`super::open`] reads, if it changes nothing else.
    ///
    /// # Errors
    /// As [`super::open`]; [`crate::Error::Unsupported`] for an adapter that changes anything else, naming it.
    pub fn open(path: &Path, base: &Base, config: &ModelConfig) -> Result<Self> {
        let updates = Self::of(&super::open(path, base)?.without_copies(base)?, base)?;
        updates.check_base(config)?;
        Ok(Self { path: path.to_owned(), ..updates })
    }

    /// Reads `changes` as updates of linear layers of `base`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a change of another kind, or of a tensor that isn't a linear layer's weight.
    pub fn of(changes: &Changes, base: &Base) -> Result<Self> {
        let mut updates = BTreeMap::new();
        for (name, change) in &changes.changes {
            let refused = |found: &str| {
                Finding::new(&changes.path, format!("the change of {name:?}"))
                    .expected("a low-rank update of a decoder's linear layer, all that is run beside a model")
                    .found(found)
                    .hint("merge the adapter into its base with `jobs::merge`")
                    .unsupported()
            };
            let Change::LowRank(update) = change else { return Err(refused("another kind of change")) };
            let Some(layer) = LinearLayer::of_weight(&base.own_name(name)) else {
                return Err(refused("another tensor"));
            };
            let update = LinearUpdate { scale: update.scale, a: read(name, &update.a)?, b: read(name, &update.b)? };
            updates.insert(layer, update);
        }
        Ok(Self { path: changes.path.clone(), updates })
    }

    /// The changed linear layers, in the order in which a forward pass calls them.
    pub fn layers(&self) -> impl Iterator<Item = LinearLayer> {
        self.updates.keys().copied()
    }

    /// The update of a linear layer, if there is one.
    pub fn get(&self, layer: LinearLayer) -> Option<&LinearUpdate> {
        self.updates.get(&layer)
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
        Ok(())
    }
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
            (layer, LinearUpdate { scale: lora.config.scale(), a: a.clone(), b: b.clone() })
        };
        Self { path: lora.path.clone(), updates: lora.layers().into_iter().map(update).collect() }
    }
}
