//! `atombank bake` of a bank of filter atoms: dense kernels, or three plain convolutions in the place of each.

use anyhow::Result;
use atombank::checkpoint::hub::Need;
use atombank::error::Finding;
use atombank::jobs::{self, BakeKernelsSettings};
use serde_json::json;

use super::BakeArgs;
use crate::cli::Common;
use crate::cli::input::{Found, Input, with_inputs};
use crate::cli::output::print_written;
use crate::cli::route::By;

pub(super) fn run(args: &BakeArgs, common: &Common) -> Result<()> {
    check_routing(args)?;
    let bake = |found: &[Found]| {
        let settings = BakeKernelsSettings {
            model_id: found[0].id.clone(),
            key: args.key.clone(),
            output: args.output.settings(),
            ..BakeKernelsSettings::new(&found[0].path, &args.bank, &args.output.output)
        };
        args.output.checked(jobs::bake_kernels(&settings)?)
    };
    let input = Input::new(&args.base, Need::Model).values(!args.output.dry_run);
    let made = with_inputs(&[input], common, bake)?;
    let mut output = made.made;
    made.outlines.put_real_paths(&mut output.notes);
    let written = args.output.write(&output, args.json, common)?;
    if let (true, Some(written)) = (args.json, &written) {
        println!("{}", serde_json::to_string_pretty(&json!({ "written": written }))?);
    }
    print_written(written.as_ref(), args.json, common);
    Ok(())
}

/// Refuses options that choose a routing.
fn check_routing(args: &BakeArgs) -> Result<()> {
    let options = [
        ("instruction", !args.instruction.is_empty()),
        ("prompts", !args.prompt.is_empty()),
        ("routing", matches!(args.routing, By::Prior)),
        ("alphas", !args.alphas.is_empty()),
        ("all", args.all.is_some()),
    ];
    match options.iter().find(|(_, given)| *given) {
        None => Ok(()),
        Some((option, _)) => {
            let finding = Finding::new("", *option).expected("none for a bank of filter atoms, which routes nothing");
            Err(finding.found("one").setting().into())
        }
    }
}
