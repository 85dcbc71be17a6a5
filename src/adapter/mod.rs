//! Adapters: LoRA as PEFT saves it, and atom banks (Queryable LoRA, arXiv:2605.08423).

mod config;
pub(crate) mod gguf;
mod init;
pub(crate) mod kohya;
mod open;
pub mod peft;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::LoraConfig;
pub(crate) use init::factors as fresh_factors;
pub use init::new_lora;
pub use open::{AdapterFiles, open};

use crate::arch::{LinearLayer, ModelConfig};
use crate::bank::BankConfig;
use crate::dtype::DType;
use crate::error::{Finding, IoContext, Result};
use crate::formats::safetensors::{self, SafetensorsFile};
use crate::json::read_json_object;
use crate::plan::{self, Expr, Plan, PlannedTensor, Staging};
use crate::source::{Source, show_shape};

/// A tensor in memory: adapters are small.
#[derive(Debug, Clone, PartialEq)]
pub struct HostTensor {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: Arc<[f32]>,
}

/// Which kind of adapter, with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum AdapterConfig {
    /// Queryable LoRA.
    Bank(BankConfig),
    /// Plain LoRA.
    Lora(LoraConfig),
}

impl AdapterConfig {
    /// The factor of every update: alpha / r, or alpha / sqrt(r) with use_rslora. Dimensionless.
    pub fn scale(&self) -> f32 {
        let (r, alpha, rslora) = match self {
            AdapterConfig::Bank(c) => (c.r, c.lora_alpha, c.use_rslora),
            AdapterConfig::Lora(c) => (c.r, c.lora_alpha, c.use_rslora),
        };
        (if rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 }) as f32
    }

    /// The rank of A and B.
    pub fn rank(&self) -> usize {
        match self {
            AdapterConfig::Bank(c) => c.r,
            AdapterConfig::Lora(c) => c.r,
        }
    }

    fn to_json(&self) -> serde_json::Value {
        match self {
            AdapterConfig::Bank(c) => c.to_json(),
            AdapterConfig::Lora(c) => c.to_json(),
        }
    }
}

/// An adapter: its settings and every tensor of it, by the name in its file.
#[derive(Debug, Clone)]
pub struct Adapter {
    /// The folder it was read from or is meant for; for messages.
    pub path: PathBuf,
    /// Its settings.
    pub config: AdapterConfig,
    /// Its tensors, in f32.
    pub tensors: BTreeMap<String, HostTensor>,
}

