//! Converts a LoRA to llama.cpp's file.

use std::collections::HashMap;

use super::factors::turned;
use super::updates::{GgufUpdate, Update, low_rank, of_gguf};
use super::{EMBEDDINGS, GgufNames};
use crate::adapter::AdapterFiles;
use crate::adapter::peft::{Base, Change, LowRank, WeightLayout};
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::row_len;

/// The content of a LoRA's GGUF file.
pub(crate) struct GgufLora {
    /// The base's architecture.
    pub(crate) architecture: &'static str,
    /// The file's single alpha.
    pub(crate) alpha: f32,
    /// Invocation tokens: the LoRA acts on the tokens after these. Empty if it always acts.
    pub(crate) invocation_tokens: Vec<u32>,
    /// The factors.
    pub(crate) plan: Plan,
    /// Assumptions that were made.
    pub(crate) notes: Vec<String>,
}

/// Converts the LoRA in `files`, trained on `base`. Factors get the type `outtype`, or keep their own.
///
/// llama.cpp multiplies every update by alpha / rank, with one alpha for the file. That is the config's own lora_alpha
/// (with use_rslora: lora_alpha * sqrt(r)). Where patterns give a module another scale, its `lora_b` is multiplied by
/// the quotient of the scales, in f32 and rounded once.
///
/// # Errors
/// [`Error::Unsupported`] for what llama.cpp's adapters can't hold: DoRA, whole weights, biases, modules for which the
/// base's GGUF has no weight; errors of [`AdapterFiles::changes`].
pub(crate) fn to_gguf(files: &AdapterFiles, base: &Base, outtype: Option<DType>) -> Result<GgufLora> {
    let names = GgufNames::of(base)?;
    let changes = files.changes(base)?;
    let mut notes = changes.notes;
    let places: HashMap<&str, usize> =
        files.tensors().tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.as_str(), place)).collect();
    let place =
        |expr: &Expr| expr.sources().iter().filter_map(|source| places.get(&*source.info().name)).min().copied();
    let mut updates = Vec::new();
    for (name, change) in &changes.changes {
        match change {
            Change::LowRank(_) | Change::Stack(_) => {
                let factors = low_rank(change).unwrap_or_default().first();
                let place = factors.and_then(|first| place(&first.a).min(place(&first.b)));
                updates.push(Update { name, place, change });
            }
            Change::Replace(tensor) => whole_weight(files, base, name, tensor, &mut notes)?,
            Change::Rows { .. } => return Err(not_carried(files, name, "rows of the embeddings")),
            Change::Add(_) => return Err(not_carried(files, name, "a bias, or an update without factors")),
            Change::Map { .. } => {
                return Err(not_carried(files, name, "DoRA's magnitudes, or another factor of weights"));
            }
            Change::Kernel { .. } => return Err(not_carried(files, name, "an update of a convolution")),
        }
    }
    // Sorted by where modules first occur in the adapter's file.
    updates.sort_by_key(|update| update.place);
    let alpha = changes.alpha.unwrap_or(0.0) as f32;
    if !alpha.is_finite() {
        let finding = Finding::new(&changes.path, "lora_alpha").expected("a finite float32");
        return Err(finding.found(changes.alpha.unwrap_or(0.0)).mismatch());
    }
    for update in &updates {
        if is_of_embedding(update) != base.embeddings().is_some_and(|tensor| tensor.name == update.name) {
            let expected = "lora_embedding of embed_tokens and lora_A of linear layers";
            let finding = of_factors(files, update).expected(expected).found("one in the place of the other");
            return Err(finding.hint("merge the adapter into its base").unsupported());
        }
    }
    let made = match of_gguf(&names, &updates)? {
        Ok(made) => made,
        Err((id, found)) => {
            let expected = "a module whose weight the base's GGUF has";
            let finding = of_factors(files, &updates[id]).expected(expected).found(found);
            return Err(finding.hint("merge the adapter into its base").unsupported());
        }
    };
    let mut plan = Plan::default();
    for update in &made {
        factors(files, &names, alpha, outtype, update, &updates, &mut plan)?;
    }
    if plan.tensors.is_empty() {
        return Err(Finding::new(files.file(), "").expected("lora_A and lora_B tensors").found("none").format());
    }
    let invocation_tokens = changes.invocation_tokens;
    Ok(GgufLora { architecture: names.architecture(), alpha, invocation_tokens, plan, notes })
}

/// The error for a change of the base's tensor `name` that isn't low-rank.
fn not_carried(files: &AdapterFiles, name: &str, found: &str) -> Error {
    Finding::new(files.file(), format!("the change of {name:?}"))
        .expected("only lora_A and lora_B, all that a GGUF adapter can carry")
        .found(found)
        .hint("merge the adapter into its base and convert the result")
        .unsupported()
}

