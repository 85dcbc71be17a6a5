//! Converts Hugging Face checkpoints to GGUF with the same result as llama.cpp's `convert_hf_to_gguf.py`.
//!
//! A conversion is a plan: [`to_gguf`] reads headers, config and tokenizer files, and describes the output;
//! [`crate::formats::gguf::layout`] and [`crate::plan::execute`] write it.
//!
//! Reference: llama.cpp `conversion/base.py`, `conversion/llama.py`, `conversion/qwen.py`.

mod averages;
mod companions;
mod describe;
pub mod families;
mod found;
mod fuse;
pub(crate) mod general;
pub mod generic;
mod input;
mod keys;
pub mod lora;
mod restore;
mod source_record;
mod tensors;
mod types;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

pub(crate) use describe::class;
pub use describe::{Description, describe};
pub use fuse::Fuse;
pub use general::{GeneralOptions, summary};
pub use input::{Content, Input, Opening};
pub(crate) use input::{can_be_either, is_adapter};
pub(crate) use restore::FIELDS;
pub use restore::{from_gguf, with_changed};

use companions::Target;

use crate::arch::params::{Params, Parts};
use crate::arch::{Naming, registry, rope};
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::error::{Error, Finding, Result, nearest};
use crate::formats::gguf::{Metadata, Override};
use crate::output::{Output, metadata_left_out, safetensors_metadata};
use crate::plan::Plan;
use crate::tokenizer::{self, Vocab, VocabOptions};

/// The type of matrices in the output; vectors and norms are always F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)] // The names are the types' own.
pub enum OutType {
    F32,
    #[default]
    F16,
    BF16,
    Q8_0,
    /// Ternary matrices; embeddings and the output head are F16.
    TQ1_0,
    TQ2_0,
    /// BF16 if the first matrix is BF16, otherwise F16, as the reference chooses.
    Auto,
    /// Every matrix keeps its type. What GGUF would otherwise lose is stored in keys of this crate.
    Source,
}

impl OutType {
    /// All variants, in the order in which messages list them.
    pub const ALL: [OutType; 8] = [
        OutType::F32,
        OutType::F16,
        OutType::BF16,
        OutType::Q8_0,
        OutType::TQ1_0,
        OutType::TQ2_0,
        OutType::Auto,
        OutType::Source,
    ];

    /// The element type of all matrices in `weights`, or `None` where each keeps its own.
    pub fn dtype(self, weights: &Plan) -> Option<DType> {
        match self {
            OutType::F32 => Some(DType::F32),
            OutType::F16 => Some(DType::F16),
            OutType::BF16 => Some(DType::BF16),
            OutType::Q8_0 => Some(DType::Q8_0),
            OutType::TQ1_0 => Some(DType::TQ1_0),
            OutType::TQ2_0 => Some(DType::TQ2_0),
            OutType::Auto => {
                let matrices = weights.tensors.iter().filter(|tensor| tensor.shape.len() > 1);
                let halves = matrices.map(|tensor| tensor.dtype).find(|d| matches!(d, DType::F16 | DType::BF16));
                Some(halves.unwrap_or(DType::F16))
            }
            OutType::Source => None,
        }
    }

    /// Whether matrices become blocks, which only GGUF has.
    pub(crate) fn is_in_blocks(self) -> bool {
        matches!(self, OutType::Q8_0 | OutType::TQ1_0 | OutType::TQ2_0)
    }

    fn name(self) -> &'static str {
        match self {
            OutType::F32 => "f32",
            OutType::F16 => "f16",
            OutType::BF16 => "bf16",
            OutType::Q8_0 => "q8_0",
            OutType::TQ1_0 => "tq1_0",
            OutType::TQ2_0 => "tq2_0",
            OutType::Auto => "auto",
            OutType::Source => "source",
        }
    }
}

/// The value of `general.file_type` for a file whose matrices are mostly `dtype` (llama.cpp `include/llama.h`, `enum
/// llama_ftype`).
fn file_type(dtype: DType) -> u32 {
    match dtype {
        DType::F32 => 0,
        DType::Q8_0 => 7,
        DType::BF16 => 32,
        DType::TQ1_0 => 36,
        DType::TQ2_0 => 37,
        _ => 1,
    }
}

