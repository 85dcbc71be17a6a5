//! The names of an adapter's tensors, as PEFT saves them.
//!
//! PEFT takes the adapter's own name out of them when it saves. Other programs save the state dict of the model as it
//! is, with that name and with the modules that wrapped the model while it was trained: torch.compile, DistributedDataParallel,
//! FSDP, activation checkpointing, Lightning.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::PREFIX;
use super::base::Base;
use crate::checkpoint::WRAPPED_ANYWHERE;
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};

/// Wrappers whose names a class could have, too. They are left out unless the base has a module of that name.
const WRAPPERS: [&str; 2] = ["module", "_forward_module"];

/// Starts of the part that follows the module's path in the name of a factor. In a model's own state dict, the adapter's
/// name comes next.
const FACTORS: [&str; 30] = [
    "lora_",
    "hada_",
    "lokr_",
    "ia3_",
    "vera_",
    "oft_",
    "boft_",
    "randlora_",
    "vblora_",
    "beft_",
    "bone_",
    "c3a_",
    "deft_",
    "delora_",
    "fourierft_",
    "frod_",
    "glora_",
    "gralora_",
    "hira_",
    "hra_",
    "miss_",
    "osf_",
    "peanut_",
    "pvera_",
    "road_",
    "shira_",
    "supertuning_",
    "tinylora_",
    "unilora_",
    "waveft_",
];

/// The same of what isn't a factor: whole modules, and rows of tokens.
const WHOLE: [&str; 3] = ["ln_tuning_layers", "trainable_tokens_delta", "modules_to_save"];

/// Whether this part of a tensor's name says what the tensor is to the module of the path before.
pub(crate) fn is_kind(part: &str) -> bool {
    FACTORS.iter().chain(&WHOLE).any(|kind| part.starts_with(kind))
}

/// Whether the adapter's name can come after this part. GLoRA has parts of its own there.
fn is_before_name(part: &str) -> bool {
    is_kind(part) && !part.starts_with("glora_")
}

/// The path of the module that the factor called `name` acts on; `None` for a tensor that is no factor.
pub(super) fn module_of_factor(name: &str) -> Option<&str> {
    let mut starts = name.match_indices('.').map(|(dot, _)| dot);
    let end = starts.find(|dot| FACTORS.iter().any(|kind| name[dot + 1..].starts_with(kind)))?;
    Some(&name[..end])
}

/// Other names of a LoRA's factors, and those of PEFT.
const SPELLINGS: [(&str, &str); 2] = [("lora_down", "lora_A"), ("lora_up", "lora_B")];

/// The tensors of an adapter by their names without [`PREFIX`], wrappers and the adapter's own name.
#[derive(Default)]
pub(super) struct Named {
    pub(super) tensors: BTreeMap<String, PlannedTensor>,
    /// The names in the file of tensors that PEFT would have called otherwise.
    pub(super) in_file: HashMap<String, String>,
    /// What was left out, if anything.
    pub(super) note: Option<String>,
}

/// Whether PEFT or a program that saves PEFT's modules made a file with a tensor called `name`.
pub(super) fn is_pefts(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').filter(|part| !is_wrapper(part)).collect();
    parts.join(".").starts_with(PREFIX)
}

fn is_wrapper(part: &str) -> bool {
    WRAPPED_ANYWHERE.contains(&part) || WRAPPERS.contains(&part)
}

/// The tensors of the file at `file`, an adapter of `base`, by the names that PEFT gives them.
///
/// # Errors
/// [`crate::Error::Mismatch`] if two tensors have the same name then.
pub(super) fn named(file: &Path, tensors: Plan, base: &Base) -> Result<Named> {
    let owned: Vec<&str> = WRAPPERS.into_iter().filter(|part| base.has_module(part)).collect();
    let adapter = adapter_name(&tensors);
    let has_peft_factors = tensors.tensors.iter().any(|tensor| tensor.name.contains(".lora_A."));
    let mut named = Named::default();
    let mut left_out: BTreeSet<String> = BTreeSet::new();
    for tensor in tensors.tensors {
        let mut parts: Vec<&str> = Vec::new();
        for part in tensor.name.split('.') {
            match is_wrapper(part) && !owned.contains(&part) {
                true => drop(left_out.insert(format!("{part}."))),
                false => parts.push(part),
            }
        }
        if !has_peft_factors {
            for (other, own) in SPELLINGS {
                parts.iter_mut().filter(|part| **part == other).for_each(|part| *part = own);
            }
        }
        let unwrapped = parts.join(".");
        // What wraps a PeftModel may have modules of its own around it.
        let bare = unwrapped.rfind(PREFIX).filter(|&at| at == 0 || unwrapped[..at].ends_with('.'));
        let bare = bare.map_or(&*unwrapped, |at| &unwrapped[at + PREFIX.len()..]);
        let name = without(bare, adapter.as_deref());
        let usual = [PREFIX, &name].concat();
        if tensor.name != usual && tensor.name != name {
            named.in_file.insert(name.clone(), tensor.name.clone());
        }
        if let Some(other) = named.tensors.insert(name, tensor) {
            return Err(Finding::new(file, format!("tensor {:?}", other.name))
                .expected("one tensor of this name, without what wrapped the model")
                .found("two")
                .mismatch());
        }
    }
    if !left_out.is_empty() {
        let parts: Vec<String> = left_out.into_iter().collect();
        named.note = Some(format!("{}: names of tensors are taken without {}", file.display(), parts.join(", ")));
    }
    Ok(named)
}

