//! Arguments of commands that write a checkpoint, and the writing itself.

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::error::Finding;
use atombank::jobs::{OutputKind, OutputSettings};
use atombank::output::{Description, Destination, Form, Output, Written, parse_size};
use clap::{Args, ValueEnum};
use serde_json::{Map, Value};

use super::print::{options, with_options};
use super::recipe::RecipeArgs;
use super::{Common, progress};

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// A Hugging Face folder: safetensors, config, tokenizer files
    Hf,
    /// One GGUF file, or several with --split-max-size or --split-max-tensors
    Gguf,
    /// Only the tensors, as safetensors
    Safetensors,
    /// Only the tensors, as torch.save writes them; a folder also gets config and tokenizer
    Pytorch,
    /// A PEFT LoRA folder
    Lora,
    /// The folder of a LoRA as mlx-lm has it
    Mlx,
    /// Only of a bank of filter atoms: the tensors, with three plain convolutions in the place of each layer
    ThreeConvolutions,
}

impl From<Kind> for OutputKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Hf => OutputKind::Hf,
            Kind::Gguf => OutputKind::Gguf,
            Kind::Safetensors => OutputKind::Safetensors,
            Kind::Pytorch => OutputKind::Pytorch,
            Kind::Lora => OutputKind::Lora,
            Kind::Mlx => OutputKind::Mlx,
            Kind::ThreeConvolutions => OutputKind::ThreeConvolutions,
        }
    }
}

/// Where a checkpoint is written, and in which form.
#[derive(Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct OutputArgs {
    /// The output; names ending in .gguf, .safetensors, .bin, .pt, .pth or .ckpt are files, others folders
    #[arg(short, long, visible_alias = "outfile", value_name = "OUT")]
    pub(crate) output: PathBuf,
    /// What to write, if the name doesn't say
    #[arg(long, value_enum)]
    pub(crate) to: Option<Kind>,
    /// Element type: f32, f16, bf16, auto (bf16 or f16, as in the source), source (unchanged); for GGUF also q8_0, and
    /// llama-quantize's mixtures, such as Q4_K_M [default: source; auto for GGUF]
    #[arg(long, visible_alias = "outtype", value_name = "TYPE")]
    pub(crate) r#type: Option<String>,
    /// Split safetensors and PyTorch folders into files of at most this size, such as 5GB or 500MiB
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub(crate) shard_size: u64,
    /// Split a GGUF into files of at most this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size_and_unit)]
    pub(crate) split_max_size: Option<(u64, bool)>,
    /// Split a GGUF into files of at most this many tensors
    #[arg(long, value_name = "N")]
    pub(crate) split_max_tensors: Option<usize>,
    /// Write a GGUF for big-endian machines
    #[arg(long)]
    pub(crate) bigendian: bool,
    /// The pre-tokenizer's name in GGUF, in place of the detected one
    #[arg(long, value_name = "NAME")]
    pub(crate) pre: Option<String>,
    /// Memory for values in flight, such as 256MiB
    #[arg(long, value_name = "SIZE", default_value = "128MiB", value_parser = parse_size)]
    pub(crate) max_memory: u64,
    /// Replace an existing output
    #[arg(long)]
    pub(crate) overwrite: bool,
    /// Return only when the output is on the disk; always done if an output is replaced
    #[arg(long)]
    pub(crate) sync: bool,
    /// Print what would be written, and write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) recipe: RecipeArgs,
}

impl OutputArgs {
    /// Converts to the library's settings.
    pub(crate) fn settings(&self) -> OutputSettings {
        let (path, max_memory) = (self.output.clone(), self.max_memory);
        OutputSettings {
            destination: Destination { path, overwrite: self.overwrite, sync: self.sync, max_memory },
            to: self.to.map(OutputKind::from),
            r#type: self.r#type.clone(),
            shard_size: self.shard_size,
            split_max_size: self.split_max_size.map(|(bytes, _)| bytes),
            split_max_tensors: self.split_max_tensors,
            bigendian: self.bigendian,
            pre: self.pre.clone(),
            recipe: self.recipe.settings(),
            expand_shared: false,
            into: None,
            into_key: None,
            dry_run: self.dry_run,
        }
    }

    /// Returns `output` after checking that its plan can be written.
    pub(crate) fn checked(&self, output: Output) -> Result<Output> {
        self.check_sizes(&output)?;
        output.describe(&self.output)?;
        Ok(output)
    }

    /// Writes the result of a job and returns a summary. In a dry run, prints what would be written instead; with
    /// `json`, stdout gets nothing but JSON.
    pub(crate) fn write(&self, output: &Output, json: bool, common: &Common) -> Result<Option<Written>> {
        let written = self.write_to(&self.settings().destination, output, json, common)?;
        if self.dry_run && json {
            println!("{}", serde_json::to_string_pretty(&planned(output, &self.output)?)?);
        }
        Ok(written)
    }

    /// Like [`OutputArgs::write`], to another place; prints no JSON.
    pub(crate) fn write_to(
        &self,
        to: &Destination,
        output: &Output,
        json: bool,
        common: &Common,
    ) -> Result<Option<Written>> {
        print_notes(&output.notes, common);
        self.check_sizes(output)?;
        if self.dry_run {
            if !json {
                print_description(&output.describe(&to.path)?, &to.path);
            }
            return Ok(None);
        }
        let (bar, report) = progress::writing(common.quiet);
        let written = output.write(to, &report)?;
        bar.finish_and_clear();
        Ok(Some(written))
    }