/// The value for a file with experts in blocks of MXFP4 (`LLAMA_FTYPE_MOSTLY_MXFP4_MOE`).
const MXFP4_FILE_TYPE: u32 = 38;

/// The name on the command line.
impl fmt::Display for OutType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for OutType {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // In capitals, TQ1_0 and TQ2_0 are mixtures as llama-quantize makes them.
        let is_mixture = text.starts_with("TQ");
        let named = |outtype: &Self| outtype.to_string() == text.to_ascii_lowercase() && !is_mixture;
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            let known = Self::ALL.map(|outtype| outtype.to_string()).join(", ");
            Finding::new("", "type").expected(known).found(text).setting()
        })
    }
}

/// A part of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ModelPart {
    /// The text model, with its layers for multi-token prediction.
    #[default]
    Whole,
    /// The text model without these layers.
    WithoutNextn,
    /// Only these layers, with the embeddings and the head that they share with the model.
    Nextn,
    /// The projector of a multimodal model: what turns images or sound into embeddings.
    Projector,
}

/// The options of a conversion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The type of matrices.
    pub outtype: OutType,
    /// llama.cpp's name of the pre-tokenizer, in place of the one that follows from `tokenizer.json`.
    pub pre: Option<String>,
    /// Whether the file gets a vocabulary. Without one, it can't turn text into tokens.
    pub vocab: bool,
    /// Whether the file gets only keys and vocabulary, without tensors.
    pub vocab_only: bool,
    /// Which part of the model is converted.
    pub part: ModelPart,
    /// Which tensors are joined.
    pub fuse: Fuse,
    /// The folder of the model that this one makes drafts for, whose vocabulary it gets.
    pub target: Option<PathBuf>,
    /// Whether the dense layers that sentence-transformers puts behind the model are converted, too.
    pub dense_modules: bool,
    /// What the user says about the model, which takes precedence over what its folder says.
    pub general: GeneralOptions,
    /// Keys whose values are replaced at the very end.
    pub overrides: Vec<Override>,
}

impl Default for ConvertOptions {
    fn default() -> Self {
        Self {
            outtype: OutType::default(),
            pre: None,
            vocab: true,
            vocab_only: false,
            part: ModelPart::default(),
            fuse: Fuse::default(),
            target: None,
            dense_modules: false,
            general: GeneralOptions::default(),
            overrides: Vec::new(),
        }
    }
}

/// A hint for classes without a family.
pub(crate) const GENERIC: &str = "`jobs::convert` with `generic` keeps names and files in a GGUF that llama.cpp can't run, and that becomes the \
     folder again";

/// The GGUF file that holds `weights` with the config and the tokenizer of `folder`.
///
/// `weights` has Hugging Face's names: [`Checkpoint::weights`] itself, or the same tensors made in another way. Each
/// tensor is used once, or named in the notes.
///
/// Keys, their types and order, and the order of tensors are those of the reference.
///
/// # Errors
/// [`Error::Mismatch`] where weights and config don't belong together, naming file and tensor;
/// [`Error::Unsupported`] for a class without a family, and for a config field or a tokenizer that this version can't
/// describe;
/// [`Error::Format`] for malformed files.
pub fn to_gguf(folder: &Checkpoint, weights: &Plan, options: &ConvertOptions) -> Result<Output> {
    let mut output = folder.in_own_words(gguf_of(folder, weights, options))?;
    output.notes = output.notes.into_iter().map(|note| folder.note_in_own_words(note)).collect();
    Ok(output)
}

