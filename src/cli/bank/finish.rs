//! The end of every command that makes a bank: it is written, and what was made is printed.

use anyhow::Result;
use atombank::output::{Destination, Output};
use serde_json::{Map, Value};

use crate::cli::Common;
use crate::cli::output::{planned, print_description, print_notes, print_written};

/// How a bank is written and shown.
pub(super) struct Finish<'a> {
    pub(super) destination: &'a Destination,
    pub(super) dry_run: bool,
    pub(super) json: bool,
    pub(super) common: &'a Common,
}

impl Finish<'_> {
    /// Writes `output`, unless nothing is to be written, and prints `notes` and what was made: `json`, or what `show`
    /// prints.
    pub(super) fn run(
        &self,
        output: &Output,
        notes: &[String],
        mut json: Map<String, Value>,
        show: impl FnOnce(),
    ) -> Result<()> {
        let path = &self.destination.path;
        let written = if self.dry_run { None } else { Some(output.write(self.destination, &|_| ())?) };
        print_notes(notes, self.common);
        if self.json {
            if self.dry_run {
                json.extend(planned(output, path)?);
            }
            println!("{}", serde_json::to_string_pretty(&json)?);
        } else {
            show();
            if self.dry_run {
                print_description(&output.describe(path)?, path);
            }
        }
        print_written(written.as_ref(), self.json, self.common);
        Ok(())
    }
}
