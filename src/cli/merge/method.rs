//! How several adapters or models become one: options of the methods.

use anyhow::Result;
use atombank::merge::combine::{CombineOptions, MajoritySign, Weights};
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
    /// Where random numbers start, as torch.manual_seed has it
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// The rank of a combined LoRA, cut by SVD where it would be larger
    #[arg(long, value_name = "R")]
    pub(super) rank: Option<usize>,
    /// What the sum of all updates is multiplied with
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    lambda: f64,
    /// della: how far probabilities go from the density
    #[arg(long, value_name = "E", default_value_t = 0.15)]
    epsilon: f64,
    /// breadcrumbs: the share of the largest values that is left out
    #[arg(long, value_name = "SHARE", default_value_t = 0.01)]
    gamma: f64,
    /// Whether sums are divided by the weights' sum [default: the method's own]
    #[arg(long, value_name = "BOOL")]
    normalize: Option<bool>,
    /// Whether what is kept is scaled to what was there [default: the method's own]
    #[arg(long, value_name = "BOOL")]
    rescale: Option<bool>,
    /// slerp: how far from the base to the other model, from 0 to 1
    #[arg(long, value_name = "T")]
    t: Option<f64>,
    /// sce: the share of values that is kept
    #[arg(long, value_name = "SHARE", default_value_t = 1.0)]
    select_topk: f64,
    /// karcher: steps at most
    #[arg(long, value_name = "N", default_value_t = 10)]
    max_iter: usize,
    /// karcher: the length of a step that is the last
    #[arg(long, value_name = "LENGTH", default_value_t = 1e-5)]
    tol: f64,
    /// model_stock: an angle for each row, not one for the tensor
    #[arg(long)]
    filter_wise: bool,
    /// nuslerp: one angle for the tensor, not one for each row
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    nuslerp_flatten: bool,
    /// nuslerp: an angle for each column, where there isn't one for the tensor
    #[arg(long)]
    nuslerp_row_wise: bool,
    /// ties of LoRAs: the sign of the sum (total), or that more have (frequency)
    #[arg(long, value_name = "KIND", default_value = "total")]
    majority_sign: String,
}

impl MethodArgs {
    /// The options for what has these weights.
    pub(super) fn options(&self, weights: Vec<f64>) -> Result<CombineOptions> {
        let mut all = Weights::new(weights);
        for pattern in &self.weights {
            all = all.with_pattern(pattern)?;
        }
        Ok(CombineOptions {
            weights: all,
            density: self.density.clone(),
            lambda: self.lambda,
            epsilon: self.epsilon,
            gamma: self.gamma,
            normalize: self.normalize,
            rescale: self.rescale,
            seed: self.seed,
            t: self.t,
            select_topk: self.select_topk,
            max_iter: self.max_iter,
            tol: self.tol,
            filter_wise: self.filter_wise,
            nuslerp_flatten: self.nuslerp_flatten,
            nuslerp_row_wise: self.nuslerp_row_wise,
            majority_sign: self.majority_sign.parse::<MajoritySign>()?,
            rank: self.rank,
        })
    }
}
