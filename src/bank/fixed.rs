//! Banks with a fixed mix of their atoms, for linear layers and convolutions of any class. They need no router, and no model
//! is run: with the mix `M = sum_i alpha_i C_i`, the update `s B M A` is that of the LoRA with the factors `B M` and `A`.
//!
//! The settings are those of a bank, with `routing` "fixed", the mix in `alphas`, and PEFT's patterns for modules.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::BlockAlphas;
use super::atom_bank::PEFT_TYPE;
use super::operator::{left_factor, mixed_atoms};
use crate::adapter::{ADAPTER_CONFIG, AdapterFiles, HostTensor, read_tensors};
use crate::error::{Error, Finding, Result};
use crate::json::{Fields, is_off, read_json_object};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::show_shape;

/// The value of `routing` of a bank whose mix is fixed.
const FIXED: &str = "fixed";
/// The atoms, `[K, r, r]`.
const ATOMS: &str = "atom_bank.atoms";
/// The beginning of the names of a bank's own tensors.
const OWN: &str = "atom_bank.";
/// The ends of the names of factors.
const FACTORS: [&str; 2] = [".lora_A.weight", ".lora_B.weight"];
/// Fields that a LoRA has, too, and that say which modules are changed and by how much.
const OF_LORA: [&str; 7] =
    ["exclude_modules", "layers_pattern", "layers_to_transform", "lora_alpha", "r", "target_modules", "use_rslora"];
/// Fields of a bank's routing.
const OF_ROUTING: &[&str] = &[
    "descriptor_dim",
    "growth",
    "instruction_dim",
    "instruction_encoder",
    "key_dim",
    "prior_strength",
    "prior_temperature",
    "prompt_template",
    "routing",
    "temperature",
    "top_k",
];
/// Fields that don't matter.
const INERT: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_type",
    "peft_version",
    "revision",
    "task_type",
];

/// A bank whose atoms get fixed weights.
pub struct FixedBank<'a> {
    files: &'a AdapterFiles,
    /// The file with the settings.
    path: PathBuf,
    /// The rank of the factors.
    r: usize,
    /// The fields that its LoRA has.
    of_lora: Map<String, Value>,
    /// The number of layers that share a mix; `None` where all do.
    block_size: Option<usize>,
    /// The mix in its settings.
    alphas: Vec<BlockAlphas>,
    atoms: HostTensor,
    /// Fields of a routing, which a fixed mix doesn't have.
    unused: Vec<&'static str>,
    /// Whether it has a router, which isn't used.
    is_routed: bool,
}

/// A bank as a LoRA, and the mix that it was made with.
pub struct AtMix {
    /// The LoRA.
    pub lora: AdapterFiles,
    /// The weights of the atoms in each block that has modules, each `[K]`.
    pub alphas: BTreeMap<usize, Vec<f32>>,
}

impl<'a> FixedBank<'a> {
    /// Whether the adapter at `path` is a bank that has no router.
    ///
    /// # Errors
    /// Errors of reading its settings, if it has any.
    pub fn is_at(path: &Path) -> Result<bool> {
        let file = path.join(ADAPTER_CONFIG);
        Ok(file.is_file() && Self::has_no_router(&read_json_object(&file)?))
    }

    fn has_no_router(settings: &Map<String, Value>) -> bool {
        settings.get("peft_type").and_then(Value::as_str) == Some(PEFT_TYPE)
            && (settings.get("routing").and_then(Value::as_str) == Some(FIXED) || !settings.contains_key("key_dim"))
    }

