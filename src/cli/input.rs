//! Inputs as users name them: a path, or a model on the hub.

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::checkpoint::hub::{self, Event, HubSettings, Need};

use super::{Common, progress};

/// As [`found`], the path alone.
pub(crate) fn found_path(input: &Path, need: Need, common: &Common) -> Result<PathBuf> {
    match input.to_str() {
        Some(text) => Ok(found(text, need, common)?.0),
        None => Ok(input.to_owned()),
    }
}

/// The path of an input, and its name on the hub where it is from there. What is missing of it, and needed, is fetched.
pub(crate) fn found(input: &str, need: Need, common: &Common) -> Result<(PathBuf, Option<String>)> {
    let name = match hub::is_hub_name(input) {
        true => input.to_owned(),
        false if can_only_be_a_hub_name(input) => format!("hf:{input}"),
        false => return Ok((PathBuf::from(input), None)),
    };
    let bar = progress::bar(0, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}", common.quiet);
    let settings = HubSettings { refresh: common.refresh, ..HubSettings::from_env()? };
    let model = hub::resolve(&name, &settings, need, &|event| match event {
        Event::Download(download) => {
            bar.set_message(download.file.to_owned());
            bar.set_length(download.total);
            bar.set_position(download.done);
        }
        Event::Note(note) if !common.quiet => bar.suspend(|| eprintln!("note: {note}")),
        Event::Note(_) => {}
    })?;
    bar.finish_and_clear();
    Ok((model.path, Some(model.id)))
}

/// Whether `input` is of the form `org/name` and no path: nothing has its name, nor is there a folder `org`.
fn can_only_be_a_hub_name(input: &str) -> bool {
    let Some((org, name)) = input.split_once('/') else { return false };
    let plain = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let file = [".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end));
    plain(org) && plain(name) && !file && !Path::new(input).exists() && !Path::new(org).exists()
}

#[cfg(test)]
mod tests {
    use super::can_only_be_a_hub_name;

    #[test]
    fn names_of_the_hub_are_told_from_paths() {
        assert!(can_only_be_a_hub_name("meta-llama/Llama-3.2-1B"));
        for path in ["src/no-such-model", "/tmp/x", "./x", "../x", "a/b/c", "folder", "org/model.gguf", "no such/model"]
        {
            assert!(!can_only_be_a_hub_name(path), "{path}");
        }
    }
}
