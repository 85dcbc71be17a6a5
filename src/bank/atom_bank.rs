//! An atom bank in memory, and reading and writing its folder.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::BankConfig;
use super::config::PRIOR_BIAS;
use super::operator::{left_factor, mixed_atoms};
use crate::adapter::{
    ADAPTER_CONFIG, HostTensor, Tensors, WEIGHTS_FILE, adapted_layers, adapter_output, check_factor_names,
    check_factor_shapes, read_tensors, replace_adapter, scale,
};
use crate::arch::{LinearLayer, ModelConfig};
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::formats::safetensors::SafetensorsFile;
use crate::json::read_json_object;
use crate::output::{Destination, Output, json_text, safetensors_metadata};
use crate::plan::Plan;
use crate::source::{Source, show_shape};

/// The `peft_type` of an atom bank.
pub(crate) const PEFT_TYPE: &str = "QUERYABLE_LORA";

/// An atom bank: its settings, and its tensors by name.
#[derive(Debug, Clone)]
pub struct AtomBank {
    /// The folder from which it was read, or for which it is meant; errors name it.
    pub path: PathBuf,
    /// Its settings.
    pub config: BankConfig,
    /// Its tensors, in f32.
    pub tensors: Tensors,
    /// The instructions that it was trained with, each once: growth leaves them as they are. Empty if they aren't known.
    /// They are kept in the metadata of the file of weights.
    pub instructions: Vec<String>,
}

/// The key of the instructions in the `__metadata__` of the file of weights: a JSON list of texts.
const INSTRUCTIONS: &str = "atom_bank.instructions";

