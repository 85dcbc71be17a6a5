//! What an output is made of by its settings: a folder, a file of tensors or a GGUF of a plan, with the types, names and
//! shards that were asked for.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::{OutputKind, OutputSettings};
use crate::adapter::mlx;
use crate::checkpoint::Checkpoint;
use crate::convert::{ConvertOptions, OutType, to_gguf};
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::Override;
use crate::output::{Container, Form, Output, metadata_left_out, safetensors_metadata};
use crate::plan::{Expr, Plan};
use crate::source::Step;

/// The most steps for which the nesting of a PyTorch file is kept.
const MAX_STEPS: usize = 1 << 22;

impl OutputSettings {
    /// `plan`, in Hugging Face's names, with the types of the output.
    pub(super) fn typed(&self, plan: &Plan) -> Result<Plan> {
        Ok(match self.outtype()?.dtype(plan) {
            Some(dtype) => Checkpoint::retyped(plan, dtype),
            None => plan.clone(),
        })
    }

    /// The type of a LoRA's factors: the requested one, or f32.
    pub(super) fn lora_type(&self) -> Result<DType> {
        let asked = self.r#type.as_deref().map(str::parse::<OutType>).transpose()?;
        Ok(asked.and_then(|outtype| outtype.dtype(&Plan::default())).unwrap_or(DType::F32))
    }

    /// The folder of a LoRA with PEFT's settings and tensors, in the requested form.
    pub(super) fn lora(&self, config: &Map<String, Value>, tensors: &Plan) -> Result<Output> {
        match self.kind() {
            OutputKind::Mlx => mlx::output(config, tensors),
            _ => Ok(Output::adapter(config, tensors.clone())),
        }
    }

    /// The output for `plan`, in Hugging Face's names, with the other files of `folder`: a folder, a file of tensors or
    /// a GGUF.
    pub(super) fn model(&self, folder: &Checkpoint, plan: &Plan) -> Result<Output> {
        match self.kind() {
            OutputKind::Gguf => self.gguf(folder, plan),
            _ => Ok(self.tensors(folder.output(self.typed(plan)?)?)),
        }
    }

    /// The GGUF of a model, if its class has a family.
    pub(super) fn gguf(&self, folder: &Checkpoint, plan: &Plan) -> Result<Output> {
        let options = ConvertOptions { outtype: self.outtype()?, pre: self.pre.clone(), ..ConvertOptions::default() };
        self.quantize(to_gguf(folder, plan, &options)?, &[])
    }

    /// Quantizes `made` to the requested mixture, if any, and splits it as requested.
    pub(super) fn quantize(&self, made: Output, overrides: &[Override]) -> Result<Output> {
        let (Some(file_type), Some(metadata)) = (self.quantized()?, made.metadata()) else {
            return Ok(self.split(made));
        };
        let quantized = self.recipe.quantize(file_type, metadata, &made.plan, overrides)?;
        Ok(self.split(Output { notes: [made.notes, quantized.notes].concat(), ..quantized }))
    }

    /// Splits a GGUF as requested.
    pub(super) fn split(&self, mut output: Output) -> Output {
        if let Form::Gguf { split, .. } = &mut output.form {
            (split.max_tensors, split.max_bytes) = (self.split_max_tensors, self.split_max_size);
            split.big_endian = self.bigendian;
        }
        output
    }

    /// Puts tensors into the requested form: a folder, or one file of tensors. Keeps the `__metadata__` of the tensors'
    /// sources.
    pub(super) fn tensors(&self, mut output: Output) -> Output {
        let mut notes = Vec::new();
        output.sidecars.safetensors_metadata = safetensors_metadata(&output.plan, &mut notes);
        output.notes.extend(notes);
        self.contained(output)
    }

    /// The output for tensors alone, `plan`, which was made of those of `base`, in their order. Names that share a
    /// storage there share one in the output, and dictionaries of PyTorch files are nested as they were.
    pub(super) fn bare(&self, plan: Plan, base: &Plan) -> Output {
        self.bare_of(plan, base, &base.shared())
    }

    /// Like [`OutputSettings::bare`] for a plan with tensors that the base doesn't have; `shared` says which of its own
    /// tensors share a storage.
    pub(super) fn bare_of(&self, plan: Plan, base: &Plan, shared: &[usize]) -> Output {
        let mut notes = Vec::new();
        let steps = steps(base, &plan);
        let mut output = Output::folder("model", plan);
        output.sidecars.safetensors_metadata = safetensors_metadata(base, &mut notes);
        output.sidecars.steps = steps;
        output.notes.extend(notes);
        self.contained(self.one_name_each(output, shared))
    }

