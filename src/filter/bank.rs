//! Banks of filter atoms: their settings and tensors, in PEFT's layout of files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::atoms::Atoms;
use super::layer::{LayerConfig, Mode};
use super::names::{Part, atoms_name, coefficients_name};
use super::size::KernelSize;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::json::{Fields, read_json_object};
use crate::linalg::{Matrix, from_rows};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// The value of `peft_type` of banks of filter atoms.
pub const PEFT_TYPE: &str = "FILTER_ATOMS";
/// The file with the settings.
const CONFIG_FILE: &str = "adapter_config.json";
/// The version of the files that this crate reads and writes.
const VERSION: u64 = 1;
/// Fields of PEFT that don't matter here.
const INERT: &[&str] = &["auto_mapping", "inference_mode", "peft_type", "peft_version", "revision", "task_type"];
/// The expectation in messages about a missing tensor.
const ABSENT: &str = "a tensor of this name";

/// The settings of a bank.
#[derive(Debug, Clone, PartialEq)]
pub struct BankConfig {
    /// What the bank stands for.
    pub mode: Mode,
    /// Whether kernels of one size share their atoms.
    pub shared: bool,
    /// The factor of the change, with [`Mode::Atoms`].
    pub scale: f64,
    /// The layers by their modules, in order.
    pub layers: Vec<(String, LayerConfig)>,
    /// The model that was decomposed.
    pub base_model_name_or_path: String,
}

impl BankConfig {
    /// Checks the content of the adapter_config.json at `path`.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for invalid settings; [`crate::Error::Unsupported`] for another version or an unknown
    /// field.
    pub fn from_json(path: &Path, json: &Map<String, Value>) -> Result<Self> {
        let mut fields = Fields::new(path, json);
        let kind: String = fields.need("peft_type")?;
        if kind != PEFT_TYPE {
            return Err(fields.finding("peft_type").expected(PEFT_TYPE).found(kind).mismatch());
        }
        fields.only("format_version", &[json!(VERSION)])?;
        let mode = match fields.need::<String>("mode")?.as_str() {
            "replace" => Mode::Replace,
            "atoms" => Mode::Atoms,
            other => {
                return Err(fields
                    .finding("mode")
                    .expected("replace or atoms")
                    .found(format_args!("{other:?}"))
                    .format());
            }
        };
        let shared = fields.get("shared")?.unwrap_or(false);
        let scale: f64 = fields.get("scale")?.unwrap_or(1.0);
        if !(scale as f32).is_finite() {
            return Err(fields.finding("scale").expected("a finite number").found(scale).format());
        }
        if mode == Mode::Replace && scale != 1.0 {
            let finding = fields.finding("scale").expected("1 with mode replace, which stands for whole kernels");
            return Err(finding.found(scale).unsupported());
        }
        let base_model_name_or_path = fields.get("base_model_name_or_path")?.unwrap_or_default();
        let listed: Map<String, Value> = fields.need("layers")?;
        if listed.is_empty() {
            return Err(fields.finding("layers").expected("at least one layer").found("none").format());
        }
        let mut layers = Vec::with_capacity(listed.len());
        for (module, layer) in &listed {
            let Some(map) = layer.as_object() else {
                return Err(fields.finding(&format!("layers.{module}")).expected("an object").found(layer).format());
            };
            layers.push((module.clone(), LayerConfig::read(path, module, map)?));
        }
        fields.ignore(INERT);
        fields.finish()?;
        Ok(Self { mode, shared, scale, layers, base_model_name_or_path })
    }

    /// The settings as JSON.
    pub fn to_json(&self) -> Value {
        let layers: Map<String, Value> =
            self.layers.iter().map(|(module, layer)| (module.clone(), layer.to_json())).collect();
        let mut json = json!({
            "peft_type": PEFT_TYPE, "format_version": VERSION, "mode": self.mode.name(), "shared": self.shared,
            "layers": layers,
        });
        if self.mode == Mode::Atoms {
            json["scale"] = json!(self.scale);
        }
        if !self.base_model_name_or_path.is_empty() {
            json["base_model_name_or_path"] = json!(self.base_model_name_or_path);
        }
        json
    }
}

/// Atoms that are there, and where they come from.
#[derive(Debug, Clone)]
pub struct StoredAtoms {
    /// The atoms.
    pub atoms: Arc<Atoms>,
    /// Their type in the file.
    pub dtype: DType,
}

/// A layer of an open bank.
#[derive(Debug, Clone)]
pub struct BankLayer {
    /// The module's path.
    pub module: String,
    /// Its settings.
    pub config: LayerConfig,
    /// Its coefficients, with [`Mode::Replace`].
    pub coefficients: Option<PlannedTensor>,
    /// Its atoms.
    pub atoms: StoredAtoms,
    /// The atoms that they replace, with [`Mode::Atoms`].
    pub base: Option<StoredAtoms>,
}

/// An open bank of filter atoms. Coefficients stay in their file.
#[derive(Debug, Clone)]
pub struct FilterBank {
    /// The file with the settings.
    pub path: PathBuf,
    /// The file with the tensors.
    pub file: PathBuf,
    /// The settings.
    pub config: BankConfig,
    /// The layers, in the settings' order.
    pub layers: Vec<BankLayer>,
}

