//! Completes a config: defaults, derived fields, both spellings of the rotary fields; and checks what GGUF assumes.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::{HIDDEN, Params, Parts, class};
use crate::arch::{Config, Family, INERT, language, registry};
use crate::error::{Finding, Result};
use crate::json::is_off;

/// What a config is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::arch) enum Purpose {
    /// To convert the model to GGUF, which can't say everything.
    Convert,
    /// To run it.
    Run,
}

impl Params {
    /// Completes and checks `config`, which was read from the file at `path`.
    ///
    /// # Errors
    /// As [`Params::read`].
    pub(in crate::arch) fn complete(
        family: &'static Family,
        path: &Path,
        config: &Config,
        notes: &mut Vec<String>,
        purpose: Purpose,
    ) -> Result<Self> {
        let mut unknown = Vec::new();
        let mut fields: Config = family.defaults.clone();
        for (name, value) in config.iter().filter(|(name, _)| !name.starts_with(HIDDEN)) {
            let inert = INERT.contains(&name.as_str());
            if fields.contains_key(name) || inert {
                let default = fields.get(name).and_then(Json::as_object).filter(|_| name.ends_with("_config"));
                // The config of a part has defaults of its own.
                let value = match (default, value) {
                    (Some(default), Json::Object(given)) => {
                        let mut whole = default.clone();
                        whole.extend(given.clone());
                        Json::Object(whole)
                    }
                    _ => value.clone(),
                };
                fields.insert(name.clone(), value);
            } else if TOKEN_IDS.contains(&name.as_str()) {
                fields.insert(name.clone(), value.clone());
            } else if registry::is_known_field(name) && !is_read(family, name) {
                // A field of another class, which transformers ignores in this one.
                notes.push(format!("{}: {name}: no field of {}, ignored", path.display(), family.class()));
            } else {
                if is_read(family, name) {
                    fields.insert(name.clone(), value.clone());
                } else if !is_off(value) {
                    unknown.push(name.clone());
                }
            }
        }
        // A model saved without its head (class `...Model`) has no `lm_head`.
        if class(config).is_some_and(|class| class != family.class() && class.ends_with("Model")) {
            fields.insert("tie_word_embeddings".to_owned(), true.into());
        }
        let mut params = Self {
            family,
            path: path.to_owned(),
            fields,
            given: config.clone(),
            unknown,
            rope: Map::new(),
            rope_local: None,
            rope_field: "rope_parameters",
            root: None,
            parts: Parts::default(),
            target: None,
            tokens: None,
            tensors: Arc::default(),
            stored: None,
        };
        params.set_fields(purpose)?;
        params.derive()?;
        params.check_assumed(notes, purpose)?;
        params.read_rope()?;
        Ok(params)
    }

    /// Fills in the fields that transformers derives from others.
    pub(super) fn derive(&mut self) -> Result<()> {
        // transformers derives these also where config.json has null.
        let defaults = &self.family.defaults;
        let is_auto = |fields: &Config, name: &str| {
            defaults.get(name).is_some_and(|v| v == "auto")
                && fields.get(name).is_some_and(|v| v.is_null() || v == "auto")
        };
        if is_auto(&self.fields, "num_key_value_heads") {
            let heads = self.count("heads")?;
            self.fields.insert("num_key_value_heads".into(), heads.into());
        }
        if is_auto(&self.fields, "head_dim") && self.count("hidden").and(self.count("heads"))? > 0 {
            self.fields.remove("head_dim");
            let width = self.count("head")?;
            self.fields.insert("head_dim".into(), width.into());
        }
        if is_auto(&self.fields, "n_ctx") {
            let context = self.count("context")?;
            self.fields.insert("n_ctx".into(), context.into());
        }
        Ok(())
    }

