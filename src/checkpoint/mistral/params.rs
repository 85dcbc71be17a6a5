//! Converts params.json to the config of a transformers class.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::CONFIG;
use super::names::FIELDS;
use crate::error::Result;
use crate::json::{Fields, is_off};

/// The content of params.json.
pub(super) struct Read {
    /// The same as in config.json.
    pub(super) config: Map<String, Value>,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
}

/// Fields for other kinds of models that Mistral's code reads: their names, what is expected, and what they show.
const REFUSED: [(&[&str], &str, &str); 3] = [
    (
        &["q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"],
        "attention with keys and values of full rank",
        "that of a model with latent attention (Mistral Large 3)",
    ),
    (&["lora"], "a whole model", "that of an adapter"),
    (&["multiple_of", "ffn_dim_multiplier", "use_scaled_rope"], "Mistral's own format", "Meta's own format of Llama"),
];

/// The context length if params.json doesn't give one: that of most of Mistral's models.
const CONTEXT: usize = 32_768;

/// Reads the fields of params.json at `path`. Decisions on unclear points are added to `notes`.
pub(super) fn read(path: &Path, params: &Map<String, Value>, notes: &mut Vec<String>) -> Result<Read> {
    let mut fields = Fields::new(path, params);
    for (names, expected, found) in REFUSED {
        if let Some(name) = names.iter().find(|name| fields.switched_on(name).is_some()) {
            let finding = fields.finding(name).expected(expected).found(found);
            return Err(finding.hint("use the model's folder in the format of transformers").unsupported());
        }
    }
    let mut config = Map::new();
    let mut put = |name: &str, value: Value| config.insert(name.to_owned(), value);
    let heads = fields.count("n_heads")?;
    let kv_heads = fields.count_or("n_kv_heads", heads)?;
    put("hidden_size", json!(fields.count("dim")?));
    put("intermediate_size", json!(fields.count("hidden_dim")?));
    put("num_hidden_layers", json!(fields.count("n_layers")?));
    put("num_attention_heads", json!(heads));
    put("num_key_value_heads", json!(kv_heads));
    put("vocab_size", json!(fields.count("vocab_size")?));
    if fields.get::<u64>("head_dim")?.is_some() {
        put("head_dim", json!(fields.count("head_dim")?));
    }
    put("rms_norm_eps", json!(positive(&mut fields, "norm_eps")?));
    // Mistral's code has no other activation, no other model under this name, and no text model that sees what follows.
    fields.only("activation", &[json!("silu")])?;
    fields.only("model_type", &[json!("transformer")])?;
    fields.only("causal", &[json!(true)])?;
    put("hidden_act", json!("silu"));
    put("tie_word_embeddings", json!(fields.get::<bool>("tied_embeddings")?.unwrap_or(false)));
    let window = match fields.get::<u64>("sliding_window")? {
        Some(_) => Some(fields.count("sliding_window")?),
        None => None,
    };
    put("sliding_window", json!(window));
    put("max_position_embeddings", json!(context(&mut fields, path, notes)?));
    let theta = theta(&mut fields, window.is_some(), path, notes)?;
    let rope = rope(&mut fields, theta)?;
    let moe = moe(&mut fields)?;
    if let Some(value) = fields.switched_on("quantization") {
        put("quantization_config", quantization(&fields, value)?);
    }
    // All of Mistral's tokenizers have these two tokens at these ids.
    put("bos_token_id", json!(1));
    put("eos_token_id", json!(2));
    let (class, model_type) = match (&rope, &moe) {
        (Some(_), Some(_)) => {
            let finding = fields.finding("moe").expected("none in a model with yarn or llama_4_scaling");
            return Err(finding
                .found("one")
                .hint("use the model's folder in the format of transformers")
                .unsupported());
        }
        (Some(_), None) => ("Ministral3ForCausalLM", "ministral3"),
        (None, Some(_)) => ("MixtralForCausalLM", "mixtral"),
        (None, None) => ("MistralForCausalLM", "mistral"),
    };
    put("architectures", json!([class]));
    put("model_type", json!(model_type));
    match rope {
        Some(rope) => put("rope_parameters", rope),
        None => put("rope_theta", json!(theta)),
    };
    if let Some((experts, used)) = moe {
        put("num_local_experts", json!(experts));
        put("num_experts_per_tok", json!(used));
    }
    // These fields describe other parts of the model, or a program that runs it, or repeat what the class implies.
    const WITHOUT_WEIGHT: [&str; 7] =
        ["vision_encoder", "multimodal", "audio", "max_batch_size", "max_seq_len", "model_parallel", "q_norm"];
    // Other fields are passed on. The code that reads the config reports those it doesn't know.
    let left = fields.left().filter(|(name, value)| !is_off(value) && !WITHOUT_WEIGHT.contains(name));
    for (name, value) in left.collect::<Vec<_>>() {
        let known = config.entry(name).or_insert_with(|| value.clone());
        if known != value {
            // Its name is one of transformers, whose config.json says the same in other words.
            let own = FIELDS.iter().find(|(theirs, _)| *theirs == name).map_or(name, |(_, own)| *own);
            let finding = fields.finding(name).expected(format_args!("{known}, as {own} says or {CONFIG} leaves out"));
            return Err(finding.found(value).unsupported());
        }
    }
    Ok(Read { config, heads, kv_heads })
}

