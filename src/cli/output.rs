//! Arguments of commands that write a checkpoint, and the writing itself.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::DType;
use atombank::adapter::peft::NewLora;
use atombank::checkpoint::{Checkpoint, write_folder};
use atombank::convert::{
    ConvertOptions, Gguf, OutType, PYTORCH_EXTENSIONS, metadata_left_out, safetensors_metadata, to_gguf,
};
use atombank::error::Finding;
use atombank::formats::gguf::Override;
use atombank::formats::{gguf, pytorch, safetensors};
use atombank::plan::{self, Layout, Plan, Staging};
use atombank::quantize::FileType;
use clap::{Args, ValueEnum};

use super::recipe::RecipeArgs;
use super::{Common, progress};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A Hugging Face folder: safetensors, config, tokenizer files
    Hf,
    /// One GGUF file, or several with --split-max-size or --split-max-tensors
    Gguf,
    /// The tensors alone, as safetensors
    Safetensors,
    /// The tensors alone, as torch.save writes them; a folder gets config and tokenizer too
    Pytorch,
    /// A PEFT LoRA folder
    Lora,
}

/// Where a checkpoint goes, and in which form.
#[derive(Args)]
pub(crate) struct OutputArgs {
    /// The output; .gguf, .safetensors and .bin, .pt, .pth or .ckpt name files, anything else a folder
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// What to write, where the name doesn't say
    #[arg(long, value_enum)]
    pub(crate) to: Option<Kind>,
    /// Element type: f32, f16, bf16, auto (bf16 or f16, as the source has it), source (unchanged); for
    /// GGUF q8_0, too, and llama-quantize's mixtures, like Q4_K_M [default: source; auto for GGUF]
    #[arg(long, visible_alias = "outtype", value_name = "TYPE")]
    pub(crate) r#type: Option<String>,
    /// Split safetensors and PyTorch folders into files of at most this size, like 5GB or 500MiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub(crate) shard_size: u64,
    /// Split a GGUF into files of at most this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) split_max_size: Option<u64>,
    /// Split a GGUF into files of at most this many tensors
    #[arg(long, value_name = "N")]
    pub(crate) split_max_tensors: Option<usize>,
    /// The pre-tokenizer's name in GGUF, over the one that is found
    #[arg(long, value_name = "NAME")]
    pub(crate) pre: Option<String>,
    /// Memory for values in flight, like 256MiB
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = parse_size)]
    pub(crate) max_memory: u64,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Return only when the output is on the disk, as is always done where one is replaced
    #[arg(long)]
    pub(crate) sync: bool,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
}

impl OutputArgs {
    /// How the plan is run.
    pub(crate) fn options(&self) -> plan::Options {
        plan::Options { max_memory_bytes: self.max_memory }
    }

    /// Where a folder is written until it is complete.
    pub(crate) fn folder(&self) -> atombank::Result<Staging> {
        Ok(Staging::folder(&self.output, self.overwrite)?.sync(self.sync))
    }

    /// What is to be written.
    pub(crate) fn kind(&self) -> Kind {
        self.to.unwrap_or(match self.extension().as_str() {
            "gguf" => Kind::Gguf,
            "safetensors" => Kind::Safetensors,
            extension if PYTORCH_EXTENSIONS.contains(&extension) => Kind::Pytorch,
            _ => Kind::Hf,
        })
    }

    fn extension(&self) -> String {
        self.output.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
    }

    /// Whether the output is a file by its name.
    pub(crate) fn is_file(&self) -> bool {
        let extension = self.extension();
        matches!(extension.as_str(), "gguf" | "safetensors") || PYTORCH_EXTENSIONS.contains(&extension.as_str())
    }

    /// Fails early where the output is there already: before a long computation, not after it.
    pub(crate) fn check_absent(&self) -> Result<()> {
        if !self.overwrite && !self.dry_run && self.output.symlink_metadata().is_ok() {
            return Err(atombank::Error::Exists(self.output.clone()).into());
        }
        Ok(())
    }

