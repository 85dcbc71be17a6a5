//! `atombank imatrix`: measures on a text how much each column of a model's weights matters.

use std::path::PathBuf;

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::imatrix::{Form, Settings, measure, planned, read_text};
use atombank::model::{LanguageModel, Residence};
use atombank::output::Destination;
use clap::{Args, ValueEnum};

use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs};
use super::output::{self, print_notes, print_written};
use super::{Common, progress};

/// Arguments of `imatrix`.
#[derive(Args)]
pub(crate) struct ImatrixArgs {
    /// The model: a Hugging Face folder, a GGUF file, or a name on the hub: hf:org/name[@revision]
    base: PathBuf,
    /// The text to measure on, in UTF-8
    text: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE", default_value = "imatrix.gguf")]
    output: PathBuf,
    /// Number of tokens in a chunk
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    ctx: u32,
    /// The largest number of chunks [default: all of the text]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    chunks: Option<u32>,
    /// Measure the output head as well
    #[arg(long)]
    process_output: bool,
    /// The file's form [default: dat if its name ends in .dat, else gguf]
    #[arg(long, value_enum)]
    output_format: Option<OutputFormat>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Replace an existing output
    #[arg(long)]
    overwrite: bool,
    /// Print what would be written, and measure and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: what was written, or, with --dry-run, what would be
    #[arg(long)]
    json: bool,
}

/// The form of an importance matrix, by the names that llama.cpp uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// The current form
    Gguf,
    /// The older form
    Dat,
}

impl ImatrixArgs {
    fn form(&self) -> Form {
        let by_name = || match self.output.extension().is_some_and(|extension| extension == "dat") {
            true => OutputFormat::Dat,
            false => OutputFormat::Gguf,
        };
        match self.output_format.unwrap_or_else(by_name) {
            OutputFormat::Gguf => Form::Gguf,
            OutputFormat::Dat => Form::Legacy,
        }
    }
}

pub(crate) fn run(args: &ImatrixArgs, common: &Common) -> Result<()> {
    // An output that can't be written should be reported before the computation, not after it.
    let to = Destination { overwrite: args.overwrite, ..Destination::new(&args.output) };
    if !args.dry_run {
        to.check()?;
    }
    let text = read_text(&args.text)?;
    let open = |found: &[Found]| Ok(LanguageModel::open(&found[0].path, Residence::Streamed, args.device.open()?)?);
    let base = with_inputs(&[Input::new(&args.base, Need::Model)], common, open)?.made.with_special_as_text();
    let trained = base.decoder.config().max_position_embeddings;
    if args.ctx as usize > trained {
        print_notes(&[format!("the model knows texts of {trained} tokens, and chunks have {}", args.ctx)], common);
    }
    let settings = Settings { chunk_size: args.ctx, chunks: args.chunks, process_output: args.process_output };
    if args.dry_run {
        let output = planned(&base, &text, &args.text, &settings)?.output(&args.output, args.form())?;
        match args.json {
            true => println!("{}", serde_json::to_string_pretty(&output::planned(&output, &args.output)?)?),
            false => output::print_description(&output.describe(&args.output)?, &args.output),
        }
        return Ok(());
    }
    let bar = progress::bar(0, "measuring [{bar:30}] {pos}/{len} layers {eta}", common.quiet);
    let measured = measure(&base, &text, &args.text, &settings, &|done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    let written = measured.output(&args.output, args.form())?.write(&to, &|_| ())?;
    bar.finish_and_clear();
    print_written(Some(&written), true, common);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&written)?);
    }
    Ok(())
}
