//! `atombank demo`: the main workflow on an embedded example. Every number is computed during the
//! run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result};
use atombank::adapter::Lora;
use atombank::adapter::peft::Base;
use atombank::arch::HfFolder;
use atombank::bank::{AtomBank, DEFAULT_PROMPT_TEMPLATE, InstructionEncoder, LoadedBank, Request, RoutedBy, route};
use atombank::convert::{ConvertOptions, to_gguf};
use atombank::error::Finding;
use atombank::formats::gguf::GgufFile;
use atombank::merge::combine::Weights;
use atombank::merge::with_adapters;
use atombank::model::{Decoder, Hook, LoadedAdapter, LoraHook, NoAdapter, Residence, Sequence, TextEncoder, greedy};
use atombank::output::Destination;
use atombank::plan::Plan;
use atombank::source::Source;
use atombank::train::{Outcome, Ranks, TrainConfig, TrainingRow};
use clap::Args;
use serde_json::{Value, json};

use super::Common;
use super::device::DeviceArgs;
use super::route::show;
use super::train::{train_with_bar, warn};

/// Arguments of `demo`.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Keep the results in this new folder
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Replace the folder of an earlier demo
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// Change a setting of both trainings: training.steps=50
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Print JSON at the end: every number
    #[arg(long)]
    json: bool,
}

impl DemoArgs {
    /// Prints a line of progress, unless JSON is printed at the end.
    fn say(&self, line: std::fmt::Arguments) {
        if !self.json {
            println!("{line}");
        }
    }
}

/// The files of the example: fixtures/demo.
const FILES: [(&str, &[u8]); 9] = [
    ("base/config.json", include_bytes!("../../fixtures/demo/base/config.json")),
    ("base/generation_config.json", include_bytes!("../../fixtures/demo/base/generation_config.json")),
    ("base/model.safetensors", include_bytes!("../../fixtures/demo/base/model.safetensors")),
    ("base/tokenizer.json", include_bytes!("../../fixtures/demo/base/tokenizer.json")),
    ("base/tokenizer_config.json", include_bytes!("../../fixtures/demo/base/tokenizer_config.json")),
    ("train.jsonl", include_bytes!("../../fixtures/demo/train.jsonl")),
    ("heldout.jsonl", include_bytes!("../../fixtures/demo/heldout.jsonl")),
    ("bank.toml", include_bytes!("../../fixtures/demo/bank.toml")),
    ("lora.toml", include_bytes!("../../fixtures/demo/lora.toml")),
];

/// Number of training prompts whose mean routing is baked.
const BAKED_PROMPTS: usize = 8;

/// Number of instructions that are also written as GGUF.
const AS_GGUF: usize = 2;

pub(crate) fn run(args: &DemoArgs, common: &Common) -> Result<()> {
    let started = Instant::now();
    let temporary = tempdir(args.output.is_none())?;
    let dir = match (&args.output, &temporary) {
        (Some(output), _) => output.clone(),
        (None, Some(temporary)) => temporary.0.clone(),
        (None, None) => unreachable!("one of the two is there"),
    };
    if args.overwrite {
        remove_demo(&dir)?;
    }
    unpack(&dir)?;

    args.say(format_args!("1. train an atom bank, and a plain LoRA of about the same size"));
    let bank_outcome = train(&dir, "bank", args, common)?;
    let lora_outcome = train(&dir, "lora", args, common)?;

    let demo = Demo::open(&dir, args)?;
    args.say(format_args!("\n2. route: the atoms that each instruction picks, by block"));
    let baked = demo.route_all()?;

    args.say(format_args!("\n3. bake: plain weights for one instruction each"));
    let folders = demo.bake_all(&baked)?;

    let words = demo.words();
    args.say(format_args!("\n4. exact match on {words} words that no training has seen, in percent"));
    let parameters = (bank_outcome.parameters, lora_outcome.parameters);
    let table = demo.table(&folders, parameters)?;
    let seconds = started.elapsed().as_secs_f64();
    args.say(format_args!("\n{seconds:.0} s in all"));
    if args.output.is_some() {
        let gguf = dir.join("baked-0.gguf");
        args.say(format_args!("kept in {}; serve a GGUF with: llama-cli -m {}", dir.display(), gguf.display()));
    }
    if args.json {
        let trained = |outcome: &Outcome| json!({ "parameters": outcome.parameters, "loss": outcome.loss, "eval_loss": outcome.eval_loss });
        let instructions: Vec<Value> = (demo.instructions.iter().zip(&baked).zip(&table))
            .map(|((instruction, alphas), [base, routed, baked, lora])| {
                json!({ "instruction": instruction, "alphas": alphas,
                    "exact_match": { "base": base, "routed": routed, "baked": baked, "lora": lora } })
            })
            .collect();
        let json = json!({ "output": args.output, "bank": trained(&bank_outcome), "lora": trained(&lora_outcome),
            "words": words, "instructions": instructions, "seconds": seconds });
        println!("{}", serde_json::to_string_pretty(&json)?);
    }
    Ok(())
}

