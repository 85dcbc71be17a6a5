//! The model card of a merged model, because the base's card describes another model.

use std::path::Path;

use super::config::{MergeConfig, ModelName};

/// A README.md for a model merged from `base` and `others`, with the share of each. Its front
/// matter names the sources in the form that the hub reads.
pub fn card(base: &str, others: &[(&str, f64)]) -> String {
    // Every JSON string is a valid YAML string.
    let quoted = |name: &str| serde_json::Value::from(name).to_string();
    let mut names = vec![base];
    names.extend(others.iter().map(|(name, _)| *name).filter(|name| *name != base));
    let listed: String = names.iter().map(|name| format!("- {}\n", quoted(name))).collect();
    let shares: String = others
        .iter()
        .map(|(name, share)| match share {
            1.0 => format!("- `{name}`\n"),
            share => format!("- `{name}`, times {share}\n"),
        })
        .collect();
    format!(
        "---\nbase_model:\n{listed}base_model_relation: merge\ntags:\n- merge\n---\n\n# Merged model\n\n\
         `{base}`, merged by atombank with\n\n{shares}"
    )
}

/// A README.md for a model that a mergekit configuration describes, called `name`.
pub fn config_card(name: &str, config: &MergeConfig) -> String {
    let quoted = |name: &str| serde_json::Value::from(name).to_string();
    let models = config.models();
    let mut listed = String::new();
    for model in &models {
        for name in std::iter::once(model.path.as_str()).chain(model.lora.iter().map(|(path, _)| path.as_str())) {
            let line = format!("- {}\n", quoted(name));
            if can_be_on_the_hub(name) && !listed.contains(&line) {
                listed.push_str(&line);
            }
        }
    }
    let bases = if listed.is_empty() { "base_model: []\n".to_owned() } else { format!("base_model:\n{listed}") };
    let base = config.base_model();
    let with_base = base.map(|base| format!(", with {} as base", linked(base))).unwrap_or_default();
    let others = models.iter().filter(|model| Some(**model) != base);
    let others: String = others.map(|model| format!("- {}\n", linked(model))).collect();
    // A fence that is longer than any in the text.
    let longest = config.text().split(|c| c != '`').map(str::len).max().unwrap_or_default();
    let fence = "`".repeat(longest.max(2) + 1);
    let newline = if config.text().ends_with('\n') { "" } else { "\n" };
    format!(
        "---\n{bases}base_model_relation: merge\nlibrary_name: transformers\ntags:\n- mergekit\n- merge\n---\n\n# {name}\n\n\
         A merge of models, made by atombank from a configuration of [mergekit](https://github.com/arcee-ai/mergekit).\n\n\
         ## Method\n\n`{}`{with_base}.\n\n## Models\n\n{others}\n## Configuration\n\n{fence}yaml\n{}{newline}{fence}\n",
        config.method().name(),
        config.text(),
    )
}

/// Whether a name has the form `org/name` of the hub, and is no path here.
fn can_be_on_the_hub(name: &str) -> bool {
    let plain = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    name.split_once('/').is_some_and(|(org, name)| plain(org) && plain(name)) && !Path::new(name).exists()
}

/// A model's name, as a link where it is on the hub.
fn linked(model: &ModelName) -> String {
    let one = |path: &str| match can_be_on_the_hub(path) {
        true => format!("[{path}](https://huggingface.co/{path})"),
        false => format!("`{path}`"),
    };
    let adapter = model.lora.as_ref().map(|(path, _)| format!(" + {}", one(path)));
    one(&model.path) + &adapter.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_s_card_says_what_people_look_for() {
        let text =
            "merge_method: slerp\nbase_model: org/base\nmodels: [{model: org/base}, {model: ./local+org/lora}]\n";
        let config = MergeConfig::parse(Path::new("c.yml"), text.to_owned()).unwrap();
        let card = config_card("merged", &config);
        let front = "---\nbase_model:\n- \"org/base\"\n- \"org/lora\"\nbase_model_relation: merge\nlibrary_name: transformers\ntags:\n\
                     - mergekit\n- merge\n---\n\n# merged\n";
        assert!(card.starts_with(front), "{card}");
        let base = "`slerp`, with [org/base](https://huggingface.co/org/base) as base.";
        assert!(card.contains(base), "{card}");
        assert!(card.contains("- `./local` + [org/lora](https://huggingface.co/org/lora)\n"), "{card}");
        assert!(card.ends_with(&format!("```yaml\n{text}```\n")), "{card}");
    }

    #[test]
    fn a_card_says_what_the_model_was_made_of() {
        let card = card("org/base", &[("org/lora", 1.0), ("../it's: one", 0.5)]);
        assert!(
            card.starts_with(
                "---\nbase_model:\n- \"org/base\"\n- \"org/lora\"\n- \"../it's: one\"\nbase_model_relation"
            )
        );
        assert!(card.ends_with("merged by atombank with\n\n- `org/lora`\n- `../it's: one`, times 0.5\n"), "{card}");
    }
}