    /// Fails early where the output can't have the type that was asked for, and where options don't
    /// belong to it.
    pub(crate) fn check_type(&self) -> Result<()> {
        let kind = self.kind();
        let splits = self.split_max_size.is_some() || self.split_max_tensors.is_some();
        if splits && kind != Kind::Gguf {
            let finding = Finding::new(&self.output, "--split-max-size, --split-max-tensors").expected("a GGUF");
            return Err(finding.found("another output").hint("--shard-size splits folders").mismatch().into());
        }
        let quantized = self.quantized()?;
        if let (Some(option), None) = (self.recipe.first_given(), quantized) {
            let finding = Finding::new(&self.output, option).expected("a --type that is a mixture, like Q4_K_M");
            return Err(finding.found(self.r#type.as_deref().unwrap_or("none")).mismatch().into());
        }
        let Some(name) = &self.r#type else { return Ok(()) };
        let expected = match kind {
            Kind::Gguf => "f32, f16, bf16, q8_0, auto, source, or a mixture like Q4_K_M",
            Kind::Hf => "f32, f16, bf16, auto or source for a Hugging Face folder",
            Kind::Safetensors | Kind::Pytorch => "f32, f16, bf16, auto or source",
            Kind::Lora => "f32, f16 or bf16 for a LoRA",
        };
        match (kind, name.parse::<OutType>().ok()) {
            (Kind::Gguf, None) if quantized.is_some() => Ok(()),
            (Kind::Gguf, Some(_)) => Ok(()),
            (Kind::Hf | Kind::Safetensors | Kind::Pytorch, Some(known)) if known != OutType::Q8_0 => Ok(()),
            (Kind::Lora, Some(OutType::F32 | OutType::F16 | OutType::BF16)) => Ok(()),
            _ => Err(Finding::new(&self.output, "--type").expected(expected).found(name).unsupported().into()),
        }
    }

    /// The mixture that was asked for, where it is one: a type of llama-quantize that the converters
    /// don't have themselves.
    pub(crate) fn quantized(&self) -> Result<Option<FileType>> {
        let Some(name) = self.r#type.as_deref().filter(|_| self.kind() == Kind::Gguf) else { return Ok(None) };
        if name.parse::<OutType>().is_ok() {
            return Ok(None);
        }
        name.parse().map(Some).map_err(|_| {
            let mixtures = FileType::all().map(FileType::name).collect::<Vec<_>>().join(", ");
            let expected = format!("f32, f16, bf16, q8_0, auto, source, or a mixture: {mixtures}");
            Finding::new(&self.output, "--type").expected(expected).found(name).unsupported().into()
        })
    }

    /// Refuses a type that a GGUF, made of the one at `input`, gets by another command: no mixture, and not
    /// the types that its tensors have.
    pub(crate) fn check_gguf_again(&self, input: &Path) -> Result<()> {
        if self.r#type.as_deref().is_none_or(|name| name == "source") {
            return Ok(());
        }
        let finding = Finding::new(input, "--type").expected("source or a mixture, from GGUF to GGUF");
        let hint = "atombank quantize makes F32, F16, BF16 and Q8_0 of a GGUF, too";
        Err(finding.found("another type").hint(hint).unsupported().into())
    }

    /// The type that was asked for; the kind's own where none was.
    pub(crate) fn outtype(&self) -> Result<OutType> {
        match &self.r#type {
            // What is quantized is best not rounded before.
            Some(_) if self.quantized()?.is_some() => Ok(OutType::F32),
            Some(name) => Ok(name.parse()?),
            None if self.kind() == Kind::Gguf => Ok(OutType::Auto),
            None => Ok(OutType::Source),
        }
    }

