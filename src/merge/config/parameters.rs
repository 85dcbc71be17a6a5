//! Parameters at every level of a configuration, and the options that they are for one tensor.
//!
//! Reference: mergekit `config.py` (`ConfigReader.parameter_sources`), `parameter_resolver.py`.

use super::method::{Parameter, Scope, kind_of, names};
use super::setting::Setting;
use crate::error::Result;
use crate::merge::combine::{CombineOptions, Weights};
use crate::yaml::Value;

/// The parameters of one level.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Parameters(Vec<(String, Setting)>);

impl Parameters {
    /// No parameters.
    pub(super) const NONE: Self = Self(Vec::new());

    /// Reads `parameters`. Those that no method has are refused.
    pub(super) fn read(value: Option<Value>) -> Result<Self> {
        let Some(value) = value else { return Ok(Self::default()) };
        let read = |(name, value): (&str, Value)| {
            let kind = kind_of(name).ok_or_else(|| value.unknown_key(&names()))?;
            Ok((name.to_owned(), Setting::read(&value, kind)?))
        };
        value.keys()?.all()?.into_iter().map(read).collect::<Result<_>>().map(Self)
    }

    /// The names of the parameters.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }

    fn get(&self, name: &str) -> Option<&Setting> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, setting)| setting)
    }
}

/// The levels that count for one tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Levels<'a> {
    /// Those of each source of the slice, in the order of its models.
    pub(super) sources: &'a [&'a Parameters],
    pub(super) slice: &'a Parameters,
    pub(super) module: &'a Parameters,
    pub(super) config: &'a Parameters,
}

/// A tensor whose options are evaluated.
#[derive(Debug, Clone)]
pub(super) struct Evaluated<'a> {
    /// Its name in the result.
    pub(super) name: &'a str,
    /// For each input of the method, its place among the slice's sources and the tensor's name in its model.
    pub(super) inputs: &'a [(usize, String)],
    /// The position among the slice's layers, from 0 to 1.
    pub(super) t: f64,
}

impl<'a> Levels<'a> {
    /// The value of a parameter, for one source or for all together. A value for all is never taken from a source.
    fn value(&self, name: &str, source: Option<usize>, tensor: &str, t: f64) -> Option<f64> {
        let own = source.and_then(|source| self.sources.get(source).copied());
        let levels = own.into_iter().chain([self.slice, self.module, self.config]);
        levels.filter_map(|level| level.get(name)).find_map(|setting| setting.evaluate(tensor, t))
    }

    /// Puts the values of a method's parameters into `options`. Returns the required parameter that has no value, and
    /// the place of the source that lacks it, if it is one's own.
    pub(super) fn apply(
        &self,
        parameters: &[Parameter],
        of: &Evaluated,
        options: &mut CombineOptions,
    ) -> Result<(), (&'static str, Option<usize>)> {
        for parameter in parameters {
            let values: Vec<Option<f64>> = match parameter.scope {
                Scope::Shared => vec![self.value(parameter.name, None, of.name, of.t)],
                Scope::Each => {
                    let value = |(at, name): &(usize, String)| self.value(parameter.name, Some(*at), name, of.t);
                    of.inputs.iter().map(value).collect()
                }
            };
            let default = parameter.default;
            if let Some(missing) = values.iter().position(Option::is_none).filter(|_| default.is_none()) {
                let source = of.inputs.get(missing).map(|(at, _)| *at);
                return Err((parameter.name, source.filter(|_| parameter.scope == Scope::Each)));
            }
            if values.iter().any(Option::is_some) {
                let values = values.into_iter().map(|value| value.or(default).unwrap_or_default()).collect();
                set(options, parameter.name, values);
            }
        }
        Ok(())
    }
}

/// Sets the option for a parameter. Shares of more than everything keep everything, as in mergekit.
fn set(options: &mut CombineOptions, name: &str, values: Vec<f64>) {
    let first = values.first().copied().unwrap_or_default();
    let flag = first != 0.0;
    match name {
        "weight" => options.weights = Weights::new(values),
        "density" => options.density = values.into_iter().map(|share| share.min(1.0)).collect(),
        "gamma" => options.gamma = values.into(),
        "epsilon" | "eps" => options.epsilon = Some(values.into()),
        "lambda" => options.lambda = first,
        "normalize" | "normalize_weights" => options.normalize = Some(flag),
        "rescale" => options.rescale = Some(flag),
        "t" => options.t = Some(first),
        "scale" => options.scale = Some(first),
        "r" => options.r = first,
        "alpha" => options.alpha = first,
        "select_topk" => options.select_topk = first,
        "max_iter" => options.max_iter = first as usize,
        "tol" => options.tol = first,
        "filter_wise" => options.filter_wise = flag,
        "nuslerp_flatten" => options.nuslerp_flatten = flag,
        "nuslerp_row_wise" => options.nuslerp_row_wise = flag,
        // int8_mask changes no value.
        _ => {}
    }
}