/// The adapter's name, if every tensor that has a place for it has the same (`lora_A.default.weight`).
fn adapter_name(tensors: &Plan) -> Option<String> {
    let mut names = tensors.tensors.iter().filter_map(|tensor| {
        let parts: Vec<&str> = tensor.name.split('.').collect();
        let place = parts.iter().position(|part| is_before_name(part))?;
        let is_whole = parts[place] == "modules_to_save";
        Some(match parts[place + 1..] {
            [name, ..] if is_whole => Some(name),
            [name, "weight" | "bias"] => Some(name),
            [name] if name != "weight" && name != "bias" => Some(name),
            _ => None,
        })
    });
    let first = names.next()??.to_owned();
    names.all(|name| name == Some(&first)).then_some(first)
}

/// A tensor's name without the adapter's name.
fn without(name: &str, adapter: Option<&str>) -> String {
    let Some(adapter) = adapter else { return name.to_owned() };
    let mut after_kind = false;
    let kept = name.split('.').filter(|part| {
        let drop = after_kind && *part == adapter;
        after_kind = is_before_name(part);
        !drop
    });
    kept.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::dtype::DType;
    use crate::plan::Expr;

    fn plan(names: &[&str]) -> Plan {
        let tensor = |name: &&str| {
            let expr = Expr::Values { shape: vec![1], values: Arc::from([1.0]) };
            PlannedTensor { name: (*name).to_owned(), dtype: DType::F32, shape: vec![1], expr }
        };
        Plan { tensors: names.iter().map(tensor).collect() }
    }

    fn bare(names: &[&str], base: &[&str]) -> Result<Vec<String>> {
        let weights = plan(base);
        let base = Base::of_tensors(Path::new("base"), &weights);
        Ok(named(Path::new("adapter"), plan(names), &base)?.tensors.into_keys().collect())
    }

    #[test]
    fn what_wrapped_the_model_is_left_out_wherever_it_is() {
        let own = "layers.0.q_proj.lora_A.weight";
        for name in [
            "base_model.model.layers.0.q_proj.lora_A.weight",
            "base_model.model._orig_mod.base_model.model.layers.0.q_proj.lora_A.weight",
            "module.base_model.model.layers.0.q_proj.lora_A.default.weight",
            "base_model.model._fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.q_proj.lora_A.weight",
            "_forward_module.student.base_model.model.layers.0.q_proj.lora_A.weight",
            "layers.0.q_proj.lora_down.weight",
        ] {
            assert_eq!(bare(&[name], &[]).unwrap(), [own], "{name}");
        }
        assert!(is_pefts("module.base_model.model.x.lora_A.weight") && !is_pefts("lora_unet_x.lora_down.weight"));
    }

    #[test]
    fn a_module_that_the_base_has_stays() {
        let name = "base_model.model.module.q_proj.lora_A.weight";
        assert_eq!(bare(&[name], &["module.q_proj.weight"]).unwrap(), ["module.q_proj.lora_A.weight"]);
        let twice = ["base_model.model.q.lora_A.weight", "base_model.model.module.q.lora_A.weight"];
        let error = bare(&twice, &[]).unwrap_err().to_string();
        assert!(
            error.contains("expected one tensor of this name, without what wrapped the model, found two"),
            "{error}"
        );
    }

    #[test]
    fn the_adapters_name_is_left_out_behind_every_kind() {
        let names = ["a.hada_w1_a.my", "a.modules_to_save.my.dense.weight"].map(|name| [PREFIX, name].concat());
        let names = names.each_ref().map(String::as_str);
        assert_eq!(bare(&names, &[]).unwrap(), ["a.hada_w1_a", "a.modules_to_save.dense.weight"]);
    }
}
