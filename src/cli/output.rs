//! Arguments of commands that write a checkpoint, and the writing itself.

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::DType;
use atombank::checkpoint::Checkpoint;
use atombank::convert::{ConvertOptions, OutType, PYTORCH_EXTENSIONS, to_gguf};
use atombank::error::Finding;
use atombank::formats::gguf::Override;
use atombank::output::{Container, Destination, Form, Output, metadata_left_out, safetensors_metadata};
use atombank::plan::Plan;
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
    /// Where the output goes, and how it is written.
    pub(crate) fn destination(&self) -> Destination {
        let (path, max_memory) = (self.output.clone(), self.max_memory);
        Destination { path, overwrite: self.overwrite, sync: self.sync, max_memory }
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
    pub(crate) fn gguf(&self, folder: &Checkpoint, plan: &Plan) -> Result<Output> {
        let options = ConvertOptions { outtype: self.outtype()?, pre: self.pre.clone(), ..ConvertOptions::default() };
        let made = to_gguf(folder, plan, &options)?.ok_or_else(|| {
            let finding = Finding::new(folder.path().join("config.json"), "architectures");
            finding.expected("a class with a counterpart in GGUF").found("another").unsupported()
        })?;
        self.quantize(made, &[])
    }

    /// `made` as the mixture that was asked for, or as it is where none was.
    pub(crate) fn quantize(&self, made: Output, overrides: &[Override]) -> Result<Output> {
        let (Some(file_type), Some(metadata)) = (self.quantized()?, made.metadata()) else { return Ok(made) };
        let quantized = self.recipe.quantize(file_type, metadata, &made.plan, overrides)?;
        Ok(Output { notes: [made.notes, quantized.notes].concat(), ..quantized })
    }

    /// Writes `plan`, in Hugging Face's names, as a folder or a GGUF.
    pub(crate) fn write(&self, folder: &Checkpoint, plan: &Plan, common: &Common) -> Result<()> {
        if self.kind() == Kind::Gguf {
            return self.write_output(self.gguf(folder, plan)?, common);
        }
        self.write_output(self.tensors(folder.output(self.typed(plan)?)?), common)
    }

    /// The type of a LoRA's factors: f32 unless another was asked for.
    pub(crate) fn lora_type(&self) -> Result<DType> {
        let asked = self.r#type.as_deref().map(str::parse::<OutType>).transpose()?;
        Ok(asked.and_then(|outtype| outtype.dtype(&Plan::default())).unwrap_or(DType::F32))
    }

    /// A folder of tensors in the kind that was asked for: a folder, or one file of tensors alone. What the tensors'
    /// sources say beside them goes along.
    pub(crate) fn tensors(&self, mut output: Output) -> Output {
        let mut notes = Vec::new();
        output.sidecars.safetensors_metadata = safetensors_metadata(&output.plan, &mut notes);
        output.notes.extend(notes);
        self.contained(output)
    }

    /// As [`OutputArgs::tensors`], with the `__metadata__` that the output has.
    pub(crate) fn contained(&self, mut output: Output) -> Output {
        let container = match self.kind() {
            Kind::Pytorch => {
                output.notes.extend(metadata_left_out(&output.sidecars.safetensors_metadata));
                Container::Pytorch
            }
            _ => {
                // transformers has long refused files that don't say it.
                let texts = &mut output.sidecars.safetensors_metadata;
                texts.entry("format".to_owned()).or_insert_with(|| "pt".to_owned());
                Container::Safetensors
            }
        };
        let stem = if container == Container::Pytorch { "pytorch_model" } else { "model" }.to_owned();
        output.form = match self.is_file() {
            true => Form::File(container),
            false => Form::Folder { container, stem, shard_bytes: self.shard_size },
        };
        output
    }

    /// Writes what a job has made, or prints what would be written.
    pub(crate) fn write_output(&self, mut output: Output, common: &Common) -> Result<()> {
        print_notes(&output.notes, common);
        if let Form::Gguf { split, .. } = &mut output.form {
            (split.max_tensors, split.max_bytes) = (self.split_max_tensors, self.split_max_size);
        }
        if self.dry_run {
            return print_description(&output, &self.output);
        }
        let (bar, report) = progress::writing(common.quiet);
        output.write(&self.destination(), &report)?;
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

/// Prints what would be written: every tensor with type, shape and place.
fn print_description(output: &Output, target: &Path) -> Result<()> {
    let description = output.describe(target)?;
    let files: Vec<_> = description.files.iter().filter(|file| !file.beside).collect();
    let several = files.len() > 1;
    for tensor in &description.tensors {
        let file = if several { format!("{:>4} ", tensor.file + 1) } else { String::new() };
        println!(
            "{file}{:<6} {:<20} {:>14} {}",
            tensor.dtype,
            format!("{:?}", tensor.shape),
            tensor.offset,
            tensor.name
        );
    }
    if several {
        for file in &files {
            println!("{}: {} bytes", file.name, file.bytes);
        }
    }
    let (tensors, bytes) = (description.tensors.len(), description.bytes);
    println!("{}: {tensors} tensors, {} files, {bytes} bytes", target.display(), files.len());
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
