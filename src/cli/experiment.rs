//! `atombank experiment`: measures what banks are good for, beside LoRAs of their size.

use std::path::PathBuf;

use anyhow::Result;
use atombank::Error;
use atombank::error::Finding;
use atombank::experiment::{Lab, Part, Report, Selection, Size, Topic, baking, growth, instructions, regression};
use atombank::model::{LanguageModel, Residence};
use candle_core::Device;
use clap::{Args, ValueEnum};

use super::Common;
use super::demo::{Temporary, unpack, words_of};

/// Arguments of `experiment`.
#[derive(Args)]
pub(crate) struct ExperimentArgs {
    /// What to measure
    #[arg(value_enum)]
    name: Name,
    /// Write tables, numbers and plots into this new folder: NAME.md, NAME.json, NAME-1.svg
    #[arg(short, long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(long, requires = "output")]
    overwrite: bool,
    /// The number of seeds that means are taken over
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..))]
    seeds: u16,
    /// The number of other seeds, on which the settings of each method are chosen
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    tuning_seeds: u16,
    /// Take so many times fewer steps, for a try
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    hurry: u16,
    /// With `instructions`: only this table; may be repeated: steps, tasks, rows, values, parts
    #[arg(long, value_name = "TABLE", value_parser = topic)]
    table: Vec<Topic>,
    /// With `instructions`: in the table of parts, try the bank only without this one; may be repeated: start,
    /// orthogonal-atoms, centre, prior, summary, state, sharing, top-k
    #[arg(long, value_name = "PART", value_parser = part)]
    without: Vec<Part>,
    /// Take the settings that an earlier experiment on text chose for its methods, from its NAME.json, and choose the others
    #[arg(long, value_name = "FILE")]
    chosen: Option<PathBuf>,
    /// Print JSON: every number
    #[arg(long)]
    json: bool,
}

/// The experiments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Named text tasks in one adapter: steps, rows, tasks, trained values, and what decides
    Instructions,
    /// Names added one after the other
    Growth,
    /// Noisy non-linear regression with a frozen net
    Regression,
    /// What baking costs
    Baking,
}

fn named<T: Copy>(name: &str, all: &[(&str, T)]) -> Result<T, String> {
    let names = || all.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    let found = all.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value).ok_or_else(|| format!("expected one of {}", names()))
}

fn topic(name: &str) -> Result<Topic, String> {
    named(name, &Topic::ALL)
}

fn part(name: &str) -> Result<Part, String> {
    named(name, &Part::ALL)
}

impl ExperimentArgs {
    /// Checks that options suit the experiment.
    fn check(&self) -> Result<(), Error> {
        let refused = |option: &str, expected: &str| {
            let found = self.name.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned());
            Err(Finding::new("", option.to_owned()).expected(expected.to_owned()).found(found).setting())
        };
        match self.name {
            Name::Instructions => Ok(()),
            _ if !self.table.is_empty() => refused("table", "the experiment instructions"),
            _ if !self.without.is_empty() => refused("without", "the experiment instructions"),
            Name::Regression if self.chosen.is_some() => refused("chosen", "an experiment on text"),
            _ => Ok(()),
        }
    }

    fn selection(&self) -> Selection {
        let all = Selection::default();
        let given_parts = !self.without.is_empty();
        Selection {
            topics: match (self.table.is_empty(), given_parts) {
                (false, _) => self.table.clone(),
                (true, true) => vec![Topic::Parts],
                (true, false) => all.topics,
            },
            without: if given_parts { self.without.clone() } else { all.without },
        }
    }
}

pub(crate) fn run(args: &ExperimentArgs, common: &Common) -> Result<()> {
    args.check()?;
    // An output that can't be written should be reported before hours of work, not after them.
    if let Some(folder) = &args.output {
        Report::check(folder, args.overwrite)?;
    }
    let size = Size { seeds: args.seeds.into(), tuning_seeds: args.tuning_seeds.into(), hurry: args.hurry.into() };
    let say = |line: &str| {
        if !common.quiet {
            eprintln!("{line}");
        }
    };
    let report = match args.name {
        Name::Instructions => instructions(&lab(args)?, &args.selection(), size, &say)?,
        Name::Growth => growth(&lab(args)?, size, &say)?,
        Name::Regression => regression(size, &say)?,
        Name::Baking => baking(&lab(args)?, size, &say)?,
    };
    if let Some(folder) = &args.output {
        report.write(folder, args.overwrite)?;
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => println!("{}", report.markdown()),
    }
    Ok(())
}

/// The demo's base and words.
fn lab(args: &ExperimentArgs) -> Result<Lab> {
    let chosen = args.chosen.as_deref().map(Report::read_chosen).transpose()?.unwrap_or_default();
    let folder = Temporary::new("experiment");
    unpack(&folder.0)?;
    let model = LanguageModel::open(&folder.0.join("base"), Residence::Memory, &Device::Cpu)?;
    let words = |name: &str| words_of(&folder.0.join(name));
    Ok(Lab::new(model, words("train.jsonl")?, words("heldout.jsonl")?, chosen)?)
}