impl Adapter {
    /// Reads an adapter folder: `adapter_config.json`, `adapter_model.safetensors`.
    ///
    /// # Errors
    /// Missing or malformed files, a kind or a field this version doesn't know, tensors that are
    /// missing, surplus, of the wrong shape, or not finite.
    pub fn open(folder: &Path) -> Result<Self> {
        let json = read_json_object(&folder.join("adapter_config.json"))?;
        let file = folder.join("adapter_model.safetensors");
        let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&file)?);
        Self::from_parts(folder, &file, &json, &Plan::taking(&source))
    }

    /// The adapter of settings and tensors that need not stand in a folder. Errors name the settings
    /// as `adapter_config.json` in `folder`, the tensors as those of `file`.
    ///
    /// # Errors
    /// As [`Adapter::open`].
    pub fn from_parts(
        folder: &Path,
        file: &Path,
        config: &serde_json::Map<String, serde_json::Value>,
        tensors: &Plan,
    ) -> Result<Self> {
        let config_path = folder.join("adapter_config.json");
        let kind = config.get("peft_type").and_then(|v| v.as_str()).unwrap_or("none");
        let config = match kind {
            "QUERYABLE_LORA" => AdapterConfig::Bank(BankConfig::from_json(&config_path, config)?),
            "LORA" => AdapterConfig::Lora(LoraConfig::from_json(&config_path, config)?),
            other => {
                let finding = Finding::new(&config_path, "peft_type");
                return Err(finding.expected("QUERYABLE_LORA or LORA").found(other).unsupported());
            }
        };
        let planned: Vec<PlannedTensor> =
            tensors.tensors.iter().map(|tensor| PlannedTensor { dtype: DType::F32, ..tensor.clone() }).collect();
        let planned = Plan { tensors: planned };
        planned.check()?;
        let mut tensors = BTreeMap::new();
        for tensor in planned.tensors {
            let values = tensor.read()?.into();
            tensors.insert(tensor.name, HostTensor { shape: tensor.shape, values });
        }
        let adapter = Self { path: folder.to_owned(), config, tensors };
        adapter.check_names(file)?;
        Ok(adapter)
    }

    /// Writes the adapter as a folder in PEFT's layout, in f32.
    ///
    /// # Errors
    /// [`crate::Error::Exists`], [`crate::Error::Io`], [`crate::Error::NotFinite`].
    pub fn save(&self, folder: &Path, overwrite: bool) -> Result<()> {
        let staging = Staging::folder(folder, overwrite)?;
        self.write_into(&staging)?;
        staging.commit()
    }

    /// Writes the adapter's two files into `folder`, beside whatever else is there, each by rename.
    ///
    /// # Errors
    /// [`crate::Error::Io`], [`crate::Error::NotFinite`].
    pub fn save_over(&self, folder: &Path) -> Result<()> {
        let staging = Staging::folder(&folder.join("adapter"), false)?;
        self.write_into(&staging)?;
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            let target = folder.join(name);
            std::fs::rename(staging.path().join(name), &target).at(&target, "write")?;
        }
        Ok(())
    }

    /// Writes the adapter's two files into a folder that is being staged.
    ///
    /// # Errors
    /// As [`Adapter::save`].
    pub fn write_into(&self, staging: &Staging) -> Result<()> {
        write_tensors(&self.tensors, "adapter_model", staging)?;
        let text = serde_json::to_string_pretty(&self.config.to_json()).expect("plain values serialize") + "\n";
        staging.write("adapter_config.json", text.as_bytes())
    }

    /// Where the adapter acts, in the order in which a forward pass comes by.
    pub fn sites(&self) -> Vec<LinearLayer> {
        let mut sites: Vec<LinearLayer> =
            self.tensors.keys().filter_map(|name| LinearLayer::of_factor(name, 'A')).collect();
        sites.sort();
        sites
    }

    /// `lora_A`, `[r, d_in]`, and `lora_B`, `[d_out, r]`, of a site of [`Adapter::sites`].
    pub fn factors(&self, site: LinearLayer) -> (&HostTensor, &HostTensor) {
        // check_names has seen both for every site.
        (&self.tensors[&site.factor_name('A')], &self.tensors[&site.factor_name('B')])
    }

    /// The number of trainable values.
    pub fn parameters(&self) -> usize {
        self.tensors.values().map(|t| t.values.len()).sum()
    }

    /// Checks that every factor fits the linear layers of `base`, and the bank its blocks.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`], naming the tensor and both shapes.
    pub fn check_base(&self, base: &ModelConfig) -> Result<()> {
        let file = self.path.join("adapter_model.safetensors");
        let rank = self.config.rank();
        for site in self.sites() {
            let finding = |name: &str| Finding::new(&file, format!("tensor {name:?}"));
            if site.layer >= base.num_hidden_layers {
                return Err(finding(&site.factor_name('A'))
                    .expected(format_args!("layers below the base model's {}", base.num_hidden_layers))
                    .found(format_args!("layer {}", site.layer))
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            }
            let (d_out, d_in) = site.module.shape(base);
            for (which, shape) in [('A', [rank, d_in]), ('B', [d_out, rank])] {
                let name = site.factor_name(which);
                let found = &self.tensors[&name].shape;
                if found != &shape {
                    return Err(finding(&name)
                        .expected(format_args!("{} for this base model", show_shape(&shape)))
                        .found(show_shape(found))
                        .hint("this adapter belongs to another base model, or its r is not what its config says")
                        .mismatch());
                }
            }
        }
        match &self.config {
            AdapterConfig::Bank(config) => config.check_base(&file, base, &self.sites(), &self.tensors),
            AdapterConfig::Lora(_) => Ok(()),
        }
    }

    /// Every tensor is a factor with its partner, or one of the bank's own: nothing else is there.
    fn check_names(&self, file: &Path) -> Result<()> {
        let finding = |name: &str| Finding::new(file, format!("tensor {name:?}"));
        let globals = match &self.config {
            AdapterConfig::Bank(config) => config.global_tensors(),
            AdapterConfig::Lora(_) => Vec::new(),
        };
        for (name, shape) in &globals {
            let found =
                self.tensors.get(*name).ok_or_else(|| finding(name).expected("it").found("nothing").format())?;
            let fits = found.shape.len() == shape.len()
                && found.shape.iter().zip(shape).all(|(found, wanted)| wanted.is_none_or(|w| w == *found));
            if !fits {
                let shape: Vec<String> = shape.iter().map(|d| d.map_or("any".into(), |d| d.to_string())).collect();
                let expected = format!("[{}] by adapter_config.json", shape.join(", "));
                return Err(finding(name).expected(expected).found(show_shape(&found.shape)).mismatch());
            }
        }
        for name in self.tensors.keys() {
            if globals.iter().any(|(global, _)| global == name) {
                continue;
            }
            let (site, partner) = match (LinearLayer::of_factor(name, 'A'), LinearLayer::of_factor(name, 'B')) {
                (Some(site), _) => (site, 'B'),
                (_, Some(site)) => (site, 'A'),
                _ => {
                    return Err(finding(name)
                        .expected("a tensor this kind of adapter has")
                        .found("one that nothing here uses")
                        .unsupported());
                }
            };
            if !self.tensors.contains_key(&site.factor_name(partner)) {
                return Err(finding(&site.factor_name(partner)).expected("it").found("nothing").format());
            }
            let targets = match &self.config {
                AdapterConfig::Bank(config) => Some(&config.target_modules),
                AdapterConfig::Lora(config) => config.target_modules.as_ref(),
            };
            if targets.is_some_and(|targets| !targets.iter().any(|t| t == site.module.name())) {
                return Err(finding(name)
                    .expected(format_args!("only target_modules {:?}", targets.unwrap_or(&Vec::new())))
                    .found(site.module.name())
                    .mismatch());
            }
        }
        if self.sites().is_empty() {
            return Err(Finding::new(file, "").expected("lora_A and lora_B tensors").found("none").format());
        }
        Ok(())
    }
}

/// Writes named f32 tensors as `{stem}.safetensors` into the new folder `folder`.
///
/// # Errors
/// As [`Adapter::save`].
pub fn save_tensors(tensors: &BTreeMap<String, HostTensor>, stem: &str, folder: &Path) -> Result<()> {
    let staging = Staging::folder(folder, false)?;
    write_tensors(tensors, stem, &staging)?;
    staging.commit()
}

/// Writes named f32 tensors as `{stem}.safetensors` into a folder that is being staged.
pub(crate) fn write_tensors(tensors: &BTreeMap<String, HostTensor>, stem: &str, staging: &Staging) -> Result<()> {
    let tensors = tensors
        .iter()
        .map(|(name, t)| PlannedTensor {
            name: name.clone(),
            dtype: DType::F32,
            shape: t.shape.clone(),
            expr: Expr::Values { shape: t.shape.clone(), values: t.values.clone() },
        })
        .collect();
    let plan = Plan { tensors };
    let layout = safetensors::layout(&plan.tensors, stem, u64::MAX)?;
    plan::execute(&plan, &layout, staging, plan::Options::default(), &|_| ())
}

#[cfg(test)]
mod tests;
