//! What a conversion reads besides the model: tensors in folders inside the model's, and the model that drafts are made
//! for.

use std::path::Path;

use crate::arch;
use crate::arch::params::Params;
use crate::checkpoint::{Checkpoint, open_weights};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};

/// The tensors of the folders that the family names, as `FOLDER/NAME`, in the order of their data.
///
/// # Errors
/// Errors of opening the files, and of the family's formulas.
pub(super) fn tensors(params: &Params) -> Result<Plan> {
    let mut tensors = Vec::new();
    for (name, when) in &params.family.folders {
        let folder = params.folder().join(name);
        if !folder.is_dir() || !params.holds(when.as_ref(), None)? {
            continue;
        }
        let named = |tensor: PlannedTensor| PlannedTensor { name: format!("{name}/{}", tensor.name), ..tensor };
        tensors.extend(open_weights(&folder, None)?.plan.tensors.into_iter().map(named));
    }
    Ok(Plan { tensors })
}

/// The model that drafts are made for.
pub(super) struct Target {
    /// Its folder, without weights.
    pub(super) folder: Checkpoint,
    /// Its config. Its family says how the tokenizer becomes a vocabulary.
    pub(super) params: Params,
}

impl Target {
    /// Opens the folder that the user names; `None` if the family is of no drafts.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] if the folder is missing or there are no drafts; errors of opening it.
    pub(super) fn open(params: &Params, path: Option<&Path>) -> Result<Option<Self>> {
        let class = params.family.class();
        match (path, params.family.takes_target) {
            (None, false) => Ok(None),
            (None, true) => Err(Finding::new("", "target_model_dir")
                .expected(format_args!("the folder of the model that {class} makes drafts for"))
                .found("none")
                .hint("its vocabulary is taken; the folder needs config.json and the tokenizer, no weights")
                .setting()),
            (Some(path), false) => Err(Finding::new("", "target_model_dir")
                .expected("none, but for a model that makes drafts for another")
                .found(format_args!("{} for {class}", path.display()))
                .setting()),
            (Some(path), true) => {
                let folder = Checkpoint::without_weights(path)?;
                let params = Params::read(path, &folder.config_json, &mut Vec::new())?.ok_or_else(|| {
                    Finding::new(path.join("config.json"), "architectures")
                        .expected("a class that this version has a family for")
                        .found(arch::params::class(&folder.config_json).unwrap_or("none"))
                        .unsupported()
                })?;
                let params = params.with_tokens_of(&folder)?;
                Ok(Some(Self { folder, params }))
            }
        }
    }
}