/// The same, with the names of transformers in messages.
fn gguf_of(folder: &Checkpoint, weights: &Plan, options: &ConvertOptions) -> Result<Output> {
    let mut notes = folder.notes().to_vec();
    let is_projector = options.part == ModelPart::Projector;
    let params = if is_projector {
        Params::of_projector(folder.path(), &folder.config_json)?.ok_or_else(|| no_projector(folder))?
    } else {
        let parts = Parts {
            no_nextn: options.part == ModelPart::WithoutNextn,
            mtp_only: options.part == ModelPart::Nextn,
            dense_modules: options.dense_modules,
        };
        let params = Params::read_parts(folder.path(), &folder.config_json, parts, &mut notes)?;
        params.ok_or_else(|| no_family(folder))?
    };
    if options.dense_modules && !params.family.reads().contains("dense_modules") {
        let finding = Finding::new("", "sentence_transformers_dense_modules");
        let expected = format!("a class whose GGUF has a place for them, which {} is not", params.family.class());
        return Err(finding.expected(expected).found("the setting").setting());
    }
    let mut params = params.with_tokens_of(folder)?;
    if params.family.detect.is_some() {
        params = params.with_weights(weights.tensors.iter())?;
    }
    let target = Target::open(&params, options.target.as_deref())?;
    if let Some(target) = &target {
        params = params.with_target(target.folder.config_json.clone());
    }
    let companions = companions::tensors(&params)?;
    rope::check(&params, &mut notes)?;
    let matrices = options.outtype.dtype(weights);
    let (plan, params) = match options.vocab_only {
        false => {
            let request = tensors::Request {
                origin: folder.path(),
                stored_name: &|name| folder.stored_name(name),
                vocab_rows: &|| tokenizer::gemma3_rows(folder),
                outtype: matrices,
                companions: &companions,
            };
            tensors::plan(&request, params, weights, &mut notes)?
        }
        true => (Plan::default(), params),
    };
    if parts_without_layers(&params, options.part)? {
        let finding = Finding::new(folder.path().join("config.json"), "layers for multi-token prediction");
        return Err(finding.expected("at least one").found("none").mismatch());
    }
    if options.part == ModelPart::WithoutNextn && params.size("nextn")?.unwrap_or_default() == 0 {
        notes.push(
            "no layers for multi-token prediction are there to be left out: `no_nextn` changes nothing".to_owned(),
        );
    }
    if let (Some(main), false, false) = (params.size("main")?, is_projector, options.vocab_only) {
        let next = if options.part == ModelPart::WithoutNextn { None } else { params.size("nextn")? };
        notes.extend(missing_nextn(&plan, main, next.unwrap_or_default()));
    }
    let plan = fuse::fused(plan, &params.family.gguf, options.fuse, folder.path())?;
    let texts = safetensors_metadata(weights, &mut notes);
    notes.extend(metadata_left_out(&texts));
    let mut metadata = Metadata::new(folder.path());
    metadata.insert("general.architecture", params.family.gguf.as_str());
    // The reference makes these tensors, and their key, before all other keys.
    rope::write_attention_factor(&mut metadata, &params)?;
    keys::early(&mut metadata, folder.path(), &params)?;
    let totals = general::TensorTotals::of(&plan);
    let (path, config) = (folder.path(), &folder.config_json);
    general::write(&mut metadata, path, config, &params.family.gguf, totals, &options.general, &mut notes)?;
    let main = matrices.unwrap_or_else(|| plan.main_dtype());
    let has_blocks = plan.tensors.iter().any(|tensor| tensor.dtype == DType::MXFP4);
    let file_type = if has_blocks && main != DType::Q8_0 { MXFP4_FILE_TYPE } else { file_type(main) };
    keys::model(&mut metadata, folder.path(), &params, file_type)?;
    if !is_projector {
        let vocab = match &target {
            _ if !options.vocab => Vocab::None,
            Some(target) => target.params.family.vocab,
            None => params.family.vocab,
        };
        let vocab_options = VocabOptions {
            pre: options.pre.clone(),
            vocab_size: tokens(&params)?,
            settings: Some(params.settings().clone()),
            target: target.as_ref().map(|target| target.folder.config_json.clone()),
        };
        // The target's files, with the settings of this model.
        let (files, target) = match target {
            None => (None, None),
            Some(mut target) => {
                target.folder.config_json = folder.config_json.clone();
                (Some(target.folder), Some(target.params))
            }
        };
        tokenizer::to_gguf(&mut metadata, files.as_ref().unwrap_or(folder), vocab, &vocab_options, &mut notes)?;
        if vocab != Vocab::None {
            if let Some(target) = &target {
                keys::after_vocab(&mut metadata, target.folder(), target)?;
            }
            keys::after_vocab(&mut metadata, folder.path(), &params)?;
        }
    }
    if options.outtype == OutType::Source {
        source_record::write(&mut metadata, &params, folder, weights)?;
    }
    for single in &options.overrides {
        single.apply(&mut metadata)?;
    }
    Ok(Output::gguf(metadata, plan, notes))
}

