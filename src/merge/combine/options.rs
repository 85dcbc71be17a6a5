//! The options of combining.

use std::str::FromStr;

use regex_lite::Regex;

use crate::error::{Error, Finding, Result};

/// A weight for each model or adapter, and weights that differ for some modules.
#[derive(Debug, Clone, Default)]
pub struct Weights {
    every: Vec<f64>,
    patterns: Vec<(Regex, Vec<f64>)>,
}

impl Weights {
    /// One weight for each.
    pub fn new(weights: impl Into<Vec<f64>>) -> Self {
        Self { every: weights.into(), patterns: Vec::new() }
    }

    /// Sets other weights for the modules whose path ends in a match of a regular expression, as
    /// `PATTERN=W` or, with one for each, `PATTERN=W,W`. The first pattern that matches counts.
    ///
    /// # Errors
    /// [`Error::Setting`] for any other form, [`Error::Unsupported`] for an expression with look-around or back
    /// references.
    pub fn with_pattern(mut self, setting: &str) -> Result<Self> {
        let finding = || Finding::new("", "weights");
        let numbers = |text: &str| text.split(',').map(|w| w.trim().parse().ok()).collect::<Option<Vec<f64>>>();
        let Some((pattern, weights)) = setting.rsplit_once('=').and_then(|(p, w)| Some((p, numbers(w)?))) else {
            let finding = finding().expected("PATTERN=W, or a weight for each: PATTERN=W,W");
            return Err(finding.found(format_args!("{setting:?}")).setting());
        };
        if weights.len() != 1 && weights.len() != self.every.len() {
            let finding = finding().expected(format_args!("one weight or {} behind {pattern:?}", self.every.len()));
            return Err(finding.found(weights.len()).setting());
        }
        let regex = Regex::new(&format!(r"^(.*\.)?({pattern})$")).map_err(|e| {
            let finding = finding().expected("regular expressions without look-around or references");
            finding.found(format_args!("{pattern:?}: {e}")).unsupported()
        })?;
        self.patterns.push((regex, weights));
        Ok(self)
    }

    /// The number of models or adapters that have a weight.
    pub fn len(&self) -> usize {
        self.every.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.every.is_empty()
    }

    /// The weights for tensors that no pattern matches.
    pub(crate) fn every(&self) -> &[f64] {
        &self.every
    }

    /// The weights for the tensor `name`.
    pub(crate) fn of(&self, name: &str) -> Vec<f64> {
        let found = self.patterns.iter().find(|(regex, _)| matches(regex, name));
        match found.map(|(_, weights)| weights.as_slice()) {
            Some(&[weight]) => vec![weight; self.every.len()],
            Some(weights) => weights.to_vec(),
            None => self.every.clone(),
        }
    }

    /// Checks the numbers, that there are as many as `wanted`, and that every pattern is for one of the tensors `names`.
    pub(in crate::merge) fn check<'a>(
        &self,
        wanted: usize,
        mut names: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<()> {
        let every = self.patterns.iter().flat_map(|(_, weights)| weights).chain(&self.every);
        if let Some(bad) = every.clone().find(|w| !w.is_finite()) {
            return Err(Finding::new("", "weights").expected("finite weights").found(bad).setting());
        }
        if self.every.len() != wanted {
            let finding = Finding::new("", "weights").expected(format_args!("{wanted}, one for each that is combined"));
            return Err(finding.found(self.every.len()).setting());
        }
        let is_for_none = |(regex, _): &&(Regex, Vec<f64>)| !names.clone().any(|name| matches(regex, name));
        if let Some((regex, _)) = self.patterns.iter().find(is_for_none) {
            let pattern = regex.as_str().trim_start_matches(r"^(.*\.)?(").trim_end_matches(")$");
            let first = names.next().unwrap_or("none");
            let finding = Finding::new("", "weights").expected(format_args!("patterns of modules, like {first:?}"));
            return Err(finding.found(format_args!("{pattern:?}, which none matches")).setting());
        }
        Ok(())
    }
}

/// Whether a pattern is for the tensor `name`: it matches its name or its module's.
fn matches(regex: &Regex, name: &str) -> bool {
    let module = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(name);
    regex.is_match(module) || regex.is_match(name)
}