    /// The bank in `files`; `None` for another adapter and, unless its mix is `given`, for a bank that routes.
    ///
    /// # Errors
    /// [`crate::Error::Format`] and [`crate::Error::Unsupported`] for settings that aren't a bank's;
    /// [`crate::Error::Mismatch`] for atoms of another shape.
    pub fn of(files: &'a AdapterFiles, given: bool) -> Result<Option<Self>> {
        let Some(settings) = files.settings() else { return Ok(None) };
        let is_bank = settings.get("peft_type").and_then(Value::as_str) == Some(PEFT_TYPE);
        if !is_bank || !given && !Self::has_no_router(settings) {
            return Ok(None);
        }
        let path = files.path().join(ADAPTER_CONFIG);
        let mut fields = Fields::new(&path, settings);
        let r = fields.count("r")?;
        fields.need::<f64>("lora_alpha")?;
        fields.need::<Value>("target_modules")?;
        let num_atoms = fields.get::<usize>("num_atoms")?;
        let block_size = fields.get::<u64>("block_size")?.map(|_| fields.count("block_size")).transpose()?;
        let alphas = listed_alphas(&mut fields)?;
        let is_set = |name: &&str| match (*name, settings.get(*name)) {
            (_, None | Some(Value::Null)) | ("routing", _) => false,
            ("temperature" | "prior_temperature" | "prior_strength", Some(value)) => value.as_f64() != Some(1.0),
            (_, Some(value)) => !is_off(value),
        };
        let unused = OF_ROUTING.iter().copied().filter(is_set).collect();
        fields.only("format_version", &[1.into()])?;
        fields.ignore(&OF_LORA);
        fields.ignore(OF_ROUTING);
        fields.ignore(INERT);
        fields.finish()?;
        let found = files.tensors().get(ATOMS);
        let finding = || Finding::new(files.file(), format!("tensor {ATOMS:?}"));
        let Some(found) = found else { return Err(finding().expected("a tensor of this name").found("none").format()) };
        let fits = found.shape.len() == 3
            && found.shape[1..] == [r, r]
            && num_atoms.is_none_or(|atoms| atoms == found.shape[0]);
        if !fits {
            let count = num_atoms.map_or("atoms".to_owned(), |atoms| atoms.to_string());
            let finding = finding().expected(format_args!("[{count}, {r}, {r}] by adapter_config.json"));
            return Err(finding.found(show_shape(&found.shape)).mismatch());
        }
        let short = alphas.iter().find(|given| given.weights.len() != found.shape[0]);
        if let Some(short) = short {
            let finding =
                Finding::new(&path, "alphas").expected(format_args!("{} weights, one for each atom", found.shape[0]));
            return Err(finding.found(short.weights.len()).mismatch());
        }
        let atoms = in_memory(found)?;
        let of_lora = settings.iter().filter(|(name, _)| OF_LORA.contains(&name.as_str()));
        let of_lora = of_lora.map(|(name, value)| (name.clone(), value.clone())).collect();
        let is_routed = files.tensors().tensors.iter().any(|tensor| is_of_router(&tensor.name));
        Ok(Some(Self { files, r, of_lora, block_size, alphas, atoms, unused, is_routed, path }))
    }

    /// The number of atoms.
    pub fn atoms(&self) -> usize {
        self.atoms.shape[0]
    }

    /// The LoRA with these weights of atoms, or with those of the settings where none are given.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for weights that don't fit the bank, or none; [`crate::Error::Format`] and
    /// [`crate::Error::Unsupported`] for tensors that a bank doesn't have.
    pub fn at_mix(&self, given: &[BlockAlphas]) -> Result<AtMix> {
        let finding = || Finding::new(&self.path, "alphas");
        let alphas = if given.is_empty() { self.alphas.as_slice() } else { given };
        if alphas.is_empty() {
            let finding = finding().expected("weights of the atoms, in the settings or given").found("none");
            return Err(finding.mismatch());
        }
        let mut blocks: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let mut tensors = Vec::new();
        for tensor in self.files.tensors().tensors.iter().filter(|tensor| !tensor.name.starts_with(OWN)) {
            let Some(module) = FACTORS.iter().find_map(|end| tensor.name.strip_suffix(end)) else {
                let finding = Finding::new(self.files.file(), format!("tensor {:?}", tensor.name));
                return Err(finding.expected("atoms, lora_A.weight or lora_B.weight").found("another").unsupported());
            };
            blocks.insert(self.block(module)?, Vec::new());
            tensors.push((tensor, module));
        }
        if tensors.is_empty() {
            return Err(Finding::new(self.files.file(), "")
                .expected("lora_A and lora_B tensors")
                .found("none")
                .format());
        }
        let weights = BlockAlphas::by_block(alphas, self.atoms(), blocks.keys().copied(), finding)?;
        blocks.values_mut().zip(weights).for_each(|(block, weights)| *block = weights);
        let operators: BTreeMap<usize, Vec<f32>> =
            blocks.iter().map(|(block, weights)| (*block, mixed_atoms(&self.atoms, weights))).collect();
        let mut plan = Plan::default();
        for (tensor, module) in tensors {
            plan.tensors.push(match tensor.name.ends_with(FACTORS[1]) {
                true => self.mixed(tensor, &operators[&self.block(module)?])?,
                false => tensor.clone(),
            });
        }
        let mut settings = self.of_lora.clone();
        settings.insert("peft_type".to_owned(), json!("LORA"));
        let mut notes = self.files.notes().to_vec();
        if self.is_routed {
            notes.push(format!("{}: its router isn't used: the weights of atoms are given", self.path.display()));
        } else if !self.unused.is_empty() {
            let (path, unused) = (self.path.display(), self.unused.join(", "));
            notes.push(format!("{path}: the mix of atoms is fixed, so that {unused} in its settings change nothing"));
        }
        Ok(AtMix { lora: self.files.with(settings, plan, notes), alphas: blocks })
    }

