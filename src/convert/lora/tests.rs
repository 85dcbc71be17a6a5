use crate::output::Destination;
use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::*;
use crate::adapter;
use crate::adapter::gguf::GgufNames;
use crate::adapter::peft::{Change, PREFIX};
use crate::dtype::DType;
use crate::formats::gguf::GgufFile;
use crate::formats::safetensors::SafetensorsFile;
use crate::json::read_json_object;
use crate::plan::PlannedTensor;
use crate::source::{Source, rows};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/lora")
}

/// The fixtures' base with these weights available, and its config changed by `change`.
fn base_with(weights: Plan, change: impl FnOnce(&mut Config)) -> LoraBase {
    let mut config = read_json_object(&fixtures().join("base/config.json")).unwrap();
    change(&mut config);
    LoraBase::new(&fixtures().join("base"), config, weights).unwrap()
}

/// The fixtures' base from its config alone, without weights.
fn config() -> LoraBase {
    base_with(Plan::default(), |_| ())
}

/// The fixtures' base, with its embeddings available.
fn base() -> LoraBase {
    base_with(taking(&fixtures().join("base/embeddings.safetensors")), |_| ())
}

/// A module's rank and alpha (its scale times its rank) by adapter_config.json.
fn rank_and_alpha(folder: &Path, module: &str) -> (usize, f64) {
    let changes = AdapterFiles::find(folder).unwrap().changes(&config().base()).unwrap();
    let of = |(name, change): &(String, Change)| match change {
        Change::LowRank(update) if name.strip_suffix(".weight") == Some(module) => {
            Some((rows(&update.a.shape()), update.alpha.unwrap()))
        }
        _ => None,
    };
    changes.changes.iter().find_map(of).unwrap_or_else(|| panic!("{module}"))
}

fn taking(path: &Path) -> Plan {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(path).unwrap());
    Plan::taking(&source)
}

/// The GGUF file of a case, written and opened again.
fn converted(case: &str, outtype: OutType) -> (tempfile::TempDir, Metadata, Plan) {
    let dir = tempfile::tempdir().unwrap();
    let made = to_gguf(&fixtures().join(case), &base().base(), outtype).unwrap();
    assert_eq!(made.notes, [""; 0], "{case}");
    let path = dir.path().join("adapter.gguf");
    made.write(&Destination::new(&path), &|_| {}).unwrap();
    let file = Arc::new(GgufFile::open(&path).unwrap());
    let metadata = file.metadata().clone();
    let source: Arc<dyn Source> = file;
    (dir, metadata, Plan::taking(&source))
}

fn bytes_of(tensor: &PlannedTensor) -> Vec<u8> {
    let mut bytes = Vec::new();
    tensor.encode_rows(0..tensor.rows(), &mut Vec::new(), &mut bytes).unwrap();
    bytes
}

#[test]
fn files_equal_the_reference_where_that_is_right() {
    for (case, outtypes) in [
        ("plain", &[OutType::F32, OutType::F16, OutType::BF16, OutType::Q8_0][..]),
        ("bf16", &[OutType::F32, OutType::F16]),
        ("embeddings", &[OutType::F32]),
        ("ranks", &[OutType::F32]),
    ] {
        for outtype in outtypes {
            let expected = fixtures().join(format!("expected/{case}-{outtype}.json"));
            let expected: Json = serde_json::from_slice(&fs::read(expected).unwrap()).unwrap();
            let (_dir, metadata, plan) = converted(case, *outtype);
            let keys: Vec<(&str, Json)> = metadata
                .iter()
                .map(|(key, value)| {
                    let (kind, value) = match value {
                        Value::F32(v) => ("FLOAT32", json!(v)),
                        Value::U32(v) => ("UINT32", json!(v)),
                        other => ("STRING", json!(other.as_text().unwrap())),
                    };
                    (key, json!({"type": [kind], "value": value}))
                })
                .collect();
            let theirs: Vec<(&str, Json)> =
                expected["keys"].as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
            assert_eq!(keys, theirs, "{case} {outtype}");
            let names: Vec<&str> = plan.tensors.iter().map(|t| t.name.as_str()).collect();
            assert_eq!(json!(names), expected["tensor_order"], "{case} {outtype}");
            for tensor in &plan.tensors {
                let shape: Vec<usize> = tensor.shape.iter().rev().copied().collect();
                let sha256: String = Sha256::digest(bytes_of(tensor)).iter().map(|b| format!("{b:02x}")).collect();
                let found = json!({"shape": shape, "type": tensor.dtype.name(), "sha256": sha256});
                assert_eq!(found, expected["tensors"][&tensor.name], "{case} {outtype} {}", tensor.name);
            }
        }
    }
}

