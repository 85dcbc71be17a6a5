//! `atombank inspect`: a table of what is there, or JSON.

use std::path::PathBuf;

use anyhow::Result;
use atombank::report::{BankReport, Report, TensorsReport};
use clap::Args;

/// Arguments of `inspect`.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A model folder, a .safetensors or .gguf file, a LoRA or an atom bank
    path: PathBuf,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &InspectArgs) -> Result<()> {
    let report = Report::of(&args.path)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    match &report {
        Report::HfFolder {
            architecture,
            layers,
            hidden_size,
            heads,
            vocab_size,
            tied_embeddings,
            missing,
            tensors,
        } => {
            row("architecture", architecture);
            row("layers", layers);
            row("hidden size", hidden_size);
            row("heads", format_args!("{} queries, {} keys and values, {} wide", heads[0], heads[1], heads[2]));
            row("vocabulary", format_args!("{vocab_size}{}", if *tied_embeddings { ", tied" } else { "" }));
            for name in missing {
                row("missing", name);
            }
            print_tensors(tensors, args.tensors);
        }
        Report::Safetensors { metadata, tensors } => {
            for (key, value) in metadata {
                row(key, value);
            }
            print_tensors(tensors, args.tensors);
        }
        Report::Gguf { metadata, tensors } => {
            for (key, value) in metadata {
                println!("{key:<44} {value}");
            }
            print_tensors(tensors, args.tensors);
        }
        Report::Lora { r, lora_alpha, scale, modules, layers, parameters, tensors } => {
            row("kind", "LoRA");
            row("rank, alpha, scale", format_args!("{r}, {lora_alpha}, {scale}"));
            row("modules", modules.join(", "));
            row("layers", show_range(layers));
            row("parameters", parameters);
            print_tensors(tensors, args.tensors);
        }
        Report::Bank(bank) => print_bank(bank),
    }
    Ok(())
}

fn row(name: &str, value: impl std::fmt::Display) {
    println!("{name:<20} {value}");
}

fn print_tensors(tensors: &TensorsReport, each: bool) {
    row("tensors", tensors.list.len());
    row("elements", tensors.elements);
    row("bytes", tensors.bytes);
    for t in &tensors.by_type {
        row(
            &format!("  {}", t.dtype),
            format_args!("{} tensors, {} elements, {} bytes", t.tensors, t.elements, t.bytes),
        );
    }
    if each {
        for t in &tensors.list {
            println!("{:<8} {:<22} {:>14} {}", t.dtype, format!("{:?}", t.shape), t.bytes, t.name);
        }
    }
}

fn print_bank(bank: &BankReport) {
    let c = &bank.config;
    row("kind", "atom bank (Queryable LoRA)");
    row("rank, alpha, scale", format_args!("{}, {}, {}", c.r, c.lora_alpha, bank.scale));
    row("atoms", format_args!("{}, of which a block uses {}", c.num_atoms, c.top_k));
    row("blocks", format_args!("{} of {} layers", bank.blocks, c.block_size));
    row("modules", bank.modules.join(", "));
    row("layers", show_range(&bank.layers));
    row("routing", format_args!("{:?}, temperature {}, prior strength {}", c.routing, c.temperature, c.prior_strength));
    row("parameters", format_args!("{} (a LoRA of rank {}: {})", bank.parameters, c.r, bank.lora_parameters));
    println!("\natom    norm  eff. rank  |C - I|   cosine with each atom");
    for (i, (atom, cosines)) in bank.atoms.iter().zip(&bank.similarity).enumerate() {
        let cosines: Vec<String> = cosines.iter().map(|c| format!("{c:>5.2}")).collect();
        let (norm, rank, gap) = (atom.norm, atom.effective_rank, atom.from_identity);
        println!("{:<4} {norm:>7.3} {rank:>10.2} {gap:>8.3}   {}", format!("#{i}"), cosines.join(" "));
    }
}

/// "0 to 31", or the numbers where some are left out.
fn show_range(layers: &[usize]) -> String {
    match layers {
        [] => "none".into(),
        [first, .., last] if last - first + 1 == layers.len() => format!("{first} to {last}"),
        _ => layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
