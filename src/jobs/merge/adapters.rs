//! Merging adapters: into a folder, tensors alone or a GGUF, or into one LoRA.

use std::path::Path;

use super::super::method::Combined as Kinds;
use super::super::settings::{left_out, setting};
use super::super::tokenizer::{self, TokenizerChoice};
use super::super::{OutputKind, into};
use super::{Job, MergeInput, candidates, vocabulary};
use crate::adapter::AdapterFiles;
use crate::adapter::peft::{Base, Change, Changes, LowRank, NewLora};
use crate::bank::{BlockAlphas, FixedBank};
use crate::checkpoint::Checkpoint;
use crate::convert::{from_gguf, with_changed};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::GgufModel;
use crate::merge::combine::{LoraMethod, Weights, combine_loras};
use crate::merge::{Merged, Truncation, rounding, with_adapters};
use crate::output::Output;
use crate::plan::Plan;

/// The adapter at `path`, or the LoRA of a bank with these weights of its atoms.
pub(super) fn adapter_at(path: &Path, alphas: &[BlockAlphas]) -> Result<AdapterFiles> {
    let files = AdapterFiles::find(path)?;
    let bank = FixedBank::of(&files, !alphas.is_empty())?;
    Ok(bank.map(|bank| bank.at_mix(alphas)).transpose()?.map_or(files, |mixed| mixed.lora))
}

/// Low-rank updates by the weights' names.
type Updates = Vec<(String, LowRank)>;

