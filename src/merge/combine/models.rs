//! Combining several models into one, with the methods of mergekit.
//!
//! Values are f32 and every step is done as torch does it, as in mergekit with `dtype: float32`. The result is
//! rounded once, to the base's type.
//!
//! Methods that draw random numbers draw them as mergekit does on the CPU with `--random-seed`: tensor by tensor in
//! the order of their names as strings, and for each tensor model by model in the given order.
//!
//! Tensors of different shapes are an error. mergekit truncates embeddings to the smallest vocabulary instead, and
//! leaves out models whose other tensors have different shapes.
//!
//! Reference: mergekit 0.1.5 `mergekit/merge_methods/` (`registry.py` for defaults), `graph.py` (`build_schedule`).

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use super::arithmetic::{Arithmetic, Sce};
use super::lazy::{Combined, Measure, Pending, difference};
use super::options::{CombineOptions, by_name};
use super::sparsity::{Choice, Draws, Rescale};
use super::spherical::{By, Karcher, Linear, ModelStock, NuSlerp, Slerp};
use crate::error::{Error, Finding, Result};
use crate::linalg::Stream;
use crate::plan::{Expr, Plan, PlannedTensor};
use crate::quant;
use crate::source::show_shape;

/// A method that combines several models into one, by mergekit's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelMethod {
    /// The weighted mean.
    Linear,
    /// Interpolates between two models along the great circle.
    Slerp,
    /// The same with weights, for the differences from a base or for the models themselves.
    NuSlerp,
    /// The base plus the weighted sum of the differences from it.
    TaskArithmetic,
    /// Keeps the largest values of each difference, then of these the ones that have the elected sign.
    Ties,
    /// Keeps random values, then of these the ones that have the elected sign.
    DareTies,
    /// Keeps random values.
    DareLinear,
    /// Drops the smallest and the largest values of each difference.
    Breadcrumbs,
    /// The same, then keeps the values that have the elected sign.
    BreadcrumbsTies,
    /// Keeps random values, large ones more likely, then of these the ones that have the elected sign.
    Della,
    /// Keeps random values, large ones more likely.
    DellaLinear,
    /// Keeps the values that differ most between models, then of these the ones that have the elected sign.
    Sce,
    /// Interpolates between the base and the mean by the angles between the models' differences.
    ModelStock,
    /// The mean of directions on the sphere.
    Karcher,
}

/// Values of tensors that are compared at a time.
const COMPARED_ELEMS: usize = 1 << 20;

const METHODS: &[(&str, ModelMethod)] = &[
    ("linear", ModelMethod::Linear),
    ("slerp", ModelMethod::Slerp),
    ("nuslerp", ModelMethod::NuSlerp),
    ("task_arithmetic", ModelMethod::TaskArithmetic),
    ("ties", ModelMethod::Ties),
    ("dare_ties", ModelMethod::DareTies),
    ("dare_linear", ModelMethod::DareLinear),
    ("breadcrumbs", ModelMethod::Breadcrumbs),
    ("breadcrumbs_ties", ModelMethod::BreadcrumbsTies),
    ("della", ModelMethod::Della),
    ("della_linear", ModelMethod::DellaLinear),
    ("sce", ModelMethod::Sce),
    ("model_stock", ModelMethod::ModelStock),
    ("karcher", ModelMethod::Karcher),
];

