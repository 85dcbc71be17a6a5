//! Restores tensors under transformers' names: the reverse of [`crate::convert::tensors`].

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value as Json;

use crate::arch::Operation;
use crate::arch::chain::{Chain, PartChain, Stock, chain};
use crate::arch::lookup::{Slot, own_spelling, slots};
use crate::arch::params::Params;
use crate::arch::steps::{Step, indexed, joined, reshaped};
use crate::arch::wrapper::{LANGUAGE_MODEL, wrapped_name};
use crate::convert::source_record::Record;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::Metadata;
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};
use crate::source::show_shape;

/// Tensors that become fields of the config.
pub(crate) const FIELDS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Every tensor that the config asks for, made from `stored`. Without an `outtype`, matrices keep their types
/// (quantized ones become F16), and tensors that GGUF always stores in F32 get the matrices' type if that changes no
/// value. A `record` of the source's names and types takes precedence.
pub(super) fn plan(
    params: &Params,
    metadata: &Metadata,
    stored: &[TensorRef],
    outtype: Option<DType>,
    record: Option<&Record>,
) -> Result<Plan> {
    let main = main_type(stored);
    let mut restored = Restored {
        params,
        metadata,
        record,
        by_name: stored.iter().map(|t| (t.info().name.as_str(), t)).collect(),
        used: FIELDS.iter().map(|name| (*name).to_owned()).collect(),
        most: parts(stored),
        values: stored.iter().map(|tensor| tensor.info().shape.iter().product::<usize>()).sum(),
        whole: Vec::new(),
        pieces: BTreeMap::new(),
    };
    for slot in slots(params, restored.most)? {
        restored.take(&slot)?;
    }
    restored.join_pieces()?;
    restored.made_of_keys()?;
    let Restored { used, whole, .. } = restored;
    if let Some(tensor) = stored.iter().find(|tensor| !used.contains(&tensor.info().name)) {
        return Err(Finding::new(metadata.file(), format!("tensor {:?}", tensor.info().name))
            .expected(format_args!("only tensors that {} has", params.family.class()))
            .found(format_args!("this one, {}", show_shape(&tensor.info().shape)))
            .unsupported());
    }
    let model_layers = params.size("main")?;
    let mut tensors = Vec::new();
    let mut seen = HashSet::new();
    for Source { name, dtype, expr } in whole {
        // Two rows may copy the same tensor.
        if !seen.insert(name.clone()) {
            continue;
        }
        let class_name = own_spelling(params.family, &name, model_layers);
        let name = match (record, &params.family.inside) {
            (Some(record), _) => record.name(&class_name).to_owned(),
            (None, Some(_)) => wrapped_name(LANGUAGE_MODEL, &class_name),
            (None, None) => class_name,
        };
        let expr = match record {
            Some(record) => record.completed(metadata, &name, expr)?,
            None => expr,
        };
        let shape = expr.shape();
        let mut tensor = PlannedTensor { name, dtype, shape, expr };
        tensor.dtype = match outtype {
            Some(dtype) => dtype,
            None => match record.and_then(|record| record.dtype(&tensor.name)) {
                Some(dtype) => dtype,
                None => own_type(&tensor, main)?,
            },
        };
        tensors.push(tensor);
    }
    Ok(Plan { tensors })
}

/// A tensor of the checkpoint, under the class's name.
struct Source {
    name: String,
    /// The type in GGUF.
    dtype: DType,
    expr: Expr,
}

/// A part of a tensor of the checkpoint: some indices of a dimension, after the steps before.
struct Piece {
    part: PartChain,
    /// The number of steps before the part is taken.
    before: usize,
    expr: Expr,
    dtype: DType,
    gguf_name: String,
}

struct Restored<'a> {
    params: &'a Params,
    metadata: &'a Metadata,
    record: Option<&'a Record>,
    by_name: HashMap<&'a str, &'a TensorRef>,
    used: HashSet<String>,
    /// The number of checkpoint tensors that there can be.
    most: usize,
    /// The number of values in all tensors.
    values: usize,
    whole: Vec<Source>,
    /// By the name of the first tensor that they are part of.
    pieces: BTreeMap<String, Vec<Piece>>,
}

/// What a GGUF tensor can be a part of.
struct Stored<'a> {
    shape: &'a [usize],
    /// The number of values in all tensors.
    values: usize,
}

