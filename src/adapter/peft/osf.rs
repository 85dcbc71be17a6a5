//! OSF: the part of the weight with the smallest singular values is replaced by a trained one.
//!
//! Reference: huggingface/peft `src/peft/tuners/osf/layer.py` (`get_delta_weight`) and `utils.py`
//! (`decompose_weight_matrix`): the weight is decomposed in f32, the factors are rounded to its type, and the products of
//! the trained and of the first factors are subtracted in f32. Here it is decomposed in f64.

use super::Named;
use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::modules::each_module;
use super::rows::{ScaleColumns, map};
use super::weights::{aside, whole};
use crate::error::Result;
use crate::json::Fields;
use crate::linalg::{svd, to_rows};
use crate::plan::Expr;
use crate::source::show_shape;

/// The changes of an OSF adapter.
pub(super) fn changes(fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<Vec<Named>> {
    // The shapes show how many singular values stay.
    fields.ignore(&["effective_rank", "rank_pattern", "target_svd_config"]);
    fields.ignore(&["init_weights"]);
    each_module(fields, entries, base, "osf_svd_params.S_low", |entries, module, name| {
        let weight = base.linear_alone(entries, name, module, "OSF")?;
        let (d_out, d_in) = (weight.d_out, weight.d_in);
        let values = entries.need(name)?;
        let low = match *values.shape {
            [low] if low > 0 && low <= d_out.min(d_in) => low,
            _ => {
                return Err(entries
                    .finding(name)
                    .expected(format_args!("from 1 to {} singular values by the base model", d_out.min(d_in)))
                    .found(format_args!("shape {}", show_shape(&values.shape)))
                    .hint("this adapter belongs to another base model")
                    .mismatch());
            }
        };
        let u = entries.shaped(&format!("{module}.osf_svd_params.U_low"), &[d_out, low])?.expr;
        let v = entries.shaped(&format!("{module}.osf_svd_params.V_low"), &[low, d_in])?.expr;
        let trained = Expr::product(map(u, ScaleColumns(values.read()?.into())), v);
        let decomposed = svd(whole(&weight)?);
        // What the decomposition leaves out is zero.
        let (high, rank) = (d_out.min(d_in) - low, decomposed.rank());
        let delta = match rank.saturating_sub(high) {
            0 => trained,
            kept => {
                let u = aside([d_out, kept], &to_rows(&decomposed.u.columns(high, kept).into_owned()))?;
                let v = aside([kept, d_in], &to_rows(&decomposed.vt.rows(high, kept).into_owned()))?;
                let s: Vec<f32> = decomposed.s[high..].iter().map(|s| *s as f32).collect();
                let s = Expr::Values { shape: vec![1, kept], values: s.into() };
                let rounded = |of: Expr| base.rounded(of, weight.tensor.dtype);
                let s = super::weights::values_of(rounded(s))?;
                let first = Expr::product(map(rounded(u), ScaleColumns(s.into())), rounded(v));
                let less = Expr::Scale { of: Box::new(first), factor: -1.0 };
                Expr::Add { of: Box::new(trained), delta: Box::new(less) }
            }
        };
        Ok((weight, vec![weight.change(Change::Add(delta))]))
    })
}
