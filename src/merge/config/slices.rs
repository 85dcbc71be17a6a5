//! Every form of a configuration as slices of layers, and the checks of what a method wants.
//!
//! Reference: mergekit `plan.py` (`normalize_config`), `merge_methods/base.py` (`InputContract`).

use std::ops::Range;

use super::method::BasePolicy;
use super::names::Modules;
use super::parameters::Parameters;
use super::{Content, Inputs, MergeConfig, ModelName};
use crate::error::{Finding, Result};

/// Layers of the result, made of as many layers of each source.
#[derive(Debug)]
pub(super) struct Slice<'a> {
    pub(super) sources: Vec<Source<'a>>,
    /// The place of the base among the sources, for methods that have one.
    pub(super) base: Option<usize>,
    pub(super) parameters: &'a Parameters,
}

/// Layers of a model.
#[derive(Debug)]
pub(super) struct Source<'a> {
    /// The model's place among all.
    pub(super) model: usize,
    pub(super) layers: Range<usize>,
    pub(super) parameters: &'a Parameters,
}

/// A module of the result.
#[derive(Debug)]
pub(super) struct ModuleSlices<'a> {
    /// The place of the module in its class.
    pub(super) module: usize,
    pub(super) slices: Vec<Slice<'a>>,
    pub(super) parameters: &'a Parameters,
    /// Whether layers were chosen, so that their numbers may change.
    pub(super) is_sliced: bool,
}

/// Parameters of a level that has none.
pub(super) static NOTHING: Parameters = Parameters::NONE;

