//! compressed-tensors: 8-bit floats or integers with scales, integers packed into words, and FP4.
//!
//! Reference: llama.cpp `dequant_simple` and `dequant_packed`, which compute the product in f32. What these don't
//! support is read as by the library (`compressors/pack_quantized`, `compressors/naive_quantized`, `_dequantize`),
//! which computes in the scales' type.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::Weight;
use super::fp4::{Fp4, Second};
use super::grid::Scaled;
use super::parts::{Parts, SCALES, check_shape, check_type, finding, matrix, numbers};
use super::settings::Settings;
use super::words::{Groups, check_words, code, words};
use crate::dtype::DType;
use crate::error::Result;
use crate::plan::{Expr, Packing, TensorRef};
use crate::source::show_shape;

/// The settings for the weights of a group of modules.
struct Args {
    /// Names of modules, patterns with the prefix `re:`, or classes.
    targets: Vec<String>,
    bits: usize,
    strategy: String,
    group_size: Option<usize>,
    block: Option<Vec<usize>>,
}

/// Unpacks the method `compressed-tensors`.
pub(super) fn unpack(settings: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    if let Some(found) =
        settings.text("format")?.filter(|format| format.starts_with("sparse") || format.starts_with("marlin"))
    {
        let finding = settings.finding("format").expected("a dense format").found(format!("{found:?}"));
        return Err(finding.hint("take the model that it was made of").unsupported());
    }
    for field in ["transform_config", "sparsity_config"] {
        let is_on = |map: &Map<String, Value>| {
            let dense = map.get("format").is_some_and(|format| format == "dense");
            !dense && map.values().any(|value| !crate::json::is_off(value))
        };
        if let Some(Value::Object(map)) = settings.get(field).filter(|value| value.as_object().is_some_and(is_on)) {
            let finding = settings.finding(field).expected("none").found(Value::Object(map.clone()));
            return Err(finding.hint("take the model that it was made of").unsupported());
        }
    }
    let all = groups(settings)?;
    let mut weights = Vec::new();
    for (name, stem) in parts.ending(".weight_packed") {
        let codes = parts.need(name, name)?;
        let place = parts.place(name).unwrap_or_default();
        let scales = parts.need(name, &format!("{stem}.weight_scale"))?;
        let expr = match codes.info().dtype {
            DType::U8 => {
                let global = parts.take(&format!("{stem}.weight_global_scale"));
                let expr = Fp4::of(codes, scales, global, Second::Divides)?;
                match expr.raw_dtype() {
                    // BF16 holds these values as they are.
                    Some(_) => expr,
                    // The library unpacks to BF16.
                    None => Expr::Round { of: Box::new(expr), dtype: DType::BF16 },
                }
            }
            _ => packed(settings, parts, args_of(settings, &all, stem)?, stem, codes, scales)?,
        };
        weights.push(Weight { name: format!("{stem}.weight"), expr, place });
    }
    for (scale, stem) in parts.ending(".weight_scale") {
        let (name, zeros) = (format!("{stem}.weight"), format!("{stem}.weight_zero_point"));
        let Some(place) = parts.place(scale).filter(|place| !parts.is_taken(*place)).and_then(|_| parts.place(&name))
        else {
            // The scale was taken with its packed weight. If there is no weight, a later check finds the scale.
            continue;
        };
        if parts.peek(&name).is_some_and(|weight| weight.dtype.is_float()) {
            // Values that are rounded to multiples of the scale, but not packed.
            parts.take(scale);
            parts.take(&zeros);
            continue;
        }
        let args = args_of(settings, &all, stem)?;
        let values = parts.need(scale, &name)?;
        let scales = parts.need(&name, scale)?;
        let zeros = parts.take(&zeros);
        let strategy = args.strategy.as_str();
        let block = match (strategy, args.group_size, &args.block) {
            ("group" | "tensor_group", Some(size), _) => Some(vec![1, size]),
            (_, _, Some(block)) => Some(block.clone()),
            _ => None,
        };
        if let ("group" | "tensor_group", Some(size)) = (strategy, args.group_size)
            && !values.info().row_len().is_multiple_of(size)
        {
            let expected = format!("rows of whole groups of {size}");
            return Err(finding(&values).expected(expected).found(show_shape(&values.info().shape)).mismatch());
        }
        let by_reference = matches!(strategy, "channel" | "block") && zeros.is_none() && all.len() == 1;
        let rounding = Some(scales.info().dtype).filter(|dtype| !by_reference && *dtype != DType::F32);
        let expr = Scaled::of(values, scales, zeros, block.as_deref())?;
        weights.push(Weight { name, expr: rounded(expr, rounding), place });
    }
    Ok(weights)
}

