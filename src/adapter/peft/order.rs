//! The order of a model's modules in transformers, by their names: kinds of adapters number them in it.
//!
//! transformers registers modules in the order in which the class makes them. Most classes make theirs in the order of the
//! forward pass; the exceptions are known by the modules beside them.

use std::cmp::Ordering;

use super::base::Base;
use super::entries::Entries;
use crate::error::Result;

/// Names of modules in the order in which they are made.
const NAMES: &[&str] = &[
    "model",
    "transformer",
    "gpt_neox",
    "decoder",
    "embed_tokens",
    "word_embeddings",
    "wte",
    "wpe",
    "embed_in",
    "embed_positions",
    "layers",
    "h",
    "self_attn",
    "self_attention",
    "attn",
    "attention",
    "query_key_value",
    "qkv_proj",
    "c_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "out_proj",
    "dense",
    "mlp",
    "gate_up_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
    "c_fc",
    "c_proj",
    "fc1",
    "fc2",
    "fc_in",
    "fc_out",
    "dense_h_to_4h",
    "dense_4h_to_h",
    "lm_head",
    "embed_out",
    "score",
];

/// The place of a part of a path among those beside it; `None` for an unknown name. `parent` is the path before it.
fn place(base: &Base, parent: &str, part: &str) -> Option<usize> {
    if let Ok(number) = part.parse() {
        return Some(number);
    }
    let has = |name: &str| base.tensor(&format!("{parent}.{name}.weight")).is_some();
    let place = NAMES.iter().position(|name| *name == part)?;
    // OPT, GPT-J and GPT-Neo make the queries after keys and values, Phi-3 the output before queries, keys and values.
    match part {
        "q_proj" if has("out_proj") => NAMES.iter().position(|name| *name == "o_proj"),
        "o_proj" if has("qkv_proj") => Some(0),
        _ => Some(place),
    }
}

/// Sorts the paths of modules of `base` in the order in which transformers registers them. `what` in the adapter needs it.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a module with an unknown name.
pub(super) fn sort(base: &Base, entries: &Entries, what: &str, modules: &mut [String]) -> Result<()> {
    let mut unknown = None;
    let mut places = |path: &str| -> Vec<usize> {
        let mut parent = String::new();
        let mut places = Vec::new();
        for part in path.split('.') {
            let found = place(base, &parent, part);
            if found.is_none() {
                unknown = Some(path.to_owned());
            }
            places.push(found.unwrap_or(usize::MAX));
            parent = if parent.is_empty() { part.to_owned() } else { format!("{parent}.{part}") };
        }
        places
    };
    if modules.len() > 1 {
        let keys: Vec<Vec<usize>> = modules.iter().map(|path| places(path)).collect();
        let mut order: Vec<usize> = (0..modules.len()).collect();
        order.sort_by(|a, b| match keys[*a].cmp(&keys[*b]) {
            Ordering::Equal => a.cmp(b),
            other => other,
        });
        let sorted: Vec<String> = order.iter().map(|i| modules[*i].clone()).collect();
        modules.clone_from_slice(&sorted);
    }
    match unknown {
        None => Ok(()),
        Some(path) => Err(entries
            .shared_finding(what)
            .expected("modules whose order in the model is known, by which PEFT assigns the numbers")
            .found(format_args!("{path:?}"))
            .hint("merge it with PEFT's merge_and_unload and convert the result")
            .unsupported()),
    }
}
