//! What is lost where an update is cut to a rank.

use serde::Serialize;

/// One module's update, cut to a rank.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Truncation {
    /// The module's path.
    pub module: String,
    /// Shape of its weight as the base keeps it.
    pub shape: Vec<usize>,
    /// Columns of `lora_B`.
    pub rank: usize,
    /// The share of the whole update's squared Frobenius norm that its first `rank` singular values hold.
    pub energy: f64,
    /// `|| delta - B A || / || delta ||`, Frobenius norms.
    pub relative_error: f64,
    /// `|| delta ||^2`.
    #[serde(skip)]
    pub norm_sqr: f64,
}

impl Truncation {
    /// Energy and relative error of several modules as if their updates were one vector; `None` where those
    /// are nothing.
    pub fn together(all: &[Truncation]) -> Option<(f64, f64)> {
        let norm_sqr: f64 = all.iter().map(|one| one.norm_sqr).sum();
        let mean =
            |of: &dyn Fn(&Truncation) -> f64| all.iter().map(|one| of(one) * one.norm_sqr).sum::<f64>() / norm_sqr;
        (norm_sqr > 0.0).then(|| (mean(&|one| one.energy), mean(&|one| one.relative_error.powi(2)).sqrt()))
    }
}
