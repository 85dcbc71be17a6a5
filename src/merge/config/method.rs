//! What mergekit's methods ask of a configuration: parameters, a base, and a number of models.
//!
//! Reference: mergekit `merge_methods/` (the specification of each method).

use super::setting::Kind;
use crate::dtype::DType;
use crate::merge::combine::{ModelMethod, Working};

/// Whether all models share a parameter's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scope {
    Shared,
    Each,
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameter {
    pub(super) name: &'static str,
    pub(super) scope: Scope,
    /// Its value if none is given; `None` if one must be given.
    pub(super) default: Option<f64>,
}

/// Every parameter of any method, and what its values are.
const KINDS: &[(&str, Kind)] = &[
    ("weight", Kind::Number),
    ("density", Kind::Number),
    ("gamma", Kind::Number),
    ("epsilon", Kind::Number),
    ("lambda", Kind::Number),
    ("normalize", Kind::Flag),
    ("rescale", Kind::Flag),
    ("int8_mask", Kind::Flag),
    ("t", Kind::Number),
    ("select_topk", Kind::Number),
    ("max_iter", Kind::Count),
    ("tol", Kind::Number),
    ("filter_wise", Kind::Flag),
    ("nuslerp_flatten", Kind::Flag),
    ("nuslerp_row_wise", Kind::Flag),
    ("normalize_weights", Kind::Flag),
    ("eps", Kind::Number),
    ("scale", Kind::Number),
    ("r", Kind::Number),
    ("alpha", Kind::Number),
];

/// The names of all parameters.
pub(super) fn names() -> Vec<&'static str> {
    KINDS.iter().map(|(name, _)| *name).collect()
}

/// What the values of the parameter called `name` are; `None` if no method has it.
pub(super) fn kind_of(name: &str) -> Option<Kind> {
    KINDS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
}

/// Whether a method has a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BasePolicy {
    /// It must have one, which is among the inputs.
    Required,
    /// It may have one.
    Optional,
    /// The base is an input like any other.
    Ignored,
}

/// What becomes of a tensor that some of the models lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// It is made of those that there are, if they are enough.
    Combine,
    /// If one model alone has it, it is taken from there.
    TakeOnly,
    /// If the base alone has it, it is taken from there.
    TakeBase,
    /// If too few models have it, it is the base's, or left out.
    TakeBaseOrSkip,
}

/// The requirements of a method.
pub(super) struct Requirements {
    pub(super) base: BasePolicy,
    /// The least and the largest number of inputs, the base among them.
    pub(super) inputs: (usize, usize),
    /// The same without the base.
    pub(super) non_base: (usize, usize),
    pub(super) missing: Missing,
}

const ANY: usize = usize::MAX;

impl ModelMethod {
    /// The type of its results where it computes in `working`. torch promotes some results of 16 bits to f32.
    pub(super) fn result_dtype(self, working: Working) -> DType {
        match self {
            Self::ArceeFusion | Self::RamPlusTl => DType::F32,
            _ => working.dtype(),
        }
    }

    /// What it asks of its inputs.
    pub(super) fn requirements(self) -> Requirements {
        let of = |base, inputs, non_base, missing| Requirements { base, inputs, non_base, missing };
        use BasePolicy::{Ignored, Optional, Required};
        match self {
            Self::Linear | Self::Karcher => of(Ignored, (1, ANY), (0, ANY), Missing::Combine),
            Self::Passthrough => of(Ignored, (1, 1), (0, ANY), Missing::Combine),
            Self::Slerp | Self::ArceeFusion => of(Required, (2, 2), (0, ANY), Missing::TakeOnly),
            Self::NearSwap => of(Required, (2, 2), (0, ANY), Missing::TakeBase),
            Self::NuSlerp => of(Optional, (1, ANY), (2, 2), Missing::TakeOnly),
            Self::MultiSlerp => of(Optional, (1, ANY), (1, ANY), Missing::Combine),
            Self::ModelStock => of(Required, (3, ANY), (0, ANY), Missing::TakeBaseOrSkip),
            _ => of(Required, (1, ANY), (0, ANY), Missing::Combine),
        }
    }

    /// Its parameters.
    pub(super) fn parameters(self) -> Vec<Parameter> {
        let shared = |name, default| Parameter { name, scope: Scope::Shared, default };
        let each = |name, default| Parameter { name, scope: Scope::Each, default };
        let unset = Some(0.0);
        match self {
            Self::Linear => vec![each("weight", None), shared("normalize", unset)],
            Self::Slerp | Self::NearSwap => vec![shared("t", None)],
            Self::ArceeFusion => Vec::new(),
            Self::Passthrough => vec![each("scale", unset)],
            Self::MultiSlerp => vec![each("weight", None), shared("normalize_weights", unset), shared("eps", unset)],
            Self::Ram => vec![shared("epsilon", unset)],
            Self::RamPlusTl => vec![shared("r", unset), shared("alpha", unset), shared("epsilon", unset)],
            Self::NuSlerp => {
                vec![each("weight", None), shared("nuslerp_row_wise", unset), shared("nuslerp_flatten", unset)]
            }
            Self::Karcher => vec![shared("max_iter", unset), shared("tol", unset)],
            Self::ModelStock => vec![shared("filter_wise", unset)],
            Self::Sce => vec![shared("int8_mask", unset), shared("select_topk", unset)],
            _ => {
                let mut all = vec![
                    each("weight", None),
                    each("density", Some(1.0)),
                    shared("normalize", unset),
                    shared("rescale", unset),
                    shared("lambda", unset),
                    shared("int8_mask", unset),
                ];
                match self {
                    Self::Breadcrumbs | Self::BreadcrumbsTies => all.push(each("gamma", Some(0.01))),
                    Self::Della | Self::DellaLinear => all.push(each("epsilon", Some(0.15))),
                    _ => {}
                }
                all
            }
        }
    }
}