    /// `B M`, in the shape of `b`.
    fn mixed(&self, b: &PlannedTensor, operator: &[f32]) -> Result<PlannedTensor> {
        let is_left =
            matches!(b.shape.as_slice(), [_, r, ones @ ..] if *r == self.r && ones.iter().all(|one| *one == 1));
        if !is_left {
            let finding = Finding::new(self.files.file(), format!("tensor {:?}", b.name));
            let expected = format!("[outputs, {}] by adapter_config.json", self.r);
            return Err(finding.expected(expected).found(show_shape(&b.shape)).mismatch());
        }
        let left = left_factor(&in_memory(b)?.values, operator, self.r);
        let expr = Expr::Values { shape: b.shape.clone(), values: left.into() };
        Ok(PlannedTensor { dtype: crate::dtype::DType::F32, expr, ..b.clone() })
    }

    /// The block of a module: the first number in its path, over the size of blocks.
    fn block(&self, module: &str) -> Result<usize> {
        let Some(size) = self.block_size else { return Ok(0) };
        match module.split('.').find_map(|part| part.parse::<usize>().ok()) {
            Some(number) => Ok(number / size),
            None => Err(Finding::new(&self.path, "block_size")
                .expected(format_args!("a number in the path of {module:?}, which tells its block"))
                .found("none")
                .hint("without block_size, all modules have one mix")
                .mismatch()),
        }
    }
}

/// Whether a tensor is a bank's, and one of its routing.
fn is_of_router(name: &str) -> bool {
    name.starts_with(OWN) && name != ATOMS
}

/// The tensor's values in f32.
fn in_memory(tensor: &PlannedTensor) -> Result<HostTensor> {
    let mut read = read_tensors(&Plan { tensors: vec![tensor.clone()] })?;
    Ok(read.remove(&tensor.name).unwrap_or(HostTensor { shape: Vec::new(), values: Vec::new().into() }))
}

/// The field `alphas`: a list of weights for all modules, or one for each block.
fn listed_alphas(fields: &mut Fields) -> Result<Vec<BlockAlphas>> {
    let Some(listed) = fields.get::<Value>("alphas")? else { return Ok(Vec::new()) };
    let numbers = |list: &Value| -> Option<Vec<f64>> { list.as_array()?.iter().map(Value::as_f64).collect() };
    let lists: Option<Vec<Vec<f64>>> = match numbers(&listed) {
        Some(one) => Some(vec![one]),
        None => listed.as_array().and_then(|lists| lists.iter().map(numbers).collect()),
    };
    let finding = || fields.finding("alphas");
    let Some(lists) = lists.filter(|lists| !lists.is_empty()) else {
        let finding = finding().expected("a list of weights, one for each atom, or such a list for each block");
        return Err(finding.found(listed).format());
    };
    let several = lists.len() > 1;
    let of_block = |(block, list): (usize, &Vec<f64>)| BlockAlphas {
        block: several.then_some(block),
        weights: list.iter().copied().enumerate().collect(),
    };
    let alphas: Vec<BlockAlphas> = lists.iter().enumerate().map(of_block).collect();
    BlockAlphas::check(&alphas, finding, |finding| -> Error { finding.mismatch() })?;
    Ok(alphas)
}
