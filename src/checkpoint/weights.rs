//! A folder's weight files as one plan: safetensors where there are some, else PyTorch files.
//!
//! Reference: transformers `modeling_utils.py` (`_get_resolved_checkpoint_files`: which files, in which order).

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::shards;
use crate::error::{Finding, Result};
use crate::formats::pytorch::{self, PytorchFile};
use crate::formats::safetensors::{self, SafetensorsFile};
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};
use crate::source::Source;

/// The values of a file that aren't tensors: path and description of each.
type Others = Vec<(String, String)>;
/// One file, and what it holds beside tensors.
type Opened = (Arc<dyn Source>, Others);

/// The weights of a folder.
pub(crate) struct FolderWeights {
    /// Every tensor as it is, in the files' order.
    pub(crate) plan: Plan,
    /// What the files hold beside tensors.
    pub(crate) others: Others,
    /// Which files were passed over, and what was made of their names.
    pub(crate) notes: Vec<String>,
}

/// A form that weights come in: one file, or shards with or without an index.
struct Form {
    stem: &'static str,
    extension: &'static str,
    index: &'static str,
    /// Opens a file; of a PyTorch file the part that is asked for.
    open: fn(&Path, Option<&str>) -> Result<Opened>,
    /// Whether a file can hold several sets of tensors.
    has_parts: bool,
}

/// In the order of preference.
const FORMS: [Form; 2] = [
    Form {
        stem: "model",
        extension: "safetensors",
        index: safetensors::SHARD_INDEX,
        open: |path, _| Ok((Arc::new(SafetensorsFile::open(path)?), Others::new())),
        has_parts: false,
    },
    Form {
        stem: "pytorch_model",
        extension: "bin",
        index: pytorch::SHARD_INDEX,
        open: |path, key| {
            let file = PytorchFile::open(path, key)?;
            let others = file.others().to_vec();
            Ok((Arc::new(file), others))
        },
        has_parts: true,
    },
];

/// Whether a folder has a model's weights, whole or in part.
pub(crate) fn has_weights(folder: &Path) -> bool {
    FORMS.iter().any(|form| {
        let named = [format!("{}.{}", form.stem, form.extension), form.index.to_owned()];
        named.iter().any(|name| folder.join(name).is_file())
            || !matches!(shards::by_number(folder, form.stem, form.extension), Ok(None))
    })
}

/// The folder's weights. One whole file comes before an index, which may be left over from an earlier save; an index
/// before shards that only their names tell. `key` chooses one part of PyTorch files: `state_dict`.
pub(crate) fn open_weights(folder: &Path, key: Option<&str>) -> Result<FolderWeights> {
    for form in &FORMS {
        let (single, index) = (format!("{}.{}", form.stem, form.extension), folder.join(form.index));
        let mut notes = Vec::new();
        let (files, map) = if folder.join(&single).is_file() {
            if index.is_file() {
                notes.push(format!("{} is passed over: {single} holds the whole model", index.display()));
            }
            (vec![single], None)
        } else if index.is_file() {
            let map = shards::read_index(&index)?;
            (shards::named_by(&index, &map)?, Some((index, map)))
        } else if let Some(files) = shards::by_number(folder, form.stem, form.extension)? {
            notes.push(format!("{}: no {}: the shards are taken by their numbers", folder.display(), form.index));
            (files, None)
        } else {
            continue;
        };
        if key.is_some() && !form.has_parts {
            let finding = Finding::new("", "key").expected("PyTorch files to choose a part of");
            return Err(finding.found(format_args!("{:?}", folder.join(&files[0]))).setting());
        }
        let (plan, others, found) = open_files(folder, form, key, &files, map.as_ref().map(|(_, map)| map))?;
        if let Some((index, map)) = &map {
            agrees_with_index(index, map, &found)?;
        }
        return Ok(FolderWeights { plan, others, notes });
    }
    Err(Finding::new(folder, "weights")
        .expected(format_args!("model.safetensors, {}, pytorch_model.bin or {}", FORMS[0].index, FORMS[1].index))
        .found("none of them")
        .hint("is the download complete?")
        .mismatch())
}

/// Every tensor of `files`, and the file that holds each. A tensor may stand in several shards if it is the same in
/// all; it is taken from the first, where the reference puts it.
fn open_files(
    folder: &Path,
    form: &Form,
    key: Option<&str>,
    files: &[String],
    index: Option<&BTreeMap<String, String>>,
) -> Result<(Plan, Others, HashMap<String, String>)> {
    let mut plan = Plan::default();
    let mut others = Others::new();
    let mut found: HashMap<String, (usize, String)> = HashMap::new();
    for name in files {
        let (source, beside) = (form.open)(&folder.join(name), key)?;
        others.extend(beside);
        for tensor in TensorRef::all(&source) {
            let crate::source::TensorInfo { name: tensor_name, dtype, shape } = tensor.info().clone();
            let tensor = PlannedTensor { name: tensor_name, dtype, shape, expr: Expr::Take(tensor) };
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
    Ok((plan, others, found.into_iter().map(|(name, (_, file))| (name, file)).collect()))
}

/// That two shards hold the same values of a tensor.
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

/// Whether two stored tensors of one type and shape have the same bytes: integers and NaN count, too.
fn same_bytes(one: &PlannedTensor, other: &PlannedTensor) -> bool {
    const ROWS: usize = 1024;
    let (ours, theirs) = (one.expr.sources(), other.expr.sources());
    let total = if one.elems() == 0 { 0 } else { one.rows() };
    let parts = (0..total).step_by(ROWS).map(|start| start..(start + ROWS).min(total));
    ours.iter().zip(theirs).all(|(ours, theirs)| parts.clone().all(|rows| ours.rows(rows.clone()) == theirs.rows(rows)))
}

/// Every tensor of the index in its shard, and no other tensor in the shards.
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