/// A number for each model or adapter: one for all, or one for each.
#[derive(Debug, Clone, PartialEq)]
pub struct Each(Vec<f64>);

impl Each {
    /// The number of the model or adapter at `place`.
    pub(super) fn at(&self, place: usize) -> f64 {
        self.0.get(place).or(self.0.last()).copied().unwrap_or_default()
    }

    /// The numbers that were given.
    pub(super) fn all(&self) -> &[f64] {
        &self.0
    }
}

impl From<f64> for Each {
    fn from(one: f64) -> Self {
        Self(vec![one])
    }
}

impl From<Vec<f64>> for Each {
    fn from(each: Vec<f64>) -> Self {
        Self(each)
    }
}

/// How the sign of a value is elected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MajoritySign {
    /// The sign of the sum.
    #[default]
    Total,
    /// The sign that most values have.
    Frequency,
}

impl FromStr for MajoritySign {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "total" => Ok(Self::Total),
            "frequency" => Ok(Self::Frequency),
            _ => Err(Finding::new("", "majority_sign").expected("total or frequency").found(name).setting()),
        }
    }
}

/// All options of combining. Each method reads its own.
#[derive(Debug, Clone)]
pub struct CombineOptions {
    /// The weight of each model or adapter.
    pub weights: Weights,
    /// The share of values that is kept: one number for all or one for each; empty where not given.
    pub density: Vec<f64>,
    /// The factor of the sum of updates.
    pub lambda: f64,
    /// DELLA: the distance from the density to the probability of the smallest and of the largest value. RAM: changes
    /// up to this size don't count. Multi-SLERP: what is added to lengths. The method's own default where not given.
    pub epsilon: Option<Each>,
    /// Breadcrumbs: the share of values, the largest ones, that is dropped.
    pub gamma: Each,
    /// Whether sums are divided by the weights' sum; the method's own default where not given.
    pub normalize: Option<bool>,
    /// Whether kept values are scaled so that the sum of magnitudes stays; the method's default where not given.
    pub rescale: Option<bool>,
    /// The seed of random numbers, as `torch.manual_seed` takes it.
    pub seed: u64,
    /// SLERP: the position between the first model, 0, and the second, 1. NearSwap: values that are closer together
    /// than this are the model's.
    pub t: Option<f64>,
    /// SCE: the share of values that is kept, those that differ most between models.
    pub select_topk: f64,
    /// Karcher: the maximum number of iterations.
    pub max_iter: usize,
    /// Karcher: iteration stops when a step is smaller than this.
    pub tol: f64,
    /// Model stock: an angle for each row instead of one for the tensor.
    pub filter_wise: bool,
    /// NuSLERP: interpolates the models' differences from the base, as mergekit does if it has a base. Otherwise, the
    /// models themselves are interpolated.
    pub nuslerp_updates: bool,
    /// NuSLERP: one angle for the tensor.
    pub nuslerp_flatten: bool,
    /// NuSLERP without flattening: an angle for each column instead of one for each row, mergekit's
    /// `nuslerp_row_wise`.
    pub nuslerp_row_wise: bool,
    /// Multi-SLERP: interpolates the models' differences from the base, as mergekit does if it has a base. Otherwise,
    /// the models themselves are interpolated.
    pub multislerp_updates: bool,
    /// RAM+: how much a model's own changes grow with the share of its other changes.
    pub r: f64,
    /// RAM+: the largest share that counts.
    pub alpha: f64,
    /// Passthrough: the factor of the model.
    pub scale: Option<f64>,
    /// How PEFT's TIES elects signs.
    pub majority_sign: MajoritySign,
    /// The rank of the combined adapter; the largest of the adapters' ranks if not given.
    pub rank: Option<usize>,
}

