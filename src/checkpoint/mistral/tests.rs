use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::*;
use crate::checkpoint::{Checkpoint, has_weights, is_model};
use crate::dtype::DType;

fn fixture(case: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/mistral").join(case).join("model")
}

fn read(params: Value) -> Result<(Map<String, Value>, Vec<String>)> {
    let mut base = json!({"dim": 8, "n_layers": 2, "hidden_dim": 16, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5,
        "vocab_size": 300, "rope_theta": 5e5, "max_position_embeddings": 64});
    for (name, value) in params.as_object().unwrap() {
        base[name] = value.clone();
    }
    let mut notes = Vec::new();
    let read = params::read(Path::new("m/params.json"), base.as_object().unwrap(), &mut notes)?;
    Ok((read.config, notes))
}

#[test]
fn names_are_those_of_transformers() {
    for (own, theirs) in [
        ("tok_embeddings.weight", "model.embed_tokens.weight"),
        ("mm_whisper_embeddings.tok_embeddings.weight", "model.embed_tokens.weight"),
        ("norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("layers.11.attention.wq.qscale_weight", "model.layers.11.self_attn.q_proj.qscale_weight"),
        ("layers.0.ffn_norm.weight", "model.layers.0.post_attention_layernorm.weight"),
        ("layers.0.feed_forward.w2.weight", "model.layers.0.mlp.down_proj.weight"),
        ("layers.0.feed_forward.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"),
        ("layers.0.feed_forward.experts.3.w1.weight", "model.layers.0.block_sparse_moe.experts.3.w1.weight"),
    ] {
        assert_eq!(names::of_transformers(own).as_deref(), Some(theirs));
    }
    for other in ["layers.0.attention.wkv_b.weight", "norm", "model.norm.weight"] {
        assert_eq!(names::of_transformers(other), None, "{other}");
    }
    assert_eq!(names::other_part("mm_whisper_embeddings.whisper_encoder.conv.weight"), Some("whisper_encoder"));
    assert_eq!(names::other_part("vision_encoder.ln_pre.weight"), Some("vision_encoder"));
    assert_eq!(names::other_part("layers.0.attention.wq.weight"), None);
}

#[test]
fn params_become_the_config_of_a_class() {
    let (config, notes) = read(json!({"head_dim": 4, "tied_embeddings": true, "kv_lora_rank": null})).unwrap();
    let expected = json!({"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 300, "head_dim": 4, "rms_norm_eps": 1e-5, "hidden_act": "silu",
        "tie_word_embeddings": true, "sliding_window": null, "max_position_embeddings": 64, "bos_token_id": 1,
        "eos_token_id": 2, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "rope_theta": 5e5});
    assert_eq!(Value::Object(config), expected);
    assert!(notes.is_empty(), "{notes:?}");
    // What is not known goes on, and is named where the config is read.
    assert_eq!(read(json!({"new_field": 3, "off": null})).unwrap().0["new_field"], 3);
    let (config, _) = read(json!({"moe": {"num_experts": 8, "num_experts_per_tok": 2}})).unwrap();
    assert_eq!((&config["architectures"], &config["num_local_experts"]), (&json!(["MixtralForCausalLM"]), &json!(8)));
}

#[test]
fn what_params_leave_out_is_said() {
    let without = |window: Value| {
        let (config, notes) =
            read(json!({"rope_theta": null, "max_position_embeddings": null, "sliding_window": window}))?;
        Ok::<_, crate::Error>((config["rope_theta"].clone(), config["max_position_embeddings"].clone(), notes.len()))
    };
    assert_eq!(without(json!(4096)).unwrap(), (json!(10_000.0), json!(32_768), 2));
    assert_eq!(without(json!(null)).unwrap(), (json!(1_000_000.0), json!(32_768), 2));
    assert_eq!(
        read(json!({"max_position_embeddings": null, "max_seq_len": 9})).unwrap().0["max_position_embeddings"],
        9
    );
}

#[test]
fn yarn_is_said_as_transformers_says_it() {
    let yarn = |is_scaled: bool| json!({"original_max_position_embeddings": 16, "factor": 4, "apply_scale": is_scaled, "beta": 32, "alpha": 1});
    let growth = json!({"original_max_position_embeddings": 16, "beta": 0.1});
    let (config, _) = read(json!({"yarn": yarn(false), "llama_4_scaling": growth})).unwrap();
    assert_eq!(config["architectures"][0], "Ministral3ForCausalLM");
    assert_eq!(
        config["rope_parameters"],
        json!({"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0,
        "original_max_position_embeddings": 16, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1})
    );
    let (config, _) = read(json!({"yarn": yarn(true)})).unwrap();
    assert_eq!(config["rope_parameters"]["mscale_all_dim"], 0.0);
    assert_eq!(config["rope_parameters"]["llama_4_scaling_beta"], 0.0);
}

#[test]
fn other_models_are_refused_by_name() {
    for (params, expected) in [
        (
            json!({"kv_lora_rank": 512}),
            "kv_lora_rank: expected attention with keys and values of full rank, found that of",
        ),
        (json!({"lora": {"rank": 64}}), "lora: expected a whole model, found that of an adapter"),
        (json!({"multiple_of": 256}), "multiple_of: expected Mistral's own format, found Meta's own format of Llama"),
        (json!({"dim": null}), "dim: expected a value, found none"),
        (json!({"n_heads": 0}), "n_heads: expected a count from 1 to 2^31, found 0"),
        (
            json!({"moe": {"num_experts": 8, "num_experts_per_tok": 2, "num_shared_experts": 1}}),
            "moe.num_shared_experts: expected a field",
        ),
        (json!({"llama_4_scaling": {"beta": 0.1}}), "llama_4_scaling: expected yarn beside it, found none"),
        (json!({"norm_eps": -1e-5}), "norm_eps: expected a number above 0, found -0.00001"),
        (json!({"rope_theta": 0}), "rope_theta: expected a number above 0, found 0"),
        (json!({"head_dim": 0}), "head_dim: expected a count from 1 to 2^31, found 0"),
        (json!({"sliding_window": 0}), "sliding_window: expected a count from 1 to 2^31, found 0"),
        (json!({"causal": false}), "causal: expected true, found false"),
        (json!({"activation": "gelu"}), "activation: expected \"silu\", found \"gelu\""),
        (json!({"model_type": "mamba"}), "model_type: expected \"transformer\", found \"mamba\""),
        (json!({"hidden_act": "gelu"}), "hidden_act: expected \"silu\", as activation says or params.json leaves out"),
        (json!({"hidden_size": 9}), "hidden_size: expected 8, as dim says or params.json leaves out, found 9"),
        (
            json!({"yarn": {"original_max_position_embeddings": 16, "factor": -4, "apply_scale": true, "beta": 32,
                "alpha": 1}}),
            "yarn.factor: expected a number above 0, found -4",
        ),
        (
            json!({"quantization": {"qformat_weight": "int4"}}),
            "quantization.qformat_weight: expected \"fp8_e4m3\", found \"int4\"",
        ),
    ] {
        let message = read(params).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn messages_have_the_names_of_the_folder() {
    let folder = Checkpoint::open(&fixture("tekken")).unwrap();
    let said = |text: &str| {
        let error = crate::error::Finding::new("m/config.json", text).found("nothing").mismatch();
        folder.in_own_words::<()>(Err(error)).unwrap_err().to_string()
    };
    assert_eq!(said("hidden_size"), "m/params.json: dim: nothing");
    let tensor = "tensor \"model.layers.1.self_attn.v_proj.weight\" by config.json.";
    assert_eq!(said(tensor), "m/params.json: tensor \"layers.1.attention.wv.weight\" by params.json.: nothing");
    // Also where the folder lacks the tensor; other files keep their names.
    assert_eq!(said("model.layers.9.mlp.up_proj.weight"), "m/params.json: layers.9.feed_forward.w3.weight: nothing");
    assert_eq!(said("adapter_config.json, x"), "m/params.json: adapter_config.json, x: nothing");
    for (own, theirs) in [
        ("norm.weight", "model.norm.weight"),
        ("layers.2.feed_forward.experts.3.w1.weight", "model.layers.2.block_sparse_moe.experts.3.w1.weight"),
    ] {
        assert_eq!(names::of_mistral(theirs).as_deref(), Some(own));
        assert_eq!(names::of_transformers(own).as_deref(), Some(theirs));
    }
    let vllm = folder.note_in_own_words("config.json has fields".to_owned());
    assert_eq!(vllm, "params.json has fields");
}

#[test]
fn rows_of_queries_and_keys_stand_as_in_transformers() {
    let stored = Checkpoint::open_stored(&fixture("tekken"), None).unwrap();
    let opened = Checkpoint::open(&fixture("tekken")).unwrap();
    let rows = |folder: &Checkpoint, name: &str| {
        let tensor = folder.weights().get(name).unwrap();
        let mut tensor = tensor.clone();
        tensor.dtype = DType::F32;
        let values = tensor.read().unwrap();
        values.chunks(tensor.shape[1]).map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    // Heads of 16 rows.
    for (module, heads) in [("q_proj", 4), ("k_proj", 2)] {
        let name = format!("model.layers.1.self_attn.{module}.weight");
        let (own, theirs) = (rows(&stored, &name), rows(&opened, &name));
        assert_eq!(own.len(), heads * 16);
        for head in (0..heads).map(|head| head * 16) {
            for pair in 0..8 {
                assert_eq!(theirs[head + pair], own[head + 2 * pair]);
                assert_eq!(theirs[head + 8 + pair], own[head + 2 * pair + 1]);
            }
        }
    }
    let name = "model.layers.1.self_attn.v_proj.weight";
    assert_eq!(rows(&stored, name), rows(&opened, name));
    assert_eq!(opened.stored_name(name), "layers.1.attention.wv.weight");
}

#[test]
fn the_format_of_transformers_is_taken_where_both_are_there() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str| fs::write(dir.path().join(name), "{}").unwrap();
    put("params.json");
    // Not told apart from other programs' files by more than what stands beside it.
    put("model.safetensors");
    assert!(!is_model(dir.path()));
    put("consolidated.safetensors");
    assert!(is_own(dir.path()) && is_model(dir.path()) && has_weights(dir.path()));
    put("config.json");
    assert!(!is_own(dir.path()) && is_model(dir.path()));
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert!(is_own(dir.path()));
    fs::remove_file(dir.path().join("consolidated.safetensors")).unwrap();
    assert!(!is_own(dir.path()) && !has_weights(dir.path()));
}

#[test]
fn a_folder_that_is_written_is_one_of_transformers() {
    let folder = Checkpoint::open(&fixture("fp8")).unwrap();
    assert!(
        folder
            .notes()
            .iter()
            .any(|note| note.ends_with("params.json: Mistral's own format, read as MistralForCausalLM"))
    );
    assert!(folder.notes().iter().any(|note| note.contains("vision_encoder (1 tensor)")), "{:?}", folder.notes());
    let files = folder.files_for(folder.weights()).unwrap();
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["chat_template.jinja", "config.json", "tekken.json"]);
    let config: Value = serde_json::from_slice(&files["config.json"]).unwrap();
    assert_eq!(config.get("quantization_config"), None);
    assert!(folder.weights().get("model.layers.0.self_attn.q_proj.weight").is_some());
}

#[test]
fn parts_for_several_devices_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(fixture("tekken").join("params.json"), dir.path().join("params.json")).unwrap();
    for name in ["consolidated.00.pth", "consolidated.01.pth"] {
        fs::write(dir.path().join(name), "").unwrap();
    }
    let message = Checkpoint::open(dir.path()).err().unwrap().to_string();
    assert!(
        message.contains("weights: expected one file, found") && message.contains("consolidated.01.pth"),
        "{message}"
    );
}