impl Stock for Stored<'_> {
    fn shape_of(&self, _: &str) -> Option<Vec<usize>> {
        Some(self.shape.to_vec())
    }

    fn can_have(&self, shape: &[usize]) -> bool {
        // Parts that no GGUF tensor holds become zeros, so a tensor may be larger than what is stored of it.
        let values = shape.iter().try_fold(1usize, |values, size| values.checked_mul(*size));
        values.is_some_and(|values| values <= self.values.saturating_mul(8))
    }
}

impl Restored<'_> {
    /// Undoes what made one GGUF tensor.
    fn take(&mut self, slot: &Slot) -> Result<()> {
        let name = slot.gguf_name(self.params)?;
        let form = match self.record {
            Some(record) => record.form(slot.row),
            None => self.form(slot)?,
        };
        let finding = || Finding::new(self.metadata.file(), format!("tensor {name:?}"));
        let Some(source) = self.by_name.get(name.as_str()).copied() else {
            if slot.is_optional || slot.row.is_copy {
                return Ok(());
            }
            return Err(finding()
                .expected(format_args!("it, for {}", slot.row.forms[form].parts[0].name.text()))
                .found("none of that name")
                .hint("the file may be of another architecture, or damaged")
                .mismatch());
        };
        if slot.row.is_copy {
            self.used.insert(name);
            return Ok(());
        }
        if let Some((kept, _)) = &slot.row.kept_type
            && kept.whole().is_some()
        {
            return self.take_whole_numbers(slot, &name, source);
        }
        let stored = source.info().shape.clone();
        let stock = Stored { shape: &stored, values: self.values };
        let chain = match chain(self.params, slot, form, self.most, &stock)? {
            Ok(chain) => chain,
            Err((expected, found)) => return Err(finding().expected(expected).found(found).mismatch()),
        };
        let Some(expr) = fitting(Expr::Take(source.clone()), &chain, slot.row.is_trimmed()) else {
            return Err(finding()
                .expected(format_args!("the values of {} {}", chain.parts[0].names[0], show_shape(&chain.shape)))
                .found(format_args!("shape {}", show_shape(&stored)))
                .mismatch());
        };
        let dtype = source.info().dtype;
        self.used.insert(name.clone());
        let Chain { mut parts, join, steps, .. } = chain;
        if let [part] = parts.as_mut_slice() {
            // The operations of a single part and those of the whole follow each other.
            for step in steps {
                let shape = step.shape(part.shapes.last().map_or(&[], Vec::as_slice));
                part.shapes.push(shape);
                part.steps.push(step);
            }
            let part = parts.remove(0);
            return self.undo(part, expr, dtype, &name);
        }
        let mut expr = expr;
        for step in steps.iter().rev() {
            let back = step.inverse().filter(|_| !step.is_part()).ok_or_else(|| self.undone(&name, step))?;
            expr = back.apply(expr, DType::F32)?;
        }
        let mut start = 0;
        for part in parts {
            let size = part.shapes.last().map_or(0, |shape| shape[join]);
            let range: Vec<usize> = (start..start + size).collect();
            start += size;
            self.undo(part, indexed(expr.clone(), join, &range), dtype, &name)?;
        }
        Ok(())
    }

    /// The first form of a row that may be taken.
    fn form(&self, slot: &Slot) -> Result<usize> {
        for (number, form) in slot.row.forms.iter().enumerate() {
            if self.params.holds(form.when.as_ref(), slot.layer)? {
                return Ok(number);
            }
        }
        Ok(0)
    }

    /// Adds the tensors whose values are in keys.
    fn made_of_keys(&mut self) -> Result<()> {
        let layers = self.params.layers()?;
        for restore in &self.params.family.restores {
            let places = if restore.name.has_layer() { (0..layers).map(Some).collect() } else { vec![None] };
            for layer in places {
                let sizes = restore.shape.iter().map(|size| self.params.size_of(size, layer));
                let shape = sizes.collect::<Result<Vec<usize>>>()?;
                let value = self.params.value_of(&restore.values, layer)?;
                let values: Option<Vec<f32>> = match &value {
                    Json::Array(values) => values.iter().map(|value| Some(value.as_f64()? as f32)).collect(),
                    value => value.as_f64().map(|value| vec![value as f32]),
                };
                let name = restore.name.filled(layer, None, &|formula| self.params.whole_of(formula, layer))?;
                let values =
                    values.filter(|values| values.len() == shape.iter().product::<usize>()).ok_or_else(|| {
                        let expected = format!("keys for the values of {name} {}", show_shape(&shape));
                        Finding::new(self.metadata.file(), "keys").expected(expected).found(&value).mismatch()
                    })?;
                let expr = Expr::Values { shape, values: values.into() };
                self.whole.push(Source { name, dtype: DType::F32, expr });
            }
        }
        Ok(())
    }

    /// Undoes what made a tensor of whole numbers.
    fn take_whole_numbers(&mut self, slot: &Slot, name: &str, source: &TensorRef) -> Result<()> {
        let info = source.info();
        let finding = || Finding::new(self.metadata.file(), format!("tensor {name:?}"));
        let numbers = source.whole_numbers();
        let mut numbers = numbers.ok_or_else(|| finding().expected("whole numbers").found(info.dtype).mismatch())?;
        let form = &slot.row.forms[0];
        if form
            .operations
            .iter()
            .any(|operation| matches!(operation, Operation::Procedure(name) if name == "absolute_ids"))
        {
            numbers.iter_mut().zip(0..).for_each(|(number, place)| *number = number.wrapping_sub(place));
        }
        let part = slot.row.source();
        let source_name = part.name.filled(slot.layer, None, &|formula| self.params.whole_of(formula, slot.layer))?;
        if let Some(tensor) = TensorRef::of_whole_numbers(DType::I64, info.shape.clone(), &numbers) {
            self.whole.push(Source { name: source_name, dtype: DType::I64, expr: Expr::Take(tensor) });
        }
        self.used.insert(name.to_owned());
        Ok(())
    }

    /// Undoes the steps of a part, up to the step that takes some of it.
    fn undo(&mut self, part: PartChain, expr: Expr, dtype: DType, gguf_name: &str) -> Result<()> {
        let mut expr = expr;
        for (number, step) in part.steps.iter().enumerate().rev() {
            // Rows past the vocabulary aren't in the file.
            let is_kept = matches!(step, Step::Ternary)
                || matches!(step, Step::Procedure(procedure) if procedure.is_equivalent());
            if is_kept || matches!(step, Step::Trim { .. }) {
                continue;
            }
            if step.is_part() {
                let piece = Piece { before: number, expr, dtype, gguf_name: gguf_name.to_owned(), part };
                self.pieces.entry(piece.part.names[0].clone()).or_default().push(piece);
                return Ok(());
            }
            let Some(back) = step.inverse() else {
                return Err(self.undone(gguf_name, step));
            };
            expr = back.apply(expr, DType::F32)?;
        }
        self.unstack(&part, expr, dtype, gguf_name)
    }

    /// Adds a part's tensors.
    fn unstack(&mut self, part: &PartChain, expr: Expr, dtype: DType, gguf_name: &str) -> Result<()> {
        if !part.is_stack {
            self.whole.push(Source { name: part.names[0].clone(), dtype, expr });
            return Ok(());
        }
        let each = part.each_steps.iter().fold(part.each.clone(), |shape, step| step.shape(&shape));
        let rows: usize = match each.as_slice() {
            [_] => 1,
            shape => crate::source::rows(shape),
        };
        for (place, name) in part.names.iter().enumerate() {
            let one = match each.as_slice() {
                [width] => reshaped(Expr::slice(expr.clone(), place, 1, vec![1, *width]), vec![*width]),
                shape => Expr::slice(expr.clone(), place * rows, rows, shape.to_vec()),
            };
            self.undo(part.single(name), one, dtype, gguf_name)?;
        }
        Ok(())
    }

    /// The error for a tensor that a step has changed for good.
    fn undone(&self, gguf_name: &str, step: &Step) -> crate::Error {
        Finding::new(self.metadata.file(), format!("tensor {gguf_name:?}"))
            .expected("a tensor whose values can be turned back")
            .found(format_args!("values changed by `{}`", step.name()))
            .unsupported()
    }

    /// Joins the parts of each tensor. What no GGUF tensor holds are zeros, if the record doesn't have it.
    fn join_pieces(&mut self) -> Result<()> {
        for (name, mut pieces) in std::mem::take(&mut self.pieces) {
            let finding = |piece: &Piece| Finding::new(self.metadata.file(), format!("tensor {:?}", piece.gguf_name));
            let first = pieces.remove(0);
            let Step::Index { dim, of, index } = first.part.steps[first.before].clone() else { continue };
            let mut from = index.to_vec();
            let mut exprs = vec![first.expr.clone()];
            for piece in &pieces {
                let same = piece.before == first.before
                    && piece.part.steps[..piece.before] == first.part.steps[..first.before];
                match &piece.part.steps[piece.before] {
                    Step::Index { dim: other, of: size, index } if same && *other == dim && *size == of => {
                        from.extend(index.iter());
                        exprs.push(piece.expr.clone());
                    }
                    _ => {
                        return Err(finding(piece).expected("parts that fit each other").found(name).unsupported());
                    }
                }
            }
            let mut place = vec![usize::MAX; of];
            for (there, &here) in from.iter().enumerate() {
                place[here] = there;
            }
            let lacking: Vec<usize> = (0..of).filter(|here| place[*here] == usize::MAX).collect();
            if lacking.len() > from.len() {
                // The number comes from the file, so it is limited to the number of those that are there.
                let expected = format!("at most {} places that the file lacks", from.len());
                return Err(finding(&first).expected(expected).found(lacking.len()).mismatch());
            }
            if !lacking.is_empty() {
                let mut shape = first.part.shapes[first.before].clone();
                shape[dim] = lacking.len();
                let lost = match self.record {
                    Some(record) => record.lost(self.metadata, self.params, &name, &shape)?,
                    None => None,
                };
                let zeros = || Expr::Values { shape: shape.clone(), values: vec![0.0; shape.iter().product()].into() };
                exprs.push(lost.unwrap_or_else(zeros));
                for (number, here) in lacking.iter().enumerate() {
                    place[*here] = from.len() + number;
                }
            }
            let mut expr = indexed(joined(exprs, dim), dim, &place);
            for step in first.part.steps[..first.before].iter().rev() {
                let Some(back) = step.inverse() else {
                    let found = format!("values changed by {step:?}");
                    return Err(finding(&first)
                        .expected("a tensor whose values can be turned back")
                        .found(found)
                        .unsupported());
                };
                expr = back.apply(expr, DType::F32)?;
            }
            self.unstack(&first.part, expr, first.dtype, &first.gguf_name)?;
        }
        Ok(())
    }
}

