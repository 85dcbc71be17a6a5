//! The tensors of a merged model: which of its models' tensors each is made of, with which options.
//!
//! Reference: mergekit `plan.py` (`plan_module`, `plan_tensor`), `merge_methods/task_adapter.py`.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use super::build::Opened;
use super::method::Missing;
use super::names::{Modules, class, is_before_layers, is_listed};
use super::parameters::{Evaluated, Levels, Parameters};
use super::slices::{ModuleSlices, Slice};
use super::{MergeConfig, tied};
use crate::arch::{Naming, Role};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::merge::combine::{CombineOptions, Group, Working};
use crate::plan::{Expr, PlannedTensor};
use crate::quant;
use crate::source::show_shape;

/// A merge in progress.
pub(super) struct Builder<'a> {
    config: &'a MergeConfig,
    opened: &'a [Opened<'a>],
    naming: Naming,
    modules: &'a Modules,
    seed: u64,
    /// Whether mergekit lists the tensors of the class.
    is_listed: bool,
    pub(super) groups: Vec<Group>,
    /// Tensors that are taken from one model, behind the others.
    pub(super) taken: Vec<PlannedTensor>,
    pub(super) notes: Vec<String>,
    /// The models whose output head was read.
    pub(super) heads: BTreeSet<usize>,
}

/// Where a tensor belongs.
#[derive(Clone, Copy)]
struct Spot<'a> {
    module: &'a ModuleSlices<'a>,
    slice: &'a Slice<'a>,
    /// The position among the slice's layers, from 0 to 1.
    t: f64,
}

/// A tensor's name in the result, and in each source of its slice.
struct Names {
    result: String,
    sources: Vec<String>,
}

/// A tensor of one source.
struct Found {
    /// The place of the source in its slice.
    source: usize,
    tensor: PlannedTensor,
}

/// What becomes of a tensor that some sources lack.
enum Lacking {
    /// It is made of those that there are.
    Combined,
    /// It is taken from the only one.
    Taken,
    /// It isn't in the result.
    LeftOut,
}

