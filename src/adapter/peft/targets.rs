//! The modules that a config selects for adaptation.
//!
//! Reference: peft `src/peft/tuners/tuners_utils.py`, `check_target_module_exists`.

use std::collections::{HashMap, HashSet};

use regex_lite::Regex;
use serde_json::Value;

use super::ABSENT;
use super::base::Base;
use super::entries::Entries;
use super::names::module_of_factor;
pub(super) use crate::arch::names::ends_path;
use crate::arch::unread::Unread;
use crate::arch::wrapper::other_part;
use crate::error::Result;
use crate::json::Fields;
use crate::plan::PlannedTensor;

/// `target_modules`, `exclude_modules` and `layers_to_transform` of a config.
pub(super) struct Targets {
    include: Option<Names>,
    exclude: Option<Names>,
    layers: Option<Vec<usize>>,
    /// Patterns that capture the layer's number in a path.
    layer: Vec<Regex>,
}

/// Modules by the ends of their paths, or by a pattern for the whole path.
enum Names {
    Ends(Vec<String>),
    Pattern(Regex),
}

impl Names {
    /// Reads the names in field `name`; `None` if it is missing or has a pattern that Rust's regular expressions don't
    /// support.
    fn read(fields: &mut Fields, name: &'static str) -> Result<Option<Self>> {
        Ok(match fields.get::<Value>(name)? {
            None => None,
            // Some versions of PEFT saved this word in place of the modules that it stood for.
            Some(Value::String(word)) if word == "all-linear" => None,
            Some(Value::String(pattern)) => Regex::new(&format!("^(?:{pattern})$")).ok().map(Names::Pattern),
            Some(_) => fields.get(name)?.map(Names::Ends),
        })
    }

    fn match_path(&self, path: &str) -> bool {
        match self {
            Names::Ends(names) => names.iter().any(|name| ends_path(path, name)),
            Names::Pattern(pattern) => pattern.is_match(path),
        }
    }

    fn has(&self, path: &str) -> bool {
        matches!(self, Names::Ends(names) if names.iter().any(|name| name == path))
    }

    /// Whether one of them is a module that PEFT ties to another.
    fn name_tied(&self) -> bool {
        const TIED: [&str; 2] = ["embed_tokens", "lm_head"];
        match self {
            Names::Ends(names) => names.iter().any(|name| TIED.iter().any(|tied| ends_path(name, tied))),
            Names::Pattern(pattern) => TIED.iter().any(|tied| pattern.is_match(tied)),
        }
    }
}

impl Targets {
    /// Reads the fields of a config.
    pub(super) fn read(fields: &mut Fields) -> Result<Self> {
        let include = Names::read(fields, "target_modules")?;
        let exclude = Names::read(fields, "exclude_modules")?;
        let layers = match fields.get::<Value>("layers_to_transform")? {
            None => None,
            Some(Value::Array(_)) => fields.get("layers_to_transform")?,
            Some(_) => fields.get("layers_to_transform")?.map(|layer| vec![layer]),
        };
        let patterns: Vec<String> = match fields.get::<Value>("layers_pattern")? {
            None => Vec::new(),
            Some(Value::Array(_)) => fields.need("layers_pattern")?,
            Some(_) => vec![fields.need("layers_pattern")?],
        };
        let patterns = if patterns.is_empty() { vec![r"[^.]*".to_owned()] } else { patterns };
        let layer =
            patterns.iter().filter_map(|pattern| Regex::new(&format!(r"^.*\.{pattern}\.(\d+)\.")).ok()).collect();
        Ok(Self { include, exclude, layers, layer })
    }

    /// Whether the embeddings and a tied head are adapted as one: `ensure_weight_tying`, which has an effect only where
    /// the config names one of them by the words that PEFT knows. GPT-2's `wte` is none of these.
    ///
    /// Reference: peft `src/peft/tuners/tuners_utils.py`, `_check_tied_modules`.
    pub(super) fn keep_tie(&self, fields: &mut Fields) -> Result<bool> {
        let saved = Names::read(fields, "modules_to_save")?;
        let names = [saved.as_ref(), self.include.as_ref()];
        Ok(fields.get("ensure_weight_tying")?.unwrap_or(false) && names.into_iter().flatten().any(Names::name_tied))
    }

