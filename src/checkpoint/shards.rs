//! Finds the shards of a model: by its index, or by the numbers in their names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path};

use crate::error::{Finding, IoContext, Result};
use crate::json::{read_json_object, read_value};

/// Reads the map from tensors to shards in the index. Shards are files in the index's folder or below it.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json_object(path)?;
    let map = json.get("weight_map").cloned().unwrap_or_default();
    let map: BTreeMap<String, String> =
        read_value(map, || Finding::new(path, "weight_map").expected("file names by tensor name"))?;
    for shard in map.values() {
        let mut parts = Path::new(shard).components();
        // Each file has only one valid spelling: no `.`, no doubled or trailing slash, nothing that leads out of the
        // folder.
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

/// Returns the shards that an index lists, each once, in order.
///
/// # Errors
/// [`crate::Error::Mismatch`] if one of them is missing; the error names the index.
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

/// Returns the shards `STEM-00001-of-00003.EXTENSION` of a folder, in order; `None` if it has none.
///
/// # Errors
/// [`crate::Error::Mismatch`] if one of them is missing, or if there are shards of several models.
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
    // The number of existing files limits the search, because a name can claim any number of shards.
    match (1..=totals.len() + 1).take_while(|number| *number <= count).find(|n| !folder.join(name(*n)).is_file()) {
        None => Ok(Some((1..=count).map(name).collect())),
        Some(missing) => Err(finding(format!("the shard {}", name(missing)))
            .found("no such file")
            .hint("is the download complete?")
            .mismatch()),
    }
}

/// Returns the total number of shards, according to the name of one.
fn total(name: &str, stem: &str, extension: &str) -> Option<usize> {
    let (found, number, count) = numbered(name.strip_suffix(extension)?.strip_suffix('.')?)?;
    let (number, count): (usize, usize) = (number.parse().ok()?, count.parse().ok()?);
    (found == stem && (1..=count).contains(&number)).then_some(count)
}

/// Splits `STEM-00001-of-00003` into stem, number and total.
pub(super) fn numbered(name: &str) -> Option<(&str, &str, &str)> {
    let (rest, of) = name.rsplit_once("-of-")?;
    let (stem, part) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    (digits(part) && digits(of)).then_some((stem, part, of))
}
