//! Reports on adapters of every kind, from their own files alone, without a base.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::TensorsReport;
use crate::adapter::AdapterFiles;
use crate::adapter::kohya::method_of;
use crate::adapter::peft::{PREFIX, is_kind};
use crate::arch::Module;
use crate::error::Result;
use crate::plan::PlannedTensor;

/// The report on an adapter.
#[derive(Debug, Clone, Serialize)]
pub struct AdapterReport {
    /// The name of its kind: LoRA, DoRA, LoHa.
    pub method: String,
    /// The `peft_type`, if PEFT has saved it.
    pub peft_type: Option<String>,
    /// The rank in its settings.
    pub r: Option<u64>,
    /// The alpha in its settings.
    pub lora_alpha: Option<f64>,
    /// The factor of its updates, where no pattern gives another.
    pub scale: Option<f32>,
    /// The ranks of its factors, and the number of modules with each.
    pub ranks: BTreeMap<usize, usize>,
    /// Other alphas, by pattern of module paths. For files without settings: alphas, and the number of modules with
    /// each.
    pub alphas: Map<String, Value>,
    /// The invocation tokens, after which it acts. Empty if it always acts.
    pub invocation_tokens: Vec<u64>,
    /// The modules that it changes, by the last parts of their paths.
    pub modules: Vec<String>,
    /// Numbers of the decoder layers that it changes.
    pub layers: Vec<usize>,
    /// The number of trained values.
    pub parameters: usize,
    /// Why it can't be merged, if that is known without a base.
    pub problem: Option<String>,
    /// The `__metadata__` of its file.
    pub metadata: BTreeMap<String, String>,
    /// Its tensors.
    pub tensors: TensorsReport,
}

/// The usual names of PEFT's kinds.
const METHODS: [(&str, &str); 33] = [
    ("ADALORA", "AdaLoRA"),
    ("BEFT", "BEFT"),
    ("BOFT", "BOFT"),
    ("BONE", "Bone"),
    ("C3A", "C3A"),
    ("DEFT", "DEFT"),
    ("DELORA", "DeLoRA"),
    ("FOURIERFT", "FourierFT"),
    ("FROD", "FRoD"),
    ("GLORA", "GLoRA"),
    ("GRALORA", "GraLoRA"),
    ("HIRA", "HiRA"),
    ("HRA", "HRA"),
    ("IA3", "(IA)3"),
    ("LN_TUNING", "tuned norms"),
    ("LOHA", "LoHa"),
    ("LOKR", "LoKr"),
    ("LORA", "LoRA"),
    ("MISS", "MiSS"),
    ("OFT", "OFT"),
    ("OSF", "OSF"),
    ("PEANUT", "PEANuT"),
    ("PVERA", "PVeRA"),
    ("RANDLORA", "RandLoRA"),
    ("ROAD", "RoAd"),
    ("SHIRA", "SHiRA"),
    ("SUPERTUNING", "Super-Tuning"),
    ("TINYLORA", "TinyLoRA"),
    ("TRAINABLE_TOKENS", "rows of embeddings"),
    ("UNILORA", "UniLoRA"),
    ("VBLORA", "VB-LoRA"),
    ("VERA", "VeRA"),
    ("WAVEFT", "WaveFT"),
];

/// Parts that PEFT puts behind a module's path for the modules inside its wrappers.
const WRAPPERS: [&str; 4] = ["token_adapter", "original_module", "base_layer", "ephemeral_"];

/// Suffixes of names of factors that have as many rows as the update's rank.
const RANK_ROWS: [&str; 11] = [
    ".lora_A.weight",
    ".lora_A",
    ".lora_embedding_A",
    ".hada_w1_b",
    ".lora_down.weight",
    ".delora_A",
    ".hira_A",
    ".hira_embedding_A",
    ".deft_R",
    ".tinylora_A",
    ".supertuning_lora_A.weight",
];

