//! Writing a Hugging Face folder from a plan: weights, config, and everything beside them.

use std::fs;

use super::Checkpoint;
use crate::dtype::DType;
use crate::error::{IoContext, Result};
use crate::formats::safetensors;
use crate::plan::{self, Layout, Plan, Progress, Staging};

impl Checkpoint {
    /// `plan` with every floating-point tensor in `dtype`.
    pub fn retyped(plan: &Plan, dtype: DType) -> Plan {
        let mut plan = plan.clone();
        for tensor in &mut plan.tensors {
            if matches!(tensor.dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64) {
                tensor.dtype = dtype;
            }
        }
        plan
    }

    /// What stands beside the weights of `plan`, written as a folder: config.json, whose type
    /// follows the weights, the tokenizer and all other companion files.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn beside(&self, plan: &Plan) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for file in self.companion_files()? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name != "config.json" {
                files.push((name, fs::read(&file).at(&file, "read")?));
            }
        }
        let mut config = self.config_json.clone();
        if let Some(name) = torch_name(plan) {
            // transformers 5 says dtype, older ones torch_dtype: whichever stands there is kept true.
            let keys: Vec<&str> = ["dtype", "torch_dtype"].into_iter().filter(|k| config.contains_key(*k)).collect();
            for key in if keys.is_empty() { vec!["dtype"] } else { keys } {
                config.insert(key.to_owned(), name.into());
            }
        }
        let text = serde_json::to_string_pretty(&config).expect("parsed JSON serializes") + "\n";
        files.push(("config.json".to_owned(), text.into_bytes()));
        Ok(files)
    }

    /// Writes `plan` (in Hugging Face's names) as the folder of `staging`, with what stands beside it.
    ///
    /// # Errors
    /// What [`plan::execute`] meets; nothing is left behind then.
    pub fn write(
        &self,
        plan: &Plan,
        staging: Staging,
        shard_bytes: u64,
        options: plan::Options,
        progress: &(dyn Fn(Progress) + Sync),
    ) -> Result<()> {
        let layout = safetensors::layout(&plan.tensors, "model", shard_bytes)?;
        write_folder(plan, &layout, &self.beside(plan)?, staging, options, progress)
    }
}

/// Writes the weights of `plan` by `layout`, and `files` beside them, as the folder of `staging`.
///
/// # Errors
/// What [`plan::execute`] meets; nothing is left behind then.
pub fn write_folder(
    plan: &Plan,
    layout: &Layout,
    files: &[(String, Vec<u8>)],
    staging: Staging,
    options: plan::Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<()> {
    plan::execute(plan, layout, &staging, options, progress)?;
    for (name, content) in files {
        staging.write(name, content)?;
    }
    staging.commit()
}

/// torch's name of the type that most of the plan's bytes are in.
fn torch_name(plan: &Plan) -> Option<&'static str> {
    let names = [(DType::F32, "float32"), (DType::F16, "float16"), (DType::BF16, "bfloat16")];
    let elems = |dtype| plan.tensors.iter().filter(|t| t.dtype == dtype).map(|t| t.elems()).sum::<usize>();
    names.into_iter().max_by_key(|(dtype, _)| elems(*dtype)).filter(|(dtype, _)| elems(*dtype) > 0).map(|(_, n)| n)
}
