//! `atombank demo`: the main workflow on an embedded example. Every number is computed during the
//! run.

mod folder;
mod task;
mod tried;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result};
use atombank::adapter::Lora;
use atombank::bank::{AtomBank, Request, RoutedBy, route};
use atombank::experiment::{Behaviour, Choices, FUNCTIONS};
use atombank::jobs::{BakeSettings, bake_on};
use atombank::model::{LanguageModel, Residence};
use atombank::output::Destination;
use atombank::train::{Outcome, Ranks, TrainConfig, TrainingRow};
use clap::Args;
use serde_json::{Value, json};

use super::Common;
use super::device::DeviceArgs;
use super::route::show;
use super::train::{train_with_bar, warn};
use folder::remove_demo;
pub(crate) use folder::{Temporary, unpack};
pub(crate) use task::words_of;
use task::{NAMES, SEED, TRAIN_WORDS, TRIED_WORDS};
use tried::Tried;

/// Arguments of `demo`.
#[derive(Args)]
pub(crate) struct DemoArgs {
    /// Keep the results in this new folder
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Replace the folder of an earlier demo
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// Change a setting of all trainings: training.steps=50
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

/// Number of training prompts whose mean routing is baked.
const BAKED_PROMPTS: usize = 8;

pub(crate) fn run(args: &DemoArgs, common: &Common) -> Result<()> {
    let started = Instant::now();
    let kept = args.output.is_none().then(|| Temporary::new("demo"));
    let dir = kept.as_ref().map_or_else(|| args.output.clone().unwrap_or_default(), |kept| kept.0.clone());
    if args.overwrite {
        remove_demo(&dir)?;
    }
    unpack(&dir)?;
    let demo = Demo::new(args, common, dir)?;

    let count = demo.behaviours.len();
    args.say(format_args!(
        "1. train an atom bank on {count} named behaviours, and a plain LoRA of about the same size"
    ));
    let bank = demo.train("bank", "bank")?;
    let lora = demo.train("lora", "lora")?;

    args.say(format_args!("\n2. route: the atoms that a name picks, by block; the first name of each behaviour"));
    let alphas = demo.route_all()?;

    let new = &demo.new;
    args.say(format_args!("\n3. grow: one more name, from its own {TRAIN_WORDS} rows alone"));
    let grown = demo.train("grow", "grown")?;

    args.say(format_args!("\n4. bake: plain weights for one name"));
    let baked = demo.bake()?;

    args.say(format_args!("\n5. exact match on {TRIED_WORDS} words that no training has seen, in percent"));
    let table = demo.table(&bank, &grown, &lora)?;
    let seconds = started.elapsed().as_secs_f64();
    args.say(format_args!("\n{seconds:.0} s in all, seed {SEED}"));
    if args.output.is_some() {
        let (dir, gguf) = (demo.dir.display(), demo.dir.join(GGUF));
        args.say(format_args!("kept in {dir}; serve the GGUF with: llama-cli -m {}", gguf.display()));
    }
    if args.json {
        let trained = |outcome: &Outcome| json!({ "parameters": outcome.parameters, "loss": outcome.loss, "eval_loss": outcome.eval_loss });
        let instructions: Vec<Value> = (demo.behaviours.iter().zip(&alphas).zip(&table.names))
            .map(|((behaviour, alphas), [base, routed, grown, lora])| {
                json!({ "instruction": behaviour.name, "behaviour": FUNCTIONS[behaviour.function].0, "alphas": alphas,
                    "exact_match": { "base": base, "routed": routed, "grown": grown, "lora": lora } })
            })
            .collect();
        let json = json!({ "output": args.output, "seed": SEED, "bank": trained(&bank), "lora": trained(&lora),
            "words": TRIED_WORDS, "instructions": instructions, "seconds": seconds,
            "grown": { "instruction": new.name, "behaviour": FUNCTIONS[new.function].0, "parameters": grown.parameters,
                "exact_match": { "base": table.new[0], "routed": table.new[1], "grown": table.new[2], "lora": table.new[3] } },
            "baked": baked });
        println!("{}", serde_json::to_string_pretty(&json)?);
    }
    Ok(())
}

/// The name of the baked file.
const GGUF: &str = "baked-0.gguf";

/// Values that the steps share.
struct Demo<'a> {
    args: &'a DemoArgs,
    common: &'a Common,
    dir: PathBuf,
    model: LanguageModel,
    behaviours: Vec<Behaviour>,
    /// The one that is added.
    new: Behaviour,
    train_rows: Vec<TrainingRow>,
    tried_rows: Vec<TrainingRow>,
}

