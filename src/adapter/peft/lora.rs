//! LoRA, with all options of PEFT's config.
//!
//! Reference: peft `src/peft/tuners/lora/layer.py`: `W + s B A`, the product in f32, scaled, added to the weight and
//! rounded once. For embeddings, the update is rounded to the weight's type before it is added.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::base::Base;
use super::change::{Change, LowRank, WeightLayout};
use super::dora;
use super::entries::Entries;
use super::module_weight::Weight;
use super::patterns::{self, Patterns};
use super::rows::Factors;
use super::targets::{Targets, ends_path};
use super::variants::{self, Variant};
use super::{Named, experts};
use crate::adapter::scale;
use crate::arch::names::is_parameter_router;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::{Expr, PlannedTensor};
use crate::source::show_shape;

/// Fields that don't affect how the saved tensors change the base.
const INERT: &[&str] = &[
    "corda_config",
    "eva_config",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "qalora_group_size",
    "runtime_config",
];

/// Fields that ask for something that isn't a fixed change of weights, or for another way of merging, and the reasons.
const REFUSED: &[(&str, &str)] = &[
    ("arrow_config", "every token picks among adapters, so that no one weight is the model"),
    ("use_qalora", "inputs are pooled before the update, which PEFT does not merge"),
    ("layer_replication", "layers of the base are repeated"),
];

/// Initialisations that leave the base unchanged.
const PLAIN_INITS: [&str; 5] = ["gaussian", "orthogonal", "eva", "mica", "orthogonal_init"];

/// The settings of all modules.
pub(in crate::adapter) struct Config {
    r: usize,
    lora_alpha: f64,
    use_rslora: bool,
    use_dora: bool,
    lora_bias: bool,
    fan_in_fan_out: bool,
    rank_pattern: Patterns<usize>,
    alpha_pattern: Patterns<f64>,
    /// Parameters that are adapted directly (`target_parameters`).
    parameters: Vec<String>,
    variant: Variant,
}

impl Config {
    /// The settings in an adapter_config.json.
    pub(in crate::adapter) fn of(path: &Path, json: &Map<String, Json>) -> Result<Self> {
        Self::read(&mut Fields::new(path, json))
    }

    fn read(fields: &mut Fields) -> Result<Self> {
        let lora_alpha: f64 = fields.need("lora_alpha")?;
        if !(lora_alpha as f32).is_finite() {
            return Err(fields.finding("lora_alpha").expected("a finite float32").found(lora_alpha).mismatch());
        }
        Ok(Self {
            r: fields.count("r")?,
            lora_alpha,
            use_rslora: fields.get("use_rslora")?.unwrap_or(false),
            use_dora: fields.get("use_dora")?.unwrap_or(false),
            lora_bias: fields.get("lora_bias")?.unwrap_or(false),
            fan_in_fan_out: fields.get("fan_in_fan_out")?.unwrap_or(false),
            rank_pattern: Patterns::read(fields, "rank_pattern", patterns::rank)?,
            alpha_pattern: Patterns::read(fields, "alpha_pattern", Json::as_f64)?,
            parameters: fields.get("target_parameters")?.unwrap_or_default(),
            variant: Variant::read(fields)?,
        })
    }

    /// The rank of the update of `module`.
    pub(in crate::adapter) fn rank(&self, module: &str) -> usize {
        self.rank_pattern.first_match(module).unwrap_or(self.r)
    }

    /// The factor of the update of `module`, not rounded. Dimensionless.
    pub(in crate::adapter) fn exact_scale(&self, module: &str) -> f64 {
        let rank = self.rank(module);
        self.over_rank(self.lora_alpha(module), rank) / rank as f64
    }

    fn lora_alpha(&self, module: &str) -> f64 {
        self.alpha_pattern.first_match(module).unwrap_or(self.lora_alpha)
    }

    /// The factor of the update of `module`, of rank `rank`. Dimensionless.
    fn scale(&self, module: &str, rank: usize) -> f64 {
        scale(rank, self.lora_alpha(module), self.use_rslora)
    }

    /// The alpha that gives the scale when divided by the rank: with `use_rslora`, `alpha` times the root of the rank.
    fn over_rank(&self, alpha: f64, rank: usize) -> f64 {
        if self.use_rslora { alpha * (rank as f64).sqrt() } else { alpha }
    }
}

/// Refuses settings that are more than a fixed change of weights.
pub(super) fn check_fields(fields: &mut Fields) -> Result<()> {
    for (field, why) in REFUSED {
        if let Some(value) = fields.switched_on(field) {
            return Err(fields
                .finding(field)
                .expected("a LoRA that is a fixed change of weights")
                .found(format_args!("{value}: {why}"))
                .unsupported());
        }
    }
    check_init(fields)
}

