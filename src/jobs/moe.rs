//! Makes a mixture of experts of dense models.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

use super::settings::setting;
use super::{OutputKind, OutputSettings, Step, Watch};
use crate::arch::{ModelConfig, Naming};
use crate::chat;
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::merge::card;
use crate::merge::moe::{
    Expert, GateMode, Gates, Group, Mixture, MoeClass, MoeConfig, difference, mixture, model_config, normalized,
};
use crate::model::{Batch, Decoder, ModelWeights, Residence, Sequence, TextEncoder};
use crate::output::Output;
use crate::plan::{Plan, PlannedTensor};

/// The name under which the output has the file that describes it.
const OWN_CONFIG: &str = "mergekit_moe_config.yml";

/// Settings of [`moe`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MoeSettings {
    /// The file that describes the mixture, in the form of mergekit-moe.
    pub config: PathBuf,
    /// The folders of models that the file names in another way.
    #[serde(default)]
    pub folders: BTreeMap<String, PathBuf>,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
    /// The seed of random gates and of noise.
    #[serde(default)]
    pub seed: u64,
    /// Whether all experts may be the same model.
    #[serde(default)]
    pub allow_all_same: bool,
}

impl MoeSettings {
    /// Settings for the mixture that `config` describes.
    pub fn new(config: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        let output = OutputSettings::new(output);
        Self { config: config.into(), folders: BTreeMap::new(), output, seed: 0, allow_all_same: false }
    }
}

/// Makes a mixture of experts. The gates are computed on `device`, if the base has to be run for them.
///
/// # Errors
/// [`crate::Error::Setting`]; errors of reading the file and of opening the models; [`crate::Error::Mismatch`] for models
/// that don't fit each other; errors of running the base.
pub fn moe(settings: &MoeSettings, device: &Device, watch: Watch) -> Result<Output> {
    settings.output.check()?;
    if settings.output.kind() == OutputKind::Lora {
        return Err(setting("to").expected("a model").found("lora").setting());
    }
    let config = MoeConfig::read(&settings.config)?;
    config.check(&settings.config, settings.allow_all_same)?;
    Job { settings, config: &config, device, watch }.run()
}

/// A mixture in progress.
struct Job<'a> {
    settings: &'a MoeSettings,
    config: &'a MoeConfig,
    device: &'a Device,
    watch: Watch<'a>,
}

