//! Kinds of adapters that can't be expressed as a merged weight, and kinds that this version
//! doesn't support.

use crate::error::Error;
use crate::json::Fields;

/// Kinds that can be merged, as values of `peft_type`.
pub(super) const MERGED: &[&str] = &[
    "ADALORA",
    "BEFT",
    "BOFT",
    "BONE",
    "C3A",
    "DEFT",
    "DELORA",
    "FILTER_ATOMS",
    "FOURIERFT",
    "FROD",
    "GLORA",
    "GRALORA",
    "HIRA",
    "HRA",
    "IA3",
    "LN_TUNING",
    "LOHA",
    "LOKR",
    "LORA",
    "MISS",
    "OFT",
    "OSF",
    "PEANUT",
    "PVERA",
    "RANDLORA",
    "ROAD",
    "SHIRA",
    "SUPERTUNING",
    "TINYLORA",
    "TRAINABLE_TOKENS",
    "UNILORA",
    "VBLORA",
    "VERA",
    "WAVEFT",
];

/// Kinds that select among adapters for every input.
const ROUTED: &[&str] = &["POLY", "XLORA"];

/// Kinds that learn inputs and change no weights of the model.
const PROMPTS: &[&str] =
    &["ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"];

/// The error that says why an adapter of `kind` isn't merged.
pub(super) fn kind(fields: &Fields, kind: &str) -> Error {
    let finding = fields.finding("peft_type");
    let finding = match kind {
        "QUERYABLE_LORA" => finding
            .expected("an adapter that is the same for every instruction")
            .found("QUERYABLE_LORA, an atom bank")
            .hint("fix an instruction with `jobs::bake`"),
        _ if ROUTED.contains(&kind) => finding
            .expected("an adapter that is the same for every input")
            .found(format_args!("{kind}, which picks among several for each: no one weight is the model"))
            .hint("run it in PEFT, or merge one of its adapters alone"),
        _ if PROMPTS.contains(&kind) => finding
            .expected("an adapter that changes weights")
            .found(format_args!("{kind}, which learns inputs beside the prompt: there is no weight to merge it into"))
            .hint("run it in PEFT on the unchanged base"),
        "PSOFT" => finding
            .expected("an adapter whose weights follow from its tensors and the base's")
            .found("PSOFT, whose weights depend on the signs that LAPACK happens to give singular vectors")
            .hint("merge it with PEFT's merge_and_unload, on a machine like the one that trained it"),
        "ADAMSS" => finding
            .expected("an adapter whose weights follow from its tensors and the base's")
            .found("ADAMSS, whose weights depend on a clustering by scikit-learn")
            .hint("merge it with PEFT's merge_and_unload and convert the result"),
        _ => finding
            .expected(format_args!("one of the kinds this version merges ({})", MERGED.join(", ")))
            .found(kind)
            .hint("merge it with PEFT's merge_and_unload and convert the result"),
    };
    finding.unsupported()
}
