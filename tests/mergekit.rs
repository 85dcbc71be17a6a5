//! Tests `atombank merge --config`: configurations of mergekit give mergekit's tensors, and mistakes are one line.

#[path = "common/program.rs"]
mod program;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use atombank::formats::gguf::GgufModel;
use atombank::formats::safetensors::SafetensorsFile;
use atombank::plan::{Plan, PlannedTensor};
use atombank::source::Source;
use program::{INPUT, USAGE, copy, done, fixture, refused_leaving, text};
use serde_json::Value;

/// The largest difference of a value, relative to the largest value in its tensor.
const NEAR: f32 = 1e-6;

/// A tensor's type and values.
type Tensor = (String, Vec<f32>);

/// The models of fixtures/mergekit, and room for what is made of them.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes a configuration in which `{NAME}` stands for the path of a model.
    fn config(&self, name: &str, yaml: &str) -> PathBuf {
        let mut yaml = yaml.to_owned();
        for model in ["base", "tied", "a", "b"] {
            yaml = yaml.replace(&format!("{{{model}}}"), text(&fixture("mergekit").join(model)));
        }
        let file = self.at(name);
        fs::write(&file, yaml).unwrap();
        file
    }

    fn merge(&self, name: &str, yaml: &str, options: &[&str]) -> PathBuf {
        let (file, out) = (self.config(&format!("{name}.yml"), yaml), self.at(name));
        done(&[&["merge", "--config", text(&file), "-o", text(&out), "--quiet"], options].concat());
        out
    }

    /// The error of a configuration, which must be one line; nothing may be written.
    #[track_caller]
    fn refusal(&self, exit: i32, yaml: &str, options: &[&str]) -> String {
        let file = self.config("wrong.yml", yaml);
        let out = self.at("never");
        refused_leaving(
            exit,
            self.dir.path(),
            &[&["merge", "--config", text(&file), "-o", text(&out)], options].concat(),
        )
    }
}

fn read(file: &Path) -> BTreeMap<String, Tensor> {
    let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(file).unwrap());
    let tensors = Plan::taking(&source).tensors;
    tensors.iter().map(|tensor| (tensor.name.clone(), (tensor.dtype.to_string(), tensor.read().unwrap()))).collect()
}

