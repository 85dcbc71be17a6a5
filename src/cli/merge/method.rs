//! How several adapters or models become one: options of the methods.

use anyhow::Result;
use atombank::error::Finding;
use atombank::merge::combine::{CombineOptions, LoraMethod, ModelMethod, Weights};
use clap::Args;

/// Options of the methods.
#[derive(Args)]
#[command(next_help_heading = "Combining")]
pub(super) struct MethodArgs {
    /// How several become one. LoRAs, as PEFT combines them: linear, cat, svd, ties, dare_linear,
    /// dare_ties, magnitude_prune, and with _svd behind them. Models, as mergekit does: linear,
    /// task_arithmetic, ties, dare_linear, dare_ties, della, della_linear, breadcrumbs,
    /// breadcrumbs_ties, sce, slerp, nuslerp, model_stock, karcher [default: the sum of what each
    /// adapter changes, times its weight]
    #[arg(long, value_name = "NAME")]
    pub(super) method: Option<String>,
    /// The share of values that is kept, from 0 to 1; or one for each: 0.5,0.7
    #[arg(long, value_name = "SHARE", value_delimiter = ',')]
    density: Vec<f64>,
    /// Another weight for modules whose path ends in a match of a pattern: 'self_attn.*=0.3', or one
    /// for each: 'mlp.*=0.3,0.7'; may be repeated
    #[arg(long, value_name = "PATTERN=W")]
    weights: Vec<String>,
    /// Where random numbers start, as torch.manual_seed has it [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The rank of a combined LoRA, cut by SVD where it would be larger; what that loses is printed
    #[arg(long, value_name = "R", value_parser = parse_rank)]
    pub(super) rank: Option<usize>,
    /// What the sum of all updates is multiplied with [default: 1]
    #[arg(long, value_name = "FACTOR")]
    lambda: Option<f64>,
    /// della: how far probabilities go from the density [default: 0.15]
    #[arg(long, value_name = "E")]
    epsilon: Option<f64>,
    /// breadcrumbs: the share of the largest values that is left out [default: 0.01]
    #[arg(long, value_name = "SHARE")]
    gamma: Option<f64>,
    /// Whether sums are divided by the weights' sum [default: the method's own]
    #[arg(long, value_name = "BOOL")]
    normalize: Option<bool>,
    /// Whether what is kept is scaled to what was there [default: the method's own]
    #[arg(long, value_name = "BOOL")]
    rescale: Option<bool>,
    /// slerp: how far from the base to the other model, from 0 to 1
    #[arg(long, value_name = "T")]
    t: Option<f64>,
    /// sce: the share of values that is kept [default: 1]
    #[arg(long, value_name = "SHARE")]
    select_topk: Option<f64>,
    /// karcher: steps at most [default: 10]
    #[arg(long, value_name = "N")]
    max_iter: Option<usize>,
    /// karcher: the length of a step that is the last [default: 1e-5]
    #[arg(long, value_name = "LENGTH")]
    tol: Option<f64>,
    /// model_stock: an angle for each row, not one for the tensor
    #[arg(long)]
    filter_wise: bool,
    /// nuslerp: one angle for the tensor, not one for each row [default: true]
    #[arg(long, value_name = "BOOL")]
    nuslerp_flatten: Option<bool>,
    /// nuslerp: an angle for each column, where there isn't one for the tensor
    #[arg(long)]
    nuslerp_row_wise: bool,
    /// ties of LoRAs: the sign of the sum (total), or that more have (frequency) [default: total]
    #[arg(long, value_name = "KIND")]
    majority_sign: Option<String>,
}

/// What is combined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Loras,
    Models,
}

