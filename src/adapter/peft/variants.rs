//! Variants of LoRA: KaSA, BD-LoRA, and those whose merge is that of a plain LoRA (VeLoRA, MonteCLoRA).
//!
//! Reference: huggingface/peft `src/peft/tuners/lora/variants.py` (`KasaLinearVariant`, `BdLoraLinearVariant`). Both round
//! the update to the weight's type before it is added. KaSA takes the smallest singular values out of the weight first;
//! LAPACK decomposes it in f32, here it is decomposed in f64.

use serde_json::{Map, Value};

use super::base::Base;
use super::change::Change;
use super::entries::Entries;
use super::module_weight::Weight;
use super::rows::{ScaleColumns, map};
use super::weights::{aside, whole};
use crate::error::Result;
use crate::json::Fields;
use crate::linalg::{svd, to_rows};
use crate::plan::{Expr, PlannedTensor};
use crate::source::show_shape;

/// How the update of a LoRA is made of its factors.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Variant {
    Plain,
    /// Singular values between the factors, for a weight without its smallest ones.
    Kasa,
    /// Factors that can be block-diagonal.
    Blocks {
        /// The number of blocks.
        count: usize,
    },
}

impl Variant {
    pub(super) fn read(fields: &mut Fields) -> Result<Self> {
        // These act in training only.
        fields.ignore(&["monteclora_config", "velora_config"]);
        let kasa = fields.switched_on("kasa_config").is_some();
        let Some(blocks) = fields.get::<Map<String, Value>>("use_bdlora")? else {
            return Ok(if kasa { Self::Kasa } else { Self::Plain });
        };
        let mut inner = Fields::inside(fields.path(), "use_bdlora", &blocks);
        let count = inner.count_or("nblocks", 1)?;
        // The shapes show which factors are block-diagonal.
        inner.ignore(&["match_strict", "target_modules_bd_a", "target_modules_bd_b"]);
        inner.finish()?;
        match kasa {
            false => Ok(Self::Blocks { count }),
            true => Err(fields.finding("kasa_config").expected("none, with use_bdlora").found("one").unsupported()),
        }
    }

    /// The field that asks for it.
    pub(super) fn field(&self) -> &'static str {
        match self {
            Self::Plain => "peft_type",
            Self::Kasa => "kasa_config",
            Self::Blocks { .. } => "use_bdlora",
        }
    }

    /// Whether the update is rounded to the weight's type before it is added.
    pub(super) fn rounds(&self) -> bool {
        *self != Self::Plain
    }
}

/// Drops tensors that act in training only.
pub(super) fn drop_inert(entries: &mut Entries) {
    let inert = [".lora_monteclora_sampler.", ".lora_velora_embed"];
    let is_inert = |name: &&str| inert.iter().any(|part| name.contains(part));
    let names: Vec<String> = entries.names().filter(is_inert).map(str::to_owned).collect();
    names.iter().for_each(|name| drop(entries.take(name)));
}

/// Both factors, block-diagonal ones with their zeros.
pub(super) fn block_factors(
    entries: &mut Entries,
    weight: &Weight,
    module: &str,
    rank: usize,
    count: usize,
) -> Result<(Expr, Expr)> {
    let mut factor = |name: &str, [rows, columns]: [usize; 2]| -> Result<Expr> {
        let name = format!("{module}.{name}.weight");
        let blocks =
            entries.row_len(&name).is_some_and(|found| found != columns && found.checked_mul(count) == Some(columns));
        if !blocks || !rows.is_multiple_of(count) {
            return Ok(entries.shaped(&name, &[rows, columns])?.expr);
        }
        let (height, width) = (rows / count, columns / count);
        let values = entries.shaped(&name, &[rows, width])?.read()?;
        let mut whole = vec![0.0; rows * columns];
        for (row, values) in values.chunks_exact(width).enumerate() {
            whole[row * columns + row / height * width..][..width].copy_from_slice(values);
        }
        Ok(Expr::Values { shape: vec![rows, columns], values: whole.into() })
    };
    Ok((factor("lora_A", [rank, weight.d_in])?, factor("lora_B", [weight.d_out, rank])?))
}

/// KaSA's `B`, times its singular values.
pub(super) fn with_diagonal(entries: &mut Entries, module: &str, rank: usize, b: Expr) -> Result<Expr> {
    let diagonal = entries.shaped(&format!("{module}.lora_diag"), &[rank])?.read()?;
    Ok(map(b, ScaleColumns(diagonal.into())))
}

/// The weight without its `rank` smallest singular values. `entry` is the adapter's tensor that needs it.
pub(super) fn truncated(base: &Base, entries: &Entries, entry: &str, weight: &Weight, rank: usize) -> Result<Change> {
    let smaller = weight.d_out.min(weight.d_in);
    if rank >= smaller || weight.transposed || weight.is_kernel() {
        return Err(entries
            .finding(entry)
            .expected("a linear layer with more singular values than KaSA takes out of it")
            .found(format_args!("rank {rank} for {}", show_shape(&weight.tensor.shape)))
            .unsupported());
    }
    let mut of = whole(weight)?;
    let decomposed = svd(of.clone());
    let kept = smaller - rank;
    for i in kept..decomposed.rank() {
        of -= decomposed.u.column(i) * decomposed.vt.row(i) * decomposed.s[i];
    }
    let expr = base.rounded(aside([weight.d_out, weight.d_in], &to_rows(&of))?, weight.tensor.dtype);
    let PlannedTensor { name, dtype, shape, .. } = weight.tensor.clone();
    Ok(Change::Replace(PlannedTensor { name, dtype, shape, expr }))
}
