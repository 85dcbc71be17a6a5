//! bitsandbytes: NF4 and FP4 with scales that may be quantized as well, and 8-bit integers with a scale per row.
//!
//! Reference: bitsandbytes `functional.py` (`QuantState`, `dequantize_4bit`, `int8_vectorwise_dequant`). 4-bit values
//! are computed in the type that the state names, 8-bit ones in F32.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Weight;
use super::parts::{Parts, check_shape, check_type, finding, matrix, numbers};
use super::settings::Settings;
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, Packing, TensorRef};
use crate::source::show_shape;

/// The part of a state's name between the weight's name and the kind.
const STATE: &str = ".quant_state.bitsandbytes__";

/// The largest size of a state in bytes; real ones have about 200.
const MAX_STATE: usize = 1 << 16;

/// Unpacks the method `bitsandbytes`.
pub(super) fn unpack(_: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    let mut weights = Vec::new();
    for (name, stem) in parts.with(STATE) {
        let state = State::read(&parts.need(name, name)?)?;
        let values = parts.need(name, stem)?;
        let place = parts.place(stem).unwrap_or_default();
        let expr = four_bits(parts, stem, &state, values)?;
        weights.push(Weight { name: stem.to_owned(), expr, place });
    }
    for (name, stem) in parts.ending(".SCB") {
        let weight = format!("{stem}.weight");
        let values = parts.need(name, &weight)?;
        let scales = parts.need(&weight, name)?;
        let (rows, columns) = matrix(&values)?;
        check_type(&values, &[DType::I8])?;
        check_type(&scales, &[DType::F32])?;
        if scales.info().shape != [rows, 1] {
            check_shape(&scales, &[rows], "for each row")?;
        }
        if let Some(format) = parts.take(&format!("{stem}.weight_format")) {
            let bytes = format.elements(0..format.info().elems().min(16));
            if bytes.iter().any(|byte| *byte != 0) {
                let finding = finding(&format).expected("0, values row by row").found("another order");
                return Err(finding.unsupported());
            }
        }
        let place = parts.place(&weight).unwrap_or_default();
        let expr = Expr::Packed { shape: vec![rows, columns], parts: vec![values, scales], packing: Arc::new(Int8) };
        weights.push(Weight { name: weight, expr, place });
    }
    for (name, stem) in parts.ending(".absmax") {
        if parts.place(name).is_some_and(|place| !parts.is_taken(place)) {
            parts.need(name, &format!("{stem}{STATE}nf4"))?;
        }
    }
    Ok(weights)
}

/// The state of a weight, which describes its packing.
struct State {
    fp4: bool,
    block: usize,
    dtype: DType,
    shape: Vec<usize>,
    /// Block size and offset of the scales, if they are quantized.
    nested: Option<(usize, f32)>,
}

impl State {
    /// Parses the state that `tensor` holds as JSON.
    fn read(tensor: &TensorRef) -> Result<Self> {
        check_type(tensor, &[DType::U8])?;
        let bytes = tensor.elements(0..tensor.info().elems().min(MAX_STATE));
        let wrong = |what: &str, found: String| {
            finding(tensor).expected(format_args!("a quantization state as JSON, with {what}")).found(found).format()
        };
        let state: Map<String, Value> = crate::json::read(&bytes, || {
            finding(tensor).expected("a quantization state as JSON, with shape and blocksize")
        })?;
        let found = |name: &str| state.get(name).map_or_else(|| "none".to_owned(), Value::to_string);
        let count = |name: &str| state.get(name).and_then(Value::as_u64).filter(|count| (1..=1 << 31).contains(count));
        let text = |name: &str| state.get(name).and_then(Value::as_str);
        let fp4 = match text("quant_type") {
            Some("nf4") => false,
            Some("fp4") => true,
            _ => return Err(wrong("quant_type nf4 or fp4", found("quant_type"))),
        };
        let block = count("blocksize").ok_or_else(|| wrong("blocksize", found("blocksize")))? as usize;
        let types = [DType::F32, DType::F16, DType::BF16];
        let dtype = types
            .into_iter()
            .find(|dtype| text("dtype").map(|name| name.trim_start_matches("torch.")) == dtype.torch_name());
        let dtype = dtype.ok_or_else(|| wrong("dtype float32, float16 or bfloat16", found("dtype")))?;
        let dims = state.get("shape").and_then(Value::as_array).filter(|dims| (1..=4).contains(&dims.len()));
        let dim = |dim: &Value| dim.as_u64().filter(|dim| (1..=1 << 40).contains(dim)).map(|dim| dim as usize);
        let shape = dims.and_then(|dims| dims.iter().map(dim).collect::<Option<Vec<usize>>>());
        let shape = shape.ok_or_else(|| wrong("shape", found("shape")))?;
        let nested = match (count("nested_blocksize"), state.get("nested_offset").and_then(Value::as_f64)) {
            (Some(block), Some(offset)) => Some((block as usize, offset as f32)),
            (None, None) => None,
            _ => return Err(wrong("nested_blocksize and nested_offset, or neither", found("nested_offset"))),
        };
        Ok(Self { fp4, block, dtype, shape, nested })
    }
}

