//! Checks that a grown bank does what it did before.

use candle_core::Tensor;

use super::super::{AtomBank, BankHook, LoadedBank, RoutingTrace};
use crate::error::{Finding, Result};
use crate::model::{Batch, Decoder, Sequence};

/// The largest difference of a logit, relative to the largest logit where that is above 1.
const LOGITS: f32 = 1e-4;

/// The number of sequences in a pass.
const PASS: usize = 16;

/// What was found when a grown bank was compared with the bank before.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GrowthCheck {
    /// The number of sequences.
    pub sequences: usize,
    /// The largest difference of any logit, with all atoms in the computation.
    pub max_logit_difference: f32,
}

/// Compares the bank `after` its growth with the one `before` on `sequences` of its earlier instructions: the weights of
/// its atoms must have the same bits, the new atom none, and logits must agree to 1e-4. The comparison is made twice,
/// once as a pass is computed, and once with the new atom in the computation.
///
/// # Errors
/// [`crate::Error::Mismatch`] where they differ; as [`Decoder::hidden`].
pub fn check_growth(
    decoder: &Decoder,
    before: &AtomBank,
    after: &AtomBank,
    sequences: &[Sequence],
) -> Result<GrowthCheck> {
    let device = decoder.weights().device();
    let (old, new) = (LoadedBank::frozen(before, device)?, LoadedBank::frozen(after, device)?);
    let mut check = GrowthCheck { sequences: sequences.len(), max_logit_difference: 0.0 };
    for part in sequences.chunks(PASS) {
        let batch = Batch::new(part);
        let places = batch.real_places();
        let run = |mut hook: BankHook| -> Result<(RoutingTrace, Tensor)> {
            let hidden = decoder.hidden(&batch, None, &mut hook)?;
            Ok((hook.trace()?, decoder.logits_at(&hidden, &places)?))
        };
        let (expected, logits) = run(old.hook(decoder.weights(), part)?)?;
        let (found, as_computed) = run(new.hook(decoder.weights(), part)?)?;
        let e = new.embed(decoder.weights(), part)?;
        let (whole, with_all) = run(BankHook::with_all_atoms(&new, &batch, e)?)?;
        check_alphas(after, &expected, &found, &whole)?;
        let largest = logits.abs()?.max_all()?.to_scalar::<f32>()?.max(1.0);
        for other in [as_computed, with_all] {
            let gap = (&logits - other)?.abs()?.max_all()?.to_scalar::<f32>()?;
            check.max_logit_difference = check.max_logit_difference.max(gap);
            if gap.is_nan() || gap > LOGITS * largest {
                return Err(changed(after, "logits", format!("a difference of {gap:e}")));
            }
        }
    }
    Ok(check)
}

/// Checks that old atoms keep the bits of their weights, and that the new one has none, whichever way it is computed.
fn check_alphas(bank: &AtomBank, old: &RoutingTrace, new: &RoutingTrace, whole: &RoutingTrace) -> Result<()> {
    let atoms = bank.config.num_atoms;
    for (block, ((old, new), whole)) in old.alphas.iter().zip(&new.alphas).zip(&whole.alphas).enumerate() {
        for (old, new) in old.values.chunks_exact(atoms - 1).zip(new.values.chunks_exact(atoms)) {
            let same = old.iter().zip(new).all(|(old, new)| old.to_bits() == new.to_bits());
            if !same || new[atoms - 1] != 0.0 {
                return Err(changed(bank, &format!("alphas of block {block}"), format!("{new:?} in place of {old:?}")));
            }
        }
        if let Some(weight) = whole.values.iter().skip(atoms - 1).step_by(atoms).find(|weight| **weight != 0.0) {
            return Err(changed(bank, &format!("weight of the new atom in block {block}"), format!("{weight:e}")));
        }
    }
    Ok(())
}

fn changed(bank: &AtomBank, what: &str, found: String) -> crate::Error {
    Finding::new(&bank.path, what.to_owned())
        .expected("those of the bank before its growth, for every earlier instruction")
        .found(found)
        .hint("the bank isn't usable as it is: keep the one it grew from")
        .mismatch()
}
