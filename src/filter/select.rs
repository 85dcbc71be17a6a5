//! The convolutions of a model that are decomposed.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use regex_lite::Regex;

use super::moment::Taps;
use super::size::{KernelSize, MAX_TAPS};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
use crate::source::show_shape;

/// How many modules a message names that could be selected.
const NAMED: usize = 5;

/// Which modules are wanted, by patterns for the ends of their paths, as PEFT reads them.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    include: Option<(String, Regex)>,
    exclude: Option<(String, Regex)>,
}

impl Targets {
    /// Reads both patterns. Without `include`, all modules are wanted.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for an invalid pattern.
    pub fn new(include: Option<&str>, exclude: Option<&str>) -> Result<Self> {
        let read = |field: &str, pattern: Option<&str>| -> Result<Option<(String, Regex)>> {
            let Some(pattern) = pattern else { return Ok(None) };
            let invalid = |error: regex_lite::Error| {
                let finding = Finding::new("", field).expected("a regular expression");
                finding.found(format_args!("{pattern:?}: {error}")).setting()
            };
            // The pattern alone has to be one, so that it can't end the group around it.
            Regex::new(pattern).map_err(invalid)?;
            let regex = Regex::new(&format!(r"^(?:.*\.)?(?:{pattern})$")).map_err(invalid)?;
            Ok(Some((pattern.to_owned(), regex)))
        };
        Ok(Self { include: read("targets", include)?, exclude: read("exclude", exclude)? })
    }

    fn wants(&self, module: &str) -> bool {
        self.include.as_ref().is_none_or(|(_, regex)| regex.is_match(module))
            && !self.exclude.as_ref().is_some_and(|(_, regex)| regex.is_match(module))
    }

    /// The setting that leaves nothing, for a message.
    fn field(&self) -> &'static str {
        match (&self.include, &self.exclude) {
            (Some(_), _) => "targets",
            (None, Some(_)) => "exclude",
            (None, None) => "convolutions",
        }
    }

    /// The patterns in words, for a message.
    fn words(&self) -> String {
        let mut words = String::new();
        if let Some((pattern, _)) = &self.include {
            words.push_str(&format!(" that `targets` {pattern:?} selects"));
        }
        if let Some((pattern, _)) = &self.exclude {
            words.push_str(&format!(" that `exclude` {pattern:?} leaves"));
        }
        words
    }
}

/// A convolution that is decomposed.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    /// The module's path.
    pub module: &'a str,
    /// Its weight.
    pub weight: &'a PlannedTensor,
    /// The kernel size.
    pub size: KernelSize,
    /// The place of the first chosen layer with the same storage, if that is another one.
    pub twin_of: Option<usize>,
}

impl Chosen<'_> {
    /// The weight as rows of taps.
    pub fn taps(&self) -> Taps<'_> {
        Taps::new(self.weight, self.size)
    }
}

/// The convolutions of a model that are decomposed, and notes on those that stay dense.
#[derive(Debug)]
pub struct Selection<'a> {
    /// At least one, in the model's order.
    pub layers: Vec<Chosen<'a>>,
    /// One line for what is left out.
    pub notes: Vec<String>,
}

/// Whether a tensor can be the weight of a convolution, by its name and shape.
fn weight_of(tensor: &PlannedTensor) -> Option<(&str, KernelSize)> {
    Some((tensor.name.strip_suffix(".weight")?, KernelSize::of_weight(&tensor.shape)?))
}

/// The module to which a factor of a normed weight belongs.
fn normed(tensor: &PlannedTensor) -> Option<&str> {
    let size = KernelSize::of_weight(&tensor.shape)?;
    let name = &tensor.name;
    let module = name
        .strip_suffix(".weight_v")
        .or_else(|| name.strip_suffix(".weight_orig"))
        .or_else(|| name.split_once(".parametrizations.weight.original").map(|(module, _)| module))?;
    (size.taps() > 1).then_some(module)
}

impl<'a> Selection<'a> {
    /// Selects the convolutions of `plan` that look at more than one tap and that `targets` wants. `model` is for
    /// messages.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] where there is none; [`crate::Error::Unsupported`] for a kernel that holds no
    /// floating-point numbers or has too many taps.
    pub fn of(plan: &'a Plan, targets: &Targets, model: &Path) -> Result<Self> {
        let shared = plan.shared();
        let mut seen: HashMap<usize, usize> = HashMap::new();
        let (mut layers, mut others, mut single, mut norms) = (Vec::new(), Vec::new(), 0, BTreeSet::new());
        for (place, tensor) in plan.tensors.iter().enumerate() {
            norms.extend(normed(tensor).filter(|module| targets.wants(module)));
            let Some((module, size)) = weight_of(tensor) else { continue };
            if !targets.wants(module) {
                if size.taps() > 1 && tensor.dtype.is_float() {
                    others.push(module);
                }
                continue;
            }
            if size.taps() == 1 {
                single += 1;
                continue;
            }
            check(tensor, size)?;
            let twin_of = seen.get(&shared[place]).copied();
            seen.entry(shared[place]).or_insert(layers.len());
            layers.push(Chosen { module, weight: tensor, size, twin_of });
        }
        if layers.is_empty() {
            let finding = Finding::new(model, targets.field())
                .expected(format_args!("a convolution of more than one tap{}", targets.words()))
                .found("none");
            let some = others.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
            let finding = if some.is_empty() { finding } else { finding.hint(format_args!("these would do: {some}")) };
            return Err(finding.setting());
        }
        let mut notes = Vec::new();
        let left: Vec<String> = [
            (single, "convolution", "of one tap"),
            (norms.len(), "normed convolution", "(weight_g, weight_v and the like)"),
        ]
        .iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, what, which)| format!("{count} {what}{} {which}", if *count == 1 { "" } else { "s" }))
        .collect();
        if !left.is_empty() {
            notes.push(format!("left dense: {}", left.join(", ")));
        }
        Ok(Self { layers, notes })
    }
}

/// Refuses a kernel that can't be decomposed.
fn check(tensor: &PlannedTensor, size: KernelSize) -> Result<()> {
    let finding = Finding::new(tensor.expr.source_path(), format!("tensor {:?}", tensor.name));
    if !tensor.dtype.is_float() {
        let finding = finding.expected("a kernel of floating-point numbers").found(tensor.dtype);
        return Err(finding.hint("`exclude` leaves a module out").unsupported());
    }
    if size.taps() > MAX_TAPS {
        let found = format!("{} in {}", size.taps(), show_shape(&tensor.shape));
        return Err(finding
            .expected(format_args!("at most {MAX_TAPS} taps: the products of more have over 16.8 million numbers"))
            .found(found)
            .hint("`exclude` leaves a module out")
            .unsupported());
    }
    Ok(())
}