    /// Whether the config selects the module at `path`; `None` where it doesn't say.
    pub(super) fn wants(&self, path: &str) -> Option<bool> {
        if self.exclude.as_ref().is_some_and(|names| names.match_path(path)) {
            return Some(false);
        }
        let include = self.include.as_ref()?;
        // A whole path selects its module, whatever the layer.
        if include.has(path) {
            return Some(true);
        }
        let in_layer = |layers: &Vec<usize>| {
            let number = |regex: &Regex| regex.captures(path)?.get(1)?.as_str().parse().ok();
            self.layer.iter().find_map(number).is_some_and(|layer: usize| layers.contains(&layer))
        };
        Some(include.match_path(path) && self.layers.as_ref().filter(|layers| !layers.is_empty()).is_none_or(in_layer))
    }

    /// Leaves out factors of modules that the config doesn't select, as PEFT does when it loads an adapter.
    pub(super) fn drop_unselected(&self, fields: &mut Fields, entries: &mut Entries, base: &Base) -> Result<()> {
        // The modules of parameters are selected by their own list.
        if fields.get::<Vec<String>>("target_parameters")?.is_some_and(|names| !names.is_empty()) {
            return Ok(());
        }
        let is_unselected = |name: &&str| {
            let Some(module) = module_of_factor(name) else { return false };
            let Some(tensor) = base.tensor(&format!("{module}.weight")) else { return false };
            let own = base.own_name(&tensor.name);
            let paths = [module, &own, &tensor.name].map(|path| path.strip_suffix(".weight").unwrap_or(path));
            paths.iter().all(|path| self.wants(path) == Some(false))
        };
        let unselected: Vec<String> = entries.names().filter(is_unselected).map(str::to_owned).collect();
        let factors = entries.names().filter(|name| module_of_factor(name).is_some()).count();
        if factors > 0 && unselected.len() == factors {
            return Err(fields
                .finding("target_modules")
                .expected("modules that the adapter has tensors for")
                .found(format_args!("none of them, like {}", unselected[0]))
                .hint("target_modules, exclude_modules and layers_to_transform say which modules an adapter acts on")
                .mismatch());
        }
        unselected.iter().for_each(|name| drop(entries.take(name)));
        if let Some(first) = unselected.first() {
            entries.note(format!(
                "{}: {} tensors of modules that its config doesn't select are left out, as PEFT does, like {first}",
                entries.file().display(),
                unselected.len()
            ));
        }
        Ok(())
    }

