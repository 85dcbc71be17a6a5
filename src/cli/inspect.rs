//! `atombank inspect`: reports what is at a path, as a table or JSON.

mod filter_atoms;

use anyhow::Result;
use atombank::bank::BankReport;
use atombank::checkpoint::hub::Need;
use atombank::convert::{Content, Description, Opening};
use atombank::report::{AdapterReport, Report, TensorsReport};
use clap::Args;

use super::Common;
use super::input::{Found, Input, Made, parse_content, with_inputs};
use super::print::{options, with_options};

/// Arguments of `inspect`.
#[derive(Args)]
pub(crate) struct InspectArgs {
    /// A model or adapter folder, a .gguf, .safetensors, .bin, .pt, .pth or .ckpt file, or a name on
    /// the Hugging Face hub: hf:org/name[@revision]
    input: String,
    /// The part of a PyTorch file to inspect, such as state_dict
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
    /// What to take off the names of tensors alone that begin with it, such as module.
    #[arg(long, value_name = "PREFIX")]
    strip_prefix: Option<String>,
    /// How to read a folder that has both a model and adapter_config.json: model or adapter [default: model]
    #[arg(long = "as", value_name = "CONTENT", value_parser = parse_content)]
    content: Option<Content>,
    /// List every tensor
    #[arg(long)]
    tensors: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &InspectArgs, common: &Common) -> Result<()> {
    let input = Input::new(&args.input, Need::Everything).values(false);
    let opening = Opening {
        key: args.key.as_deref(),
        content: args.content,
        strip_prefix: args.strip_prefix.as_deref(),
        unread: true,
        ..Opening::default()
    };
    let look = |found: &[Found]| Ok(Report::of(&found[0].path, opening)?);
    let Made { made: mut report, outlines } = with_inputs(&[input], common, look)?;
    outlines.put_real_paths(report.problem_mut());
    report.problem_mut().into_iter().for_each(|problem| *problem = with_options(problem, &options()));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(());
    }
    match &report {
        Report::HfFolder { class, model, problem, others, tensors } => {
            row("class", class);
            if let Some(model) = model {
                print_model(model);
            }
            if let Some(problem) = problem {
                row("as GGUF", problem);
            }
            print_others(others);
            print_tensors(tensors, args.tensors);
        }
        Report::Weights { metadata, others, notes, tensors } => {
            notes.iter().for_each(|note| row("note", note));
            for (key, value) in metadata {
                row(key, value);
            }
            print_others(others);
            print_tensors(tensors, args.tensors);
        }
        Report::Gguf { shards, metadata, tensors } => {
            for (key, value) in metadata {
                println!("{key:<44} {value}");
            }
            if shards.len() > 1 {
                row("shards", shards.len());
            }
            print_tensors(tensors, args.tensors);
        }
        Report::Lora(adapter) | Report::Adapter(adapter) => print_adapter(adapter, args.tensors),
        Report::Bank(bank) => print_bank(bank),
        Report::FilterAtoms(bank) => filter_atoms::print(bank),
    }
    Ok(())
}

fn row(name: &str, value: impl std::fmt::Display) {
    println!("{name:<20} {value}");
}

fn print_model(model: &Description) {
    row("architecture", model.gguf);
    row("layers", model.layers);
    row("hidden size", model.hidden_size);
    row("feed-forward size", model.feed_forward);
    let Description { heads, kv_heads, head_dim, .. } = model;
    row("heads", format_args!("{heads} queries, {kv_heads} keys and values, {head_dim} wide"));
    if let Some(experts) = model.experts {
        row("experts", experts);
    }
    row("vocabulary", format_args!("{}{}", model.vocab_size, if model.tied_embeddings { ", tied" } else { "" }));
    row("context", model.context_length);
    model.missing.iter().for_each(|name| row("missing", name));
    model.surplus.iter().for_each(|name| row("surplus", name));
}

fn print_others(others: &[(String, String)]) {
    for (path, what) in others {
        row("no tensor", format_args!("{path} ({what})"));
    }
}

fn print_tensors(tensors: &TensorsReport, each: bool) {
    match tensors.list.len() {
        all if all == tensors.storages => row("tensors", all),
        all => row("tensors", format_args!("{all} tensors, {} storages", tensors.storages)),
    }
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

fn print_adapter(adapter: &AdapterReport, each: bool) {
    row("kind", &adapter.method);
    // The entry `format` only says that the tensors are torch's.
    for (key, value) in adapter.metadata.iter().filter(|(key, _)| *key != "format") {
        row(key, value);
    }
    match (adapter.r, adapter.lora_alpha, adapter.scale) {
        (Some(r), Some(alpha), Some(scale)) => row("rank, alpha, scale", format_args!("{r}, {alpha}, {scale}")),
        (r, alpha, _) => {
            r.iter().for_each(|r| row("rank", r));
            alpha.iter().for_each(|alpha| row("alpha", alpha));
        }
    }
    if adapter.r.is_none() || adapter.ranks.len() > 1 {
        adapter.ranks.iter().for_each(|(rank, count)| row("  of rank", format_args!("{rank}: {count} modules")));
    }
    let by_pattern = adapter.peft_type.is_some();
    for (of, alpha) in &adapter.alphas {
        match by_pattern {
            true => row("  alpha", format_args!("{alpha} of {of}")),
            false => row("  of alpha", format_args!("{of}: {alpha} modules")),
        }
    }
    if !adapter.invocation_tokens.is_empty() {
        row("on behind tokens", format_args!("{:?}, and off before them", adapter.invocation_tokens));
    }
    row("modules", adapter.modules.join(", "));
    row("layers", show_range(&adapter.layers));
    row("parameters", adapter.parameters);
    if let Some(problem) = &adapter.problem {
        row("merged", format_args!("not: {problem}"));
    }
    print_tensors(&adapter.tensors, each);
}

fn print_bank(bank: &BankReport) {
    let c = &bank.config;
    row("kind", "atom bank (Queryable LoRA)");
    row("rank, alpha, scale", format_args!("{}, {}, {}", c.r, c.lora_alpha, bank.scale));
    row("atoms", format_args!("{}, of which a block uses {}", c.num_atoms, c.top_k));
    row("blocks", format_args!("{} of {} layers", bank.blocks, c.block_size));
    match bank.instructions.as_slice() {
        [] => {}
        [one] => row("instructions", one),
        [first, rest @ ..] => row("instructions", format_args!("{first:?} and {} more", rest.len())),
    }
    if let Some(stage) = c.growth.first() {
        row("growths", format_args!("{}, from {} atoms of rank {}", c.growth.len(), stage.num_atoms, stage.r));
    }
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
    if let Some(first) = bank.non_finite.first() {
        let count = bank.non_finite.len();
        println!(
            "\nnot finite in float32: numbers of {count} atoms, #{first} among them; their values are too large to be used"
        );
    }
}

/// "0 to 31", or the numbers if they have gaps.
fn show_range(layers: &[usize]) -> String {
    match layers {
        [] => "none".into(),
        [first, .., last] if last - first + 1 == layers.len() => format!("{first} to {last}"),
        _ => layers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