impl Job<'_> {
    /// Merges adapters into the weights of a folder.
    pub(super) fn folder(&mut self, mut folder: Checkpoint) -> Result<(Output, Vec<Truncation>)> {
        let adapters = self.found()?;
        let mut model = self.prepared(&folder, &adapters)?;
        let base = model.base();
        let keeps_types = match self.output().outtype()?.dtype(folder.weights()) {
            None => true,
            Some(dtype) => base.embeddings().is_some_and(|tensor| tensor.dtype == dtype),
        };
        let base = if keeps_types { base } else { base.retyped() };
        if self.output().kind().is_lora() {
            return self.one_lora(&base, &adapters);
        }
        let (mut merged, truncations) = self.merged(&base, &model.weights, &adapters)?;
        let embeddings = base.embeddings().map(|tensor| tensor.name.clone());
        model.describe(&merged);
        folder.config_json = model.config;
        vocabulary::pad(self.settings, &mut folder.config_json, &mut merged.plan, embeddings.as_deref())?;
        let rows = embeddings.and_then(|name| merged.plan.get(&name)).and_then(|tensor| tensor.shape.first().copied());
        self.choose_tokenizer(&mut folder, rows)?;
        let output = self.output().model(&folder, &merged.plan)?;
        Ok((self.with_card(output), truncations))
    }

    /// Merges adapters into tensors alone. A PyTorch file becomes the same file with other values in the storages that
    /// change.
    pub(super) fn tensors(&mut self, weights: &Plan, others: &[(String, String)]) -> Result<(Output, Vec<Truncation>)> {
        let settings = self.settings;
        let base = Base::of_tensors(&settings.base, weights);
        let base = match self.output().outtype()?.dtype(weights) {
            Some(dtype) if dtype != weights.main_dtype() => base.retyped(),
            _ => base,
        };
        if !matches!(settings.tokenizer, TokenizerChoice::Auto) {
            let finding = setting("tokenizer").expected("a model's folder as base");
            return Err(finding.found("tensors alone").setting());
        }
        let adapters = self.found()?;
        match self.output().kind() {
            OutputKind::Lora | OutputKind::Mlx => return self.one_lora(&base, &adapters),
            OutputKind::Safetensors | OutputKind::Pytorch | OutputKind::ThreeConvolutions => {}
            OutputKind::Hf | OutputKind::Gguf => {
                let finding = Finding::new(&settings.base, "config.json").expected("the config of a model's folder");
                let hint = "write the tensors alone: name the output .safetensors, .pt, .pth or .bin";
                return Err(finding.found("tensors alone").hint(hint).mismatch());
            }
        }
        let (Merged { plan, changed, .. }, truncations) = self.merged(&base, weights, &adapters)?;
        let (into_base, output) = (settings.is_into_base()?, &settings.output);
        let (original, key) = match &output.into {
            Some(original) => (Some(original), output.into_key.as_deref()),
            None => (Some(&settings.base).filter(|_| into_base), settings.key.as_deref()),
        };
        let made = match original {
            Some(original) => {
                let part = into::Part { key, prefix: settings.strip_prefix.as_deref() };
                let only = Some(&changed).filter(|_| output.into.is_none());
                into::output(original, part, &plan, &weights.shared(), only)?
            }
            None => {
                self.notes.extend(left_out(others));
                let part = into::Part { key: settings.key.as_deref(), prefix: settings.strip_prefix.as_deref() };
                self.notes.extend(into::parts_that_stay(&settings.base, part, &changed)?);
                output.bare(output.typed(&plan)?, weights)
            }
        };
        Ok((made, truncations))
    }

    /// Merges adapters into the weights of a GGUF. Unchanged weights are copied; changed ones get their own type again.
    pub(super) fn gguf(&mut self, model: &GgufModel) -> Result<(Output, Vec<Truncation>)> {
        let metadata = model.metadata();
        let quantized = model.tensors().iter().map(|t| t.info()).find(|info| !info.dtype.is_plain());
        if let Some(tensor) = quantized.filter(|_| self.settings.keep_base) {
            let finding = Finding::new(model.path(), format!("tensor {:?}", tensor.name));
            let hint = "leave `keep_base` out, merge into the unquantized base, or serve the adapter as it is \
                        (`jobs::convert` makes a GGUF of it, with the model's folder as `base`)";
            return Err(finding.expected("values that are not quantized").found(tensor.dtype).hint(hint).mismatch());
        }
        let to_gguf = self.output().kind() == OutputKind::Gguf;
        let taken: Plan = model.tensors().iter().cloned().collect();
        let outtype = if to_gguf { Some(DType::F32) } else { self.output().outtype()?.dtype(&taken) };
        let Some((mut config, restored)) = from_gguf(model, outtype)? else {
            let finding =
                metadata.finding("general.architecture").expected("an architecture this version has a family for");
            return Err(finding.found(format!("{:?}", metadata.text("general.architecture")?)).unsupported());
        };
        let base = Base::new(model.path(), &config, &restored.plan).retyped();
        let adapters = self.found()?;
        vocabulary::check_of_gguf(self.settings, &base, &restored.plan, &adapters)?;
        if self.output().kind().is_lora() {
            return self.one_lora(&base, &adapters);
        }
        let (merged, truncations) = self.merged(&base, &restored.plan, &adapters)?;
        tokenizer::check_of_gguf(
            &self.settings.tokenizer,
            &candidates(&self.settings.others, &self.folders),
            &mut self.notes,
        )?;
        if merged.untied {
            config.insert("tie_word_embeddings".to_owned(), false.into());
        }
        if !to_gguf {
            let mut output = Output { plan: merged.plan, ..restored };
            output.put_json("config.json", &config);
            let output = self.output().tensors(output);
            return Ok((self.with_card(output), truncations));
        }
        let plan = with_changed(model, &config, &merged.plan, &merged.changed)?;
        let made = Output::gguf(metadata.clone(), plan, Vec::new());
        if self.output().quantized()?.is_some() {
            return Ok((self.output().quantize(made, &[])?, truncations));
        }
        self.output().check_gguf_again()?;
        if !self.output().dry_run
            && let Some(rounding) = rounding(&taken, &made.plan)?
        {
            self.notes.push(rounding.to_string());
        }
        Ok((made, truncations))
    }

    /// The adapters' files.
    fn found(&mut self) -> Result<Vec<AdapterFiles>> {
        let found = |other: &MergeInput| adapter_at(&other.path, self.alphas);
        let found: Vec<AdapterFiles> = self.settings.others.iter().map(found).collect::<Result<_>>()?;
        self.folders = found.iter().map(|files| files.path().to_owned()).collect();
        Ok(found)
    }

    /// The changes of every adapter.
    fn changes(&mut self, base: &Base, adapters: &[AdapterFiles]) -> Result<Vec<Changes>> {
        // Methods combine only low-rank updates, so copies of the base's embeddings are dropped.
        let combined = self.settings.combine.method.is_some() || self.output().kind().is_lora();
        let mut all = Vec::new();
        for files in adapters {
            let changes = files.merged_changes(base)?;
            self.notes.extend(changes.notes.iter().cloned());
            all.push(if combined { changes.without_copies(base)? } else { changes });
        }
        Ok(all)
    }

    /// Merges all adapters into `weights`, which are those of `base`.
    fn merged(&mut self, base: &Base, weights: &Plan, adapters: &[AdapterFiles]) -> Result<(Merged, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        if combine.method.is_none() {
            combine.check(Kinds::Loras, None)?;
        }
        let mut truncations = Vec::new();
        let mut adapters = self.changes(base, adapters)?;
        let mut shares = combine.options(self.shares())?.weights;
        if let Some(name) = &combine.method {
            let keeps_tie = adapters.iter().all(|changes| changes.keeps_tie);
            let updates;
            (updates, truncations) = self.combined(name.parse()?, &adapters)?;
            let changes = updates.into_iter().map(|(name, update)| (name, Change::LowRank(update))).collect();
            adapters = vec![Changes { changes, keeps_tie, ..Changes::default() }];
            shares = Weights::new([1.0]);
        }
        let merged = with_adapters(base, weights, &adapters, &shares)?;
        if merged.untied {
            let note = "output head and embeddings are no longer the same: both are written, and \
                        tie_word_embeddings is false";
            self.notes.push(note.to_owned());
        }
        Ok((merged, truncations))
    }

    /// Combines all adapters into one LoRA, in a separate folder.
    fn one_lora(&mut self, base: &Base, adapters: &[AdapterFiles]) -> Result<(Output, Vec<Truncation>)> {
        if !matches!(self.settings.tokenizer, TokenizerChoice::Auto | TokenizerChoice::Base) {
            return Err(setting("tokenizer").expected("none, for a LoRA").found("one").setting());
        }
        let adapters = self.changes(base, adapters)?;
        let method = match (&self.settings.combine.method, self.settings.combine.rank) {
            (Some(name), _) => name.parse()?,
            (None, Some(_)) => LoraMethod::Svd,
            (None, None) => LoraMethod::Cat,
        };
        let (updates, truncations) = self.combined(method, &adapters)?;
        let mut lora = NewLora::new(base, &updates, &[], Vec::new(), self.output().lora_type()?)?;
        // As in PEFT: the name with which the base was loaded.
        lora.config.insert("base_model_name_or_path".to_owned(), self.base_name().into());
        Ok((self.output().lora(&lora.config, &lora.tensors)?, truncations))
    }

    /// Combines all LoRAs into the updates of one.
    fn combined(&self, method: LoraMethod, adapters: &[Changes]) -> Result<(Updates, Vec<Truncation>)> {
        let combine = &self.settings.combine;
        combine.check(Kinds::Loras, Some(method.name()))?;
        let mut loras = Vec::new();
        for (changes, adapter) in adapters.iter().zip(&self.settings.others) {
            let update = |(name, change): &(String, Change)| match change {
                Change::LowRank(update) => Ok((name.clone(), update.clone())),
                _ => Err(Finding::new(&adapter.path, format!("tensor {name:?}"))
                    .expected(format_args!("nothing but low-rank updates, to combine by {}", method.name()))
                    .found("another change of it")
                    .hint("without `method` and `to` lora adapters of all kinds are added up")
                    .unsupported()),
            };
            loras.push(changes.changes.iter().map(update).collect::<Result<Vec<_>>>()?);
        }
        self.measured(combine_loras(&loras, method, &combine.options(self.shares())?)?)
    }
}
