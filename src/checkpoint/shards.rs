//! Which files are the shards of a model: by its index, or by their numbers.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path};

use crate::error::{Finding, IoContext, Result};
use crate::json::{plain, read_json_object};

/// The index's tensor -> shard map; shards are files in the index's folder or below it.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json_object(path)?;
    let map = json.get("weight_map").cloned().unwrap_or_default();
    let map: BTreeMap<String, String> = serde_json::from_value(map).map_err(|e| {
        Finding::new(path, "weight_map").expected("file names by tensor name").found(plain(&e)).format()
    })?;
    for shard in map.values() {
        let mut parts = Path::new(shard).components();
        // One spelling a file: no `.`, no doubled or trailing slash, nothing that leads out of the folder.
        let is_below = parts.clone().next().is_some() && parts.all(|part| matches!(part, Component::Normal(_)));
        let is_plain = shard.split('/').all(|part| !part.is_empty() && part != ".");
        if !is_below || !is_plain {
            return Err(Finding::new(path, "weight_map")
                .expected("names of files in this folder")
                .found(format_args!("{shard:?}"))
                .format());
        }
    }
    Ok(map)
}

/// The shards that an index names, each once, in order.
///
/// # Errors
/// [`crate::Error::Mismatch`] for one that isn't there, naming the index.
pub(super) fn named_by(index: &Path, map: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut names: Vec<String> = map.values().cloned().collect();
    names.sort_unstable();
    names.dedup();
    let folder = index.parent().unwrap_or(Path::new(""));
    match names.iter().find(|name| fs::symlink_metadata(folder.join(name)).is_err()) {
        None => Ok(names),
        Some(missing) => Err(Finding::new(index, "weight_map")
            .expected(format_args!("the shard {missing} beside it"))
            .found("no such file")
            .hint("is the download complete?")
            .mismatch()),
    }
}

/// The shards `STEM-00001-of-00003.EXTENSION` of a folder, in order; `None` where it has none.
///
/// # Errors
/// [`crate::Error::Mismatch`] where one of them is missing, or those of several models stand there.
pub(super) fn by_number(folder: &Path, stem: &str, extension: &str) -> Result<Option<Vec<String>>> {
    let mut totals: Vec<usize> = Vec::new();
    for entry in fs::read_dir(folder).at(folder, "read")? {
        let name = entry.at(folder, "read")?.file_name();
        totals.extend(name.to_str().and_then(|name| total(name, stem, extension)));
    }
    let Some(&count) = totals.iter().max() else { return Ok(None) };
    let name = |number: usize| format!("{stem}-{number:05}-of-{count:05}.{extension}");
    let finding = |expected: String| Finding::new(folder, "weights").expected(expected);
    if totals.iter().any(|total| *total != count) {
        let expected = format!("shards of one model, or an index that names them: {}", name(1));
        return Err(finding(expected).found("shards of several").mismatch());
    }
    // The names that are there bound how many are looked for.
    match (1..=totals.len() + 1).take_while(|number| *number <= count).find(|n| !folder.join(name(*n)).is_file()) {
        None => Ok(Some((1..=count).map(name).collect())),
        Some(missing) => Err(finding(format!("the shard {}", name(missing)))
            .found("no such file")
            .hint("is the download complete?")
            .mismatch()),
    }
}

/// How many shards there are, by the name of one.
fn total(name: &str, stem: &str, extension: &str) -> Option<usize> {
    let (found, number, count) = numbered(name.strip_suffix(extension)?.strip_suffix('.')?)?;
    let (number, count): (usize, usize) = (number.parse().ok()?, count.parse().ok()?);
    (found == stem && (1..=count).contains(&number)).then_some(count)
}

/// Takes `STEM-00001-of-00003` apart: stem, number, and how many there are.
pub(super) fn numbered(name: &str) -> Option<(&str, &str, &str)> {
    let (rest, of) = name.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(part) && digits(of)).then_some((stem, part, of))
}
