//! Adapters of PEFT as changes to the tensors of their base: the result is that of `merge_and_unload`.
//!
//! Every field of adapter_config.json and every tensor of the adapter is used or refused. Reference: huggingface/peft
//! `src/peft/tuners/*/layer.py` (`merge`, `get_delta_weight`).

mod adalora;
mod base;
mod beft;
mod boft;
mod c3a;
mod change;
mod deft;
mod delora;
mod dora;
mod entries;
mod experts;
mod filter_atoms;
mod fourierft;
mod frod;
mod glora;
mod gralora;
mod hira;
mod hra;
mod ia3;
mod loha;
mod lokr;
mod lora;
mod lycoris;
mod miss;
mod module_weight;
mod modules;
mod names;
mod oft;
mod order;
mod osf;
pub(crate) mod patterns;
mod peanut;
mod pvera;
mod randlora;
mod refused;
mod road;
mod rotation;
mod rows;
mod save;
mod saved;
mod shared_names;
mod sparse;
mod targets;
mod tinylora;
mod token_rows;
mod tokens;
mod tucker;
mod unilora;
mod variants;
mod vblora;
mod vera;
mod waveft;
mod wavelets;
mod weights;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

pub use base::Base;
pub(crate) use change::stack_delta;
pub use change::{Change, LowRank, WeightLayout};
pub(super) use dora::{input_factors, rescale};
pub(crate) use experts::ExpertParameter;
pub(super) use loha::delta as hadamard;
pub(super) use lokr::delta as kronecker;
pub(super) use lora::Config as LoraNumbers;
pub(super) use module_weight::Weight;
pub(crate) use names::is_kind;
pub(super) use rows::{Factors, ScaleColumns, ScaleRows};
pub use save::{NewLora, ParameterUpdate};
pub(super) use token_rows::{Held, TokenRows, bias_of, token_rows};
pub(super) use tucker::{First, Tucker};
pub(super) use vblora::integers;

use entries::{Entries, two_changes};
use targets::Targets;

use crate::error::{Finding, Result};
use crate::json::Fields;
use crate::plan::Plan;

/// PEFT's prefix of the names of an adapter's tensors.
pub(crate) const PREFIX: &str = "base_model.model.";

/// The expectation in messages about a missing tensor.
pub(crate) const ABSENT: &str = "a tensor of this name";

/// A change to one tensor, by the tensor's name in the base.
pub type Named = (String, Change);

/// The changes that an adapter makes to its base.
#[derive(Debug, Default)]
pub struct Changes {
    /// The file that defines the kind of adapter, for messages.
    pub path: PathBuf,
    /// The changes, in the order of application.
    pub changes: Vec<Named>,
    /// Whether a tied output head stays tied: then changes of the embeddings change both.
    pub keeps_tie: bool,
    /// The alpha of modules to which no pattern gives another, times the root of the rank with `use_rslora`. Only for
    /// LoRAs.
    pub alpha: Option<f64>,
    /// The invocation tokens, after which the adapter acts (activated LoRA). Empty if it always acts.
    pub invocation_tokens: Vec<u32>,
    /// One line for everything that was left out or assumed.
    pub notes: Vec<String>,
}

impl Changes {
    /// Refuses tensors of the adapter that don't hold floating-point numbers, and scales that aren't finite. This comes
    /// before any computation, because later messages couldn't say to which adapter they belong.
    pub(super) fn check_numbers(&self) -> Result<()> {
        let about = |name: &str| Finding::new(&self.path, format!("the change of {name:?}"));
        self.changes.iter().try_for_each(|(name, change)| change.check_numbers(|| about(name)))
    }

    /// Gives changes of storages with several names in `base` the name that stands for them. A tensor that is saved under
    /// two of them is one change.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] if one storage is changed under two names.
    pub(super) fn on_main_names(mut self, base: &Base) -> Result<Self> {
        if !base.shares_storages() {
            return Ok(self);
        }
        // The name that a storage has in the adapter, and the place of its first change.
        let mut changed: HashMap<String, (String, usize)> = HashMap::new();
        let mut changes: Vec<Named> = Vec::with_capacity(self.changes.len());
        for (name, change) in self.changes.drain(..) {
            let main = base.main_name(&name).to_owned();
            let (own, first) = changed.entry(main.clone()).or_insert_with(|| (name.clone(), changes.len()));
            if *own != name {
                let is_copy = match (&changes[*first].1, &change) {
                    (Change::Replace(one), Change::Replace(other)) => one.same_values(other)?,
                    _ => false,
                };
                if is_copy {
                    continue;
                }
                return Err(two_changes(Finding::new(&self.path, format!("the change of {name:?}")), own));
            }
            changes.push((main, change));
        }
        self.changes = changes;
        Ok(self)
    }

