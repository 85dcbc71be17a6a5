//! The tensors that a decoder must have according to its config.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::names::{HEAD, is_buffer};
use super::{ModelConfig, Role, lookup};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// Name and shape of every tensor that `config` asks for, under Hugging Face's names: the
/// embeddings, then layer by layer, then the rest.
///
/// # Errors
/// [`crate::Error::Mismatch`] where these would be more than `most`.
pub fn expected_tensors(config: &ModelConfig, most: usize) -> Result<Vec<(String, Vec<usize>)>> {
    let mut all = lookup::expected(&config.origin.0, most, |_| false)?;
    all.sort_by_key(|wanted| (wanted.row.role != Role::Embedding, wanted.layer.is_none(), wanted.layer));
    // The decoders that this crate runs have no sizes left open.
    Ok(all.into_iter().filter_map(|wanted| Some((wanted.whole_shape()?, wanted.name))).map(|(s, n)| (n, s)).collect())
}

/// Checks that `weights` holds every tensor that `config` asks for, in its shape. It may hold no
/// other tensor except buffers and, where embeddings are tied, an output head equal to them.
///
/// # Errors
/// [`crate::Error::Mismatch`], naming the file and the tensor.
pub fn check_tensors(folder: &Path, config: &ModelConfig, weights: &Plan) -> Result<()> {
    let expected = expected_tensors(config, weights.tensors.len())?;
    let mut found: HashMap<&str, &PlannedTensor> = weights.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let finding = |tensor: &PlannedTensor| {
        let file = tensor.expr.sources().first().map_or(folder, |source| source.path());
        Finding::new(file, format!("tensor {:?}", tensor.name))
    };
    if found.len() < weights.tensors.len() {
        let mut names = HashSet::new();
        if let Some(tensor) = weights.tensors.iter().find(|t| !names.insert(&t.name)) {
            return Err(finding(tensor).expected("each name once").found("it twice").mismatch());
        }
    }
    let head = (HEAD.to_owned(), vec![config.vocab_size, config.hidden_size]);
    let tied_head = config.tie_word_embeddings && found.contains_key(head.0.as_str());
    for (name, shape) in expected.iter().chain(tied_head.then_some(&head)) {
        match found.remove(name.as_str()) {
            Some(tensor) if &tensor.shape == shape => {}
            Some(tensor) => {
                return Err(finding(tensor)
                    .expected(format_args!("{} by config.json", show_shape(shape)))
                    .found(show_shape(&tensor.shape))
                    .mismatch());
            }
            None => {
                return Err(Finding::new(folder, format!("tensor {name:?}"))
                    .expected(format_args!("{} by config.json", show_shape(shape)))
                    .found("none of that name")
                    .hint("config.json and weights may be of different models")
                    .mismatch());
            }
        }
    }
    let surplus = weights.tensors.iter().find(|t| found.contains_key(t.name.as_str()) && !is_buffer(&t.name));
    match surplus {
        None => Ok(()),
        Some(tensor) => Err(finding(tensor)
            .expected("only tensors that config.json asks for")
            .found(format_args!("this one, {}", show_shape(&tensor.shape)))
            .hint("config.json and weights may be of different models")
            .mismatch()),
    }
}