impl CombineOptions {
    /// Checks every number by itself.
    ///
    /// # Errors
    /// [`Error::Setting`] for one that is NaN or infinite, and for a share that isn't from 0 to 1.
    pub(in crate::merge) fn check_numbers(&self) -> Result<()> {
        let gammas = self.gamma.all().iter().map(|gamma| ("gamma", *gamma));
        for (field, share) in gammas.chain([("select_topk", self.select_topk)]) {
            if !(0.0..=1.0).contains(&share) {
                return Err(Finding::new("", field).expected("a number from 0 to 1").found(share).setting());
            }
        }
        let numbers = [("lambda", self.lambda), ("tol", self.tol), ("r", self.r), ("alpha", self.alpha)];
        let epsilons = self.epsilon.iter().flat_map(|epsilon| epsilon.all()).map(|epsilon| ("epsilon", Some(*epsilon)));
        let optional = epsilons.chain([("t", self.t), ("scale", self.scale)]);
        let given = optional.filter_map(|(field, number)| Some((field, number?)));
        for (field, number) in numbers.into_iter().chain(given) {
            if !number.is_finite() {
                return Err(Finding::new("", field).expected("a finite number").found(number).setting());
            }
        }
        Ok(())
    }
}

impl Default for CombineOptions {
    fn default() -> Self {
        Self {
            weights: Weights::default(),
            density: Vec::new(),
            lambda: 1.0,
            epsilon: None,
            gamma: 0.01.into(),
            normalize: None,
            rescale: None,
            seed: 0,
            t: None,
            select_topk: 1.0,
            max_iter: 10,
            tol: 1e-5,
            filter_wise: false,
            nuslerp_updates: false,
            nuslerp_flatten: true,
            nuslerp_row_wise: false,
            multislerp_updates: false,
            r: 0.1,
            alpha: 0.2,
            scale: None,
            majority_sign: MajoritySign::default(),
            rank: None,
        }
    }
}

impl CombineOptions {
    /// The density of each of `count` models or adapters; `None` if no density is given.
    pub(super) fn densities(&self, count: usize) -> Result<Option<Vec<f64>>> {
        let finding = || Finding::new("", "density");
        if let Some(bad) = self.density.iter().find(|d| !(0.0..=1.0).contains(*d)) {
            return Err(finding().expected("a share from 0 to 1").found(bad).setting());
        }
        match self.density.as_slice() {
            [] => Ok(None),
            &[one] => Ok(Some(vec![one; count])),
            each if each.len() == count => Ok(Some(each.to_vec())),
            each => {
                let expected = format!("one share, or {count}: one for each that is combined");
                Err(finding().expected(expected).found(each.len()).setting())
            }
        }
    }
}

/// Looks a method up by its name.
pub(super) fn by_name<T: Copy>(table: &[(&str, T)], name: &str) -> Result<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, method)| *method).ok_or_else(|| {
        let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
        let expected = format!("one of {}", names.join(", "));
        Finding::new("", "method")
            .expected(expected)
            .found(format_args!("{name:?}"))
            .did_you_mean(name, &names)
            .setting()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_the_end_of_a_module_and_the_first_counts() {
        let weights = Weights::new([1.0, 0.5]);
        let weights = weights.with_pattern("self_attn.*=0.25").unwrap().with_pattern("q_proj|up_proj=2,3").unwrap();
        assert_eq!(weights.of("model.layers.0.self_attn.q_proj.weight"), [0.25, 0.25]);
        assert_eq!(weights.of("model.layers.0.mlp.up_proj.weight"), [2.0, 3.0]);
        assert_eq!(weights.of("model.layers.0.mlp.xup_proj.weight"), [1.0, 0.5]);
        let error = |setting: &str| Weights::new([1.0, 0.5]).with_pattern(setting).unwrap_err().to_string();
        assert_eq!(error("q_proj"), "weights: expected PATTERN=W, or a weight for each: PATTERN=W,W, found \"q_proj\"");
        assert_eq!(error("q=1,2,3"), "weights: expected one weight or 2 behind \"q\", found 3");
        assert!(error("(=1").contains("look-around"));
    }

    #[test]
    fn a_share_is_for_all_or_for_each() {
        let with = |density: &[f64]| CombineOptions { density: density.to_vec(), ..Default::default() }.densities(2);
        assert_eq!(with(&[]).unwrap(), None);
        assert_eq!(with(&[0.5]).unwrap(), Some(vec![0.5, 0.5]));
        assert_eq!(with(&[0.5, 1.0]).unwrap(), Some(vec![0.5, 1.0]));
        assert!(with(&[0.5; 3]).is_err());
        assert!(with(&[1.5]).is_err());
    }
}