    /// Refuses an adapter that acts only after certain tokens: it can't be expressed as one weight.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`], naming the field.
    pub fn check_always_on(&self) -> Result<()> {
        if self.invocation_tokens.is_empty() {
            return Ok(());
        }
        Err(Finding::new(&self.path, "alora_invocation_tokens")
            .expected("a LoRA that is a fixed change of weights")
            .found(format_args!(
                "{:?}: the update is on behind certain tokens only, so that no one weight is the model",
                self.invocation_tokens
            ))
            .unsupported())
    }

    /// Removes whole tensors that equal the base's: PEFT saves embeddings together with adapters that act on them.
    ///
    /// # Errors
    /// As [`crate::plan::PlannedTensor::read_rows`].
    pub fn without_copies(self, base: &Base) -> Result<Self> {
        let mut changes = Vec::with_capacity(self.changes.len());
        for (name, change) in self.changes {
            let own = base.tensor(&name);
            match (&change, own) {
                (Change::Replace(tensor), Some(own)) if tensor.same_values(own)? => {}
                _ => changes.push((name, change)),
            }
        }
        Ok(Self { changes, ..self })
    }
}

/// Kinds of adapters that are computed in f64 where the base is F64, as PEFT does.
const IN_F64: [&str; 6] = ["LORA", "LOHA", "LOKR", "IA3", "LN_TUNING", "TRAINABLE_TOKENS"];

/// Fields that don't matter for any kind of adapter.
const INERT: &[&str] =
    &["auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"];

/// Whether the names of a file's tensors are those of PEFT.
pub(super) fn names_are_pefts(tensors: &Plan) -> bool {
    tensors.tensors.iter().any(|tensor| names::is_pefts(&tensor.name))
}

/// Refuses an adapter whose settings alone show that no base can have it merged.
pub(super) fn refusal(path: &Path, config: &serde_json::Map<String, serde_json::Value>) -> Result<()> {
    let mut fields = Fields::new(path, config);
    let kind = mergeable_kind(&mut fields)?;
    if kind == filter_atoms::KIND {
        filter_atoms::refusal(path, config)?;
    }
    if kind == "LORA" {
        lora::check_fields(&mut fields)?;
        let invocation_tokens = fields.get("alora_invocation_tokens")?.unwrap_or_default();
        Changes { path: path.to_owned(), invocation_tokens, ..Changes::default() }.check_always_on()?;
    }
    Ok(())
}

/// The kind of the adapter, if it is one that can be merged.
fn mergeable_kind(fields: &mut Fields) -> Result<String> {
    let kind: String = fields.need("peft_type")?;
    if refused::MERGED.contains(&kind.as_str()) { Ok(kind) } else { Err(refused::kind(fields, &kind)) }
}

/// Reads whole tensors, from the file at `file`, as changes to `base`. They have PEFT's prefix. `config_path` is the file
/// that says what they are.
///
/// # Errors
/// [`crate::Error::Mismatch`] for a tensor that the base doesn't have, or not in this shape.
pub(super) fn whole(config_path: &Path, file: &Path, tensors: Plan, base: &Base) -> Result<Changes> {
    let mut entries = Entries::new(file, tensors, base)?;
    let changes = saved::whole(&mut entries, base)?;
    Ok(Changes { path: config_path.to_owned(), changes, notes: entries.take_notes(), ..Changes::default() })
}

