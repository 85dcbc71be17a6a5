//! What formulas may ask of a config and of what lies beside it.

use std::borrow::Cow;
use std::path::{Component, Path};

use serde_json::Value as Json;

use super::Params;
use crate::arch::language::{Facts, Fault, Formula};
use crate::arch::{Config, lookup, whole_key};
use crate::formats::gguf::Value;
use crate::json::read_json_object;

impl Params {
    /// The settings of the preprocessor: those of preprocessor_config.json, then those of processor_config.json, each
    /// with its inner settings laid over the outer ones (conversion/base.py, `MmprojModel.__init__`).
    fn preprocessor(&self) -> Config {
        let mut all = Config::new();
        for (file, inner) in
            [("preprocessor_config.json", "media_proc_cfg"), ("processor_config.json", "image_processor")]
        {
            let Ok(fields) = read_json_object(&self.folder().join(file)) else { continue };
            let own = fields.get(inner).and_then(Json::as_object).cloned().unwrap_or_default();
            all.extend(fields);
            all.extend(own);
        }
        all
    }
}

impl Facts for Params {
    fn formula(&self, name: &str) -> Option<&Formula> {
        self.family.lets.get(name)
    }

    fn field(&self, name: &str) -> Option<Cow<'_, Json>> {
        Some(match name {
            "rope" => Cow::Owned(Json::Object(self.rope.clone())),
            "rope_local" => Cow::Owned(self.rope_local.map_or(Json::Null, Json::from)),
            "class" => Cow::Owned(self.given.get("architectures")?.get(0)?.clone()),
            "no_nextn" => Cow::Owned(self.parts.no_nextn.into()),
            "mtp_only" => Cow::Owned(self.parts.mtp_only.into()),
            "folder_name" => Cow::Owned(self.folder().file_name()?.to_string_lossy().into()),
            "folder" => Cow::Owned(self.folder().file_name()?.to_string_lossy().to_lowercase().into()),
            "dense_modules" => Cow::Owned(self.parts.dense_modules.into()),
            "pre" if self.family.is_projector => Cow::Owned(Json::Object(self.preprocessor())),
            _ => Cow::Borrowed(self.fields.get(name).filter(|value| *value != "auto")?),
        })
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        let Some(stored) = &self.stored else { return self.tensors.get(name).map(|tensor| tensor.shape.clone()) };
        // On the way back, a tensor of the checkpoint is there if what it becomes is there.
        let uses = lookup::matches(self.family, name, None);
        let is_there = uses.iter().filter_map(|known| known.gguf_name()).any(|name| stored.0.contains(&name));
        is_there.then(Vec::new)
    }

    fn values(&self, name: &str) -> Result<Option<Vec<Json>>, Fault> {
        let Some(tensor) = self.tensors.get(name) else { return Ok(None) };
        if let Some(whole) = tensor.whole_numbers() {
            return Ok(Some(whole.into_iter().map(Json::from).collect()));
        }
        let values = tensor.read().map_err(|error| Fault::new(name, "values that can be read", error))?;
        Ok(Some(values.into_iter().map(|value| Json::from(f64::from(value))).collect()))
    }

    fn file(&self, name: &str) -> Result<Option<Json>, Fault> {
        if !self.exists(name) {
            return Ok(None);
        }
        let path = self.folder().join(name);
        read_json_object(&path)
            .map(|fields| Some(Json::Object(fields)))
            .map_err(|error| Fault::new(name, "a JSON object", error))
    }

    fn exists(&self, name: &str) -> bool {
        // Files of the model alone.
        let is_inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        is_inside && self.folder().join(name).is_file()
    }

    fn token(&self, text: &str) -> Result<Option<u32>, Fault> {
        Ok(self.tokens.as_ref().and_then(|tokens| tokens.id(text)))
    }

    fn gguf(&self, key: &str) -> Option<Json> {
        let (_, keys) = &**self.stored.as_ref()?;
        keys.get(&whole_key(&self.family.gguf, key)).map(Value::to_json)
    }

    fn target(&self, name: &str) -> Option<Json> {
        let target = self.target.as_ref()?;
        let inner = target.get("text_config").and_then(|inner| inner.get(name));
        inner.or_else(|| target.get(name)).cloned()
    }

    fn zero_rows(&self, name: &str) -> Result<Vec<usize>, Fault> {
        let (Some(tensor), Some(tokens)) = (self.tensors.get(name), &self.tokens) else { return Ok(Vec::new()) };
        let mut zeros = Vec::new();
        let (mut values, width) = (Vec::new(), tensor.row_len().max(1));
        for start in (tokens.own()..tensor.rows()).step_by(256) {
            let rows = start..(start + 256).min(tensor.rows());
            let read = tensor.read_rows_into(rows, &mut values);
            read.map_err(|error| Fault::new(name, "values that can be read", error))?;
            let is_zero = |row: &[f32]| row.iter().all(|value| *value == 0.0);
            zeros.extend(values.chunks_exact(width).zip(start..).filter(|(row, _)| is_zero(row)).map(|(_, row)| row));
        }
        Ok(zeros)
    }

    fn root(&self, name: &str) -> Option<Json> {
        self.root.as_ref()?.get(name).cloned()
    }
}
