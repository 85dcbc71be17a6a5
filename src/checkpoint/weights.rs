//! Opens a folder's weight files as one plan: safetensors if there are any, otherwise PyTorch files.
//!
//! Reference: transformers `modeling_utils.py` (`_get_resolved_checkpoint_files`: which files, in which order).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{mistral, shards};
use crate::error::{Finding, Result};
use crate::formats::pytorch::{self, PytorchFile};
use crate::formats::safetensors::{self, SafetensorsFile};
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};
use crate::source::Source;

/// The values in a file that aren't tensors: path and description of each.
type Others = Vec<(String, String)>;
/// One file, its values that aren't tensors, and notes on how it was read.
type Opened = (Arc<dyn Source>, Others, Vec<String>);

/// The weights of a folder.
pub(crate) struct FolderWeights {
    /// Every tensor as it is, in the files' order.
    pub(crate) plan: Plan,
    /// The values in the files that aren't tensors.
    pub(crate) others: Others,
    /// Notes about ignored files, and about shards that were found without an index.
    pub(crate) notes: Vec<String>,
}

/// A format of a model's weights: one file, or shards with or without an index.
struct Form {
    stem: &'static str,
    extension: &'static str,
    /// Empty if there is none.
    index: &'static str,
    /// Opens a file; for a PyTorch file, the requested part of it.
    open: fn(&Path, Option<&str>) -> Result<Opened>,
    /// Whether a file can hold several sets of tensors.
    has_parts: bool,
}

fn open_safetensors(path: &Path, _: Option<&str>) -> Result<Opened> {
    Ok((Arc::new(SafetensorsFile::open(path)?), Others::new(), Vec::new()))
}

fn open_pytorch(path: &Path, key: Option<&str>) -> Result<Opened> {
    let file = PytorchFile::open(path, key)?;
    let (others, notes) = (file.others().to_vec(), file.notes().to_vec());
    Ok((Arc::new(file), others, notes))
}

/// The formats of transformers, in order of preference.
const FORMS: [Form; 2] = [
    Form {
        stem: "model",
        extension: "safetensors",
        index: safetensors::SHARD_INDEX,
        open: open_safetensors,
        has_parts: false,
    },
    Form { stem: "pytorch_model", extension: "bin", index: pytorch::SHARD_INDEX, open: open_pytorch, has_parts: true },
];

/// The variants of Mistral's own format.
const OWN: [Form; 2] = [
    Form {
        stem: "consolidated",
        extension: "safetensors",
        index: "consolidated.safetensors.index.json",
        open: open_safetensors,
        has_parts: false,
    },
    Form {
        stem: "consolidated.00",
        extension: "pth",
        index: "",
        open: |path, key| {
            let second = path.with_file_name("consolidated.01.pth");
            if second.exists() {
                return Err(Finding::new(path, "weights")
                    .expected("one file")
                    .found(format_args!("{} beside it: parts of every tensor, for several devices", second.display()))
                    .hint("use the model's folder in the format of transformers")
                    .unsupported());
            }
            open_pytorch(path, key)
        },
        has_parts: true,
    },
];

fn forms(folder: &Path) -> &'static [Form] {
    if mistral::is_own(folder) { &OWN } else { &FORMS }
}

/// Returns whether a folder has weights, complete or not, in the format in which it would be read.
pub(crate) fn has_weights(folder: &Path) -> bool {
    has_some(folder, forms(folder))
}

/// Returns whether it has some in the format of transformers.
pub(super) fn has_usual(folder: &Path) -> bool {
    has_some(folder, &FORMS)
}

/// Returns whether it has some in Mistral's own format.
pub(super) fn has_own(folder: &Path) -> bool {
    has_some(folder, &OWN)
}

fn has_some(folder: &Path, forms: &[Form]) -> bool {
    forms.iter().any(|form| !matches!(form.files(folder), Ok(None)))
}

/// The files of a form that a folder has.
enum Files {
    /// One file with the whole model.
    Single(String),
    /// Shards that the index at this path names.
    Index(PathBuf),
    /// Shards with numbers in their names.
    Numbered(Vec<String>),
}

impl Form {
    /// Returns the files of this form in `folder`. A single complete file is preferred to an index, which may be left
    /// over from an earlier save. An index is preferred to shards that are found only by their names.
    fn files(&self, folder: &Path) -> Result<Option<Files>> {
        let single = format!("{}.{}", self.stem, self.extension);
        if folder.join(&single).is_file() {
            return Ok(Some(Files::Single(single)));
        }
        if let Some(index) = self.index_in(folder) {
            return Ok(Some(Files::Index(index)));
        }
        Ok(shards::by_number(folder, self.stem, self.extension)?.map(Files::Numbered))
    }

    fn index_in(&self, folder: &Path) -> Option<PathBuf> {
        Some(folder.join(self.index)).filter(|index| !self.index.is_empty() && index.is_file())
    }
}

