//! A plain LoRA in memory: settings, and factors of the same rank for linear layers of a decoder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Map;

use super::experts::{ExpertFactorNames, add_fresh_expert_factors, check_expert_factors, expert_factors};
use super::tensors::{
    self, WEIGHTS_FILE, adapted_layers, adapter_output, add_fresh_factor, check_factor_names, check_factor_shapes,
    planned, read_tensors,
};
use super::{HostTensor, LoraConfig, Tensors, mlx};
use crate::arch::{LinearLayer, ModelConfig};
use crate::checkpoint::ADAPTER_CONFIG;
use crate::error::{Finding, Result};
use crate::formats::safetensors::SafetensorsFile;
use crate::json::read_json_object;
use crate::linalg::Random;
use crate::output::{Destination, Output};
use crate::plan::Plan;
use crate::source::Source;

/// A plain LoRA: its settings and its factors, by tensor name.
#[derive(Debug, Clone)]
pub struct Lora {
    /// The folder from which it was read, or for which it is meant; errors name it.
    pub path: PathBuf,
    /// Its settings.
    pub config: LoraConfig,
    /// Its factors, in f32.
    pub tensors: Tensors,
}

impl Lora {
    /// Reads a folder with `adapter_config.json` and `adapter_model.safetensors` as a plain LoRA.
    ///
    /// # Errors
    /// Missing or malformed files, another kind of adapter, a field this version doesn't know, tensors
    /// that are missing, surplus, or not finite.
    pub fn open(folder: &Path) -> Result<Self> {
        let config_path = folder.join(ADAPTER_CONFIG);
        let json = read_json_object(&config_path)?;
        let kind = json.get("peft_type").and_then(|v| v.as_str()).unwrap_or("none");
        if kind != "LORA" {
            let finding = Finding::new(&config_path, "peft_type").expected("LORA");
            return Err(match kind {
                "QUERYABLE_LORA" => {
                    finding.found("an atom bank").hint("`jobs::bake` with `to` lora makes a LoRA of it").mismatch()
                }
                other => finding.found(other).unsupported(),
            });
        }
        let config = LoraConfig::from_json(&config_path, &json)?;
        let file = folder.join(WEIGHTS_FILE);
        let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&file)?);
        let lora = Self { path: folder.to_owned(), config, tensors: read_tensors(&Plan::taking(&source))? };
        lora.check_names(&file)?;
        let without = |site: &LinearLayer| !lora.tensors.contains_key(&site.magnitude_name());
        match lora.layers().into_iter().find(without).filter(|_| lora.config.use_dora) {
            Some(site) => Err(Finding::new(&file, format!("tensor {:?}", site.magnitude_name()))
                .expected("the magnitudes that use_dora asks for")
                .found("none")
                .format()),
            None => Ok(lora),
        }
    }

    /// Makes a LoRA for `base` with B = 0, which changes nothing until it is trained. It has no magnitudes yet, which are
    /// those of the base's weights.
    ///
    /// # Errors
    /// [`crate::Error::Format`] where the config selects no module.
    pub fn fresh(path: &Path, config: LoraConfig, base: &ModelConfig, seed: u64) -> Result<Self> {
        let mut tensors = Tensors::new();
        let random = &mut Random::new(seed);
        for linear in config.selected(base) {
            add_fresh_factor(&mut tensors, linear, config.rank_of(linear.site), random);
        }
        add_fresh_expert_factors(&mut tensors, &config.target_parameters, config.r, base, random);
        let lora = Self { path: path.to_owned(), config, tensors };
        lora.check_names(path)?;
        Ok(lora)
    }

    /// Writes the LoRA as a folder in PEFT's layout, in f32.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], [`crate::Error::Io`], [`crate::Error::NotFinite`].
    pub fn save(&self, folder: &Path, overwrite: bool) -> Result<()> {
        self.output().write(&Destination { overwrite, ..Destination::new(folder) }, &|_| ()).map(drop)
    }

    /// Writes the LoRA's two files into `folder`, each by a rename; other files there stay.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::NotFinite`].
    pub fn save_over(&self, folder: &Path) -> Result<()> {
        tensors::replace_adapter(&self.output(), folder)
    }

    /// The LoRA's folder, as [`Lora::save`] writes it.
    pub fn output(&self) -> Output {
        adapter_output(&self.config.to_json(), &self.tensors)
    }

    /// The LoRA's folder as mlx-lm has it.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for settings that aren't those of a LoRA.
    pub fn mlx_output(&self) -> Result<Output> {
        let config = self.config.to_json();
        mlx::output(config.as_object().unwrap_or(&Map::new()), &planned(&self.tensors))
    }

    /// The linear layers that it adapts, in the order in which a forward pass calls them.
    pub fn layers(&self) -> Vec<LinearLayer> {
        adapted_layers(&self.tensors)
    }

    /// `lora_A`, `[r, d_in]`, and `lora_B`, `[d_out, r]`, of a linear layer of [`Lora::layers`].
    pub fn factors(&self, layer: LinearLayer) -> (&HostTensor, &HostTensor) {
        // `check_names` has made sure that both exist for every layer.
        (&self.tensors[&layer.factor_name('A')], &self.tensors[&layer.factor_name('B')])
    }

    /// The names of its factors for experts, by layer.
    pub(crate) fn expert_factors(&self) -> Vec<ExpertFactorNames> {
        expert_factors(&self.tensors, &self.config.target_parameters)
    }

    /// The number of values in its factors.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|t| t.values.len()).sum()
    }

    /// Checks that every factor fits the linear layers of `base`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`], naming the tensor and both shapes.
    pub fn check_base(&self, base: &ModelConfig) -> Result<()> {
        let (file, config) = (self.path.join(WEIGHTS_FILE), &self.config);
        check_factor_shapes(&file, &self.tensors, |site| config.rank_of(site), base)?;
        check_expert_factors(&file, &self.tensors, &config.target_parameters, config.r, base)
    }

    fn check_names(&self, file: &Path) -> Result<()> {
        let experts = self.expert_factors();
        let is_of_experts = |name: &str| experts.iter().any(|factors| factors.a == name || factors.b == name);
        let magnitude = |name: &str| LinearLayer::of_magnitude(name).filter(|_| self.config.use_dora);
        let is_magnitude =
            |name: &str| magnitude(name).is_some_and(|site| self.tensors.contains_key(&site.factor_name('A')));
        check_factor_names(file, &self.tensors, self.config.target_modules.as_deref(), |name| {
            is_of_experts(name) || is_magnitude(name)
        })
    }
}
