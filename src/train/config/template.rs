//! The commented training file that `atombank train --init` writes.

/// A training file with every key, its meaning and its default.
pub const TEMPLATE: &str = include_str!("template.toml");

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::file::KEYS;
    use super::super::tests::open;
    use super::*;
    use crate::train::TrainConfig;

    /// Keys whose values in the template are examples, because they have no default.
    const EXAMPLES: [&str; 14] = [
        "from",
        "instructions",
        "eval",
        "chat_template",
        "loss",
        "instruction_field",
        "num_atoms",
        "top_k",
        "key_dim",
        "descriptor_dim",
        "layers_to_transform",
        "trainable_token_indices",
        "router_learning_rate",
        "max_memory",
    ];

    /// Other names of keys, which the template doesn't list.
    const ALIASES: [&str; 12] = [
        "num_epochs",
        "num_train_epochs",
        "gradient_accumulation_steps",
        "loraplus_ratio",
        "lr_scheduler",
        "max_grad_norm",
        "early_stopping_patience",
        "early_stopping_threshold",
        "load_best_model_at_end",
        "save_total_limit",
        "gradient_checkpointing",
        "",
    ];

    /// The template with the lines "# key = value" of keys for which `wanted` holds as settings.
    fn template(wanted: impl Fn(&str) -> bool) -> String {
        let line = |line: &str| match line.strip_prefix("# ").and_then(|setting| setting.split_once(" = ")) {
            Some((key, value)) if !key.contains(' ') && wanted(key) => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        };
        TEMPLATE.lines().map(line).collect()
    }

    fn defaults(text: &str) -> TrainConfig {
        let config = open(text, &[]).unwrap();
        TrainConfig { file: Default::default(), ..config }
    }

    #[test]
    fn the_template_is_a_file_of_defaults() {
        let least = "base = 'model'\noutput = 'runs/adapter'\n[data]\ntrain = 'train.jsonl'\n";
        assert_eq!(defaults(TEMPLATE), defaults(least));
        // Of two keys that exclude each other, one at a time.
        for left_out in [
            ["epochs", "batch_tokens", "warmup_ratio", "decay_steps"],
            ["steps", "batch_size", "warmup_steps", "decay_ratio"],
        ] {
            let text = template(|key| !EXAMPLES.contains(&key) && !left_out.contains(&key));
            assert_eq!(defaults(&text), defaults(least));
        }
    }

    #[test]
    fn the_template_and_the_docs_have_every_key() {
        let docs = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/training.md")).unwrap();
        let table: toml::Table = template(|_| true).parse().unwrap();
        for (name, keys) in KEYS {
            let of_template = match name {
                "" => &table,
                name => table[name].as_table().unwrap(),
            };
            let listed: BTreeSet<&str> = of_template.keys().map(String::as_str).collect();
            let known: Vec<String> = keys();
            assert!(known.len() > 2, "{name}: serde names the keys");
            let known: BTreeSet<&str> = known.iter().map(String::as_str).filter(|key| !ALIASES.contains(key)).collect();
            assert_eq!(listed, known, "[{name}] of the template, and the settings");
            for key in known.iter().filter(|key| !["data", "adapter", "training"].contains(*key)) {
                let row = docs.lines().any(|line| line.starts_with('|') && line.contains(&format!("`{key}`")));
                assert!(row, "docs/training.md has a row for {key}");
            }
        }
    }
}
