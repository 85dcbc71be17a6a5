//! Other files of weights in an adapter's folder.
//!
//! Scripts for LLaVA and others train some modules as a whole beside a LoRA, and save them in a file of their own.
//! Loading the adapter means loading that file first. What no script is known to load is named in a note.

use std::path::Path;

use super::open::tensors_of;
use super::peft::{self, Base, Named};
use super::{mlx, new_tokens};
use crate::checkpoint::is_model;
use crate::error::{Error, IoContext, Result};
use crate::output::WEIGHT_EXTENSIONS;

/// Names, without their endings, of files with whole modules that were trained together with the adapter: those of
/// LLaVA's scripts, of scripts for Qwen-VL, and of LongLoRA.
const TRAINED: [&str; 3] = ["non_lora_trainables", "non_lora_state_dict", "trainable_params"];

/// Beginnings of the names of files with the state of a training, which aren't weights.
const OF_TRAINING: [&str; 6] = ["optimizer", "scheduler", "scaler", "rng_state", "random_states", "training_args"];

/// Beginnings of the names of a model's weights.
const OF_MODEL: [&str; 4] = ["model", "pytorch_model", "consolidated", "diffusion_pytorch_model"];

/// What is beside an adapter.
#[derive(Default)]
pub(super) struct Beside {
    /// Whole tensors that were trained with it, as changes to the base.
    pub(super) whole: Vec<Named>,
    /// One line for all files that aren't read, or one for each that is.
    pub(super) notes: Vec<String>,
}

/// Reads what is in `folder` beside `file`, the tensors of an adapter of `base`.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::NotFinite`] and others of values.
pub(super) fn read(folder: &Path, file: &Path, base: &Base) -> Result<Beside> {
    let mut beside = Beside::default();
    let mut unread = Vec::new();
    for name in names(folder, file)? {
        // Rows of added tokens change the base's embeddings; tensors alone have no vocabulary.
        if new_tokens::FILES.contains(&&*name) && !base.is_tensors_alone() {
            continue;
        }
        let stem = name.split('.').next().unwrap_or_default();
        if !TRAINED.contains(&stem) {
            unread.push(name);
            continue;
        }
        match changes(&folder.join(&name), base) {
            Ok(whole) => {
                beside.notes.push(format!(
                    "{}: {name}, which was trained with the adapter, is merged: {} tensors",
                    folder.display(),
                    whole.len()
                ));
                beside.whole.extend(whole);
            }
            Err(error @ Error::Io { .. }) => return Err(error),
            Err(error) => unread.push(format!("{name} ({error})")),
        }
    }
    if !unread.is_empty() {
        let what = "weights beside the adapter, which are not merged";
        beside.notes.push(format!("{}: {what}: {}", folder.display(), unread.join(", ")));
    }
    Ok(beside)
}

/// The names of the files of weights in `folder` beside `file`, sorted.
fn names(folder: &Path, file: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    let holds_model = is_model(folder);
    for entry in std::fs::read_dir(folder).at(folder, "read")? {
        let path = entry.at(folder, "read")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ending = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let is_known = OF_TRAINING.iter().any(|start| name.starts_with(start))
            || holds_model && OF_MODEL.iter().any(|start| name.starts_with(start))
            // Earlier states of the same adapter.
            || name.strip_suffix(mlx::WEIGHTS).is_some_and(|step| step.starts_with(|c: char| c.is_ascii_digit()));
        let is_weights = WEIGHT_EXTENSIONS.contains(&&*ending) && !name.starts_with('.');
        if is_weights && !is_known && path.file_name() != file.file_name() && path.is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The tensors of `file` as changes to `base`, if it has all of them.
fn changes(file: &Path, base: &Base) -> Result<Vec<Named>> {
    let changes = peft::whole(file, file, tensors_of(file)?, base)?;
    changes.check_numbers()?;
    Ok(changes.on_main_names(base)?.changes)
}