impl Job<'_> {
    fn run(&self) -> Result<Output> {
        let mut base = self.open(&self.config.base_model)?;
        let names: Vec<&str> = self.config.all_experts().map(|expert| expert.source_model.as_str()).collect();
        let mut models: BTreeMap<&str, Checkpoint> = BTreeMap::new();
        for name in &names {
            if !models.contains_key(name) {
                models.insert(name, self.open(name)?);
            }
        }
        let kinds = [&base].into_iter().chain(names.iter().map(|name| &models[name])).map(model_type);
        let class = MoeClass::choose(&self.settings.config, self.config, &kinds.collect::<Result<Vec<_>>>()?)?;
        let plans: BTreeMap<&str, Plan> = models.iter().map(|(name, model)| (*name, named(model))).collect();
        let weights = named(&base);
        let embeddings = embeddings(&base, &weights)?;
        let (layers, width) = (layers(&base, &weights)?, embeddings.row_len());
        let mut notes = Vec::new();
        let gates = self.gates(&base, &weights, embeddings, (layers, width))?;
        if !self.settings.output.dry_run {
            notes.extend(gates.as_ref().and_then(Gates::degenerate_note));
        }
        let config = MoeConfig { dtype: self.config.dtype.or_else(|| dtype_of(&base)), ..self.config.clone() };
        let experts: Vec<&Plan> = names.iter().map(|name| &plans[name]).collect();
        let seed = self.settings.seed;
        let of = Mixture { class, config: &config, base: &weights, experts: &experts, layers, width, seed };
        let mut plan = mixture(of, gates.as_ref(), &mut notes)?;
        if class == MoeClass::Deepseek && config.architecture.is_none() {
            let what = "the mixture is of DeepseekForCausalLM, which transformers runs with code from the hub";
            notes.push(format!("{what}; `architecture: qwen` with prompts for the shared expert is another way"));
        }
        if class == MoeClass::Qwen2 {
            notes.extend(self.untie(&mut base, &mut plan));
        }
        let counts = (config.experts.len(), config.experts_per_token, config.shared_experts.len());
        base.config_json = model_config(class, &base.config_json, counts.0, counts.1, counts.2);
        notes.extend(
            models
                .values()
                .flat_map(|model| model.notes().iter().map(|note| format!("{}: {note}", model.path().display()))),
        );
        let mut output = self.settings.output.model(&base, &plan)?;
        if output.is_folder() {
            let sources: Vec<(&str, f64)> = models.keys().map(|name| (*name, 1.0)).collect();
            let files = &mut output.sidecars.files;
            files.insert("README.md".to_owned(), card(&self.config.base_model, &sources).into_bytes());
            files.insert(OWN_CONFIG.to_owned(), self.config.text.clone().into_bytes());
        }
        output.notes = [notes, output.notes].concat();
        Ok(self.settings.output.split(output))
    }

    /// Gives a GGUF of Qwen's class a head of its own, where the embeddings are the head, and says so: llama.cpp doesn't load
    /// it otherwise.
    fn untie(&self, base: &mut Checkpoint, plan: &mut Plan) -> Option<String> {
        const HEAD: &str = "lm_head.weight";
        let is_tied = base.config_json.get("tie_word_embeddings").is_some_and(|tied| *tied == true);
        if !is_tied || plan.get(HEAD).is_some() {
            return None;
        }
        let what = "llama.cpp loads no model of Qwen2MoeForCausalLM whose embeddings are its output head";
        if self.settings.output.kind() != OutputKind::Gguf {
            return Some(format!("{what}, as they are here; a GGUF that is written by this command has both"));
        }
        let embeddings = plan.get("model.embed_tokens.weight").cloned()?;
        plan.tensors.push(PlannedTensor { name: HEAD.to_owned(), ..embeddings });
        base.config_json.insert("tie_word_embeddings".to_owned(), false.into());
        Some(format!("{what}: the GGUF has both"))
    }

    fn open(&self, name: &str) -> Result<Checkpoint> {
        Checkpoint::open(self.settings.folders.get(name).map_or(Path::new(name), PathBuf::as_path))
    }

    /// The gates of the experts; `None` for random ones, which are drawn when the plan is made.
    fn gates(
        &self,
        base: &Checkpoint,
        weights: &Plan,
        embeddings: &PlannedTensor,
        (layers, width): (usize, usize),
    ) -> Result<Option<Gates>> {
        let (mode, gated) = (self.config.gate_mode, self.config.gated());
        if mode.is_random() {
            return Ok(None);
        }
        let prompts = Prompts::read(base.path(), &gated)?;
        if self.settings.output.dry_run {
            return Ok(Some(Gates::zeros(layers, gated.len(), width)));
        }
        let groups: Vec<Group> = match mode {
            GateMode::CheapEmbed => {
                let group = |group: &Vec<Vec<u32>>| Ok(vec![embedded(embeddings, group, base.path())?; layers]);
                prompts.groups.iter().map(group).collect::<Result<_>>()?
            }
            _ => self.hidden(base, weights, &prompts)?,
        };
        let mut groups = groups.into_iter();
        let mut expert = |expert: &&Expert| {
            let positive = groups.next().unwrap_or_default();
            let negative = if expert.negative_prompts.is_empty() { None } else { groups.next() };
            difference(positive, negative)
        };
        Ok(Some(Gates::of_experts(&gated.iter().map(&mut expert).collect::<Vec<_>>(), width)))
    }

    /// What enters each layer for the prompts of every group: the mean over the group.
    fn hidden(&self, base: &Checkpoint, weights: &Plan, prompts: &Prompts) -> Result<Vec<Group>> {
        let averages = self.config.gate_mode == GateMode::HiddenAverage;
        let path = base.path().join("config.json");
        let model = ModelConfig::from_json(&path, &base.config_json)?;
        let weights = ModelWeights::open(base.path(), &model, weights, Residence::Streamed, self.device)?;
        let decoder = Decoder::new(weights);
        let sequences: Vec<Sequence> = (prompts.groups.iter().flatten())
            .map(|ids| Sequence { routed: ids.len(), ids: ids.clone(), ..Sequence::default() })
            .collect();
        decoder.check_lengths(&sequences)?;
        if averages
            && let Some(group) = prompts.groups.iter().find(|group| group.iter().any(|ids| ids.len() != group[0].len()))
        {
            let found = format!("{} and others", group[0].len());
            return Err(Finding::new(&self.settings.config, "gate_mode")
                .expected("prompts of one number of tokens in each list for hidden_avg, which counts padding")
                .found(found)
                .hint("`hidden` takes the last token of each")
                .unsupported());
        }
        let batches: Vec<Batch> = sequences.iter().map(|sequence| Batch::new(std::slice::from_ref(sequence))).collect();
        let group_of: Vec<usize> =
            prompts.groups.iter().enumerate().flat_map(|(number, group)| vec![number; group.len()]).collect();
        let sizes: Vec<f64> = prompts.groups.iter().map(|group| group.len() as f64).collect();
        let (layers, width) = (model.num_hidden_layers, model.hidden_size);
        let mut groups: Vec<Group> = vec![vec![vec![0.0; width]; layers]; sizes.len()];
        let total = (layers * batches.len()) as u64;
        let mut done = 0;
        decoder.layer_inputs(&batches, &mut |layer, number, x: &Tensor| {
            let group = group_of[number];
            let states: Vec<f32> = x.flatten_all()?.to_vec1()?;
            let rows: Vec<&[f32]> = states.chunks_exact(width).collect();
            let rows = if averages { &rows[..] } else { &rows[rows.len() - 1..] };
            for row in rows {
                let sum = &mut groups[group][layer];
                sum.iter_mut().zip(*row).for_each(|(s, v)| *s += f64::from(*v) / (rows.len() as f64 * sizes[group]));
            }
            done += 1;
            (self.watch)(Step { what: "running prompts", done, total });
            Ok(())
        })?;
        if let Some(layer) = (0..layers).find(|layer| groups.iter().any(|group| !finite(&group[*layer]))) {
            let finding = Finding::new(base.path(), format!("states that enter layer {layer}"));
            return Err(finding.expected("finite numbers").found("a NaN or an infinity").not_finite());
        }
        Ok(groups)
    }
}

