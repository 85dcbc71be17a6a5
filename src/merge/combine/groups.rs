//! Tensors that are combined one by one, each with options and a working type of its own.

use std::sync::Arc;

use super::lazy::{Combined, Pending};
use super::method::ModelMethod;
use super::models::{Context, check_probabilities, is_of_numbers, same};
use super::options::CombineOptions;
use super::sparsity::Draws;
use super::working::Working;
use crate::error::Result;
use crate::linalg::Stream;
use crate::plan::{Plan, PlannedTensor};
use crate::quant;

/// One tensor of the result, and what it is combined of.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name, type and shape. The expression is that of a tensor which is the same in all models.
    pub result: PlannedTensor,
    /// The base's tensor, for methods that have a base.
    pub base: Option<PlannedTensor>,
    /// The tensors of the models.
    pub models: Vec<PlannedTensor>,
    /// The options for this tensor.
    pub options: Arc<CombineOptions>,
    /// The type to which intermediate results are rounded.
    pub working: Working,
    /// Random numbers are drawn in the order of these names.
    pub label: String,
}

/// Makes every tensor by itself, in the order of `groups`. All groups have the same seed.
///
/// # Errors
/// [`crate::Error::Mismatch`] for tensors that aren't numbers and differ, [`crate::Error::Setting`] for options that don't fit the
/// method.
pub fn combine_groups(groups: Vec<Group>, method: ModelMethod) -> Result<Combined<Plan>> {
    let densities: Vec<Vec<f64>> = groups.iter().map(|group| densities(group, method)).collect::<Result<_>>()?;
    let mut order: Vec<usize> = (0..groups.len()).collect();
    order.sort_by(|a, b| groups[*a].label.cmp(&groups[*b].label));
    let mut positions = Positions::new(&groups, &order, method, &densities);
    let mut pending = Pending::default();
    let mut plan = Plan { tensors: groups.iter().map(|group| group.result.clone()).collect() };
    for at in order {
        let group = &groups[at];
        let tensor = &group.result;
        let all = || group.base.iter().chain(&group.models);
        if !(quant::can_encode(tensor.dtype) && all().chain([tensor]).all(is_of_numbers)) {
            group.models.iter().try_for_each(|other| same(tensor, other))?;
            continue;
        }
        let context = Context { method, options: &group.options, densities: &densities[at], working: group.working };
        let of = group.models.iter().map(|model| model.expr.clone()).collect();
        let base = group.base.as_ref().map(|base| base.expr.clone());
        plan.tensors[at].expr = context.combine(tensor, base, of, &mut positions, &mut pending)?;
    }
    Ok(Combined::new(plan, pending))
}

/// The density of each model of a group.
fn densities(group: &Group, method: ModelMethod) -> Result<Vec<f64>> {
    let count = group.models.len();
    let densities = group.options.densities(count)?.unwrap_or_else(|| vec![1.0; count]);
    check_probabilities(method, &densities, &group.options)?;
    Ok(densities)
}

/// The position of the random draws of each tensor and model.
pub(super) struct Positions {
    pub(super) stream: Arc<Stream>,
    pub(super) next: u64,
}

impl Positions {
    fn new(groups: &[Group], order: &[usize], method: ModelMethod, densities: &[Vec<f64>]) -> Self {
        let nothing = || Draws { stream: Arc::new(Stream::new(0, 0)), position: 0 };
        let drawn = |at: &usize| {
            let Group { options, result, .. } = &groups[*at];
            let of_one = |(i, d): (usize, &f64)| method.choice((i, *d), options, &result.shape, nothing()).1;
            method.sampled(&result.shape) + densities[*at].iter().enumerate().map(of_one).sum::<u64>()
        };
        let seed = groups.first().map_or(0, |group| group.options.seed);
        Self { stream: Arc::new(Stream::new(seed, order.iter().map(drawn).sum())), next: 0 }
    }

    /// The next `count` draws.
    pub(super) fn take(&mut self, count: u64) -> Draws {
        let draws = Draws { stream: self.stream.clone(), position: self.next };
        self.next += count;
        draws
    }
}
