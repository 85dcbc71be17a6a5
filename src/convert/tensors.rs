//! Makes the tensors of a GGUF: every weight is checked against its family, named, typed and ordered.
//!
//! Reference: llama.cpp `conversion/base.py` (`prepare_tensors`) and `modify_tensors` of each model.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::found::{Found, finding, of_different_models, source_of_sizes};
use super::types::{output_dtype, stored_type};
use crate::arch::lookup::{Expected, Slot, slots, sources};
use crate::arch::params::Params;
use crate::arch::steps::{Step, computed_in, joined, reshaped, steps};
use crate::arch::{End, KeptType, Operation, Role, Row, operands, rope};
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
        (made.rank, last, made.layer, made.number)
    });
    tensors.extend(made.into_iter().map(|made| made.tensor));
    Ok((Plan { tensors }, params))
}

/// A note on packed BitNet weights with `linear_class` "autobitlinear".
const PACKED_AS_LLAMA_CPP: &str = "packed weights are divided by their scales, as llama.cpp's converter does, while \
                                   transformers multiplies them: the GGUF is the reference's, but not the model that \
                                   transformers runs; for that one, convert the weights that were packed";

/// A tensor of the GGUF.
struct Made {
    tensor: PlannedTensor,
    /// Ranks are written one after the other.
    rank: usize,
    /// The row in the family.
    number: usize,
    /// The place of the last tensor that it is made of; for a row that is listed, the first row of its run.
    last: usize,
    /// The layer, for a row that is listed.
    layer: Option<usize>,
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
                .expected(format_args!("{} by {}", shown(&wanted.shape), source_of_sizes(self.params)))
                .found(show_shape(&tensor.shape))
                .mismatch());
        }
        if slot.is_optional {
            return Ok(None);
        }
        // The first form that the config allows is the one that is expected.
        let mut form = 0;
        for (number, known) in slot.row.forms.iter().enumerate().rev() {
            if self.params.holds(known.when.as_ref(), slot.layer)? {
                form = number;
            }
        }
        let wanted = sources(self.params, slot, form, self.found.by_name.len())?;
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
            .expected(format_args!("{} by {}", shown(&wanted.shape), source_of_sizes(self.params)))
            .found("none of that name")
            .hint(match wanted.row.role {
                Role::OutputHead => "a model whose embeddings are its head has `tie_word_embeddings` true",
                _ => of_different_models(self.params),
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
        let operands = self.operands(slot, form, wanted)?;
        for (number, part) in known.parts.iter().enumerate() {
            let mut exprs = Vec::new();
            let mut dtype = DType::F32;
            let mut computed = DType::F32;
            for (index, wanted) in wanted.iter().filter(|wanted| wanted.part == number).enumerate() {
                let Some((name, (place, tensor))) = self.found.by_name.get_key_value(&wanted.name) else { continue };
                self.used.insert(name.as_str());
                last = last.max(*place);
                dtype = tensor.dtype;
                computed = computed_in(dtype, *place < self.found.companions);
                let change = Change { slot, name: &wanted.name, dtype: computed, operands: &operands, index };
                exprs.push(self.changed(&change, tensor.expr.clone(), &part.each)?);
            }
            if part.stack.is_some() && last < self.found.companions {
                last = self.found.companions;
            }
            if part.is_operand {
                continue;
            }
            if part.stack.is_some() {
                group = group.or(Some((slot.layer, part.name.before_place().to_owned())));
            }
            let expr = match part.stack.is_some() {
                true => stacked(exprs),
                false => joined(exprs, 0),
            };
            let name = wanted.iter().find(|wanted| wanted.part == number).map_or("", |wanted| &wanted.name);
            let change = Change { slot, name, dtype: computed, operands: &operands, index: 0 };
            joining.push(self.changed(&change, expr, &part.operations)?);
            widest = widest.or(Some((dtype, computed)));
        }
        let (dtype, computed) = widest.unwrap_or((DType::F32, DType::F32));
        let expr = joined(joining, known.join);
        let change = Change { slot, name: &wanted[0].name, dtype: computed, operands: &operands, index: 0 };
        let expr = self.changed(&change, expr, &known.operations)?;
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
        let listed = slot.row.end == Some(End::Listed);
        if listed {
            (last, group) = (self.run_of(slot), None);
        }
        let rank = match slot.row.end {
            Some(End::First) if kept.is_some_and(|kept| kept.whole().is_some()) => 0,
            _ if is_blocks => 1,
            Some(End::Listed) => 2,
            Some(End::First) => 3,
            None => 4,
            Some(End::Last) => 5,
        };
        let mut tensor = PlannedTensor { name, dtype, shape, expr };
        if let Some(dtype) = kept.and_then(KeptType::whole) {
            (tensor.dtype, tensor.expr) = (dtype, Expr::Take(self.whole_numbers(slot, &wanted[0].name, dtype)?));
        }
        Ok(Made { tensor, rank, number: slot.number, last, layer: slot.layer.filter(|_| listed), group })
    }

    /// The first of the neighbouring rows that there are as often as this one.
    fn run_of(&self, slot: &Slot) -> usize {
        let rows = &self.params.family.rows;
        let is_like = |row: &&Row| slot.layer.is_some() && row.is_of_layers() && row.over == slot.row.over;
        slot.number - rows[..slot.number].iter().rev().take_while(is_like).count()
    }

    /// The tensors that operations of a form use besides those that are joined: several for one of a stack.
    fn operands(&self, slot: &Slot, form: usize, wanted: &[Expected]) -> Result<Vec<Vec<Expr>>> {
        let parts = slot.row.forms[form].parts.iter().enumerate().filter(|(_, part)| part.is_operand);
        let made = parts.map(|(number, part)| {
            let tensors = wanted.iter().filter(|wanted| wanted.part == number);
            let changed = tensors.map(|wanted| {
                let (place, tensor) = self.found.by_name[&wanted.name];
                let dtype = computed_in(tensor.dtype, place < self.found.companions);
                let change = Change { slot, name: &wanted.name, dtype, operands: &[], index: 0 };
                self.changed(&change, tensor.expr.clone(), &part.each)
            });
            changed.collect()
        });
        made.collect()
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
    fn changed(&self, change: &Change, expr: Expr, operations: &[Operation]) -> Result<Expr> {
        let Change { slot, dtype, .. } = *change;
        let is_whole = slot.row.kept_type.as_ref().is_some_and(|(kept, _)| kept.whole().is_some());
        if operations.is_empty() || is_whole {
            return Ok(expr);
        }
        if expr.as_llama_cpp().is_some() {
            self.as_llama_cpp.set(true);
        }
        let is_alone = |operation: &Operation| operation.of_several().is_none();
        let mut runs = operations.chunk_by(|a, b| is_alone(a) && is_alone(b));
        runs.try_fold(expr, |expr, run| {
            let made = match run {
                [Operation::Linear { weight, bias }] => {
                    let bias = bias.map(|bias| change.operand(bias));
                    operands::linear(expr, change.operand(*weight), bias, dtype)
                }
                [Operation::Divide(by)] => operands::divided(expr, change.operand(*by), dtype),
                run => match steps(self.params, run, &expr.shape(), slot.layer, self.request.vocab_rows)? {
                    Ok(steps) => return steps.iter().try_fold(expr, |expr, step: &Step| step.apply(expr, dtype)),
                    Err(misfit) => Err(misfit),
                },
            };
            made.map_err(|(expected, found)| {
                let (_, tensor) = self.found.by_name[change.name];
                finding(self.request.origin, tensor).expected(expected).found(found).mismatch()
            })
        })
    }
}

/// What operations are done to.
struct Change<'a> {
    slot: &'a Slot,
    /// The tensor, for messages.
    name: &'a str,
    /// The type in which the reference computes.
    dtype: DType,
    /// The operands of the form.
    operands: &'a [Vec<Expr>],
    /// The number of the tensor in its stack.
    index: usize,
}

impl Change<'_> {
    /// An operand: the one for this tensor of the stack, or the one for all.
    fn operand(&self, number: usize) -> Expr {
        let of_stack = &self.operands[number];
        of_stack[self.index.min(of_stack.len() - 1)].clone()
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

/// A shape in which some sizes may be open.
fn shown(shape: &[Option<usize>]) -> String {
    let sizes: Vec<String> = shape.iter().map(|size| size.map_or("any".to_owned(), |size| size.to_string())).collect();
    format!("[{}]", sizes.join(", "))
}