fn config_json(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

#[test]
fn configurations_give_mergekits_tensors() {
    let b = Bench::new();
    let cases: BTreeMap<String, Value> =
        serde_json::from_slice(&fs::read(fixture("mergekit/cases.json")).unwrap()).unwrap();
    let expected = read(&fixture("mergekit/merged.safetensors"));
    assert!(cases.len() > 8);
    for (name, case) in cases {
        let yaml = case["yaml"].as_str().unwrap();
        let out = b.merge(&name, yaml, &["--seed", &case["seed"].to_string()]);
        let found = read(&out.join("model.safetensors"));
        let of_case = |(full, tensor): (&String, &Tensor)| {
            let (case, own) = full.split_once('/')?;
            (case == name).then(|| (own.to_owned(), tensor.clone()))
        };
        let expected: BTreeMap<String, Tensor> = expected.iter().filter_map(of_case).collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
        for (tensor, (dtype, values)) in &expected {
            let (own_type, own) = &found[tensor];
            assert_eq!(own_type, dtype, "{name}: {tensor}");
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            match case["exact"].as_bool().unwrap() {
                true => assert_eq!(bits(own), bits(values), "{name}: {tensor}"),
                false => {
                    let largest = values.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
                    let far = own.iter().zip(values).fold(0.0f32, |far, (a, b)| far.max((a - b).abs()));
                    assert!(far <= NEAR * largest, "{name}: {tensor}: {far}");
                }
            }
        }
        let config = config_json(&out);
        assert_eq!(config["num_hidden_layers"], case["layers"], "{name}");
        let given = fs::read_to_string(b.at(&format!("{name}.yml"))).unwrap();
        assert_eq!(fs::read_to_string(out.join("mergekit_config.yml")).unwrap(), given);
        assert!(fs::read_to_string(out.join("README.md")).unwrap().contains("- mergekit\n- merge\n"));
    }
}

#[test]
fn a_head_that_one_model_has_by_itself_is_no_longer_tied() {
    let b = Bench::new();
    let yaml = "merge_method: linear\nmodels:\n- model: {tied}\n- model: {a}\nparameters: {weight: 1}\n";
    let out = b.merge("untied", yaml, &[]);
    assert_eq!(config_json(&fixture("mergekit/tied"))["tie_word_embeddings"], true);
    assert_eq!(config_json(&out)["tie_word_embeddings"], false);
    let yaml = "merge_method: linear\nmodels:\n- model: {tied}\nparameters: {weight: 1}\n";
    let alone = b.merge("alone", yaml, &[]);
    assert!(!read(&alone.join("model.safetensors")).contains_key("lm_head.weight"));
}

#[test]
fn a_slice_may_have_no_layers() {
    let b = Bench::new();
    let slices = |empty: &str| {
        format!(
            "slices:\n- sources: [{{model: {{a}}, layer_range: [0, 1]}}]\n{empty}- sources: [{{model: {{b}}, layer_range: \
             [1, 2]}}]\nmerge_method: passthrough\n"
        )
    };
    let without = b.merge("without", &slices(""), &[]);
    let with = b.merge("with", &slices("- sources: [{model: {b}, layer_range: [1, 1]}]\n"), &[]);
    assert_eq!(config_json(&with)["num_hidden_layers"], 2);
    let [without, with] = [without, with].map(|out| read(&out.join("model.safetensors")));
    assert_eq!(without, with);
}

#[test]
fn a_merge_of_models_keeps_the_configuration_that_says_the_same() {
    let b = Bench::new();
    let model = |name: &str| text(&fixture("mergekit").join(name)).to_owned();
    let (base, x, y) = (model("base"), format!("{}=0.5", model("a")), format!("{}=-0.25", model("b")));
    let plain = [model("a"), model("b")];
    let cases: [(&str, Vec<&str>, &[&str]); 7] = [
        ("ties", vec![&x, &y], &["--method", "ties", "--density", "0.4,0.8", "--lambda", "1.5"]),
        ("dare", vec![&x, &y], &["--method", "dare_ties", "--density", "0.4", "--seed", "9"]),
        ("linear", vec![&x, &y], &["--method", "linear", "--normalize", "false", "--weights", "mlp.*=0.3,0.1"]),
        ("slerp", vec![&plain[0]], &["--method", "slerp", "--t", "0.3"]),
        ("nuslerp", vec![&x, &plain[1]], &["--method", "nuslerp", "--nuslerp-flatten", "false"]),
        ("stock", vec![&plain[0], &plain[1]], &["--method", "model_stock", "--filter-wise"]),
        ("typed", vec![&x, &y], &["--method", "task_arithmetic", "--type", "f16"]),
    ];
    for (name, others, options) in cases {
        let first = b.at(&format!("{name}-first"));
        done(&[&["merge", &base], &others[..], &["-o", text(&first), "--quiet"], options].concat());
        let config = first.join("mergekit_config.yml");
        let again = b.at(&format!("{name}-again"));
        done(&["merge", "--config", text(&config), "-o", text(&again), "--quiet"]);
        let bytes = |folder: &Path| fs::read(folder.join("model.safetensors")).unwrap();
        assert_eq!(bytes(&first), bytes(&again), "{name}: {}", fs::read_to_string(&config).unwrap());
        let card = fs::read_to_string(first.join("README.md")).unwrap();
        assert!(card.contains(&fs::read_to_string(&config).unwrap()), "{card}");
    }
}

#[test]
fn an_adapter_is_merged_into_its_model_first() {
    let b = Bench::new();
    let yaml = "merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n- model: {a}+ADAPTER\n  parameters: {weight: 0.5}\n\
                dtype: float32\n";
    let adapter = fixture("mergekit/lora");
    let out = b.merge("one", &yaml.replace("ADAPTER", text(&adapter)), &[]);
    let merged = b.at("merged");
    done(&["merge", text(&fixture("mergekit/a")), text(&adapter), "-o", text(&merged), "--quiet"]);
    let two = b.merge("two", &yaml.replace("{a}+ADAPTER", text(&merged)), &[]);
    assert_eq!(read(&out.join("model.safetensors")), read(&two.join("model.safetensors")));
}

#[test]
fn tensors_alone_and_ggufs_are_models_too() {
    let b = Bench::new();
    let model = fixture("convert/llama/model");
    let (gguf, same) = (b.at("model.gguf"), copy(&model, &b.at("same")));
    done(&["convert", text(&model), "-o", text(&gguf), "--quiet"]);
    let yaml = |other: &Path| {
        let models = format!("- model: {}\n- model: {}\n", text(&model), text(other));
        format!("merge_method: linear\nmodels:\n{models}parameters: {{weight: 1}}\ndtype: float32\n")
    };
    let of_gguf = b.merge("of-gguf", &yaml(&gguf), &[]);
    let of_folder = b.merge("of-folder", &yaml(&same), &[]);
    assert_eq!(read(&of_gguf.join("model.safetensors")), read(&of_folder.join("model.safetensors")));
    let a = fixture("mergekit/a");
    let alone = text(&a.join("model.safetensors")).to_owned();
    let yaml = format!("merge_method: linear\nmodels:\n- model: {alone}\nparameters: {{weight: 3}}\ndtype: float32\n");
    let file = b.config("alone.yml", &yaml);
    let out = b.at("alone.safetensors");
    done(&["merge", "--config", text(&file), "-o", text(&out), "--quiet"]);
    assert_eq!(read(&out).len(), read(&a.join("model.safetensors")).len());
}

#[test]
fn a_gguf_with_the_first_models_layers_keeps_its_keys() {
    let b = Bench::new();
    let model = fixture("convert/llama/model");
    let (gguf, same) = (b.at("model.gguf"), copy(&model, &b.at("same")));
    done(&["convert", text(&model), "-o", text(&gguf), "--type", "f32", "--quiet"]);
    let yaml = |first: &Path| {
        let source =
            |model: &Path, weight: f64| format!("- {{model: {}, parameters: {{weight: {weight}}}}}\n", text(model));
        let models = source(first, 0.3) + &source(&same, 0.5);
        format!("merge_method: linear\nmodels:\n{models}parameters: {{normalize: false}}\ndtype: float32\n")
    };
    let of_folder = b.merge("of-folder", &yaml(&model), &[]);
    let expected = b.at("expected.gguf");
    done(&["convert", text(&of_folder), "-o", text(&expected), "--type", "f32", "--quiet"]);
    let merged = |name: &str, options: &[&str]| {
        let (file, out) = (b.config(&format!("{name}.yml"), &yaml(&gguf)), b.at(&format!("{name}.gguf")));
        done(&[&["merge", "--config", text(&file), "-o", text(&out), "--quiet"], options].concat());
        GgufModel::open(&out).unwrap()
    };
    let (found, expected) = (merged("of-gguf", &[]), GgufModel::open(&expected).unwrap());
    let tensors = |model: &GgufModel| -> BTreeMap<String, Tensor> {
        let read = |t: &PlannedTensor| (t.name.clone(), (t.dtype.to_string(), t.read().unwrap()));
        model.tensors().iter().cloned().collect::<Plan>().tensors.iter().map(read).collect()
    };
    assert_eq!(tensors(&found), tensors(&expected));
    let original = GgufModel::open(&gguf).unwrap();
    assert_ne!(tensors(&found), tensors(&original));
    assert!(found.metadata().iter().eq(original.metadata().iter()));
    let quantized = merged("quantized", &["--type", "Q4_K_M"]);
    assert!(quantized.tensors().iter().any(|tensor| tensor.info().dtype.to_string() == "Q4_K"));
    let cut =
        format!("merge_method: passthrough\nslices:\n- sources: [{{model: {}, layer_range: [0, 1]}}]\n", text(&gguf));
    let (file, out) = (b.config("cut.yml", &cut), b.at("never.gguf"));
    let line = refused_leaving(INPUT, b.dir.path(), &["merge", "--config", text(&file), "-o", text(&out)]);
    assert!(line.contains("for a GGUF of other layers or tokens, found a GGUF; write a folder"), "{line}");
}

#[test]
fn a_chat_template_is_put_into_the_result() {
    let b = Bench::new();
    let tokenizer = fixture("convert/llama/model");
    let with = |name: &str, template: &str| {
        let folder = copy(&fixture("mergekit/a"), &b.at(name));
        fs::copy(tokenizer.join("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
        fs::write(folder.join("tokenizer_config.json"), "{\"chat_template\": \"old\", \"model_max_length\": 7}")
            .unwrap();
        fs::write(folder.join("chat_template.jinja"), template).unwrap();
        text(&folder).to_owned()
    };
    let (x, y, z) = (with("x", "one"), with("y", "two"), with("z", "two\n"));
    let yaml = |choice: &str| {
        format!(
            "merge_method: karcher\nmodels: [{{model: {x}}}, {{model: {y}}}, {{model: {z}}}]\nchat_template: {choice}\n"
        )
    };
    let out = b.merge("auto", &yaml("auto"), &[]);
    assert_eq!(fs::read_to_string(out.join("chat_template.jinja")).unwrap(), "two");
    assert_eq!(
        fs::read_to_string(out.join("tokenizer_config.json")).unwrap().trim(),
        "{\n  \"model_max_length\": 7\n}"
    );
    let out = b.merge("named", &yaml("chatml"), &[]);
    assert!(fs::read_to_string(out.join("chat_template.jinja")).unwrap().contains("<|im_start|>"));
    let wrong = b.refusal(INPUT, &yaml("chatlm"), &[]);
    assert!(wrong.contains("chat_template: expected auto, a template, or one of alpaca, chatml"), "{wrong}");
}

#[test]
fn mistakes_are_one_line() {
    let b = Bench::new();
    let models = "models:\n- model: {a}\n- model: {b}\n";
    for (yaml, expected) in [
        (format!("{models}merge_method: linear\n"), "parameters.weight: expected a value for linear, for tensor"),
        (format!("{models}merge_method: slerp\nbase_model: {{a}}\n"), "parameters.t: expected a value for slerp"),
        (format!("{models}merge_method: ties\n"), "base_model: expected a model for ties, found none"),
        (
            format!("{models}merge_method: slerp\nbase_model: {{base}}\nparameters: {{t: 0.5}}\n"),
            "models: expected 2 models, the base among them, for slerp, found 3",
        ),
        (
            format!("{models}merge_method: linear\nparameter: {{weight: 1}}\n"),
            "line 5: parameter: expected one of merge_method, base_model, parameters",
        ),
        (
            "slices:\n- sources:\n  - {model: {a}, layer_range: [2, 9]}\nmerge_method: passthrough\n".to_owned(),
            "line 3: slices[0].sources[0].layer_range: expected layers of ",
        ),
        (
            "slices:\n- sources:\n  - {model: {a}, layer_range: [0, 2]}\n  - {model: {b}, layer_range: [0, 3]}\n\
             merge_method: linear\nparameters: {weight: 1}\n"
                .to_owned(),
            "line 2: slices[0]: expected as many layers of every model: 2 of ",
        ),
        (format!("{models}- model: {{a}}\nmerge_method: karcher\n"), "models: expected each model once, found"),
        (
            format!("{models}merge_method: della\nbase_model: {{base}}\nparameters: {{weight: 1, density: 0.9}}\n"),
            "epsilon: expected less than 0.09",
        ),
        (format!("{models}merge_method: karcher\nbase_model: /no/such/model\n"), "/no/such/model: "),
    ] {
        let refused = b.refusal(INPUT, &yaml, &[]);
        assert!(refused.contains(expected), "{refused}");
    }
    let plain = format!("{models}merge_method: karcher\n");
    let refused = b.refusal(USAGE, &plain, &["--density", "0.5"]);
    assert!(refused.contains("--config: expected the method and its parameters in the file"), "{refused}");
    let refused = b.refusal(USAGE, &plain, &["--to", "lora"]);
    assert!(refused.contains("--to: expected a model's folder, a GGUF or tensors"), "{refused}");
}
