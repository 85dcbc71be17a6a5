//! `atombank merge`: adapters into their base, as a folder or a GGUF.

mod method;

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::adapter;
use atombank::adapter::peft::{Base, Change, Changes, LowRank, NewLora};
use atombank::checkpoint::Checkpoint;
use atombank::convert::{Input, from_gguf, with_changed};
use atombank::error::Finding;
use atombank::formats::gguf::GgufModel;
use atombank::merge::combine::{
    CombineOptions, Combined, LoraMethod, ModelMethod, Weights, combine_loras, combine_models,
};
use atombank::merge::{Merged, Truncation, rounding, with_adapters};
use atombank::output::Output;
use atombank::plan::Plan;
use clap::Args;

use super::Common;
use super::input::found;
use super::output::{Kind, OutputArgs, print_notes};
use super::{progress, truncation};
use method::{MethodArgs, Of};

/// Arguments of `merge`.
#[derive(Args)]
pub(crate) struct MergeArgs {
    /// The base model: a Hugging Face folder, a .gguf, or a name on the hub: hf:org/name[@revision]
    base: String,
    /// Adapters: folders as PEFT saves them, LoRAs in .gguf, files of kohya or LyCORIS in .safetensors.
    /// Or, with --method, other models of the base's shape. NAME=WEIGHT for a share of one
    #[arg(required = true, value_name = "ADAPTER[=WEIGHT]", value_parser = parse_weighted)]
    others: Vec<Weighted>,
    /// Refuse a base that is quantized: weights that the adapter changes are rounded again otherwise
    #[arg(long)]
    keep_base: bool,
    #[command(flatten)]
    method: MethodArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Low-rank updates by the weights' names.
type Updates = Vec<(String, LowRank)>;

/// An adapter or a model, and how much of it.
#[derive(Debug, Clone)]
struct Weighted {
    name: String,
    weight: f32,
}

/// `NAME` or `NAME=WEIGHT`.
fn parse_weighted(text: &str) -> Result<Weighted, String> {
    if let Some((path, weight)) = text.rsplit_once('=')
        && let Ok(weight) = weight.parse::<f32>()
    {
        return match weight.is_finite() {
            true => Ok(Weighted { name: path.into(), weight }),
            false => Err("expected a finite weight".to_owned()),
        };
    }
    Ok(Weighted { name: text.into(), weight: 1.0 })
}

pub(crate) fn run(args: &MergeArgs, common: &Common) -> Result<()> {
    args.output.check_absent()?;
    args.output.check_type()?;
    let path = found(&args.base, common)?.0;
    let others = args.others.iter().map(|other| Ok(found(&other.name, common)?.0)).collect::<Result<Vec<_>>>()?;
    let is_model = |path: &PathBuf| path.join("config.json").is_file() && !path.join("adapter_config.json").is_file();
    if others.iter().any(is_model) {
        return args.models(&path, &others, common);
    }
    let truncations = match Input::open(&path, None)? {
        Input::Model(folder) => args.merge_folder(folder, &others, common)?,
        Input::Gguf(model) => args.merge_gguf(&model, &others, common)?,
        Input::Adapter | Input::Weights { .. } => {
            let finding = Finding::new(&path, "the base").expected("a model: a folder with config.json, or a GGUF");
            return Err(finding.found("something else").mismatch().into());
        }
    };
    if !truncations.is_empty() {
        truncation::print_table(&truncations, &[]);
        let (output, together) =
            (args.output.output.display(), truncation::together(Truncation::together(&truncations)));
        println!("{output}: {} modules cut to a rank{together}", truncations.len());
    }
    Ok(())
}

impl MergeArgs {
    /// A folder's weights with the adapters in them. Here as below: what cutting to a rank has lost.
    fn merge_folder(&self, mut folder: Checkpoint, others: &[PathBuf], common: &Common) -> Result<Vec<Truncation>> {
        let base = Base::of(&folder);
        let keeps_types = match self.output.outtype()?.dtype(folder.weights()) {
            None => true,
            Some(dtype) => base.embeddings().is_some_and(|tensor| tensor.dtype == dtype),
        };
        let base = if keeps_types { base } else { base.retyped() };
        if self.output.kind() == Kind::Lora {
            return self.one_lora(&base, others, common);
        }
        let (merged, truncations) = self.merged(&base, folder.weights(), others, common)?;
        if merged.untied {
            folder.config_json.insert("tie_word_embeddings".to_owned(), false.into());
        }
        self.output.write(&folder, &merged.plan, common)?;
        Ok(truncations)
    }

