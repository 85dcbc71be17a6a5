//! Options of the methods that combine several adapters or models into one.

use atombank::jobs::CombineSettings;
use clap::Args;

/// Options of the methods.
#[derive(Args)]
#[command(next_help_heading = "Combining")]
pub(super) struct MethodArgs {
    /// How to combine several adapters or models. LoRAs, with PEFT's methods: linear, cat, svd,
    /// ties, dare_linear, dare_ties, magnitude_prune, the last four also with _svd appended.
    /// Models, with mergekit's: linear, task_arithmetic, ties, dare_linear, dare_ties, della,
    /// della_linear, breadcrumbs, breadcrumbs_ties, sce, slerp, nuslerp, multislerp, model_stock,
    /// karcher, nearswap, arcee_fusion, ram, ramplus_tl, passthrough
    /// [default: the sum of the adapters' changes, each times its weight]
    #[arg(long, value_name = "NAME")]
    method: Option<String>,
    /// The share of values to keep, from 0 to 1; or one for each: 0.5,0.7
    #[arg(long, value_name = "SHARE", value_delimiter = ',')]
    density: Vec<f64>,
    /// Another weight for modules whose path ends in a match of a pattern: 'self_attn.*=0.3', or one
    /// for each: 'mlp.*=0.3,0.7'; may be repeated
    #[arg(long, value_name = "PATTERN=W")]
    weights: Vec<String>,
    /// The seed of random numbers, as for torch.manual_seed [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// The rank of a combined LoRA, truncated by SVD if it would be larger; the error is printed
    #[arg(long, value_name = "R", value_parser = parse_rank)]
    rank: Option<usize>,
    /// The factor of the sum of all updates [default: 1]
    #[arg(long, value_name = "FACTOR")]
    lambda: Option<f64>,
    /// della: how far probabilities may differ from the density [default: 0.15]; ram, ramplus_tl:
    /// changes up to this size don't count [default: 1e-5]; multislerp: what is added to lengths
    /// [default: 1e-8]
    #[arg(long, alias = "eps", value_name = "E")]
    epsilon: Option<f64>,
    /// breadcrumbs: the share of largest values to drop [default: 0.01]
    #[arg(long, value_name = "SHARE")]
    gamma: Option<f64>,
    /// Whether to divide sums by the sum of the weights [default: the method's own]
    #[arg(long, alias = "normalize-weights", value_name = "BOOL")]
    normalize: Option<bool>,
    /// Whether to scale kept values to make up for dropped ones [default: the method's own]
    #[arg(long, value_name = "BOOL")]
    rescale: Option<bool>,
    /// slerp: the position between the base, 0, and the other model, 1; nearswap: values that are
    /// closer together than this are the other model's
    #[arg(long, value_name = "T")]
    t: Option<f64>,
    /// sce: the share of values to keep [default: 1]
    #[arg(long, value_name = "SHARE")]
    select_topk: Option<f64>,
    /// karcher: the largest number of iterations [default: 10]
    #[arg(long, value_name = "N")]
    max_iter: Option<usize>,
    /// karcher: stop when a step is shorter than this [default: 1e-5]
    #[arg(long, value_name = "LENGTH")]
    tol: Option<f64>,
    /// model_stock: use one angle per row instead of one for the tensor
    #[arg(long)]
    filter_wise: bool,
    /// nuslerp: combine the models' differences from BASE instead of the models themselves
    #[arg(long)]
    nuslerp_updates: bool,
    /// nuslerp: use one angle for the tensor instead of one per row [default: true]
    #[arg(long, value_name = "BOOL")]
    nuslerp_flatten: Option<bool>,
    /// nuslerp: use one angle per column, unless there is one for the tensor
    #[arg(long)]
    nuslerp_row_wise: bool,
    /// multislerp: combine the models' differences from BASE instead of the models themselves
    #[arg(long)]
    multislerp_updates: bool,
    /// ramplus_tl: how much a model's own changes grow with the share of its other changes
    /// [default: 0.1]
    #[arg(long, value_name = "FACTOR")]
    r: Option<f64>,
    /// ramplus_tl: the largest share that counts [default: 0.2]
    #[arg(long, value_name = "SHARE")]
    alpha: Option<f64>,
    /// passthrough: the factor of the model
    #[arg(long, value_name = "FACTOR")]
    scale: Option<f64>,
    /// ties of LoRAs: elect the sign of the sum (total), or the most frequent sign (frequency)
    /// [default: total]
    #[arg(long, value_name = "KIND")]
    majority_sign: Option<String>,
}

fn parse_rank(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|rank| *rank > 0).ok_or_else(|| "expected a rank from 1 on".to_owned())
}

impl MethodArgs {
    /// Converts to the library's settings.
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
            multislerp_updates: self.multislerp_updates,
            r: self.r,
            alpha: self.alpha,
            scale: self.scale,
            majority_sign: self.majority_sign.clone(),
        }
    }
}