impl Of {
    /// Whether the method of this name makes something of an option.
    fn reads(self, method: &str, option: &str) -> bool {
        let is = |kinds: &[&str]| kinds.iter().any(|kind| method.starts_with(kind));
        let is_arithmetic = || is(&["task_arithmetic", "ties", "dare", "breadcrumbs", "della"]);
        match (option, self) {
            ("density", Of::Loras) => is(&["ties", "dare", "magnitude_prune"]),
            ("density", Of::Models) => is(&["ties", "dare", "breadcrumbs", "della"]),
            ("seed", _) => is(&["dare", "della"]),
            ("weights" | "rank", Of::Loras) => true,
            ("weights", Of::Models) => method.parse().is_ok_and(ModelMethod::takes_weights),
            ("majority-sign", Of::Loras) => is(&["ties", "dare_ties"]),
            ("lambda" | "rescale", Of::Models) => is_arithmetic(),
            ("normalize", Of::Models) => method == "linear" || is_arithmetic(),
            ("epsilon", Of::Models) => is(&["della"]),
            ("gamma", Of::Models) => is(&["breadcrumbs"]),
            ("t", Of::Models) => method == "slerp",
            ("select-topk", Of::Models) => method == "sce",
            ("max-iter" | "tol", Of::Models) => method == "karcher",
            ("filter-wise", Of::Models) => method == "model_stock",
            ("nuslerp-flatten" | "nuslerp-row-wise", Of::Models) => method == "nuslerp",
            _ => false,
        }
    }

    fn methods(self) -> Vec<&'static str> {
        match self {
            Of::Loras => LoraMethod::names().collect(),
            Of::Models => ModelMethod::names().collect(),
        }
    }
}

fn parse_rank(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rank| *rank > 0).ok_or_else(|| "expected a rank from 1 on".to_owned())
}

impl MethodArgs {
    /// Every option that is given.
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
            ("select-topk", self.select_topk.is_some()),
            ("max-iter", self.max_iter.is_some()),
            ("tol", self.tol.is_some()),
            ("filter-wise", self.filter_wise),
            ("nuslerp-flatten", self.nuslerp_flatten.is_some()),
            ("nuslerp-row-wise", self.nuslerp_row_wise),
            ("majority-sign", self.majority_sign.is_some()),
        ];
        given.into_iter().filter(|(_, is_given)| *is_given).map(|(name, _)| name)
    }

    /// Refuses options that the method makes nothing of. No method is the sum of what adapters change, each times
    /// its weight.
    ///
    /// # Errors
    /// [`atombank::Error::Mismatch`].
    pub(super) fn check(&self, of: Of, method: Option<&str>) -> Result<()> {
        let is_read = |option: &str| method.map_or(option == "weights", |method| of.reads(method, option));
        let Some(option) = self.given().find(|option| !is_read(option)) else { return Ok(()) };
        let readers: Vec<&str> = of.methods().into_iter().filter(|method| of.reads(method, option)).collect();
        let (what, other) = match of {
            Of::Loras => ("adapters", Of::Models),
            Of::Models => ("models", Of::Loras),
        };
        let expected = match readers.as_slice() {
            [] => format!("no such option for {what}"),
            readers => format!("a --method that it says something to: {}", readers.join(", ")),
        };
        let elsewhere = other.methods().into_iter().any(|method| other.reads(method, option));
        let finding = Finding::new(format!("--{option}"), "").expected(expected).found(method.unwrap_or("no --method"));
        let hint =
            if readers.is_empty() && elsewhere { "leave it out: it belongs to the other kind of merge" } else { "" };
        Err(finding.hint(hint).mismatch().into())
    }

    /// The options for what has these weights.
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
            epsilon: self.epsilon.unwrap_or(own.epsilon),
            gamma: self.gamma.unwrap_or(own.gamma),
            normalize: self.normalize,
            rescale: self.rescale,
            seed: self.seed.unwrap_or(own.seed),
            t: self.t,
            select_topk: self.select_topk.unwrap_or(own.select_topk),
            max_iter: self.max_iter.unwrap_or(own.max_iter),
            tol: self.tol.unwrap_or(own.tol),
            filter_wise: self.filter_wise,
            nuslerp_flatten: self.nuslerp_flatten.unwrap_or(own.nuslerp_flatten),
            nuslerp_row_wise: self.nuslerp_row_wise,
            majority_sign: match &self.majority_sign {
                Some(kind) => kind.parse()?,
                None => own.majority_sign,
            },
            rank: self.rank,
        })
    }
}