/// The update `scale * (b @ a)` in f64.
fn update(scale: f64, b: &PlannedTensor, a: &PlannedTensor) -> Vec<f64> {
    let (rank, d_in) = (a.shape[0], a.shape[1]);
    let (b, a) = (b.read().unwrap(), a.read().unwrap());
    let mut out = Vec::new();
    for row in b.chunks(rank) {
        for col in 0..d_in {
            let sum: f64 = row.iter().enumerate().map(|(k, v)| f64::from(*v) * f64::from(a[k * d_in + col])).sum();
            out.push(scale * sum);
        }
    }
    out
}

#[test]
fn llama_cpps_one_scale_gives_every_module_the_update_that_peft_computes() {
    for case in ["rslora", "patterns", "zero-alpha"] {
        let (_dir, metadata, plan) = converted(case, OutType::F32);
        let alpha = metadata.f64(ALPHA_KEY).unwrap();
        let expected = taking(&fixtures().join(format!("expected/{case}.safetensors")));
        assert_eq!(plan.tensors.len(), 2 * expected.tensors.len(), "{case}");
        let base = config();
        let names = GgufNames::of(&base.base()).unwrap();
        for delta in &expected.tensors {
            let weight = names.weight(base.base().tensor(&format!("{}.weight", delta.name)).unwrap()).unwrap();
            let a = plan.get(&format!("{}.lora_a", weight.name)).unwrap();
            let b = plan.get(&format!("{}.lora_b", weight.name)).unwrap();
            let rank = b.shape[1];
            let b = PlannedTensor { expr: weight.order.to_hf(b.expr.clone()), ..b.clone() };
            // As in src/llama-adapter.h, get_scale.
            let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f64 };
            let (found, expected) = (update(scale, &b, a), delta.read().unwrap());
            let largest = expected.iter().fold(0f32, |m, v| m.max(v.abs()));
            for (found, expected) in found.iter().zip(&expected) {
                let gap = (found - f64::from(*expected)).abs();
                assert!(gap <= 1e-6 * f64::from(largest), "{case} {}: {found} {expected}", delta.name);
            }
            assert!(largest > 0.0 || case == "zero-alpha" && delta.name.ends_with("q_proj"), "{case} {}", delta.name);
        }
    }
}

#[test]
fn scales_that_one_alpha_can_say_leave_the_factors_as_they_are() {
    let (_dir, metadata, plan) = converted("rslora", OutType::F32);
    assert_eq!(metadata.f64(ALPHA_KEY).unwrap(), 16.0);
    let source = taking(&fixtures().join("rslora/adapter_model.safetensors"));
    let v = source.get("base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight").unwrap();
    assert_eq!(bytes_of(plan.get("blk.1.attn_v.weight.lora_b").unwrap()), bytes_of(v));
}

/// Type, shape and bytes of factors, by name. Whole weights are left out, because they repeat the
/// base's.
fn factors_of(plan: &Plan) -> BTreeMap<String, (DType, Vec<usize>, Vec<u8>)> {
    let factors = plan.tensors.iter().filter(|t| t.name.contains(".lora_"));
    factors.map(|t| (t.name.clone(), (t.dtype, t.shape.clone(), bytes_of(t)))).collect()
}

