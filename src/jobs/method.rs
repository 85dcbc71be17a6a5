//! Settings of the methods that combine several adapters or models into one.

use serde::{Deserialize, Serialize};

use super::settings::setting;
use crate::error::Result;
use crate::merge::combine::{CombineOptions, LoraMethod, ModelMethod, Weights};

/// A method and its options. Options that aren't given have the method's defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CombineSettings {
    /// The method: PEFT's name for adapters, mergekit's for models. Without a method, the adapters' changes are summed,
    /// each multiplied by its weight.
    pub method: Option<String>,
    /// The share of values to keep, from 0 to 1: one number for all, or one for each.
    pub density: Vec<f64>,
    /// Other weights for modules whose path ends in a match of a pattern: `PATTERN=W` or `PATTERN=W,W`.
    pub weights: Vec<String>,
    /// The seed of random numbers.
    pub seed: Option<u64>,
    /// The rank of a combined LoRA.
    pub rank: Option<usize>,
    /// The factor of the sum of all updates.
    pub lambda: Option<f64>,
    /// della: how far probabilities may differ from the density. ram: changes up to this size don't count. multislerp:
    /// what is added to lengths (mergekit's `eps`).
    #[serde(alias = "eps")]
    pub epsilon: Option<f64>,
    /// breadcrumbs: the share of largest values to drop.
    pub gamma: Option<f64>,
    /// Whether sums are divided by the sum of the weights (for multislerp, mergekit's `normalize_weights`).
    #[serde(alias = "normalize_weights")]
    pub normalize: Option<bool>,
    /// Whether kept values are scaled to make up for dropped ones.
    pub rescale: Option<bool>,
    /// slerp: the position between the base, 0, and the other model, 1. nearswap: values that are closer together than
    /// this are the other model's.
    pub t: Option<f64>,
    /// sce: the share of values to keep.
    pub select_topk: Option<f64>,
    /// karcher: the largest number of iterations.
    pub max_iter: Option<usize>,
    /// karcher: iteration stops when a step is shorter than this.
    pub tol: Option<f64>,
    /// model_stock: uses one angle per row instead of one for the tensor.
    pub filter_wise: bool,
    /// nuslerp: combines the models' differences from the base instead of the models themselves.
    pub nuslerp_updates: bool,
    /// nuslerp: uses one angle for the tensor instead of one per row.
    pub nuslerp_flatten: Option<bool>,
    /// nuslerp: uses one angle per column, unless there is one for the tensor.
    pub nuslerp_row_wise: bool,
    /// multislerp: combines the models' differences from the base instead of the models themselves.
    pub multislerp_updates: bool,
    /// ramplus_tl: how much a model's own changes grow with the share of its other changes.
    pub r: Option<f64>,
    /// ramplus_tl: the largest share that counts.
    pub alpha: Option<f64>,
    /// passthrough: the factor of the model.
    pub scale: Option<f64>,
    /// ties of LoRAs: elects the sign of the sum (`total`), or the most frequent sign (`frequency`).
    pub majority_sign: Option<String>,
}

/// The kind of inputs that are combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Combined {
    Loras,
    Models,
}

impl Combined {
    /// Whether the method of this name uses a setting.
    pub(super) fn reads(self, method: &str, field: &str) -> bool {
        let is = |kinds: &[&str]| kinds.iter().any(|kind| method.starts_with(kind));
        let is_arithmetic = || is(&["task_arithmetic", "ties", "dare", "breadcrumbs", "della"]);
        match (field, self) {
            ("density", Combined::Loras) => is(&["ties", "dare", "magnitude_prune"]),
            ("density", Combined::Models) => is(&["ties", "dare", "breadcrumbs", "della"]),
            ("seed", Combined::Models) if method == "arcee_fusion" => true,
            ("seed", _) => is(&["dare", "della"]),
            ("weights" | "rank", Combined::Loras) => true,
            ("weights", Combined::Models) => method.parse().is_ok_and(ModelMethod::takes_weights),
            ("majority_sign", Combined::Loras) => is(&["ties", "dare_ties"]),
            ("lambda" | "rescale", Combined::Models) => is_arithmetic(),
            ("normalize", Combined::Models) => is(&["linear", "multislerp"]) || is_arithmetic(),
            ("epsilon", Combined::Models) => is(&["della", "ram", "multislerp"]),
            ("gamma", Combined::Models) => is(&["breadcrumbs"]),
            ("t", Combined::Models) => is(&["slerp", "nearswap"]),
            ("select_topk", Combined::Models) => method == "sce",
            ("max_iter" | "tol", Combined::Models) => method == "karcher",
            ("filter_wise", Combined::Models) => method == "model_stock",
            ("nuslerp_updates" | "nuslerp_flatten" | "nuslerp_row_wise", Combined::Models) => method == "nuslerp",
            ("multislerp_updates", Combined::Models) => method == "multislerp",
            ("r" | "alpha", Combined::Models) => method == "ramplus_tl",
            ("scale", Combined::Models) => method == "passthrough",
            _ => false,
        }
    }