fn rounded(expr: Expr, dtype: Option<DType>) -> Expr {
    match dtype {
        Some(dtype) => Expr::Round { of: Box::new(expr), dtype },
        None => expr,
    }
}

/// All groups that have settings for weights.
fn groups(settings: &Settings) -> Result<Vec<Args>> {
    let mut all = Vec::new();
    let Some(Value::Object(groups)) = settings.get("config_groups") else {
        let finding = settings.finding("config_groups").expected("groups of modules");
        return Err(finding.found("none").format());
    };
    for (name, group) in groups {
        let Some(Value::Object(weights)) = group.get("weights") else { continue };
        let field = format!("config_groups.{name}.weights");
        let wrong = |what: &str, expected: &str, found: &Value| {
            settings.finding(&format!("{field}.{what}")).expected(expected).found(found).format()
        };
        let bits = match weights.get("num_bits") {
            None => 8,
            Some(value) => value
                .as_u64()
                .filter(|bits| (1..=8).contains(bits))
                .map(|bits| bits as usize)
                .ok_or_else(|| wrong("num_bits", "1 to 8", value))?,
        };
        let group_size = match weights.get("group_size").filter(|value| !value.is_null()) {
            Some(value) if value.as_i64() == Some(-1) => None,
            Some(value) => {
                let size = value.as_u64().filter(|size| (1..=1 << 31).contains(size));
                Some(size.ok_or_else(|| wrong("group_size", "1 to 2^31", value))? as usize)
            }
            None => None,
        };
        let strategy = weights.get("strategy").and_then(Value::as_str).map(str::to_owned);
        // The default, derived as in the library.
        let by_size = match (group_size, weights.get("group_size").is_some_and(|size| !size.is_null())) {
            (Some(_), _) => "group",
            (None, true) => "channel",
            (None, false) => "tensor",
        };
        let strategy = strategy.unwrap_or_else(|| by_size.to_owned());
        let block = weights.get("block_structure").filter(|value| !value.is_null());
        let block = block.map(|value| settings.block(&format!("{field}.block_structure"), value)).transpose()?;
        let targets = group.get("targets").and_then(Value::as_array).into_iter().flatten();
        let targets = targets.filter_map(|target| Some(target.as_str()?.to_owned())).collect();
        all.push(Args { targets, bits, strategy, group_size, block });
    }
    match all.is_empty() {
        true => Err(settings.finding("config_groups").expected("a group with weights").found("none").format()),
        false => Ok(all),
    }
}

/// The group to which `module` belongs: one that names the module, or else one that names a class.
fn args_of<'a>(settings: &Settings, all: &'a [Args], module: &str) -> Result<&'a Args> {
    let names = |target: &String| match target.strip_prefix("re:") {
        Some(pattern) => {
            regex_lite::Regex::new(&format!("^(?:{pattern})")).is_ok_and(|pattern| pattern.is_match(module))
        }
        None => target == module,
    };
    let named = all.iter().find(|args| args.targets.iter().any(names));
    let is_class = |target: &String| target.starts_with(char::is_uppercase);
    let by_class = || all.iter().find(|args| args.targets.is_empty() || args.targets.iter().any(is_class));
    let only = || if let [args] = all { Some(args) } else { None };
    named.or_else(by_class).or_else(only).ok_or_else(|| {
        let finding = settings.finding("config_groups").expected(format_args!("a group with {module:?}"));
        finding.found("none").mismatch()
    })
}

