//! Makes a model with dense kernels, or with three plain convolutions in the place of each, of a bank of filter atoms.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::convert::ConvertSettings;
use super::super::settings::{left_out, name_of, setting};
use super::super::{OutputKind, OutputSettings, into};
use super::{Model, open_bank, open_model};
use crate::convert::{Opening, describe};
use crate::error::{Finding, Result};
use crate::filter::{Baked, Form};
use crate::merge::card;
use crate::output::Output;

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
    /// What is taken off the names of tensors alone that begin with it, such as `module.`.
    #[serde(default)]
    pub strip_prefix: Option<String>,
    /// The bank.
    pub bank: PathBuf,
    /// The bank's name on the hub, if that isn't its path.
    #[serde(default)]
    pub bank_id: Option<String>,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
}

impl BakeKernelsSettings {
    /// Settings to bake `bank` into `model`.
    pub fn new(model: impl Into<PathBuf>, bank: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        let output = OutputSettings::new(output);
        let (model, bank) = (model.into(), bank.into());
        Self { model, model_id: None, key: None, strip_prefix: None, bank, bank_id: None, output }
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
    let opening =
        Opening { key: settings.key.as_deref(), strip_prefix: settings.strip_prefix.as_deref(), ..Opening::default() };
    let model = open_model(&settings.model, opening)?;
    let bank = open_bank(&settings.bank)?;
    let baked = bank.baked(&model.plan, &settings.model, form)?;
    let made = match form {
        Form::ThreeConvolutions => alone(settings, &output, &model, &baked)?,
        Form::Dense => dense(settings, &output, &model, &baked)?,
    };
    Ok(output.split(Output { notes: [model.notes, baked.notes, made.notes].concat(), ..made }))
}

/// The tensors alone: in a file of their own, or written into another.
fn alone(settings: &BakeKernelsSettings, output: &OutputSettings, model: &Model, baked: &Baked) -> Result<Output> {
    if let Some(original) = &output.into {
        let part = into::Part { key: output.into_key.as_deref(), prefix: settings.strip_prefix.as_deref() };
        return into::output(original, part, &baked.plan, &baked.shared, None);
    }
    let mut made = output.bare_of(output.typed(&baked.plan)?, &model.plan, &baked.shared);
    made.notes.extend(left_out(&model.others));
    Ok(made)
}

/// The output for a model with dense kernels.
fn dense(settings: &BakeKernelsSettings, output: &OutputSettings, model: &Model, baked: &Baked) -> Result<Output> {
    let (kind, plan) = (output.kind(), &baked.plan);
    if let (Some(_), Some(_)) = (&model.folder, &output.into) {
        return Err(setting("into").expected("tensors alone as model").found("a model's folder").setting());
    }
    match &model.folder {
        Some(folder) if kind != OutputKind::Gguf || matches!(describe(folder), Ok(Some(_))) => {
            let mut made = output.model(folder, plan)?;
            if made.is_folder() {
                let names = (
                    name_of(settings.model_id.as_deref(), &settings.model),
                    name_of(settings.bank_id.as_deref(), &settings.bank),
                );
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
        _ => alone(settings, output, model, baked),
    }
}