    /// Like [`OutputArgs::write_to`] for several outputs, which are written in one pass.
    pub(crate) fn write_all(
        &self,
        outputs: &[(&Output, &Destination)],
        json: bool,
        common: &Common,
    ) -> Result<Vec<Written>> {
        let mut notes: Vec<String> = Vec::new();
        for note in outputs.iter().flat_map(|(output, _)| &output.notes) {
            if !notes.contains(note) {
                notes.push(note.clone());
            }
        }
        print_notes(&notes, common);
        for (output, to) in outputs {
            self.check_sizes(output)?;
            if self.dry_run && !json {
                print_description(&output.describe(&to.path)?, &to.path);
            }
        }
        if self.dry_run {
            return Ok(Vec::new());
        }
        let (bar, report) = progress::writing(common.quiet);
        let written = Output::write_all(outputs, &report)?;
        bar.finish_and_clear();
        Ok(written)
    }

    /// Returns a description of what would be written, for commands that print it together with their results.
    pub(crate) fn planned(&self, output: &Output, common: &Common) -> Result<Map<String, Value>> {
        print_notes(&output.notes, common);
        self.check_sizes(output)?;
        planned(output, &self.output)
    }

    /// Rejects a size without a unit that is smaller than the largest tensor, because 4 is not meant as 4 bytes.
    fn check_sizes(&self, output: &Output) -> Result<()> {
        let largest = output.plan.tensors.iter().map(|tensor| tensor.byte_len()).max().unwrap_or(0);
        let given = match &output.form {
            Form::Gguf { .. } => self.split_max_size.map(|size| ("split_max_size", size)),
            _ => None,
        };
        match given {
            Some((field, (bytes, false))) if bytes < largest => {
                let finding = Finding::new("", field).expected(format_args!("a size with a unit, like {bytes}GB"));
                Err(finding.found(format_args!("{bytes} bytes, less than a tensor has")).setting().into())
            }
            _ => Ok(()),
        }
    }
}

/// Returns a description of what writing `output` to `target` would produce, as a JSON object.
pub(crate) fn planned(output: &Output, target: &Path) -> Result<Map<String, Value>> {
    match serde_json::to_value(output.describe(target)?)? {
        Value::Object(description) => Ok(description),
        _ => unreachable!("a description has named parts"),
    }
}

/// Says what was written, for commands that have nothing else to say: as JSON, or in the line of [`print_written`].
pub(crate) fn report_written(written: Option<&Written>, json: bool, common: &Common) -> Result<()> {
    if let (true, Some(written)) = (json, written) {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "written": written }))?);
    }
    print_written(written, json, common);
    Ok(())
}

/// Prints one line about what was written: on stdout, or on stderr if stdout has JSON; nothing with `--quiet`.
pub(crate) fn print_written(written: Option<&Written>, json: bool, common: &Common) {
    let Some(written) = written.filter(|_| !common.quiet) else { return };
    let line = format!(
        "wrote {}: {} tensors, {}, {:.1} s",
        written.path.display(),
        written.tensors,
        size(written.bytes),
        written.seconds
    );
    if json { eprintln!("{line}") } else { println!("{line}") }
}

/// Formats a number of bytes for readers.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} KB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Prints notes on stderr, one per line. Notes with the same text about several tensors are combined.
pub(crate) fn print_notes(notes: &[String], common: &Common) {
    if common.quiet {
        return;
    }
    let options = options();
    for note in together(notes) {
        eprintln!("note: {}", with_options(&note, &options));
    }
}

/// Combines `notes` of the form `NAME: TEXT` that have the same text: the first names, and a count.
fn together(notes: &[String]) -> Vec<String> {
    const SHOWN: usize = 3;
    let mut groups: Vec<(Vec<&str>, &str)> = Vec::new();
    for note in notes {
        let named = note.split_once(": ").filter(|(name, _)| !name.contains(' '));
        let (name, text) = named.map_or((None, note.as_str()), |(name, text)| (Some(name), text));
        match (name, groups.iter_mut().find(|(names, known)| *known == text && !names.is_empty())) {
            (Some(name), Some((names, _))) => names.push(name),
            _ => groups.push((name.into_iter().collect(), text)),
        }
    }
    let line = |(names, text): (Vec<&str>, &str)| match names.len() {
        0 => text.to_owned(),
        1..=SHOWN => format!("{}: {text}", names.join(", ")),
        count => format!("{} and {} more: {text}", names[..SHOWN].join(", "), count - SHOWN),
    };
    groups.into_iter().map(line).collect()
}

/// Prints what would be written: every tensor with type, shape and position.
pub(crate) fn print_description(description: &Description, target: &Path) {
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
}

/// Does the same as [`parse_size`]; also returns whether there was a unit.
fn parse_size_and_unit(text: &str) -> Result<(u64, bool), String> {
    Ok((parse_size(text)?, text.ends_with(|c: char| c.is_ascii_alphabetic())))
}

#[cfg(test)]
mod tests {
    use super::together;

    #[test]
    fn notes_that_say_the_same_are_one() {
        let notes = ["a: odd rows", "b: odd rows", "left out: x", "c: odd rows", "d: odd rows", "e: other"];
        let notes = notes.map(str::to_owned);
        assert_eq!(together(&notes), ["a, b, c and 1 more: odd rows", "left out: x", "e: other"]);
        assert_eq!(together(&notes[..2]), ["a, b: odd rows"]);
    }
}