impl FilterBank {
    /// Reads the bank with these settings, from the file at `path`, and these tensors, from the file at `file`.
    ///
    /// # Errors
    /// Those of [`BankConfig::from_json`]; [`crate::Error::Format`] for tensors that are missing or surplus or have
    /// another shape; [`crate::Error::NotFinite`] for a NaN or an infinity in atoms.
    pub fn read(path: &Path, json: &Map<String, Value>, file: &Path, tensors: Plan) -> Result<Self> {
        let config = BankConfig::from_json(path, json)?;
        let left = tensors.tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let mut stored = Stored { file, left, shared: BTreeMap::new() };
        let mut layers = Vec::with_capacity(config.layers.len());
        for (module, layer) in &config.layers {
            let own = (!config.shared).then_some(module.as_str());
            layers.push(BankLayer {
                module: module.clone(),
                config: layer.clone(),
                coefficients: match config.mode {
                    Mode::Replace => Some(stored.coefficients(module, layer)?),
                    Mode::Atoms => None,
                },
                atoms: stored.atoms(own, layer, false)?,
                base: match config.mode {
                    Mode::Replace => None,
                    Mode::Atoms => Some(stored.atoms(own, layer, true)?),
                },
            });
        }
        if let Some(name) = stored.left.keys().next() {
            return Err(stored
                .finding(name)
                .expected("a tensor that `layers` asks for")
                .found("one that nothing uses")
                .format());
        }
        Ok(Self { path: path.to_owned(), file: file.to_owned(), config, layers })
    }
}

/// The tensors of a bank's file. Each is to be used once; shared atoms are kept.
struct Stored<'a> {
    file: &'a Path,
    left: BTreeMap<String, PlannedTensor>,
    shared: BTreeMap<String, PlannedTensor>,
}

impl Stored<'_> {
    fn finding(&self, name: &str) -> Finding {
        Finding::new(self.file, format!("tensor {name:?}"))
    }

    fn take(&mut self, name: &str) -> Result<PlannedTensor> {
        let tensor =
            self.left.remove(name).ok_or_else(|| self.finding(name).expected(ABSENT).found("none").format())?;
        if !tensor.dtype.is_float() {
            return Err(self.finding(name).expected("F32, F16, BF16 or F64").found(tensor.dtype).unsupported());
        }
        Ok(tensor)
    }

    /// The coefficients of a layer; the numbers of channels are their own.
    fn coefficients(&mut self, module: &str, layer: &LayerConfig) -> Result<PlannedTensor> {
        let name = coefficients_name(module);
        let tensor = self.take(&name)?;
        let axes = layer.size.coefficient_axes(layer.temporal_atoms, layer.spatial_atoms);
        let fits = tensor.shape.len() == 2 + axes.len() && tensor.shape[2..] == axes && !tensor.shape.contains(&0);
        if fits {
            return Ok(tensor);
        }
        let axes: String = axes.iter().map(|axis| format!(", {axis}")).collect();
        Err(self
            .finding(&name)
            .expected(format_args!("[outputs, inputs{axes}] by {}", "adapter_config.json"))
            .found(show_shape(&tensor.shape))
            .format())
    }

    fn atoms(&mut self, module: Option<&str>, layer: &LayerConfig, of_base: bool) -> Result<StoredAtoms> {
        let mut dtype = None;
        let mut part = |part: Part, count: usize| -> Result<Matrix> {
            if !part.is_of(layer.size) {
                return Ok(Matrix::identity(1, 1));
            }
            let name = atoms_name(module, layer.size, part, of_base);
            let tensor = match self.shared.get(&name) {
                Some(known) => known.clone(),
                None => self.take(&name)?,
            };
            if module.is_none() {
                self.shared.insert(name.clone(), tensor.clone());
            }
            let shape = part.shape(layer.size, count);
            if tensor.shape != shape {
                let finding =
                    self.finding(&name).expected(format_args!("{} by adapter_config.json", show_shape(&shape)));
                return Err(finding.found(show_shape(&tensor.shape)).format());
            }
            dtype = dtype.or(Some(tensor.dtype));
            let columns = shape[1..].iter().product();
            Ok(from_rows(count, columns, &tensor.read()?))
        };
        let temporal = part(Part::Temporal, layer.temporal_atoms)?;
        let spatial = part(Part::Spatial, layer.spatial_atoms)?;
        let atoms = Arc::new(Atoms { size: layer.size, temporal, spatial });
        Ok(StoredAtoms { atoms, dtype: dtype.unwrap_or(DType::F32) })
    }
}

impl FilterBank {
    /// Whether the folder, or the file adapter_config.json, at `path` says that it is a bank of filter atoms.
    pub fn is_in(path: &Path) -> bool {
        let config = if path.is_dir() { path.join(CONFIG_FILE) } else { path.to_owned() };
        config.file_name().is_some_and(|name| name == CONFIG_FILE)
            && read_json_object(&config)
                .is_ok_and(|config| config.get("peft_type").and_then(Value::as_str) == Some(PEFT_TYPE))
    }

    /// The kernel sizes of its layers, each once, in order.
    pub fn sizes(&self) -> Vec<KernelSize> {
        let mut sizes: Vec<KernelSize> = Vec::new();
        for layer in &self.layers {
            if !sizes.contains(&layer.config.size) {
                sizes.push(layer.config.size);
            }
        }
        sizes
    }
}
