//! Merges adapters into their base: changes to tensors become the plan of the merged model.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use crate::adapter::peft::{Base, Change, Changes, stack_delta};
use crate::error::{Finding, Result};
use crate::merge::combine::Weights;
use crate::plan::{Expr, Number, Plan, PlannedTensor, RowMap};
use crate::source::show_shape;

/// A merged model.
#[derive(Debug)]
pub struct Merged {
    /// Its tensors: the base's in the base's order, followed by an output head that is no longer tied.
    pub plan: Plan,
    /// The names of the tensors that differ from the base's.
    pub changed: HashSet<String>,
    /// Whether the output head was tied to the embeddings in the base and is a separate tensor in the merged model.
    /// Then config.json must be changed as well.
    pub untied: bool,
}

/// Merges adapters into `plan`, which has the weights of `base`. Each adapter's changes are multiplied by its share,
/// which `shares` gives for each tensor. The changes are computed separately, summed in f32, and rounded once.
///
/// # Errors
/// [`crate::Error::Mismatch`] for two adapters that replace the same tensor, and if the number of shares isn't that of
/// adapters.
pub fn with_adapters(base: &Base, plan: &Plan, adapters: &[Changes], shares: &Weights) -> Result<Merged> {
    shares.check(adapters.len(), adapters.iter().flat_map(|of| &of.changes).map(|(name, _)| name.as_str()))?;
    let mut by_tensor: BTreeMap<&str, Vec<(&[Change], f64)>> = BTreeMap::new();
    let grouped: Vec<BTreeMap<&str, Vec<Change>>> = adapters.iter().map(group).collect();
    for (i, changes) in grouped.iter().enumerate() {
        for (name, changes) in changes {
            by_tensor.entry(name).or_default().push((changes, shares.of(name)[i]));
        }
    }
    let unmerged = plan;
    let mut plan = plan.clone();
    let mut names: HashSet<String> = by_tensor.keys().map(|name| (*name).to_owned()).collect();
    for tensor in &mut plan.tensors {
        if let Some(changes) = by_tensor.get(base.main_name(&tensor.name)) {
            *tensor = changed(tensor, changes)?;
            names.insert(tensor.name.clone());
        }
    }
    put_back(base, unmerged, &mut plan, &by_tensor, &mut names)?;
    plan.tensors.extend(added_tensors(base, &plan, &by_tensor)?);
    let Some(head) = base.tied_head() else { return Ok(Merged { plan, changed: names, untied: false }) };
    let embeddings = base.embeddings().map(|t| t.name.as_str()).unwrap_or_default();
    let touched = by_tensor.contains_key(head.name.as_str())
        || by_tensor.contains_key(embeddings) && !adapters.iter().all(|changes| changes.keeps_tie);
    if !touched {
        return Ok(Merged { plan, changed: names, untied: false });
    }
    let head = match by_tensor.get(head.name.as_str()) {
        Some(changes) => changed(head, changes)?,
        None => head.clone(),
    };
    let head_name = head.name.clone();
    match plan.tensors.iter_mut().find(|tensor| tensor.name == head.name) {
        // A tied checkpoint can have a head that no model uses; replace it.
        Some(unused) => *unused = head,
        None => plan.tensors.push(head),
    }
    names.insert(head_name);
    Ok(Merged { plan, changed: names, untied: true })
}

/// Puts the changes of tensors that the class splits off or joins into the tensors of `plan`, which have the changes of
/// their own already. `unmerged` is the plan without any change.
fn put_back(
    base: &Base,
    unmerged: &Plan,
    plan: &mut Plan,
    by_tensor: &BTreeMap<&str, Vec<(&[Change], f64)>>,
    names: &mut HashSet<String>,
) -> Result<()> {
    let exprs = |plan: &Plan, stored: &[usize]| -> Vec<Expr> {
        stored.iter().map(|place| plan.tensors[*place].expr.clone()).collect()
    };
    for regrouped in base.regrouped() {
        if !regrouped.parts.iter().any(|part| by_tensor.contains_key(part.name.as_str())) {
            continue;
        }
        let (before, mut after) = (
            regrouped.parts_of(&exprs(unmerged, &regrouped.stored)),
            regrouped.parts_of(&exprs(plan, &regrouped.stored)),
        );
        for ((part, before), after) in regrouped.parts.iter().zip(before).zip(&mut after) {
            if let Some(changes) = by_tensor.get(part.name.as_str()) {
                let part = PlannedTensor { expr: before, ..part.clone() };
                *after = changed_from(after.clone(), &part, changes)?.expr;
                names.remove(&part.name);
            }
        }
        for (place, expr) in regrouped.stored.iter().zip(regrouped.stored_of(&after)) {
            plan.tensors[*place].expr = expr;
            names.insert(plan.tensors[*place].name.clone());
        }
    }
    Ok(())
}