/// Deletes the folder of an earlier demo, and no other: everything in it must have a name that a
/// demo uses.
fn remove_demo(dir: &Path) -> Result<()> {
    if dir.symlink_metadata().is_err() {
        return Ok(());
    }
    let other = |found: String| {
        let finding = Finding::new(dir, "").expected("the folder of a demo, to replace it").found(found);
        Err(finding.hint("delete it yourself, or choose another name").mismatch().into())
    };
    if dir.is_symlink() || !dir.is_dir() {
        return other("something else".to_owned());
    }
    if let Some((missing, _)) = FILES.iter().find(|(name, _)| !dir.join(name).is_file()) {
        return other(format!("a folder without {missing}"));
    }
    for entry in fs::read_dir(dir).with_context(|| format!("{}: cannot read", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let known = name == "base" || name == "bank" || name == "lora" || name.starts_with("baked-");
        if !known && !FILES.iter().any(|(file, _)| *file == name) {
            return other(format!("{name:?} in it"));
        }
    }
    fs::remove_dir_all(dir).with_context(|| format!("{}: cannot delete", dir.display()))
}

/// A folder that is deleted when it is dropped.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tempdir(wanted: bool) -> Result<Option<Temporary>> {
    wanted
        .then(|| Ok(Temporary(std::env::temp_dir().join(format!("atombank-demo-{}", std::process::id())))))
        .transpose()
}

fn unpack(dir: &Path) -> Result<()> {
    Destination::new(dir).check()?;
    fs::create_dir(dir).with_context(|| format!("{}: cannot create", dir.display()))?;
    fs::create_dir(dir.join("base")).with_context(|| format!("{}: cannot create", dir.join("base").display()))?;
    for (name, bytes) in FILES {
        fs::write(dir.join(name), bytes).with_context(|| format!("{}: cannot write", dir.join(name).display()))?;
    }
    Ok(())
}

/// Trains with `{kind}.toml`, into the folder `kind`.
fn train(dir: &Path, kind: &str, args: &DemoArgs, common: &Common) -> Result<Outcome> {
    let mut config = TrainConfig::open(&dir.join(format!("{kind}.toml")), &args.overrides)?;
    config.base = dir.join("base");
    config.output = dir.join(kind);
    config.data.train = dir.join("train.jsonl");
    config.data.eval = Some(dir.join("heldout.jsonl"));
    let started = Instant::now();
    warn(&config, common);
    let outcome =
        train_with_bar(&Ranks::alone(), &config, false, args.device.open()?, &AtomicBool::new(false), common)?;
    args.say(format_args!(
        "   {kind}: {} trainable values, {} steps in {:.0} s, held-out loss {:.4}",
        outcome.parameters,
        outcome.steps,
        started.elapsed().as_secs_f64(),
        outcome.eval_loss.unwrap_or(f64::NAN)
    ));
    Ok(outcome)
}