    /// A GGUF's weights with the adapters in them: what they don't change stays as it is, and what they
    /// do gets its own type again.
    fn merge_gguf(&self, model: &GgufModel, others: &[PathBuf], common: &Common) -> Result<Vec<Truncation>> {
        let metadata = model.metadata();
        let quantized = model.tensors().iter().map(|t| t.info()).find(|info| !info.dtype.is_plain());
        if let Some(tensor) = quantized.filter(|_| self.keep_base) {
            let finding = Finding::new(model.path(), format!("tensor {:?}", tensor.name));
            let hint = "leave --keep-base out, merge into the unquantized base, or serve the adapter as it is \
                        (atombank convert ADAPTER --base FOLDER -o ADAPTER.gguf)";
            return Err(finding
                .expected("values that are not quantized")
                .found(tensor.dtype)
                .hint(hint)
                .mismatch()
                .into());
        }
        let to_gguf = self.output.kind() == Kind::Gguf;
        let taken: Plan = model.tensors().iter().cloned().collect();
        let outtype = if to_gguf { Some(atombank::DType::F32) } else { self.output.outtype()?.dtype(&taken) };
        let Some((mut config, restored)) = from_gguf(model, outtype)? else {
            let finding =
                metadata.finding("general.architecture").expected("an architecture this version has a table for");
            return Err(finding.found(format!("{:?}", metadata.text("general.architecture")?)).unsupported().into());
        };
        let base = Base::new(model.path(), &config, &restored.plan).retyped();
        if self.output.kind() == Kind::Lora {
            return self.one_lora(&base, others, common);
        }
        let (merged, truncations) = self.merged(&base, &restored.plan, others, common)?;
        if merged.untied {
            config.insert("tie_word_embeddings".to_owned(), false.into());
        }
        if !to_gguf {
            let mut output = Output { plan: merged.plan, ..restored };
            output.put_json("config.json", &config);
            self.output.write_output(self.output.tensors(output), common)?;
            return Ok(truncations);
        }
        let plan = with_changed(model, &config, &merged.plan, &merged.changed)?;
        if self.output.quantized()?.is_some() {
            let made = Output::gguf(metadata.clone(), plan, Vec::new());
            self.output.write_output(self.output.quantize(made, &[])?, common)?;
            return Ok(truncations);
        }
        self.output.check_gguf_again(model.path())?;
        if !self.output.dry_run
            && let Some(rounding) = rounding(&taken, &plan)?
        {
            print_notes(&[rounding.to_string()], common);
        }
        self.output.write_output(Output::gguf(metadata.clone(), plan, Vec::new()), common)?;
        Ok(truncations)
    }

    /// What every adapter changes.
    fn adapters(&self, base: &Base, others: &[PathBuf], common: &Common) -> Result<Vec<Changes>> {
        let open = |path: &PathBuf| {
            let changes = adapter::open(path, base)?;
            print_notes(&changes.notes, common);
            // What is combined has to be low-rank updates; copies of the base's embeddings say nothing.
            let combined = self.method.method.is_some() || self.output.kind() == Kind::Lora;
            Ok(if combined { changes.without_copies(base)? } else { changes })
        };
        others.iter().map(open).collect()
    }

    /// What is said of combining.
    fn options(&self) -> Result<CombineOptions> {
        self.method.options(self.others.iter().map(|other| f64::from(other.weight)).collect())
    }

    /// `weights`, which are those of `base`, with every adapter.
    fn merged(
        &self,
        base: &Base,
        weights: &Plan,
        others: &[PathBuf],
        common: &Common,
    ) -> Result<(Merged, Vec<Truncation>)> {
        if self.method.method.is_none() {
            self.method.check(Of::Loras, None)?;
        }
        let mut truncations = Vec::new();
        let mut adapters = self.adapters(base, others, common)?;
        let mut shares = self.options()?.weights;
        if let Some(name) = &self.method.method {
            let keeps_tie = adapters.iter().all(|changes| changes.keeps_tie);
            let updates;
            (updates, truncations) = self.combined(name.parse()?, &adapters, others, common)?;
            let changes = updates.into_iter().map(|(name, update)| (name, Change::LowRank(update))).collect();
            adapters = vec![Changes { changes, keeps_tie, ..Changes::default() }];
            shares = Weights::new([1.0]);
        }
        let merged = with_adapters(base, weights, &adapters, &shares)?;
        if merged.untied {
            let note = "output head and embeddings are no longer the same: both are written, and \
                        tie_word_embeddings is false";
            print_notes(&[note.to_owned()], common);
        }
        Ok((merged, truncations))
    }

