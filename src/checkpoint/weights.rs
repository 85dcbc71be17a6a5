//! A folder's weight files as one plan: safetensors where there are some, else PyTorch files.
//!
//! Reference: transformers `modeling_utils.py` (which files, in which order) and `utils/hub.py`
//! (`get_checkpoint_shard_files`).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Finding, Result};
use crate::formats::pytorch::{self, PytorchFile};
use crate::formats::safetensors::{self, SafetensorsFile};
use crate::json::{plain, read_json_object};

use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};
use crate::source::Source;

/// The values of a file that aren't tensors: path and description of each.
type Others = Vec<(String, String)>;
/// One file, and what it holds beside tensors.
type Opened = (Arc<dyn Source>, Others);

/// A form that weights come in: one file, or shards and an index.
struct Form {
    index: &'static str,
    single: &'static str,
    open: fn(&Path) -> Result<Opened>,
}

/// In the order of preference.
const FORMS: [Form; 2] = [
    Form {
        index: safetensors::SHARD_INDEX,
        single: "model.safetensors",
        open: |path| Ok((Arc::new(SafetensorsFile::open(path)?), Others::new())),
    },
    Form {
        index: pytorch::SHARD_INDEX,
        single: "pytorch_model.bin",
        open: |path| {
            let file = PytorchFile::open(path, None)?;
            let others = file.others().to_vec();
            Ok((Arc::new(file), others))
        },
    },
];

/// The identity plan over the folder's weight files, and what they hold beside tensors.
pub(crate) fn open_weights(folder: &Path) -> Result<(Plan, Others)> {
    for form in &FORMS {
        let index = folder.join(form.index);
        if index.is_file() {
            let map = read_index(&index)?;
            let mut names: Vec<&str> = map.values().map(String::as_str).collect();
            names.sort_unstable();
            names.dedup();
            let (plan, others, found) = open_files(folder, form, &names)?;
            agrees_with_index(&index, &map, &found)?;
            return Ok((plan, others));
        }
        if folder.join(form.single).is_file() {
            let (plan, others, _) = open_files(folder, form, &[form.single])?;
            return Ok((plan, others));
        }
    }
    Err(Finding::new(folder, "weights")
        .expected(format_args!("model.safetensors, {}, pytorch_model.bin or {}", FORMS[0].index, FORMS[1].index))
        .found("none of them")
        .hint("is the download complete?")
        .mismatch())
}

/// Every tensor of `files`, and the file that holds each.
fn open_files(folder: &Path, form: &Form, files: &[&str]) -> Result<(Plan, Others, HashMap<String, String>)> {
    let mut plan = Plan::default();
    let mut others = Others::new();
    let mut found: HashMap<String, String> = HashMap::new();
    for name in files {
        let (source, beside) = (form.open)(&folder.join(name))?;
        others.extend(beside);
        for tensor in TensorRef::all(&source) {
            let crate::source::TensorInfo { name: tensor_name, dtype, shape } = tensor.info().clone();
            if let Some(other) = found.insert(tensor_name.clone(), (*name).to_owned()) {
                return Err(Finding::new(folder, format!("tensor {tensor_name:?}"))
                    .expected("each name in one shard")
                    .found(format_args!("it in {other} and {name}"))
                    .format());
            }
            plan.tensors.push(PlannedTensor { name: tensor_name, dtype, shape, expr: Expr::Take(tensor) });
        }
    }
    Ok((plan, others, found))
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

/// The index's tensor -> shard map; shard names must be plain file names.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let json = read_json_object(path)?;
    let map = json.get("weight_map").cloned().unwrap_or_default();
    let map: BTreeMap<String, String> = serde_json::from_value(map).map_err(|e| {
        Finding::new(path, "weight_map").expected("file names by tensor name").found(plain(&e)).format()
    })?;
    for shard in map.values() {
        if Path::new(shard).file_name().is_none_or(|name| name.to_str() != Some(shard)) {
            return Err(Finding::new(path, "weight_map")
                .expected("names of files in this folder")
                .found(format_args!("{shard:?}"))
                .format());
        }
    }
    Ok(map)
}
