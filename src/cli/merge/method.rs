//! How several adapters or models become one: options of the methods.

use atombank::jobs::CombineSettings;
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
    method: Option<String>,
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
    rank: Option<usize>,
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
    /// nuslerp: of what the models change in BASE, not of the models themselves
    #[arg(long)]
    nuslerp_updates: bool,
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

fn parse_rank(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rank| *rank > 0).ok_or_else(|| "expected a rank from 1 on".to_owned())
}

impl MethodArgs {
    /// The same as the library's settings.
    pub(super) fn settings(&self) -> CombineSettings {
        CombineSettings {
            method: self.method.clone(),
            density: self.density.clone(),
            weights: self.weights.clone(),
            seed: self.seed,
            rank: self.rank,
            lambda: self.lambda,
            epsilon: self.epsilon,
            gamma: self.gamma,
            normalize: self.normalize,
            rescale: self.rescale,
            t: self.t,
            select_topk: self.select_topk,
            max_iter: self.max_iter,
            tol: self.tol,
            filter_wise: self.filter_wise,
            nuslerp_updates: self.nuslerp_updates,
            nuslerp_flatten: self.nuslerp_flatten,
            nuslerp_row_wise: self.nuslerp_row_wise,
            majority_sign: self.majority_sign.clone(),
        }
    }
}
