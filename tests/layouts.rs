//! Tests checkpoints as people publish them: the same model in other files, under other names, with
//! other settings. Each must give the same GGUF as the plain folder.

use std::fs;
use std::path::{Path, PathBuf};

use atombank::jobs::{self, ConvertSettings};
use atombank::output::Output;
use serde_json::{Value, json};

/// A copy of a fixture's model.
struct Folder {
    dir: tempfile::TempDir,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let folder = Self { dir };
        fs::create_dir(folder.path("m")).unwrap();
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/convert/llama/model");
        for file in fs::read_dir(from).unwrap().map(|file| file.unwrap().path()) {
            fs::copy(&file, folder.path("m").join(file.file_name().unwrap())).unwrap();
        }
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn model(&self, name: &str) -> PathBuf {
        self.path("m").join(name)
    }

    fn config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.model("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, config.to_string()).unwrap();
    }

    /// Renames every tensor.
    fn rename(&self, change: impl Fn(&str) -> String) {
        let (header, data) = self.weights();
        let renamed = header.into_iter().map(|(name, entry)| match name.as_str() {
            "__metadata__" => (name, entry),
            _ => (change(&name), entry),
        });
        self.save("model.safetensors", &renamed.collect(), &data);
    }

    fn weights(&self) -> (serde_json::Map<String, Value>, Vec<u8>) {
        let bytes = fs::read(self.model("model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        (serde_json::from_slice(&bytes[8..8 + length]).unwrap(), bytes[8 + length..].to_vec())
    }

    fn save(&self, name: &str, header: &serde_json::Map<String, Value>, data: &[u8]) {
        let header = serde_json::to_vec(header).unwrap();
        fs::write(self.model(name), [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()).unwrap();
    }

    /// Splits the weights into two shards; the tensor `both` is in each.
    fn split(&self, names: [&str; 2], both: Option<&str>) -> Value {
        let (header, data) = self.weights();
        let mut map = serde_json::Map::new();
        let tensors: Vec<_> = header.into_iter().filter(|(name, _)| name != "__metadata__").collect();
        for (number, shard) in names.into_iter().enumerate() {
            let (mut header, mut kept) = (serde_json::Map::new(), Vec::new());
            for (place, (name, entry)) in tensors.iter().enumerate() {
                // The tensors' order in the files becomes their order in the GGUF.
                if place * 2 / tensors.len() != number && both != Some(name) {
                    continue;
                }
                let range = |i: usize| entry["data_offsets"][i].as_u64().unwrap() as usize;
                let mut entry = entry.clone();
                let start = kept.len();
                kept.extend(&data[range(0)..range(1)]);
                entry["data_offsets"] = json!([start, kept.len()]);
                header.insert(name.clone(), entry);
                map.insert(name.clone(), shard.into());
            }
            if let Some(parent) = Path::new(shard).parent() {
                fs::create_dir_all(self.path("m").join(parent)).unwrap();
            }
            self.save(shard, &header, &kept);
        }
        fs::remove_file(self.model("model.safetensors")).unwrap();
        json!({"metadata": {}, "weight_map": map})
    }

    fn settings(&self) -> ConvertSettings {
        let mut settings = ConvertSettings::new(self.path("m"), self.path("m.gguf"));
        settings.output.r#type = Some("f16".to_owned());
        settings.output.destination.overwrite = true;
        settings
    }

    /// The GGUF made from the folder, and the job's notes.
    fn gguf(&self, settings: &ConvertSettings) -> (Vec<u8>, Vec<String>) {
        let made: Output = jobs::convert(settings).unwrap();
        made.write(&settings.output.destination, &|_| {}).unwrap();
        (fs::read(self.path("m.gguf")).unwrap(), made.notes)
    }

    fn refusal(&self) -> String {
        jobs::convert(&self.settings()).expect_err("accepted").to_string()
    }

    /// Checks that it gives the same GGUF as the plain folder, with a note that contains `note`.
    fn is_plain(&self, note: &str) {
        let plain = Self::new();
        let (expected, _) = plain.gguf(&plain.settings());
        let (found, notes) = self.gguf(&self.settings());
        assert!(expected == found, "{note}: another GGUF");
        assert!(note.is_empty() || notes.iter().any(|found| found.contains(note)), "{notes:?}");
    }
}

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const INDEX: &str = "model.safetensors.index.json";

#[test]
fn shards_need_no_index() {
    let folder = Folder::new();
    folder.split(SHARDS, None);
    folder.is_plain("the shards are taken by their numbers");
    fs::remove_file(folder.model(SHARDS[0])).unwrap();
    assert!(folder.refusal().contains("expected the shard model-00001-of-00002.safetensors, found no such file"));
    fs::copy(folder.model(SHARDS[1]), folder.model("model-00001-of-00003.safetensors")).unwrap();
    assert!(folder.refusal().contains("expected shards of one model"), "{}", folder.refusal());
}

#[test]
fn shards_may_stand_in_a_folder_and_hold_a_tensor_twice() {
    let folder = Folder::new();
    let index = folder.split(["parts/a.safetensors", "parts/b.safetensors"], Some("model.embed_tokens.weight"));
    fs::write(folder.model(INDEX), index.to_string()).unwrap();
    folder.is_plain("");
}

#[test]
fn a_whole_file_comes_before_an_index_that_is_left_over() {
    let folder = Folder::new();
    fs::write(folder.model(INDEX), json!({"weight_map": {"a": SHARDS[0]}}).to_string()).unwrap();
    folder.is_plain("is ignored: model.safetensors holds the whole model");
    // The index alone needs the missing shard.
    fs::remove_file(folder.model("model.safetensors")).unwrap();
    let error = folder.refusal();
    assert!(error.contains(&format!("{INDEX}: weight_map: expected the shard {} beside it", SHARDS[0])), "{error}");
}

#[test]
fn names_are_taken_without_what_wrappers_add() {
    type Rename = fn(&str) -> String;
    let cases: [(Rename, &str); 5] = [
        (|name| format!("_orig_mod.{name}"), "_orig_mod."),
        (|name| format!("module.{name}"), "module."),
        (|name| format!("state_dict.module.{name}"), "state_dict., module."),
        (|name| name.replace("self_attn", "self_attn._orig_mod"), "_orig_mod."),
        (
            |name| format!("_fsdp_wrapped_module.{}", name.replace("layers.0", "layers.0._fsdp_wrapped_module")),
            "_fsdp_",
        ),
    ];
    for (rename, note) in cases {
        let folder = Folder::new();
        folder.rename(rename);
        folder.is_plain(note);
    }
    // If one name lacks the prefix, the prefix counts as part of all other names.
    let folder = Folder::new();
    folder.rename(|name| if name == "lm_head.weight" { name.to_owned() } else { format!("module.{name}") });
    assert!(folder.refusal().contains("tensor \"module."), "{}", folder.refusal());
    let folder = Folder::new();
    folder.rename(
        |name| if name == "lm_head.weight" { "model._orig_mod.norm.weight".to_owned() } else { name.to_owned() },
    );
    assert!(folder.refusal().contains("found two"), "{}", folder.refusal());
}

#[test]
fn settings_that_change_nothing_are_taken() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 4] = [
        (|config| config["architectures"] = Value::Null, "read as LlamaForCausalLM by its model_type"),
        (|config| drop(config.as_object_mut().unwrap().remove("architectures")), "read as LlamaForCausalLM"),
        (|config| config["hidden_act"] = json!("swish"), ""),
        (|config| config["pretraining_tp"] = json!(2), ""),
    ];
    for (change, note) in cases {
        let folder = Folder::new();
        folder.config(change);
        folder.is_plain(note);
    }
    let folder = Folder::new();
    folder.config(|config| config["pad_token_id"] = json!(-1));
    let (_, notes) = folder.gguf(&folder.settings());
    assert!(notes.iter().any(|note| note.contains("pad: id -1 means that there is none")), "{notes:?}");
}

#[test]
fn settings_of_an_adapter_beside_a_model_are_left_over() {
    let folder = Folder::new();
    fs::write(folder.model("adapter_config.json"), r#"{"peft_type": "LORA", "r": 4}"#).unwrap();
    folder.is_plain("the model is taken");
}

#[test]
fn a_vocabulary_needs_no_weights() {
    let folder = Folder::new();
    let mut settings = folder.settings();
    settings.vocab_only = true;
    let (expected, _) = folder.gguf(&settings);
    fs::remove_file(folder.model("model.safetensors")).unwrap();
    let (found, _) = folder.gguf(&settings);
    assert!(expected == found);
}

#[test]
fn a_pointer_of_git_lfs_is_named_as_one() {
    let folder = Folder::new();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4\n";
    fs::write(folder.model("model.safetensors"), pointer).unwrap();
    let error = folder.refusal();
    assert!(error.contains("model.safetensors: expected the file itself, found a pointer of git-lfs"), "{error}");
    let folder = Folder::new();
    fs::write(folder.model("tokenizer.json"), pointer).unwrap();
    let error = folder.refusal();
    assert!(error.contains("tokenizer.json: expected the file itself, found a pointer of git-lfs"), "{error}");
}
