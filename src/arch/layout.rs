//! The tensors that a decoder must have according to its config.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::language::generalized;
use super::lookup::{self, Expected, Slot, class_spelling};
use super::names::is_buffer;
use super::params::Params;
use super::parts::Part;
use super::{DropCheck, ModelConfig, Role};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// The tensors of a decoder by their names in its family's file, which may differ from those in the checkpoint.
pub(crate) type ByName = HashMap<String, PlannedTensor>;

/// A tensor that a decoder computes with: what it is, and the checkpoint's tensors of which it is made.
#[cfg_attr(not(feature = "train"), allow(dead_code))] // Only what runs models reads them.
pub(crate) struct Needed {
    pub(crate) part: Part,
    pub(crate) slot: Slot,
    /// The number of the row's form.
    pub(crate) form: usize,
    pub(crate) sources: Vec<Expected>,
}

/// What a decoder computes with, and all tensors of its checkpoint.
#[cfg_attr(not(feature = "train"), allow(dead_code))] // Only what runs models reads them.
pub(crate) struct Found {
    pub(crate) needed: Vec<Needed>,
    pub(crate) tensors: ByName,
    /// The config, which knows the tensors.
    pub(crate) params: Params,
}

impl Needed {
    /// Whether it is a bias.
    #[cfg(feature = "train")]
    pub(crate) fn is_bias(&self) -> bool {
        self.slot.row.is_bias()
    }
}

/// Name and shape of every tensor that `config` asks for, under Hugging Face's names: the embeddings, then layer by
/// layer, then the rest.
///
/// # Errors
/// [`crate::Error::Mismatch`] where these would be more than `most`.
pub fn expected_tensors(config: &ModelConfig, most: usize) -> Result<Vec<(String, Vec<usize>)>> {
    let mut all = lookup::expected(&config.origin.0, most, |_| false)?;
    all.sort_by_key(|wanted| (wanted.row.role != Role::Embedding, wanted.layer.is_none(), wanted.layer));
    // The decoders that this crate runs have no sizes left open.
    Ok(all.into_iter().filter_map(|wanted| Some((wanted.whole_shape()?, wanted.name))).map(|(s, n)| (n, s)).collect())
}

/// Finds what a decoder computes with in `weights`, and checks shapes. There may be no other tensor except those that
/// the family leaves out, buffers and, where embeddings are tied, an output head.
///
/// # Errors
/// [`crate::Error::Mismatch`], naming the file and the tensor.
pub(crate) fn needed(folder: &Path, config: &ModelConfig, weights: &Plan) -> Result<Found> {
    let finding = |tensor: &PlannedTensor| {
        let file = tensor.expr.sources().first().map_or(folder, |source| source.path());
        Finding::new(file, format!("tensor {:?}", tensor.name))
    };
    let mut names = HashSet::new();
    if let Some(tensor) = weights.tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        return Err(finding(tensor).expected("each name once").found("it twice").mismatch());
    }
    let params = (*config.origin.0).clone().with_weights(weights.tensors.iter())?;
    let (main, most) = (config.num_hidden_layers, weights.tensors.len());
    let spelled = |name: &str| class_spelling(params.family, name, Some(main));
    let found: ByName = weights.tensors.iter().map(|tensor| (spelled(&tensor.name), tensor.clone())).collect();
    let mut all = Vec::new();
    for slot in lookup::slots(&params, most)? {
        if slot.layer.is_some_and(|layer| layer >= main) {
            continue;
        }
        let available = lookup::available(&params, &slot, most)?;
        if available.is_none() && slot.is_optional {
            continue;
        }
        let (form, sources) = match available {
            Some(found) => found,
            None => (0, lookup::sources(&params, &slot, 0, most)?),
        };
        for wanted in &sources {
            check_source(folder, wanted, found.get(&wanted.name), &finding)?;
        }
        let Some(part) = Part::of(slot.row) else {
            let finding = Finding::new(folder, format!("tensor {:?}", slot.gguf_name(&params)?));
            return Err(finding.expected("one that a decoder here computes with").found("another").unsupported());
        };
        all.push(Needed { part, slot, form, sources });
    }
    let read_by_formulas = params.family.value_names();
    let mut used: HashSet<String> = HashSet::new();
    for needed in &all {
        used.extend(needed.sources.iter().map(|source| source.name.clone()));
    }
    let is_later = |name: &str| lookup::matches(params.family, name, Some(main)).iter().any(|m| m.layer >= Some(main));
    for tensor in &weights.tensors {
        let name = spelled(&tensor.name);
        let is_read = read_by_formulas.contains(&generalized(&name));
        if used.contains(&name) || is_buffer(&tensor.name) || is_later(&name) || is_read {
            continue;
        }
        let is_left_out = match lookup::dropped(&params, &name)? {
            Some(DropCheck::Zero) => tensor.read()?.iter().all(|value| *value == 0.0),
            Some(DropCheck::Same(other)) => match found.get(other) {
                Some(other) => tensor.same_values(other)?,
                None => false,
            },
            Some(_) => true,
            None => is_tied_head(config, &params, &name, tensor),
        };
        if is_left_out {
            continue;
        }
        return Err(finding(tensor)
            .expected("only tensors that config.json asks for")
            .found(format!("this one, {}", show_shape(&tensor.shape)))
            .hint("config.json and weights may be of different models")
            .mismatch());
    }
    Ok(Found { needed: all, tensors: found, params })
}

/// Whether a tensor is the output head of a model whose embeddings are tied to it.
fn is_tied_head(config: &ModelConfig, params: &Params, name: &str, tensor: &PlannedTensor) -> bool {
    let row = params.family.row(Role::OutputHead);
    let is_head = row.map_or(name == super::names::HEAD, |row| row.source().name.text() == name);
    is_head && config.tie_word_embeddings && tensor.shape == [config.vocab_size, config.hidden_size]
}

fn check_source(
    folder: &Path,
    wanted: &Expected,
    found: Option<&PlannedTensor>,
    finding: &dyn Fn(&PlannedTensor) -> Finding,
) -> Result<()> {
    let Some(shape) = wanted.whole_shape() else { return Ok(()) };
    match found {
        Some(tensor) if tensor.shape == shape => Ok(()),
        Some(tensor) => Err(finding(tensor)
            .expected(format_args!("{} by config.json", show_shape(&shape)))
            .found(show_shape(&tensor.shape))
            .mismatch()),
        None => Err(Finding::new(folder, format!("tensor {:?}", wanted.name))
            .expected(format_args!("{} by config.json", show_shape(&shape)))
            .found("none of that name")
            .hint("config.json and weights may be of different models")
            .mismatch()),
    }
}

/// Checks that `weights` holds every tensor that `config` asks for, in its shape. It may hold no other tensor except
/// those that the family leaves out, buffers and, where embeddings are tied, an output head.
///
/// # Errors
/// [`crate::Error::Mismatch`], naming the file and the tensor.
pub fn check_tensors(folder: &Path, config: &ModelConfig, weights: &Plan) -> Result<()> {
    needed(folder, config, weights).map(drop)
}
