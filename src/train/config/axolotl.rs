//! Reads the settings of axolotl, as far as they have a counterpart here.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Map, Value};

use super::file::of_yaml;
use crate::error::{Finding, IoContext, Result};

/// What a file of axolotl says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromAxolotl {
    /// A training file with the settings that have a counterpart.
    pub toml: String,
    /// The fields without one, each as `field: value`, or with a reason.
    pub left: Vec<String>,
    /// The fields that aren't given and have another default here, each with both defaults.
    pub defaults: Vec<String>,
}

/// Fields whose values are taken over, with the keys that they become.
const SAME: [(&str, &str); 31] = [
    ("base_model", "base"),
    ("output_dir", "output"),
    ("seed", "seed"),
    ("val_set_size", "data.eval_fraction"),
    ("sequence_len", "data.max_length"),
    ("lora_r", "adapter.r"),
    ("lora_alpha", "adapter.lora_alpha"),
    ("peft_use_rslora", "adapter.use_rslora"),
    ("peft_use_dora", "adapter.use_dora"),
    ("peft_init_lora_weights", "adapter.init_lora_weights"),
    ("peft_layers_to_transform", "adapter.layers_to_transform"),
    ("lora_dropout", "adapter.lora_dropout"),
    ("lora_target_modules", "adapter.target_modules"),
    ("max_steps", "training.steps"),
    ("num_epochs", "training.epochs"),
    ("micro_batch_size", "training.batch_size"),
    ("gradient_accumulation_steps", "training.gradient_accumulation"),
    ("group_by_length", "training.group_by_length"),
    ("learning_rate", "training.learning_rate"),
    ("loraplus_lr_ratio", "training.loraplus_lr_ratio"),
    ("warmup_steps", "training.warmup_steps"),
    ("warmup_ratio", "training.warmup_ratio"),
    ("weight_decay", "training.weight_decay"),
    ("max_grad_norm", "training.clip_norm"),
    ("eval_steps", "training.eval_every"),
    ("save_steps", "training.checkpoint_every"),
    ("save_total_limit", "training.keep_checkpoints"),
    ("early_stopping_patience", "training.patience"),
    ("load_best_model_at_end", "training.load_best_at_end"),
    ("gradient_checkpointing", "training.checkpoint_activations"),
    ("use_tensorboard", "training.metrics"),
];

/// Fields of [`SAME`] whose values are texts or lists.
const TEXTS: [&str; 5] =
    ["base_model", "output_dir", "lora_target_modules", "peft_init_lora_weights", "peft_layers_to_transform"];

/// Fields of [`SAME`] whose values are true or false.
const SWITCHES: [&str; 5] =
    ["peft_use_rslora", "peft_use_dora", "group_by_length", "load_best_model_at_end", "gradient_checkpointing"];

/// Fields with another default here, each with axolotl's, and other fields that say the same.
const DEFAULTS: [(&str, &str, &[&str]); 5] = [
    ("num_epochs", "axolotl's default is 1, here training.steps is 1000", &["max_steps"]),
    ("micro_batch_size", "axolotl's default is 1, here training.batch_size is 8", &[]),
    ("sequence_len", "axolotl's default is 512, here data.max_length is 2048", &[]),
    ("warmup_steps", "axolotl's default is 3% of the steps, at most 100, here 50", &["warmup_ratio"]),
    ("excess_length_strategy", "axolotl drops rows that are too long, here they are an error", &[]),
];

/// Fields that say nothing about what is learned: where axolotl logs, caches and computes.
const WITHOUT_EFFECT: [&str; 24] = [
    "base_model_config",
    "model_type",
    "tokenizer_type",
    "is_llama_derived_model",
    "strict",
    "dataset_prepared_path",
    "dataset_processes",
    "pad_to_sequence_len",
    "wandb_project",
    "wandb_entity",
    "wandb_watch",
    "wandb_name",
    "wandb_run_id",
    "wandb_log_model",
    "logging_steps",
    "flash_attention",
    "xformers_attention",
    "sdp_attention",
    "local_rank",
    "tf32",
    "save_safetensors",
    "debug",
    "deepspeed",
    "fsdp",
];

