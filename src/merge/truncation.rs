//! The loss from truncating an update to a rank.

use serde::Serialize;

/// One module's truncated update.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Truncation {
    /// The module's path.
    pub module: String,
    /// The shape of its weight in the base.
    pub shape: Vec<usize>,
    /// The rank: the number of columns of `lora_B`.
    pub rank: usize,
    /// The share of the whole update's squared Frobenius norm that its first `rank` singular values hold.
    pub energy: f64,
    /// `|| delta - B A || / || delta ||`, in Frobenius norms.
    pub relative_error: f64,
    /// `|| delta ||^2`.
    #[serde(skip)]
    pub norm_sqr: f64,
}

impl Truncation {
    /// Energy and relative error of several modules, as if their updates were one vector; `None` if all updates are
    /// zero.
    pub fn together(all: &[Truncation]) -> Option<(f64, f64)> {
        let norm_sqr: f64 = all.iter().map(|one| one.norm_sqr).sum();
        let mean =
            |of: &dyn Fn(&Truncation) -> f64| all.iter().map(|one| of(one) * one.norm_sqr).sum::<f64>() / norm_sqr;
        (norm_sqr > 0.0).then(|| (mean(&|one| one.energy), mean(&|one| one.relative_error.powi(2)).sqrt()))
    }
}
