//! Converts any checkpoint to GGUF and back without loss: names, types, shapes, and the other
//! files.
//!
//! This is for models that no architecture of llama.cpp describes. The file keeps the tensors'
//! names, and stores under `atombank.generic.*` whatever has no place in GGUF; see
//! docs/formats/adapters-gguf.md. Reference for GGUF's own limits: ggml `src/gguf.cpp`.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::{MAX_DIMS, MAX_NAME_BYTES, Metadata};
use crate::output::{Output, Sidecars, json_text, left_out_keys, parsed};
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::{Source, TensorInfo, show_shape};

/// The value of `general.architecture` in these files.
pub const ARCHITECTURE: &str = "generic";

/// The version of the keys below.
const VERSION: u32 = 1;
const VERSION_KEY: &str = "atombank.generic.version";
const TENSORS_KEY: &str = "atombank.generic.tensors";
const PREFIX: &str = "atombank.generic.";

/// The original form of a tensor that GGUF can't hold unchanged.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Its name in the GGUF file; `None` for a tensor without elements, of which the file has only
    /// this record.
    stored: Option<String>,
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

/// The metadata and tensors of a GGUF file that holds `weights` and the other files of the
/// checkpoint. `model` is the folder or file from which they come, for messages and for
/// `general.name`.
///
/// Tensors keep their types. With `outtype`, floating-point tensors (F32, F16, BF16, F64) get that
/// type, and config.json's dtype is changed accordingly.
///
/// # Errors
/// [`crate::Error::Mismatch`] for an `outtype` other than F32, F16 and BF16, and for a repeated
/// name.
pub fn to_gguf(model: &Path, weights: &Plan, beside: &Sidecars, outtype: Option<DType>) -> Result<Output> {
    if let Some(dtype) = outtype.filter(|dtype| dtype.torch_name().is_none()) {
        return Err(Finding::new(model, "type").expected("f32, f16 or bf16").found(dtype).mismatch());
    }
    let mut taken: HashSet<&str> = HashSet::new();
    for tensor in &weights.tensors {
        if !taken.insert(&tensor.name) {
            let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
            return Err(finding.expected("each name once").found("it twice").mismatch());
        }
    }
    let mut records = Vec::new();
    let mut plan = Plan::default();
    let mut number = 0usize;
    for tensor in &weights.tensors {
        let dtype = outtype.filter(|_| tensor.dtype.is_float()).unwrap_or(tensor.dtype);
        if tensor.shape.contains(&0) {
            records.push(record(None, tensor, dtype));
            continue;
        }
        let name = match gguf_can_name(&tensor.name) {
            true => tensor.name.clone(),
            // A short name that no other tensor has: try numbers until one is free.
            false => loop {
                let short = format!("atombank.{number}");
                number += 1;
                if !taken.contains(short.as_str()) {
                    break short;
                }
            },
        };
        let stored = stored_dtype(dtype);
        let shape = stored_shape(&tensor.shape);
        if name != tensor.name || stored != dtype || shape != tensor.shape {
            records.push(record(Some(name.clone()), tensor, dtype));
        }
        let expr = viewed(tensor.expr.clone(), (tensor.dtype, &tensor.shape), (stored, &shape), stored == dtype);
        plan.tensors.push(PlannedTensor { name, dtype: stored, shape, expr });
    }

    let mut metadata = Metadata::new(model);
    metadata.insert("general.architecture", ARCHITECTURE);
    metadata.insert("general.type", "model");
    if let Some(name) = model.file_name().and_then(|name| name.to_str()) {
        metadata.insert("general.name", name);
    }
    metadata.insert(VERSION_KEY, VERSION);
    if !records.is_empty() {
        metadata.insert(TENSORS_KEY, json_text(&records));
    }
    match outtype {
        None => beside.put(&mut metadata, PREFIX),
        Some(dtype) => retyped(beside, dtype).put(&mut metadata, PREFIX),
    }
    Ok(Output::gguf(metadata, plan, Vec::new()))
}