    /// Checks that every module that the config selects is in `adapted`, the names of the base's weights. `missing` is
    /// the tensor that the adapter would have for such a module.
    pub(super) fn complete(
        &self,
        entries: &mut Entries,
        base: &Base,
        adapted: &HashSet<String>,
        missing: &str,
    ) -> Result<()> {
        // An adapter that was trained on the text model alone has no tensors for the other parts.
        let is_whole = base.is_tensors_alone() || adapted.iter().any(|name| other_part(name).is_some());
        // A tensor of more dimensions needn't be the kernel of a convolution. Where the adapter has one, it is.
        let is_kernel = |tensor: &PlannedTensor| tensor.shape.len() > 2 && adapted.contains(&tensor.name);
        let with_kernels = base.named().any(|(_, tensor)| is_kernel(tensor));
        let most = if with_kernels { 5 } else { 2 };
        let unread = Unread::of(base.config());
        let (mut kept, mut other_names) = (Vec::new(), Vec::new());
        // PEFT sees a module that a class registers twice under its first name only. The names so far of each storage, and
        // whether they are selected.
        let mut earlier: HashMap<&str, Vec<(String, bool)>> = HashMap::new();
        // Of a storage's names, any one is enough.
        let adapted: HashSet<&str> = adapted.iter().map(|name| base.main_name(name)).collect();
        for (name, tensor) in base.named() {
            let Some(module) = name.strip_suffix(".weight") else { continue };
            if !is_whole && other_part(&name).is_some() {
                continue;
            }
            // transformers keeps a layer's experts in one tensor, so target_modules doesn't select single experts.
            let is_weight = (2..=most).contains(&tensor.shape.len());
            let is_wanted = self.wants(module) == Some(true);
            let main = base.main_name(&tensor.name);
            let names = earlier.entry(main).or_default();
            // A module that contains this one has the weight as its own, too: that is no second registration.
            let contains = |path: &str| module.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
            let mut others = names.iter().filter(|(path, _)| !contains(path)).peekable();
            let is_second = others.peek().is_some() && others.all(|(_, wanted)| !wanted);
            names.push((module.to_owned(), is_wanted));
            if !is_weight || module.contains(".experts.") || !is_wanted || adapted.contains(main) {
                continue;
            }
            if is_second {
                other_names.push(module.to_owned());
                continue;
            }
            if unread.has(&name) {
                kept.push(module.to_owned());
                continue;
            }
            let hint = match entries.names().next() {
                None => "the adapter is incomplete".to_owned(),
                Some(other) => format!("the adapter is incomplete, or has other names: {other:?} is not used"),
            };
            return Err(entries
                .finding(&format!("{module}.{missing}"))
                .expected(format_args!("{ABSENT}, as target_modules asks for"))
                .found("none")
                .hint(hint)
                .mismatch());
        }
        if let Some(first) = other_names.first() {
            entries.note(format!(
                "{}: {} modules stay as they are that target_modules selects by their second name only, like {first}",
                base.path().display(),
                other_names.len()
            ));
        }
        if let Some(first) = kept.first() {
            entries.note(format!(
                "{}: {} modules that the model's class doesn't load stay as they are, like {first}",
                base.path().display(),
                kept.len()
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn targets(json: Value) -> Targets {
        Targets::read(&mut Fields::new(Path::new("adapter_config.json"), json.as_object().unwrap())).unwrap()
    }

    #[test]
    fn modules_are_wanted_by_the_end_of_their_path_or_by_a_pattern_of_it() {
        let ends = targets(json!({"target_modules": ["q_proj", "model.layers.1.mlp.up_proj"]}));
        assert_eq!(ends.wants("model.layers.0.self_attn.q_proj"), Some(true));
        assert_eq!(ends.wants("model.layers.0.self_attn.xq_proj"), Some(false));
        assert_eq!(ends.wants("model.layers.1.mlp.up_proj"), Some(true));
        assert_eq!(ends.wants("model.layers.2.mlp.up_proj"), Some(false));
        let pattern = targets(json!({"target_modules": r".*\.[01]\..*\.(q|k)_proj", "exclude_modules": ["k_proj"]}));
        assert_eq!(pattern.wants("model.layers.1.self_attn.q_proj"), Some(true));
        assert_eq!(pattern.wants("model.layers.2.self_attn.q_proj"), Some(false));
        assert_eq!(pattern.wants("model.layers.1.self_attn.k_proj"), Some(false));
        assert_eq!(targets(json!({"target_modules": "(?!x).*"})).wants("q_proj"), None, "no look-around here");
    }

    #[test]
    fn layers_count_for_ends_of_paths_only() {
        let some = targets(json!({"target_modules": ["q_proj", "lm_head"], "layers_to_transform": [0, 2]}));
        assert_eq!(some.wants("model.layers.2.self_attn.q_proj"), Some(true));
        assert_eq!(some.wants("model.layers.1.self_attn.q_proj"), Some(false));
        assert_eq!(some.wants("lm_head"), Some(true));
        let one = targets(json!({"target_modules": ["c_attn"], "layers_to_transform": 1, "layers_pattern": "h"}));
        assert_eq!(one.wants("transformer.h.1.attn.c_attn"), Some(true));
        assert_eq!(one.wants("transformer.h.0.attn.c_attn"), Some(false));
    }
}