    /// `plan` (in Hugging Face's names) with the types that the output will have.
    pub(crate) fn typed(&self, plan: &Plan) -> Result<Plan> {
        Ok(match self.outtype()?.dtype(plan) {
            Some(dtype) => Checkpoint::retyped(plan, dtype),
            None => plan.clone(),
        })
    }

    /// The GGUF of a model whose class has a counterpart there.
    pub(crate) fn gguf(&self, folder: &Checkpoint, plan: &Plan) -> Result<Gguf> {
        let options = ConvertOptions { outtype: self.outtype()?, pre: self.pre.clone(), ..ConvertOptions::default() };
        let made = to_gguf(folder, plan, &options)?.ok_or_else(|| {
            let finding = Finding::new(folder.path().join("config.json"), "architectures");
            finding.expected("a class with a counterpart in GGUF").found("another").unsupported()
        })?;
        self.quantize(made, &[])
    }

    /// `made` as the mixture that was asked for, or as it is where none was.
    pub(crate) fn quantize(&self, made: Gguf, overrides: &[Override]) -> Result<Gguf> {
        let Some(file_type) = self.quantized()? else { return Ok(made) };
        let Gguf { metadata, plan, mut notes } = made;
        let quantized = self.recipe.quantize(file_type, &metadata, &plan, overrides)?;
        notes.extend(quantized.notes);
        Ok(Gguf { metadata: quantized.metadata, plan: quantized.plan, notes })
    }

    /// Writes `plan`, in Hugging Face's names, as a folder or a GGUF.
    pub(crate) fn write(&self, folder: &Checkpoint, plan: &Plan, common: &Common) -> Result<()> {
        if self.kind() == Kind::Gguf {
            let Gguf { metadata, plan, notes } = self.gguf(folder, plan)?;
            print_notes(&notes, common);
            return self.write_gguf(&metadata, &plan, common);
        }
        let plan = self.typed(plan)?;
        self.write_tensors(&plan, &folder.beside(&plan)?, common)
    }

    /// The type of a LoRA's factors: f32 unless another was asked for.
    pub(crate) fn lora_type(&self) -> Result<DType> {
        let asked = self.r#type.as_deref().map(str::parse::<OutType>).transpose()?;
        Ok(asked.and_then(|outtype| outtype.dtype(&Plan::default())).unwrap_or(DType::F32))
    }

    /// Writes a LoRA's folder.
    pub(crate) fn write_lora(&self, lora: &NewLora, common: &Common) -> Result<()> {
        if self.dry_run {
            let layout = safetensors::layout(&lora.tensors.tensors, "adapter_model", u64::MAX)?;
            return dry_run(&lora.tensors, &layout, &self.output);
        }
        let (bar, report) = progress::writing(common.quiet);
        lora.write(self.folder()?, self.options(), &report)?;
        bar.finish_and_clear();
        Ok(())
    }

    /// Writes a GGUF, in one file or split.
    pub(crate) fn write_gguf(&self, metadata: &gguf::Metadata, plan: &Plan, common: &Common) -> Result<()> {
        let limits = gguf::SplitLimits {
            max_tensors: self.split_max_tensors,
            max_bytes: self.split_max_size,
            ..gguf::SplitLimits::default()
        };
        let stem = self.output.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let layout = gguf::split_layout(metadata, &plan.tensors, &stem, limits)?;
        let staging = |layout: &Layout| match layout.files.as_slice() {
            [_] => Staging::file(&self.output, self.overwrite),
            files => {
                let folder = self.output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
                Staging::files(folder, files.iter().map(|file| file.name.as_path()), self.overwrite)
            }
        };
        self.run(plan, &layout, staging, common)
    }

    /// Writes tensors in the kind that was asked for: a folder with `files` beside the weights, or
    /// one file of tensors alone. What their sources say beside them goes along.
    pub(crate) fn write_tensors(&self, plan: &Plan, files: &[(String, Vec<u8>)], common: &Common) -> Result<()> {
        let mut notes = Vec::new();
        let metadata = safetensors_metadata(plan, &mut notes);
        print_notes(&notes, common);
        self.write_tensors_with(plan, files, metadata, common)
    }