/// Ends of the names of files of rows.
const ROWS: [&str; 5] = [".jsonl", ".json", ".csv", ".parquet", ".gz"];

/// Whether a field of a set of rows says what is done here without it: forms of rows are told by their fields, the base's
/// template writes chats, and answers with their end tokens carry loss.
fn says_what_is_done(field: &str, value: &Value) -> bool {
    let text = value.as_str().unwrap_or_default();
    match field {
        "type" => ["alpaca", "chat_template", "sharegpt", "completion"].contains(&text),
        "ds_type" => ["json", "csv", "parquet"].contains(&text),
        "field_messages" => ["messages", "conversations"].contains(&text),
        "roles_to_train" => *value == serde_json::json!(["assistant"]) || *value == serde_json::json!(["gpt"]),
        "train_on_eos" => text == "turn",
        "split" => text == "train",
        _ => value.is_null(),
    }
}

/// The values of a field under which nothing is lost.
fn is_off(value: &Value) -> bool {
    crate::json::is_off(value) || value.as_f64() == Some(0.0)
}

/// Reads the file at `path`, which is axolotl's YAML, and makes a training file of it.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Format`] for a file that isn't YAML.
pub fn from_axolotl(path: &Path) -> Result<FromAxolotl> {
    let text = std::fs::read_to_string(path).at(path, "read")?;
    let Value::Object(fields) = of_yaml(path, &text)? else { return Ok(Made::default().finish()) };
    if !fields.contains_key("base_model") {
        let finding = Finding::new(path, "base_model").expected("the base model, in a file of axolotl");
        return Err(finding.found("none").format());
    }
    let mut made = Made { kind: "lora", ..Made::default() };
    for (name, value) in &fields {
        made.take(name, &unquoted(name, value), &fields);
    }
    let is_given = |name: &str| fields.get(name).is_some_and(|value| !value.is_null());
    if !is_given("adapter") {
        made.leave("adapter", &Value::Null, "all weights are trained there, and a LoRA here");
    }
    for (name, defaults, others) in DEFAULTS {
        if !is_given(name) && !others.iter().any(|other| is_given(other)) {
            made.defaults.push(format!("{name}: {defaults}"));
        }
    }
    Ok(made.finish())
}

/// A number that is written in quotes, as a number.
fn unquoted(name: &str, value: &Value) -> Value {
    let is_number = SAME.iter().any(|(same, _)| *same == name) && !TEXTS.contains(&name) && !SWITCHES.contains(&name);
    let number = value.as_str().filter(|_| is_number || name == MIN_RATIO).and_then(|text| {
        let whole = text.trim().parse::<u64>().ok().map(Value::from);
        whole.or_else(|| text.trim().parse::<f64>().ok().filter(|number| number.is_finite()).map(Value::from))
    });
    number.unwrap_or_else(|| value.clone())
}

/// The share of the learning rate at which a cosine ends.
const MIN_RATIO: &str = "cosine_min_lr_ratio";

/// A base model's name on the hub as `hf:org/name`; the path of a folder as it is.
fn base(name: &str) -> String {
    let is_name = |part: &str| !part.is_empty() && !part.starts_with(['.', '~']) && !part.contains('\\');
    match name.split_once('/') {
        Some((org, model)) if is_name(org) && is_name(model) && !model.contains('/') && !Path::new(name).exists() => {
            format!("hf:{name}")
        }
        _ => name.to_owned(),
    }
}

/// A training file in the making.
#[derive(Default)]
struct Made {
    kind: &'static str,
    top: String,
    tables: [String; 3],
    left: Vec<String>,
    defaults: Vec<String>,
}

const TABLES: [&str; 3] = ["data", "adapter", "training"];

impl Made {
    fn put(&mut self, key: &str, value: &Value) {
        let Some(toml) = to_toml(value) else { return self.leave(key, value, "") };
        match key.split_once('.') {
            Some((table, key)) => {
                let place = TABLES.iter().position(|name| *name == table).unwrap_or(2);
                let _ = writeln!(self.tables[place], "{key} = {toml}");
            }
            None => {
                let _ = writeln!(self.top, "{key} = {toml}");
            }
        }
    }