/// The values of a weight of integers packed into words.
fn packed(
    settings: &Settings,
    parts: &mut Parts,
    args: &Args,
    stem: &str,
    codes: TensorRef,
    scales: TensorRef,
) -> Result<Expr> {
    let owner = codes.info().name.clone();
    check_words(&codes)?;
    check_type(&scales, &SCALES[..3])?;
    let said = parts.need(&owner, &format!("{stem}.weight_shape"))?;
    check_type(&said, &[DType::I64, DType::I32])?;
    check_shape(&said, &[2], "for rows and columns")?;
    let (rows, width) = matrix(&codes)?;
    let bytes = said.elements(0..2);
    let number = |bytes: &[u8]| match *bytes {
        [a, b, c, d, ..] => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => 0,
    };
    let size = said.info().dtype.block_bytes();
    // The upper half of a 64-bit number must be zero: a larger number can't be a matrix's size.
    let whole = bytes.chunks_exact(size).all(|bytes| bytes[4.min(size)..].iter().all(|byte| *byte == 0));
    let shape: Vec<i64> = bytes.chunks_exact(size).map(number).collect();
    let bits = args.bits;
    let columns =
        shape.get(1).copied().and_then(|columns| usize::try_from(columns).ok()).filter(|columns| *columns > 0);
    let dense = |columns: usize| (columns as u128 * bits as u128).div_ceil(32) == width as u128;
    let aligned = |columns: usize| columns.div_ceil(32 / bits) == width;
    let fits = columns.filter(|columns| dense(*columns) || aligned(*columns));
    let Some(columns) = fits.filter(|_| whole && shape.first() == Some(&(rows as i64))) else {
        let expected = format!("rows and columns of {} of {bits} bits", show_shape(&[rows, width]));
        return Err(finding(&said).expected(expected).found(format!("{shape:?}")).mismatch());
    };
    let strategy = args.strategy.as_str();
    let size = match (strategy, args.group_size) {
        ("group", Some(size)) => size,
        ("channel" | "tensor", _) => columns,
        _ => {
            let finding = settings.finding("config_groups").expected("strategy group, channel or tensor");
            return Err(finding.found(format!("{strategy:?}")).unsupported());
        }
    };
    if !columns.is_multiple_of(size) {
        let expected = format!("columns in whole groups of {size}");
        return Err(finding(&codes).expected(expected).found(columns).mismatch());
    }
    let groups = columns / size;
    let one = strategy == "tensor" && scales.info().elems() == 1;
    if !one {
        check_shape(&scales, &[rows, groups], "for the scales of each group")?;
    }
    let mut of = vec![codes, scales.clone()];
    let zeros = parts.take(&format!("{stem}.weight_zero_point"));
    let mut zero = Zero::Middle;
    if let Some(zeros) = zeros {
        if matches!(zeros.info().dtype, DType::I8) {
            check_shape(&zeros, &scales.info().shape, "as the scales have")?;
            zero = Zero::Plain;
        } else {
            check_words(&zeros)?;
            let height = |dense: bool| if dense { (rows * bits).div_ceil(32) } else { rows.div_ceil(32 / bits) };
            let dense = zeros.info().shape == [height(true), groups];
            if !dense {
                check_shape(&zeros, &[height(false), groups], "for the zero points of each group")?;
            }
            zero = Zero::Packed { dense };
        }
        of.push(zeros);
    }
    let order = parts.take(&format!("{stem}.weight_g_idx"));
    // The library marks groups that are in order with -1.
    let order = match order {
        Some(order) => {
            check_words(&order)?;
            check_shape(&order, &[columns], "for each column")?;
            let in_order = words(&order, 0..columns).contains(&u32::MAX);
            if in_order { None } else { Some(order) }
        }
        None => None,
    };
    let by_reference = strategy == "group" && order.is_none();
    let rounding = Some(scales.info().dtype).filter(|dtype| !by_reference && *dtype != DType::F32);
    let ordered = order.is_some();
    if let Some(order) = order {
        Groups::check(&order, columns, groups)?;
        of.push(order);
    }
    let packing = Arc::new(Packed { bits, dense: dense(columns), width, groups, size, one, zero, ordered });
    Ok(rounded(Expr::Packed { shape: vec![rows, columns], parts: of, packing }, rounding))
}

