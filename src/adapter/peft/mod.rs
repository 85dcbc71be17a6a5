//! Adapters of PEFT as changes to the tensors of their base: what `merge_and_unload` would write.
//!
//! Every field of adapter_config.json is consumed or refused, every tensor of the adapter used or
//! refused. Reference: huggingface/peft `src/peft/tuners/*/layer.py` (`merge`, `get_delta_weight`).

mod base;
mod change;
mod entries;

use std::path::Path;

pub use base::Base;
pub use change::{Change, LowRank};

use entries::Entries;

use crate::checkpoint::{Fields, read_json_object};
use crate::error::Result;
use crate::plan::Plan;

/// A change to one tensor, by the tensor's name in the base.
pub type Named = (String, Change);

/// What an adapter does to its base.
#[derive(Debug, Default)]
pub struct Changes {
    /// In the order in which they are to be applied.
    pub changes: Vec<Named>,
    /// A line for everything that was left out or taken for granted.
    pub notes: Vec<String>,
}

/// The adapter with this config and these tensors, which stand in `file`, on `base`.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a kind, a field or a tensor that this version can't merge
/// truthfully, naming it; [`crate::Error::Mismatch`] for an adapter of another base.
pub fn changes(
    config_path: &Path,
    config: &serde_json::Map<String, serde_json::Value>,
    file: &Path,
    tensors: Plan,
    base: &Base,
) -> Result<Changes> {
    let mut fields = Fields::new(config_path, config);
    let mut entries = Entries::new(file, tensors);
    let mut changes = Changes::default();
    let kind: String = fields.need("peft_type")?;
    let _ = (&mut changes, base);
    match kind.as_str() {
        // One file a kind, each with `fn changes(&mut Fields, &mut Entries, &Base) -> Result<Vec<Named>>`.
        other => {
            return Err(fields
                .finding("peft_type")
                .expected("a kind this version can merge")
                .found(other)
                .unsupported());
        }
    }
    #[allow(unreachable_code)]
    {
        fields.finish()?;
        entries.finish()?;
        Ok(changes)
    }
}

/// As [`changes`], for a PEFT folder.
pub fn open(folder: &Path, base: &Base) -> Result<Changes> {
    let config_path = folder.join("adapter_config.json");
    let config = read_json_object(&config_path)?;
    let (file, source) = crate::convert::lora::weights(folder)?;
    changes(&config_path, &config, &file, Plan::taking(&source), base)
}
