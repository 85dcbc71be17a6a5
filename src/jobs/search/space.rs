//! The numbers of a merge that a search varies.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::MergeSettings;
use super::super::method::Combined as Kinds;
use super::super::settings::setting;
use crate::error::Result;

/// What can be searched: its name, the range and where the search begins.
const SEARCHABLE: [(&str, (f64, f64), f64); 7] = [
    ("weight", (0.0, 1.0), 1.0),
    ("density", (0.1, 1.0), 0.5),
    ("t", (0.0, 1.0), 0.5),
    ("lambda", (0.0, 2.0), 1.0),
    ("gamma", (0.0, 0.1), 0.01),
    ("epsilon", (0.0, 0.3), 0.15),
    ("select_topk", (0.05, 1.0), 1.0),
];

/// The range of weights of adapters, which are often more than 1.
const ADAPTER_WEIGHTS: (f64, f64) = (0.0, 2.0);

/// A number that is searched.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parameter {
    /// Its name: that of its kind; for weights with the number of the input, from 1.
    pub(super) name: String,
    /// The input whose weight it is.
    input: Option<usize>,
    range: (f64, f64),
    start: f64,
}

impl Parameter {
    /// Where the search begins, from 0 to 1.
    pub(super) fn start(&self) -> f64 {
        let (least, most) = self.range;
        ((self.start - least) / (most - least)).clamp(0.0, 1.0)
    }

    /// The value at a place from 0 to 1, with four decimals.
    pub(super) fn value(&self, place: f64) -> f64 {
        let (least, most) = self.range;
        ((least + (most - least) * place) * 1e4).round() / 1e4
    }

    pub(super) fn describe(&self) -> Value {
        serde_json::json!({ "name": self.name, "from": self.range.0, "to": self.range.1, "start": self.start })
    }
}

/// The parameters of a search: `names`, or those that say most about the method.
pub(super) fn parameters(
    merge: &MergeSettings,
    kind: Kinds,
    names: &[String],
    ranges: &BTreeMap<String, (f64, f64)>,
) -> Result<Vec<Parameter>> {
    let method = merge.combine.method.as_deref();
    let reads = |name: &str| {
        let field = if name == "weight" { "weights" } else { name };
        method.map_or(name == "weight", |method| kind.reads(method, field))
    };
    let combine = &merge.combine;
    let is_given = |name: &str| match name {
        "density" => !combine.density.is_empty(),
        "t" => combine.t.is_some(),
        "lambda" => combine.lambda.is_some(),
        "gamma" => combine.gamma.is_some(),
        "epsilon" => combine.epsilon.is_some(),
        "select_topk" => combine.select_topk.is_some(),
        _ => false,
    };
    let known = SEARCHABLE.map(|(name, ..)| name);
    for name in names.iter().chain(ranges.keys()) {
        let field = if names.contains(name) { "search" } else { "range" };
        if !known.contains(&name.as_str()) {
            let finding = setting(field).expected(format_args!("one of {}", known.join(", ")));
            return Err(finding.found(format_args!("{name:?}")).did_you_mean(name, &known).setting());
        }
        if !reads(name) {
            let finding = setting(field).expected("what the method uses");
            return Err(finding.found(format_args!("{name} for {}", method.unwrap_or("no `method`"))).setting());
        }
        if is_given(name) {
            return Err(setting(name).expected("none, as it is searched").found("one").setting());
        }
    }
    let by_default = ["weight", "density", "t"];
    let is_wanted = |name: &str| match names {
        [] => (by_default.contains(&name) || ranges.contains_key(name)) && reads(name) && !is_given(name),
        names => names.iter().any(|wanted| wanted == name),
    };
    let mut all = Vec::new();
    for (name, own, start) in SEARCHABLE.into_iter().filter(|(name, ..)| is_wanted(name)) {
        let own = if name == "weight" && kind == Kinds::Loras { ADAPTER_WEIGHTS } else { own };
        let range = ranges.get(name).copied().unwrap_or(own);
        if !(range.0 < range.1 && range.0.is_finite() && range.1.is_finite()) {
            let finding = setting("range").expected("FROM..TO with a larger second number");
            return Err(finding.found(format_args!("{name}={}..{}", range.0, range.1)).setting());
        }
        match name {
            "weight" => all.extend(merge.others.iter().enumerate().map(|(input, other)| Parameter {
                name: format!("weight_{}", input + 1),
                input: Some(input),
                range,
                start: other.weight,
            })),
            _ => all.push(Parameter { name: name.to_owned(), input: None, range, start }),
        }
    }
    if all.is_empty() {
        let finding = setting("search").expected("something that the method uses and that isn't given");
        return Err(finding.found(format_args!("nothing, for {}", method.unwrap_or("no `method`"))).setting());
    }
    Ok(all)
}

/// The settings of a merge with these values.
pub(super) fn with_values(merge: &MergeSettings, parameters: &[Parameter], values: &[f64]) -> MergeSettings {
    let mut merge = merge.clone();
    for (parameter, value) in parameters.iter().zip(values) {
        let combine = &mut merge.combine;
        match (parameter.input, parameter.name.as_str()) {
            (Some(input), _) => merge.others[input].weight = *value,
            (None, "density") => combine.density = vec![*value],
            (None, "t") => combine.t = Some(*value),
            (None, "lambda") => combine.lambda = Some(*value),
            (None, "gamma") => combine.gamma = Some(*value),
            (None, "epsilon") => combine.epsilon = Some(*value),
            (None, _) => combine.select_topk = Some(*value),
        }
    }
    merge
}

/// The values by their names.
pub(super) fn by_name(parameters: &[Parameter], values: &[f64]) -> Map<String, Value> {
    parameters.iter().zip(values).map(|(parameter, value)| (parameter.name.clone(), (*value).into())).collect()
}
