//! Extracting a LoRA from two models: the changes that finetuning made, truncated to a rank.
//!
//! The change `W_finetuned - W_base` of every linear layer is decomposed without being in memory whole. Its largest
//! singular triplets become a LoRA of scale 1, the closest one of its rank (Eckart and Young). Embeddings, output
//! head and norms have no low rank, so they are saved whole where they changed, unless the
//! [`Selection`] decides otherwise; biases are saved as PEFT's
//! `bias: all` does it.
//!
//! The same idea: mergekit `mergekit/scripts/extract_lora.py`; the decomposition is that of
//! [`crate::linalg::truncated_svd`].

mod experts;
mod pairs;
mod selection;

use std::borrow::Borrow;

use rayon::prelude::*;
use serde::Serialize;

pub use experts::Experts;
pub use pairs::{Module, Pairs};
pub use selection::Selection;

use crate::adapter::peft::{Base, LowRank, NewLora, ParameterUpdate};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::linalg::{Difference, Sketch, residual_norm_sqr, truncated_svd, truncated_svd_bytes};
use crate::merge::Truncation;
use crate::plan::{Expr, PlannedTensor, TensorRef};
use crate::quant;

/// The rank and the accuracy of an extraction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExtractOptions {
    /// The largest rank of a module's update.
    pub rank: usize,
    /// A share of the change's squared Frobenius norm, 0 to 1. A module gets the smallest rank up to `rank` that
    /// keeps this share.
    pub energy: Option<f64>,
    /// Singular values up to this one are left out.
    pub sv_epsilon: f64,
    /// The type of the factors. Errors are measured on factors rounded to it.
    pub dtype: DType,
    /// The decomposition.
    pub sketch: Sketch,
    /// Memory for decompositions that run at the same time, in bytes. One always runs, however much it takes.
    pub max_memory_bytes: u64,
}

/// All modules together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Totals {
    /// Modules with an update.
    pub modules: usize,
    /// Modules that were compared and have no update.
    pub unchanged: usize,
    /// Those of them that changed, but have no singular value above `sv_epsilon`.
    pub negligible: usize,
    /// Values in factors and whole tensors.
    pub values: u64,
    /// The number of values in the base.
    pub base_values: u64,
    /// The energy of all changes as one vector, as for a module; `None` without modules.
    pub energy: Option<f64>,
    /// The relative error of all changes as one vector, as for a module; `None` without modules.
    pub relative_error: Option<f64>,
}

/// An approximation of the change from the base to the finetuned model.
#[derive(Debug)]
pub struct Extraction {
    /// Updates by the weights' names in the base.
    pub updates: Vec<(String, LowRank)>,
    /// Updates of experts.
    pub parameters: Vec<ParameterUpdate>,
    /// Tensors that are replaced by those of the finetuned model.
    pub saved: Vec<PlannedTensor>,
    /// Ranks and errors of the updates in their order, then those of experts. Errors are those of the factors as stored.
    pub modules: Vec<Truncation>,
    /// The totals over all modules.
    pub totals: Totals,
    dtype: DType,
    keeps_tie: bool,
}

impl Pairs {
    /// Decomposes every module's change, as many at a time as memory allows; `done` is called after each.
    /// The result depends on the seed, not on the number of threads.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] for a NaN or an infinity in either model; [`crate::Error::Mismatch`]
    /// where the models are the same.
    pub fn extract(&self, options: &ExtractOptions, done: &(dyn Fn() + Sync)) -> Result<Extraction> {
        let mut found = Vec::new();
        let weights: Vec<&PlannedTensor> = self.modules.iter().map(|module| &module.of).collect();
        let mut left = self.modules.as_slice();
        while !left.is_empty() {
            let (batch, others) = left.split_at(at_a_time(&weights[weights.len() - left.len()..], options));
            let update = |module: &Module| {
                let update = update(module, options);
                done();
                update
            };
            found.extend(batch.par_iter().map(update).collect::<Vec<_>>().into_iter().collect::<Result<Vec<_>>>()?);
            left = others;
        }
        let negligible = found.iter().filter(|found| matches!(found, Found::Negligible)).count();
        let found = found.into_iter().filter_map(|found| match found {
            Found::Made(made) => Some(made),
            Found::Unchanged | Found::Negligible => None,
        });
        let (mut modules, updates): (Vec<_>, Vec<_>) = found.unzip();
        let mut parameters = Vec::new();
        for experts in &self.experts {
            let update = experts.update(options)?;
            done();
            if let Some((truncation, update)) = update {
                modules.push(truncation);
                parameters.push(update);
            }
        }
        if modules.is_empty() && self.saved.is_empty() {
            return Err(Finding::new(&self.finetuned, "")
                .expected(format_args!("weights that differ from those of {}", self.base.display()))
                .found("the same in all tensors")
                .hint("there is nothing to extract")
                .mismatch());
        }
        let totals = Totals { negligible, ..self.totals(&modules, &updates, &parameters) };
        let (saved, keeps_tie) = (self.saved.clone(), self.keeps_tie);
        Ok(Extraction { updates, parameters, saved, modules, totals, dtype: options.dtype, keeps_tie })
    }