/// Restores the checkpoint that [`to_gguf`] stored in a GGUF file, as a folder. The notes name what
/// the file contains that has no place in the checkpoint. `metadata` and `tensors` are the file's,
/// the tensors unchanged (see [`Plan::taking`]).
///
/// # Errors
/// [`crate::Error::Format`] where keys contradict each other or the tensors, naming the key or the
/// tensor; [`crate::Error::Unsupported`] for another architecture or version.
pub fn from_gguf(metadata: &Metadata, tensors: &Plan) -> Result<Output> {
    let architecture = metadata.text("general.architecture")?;
    if architecture != ARCHITECTURE {
        let finding = metadata.finding("general.architecture");
        return Err(finding.expected(ARCHITECTURE).found(format!("{architecture:?}")).unsupported());
    }
    let version = metadata.u32(VERSION_KEY)?;
    if version != VERSION {
        return Err(metadata.finding(VERSION_KEY).expected(VERSION).found(version).unsupported());
    }
    let records: Vec<Record> = parsed(metadata, TENSORS_KEY)?.unwrap_or_default();
    let beside = Sidecars::take(metadata, PREFIX)?;

    let mut by_stored: HashMap<&str, &Record> = HashMap::new();
    let mut empty = Vec::new();
    for record in &records {
        match &record.stored {
            None => empty.push(empty_tensor(metadata, record)?),
            Some(stored) => {
                if by_stored.insert(stored, record).is_some() {
                    return Err(contradiction(metadata, record)
                        .expected("each tensor once")
                        .found("it twice")
                        .format());
                }
            }
        }
    }
    let mut plan = Plan::default();
    for tensor in &tensors.tensors {
        plan.tensors.push(match by_stored.remove(tensor.name.as_str()) {
            None => tensor.clone(),
            Some(record) => restored(metadata, record, tensor)?,
        });
    }
    if let Some(record) = records.iter().find(|r| r.stored.as_deref().is_some_and(|s| by_stored.contains_key(s))) {
        let expected = format!("tensor {:?} in the file", record.stored.as_deref().unwrap_or_default());
        return Err(contradiction(metadata, record).expected(expected).found("none of that name").format());
    }
    let empty: Arc<dyn Source> = Arc::new(Empty { path: metadata.file().to_owned(), tensors: empty });
    plan.tensors.extend(Plan::taking(&empty).tensors);
    let aliased = beside.aliases.first().map(|alias| alias.name.clone()).unwrap_or_default();
    let plan = plan.with_every_name(&beside.aliases).ok_or_else(|| {
        metadata
            .finding(&format!("{PREFIX}aliases"))
            .expected("other names of tensors in the file")
            .found(format_args!("{aliased:?} and others, of which one is none"))
            .format()
    })?;
    let mut names = HashSet::new();
    if let Some(tensor) = plan.tensors.iter().find(|tensor| !names.insert(tensor.name.as_str())) {
        let finding = Finding::new(metadata.file(), format!("tensor {:?}", tensor.name));
        return Err(finding.expected("each name once").found("it twice").format());
    }
    let notes = notes(metadata)?;
    let sidecars = Sidecars { aliases: Vec::new(), ..beside };
    Ok(Output { sidecars, notes, ..Output::folder("model", plan) })
}

/// Notes on keys that neither belong to the checkpoint nor are expected in every file.
fn notes(metadata: &Metadata) -> Result<Vec<String>> {
    let known = |key: &str| [VERSION_KEY, TENSORS_KEY].contains(&key) || Sidecars::owns(key, PREFIX);
    if let Some((key, _)) = metadata.iter().find(|(key, _)| key.starts_with(PREFIX) && !known(key)) {
        return Err(metadata.finding(key).expected("a key this version knows").found("another").unsupported());
    }
    Ok(left_out_keys(metadata, |key| key.starts_with(PREFIX)))
}

/// A tensor without elements, from its record.
fn empty_tensor(metadata: &Metadata, record: &Record) -> Result<TensorInfo> {
    let elems = record.shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    if elems != Some(0) {
        let found = show_shape(&record.shape);
        return Err(contradiction(metadata, record).expected("a shape without elements").found(found).format());
    }
    Ok(TensorInfo { name: record.name.clone(), dtype: true_dtype(metadata, record)?, shape: record.shape.clone() })
}

