//! Text models inside classes with other parts: two spellings of their names, and what is of the other parts.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use atombank::adapter::{HostTensor, save_tensors};
use atombank::formats::safetensors::SafetensorsFile;
use atombank::source::Source;
use program::{atombank, copy, done, fixture, text};
use serde_json::{Map, Value, json};

struct Bench {
    dir: tempfile::TempDir,
}

/// Names as older and as newer versions of transformers save them.
const OLD: &str = "language_model.model.";
const NEW: &str = "model.language_model.";

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Gemma 3 of the fixtures with a vision tower of one matrix; `prefix` stands before the text model's names.
    fn wrapped(&self, name: &str, prefix: &str) -> PathBuf {
        let folder = copy(&fixture("convert/gemma3/model"), &self.at(name));
        let config: Value = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let wrapper = json!({"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
            "eos_token_id": 2, "dtype": "bfloat16", "text_config": config, "vision_config": {"hidden_size": 8}});
        fs::write(folder.join("config.json"), wrapper.to_string()).unwrap();
        change(&folder, |header, data| {
            let old = std::mem::take(header);
            header.extend(old.into_iter().map(|(name, entry)| (name.replacen("model.", prefix, 1), entry)));
            add(header, data, "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight", &[8, 8]);
        });
        folder
    }

    fn compared(&self, a: &Path, b: &Path) -> Value {
        let shown: Value = serde_json::from_str(&done(&["compare", text(a), text(b), "--json"])).unwrap();
        shown["totals"].clone()
    }

    /// A LoRA of modules by their names.
    fn lora(&self, name: &str, modules: &[(&str, usize, usize)], config: Value) -> PathBuf {
        let folder = self.at(name);
        let mut tensors = BTreeMap::new();
        for (module, d_out, d_in) in modules {
            for (factor, shape) in [("lora_A", [2, *d_in]), ("lora_B", [*d_out, 2])] {
                let values: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i * 7 % 11) as f32 / 8.0 - 0.5).collect();
                let tensor = HostTensor { shape: shape.to_vec(), values: values.into() };
                tensors.insert(format!("base_model.model.{module}.{factor}.weight"), tensor);
            }
        }
        save_tensors(&tensors, "adapter_model", &folder).unwrap();
        let mut json = json!({"peft_type": "LORA", "r": 2, "lora_alpha": 4});
        json.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
        fs::write(folder.join("adapter_config.json"), json.to_string()).unwrap();
        folder
    }

    fn merged(&self, base: &Path, others: &[&Path], out: &str, options: &[&str]) -> PathBuf {
        let target = self.at(out);
        let mut args = vec!["merge", text(base)];
        args.extend(others.iter().map(|other| text(other)));
        args.extend(["-o", text(&target), "--quiet"]);
        done(&[&args, options].concat());
        target
    }
}

/// Rewrites a folder's header, and what stands behind it.
fn change(folder: &Path, change: impl FnOnce(&mut Map<String, Value>, &mut Vec<u8>)) {
    let path = folder.join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let mut data = bytes[8 + length..].to_vec();
    change(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
}

/// Adds a BF16 tensor of ones.
fn add(header: &mut Map<String, Value>, data: &mut Vec<u8>, name: &str, shape: &[usize]) {
    let start = data.len();
    data.extend([0x80, 0x3f].repeat(shape.iter().product()));
    header.insert(name.to_owned(), json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, data.len()]}));
}