/// The GGUF tensor in the shape that the steps give. A file may lack a leading dimension of 1, and rows past the
/// vocabulary.
fn fitting(of: Expr, chain: &Chain, is_trimmed: bool) -> Option<Expr> {
    let stored = of.shape();
    let wanted = &chain.shape;
    if stored == *wanted {
        return Some(of);
    }
    if wanted.first() == Some(&1) && wanted[1..] == *stored || stored.first() == Some(&1) && stored[1..] == **wanted {
        return Some(reshaped(of, wanted.clone()));
    }
    let same_rest = !stored.is_empty() && stored.len() == wanted.len() && stored[1..] == wanted[1..];
    (is_trimmed && same_rest).then_some(of)
}

/// The number of checkpoint tensors that `stored` can hold, given that experts and heads are stacked.
fn parts(stored: &[TensorRef]) -> usize {
    let parts = |tensor: &TensorRef| match *tensor.info().shape.as_slice() {
        [count, _, _] => count,
        [count, _] if tensor.info().name.ends_with("_norm.weight") => count,
        _ => 1,
    };
    stored.iter().map(parts).fold(0, usize::saturating_add)
}

/// The type of most matrix elements, as a checkpoint would store it.
pub(super) fn main_type(stored: &[TensorRef]) -> DType {
    let mut counts: HashMap<DType, usize> = HashMap::new();
    for info in stored.iter().map(TensorRef::info).filter(|info| info.shape.len() > 1) {
        *counts.entry(plain(info.dtype)).or_default() += info.elems();
    }
    counts.into_iter().max_by_key(|(dtype, count)| (*count, *dtype)).map_or(DType::F32, |(dtype, _)| dtype)
}

/// The checkpoint type for a quantized type; plain types stay.
fn plain(dtype: DType) -> DType {
    if dtype.is_plain() { dtype } else { DType::F16 }
}

/// The type of a tensor where none was requested.
fn own_type(tensor: &PlannedTensor, main: DType) -> Result<DType> {
    let dtype = plain(tensor.dtype);
    if dtype != DType::F32 || !matches!(main, DType::F16 | DType::BF16) {
        return Ok(dtype);
    }
    let wide = PlannedTensor { dtype: DType::F32, ..tensor.clone() };
    let narrow = PlannedTensor { dtype: main, ..tensor.clone() };
    // A value that overflows the narrow type is an error of this read only: the tensor then stays F32.
    let unchanged = narrow.read().is_ok_and(|narrow| wide.read().is_ok_and(|wide| wide == narrow));
    Ok(if unchanged { main } else { DType::F32 })
}
