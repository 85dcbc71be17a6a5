//! Combining several models into one, with the methods of mergekit.
//!
//! Values are f32 and every step is done as torch does it, as in mergekit with `dtype: float32`. The result is
//! rounded once, to the base's type. A [`Group`] may ask for another working type, to which intermediate results are
//! rounded as in mergekit.
//!
//! Methods that draw random numbers draw them as mergekit does on the CPU with `--random-seed`: tensor by tensor in
//! the order of their names as strings, and for each tensor model by model in the given order.
//!
//! Tensors of different shapes are an error. mergekit truncates embeddings to the smallest vocabulary instead, and
//! leaves out models whose other tensors have different shapes.
//!
//! Reference: mergekit 0.1.5 `mergekit/merge_methods/` (`registry.py` for defaults), `graph.py` (`build_schedule`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::arithmetic::{Arithmetic, Sce};
use super::fusion::Fusion;
use super::groups::{Group, Positions, combine_groups};
use super::lazy::{Combined, Measure, Pending, difference};
use super::mean::Mean;
use super::method::ModelMethod;
use super::multislerp::MultiSlerp;
use super::near_swap::NearSwap;
use super::options::CombineOptions;
use super::reinforced::{Reinforced, ReinforcedMore};
use super::sparsity::{Choice, Draws, Rescale};
use super::spherical::{By, Karcher, ModelStock, NuSlerp, Slerp};
use super::working::Working;
use crate::error::{Finding, Result};
use crate::plan::{Expr, Plan, PlannedTensor, torch_sum};
use crate::quant;
use crate::source::show_shape;

/// Values of tensors that are compared at a time.
const COMPARED_ELEMS: usize = 1 << 20;

/// Combines several models into one with the names, shapes and types of the base, or of the first model where there
/// is no base. `slerp` goes from the base to the one model, or from the first model to the second. `linear`,
/// `karcher` and, without [`CombineOptions::nuslerp_updates`], `nuslerp` are means of the models; a base gives only
/// the types then. Tensors that aren't floating point have to be the same in the base and in all models.
///
/// # Errors
/// [`crate::Error::Mismatch`] where a model lacks a tensor, has one too many or one of another shape, and for options
/// that don't fit the method or the models.
pub fn combine_models(
    base: Option<&Plan>,
    models: &[&Plan],
    method: ModelMethod,
    options: &CombineOptions,
) -> Result<Combined<Plan>> {
    check(base, models, method, options)?;
    let pattern = base.unwrap_or(models[0]);
    let lookups: Vec<BTreeMap<&str, &PlannedTensor>> =
        models.iter().map(|m| m.tensors.iter().map(|t| (t.name.as_str(), t)).collect()).collect();
    let names: std::collections::HashSet<&str> = pattern.tensors.iter().map(|t| t.name.as_str()).collect();
    for model in models {
        if let Some(extra) = model.tensors.iter().find(|t| !names.contains(t.name.as_str())) {
            return Err(finding(extra)
                .expected(format_args!("only tensors that {} has, too", path(pattern)))
                .found("one that is not there")
                .mismatch());
        }
    }
    let options = Arc::new(options.clone());
    let group = |tensor: &PlannedTensor| {
        let models = operands(tensor, &lookups)?.into_iter().cloned().collect();
        Ok(Group {
            result: tensor.clone(),
            base: base.map(|_| tensor.clone()),
            models,
            options: options.clone(),
            working: Working::F32,
            label: tensor.name.clone(),
        })
    };
    let groups = pattern.tensors.iter().map(group).collect::<Result<_>>()?;
    combine_groups(groups, method)
}