/// Exact matches in percent: with the base, the bank, the grown bank and the LoRA.
struct Table {
    names: Vec<[f64; 4]>,
    new: [f64; 4],
}

impl<'a> Demo<'a> {
    /// Makes the rows, and writes those of each training into the folder.
    fn new(args: &'a DemoArgs, common: &'a Common, dir: PathBuf) -> Result<Self> {
        let mut choices = Choices::new(SEED);
        let mut behaviours = choices.behaviours(FUNCTIONS.len() * NAMES + 1, NAMES);
        let added = behaviours.split_off(FUNCTIONS.len() * NAMES);
        let (words, unseen) = (words_of(&dir.join("train.jsonl"))?, words_of(&dir.join("heldout.jsonl"))?);
        let train_rows = choices.rows(&behaviours, &words, TRAIN_WORDS);
        let mut tried_rows = choices.rows(&behaviours, &unseen, TRIED_WORDS);
        let new_rows = choices.rows(&added, &words, TRAIN_WORDS);
        let new_tried = choices.rows(&added, &unseen, TRIED_WORDS);
        for (name, rows) in
            [("train", &train_rows), ("heldout", &tried_rows), ("new", &new_rows), ("new-heldout", &new_tried)]
        {
            write_rows(&dir.join(format!("names-{name}.jsonl")), rows)?;
        }
        tried_rows.extend(new_tried);
        let model = LanguageModel::open(&dir.join("base"), Residence::Memory, args.device.open()?)?;
        let new = added.into_iter().next().context("a behaviour to add")?;
        Ok(Self { args, common, dir, model, behaviours, new, train_rows, tried_rows })
    }

    /// Trains with `names-{kind}.toml`, into the folder `output`.
    fn train(&self, kind: &str, output: &str) -> Result<Outcome> {
        let file = self.dir.join(format!("names-{kind}.toml"));
        let grows = kind == "grow";
        let path = |name: &str| self.dir.join(format!("names-{}{name}.jsonl", if grows { "new" } else { "" }));
        let mut config = TrainConfig::open(&file, &self.args.overrides)?;
        config.base = self.dir.join("base");
        config.output = self.dir.join(output);
        config.from = grows.then(|| self.dir.join("bank"));
        config.data.train = if grows { path("") } else { path("train") }.into();
        config.data.eval = Some(if grows { path("-heldout") } else { path("heldout") }.into());
        let started = Instant::now();
        warn(&config, self.common);
        let stop = AtomicBool::new(false);
        let outcome = train_with_bar(&Ranks::alone(), &config, false, self.args.device.open()?, &stop, self.common)?;
        self.args.say(format_args!(
            "   {output:<5} {:>6} trainable values, {} steps in {:.0} s, held-out loss {:.4}",
            outcome.parameters,
            outcome.steps,
            started.elapsed().as_secs_f64(),
            outcome.eval_loss.unwrap_or(f64::NAN)
        ));
        if grows {
            let behaviour = FUNCTIONS[self.new.function].0;
            self.args.say(format_args!(
                "   {:?} now means: {behaviour}. The other names pick the same atoms, bit for bit",
                self.new.name
            ));
        }
        Ok(outcome)
    }

    /// The weights that each name gives the atoms, by block: the means over some prompts.
    fn route_all(&self) -> Result<Vec<Vec<Vec<f32>>>> {
        let bank = AtomBank::open(&self.dir.join("bank"))?;
        let mut all = Vec::new();
        for (number, behaviour) in self.behaviours.iter().enumerate() {
            let request = Request { instruction: behaviour.name.clone(), prompts: self.prompts_of(behaviour) };
            let routes = route(&self.model.decoder, &bank, &self.model.encoder, &request, RoutedBy::Model)?;
            let alphas = routes.mean();
            if number % NAMES == 0 {
                let shown: Vec<String> = alphas.iter().map(|alpha| first(&show(alpha), 3)).collect();
                let what = format!("{} ({})", behaviour.name, FUNCTIONS[behaviour.function].0);
                self.args.say(format_args!("   {what:<44} {}", shown.join(" | ")));
            }
            all.push(alphas);
        }
        Ok(all)
    }

