//! The checkpoint's tensors, by name and in the reference's order: which ones a family knows, and which are left out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::tensors::Request;
use crate::arch::language::generalized;
use crate::arch::lookup::{self, class_spelling};
use crate::arch::params::Params;
use crate::arch::{DropCheck, is_buffer, wrapper};
use crate::checkpoint::counted_parts;
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// The checkpoint's tensors by the class's names, each with its place in the reference's order.
pub(super) struct Found<'a> {
    pub(super) by_name: HashMap<String, (usize, &'a PlannedTensor)>,
    /// How many of them are companions, which have the first places.
    pub(super) companions: usize,
    buffers: Vec<&'a str>,
}

impl<'a> Found<'a> {
    pub(super) fn of(request: &Request<'a>, params: &Params, weights: &'a Plan) -> Result<Self> {
        let main = params.size("main")?;
        let mut by_name = HashMap::with_capacity(weights.tensors.len());
        let companions = request.companions.tensors.len();
        let ordered = in_reference_order(weights, request.stored_name);
        // The place behind the companions is for their stacks.
        let ordered = request.companions.tensors.iter().zip(0..).chain(ordered.into_iter().zip(companions + 1..));
        for (tensor, place) in ordered {
            let name = class_spelling(params.family, &tensor.name, main);
            if by_name.insert(name, (place, tensor)).is_some() {
                return Err(finding(request.origin, tensor).expected("each name once").found("it twice").mismatch());
            }
        }
        let buffers = weights.tensors.iter().map(|t| t.name.as_str()).filter(|n| is_buffer(n)).collect();
        Ok(Self { by_name, companions, buffers })
    }

    /// Checks that the family knows every name, whatever the config asks for.
    pub(super) fn check_names(&self, request: &Request, params: &Params) -> Result<()> {
        let values = params.family.value_names();
        let mut unknown = Vec::new();
        for (name, (place, tensor)) in &self.by_name {
            let is_known = !lookup::matches(params.family, name, None).is_empty()
                || values.contains(&generalized(name))
                || lookup::dropped(params, name)?.is_some()
                || wrapper::other_part(&tensor.name).is_some()
                || params.family.is_projector && is_of_text(&tensor.name);
            if !is_known {
                unknown.push((place, *tensor));
            }
        }
        match unknown.into_iter().min_by_key(|(place, _)| **place) {
            Some((_, tensor)) => Err(surplus(request.origin, params, tensor)),
            None => Ok(()),
        }
    }

    /// Checks that every tensor is used, or left out for a reason.
    pub(super) fn check_rest(
        &self,
        request: &Request,
        params: &Params,
        used: &HashSet<&str>,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let mut rest: Vec<_> = self
            .by_name
            .iter()
            .filter(|(name, _)| !used.contains(name.as_str()))
            .map(|(name, (place, t))| (place, name, *t))
            .collect();
        rest.sort_by_key(|(place, ..)| *place);
        let values = params.family.value_names();
        let (mut left_out, mut others) = (self.buffers.clone(), BTreeMap::<&str, usize>::new());
        for (_, name, tensor) in rest {
            // Its values are in keys.
            if values.contains(&generalized(name)) {
                continue;
            }
            match lookup::dropped(params, name)? {
                Some(DropCheck::OfPart(part)) => *others.entry(part.as_str()).or_default() += 1,
                Some(check) => {
                    self.check_dropped(request, params, tensor, check)?;
                    left_out.push(tensor.name.as_str());
                }
                None if self.is_of_other_part(params, name)? => {
                    left_out.push(tensor.name.as_str());
                }
                None => match wrapper::other_part(&tensor.name) {
                    Some(part) if !params.family.is_projector => *others.entry(part).or_default() += 1,
                    _ if params.family.is_projector && is_of_text(&tensor.name) => {
                        *others.entry("the text model").or_default() += 1
                    }
                    _ => return Err(surplus(request.origin, params, tensor)),
                },
            }
        }
        if !left_out.is_empty() {
            notes.push(match (params.parts.no_nextn, params.parts.mtp_only) {
                (true, _) => format!("left out, because of `no_nextn`: {}", in_groups(&left_out)),
                (_, true) => format!("left out, because of `mtp`: all other {} tensors", left_out.len()),
                _ => format!("left out, because llama.cpp has no use for them: {}", in_groups(&left_out)),
            });
        }
        if !others.is_empty() {
            let what = if params.family.is_projector { "the projector" } else { "the text model" };
            notes.push(format!("left out, because the GGUF holds {what} alone: {}", counted_parts(&others)));
        }
        Ok(())
    }

