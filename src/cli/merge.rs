//! `atombank merge`: adapters into their base, as a folder or a GGUF.

use std::path::PathBuf;

use anyhow::Result;
use atombank::adapter::peft::{self, Base, Changes};
use atombank::checkpoint::Checkpoint;
use atombank::error::Finding;
use atombank::merge::{Merged, with_adapters};
use clap::Args;

use super::Common;
use super::input::found;
use super::output::{Kind, OutputArgs, print_notes};

/// Arguments of `merge`.
#[derive(Args)]
pub(crate) struct MergeArgs {
    /// The base model: a Hugging Face folder, or a name on the hub: hf:org/name[@revision]
    base: String,
    /// Adapters as PEFT saves them, each a folder; FOLDER=WEIGHT for a share of one
    #[arg(required = true, value_name = "ADAPTER[=WEIGHT]", value_parser = parse_adapter)]
    adapters: Vec<Weighted>,
    #[command(flatten)]
    output: OutputArgs,
}

/// An adapter and how much of it.
#[derive(Debug, Clone)]
struct Weighted {
    path: PathBuf,
    weight: f32,
}

/// `PATH` or `PATH=WEIGHT`.
fn parse_adapter(text: &str) -> Result<Weighted, String> {
    if let Some((path, weight)) = text.rsplit_once('=')
        && let Ok(weight) = weight.parse::<f32>()
    {
        return match weight.is_finite() {
            true => Ok(Weighted { path: path.into(), weight }),
            false => Err("expected a finite weight".to_owned()),
        };
    }
    Ok(Weighted { path: text.into(), weight: 1.0 })
}

pub(crate) fn run(args: &MergeArgs, common: &Common) -> Result<()> {
    args.output.check_absent()?;
    args.output.check_type()?;
    if args.output.kind() == Kind::Lora {
        let finding = Finding::new(&args.output.output, "--to lora").expected("a merged model");
        return Err(finding.found("the adapter that is there already").mismatch().into());
    }
    let mut folder = Checkpoint::open(&found(&args.base, common)?.0)?;
    let base = Base::new(folder.path(), &folder.config_json, folder.weights());
    let mut adapters: Vec<(Changes, f32)> = Vec::new();
    for adapter in &args.adapters {
        let changes = peft::open(&adapter.path, &base)?;
        print_notes(&changes.notes, common);
        adapters.push((changes, adapter.weight));
    }
    let Merged { plan, untied } = with_adapters(&base, folder.weights(), &adapters)?;
    if untied {
        folder.config_json.insert("tie_word_embeddings".to_owned(), false.into());
        let note =
            "output head and embeddings are no longer the same: each is written, and tie_word_embeddings is false";
        print_notes(&[note.to_owned()], common);
    }
    args.output.write(&folder, &plan, common)
}