impl ModelMethod {
    /// Every method's name.
    pub fn names() -> impl Iterator<Item = &'static str> {
        METHODS.iter().map(|(name, _)| *name)
    }

    /// mergekit's name.
    pub fn name(self) -> &'static str {
        METHODS.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }

    /// Whether it combines differences from a base and so requires one.
    pub fn needs_base(self) -> bool {
        !matches!(self, Self::Linear | Self::Slerp | Self::NuSlerp | Self::Karcher)
    }

    /// Whether each model has a weight.
    pub fn takes_weights(self) -> bool {
        !matches!(self, Self::Slerp | Self::Sce | Self::ModelStock | Self::Karcher)
    }

    /// Whether it is a mean of the models, in which a base has no share.
    pub(crate) fn averages_models(self, options: &CombineOptions) -> bool {
        matches!(self, Self::Linear | Self::Karcher) || self == Self::NuSlerp && !options.nuslerp_updates
    }

    /// Whether sums are divided by the sum of the weights.
    pub(crate) fn divides_by_weights(self, options: &CombineOptions) -> bool {
        self.takes_weights() && options.normalize.unwrap_or(self.normalizes())
    }

    fn consensus(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies | Self::BreadcrumbsTies | Self::Della)
    }

    fn normalizes(self) -> bool {
        matches!(self, Self::Linear | Self::Ties | Self::Della)
    }

    fn is_arithmetic(self) -> bool {
        self.needs_base() && !matches!(self, Self::Sce | Self::ModelStock)
    }

    fn rescales(self) -> bool {
        matches!(self, Self::DareTies | Self::DareLinear | Self::Della | Self::DellaLinear)
    }

    /// Whether the result depends on ranks or angles within rows. A vector counts as one row.
    fn is_by_row(self, options: &CombineOptions) -> bool {
        match self {
            _ if self.ranks() => true,
            Self::NuSlerp => !options.nuslerp_flatten,
            Self::ModelStock => options.filter_wise,
            _ => false,
        }
    }

    /// The shape under which the rows of a tensor are the ones that the method works on, where that matters. A
    /// vector is one row. With more dimensions a row runs along the last one, except for DELLA, which ranks along
    /// the second, and NuSLERP by columns, whose angles run along the first.
    fn rowed(self, options: &CombineOptions, shape: &[usize]) -> Option<Vec<usize>> {
        let by_column = self == Self::NuSlerp && options.nuslerp_row_wise;
        match *shape {
            _ if !self.is_by_row(options) => None,
            [] | [_] => Some(vec![1, shape.iter().product()]),
            [first, ref rest @ ..] if rest.len() > 1 && (self.ranks() || by_column) => {
                Some(vec![first, rest.iter().product()])
            }
            _ => None,
        }
    }

    fn ranks(self) -> bool {
        matches!(self, Self::Della | Self::DellaLinear)
    }

    /// Which values of a difference are kept, and how many random draws that takes.
    fn choice(self, density: f64, options: &CombineOptions, shape: &[usize], draws: Draws) -> (Choice, u64) {
        let elems = shape.iter().product::<usize>() as u64;
        let drawn = if density < 1.0 { elems } else { 0 };
        match self {
            Self::Ties => (Choice::Magnitude { density }, 0),
            Self::Breadcrumbs | Self::BreadcrumbsTies => (Choice::Band { density, gamma: options.gamma }, 0),
            Self::DareTies | Self::DareLinear => (Choice::Random { density, draws }, drawn),
            _ if self.ranks() => {
                let columns = shape.iter().skip(2).product();
                let choice = Choice::Ranked { density, epsilon: options.epsilon, columns, draws };
                (choice, if density > 0.0 { drawn } else { 0 })
            }
            _ => (Choice::All, 0),
        }
    }
}

impl FromStr for ModelMethod {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        by_name(METHODS, name)
    }
}

/// Combines several models into one with the names, shapes and types of the base, or of the first model where there
/// is no base. `slerp` goes from the base to the one model, or from the first model to the second. `linear`,
/// `karcher` and, without [`CombineOptions::nuslerp_updates`], `nuslerp` are means of the models; a base gives only
/// the types then. Tensors that aren't floating point have to be the same in the base and in all models.
///
/// # Errors
/// [`Error::Mismatch`] where a model lacks a tensor, has one too many or one of another shape, and for options
/// that don't fit the method or the models.
pub fn combine_models(
    base: Option<&Plan>,
    models: &[&Plan],
    method: ModelMethod,
    options: &CombineOptions,
) -> Result<Combined<Plan>> {
    let densities = check(base, models, method, options)?;
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
    // Random numbers are drawn in the order of names.
    let mut order: Vec<usize> = (0..pattern.tensors.len()).collect();
    order.sort_by(|a, b| pattern.tensors[*a].name.cmp(&pattern.tensors[*b].name));
    let mut positions = Positions::new(pattern, &order, method, &densities, options);
    let mut pending = Pending::default();
    let mut plan = pattern.clone();
    for at in order {
        let tensor = &pattern.tensors[at];
        let found = operands(tensor, &lookups)?;
        if !(quant::can_encode(tensor.dtype) && found.iter().copied().chain([tensor]).all(is_of_numbers)) {
            found.iter().try_for_each(|other| same(tensor, other))?;
            continue;
        }
        let of = found.iter().map(|found| found.expr.clone()).collect();
        let context = Context { method, options, densities: &densities };
        let made = context.combine(tensor, base.map(|_| tensor.expr.clone()), of, &mut positions, &mut pending)?;
        plan.tensors[at].expr = made;
    }
    Ok(Combined::new(plan, pending))
}