    /// Replaces the fields that the family sets. A model runs with its own value of a field that may have any.
    pub(super) fn set_fields(&mut self, purpose: Purpose) -> Result<()> {
        let family = self.family;
        let is_own = |name: &String| purpose == Purpose::Run && family.runs_any.contains(name);
        for (name, formula) in family.sets.iter().filter(|(name, _)| !is_own(name)) {
            let value = self.value_of(formula, None)?;
            self.fields.insert(name.clone(), value);
        }
        Ok(())
    }

    fn check_assumed(&self, notes: &mut Vec<String>, purpose: Purpose) -> Result<()> {
        for (what, when) in &self.family.refusals {
            if self.holds(Some(when), None)? {
                let finding = Finding::new(self.folder(), "").expected("what this version can convert").found(what);
                return Err(finding.unsupported());
            }
        }
        for (text, when) in &self.family.notes {
            if self.holds(Some(when), None)? {
                notes.push(text.clone());
            }
        }
        let is_run = |field: &String| purpose == Purpose::Run && self.family.runs_any.contains(field);
        for assumed in self.family.assumed.iter().filter(|assumed| !is_run(&assumed.field)) {
            let value = self.fields.get(&assumed.field).unwrap_or(&Json::Null);
            // transformers has two names for this function.
            let value = if value == "swish" { &Json::from("silu") } else { value };
            if assumed.values.iter().any(|allowed| language::equal(allowed, value)) {
                continue;
            }
            if !self.holds(assumed.when.as_ref(), None)? {
                continue;
            }
            let allowed: Vec<String> = assumed.values.iter().map(Json::to_string).collect();
            let finding = self.finding(&assumed.field).expected(allowed.join(" or ")).found(value);
            if assumed.is_refused {
                return Err(finding.unsupported());
            }
            notes.push(format!("{finding}; GGUF has no key for it, so llama.cpp computes as if it were as expected"));
        }
        Ok(())
    }

    /// Unifies the two spellings of the rotary fields: `rope_parameters` of transformers 5, and the separate fields of
    /// older configs.
    pub(super) fn read_rope(&mut self) -> Result<()> {
        let object = |params: &Self, name: &str| match params.get(&[name]) {
            None => Ok(None),
            Some(Json::Object(map)) => Ok(Some(map.clone())),
            Some(other) => Err(params.finding(name).expected("an object").found(other).format()),
        };
        let mut rope = match object(self, "rope_parameters")? {
            Some(map) => map,
            None => {
                self.rope_field = "rope_scaling";
                object(self, "rope_scaling")?.unwrap_or_default()
            }
        };
        self.rope_local = self.number(&[
            "local_rope_theta",
            "rope_local_theta",
            "rope_theta_local",
            "swa_rope_theta",
            "rope_local_base_freq",
        ])?;
        if let Some(local) = rope.get("sliding_attention").cloned() {
            self.rope_local = local.get("rope_theta").and_then(Json::as_f64).or(self.rope_local);
        }
        if let Some(Json::Object(full)) = rope.get("full_attention") {
            rope = full.clone();
        }
        rope.remove("sliding_attention");
        let mut fill = |params: &Self, name: &str, fields: &[&str]| {
            if let (false, Some(value)) = (rope.contains_key(name), params.get(fields)) {
                rope.insert(name.to_owned(), value.clone());
            }
        };
        fill(
            self,
            "rope_theta",
            &["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"],
        );
        let parts = ["partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent"];
        fill(self, "partial_rotary_factor", &parts);
        fill(self, "original_max_position_embeddings", &["original_max_position_embeddings"]);
        if let (false, Some(kind)) = (rope.contains_key("rope_type"), rope.get("type").cloned()) {
            rope.insert("rope_type".to_owned(), kind);
        }
        self.rope = rope;
        Ok(())
    }
}

/// Fields that the vocabulary's keys are made of, for every class.
const TOKEN_IDS: [&str; 3] = ["bos_token_id", "eos_token_id", "pad_token_id"];

/// Whether the family's file reads the field, which its class may lack.
fn is_read(family: &Family, name: &str) -> bool {
    family.reads().contains(name)
}
