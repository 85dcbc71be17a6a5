//! `atombank families`: lists the model families, shows a family's file, checks one.

use std::path::PathBuf;

use anyhow::Result;
use atombank::convert::families::{self, FamilyInfo};
use clap::{Args, Subcommand};

use super::Common;

/// Arguments of `families`.
#[derive(Args)]
pub(crate) struct FamiliesArgs {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Print the file of a family
    Show {
        /// The family's name, as `families` lists it
        name: String,
    },
    /// Read a family file and tell what it would do with a model
    Check {
        /// The family file
        file: PathBuf,
        /// A model's folder
        model: Option<PathBuf>,
    },
}

pub(crate) fn run(args: &FamiliesArgs, _: &Common) -> Result<()> {
    match &args.action {
        None => {
            let all = families::list();
            if args.json {
                println!("{}", serde_json::to_string_pretty(&all)?);
                return Ok(());
            }
            for (title, projector) in [("Text models", false), ("Projectors (--mmproj)", true)] {
                println!("{title}:");
                all.iter().filter(|family| family.projector == projector).for_each(print);
            }
            println!("* Models of this class run, too: generate, route, train, imatrix.");
        }
        Some(Action::Show { name }) => print!("{}", families::text(name)?),
        Some(Action::Check { file, model }) => {
            let check = families::check(file, model.as_deref())?;
            if args.json {
                println!("{}", serde_json::to_string_pretty(&check)?);
                return Ok(());
            }
            println!("{}: no mistake", file.display());
            print(&check.family);
            check.tensors.iter().for_each(|line| println!("  {line}"));
        }
    }
    Ok(())
}

fn print(family: &FamilyInfo) {
    let class = |class: &String| if family.runs.contains(class) { format!("{class}*") } else { class.clone() };
    let classes: Vec<String> = family.classes.iter().map(class).collect();
    println!("  {} ({}): {}", family.name, family.gguf, classes.join(" "));
}