/// The tensors that adapters have and `plan` doesn't: the head of a class for a task.
fn added_tensors(
    base: &Base,
    plan: &Plan,
    by_tensor: &BTreeMap<&str, Vec<(&[Change], f64)>>,
) -> Result<Vec<PlannedTensor>> {
    let mut known: HashSet<&str> = plan.tensors.iter().map(|tensor| base.main_name(&tensor.name)).collect();
    known.extend(base.regrouped().iter().flat_map(|regrouped| &regrouped.parts).map(|part| part.name.as_str()));
    let is_tied_head = |name: &str| base.tied_head().is_some_and(|head| head.name == name);
    let mut added = Vec::new();
    for (name, adapters) in by_tensor.iter().filter(|(name, _)| !known.contains(**name) && !is_tied_head(name)) {
        let all: Vec<&Change> = adapters.iter().flat_map(|(changes, _)| changes.iter()).collect();
        let [Change::Replace(tensor)] = all.as_slice() else {
            return Err(Finding::new(base.path(), format!("tensor {name:?}"))
                .expected("one adapter that has it whole, as the base has none of that name")
                .found(format_args!("{} changes", all.len()))
                .mismatch());
        };
        added.push(PlannedTensor { name: (*name).to_owned(), ..tensor.clone() });
    }
    Ok(added)
}

/// An adapter's changes by tensor, in the order of application.
fn group(changes: &Changes) -> BTreeMap<&str, Vec<Change>> {
    let mut grouped: BTreeMap<&str, Vec<Change>> = BTreeMap::new();
    for (name, change) in &changes.changes {
        grouped.entry(name).or_default().push(change.clone());
    }
    grouped
}

/// `tensor` with the changes of all adapters.
fn changed(tensor: &PlannedTensor, adapters: &[(&[Change], f64)]) -> Result<PlannedTensor> {
    changed_from(tensor.expr.clone(), tensor, adapters)
}

/// `start`, which is `tensor` with other changes, with those of all adapters too.
fn changed_from(start: Expr, tensor: &PlannedTensor, adapters: &[(&[Change], f64)]) -> Result<PlannedTensor> {
    let replaces = |changes: &&(&[Change], f64)| changes.0.iter().any(|c| matches!(c, Change::Replace(_)));
    if adapters.iter().filter(replaces).count() > 1 {
        return Err(Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
            .expected("at most one adapter that has it whole (modules_to_save)")
            .found("two")
            .hint("merge them one after the other if the last is to stay")
            .mismatch());
    }
    let expr = match adapters {
        [(changes, 1.0)] => changes.iter().fold(start, |expr, change| change.apply(expr)),
        // What counts nothing is left out: adding its zeros would change the sign of zeros.
        _ => adapters
            .iter()
            .filter(|(_, weight)| *weight != 0.0)
            .fold(start, |sum, (changes, weight)| added(sum, &tensor.expr, changes, *weight)),
    };
    check_shape(tensor, &expr)?;
    Ok(PlannedTensor { expr, ..tensor.clone() })
}

/// `sum` plus `weight` times the difference that `changes` make to `base`.
fn added(sum: Expr, base: &Expr, changes: &[Change], weight: f64) -> Expr {
    let add = |of: Expr, delta: Expr| Expr::Add { of: Box::new(of), delta: Box::new(delta) };
    let additive =
        changes.iter().all(|change| matches!(change, Change::LowRank(_) | Change::Stack(_) | Change::Add(_)));
    if !additive {
        let after = changes.iter().fold(base.clone(), |expr, change| change.apply(expr));
        return Expr::Map { of: vec![sum, after, base.clone()], map: Arc::new(Toward { weight }) };
    }
    changes.iter().fold(sum, |sum, change| match change {
        Change::LowRank(update) => add(sum, update.weighted(weight).delta()),
        Change::Stack(updates) => add(sum, Expr::Scale { of: Box::new(stack_delta(updates)), factor: weight }),
        Change::Add(delta) => add(sum, Expr::Scale { of: Box::new(delta.clone()), factor: weight }),
        _ => sum,
    })
}

/// `sum + weight * (after - before)`.
#[derive(Debug)]
struct Toward {
    weight: f64,
}

impl<T: Number> RowMap<T> for Toward {
    fn apply(&self, _: Range<usize>, _: usize, others: &[Vec<T>], out: &mut [T]) {
        let [after, before] = others else { return };
        let weight = T::of(self.weight);
        for ((sum, after), before) in out.iter_mut().zip(after).zip(before) {
            *sum += weight * (*after - *before);
        }
    }

    fn in_f64(&self) -> Option<&dyn RowMap<f64>> {
        Some(self)
    }
}

fn check_shape(tensor: &PlannedTensor, expr: &Expr) -> Result<()> {
    let shape = expr.shape();
    if shape == tensor.shape {
        return Ok(());
    }
    Err(Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
        .expected(show_shape(&tensor.shape))
        .found(format_args!("{} after the adapter", show_shape(&shape)))
        .mismatch())
}