/// The adapter with which a model's answers are tested.
enum Tried {
    Nothing,
    Lora(LoadedAdapter),
    Bank(LoadedBank),
}

/// Values that the steps after training share.
struct Demo<'a> {
    args: &'a DemoArgs,
    dir: PathBuf,
    folder: HfFolder,
    encoder: TextEncoder,
    decoder: Decoder,
    bank: AtomBank,
    train_rows: Vec<TrainingRow>,
    rows: Vec<TrainingRow>,
    instructions: Vec<String>,
}

impl<'a> Demo<'a> {
    fn open(dir: &Path, args: &'a DemoArgs) -> Result<Self> {
        let folder = HfFolder::open(&dir.join("base"))?;
        let rows = TrainingRow::read_all(&dir.join("heldout.jsonl"))?;
        let mut instructions: Vec<String> = Vec::new();
        for row in &rows {
            if !instructions.contains(&row.instruction) {
                instructions.push(row.instruction.clone());
            }
        }
        Ok(Self {
            args,
            encoder: TextEncoder::open(folder.path())?,
            decoder: Decoder::open(&folder, Residence::Memory, args.device.open()?)?,
            bank: AtomBank::open(&dir.join("bank"))?,
            train_rows: TrainingRow::read_all(&dir.join("train.jsonl"))?,
            dir: dir.to_owned(),
            folder,
            rows,
            instructions,
        })
    }

    fn words(&self) -> usize {
        self.rows.len() / self.instructions.len()
    }

    /// The weights to bake, by instruction and block.
    fn route_all(&self) -> Result<Vec<Vec<Vec<f32>>>> {
        let mut all = Vec::new();
        for instruction in &self.instructions {
            let of_it = self.train_rows.iter().filter(|r| &r.instruction == instruction);
            let prompts = of_it.take(BAKED_PROMPTS).map(|r| r.prompt.clone()).collect();
            let request = Request { instruction: instruction.clone(), prompts };
            let routes = route(&self.decoder, &self.bank, &self.encoder, &request, RoutedBy::Model)?;
            let alphas = routes.mean();
            let shown: Vec<String> = alphas.iter().map(|alpha| format!("{:<20}", show(alpha))).collect();
            self.args.say(format_args!("   {instruction:<28} {}", shown.join(" | ")));
            all.push(alphas);
        }
        Ok(all)
    }

    /// Writes a Hugging Face folder for every instruction, and a GGUF for the first ones.
    fn bake_all(&self, baked: &[Vec<Vec<f32>>]) -> Result<Vec<PathBuf>> {
        let mut folders = Vec::new();
        for (i, alphas) in baked.iter().enumerate() {
            let base = Base::of(&self.folder);
            let changes = [self.bank.changes(alphas, &base, &self.folder.config)];
            let plan = with_adapters(&base, self.folder.rounded(), &changes, &Weights::new([1.0]))?.plan;
            let folder = self.dir.join(format!("baked-{i}"));
            self.folder.output(plan.clone())?.write(&Destination::new(&folder), &|_| ())?;
            if i < AS_GGUF {
                let file = self.dir.join(format!("baked-{i}.gguf"));
                let (tensors, keys) = self.write_gguf(&plan, &file)?;
                let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let instruction = &self.instructions[i];
                self.args.say(format_args!(
                    "   {instruction:<28} -> baked-{i}/ and {name} ({tensors} tensors, {keys} keys)"
                ));
            } else {
                self.args.say(format_args!("   {:<28} -> baked-{i}/", self.instructions[i]));
            }
            folders.push(folder);
        }
        Ok(folders)
    }

    /// Writes a GGUF and reads it back. Returns the number of its tensors and keys.
    fn write_gguf(&self, plan: &Plan, path: &Path) -> Result<(usize, usize)> {
        let options = ConvertOptions::default();
        to_gguf(&self.folder, plan, &options)?.write(&Destination::new(path), &|_| ())?;
        let file = GgufFile::open(path)?;
        Ok((file.tensors().len(), file.metadata().len()))
    }

