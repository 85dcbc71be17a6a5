//! Makes the tensors of a GGUF: every weight is checked against its family, named, typed and ordered.
//!
//! Reference: llama.cpp `conversion/base.py` (`prepare_tensors`) and `modify_tensors` of each model.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::types::{output_dtype, stored_type};
use crate::arch::language::generalized;
use crate::arch::lookup::{self, Expected, Slot, class_spelling, slots, sources};
use crate::arch::params::Params;
use crate::arch::steps::{Step, joined, reshaped, steps};
use crate::arch::{DropCheck, End, KeptType, Operation, Role, is_buffer, rope, wrapper};
use crate::checkpoint::counted_parts;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};
use crate::source::show_shape;

/// What a plan is made for.
pub(super) struct Request<'a> {
    /// The model's path, for messages.
    pub(super) origin: &'a Path,
    /// Returns the names that tensors have in their files, which determine their order.
    pub(super) stored_name: &'a dyn Fn(&'a str) -> &'a str,
    /// Returns for how many rows of the embeddings the tokenizer has tokens; it is called only for classes that leave
    /// the other rows out.
    pub(super) vocab_rows: &'a dyn Fn() -> Result<usize>,
    /// The type of matrices; without one, each keeps its own.
    pub(super) outtype: Option<DType>,
    /// Tensors of folders inside the model's, which come before all others.
    pub(super) companions: &'a Plan,
}

/// The output's tensors: first those computed from the config, then the weights in the reference's order, file by file
/// and by name within each. Tensors that are left out are added to `notes`.
///
/// # Errors
/// [`crate::Error::Mismatch`] where weights and config don't belong together.
pub(super) fn plan<'a>(
    request: &Request<'a>,
    params: Params,
    weights: &'a Plan,
    notes: &mut Vec<String>,
) -> Result<(Plan, Params)> {
    let found = Found::of(request, &params, weights)?;
    let tensors = found.by_name.iter().map(|(name, (_, tensor))| (name.clone(), (*tensor).clone())).collect();
    let params = params.with_tensors(tensors);
    found.check_names(request, &params)?;
    let mut taken = Taken {
        request,
        params: &params,
        found: &found,
        used: HashSet::new(),
        groups: HashMap::new(),
        as_llama_cpp: Cell::default(),
    };
    let mut made = Vec::new();
    for slot in slots(&params, weights.tensors.len())? {
        made.extend(taken.make(&slot)?);
    }
    if taken.as_llama_cpp.get() {
        notes.push(PACKED_AS_LLAMA_CPP.to_owned());
    }
    let Taken { used, groups, .. } = taken;
    found.check_rest(request, &params, &used, notes)?;
    // Only after the check have tensors confirmed the width of a head, which determines the size of these.
    let mut tensors = rope::extra_tensors(&params)?;
    made.sort_by_key(|made| {
        let last = made.group.as_ref().and_then(|group| groups.get(group)).copied().unwrap_or(made.last);
        (made.rank, last, made.number)
    });
    tensors.extend(made.into_iter().map(|made| made.tensor));
    Ok((Plan { tensors }, params))
}

/// A note on packed BitNet weights with `linear_class` "autobitlinear".
const PACKED_AS_LLAMA_CPP: &str = "packed weights are divided by their scales, as llama.cpp's converter does, while \
                                   transformers multiplies them: the GGUF is the reference's, but not the model that \
                                   transformers runs; for that one, convert the weights that were packed";

/// The checkpoint's tensors by the class's names, each with its place in the reference's order.
struct Found<'a> {
    by_name: HashMap<String, (usize, &'a PlannedTensor)>,
    /// How many of them are companions, which have the first places.
    companions: usize,
    buffers: Vec<&'a str>,
}

impl<'a> Found<'a> {
    fn of(request: &Request<'a>, params: &Params, weights: &'a Plan) -> Result<Self> {
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
    fn check_names(&self, request: &Request, params: &Params) -> Result<()> {
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
            Some((_, tensor)) => Err(surplus(request.origin, tensor)),
            None => Ok(()),
        }
    }

