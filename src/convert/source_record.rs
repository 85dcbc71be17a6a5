//! The record in a GGUF with the source's types: keys beside those of the reference, which keep what the conversion
//! would otherwise lose.
//!
//! The reference can't write such files, and llama.cpp ignores keys that it doesn't know. See docs/formats/gguf.md.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::arch::lookup::{Lookup, Match, find};
use crate::arch::params::Params;
use crate::arch::{Config, Transform};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata, Value};
use crate::json::plain;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::quant;
use crate::source::{row_len, show_shape};
use crate::tokenizer;

/// The key of the record, which is JSON text.
const KEY: &str = "atombank.source";

/// The prefix of keys, followed by a tensor's name, that hold bytes which GGUF's form of the tensor doesn't determine.
const ROWS: &str = "atombank.source.rows.";

/// The version of the record that is written. Some files have no version; they are read, too.
const VERSION: u32 = 1;

/// Facts that the architecture's keys don't contain.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Record {
    /// [`VERSION`], or 0 where the file has none.
    #[serde(default)]
    version: u32,
    /// The content of config.json.
    pub(super) config: Config,
    /// The type of all tensors that aren't in `types`.
    main: String,
    /// Types of single tensors, by their names in the checkpoint.
    types: BTreeMap<String, String>,
    /// Names in the checkpoint that differ from the class's names, by the class's name.
    names: BTreeMap<String, String>,
}

/// Writes the record of `weights`, and the rows that can't be computed from the GGUF.
pub(super) fn write(metadata: &mut Metadata, params: &Params, folder: &Checkpoint, weights: &Plan) -> Result<()> {
    let config = &folder.config_json;
    let mut record = Record {
        version: VERSION,
        config: config.clone(),
        main: weights.main_dtype().name().into(),
        ..Record::default()
    };
    let mut rows = Vec::new();
    for tensor in &weights.tensors {
        if tensor.dtype.name() != record.main {
            record.types.insert(tensor.name.clone(), tensor.dtype.name().to_owned());
        }
        let Lookup::Row(known) = find(params.family, &tensor.name) else { continue };
        let name = known.hf_name();
        if name != tensor.name {
            record.names.insert(name, tensor.name.clone());
        }
        if let Some(lost) = lost_rows(folder, params, tensor, &known)? {
            rows.push((format!("{ROWS}{}", tensor.name), lost));
        }
    }
    let text = serde_json::to_string(&record).unwrap_or_default();
    metadata.insert(KEY, text);
    for (key, bytes) in rows {
        metadata.insert(key, Value::Array(Array::U8(bytes)));
    }
    Ok(())
}

/// The rows that GGUF's form of the tensor loses, with their bytes in the checkpoint.
fn lost_rows(folder: &Checkpoint, params: &Params, tensor: &PlannedTensor, known: &Match) -> Result<Option<Vec<u8>>> {
    let bytes = |rows: std::ops::Range<usize>| -> Result<Option<Vec<u8>>> {
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        tensor.encode_rows(rows, &mut scratch, &mut out)?;
        Ok(Some(out))
    };
    match known.tensor.transform {
        Transform::PlusOne => {
            let original = tensor.read()?;
            let there = |v: &f32| match tensor.dtype {
                DType::F16 => half::f16::from_f32(v + 1.0).to_f32(),
                _ => v + 1.0,
            };
            let returns = original.iter().all(|v| (there(v) - 1.0).to_bits() == v.to_bits());
            if returns { Ok(None) } else { bytes(0..tensor.rows()) }
        }
        Transform::TrimVocab => {
            let kept = tokenizer::gemma3_rows(folder)?.min(tensor.rows());
            if kept == tensor.rows() { Ok(None) } else { bytes(kept..tensor.rows()) }
        }
        Transform::FromPosition => bytes(0..params.padding_positions()?.min(tensor.rows())),
        _ => Ok(None),
    }
}

