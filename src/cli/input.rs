//! Inputs as users name them: a path, or a model on the hub.

use std::path::PathBuf;

use anyhow::Result;
use atombank::checkpoint::hub;

use super::{Common, progress};

/// The path of an input.
pub(crate) fn found_path(input: &str, common: &Common) -> Result<PathBuf> {
    Ok(found(input, common)?.0)
}

/// The path of an input, and its name on the hub where it is from there.
pub(crate) fn found(input: &str, common: &Common) -> Result<(PathBuf, Option<String>)> {
    if !hub::is_hub_name(input) {
        return Ok((PathBuf::from(input), None));
    }
    let bar = progress::bar(0, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}", common.quiet);
    let model = hub::resolve(input, &hub::HubSettings::from_env()?, &|download| {
        bar.set_message(download.file.to_owned());
        bar.set_length(download.total);
        bar.set_position(download.done);
    })?;
    bar.finish_and_clear();
    Ok((model.path, Some(model.id)))
}
