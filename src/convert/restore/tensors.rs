//! Restores tensors under transformers' names: the reverse of [`crate::convert::tensors`].

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::arch::lookup::{expected, named, qkv_rows};
use crate::arch::params::Params;
use crate::arch::{Dim, Tensor, Transform};
use crate::convert::source_record::Record;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::Metadata;
use crate::plan::{Expr, Plan, PlannedTensor, TensorRef};
use crate::source::show_shape;

/// Tensors that become fields of the config.
pub(crate) const FIELDS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Every tensor that the config asks for, made from `stored`. Without an `outtype`, matrices keep their types
/// (quantized ones become F16), and tensors that GGUF always stores in F32 get the matrices' type if that changes no
/// value. A `record` of the source's names and types takes precedence.
pub(super) fn plan(
    params: &Params,
    metadata: &Metadata,
    stored: &[TensorRef],
    outtype: Option<DType>,
    record: Option<&Record>,
) -> Result<Plan> {
    let file = metadata.file();
    let by_name: HashMap<&str, &TensorRef> = stored.iter().map(|t| (t.info().name.as_str(), t)).collect();
    let main = main_type(stored);
    let mut used: HashSet<String> = FIELDS.iter().map(|name| (*name).to_owned()).collect();
    let mut tensors = Vec::new();
    let weight_of = |tensor: &Tensor| format!("{}.weight", tensor.gguf);
    for wanted in expected(params, parts(stored), |tensor| by_name.contains_key(weight_of(tensor).as_str()))? {
        let suffix = if wanted.is_bias { "bias" } else { "weight" };
        let name = named(wanted.tensor.gguf, wanted.layer, None, suffix);
        let finding = || Finding::new(file, format!("tensor {name:?}"));
        let Some(source) = by_name.get(name.as_str()) else {
            return Err(finding()
                .expected(format_args!("it, for {} {}", wanted.name, show_shape(&wanted.shape)))
                .found("none of that name")
                .hint("the file may be of another architecture, or damaged")
                .mismatch());
        };
        let transform = if wanted.is_bias && wanted.tensor.transform == Transform::Transposed {
            Transform::Same
        } else {
            wanted.tensor.transform
        };
        let expr = restored(params, source, transform, wanted.place, &wanted.shape)?;
        let own_name = record.map_or(wanted.name.as_str(), |record| record.name(&wanted.name)).to_owned();
        // The file doesn't contain rows past the tokenizer's vocabulary, so its number of rows is accepted.
        let mut expected = wanted.shape;
        if transform == Transform::TrimVocab {
            expected[0] = expr.shape().first().copied().unwrap_or_default();
        }
        let fits = expr.shape() == expected;
        let expr = match record {
            Some(record) if fits => record.completed(metadata, &own_name, transform, expr, &expected)?,
            _ => expr,
        };
        let shape = expr.shape();
        if !fits {
            return Err(finding()
                .expected(format_args!("the values of {} {}", wanted.name, show_shape(&expected)))
                .found(format_args!("shape {}", show_shape(&source.info().shape)))
                .mismatch());
        }
        used.insert(name);
        let mut tensor = PlannedTensor { name: own_name, dtype: source.info().dtype, shape, expr };
        tensor.dtype = match outtype {
            Some(dtype) => dtype,
            None => match record.and_then(|record| record.dtype(&tensor.name)) {
                Some(dtype) => dtype,
                None => own_type(&tensor, main)?,
            },
        };
        tensors.push(tensor);
    }
    match stored.iter().find(|tensor| !used.contains(&tensor.info().name)) {
        None => Ok(Plan { tensors }),
        Some(tensor) => Err(Finding::new(file, format!("tensor {:?}", tensor.info().name))
            .expected(format_args!("only tensors that {} has", params.family.class))
            .found(format_args!("this one, {}", show_shape(&tensor.info().shape)))
            .unsupported()),
    }
}

/// The number of checkpoint tensors that `stored` can hold, given that experts and heads are stacked.
fn parts(stored: &[TensorRef]) -> usize {
    let parts = |tensor: &TensorRef| match *tensor.info().shape.as_slice() {
        [count, _, _] => count,
        [count, _] if tensor.info().name.ends_with("_norm.weight") => count,
        _ => 1,
    };
    stored.iter().map(parts).fold(0, usize::saturating_add)
}

