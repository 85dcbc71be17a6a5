//! `atombank bank`: makes atom banks of plain LoRAs of one base, with one atom for each (`build`), and banks of filter atoms
//! of convolutions (`decompose`, `swap`).

mod decompose;
mod finish;
mod swap;

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::adapter::LinearUpdates;
use atombank::bank::fit::{BankFit, BankSettings, InstructionRouter, TooClose, exact_rank, fit};
use atombank::bank::{AtomBank, BASE_EMBEDDINGS, InstructionEncoder};
use atombank::checkpoint::hub::Need;
use atombank::convert::summary;
use atombank::error::Finding;
use atombank::linalg::{Matrix, from_rows};
use atombank::model::{LanguageModel, Residence, Sequence};
use atombank::output::Destination;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use self::finish::Finish;
use super::Common;
use super::adapted::updates;
use super::device::DeviceArgs;
use super::input::{Found, Input, with_inputs_to};

/// A LoRA with at least this relative error gets a note.
const LARGE: f64 = 0.05;

/// Arguments of `bank`.
#[derive(Args)]
pub(crate) struct BankArgs {
    #[command(subcommand)]
    command: BankCommand,
}

#[derive(Subcommand)]
enum BankCommand {
    /// Make one atom for each of several plain LoRAs of one base, selected by its description
    Build(BuildArgs),
    /// Make a bank of filter atoms of a model's convolutions: spatial and temporal atoms, and coefficients
    Decompose(decompose::DecomposeArgs),
    /// Exchange the atoms of a bank of filter atoms for dilated or resampled ones, or for those of another
    Swap(swap::SwapArgs),
}

/// Arguments of `bank build`.
#[derive(Args)]
struct BuildArgs {
    /// The base model: a Hugging Face folder, a GGUF, or a name on the hub: hf:org/name[@revision]
    base: PathBuf,
    /// Two or more plain LoRAs of the base, as PEFT saves them
    #[arg(required = true, value_name = "LORA")]
    loras: Vec<PathBuf>,
    /// The bank's folder
    #[arg(short, long, value_name = "BANK")]
    output: PathBuf,
    /// The bank's rank; the sum of the LoRAs' ranks represents them exactly [default: the largest of their ranks]
    #[arg(long, value_name = "R")]
    rank: Option<usize>,
    /// The text that selects a LoRA, by the name of its folder; may be repeated, also for one LoRA [default: the
    /// description or first paragraph in its README.md, or else its name]
    #[arg(long, value_name = "NAME=TEXT", value_parser = parse_description)]
    describe: Vec<(String, String)>,
    /// The folder of a sentence encoder for instructions [default: the base's own embeddings]
    #[arg(long, value_name = "FOLDER")]
    encoder: Option<String>,
    /// The largest number of atoms that a routing mixes [default: all]
    #[arg(long, value_name = "K", value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    top_k: Option<usize>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Replace an existing bank
    #[arg(long)]
    overwrite: bool,
    /// Print the fit and what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print JSON: the fit, and, with --dry-run, what would be written
    #[arg(long)]
    json: bool,
}

/// Parses `NAME=TEXT`.
fn parse_description(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, text)) if !text.trim().is_empty() => Ok((name.to_owned(), text.trim().to_owned())),
        _ => Err("expected NAME=TEXT".to_owned()),
    }
}

pub(crate) fn run(args: &BankArgs, common: &Common) -> Result<()> {
    match &args.command {
        BankCommand::Build(args) => build(args, common),
        BankCommand::Decompose(args) => decompose::run(args, common),
        BankCommand::Swap(args) => swap::run(args, common),
    }
}