    /// Whether the tensor is left out because only some of the model's layers are converted.
    fn is_of_other_part(&self, params: &Params, name: &str) -> Result<bool> {
        let main = params.size("main")?.unwrap_or(usize::MAX);
        let is_next = |layer: Option<usize>| layer.is_some_and(|layer| layer >= main);
        let matches = lookup::matches(params.family, name, Some(main));
        let mut layers = matches.iter().map(|known| is_next(known.layer));
        Ok(params.parts.no_nextn && layers.clone().any(|next| next)
            || params.parts.mtp_only && layers.any(|next| !next))
    }

    fn check_dropped(
        &self,
        request: &Request,
        params: &Params,
        tensor: &PlannedTensor,
        check: &DropCheck,
    ) -> Result<()> {
        match check {
            DropCheck::Nothing | DropCheck::OfPart(_) => Ok(()),
            DropCheck::Zero => match tensor.read()?.iter().all(|value| *value == 0.0) {
                true => Ok(()),
                false => {
                    let expected = format!("zeros, which llama.cpp computes {} with", params.family.gguf);
                    Err(finding(request.origin, tensor).expected(expected).found("other values").unsupported())
                }
            },
            DropCheck::Same(name) => {
                let Some((_, other)) = self.by_name.get(name) else { return Ok(()) };
                if tensor.shape == other.shape && tensor.same_values(other)? {
                    return Ok(());
                }
                Err(finding(request.origin, tensor)
                    .expected(format_args!(
                        "the values of {:?}, which llama.cpp takes for {}'s head",
                        other.name, params.family.gguf
                    ))
                    .found("others")
                    .hint("GGUF has no place for a head of this architecture: tie it to the embeddings")
                    .unsupported())
            }
        }
    }
}

/// Whether a tensor of a multimodal model belongs to its text model.
fn is_of_text(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    [
        "language_model.",
        "text_model.",
        "lm_head",
        "layers.",
        "embed_tokens",
        "norm.",
        "llm.",
        "thinker.model.",
        "thinker.lm_head",
    ]
    .iter()
    .any(|start| name.starts_with(start))
}

/// The weights in the reference's order: tensors of safetensors files by name, those of other files in the file's
/// order. Weights that were unpacked from tensors with other names come last, sorted by those names. Buffers that
/// follow from the config are left out.
fn in_reference_order<'a>(weights: &'a Plan, stored_name: &dyn Fn(&'a str) -> &'a str) -> Vec<&'a PlannedTensor> {
    let mut kept: Vec<&PlannedTensor> = weights.tensors.iter().filter(|t| !is_buffer(&t.name)).collect();
    kept.sort_by_cached_key(|tensor| {
        let path = tensor.expr.source_path();
        let by_name = path.extension().is_none_or(|e| e == "safetensors");
        let name = stored_name(&tensor.name);
        let packed = tensor.expr.packed_in().map(|part| part.info().name.as_str()).filter(|packed| *packed != name);
        (packed.is_some(), path, by_name.then(|| packed.unwrap_or(name).to_owned()))
    });
    kept
}

/// Names in a list; those that differ in numbers alone are one entry with their count.
fn in_groups(names: &[&str]) -> String {
    let mut groups: Vec<(String, &str, usize)> = Vec::new();
    for name in names {
        let general = generalized(name);
        match groups.iter_mut().find(|(known, ..)| *known == general) {
            Some((_, _, count)) => *count += 1,
            None => groups.push((general, name, 1)),
        }
    }
    let shown = |(_, name, count): &(String, &str, usize)| match count {
        1 => (*name).to_owned(),
        _ => format!("{name} and {} like it", count - 1),
    };
    groups.iter().map(shown).collect::<Vec<_>>().join(", ")
}

pub(super) fn finding(origin: &Path, tensor: &PlannedTensor) -> Finding {
    let file = tensor.expr.sources().first().map_or(origin, |source| source.path()).to_owned();
    Finding::new(file, format!("tensor {:?}", tensor.name))
}

fn surplus(origin: &Path, params: &Params, tensor: &PlannedTensor) -> crate::Error {
    finding(origin, tensor)
        .expected(match params.family.detect {
            Some(_) => "only tensors that the family knows",
            None => "only tensors that config.json asks for",
        })
        .found(format_args!("this one, {}", show_shape(&tensor.shape)))
        .hint(of_different_models(params))
        .mismatch()
}

/// What says which tensors there are, in which shapes: config.json or, without one, some of the tensors.
pub(super) fn source_of_sizes(params: &Params) -> &'static str {
    if params.family.detect.is_some() { "the shapes of others" } else { "config.json" }
}

/// A hint where tensors aren't those that are expected.
pub(super) fn of_different_models(params: &Params) -> &'static str {
    if params.family.detect.is_some() { "" } else { "config.json and weights may be of different models" }
}