    /// For each instruction, the share of held-out rows that a model answers exactly.
    fn accuracy(&self, decoder: &Decoder, adapter: &Tried, only: Option<&str>) -> Result<Vec<f64>> {
        let (template, instructions) = match adapter {
            Tried::Bank(bank) => (bank.config().prompt_template.as_str(), bank.encoder()),
            _ => (DEFAULT_PROMPT_TEMPLATE, &InstructionEncoder::BaseEmbeddings),
        };
        let mut shares = Vec::new();
        for instruction in self.instructions.iter().filter(|i| only.is_none_or(|only| only == *i)) {
            let rows: Vec<&TrainingRow> = self.rows.iter().filter(|r| &r.instruction == instruction).collect();
            let sequences = rows
                .iter()
                .map(|r| instructions.routed(&self.encoder, template, &r.instruction, &r.prompt))
                .collect::<atombank::Result<Vec<Sequence>>>()?;
            let longest = rows.iter().map(|r| r.completion.len()).max().unwrap_or(0);
            let mut hook: Box<dyn Hook> = match adapter {
                Tried::Nothing => Box::new(NoAdapter),
                Tried::Lora(lora) => Box::new(LoraHook(lora)),
                Tried::Bank(bank) => Box::new(bank.hook(decoder.weights(), &sequences)?),
            };
            let answers = greedy(decoder, &mut *hook, &sequences, longest + 2, false)?;
            let mut right = 0;
            for (row, answer) in rows.iter().zip(&answers) {
                right += usize::from(answer.ended && self.encoder.decode(&answer.ids)? == row.completion);
            }
            shares.push(100.0 * right as f64 / rows.len() as f64);
        }
        Ok(shares)
    }

    /// For each instruction, the shares with the base, routed, baked, and with the LoRA.
    fn table(&self, folders: &[PathBuf], (bank_parameters, lora_parameters): (usize, usize)) -> Result<Vec<[f64; 4]>> {
        let lora = Lora::open(&self.dir.join("lora"))?;
        let lora = Tried::Lora(LoadedAdapter::frozen(&lora.tensors, lora.config.scale(), self.args.device.open()?)?);
        let bank = Tried::Bank(LoadedBank::frozen(&self.bank, self.args.device.open()?)?);
        let base = self.accuracy(&self.decoder, &Tried::Nothing, None)?;
        let routed = self.accuracy(&self.decoder, &bank, None)?;
        let plain = self.accuracy(&self.decoder, &lora, None)?;
        let mut baked = Vec::new();
        for (instruction, folder) in self.instructions.iter().zip(folders) {
            let decoder = Decoder::open(&HfFolder::open(folder)?, Residence::Memory, self.args.device.open()?)?;
            baked.extend(self.accuracy(&decoder, &Tried::Nothing, Some(instruction))?);
        }
        let [a, b, c, d] = ["base", "routed", "baked", "LoRA"];
        self.args.say(format_args!("   {:<28} {a:>6} {b:>7} {c:>6} {d:>6}", "instruction"));
        let line = |name: &str, values: [f64; 4]| {
            let [a, b, c, d] = values;
            self.args.say(format_args!("   {name:<28} {a:>6.1} {b:>7.1} {c:>6.1} {d:>6.1}"));
        };
        let rows: Vec<[f64; 4]> =
            (0..self.instructions.len()).map(|i| [base[i], routed[i], baked[i], plain[i]]).collect();
        for (instruction, row) in self.instructions.iter().zip(&rows) {
            line(instruction, *row);
        }
        let mean = |shares: &[f64]| shares.iter().sum::<f64>() / shares.len() as f64;
        line("mean", [mean(&base), mean(&routed), mean(&baked), mean(&plain)]);
        let name = "trainable values";
        self.args.say(format_args!("   {name:<28} {:>6} {bank_parameters:>7} {:>6} {lora_parameters:>6}", 0, 0));
        Ok(rows)
    }
}