/// How zero points are stored.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Zero {
    /// Not at all: zero is the middle of all codes.
    Middle,
    /// As integers, relative to the middle.
    Plain,
    /// Packed along the rows.
    Packed { dense: bool },
}

/// The packing of a weight, whose parts are codes, scales, zero points if there are any, and the group of each column
/// if given.
#[derive(Debug)]
struct Packed {
    bits: usize,
    /// Whether codes may cross the end of a word.
    dense: bool,
    /// Number of words in a row.
    width: usize,
    /// Number of groups in a row.
    groups: usize,
    /// Number of columns in a group, if the groups of columns aren't given.
    size: usize,
    /// Whether there is only one scale.
    one: bool,
    zero: Zero,
    ordered: bool,
}

/// The index of the first bit of code `place` in a row of words.
fn bit_of(place: usize, bits: usize, dense: bool) -> usize {
    if dense { place * bits } else { place / (32 / bits) * 32 + place % (32 / bits) * bits }
}

impl Packing for Packed {
    fn unpack(&self, parts: &[TensorRef], rows: Range<usize>, row_len: usize, out: &mut [f32]) {
        let [codes, scales, rest @ ..] = parts else { return };
        let (zeros, order) = match (self.zero, rest) {
            (Zero::Middle, [order, ..]) => (None, Some(order)),
            (Zero::Middle, []) => (None, None),
            (_, [zeros, order @ ..]) => (Some(zeros), order.first()),
            (_, []) => return,
        };
        let of_columns = Groups::new(order.filter(|_| self.ordered), row_len, self.size);
        let middle = 1i32 << (self.bits - 1);
        let mut scale = vec![0.0; self.groups];
        let mut zero = vec![middle; self.groups];
        let mut plain = vec![0.0; self.groups];
        for (row, out) in rows.zip(out.chunks_exact_mut(row_len.max(1))) {
            let at = if self.one { 0 } else { row * self.groups };
            numbers(scales, at..at + self.groups, &mut scale);
            match (self.zero, zeros) {
                (Zero::Plain, Some(zeros)) => {
                    numbers(zeros, at..at + self.groups, &mut plain);
                    zero.iter_mut().zip(&plain).for_each(|(zero, plain)| *zero = middle + *plain as i32);
                }
                (Zero::Packed { dense }, Some(zeros)) => {
                    let bit = bit_of(row, self.bits, dense);
                    let height = zeros.info().shape.first().copied().unwrap_or(0);
                    let line = |line: usize| words(zeros, line * self.groups..(line + 1) * self.groups);
                    let low = line(bit / 32);
                    let high = if bit / 32 + 1 < height { line(bit / 32 + 1) } else { vec![0; self.groups] };
                    for ((zero, low), high) in zero.iter_mut().zip(low).zip(high) {
                        *zero = code(&[low, high], bit % 32, self.bits) as i32;
                    }
                }
                _ => {}
            }
            let packed = words(codes, row * self.width..(row + 1) * self.width);
            for (column, out) in out.iter_mut().enumerate() {
                let group = of_columns.get(column);
                let code = code(&packed, bit_of(column, self.bits, self.dense), self.bits) as i32;
                *out = match (scale.get(group), zero.get(group)) {
                    (Some(scale), Some(zero)) => (code - zero) as f32 * scale,
                    _ => f32::NAN,
                };
            }
        }
    }
}
