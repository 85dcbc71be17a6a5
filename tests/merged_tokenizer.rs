//! Tests which tokenizer a merged model gets: trainers save one in the adapter's folder.

#[path = "common/program.rs"]
mod program;

use std::fs;
use std::path::{Path, PathBuf};

use atombank::formats::gguf::{GgufModel, Value};
use program::{INPUT, USAGE, atombank, copy, done, fixture, refused_leaving, text};

struct Bench {
    dir: tempfile::TempDir,
    base: PathBuf,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), base: fixture("demo/base") }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Copies the adapter, and the base's tokenizer into its folder.
    fn lora(&self, name: &str) -> PathBuf {
        let lora = copy(&fixture("demo/lora"), &self.at(name));
        for file in ["tokenizer.json", "tokenizer_config.json"] {
            fs::copy(self.base.join(file), lora.join(file)).unwrap();
        }
        lora
    }

    /// The output folder, and the text on stderr.
    fn merged(&self, loras: &[&Path], out: &str, options: &[&str]) -> (PathBuf, String) {
        let target = self.at(out);
        let mut args = vec!["merge", text(&self.base)];
        args.extend(loras.iter().map(|lora| text(lora)));
        args.extend(["-o", text(&target), "--overwrite"]);
        let out = atombank(&[&args, options].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (target, String::from_utf8(out.stderr).unwrap())
    }

    fn refused(&self, exit: i32, loras: &[&Path], options: &[&str]) -> String {
        let target = self.at("never");
        let mut args = vec!["merge", text(&self.base)];
        args.extend(loras.iter().map(|lora| text(lora)));
        args.extend(["-o", text(&target)]);
        refused_leaving(exit, self.dir.path(), &[&args, options].concat())
    }
}

fn edit(file: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let mut json = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    change(&mut json);
    fs::write(file, serde_json::to_string(&json).unwrap()).unwrap();
}

/// Adds a token to a tokenizer.json.
fn add_token(lora: &Path, id: usize) {
    edit(&lora.join("tokenizer.json"), |json| {
        let mut token = json["added_tokens"][0].clone();
        (token["id"], token["content"]) = (id.into(), "<|mine|>".into());
        json["added_tokens"].as_array_mut().unwrap().push(token);
    });
}

fn set_template(lora: &Path, template: &str) {
    edit(&lora.join("tokenizer_config.json"), |json| json["chat_template"] = template.into());
}

fn key(gguf: &Path, key: &str) -> Option<String> {
    match GgufModel::open(gguf).unwrap().metadata().get(key)? {
        Value::String(bytes) => Some(String::from_utf8(bytes.clone()).unwrap()),
        other => panic!("{other:?}"),
    }
}

const TEMPLATE: &str = "tokenizer.chat_template";

#[test]
fn a_changed_tokenizer_of_the_adapter_goes_into_the_result() {
    let b = Bench::new();
    let lora = b.lora("lora");
    // Saved again, with fields that change nothing.
    edit(&lora.join("tokenizer.json"), |json| json["truncation"] = serde_json::json!({"max_length": 7}));
    edit(&lora.join("tokenizer_config.json"), |json| json["name_or_path"] = "elsewhere".into());
    let (same, said) = b.merged(&[&lora], "same", &[]);
    assert_eq!(said, "");
    assert_eq!(fs::read(same.join("tokenizer.json")).unwrap(), fs::read(b.base.join("tokenizer.json")).unwrap());

    set_template(&lora, "mine");
    fs::write(lora.join("special_tokens_map.json"), "{}").unwrap();
    let (folder, said) = b.merged(&[&lora], "folder", &[]);
    let expected = "lora: not those of the base: special_tokens_map.json, tokenizer_config.json; the result gets the \
                    adapter's tokenizer";
    assert!(said.contains(expected), "{said}");
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
        assert_eq!(fs::read(folder.join(file)).unwrap(), fs::read(lora.join(file)).unwrap(), "{file}");
    }
    let (gguf, _) = b.merged(&[&lora], "out.gguf", &[]);
    assert_eq!(key(&gguf, TEMPLATE).as_deref(), Some("mine"));
    let (gguf, said) = b.merged(&[&lora], "base.gguf", &["--tokenizer", "base"]);
    assert_ne!(key(&gguf, TEMPLATE).as_deref(), Some("mine"));
    assert!(!said.contains("tokenizer_config.json"), "{said}");
    let (gguf, _) = b.merged(&[&fixture("demo/lora")], "other.gguf", &["--tokenizer", text(&lora)]);
    assert_eq!(key(&gguf, TEMPLATE).as_deref(), Some("mine"));
    let (_, said) = b.merged(&[&lora], "lora-out", &["--to", "lora"]);
    assert_eq!(said, "", "a LoRA has no tokenizer");
}

