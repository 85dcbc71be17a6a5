//! Eight-bit floats with scales: by block, by channel, by tensor.
//!
//! The product is computed in f32.

use super::Weight;
use super::fp4;
use super::grid::Scaled;
use super::parts::{Parts, is_eight_bit_float};
use super::settings::Settings;
use crate::error::{Finding, Result};

/// Ends of the names of scales, each with the end that the weight's name has instead.
const SUFFIXES: [(&str, &str); 5] = [
    ("_scale_inv", ""),
    (".weight_scale", ".weight"),
    (".qscale_weight", ".weight"),
    // DeepSeek V4.
    (".scale", ".weight"),
    // Experts of fbgemm_fp8: `gate_up_proj_scale`.
    ("_proj_scale", "_proj"),
];

/// transformers' default block size.
const BLOCK: [usize; 2] = [128, 128];

/// Unpacks the methods `fp8` and `fbgemm_fp8`.
pub(super) fn unpack(settings: &Settings, parts: &mut Parts) -> Result<Vec<Weight>> {
    let said = settings.get("weight_block_size").map(|value| settings.block("weight_block_size", value)).transpose()?;
    scaled(parts, said.as_deref().or(Some(&BLOCK[..])), said.is_some())
}

/// All weights that have a scale. Unless the block size is `certain`, scales may also be by tensor
/// or channel.
pub(super) fn scaled(parts: &mut Parts, block: Option<&[usize]>, certain: bool) -> Result<Vec<Weight>> {
    let mut weights = Vec::new();
    for (suffix, end) in SUFFIXES {
        for (scale, stem) in parts.ending(suffix) {
            let name = format!("{stem}{end}");
            // Experts in four bits beside others in eight, as DeepSeek V4 and MiMo have them.
            if fp4::is_mxfp4(parts.peek(&name), parts.peek(scale)) {
                let (codes, scales) = (parts.need(scale, &name)?, parts.need(&name, scale)?);
                let place = parts.place(&name).unwrap_or_default();
                weights.push(Weight { name, expr: fp4::Fp4::of(codes, scales, None, fp4::Second::Multiplies)?, place });
                continue;
            }
            // A scale of an unquantized weight is skipped here: it is either a parameter of the
            // model itself, or refused later.
            if suffix != "_scale_inv" && !parts.peek(&name).is_none_or(|weight| is_eight_bit_float(weight.dtype)) {
                continue;
            }
            if let Some(second) = parts.place(&name).filter(|place| parts.is_taken(*place)).and(parts.peek(scale)) {
                let finding = Finding::new(second.expr.source_path(), format!("tensor {scale:?}"));
                return Err(finding.expected(format_args!("one scale for {name:?}")).found("a second").mismatch());
            }
            let values = parts.need(scale, &name)?;
            let scales = parts.need(&name, scale)?;
            let place = parts.place(&name).unwrap_or_default();
            let plain = || Scaled::of(values.clone(), scales.clone(), None, None);
            let expr = match block {
                Some(_) if certain && suffix == "_scale_inv" => Scaled::of(values, scales, None, block)?,
                Some(_) => plain()
                    .or_else(|error| Scaled::of(values.clone(), scales.clone(), None, block).map_err(|_| error))?,
                None => plain()?,
            };
            weights.push(Weight { name, expr, place });
        }
    }
    Ok(weights)
}
