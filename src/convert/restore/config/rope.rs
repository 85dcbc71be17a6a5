//! The rotary fields of config.json, from metadata keys and from tensors that scale frequencies.

use serde_json::{Value as Json, json};

use super::{RopeFactors, Writer, decimal};
use crate::arch::language::{Formula, Function};
use crate::arch::rope::{Llama3, YARN};
use crate::arch::{Config, Extra};
use crate::convert::restore::tensors::FIELDS;
use crate::error::{Finding, Result};
use crate::formats::gguf::{Array, Value};

impl Writer<'_> {
    pub(super) fn rope_sections(&mut self) {
        let key = self.full("rope.dimension_sections");
        if let Some(Value::Array(Array::I32(sections))) = self.metadata().get(&key) {
            // llama.cpp pads them to four.
            let sections: Vec<i32> = sections.iter().copied().take(3).collect();
            self.scaling.insert("mrope_section".to_owned(), json!(sections));
        }
    }

    pub(super) fn rope_bases(&mut self) -> Result<()> {
        if let Some(theta) = self.number("rope.freq_base")? {
            self.put("rope_theta", theta);
        }
        if let Some(theta) = self.number("rope.freq_base_swa")? {
            let names =
                ["local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"];
            match names.iter().find(|name| self.has_field(name)) {
                Some(name) => self.put(name, theta),
                None => drop(self.scaling.insert("sliding_attention".to_owned(), json!({"rope_theta": theta}))),
            }
        }
        Ok(())
    }

    pub(super) fn rope_scaling(&mut self) -> Result<()> {
        let key = self.full("rope.scaling.type");
        let Some(kind) = self.metadata().get(&key) else { return Ok(()) };
        let kind = kind.as_text().unwrap_or_default().to_owned();
        match kind.as_str() {
            "none" => return Ok(()),
            "linear" | "yarn" => {}
            _ => {
                let finding = self.metadata().finding(&key);
                return Err(finding.expected("none, linear or yarn").found(kind).unsupported());
            }
        }
        self.scaling.insert("rope_type".into(), json!(kind));
        if let Some(factor) = self.number("rope.scaling.factor")? {
            self.scaling.insert("factor".into(), factor);
        }
        if kind == "yarn" {
            if let Some(context) = self.count("rope.scaling.original_context_length")? {
                self.scaling.insert("original_max_position_embeddings".into(), json!(context));
            }
            for (name, fields) in YARN {
                if let Some(value) = self.number(&format!("rope.scaling.{name}"))? {
                    self.scaling.insert(fields[0].into(), value);
                }
            }
        }
        Ok(())
    }

    /// Sets the scaling of rotary frequencies, and the part of a head that is rotated.
    pub(super) fn rope(&mut self, notes: &mut Vec<String>) -> Result<()> {
        let factors = self.factors;
        let field = |config: &Config, name: &str| config.get(name).and_then(Json::as_u64);
        let has = |extra: Extra| self.family.extras.contains(&extra);
        match factors {
            RopeFactors { freqs: Some(freqs), .. } if has(Extra::RopeFreqs) => {
                let theta = self.config.get("rope_theta").and_then(Json::as_f64).unwrap_or(10000.0);
                let context = field(&self.config, "max_position_embeddings").unwrap_or(8192);
                let llama3 = Llama3::from_factors(freqs, theta, context).ok_or_else(|| {
                    Finding::new(self.metadata().file(), "tensor \"rope_freqs.weight\"")
                        .expected("divisors as Llama 3's scaling makes them")
                        .found("others")
                        .unsupported()
                })?;
                notes.push(format!(
                    "rope_freqs.weight: written as llama3 scaling by {} with factors {} and {} over {} positions, which \
                     give the same divisors",
                    llama3.factor, llama3.low, llama3.high, llama3.context
                ));
                self.scaling = llama3.fields();
            }
            RopeFactors { long: Some(long), short: Some(short), .. } if has(Extra::LongFactors) => {
                self.full("rope.scaling.attn_factor");
                let list = |values: &[f32]| values.iter().map(|v| decimal(*v)).collect::<Vec<_>>();
                self.scaling.insert("rope_type".into(), json!("longrope"));
                self.scaling.insert("long_factor".into(), json!(list(long)));
                self.scaling.insert("short_factor".into(), json!(list(short)));
            }
            _ => self.check_factors()?,
        }
        if !self.scaling.is_empty() {
            let mut scaling = std::mem::take(&mut self.scaling);
            // A class with rotary parameters of its own takes those, unless they stand in this field.
            match self.family.defaults.get("rope_parameters") {
                Some(Json::Object(defaults)) => {
                    scaling.extend(defaults.get("mscale").map(|value| ("mscale".to_owned(), value.clone())));
                    scaling.extend(self.config.remove("rope_theta").map(|theta| ("rope_theta".to_owned(), theta)));
                    self.put("rope_parameters", Json::Object(scaling));
                }
                _ => self.put("rope_scaling", Json::Object(scaling)),
            }
        }
        Ok(())
    }

    /// Refuses factors of rotary frequencies that the family has no field for.
    fn check_factors(&self) -> Result<()> {
        for name in FIELDS.into_iter().filter(|name| self.factors.named(name).is_some()) {
            let mut is_read = false;
            for (_, formula) in &self.family.back {
                formula.visit(&mut |part| {
                    is_read |= matches!(part, Formula::Call(Function::Values, arguments)
                        if matches!(arguments.first(), Some(Formula::Literal(Json::String(of))) if of == name));
                });
            }
            if !is_read {
                let finding = Finding::new(self.metadata().file(), format!("tensor {name:?}"));
                let expected = format!("a tensor that {} has a field for", self.family.class());
                return Err(finding.expected(expected).found("this one").unsupported());
            }
        }
        Ok(())
    }
}
