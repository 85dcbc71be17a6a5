//! The values of a family's formulas for a config.

use std::borrow::Cow;
use std::sync::LazyLock;

use serde_json::Value as Json;

use super::Params;
use crate::arch::language::{self, Fault, Formula, Scope};
use crate::error::Result;

/// The number of layers, for messages.
static LAYERS: LazyLock<Formula> = LazyLock::new(|| Formula::Name("main".to_owned()));

impl Params {
    /// The number of layers. It is limited to 65,536, because each takes memory.
    pub(crate) fn layers(&self) -> Result<usize> {
        let fault = |expected: &str, found: String| {
            let name = self.scope(None).subject(&LAYERS);
            Err(self.finding(&name).expected(expected).found(found).format())
        };
        match self.size("layers")? {
            Some(count @ 1..=65_536) => Ok(count),
            Some(count) if count > 0 => fault("at most 65536", count.to_string()),
            other => {
                let found = other.map_or("none".to_owned(), |count| count.to_string());
                fault("a count from 1 to 65536", found)
            }
        }
    }

    /// The value of a `let` of the family as a size; `None` where it is null.
    pub(crate) fn size(&self, name: &str) -> Result<Option<usize>> {
        let formula = Formula::Name(name.to_owned());
        let count = self.scope(None).count(&formula, 1 << 40);
        count.map_err(|fault| self.fault(fault))
    }

    /// The size of this name, at least 1. A single number may be up to 2^31, a product up to 2^40.
    pub(crate) fn count(&self, name: &str) -> Result<usize> {
        let formula = Formula::Name(name.to_owned());
        self.size_of(&formula, None)
    }

    /// The size that a formula gives in a layer, at least 1.
    pub(crate) fn size_of(&self, formula: &Formula, layer: Option<usize>) -> Result<usize> {
        let scope = self.scope(layer);
        match scope.count(formula, 1 << 40).map_err(|fault| self.fault(fault))? {
            Some(count) if count > 0 => Ok(count),
            other => {
                let found = other.map_or("none".to_owned(), |count| count.to_string());
                let finding = self.finding(&scope.subject(formula)).expected("a count from 1 to 2^31");
                Err(finding.found(found).format())
            }
        }
    }

    /// The number that a formula gives in a layer: zero or more; `None` where it is null.
    pub(crate) fn number_of(&self, formula: &Formula, layer: Option<usize>) -> Result<Option<usize>> {
        self.scope(layer).count(formula, 1 << 40).map_err(|fault| self.fault(fault))
    }

    /// The whole number that a formula gives in a layer.
    pub(crate) fn whole_of(&self, formula: &Formula, layer: Option<usize>) -> Result<i64> {
        let value = self.value_of(formula, layer)?;
        let subject = || self.scope(layer).subject(formula);
        let wrong = || self.finding(&subject()).expected("a whole number").found(&value).format();
        language::whole(&value).ok_or_else(wrong)
    }

    /// The value that a formula has in a layer.
    pub(crate) fn value_of(&self, formula: &Formula, layer: Option<usize>) -> Result<Json> {
        self.scope(layer).value(formula).map(Cow::into_owned).map_err(|fault| self.fault(fault))
    }

    /// Whether a condition holds in a layer; no condition always does.
    pub(crate) fn holds(&self, formula: Option<&Formula>, layer: Option<usize>) -> Result<bool> {
        formula.map_or(Ok(true), |formula| self.scope(layer).holds(formula).map_err(|fault| self.fault(fault)))
    }

    /// The config's field that a formula is about.
    pub(crate) fn subject(&self, formula: &Formula, layer: Option<usize>) -> String {
        self.scope(layer).subject(formula)
    }

    fn scope<'a>(&'a self, layer: Option<usize>) -> Scope<'a> {
        Scope::of_layer(self, layer)
    }

    /// Says which statement of the user's family file an error comes from.
    pub(crate) fn of_statement<T>(&self, statement: impl FnOnce() -> String, result: Result<T>) -> Result<T> {
        result.map_err(|error| match &self.family.file {
            Some(file) => error.or_hint(|| format!("asked for by `{}` of {}", statement(), file.display())),
            None => error,
        })
    }

    fn fault(&self, fault: Fault) -> crate::Error {
        self.finding(&fault.subject).expected(fault.expected).found(fault.found).format()
    }
}
