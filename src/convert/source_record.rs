//! The record in a GGUF with the source's types: keys beside those of the reference, which keep what the conversion
//! would otherwise lose.
//!
//! The reference can't write such files, and llama.cpp ignores keys that it doesn't know. See docs/formats/gguf.md.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::arch::lookup::{matches, own_spelling};
use crate::arch::params::Params;
use crate::arch::steps::{Step, computed_in, steps};
use crate::arch::{Config, Row};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata, Value};
use crate::json::read_value;
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
    /// For rows of the family with several forms, the form that the checkpoint has, if it isn't the first. By the
    /// row's name in GGUF.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    forms: BTreeMap<String, usize>,
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
    let main = params.size("main")?;
    let mut rows = Vec::new();
    for tensor in &weights.tensors {
        if tensor.dtype.name() != record.main {
            record.types.insert(tensor.name.clone(), tensor.dtype.name().to_owned());
        }
        let uses = matches(params.family, &tensor.name, main);
        let Some(known) = uses.first() else { continue };
        let name = own_spelling(params.family, &known.name, main);
        if name != tensor.name {
            record.names.insert(name, tensor.name.clone());
        }
        for known in uses.iter().filter(|known| known.form > 0) {
            record.forms.insert(known.row.gguf.text().to_owned(), known.form);
        }
        if let Some(lost) = lost_rows(folder, params, tensor, &uses)? {
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

/// The bytes in the checkpoint of what GGUF's form of the tensor loses: all of it if values don't come back, else the
/// rows that no GGUF tensor takes.
fn lost_rows(
    folder: &Checkpoint,
    params: &Params,
    tensor: &PlannedTensor,
    uses: &[crate::arch::lookup::Match],
) -> Result<Option<Vec<u8>>> {
    let bytes = |rows: std::ops::Range<usize>| -> Result<Vec<u8>> {
        let (mut scratch, mut out) = (Vec::new(), Vec::new());
        tensor.encode_rows(rows, &mut scratch, &mut out)?;
        Ok(out)
    };
    let mut kept = vec![false; tensor.rows()];
    let mut is_cut = false;
    for known in uses {
        let part = known.part();
        let form = &known.row.forms[known.form];
        let operations = part.operations.iter().chain(&form.operations).cloned().collect::<Vec<_>>();
        let vocab_rows = || tokenizer::gemma3_rows(folder);
        // A stack's operations are of the whole stack, and take nothing away.
        if !known.is_whole() {
            return Ok(None);
        }
        let Ok(steps) = steps(params, &operations, &tensor.shape, known.layer, &vocab_rows)? else { return Ok(None) };
        let changing: Vec<&Step> = steps.iter().filter(|step| !step.keeps_values()).collect();
        if !changing.is_empty() && !comes_back(tensor, &changing)? {
            return Ok(Some(bytes(0..tensor.rows())?));
        }
        match steps.first() {
            Some(Step::Trim { kept: rows, .. }) => {
                is_cut = true;
                kept[..*rows].fill(true);
            }
            Some(Step::Index { dim: 0, index, .. }) if tensor.shape.len() == 2 => {
                is_cut = true;
                index.iter().for_each(|row| kept[*row] = true);
            }
            _ => return Ok(None),
        }
    }
    if !is_cut || kept.iter().all(|kept| *kept) {
        return Ok(None);
    }
    let mut lost = Vec::new();
    for row in (0..kept.len()).filter(|row| !kept[*row]) {
        lost.extend(bytes(row..row + 1)?);
    }
    Ok(Some(lost))
}

/// Whether changed values are the same after they have been turned back.
fn comes_back(tensor: &PlannedTensor, changing: &[&Step]) -> Result<bool> {
    let mut expr = tensor.expr.clone();
    for step in changing {
        expr = step.apply(expr, computed_in(tensor.dtype, false))?;
    }
    for step in changing.iter().rev() {
        let Some(back) = step.inverse() else { return Ok(false) };
        expr = back.apply(expr, DType::F32)?;
    }
    let back = PlannedTensor { dtype: tensor.dtype, expr, ..tensor.clone() }.read()?;
    Ok(tensor.read()?.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()))
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
    let json: serde_json::Value = crate::json::read(text.as_bytes(), finding)?;
    if let Some(version) = json.get("version").filter(|version| version.as_u64() != Some(u64::from(VERSION))) {
        let finding = metadata.finding(KEY).expected(format_args!("version {VERSION} of the record"));
        return Err(finding.found(version).hint("a newer atombank may have written the file").unsupported());
    }
    let record: Record = read_value(json, finding)?;
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

    /// The form of a row that the checkpoint has.
    pub(super) fn form(&self, row: &Row) -> usize {
        self.forms.get(row.gguf.text()).copied().filter(|form| *form < row.forms.len()).unwrap_or_default()
    }

    /// The values that the file keeps of the tensor that the checkpoint calls `name`.
    fn kept(&self, metadata: &Metadata, name: &str) -> Result<Option<Vec<f32>>> {
        let key = format!("{ROWS}{name}");
        let Some(value) = metadata.get(&key) else { return Ok(None) };
        let wrong = |found: &str| {
            let expected = "rows of the tensor in its own type";
            metadata.finding(&key).expected(expected).found(found).format()
        };
        let Value::Array(Array::U8(bytes)) = value else { return Err(wrong("another kind of value")) };
        let Some(dtype) = self.dtype(name).filter(|dtype| quant::can_decode(*dtype) && dtype.is_plain()) else {
            return Err(wrong("a type that can't be read"));
        };
        let elems = bytes.len() / dtype.block_bytes();
        if elems * dtype.block_bytes() != bytes.len() {
            return Err(wrong(&format!("{} bytes", bytes.len())));
        }
        let mut values = vec![0.0; elems];
        quant::decode(dtype, bytes, &mut values);
        Ok(Some(values))
    }

    /// Rows that no GGUF tensor holds, in the shape `shape`; `None` if the file doesn't keep them either.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for others than these rows, naming their key.
    pub(super) fn lost(
        &self,
        metadata: &Metadata,
        params: &Params,
        name: &str,
        shape: &[usize],
    ) -> Result<Option<Expr>> {
        let class_name = own_spelling(params.family, name, params.size("main")?);
        let name = self.name(&class_name);
        let Some(values) = self.kept(metadata, name)? else { return Ok(None) };
        if values.len() != shape.iter().product::<usize>() {
            let expected = format!("the values of {} of the tensor", show_shape(shape));
            let finding = metadata.finding(&format!("{ROWS}{name}")).expected(expected);
            return Err(finding.found(format!("{} values", values.len())).format());
        }
        Ok(Some(Expr::Values { shape: shape.to_vec(), values: values.into() }))
    }

    /// The tensor with what the file keeps of it: all values, or the rows past those of GGUF.
    ///
    /// # Errors
    /// [`crate::Error::Format`] for rows that can't be part of the tensor, naming their key.
    pub(super) fn completed(&self, metadata: &Metadata, name: &str, expr: Expr) -> Result<Expr> {
        let Some(values) = self.kept(metadata, name)? else { return Ok(expr) };
        let shape = expr.shape();
        let (whole, width) = (shape.iter().product::<usize>(), row_len(&shape).max(1));
        if values.len() == whole {
            return Ok(Expr::Values { shape, values: values.into() });
        }
        let rows = values.len() / width;
        let is_rows = rows * width == values.len() && shape.len() == 2;
        // Rows inside the tensor have their place already: see `lost`.
        if is_rows && expr_has_values(&expr) {
            return Ok(expr);
        }
        if !is_rows {
            let expected = format!("rows of the tensor, {}, in its own type", show_shape(&shape));
            let finding = metadata.finding(&format!("{ROWS}{name}")).expected(expected);
            return Err(finding.found(format!("{} values", values.len())).format());
        }
        let lost = Expr::Values { shape: vec![rows, width], values: values.into() };
        let total = shape[0] + rows;
        Ok(Expr::concat(vec![expr, lost], vec![total, width]))
    }
}

/// Whether some of the values are of the record, and not of a GGUF tensor.
fn expr_has_values(expr: &Expr) -> bool {
    match expr {
        Expr::Values { .. } => true,
        Expr::Rows { of, .. } => of.iter().any(expr_has_values),
        _ => false,
    }
}
