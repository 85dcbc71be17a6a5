//! Inputs as users give them: a path, or a model on the hub.

use std::path::{Path, PathBuf};

use anyhow::Result;
use atombank::checkpoint::hub::{self, Event, HubSettings, Need, Outline};

use atombank::convert::Content;

use super::{Common, progress};

/// Like [`found`], but returns only the path.
pub(crate) fn found_path(input: &Path, need: Need, common: &Common) -> Result<PathBuf> {
    match input.to_str() {
        Some(text) => Ok(found(text, need, common)?.0),
        None => Ok(input.to_owned()),
    }
}

/// The path of an input, and its name on the hub if it is from there. Needed parts that are missing are downloaded.
pub(crate) fn found(input: &str, need: Need, common: &Common) -> Result<(PathBuf, Option<String>)> {
    let Some(name) = hub_name(input) else { return Ok((PathBuf::from(input), None)) };
    let model = watched(common, |settings, tell| hub::resolve(&name, settings, need, tell))?;
    Ok((model.path, Some(model.id)))
}

/// The result of `look` for an input that is only inspected. For a model on the hub, headers of its weights are enough,
/// unless `look` reads values; then the model is downloaded. The outline must outlive the result.
pub(crate) fn looked_at<T>(
    input: &str,
    need: Need,
    common: &Common,
    look: impl Fn(PathBuf, Option<String>) -> Result<T>,
) -> Result<(T, Option<Outline>)> {
    if let Some(name) = hub_name(input)
        && let Some(outline) = watched(common, |settings, tell| hub::outline(&name, settings, need, tell))?
    {
        let made = look(outline.model.path.clone(), Some(outline.model.id.clone()));
        if !outline.values_were_read() {
            return Ok((made?, Some(outline)));
        }
    }
    let (path, name) = found(input, need, common)?;
    Ok((look(path, name)?, None))
}

/// Parses a value of `--as`.
pub(crate) fn parse_content(text: &str) -> Result<Content, String> {
    match text {
        "model" => Ok(Content::Model),
        "adapter" => Ok(Content::Adapter),
        _ => Err("expected model or adapter".to_owned()),
    }
}

/// The name on the hub, if `input` is one.
fn hub_name(input: &str) -> Option<String> {
    match hub::is_hub_name(input) {
        true => Some(input.to_owned()),
        false => can_only_be_a_hub_name(input).then(|| format!("hf:{input}")),
    }
}

/// Runs `work` with the environment's hub settings. Shows downloads as a progress bar, and notes on stderr.
fn watched<T>(
    common: &Common,
    work: impl FnOnce(&HubSettings, &dyn Fn(Event<'_>)) -> atombank::Result<T>,
) -> Result<T> {
    let bar = progress::bar(0, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}", common.quiet);
    let settings = HubSettings { refresh: common.refresh, ..HubSettings::from_env()? };
    let done = work(&settings, &|event| match event {
        Event::Download(download) => {
            bar.set_message(download.file.to_owned());
            bar.set_length(download.total);
            bar.set_position(download.done);
        }
        Event::Note(note) if !common.quiet => bar.suspend(|| eprintln!("note: {note}")),
        Event::Note(_) => {}
    });
    bar.finish_and_clear();
    Ok(done?)
}

/// Whether `input` has the form `org/name` and can't be a path: neither it nor a folder `org` exists.
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
