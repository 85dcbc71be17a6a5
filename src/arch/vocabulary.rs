//! The size of a model's vocabulary: the fields of config.json that give it, and the tensors with a row for each token.

use serde_json::Value;

use super::wrapper::text_config;
use super::{Config, Naming, Role};
use crate::checkpoint::TEXT_CONFIGS;
use crate::plan::PlannedTensor;

/// Fields with the number of rows of the embeddings.
const FIELDS: [&str; 2] = ["vocab_size", "padded_vocab_size"];

/// The number of rows that config.json says the embeddings have.
pub(crate) fn vocab_size(config: &Config) -> Option<usize> {
    let config = text_config(config);
    let size = FIELDS.iter().rev().find_map(|field| config.get(*field)?.as_u64());
    size.and_then(|size| usize::try_from(size).ok())
}

/// Sets the number of rows in config.json: in the text model's config where there is one, and wherever else it is.
pub(crate) fn put_vocab_size(config: &mut Config, rows: usize) {
    let mut is_put = false;
    for part in TEXT_CONFIGS {
        if let Some(text) = config.get_mut(part).and_then(Value::as_object_mut) {
            put(text, rows);
            // A class's default would be another number.
            text.insert("vocab_size".to_owned(), rows.into());
            is_put = true;
        }
    }
    if let Some(Value::Object(thinker)) = config.get_mut("thinker_config") {
        put_vocab_size(thinker, rows);
        is_put = true;
    }
    put(config, rows);
    if !is_put {
        config.insert("vocab_size".to_owned(), rows.into());
    }
}

/// Sets the fields that are there.
fn put(config: &mut Config, rows: usize) {
    for field in FIELDS {
        if let Some(size) = config.get_mut(field).filter(|size| size.is_number()) {
            *size = rows.into();
        }
    }
}

/// Whether a tensor has a row for each token: the embeddings, or the weight of the output head.
pub(crate) fn is_by_token(naming: Naming, tensor: &PlannedTensor) -> bool {
    let is_one = match naming.gguf_name(&tensor.name) {
        Some(name) => name == "token_embd.weight" || name == "output.weight",
        None => matches!(naming.role(&tensor.name), Some(Role::Embedding | Role::OutputHead)),
    };
    is_one && tensor.shape.len() == 2
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_size_is_set_wherever_it_is() {
        for (config, expected) in [
            (json!({"vocab_size": 4}), json!({"vocab_size": 7})),
            (json!({}), json!({"vocab_size": 7})),
            (json!({"text_config": {}}), json!({"text_config": {"vocab_size": 7}})),
            (
                json!({"vocab_size": 4, "text_config": {"vocab_size": 4}}),
                json!({"vocab_size": 7, "text_config": {"vocab_size": 7}}),
            ),
            (json!({"padded_vocab_size": 4}), json!({"padded_vocab_size": 7, "vocab_size": 7})),
        ] {
            let mut config = config.as_object().unwrap().clone();
            put_vocab_size(&mut config, 7);
            assert_eq!(Value::from(config.clone()), expected);
            if config.contains_key("vocab_size") {
                assert_eq!(vocab_size(&config), Some(7));
            }
        }
    }
}
