//! Arguments of commands that write a checkpoint, and the writing itself.

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::checkpoint::{Checkpoint, HfFolder};
use atombank::convert::{ConvertOptions, Gguf, OutType, to_gguf};
use atombank::error::Finding;
use atombank::formats::{gguf, safetensors};
use atombank::plan::{self, Plan, Staging};
use clap::{Args, ValueEnum};

use super::{Common, progress};

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A Hugging Face folder: safetensors, config, tokenizer files
    Hf,
    /// One GGUF file
    Gguf,
    /// A PEFT LoRA folder (from an atom bank)
    Lora,
}

/// Where a checkpoint goes, and in which form.
#[derive(Args)]
pub(crate) struct OutputArgs {
    /// The output; a name that ends in .gguf is a GGUF, any other a folder
    #[arg(short, long, value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// What to write, where the name doesn't say
    #[arg(long, value_enum)]
    pub(crate) to: Option<Kind>,
    /// Element type: f32, f16, bf16, and q8_0 for GGUF [default: the base's own, f16 for GGUF]
    #[arg(long, value_name = "TYPE")]
    pub(crate) r#type: Option<String>,
    /// Split safetensors into files of at most this size, like 5GB or 500MiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub(crate) shard_size: u64,
    /// The pre-tokenizer's name in GGUF, where tokenizer.json doesn't tell
    #[arg(long, value_name = "NAME")]
    pub(crate) pre: Option<String>,
    /// Memory for values in flight, like 256MiB
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = parse_size)]
    pub(crate) max_memory: u64,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl OutputArgs {
    /// What is to be written.
    pub(crate) fn kind(&self) -> Kind {
        let gguf = self.output.extension().is_some_and(|e| e == "gguf");
        self.to.unwrap_or(if gguf { Kind::Gguf } else { Kind::Hf })
    }

    /// Fails early where the output is there already: before a long computation, not after it.
    pub(crate) fn check_absent(&self) -> Result<()> {
        if !self.overwrite && !self.dry_run && self.output.symlink_metadata().is_ok() {
            return Err(atombank::Error::Exists(self.output.clone()).into());
        }
        Ok(())
    }

    /// Fails early where the output can't have the type that was asked for.
    pub(crate) fn check_type(&self) -> Result<()> {
        let Some(name) = &self.r#type else { return Ok(()) };
        let expected = match self.kind() {
            Kind::Gguf => "f32, f16, bf16 or q8_0",
            Kind::Hf => "f32, f16 or bf16 for a Hugging Face folder",
            Kind::Lora => "none for a LoRA, which is written in f32",
        };
        let known: Option<OutType> = name.parse().ok();
        match (self.kind(), known) {
            (Kind::Gguf, Some(_)) => Ok(()),
            (Kind::Hf, Some(known)) if known != OutType::Q8_0 => Ok(()),
            _ => Err(Finding::new(&self.output, "--type").expected(expected).found(name).unsupported().into()),
        }
    }

    /// `plan` (in Hugging Face's names) with the types that the output will have.
    pub(crate) fn typed(&self, plan: &Plan) -> Result<Plan> {
        Ok(match &self.r#type {
            Some(name) => match name.parse::<OutType>()?.dtype(plan) {
                Some(dtype) => Checkpoint::retyped(plan, dtype),
                None => plan.clone(),
            },
            None => plan.clone(),
        })
    }

    /// The GGUF's metadata and plan.
    pub(crate) fn gguf(&self, folder: &Checkpoint, plan: &Plan) -> Result<Gguf> {
        let outtype = self.r#type.as_deref().unwrap_or("f16").parse()?;
        let options = ConvertOptions { outtype, pre: self.pre.clone(), ..ConvertOptions::default() };
        let gguf = to_gguf(folder, plan, &options)?;
        gguf.ok_or_else(|| {
            let finding = Finding::new(folder.path().join("config.json"), "architectures");
            finding.expected("a class with a counterpart in GGUF").found("another").unsupported().into()
        })
    }

    /// Writes `plan`, in Hugging Face's names, as a folder or a GGUF.
    pub(crate) fn write(&self, folder: &HfFolder, plan: &Plan, common: &Common) -> Result<()> {
        let options = plan::Options { max_memory_bytes: self.max_memory };
        let (bar, report) = progress::writing(common.quiet);
        if self.kind() == Kind::Gguf {
            let Gguf { metadata, plan, .. } = self.gguf(folder, plan)?;
            let layout = gguf::layout(&metadata, &plan.tensors)?;
            if self.dry_run {
                return dry_run(&plan, &layout, &self.output);
            }
            let staging = Staging::file(&self.output, self.overwrite)?;
            plan::execute(&plan, &layout, &staging, options, &report)?;
            staging.commit()?;
        } else {
            let plan = self.typed(plan)?;
            if self.dry_run {
                let layout = safetensors::layout(&plan.tensors, "model", self.shard_size)?;
                return dry_run(&plan, &layout, &self.output);
            }
            folder.write(&plan, &self.output, self.overwrite, self.shard_size, options, &report)?;
        }
        bar.finish_and_clear();
        Ok(())
    }
}

/// Prints the plan: every tensor with type, shape and place.
fn dry_run(plan: &Plan, layout: &plan::Layout, output: &Path) -> Result<()> {
    plan.check()?;
    for (tensor, place) in plan.tensors.iter().zip(&layout.places) {
        println!("{:<6} {:<20} {:>14} {}", tensor.dtype, format!("{:?}", tensor.shape), place.offset, tensor.name);
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
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
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
        assert_eq!(parse_size("12"), Ok(12));
        for bad in ["", "GB", "0", "99999999999GiB", "5 parsecs"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }
}