    /// All adapters as one LoRA in a folder of its own.
    fn one_lora(&self, base: &Base, others: &[PathBuf], common: &Common) -> Result<Vec<Truncation>> {
        let adapters = self.adapters(base, others, common)?;
        let method = match (&self.method.method, self.method.rank) {
            (Some(name), _) => name.parse()?,
            (None, Some(_)) => LoraMethod::Svd,
            (None, None) => LoraMethod::Cat,
        };
        let (updates, truncations) = self.combined(method, &adapters, others, common)?;
        let lora = NewLora::new(base, &updates, Vec::new(), self.output.lora_type()?)?;
        self.output.write_output(lora.output(), common)?;
        Ok(truncations)
    }

    /// The updates of one LoRA made of all.
    fn combined(
        &self,
        method: LoraMethod,
        adapters: &[Changes],
        others: &[PathBuf],
        common: &Common,
    ) -> Result<(Updates, Vec<Truncation>)> {
        self.method.check(Of::Loras, Some(method.name()))?;
        let mut loras = Vec::new();
        for (changes, adapter) in adapters.iter().zip(others) {
            let update = |(name, change): &(String, Change)| match change {
                Change::LowRank(update) => Ok((name.clone(), update.clone())),
                _ => Err(Finding::new(adapter, format!("tensor {name:?}"))
                    .expected(format_args!("nothing but low-rank updates, to combine by {}", method.name()))
                    .found("another change of it")
                    .hint("without --method and --to lora adapters of all kinds are added up")
                    .unsupported()),
            };
            loras.push(changes.changes.iter().map(update).collect::<atombank::Result<Vec<_>>>()?);
        }
        self.measured(combine_loras(&loras, method, &self.options()?)?, common)
    }

    /// Whole models as one.
    fn models(&self, base: &Path, others: &[PathBuf], common: &Common) -> Result<()> {
        let Some(name) = &self.method.method else {
            let names = ModelMethod::names().collect::<Vec<_>>().join(", ");
            let finding =
                Finding::new(base, "--method").expected(format_args!("a way to make one model of several: {names}"));
            return Err(finding.found("none").mismatch().into());
        };
        if self.output.kind() == Kind::Lora {
            let finding = Finding::new(&self.output.output, "--to lora").expected("adapters").found("models");
            return Err(finding.hint("atombank extract makes a LoRA of a finetuned model").mismatch().into());
        }
        let method: ModelMethod = name.parse()?;
        self.method.check(Of::Models, Some(name))?;
        if let Some(weighted) = self.others.iter().find(|other| other.weight != 1.0 && !method.takes_weights()) {
            let finding = Finding::new(&weighted.name, "its weight").expected(format_args!("none for {name}"));
            return Err(finding.found(weighted.weight).mismatch().into());
        }
        let folder = Checkpoint::open(base)?;
        let models = others.iter().map(|path| Checkpoint::open(path)).collect::<atombank::Result<Vec<_>>>()?;
        let weights: Vec<&Plan> = models.iter().map(Checkpoint::weights).collect();
        let combined = combine_models(Some(folder.weights()), &weights, method, &self.options()?)?;
        let (plan, _) = self.measured(combined, common)?;
        self.output.write(&folder, &plan, common)
    }

    /// What was combined, with what has to be known of whole tensors.
    fn measured<T: Sync>(&self, combined: Combined<T>, common: &Common) -> Result<(T, Vec<Truncation>)> {
        if self.output.dry_run {
            return Ok((combined.result, Vec::new()));
        }
        let bar = progress::bar(combined.pending() as u64, "combining [{bar:30}] {pos}/{len} {eta}", common.quiet);
        combined.measure(&|| bar.inc(1))?;
        bar.finish_and_clear();
        let truncations = combined.truncations()?;
        Ok((combined.result, truncations))
    }
}
