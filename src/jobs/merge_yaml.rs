//! The mergekit configuration that says the same as a merge of whole models on the command line. Merging it gives the same
//! bits.

use super::settings::name_of;
use super::{CombineSettings, MergeSettings, VocabularyChoice};
use crate::dtype::DType;
use crate::merge::combine::{CombineOptions, ModelMethod};
use crate::plan::Plan;

/// The configuration of a merge whose result is `plan`; `None` for what a configuration can't say.
pub(super) fn yaml(
    settings: &MergeSettings,
    method: ModelMethod,
    options: &CombineOptions,
    plan: &Plan,
) -> Option<String> {
    let base = name_of(settings.base_id.as_deref(), &settings.base);
    let names: Vec<String> = settings.others.iter().map(|other| name_of(other.id.as_deref(), &other.path)).collect();
    let is_mean = method.averages_models(options) || method == ModelMethod::Passthrough;
    let is_twice = names.iter().enumerate().any(|(at, name)| names[..at].contains(name));
    let Some(out_dtype) = only_type(plan).and_then(DType::torch_name) else { return None };
    if is_twice || !is_mean && names.contains(&base) || is_mean && settings.tokenizer_source.is_some() {
        return None;
    }
    let mut text = "models:\n".to_owned();
    if method == ModelMethod::Slerp {
        text += &format!("  - model: {}\n", quoted(&base));
    }
    let combine = &settings.combine;
    let densities = if combine.density.len() > 1 { combine.density.as_slice() } else { &[] };
    for (at, name) in names.iter().enumerate() {
        text += &format!("  - model: {}\n", quoted(name));
        let mut own = String::new();
        if method.takes_weights() {
            own += &weights(options, at, plan);
        }
        if let Some(density) = densities.get(at) {
            own += &format!("      density: {density}\n");
        }
        if !own.is_empty() {
            text += &format!("    parameters:\n{own}");
        }
    }
    text += &format!("merge_method: {}\n", method.name());
    if !is_mean {
        text += &format!("base_model: {}\n", quoted(&base));
    }
    let parameters = parameters(combine, method);
    if !parameters.is_empty() {
        text += "parameters:\n";
        parameters.iter().for_each(|(name, value)| text += &format!("  {name}: {value}\n"));
    }
    text += "dtype: float32\n";
    if out_dtype != "float32" {
        text += &format!("out_dtype: {out_dtype}\n");
    }
    if let Some(source) = &settings.tokenizer_source {
        let source = match source {
            VocabularyChoice::Base => "base".to_owned(),
            VocabularyChoice::Union => "union".to_owned(),
            VocabularyChoice::Folder(folder) => quoted(&folder.display().to_string()),
        };
        text += &format!("tokenizer:\n  source: {source}\n");
        if let Some(multiple) = settings.pad_to_multiple_of {
            text += &format!("  pad_to_multiple_of: {multiple}\n");
        }
    }
    if let Some(seed) = combine.seed {
        text += &format!("random_seed: {seed}\n");
    }
    Some(text)
}

/// The type of all tensors of floating-point numbers, if they have one.
fn only_type(plan: &Plan) -> Option<DType> {
    let mut types = plan.tensors.iter().map(|tensor| tensor.dtype).filter(|dtype| dtype.is_float());
    let first = types.next()?;
    types.all(|dtype| dtype == first).then_some(first)
}

/// The weight of the model at `at`: one for all tensors, or one for each of those that have another.
fn weights(options: &CombineOptions, at: usize, plan: &Plan) -> String {
    let every = options.weights.every()[at];
    let mut others: Vec<(&str, f64)> = plan
        .tensors
        .iter()
        .map(|tensor| (tensor.name.as_str(), options.weights.of(&tensor.name)[at]))
        .filter(|(_, weight)| *weight != every)
        .collect();
    if others.is_empty() {
        return format!("      weight: {every}\n");
    }
    // A filter is for every name that it is a part of, so the longest names come first.
    others.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let mut text = "      weight:\n".to_owned();
    for (name, weight) in others {
        text += &format!("        - filter: {}\n          value: {weight}\n", quoted(name));
    }
    text + &format!("        - value: {every}\n")
}

/// The parameters of all models together that are given, by mergekit's names.
fn parameters(combine: &CombineSettings, method: ModelMethod) -> Vec<(&'static str, String)> {
    let is_multislerp = method == ModelMethod::MultiSlerp;
    let number = |value: Option<f64>| value.map(|value| value.to_string());
    let flag = |value: Option<bool>| value.map(|value| value.to_string());
    let on = |value: bool| value.then(|| "true".to_owned());
    let density = combine.density.first().filter(|_| combine.density.len() == 1);
    let all = [
        ("density", number(density.copied())),
        ("lambda", number(combine.lambda)),
        (if is_multislerp { "eps" } else { "epsilon" }, number(combine.epsilon)),
        ("gamma", number(combine.gamma)),
        (if is_multislerp { "normalize_weights" } else { "normalize" }, flag(combine.normalize)),
        ("rescale", flag(combine.rescale)),
        ("t", number(combine.t)),
        ("select_topk", number(combine.select_topk)),
        ("max_iter", combine.max_iter.map(|count| count.to_string())),
        ("tol", number(combine.tol)),
        ("filter_wise", on(combine.filter_wise)),
        ("nuslerp_flatten", flag(combine.nuslerp_flatten)),
        ("nuslerp_row_wise", on(combine.nuslerp_row_wise)),
        ("r", number(combine.r)),
        ("alpha", number(combine.alpha)),
        ("scale", number(combine.scale)),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// A text as YAML has it: as it is where that is plain, or in quotes. Every text of JSON is one of YAML.
fn quoted(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let is_path = text.contains('/') && text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/');
    match is_path && text.chars().all(is_plain) {
        true => text.to_owned(),
        false => serde_json::Value::from(text).to_string(),
    }
}
