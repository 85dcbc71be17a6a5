//! Makes a model with dense kernels, or with three plain convolutions in the place of each, of a bank of filter atoms.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::convert::ConvertSettings;
use super::super::settings::{name_of, setting};
use super::super::{OutputKind, OutputSettings};
use super::{Model, open_bank, open_model};
use crate::convert::describe;
use crate::error::{Finding, Result};
use crate::filter::Form;
use crate::merge::card;
use crate::output::Output;
use crate::plan::Plan;

/// Settings of [`bake_kernels`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BakeKernelsSettings {
    /// The model: a folder, or a file of tensors.
    pub model: PathBuf,
    /// The model's name on the hub, if that isn't its path.
    #[serde(default)]
    pub model_id: Option<String>,
    /// The part of a PyTorch file that has the weights, such as `state_dict`.
    #[serde(default)]
    pub key: Option<String>,
    /// The bank.
    pub bank: PathBuf,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
}

impl BakeKernelsSettings {
    /// Settings to bake `bank` into `model`.
    pub fn new(model: impl Into<PathBuf>, bank: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        let output = OutputSettings::new(output);
        Self { model: model.into(), model_id: None, key: None, bank: bank.into(), output }
    }
}

/// Makes the model with the kernels of a bank.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening model and bank; those of [`crate::filter::FilterBank::baked`].
pub fn bake_kernels(settings: &BakeKernelsSettings) -> Result<Output> {
    let mut output = settings.output.clone();
    let form = if output.to == Some(OutputKind::ThreeConvolutions) { Form::ThreeConvolutions } else { Form::Dense };
    if form == Form::ThreeConvolutions {
        output.to = None;
        if output.kind() == OutputKind::Gguf {
            let finding =
                setting("output").expected("a state dict: a name that ends in .safetensors or .pt, or a folder's");
            return Err(finding.found("a GGUF").setting());
        }
    }
    if output.kind().is_lora() {
        let finding = setting("to").expected("hf, safetensors, pytorch, gguf or three-convolutions for filter atoms");
        return Err(finding.found(if output.kind() == OutputKind::Mlx { "mlx" } else { "lora" }).setting());
    }
    output.check()?;
    let model = open_model(&settings.model, settings.key.as_deref())?;
    let bank = open_bank(&settings.bank)?;
    let baked = bank.baked(&model.plan, &settings.model, form)?;
    let notes = [model.notes.clone(), baked.notes].concat();
    let made = match form {
        Form::ThreeConvolutions => output.tensors(Output::folder("model", output.typed(&baked.plan)?)),
        Form::Dense => dense(settings, &output, &model, &baked.plan)?,
    };
    Ok(output.split(Output { notes: [notes, made.notes].concat(), ..made }))
}

/// The output for a model with dense kernels.
fn dense(settings: &BakeKernelsSettings, output: &OutputSettings, model: &Model, plan: &Plan) -> Result<Output> {
    let kind = output.kind();
    match &model.folder {
        Some(folder) if kind != OutputKind::Gguf || matches!(describe(folder), Ok(Some(_))) => {
            let mut made = output.model(folder, plan)?;
            if made.is_folder() {
                let names =
                    (name_of(settings.model_id.as_deref(), &settings.model), settings.bank.display().to_string());
                let card = card(&names.0, &[(&names.1, 1.0)]);
                made.sidecars.files.insert("README.md".to_owned(), card.into_bytes());
            }
            Ok(made)
        }
        folder if kind == OutputKind::Gguf => {
            let convert = ConvertSettings {
                output: output.clone(),
                generic: true,
                ..ConvertSettings::new(&settings.model, &output.destination.path)
            };
            convert.generic(&settings.model, plan, folder.as_ref())
        }
        _ if kind == OutputKind::Hf => {
            let finding = Finding::new(&settings.model, "config.json").expected("a model folder's config");
            let hint = "write the tensors alone: name the output .safetensors, .bin or .gguf";
            Err(finding.found("tensors alone").hint(hint).mismatch())
        }
        _ => Ok(output.tensors(Output::folder("model", output.typed(plan)?))),
    }
}