/// Opens the folder's weights, in the first form that it has. `key` chooses one part of PyTorch files: `state_dict`.
pub(crate) fn open_weights(folder: &Path, key: Option<&str>) -> Result<FolderWeights> {
    let forms = forms(folder);
    for form in forms {
        let mut notes = Vec::new();
        let (files, map) = match form.files(folder)? {
            Some(Files::Single(single)) => {
                let index = form.index_in(folder);
                notes.extend(
                    index.map(|index| format!("{} is ignored: {single} holds the whole model", index.display())),
                );
                (vec![single], None)
            }
            Some(Files::Index(index)) => {
                let map = shards::read_index(&index)?;
                (shards::named_by(&index, &map)?, Some((index, map)))
            }
            Some(Files::Numbered(files)) => {
                notes.push(format!("{}: no {}: the shards are taken by their numbers", folder.display(), form.index));
                (files, None)
            }
            None => continue,
        };
        if key.is_some() && !form.has_parts {
            let finding = Finding::new("", "key").expected("PyTorch files to choose a part of");
            return Err(finding.found(format_args!("{:?}", folder.join(&files[0]))).setting());
        }
        let (mut weights, found) = open_files(folder, form, key, &files, map.as_ref().map(|(_, map)| map))?;
        if let Some((index, map)) = &map {
            agrees_with_index(index, map, &found)?;
        }
        weights.notes.splice(0..0, notes);
        return Ok(weights);
    }
    let mut names: Vec<String> =
        forms.iter().flat_map(|form| [format!("{}.{}", form.stem, form.extension), form.index.to_owned()]).collect();
    names.retain(|name| !name.is_empty());
    let last = names.pop().unwrap_or_default();
    Err(Finding::new(folder, "weights")
        .expected(format_args!("{} or {last}", names.join(", ")))
        .found("none of them")
        .hint("is the download complete?")
        .mismatch())
}

/// Returns every tensor of `files`, and the file that contains it. A tensor may be in several shards if it is the same
/// in all of them. It is then taken from the first, and keeps its place in the reference's order.
fn open_files(
    folder: &Path,
    form: &Form,
    key: Option<&str>,
    files: &[String],
    index: Option<&BTreeMap<String, String>>,
) -> Result<(FolderWeights, HashMap<String, String>)> {
    let mut plan = Plan::default();
    let mut others = Others::new();
    let mut notes = Vec::new();
    let mut found: HashMap<String, (usize, String)> = HashMap::new();
    for name in files {
        let (source, beside, read) = (form.open)(&folder.join(name), key)?;
        others.extend(beside);
        notes.extend(read.into_iter().map(|note| format!("{name}: {note}")));
        for tensor in TensorRef::all(&source) {
            let crate::source::TensorInfo { name: tensor_name, dtype, shape } = tensor.info().clone();
            let is_second_name = tensor.is_second_name();
            let tensor = PlannedTensor { name: tensor_name, dtype, shape, expr: Expr::Take(tensor) };
            // An index of safetensors files doesn't have the names that stand in their metadata.
            if is_second_name && index.is_some_and(|map| !map.contains_key(&tensor.name)) {
                plan.tensors.push(tensor);
                continue;
            }
            match found.entry(tensor.name.clone()) {
                Entry::Vacant(entry) => {
                    entry.insert((plan.tensors.len(), name.clone()));
                    plan.tensors.push(tensor);
                }
                Entry::Occupied(mut entry) => {
                    let (place, other) = entry.get().clone();
                    same_in_both(folder, (&plan.tensors[place], &other), (&tensor, name))?;
                    if index.is_some_and(|map| map.get(&tensor.name) == Some(name)) {
                        entry.get_mut().1.clone_from(name);
                    }
                }
            }
        }
    }
    let files = found.into_iter().map(|(name, (_, file))| (name, file)).collect();
    Ok((FolderWeights { plan, others, notes }, files))
}

/// Checks that two shards have the same values for a tensor.
fn same_in_both(folder: &Path, ours: (&PlannedTensor, &str), theirs: (&PlannedTensor, &str)) -> Result<()> {
    let ((one, file), (other, other_file)) = (ours, theirs);
    if one.dtype == other.dtype && one.shape == other.shape && same_bytes(one, other) {
        return Ok(());
    }
    Err(Finding::new(folder, format!("tensor {:?}", one.name))
        .expected("each name in one shard, or the same tensor in all")
        .found(format_args!("it in {file} and {other_file}, and they differ"))
        .format())
}

/// Returns whether two stored tensors of one type and shape have the same bytes. This also compares integers and NaN.
fn same_bytes(one: &PlannedTensor, other: &PlannedTensor) -> bool {
    const ROWS: usize = 1024;
    let (ours, theirs) = (one.expr.sources(), other.expr.sources());
    let total = if one.elems() == 0 { 0 } else { one.rows() };
    let parts = (0..total).step_by(ROWS).map(|start| start..(start + ROWS).min(total));
    ours.iter().zip(theirs).all(|(ours, theirs)| parts.clone().all(|rows| ours.rows(rows.clone()) == theirs.rows(rows)))
}

/// Checks that every tensor of the index is in its shard, and that the shards have no other tensors.
fn agrees_with_index(index: &Path, map: &BTreeMap<String, String>, found: &HashMap<String, String>) -> Result<()> {
    for (tensor, shard) in map {
        if found.get(tensor) != Some(shard) {
            return Err(Finding::new(index, format!("tensor {tensor:?}"))
                .expected(format_args!("it in {shard}"))
                .found(found.get(tensor).map_or("it nowhere", String::as_str))
                .hint("a shard is missing or from another model")
                .format());
        }
    }
    if let Some((tensor, shard)) = found.iter().find(|(tensor, _)| !map.contains_key(*tensor)) {
        return Err(Finding::new(index, format!("tensor {tensor:?}"))
            .expected(format_args!("every tensor of {shard} in the index"))
            .found("this one missing")
            .format());
    }
    Ok(())
}