fn build(args: &BuildArgs, common: &Common) -> Result<()> {
    let to = Destination { overwrite: args.overwrite, ..Destination::new(&args.output) };
    if !args.dry_run {
        to.check()?;
    }
    let loras = args.loras.iter().map(|lora| Input::new(lora, Need::Adapter));
    let inputs: Vec<Input<'_>> = [Input::new(&args.base, Need::Model)].into_iter().chain(loras).collect();
    let Opened { model, id, names, texts, loras, mut notes } =
        with_inputs_to(&to, &inputs, common, |found| open(args, found))?.made;
    let fit = fit(&loras, model.decoder.config(), args.rank)?;
    let (router, shares) = route(args, &model, &names, &texts)?;
    notes.extend(shortcomings(&fit, &names, exact_rank(&loras)));
    let rows: Vec<AtomRow> = (names.iter().enumerate())
        .map(|(atom, name)| {
            let own = || texts.iter().zip(&shares).filter(move |(text, _)| text.atom == atom);
            AtomRow {
                name,
                texts: own().map(|(text, _)| text.text.as_str()).collect(),
                share: own().map(|(_, share)| *share).fold(1.0, f64::min),
            }
        })
        .collect();
    let (json, table) = (to_json(args, &fit, &rows), to_table(&fit, &rows));
    let settings = BankSettings {
        instruction_encoder: args.encoder.clone().unwrap_or_else(|| BASE_EMBEDDINGS.to_owned()),
        top_k: args.top_k,
        base_model_name_or_path: id.unwrap_or_else(|| args.base.display().to_string()),
        instructions: texts.iter().map(|text| text.text.clone()).collect(),
    };
    let output = fit.into_bank(&args.output, &router, settings, model.decoder.config())?.output()?;
    let finish = Finish { destination: &to, dry_run: args.dry_run, json: args.json, common };
    finish.run(&output, &notes, json, || println!("{table}"))
}

/// The opened base and LoRAs, and the texts that select each LoRA.
struct Opened {
    model: LanguageModel,
    /// The base's name on the hub.
    id: Option<String>,
    names: Vec<String>,
    texts: Vec<Text>,
    loras: Vec<LinearUpdates>,
    notes: Vec<String>,
}

/// Opens the base, which comes first in `found`, and its LoRAs.
fn open(args: &BuildArgs, found: &[Found]) -> Result<Opened> {
    let base = &found[0].path;
    let model = LanguageModel::open(base, Residence::Streamed, args.device.open()?)?;
    let open = |path: &PathBuf| {
        if AtomBank::is_in(path).unwrap_or(false) {
            let finding = Finding::new(path.join("adapter_config.json"), "peft_type").expected("LORA");
            return Err(finding
                .found("an atom bank")
                .hint("atombank bake with --to lora makes a LoRA of it")
                .mismatch());
        }
        updates(path, base, model.decoder.config())
    };
    let paths: Vec<PathBuf> = found[1..].iter().map(|lora| lora.path.clone()).collect();
    let (names, mut notes) = (names(&args.loras), Vec::new());
    let texts = texts(args, &paths, &names, &mut notes)?;
    let loras = paths.iter().map(open).collect::<atombank::Result<Vec<_>>>()?;
    Ok(Opened { id: found[0].id.clone(), model, names, texts, loras, notes })
}

/// Returns the name of each LoRA: that of its folder, or its path if two folders have the same name.
fn names(paths: &[PathBuf]) -> Vec<String> {
    let short = |path: &Path| {
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
        name(path).or_else(|| name(&path.canonicalize().ok()?)).unwrap_or_default()
    };
    let all: Vec<String> = paths.iter().map(|path| short(path)).collect();
    let unique = |name: &String| all.iter().filter(|other| *other == name).count() == 1;
    let name = |(path, name): (&PathBuf, &String)| if unique(name) { name.clone() } else { path.display().to_string() };
    paths.iter().zip(&all).map(name).collect()
}

/// A text that selects an atom.
struct Text {
    atom: usize,
    text: String,
}

/// Returns the texts that select each LoRA. No text may select two of them.
fn texts(args: &BuildArgs, paths: &[PathBuf], names: &[String], notes: &mut Vec<String>) -> Result<Vec<Text>> {
    if let Some((unknown, _)) = args.describe.iter().find(|(name, _)| !names.contains(name)) {
        let finding = Finding::new(&args.output, "--describe").expected(format_args!("one of {}", names.join(", ")));
        return Err(finding.found(unknown).mismatch().into());
    }
    let mut texts: Vec<Text> = Vec::new();
    for (atom, (name, path)) in names.iter().zip(paths).enumerate() {
        let mut own: Vec<String> =
            args.describe.iter().filter(|(described, _)| described == name).map(|(_, text)| text.clone()).collect();
        if own.is_empty() {
            own.push(summary(path, notes)?.unwrap_or_else(|| name.clone()));
        }
        for text in own {
            if let Some(other) = texts.iter().find(|other| other.text == text) {
                let finding = Finding::new(path, "description");
                return Err(finding
                    .expected(format_args!("another than that of {}", names[other.atom]))
                    .found(format_args!("{text:?}"))
                    .hint(format_args!("pass --describe {name:?}=TEXT"))
                    .mismatch()
                    .into());
            }
            texts.push(Text { atom, text });
        }
    }
    Ok(texts)
}

