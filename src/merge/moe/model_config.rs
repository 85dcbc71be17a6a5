//! config.json of a mixture.

use serde_json::{Value, json};

use super::MoeClass;
use crate::arch::{Config, of_class};

/// config.json of a mixture with `experts` experts, `per_token` of them for a token, made of models with the config
/// `base`. As in mergekit, every field of the base stays, and the class's own fields are set. A field that the base leaves
/// out, and that has another default in the mixture's class, gets the base's default.
pub fn model_config(class: MoeClass, base: &Config, experts: usize, per_token: usize, shared: usize) -> Config {
    let mut config = base.clone();
    complete(class, base, &mut config);
    let (name, model_type) = class.names();
    let width = config.get("intermediate_size").cloned().unwrap_or(Value::Null);
    let mut set = |fields: Value| {
        if let Value::Object(fields) = fields {
            config.extend(fields);
        }
    };
    set(json!({"architectures": [name], "model_type": model_type, "num_experts_per_tok": per_token}));
    match class {
        MoeClass::Mixtral => set(json!({"num_local_experts": experts, "sliding_window": null})),
        MoeClass::Qwen2 => set(json!({
            "num_experts": experts, "decoder_sparse_step": 1, "norm_topk_prob": true, "sliding_window": null,
            "use_sliding_window": false, "shared_expert_intermediate_size": width, "moe_intermediate_size": width,
        })),
        MoeClass::Qwen3 => set(json!({
            "num_experts": experts, "decoder_sparse_step": 1, "norm_topk_prob": true, "moe_intermediate_size": width,
        })),
        MoeClass::Deepseek => {
            const CODE: &str = "deepseek-ai/deepseek-moe-16b-base--";
            set(json!({
                "n_routed_experts": experts, "n_shared_experts": (shared > 0).then_some(shared),
                "first_k_dense_replace": 0, "moe_layer_freq": 1, "scoring_func": "softmax", "norm_topk_prob": true,
                "moe_intermediate_size": width,
                "auto_map": {
                    "AutoConfig": format!("{CODE}configuration_deepseek.DeepseekConfig"),
                    "AutoModel": format!("{CODE}modeling_deepseek.DeepseekModel"),
                    "AutoModelForCausalLM": format!("{CODE}modeling_deepseek.DeepseekForCausalLM"),
                },
            }));
        }
    }
    if class != MoeClass::Deepseek {
        // Code of the base's own is of another class.
        config.remove("auto_map");
    }
    // Without a window, no layer has one. mergekit leaves the list, which then contradicts the window.
    if matches!(class, MoeClass::Mixtral | MoeClass::Qwen2)
        && let Some(Value::Array(kinds)) = config.get_mut("layer_types")
    {
        kinds.iter_mut().for_each(|kind| *kind = "full_attention".into());
    }
    config
}

/// Adds the base's defaults where those of the mixture's class differ.
fn complete(class: MoeClass, base: &Config, config: &mut Config) {
    let class_of = |config: &Config| Some(config.get("architectures")?.get(0)?.as_str()?.to_owned());
    let Some(ours) = class_of(base).and_then(|name| of_class(&name, base)) else { return };
    let Some(theirs) = class.family() else { return };
    let number = |name: &str| base.get(name).or(ours.defaults.get(name)).and_then(Value::as_u64);
    for (name, default) in &ours.defaults {
        let is_given = base.get(name).is_some_and(|value| !value.is_null());
        // The base of rotary positions may be in an object.
        let is_given = is_given || name == "rope_theta" && base.contains_key("rope_parameters");
        let value = match (name.as_str(), default) {
            (_, Value::Null) => continue,
            ("num_key_value_heads", Value::String(_)) => number("num_attention_heads").map(Value::from),
            ("head_dim", Value::String(_)) => {
                let sizes = (number("hidden_size"), number("num_attention_heads"));
                sizes.1.and_then(|heads| sizes.0?.checked_div(heads)).map(Value::from)
            }
            _ => Some(default.clone()),
        };
        if let (false, Some(value)) = (is_given, value)
            && theirs.defaults.get(name).is_some_and(|other| *other != value)
        {
            config.insert(name.clone(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_base_leaves_out_keeps_its_meaning() {
        let base = json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "num_attention_heads": 4, "intermediate_size": 96, "auto_map": {"AutoConfig": "x"}});
        let config = model_config(MoeClass::Mixtral, base.as_object().unwrap(), 4, 2, 0);
        let expected = json!({"num_key_value_heads": 4, "head_dim": 16, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "max_position_embeddings": 2048, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": null});
        for (name, value) in expected.as_object().unwrap() {
            // Numbers by value: a test build may keep their digits.
            let number = |of: Option<&Value>| of.and_then(Value::as_f64);
            assert!(config.get(name) == Some(value) || number(config.get(name)) == number(Some(value)), "{name}");
        }
        assert!(!config.contains_key("auto_map"));
    }
}