    /// `output` with one tensor for each storage that tensors of `base` share, unless each is to be written.
    pub(super) fn with_one_name_each(&self, output: Output, base: &Plan) -> Output {
        self.one_name_each(output, &base.shared())
    }

    fn one_name_each(&self, mut output: Output, shared: &[usize]) -> Output {
        if self.expand_shared {
            return output;
        }
        let is_safetensors = self.kind() == OutputKind::Safetensors;
        let texts = &output.sidecars.safetensors_metadata;
        // The metadata of safetensors has no place for two texts of one name.
        let keeps = |name: &str| is_safetensors && (name == "format" || texts.contains_key(name));
        let (plan, aliases) = output.plan.with_one_name_each(shared, &keeps);
        if is_safetensors && !aliases.is_empty() {
            output.notes.push(format!(
                "{} of {} names share the storage of another, and stand in the metadata (`expand_shared` writes a tensor \
                 for each)",
                aliases.len(),
                output.plan.tensors.len(),
            ));
        }
        output.plan = plan;
        output.sidecars.aliases = aliases;
        output
    }

    /// Like [`OutputSettings::tensors`], with the `__metadata__` that the output already has.
    pub(super) fn contained(&self, mut output: Output) -> Output {
        let (container, stem) = match self.kind() {
            OutputKind::Pytorch => {
                output.notes.extend(metadata_left_out(&output.sidecars.safetensors_metadata));
                (Container::Pytorch, "pytorch_model")
            }
            _ => {
                // Many versions of transformers refuse files without this entry.
                let texts = &mut output.sidecars.safetensors_metadata;
                texts.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
                (Container::Safetensors, "model")
            }
        };
        output.form = match self.is_file() {
            true => Form::File(container),
            false => Form::Folder { container, stem: stem.to_owned(), shard_bytes: self.shard_size },
        };
        output
    }
}

/// The steps that lead to the tensors of `base` in their files, by name, for those to which there is more than one or that
/// isn't by the name. A tensor of `plan` that the base doesn't have goes into the dictionary with which its name begins.
fn steps(base: &Plan, plan: &Plan) -> BTreeMap<String, Vec<Step>> {
    let mut found = BTreeMap::new();
    // The dictionaries in which there are tensors, by the beginnings of these tensors' names.
    let mut dictionaries: BTreeMap<String, Vec<Step>> = BTreeMap::new();
    let mut known: HashSet<&str> = HashSet::new();
    let mut total = 0;
    for tensor in &base.tensors {
        let Expr::Take(source) = &tensor.expr else { continue };
        known.insert(tensor.name.as_str());
        // A tensor that got a name of its own is no longer where the steps lead.
        if !source.info().name.ends_with(&tensor.name) {
            continue;
        }
        let mut steps = source.steps();
        // A prefix that was taken off the name is taken off the first key.
        if let (Some(prefix), Some(Step::Key(first))) =
            (source.info().name.strip_suffix(&tensor.name), steps.first_mut())
            && let Some(rest) = first.strip_prefix(prefix)
        {
            *first = rest.to_owned();
        }
        let is_name = matches!(steps.as_slice(), [Step::Key(key)] if *key == tensor.name);
        total += steps.len();
        if total > MAX_STEPS {
            return BTreeMap::new();
        }
        if !is_name && !steps.is_empty() {
            if let [within @ .., Step::Key(key)] = steps.as_slice()
                && let Some(beginning) = tensor.name.strip_suffix(key).filter(|beginning| !beginning.is_empty())
                && !dictionaries.contains_key(beginning)
            {
                dictionaries.insert(beginning.to_owned(), within.to_vec());
            }
            found.insert(tensor.name.clone(), steps);
        }
    }
    if dictionaries.is_empty() {
        return found;
    }
    for name in plan.tensors.iter().map(|tensor| &tensor.name).filter(|name| !known.contains(name.as_str())) {
        // Beginnings end in a dot, and the longest that fits is the innermost dictionary.
        let mut ends = name.rmatch_indices('.').map(|(dot, _)| name.split_at(dot + 1));
        let within = ends.find_map(|(beginning, key)| Some((dictionaries.get(beginning)?, key)));
        if let Some((within, key)) = within {
            found.insert(name.clone(), [within.as_slice(), &[Step::Key(key.to_owned())]].concat());
        }
    }
    found
}