/// The changes of a LoRA, and the alpha of modules for which no pattern gives another. `tied` says that a tied output
/// head has no tensors of its own in the adapter.
pub(super) fn changes(
    fields: &mut Fields,
    entries: &mut Entries,
    base: &Base,
    tied: bool,
) -> Result<(Vec<Named>, f64)> {
    check_fields(fields)?;
    let config = Config::read(fields)?;
    fields.ignore(INERT);
    variants::drop_inert(entries);
    let targets = Targets::read(fields)?;
    entries.check_pairs(base, &[("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B")])?;
    let mut changes = Vec::new();
    let scale = |parameter: &str, rank| config.scale(parameter, rank);
    changes.extend(experts::changes(entries, base, &config.parameters, |module| config.rank(module), scale)?);
    let mut adapted: HashSet<String> = HashSet::new();
    if tied {
        adapted.extend(base.tied_head().map(|head| head.name.clone()));
    }
    for module in entries.modules("lora_A.weight") {
        adapted.insert(linear(&config, entries, base, &module, &mut changes)?);
    }
    for module in entries.modules("lora_embedding_A") {
        adapted.insert(embedding(&config, entries, base, &module, &mut changes)?);
    }
    targets.complete(entries, base, &adapted, "lora_A.weight")?;
    if config.variant.rounds() {
        let field = config.variant.field();
        base.check_f64(&changes, || fields.finding(field).found(field))?;
    }
    Ok((changes, config.over_rank(config.lora_alpha, config.r)))
}

/// Refuses initialisations such as PiSSA, which change the base when the adapter is made, and again when it is loaded.
fn check_init(fields: &mut Fields) -> Result<()> {
    let Some(value) = fields.get::<Json>("init_lora_weights")? else { return Ok(()) };
    let plain = value.is_boolean() || value.as_str().is_some_and(|name| PLAIN_INITS.contains(&name));
    if plain {
        return Ok(());
    }
    Err(fields
        .finding("init_lora_weights")
        .expected("an initialisation that leaves the base as it is")
        .found(format_args!("{value}, under which PEFT changes the base before it adds the adapter"))
        .hint(
            "save it with save_pretrained(.., path_initial_model_for_weight_conversion=..), which makes a plain \
             LoRA of it, or merge it into the changed base that was saved beside it and set init_lora_weights to true",
        )
        .unsupported())
}

/// The changes of one linear layer. Returns the name of its weight in the base.
fn linear(
    config: &Config,
    entries: &mut Entries,
    base: &Base,
    module: &str,
    changes: &mut Vec<Named>,
) -> Result<String> {
    let name_a = format!("{module}.lora_A.weight");
    let weight = base.linear_or_kernel(entries, &name_a, module, config.fan_in_fan_out)?;
    let Weight { tensor, d_out, transposed, .. } = weight;
    let rank = config.rank(module);
    let (a, b) = match &config.variant {
        Variant::Blocks { count } => variants::block_factors(entries, &weight, module, rank, *count)?,
        _ => factors(entries, &weight, module, rank)?,
    };
    let b = match &config.variant {
        Variant::Kasa => {
            changes.push(weight.change(variants::truncated(base, entries, &name_a, &weight, rank)?));
            variants::with_diagonal(entries, module, rank, b)?
        }
        _ => b,
    };
    let scale = config.scale(module, rank);
    // PEFT multiplies the factors of two-dimensional convolutions with one tap.
    let layout = match weight.taps() {
        [] | [1, 1] => WeightLayout::of_linear(transposed),
        _ => WeightLayout::Kernel,
    };
    // In transformers, a router is a parameter and not a linear layer, so PEFT rounds its update.
    let router = is_parameter_router(module);
    let parameter = config.parameters.iter().any(|name| ends_path(&format!("{module}.weight"), name));
    let rounded = base.rounding(tensor.dtype).filter(|_| router || parameter || config.variant.rounds());
    let alpha = Some(config.over_rank(config.lora_alpha(module), rank));
    let update = LowRank { scale, alpha, a, b, layout, rounded };
    low_rank(config, entries, module, &weight, update, d_out, changes)?;
    if config.lora_bias {
        let name = format!("{module}.lora_B.bias");
        let bias = entries.shaped(&name, &[d_out])?;
        let Some(target) = base.tensor(&format!("{module}.bias")) else {
            return Err(entries.finding(&name).expected("a bias in the base to add it to").found("none").mismatch());
        };
        let delta = Expr::Scale { of: Box::new(bias.expr), factor: scale };
        changes.push((target.name.clone(), Change::Add(delta)));
    }
    Ok(tensor.name.clone())
}