    fn methods(self) -> Vec<&'static str> {
        match self {
            Combined::Loras => LoraMethod::names().collect(),
            Combined::Models => ModelMethod::names().collect(),
        }
    }
}

impl CombineSettings {
    /// The names of all settings that are given.
    fn given(&self) -> impl Iterator<Item = &'static str> {
        let given = [
            ("density", !self.density.is_empty()),
            ("weights", !self.weights.is_empty()),
            ("seed", self.seed.is_some()),
            ("rank", self.rank.is_some()),
            ("lambda", self.lambda.is_some()),
            ("epsilon", self.epsilon.is_some()),
            ("gamma", self.gamma.is_some()),
            ("normalize", self.normalize.is_some()),
            ("rescale", self.rescale.is_some()),
            ("t", self.t.is_some()),
            ("select_topk", self.select_topk.is_some()),
            ("max_iter", self.max_iter.is_some()),
            ("tol", self.tol.is_some()),
            ("filter_wise", self.filter_wise),
            ("nuslerp_updates", self.nuslerp_updates),
            ("nuslerp_flatten", self.nuslerp_flatten.is_some()),
            ("nuslerp_row_wise", self.nuslerp_row_wise),
            ("multislerp_updates", self.multislerp_updates),
            ("r", self.r.is_some()),
            ("alpha", self.alpha.is_some()),
            ("scale", self.scale.is_some()),
            ("majority_sign", self.majority_sign.is_some()),
        ];
        given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name)
    }

    /// Refuses settings that the method doesn't use. No method means the sum of the adapters' changes, each multiplied
    /// by its weight.
    pub(super) fn check(&self, of: Combined, method: Option<&str>) -> Result<()> {
        let is_read = |field: &str| method.map_or(field == "weights", |method| of.reads(method, field));
        let Some(field) = self.given().find(|field| !is_read(field)) else { return Ok(()) };
        let readers: Vec<&str> = of.methods().into_iter().filter(|method| of.reads(method, field)).collect();
        let (what, other) = match of {
            Combined::Loras => ("adapters", Combined::Models),
            Combined::Models => ("models", Combined::Loras),
        };
        let expected = match readers.as_slice() {
            [] => format!("no such option for {what}"),
            readers => format!("a `method` that it says something to: {}", readers.join(", ")),
        };
        let elsewhere = other.methods().into_iter().any(|method| other.reads(method, field));
        let finding = setting(field).expected(expected).found(method.unwrap_or("no `method`"));
        let hint =
            if readers.is_empty() && elsewhere { "leave it out: it belongs to the other kind of merge" } else { "" };
        Err(finding.hint(hint).setting())
    }

    /// The options for inputs with these weights.
    pub(super) fn options(&self, weights: Vec<f64>) -> Result<CombineOptions> {
        let mut all = Weights::new(weights);
        for pattern in &self.weights {
            all = all.with_pattern(pattern)?;
        }
        let own = CombineOptions::default();
        Ok(CombineOptions {
            weights: all,
            density: self.density.clone(),
            lambda: self.lambda.unwrap_or(own.lambda),
            epsilon: self.epsilon.map(Into::into),
            gamma: self.gamma.map_or(own.gamma, Into::into),
            normalize: self.normalize,
            rescale: self.rescale,
            seed: self.seed.unwrap_or(own.seed),
            t: self.t,
            select_topk: self.select_topk.unwrap_or(own.select_topk),
            max_iter: self.max_iter.unwrap_or(own.max_iter),
            tol: self.tol.unwrap_or(own.tol),
            filter_wise: self.filter_wise,
            nuslerp_updates: self.nuslerp_updates,
            nuslerp_flatten: self.nuslerp_flatten.unwrap_or(own.nuslerp_flatten),
            nuslerp_row_wise: self.nuslerp_row_wise,
            multislerp_updates: self.multislerp_updates,
            r: self.r.unwrap_or(own.r),
            alpha: self.alpha.unwrap_or(own.alpha),
            scale: self.scale,
            majority_sign: match &self.majority_sign {
                Some(kind) => kind.parse()?,
                None => own.majority_sign,
            },
            rank: self.rank,
        })
    }
}
