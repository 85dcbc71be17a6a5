//! The base of an adapter: its tensors by the names that PEFT knows their modules by.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::entries::Entries;
use crate::convert::{class_name, keeps_transposed};
use crate::error::Result;
use crate::plan::{Plan, PlannedTensor};

/// A base model: config and tensors, in Hugging Face's names.
pub struct Base<'a> {
    path: PathBuf,
    config: &'a Map<String, Value>,
    weights: &'a Plan,
    /// Places in the plan by the file's names and by the class's own.
    places: HashMap<String, usize>,
}

/// A module's weight in the base.
#[derive(Debug, Clone, Copy)]
pub(super) struct Weight<'a> {
    /// The weight; its name is the file's.
    pub(super) tensor: &'a PlannedTensor,
    /// Outputs of the module, whichever way round the weight is kept.
    pub(super) d_out: usize,
    /// Its inputs.
    pub(super) d_in: usize,
    /// Whether the weight is `[d_in, d_out]`: a Conv1D.
    pub(super) transposed: bool,
}

impl<'a> Base<'a> {
    /// The base of this config and these weights; `path` is for messages.
    pub fn new(path: &Path, config: &'a Map<String, Value>, weights: &'a Plan) -> Self {
        let mut places = HashMap::new();
        for (place, tensor) in weights.tensors.iter().enumerate() {
            if let Some(name) = class_name(config, &tensor.name) {
                places.insert(name, place);
            }
        }
        // What the file itself calls so comes first.
        places.extend(weights.tensors.iter().enumerate().map(|(place, tensor)| (tensor.name.clone(), place)));
        Self { path: path.to_owned(), config, weights, places }
    }

    /// Where it is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// config.json.
    pub fn config(&self) -> &'a Map<String, Value> {
        self.config
    }

    /// The tensor that PEFT calls `name`.
    pub(super) fn tensor(&self, name: &str) -> Option<&'a PlannedTensor> {
        let place = self.places.get(name).copied().or_else(|| {
            let name = class_name(self.config, name)?;
            self.places.get(&name).copied()
        });
        place.map(|place| &self.weights.tensors[place])
    }

    /// The weight of the linear layer `module`, `[d_out, d_in]` or the other way round; `entry` is the
    /// adapter's tensor that asks for it. `fan_in_fan_out` decides for classes without a table.
    pub(super) fn linear(
        &self,
        entries: &Entries,
        entry: &str,
        module: &str,
        fan_in_fan_out: bool,
    ) -> Result<Weight<'a>> {
        let name = format!("{module}.weight");
        let Some(tensor) = self.tensor(&name) else {
            return Err(entries
                .finding(entry)
                .expected(format_args!("a module of the base model {}", self.path.display()))
                .found("none of that name there")
                .hint("this adapter belongs to another base model")
                .mismatch());
        };
        let &[rows, cols] = tensor.shape.as_slice() else {
            return Err(entries
                .finding(entry)
                .expected("a module of the base with a matrix for its weight")
                .found(crate::formats::show_shape(&tensor.shape))
                .unsupported());
        };
        let transposed = keeps_transposed(self.config, &name).unwrap_or(fan_in_fan_out);
        let (d_out, d_in) = if transposed { (cols, rows) } else { (rows, cols) };
        Ok(Weight { tensor, d_out, d_in, transposed })
    }

    /// Whether the output head is the embeddings.
    pub fn tied(&self) -> bool {
        self.config.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(true)
            && self.tensor("lm_head.weight").is_none()
    }
}
