//! The plan of a quantized model: types from a recipe, columns weighted by importance, and keys
//! that describe the quantization.

use std::sync::Arc;

use serde::Serialize;

use super::{Recipe, file_order};
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::Metadata;
use crate::formats::gguf::Override;
use crate::imatrix::ImportanceMatrix;
use crate::output::Output;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::source::TensorInfo;

/// An importance matrix, and the user's name of its file, which is written into the output.
#[derive(Clone, Copy)]
pub struct Led<'a> {
    /// The matrix.
    pub by: &'a ImportanceMatrix,
    /// Its file's name.
    pub file_name: &'a str,
}

/// The change of one tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorOutcome {
    /// Its name in the output.
    pub name: String,
    /// The shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// The type in the input.
    pub from: DType,
    /// The type in the output.
    pub to: DType,
    /// The size in bytes in the input.
    pub bytes_before: u64,
    /// The size in bytes in the output.
    pub bytes: u64,
    /// The number of bits per value in the output.
    pub bits_per_weight: f64,
    /// Whether its type can't be encoded without importance.
    pub needs_importance: bool,
}

/// The changes that `recipe` makes to the tensors, in the order of the output. It needs neither
/// tensor data nor an importance matrix, only whether there will be one.
///
/// # Errors
/// As [`Recipe::types_if_importance`].
pub fn outcomes(
    recipe: &Recipe,
    metadata: &Metadata,
    tensors: &[TensorInfo],
    importance: bool,
) -> Result<Vec<TensorOutcome>> {
    let chosen = recipe.types_if_importance(metadata, tensors, importance)?;
    let kept = file_order(tensors).into_iter().filter_map(|place| Some((&tensors[place], chosen[place].as_ref()?)));
    Ok(kept
        .map(|(tensor, chosen)| {
            // Recipes only choose types into whose blocks the rows divide.
            let bytes = |dtype: DType| dtype.bytes_of(tensor.elems() as u64, tensor.row_len() as u64).unwrap_or(0);
            TensorOutcome {
                name: chosen.name.clone(),
                shape: written_shape(chosen.dtype, &tensor.shape).to_vec(),
                from: tensor.dtype,
                to: chosen.dtype,
                bytes_before: bytes(tensor.dtype),
                bytes: bytes(chosen.dtype),
                bits_per_weight: bytes(chosen.dtype) as f64 * 8.0 / tensor.elems().max(1) as f64,
                needs_importance: chosen.needs_importance,
            }
        })
        .collect())
}

/// The model that results from applying `recipe` to `tensors`, which have GGUF's names, and the
/// keys `metadata`.
///
/// Keys are set and ordered as in llama-quantize: the model's own, then the type, then `overrides`,
/// then the origin of the importance matrix.
///
/// # Errors
/// As [`Recipe::types`]; [`crate::Error::Mismatch`] for the importance matrix of another model.
pub fn quantize(
    recipe: &Recipe,
    metadata: &Metadata,
    tensors: &Plan,
    led: Option<Led>,
    overrides: &[Override],
) -> Result<Output> {
    let infos: Vec<TensorInfo> = tensors.tensors.iter().map(PlannedTensor::info).collect();
    let led = led.filter(|led| !led.by.is_empty());
    let has = |name: &str| led.is_some_and(|led| led.by.weights(name).is_some());
    let importance: Option<&dyn Fn(&str) -> bool> = if led.is_some() { Some(&has) } else { None };
    let chosen = recipe.types(metadata, &infos, importance)?;
    let mut notes = Vec::new();
    let mut plan = Plan::default();
    for place in file_order(&infos) {
        let (tensor, Some(chosen)) = (&tensors.tensors[place], &chosen[place]) else { continue };
        if let Some(preferred_type) = chosen.instead_of {
            let (name, to, row) = (&chosen.name, chosen.dtype, tensor.row_len());
            notes.push(format!(
                "{name}: {to} instead of {preferred_type}, whose blocks rows of {row} don't divide into"
            ));
        }
        let mut expr = tensor.expr.clone();
        if let Some(led) = led.filter(|_| chosen.dtype != tensor.dtype && !chosen.dtype.is_plain()) {
            match importance_of(led.by, tensor)? {
                Some(importance) => expr = Expr::Weighted { of: Box::new(expr), importance },
                None => notes.push(format!("{}: no importance for it in {}", tensor.name, led.file_name)),
            }
        }
        let shape = written_shape(chosen.dtype, &tensor.shape);
        if shape.len() != tensor.shape.len() {
            expr = Expr::Reshape { of: Box::new(expr), shape: shape.to_vec() };
        }
        let (name, shape) = (chosen.name.clone(), shape.to_vec());
        plan.tensors.push(PlannedTensor { name, dtype: chosen.dtype, shape, expr });
    }
    let mut metadata = metadata.clone();
    recipe.write_type(&mut metadata);
    for single in overrides {
        single.apply(&mut metadata)?;
    }
    for (key, value) in led.iter().flat_map(|led| led.by.keys(led.file_name)) {
        metadata.remove(key);
        metadata.insert(key, value);
    }
    recipe.write_block_count(&mut metadata)?;
    Ok(Output::gguf(metadata, plan, notes))
}

/// A tensor's shape as ggml writes it, without outermost dimensions of 1.
fn written_shape(dtype: DType, shape: &[usize]) -> &[usize] {
    // A vector of blocks keeps its shape, because its rows aren't whole blocks.
    let ones = shape.iter().take_while(|&&len| len == 1).count().min(shape.len().saturating_sub(1));
    if dtype.is_plain() { &shape[ones..] } else { shape }
}

/// The importance of a tensor's columns, for each of its matrices.
fn importance_of(by: &ImportanceMatrix, tensor: &PlannedTensor) -> Result<Option<Arc<[f32]>>> {
    let matrices = match tensor.shape.as_slice() {
        [leading @ .., _, _] => leading.iter().product(),
        _ => 1,
    };
    Ok(by.weights_for(&tensor.name, matrices, tensor.row_len())?.map(Arc::from))
}