/// The type of most matrix elements, as a checkpoint would store it.
pub(super) fn main_type(stored: &[TensorRef]) -> DType {
    let mut counts: HashMap<DType, usize> = HashMap::new();
    for info in stored.iter().map(TensorRef::info).filter(|info| info.shape.len() > 1) {
        *counts.entry(plain(info.dtype)).or_default() += info.elems();
    }
    counts.into_iter().max_by_key(|(dtype, count)| (*count, *dtype)).map_or(DType::F32, |(dtype, _)| dtype)
}

/// The checkpoint type for a quantized type; plain types stay.
fn plain(dtype: DType) -> DType {
    if dtype.is_plain() { dtype } else { DType::F16 }
}

/// The type of a tensor where none was requested.
fn own_type(tensor: &PlannedTensor, main: DType) -> Result<DType> {
    let dtype = plain(tensor.dtype);
    if dtype != DType::F32 || !matches!(main, DType::F16 | DType::BF16) {
        return Ok(dtype);
    }
    let wide = PlannedTensor { dtype: DType::F32, ..tensor.clone() };
    let narrow = PlannedTensor { dtype: main, ..tensor.clone() };
    // A value that overflows the narrow type is an error of this read only: the tensor then stays F32.
    let unchanged = narrow.read().is_ok_and(|narrow| wide.read().is_ok_and(|wide| wide == narrow));
    Ok(if unchanged { main } else { DType::F32 })
}

/// The values in transformers' form; `shape` is their shape there.
fn restored(
    params: &Params,
    source: &TensorRef,
    transform: Transform,
    place: Option<usize>,
    shape: &[usize],
) -> Result<Expr> {
    let of = Expr::Take(source.clone());
    let stored = source.info().shape.as_slice();
    Ok(match transform {
        // The reference drops a leading dimension of 1.
        Transform::Same if shape.first() == Some(&1) && shape[1..] == *stored => {
            Expr::Reshape { of: Box::new(of), shape: shape.to_vec() }
        }
        Transform::Same | Transform::TrimVocab => of,
        Transform::Pairs(heads) => {
            let per_head = (stored[0] / params.count(heads)?).max(2);
            Expr::reordered(of, |row| {
                let (head, within) = (row / per_head, row % per_head);
                let (half, pair) = (within / (per_head / 2), within % (per_head / 2));
                head * per_head + 2 * pair + half
            })
        }
        Transform::PlusOne => Expr::AddConstant { of: Box::new(of), constant: -1.0 },
        Transform::Transposed if stored.len() == 2 => Expr::Transpose(Box::new(of)),
        Transform::Transposed => of,
        Transform::Stack(count) => {
            let count = params.count(count)?;
            if stored.first() != Some(&count) || stored[1..] != *shape {
                return Ok(of);
            }
            let rows = crate::source::rows(stored) / count;
            let start = place.unwrap_or_default() * rows;
            match shape {
                [width] => Expr::Reshape {
                    of: Box::new(Expr::slice(of, start, rows, vec![rows, *width])),
                    shape: shape.to_vec(),
                },
                _ => Expr::slice(of, start, rows, shape.to_vec()),
            }
        }
        Transform::HeadwiseQkv | Transform::GroupedQkv => {
            if stored.first() != Some(&params.count(Dim::Qkv)?) {
                return Ok(of);
            }
            let order = qkv_rows(params, transform)?;
            if crate::source::rows(stored) != order.len() {
                return Ok(of);
            }
            let mut back = vec![0; order.len()];
            for (row, from) in order.iter().enumerate() {
                back[*from] = row;
            }
            Expr::reordered(of, |row| back[row])
        }
        Transform::FromPosition => {
            let (start, width) = (params.padding_positions()?, params.count(Dim::Hidden)?);
            if stored.len() != 2 || stored[1] != width {
                return Ok(of);
            }
            // The number of unused rows comes from the file, so it is limited to the number of used ones.
            if start > stored[0] {
                let finding = params.finding("pad_token_id").expected(format_args!("an id below {}", stored[0]));
                return Err(finding.found(start - 1).mismatch());
            }
            let zeros: Arc<[f32]> = vec![0.0; start * width].into();
            let head = Expr::Values { shape: vec![start, width], values: zeros };
            let rows = start + stored[0];
            Expr::concat(vec![head, of], vec![rows, width])
        }
    })
}