/// Checks the options against the models before any tensor is read.
fn check(base: Option<&Plan>, models: &[&Plan], method: ModelMethod, options: &CombineOptions) -> Result<()> {
    let name = method.name();
    let finding = |field: &str| Finding::new("", field);
    options.check_numbers()?;
    if method.takes_weights() {
        let tensors = models.first().map(|model| model.tensors.as_slice()).unwrap_or_default();
        options.weights.check(models.len(), tensors.iter().map(|tensor| tensor.name.as_str()))?;
    }
    let (least, most) = match (method, base) {
        (ModelMethod::Slerp | ModelMethod::NearSwap | ModelMethod::ArceeFusion, Some(_)) => (1, 1),
        (ModelMethod::Passthrough, _) => (1, 1),
        (ModelMethod::Slerp | ModelMethod::NuSlerp, _) => (2, 2),
        (ModelMethod::ModelStock, _) => (2, usize::MAX),
        _ => (1, usize::MAX),
    };
    if models.len() < least || models.len() > most {
        let expected = match (most, base) {
            (1, _) if method == ModelMethod::Passthrough => "one model".to_owned(),
            (1, _) => "one model beside the base".to_owned(),
            (2, _) => "two models".to_owned(),
            (_, None) => "a model".to_owned(),
            _ => format!("at least {least} models beside the base"),
        };
        return Err(finding("method").expected(format_args!("{expected} for {name}")).found(models.len()).setting());
    }
    if method.needs_base() && base.is_none() {
        return Err(finding("method").expected(format_args!("a base for {name}")).found("none").setting());
    }
    for (field, is_on) in
        [("nuslerp_updates", options.nuslerp_updates), ("multislerp_updates", options.multislerp_updates)]
    {
        if is_on && base.is_none() {
            return Err(finding(field).expected("a base that the models change").found("none").setting());
        }
    }
    match (method, options.t) {
        (ModelMethod::Slerp, None) => {
            return Err(finding("t").expected("a number from 0 to 1 for slerp").found("none").setting());
        }
        (ModelMethod::Slerp, Some(t)) if !(0.0..=1.0).contains(&t) => {
            return Err(finding("t").expected("a number from 0 to 1").found(t).setting());
        }
        (ModelMethod::NearSwap, None) => {
            return Err(finding("t").expected("a distance for nearswap").found("none").setting());
        }
        _ => {}
    }
    let densities = options.densities(models.len())?.unwrap_or_else(|| vec![1.0; models.len()]);
    check_probabilities(method, &densities, options)
}

/// Checks that the probabilities of a method that ranks values are from 0 to 1.
pub(super) fn check_probabilities(method: ModelMethod, densities: &[f64], options: &CombineOptions) -> Result<()> {
    if !method.ranks() {
        return Ok(());
    }
    let bad = |&(i, d): &(usize, &f64)| {
        let epsilon = method.epsilon(options, i);
        *d > 0.0 && *d < 1.0 && (d + epsilon >= 1.0 || d - epsilon <= 0.0)
    };
    let Some((place, density)) = densities.iter().enumerate().find(bad) else { return Ok(()) };
    Err(Finding::new("", "epsilon")
        .expected(format_args!("less than {}, so that all probabilities are from 0 to 1", density.min(1.0 - density)))
        .found(method.epsilon(options, place))
        .hint("choose a smaller `epsilon`, or a `density` nearer to 0.5")
        .setting())
}

fn finding(tensor: &PlannedTensor) -> Finding {
    Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
}

fn path(plan: &Plan) -> String {
    plan.tensors.first().map(|t| t.expr.source_path().display().to_string()).unwrap_or_default()
}

/// Whether a tensor's values are numbers that can be combined.
pub(super) fn is_of_numbers(tensor: &PlannedTensor) -> bool {
    quant::can_decode(tensor.dtype) && tensor.expr.source_dtypes().all(quant::can_decode)
}

/// Checks that a tensor that can't be combined, like one of whole numbers, is the same in another model.
pub(super) fn same(tensor: &PlannedTensor, other: &PlannedTensor) -> Result<()> {
    let finding = || {
        let expected = format!("what {} has, as its values can't be combined", tensor.expr.source_path().display());
        finding(other).expected(expected)
    };
    if tensor.dtype != other.dtype {
        return Err(finding().found(format_args!("{} for {}", other.dtype, tensor.dtype)).mismatch());
    }
    let step = (COMPARED_ELEMS / tensor.row_len().max(1)).max(1).next_multiple_of(tensor.dtype.block_elems());
    let (mut scratch, mut one, mut two) = (Vec::new(), Vec::new(), Vec::new());
    for start in (0..tensor.rows()).step_by(step) {
        let rows = start..(start + step).min(tensor.rows());
        tensor.encode_rows(rows.clone(), &mut scratch, &mut one)?;
        other.encode_rows(rows, &mut scratch, &mut two)?;
        if one != two {
            return Err(finding().found("other values").mismatch());
        }
    }
    Ok(())
}