    fn leave(&mut self, name: &str, value: &Value, reason: &str) {
        let reason = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        self.left.push(format!("{name}: {value}{reason}"));
    }

    fn take(&mut self, name: &str, value: &Value, all: &Map<String, Value>) {
        // axolotl's examples list fields without a value.
        if value.is_null() || WITHOUT_EFFECT.contains(&name) {
            return;
        }
        let whole =
            value.as_u64().or_else(|| value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 0.0).map(|v| v as u64));
        match name {
            "base_model" if value.is_string() => {
                self.put("base", &base(value.as_str().unwrap_or_default()).into());
            }
            "adapter" if value == "lora" => {}
            "adapter" if value == "qlora" => {
                self.leave(name, value, "the base may have any type; nothing is quantized for training")
            }
            "load_in_4bit" | "load_in_8bit" if value == true => {
                self.leave(name, value, "quantize the base to a GGUF and train on that")
            }
            "datasets" | "test_datasets" => self.datasets(name, value),
            "lr_scheduler" => match value.as_str() {
                Some("cosine" | "linear" | "constant") => self.put("training.schedule", value),
                Some("constant_with_warmup") => self.put("training.schedule", &"constant".into()),
                Some("warmup_stable_decay") => self.put("training.schedule", &"wsd".into()),
                _ => self.leave(name, value, ""),
            },
            "optimizer" if value.as_str().is_some_and(|text| text.starts_with("adamw")) => {
                if value != "adamw_torch" {
                    self.leave(name, value, "AdamW with both moments in f32");
                }
            }
            "excess_length_strategy" => match value.as_str() {
                Some("truncate") => self.put("data.truncate", &"right".into()),
                Some("drop") => self.put("data.truncate", &"drop".into()),
                Some("raise") => self.put("data.truncate", &"error".into()),
                _ => self.leave(name, value, ""),
            },
            MIN_RATIO => {
                let rate = all.get("learning_rate").and_then(|rate| unquoted("learning_rate", rate).as_f64());
                let is_cosine =
                    all.get("lr_scheduler").is_none_or(|schedule| schedule.is_null() || schedule == "cosine");
                match (rate, value.as_f64()) {
                    (Some(rate), Some(ratio)) if is_cosine => {
                        self.put("training.min_learning_rate", &(rate * ratio).into());
                    }
                    _ => self.leave(name, value, "a share of learning_rate, for a cosine"),
                }
            }
            "num_epochs" if all.get("max_steps").is_some_and(|steps| steps.as_i64().is_some_and(|n| n > 0)) => {
                self.leave(name, value, "max_steps says how long the run is")
            }
            "num_epochs" | "early_stopping_patience" => match whole {
                Some(count) => {
                    self.put(SAME.iter().find(|(same, _)| *same == name).map_or(name, |(_, key)| key), &count.into())
                }
                None if name == "num_epochs" => {
                    self.leave(name, value, "a whole number here; training.steps is 1000 without it");
                }
                None => self.leave(name, value, "a whole number here"),
            },
            "max_steps" if value.as_i64().is_some_and(|steps| steps <= 0) => {}
            "warmup_ratio" if all.get("warmup_steps").is_some_and(|steps| !steps.is_null()) => {
                self.leave(name, value, "warmup_steps says how long the warm-up is")
            }
            "eval_steps" | "save_steps" if value.as_u64().is_none() => {
                self.leave(name, value, "a number of steps here")
            }
            "val_set_size" if value.as_f64().is_none_or(|share| !(0.0..1.0).contains(&share)) => {
                self.leave(name, value, "a share of the rows here")
            }
            "lora_target_modules" if !value.is_array() => self.leave(name, value, "a list of names here"),
            "lora_target_linear" if value == true && all.get("lora_target_modules").is_none_or(is_off) => {
                self.put("adapter.target_modules", &"all-linear".into())
            }
            "sample_packing" if value == true => self.put("training.packing", &true.into()),
            "train_on_inputs" if value == true => self.put("data.loss", &"all".into()),
            "chat_template" if value == "tokenizer_default" => {}
            "use_tensorboard" if value == true => {
                self.put("training.metrics", &Value::from(vec!["jsonl", "tensorboard"]))
            }
            "train_on_inputs"
            | "sample_packing"
            | "eval_sample_packing"
            | "lora_target_linear"
            | "load_in_4bit"
            | "load_in_8bit"
            | "use_tensorboard"
            | "lora_fan_in_fan_out"
                if is_off(value) => {}
            "bf16" | "fp16" | "float16" | "bfloat16" => {
                if !is_off(value) {
                    self.leave(name, value, "adapters are trained in f32");
                }
            }
            _ if SWITCHES.contains(&name) && !value.is_boolean() => self.leave(name, value, "true or false here"),
            _ => match SAME.iter().find(|(same, _)| *same == name) {
                Some(_) if !TEXTS.contains(&name) && !SWITCHES.contains(&name) && !value.is_number() => {
                    self.leave(name, value, "a number here");
                }
                Some((_, key)) => self.put(key, value),
                None => self.leave(name, value, ""),
            },
        }
    }

    /// Data in files of this machine: the first set, and others that name a file of rows.
    fn datasets(&mut self, name: &str, value: &Value) {
        let key = if name == "datasets" { "data.train" } else { "data.eval" };
        let sets = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        let mut paths = Vec::new();
        for (place, set) in sets.iter().enumerate() {
            let path = set.as_str().or_else(|| set.get("path").or_else(|| set.get("data_files"))?.as_str());
            match path.filter(|path| place == 0 || ROWS.iter().any(|end| path.ends_with(end))) {
                Some(path) => {
                    paths.push(path);
                    for (field, value) in set.as_object().into_iter().flatten() {
                        if field != "path" && !says_what_is_done(field, value) {
                            self.leave(&format!("{name}[{place}].{field}"), value, "");
                        }
                    }
                }
                None => self.leave(&format!("{name}[{place}]"), set, "a file of rows here"),
            }
        }
        match paths.as_slice() {
            [] => {}
            [path] => self.put(key, &Value::from(*path)),
            several => self.put(key, &Value::from(several)),
        }
    }

    fn finish(self) -> FromAxolotl {
        let mut toml = format!("kind = {:?}\n{}", self.kind, self.top);
        for (name, text) in TABLES.iter().zip(&self.tables).filter(|(_, text)| !text.is_empty()) {
            let _ = write!(toml, "\n[{name}]\n{text}");
        }
        if !self.left.is_empty() {
            toml.push_str("\n# Without a counterpart:\n");
            self.left.iter().for_each(|line| {
                let _ = writeln!(toml, "#   {}", line.replace(['\n', '\r'], " "));
            });
        }
        if !self.defaults.is_empty() {
            toml.push_str("\n# Not given, with another default here:\n");
            self.defaults.iter().for_each(|line| {
                let _ = writeln!(toml, "#   {line}");
            });
        }
        FromAxolotl { toml, left: self.left, defaults: self.defaults }
    }
}

