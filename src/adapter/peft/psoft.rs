//! PSOFT: a rotation along the base's largest singular directions, with factors on both of its sides.
//!
//! Reference: huggingface/peft `src/peft/tuners/psoft/layer.py` (`OrthLayer.get_matrix`, `get_delta_weight`):
//! `s B (R - 1) A` in f32, rounded to the weight's type before it is added. PEFT decomposes the weight again when it loads the
//! adapter, by LAPACK in f32; here it is decomposed in f64, and the singular vectors get LAPACK's signs. A system is solved
//! for the rotation, in f64, unless a series stands for it.

use super::Named;
use super::base::Base;
use super::change::{Change, LowRank};
use super::dora::norm;
use super::entries::Entries;
use super::modules::each_module;
use super::oft::skew;
use super::rotation::{series, solved};
use super::weights::whole;
use crate::error::Result;
use crate::json::Fields;
use crate::linalg::{has_negative, svd};
use crate::plan::Expr;

/// The largest number of terms of a series.
const MAX_TERMS: usize = 1000;

/// The changes of a PSOFT adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    let r = fields.count_or("r", 32)?;
    let alpha: f64 = fields.get("psoft_alpha")?.unwrap_or(32.0);
    let init: String = fields.get("ab_svd_init")?.unwrap_or_else(|| "psoft_init".to_owned());
    let even = match init.as_str() {
        "psoft_init" => false,
        "pissa_init" => true,
        _ => return Err(fields.finding("ab_svd_init").expected("psoft_init or pissa_init").found(init).unsupported()),
    };
    fields.only("psoft_svd", &["full".into()])?;
    let orthogonal = fields.get("psoft_orth")?.unwrap_or(true);
    let terms = fields.count_or("num_cayley_neumann_terms", 5)?;
    if terms > MAX_TERMS {
        let finding = fields.finding("num_cayley_neumann_terms").expected(format_args!("at most {MAX_TERMS}"));
        return Err(finding.found(terms).unsupported());
    }
    let terms = fields.get("use_cayley_neumann")?.unwrap_or(false).then_some(terms);
    let eps: Option<f64> = fields.get("cayley_neumann_eps")?;
    let [with_a, with_b] = [fields.get("psoft_mag_a")?.unwrap_or(true), fields.get("psoft_mag_b")?.unwrap_or(true)];
    fields.ignore(&["fan_in_fan_out", "init_weights", "psoft_dropout", "psoft_svd_lowrank_niter", "random_seed"]);
    let scale = alpha / r as f64;
    each_module(fields, entries, base, "psoft_R.weight", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "PSOFT")?;
        if r > weight.d_out.min(weight.d_in) {
            let most = weight.d_out.min(weight.d_in);
            return Err(entries.finding(name).expected(format_args!("a rank of at most {most}")).found(r).mismatch());
        }
        let mut rotation = match orthogonal {
            false => entries.shaped(name, &[r, r])?.read()?,
            true => {
                let triangle = entries.shaped(name, &[r * (r - 1) / 2])?;
                let triangle = if r > 1 { triangle.read()? } else { Vec::new() };
                rotated(skew(&triangle, r), r, terms, eps)
            }
        };
        let mut vector = |part: &str, is_there: bool| match is_there {
            true => entries.shaped(&format!("{module}.psoft_R.vector_{part}"), &[r])?.read(),
            false => Ok(vec![1.0; r]),
        };
        let (outward, inward) = (vector("b", with_b)?, vector("a", with_a)?);
        for (i, value) in rotation.iter_mut().enumerate() {
            // The identity is subtracted last.
            *value = outward[i / r] * *value * inward[i % r] - if i / r == i % r { 1.0 } else { 0.0 };
        }
        let matrix = whole(&weight)?;
        let mut decomposed = svd(matrix.clone());
        decomposed.truncate(r);
        let signs = has_negative(&matrix, &decomposed.u);
        if decomposed.rank() < r || signs.iter().any(Option::is_none) {
            return Err(entries
                .finding(name)
                .expected("a base weight whose singular vectors have known signs")
                .found(format_args!("{} of {r}", signs.iter().flatten().count()))
                .hint("merge it with PEFT's merge_and_unload and convert the result")
                .unsupported());
        }
        let (mut a, mut b) = (vec![0.0; r * weight.d_in], vec![0.0; weight.d_out * r]);
        for (i, negative) in signs.into_iter().enumerate() {
            let sign = if negative == Some(true) { -1.0 } else { 1.0 };
            let s = f64::from(decomposed.s[i] as f32 / scale as f32);
            let (of_a, of_b) = if even { (s.sqrt(), s.sqrt()) } else { (1.0, s) };
            for (column, value) in decomposed.vt.row(i).iter().enumerate() {
                a[i * weight.d_in + column] = (sign * of_a * value) as f32;
            }
            for (row, value) in decomposed.u.column(i).iter().enumerate() {
                b[row * r + i] = (sign * of_b * value) as f32;
            }
        }
        let expr = |shape: [usize; 2], values: Vec<f32>| Expr::Values { shape: shape.to_vec(), values: values.into() };
        let b = Expr::product(expr([weight.d_out, r], b), expr([r, r], rotation));
        let rounded = base.rounding(weight.tensor.dtype);
        let a = expr([r, weight.d_in], a);
        let update = LowRank { scale: scale as f32, alpha: None, a, b, layout: weight.layout(), rounded };
        Ok((weight, vec![weight.change(Change::LowRank(update))]))
    })
}

/// `(1 + Q) (1 - Q)^-1`, or its series, of which `eps` bounds the norm of `Q`.
fn rotated(mut skew: Vec<f32>, r: usize, terms: Option<usize>, eps: Option<f64>) -> Vec<f32> {
    let Some(terms) = terms else {
        // That of OFT has the signs of Q exchanged.
        skew.iter_mut().for_each(|value| *value = -*value);
        return solved(&skew, r);
    };
    if let Some(eps) = eps.map(|eps| eps as f32) {
        let norm = norm(&skew);
        if norm > eps {
            skew.iter_mut().for_each(|value| *value *= eps / (norm + 1e-12));
        }
    }
    series(&skew, r, terms)
}