/// Takes the template out of a tokenizer_config.json.
fn take_template(folder: &Path) -> serde_json::Value {
    let mut taken = serde_json::Value::Null;
    edit(&folder.join("tokenizer_config.json"), |json| {
        taken = json.as_object_mut().unwrap().remove("chat_template").unwrap_or_default();
    });
    taken
}

#[test]
fn the_bases_chat_template_stays_where_the_adapters_tokenizer_has_none() {
    let mut b = Bench::new();
    b.base = copy(&fixture("demo/base"), &b.at("base"));
    set_template(&b.base, "of the base");
    let lora = b.lora("lora");
    take_template(&lora);
    edit(&lora.join("tokenizer_config.json"), |json| json["padding_side"] = "left".into());
    let note = "lora: its tokenizer has no chat template: the base's is kept";
    let read = |file: PathBuf| serde_json::from_slice::<serde_json::Value>(&fs::read(file).unwrap()).unwrap();
    for options in [&[][..], &["--tokenizer", "adapter"]] {
        let (folder, said) = b.merged(&[&lora], "folder", options);
        assert!(said.contains(note), "{said}");
        let config = read(folder.join("tokenizer_config.json"));
        assert_eq!((&config["chat_template"], &config["padding_side"]), (&"of the base".into(), &"left".into()));
        let (gguf, _) = b.merged(&[&lora], "out.gguf", options);
        assert_eq!(key(&gguf, TEMPLATE).as_deref(), Some("of the base"));
    }
    // In a file of its own, also where the adapter's settings have null.
    take_template(&b.base);
    fs::write(b.base.join("chat_template.jinja"), "of a file").unwrap();
    edit(&lora.join("tokenizer_config.json"), |json| json["chat_template"] = serde_json::Value::Null);
    let (folder, said) = b.merged(&[&lora], "folder", &[]);
    assert!(said.contains(note), "{said}");
    assert_eq!(fs::read_to_string(folder.join("chat_template.jinja")).unwrap(), "of a file");
    assert_eq!(read(folder.join("tokenizer_config.json"))["padding_side"], "left");
    let (gguf, _) = b.merged(&[&lora], "out.gguf", &[]);
    assert_eq!(key(&gguf, TEMPLATE).as_deref(), Some("of a file"));
    // The adapter's own counts, in any of its places.
    for (name, content) in [("chat_template.jinja", "mine"), ("chat_template.json", r#"{"chat_template": "mine"}"#)] {
        take_template(&lora);
        fs::write(lora.join(name), content).unwrap();
        let (folder, said) = b.merged(&[&lora], "folder", &[]);
        assert!(!said.contains("has no chat template"), "{said}");
        assert_eq!(folder.join("chat_template.jinja").exists(), name == "chat_template.jinja");
        let (gguf, _) = b.merged(&[&lora], "out.gguf", &[]);
        assert_eq!(key(&gguf, TEMPLATE).as_deref(), Some("mine"));
        fs::remove_file(lora.join(name)).unwrap();
    }
}

#[test]
fn a_broken_tokenizer_is_called_one() {
    let b = Bench::new();
    let (one, other) = (b.lora("one"), b.lora("other"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        for lora in [&one, &other] {
            fs::copy(b.base.join("tokenizer.json"), lora.join("tokenizer.json")).unwrap();
            fs::write(lora.join(name), r#"{"model": {"#).unwrap();
        }
        for options in [&[][..], &["--tokenizer", "adapter"]] {
            let error = b.refused(INPUT, &[&one, &other], options);
            let expected = format!("{name}: expected a JSON object, found a text that breaks off in line 1");
            assert!(error.contains(&expected), "{error}");
            assert!(error.contains("--tokenizer base keeps the base's tokenizer"), "{error}");
        }
        b.merged(&[&one, &other], "of-base", &["--tokenizer", "base"]);
    }
}

#[test]
fn vocabularies_of_every_form_are_found() {
    let b = Bench::new();
    let lora = copy(&fixture("demo/lora"), &b.at("lora"));
    fs::write(lora.join("qwen.tiktoken"), (0..400).map(|rank| format!("YQ== {rank}\n")).collect::<String>()).unwrap();
    let (_, said) = b.merged(&[&lora], "out", &[]);
    assert!(said.contains("qwen.tiktoken; the base's are kept: 400 tokens for an embedding of 384 rows"), "{said}");
}

#[test]
fn the_bases_tokenizer_stays_where_the_adapters_is_in_doubt() {
    let b = Bench::new();
    let (one, other) = (b.lora("one"), b.lora("other"));
    set_template(&one, "one");
    set_template(&other, "other");
    let (_, said) = b.merged(&[&one, &other], "both", &[]);
    assert!(said.contains("the base's are kept: those of") && said.contains("other differ, too"), "{said}");
    let error = b.refused(USAGE, &[&one, &other], &["--tokenizer", "adapter"]);
    assert!(error.contains("expected adapters with one tokenizer, found others in"), "{error}");

    let large = b.lora("large");
    add_token(&large, 384);
    let (_, said) = b.merged(&[&large], "kept", &[]);
    assert!(said.contains("the base's are kept: 385 tokens for an embedding of 384 rows"), "{said}");
    let error = b.refused(INPUT, &[&large], &["--tokenizer", "adapter"]);
    assert!(error.contains("expected one that fits the model, found 385 tokens"), "{error}");

    let part = copy(&fixture("demo/lora"), &b.at("part"));
    fs::write(part.join("chat_template.jinja"), "mine").unwrap();
    let (folder, said) = b.merged(&[&part], "part-out", &[]);
    assert!(said.contains("chat_template.jinja; the base's are kept: the adapter has no vocabulary"), "{said}");
    assert!(!folder.join("chat_template.jinja").exists());
    let error = b.refused(USAGE, &[&part], &["--tokenizer", "adapter"]);
    assert!(error.contains("found none with a tokenizer"), "{error}");
    let error = b.refused(USAGE, &[&part], &["--tokenizer", text(&part)]);
    assert!(error.contains("a folder that has a tokenizer"), "{error}");
    let error = b.refused(USAGE, &[&part], &["--to", "lora", "--tokenizer", "adapter"]);
    assert!(error.contains("expected none, for a LoRA"), "{error}");

    let gguf = b.at("base.gguf");
    done(&["convert", text(&b.base), "-o", text(&gguf), "--quiet"]);
    let b = Bench { base: gguf, ..b };
    let (_, said) = b.merged(&[&one], "of.gguf", &[]);
    assert!(said.contains("the tokenizer in its folder is not read: the base is a GGUF"), "{said}");
    let error = b.refused(USAGE, &[&one], &["--tokenizer", "adapter"]);
    assert!(error.contains("expected base, where the base is a GGUF"), "{error}");
}

#[test]
fn weights_beside_an_adapter_are_named() {
    let b = Bench::new();
    let lora = b.lora("lora");
    fs::write(lora.join("non_lora_trainables.bin"), "weights").unwrap();
    let (_, said) = b.merged(&[&lora], "out", &[]);
    assert!(said.contains("weights beside the adapter, which are not merged: non_lora_trainables.bin"), "{said}");
}