/// Handles a tensor that is no factor. PEFT saves embeddings together with adapters that act on them, so a copy of the
/// base's own tensor is left out. If the base's values aren't available, a `base_layer` weight counts as a copy, with a
/// note. Anything else is refused.
fn whole_weight(
    files: &AdapterFiles,
    base: &Base,
    name: &str,
    tensor: &PlannedTensor,
    notes: &mut Vec<String>,
) -> Result<()> {
    let own = tensor.expr.sources().first().map(|source| source.info().name.clone()).unwrap_or_default();
    match base.tensor(name) {
        Some(weight) if !is_at_hand(weight) && own.ends_with(".base_layer.weight") => {
            notes.push(format!("tensor {own:?} is left out: it is taken for the base's own, which is not at hand"));
            Ok(())
        }
        Some(weight) if is_at_hand(weight) && tensor.same_values(weight)? => Ok(()),
        _ => Err(Finding::new(files.file(), format!("tensor {own:?}"))
            .expected("only lora_A and lora_B, all that a GGUF adapter can carry")
            .found(match own.ends_with(".bias") {
                true => "a bias",
                false => "a whole weight that differs from the base's",
            })
            .hint("merge the adapter into its base and convert the result")
            .unsupported()),
    }
}

/// Whether the values of a base's tensor are available: see [`super::with_expected`].
fn is_at_hand(tensor: &PlannedTensor) -> bool {
    !matches!(&tensor.expr, Expr::Values { values, .. } if values.is_empty() && tensor.elems() > 0)
}

/// A finding about the factors of an update.
fn of_factors(files: &AdapterFiles, update: &Update) -> Finding {
    let factor = low_rank(update.change).and_then(<[_]>::first).map(|update| &update.a);
    let source = factor.and_then(|factor| factor.sources().first().map(|source| source.info().name.clone()));
    Finding::new(files.file(), format!("tensor {:?}", source.unwrap_or_else(|| update.name.to_owned())))
}

/// Whether it is the update of an embedding layer.
fn is_of_embedding(update: &Update) -> bool {
    matches!(update.change, Change::LowRank(LowRank { layout: WeightLayout::Embedding, .. }))
}

/// Adds the two factors of one update to `plan`.
fn factors(
    files: &AdapterFiles,
    names: &GgufNames,
    file_alpha: f32,
    outtype: Option<DType>,
    update: &GgufUpdate,
    updates: &[Update],
    plan: &mut Plan,
) -> Result<()> {
    let (name, source) = (update.name.as_str(), &updates[update.source]);
    let unsupported = |expected: &str, found: &str| {
        let finding = of_factors(files, source).expected(expected).found(found);
        Err(finding.hint("merge the adapter into its base").unsupported())
    };
    let embedding = is_of_embedding(source);
    if names.tied() && (embedding || name == "output.weight" || name == EMBEDDINGS) {
        let found = "embeddings that are the output head too, where llama.cpp would change both or neither";
        return unsupported("modules of their own", found);
    }
    let made = &update.factors;
    let (a, mut b) = match embedding {
        false => (made.a.clone(), made.b.clone()),
        // llama.cpp takes rows of the second factor.
        true => (made.b.clone(), turned(made.a.clone())),
    };
    let (alpha, rank) = (made.alpha(), made.rank());
    if alpha as f32 != file_alpha {
        // llama.cpp treats an alpha of 0 as none and multiplies by 1 instead of alpha / rank.
        let applied = if file_alpha == 0.0 { rank as f64 } else { f64::from(file_alpha) };
        b = Expr::Scale { of: Box::new(b), factor: alpha / applied };
    } else if file_alpha == 0.0 {
        b = Expr::Scale { of: Box::new(b), factor: 0.0 };
    }
    let types = |expr: &Expr| expr.sources().first().map(|source| source.info().dtype);
    let stored = types(&made.a).unwrap_or(DType::F32);
    for (end, expr) in [("lora_a", a), ("lora_b", b)] {
        let shape = expr.shape();
        let dtype = output_dtype(&shape, outtype, stored);
        plan.tensors.push(PlannedTensor { name: format!("{name}.{end}"), dtype, shape, expr });
    }
    Ok(())
}

/// A row that doesn't divide into blocks becomes F16 (conversion/base.py, `prepare_tensors`).
fn output_dtype(shape: &[usize], outtype: Option<DType>, source: DType) -> DType {
    let dtype = outtype.unwrap_or(source);
    if row_len(shape).is_multiple_of(dtype.block_elems()) { dtype } else { DType::F16 }
}
