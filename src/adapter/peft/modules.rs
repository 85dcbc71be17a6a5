//! What most kinds of adapters share: each module that the config selects has tensors of its own.

use std::collections::HashSet;

use super::Named;
use super::base::Base;
use super::entries::Entries;
use super::module_weight::Weight;
use super::targets::Targets;
use crate::error::Result;
use crate::json::Fields;

/// The changes of every module that has a tensor called `tensor`: see [`each_module_after`].
pub(super) fn each_module<'b>(
    fields: &mut Fields,
    entries: &mut Entries,
    base: &'b Base,
    tensor: &str,
    of: impl FnMut(&mut Entries, &str, &str) -> Result<(Weight<'b>, Vec<Named>)>,
) -> Result<Vec<Named>> {
    each_module_after(Vec::new(), fields, entries, base, tensor, of)
}

/// The changes of every module that has a tensor called `tensor`, sorted by module, after those of `others`. `of` gives
/// the weight of a module, whose path and tensor it gets, and its changes. A module that the config selects and that has
/// no changes is an error.
pub(super) fn each_module_after<'b>(
    others: Vec<(Weight<'b>, Vec<Named>)>,
    fields: &mut Fields,
    entries: &mut Entries,
    base: &'b Base,
    tensor: &str,
    mut of: impl FnMut(&mut Entries, &str, &str) -> Result<(Weight<'b>, Vec<Named>)>,
) -> Result<Vec<Named>> {
    let targets = Targets::read(fields)?;
    let mut all = others;
    for module in entries.modules(tensor) {
        all.push(of(entries, &module, &format!("{module}.{tensor}"))?);
    }
    let adapted: HashSet<String> = all.iter().map(|(weight, _)| weight.tensor.name.clone()).collect();
    targets.complete(entries, base, &adapted, tensor)?;
    Ok(all.into_iter().flat_map(|(_, changes)| changes).collect())
}
