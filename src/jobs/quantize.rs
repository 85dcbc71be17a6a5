//! Quantizes a GGUF.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::settings::setting;
use super::{OutputKind, OutputSettings};
use crate::error::{Finding, Result};
use crate::formats::gguf::{GgufHeader, GgufModel, Metadata, Override};
use crate::output::Output;
use crate::plan::{Plan, TensorRef};
use crate::quantize::{FileType, TensorOutcome, outcomes};
use crate::source::TensorInfo;

/// Settings of [`quantize`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizeSettings {
    /// A GGUF file, or any file of a split model.
    pub input: PathBuf,
    /// Where the quantized model is written; its `type` is the file type.
    pub output: OutputSettings,
    /// Keys whose values are replaced: `KEY=VALUE` or `KEY=TYPE:VALUE`.
    #[serde(default)]
    pub override_key: Vec<String>,
}

impl QuantizeSettings {
    /// Settings to quantize `input` to `file_type`, in one file.
    pub fn new(input: impl Into<PathBuf>, file_type: &str, output: impl Into<PathBuf>) -> Self {
        let output = OutputSettings { r#type: Some(file_type.to_owned()), ..OutputSettings::new(output) };
        Self { input: input.into(), output, override_key: Vec::new() }
    }

    /// Parses the requested file type.
    fn file_type(&self) -> Result<FileType> {
        if self.output.kind() != OutputKind::Gguf {
            let finding = setting("output").expected("a name that ends in .gguf");
            return Err(finding.found("another").hint("or `to` gguf").setting());
        }
        if self.output.pre.is_some() {
            return Err(setting("pre").expected("none, because the vocabulary stays as it is").found("one").setting());
        }
        match &self.output.r#type {
            Some(name) => name.parse(),
            None => Err(setting("type").expected("a file type, like Q4_K_M").found("none").setting()),
        }
    }
}

/// Converts the model of `settings.input` to another file type.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of opening the model; those of [`crate::quantize::quantize`].
pub fn quantize(settings: &QuantizeSettings) -> Result<Output> {
    let file_type = settings.file_type()?;
    check_input(&settings.input)?;
    settings.output.check_place()?;
    let overrides = settings.override_key.iter().map(|text| Override::parse(text)).collect::<Result<Vec<_>>>()?;
    let model = GgufModel::open(&settings.input)?;
    let taken: Plan = model.tensors().iter().cloned().collect();
    let made = settings.output.recipe.quantize(file_type, model.metadata(), &taken, &overrides)?;
    Ok(settings.output.split(made))
}

/// The change of each tensor, determined from headers alone: the model's data may be missing.
///
/// # Errors
/// As [`quantize`].
pub fn quantize_outcomes(settings: &QuantizeSettings) -> Result<Vec<TensorOutcome>> {
    let file_type = settings.file_type()?;
    check_input(&settings.input)?;
    let (metadata, tensors) = headers(&settings.input)?;
    let recipe = settings.output.recipe.recipe(file_type)?;
    outcomes(&recipe, &metadata, &tensors, settings.output.recipe.imatrix.is_some())
}

/// Refuses a folder, which can only be converted.
fn check_input(input: &Path) -> Result<()> {
    if !input.is_dir() {
        return Ok(());
    }
    let hint = "`jobs::convert` makes a quantized GGUF of a folder in one step, with `type` Q4_K_M";
    Err(Finding::new(input, "").expected("a GGUF file").found("a folder").hint(hint).mismatch())
}

/// The keys and tensors of a model, from all its files, or from a header without data.
fn headers(path: &Path) -> Result<(Metadata, Vec<TensorInfo>)> {
    match GgufModel::open(path) {
        Ok(model) => {
            let tensors = model.tensors().iter().map(TensorRef::info).cloned().collect();
            Ok((model.metadata().clone(), tensors))
        }
        // The data may be missing. If the header is damaged, this gives the same error again.
        Err(_) => {
            let header = GgufHeader::read(path)?;
            Ok((header.metadata, header.tensors))
        }
    }
}
