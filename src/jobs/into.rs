//! Writes new values into a PyTorch file: the same archive, in which only the storages of these tensors change.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::arch::permuted;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::FileKind;
use crate::formats::pytorch::PytorchFile;
use crate::output::{Form, Output};
use crate::plan::{Plan, PlannedTensor};
use crate::source::{Source, show_shape};

/// The tensors of a file that get new values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part<'a> {
    /// The dotted key of the dictionary that holds them.
    pub(super) key: Option<&'a str>,
    /// What is taken off their names.
    pub(super) prefix: Option<&'a str>,
}

impl Part<'_> {
    /// The name without the prefix.
    fn bare<'n>(&self, name: &'n str) -> &'n str {
        let stripped = self.prefix.and_then(|prefix| name.strip_prefix(prefix)).filter(|rest| !rest.is_empty());
        stripped.unwrap_or(name)
    }
}

/// The file at `original` with the values of `plan` in place of those of the tensors of the same names. `shared` is what
/// [`Plan::shared`] gives for the tensors that the plan was made of. With `changed`, only tensors of these names are
/// written.
///
/// # Errors
/// Errors of opening the file; [`crate::Error::Mismatch`] for a tensor that it doesn't have, or has in another type or
/// shape, and for two different tensors for one storage.
pub(super) fn output(
    original: &Path,
    part: Part,
    plan: &Plan,
    shared: &[usize],
    changed: Option<&HashSet<String>>,
) -> Result<Output> {
    if let Some(kind) = FileKind::of(original)?.filter(|kind| *kind != FileKind::Pytorch) {
        let finding = Finding::new(original, "into").expected("a PyTorch file, to write values into");
        return Err(finding.found(kind).mismatch());
    }
    let file = PytorchFile::open_whole(original, part.key)?;
    let numbers: HashMap<String, usize> =
        file.tensors().iter().enumerate().map(|(number, info)| (part.bare(&info.name).to_owned(), number)).collect();
    let (mut written, mut places) = (Plan::default(), Vec::new());
    // For every storage, the place in the plan of the tensor that it gets.
    let mut taken: HashMap<usize, usize> = HashMap::new();
    for (place, tensor) in plan.tensors.iter().enumerate() {
        let finding = || Finding::new(original, format!("tensor {:?}", tensor.name));
        let Some(&number) = numbers.get(&tensor.name) else {
            let found = part.key.map_or_else(|| "none".to_owned(), |key| format!("none under {key:?}"));
            return Err(finding()
                .expected("a tensor of this name, to get the new values")
                .found(found)
                .hint("`into_key` chooses the part with the weights, and `strip_prefix` shortens names")
                .mismatch());
        };
        let own = &file.tensors()[number];
        if (own.dtype, &own.shape) != (tensor.dtype, &tensor.shape) {
            return Err(finding()
                .expected(format_args!("{} {}, which its storage has room for", own.dtype, show_shape(&own.shape)))
                .found(format_args!("{} {}", tensor.dtype, show_shape(&tensor.shape)))
                .mismatch());
        }
        if changed.is_some_and(|changed| !changed.contains(&tensor.name)) {
            continue;
        }
        let storage = file.first_of_same(number);
        let Some(&first) = taken.get(&storage) else {
            taken.insert(storage, place);
            written.tensors.push(in_stored_order(tensor, &file.stored_order(number)?, original)?);
            places.push(number);
            continue;
        };
        let other = &plan.tensors[first];
        let of = |place: usize| shared.get(place).copied().unwrap_or(place);
        if of(place) != of(first) && !same_bytes(tensor, other)? {
            return Err(finding()
                .expected(format_args!("the values of {:?}: both are names of one storage", other.name))
                .found("others: two different changes of one storage")
                .mismatch());
        }
    }
    let mut output = Output::folder("model", written);
    let kept = (0..file.tensors().len()).filter(|number| !taken.contains_key(&file.first_of_same(*number))).count();
    if changed.is_none() && kept > 0 {
        output.notes.push(format!("{}: {kept} of its tensors have no new values, and stay", original.display()));
    }
    let too = file.overlapping(&places);
    if !too.is_empty() {
        let names = too.join(", ");
        output.notes.push(format!("{}: parts of changed tensors, which change with them: {names}", original.display()));
    }
    output.form = Form::Rewritten { original: Arc::new(file.stored(part.key, &places)?), places };
    Ok(output)
}

/// A note on the tensors of a PyTorch file that have bytes in common with the tensors called `changed`, where those are
/// written apart.
///
/// # Errors
/// Errors of opening the file.
pub(super) fn parts_that_stay(base: &Path, part: Part, changed: &HashSet<String>) -> Result<Option<String>> {
    if FileKind::of(base)? != Some(FileKind::Pytorch) {
        return Ok(None);
    }
    let file = PytorchFile::open_whole(base, part.key)?;
    let is_changed = |number: &usize| changed.contains(part.bare(&file.tensors()[*number].name));
    let places: Vec<usize> = (0..file.tensors().len()).filter(is_changed).collect();
    let names = file.overlapping(&places).join(", ");
    let note =
        format!("{}: in the file, these have values in common with changed tensors, and stay: {names}", base.display());
    Ok(Some(note).filter(|_| !names.is_empty()))
}

/// The tensor with its dimensions in the order in which they stand in a file: torch keeps transposed matrices, and kernels
/// whose channels come last, as they are in memory.
///
/// # Errors
/// [`crate::Error::Unsupported`] for types of which values are only carried.
fn in_stored_order(tensor: &PlannedTensor, order: &[usize], original: &Path) -> Result<PlannedTensor> {
    if order.is_sorted() {
        return Ok(tensor.clone());
    }
    if !matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
        return Err(Finding::new(original, format!("tensor {:?}", tensor.name))
            .expected("F32, F16, BF16 or F64, whose values are put into the order that its storage has")
            .found(tensor.dtype)
            .unsupported());
    }
    let expr = permuted(tensor.expr.clone(), order);
    Ok(PlannedTensor { shape: expr.shape(), expr, ..tensor.clone() })
}

/// Whether two tensors of one type are written with the same bytes.
fn same_bytes(one: &PlannedTensor, other: &PlannedTensor) -> Result<bool> {
    const ELEMS: usize = 1 << 20;
    let (rows, step) = (if one.elems() == 0 { 0 } else { one.rows() }, (ELEMS / one.row_len().max(1)).max(1));
    let (mut scratch, mut ours, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..rows).step_by(step) {
        let part = start..(start + step).min(rows);
        one.encode_rows(part.clone(), &mut scratch, &mut ours)?;
        other.encode_rows(part, &mut scratch, &mut theirs)?;
        if ours != theirs {
            return Ok(false);
        }
    }
    Ok(true)
}
