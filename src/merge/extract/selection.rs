//! Which modules are extracted, and in which form.
//!
//! Reference: mergekit `mergekit/scripts/extract_lora.py` (`plan_extraction`), whose options have these names.

use regex_lite::Regex;

use crate::error::{Finding, Result};

/// What to extract of which modules. Patterns are searched for anywhere in a module's path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    /// Only modules that match one of these; all, where there is none. Embeddings and output head are saved all the
    /// same.
    pub include_regex: Vec<String>,
    /// No modules that match one of these.
    pub exclude_regex: Vec<String>,
    /// Modules that are saved whole: paths, or last parts of paths.
    pub save_module: Vec<String>,
    /// Embeddings and output head are decomposed, too, in place of being saved whole. Those that are tied to each other
    /// or have another vocabulary are saved whole all the same.
    pub embed_lora: bool,
    /// What can't be decomposed, as norms and routers, is left out.
    pub skip_undecomposable: bool,
}

/// A selection with compiled patterns.
#[derive(Debug)]
pub(super) struct Selector<'a> {
    pub(super) of: &'a Selection,
    include: Vec<Regex>,
    exclude: Vec<Regex>,
}

impl Selection {
    /// # Errors
    /// [`crate::Error::Unsupported`] for an expression with look-around or back references.
    pub(super) fn compiled(&self) -> Result<Selector<'_>> {
        let all = |field: &str, patterns: &[String]| {
            let compile = |pattern: &String| {
                Regex::new(pattern).map_err(|e| {
                    Finding::new("", field)
                        .expected("a regular expression without look-around or references")
                        .found(format_args!("{pattern:?}: {e}"))
                        .unsupported()
                })
            };
            patterns.iter().map(compile).collect::<Result<Vec<_>>>()
        };
        let (include, exclude) =
            (all("include_regex", &self.include_regex)?, all("exclude_regex", &self.exclude_regex)?);
        Ok(Selector { of: self, include, exclude })
    }
}

impl Selector<'_> {
    /// Whether the module is extracted, if it can be.
    pub(super) fn takes(&self, module: &str) -> bool {
        (self.include.is_empty() || self.include.iter().any(|regex| regex.is_match(module))) && !self.excludes(module)
    }

    /// Whether the module is excluded by its name.
    pub(super) fn excludes(&self, module: &str) -> bool {
        self.exclude.iter().any(|regex| regex.is_match(module))
    }

    /// Whether the module is to be saved whole.
    pub(super) fn saves(&self, module: &str) -> bool {
        self.of.save_module.iter().any(|name| is_named(module, name))
    }

    /// Checks that every pattern and name is one of some module of these.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for one that isn't.
    pub(super) fn check(&self, modules: &[&str]) -> Result<()> {
        let finding = |field: &str, found: &str| {
            let hint =
                modules.iter().find(|module| !module.is_empty()).map(|m| format!("modules are called like {m:?}"));
            let finding = Finding::new("", field).expected("one that a module of the base has");
            Err(finding.found(format!("{found:?}")).hint(hint.unwrap_or_default()).setting())
        };
        if let Some(name) = self.of.save_module.iter().find(|name| !modules.iter().any(|module| is_named(module, name)))
        {
            return finding("save_module", name);
        }
        for (field, patterns) in [("include_regex", &self.include), ("exclude_regex", &self.exclude)] {
            if let Some(bad) = patterns.iter().find(|regex| !modules.iter().any(|module| regex.is_match(module))) {
                return finding(field, bad.as_str());
            }
        }
        Ok(())
    }
}

/// Whether `name` is the module's path or its last part.
fn is_named(module: &str, name: &str) -> bool {
    module == name || module.rsplit('.').next() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selection(include: &[&str], exclude: &[&str], save: &[&str]) -> Selection {
        let owned = |of: &[&str]| of.iter().map(|text| (*text).to_owned()).collect();
        Selection {
            include_regex: owned(include),
            exclude_regex: owned(exclude),
            save_module: owned(save),
            ..Selection::default()
        }
    }

    #[test]
    fn patterns_are_searched_for_and_names_are_whole() {
        let selection = selection(&["q_proj", r"layers\.1\."], &["mlp$"], &["lm_head", "a.b"]);
        let selector = selection.compiled().unwrap();
        let taken =
            ["layers.0.q_proj", "layers.1.k_proj", "layers.0.k_proj", "layers.1.mlp"].map(|m| selector.takes(m));
        assert_eq!(taken, [true, true, false, false]);
        let saved = ["lm_head", "x.lm_head", "my_lm_head", "a.b", "x.a.b", "b"].map(|m| selector.saves(m));
        assert_eq!(saved, [true, true, false, true, false, false]);
    }

    #[test]
    fn what_matches_nothing_is_named() {
        let error =
            |of: Selection| of.compiled().and_then(|s| s.check(&["", "layers.0.q_proj"])).unwrap_err().to_string();
        let line = error(selection(&[], &[], &["proj"]));
        assert!(line.starts_with("save_module: expected one that a module of the base has, found \"proj\""), "{line}");
        assert!(line.contains("called like \"layers.0.q_proj\""), "{line}");
        assert!(error(selection(&["x_proj"], &[], &[])).starts_with("include_regex: "));
        assert!(error(selection(&[], &["("], &[])).starts_with("exclude_regex: "));
        assert!(selection(&["q"], &["0"], &["q_proj"]).compiled().unwrap().check(&["layers.0.q_proj"]).is_ok());
    }
}