    fn totals(&self, modules: &[Truncation], updates: &[(String, LowRank)], parameters: &[ParameterUpdate]) -> Totals {
        let (energy, relative_error) = Truncation::together(modules).unzip();
        let elems = |expr: &Expr| expr.shape().iter().product::<usize>() as u64;
        let pairs = updates.iter().map(|(_, update)| (&update.a, &update.b));
        let factors = pairs.chain(parameters.iter().map(|update| (&update.a, &update.b)));
        let factors: u64 = factors.map(|(a, b)| elems(a) + elems(b)).sum();
        Totals {
            modules: modules.len(),
            unchanged: self.modules.len() + self.experts.len() - modules.len(),
            negligible: 0,
            values: factors + self.saved.iter().map(|tensor| tensor.elems() as u64).sum::<u64>(),
            base_values: self.base_values,
            energy,
            relative_error,
        }
    }
}

impl Extraction {
    /// Makes the LoRA for `base`.
    ///
    /// # Errors
    /// As [`NewLora::new`].
    pub fn lora(&self, base: &Base) -> Result<NewLora> {
        let mut lora = NewLora::new(base, &self.updates, &self.parameters, self.saved.clone(), self.dtype)?;
        if self.keeps_tie {
            // Both tensors are written, for programs that don't know the flag. Programs that know it keep one tensor
            // for both.
            lora.config.insert("ensure_weight_tying".to_owned(), true.into());
        }
        Ok(lora)
    }
}

/// How many changes of the first `weights` fit in memory together: at least one, and at most the number of threads.
fn at_a_time<T: Borrow<PlannedTensor>>(weights: &[T], options: &ExtractOptions) -> usize {
    let mut bytes = 0;
    let fitting = weights.iter().take(rayon::current_num_threads()).take_while(|weight| {
        let weight: &PlannedTensor = (*weight).borrow();
        bytes += truncated_svd_bytes(weight.rows(), weight.row_len(), options.rank, options.sketch);
        bytes <= options.max_memory_bytes
    });
    fitting.count().max(1)
}

/// What was found of one matrix.
enum Found<T> {
    Unchanged,
    /// No singular value is above `sv_epsilon`.
    Negligible,
    Made(T),
}

impl<T> Found<T> {
    fn made(self) -> Option<T> {
        match self {
            Found::Made(made) => Some(made),
            Found::Unchanged | Found::Negligible => None,
        }
    }
}

/// The errors of an approximation, and its factors: the left one with as many rows as the matrix, and the right one with
/// as many columns.
type Factors = (Truncation, Vec<f32>, Vec<f32>);

/// Approximates the change of one matrix, whose module is called so.
fn factors(module: &str, of: &PlannedTensor, less: &PlannedTensor, options: &ExtractOptions) -> Result<Found<Factors>> {
    let delta = Difference { of, less };
    let (mut svd, norm_sqr) = truncated_svd(&delta, options.rank, options.sketch)?;
    if norm_sqr == 0.0 {
        return Ok(Found::Unchanged);
    }
    if let Some(energy) = options.energy {
        svd.truncate(svd.rank_for_energy(energy, norm_sqr));
    }
    svd.truncate(svd.s.partition_point(|s| *s > options.sv_epsilon));
    if svd.rank() == 0 {
        return Ok(Found::Negligible);
    }
    let (mut left, mut right) = svd.balanced();
    round(options.dtype, &mut left);
    round(options.dtype, &mut right);
    let residual = residual_norm_sqr(&delta, &left, &right)?;
    let truncation = Truncation {
        module: module.to_owned(),
        shape: of.shape.clone(),
        rank: svd.rank(),
        energy: (svd.norm_sqr() / norm_sqr).min(1.0),
        relative_error: (residual / norm_sqr).sqrt(),
        norm_sqr,
    };
    Ok(Found::Made((truncation, left, right)))
}

/// The update of one module and its errors.
fn update(module: &Module, options: &ExtractOptions) -> Result<Found<(Truncation, (String, LowRank))>> {
    let path = module.name.strip_suffix(".weight").unwrap_or(&module.name);
    let (truncation, left, right) = match factors(path, &module.of, &module.less, options)? {
        Found::Made(made) => made,
        Found::Unchanged => return Ok(Found::Unchanged),
        Found::Negligible => return Ok(Found::Negligible),
    };
    let (rank, rows, cols) = (truncation.rank, module.of.rows(), module.of.row_len());
    // At a high rank the factors of all modules are as large as a model, so they wait in temporary files.
    let aside = |shape: [usize; 2], values: &[f32]| TensorRef::spill(shape.into(), values).map(Expr::Take);
    let (a, b) = match module.layout.is_transposed() {
        false => (aside([rank, cols], &right)?, aside([rows, rank], &left)?),
        // The weight is `[d_in, d_out]`, as embeddings are, so the left factor of its change is A's transpose.
        true => (aside([rank, rows], &transposed(&left, rank))?, aside([cols, rank], &transposed(&right, cols))?),
    };
    let update = LowRank { scale: 1.0, alpha: None, a, b, layout: module.layout, rounded: None };
    Ok(Found::Made((truncation, (module.name.clone(), update))))
}

/// Rounds `values` to `dtype` and back.
fn round(dtype: DType, values: &mut [f32]) {
    if dtype != DType::F32 {
        let mut bytes = vec![0; values.len() / dtype.block_elems() * dtype.block_bytes()];
        quant::encode(dtype, values, &mut bytes);
        quant::decode(dtype, &bytes, values);
    }
}

/// Transposes a matrix with rows of `row_len` values.
fn transposed(values: &[f32], row_len: usize) -> Vec<f32> {
    (0..row_len).flat_map(|column| values.iter().skip(column).step_by(row_len).copied()).collect()
}

#[cfg(test)]
mod tests;