impl AtomBank {
    /// Reads a folder with `adapter_config.json` and `adapter_model.safetensors`, or a GGUF, as an atom bank.
    ///
    /// # Errors
    /// Missing or malformed files; [`crate::Error::Mismatch`] for a plain LoRA, which has no routing; a field this
    /// version doesn't know; tensors that are missing, surplus, of the wrong shape, or not finite.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.is_file() {
            let gguf = GgufModel::open(folder)?;
            return super::gguf::open(gguf.metadata(), &gguf.tensors().iter().cloned().collect());
        }
        let json = read_json_object(&folder.join(ADAPTER_CONFIG))?;
        let file = folder.join(WEIGHTS_FILE);
        let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&file)?);
        Self::from_parts(folder, &file, &json, &Plan::taking(&source))
    }

    /// Whether the settings of the adapter in `folder` are those of an atom bank; for a file, whether it is a bank's GGUF.
    ///
    /// # Errors
    /// A missing or malformed `adapter_config.json`; a malformed GGUF.
    pub fn is_in(folder: &Path) -> Result<bool> {
        if folder.is_file() {
            return Ok(GgufModel::open(folder)?.metadata().text("general.architecture")? == super::gguf::ARCHITECTURE);
        }
        let json = read_json_object(&folder.join(ADAPTER_CONFIG))?;
        Ok(json.get("peft_type").and_then(Value::as_str) == Some(PEFT_TYPE))
    }

    /// Makes a bank of settings and tensors, which need not be in a folder. Errors name the settings as
    /// `adapter_config.json` in `folder`, and the tensors as those of `file`.
    ///
    /// # Errors
    /// As [`AtomBank::open`].
    pub fn from_parts(folder: &Path, file: &Path, config: &Map<String, Value>, tensors: &Plan) -> Result<Self> {
        let config_path = folder.join(ADAPTER_CONFIG);
        match config.get("peft_type").and_then(Value::as_str).unwrap_or("none") {
            PEFT_TYPE => {}
            "LORA" => {
                return Err(Finding::new(folder, "adapter")
                    .expected("an atom bank")
                    .found("a plain LoRA, which doesn't route")
                    .mismatch());
            }
            other => {
                let finding = Finding::new(&config_path, "peft_type");
                return Err(finding.expected("QUERYABLE_LORA or LORA").found(other).unsupported());
            }
        }
        let config = BankConfig::from_json(&config_path, config)?;
        let texts = safetensors_metadata(tensors, &mut Vec::new());
        let instructions = Self::instructions_in(file, &texts)?;
        let bank = Self { path: folder.to_owned(), config, tensors: read_tensors(tensors)?, instructions };
        bank.check_tensors(file)?;
        Ok(bank)
    }

    /// The bank's instructions, from the metadata of its file of weights.
    pub(super) fn instructions_in(file: &Path, metadata: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let Some(text) = metadata.get(INSTRUCTIONS) else { return Ok(Vec::new()) };
        let finding = || Finding::new(file, format!("__metadata__ {INSTRUCTIONS:?}")).expected("a JSON list of texts");
        crate::json::read(text.as_bytes(), finding)
    }

    /// Writes the bank as a folder in PEFT's layout, in f32.
    ///
    /// # Errors
    /// Those of [`AtomBank::open`] for an invalid bank; [`crate::Error::Exists`], [`crate::Error::Io`],
    /// [`crate::Error::NotFinite`].
    pub fn save(&self, folder: &Path, overwrite: bool) -> Result<()> {
        self.output()?.write(&Destination { overwrite, ..Destination::new(folder) }, &|_| ()).map(drop)
    }

    /// Writes the bank's two files into `folder`, each by a rename; other files there stay.
    ///
    /// # Errors
    /// As [`AtomBank::save`].
    pub fn save_over(&self, folder: &Path) -> Result<()> {
        self.check(folder)?;
        replace_adapter(&self.with_instructions(), folder)
    }

    fn with_instructions(&self) -> Output {
        let mut output = adapter_output(&self.config.to_json(), &self.tensors);
        if !self.instructions.is_empty() {
            let text = json_text(&self.instructions);
            output.sidecars.safetensors_metadata.insert(INSTRUCTIONS.to_owned(), text);
        }
        output
    }

    /// The bank's folder, as [`AtomBank::save`] writes it.
    ///
    /// # Errors
    /// Those of [`AtomBank::open`] for an invalid bank.
    pub fn output(&self) -> Result<Output> {
        self.check(&self.path)?;
        Ok(self.with_instructions())
    }

    /// Applies the reader's checks, so that nothing is written that the reader would refuse.
    fn check(&self, folder: &Path) -> Result<()> {
        self.config.check(&folder.join(ADAPTER_CONFIG))?;
        self.check_tensors(&folder.join(WEIGHTS_FILE))
    }

    /// The linear layers that it adapts, in the order in which a forward pass calls them.
    pub fn layers(&self) -> Vec<LinearLayer> {
        adapted_layers(&self.tensors)
    }

    /// `lora_A`, `[r, d_in]`, and `lora_B`, `[d_out, r]`, of a linear layer of [`AtomBank::layers`].
    pub fn factors(&self, layer: LinearLayer) -> (&HostTensor, &HostTensor) {
        // `check_tensors` has made sure that both exist for every layer.
        (&self.tensors[&layer.factor_name('A')], &self.tensors[&layer.factor_name('B')])
    }

    /// The factor of every update: alpha / r, or alpha / sqrt(r) with use_rslora. Dimensionless.
    pub fn scale(&self) -> f32 {
        scale(self.config.r, self.config.lora_alpha, self.config.use_rslora) as f32
    }

    /// The number of values that training changes: those of all tensors but the instructions' center and the prior's bias.
    pub fn parameters(&self) -> usize {
        self.tensors.iter().filter(|(name, _)| self.is_trained(name)).map(|(_, tensor)| tensor.values.len()).sum()
    }

    /// Whether training changes the tensor called `name`.
    pub(crate) fn is_trained(&self, name: &str) -> bool {
        self.config.optional_tensors().iter().all(|(fixed, _)| *fixed != name)
    }

    /// The atoms `C_i`, `[K, r, r]`.
    pub fn atoms(&self) -> &HostTensor {
        &self.tensors["atom_bank.atoms"]
    }

    /// The operator of one block, `M_b = sum_i alpha_{b,i} C_i`, for the block's `alpha` (`[K]`): `[r, r]`, summed in
    /// f32 in the order of the atoms.
    pub fn operator(&self, alpha: &[f32]) -> Vec<f32> {
        mixed_atoms(self.atoms(), alpha)
    }

    /// `B_l M_b`, `[d_out, r]`: the left factor of a linear layer's update for a fixed routing.
    pub fn left_factor(&self, layer: LinearLayer, operator: &[f32]) -> Vec<f32> {
        left_factor(&self.factors(layer).1.values, operator, self.config.r)
    }

    /// Checks that every factor fits the linear layers of `base`, and that the bank's number of blocks fits its depth.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`], naming the tensor and both shapes.
    pub fn check_base(&self, base: &ModelConfig) -> Result<()> {
        let file = self.path.join(WEIGHTS_FILE);
        check_factor_shapes(&file, &self.tensors, |_| self.config.r, base)?;
        self.config.check_base(&file, base, &self.layers(), &self.tensors)
    }

    /// Checks that every tensor is either a factor with its partner, or one of the bank's own tensors in its shape.
    fn check_tensors(&self, file: &Path) -> Result<()> {
        let finding = |name: &str| Finding::new(file, format!("tensor {name:?}"));
        if !self.config.growth.is_empty() && !self.tensors.contains_key(PRIOR_BIAS) {
            let expected = "a tensor of this name: a bank that has grown has one";
            return Err(finding(PRIOR_BIAS).expected(expected).found("none").format());
        }
        let needed = self.config.global_tensors();
        let optional = self.config.optional_tensors();
        let own: Vec<_> = needed.iter().chain(&optional).collect();
        for (name, shape) in &own {
            let Some(found) = self.tensors.get(*name) else {
                if optional.iter().any(|(optional, _)| optional == name) {
                    continue;
                }
                return Err(finding(name).expected("a tensor of this name").found("none").format());
            };
            let fits = found.shape.len() == shape.len()
                && found.shape.iter().zip(shape.iter()).all(|(found, wanted)| wanted.is_none_or(|w| w == *found));
            if !fits {
                let shape: Vec<String> = shape.iter().map(|d| d.map_or("any".into(), |d| d.to_string())).collect();
                let expected = format!("[{}] by adapter_config.json", shape.join(", "));
                return Err(finding(name).expected(expected).found(show_shape(&found.shape)).mismatch());
            }
        }
        let is_own = |name: &str| own.iter().any(|own| own.0 == name);
        check_factor_names(file, &self.tensors, Some(&self.config.target_modules), is_own)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