/// The tensors of this name in all models. Each model must have it, in the same shape.
fn operands<'a>(
    tensor: &PlannedTensor,
    models: &[BTreeMap<&str, &'a PlannedTensor>],
) -> Result<Vec<&'a PlannedTensor>> {
    let find = |model: &BTreeMap<&str, &'a PlannedTensor>| {
        let Some(found) = model.get(tensor.name.as_str()) else {
            let file = model.values().next().map(|t| t.expr.source_path()).unwrap_or_default();
            return Err(Finding::new(file, format!("tensor {:?}", tensor.name))
                .expected(format_args!("it, as in {}", tensor.expr.source_path().display()))
                .found("nothing")
                .mismatch());
        };
        if found.shape != tensor.shape {
            let expected = format!("{}, as in {}", show_shape(&tensor.shape), tensor.expr.source_path().display());
            return Err(finding(found).expected(expected).found(show_shape(&found.shape)).mismatch());
        }
        Ok(*found)
    };
    models.iter().map(find).collect()
}

/// What one tensor is combined with.
pub(super) struct Context<'a> {
    pub(super) method: ModelMethod,
    pub(super) options: &'a CombineOptions,
    pub(super) densities: &'a [f64],
    pub(super) working: Working,
}

impl Context<'_> {
    /// The combined expression of one tensor.
    pub(super) fn combine(
        &self,
        tensor: &PlannedTensor,
        base: Option<Expr>,
        models: Vec<Expr>,
        positions: &mut Positions,
        pending: &mut Pending,
    ) -> Result<Expr> {
        let Self { method, options, working, .. } = *self;
        let shape = method.rowed(options, &tensor.shape);
        let reshaped = |of: Expr, shape: Option<Vec<usize>>| match shape {
            Some(shape) => Expr::Reshape { of: Box::new(of), shape },
            None => of,
        };
        let rowed = |of: Expr| reshaped(of, shape.clone());
        let base = base.map(rowed);
        let models: Vec<Expr> = models.into_iter().map(rowed).collect();
        let weights = options.weights.of(&tensor.name);
        if models.is_empty()
            && let Some(base) = base
        {
            return Ok(reshaped(base, shape.is_some().then(|| tensor.shape.clone())));
        }
        let with_base = |models: Vec<Expr>| base.clone().into_iter().chain(models).collect::<Vec<_>>();
        let made = match method {
            ModelMethod::Linear => {
                let factors: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
                let divisor = self.divisor(tensor, &factors)?;
                let map = Mean { factors, divisor };
                Expr::Map { of: models, map: Arc::new(map) }
            }
            ModelMethod::Slerp => pending.map(with_base(models), Slerp { t: options.t.unwrap_or_default() }),
            ModelMethod::NuSlerp => {
                let sum: f64 = weights.iter().sum();
                let t = if sum.abs() < 1e-6 { 0.5 } else { weights[1] / sum };
                let by = match (options.nuslerp_flatten, options.nuslerp_row_wise) {
                    (true, _) => By::Tensor,
                    // A vector is one row in both cases.
                    (false, true) if tensor.shape.len() > 1 => By::Column,
                    (false, _) => By::Row,
                };
                match base.clone().filter(|_| options.nuslerp_updates) {
                    None => pending.map(models, NuSlerp { t, by, working }),
                    Some(base) => {
                        let updates =
                            models.into_iter().map(|m| working.rounded(difference(m, base.clone()))).collect();
                        let delta = Box::new(pending.map(updates, NuSlerp { t, by, working }));
                        working.rounded(Expr::Add { of: Box::new(base), delta })
                    }
                }
            }
            ModelMethod::Sce => pending.map(with_base(models), Sce { select_topk: options.select_topk, working }),
            ModelMethod::ModelStock => {
                pending.map(with_base(models), ModelStock { filter_wise: options.filter_wise, working })
            }
            ModelMethod::Karcher => pending.map(models, Karcher { max_iter: options.max_iter, tol: options.tol }),
            ModelMethod::MultiSlerp => {
                let weights: Vec<f32> = weights.iter().map(|w| working.round(*w as f32)).collect();
                let divisor = working.round(self.divisor(tensor, &weights)?.unwrap_or(1.0));
                let weights: Vec<f32> = weights.iter().map(|w| working.round(w / divisor)).collect();
                let (eps, tensor) = (method.epsilon(options, 0), tensor.name.clone());
                let slerp = MultiSlerp { weights, eps, tensor, working };
                match base.clone().filter(|_| options.multislerp_updates) {
                    // A single model stays as it is, whatever its weight.
                    _ if models.len() == 1 => models[0].clone(),
                    None => pending.map(models, slerp),
                    Some(base) => {
                        let updates =
                            models.into_iter().map(|m| working.rounded(difference(m, base.clone()))).collect();
                        let delta = Box::new(pending.map(updates, slerp));
                        working.rounded(Expr::Add { of: Box::new(base), delta })
                    }
                }
            }
            ModelMethod::NearSwap => {
                let map = NearSwap { t: options.t.unwrap_or_default() as f32, working };
                Expr::Map { of: with_base(models), map: Arc::new(map) }
            }
            ModelMethod::ArceeFusion => {
                let draws = positions.take(method.sampled(&tensor.shape));
                pending.map(with_base(models), Fusion { draws, working })
            }
            ModelMethod::Ram => {
                let epsilon = working.round(method.epsilon(options, 0) as f32);
                let map = Reinforced { epsilon, factors: vec![1.0; models.len()], working, sums: working };
                Expr::Map { of: with_base(models), map: Arc::new(map) }
            }
            ModelMethod::RamPlusTl => {
                let epsilon = working.round(method.epsilon(options, 0) as f32);
                let (r, alpha) = (options.r as f32, options.alpha as f32);
                pending.map(with_base(models), ReinforcedMore { epsilon, r, alpha, working })
            }
            ModelMethod::Passthrough => match options.scale {
                None => models[0].clone(),
                Some(factor) => Expr::Scale { of: Box::new(models[0].clone()), factor },
            },
            _ => {
                let arithmetic = self.arithmetic(tensor, &weights, positions)?;
                let of = with_base(models);
                match arithmetic.choices.iter().all(|choice| matches!(choice, Choice::All)) {
                    // This method needs no numbers from whole tensors.
                    true => Expr::Map { map: arithmetic.measure(&of)?, of },
                    false => pending.map(of, arithmetic),
                }
            }
        };
        Ok(reshaped(made, shape.is_some().then(|| tensor.shape.clone())))
    }

    /// The sum of the weights, where the result is divided by it and it isn't close to 0.
    fn divisor(&self, tensor: &PlannedTensor, weights: &[f32]) -> Result<Option<f32>> {
        let sum = torch_sum(weights);
        match self.method.divides_by_weights(self.options) {
            false => Ok(None),
            true if sum.abs() >= 1e-8 => Ok(Some(sum)),
            true => Err(finding(tensor)
                .expected(format_args!("weights that sum to something, as {} divides by their sum", self.method.name()))
                .found(sum)
                .hint("choose other `weights`, or don't normalize")
                .mismatch()),
        }
    }

    fn arithmetic(&self, tensor: &PlannedTensor, weights: &[f64], positions: &mut Positions) -> Result<Arithmetic> {
        let Self { method, options, densities, working } = *self;
        debug_assert!(method.is_arithmetic());
        let weights: Vec<f32> = weights.iter().map(|w| working.round(*w as f32)).collect();
        let mut choices = Vec::with_capacity(weights.len());
        for density in densities.iter().copied().enumerate() {
            let draws = Draws { stream: positions.stream.clone(), position: positions.next };
            let (choice, drawn) = method.choice(density, options, &tensor.shape, draws);
            positions.next += drawn;
            choices.push(choice);
        }
        let rescale = options.rescale.unwrap_or(method.rescales());
        Ok(Arithmetic {
            weights,
            choices,
            rescale: if rescale { Rescale::Magnitudes } else { Rescale::No },
            consensus: method.consensus(),
            normalize: method.divides_by_weights(options),
            lambda: options.lambda as f32,
            working,
        })
    }
}

#[cfg(test)]
mod tests;