/// Checks the options against the models before any tensor is read, and returns the densities.
fn check(base: Option<&Plan>, models: &[&Plan], method: ModelMethod, options: &CombineOptions) -> Result<Vec<f64>> {
    let name = method.name();
    let finding = |field: &str| Finding::new("", field);
    options.check_numbers()?;
    if method.takes_weights() {
        options.weights.check(models.len())?;
    }
    let (least, most) = match (method, base) {
        (ModelMethod::Slerp, Some(_)) => (1, 1),
        (ModelMethod::Slerp | ModelMethod::NuSlerp, _) => (2, 2),
        (ModelMethod::ModelStock, _) => (2, usize::MAX),
        _ => (1, usize::MAX),
    };
    if models.len() < least || models.len() > most {
        let expected = match (most, base) {
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
    if options.nuslerp_updates && base.is_none() {
        return Err(finding("nuslerp_updates").expected("a base that the models change").found("none").setting());
    }
    if method == ModelMethod::Slerp && options.t.is_none() {
        return Err(finding("t").expected("a number from 0 to 1 for slerp").found("none").setting());
    }
    let densities = options.densities(models.len())?.unwrap_or_else(|| vec![1.0; models.len()]);
    if method.ranks() {
        let bad = |d: f64| d > 0.0 && d < 1.0 && (d + options.epsilon >= 1.0 || d - options.epsilon <= 0.0);
        if let Some(density) = densities.iter().find(|d| bad(**d)) {
            return Err(finding("epsilon")
                .expected(format_args!(
                    "less than {}, so that all probabilities are from 0 to 1",
                    density.min(1.0 - density)
                ))
                .found(options.epsilon)
                .hint("choose a smaller `epsilon`, or a `density` nearer to 0.5")
                .setting());
        }
    }
    Ok(densities)
}

fn finding(tensor: &PlannedTensor) -> Finding {
    Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name))
}

fn path(plan: &Plan) -> String {
    plan.tensors.first().map(|t| t.expr.source_path().display().to_string()).unwrap_or_default()
}

/// Whether a tensor's values are numbers that can be combined.
fn is_of_numbers(tensor: &PlannedTensor) -> bool {
    quant::can_decode(tensor.dtype) && tensor.expr.source_dtypes().all(quant::can_decode)
}

/// Checks that a tensor that can't be combined, like one of whole numbers, is the same in another model.
fn same(tensor: &PlannedTensor, other: &PlannedTensor) -> Result<()> {
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

/// The position of the random draws of each tensor and model.
struct Positions {
    stream: Arc<Stream>,
    next: u64,
}

impl Positions {
    fn new(plan: &Plan, order: &[usize], method: ModelMethod, densities: &[f64], options: &CombineOptions) -> Self {
        let mut total = 0;
        let nothing = || Draws { stream: Arc::new(Stream::new(0, 0)), position: 0 };
        for tensor in order.iter().map(|at| &plan.tensors[*at]) {
            total += densities.iter().map(|d| method.choice(*d, options, &tensor.shape, nothing()).1).sum::<u64>();
        }
        Self { stream: Arc::new(Stream::new(options.seed, total)), next: 0 }
    }
}

struct Context<'a> {
    method: ModelMethod,
    options: &'a CombineOptions,
    densities: &'a [f64],
}

impl Context<'_> {
    /// The combined expression of one tensor.
    fn combine(
        &self,
        tensor: &PlannedTensor,
        base: Option<Expr>,
        models: Vec<Expr>,
        positions: &mut Positions,
        pending: &mut Pending,
    ) -> Result<Expr> {
        let Self { method, options, .. } = *self;
        let shape = method.rowed(options, &tensor.shape);
        let reshaped = |of: Expr, shape: Option<Vec<usize>>| match shape {
            Some(shape) => Expr::Reshape { of: Box::new(of), shape },
            None => of,
        };
        let rowed = |of: Expr| reshaped(of, shape.clone());
        let base = base.map(rowed);
        let models: Vec<Expr> = models.into_iter().map(rowed).collect();
        let weights = options.weights.of(&tensor.name);
        let with_base = |models: Vec<Expr>| base.clone().into_iter().chain(models).collect::<Vec<_>>();
        let made = match method {
            ModelMethod::Linear => {
                let factors: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
                let divisor = self.divisor(tensor, &factors)?;
                let map = Linear { factors, divisor };
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
                    None => pending.map(models, NuSlerp { t, by }),
                    Some(base) => {
                        let updates = models.into_iter().map(|m| difference(m, base.clone())).collect();
                        let delta = Box::new(pending.map(updates, NuSlerp { t, by }));
                        Expr::Add { of: Box::new(base), delta }
                    }
                }
            }
            ModelMethod::Sce => pending.map(with_base(models), Sce { select_topk: options.select_topk }),
            ModelMethod::ModelStock => pending.map(with_base(models), ModelStock { filter_wise: options.filter_wise }),
            ModelMethod::Karcher => pending.map(models, Karcher { max_iter: options.max_iter, tol: options.tol }),
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
        let sum: f32 = weights.iter().sum();
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
        let Self { method, options, densities } = *self;
        debug_assert!(method.is_arithmetic());
        let weights: Vec<f32> = weights.iter().map(|w| *w as f32).collect();
        let mut choices = Vec::with_capacity(weights.len());
        for density in densities {
            let draws = Draws { stream: positions.stream.clone(), position: positions.next };
            let (choice, drawn) = method.choice(*density, options, &tensor.shape, draws);
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
        })
    }
}

#[cfg(test)]
mod tests;