#[test]
fn adapters_come_back_with_every_factor_and_the_same_scales() {
    for (case, outtype) in
        [("plain", OutType::F32), ("bf16", OutType::BF16), ("embeddings", OutType::F32), ("ranks", OutType::F32)]
    {
        let (dir, metadata, plan) = converted(case, outtype);
        let folder = from_gguf(&metadata, &plan, &config().base()).unwrap();
        assert_eq!(folder.notes, [""; 0]);
        let back = dir.path().join("back");
        folder.output().write(&Destination::new(&back), &|_| {}).unwrap();
        let source = taking(&fixtures().join(case).join("adapter_model.safetensors"));
        assert_eq!(factors_of(&taking(&back.join("adapter_model.safetensors"))), factors_of(&source), "{case}");
        for name in factors_of(&source).keys() {
            let module = name.strip_prefix(PREFIX).unwrap().split(".lora_").next().unwrap();
            let before = rank_and_alpha(&fixtures().join(case), module);
            assert_eq!(rank_and_alpha(&back, module), before, "{case} {module}");
        }
    }
}

#[test]
fn target_modules_are_short_where_they_cover_every_layer() {
    let targets = |case: &str| {
        let (_dir, metadata, plan) = converted(case, OutType::F32);
        from_gguf(&metadata, &plan, &config().base()).unwrap().config["target_modules"].clone()
    };
    assert_eq!(targets("embeddings"), json!(["lm_head", "embed_tokens", "k_proj"]));
    assert_eq!(targets("bf16"), json!(["model.layers.1.mlp.down_proj", "model.layers.1.self_attn.q_proj"]));
}

#[test]
fn a_file_without_alpha_has_a_scale_of_one() {
    let (dir, mut metadata, plan) = converted("ranks", OutType::F32);
    metadata.insert(ALPHA_KEY, 0f32);
    metadata.insert(ALORA_KEY, Value::Array(Array::U32(vec![3, 4])));
    metadata.insert("general.base_model.0.repo_url", "https://huggingface.co/org/base");
    metadata.insert("general.tags", "x");
    let folder = from_gguf(&metadata, &plan, &config().base()).unwrap();
    let back = dir.path().join("back");
    folder.output().write(&Destination::new(&back), &|_| {}).unwrap();
    for module in
        ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj"]
    {
        let (rank, alpha) = rank_and_alpha(&back, module);
        assert_eq!(alpha, rank as f64, "{module}");
    }
    let changes = AdapterFiles::find(&back).unwrap().changes(&config().base()).unwrap();
    assert_eq!(changes.invocation_tokens, [3, 4]);
    assert!(adapter::open(&back, &config().base()).unwrap_err().to_string().contains("alora_invocation_tokens"));
    assert_eq!(folder.config["base_model_name_or_path"], "org/base");
    assert_eq!(folder.notes, ["key \"general.tags\" is left out: the folder has no place for it"]);
}

