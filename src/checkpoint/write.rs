//! Writes a Hugging Face folder: tensors, config.json, and all other files of the source folder.

use std::collections::BTreeMap;
use std::fs;

use super::Checkpoint;
use crate::dtype::DType;
use crate::error::{IoContext, Result};
use crate::output::{Output, json_text};
use crate::plan::Plan;

impl Checkpoint {
    /// Returns `plan` with the type `dtype` for every floating-point tensor.
    pub fn retyped(plan: &Plan, dtype: DType) -> Plan {
        let mut plan = plan.clone();
        for tensor in plan.tensors.iter_mut().filter(|tensor| tensor.dtype.is_float()) {
            tensor.dtype = dtype;
        }
        plan
    }

    /// Returns the files, by name, of a folder with the weights of `plan`: config.json with the weights' type, the
    /// tokenizer, and all other files that aren't weights.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn files_for(&self, plan: &Plan) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::new();
        for file in self.companion_files()? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name != "config.json" {
                files.insert(name, fs::read(&file).at(&file, "read")?);
            }
        }
        self.keep_template_in(&mut files)?;
        let mut config = self.config_json.clone();
        if let Some(name) = torch_name(plan) {
            // The field is called dtype in transformers 5, and torch_dtype in older versions. The existing field is
            // updated.
            let keys: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|k| config.contains_key(*k)).collect();
            for key in if keys.is_empty() { vec!["dtype"] } else { keys } {
                config.insert(key.to_owned(), name.into());
            }
        }
        files.insert("config.json".to_owned(), (json_text(&config) + "\n").into_bytes());
        Ok(files)
    }

    /// Returns the output folder with the weights of `plan` (in Hugging Face's names) and the files of this folder.
    ///
    /// # Errors
    /// The same as for [`Checkpoint::files_for`].
    pub fn output(&self, plan: Plan) -> Result<Output> {
        let files = self.files_for(&plan)?;
        let mut output = Output::folder("model", plan);
        output.notes.extend_from_slice(self.notes());
        output.sidecars.files = files;
        Ok(output)
    }
}

/// Returns torch's name for the most common type of the plan's values.
fn torch_name(plan: &Plan) -> Option<&'static str> {
    let elems = |dtype| plan.tensors.iter().filter(|t| t.dtype == dtype).map(|t| t.elems()).sum::<usize>();
    let most = [DType::F32, DType::F16, DType::BF16].into_iter().max_by_key(|dtype| elems(*dtype))?;
    most.torch_name().filter(|_| elems(most) > 0)
}