    /// As [`OutputArgs::write_tensors`], with a `__metadata__` of one's own.
    pub(crate) fn write_tensors_with(
        &self,
        plan: &Plan,
        files: &[(String, Vec<u8>)],
        mut metadata: BTreeMap<String, String>,
        common: &Common,
    ) -> Result<()> {
        let single = self.is_file();
        let shard_bytes = if single { u64::MAX } else { self.shard_size };
        let layout = match self.kind() {
            Kind::Pytorch => {
                print_notes(&metadata_left_out(&metadata), common);
                pytorch::layout(&plan.tensors, "pytorch_model", shard_bytes)?
            }
            Kind::Lora => safetensors::layout(&plan.tensors, "adapter_model", u64::MAX)?,
            _ => {
                // transformers has long refused files that don't say it.
                metadata.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
                safetensors::layout_with_metadata(&plan.tensors, "model", shard_bytes, &metadata)?
            }
        };
        if single {
            return self.run(plan, &layout, |_| Staging::file(&self.output, self.overwrite), common);
        }
        if self.dry_run {
            return dry_run(plan, &layout, &self.output);
        }
        let (bar, report) = progress::writing(common.quiet);
        write_folder(plan, &layout, files, self.folder()?, self.options(), &report)?;
        bar.finish_and_clear();
        Ok(())
    }

    fn run(
        &self,
        plan: &Plan,
        layout: &Layout,
        staging: impl FnOnce(&Layout) -> atombank::Result<Staging>,
        common: &Common,
    ) -> Result<()> {
        if self.dry_run {
            return dry_run(plan, layout, &self.output);
        }
        let staging = staging(layout)?.sync(self.sync);
        let (bar, report) = progress::writing(common.quiet);
        plan::execute(plan, layout, &staging, self.options(), &report)?;
        staging.commit()?;
        bar.finish_and_clear();
        Ok(())
    }
}

/// What was left out or taken for granted, a line each on stderr.
pub(crate) fn print_notes(notes: &[String], common: &Common) {
    if !common.quiet {
        for note in notes {
            eprintln!("note: {note}");
        }
    }
}

/// Prints the plan: every tensor with type, shape and place.
fn dry_run(plan: &Plan, layout: &Layout, output: &Path) -> Result<()> {
    plan.check()?;
    let several = layout.files.len() > 1;
    for (tensor, place) in plan.tensors.iter().zip(&layout.places) {
        let file = if several { format!("{:>4} ", place.file + 1) } else { String::new() };
        println!(
            "{file}{:<6} {:<20} {:>14} {}",
            tensor.dtype,
            format!("{:?}", tensor.shape),
            place.offset,
            tensor.name
        );
    }
    if several {
        for file in &layout.files {
            println!("{}: {} bytes", file.name.display(), file.byte_len);
        }
    }
    let bytes: u64 = layout.files.iter().map(|f| f.byte_len).sum();
    println!("{}: {} tensors, {} files, {bytes} bytes", output.display(), plan.tensors.len(), layout.files.len());
    Ok(())
}

/// "5GB", "500MiB", "4096": bytes.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().map_err(|_| "expected a size like 5GB or 500MiB".to_owned())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}; use KB, MB, GB, KiB, MiB or GiB")),
    };
    number.checked_mul(unit).filter(|n| *n > 0).ok_or_else(|| "expected a size above 0 and below 2^64".to_owned())
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_have_units_and_limits() {
        assert_eq!(parse_size("5GB"), Ok(5_000_000_000));
        assert_eq!(parse_size("1MiB"), Ok(1 << 20));
        assert_eq!(parse_size("2M"), Ok(2_000_000));
        assert_eq!(parse_size("12"), Ok(12));
        for bad in ["", "GB", "0", "99999999999GiB", "5 parsecs"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
