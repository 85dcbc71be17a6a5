//! The model card of a merged model, because the base's card describes another model.

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

#[cfg(test)]
mod tests {
    use super::*;

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