/// Makes the router for `texts`. Also returns the weight that each text gives its own atom by the prior alone.
fn route(
    args: &BuildArgs,
    model: &LanguageModel,
    names: &[String],
    texts: &[Text],
) -> Result<(InstructionRouter, Vec<f64>)> {
    let name = args.encoder.as_deref().unwrap_or(BASE_EMBEDDINGS);
    let encoder = InstructionEncoder::open(name, &args.output, args.device.open()?)?;
    let mut sequences = Vec::new();
    for Text { atom, text } in texts {
        let instruction = encoder.tokens(&model.encoder, text)?;
        if instruction.is_empty() {
            let finding = Finding::new(&args.loras[*atom], "description").expected("a text with tokens");
            return Err(finding.found(format_args!("{text:?}")).mismatch().into());
        }
        sequences.push(Sequence { instruction, ..Sequence::default() });
    }
    let embedded = encoder.embed(model.decoder.weights(), &sequences)?;
    let (count, dim) = embedded.dims2()?;
    let embeddings: Matrix = from_rows(count, dim, &embedded.flatten_all()?.to_vec1::<f32>()?);
    let atoms: Vec<usize> = texts.iter().map(|text| text.atom).collect();
    let router = InstructionRouter::new(&embeddings, &atoms, names.len()).map_err(|TooClose(one, other)| {
        let (one, other) = (&texts[one], &texts[other]);
        Finding::new(&args.loras[other.atom], "description")
            .expected(format_args!("one that the encoder tells from {:?} of {}", one.text, names[one.atom]))
            .found(format_args!("{:?}", other.text))
            .hint(
                "pass another --describe NAME=TEXT, or --encoder: embeddings of the base don't see the order of words",
            )
            .mismatch()
    })?;
    let prior = router.prior(&embeddings);
    let shares = atoms.iter().enumerate().map(|(text, atom)| prior[(text, *atom)]).collect();
    Ok((router, shares))
}

/// Returns notes on what the bank doesn't represent well, and possible reasons.
fn shortcomings(fit: &BankFit, names: &[String], exact: usize) -> Vec<String> {
    let mut notes = Vec::new();
    for (lora, name) in fit.loras.iter().zip(names).filter(|(lora, _)| lora.missing_sites > 0) {
        let sites = lora.missing_sites;
        notes
            .push(format!("{name} has no update at {sites} linear layers that others change: it counts as zero there"));
    }
    let off = fit.loras.iter().filter(|lora| lora.relative_error > LARGE).count();
    if off > 0 {
        notes.push(format!(
            "{off} of {} LoRAs are off by more than {:.0}%: they share no basis of rank {}; a larger --rank comes \
             closer, --rank {exact} holds all of them exactly",
            fit.loras.len(),
            LARGE * 100.0,
            fit.rank
        ));
    }
    notes
}

/// The texts of a LoRA, for the report.
struct AtomRow<'a> {
    name: &'a str,
    texts: Vec<&'a str>,
    /// The smallest weight that one of its texts gives its atom.
    share: f64,
}

fn to_table(fit: &BankFit, rows: &[AtomRow]) -> String {
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(4);
    let mut lines = vec![format!("atom  {:<width$}  rank     error  weight  picked by", "LoRA")];
    for (atom, (row, lora)) in rows.iter().zip(&fit.loras).enumerate() {
        lines.push(format!(
            "{:<4}  {:<width$}  {:>4}  {:>8.2e}  {:>6.3}  {}",
            format!("#{atom}"),
            row.name,
            lora.rank,
            lora.relative_error,
            row.share,
            row.texts.join(" | ")
        ));
    }
    lines.push(format!("all together, rank {}: {:.2e}, {} rounds", fit.rank, fit.relative_error, fit.rounds));
    lines.join("\n")
}

fn to_json(args: &BuildArgs, fit: &BankFit, rows: &[AtomRow]) -> Map<String, Value> {
    let row = |(atom, (row, lora)): (usize, (&AtomRow, &atombank::bank::fit::LoraFit))| {
        json!({ "atom": atom, "name": row.name, "rank": lora.rank, "relative_error": lora.relative_error,
            "missing_sites": lora.missing_sites, "descriptions": row.texts, "weight": row.share })
    };
    let loras: Vec<_> = rows.iter().zip(&fit.loras).enumerate().map(row).collect();
    let found = [
        ("output", json!(args.output)),
        ("rank", json!(fit.rank)),
        ("rounds", json!(fit.rounds)),
        ("relative_error", json!(fit.relative_error)),
        ("loras", json!(loras)),
    ];
    found.map(|(name, value)| (name.to_owned(), value)).into_iter().collect()
}