/// The record of a file, if it has one.
///
/// # Errors
/// [`crate::Error::Format`] for a record that can't be read. [`crate::Error::Unsupported`] for one of a later version:
/// without it, the restored checkpoint would differ.
pub(super) fn read(metadata: &Metadata) -> Result<Option<Record>> {
    let Some(value) = metadata.get(KEY) else { return Ok(None) };
    let finding = || metadata.finding(KEY).expected("the record of a checkpoint as JSON");
    let Some(text) = value.as_text() else { return Err(finding().found(value).format()) };
    // Check the version first, because another version may have other fields.
    let json: serde_json::Value = serde_json::from_str(text).map_err(|e| finding().found(plain(&e)).format())?;
    if let Some(version) = json.get("version").filter(|version| version.as_u64() != Some(u64::from(VERSION))) {
        let finding = metadata.finding(KEY).expected(format_args!("version {VERSION} of the record"));
        return Err(finding.found(version).hint("a newer atombank may have written the file").unsupported());
    }
    let record: Record = serde_json::from_value(json).map_err(|e| finding().found(plain(&e)).format())?;
    let is_unknown = |name: &&String| DType::from_safetensors(name).is_none();
    if let Some(name) = record.types.values().chain([&record.main]).find(is_unknown) {
        return Err(metadata.finding(KEY).expected("types of safetensors").found(format!("{name:?}")).format());
    }
    Ok(Some(record))
}

impl Record {
    /// The checkpoint's name of the tensor that the class calls `name`.
    pub(super) fn name<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }

    /// The type of the tensor that the checkpoint calls `name`.
    pub(super) fn dtype(&self, name: &str) -> Option<DType> {
        DType::from_safetensors(self.types.get(name).unwrap_or(&self.main))
    }

    /// Adds the lost rows to `expr`, the tensor as far as GGUF has it.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for rows that can't be part of the tensor, naming their key.
    pub(super) fn completed(
        &self,
        metadata: &Metadata,
        name: &str,
        transform: Transform,
        expr: Expr,
        shape: &[usize],
    ) -> Result<Expr> {
        let key = format!("{ROWS}{name}");
        let Some(value) = metadata.get(&key) else { return Ok(expr) };
        let wrong = |found: String| {
            let expected = format!("rows of the tensor, {}, in its own type", show_shape(shape));
            metadata.finding(&key).expected(expected).found(found).format()
        };
        let Value::Array(Array::U8(bytes)) = value else { return Err(wrong("another kind of value".to_owned())) };
        let Some(dtype) = self.dtype(name).filter(|dtype| quant::can_decode(*dtype) && dtype.is_plain()) else {
            return Err(wrong("a type that can't be read".to_owned()));
        };
        let elems = bytes.len() / dtype.block_bytes();
        let width = row_len(shape).max(1);
        let whole: usize = shape.iter().product();
        let rows = elems / width;
        let is_whole = elems * dtype.block_bytes() == bytes.len() && elems.is_multiple_of(width);
        let fits = match transform {
            Transform::PlusOne => elems == whole,
            // There may be more rows after the vocabulary than in it.
            Transform::TrimVocab => shape.len() == 2,
            Transform::FromPosition => shape.len() == 2 && rows <= shape[0],
            _ => false,
        };
        if !is_whole || !fits {
            return Err(wrong(format!("{} bytes", bytes.len())));
        }
        let mut values = vec![0.0; elems];
        quant::decode(dtype, bytes, &mut values);
        let values: Arc<[f32]> = values.into();
        Ok(match transform {
            Transform::PlusOne => Expr::Values { shape: shape.to_vec(), values },
            Transform::TrimVocab => {
                let lost = Expr::Values { shape: vec![rows, width], values };
                let rows = shape[0] + rows;
                Expr::concat(vec![expr, lost], vec![rows, width])
            }
            _ => {
                let rest = Expr::slice(expr, rows, shape[0] - rows, vec![shape[0] - rows, width]);
                Expr::concat(vec![Expr::Values { shape: vec![rows, width], values }, rest], shape.to_vec())
            }
        })
    }
}
