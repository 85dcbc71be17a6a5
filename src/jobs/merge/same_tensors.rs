//! Models of one class whose files don't hold the same tensors: tied and untied output heads, heads that no model uses,
//! buffers.

use serde_json::{Map, Value};

use crate::adapter::peft::Base;
use crate::arch::names::{HEAD, is_made_by_class};
use crate::checkpoint::Checkpoint;
use crate::plan::{Plan, PlannedTensor};

/// What becomes of the base's folder.
#[derive(Default)]
pub(super) struct Aligned {
    /// The base's buffers, which stay as they are.
    pub(super) buffers: Vec<PlannedTensor>,
    /// Whether the base's head was tied to its embeddings, and is a tensor of its own in the result.
    pub(super) untied: bool,
}

/// Gives `weights`, those of `base` and of `models` in this order, the same tensors. Buffers that classes compute from
/// their config are left out. A head that is stored beside tied embeddings is none; where some models are tied and
/// others aren't, the embeddings are the head of those that are.
pub(super) fn aligned(
    base: &Checkpoint,
    models: &[Checkpoint],
    weights: &mut [Plan],
    notes: &mut Vec<String>,
) -> Aligned {
    let mut aligned = Aligned::default();
    for (number, plan) in weights.iter_mut().enumerate() {
        let (buffers, kept) = plan.tensors.drain(..).partition(|tensor| is_made_by_class(&tensor.name));
        plan.tensors = kept;
        if number == 0 {
            aligned.buffers = buffers;
        }
    }
    let folders: Vec<&Checkpoint> = std::iter::once(base).chain(models).collect();
    let heads: Vec<Option<PlannedTensor>> =
        folders.iter().zip(&*weights).map(|(folder, plan)| tied_head(folder, &folder.config_json, plan)).collect();
    let mut spare = Vec::new();
    for ((folder, plan), _) in folders.iter().zip(&mut *weights).zip(&heads).filter(|(_, head)| head.is_some()) {
        let before = plan.tensors.len();
        plan.tensors.retain(|tensor| tensor.name != HEAD);
        if plan.tensors.len() < before {
            spare.push(folder.path().display().to_string());
        }
    }
    if !spare.is_empty() {
        let which = spare.join(", ");
        notes.push(format!("{which}: the output head that is stored is not used, as it is tied to the embeddings"));
    }
    let has_own = |plan: &Plan| plan.get(HEAD).is_some();
    let (any_tied, any_untied) = (heads.iter().any(Option::is_some), weights.iter().any(has_own));
    if any_tied && any_untied {
        let mut tied = Vec::new();
        for ((folder, plan), head) in folders.iter().zip(&mut *weights).zip(&heads) {
            if let Some(head) = head {
                plan.tensors.push(head.clone());
                tied.push(folder.path().display().to_string());
            }
        }
        aligned.untied = heads[0].is_some();
        notes.push(format!(
            "output heads are tied to the embeddings in {} alone: there the embeddings are the head, and the result has both",
            tied.join(", ")
        ));
    }
    aligned
}

/// The head of a model whose head is tied to its embeddings, as a tensor of its own.
fn tied_head(folder: &Checkpoint, config: &Map<String, Value>, plan: &Plan) -> Option<PlannedTensor> {
    Base::new(folder.path(), config, plan).tied_head().cloned()
}
