//! `atombank convert`: a Hugging Face folder to GGUF, or to another element type.

use std::path::PathBuf;

use anyhow::Result;
use atombank::checkpoint::HfFolder;
use atombank::error::Finding;
use clap::Args;

use super::Common;
use super::output::{Kind, OutputArgs};

/// Arguments of `convert`.
#[derive(Args)]
pub(crate) struct ConvertArgs {
    /// The model: a Hugging Face folder
    input: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
}

pub(crate) fn run(args: &ConvertArgs, common: &Common) -> Result<()> {
    if args.output.kind() == Kind::Lora {
        let finding = Finding::new(&args.input, "--to lora");
        return Err(finding
            .expected("an atom bank to bake")
            .found("a model")
            .hint("see atombank bake")
            .mismatch()
            .into());
    }
    args.output.check_absent()?;
    args.output.check_type()?;
    let folder = HfFolder::open(&args.input)?;
    args.output.write(&folder, folder.weights(), common)
}