fn finite(vector: &[f64]) -> bool {
    vector.iter().all(|value| value.is_finite())
}

/// The tokens of all prompts: for each expert those of its positive prompts, then those of its negative ones, if any.
struct Prompts {
    groups: Vec<Vec<Vec<u32>>>,
}

impl Prompts {
    /// Tokens as in mergekit: the text of BOS in front, and no other special token.
    fn read(folder: &Path, experts: &[&Expert]) -> Result<Self> {
        let encoder = TextEncoder::open(folder)?;
        let bos = chat::bos_text(folder)?.unwrap_or_default();
        let encode = |prompt: &String| {
            let ids = encoder.encode(&format!("{bos}{prompt}"), false)?;
            match ids.is_empty() {
                false => Ok(ids),
                true => {
                    let finding = Finding::new(encoder.path(), format!("prompt {prompt:?}"));
                    Err(finding.expected("at least one token").found("none").mismatch())
                }
            }
        };
        let lists = experts.iter().flat_map(|expert| [&expert.positive_prompts, &expert.negative_prompts]);
        let group = |prompts: &Vec<String>| prompts.iter().map(encode).collect::<Result<Vec<_>>>();
        Ok(Self { groups: lists.filter(|prompts| !prompts.is_empty()).map(group).collect::<Result<_>>()? })
    }
}

/// The sum of the embeddings of all tokens of a group, of length 1.
fn embedded(table: &PlannedTensor, group: &[Vec<u32>], folder: &Path) -> Result<Vec<f64>> {
    let mut sum = vec![0.0; table.row_len()];
    for id in group.iter().flatten().map(|id| *id as usize) {
        if id >= table.rows() {
            let finding = Finding::new(folder, "token id").expected(format_args!("below {}", table.rows()));
            return Err(finding.found(id).hint("the tokenizer belongs to another model").mismatch());
        }
        sum.iter_mut().zip(table.read_rows(id..id + 1)?).for_each(|(sum, value)| *sum += f64::from(value));
    }
    Ok(normalized(vec![sum]).remove(0))
}

/// `model_type` of config.json.
fn model_type(model: &Checkpoint) -> Result<&str> {
    let finding = || Finding::new(model.path().join("config.json"), "model_type").expected("the model's type");
    match model.config_json.get("model_type") {
        Some(kind) => kind.as_str().ok_or_else(|| finding().found(kind).format()),
        None => Err(finding().found("none").format()),
    }
}

/// The type that config.json gives for the weights.
fn dtype_of(model: &Checkpoint) -> Option<DType> {
    let config = &model.config_json;
    let name = config.get("dtype").or_else(|| config.get("torch_dtype"))?.as_str()?;
    [DType::F32, DType::F16, DType::BF16].into_iter().find(|dtype| dtype.torch_name() == Some(name))
}

/// The model's tensors by the names of its class.
fn named(model: &Checkpoint) -> Plan {
    let naming = Naming::of(&model.config_json);
    let mut plan = model.rounded().clone();
    for tensor in &mut plan.tensors {
        if let Some(name) = naming.class_name(&tensor.name) {
            tensor.name = name;
        }
    }
    plan
}

/// The embeddings of the base.
fn embeddings<'a>(base: &Checkpoint, weights: &'a Plan) -> Result<&'a PlannedTensor> {
    const NAME: &str = "model.embed_tokens.weight";
    weights.get(NAME).filter(|tensor| tensor.shape.len() == 2).ok_or_else(|| {
        Finding::new(base.path(), format!("tensor {NAME:?}")).expected("a matrix").found("none").mismatch()
    })
}

/// The number of layers, all of which the base has.
fn layers(base: &Checkpoint, weights: &Plan) -> Result<usize> {
    let finding = || Finding::new(base.path().join("config.json"), "num_hidden_layers");
    let given = base.config_json.get("num_hidden_layers");
    let Some(layers) = given.and_then(serde_json::Value::as_u64) else {
        let found = given.map_or_else(|| "none".to_owned(), ToString::to_string);
        return Err(finding().expected("the number of layers").found(found).format());
    };
    let has = |layer: u64| weights.tensors.iter().any(|t| t.name.starts_with(&format!("model.layers.{layer}.")));
    match layers.checked_sub(1).is_some_and(has) {
        true => Ok(layers as usize),
        false => Err(finding().expected("the number of layers that the weights have").found(layers).mismatch()),
    }
}