/// The number of tokens, where the family says another one than config.json.
fn tokens(params: &Params) -> Result<Option<usize>> {
    let family = params.family;
    match family.lets.contains_key("tokens") {
        true => params.size("tokens"),
        false if family.sets.iter().any(|(name, _)| name == "vocab_size") => params.size("vocab"),
        false => Ok(None),
    }
}

/// Whether only the layers for multi-token prediction are wanted of a model that has none.
fn parts_without_layers(params: &Params, part: ModelPart) -> Result<bool> {
    Ok(part == ModelPart::Nextn && params.size("nextn")?.unwrap_or_default() == 0)
}

/// A note on layers for multi-token prediction that config.json counts and the folder hasn't. The reference counts them,
/// too.
fn missing_nextn(plan: &Plan, main: usize, next: usize) -> Option<String> {
    let layer = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<usize>().ok();
    let is_there = plan.tensors.iter().any(|tensor| layer(&tensor.name).is_some_and(|layer| layer >= main));
    (next > 0 && !is_there).then(|| {
        format!(
            "config.json counts layers for multi-token prediction ({next}), of which there are no tensors: llama.cpp may \
             not load the GGUF; `no_nextn` leaves them out"
        )
    })
}

/// The error for a folder that has no projector.
fn no_projector(folder: &Checkpoint) -> Error {
    Finding::new(folder.path().join("config.json"), "architectures")
        .expected("a class whose projector this version has a family for")
        .found(class(folder))
        .hint("a model without vision or audio has no projector; `convert::families` lists those that have one")
        .unsupported()
}

/// The error for a folder whose class has no family.
fn no_family(folder: &Checkpoint) -> Error {
    let class = class(folder);
    let families = registry::all();
    let models = families.iter().filter(|family| !family.is_projector);
    let classes: Vec<&str> = models.flat_map(|family| family.classes.first()).map(String::as_str).collect();
    let near = nearest(&class, &classes).map(|near| format!("; the nearest with a family is {near}"));
    Finding::new(folder.path().join("config.json"), "architectures")
        .expected("a class that this version has a family for")
        .found(class)
        .hint(format_args!("{GENERIC}{}", near.unwrap_or_default()))
        .unsupported()
}

/// The name in GGUF of the tensor that transformers calls `name`, for a model with this config. `None` if the model's
/// table doesn't have the tensor, or if it becomes a part of another.
pub fn gguf_name(config: &serde_json::Map<String, serde_json::Value>, name: &str) -> Option<String> {
    Naming::of(config).gguf_name(name)
}

/// Converts the tokenizer of a GGUF file with this `metadata` to the files of a Hugging Face folder: names and
/// contents, `tokenizer.json` first. A file without a vocabulary gives no files and a note.
///
/// The tokenizer gives the same tokens as llama.cpp. Converted to GGUF again, it gives the same keys as in the file.
///
/// # Errors
/// [`Error::Format`] for keys that break the rules of a vocabulary, naming file and key;
/// [`Error::Unsupported`] for a tokenizer that can't be expressed in Hugging Face's files.
pub fn tokenizer_files(metadata: &Metadata, notes: &mut Vec<String>) -> Result<Vec<(String, Vec<u8>)>> {
    tokenizer::to_hf(metadata, notes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outtypes_are_read_as_they_are_shown() {
        for outtype in OutType::ALL {
            assert_eq!(outtype.to_string().parse::<OutType>().unwrap(), outtype);
        }
        assert_eq!("Q8_0".parse::<OutType>().unwrap(), OutType::Q8_0);
        let error = "q4_k".parse::<OutType>().unwrap_err().to_string();
        assert!(
            error.contains("type: expected f32, f16, bf16, q8_0, tq1_0, tq2_0, auto, source, found q4_k"),
            "{error}"
        );
    }
}