    fn prompts_of(&self, behaviour: &Behaviour) -> Vec<String> {
        let own = self.train_rows.iter().filter(|row| row.instruction == behaviour.name);
        own.take(BAKED_PROMPTS).map(|row| row.prompt.clone()).collect()
    }

    /// Writes a GGUF for the first name, and tries it.
    fn bake(&self) -> Result<Value> {
        let behaviour = &self.behaviours[0];
        let (base, bank, path) = (self.dir.join("base"), self.dir.join("bank"), self.dir.join(GGUF));
        let mut settings = BakeSettings::new(base, bank, &behaviour.name, &path);
        settings.prompts = self.prompts_of(behaviour);
        let baked = bake_on(&settings, self.args.device.open()?)?;
        let written = baked.output.write(&Destination { sync: false, ..Destination::new(&path) }, &|_| ())?;
        let model = LanguageModel::open(&path, Residence::Mapped, self.args.device.open()?)?;
        let exact = Tried::Nothing.exact(&model, &self.rows_of(behaviour))?;
        let kl = baked.parts.first().and_then(|part| part.verified).map(|agreement| agreement.mean_kl.max(0.0));
        self.args.say(format_args!(
            "   {} -> {GGUF}: {} tensors, mean KL to the routed model {:.1e}, exact match {exact:.0} %",
            behaviour.name,
            written.tensors,
            kl.unwrap_or(f64::NAN)
        ));
        Ok(json!({ "instruction": behaviour.name, "mean_kl": kl, "exact_match": exact, "tensors": written.tensors }))
    }

    fn rows_of(&self, behaviour: &Behaviour) -> Vec<&TrainingRow> {
        self.tried_rows.iter().filter(|row| row.instruction == behaviour.name).collect()
    }

    /// The exact matches of every name, and their means by behaviour, printed.
    fn table(&self, bank: &Outcome, grown: &Outcome, lora: &Outcome) -> Result<Table> {
        let device = self.args.device.open()?;
        let open = |name: &str| AtomBank::open(&self.dir.join(name));
        let tried = [
            Tried::Nothing,
            Tried::bank(&open("bank")?, device)?,
            Tried::bank(&open("grown")?, device)?,
            Tried::lora(&Lora::open(&self.dir.join("lora"))?, device)?,
        ];
        let of = |behaviour: &Behaviour| -> Result<[f64; 4]> {
            let mut shares = [0.0; 4];
            for (share, tried) in shares.iter_mut().zip(&tried) {
                *share = tried.exact(&self.model, &self.rows_of(behaviour))?;
            }
            Ok(shares)
        };
        let names = self.behaviours.iter().map(of).collect::<Result<Vec<_>>>()?;
        let table = Table { names, new: of(&self.new)? };

        let [a, b, c, d] = ["base", "bank", "grown", "LoRA"];
        self.args.say(format_args!("   {:<28} {a:>6} {b:>7} {c:>7} {d:>6}", "names that mean"));
        let line = |name: &str, [a, b, c, d]: [f64; 4]| {
            self.args.say(format_args!("   {name:<28} {a:>6.1} {b:>7.1} {c:>7.1} {d:>6.1}"));
        };
        let mean = |rows: &[[f64; 4]]| -> [f64; 4] {
            std::array::from_fn(|column| rows.iter().map(|row| row[column]).sum::<f64>() / rows.len().max(1) as f64)
        };
        for (names, (function, _)) in table.names.chunks(NAMES).zip(FUNCTIONS) {
            line(function, mean(names));
        }
        line(&format!("all {} names", table.names.len()), mean(&table.names));
        line(&format!("the new name, {:?}", self.new.name), table.new);
        let [bank, grown, lora] = [bank, grown, lora].map(|outcome| outcome.parameters);
        let (name, grown) = ("trainable values", format!("+{grown}"));
        self.args.say(format_args!("   {name:<28} {:>6} {bank:>7} {grown:>7} {lora:>6}", 0));
        Ok(table)
    }
}

/// The first atoms of a list as [`show`] makes it.
fn first(shown: &str, count: usize) -> String {
    let atoms: Vec<&str> = shown.split("  ").collect();
    let more = if atoms.len() > count { " .." } else { "" };
    format!("{:<24}", format!("{}{more}", atoms[..count.min(atoms.len())].join("  ")))
}

fn write_rows(path: &Path, rows: &[TrainingRow]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        text += &serde_json::to_string(row)?;
        text.push('\n');
    }
    fs::write(path, text).with_context(|| format!("{}: cannot write", path.display()))
}