/// `A` and `B` of a linear layer or, as matrices, of a convolution: there `A` has the base's taps, and `B` one.
fn factors(entries: &mut Entries, weight: &Weight, module: &str, rank: usize) -> Result<(Expr, Expr)> {
    let (name_a, name_b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
    if !weight.is_kernel() {
        let a = entries.shaped(&name_a, &[rank, weight.d_in])?;
        return Ok((a.expr, entries.shaped(&name_b, &[weight.d_out, rank])?.expr));
    }
    let (shape_a, shape_b) = (weight.with_taps([rank, weight.inputs()]), weight.with_ones([weight.d_out, rank]));
    if let Some([found, inputs, taps @ ..]) = entries.shape(&name_a)
        && *found == rank
        && *inputs > weight.inputs()
        && inputs.is_multiple_of(weight.inputs())
        && taps == weight.taps()
    {
        return Err(entries
            .finding(&name_a)
            .expected("a convolution without groups")
            .found(format_args!(
                "{} groups, and a LoRA that mixes the inputs of all: no kernel with groups is that model, and PEFT doesn't \
                 merge it either",
                inputs / weight.inputs()
            ))
            .unsupported());
    }
    let (a, b) = (entries.shaped(&name_a, &shape_a)?, entries.shaped(&name_b, &shape_b)?);
    let matrix = |of: PlannedTensor, shape: [usize; 2]| Expr::Reshape { of: Box::new(of.expr), shape: shape.to_vec() };
    Ok((matrix(a, [rank, weight.d_in]), matrix(b, [weight.d_out, rank])))
}

/// The changes of an embedding, whose weight is `[vocab, hidden]`.
fn embedding(
    config: &Config,
    entries: &mut Entries,
    base: &Base,
    module: &str,
    changes: &mut Vec<Named>,
) -> Result<String> {
    let name_a = format!("{module}.lora_embedding_A");
    let tensor = base.matrix(entries, &name_a, &format!("{module}.weight"))?;
    let (vocab, hidden) = (tensor.shape[0], tensor.shape[1]);
    let rank = config.rank(module);
    let a = entries.shaped(&name_a, &[rank, vocab])?;
    let b = entries.shaped(&format!("{module}.lora_embedding_B"), &[hidden, rank])?;
    let rounded = base.rounding(tensor.dtype).filter(|_| !config.use_dora);
    let (scale, alpha) = (config.scale(module, rank), Some(config.over_rank(config.lora_alpha(module), rank)));
    let update = LowRank { scale, alpha, a: a.expr, b: b.expr, layout: WeightLayout::Embedding, rounded };
    let weight = Weight { tensor, d_out: hidden, d_in: vocab, transposed: true };
    low_rank(config, entries, module, &weight, update, hidden, changes)?;
    Ok(tensor.name.clone())
}

/// The update of a module's weight, followed by DoRA's magnitudes, one for each of `outputs`.
fn low_rank(
    config: &Config,
    entries: &mut Entries,
    module: &str,
    weight: &Weight,
    update: LowRank,
    outputs: usize,
    changes: &mut Vec<Named>,
) -> Result<()> {
    let outputs_are_columns = update.layout.is_transposed();
    let update = Change::LowRank(update);
    changes.push(weight.change(update.clone()));
    if config.use_dora {
        let magnitude = magnitude(entries, module, outputs)?;
        let rescale = dora::rescale(&weight.matrix(), &update, &magnitude, outputs_are_columns, 0.0)?;
        changes.push(weight.change(rescale));
    }
    Ok(())
}

/// DoRA's magnitudes; older versions of PEFT call them a weight.
fn magnitude(entries: &mut Entries, module: &str, d_out: usize) -> Result<Factors> {
    let name = format!("{module}.lora_magnitude_vector");
    let older = format!("{name}.weight");
    let name = if entries.names().any(|n| n == older) { older } else { name };
    let tensor = entries.need(&name)?;
    // For embeddings, they are stored as a row; for convolutions with further dimensions of one.
    if tensor.elems() == d_out && tensor.shape.iter().all(|d| *d == 1 || *d == d_out) {
        return Ok(tensor.values::<f64>(0..tensor.rows())?.into());
    }
    Err(entries
        .finding(&name)
        .expected(format_args!("[{d_out}], one for each output"))
        .found(show_shape(&tensor.shape))
        .mismatch())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn config(settings: Json) -> Config {
        let mut json = json!({"r": 8, "lora_alpha": 16});
        json.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        Config::read(&mut Fields::new(Path::new("adapter_config.json"), json.as_object().unwrap())).unwrap()
    }

    #[test]
    fn the_first_pattern_that_ends_a_path_wins_and_rank_and_alpha_are_looked_up_apart() {
        let config = config(json!({
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 4, "^no": 1},
            "alpha_pattern": {"self_attn.*": 3.5, "q_proj": 5, "model.layers.1.mlp.(up|down)_proj": 7}
        }));
        let cases = [
            ("model.layers.0.self_attn.q_proj", 2, 3.5),
            ("model.layers.10.self_attn.q_proj", 4, 3.5),
            ("model.layers.1.mlp.down_proj", 8, 7.0),
            ("model.layers.11.mlp.down_proj", 8, 16.0),
            ("model.layers.0.xq_proj", 8, 16.0),
            ("q_proj", 4, 5.0),
        ];
        for (module, rank, alpha) in cases {
            assert_eq!((config.rank(module), config.lora_alpha(module)), (rank, alpha), "{module}");
        }
    }

    #[test]
    fn rank_stabilized_scales_go_by_the_root_of_the_modules_own_rank() {
        let config = config(json!({"r": 4, "lora_alpha": 8, "use_rslora": true, "rank_pattern": {"v": 9}}));
        assert_eq!((config.over_rank(8.0, 4), config.over_rank(8.0, config.rank("v"))), (16.0, 24.0));
        assert_eq!((config.scale("q", 4), config.scale("v", 9)), (4.0, 8.0 / 3.0));
    }
}
