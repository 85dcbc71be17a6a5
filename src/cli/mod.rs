//! The command line: arguments become checked values, the library does the work, and results are printed.

#[macro_use]
mod print;

#[cfg(feature = "train")]
mod adapted;
mod alone;
#[cfg(feature = "train")]
mod bake;
#[cfg(feature = "train")]
mod bank;
mod compare;
mod convert;
#[cfg(feature = "train")]
mod demo;
#[cfg(feature = "train")]
mod device;
#[cfg(feature = "train")]
mod experiment;
mod extract;
mod families;
#[cfg(feature = "train")]
mod generate;
#[cfg(feature = "train")]
mod imatrix;
mod input;
mod inspect;
mod merge;
mod output;
#[cfg(feature = "train")]
mod preview;
mod progress;
mod quantize;
mod recipe;
#[cfg(feature = "train")]
mod route;
mod signals;
#[cfg(feature = "train")]
mod threads;
mod tokensurgeon;
#[cfg(feature = "train")]
mod train;
mod truncation;

use anyhow::Result;
use atombank::kernel::Kernel;
use clap::{Args, Parser, Subcommand};
pub use print::{parse, report};

/// Train atom banks (Queryable LoRA), bake them for a fixed instruction, convert checkpoints.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: Common,
}

/// Options of every command.
#[derive(Args)]
#[command(next_help_heading = "Common options")]
pub(crate) struct Common {
    /// Print no progress and no notes
    #[arg(long, global = true)]
    pub(crate) quiet: bool,
    /// Number of threads [default: all cores]
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) threads: Option<u16>,
    /// Vector instructions to quantize with; results are the same [default: the widest available]
    #[arg(long, global = true, value_parser = parse_kernel)]
    pub(crate) kernel: Option<Kernel>,
    /// A family file for models of a class, before those that are built in; may be repeated
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) family: Vec<std::path::PathBuf>,
    /// Ask the hub again about models in the cache, because branches can move
    #[arg(long, global = true)]
    pub(crate) refresh: bool,
}

fn parse_kernel(name: &str) -> Result<Kernel, String> {
    let known = || format!("expected {}, as this processor has them", Kernel::NAMES.join(" or "));
    Kernel::named(name).ok_or_else(known)
}

#[derive(Subcommand)]
enum Command {
    /// Train, route, bake and check with an embedded example, start to finish
    #[cfg(feature = "train")]
    Demo(demo::DemoArgs),
    /// Train an atom bank, or a plain LoRA, on a base model
    #[cfg(feature = "train")]
    Train(train::TrainArgs),
    /// Fix an instruction or prompt: write merged safetensors, GGUF, or an ordinary LoRA; make filter atoms dense kernels
    #[cfg(feature = "train")]
    Bake(Box<bake::BakeArgs>),
    /// Make an atom bank of plain LoRAs, or a bank of filter atoms of convolutions, without training
    #[cfg(feature = "train")]
    Bank(bank::BankArgs),
    /// Merge adapters into their base: folder or GGUF, quantized on the way if asked
    Merge(merge::Merging),
    /// Make a LoRA of what finetuning changed: truncate the difference of two models to a rank
    Extract(Box<extract::ExtractArgs>),
    /// Give a model another model's vocabulary: rows of tokens that it lacks are approximated
    Tokensurgeon(Box<tokensurgeon::TokensurgeonArgs>),
    /// Show which atoms a prompt selects, block by block
    #[cfg(feature = "train")]
    Route(route::RouteArgs),
    /// Continue a text with the base model, an adapter, or baked weights
    #[cfg(feature = "train")]
    Generate(generate::GenerateArgs),
    /// Measure how much each column of a model's weights matters: an importance matrix for quantization
    #[cfg(feature = "train")]
    Imatrix(imatrix::ImatrixArgs),
    /// Measure what atom banks are good for, beside LoRAs of their size
    #[cfg(feature = "train")]
    Experiment(experiment::ExperimentArgs),
    /// Convert models, tensors, adapters and banks between folders, safetensors, PyTorch files and GGUF
    Convert(Box<convert::ConvertArgs>),
    /// Quantize a GGUF, as llama-quantize does
    Quantize(Box<quantize::QuantizeArgs>),
    /// Show what is in a model, a file of tensors, a GGUF, a LoRA or an atom bank
    Inspect(inspect::InspectArgs),
    /// List the model families that are known, show a family's file, or check one
    Families(families::FamiliesArgs),
    /// Compare two models tensor by tensor: the error of quantization, or whether they are the same
    Compare(compare::CompareArgs),
}

#[cfg(feature = "train")]
impl Command {
    /// Whether it runs a model.
    fn computes(&self) -> bool {
        if let Command::Merge(merging) = self {
            return merging.computes();
        }
        matches!(
            self,
            Command::Demo(_)
                | Command::Train(_)
                | Command::Bake(_)
                | Command::Bank(_)
                | Command::Route(_)
                | Command::Generate(_)
                | Command::Imatrix(_)
                | Command::Experiment(_)
        )
    }
}

/// Runs the requested command.
pub fn run(arguments: Arguments) -> Result<()> {
    #[cfg(feature = "train")]
    if arguments.command.computes() {
        threads::settings_for_training();
    }
    let common = arguments.common;
    signals::watch()?;
    // candle's products and the executor share rayon's global pool. 0 is as many threads as there are processors.
    let threads = common.threads.map_or(0, usize::from);
    rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK).build_global()?;
    if let Some(kernel) = common.kernel {
        kernel.choose();
    }
    for file in &common.family {
        atombank::convert::families::add(file)?;
    }
    #[cfg(feature = "train")]
    if arguments.command.computes() {
        // One of the pool's threads runs the command, and works on every operation itself: a thread outside the pool would
        // hand each one over and wait.
        return rayon::scope(|_| dispatch(arguments.command, &common));
    }
    dispatch(arguments.command, &common)
}

/// The stack of a thread of the pool, in bytes: that of a program's first thread.
const STACK: usize = 8 << 20;

fn dispatch(command: Command, common: &Common) -> Result<()> {
    match command {
        #[cfg(feature = "train")]
        Command::Demo(args) => demo::run(&args, common),
        #[cfg(feature = "train")]
        Command::Train(args) => train::run(&args, common),
        #[cfg(feature = "train")]
        Command::Bake(args) => bake::run(&args, common),
        #[cfg(feature = "train")]
        Command::Bank(args) => bank::run(&args, common),
        Command::Merge(merging) => merging.run(common),
        Command::Extract(args) => extract::run(&args, common),
        Command::Tokensurgeon(args) => tokensurgeon::run(&args, common),
        #[cfg(feature = "train")]
        Command::Route(args) => route::run(&args, common),
        #[cfg(feature = "train")]
        Command::Generate(args) => generate::run(&args, common),
        #[cfg(feature = "train")]
        Command::Imatrix(args) => imatrix::run(&args, common),
        #[cfg(feature = "train")]
        Command::Experiment(args) => experiment::run(&args, common),
        Command::Convert(args) => convert::run(&args, common),
        Command::Quantize(args) => quantize::run(&args, common),
        Command::Inspect(args) => inspect::run(&args, common),
        Command::Families(args) => families::run(&args, common),
        Command::Compare(args) => compare::run(&args, common),
    }
}
