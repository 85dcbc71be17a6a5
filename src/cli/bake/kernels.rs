//! `atombank bake` of a bank of filter atoms: dense kernels, or three plain convolutions in the place of each.

use anyhow::Result;
use atombank::jobs::{self, BakeKernelsSettings};
use atombank::output::Output;

use super::{BakeArgs, check_unrouted};
use crate::cli::Common;
use crate::cli::input::Found;
use crate::cli::output::report_written;

/// The model `found[0]` with the kernels of the bank `found[1]`.
pub(super) fn bake(args: &BakeArgs, found: &[Found]) -> Result<Output> {
    check_routing(args)?;
    let settings = BakeKernelsSettings {
        model_id: found[0].id.clone(),
        key: args.key.clone(),
        strip_prefix: args.alone.strip_prefix.clone(),
        bank_id: found[1].id.clone(),
        output: args.settings(),
        ..BakeKernelsSettings::new(&found[0].path, &found[1].path, &args.output.output)
    };
    args.output.checked(jobs::bake_kernels(&settings)?)
}

/// Writes the model.
pub(super) fn write(args: &BakeArgs, output: &Output, common: &Common) -> Result<()> {
    let written = args.output.write(output, args.json, common)?;
    report_written(written.as_ref(), args.json, common)
}

/// Refuses options that choose a routing.
pub(super) fn check_routing(args: &BakeArgs) -> Result<()> {
    check_unrouted(args, false, |finding| finding.expected("none for a bank of filter atoms, which routes nothing"))
}