impl MergeConfig {
    /// The slices of every module. `layers` is the number of layers of a module in a model.
    pub(super) fn module_slices<'a>(
        &'a self,
        modules: &Modules,
        models: &[&ModelName],
        layers: &dyn Fn(usize, usize) -> usize,
    ) -> Result<Vec<ModuleSlices<'a>>> {
        let known: Vec<&str> = modules.all.iter().map(|module| module.name.as_str()).collect();
        let slices = |module: usize, content: &'a Content, parameters, place: &str| {
            let slices = self.slices(content, models, &|model| layers(module, model), place)?;
            Ok(ModuleSlices { module, slices, parameters, is_sliced: matches!(content, Content::Slices(_)) })
        };
        match &self.inputs {
            Inputs::Whole(Content::Slices(_)) if known.len() > 1 => {
                let expected = format!("modules, for a class of several: {}", known.join(", "));
                Err(self.finding("slices").expected(expected).found("slices of the whole model").mismatch())
            }
            Inputs::Whole(content) => {
                (0..known.len()).map(|module| slices(module, content, &NOTHING, "models")).collect()
            }
            Inputs::Modules(configs) => {
                let one = |config: &'a super::ModuleConfig| {
                    let Some(module) = known.iter().position(|name| *name == config.name) else {
                        let finding = self
                            .finding(&config.place)
                            .expected(format_args!("a module of the class: {}", known.join(", ")));
                        return Err(finding
                            .found(format_args!("{:?}", config.name))
                            .did_you_mean(&config.name, &known)
                            .mismatch());
                    };
                    slices(module, &config.content, &config.parameters, &config.place)
                };
                configs.iter().map(one).collect()
            }
        }
    }

    /// The slices of one module.
    fn slices<'a>(
        &'a self,
        content: &'a Content,
        models: &[&ModelName],
        layers: &dyn Fn(usize) -> usize,
        place: &str,
    ) -> Result<Vec<Slice<'a>>> {
        let place_of = |name: &ModelName| models.iter().position(|model| *model == name).unwrap_or_default();
        let inputs = match content {
            Content::Slices(slices) => slices,
            Content::Models(inputs) => {
                let whole = |name: &ModelName, parameters| {
                    let model = place_of(name);
                    Source { model, layers: 0..layers(model), parameters }
                };
                let mut sources: Vec<Source> =
                    inputs.iter().map(|input| whole(&input.model, &input.parameters)).collect();
                let base = self.base_model.as_ref();
                sources.extend(
                    base.filter(|base| inputs.iter().all(|input| input.model != **base))
                        .map(|base| whole(base, &NOTHING)),
                );
                let base = self.checked(&sources, base.map(place_of), models, place)?;
                self.same_depth(&sources, models, || place.to_owned())?;
                return Ok(vec![Slice { sources, base, parameters: &NOTHING }]);
            }
        };
        let one = |slice: &'a super::OutputSlice| {
            for source in &slice.sources {
                let there = layers(place_of(&source.model));
                if source.layers.end > there {
                    let finding = self
                        .finding(&source.place)
                        .expected(format_args!("layers of {}, which has {there}", source.model));
                    let Range { start, end } = source.layers;
                    return Err(finding.found(format_args!("[{start}, {end}]")).mismatch());
                }
            }
            let source = |source: &'a super::InputSlice| Source {
                model: place_of(&source.model),
                layers: source.layers.clone(),
                parameters: &source.parameters,
            };
            let sources: Vec<Source> = slice.sources.iter().map(source).collect();
            self.same_depth(&sources, models, || slice.place.clone())?;
            let base = slice.base_model.as_ref().or(self.base_model.as_ref()).map(place_of);
            let base = self.checked(&sources, base, models, &slice.place)?;
            Ok(Slice { sources, base, parameters: &slice.parameters })
        };
        inputs.iter().map(one).collect()
    }

    /// Checks that all sources have the same number of layers.
    fn same_depth(&self, sources: &[Source], models: &[&ModelName], place: impl Fn() -> String) -> Result<()> {
        let Some(first) = sources.first() else { return Ok(()) };
        match sources.iter().find(|source| source.layers.len() != first.layers.len()) {
            None => Ok(()),
            Some(other) => {
                let expected =
                    format!("as many layers of every model: {} of {}", first.layers.len(), models[first.model]);
                let found = format!("{} of {}", other.layers.len(), models[other.model]);
                Err(self.finding(place()).expected(expected).found(found).mismatch())
            }
        }
    }

    /// Checks the sources of a slice against what the method wants. Returns the place of the base among them, if the
    /// method has one.
    fn checked(
        &self,
        sources: &[Source],
        base: Option<usize>,
        models: &[&ModelName],
        place: &str,
    ) -> Result<Option<usize>> {
        let wanted = self.method.requirements();
        let name = self.method.name();
        let finding = || self.finding(place);
        for (at, source) in sources.iter().enumerate() {
            if sources[..at].iter().any(|other| other.model == source.model) {
                let finding =
                    finding().expected("each model once").found(format_args!("{} twice", models[source.model]));
                return Err(finding.mismatch());
            }
        }
        let base = base.filter(|_| wanted.base != BasePolicy::Ignored);
        let at = base.map(|base| sources.iter().position(|source| source.model == base).ok_or(base));
        let at = at.transpose().map_err(|base| {
            let finding =
                finding().expected(format_args!("the base {} among the models", models[base])).found("others alone");
            finding.mismatch()
        })?;
        if wanted.base == BasePolicy::Required && at.is_none() {
            return Err(finding().expected(format_args!("a base_model for {name}")).found("none").mismatch());
        }
        let counted = |count: usize, (least, most): (usize, usize), what: &str| {
            let expected = match (least, most) {
                _ if (least..=most).contains(&count) => return Ok(()),
                (least, most) if least == most => format!("{least} {what} for {name}"),
                (_, most) if count > most => format!("at most {most} {what} for {name}"),
                (least, _) => format!("at least {least} {what} for {name}"),
            };
            Err(finding().expected(expected).found(count).mismatch())
        };
        let with_base = if wanted.base == BasePolicy::Ignored { "models" } else { "models, the base among them," };
        counted(sources.len(), wanted.inputs, with_base)?;
        counted(sources.len() - usize::from(at.is_some()), wanted.non_base, "models beside the base")?;
        Ok(at)
    }

    /// Checks the models that have a tensor which others lack.
    pub(super) fn check_present(&self, count: usize, has_base: bool, tensor: Finding) -> Result<()> {
        let wanted = self.method.requirements();
        let others = count - usize::from(has_base);
        let lacks_base = wanted.base == BasePolicy::Required && !has_base;
        if !lacks_base && count >= wanted.inputs.0 && others >= wanted.non_base.0 {
            return Ok(());
        }
        let expected = format!("it in enough models for {}, and in the base", self.method.name());
        Err(tensor.expected(expected).found(format_args!("it in {count}")).mismatch())
    }
}
