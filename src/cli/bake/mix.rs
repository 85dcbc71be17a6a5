//! `atombank bake` of a bank with a fixed mix of its atoms, into a model of any class.

use anyhow::Result;
use atombank::jobs::{self, BakeMixSettings, BakedMix};
use serde_json::{Map, json};

use super::{BakeArgs, check_unrouted};
use crate::cli::Common;
use crate::cli::input::Found;
use crate::cli::output::print_written;
use crate::cli::route::show;

/// The model `found[0]` with the mix of the bank `found[1]`.
pub(super) fn bake(args: &BakeArgs, found: &[Found]) -> Result<BakedMix> {
    check_routing(args)?;
    let made = jobs::bake_mix(&BakeMixSettings {
        base: found[0].path.clone(),
        base_id: found[0].id.clone(),
        key: args.key.clone(),
        strip_prefix: args.alone.strip_prefix.clone(),
        bank: found[1].path.clone(),
        bank_id: found[1].id.clone(),
        alphas: args.alphas.clone(),
        output: args.settings(),
    })?;
    Ok(BakedMix { output: args.output.checked(made.output)?, ..made })
}

/// Writes the model, and prints the weights of the atoms.
pub(super) fn write(args: &BakeArgs, made: &BakedMix, common: &Common) -> Result<()> {
    if args.json {
        let (mut json, written) = match args.output.dry_run {
            true => (args.output.planned(&made.output, common)?, None),
            false => (Map::new(), args.output.write(&made.output, true, common)?),
        };
        json.insert("alphas".to_owned(), json!(made.alphas));
        if let Some(written) = &written {
            json.insert("written".to_owned(), json!(written));
        }
        println!("{}", serde_json::to_string_pretty(&json)?);
        print_written(written.as_ref(), true, common);
        return Ok(());
    }
    let written = args.output.write(&made.output, false, common)?;
    for (block, alpha) in &made.alphas {
        println!("block {block:<3} {}", show(alpha));
    }
    print_written(written.as_ref(), false, common);
    Ok(())
}

/// Refuses options that choose a routing, which needs a router and a model that runs.
pub(super) fn check_routing(args: &BakeArgs) -> Result<()> {
    check_unrouted(args, true, |finding| {
        let finding = finding.expected("none: the bank has no router, or the model doesn't run");
        finding.hint("`alphas` gives the weights of the atoms")
    })
}
