//! Checkpoints that were quantized before they were saved: turns their packed tensors into plain ones.
//!
//! A quantizer writes several tensors for each weight, and a field of config.json that names the method. [`unpack`]
//! runs when a folder is opened, before anything is planned: then every weight is one tensor with its usual name and
//! shape, whose values are computed row by row when they are read. Later code needs no special cases.
//!
//! Values are bit for bit those of the reference for the methods that it supports, and otherwise those of the method's
//! own library.
//!
//! Reference: llama.cpp `conversion/base.py` (`dequant_model`).

mod awq;
mod bitnet;
mod bitsandbytes;
mod compressed_tensors;
mod fp4;
mod fp8;
mod gptq;
mod grid;
mod parts;
mod settings;
mod words;

use std::path::Path;

use serde_json::{Map, Value};

use self::parts::Parts;
use self::settings::Settings;
use super::TEXT_CONFIGS;
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, Plan, PlannedTensor};

/// Files that quantizers write with the same settings as config.json, or more. An unpacked model doesn't have them.
pub(super) const FILES: [&str; 3] = ["hf_quant_config.json", "quantize_config.json", "quant_config.json"];

/// A checkpoint's weights as plain tensors.
pub(super) struct Unpacked {
    /// All tensors, with the exact values that the method defines.
    pub(super) weights: Plan,
    /// The same, rounded to the type that they have by default.
    pub(super) rounded: Plan,
    /// Notes on what was unpacked, and what was left out.
    pub(super) notes: Vec<String>,
}

/// An unpacked weight.
struct Weight {
    name: String,
    expr: Expr,
    /// Its position among the stored tensors: that of the part with the values.
    place: usize,
}

impl Weight {
    /// The weight of module `stem`, whose values are in the part `codes`. Its library computes it in the type `dtype`.
    fn rounded(parts: &Parts, (codes, stem): (&str, &str), expr: Expr, dtype: DType) -> Self {
        let expr = match dtype {
            DType::F32 => expr,
            _ => Expr::Round { of: Box::new(expr), dtype },
        };
        Self { name: format!("{stem}.weight"), expr, place: parts.place(codes).unwrap_or_default() }
    }
}

/// Replaces packed tensors in `stored` by one plain tensor per weight; `None` if no weight is packed. The fields about
/// quantization are removed from `config`, the folder's config.json.
///
/// # Errors
/// [`crate::Error::Unsupported`] for an unknown method, [`crate::Error::Mismatch`] for parts that are missing or don't
/// fit each other, [`crate::Error::Format`] for invalid settings.
pub(super) fn unpack(folder: &Path, config: &mut Map<String, Value>, stored: &Plan) -> Result<Option<Unpacked>> {
    let settings = Settings::find(folder, config)?;
    let mut parts = Parts::new(stored);
    let mut weights = Vec::new();
    let mut notes = Vec::new();
    if let Some(settings) = &settings {
        weights = (settings.method.unpack)(settings, &mut parts)?;
        parts.leave_out_activations(&mut notes);
        parts.check_nothing_packed(settings)?;
    }
    let dtype = dtype_of(config, &parts);
    let packed = weights.len();
    let casts = parts.casts(settings.is_none())?;
    let kind = settings.as_ref().map(|settings| settings.method.name);
    if settings.is_some() {
        settings::forget(config);
    }
    match (kind, packed) {
        (Some(kind), 0) => notes.push(format!(
            "config.json says that weights are quantized ({kind}), but none is packed: they are taken as they are, and \
             quantization_config is left out"
        )),
        (Some(kind), _) => {
            let blocks =
                if kind == "mxfp4" { "or as the blocks they are, where a GGUF of the class keeps these, " } else { "" };
            notes.push(format!(
                "{packed} weights are unpacked ({kind}) and go on as plain numbers, {dtype} where no other type is asked \
                 for, {blocks}and quantization_config is left out"
            ));
        }
        (None, _) if casts.is_empty() => return Ok(None),
        (None, _) => {}
    }
    if !casts.is_empty() {
        notes.push(format!("{} tensors of 8-bit floats go on as {dtype}, which holds their values", casts.len()));
    }
    let mut unpacked = Plan::default();
    let mut rounded = Plan::default();
    let mut plain: Vec<Option<Weight>> = stored.tensors.iter().map(|_| None).collect();
    for weight in weights {
        let place = weight.place;
        plain[place] = Some(weight);
    }
    for (place, tensor) in stored.tensors.iter().enumerate() {
        if let Some(weight) = plain[place].take() {
            let made = PlannedTensor { name: weight.name, dtype, shape: weight.expr.shape(), expr: weight.expr };
            let expr = match dtype {
                DType::F32 => made.expr.clone(),
                _ => Expr::Round { of: Box::new(made.expr.clone()), dtype },
            };
            rounded.tensors.push(PlannedTensor { expr, ..made.clone() });
            unpacked.tensors.push(made);
        } else if !parts.is_taken(place) {
            let dtype = if casts.contains(&place) { dtype } else { tensor.dtype };
            let tensor = PlannedTensor { dtype, ..tensor.clone() };
            rounded.tensors.push(tensor.clone());
            unpacked.tensors.push(tensor);
        }
    }
    Ok(Some(Unpacked { weights: unpacked, rounded, notes }))
}

/// The type of unpacked weights: that of the matrices that aren't packed, or else config.json's, or else F16. The type
/// in config.json is often the one in which a trainer computed.
fn dtype_of(config: &Map<String, Value>, parts: &Parts) -> DType {
    let is_half = |dtype: &DType| matches!(dtype, DType::F16 | DType::BF16);
    let mut matrices = parts.rest().filter(|tensor| tensor.shape.len() > 1).map(|tensor| tensor.dtype);
    let said = || {
        let text = |config: &Map<String, Value>| {
            let value = ["dtype", "torch_dtype"].iter().find_map(|name| config.get(*name)?.as_str());
            value.map(|name| name.trim_start_matches("torch.").to_owned())
        };
        let inner = TEXT_CONFIGS.iter().find_map(|name| config.get(*name)?.as_object());
        let name = text(config).or_else(|| text(inner?))?;
        [DType::F16, DType::BF16, DType::F32].into_iter().find(|dtype| dtype.torch_name() == Some(&name))
    };
    matrices.find(is_half).or_else(said).unwrap_or(DType::F16)
}

#[cfg(test)]
mod tests;