/// Returns the number in field `name`, which has to be above 0.
fn positive(fields: &mut Fields, name: &'static str) -> Result<f64> {
    let value = fields.need::<f64>(name)?;
    match value > 0.0 && value.is_finite() {
        true => Ok(value),
        false => Err(fields.finding(name).expected("a number above 0").found(value).format()),
    }
}

/// Returns the number of positions that the model was trained for.
fn context(fields: &mut Fields, path: &Path, notes: &mut Vec<String>) -> Result<usize> {
    for name in ["max_position_embeddings", "max_seq_len"] {
        if fields.get::<u64>(name)?.is_some() {
            return fields.count(name);
        }
    }
    notes.push(format!(
        "{} has no max_position_embeddings: a context of {CONTEXT} is taken; the model may have been trained for another",
        path.display()
    ));
    Ok(CONTEXT)
}

/// Returns the base of the rotary frequencies. If it is missing, this is the default of Mistral's code, which depends
/// on whether the model has a sliding window.
fn theta(fields: &mut Fields, has_window: bool, path: &Path, notes: &mut Vec<String>) -> Result<f64> {
    if fields.get::<f64>("rope_theta")?.is_some() {
        return positive(fields, "rope_theta");
    }
    let theta = if has_window { 10_000.0 } else { 1_000_000.0 };
    notes.push(format!("{} has no rope_theta: {theta} is taken, as Mistral's own code does", path.display()));
    Ok(theta)
}

/// Returns `rope_parameters` for a model whose rotary frequencies are stretched, or whose queries grow with their
/// position.
fn rope(fields: &mut Fields, theta: f64) -> Result<Option<Value>> {
    const FIELDS: [&str; 2] = ["yarn", "llama_4_scaling"];
    let [yarn, growth] = FIELDS.map(|name| fields.switched_on(name));
    let object = |fields: &Fields, name: &str, value: &Value| match value {
        Value::Object(map) => Ok(map.clone()),
        other => Err(fields.finding(name).expected("an object").found(other).format()),
    };
    let Some(yarn) = yarn else {
        return match growth {
            None => Ok(None),
            Some(_) => Err(fields.finding("llama_4_scaling").expected("yarn beside it").found("none").unsupported()),
        };
    };
    let path = fields.path().to_owned();
    let yarn = object(fields, "yarn", yarn)?;
    let mut of_yarn = Fields::inside(&path, "yarn", &yarn);
    let original = of_yarn.count("original_max_position_embeddings")?;
    // Without `apply_scale`, the logits aren't scaled up. In transformers' terms, the two scales then cancel each
    // other.
    let is_scaled = of_yarn.need::<bool>("apply_scale")?;
    let mut rope = json!({
        "rope_type": "yarn", "rope_theta": theta, "factor": positive(&mut of_yarn, "factor")?,
        "original_max_position_embeddings": original,
        "beta_fast": positive(&mut of_yarn, "beta")?, "beta_slow": positive(&mut of_yarn, "alpha")?,
        "mscale": 1.0, "mscale_all_dim": if is_scaled { 0.0 } else { 1.0 }, "llama_4_scaling_beta": 0.0,
    });
    of_yarn.finish()?;
    if let Some(growth) = growth {
        let growth = object(fields, "llama_4_scaling", growth)?;
        let mut of_growth = Fields::inside(&path, "llama_4_scaling", &growth);
        let from = of_growth.count("original_max_position_embeddings")?;
        if from != original {
            let finding = of_growth.finding("original_max_position_embeddings");
            return Err(finding.expected(format_args!("{original}, as in yarn")).found(from).unsupported());
        }
        rope["llama_4_scaling_beta"] = json!(of_growth.need::<f64>("beta")?);
        of_growth.finish()?;
    }
    Ok(Some(rope))
}

/// Returns how many experts a Mixtral-like model has, and how many each token uses.
fn moe(fields: &mut Fields) -> Result<Option<(usize, usize)>> {
    let Some(value) = fields.switched_on("moe") else { return Ok(None) };
    let Value::Object(moe) = value else {
        return Err(fields.finding("moe").expected("an object").found(value).format());
    };
    let path = fields.path().to_owned();
    let mut of_moe = Fields::inside(&path, "moe", moe);
    let counts = (of_moe.count("num_experts")?, of_moe.count("num_experts_per_tok")?);
    of_moe.finish()?;
    Ok(Some(counts))
}

/// Returns `quantization_config` for weights in 8-bit floats with one scale per tensor.
fn quantization(fields: &Fields, value: &Value) -> Result<Value> {
    match value.get("qformat_weight").and_then(Value::as_str) {
        Some("fp8_e4m3") => {
            Ok(json!({"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": null}))
        }
        other => {
            let finding = fields.finding("quantization.qformat_weight").expected("\"fp8_e4m3\"");
            let found = other.map_or_else(|| value.to_string(), |name| format!("{name:?}"));
            Err(finding.found(found).unsupported())
        }
    }
}
