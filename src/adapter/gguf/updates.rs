//! The updates of a base's tensors as updates of the tensors of its GGUF, by the forms of the family.

use std::collections::{HashMap, HashSet};

use super::GgufNames;
use super::factors::Factors;
use crate::adapter::peft::{Change, LowRank};
use crate::arch::Role;
use crate::arch::chain::{Chain, Stock, chain};
use crate::arch::language::Facts;
use crate::arch::lookup::{available, class_spelling, slots};
use crate::arch::params::Params;
use crate::arch::steps::Step;
use crate::error::Result;

/// More tensors than any model has: the limit for the tensors that a config may ask for.
pub(super) const MANY: usize = 1 << 18;

/// An update of a base's tensor.
pub(super) struct Update<'a> {
    /// The name of the tensor in the base's files.
    pub(super) name: &'a str,
    /// Its place in the adapter's file, by which updates are sorted.
    pub(super) place: Option<usize>,
    pub(super) change: &'a Change,
}

/// An update of a GGUF tensor.
pub(super) struct GgufUpdate {
    /// The tensor.
    pub(super) name: String,
    pub(super) factors: Factors,
    /// The index of the first update that it is made of.
    pub(super) source: usize,
    /// The place of the last update that it is made of.
    place: Option<usize>,
}

/// Why there is no update for the GGUF of an update: the index of the update, and what was found.
pub(super) type Refused = (usize, &'static str);

/// The updates of GGUF tensors, in the order of the adapter's file.
///
/// # Errors
/// Errors of the family's formulas; `Ok(Err(..))` for an update that no GGUF tensor can have.
pub(super) fn of_gguf(names: &GgufNames, updates: &[Update]) -> Result<std::result::Result<Vec<GgufUpdate>, Refused>> {
    let spelled = |name: &str| class_spelling(names.params.family, name, names.main);
    let by_name: HashMap<String, usize> =
        updates.iter().enumerate().map(|(id, update)| (spelled(update.name), id)).collect();
    let largest = updates.iter().flat_map(|update| low_rank(update.change).unwrap_or_default());
    let largest = largest.flat_map(|update| [&update.a, &update.b].map(|factor| factor.shape())).flatten().max();
    let stock = Weights { params: &names.params, largest: largest.unwrap_or_default() };
    let (mut made, mut used) = (Vec::new(), HashSet::new());
    for slot in slots(&names.params, MANY)? {
        let Some((form, there)) = available(&names.params, &slot, MANY)? else { continue };
        let ids: Vec<usize> = there.iter().filter_map(|tensor| by_name.get(&tensor.name)).copied().collect();
        let Some(&id) = ids.first() else { continue };
        let factors = match chain(&names.params, &slot, form, MANY, &stock)? {
            Ok(chain) => of_chain(&chain, &by_name, updates),
            Err(_) => None,
        };
        let Some(factors) = factors else {
            // Numbers of the config, which have a weight's shape alone.
            if slot.row.is_copy && matches!(slot.row.role, Role::QNorm | Role::KNorm) {
                continue;
            }
            return Ok(Err((id, "one whose update is no product of two factors in the GGUF")));
        };
        let place = ids.iter().filter_map(|id| updates[*id].place).max();
        used.extend(ids);
        let stack = slot.row.forms[form].parts.iter().find(|part| part.stack.is_some());
        let group = stack.map(|part| (slot.layer, part.name.before_place()));
        made.push((group, GgufUpdate { name: slot.gguf_name(&names.params)?, factors, source: id, place }));
    }
    if let Some(id) = (0..updates.len()).find(|id| !used.contains(id)) {
        return Ok(Err((id, "one that it hasn't")));
    }
    // The reference writes the stacks of a layer when all are complete.
    let mut ends: HashMap<_, Option<usize>> = HashMap::new();
    for (group, update) in made.iter().filter(|(group, _)| group.is_some()) {
        let end = ends.entry(*group).or_default();
        *end = (*end).max(update.place);
    }
    made.sort_by_key(|(group, update)| ends.get(group).copied().unwrap_or(update.place));
    Ok(Ok(made.into_iter().map(|(_, update)| update).collect()))
}

/// The base's weights.
struct Weights<'a> {
    params: &'a Params,
    /// The largest size in an update.
    largest: usize,
}

impl Stock for Weights<'_> {
    fn shape_of(&self, name: &str) -> Option<Vec<usize>> {
        self.params.shape(name)
    }

    fn can_have(&self, shape: &[usize]) -> bool {
        // Of a base without weights, only the adapter's own sizes are certain; what they are joined with is alike.
        shape.iter().all(|size| *size <= self.largest.saturating_mul(64))
    }
}

/// The factors of the tensor that the chain's tensors become.
fn of_chain(chain: &Chain, by_name: &HashMap<String, usize>, updates: &[Update]) -> Option<Factors> {
    let after = |factors: Factors, steps: &[Step]| steps.iter().try_fold(factors, Factors::after);
    let mut parts = Vec::new();
    for part in &chain.parts {
        let mut each = Vec::new();
        for name in &part.names {
            let factors = match by_name.get(name) {
                None => None,
                Some(id) => Some(after(of_change(updates[*id].change, *id)?, &part.each_steps)?),
            };
            each.push(factors);
        }
        let factors = match part.is_stack {
            _ if each.iter().all(Option::is_none) => None,
            true => Some(Factors::stacked(each)?),
            false => each.pop()?,
        };
        let factors = match factors {
            Some(factors) => Some(after(factors, &part.steps)?),
            None => None,
        };
        parts.push((factors, part.shapes.last()?.clone()));
    }
    after(Factors::joined(parts, chain.join)?, &chain.steps)
}

fn of_change(change: &Change, id: usize) -> Option<Factors> {
    match change {
        Change::LowRank(update) => Some(Factors::of(update, id)),
        Change::Stack(updates) => Factors::of_stack(updates, id),
        _ => None,
    }
}

/// The low-rank updates of a change, if it consists of them.
pub(super) fn low_rank(change: &Change) -> Option<&[LowRank]> {
    match change {
        Change::LowRank(update) => Some(std::slice::from_ref(update)),
        Change::Stack(updates) => Some(updates),
        _ => None,
    }
}
