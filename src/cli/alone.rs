//! Options about tensors alone, without a model's folder, which `convert` and `merge` share.

use std::path::PathBuf;

use atombank::jobs::OutputSettings;
use clap::Args;

/// How tensors alone are named and written.
#[derive(Args)]
pub(crate) struct AloneArgs {
    /// What to take off the names of tensors alone that begin with it, such as module.
    #[arg(long, value_name = "PREFIX")]
    pub(crate) strip_prefix: Option<String>,
    /// Write a tensor for every name, where names share a storage
    #[arg(long)]
    expand_shared: bool,
    /// Write this PyTorch file again, with the new values in place of its own; everything else in it stays
    #[arg(long, value_name = "FILE")]
    into: Option<PathBuf>,
    /// The part of that file that gets the values, such as state_dict
    #[arg(long, value_name = "NAME")]
    into_key: Option<String>,
}

impl AloneArgs {
    /// `output` with these settings.
    pub(crate) fn applied_to(&self, output: OutputSettings) -> OutputSettings {
        OutputSettings {
            expand_shared: self.expand_shared,
            into: self.into.clone(),
            into_key: self.into_key.clone(),
            ..output
        }
    }
}