/// Restores the original form of `tensor` from its record.
fn restored(metadata: &Metadata, record: &Record, tensor: &PlannedTensor) -> Result<PlannedTensor> {
    let dtype = true_dtype(metadata, record)?;
    if stored_dtype(dtype) != tensor.dtype || stored_shape(&record.shape) != tensor.shape {
        let (stored, shape) = (stored_dtype(dtype), stored_shape(&record.shape));
        return Err(contradiction(metadata, record)
            .expected(format_args!("{stored} {} for {dtype} {}", show_shape(&shape), show_shape(&record.shape)))
            .found(format_args!("{} {}", tensor.dtype, show_shape(&tensor.shape)))
            .format());
    }
    let expr = viewed(tensor.expr.clone(), (tensor.dtype, &tensor.shape), (dtype, &record.shape), false);
    Ok(PlannedTensor { name: record.name.clone(), dtype, shape: record.shape.clone(), expr })
}

fn true_dtype(metadata: &Metadata, record: &Record) -> Result<DType> {
    DType::from_safetensors(&record.dtype).ok_or_else(|| {
        let found = format!("{:?}", record.dtype);
        contradiction(metadata, record).expected("a type of safetensors").found(found).format()
    })
}

fn contradiction(metadata: &Metadata, record: &Record) -> Finding {
    Finding::new(metadata.file(), format!("key {TENSORS_KEY:?}, tensor {:?}", record.name))
}

fn record(stored: Option<String>, tensor: &PlannedTensor, dtype: DType) -> Record {
    Record { stored, name: tensor.name.clone(), dtype: dtype.name().to_owned(), shape: tensor.shape.clone() }
}

/// Gives `expr` another shape and type. The bytes are reinterpreted, unless `cast` asks for the
/// values to be converted.
fn viewed(
    expr: Expr,
    (from_dtype, from_shape): (DType, &[usize]),
    (dtype, shape): (DType, &[usize]),
    cast: bool,
) -> Expr {
    let expr = match cast || from_dtype == dtype {
        true => expr,
        false => Expr::Bits { of: Box::new(expr), dtype },
    };
    match from_shape == shape {
        true => expr,
        false => Expr::Reshape { of: Box::new(expr), shape: shape.to_vec() },
    }
}

/// The type under which GGUF stores `dtype`: itself, or the integer type of the same size.
fn stored_dtype(dtype: DType) -> DType {
    match (dtype.ggml_id(), dtype.block_bytes()) {
        (Some(_), _) => dtype,
        (None, 1) => DType::I8,
        (None, 2) => DType::I16,
        (None, 4) => DType::I32,
        (None, _) => DType::I64,
    }
}

/// The shape in GGUF, which has one to four dimensions: surplus leading dimensions are merged.
fn stored_shape(shape: &[usize]) -> Vec<usize> {
    match shape.len() {
        0 => vec![1],
        1..=MAX_DIMS => shape.to_vec(),
        dims => {
            let (leading, kept) = shape.split_at(dims - (MAX_DIMS - 1));
            // Readers refuse tensors whose product of dimensions overflows, so saturation changes
            // nothing.
            let leading = leading.iter().fold(1usize, |product, &dim| product.saturating_mul(dim));
            std::iter::once(leading).chain(kept.iter().copied()).collect()
        }
    }
}

/// Whether GGUF can store the name: ggml uses C strings of at most 63 bytes.
fn gguf_can_name(name: &str) -> bool {
    (1..=MAX_NAME_BYTES).contains(&name.len()) && !name.contains('\0')
}

/// The sidecars, with `dtype` in config.json.
fn retyped(beside: &Sidecars, dtype: DType) -> Sidecars {
    let mut beside = beside.clone();
    let config =
        beside.files.get("config.json").and_then(|text| serde_json::from_slice::<Map<String, Json>>(text).ok());
    if let (Some(mut config), Some(name)) = (config, dtype.torch_name()) {
        for key in ["dtype", "torch_dtype"] {
            if let Some(value) = config.get_mut(key) {
                *value = name.into();
            }
        }
        beside.files.insert("config.json".to_owned(), (json_text(&config) + "\n").into_bytes());
    }
    beside
}

/// A source of tensors without elements. GGUF doesn't store them, so they have no file.
struct Empty {
    path: PathBuf,
    tensors: Vec<TensorInfo>,
}

impl Source for Empty {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn rows(&self, _: usize, _: Range<usize>) -> Cow<'_, [u8]> {
        Cow::Borrowed(&[])
    }
}

#[cfg(test)]
mod tests;
