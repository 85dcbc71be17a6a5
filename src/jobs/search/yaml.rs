//! The best merge of whole models as a file of mergekit.

use std::fmt::Write;

use super::super::MergeSettings;
use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::merge::combine::ModelMethod;

/// A YAML file that makes the same merge.
pub(super) fn merge_file(settings: &MergeSettings) -> Result<String> {
    let combine = &settings.combine;
    let name = combine.method.as_deref().unwrap_or_default();
    let method: ModelMethod = name.parse()?;
    // Every JSON string is a YAML string.
    let quoted = |path: &std::path::Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let mut text = format!("merge_method: {name}\n");
    if method.needs_base() || method == ModelMethod::Slerp || combine.nuslerp_updates {
        let _ = writeln!(text, "base_model: {}", quoted(&settings.base));
    }
    text.push_str("models:\n");
    if method == ModelMethod::Slerp {
        let _ = writeln!(text, "  - model: {}", quoted(&settings.base));
    }
    for (number, other) in settings.others.iter().enumerate() {
        let _ = writeln!(text, "  - model: {}", quoted(&other.path));
        let density = combine.density.get(number).or(combine.density.first());
        let own = [("weight", Some(other.weight).filter(|_| method.takes_weights())), ("density", density.copied())];
        if own.iter().any(|(_, value)| value.is_some()) {
            text.push_str("    parameters:\n");
        }
        for (name, value) in own.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            let _ = writeln!(text, "      {name}: {value:?}");
        }
    }
    let numbers = [
        ("t", combine.t),
        ("lambda", combine.lambda),
        ("gamma", combine.gamma),
        ("epsilon", combine.epsilon),
        ("select_topk", combine.select_topk),
    ];
    let flags = [("normalize", combine.normalize), ("rescale", combine.rescale)];
    let numbers = numbers.into_iter().filter_map(|(name, value)| Some(format!("  {name}: {:?}\n", value?)));
    let flags = flags.into_iter().filter_map(|(name, value)| Some(format!("  {name}: {}\n", value?)));
    let whole: String = numbers.chain(flags).collect();
    if !whole.is_empty() {
        let _ = write!(text, "parameters:\n{whole}");
    }
    // As a merge without a file: computed in float32, and rounded to the base's type once.
    text.push_str("dtype: float32\n");
    if let Some(dtype) = short_type(settings)? {
        let _ = writeln!(text, "out_dtype: {dtype}");
    }
    Ok(text)
}

/// The base's type, if it has 16 bits.
fn short_type(settings: &MergeSettings) -> Result<Option<String>> {
    if !settings.base.is_dir() {
        return Ok(None);
    }
    let config = Checkpoint::without_weights(&settings.base)?.config_json;
    let given = config.get("dtype").or_else(|| config.get("torch_dtype")).and_then(|dtype| dtype.as_str());
    Ok(given.filter(|dtype| ["float16", "bfloat16"].contains(dtype)).map(str::to_owned))
}
