//! Which layers of a Gemma have an attention window, and which ones llama.cpp gives a window.
//!
//! Reference: llama.cpp `conversion/gemma.py` and `src/models/gemma3.cpp`; transformers
//! `models/gemma3/configuration_gemma3.py`.

use serde_json::Value;

use super::KeyGroup;
use super::params::Params;
use crate::error::Result;

/// In llama.cpp, each layer of this number has no window.
const EVERY: usize = 6;

/// For every layer, whether it has a window: by `layer_types`, or by the pattern, in which every
/// n-th layer has none.
fn local(params: &Params) -> Result<Vec<bool>> {
    let layers = params.layers()?;
    if let Some(Value::Array(types)) = params.get(&["layer_types"])
        && types.len() == layers
    {
        return Ok(types.iter().map(|kind| kind == "sliding_attention").collect());
    }
    let every = params.whole(&["sliding_window_pattern", "_sliding_window_pattern"])?.unwrap_or(1);
    Ok((1..=layers).map(|number| !number.is_multiple_of(every)).collect())
}

/// Whether the GGUF gets a window. If it does, llama.cpp gives it to some of the layers.
pub(crate) fn has_window(params: &Params) -> Result<bool> {
    let everything = params.whole(&["sliding_window_pattern"])? == Some(1);
    Ok(!everything && local(params)?.contains(&true))
}

/// Notes layers that have a window in llama.cpp but not in the config, or the other way round.
///
/// # Errors
/// Those of reading the config.
pub(crate) fn check(params: &Params, notes: &mut Vec<String>) -> Result<()> {
    if !params.family.writes(KeyGroup::LocalWindow) {
        return Ok(());
    }
    let (every, Some(window)) = (EVERY, params.whole(&["sliding_window"])?) else { return Ok(()) };
    if params.whole(&["max_position_embeddings"])?.is_some_and(|context| context <= window) {
        return Ok(());
    }
    let written = has_window(params)?;
    let differs = |(layer, local): (usize, bool)| {
        let there = written && !(layer + 1).is_multiple_of(every);
        (there != local).then(|| layer.to_string())
    };
    let differing: Vec<String> = local(params)?.into_iter().enumerate().filter_map(differs).collect();
    if !differing.is_empty() {
        let expected = match written {
            true => format!("a window in all layers but each {every}th"),
            false => "no window, as sliding_window_pattern says".to_owned(),
        };
        let finding = params.finding("layer_types").expected(expected);
        let finding = finding.found(format_args!("otherwise in layers {}", differing.join(", ")));
        notes.push(format!("{finding}; GGUF has no key for it, so llama.cpp computes as if it were as expected"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::{Value, json};

    use super::*;

    /// Whether a window is written, and the notes.
    fn gemma3(change: Value) -> (bool, String) {
        let mut config = json!({"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 7, "sliding_window": 16});
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let mut notes = Vec::new();
        let params = Params::read(Path::new("m"), config.as_object().unwrap(), &mut notes).unwrap().unwrap();
        check(&params, &mut notes).unwrap();
        (has_window(&params).unwrap(), notes.join("\n"))
    }

    #[test]
    fn a_model_that_sees_everything_has_no_window() {
        let (all, none) = (json!(vec!["full_attention"; 7]), json!(vec!["sliding_attention"; 7]));
        assert_eq!(gemma3(json!({})), (true, String::new()));
        assert_eq!(gemma3(json!({"sliding_window_pattern": 1})), (false, String::new()));
        assert_eq!(gemma3(json!({"_sliding_window_pattern": 1})), (false, String::new()));
        assert_eq!(gemma3(json!({"layer_types": all})), (false, String::new()));
        let note = |expected: &str, layers: &str| {
            format!(
                "m/config.json: layer_types: expected {expected}, found otherwise in layers {layers}; GGUF has no key for \
                 it, so llama.cpp computes as if it were as expected"
            )
        };
        let windows = "a window in all layers but each 6th";
        assert_eq!(gemma3(json!({"layer_types": none})), (true, note(windows, "5")));
        assert_eq!(gemma3(json!({"sliding_window_pattern": 3})), (true, note(windows, "2")));
        assert_eq!(gemma3(json!({"sliding_window_pattern": 3, "max_position_embeddings": 16})), (true, String::new()));
        let contradiction = json!({"layer_types": none, "sliding_window_pattern": 1});
        let no_window = "no window, as sliding_window_pattern says";
        assert_eq!(gemma3(contradiction), (false, note(no_window, "0, 1, 2, 3, 4, 5, 6")));
    }
}