/// A copy of a case with tensors renamed in its header, and with other settings.
fn changed(case: &str, settings: Json, rename: impl Fn(&str) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let folder = fixtures().join(case);
    let mut config = read_json_object(&folder.join("adapter_config.json")).unwrap();
    config.extend(settings.as_object().unwrap().clone());
    fs::write(dir.path().join("adapter_config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
    let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    let header: serde_json::Map<String, Json> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let header: serde_json::Map<String, Json> = header.into_iter().map(|(k, v)| (rename(&k), v)).collect();
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat();
    fs::write(dir.path().join("adapter_model.safetensors"), file).unwrap();
    dir
}

#[test]
fn refuses_what_a_gguf_adapter_cannot_carry_by_tensor() {
    let tied = || base_with(Plan::default(), |config| drop(config.insert("tie_word_embeddings".into(), true.into())));
    let q_b = "layers.1.self_attn.q_proj.lora_B.weight";
    let cases: [(&str, Json, &str, &str, bool, &str); 8] = [
        (
            "plain",
            json!({}),
            q_b,
            "layers.1.self_attn.q_proj.lora_C",
            false,
            "q_proj.lora_B.weight\": expected a tensor",
        ),
        ("plain", json!({}), "q_proj", "w_proj", false, "w_proj.lora_A.weight\": expected a module of the base model"),
        ("plain", json!({}), "layers.1.", "layers.9.", false, "expected a module of the base model"),
        (
            "plain",
            json!({"r": 5}),
            "",
            "",
            false,
            "lora_A.weight\": expected [5, 48] by adapter_config.json and the base",
        ),
        ("plain", json!({"use_dora": true}), "", "", false, "lora_magnitude_vector\": expected a tensor of this name"),
        ("plain", json!({"peft_type": "IA3"}), "", "", false, "ia3_l\": expected a tensor of this name"),
        ("embeddings", json!({}), "", "", true, "lm_head.lora_A.weight\": expected modules of their own"),
        (
            "embeddings",
            json!({"target_modules": null}),
            "lm_head.lora",
            "model.embed_tokens.lora",
            false,
            "found one in the place of the other",
        ),
    ];
    for (case, settings, from, to, is_tied, expected) in cases {
        let dir = changed(case, settings, |name| match from.is_empty() {
            true => name.to_owned(),
            false => name.replace(from, to),
        });
        let base = if is_tied { tied() } else { base() };
        let error = to_gguf(dir.path(), &base.base(), OutType::F32).unwrap_err().to_string();
        assert!(error.contains(expected), "{case} {to}: {error}");
    }
}

/// A copy of the plain LoRA with other settings and additional tensors.
fn plain_with(settings: Json, more: &[(String, &[usize])]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let from = fixtures().join("plain");
    let mut config = read_json_object(&from.join("adapter_config.json")).unwrap();
    config.extend(settings.as_object().unwrap().clone());
    let read = |t: PlannedTensor| adapter::HostTensor { values: t.read().unwrap().into(), shape: t.shape };
    let mut tensors: BTreeMap<String, adapter::HostTensor> = taking(&from.join("adapter_model.safetensors"))
        .tensors
        .into_iter()
        .map(|tensor| (tensor.name.clone(), read(tensor)))
        .collect();
    for (name, shape) in more {
        let values = (0..shape.iter().product()).map(|i| i as f32).collect();
        tensors.insert(name.clone(), adapter::HostTensor { shape: shape.to_vec(), values });
    }
    let folder = dir.path().join("adapter");
    adapter::save_tensors(&tensors, "adapter_model", &folder).unwrap();
    fs::write(folder.join("adapter_config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    dir
}

/// PEFT's name of a part of q_proj in the second layer.
fn of_q(part: &str) -> String {
    format!("base_model.model.model.layers.1.self_attn.q_proj.{part}")
}

#[test]
fn changes_that_have_no_factors_are_refused_by_the_weight_that_they_change() {
    let magnitudes: Vec<(String, &[usize])> = taking(&fixtures().join("plain/adapter_model.safetensors"))
        .tensors
        .iter()
        .filter_map(|tensor| Some((tensor.name.strip_suffix("lora_B.weight")?.to_owned(), tensor.shape[0])))
        .map(|(module, rows)| {
            let shape: &[usize] = match rows {
                16 => &[16],
                32 => &[32],
                _ => &[48],
            };
            (format!("{module}lora_magnitude_vector"), shape)
        })
        .collect();
    let norm = "base_model.model.model.norm.weight".to_owned();
    let rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta".to_owned();
    type Added<'a> = Vec<(String, &'a [usize])>;
    let cases: [(Json, Added, &str); 6] = [
        (json!({"bias": "all"}), vec![(of_q("base_layer.bias"), &[64])], "expected a tensor of the base"),
        (
            json!({"bias": "none"}),
            vec![(of_q("base_layer.bias"), &[32])],
            "q_proj.base_layer.bias\": expected a tensor",
        ),
        (json!({"lora_bias": true}), vec![(of_q("lora_B.bias"), &[32])], "lora_B.bias\": expected a"),
        (json!({"use_dora": true}), magnitudes, "found DoRA's magnitudes, or another factor of weights"),
        (
            json!({"modules_to_save": ["norm"]}),
            vec![(norm, &[32])],
            "model.norm.weight\": expected only lora_A and lora_B, all that a GGUF adapter can carry, found a whole weight",
        ),
        (
            json!({"trainable_token_indices": [3]}),
            vec![(rows, &[1, 32])],
            "the change of \"model.embed_tokens.weight\": expected only lora_A and lora_B",
        ),
    ];
    for (settings, more, expected) in cases {
        let dir = plain_with(settings.clone(), &more);
        let error = to_gguf(&dir.path().join("adapter"), &base().base(), OutType::F32).unwrap_err().to_string();
        assert!(error.contains(expected), "{settings}: {error}");
    }
    // PEFT replaces a bias that the base has; a GGUF adapter can't store that.
    let with_biases = base_with(Plan::default(), |config| drop(config.insert("attention_bias".into(), true.into())));
    let dir = plain_with(json!({"bias": "lora_only"}), &[(of_q("base_layer.bias"), &[32])]);
    let error = to_gguf(&dir.path().join("adapter"), &with_biases.base(), OutType::F32).unwrap_err().to_string();
    let expected =
        "q_proj.base_layer.bias\": expected only lora_A and lora_B, all that a GGUF adapter can carry, found a bias";
    assert!(error.contains(expected), "{error}");
}

#[test]
fn settings_that_ask_for_more_than_factors_are_refused_by_the_field() {
    let converted = |settings: &Json| {
        let dir = plain_with(settings.clone(), &[]);
        to_gguf(&dir.path().join("adapter"), &base().base(), OutType::F32)
    };
    for (settings, expected) in [
        (json!({"bias": "some"}), "adapter_config.json: bias: expected none, all, or the adapted modules' only"),
        (
            json!({"init_lora_weights": "pissa"}),
            "adapter_config.json: init_lora_weights: expected an initialisation that leaves the base as it is, found \"pissa\"",
        ),
        (json!({"init_lora_weights": "olora"}), "adapter_config.json: init_lora_weights: expected an initialisation"),
        (json!({"use_qalora": true}), "adapter_config.json: use_qalora: expected a LoRA that is a fixed change"),
        (json!({"layer_replication": [[0, 2], [1, 2]]}), "adapter_config.json: layer_replication: expected a LoRA"),
        (json!({"use_new_thing": true}), "use_new_thing: expected a field this version knows"),
        (json!({"modules_to_save": ["lm_head"]}), "modules_to_save: expected tensors of \"lm_head\""),
        (json!({"rank_pattern": {"q_proj": 0}}), "rank_pattern: expected"),
        (json!({"alpha_pattern": {"(?=q)": 1}}), "alpha_pattern: expected"),
        (json!({"r": 0}), "adapter_config.json: r: expected a count from 1 to 2^31"),
        (json!({"lora_alpha": 1e300}), "adapter_config.json: lora_alpha: expected a finite float32"),
    ] {
        let error = converted(&settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{settings}: {error}");
    }
    // These settings are accepted: biases that the file doesn't contain, because the base has none,
    // and initialisations that leave the base unchanged.
    let plain = converted(&json!({})).unwrap().plan;
    for settings in [
        json!({"bias": "all"}),
        json!({"bias": "lora_only"}),
        json!({"init_lora_weights": "orthogonal"}),
        json!({"init_lora_weights": false}),
    ] {
        let Output { plan: taken, notes, .. } = converted(&settings).unwrap();
        assert_eq!((factors_of(&taken), notes.len()), (factors_of(&plain), 0), "{settings}");
    }
}

#[test]
fn a_factor_without_its_partner_is_named() {
    // Factors of modules that the config doesn't select are left out.
    for (factor, missing) in
        [("lora_A", "layers.1.self_attn.q_proj.lora_A"), ("lora_B", "layers.1.self_attn.q_proj.lora_B")]
    {
        let from = format!("model.layers.1.self_attn.q_proj.{factor}");
        let dir = changed("plain", json!({}), |name| name.replace(&from, &format!("lm_head.{factor}")));
        let error = to_gguf(dir.path(), &base().base(), OutType::F32).unwrap_err().to_string();
        let expected = format!("{missing}.weight\": expected a tensor of this name, found none");
        assert!(error.contains(&expected), "{error}");
    }
}

#[test]
fn embeddings_that_cannot_be_compared_are_noted_and_other_ones_refused() {
    let folder = fixtures().join("embeddings");
    let notes = to_gguf(&folder, &config().base(), OutType::F32).unwrap().notes;
    assert_eq!(notes.len(), 2);
    assert!(notes[0].contains("lm_head.base_layer.weight\" is left out: it is taken for the base's own"), "{notes:?}");
    let mut other = taking(&fixtures().join("base/embeddings.safetensors"));
    let (first, last) = (other.tensors[0].expr.clone(), other.tensors[1].expr.clone());
    other.tensors[0].expr = last;
    other.tensors[1].expr = first;
    let error = to_gguf(&folder, &base_with(other, |_| ()).base(), OutType::F32).unwrap_err().to_string();
    assert!(error.contains("found a whole weight that differs from the base's"), "{error}");
}

#[test]
fn refuses_files_for_another_base_or_of_another_kind() {
    let (_dir, good, plan) = converted("plain", OutType::F32);
    let keys: [(&str, Value, &str); 5] = [
        ("general.type", "model".into(), "key \"general.type\": expected adapter, found \"model\""),
        ("adapter.type", "atombank".into(), "key \"adapter.type\": expected lora, found \"atombank\""),
        (
            "general.architecture",
            "qwen2".into(),
            "expected \"llama\", found \"qwen2\"; this adapter belongs to another",
        ),
        (ALPHA_KEY, f32::NAN.into(), "expected a finite float32"),
        (ALORA_KEY, 3u32.into(), "expected an array of uint32, found uint32 3"),
    ];
    for (key, value, expected) in keys {
        let mut metadata = good.clone();
        metadata.insert(key, value);
        let error = from_gguf(&metadata, &plan, &config().base()).unwrap_err().to_string();
        assert!(error.contains(expected), "{key}: {error}");
    }
    let change = |change: &dyn Fn(&mut Plan)| {
        let mut plan = plan.clone();
        change(&mut plan);
        from_gguf(&good, &plan, &config().base()).unwrap_err().to_string()
    };
    let cases = [
        (change(&|p| p.tensors.clear()), "expected tensors .lora_a and .lora_b, found none"),
        (change(&|p| drop(p.tensors.remove(1))), "lora_b\": expected a tensor of this name, found none"),
        (change(&|p| drop(p.tensors.remove(0))), "lora_a\": expected a tensor of this name, found none"),
        (change(&|p| p.tensors[0].name = "blk.0.attn_norm.weight".into()), "expected a name that ends in .lora_a"),
        (
            change(&|p| p.tensors.iter_mut().for_each(|t| t.name = t.name.replace("blk.", "blk.7"))),
            "found none of that name",
        ),
        (
            change(&|p| p.tensors[1].shape = vec![32, 5]),
            "lora_a\": expected [5, 48] for this base model, found [4, 48]",
        ),
        (
            change(&|p| p.tensors[1].shape = vec![31, 4]),
            "lora_b\": expected [32, 4] for this base model, found [31, 4]",
        ),
    ];
    for (error, expected) in cases {
        assert!(error.contains(expected), "{error}");
    }
}