    /// Checks that every tensor is used, or left out for a reason.
    fn check_rest(
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
                    _ => return Err(surplus(request.origin, tensor)),
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
            DropCheck::Nothing => Ok(()),
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

/// A tensor of the GGUF.
struct Made {
    tensor: PlannedTensor,
    /// Ranks are written one after the other.
    rank: usize,
    /// The row in the family.
    number: usize,
    /// The place of the last tensor that it is made of.
    last: usize,
    /// What it belongs to, if it is a stack: the reference writes all stacks of a group when the group is complete.
    group: Option<Group>,
}

/// The stacks of a layer whose names begin alike.
type Group = (Option<usize>, String);

/// The tensors of the checkpoint that are used so far.
struct Taken<'a, 'b> {
    request: &'b Request<'a>,
    params: &'b Params,
    found: &'b Found<'a>,
    used: HashSet<&'b str>,
    /// The last place of each group.
    groups: HashMap<Group, usize>,
    /// Whether a tensor was read as llama.cpp's converter reads it, where that differs.
    as_llama_cpp: Cell<bool>,
}

impl<'b> Taken<'_, 'b> {
    /// Makes a GGUF tensor from the first form whose tensors are there; none if the tensor is optional and missing.
    fn make(&mut self, slot: &Slot) -> Result<Option<Made>> {
        let mut wrong = None;
        for form in 0..slot.row.forms.len() {
            if !self.params.holds(slot.row.forms[form].when.as_ref(), slot.layer)? || !self.begins(slot, form)? {
                continue;
            }
            let wanted = sources(self.params, slot, form, self.found.by_name.len())?;
            let Some(missing) = wanted.iter().find(|wanted| !self.found.by_name.contains_key(&wanted.name)) else {
                match wanted.iter().find(|wanted| !self.has_shape(slot, wanted)) {
                    None => return self.made(slot, form, &wanted).map(Some),
                    Some(misfit) => wrong = wrong.or(Some(misfit.clone())),
                }
                continue;
            };
            return Err(self.missing(missing));
        }
        if let Some(wanted) = wrong {
            let (_, tensor) = self.found.by_name[&wanted.name];
            return Err(finding(self.request.origin, tensor)
                .expected(format_args!("{} by config.json", shown(&wanted.shape)))
                .found(show_shape(&tensor.shape))
                .mismatch());
        }
        if slot.is_optional {
            return Ok(None);
        }
        let wanted = sources(self.params, slot, 0, self.found.by_name.len())?;
        let missing = wanted.iter().find(|wanted| !self.found.by_name.contains_key(&wanted.name));
        Err(self.missing(missing.unwrap_or(&wanted[0])))
    }

    /// Whether the first tensor of every part is there.
    fn begins(&self, slot: &Slot, form: usize) -> Result<bool> {
        for part in &slot.row.forms[form].parts {
            let place = part.stack.as_ref().map(|_| 0);
            let name = part.name.filled(slot.layer, place, &|formula| self.params.whole_of(formula, slot.layer))?;
            if !self.found.by_name.contains_key(&name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn missing(&self, wanted: &Expected) -> crate::Error {
        Finding::new(self.request.origin, format!("tensor {:?}", wanted.name))
            .expected(format_args!("{} by config.json", shown(&wanted.shape)))
            .found("none of that name")
            .hint(match wanted.row.role {
                Role::OutputHead => "a model whose embeddings are its head has `tie_word_embeddings` true",
                _ => "config.json and weights may be of different models",
            })
            .mismatch()
    }

    fn has_shape(&self, slot: &Slot, wanted: &Expected) -> bool {
        let (_, tensor) = self.found.by_name[&wanted.name];
        // Rows past the vocabulary are padding, which only some checkpoints have.
        let is_trimmed = slot.row.is_trimmed();
        tensor.shape.len() == wanted.shape.len()
            && tensor.shape.iter().zip(&wanted.shape).enumerate().all(|(dim, (found, wanted))| match wanted {
                None => true,
                Some(wanted) => found == wanted || is_trimmed && dim == 0 && found > wanted,
            })
    }

    fn made(&mut self, slot: &Slot, form: usize, wanted: &[Expected]) -> Result<Made> {
        let known = &slot.row.forms[form];
        let (mut last, mut group) = (0, None);
        let (mut joining, mut widest) = (Vec::new(), None);
        for (number, part) in known.parts.iter().enumerate() {
            let mut exprs = Vec::new();
            let mut dtype = DType::F32;
            for wanted in wanted.iter().filter(|wanted| wanted.part == number) {
                let Some((name, (place, tensor))) = self.found.by_name.get_key_value(&wanted.name) else { continue };
                self.used.insert(name.as_str());
                last = last.max(*place);
                dtype = tensor.dtype;
                exprs.push(self.changed(slot, &wanted.name, tensor.expr.clone(), &part.each, dtype)?);
            }
            if part.stack.is_some() && last < self.found.companions {
                last = self.found.companions;
            }
            if part.stack.is_some() {
                group = group.or(Some((slot.layer, part.name.before_place().to_owned())));
            }
            let expr = match part.stack.is_some() {
                true => stacked(exprs),
                false => joined(exprs, 0),
            };
            let tensor =
                &wanted.iter().find(|wanted| wanted.part == number).map(|w| w.name.clone()).unwrap_or_default();
            joining.push(self.changed(slot, tensor, expr, &part.operations, dtype)?);
            widest = widest.or(Some(dtype));
        }
        let dtype = widest.unwrap_or(DType::F32);
        let expr = joined(joining, known.join);
        let expr = self.changed(slot, &wanted[0].name, expr, &known.operations, dtype)?;
        if let Some(group) = &group {
            let end = self.groups.entry(group.clone()).or_default();
            *end = (*end).max(last);
        }
        let name = slot.gguf_name(self.params)?;
        let shape = expr.shape();
        let kept = match &slot.row.kept_type {
            Some((kept, when)) if self.params.holds(when.as_ref(), slot.layer)? => Some(*kept),
            _ => None,
        };
        // The reference writes blocks that stay blocks before all other tensors.
        let is_blocks = self.params.family.keeps_blocks && expr.raw_dtype() == Some(DType::MXFP4);
        let (kept, outtype) = match self.params.family.keeps_types {
            true => {
                let stored = stored_type(&expr, self.request.outtype.unwrap_or(dtype), dtype);
                (kept.or(Some(KeptType::Output)), Some(stored))
            }
            false => (kept, self.request.outtype),
        };
        let dtype = match is_blocks {
            true => DType::MXFP4,
            false => output_dtype(kept, &name, &shape, outtype, dtype),
        };
        // A layer's experts that are stacked from blocks come in the order of the layers.
        if let (true, Some((Some(layer), _))) = (is_blocks, &group) {
            last = *layer;
            group = None;
        }
        let rank = match slot.row.end {
            Some(End::First) if kept.is_some_and(|kept| kept.whole().is_some()) => 0,
            _ if is_blocks => 1,
            Some(End::First) => 2,
            None => 3,
            Some(End::Last) => 4,
        };
        let mut tensor = PlannedTensor { name, dtype, shape, expr };
        if let Some(dtype) = kept.and_then(KeptType::whole) {
            (tensor.dtype, tensor.expr) = (dtype, Expr::Take(self.whole_numbers(slot, &wanted[0].name, dtype)?));
        }
        Ok(Made { tensor, rank, number: slot.number, last, group })
    }

    /// The whole numbers of a tensor, after the row's operations.
    fn whole_numbers(&self, slot: &Slot, name: &str, dtype: DType) -> Result<TensorRef> {
        let (_, tensor) = self.found.by_name[name];
        let is_ids = |operation: &Operation| matches!(operation, Operation::Procedure(name) if name == "absolute_ids");
        let numbers = tensor.whole_numbers().map(|numbers| match slot.row.forms[0].operations.iter().any(is_ids) {
            true => numbers.into_iter().zip(0..).map(|(number, place)| number + place).collect(),
            false => numbers,
        });
        let made = numbers.and_then(|numbers| TensorRef::of_whole_numbers(dtype, tensor.shape.clone(), &numbers));
        made.ok_or_else(|| {
            let expected = format!("whole numbers that {dtype} can hold");
            finding(self.request.origin, tensor).expected(expected).found(tensor.dtype).mismatch()
        })
    }

    /// The values after the operations.
    fn changed(&self, slot: &Slot, name: &str, expr: Expr, operations: &[Operation], dtype: DType) -> Result<Expr> {
        let is_whole = slot.row.kept_type.as_ref().is_some_and(|(kept, _)| kept.whole().is_some());
        if operations.is_empty() || is_whole {
            return Ok(expr);
        }
        let shape = expr.shape();
        if expr.as_llama_cpp().is_some() {
            self.as_llama_cpp.set(true);
        }
        match steps(self.params, operations, &shape, slot.layer, self.request.vocab_rows)? {
            Ok(steps) => steps.iter().try_fold(expr, |expr, step: &Step| step.apply(expr, dtype)),
            Err((expected, found)) => {
                let (_, tensor) = self.found.by_name[name];
                Err(finding(self.request.origin, tensor).expected(expected).found(found).mismatch())
            }
        }
    }
}

/// Tensors as one, with a new first dimension.
fn stacked(parts: Vec<Expr>) -> Expr {
    let mut shape = parts.first().map(Expr::shape).unwrap_or_default();
    let as_rows = shape.len() == 1;
    shape.insert(0, parts.len());
    let of = parts.into_iter().map(|part| match as_rows {
        true => {
            let width = part.shape()[0];
            reshaped(part, vec![1, width])
        }
        false => part,
    });
    Expr::concat(of.collect(), shape)
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

/// A shape in which some sizes may be open.
fn shown(shape: &[Option<usize>]) -> String {
    let sizes: Vec<String> = shape.iter().map(|size| size.map_or("any".to_owned(), |size| size.to_string())).collect();
    format!("[{}]", sizes.join(", "))
}

fn finding(origin: &Path, tensor: &PlannedTensor) -> Finding {
    let file = tensor.expr.sources().first().map_or(origin, |source| source.path()).to_owned();
    Finding::new(file, format!("tensor {:?}", tensor.name))
}

fn surplus(origin: &Path, tensor: &PlannedTensor) -> crate::Error {
    finding(origin, tensor)
        .expected("only tensors that config.json asks for")
        .found(format_args!("this one, {}", show_shape(&tensor.shape)))
        .hint("config.json and weights may be of different models")
        .mismatch()
}