/// The value as TOML; `None` for objects.
fn to_toml(value: &Value) -> Option<String> {
    match value {
        Value::Array(items) => {
            let items: Option<Vec<String>> = items.iter().map(to_toml).collect();
            Some(format!("[{}]", items?.join(", ")))
        }
        Value::Object(_) | Value::Null => None,
        // A text of JSON is one of TOML, with the same escapes.
        Value::Bool(_) | Value::Number(_) | Value::String(_) => Some(value.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::TrainConfig;
    use super::*;

    const FILE: &str = "
base_model: org/model
model_type: AutoModelForCausalLM
load_in_8bit: true
datasets:
  - path: data/train.jsonl
    type: alpaca
  - path: org/other
  - path: data/more.jsonl
    type: chat_template
    roles_to_train: [assistant, user]
train_on_inputs: true
val_set_size: 0.05
output_dir: ./outputs/out
adapter: lora
lora_model_dir:
sequence_len: 4096
sample_packing: true
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 2e-4
bf16: auto
fp16:
gradient_checkpointing: true
warmup_steps: 10
evals_per_epoch: 4
weight_decay: 0.0
special_tokens:
  pad_token: <|end|>
";

    #[test]
    fn numbers_in_quotes_other_names_and_other_defaults_are_taken_over_or_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("axolotl.yml");
        let made = |more: &str| {
            let datasets = "datasets:\n  - t.jsonl\n  - {path: u.jsonl}\noutput_dir: o\n";
            std::fs::write(&path, format!("base_model: {:?}\n{datasets}{more}", dir.path())).unwrap();
            let made = from_axolotl(&path).unwrap();
            let file = dir.path().join("run.toml");
            std::fs::write(&file, &made.toml).unwrap();
            (TrainConfig::open(&file, &[]).unwrap(), made)
        };
        let (config, full) = made("learning_rate: \"2e-4\"\nmicro_batch_size: \"2\"\nnum_epochs: 0.5\n");
        assert_eq!(config.base, dir.path());
        assert_eq!((config.training.learning_rate, config.training.batch_size), (2e-4, 2));
        assert_eq!(config.data.train.0.len(), 2);
        let expected =
            ["num_epochs: 0.5 (a whole number here; training.steps is 1000 without it)", "adapter: null (all"];
        assert!(full.left.len() == 2 && full.left[0] == expected[0] && full.left[1].starts_with(expected[1]));
        let names = |made: &FromAxolotl| -> Vec<String> {
            made.defaults.iter().filter_map(|line| Some(line.split_once(": ")?.0.to_owned())).collect()
        };
        assert_eq!(names(&full), ["sequence_len", "warmup_steps", "excess_length_strategy"]);
        let cosine = "adapter: lora\nexcess_length_strategy: truncate\nlearning_rate: 0.01\ncosine_min_lr_ratio: 0.1\n\
                      warmup_ratio: 0.1\nmax_steps: 5\ngradient_checkpointing: offload\nsave_total_limit: all\n";
        let (config, made) = made(cosine);
        assert_eq!((config.data.truncate, config.training.min_learning_rate), (super::super::Truncate::Right, 0.001));
        assert_eq!(names(&made), ["micro_batch_size", "sequence_len"]);
        assert_eq!(
            made.left,
            ["gradient_checkpointing: \"offload\" (true or false here)", "save_total_limit: \"all\" (a number here)"]
        );
        for (name, expected) in [("org/m", "hf:org/m"), ("./m", "./m"), ("a/b/c", "a/b/c"), ("/m", "/m"), ("m", "m")] {
            assert_eq!(base(name), expected);
        }
        assert_eq!(base("src/train"), "src/train");
    }

    #[test]
    fn fields_with_a_counterpart_are_read_and_others_listed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("axolotl.yml");
        std::fs::write(&path, FILE).unwrap();
        let made = from_axolotl(&path).unwrap();
        let names: Vec<&str> = made.left.iter().map(|line| line.split(':').next().unwrap()).collect();
        let expected = ["load_in_8bit", "datasets[1]", "datasets[2].roles_to_train", "optimizer"];
        assert_eq!(names, [&expected[..], &["bf16", "evals_per_epoch", "special_tokens"]].concat());
        let file = dir.path().join("run.toml");
        std::fs::write(&file, &made.toml).unwrap();
        let config = TrainConfig::open(&file, &[]).unwrap();
        assert_eq!(config.base, Path::new("hf:org/model"));
        assert_eq!((config.adapter.r, config.adapter.lora_alpha), (32, 16.0));
        assert_eq!((config.training.epochs, config.training.learning_rate), (4, 2e-4));
        assert_eq!((config.training.batch_size, config.training.gradient_accumulation), (2, 4));
        assert_eq!(
            config.data.train.0.iter().map(|source| &source.path).collect::<Vec<_>>(),
            ["data/train.jsonl", "data/more.jsonl"].map(Path::new)
        );
        assert_eq!(config.data.loss, Some(super::super::Loss::All));
        assert!(config.training.packing);
        assert!(
            config.adapter.lora_dropout == 0.05
                && config.training.checkpoint_activations
                && config.data.eval_fraction == 0.05
        );
        assert_eq!(made.defaults.len(), 1, "{:?}", made.defaults);
        assert!(made.defaults[0].starts_with("excess_length_strategy: axolotl drops"));
        std::fs::write(&path, "a: b\n").unwrap();
        let error = from_axolotl(&path).unwrap_err().to_string();
        assert!(error.contains("base_model: expected the base model, in a file of axolotl, found none"), "{error}");
    }
}
