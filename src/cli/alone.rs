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
    /// The first option that is given.
    #[cfg(feature = "train")]
    pub(crate) fn first_given(&self) -> Option<&'static str> {
        let options = [
            ("strip_prefix", self.strip_prefix.is_some()),
            ("expand_shared", self.expand_shared),
            ("into", self.into.is_some()),
            ("into_key", self.into_key.is_some()),
        ];
        options.into_iter().find(|(_, given)| *given).map(|(name, _)| name)
    }

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