/// The values of the weight called `name`, with this state.
fn four_bits(parts: &mut Parts, name: &str, state: &State, values: TensorRef) -> Result<Expr> {
    let info = values.info().clone();
    let elems = state.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
    let stored = info.elems().saturating_mul(info.dtype.block_bytes());
    let Some(elems) = elems.filter(|elems| elems.div_ceil(2).next_multiple_of(info.dtype.block_bytes()) == stored)
    else {
        let expected = format!("two values a byte of {}, as its quant_state says", show_shape(&state.shape));
        let found = format!("{} {}", info.dtype, show_shape(&info.shape));
        return Err(finding(&values).expected(expected).found(found).mismatch());
    };
    check_type(&values, &[DType::U8, DType::I8, DType::F32, DType::F16, DType::BF16])?;
    let part = |parts: &mut Parts, end: &str| parts.need(name, &format!("{name}.{end}"));
    let (scales, map) = (part(parts, "absmax")?, part(parts, "quant_map")?);
    check_type(&map, &[DType::F32])?;
    check_shape(&map, &[16], "for the value of each code")?;
    let blocks = elems.div_ceil(state.block);
    check_shape(&scales, &[blocks], "for each block of the weight")?;
    let mut of = vec![values, map, scales];
    if let Some((block, _)) = state.nested {
        let (nested, map) = (part(parts, "nested_absmax")?, part(parts, "nested_quant_map")?);
        check_type(&of[2], &[DType::U8])?;
        check_type(&nested, &[DType::F32])?;
        check_type(&map, &[DType::F32])?;
        check_shape(&nested, &[blocks.div_ceil(block)], "for each block of the scales")?;
        check_shape(&map, &[256], "for the value of each code")?;
        of.extend([nested, map]);
    } else {
        check_type(&of[2], &[DType::F32])?;
    }
    let packing = Arc::new(FourBits { fp4: state.fp4, block: state.block, nested: state.nested, elems });
    let expr = Expr::Packed { shape: state.shape.clone(), parts: of, packing };
    Ok(match state.dtype {
        DType::F32 => expr,
        dtype => Expr::Round { of: Box::new(expr), dtype },
    })
}

/// The packing of a 4-bit weight: two codes per byte through the whole weight, the first in the high half. The parts
/// are codes, the values of codes, and the scales; if these are quantized, also their scales and the values of their
/// codes.
#[derive(Debug)]
struct FourBits {
    fp4: bool,
    block: usize,
    nested: Option<(usize, f32)>,
    elems: usize,
}

impl FourBits {
    /// The scales of blocks `blocks`.
    fn scales(&self, parts: &[TensorRef], blocks: Range<usize>) -> Vec<f32> {
        let mut scales = vec![0.0; blocks.len()];
        match (self.nested, parts) {
            (None, [_, _, stored, ..]) => numbers(stored, blocks, &mut scales),
            (Some((size, offset)), [_, _, stored, of_scales, map]) => {
                let (mut values, first) = (vec![0.0; 256], blocks.start / size);
                numbers(map, 0..256, &mut values);
                let mut nested = vec![0.0; blocks.end.div_ceil(size) - first];
                numbers(of_scales, first..first + nested.len(), &mut nested);
                let codes = stored.elements(blocks.clone());
                for ((block, scale), code) in blocks.zip(&mut scales).zip(&*codes) {
                    // Rounded after the product and again after the sum.
                    *scale = values[usize::from(*code)] * nested[block / size - first] + offset;
                }
            }
            _ => scales.fill(f32::NAN),
        }
        scales
    }
}

impl Packing for FourBits {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]) {
        let [values, map, ..] = parts else { return };
        let mut of_codes = [0.0; 16];
        numbers(map, 0..16, &mut of_codes);
        if self.fp4 {
            // The library keeps the sign of zero.
            of_codes[8] = -0.0;
        }
        let elems = rows.start * row_len..(rows.end * row_len).min(self.elems);
        let first = elems.start / self.block;
        let scales = self.scales(parts, first..elems.end.div_ceil(self.block));
        // The bytes may be stored in elements of several bytes.
        let size = values.info().dtype.block_bytes();
        let start = elems.start / 2 / size;
        let bytes = values.elements(start..elems.end.div_ceil(2).div_ceil(size));
        for (elem, out) in elems.zip(out) {
            let byte = bytes[elem / 2 - start * size];
            let code = if elem % 2 == 0 { byte >> 4 } else { byte & 15 };
            *out = of_codes[usize::from(code)] * scales[elem / self.block - first];
        }
    }
}

/// The packing of an 8-bit weight: integers times their row's largest magnitude, divided by 127. The parts are the
/// integers and the largest magnitudes.
#[derive(Debug)]
struct Int8;

impl Packing for Int8 {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]) {
        /// 1/127, with the library's value.
        const SHARE: f32 = 7.874_015_718_698_502e-3_f64 as f32;
        let [values, scales] = parts else { return };
        numbers(values, rows.start * row_len..rows.end * row_len, out);
        let mut largest = vec![0.0; rows.len()];
        numbers(scales, rows, &mut largest);
        for (out, largest) in out.chunks_exact_mut(row_len.max(1)).zip(largest) {
            out.iter_mut().for_each(|value| *value = *value * largest * SHARE);
        }
    }
}