impl<'a> Builder<'a> {
    pub(super) fn new(config: &'a MergeConfig, opened: &'a [Opened<'a>], modules: &'a Modules, seed: u64) -> Self {
        let first = &opened[0].model.config;
        Self {
            config,
            opened,
            naming: Naming::of(first),
            modules,
            seed,
            is_listed: class(first).is_some_and(is_listed),
            groups: Vec::new(),
            taken: Vec::new(),
            notes: Vec::new(),
            heads: BTreeSet::new(),
        }
    }

    /// Adds every tensor of a module.
    pub(super) fn module(&mut self, module: &ModuleSlices) -> Result<()> {
        let (Some(first), Some(last)) = (module.slices.first(), module.slices.last()) else { return Ok(()) };
        let outside = self.outside_of_layers(module);
        let (before, after): (Vec<_>, Vec<_>) =
            outside.into_iter().partition(|name| !self.is_listed || is_before_layers(name));
        let same =
            |slice: &Slice, name: String| Names { sources: vec![name.clone(); slice.sources.len()], result: name };
        for name in before {
            self.tensor(Spot { module, slice: first, t: 0.0 }, same(first, name))?;
        }
        let mut layer = 0;
        for slice in &module.slices {
            let count = slice.sources.first().map_or(0, |source| source.layers.len());
            for at in 0..count {
                let t = if count > 1 { at as f64 / (count - 1) as f64 } else { 1.0 };
                self.layer(Spot { module, slice, t }, at, layer)?;
                layer += 1;
            }
        }
        for name in after {
            self.tensor(Spot { module, slice: last, t: 0.0 }, same(last, name))?;
        }
        Ok(())
    }

    /// The names of a module's tensors that belong to none of its layers, in any of its models.
    fn outside_of_layers(&mut self, module: &ModuleSlices) -> Vec<String> {
        let (mut seen, mut found, mut cut) = (HashSet::new(), Vec::new(), 0);
        for source in module.slices.iter().flat_map(|slice| &slice.sources) {
            let opened = &self.opened[source.model];
            let layers = self.modules.layers(module.module, &opened.model.config, &opened.weights);
            for tensor in &opened.weights.tensors {
                let place = self.modules.place(&tensor.name);
                let is_ours = place.module == module.module && place.layer.is_none_or(|(layer, _)| layer >= layers);
                if !is_ours || !seen.insert(tensor.name.as_str()) {
                    continue;
                }
                // Layers behind the last that the class reads keep their numbers, unless layers are chosen.
                match place.layer.is_some() && module.is_sliced {
                    true => cut += 1,
                    false => found.push(tensor.name.clone()),
                }
            }
        }
        if cut > 0 {
            self.notes.push(format!("{cut} tensors behind the last layer that the class reads are left out"));
        }
        found
    }

    /// Adds the tensors of layer `layer` of the result, which is made of the layers `at` of a slice.
    fn layer(&mut self, spot: Spot, at: usize, layer: usize) -> Result<()> {
        let (module, slice) = (spot.module.module, spot.slice);
        let Some(prefix) = self.modules.all[module].prefix.as_deref() else { return Ok(()) };
        let mut seen = HashSet::new();
        let mut ends = Vec::new();
        for source in &slice.sources {
            for tensor in &self.opened[source.model].weights.tensors {
                let place = self.modules.place(&tensor.name);
                let is_ours =
                    |(number, _): &(usize, &str)| place.module == module && *number == source.layers.start + at;
                if let Some((_, end)) = place.layer.filter(is_ours)
                    && seen.insert(end)
                {
                    ends.push(end);
                }
            }
        }
        for end in ends {
            let numbers = slice.sources.iter().map(|source| source.layers.start + at);
            let sources = numbers.map(|number| format!("{prefix}{number}{end}")).collect();
            self.tensor(spot, Names { result: format!("{prefix}{layer}{end}"), sources })?;
        }
        Ok(())
    }

    /// Adds one tensor.
    fn tensor(&mut self, spot: Spot, names: Names) -> Result<()> {
        let (mut found, mut labels) = (Vec::new(), Vec::new());
        for (place, (source, name)) in spot.slice.sources.iter().zip(&names.sources).enumerate() {
            let opened = &self.opened[source.model];
            let Some((tensor, stored)) = opened.find(self.naming, name) else { continue };
            if self.naming.role(name) == Some(Role::OutputHead) && opened.has(name) {
                self.heads.insert(source.model);
            }
            labels.push(stored);
            found.push(Found { source: place, tensor: tensor.clone() });
        }
        // Random numbers are drawn in the order of the last of the names in the models' files.
        let label = labels.into_iter().max().unwrap_or_default().to_owned();
        if found.is_empty() {
            return Ok(());
        }
        let base = spot.slice.base.and_then(|base| found.iter().position(|found| found.source == base));
        match self.lacking(spot.slice, &names, &found, base.is_some())? {
            Lacking::Combined => {}
            Lacking::LeftOut => return Ok(()),
            Lacking::Taken => {
                let taken = self.taken_as(&names.result, &found[0].tensor);
                self.taken.push(taken);
                return Ok(());
            }
        }
        self.same_shape(&names.result, &found)?;
        let options = self.options(spot, &names, &found, base)?;
        let group = self.group(names.result, found, base, options, label);
        self.groups.push(group);
        Ok(())
    }

    /// The group of the tensor called `name`.
    fn group(
        &self,
        name: String,
        found: Vec<Found>,
        base: Option<usize>,
        options: Arc<CombineOptions>,
        label: String,
    ) -> Group {
        let tensors: Vec<PlannedTensor> = found.into_iter().map(|found| found.tensor).collect();
        if !tensors.iter().all(is_of_numbers) {
            let result = PlannedTensor { name, ..tensors[0].clone() };
            return Group { result, base: None, models: tensors, options, working: Working::F32, label };
        }
        let working = match self.config.dtype {
            Some(dtype) => Working::of([dtype]),
            None => Working::of(tensors.iter().map(|tensor| tensor.dtype)),
        };
        let mut models: Vec<PlannedTensor> = tensors.into_iter().map(|tensor| in_type(tensor, working)).collect();
        let first = models[0].clone();
        let base = base.map(|base| models.remove(base));
        let dtype = self.config.out_dtype.unwrap_or(self.config.method.result_dtype(working));
        let result = PlannedTensor { name, dtype, ..first };
        Group { result, base, models, options, working, label }
    }

    /// What becomes of a tensor, where sources lack it.
    fn lacking(&mut self, slice: &Slice, names: &Names, found: &[Found], has_base: bool) -> Result<Lacking> {
        let (count, total) = (found.len(), slice.sources.len());
        let lacks = |place: &usize| found.iter().all(|found| found.source != *place);
        let Some(place) = (0..total).find(lacks) else { return Ok(Lacking::Combined) };
        let (model, name) = (self.opened[slice.sources[place].model].model, &names.sources[place]);
        if tied::is_made_anyway(name) {
            return Ok(Lacking::LeftOut);
        }
        let finding = Finding::new(&model.path, format!("tensor {name:?}"));
        if !tied::is_optional(&model.config, name) {
            let there = found[0].tensor.expr.source_path();
            return Err(finding.expected(format_args!("it, as in {}", there.display())).found("nothing").mismatch());
        }
        let wanted = self.config.method.requirements();
        let is_taken = match wanted.missing {
            Missing::TakeOnly => count == 1,
            Missing::TakeBase | Missing::TakeBaseOrSkip => count == 1 && has_base,
            Missing::Combine => false,
        };
        let (lacking, what) = if is_taken {
            (Lacking::Taken, "taken from there")
        } else if wanted.missing == Missing::TakeBaseOrSkip && count < wanted.inputs.0 {
            (Lacking::LeftOut, "left out")
        } else {
            self.config.check_present(count, has_base, finding)?;
            (Lacking::Combined, "made of those")
        };
        self.notes.push(format!("{name}: in {count} of {total} models alone: {what}"));
        Ok(lacking)
    }

    /// Checks that a tensor has one shape in all models.
    fn same_shape(&self, name: &str, found: &[Found]) -> Result<()> {
        let first = &found[0].tensor;
        let Some(other) = found.iter().map(|found| &found.tensor).find(|other| other.shape != first.shape) else {
            return Ok(());
        };
        let is_of_tokens = matches!(self.naming.role(name), Some(Role::Embedding | Role::OutputHead));
        let hint = match is_of_tokens && other.shape.get(1..) == first.shape.get(1..) {
            true => "the vocabularies differ: tokenizer_source base or union makes one of them",
            false => "",
        };
        let expected = format!("{}, as in {}", show_shape(&first.shape), first.expr.source_path().display());
        let finding = Finding::new(other.expr.source_path(), format!("tensor {name:?}")).expected(expected);
        Err(finding.found(show_shape(&other.shape)).hint(hint).mismatch())
    }

    /// The options of a tensor.
    fn options(&self, spot: Spot, names: &Names, found: &[Found], base: Option<usize>) -> Result<Arc<CombineOptions>> {
        let (config, slice) = (self.config, spot.slice);
        let others = found.iter().enumerate().filter(|(at, _)| Some(*at) != base);
        let inputs: Vec<(usize, String)> =
            others.map(|(_, found)| (found.source, names.sources[found.source].clone())).collect();
        let sources: Vec<&Parameters> = slice.sources.iter().map(|source| source.parameters).collect();
        let (module, config_level) = (spot.module.parameters, &config.parameters);
        let levels = Levels { sources: &sources, slice: slice.parameters, module, config: config_level };
        let mut options = CombineOptions {
            seed: self.seed,
            nuslerp_updates: base.is_some(),
            multislerp_updates: base.is_some(),
            ..CombineOptions::default()
        };
        let of = Evaluated { name: &names.result, inputs: &inputs, t: spot.t };
        match levels.apply(&config.method.parameters(), &of, &mut options) {
            Ok(()) => Ok(Arc::new(options)),
            Err((parameter, source)) => {
                let model = source.map(|source| &self.opened[slice.sources[source].model].model.name);
                let of_model = model.map(|name| format!(" of {name}")).unwrap_or_default();
                let method = config.method.name();
                let expected = format!("a value for {method}, for tensor {:?}{of_model}", names.result);
                let finding = config.finding(format!("parameters.{parameter}")).expected(expected);
                Err(finding.found("none").mismatch())
            }
        }
    }

    /// Takes the modules that the configuration doesn't name from the first model.
    pub(super) fn rest(&mut self, sliced: &[ModuleSlices]) {
        let first = &self.opened[0];
        let module = |tensor: &PlannedTensor| self.modules.place(&tensor.name).module;
        let is_left = |tensor: &&PlannedTensor| sliced.iter().all(|sliced| sliced.module != module(tensor));
        let left: Vec<&PlannedTensor> = first.weights.tensors.iter().filter(is_left).collect();
        let names: BTreeSet<&str> = left.iter().map(|tensor| self.modules.all[module(tensor)].name.as_str()).collect();
        let taken: Vec<PlannedTensor> = left.iter().map(|tensor| self.taken_as(&tensor.name, tensor)).collect();
        for name in names {
            self.notes.push(format!("{name}: as in {}, because the configuration doesn't name it", first.model.name));
        }
        self.taken.extend(taken);
    }

    /// A tensor that is taken from one model, in the result's type.
    fn taken_as(&self, name: &str, tensor: &PlannedTensor) -> PlannedTensor {
        let mut taken = PlannedTensor { name: name.to_owned(), ..tensor.clone() };
        if is_of_numbers(tensor) {
            let working = self.config.dtype.map(|dtype| Working::of([dtype]));
            taken = working.map_or(taken.clone(), |working| in_type(taken, working));
            taken.dtype = self.config.out_dtype.unwrap_or(taken.dtype);
        }
        taken
    }
}

/// Whether a tensor's values are numbers that can be combined.
fn is_of_numbers(tensor: &PlannedTensor) -> bool {
    tensor.dtype.is_float() && quant::can_decode(tensor.dtype) && tensor.expr.source_dtypes().all(quant::can_decode)
}

/// The tensor with its values in the type of `working`.
fn in_type(tensor: PlannedTensor, working: Working) -> PlannedTensor {
    let dtype = working.dtype();
    let expr = match dtype {
        _ if tensor.dtype == dtype => tensor.expr,
        // Every value of a smaller type is one of f32.
        DType::F32 => tensor.expr,
        _ => Expr::Round { of: Box::new(tensor.expr), dtype },
    };
    PlannedTensor { dtype, expr, ..tensor }
}