/// The bytes of a tensor.
fn bytes(folder: &Path, name: &str) -> Vec<u8> {
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let at = file.tensors().iter().position(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"));
    file.bytes(at).to_vec()
}

#[test]
fn spellings_of_the_same_names_are_compared_and_combined() {
    let b = Bench::new();
    let (old, new) = (b.wrapped("old", OLD), b.wrapped("new", NEW));
    let bare = fixture("convert/gemma3/model");
    let count = bytes_of_header(&bare);
    let totals = b.compared(&old, &new);
    assert_eq!((&totals["compared"], &totals["identical"]), (&json!(count + 1), &json!(count + 1)), "{totals}");
    for (a, other) in [(&old, &bare), (&bare, &new)] {
        let totals = b.compared(a, other);
        assert_eq!((&totals["compared"], &totals["identical"]), (&json!(count), &json!(count)), "{totals}");
    }
    let gguf = b.at("bare.gguf");
    done(&["convert", text(&bare), "-o", text(&gguf), "--type", "source", "--quiet"]);
    let totals = b.compared(&new, &gguf);
    assert_eq!((&totals["compared"], &totals["identical"]), (&json!(count), &json!(count)), "{totals}");

    let mean = b.merged(&old, &[&old, &new], "mean", &["--method", "linear"]);
    assert_eq!(b.compared(&old, &mean)["identical"], json!(count + 1));
    assert_eq!(bytes(&mean, "language_model.model.norm.weight"), bytes(&old, "language_model.model.norm.weight"));
}

fn bytes_of_header(folder: &Path) -> usize {
    SafetensorsFile::open(&folder.join("model.safetensors")).unwrap().tensors().len()
}

#[test]
fn an_adapter_of_the_text_model_alone_says_nothing_of_other_parts() {
    let b = Bench::new();
    let (old, bare) = (b.wrapped("old", OLD), fixture("convert/gemma3/model"));
    let layers = [("model.layers.0.self_attn.q_proj", 64, 64), ("model.layers.1.self_attn.q_proj", 64, 64)];
    let lora = b.lora("lora", &layers, json!({"target_modules": ["q_proj"]}));
    let (into_old, into_bare) =
        (b.merged(&old, &[&lora], "into-old", &[]), b.merged(&bare, &[&lora], "into-bare", &[]));
    for layer in 0..2 {
        let name = format!("layers.{layer}.self_attn.q_proj.weight");
        assert_eq!(bytes(&into_old, &format!("{OLD}{name}")), bytes(&into_bare, &format!("model.{name}")));
        assert_ne!(bytes(&into_old, &format!("{OLD}{name}")), bytes(&old, &format!("{OLD}{name}")));
    }
    // One of the whole model has to have the tower's, too, by the name of this version or of an earlier one.
    for (name, tower) in [("a", "model.vision_tower"), ("b", "model.vision_tower.vision_model")] {
        let tower = format!("{tower}.encoder.layers.0.self_attn.q_proj");
        let wrapped = layers.map(|(module, rows, cols)| (module.replacen("model.", NEW, 1), rows, cols));
        let mut modules: Vec<(&str, usize, usize)> = wrapped.iter().map(|(m, r, c)| (m.as_str(), *r, *c)).collect();
        modules.push((&tower, 8, 8));
        let lora = b.lora(name, &modules, json!({"target_modules": ["q_proj"]}));
        let merged = b.merged(&old, &[&lora], &format!("{name}-merged"), &[]);
        let of_tower = "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight";
        assert_ne!(bytes(&merged, of_tower), bytes(&old, of_tower));
        assert_eq!(
            bytes(&merged, &format!("{OLD}layers.0.self_attn.q_proj.weight")),
            bytes(&into_old, &format!("{OLD}layers.0.self_attn.q_proj.weight"))
        );
        fs::remove_dir_all(&merged).unwrap();
        let partial = b.lora(&format!("{name}-part"), &modules[1..], json!({"target_modules": ["q_proj"]}));
        let out = atombank(&["merge", text(&old), text(&partial), "-o", text(&merged)]);
        let error = String::from_utf8(out.stderr).unwrap();
        assert!(error.contains("the adapter is incomplete"), "{error}");
    }
}

#[test]
fn layers_that_transformers_does_not_load_are_no_part_of_an_adapter() {
    let b = Bench::new();
    let base = copy(&fixture("convert/llama/model"), &b.at("base"));
    change(&base, |header, data| {
        add(header, data, "model.layers.2.self_attn.q_proj.weight", &[256, 256]);
        add(header, data, "mtp.layers.0.self_attn.q_proj.weight", &[256, 256]);
    });
    let layers = [("model.layers.0.self_attn.q_proj", 256, 256), ("model.layers.1.self_attn.q_proj", 256, 256)];
    let lora = b.lora("lora", &layers, json!({"target_modules": ["q_proj"]}));
    let merged = b.merged(&base, &[&lora], "merged", &[]);
    let name = "mtp.layers.0.self_attn.q_proj.weight";
    assert_eq!(bytes(&merged, name), bytes(&base, name));
    let lora = b.lora("half", &layers[..1], json!({"target_modules": ["q_proj"]}));
    let out = atombank(&["merge", text(&base), text(&lora), "-o", text(&b.at("never"))]);
    assert!(String::from_utf8(out.stderr).unwrap().contains("the adapter is incomplete"));
}

#[test]
fn whether_the_head_is_the_embeddings_is_said_by_the_wrapper() {
    let b = Bench::new();
    let old = b.wrapped("old", OLD);
    let set = |field: &str, tied: bool| {
        let path = old.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        match field {
            "" => config["tie_word_embeddings"] = tied.into(),
            inner => config[inner]["tie_word_embeddings"] = tied.into(),
        }
        fs::write(path, config.to_string()).unwrap();
    };
    set("text_config", false);
    let convert = || atombank(&["convert", text(&old), "-o", text(&b.at("out.gguf")), "--overwrite", "--quiet"]);
    assert!(!convert().status.success(), "there is no head");
    set("", true);
    let out = convert();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

/// Folders made by tests/clients/renamed.py: a base, a LoRA of PEFT on all linear layers of its class, and PEFT's merge.
#[test]
fn modules_that_share_a_tensor_of_the_checkpoint_are_merged_into_it() {
    for name in ["nomic-bert", "molmo2-text", "minimax-m3-vl"] {
        let folder = fixture(&format!("renamed/{name}"));
        let b = Bench::new();
        let (base, adapter) = (folder.join("base"), folder.join("adapter"));
        let merged = b.merged(&base, &[&adapter], "merged", &[]);
        let expected = SafetensorsFile::open(&folder.join("expected/model.safetensors")).unwrap();
        let names: Vec<&str> = expected.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(bytes_of_header(&merged), names.len(), "{name}");
        for tensor in names {
            assert!(bytes(&merged, tensor) == bytes(&folder.join("expected"), tensor), "{name}: {tensor}");
        }
        // Two halves are the whole, but for rounding, and a LoRA of both is one of the class's modules.
        let half = PathBuf::from(format!("{}=0.5", text(&adapter)));
        let both = b.merged(&base, &[&half, &half], "both", &[]);
        let totals = b.compared(&merged, &both);
        assert!(totals["relative_error"].as_f64().unwrap() < 1e-2, "{name}: {totals}");
        let lora = b.merged(&base, &[&adapter], "lora", &["--to", "lora"]);
        let again = b.merged(&base, &[&lora], "again", &[]);
        let totals = b.compared(&merged, &again);
        assert!(totals["relative_error"].as_f64().unwrap() < 1e-2, "{name}: {totals}");
    }
}