/// Reads the adapter with this config and these tensors, from the file at `file`, as changes to `base`.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a kind, a field or a tensor that this version can't merge exactly, naming it;
/// [`crate::Error::Mismatch`] for an adapter of another base.
pub(super) fn changes(
    config_path: &Path,
    config: &serde_json::Map<String, serde_json::Value>,
    file: &Path,
    tensors: Plan,
    base: &Base,
) -> Result<Changes> {
    let mut fields = Fields::new(config_path, config);
    let kind = mergeable_kind(&mut fields)?;
    if kind == filter_atoms::KIND {
        return filter_atoms::changes(config_path, config, file, tensors, base);
    }
    let mut entries = Entries::new(file, tensors, base)?;
    entries.drop_copies(base)?;
    let invocation_tokens = match kind.as_str() {
        "LORA" => fields.get("alora_invocation_tokens")?.unwrap_or_default(),
        _ => Vec::new(),
    };
    saved::drop_untrained(&mut entries);
    let targets = Targets::read(&mut fields)?;
    let tied = targets.keep_tie(&mut fields)? && saved::drop_tied(&mut entries, base)?;
    let tied = saved::drop_equal_head(&mut entries, base)? || tied;
    let mut changes = saved::replaced(&mut fields, &mut entries, base, tied)?;
    if kind != "LN_TUNING" && kind != "TRAINABLE_TOKENS" {
        targets.drop_unselected(&mut fields, &mut entries, base)?;
    }
    let mut alpha = None;
    changes.extend(match kind.as_str() {
        "LN_TUNING" => saved::tuned(&mut fields, &mut entries, base)?,
        // Replaced rows are added last, below.
        "TRAINABLE_TOKENS" => Vec::new(),
        "LORA" => {
            let (of_lora, file_alpha) = lora::changes(&mut fields, &mut entries, base, tied)?;
            alpha = Some(file_alpha);
            of_lora
        }
        "IA3" => ia3::changes(&mut fields, &mut entries, base)?,
        "LOHA" => loha::changes(&mut fields, &mut entries, base)?,
        "LOKR" => lokr::changes(&mut fields, &mut entries, base)?,
        "VERA" => vera::changes(&mut fields, &mut entries, base)?,
        "ADALORA" => adalora::changes(&mut fields, &mut entries, base)?,
        "BOFT" => boft::changes(&mut fields, &mut entries, base)?,
        "OFT" => oft::changes(&mut fields, &mut entries, base)?,
        "RANDLORA" => randlora::changes(&mut fields, &mut entries, base)?,
        "VBLORA" => vblora::changes(&mut fields, &mut entries, base)?,
        "BEFT" => beft::changes(&mut fields, &mut entries, base)?,
        "BONE" => miss::changes(&mut fields, &mut entries, base, "bone_block")?,
        "C3A" => c3a::changes(&mut fields, &mut entries, base)?,
        "DEFT" => deft::changes(&mut fields, &mut entries, base)?,
        "DELORA" => delora::changes(&mut fields, &mut entries, base)?,
        "FOURIERFT" => fourierft::changes(&mut fields, &mut entries, base)?,
        "FROD" => frod::changes(&mut fields, &mut entries, base)?,
        "GLORA" => glora::changes(&mut fields, &mut entries, base)?,
        "GRALORA" => gralora::changes(&mut fields, &mut entries, base)?,
        "HIRA" => hira::changes(&mut fields, &mut entries, base)?,
        "HRA" => hra::changes(&mut fields, &mut entries, base)?,
        "MISS" => miss::changes(&mut fields, &mut entries, base, "miss_block")?,
        "OSF" => osf::changes(&mut fields, &mut entries, base)?,
        "PEANUT" => peanut::changes(&mut fields, &mut entries, base)?,
        "PVERA" => pvera::changes(&mut fields, &mut entries, base)?,
        "ROAD" => road::changes(&mut fields, &mut entries, base)?,
        "SHIRA" => sparse::shira(&mut fields, &mut entries, base)?,
        "SUPERTUNING" => sparse::supertuning(&mut fields, &mut entries, base)?,
        "TINYLORA" => tinylora::changes(&mut fields, &mut entries, base)?,
        "UNILORA" => unilora::changes(&mut fields, &mut entries, base)?,
        "WAVEFT" => waveft::changes(&mut fields, &mut entries, base)?,
        other => return Err(refused::kind(&fields, other)),
    });
    let (tokens, tokens_tied) = match kind.as_str() {
        "TRAINABLE_TOKENS" => tokens::alone(&mut fields, &mut entries, base)?,
        _ => tokens::beside(&mut fields, &mut entries, base)?,
    };
    changes.extend(tokens);
    if !IN_F64.contains(&kind.as_str()) {
        base.check_f64(&changes, || fields.finding("peft_type").found(&kind))?;
    }
    fields.ignore(INERT);
    fields.finish()?;
    entries.finish()?;
    if changes.is_empty() {
        return Err(Finding::new(file, "").expected("tensors that change the base").found("none").format());
    }
    Ok(Changes {
        path: config_path.to_owned(),
        changes,
        keeps_tie: tied || tokens_tied,
        alpha,
        invocation_tokens,
        notes: entries.take_notes(),
    })
}
