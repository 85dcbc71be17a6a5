//! The methods of mergekit that combine whole models: names, and what sets each apart.

use std::str::FromStr;

use super::fusion::Fusion;
use super::options::{CombineOptions, by_name};
use super::sparsity::{Choice, Draws};
use crate::error::{Error, Result};

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
    /// The weighted mean of directions, for the models or for their differences from a base.
    MultiSlerp,
    /// Moves each value of the base toward a model's, the further the closer it is.
    NearSwap,
    /// Takes the values of a model that matter most.
    ArceeFusion,
    /// Keeps changes that one model alone makes, and averages those of several.
    Ram,
    /// The same, with larger factors of a model's own changes where many of its changes are shared.
    RamPlusTl,
    /// One model, times a number.
    Passthrough,
}

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
    ("multislerp", ModelMethod::MultiSlerp),
    ("nearswap", ModelMethod::NearSwap),
    ("arcee_fusion", ModelMethod::ArceeFusion),
    ("ram", ModelMethod::Ram),
    ("ramplus_tl", ModelMethod::RamPlusTl),
    ("passthrough", ModelMethod::Passthrough),
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
        let is_mean = matches!(self, Self::Linear | Self::Slerp | Self::NuSlerp | Self::MultiSlerp | Self::Karcher);
        !is_mean && self != Self::Passthrough
    }

    /// Whether each model has a weight.
    pub fn takes_weights(self) -> bool {
        let is_mean = matches!(self, Self::Linear | Self::NuSlerp | Self::MultiSlerp);
        is_mean || self.is_arithmetic()
    }

    /// Whether it is a mean of the models, in which a base has no share.
    pub(crate) fn averages_models(self, options: &CombineOptions) -> bool {
        match self {
            Self::NuSlerp => !options.nuslerp_updates,
            Self::MultiSlerp => !options.multislerp_updates,
            _ => matches!(self, Self::Linear | Self::Karcher),
        }
    }

    /// Whether sums are divided by the sum of the weights.
    pub(crate) fn divides_by_weights(self, options: &CombineOptions) -> bool {
        self.takes_weights() && options.normalize.unwrap_or(self.normalizes())
    }

    pub(super) fn consensus(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies | Self::BreadcrumbsTies | Self::Della)
    }

    pub(super) fn normalizes(self) -> bool {
        matches!(self, Self::Linear | Self::MultiSlerp | Self::Ties | Self::Della)
    }

    pub(super) fn is_arithmetic(self) -> bool {
        let others = [Self::Sce, Self::ModelStock, Self::NearSwap, Self::ArceeFusion, Self::Ram, Self::RamPlusTl];
        self.needs_base() && !others.contains(&self)
    }

    /// The `epsilon` that is given for a model, or the method's own.
    pub(super) fn epsilon(self, options: &CombineOptions, place: usize) -> f64 {
        options.epsilon.as_ref().map(|epsilon| epsilon.at(place)).unwrap_or(match self {
            Self::MultiSlerp => 1e-8,
            Self::Ram | Self::RamPlusTl => 1e-5,
            _ => 0.15,
        })
    }

    /// The number of words that are drawn for a tensor by a method that draws none for single models.
    pub(super) fn sampled(self, shape: &[usize]) -> u64 {
        if self == Self::ArceeFusion { Fusion::words(shape.iter().product::<usize>() as u64) } else { 0 }
    }

    pub(super) fn rescales(self) -> bool {
        matches!(self, Self::DareTies | Self::DareLinear | Self::Della | Self::DellaLinear)
    }

    /// Whether the result depends on ranks or angles within rows. A vector counts as one row.
    fn is_by_row(self, options: &CombineOptions) -> bool {
        match self {
            _ if self.ranks() => true,
            Self::ArceeFusion => true,
            Self::NuSlerp => !options.nuslerp_flatten,
            Self::ModelStock => options.filter_wise,
            _ => false,
        }
    }

    /// The shape under which the rows of a tensor are the ones that the method works on, where that matters. A
    /// vector is one row. With more dimensions a row runs along the last one, except for DELLA, which ranks along
    /// the second, and NuSLERP by columns, whose angles run along the first.
    pub(super) fn rowed(self, options: &CombineOptions, shape: &[usize]) -> Option<Vec<usize>> {
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

    pub(super) fn ranks(self) -> bool {
        matches!(self, Self::Della | Self::DellaLinear)
    }

    /// Which values of a model's difference are kept, and how many random draws that takes. The model is told by its
    /// place among all and by its density.
    pub(super) fn choice(
        self,
        (place, density): (usize, f64),
        options: &CombineOptions,
        shape: &[usize],
        draws: Draws,
    ) -> (Choice, u64) {
        let gamma = options.gamma.at(place);
        let elems = shape.iter().product::<usize>() as u64;
        let drawn = if density < 1.0 { elems } else { 0 };
        match self {
            Self::Ties => (Choice::Magnitude { density }, 0),
            Self::Breadcrumbs | Self::BreadcrumbsTies => (Choice::Band { density, gamma }, 0),
            Self::DareTies | Self::DareLinear => (Choice::Random { density, draws }, drawn),
            _ if self.ranks() => {
                let columns = shape.iter().skip(2).product();
                let epsilon = self.epsilon(options, place);
                let choice = Choice::Ranked { density, epsilon, columns, draws };
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