impl AdapterReport {
    /// Reports on the files of an adapter.
    ///
    /// # Errors
    /// Those of reading a file's `alpha`.
    pub fn of(files: &AdapterFiles) -> Result<Self> {
        let tensors = &files.tensors().tensors;
        let mut report = Self {
            method: String::new(),
            peft_type: None,
            r: None,
            lora_alpha: None,
            scale: None,
            ranks: BTreeMap::new(),
            alphas: Map::new(),
            invocation_tokens: Vec::new(),
            modules: Vec::new(),
            layers: Vec::new(),
            parameters: tensors.iter().map(PlannedTensor::elems).sum(),
            problem: files.refusal().map(|error| error.to_string()),
            metadata: crate::output::safetensors_metadata(files.tensors(), &mut Vec::new()),
            tensors: TensorsReport::of_plan(files.tensors()),
        };
        match files.settings() {
            Some(settings) => report.read_settings(settings),
            None if files.is_mlx() => report.method = "whole tensors".to_owned(),
            None => report.read_parts(tensors)?,
        }
        if files.is_mlx() {
            (report.method, report.peft_type) = (format!("{} of mlx-lm", report.method), None);
        }
        for tensor in tensors {
            if let (true, &[rank, _]) = (RANK_ROWS.iter().any(|end| tensor.name.ends_with(end)), &*tensor.shape) {
                *report.ranks.entry(rank).or_default() += 1;
            }
            let Some((module, layer)) = module_of(&tensor.name) else { continue };
            if !report.modules.contains(&module) {
                report.modules.push(module);
            }
            report.layers.extend(layer);
        }
        if report.modules.is_empty() {
            // One tensor for all modules: the settings name them.
            let settings = files.settings().and_then(|settings| settings.get("target_modules")?.as_array());
            let names = settings.into_iter().flatten().filter_map(Value::as_str);
            report.modules = names.filter_map(|path| path.rsplit('.').next()).map(str::to_owned).collect();
        }
        // Linear layers of a decoder are in the order of the forward pass, others in that of the file.
        let place = |name: &String| Module::place_of(name).unwrap_or(usize::MAX);
        report.modules.sort_by_key(place);
        report.layers.sort_unstable();
        report.layers.dedup();
        Ok(report)
    }

    /// Reads the content of adapter_config.json.
    fn read_settings(&mut self, settings: &Map<String, Value>) {
        let text = |name: &str| settings.get(name).and_then(Value::as_str);
        let number = |name: &str| settings.get(name).and_then(Value::as_f64);
        let is_on = |name: &str| settings.get(name).and_then(Value::as_bool).unwrap_or(false);
        let kind = text("peft_type").unwrap_or("unknown").to_owned();
        let known = METHODS.iter().find(|(name, _)| *name == kind).map(|(_, method)| *method);
        self.method = known.unwrap_or(&kind).to_owned();
        if is_on("use_dora") {
            self.method = "DoRA".to_owned();
        }
        let tokens = settings.get("alora_invocation_tokens").and_then(Value::as_array);
        self.invocation_tokens = tokens.into_iter().flatten().filter_map(Value::as_u64).collect();
        if !self.invocation_tokens.is_empty() {
            self.method = format!("activated {}", self.method);
        }
        let rank = settings.get("r").or_else(|| settings.get("init_r"));
        self.r = rank.and_then(Value::as_u64);
        self.lora_alpha = number("lora_alpha").or_else(|| number("alpha")).or_else(|| number("randlora_alpha"));
        if kind == "LORA"
            && let (Some(r), Some(alpha)) = (self.r, self.lora_alpha)
        {
            let divisor = if is_on("use_rslora") { (r as f64).sqrt() } else { r as f64 };
            self.scale = Some((alpha / divisor) as f32);
        }
        self.alphas = settings.get("alpha_pattern").and_then(Value::as_object).cloned().unwrap_or_default();
        self.peft_type = Some(kind);
    }

    /// Reads the kind of a kohya file from its tensors' names, and its alphas.
    fn read_parts(&mut self, tensors: &[PlannedTensor]) -> Result<()> {
        let mut methods: Vec<&str> = Vec::new();
        for tensor in tensors {
            let part = tensor.name.split_once('.').map(|(_, part)| part).unwrap_or_default();
            if part == "alpha" && tensor.elems() == 1 && crate::quant::can_decode(tensor.dtype) {
                let alpha = tensor.read()?.first().copied().unwrap_or_default().to_string();
                let count = self.alphas.get(&alpha).and_then(Value::as_u64).unwrap_or(0) + 1;
                self.alphas.insert(alpha, count.into());
            }
            let method = if part == "dora_scale" { Some("DoRA") } else { method_of(part) };
            if let Some(method) = method.filter(|method| !methods.contains(method)) {
                methods.push(method);
            }
        }
        self.method = match methods.is_empty() {
            true => "unknown".to_owned(),
            false => methods.join(", "),
        };
        Ok(())
    }
}

/// The last part of the path of the module to which a tensor belongs, and the number of its layer; `None` for a tensor
/// that all modules share.
fn module_of(name: &str) -> Option<(String, Option<usize>)> {
    let Some(path) = name.strip_prefix(PREFIX) else {
        // Kohya's names have underscores in place of dots; the layer's number shows where the module's own name begins.
        let (path, _) = name.split_once('.').filter(|_| !name.starts_with("base_model."))?;
        let parts: Vec<&str> = path.split('_').collect();
        let number = parts.iter().position(|part| part.parse::<usize>().is_ok());
        let own = parts[number.map_or(0, |number| number + 1)..].join("_");
        return Some((own, number.and_then(|number| parts[number].parse().ok())));
    };
    let parts: Vec<&str> = path.split('.').collect();
    let end = parts.iter().position(|part| is_kind(part) || WRAPPERS.iter().any(|start| part.starts_with(start)));
    let module = &parts[..end.unwrap_or(parts.len().saturating_sub(1))];
    Some(((*module.last()?).to_owned(), module.iter().find_map(|part| part.parse().ok())))
}
