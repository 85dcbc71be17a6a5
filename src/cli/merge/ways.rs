//! The ways to merge: `atombank merge` itself, and its subcommands.
//!
//! clap's derived code takes no arguments that are required only without a subcommand where some of them are in a struct
//! of their own. So this says it by hand.

use anyhow::Result;
use clap::error::Error;
use clap::{ArgMatches, Args, Command, FromArgMatches};

use super::MergeArgs;
#[cfg(feature = "train")]
use super::{moe, search};
use crate::cli::Common;

/// What `atombank merge` is asked to do.
pub(crate) enum Merging {
    /// Merge adapters or models.
    Plain(Box<MergeArgs>),
    /// Another way, which needs a model to run.
    #[cfg(feature = "train")]
    Other(Other),
}

/// Merges that need a model to run.
#[cfg(feature = "train")]
#[derive(clap::Subcommand)]
pub(crate) enum Other {
    /// Make a mixture of experts of dense models, as mergekit-moe does
    Moe(Box<moe::MoeArgs>),
    /// Search the weights of a merge for the least loss on a text or rows
    Search(Box<search::SearchArgs>),
}

impl Merging {
    /// Whether it runs a model.
    #[cfg(feature = "train")]
    pub(crate) fn computes(&self) -> bool {
        matches!(self, Merging::Other(_))
    }

    pub(crate) fn run(&self, common: &Common) -> Result<()> {
        match self {
            Merging::Plain(args) => super::run(args, common),
            #[cfg(feature = "train")]
            Merging::Other(Other::Moe(args)) => moe::run(args, common),
            #[cfg(feature = "train")]
            Merging::Other(Other::Search(args)) => search::run(args, common),
        }
    }
}

impl FromArgMatches for Merging {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        #[cfg(feature = "train")]
        if matches.subcommand_name().is_some() {
            return Other::from_arg_matches(matches).map(Merging::Other);
        }
        MergeArgs::from_arg_matches(matches).map(|args| Merging::Plain(Box::new(args)))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Merging {
    fn augment_args(command: Command) -> Command {
        let command = MergeArgs::augment_args(command);
        #[cfg(feature = "train")]
        let command = <Other as clap::Subcommand>::augment_subcommands(command)
            .args_conflicts_with_subcommands(true)
            .subcommand_negates_reqs(true);
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
