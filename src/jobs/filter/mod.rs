//! Filter atoms: decomposing the kernels of a model, exchanging atoms, and making dense kernels again.

mod bake;
mod decompose;
mod swap;

pub use bake::{BakeKernelsSettings, bake_kernels};
pub use decompose::{DecomposeSettings, Decomposed, LayerRow, decompose};
pub use swap::{SwapSettings, SwappedBank, swap};

use std::path::Path;

use crate::adapter::AdapterFiles;
use crate::checkpoint::Checkpoint;
use crate::convert::{Input, Opening, from_gguf, generic};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::filter::{FilterBank, PEFT_TYPE, dense_kernels};
use crate::plan::Plan;

/// A model whose convolutions are read.
struct Model {
    /// Its tensors, with dense kernels.
    plan: Plan,
    /// Its folder, if it is one with a config.
    folder: Option<Checkpoint>,
    /// Paths and descriptions of values that aren't tensors.
    others: Vec<(String, String)>,
    notes: Vec<String>,
}

/// Opens a model: a folder, or tensors alone.
fn open_model(path: &Path, opening: Opening) -> Result<Model> {
    let mut values = Vec::new();
    let (plan, folder, mut notes) = match Input::open(path, opening)? {
        Input::Model(folder) => {
            values.extend_from_slice(folder.others());
            (folder.rounded().clone(), Some(folder), Vec::new())
        }
        Input::Weights { plan, notes, others } => {
            values = others;
            (plan, None, notes)
        }
        Input::Gguf(model) => {
            let taken: Plan = model.tensors().iter().cloned().collect();
            let architecture = model.metadata().text("general.architecture")?;
            let plan = match from_gguf(&model, Some(DType::F32))? {
                Some((_, restored)) => restored.plan,
                None if architecture == generic::ARCHITECTURE => generic::from_gguf(model.metadata(), &taken)?.plan,
                None => Checkpoint::retyped(&decoded(taken), DType::F32),
            };
            (plan, None, vec![format!("{}: the GGUF is decoded first", path.display())])
        }
        Input::Adapter => {
            let finding = Finding::new(path, "").expected("a model: a folder with config.json, or a file of tensors");
            return Err(finding.found("an adapter").mismatch());
        }
    };
    let plan = match dense_kernels(&plan)? {
        None => plan,
        Some((dense, note)) => {
            notes.push(format!("{}: {note}", path.display()));
            dense
        }
    };
    Ok(Model { plan, folder, others: values, notes })
}

/// The tensors with plain types in the place of blocks.
fn decoded(mut plan: Plan) -> Plan {
    for tensor in plan.tensors.iter_mut().filter(|tensor| !tensor.dtype.is_plain()) {
        tensor.dtype = DType::F32;
    }
    plan
}

/// Opens a bank of filter atoms: its folder or a file of it.
fn open_bank(path: &Path) -> Result<FilterBank> {
    let files = AdapterFiles::find(path)?;
    let config = files.path().join("adapter_config.json");
    let Some(settings) = files.settings() else {
        let finding = Finding::new(path, "")
            .expected(format_args!("a bank of filter atoms: a folder with {PEFT_TYPE} in adapter_config.json"));
        return Err(finding.found("another adapter").mismatch());
    };
    FilterBank::read(&config, settings, files.file(), files.tensors().clone())
}
