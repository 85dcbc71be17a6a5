//! Determines a type for every tensor of a model, from a file type and options.
//!
//! The types are those of llama-quantize without `--keep-split`, with which it counts tensors in another order. Where
//! llama-quantize stops at an assertion, or an option has no effect, it is an error here:
//!
//! - a type in `--output-tensor-type` or `--token-embedding-type` into whose blocks the rows don't divide;
//! - options that COPY ignores, `--tensor-type` with F32, F16 or BF16, both `--leave-output-tensor` and
//!   `--output-tensor-type`, and options for a tensor that the model doesn't have;
//! - tensors of integers that would be quantized.
//!
//! Two things work here but not in llama-quantize: tensors that already have their type need no importance, and files
//! whose only key is the architecture can be converted to F32, F16 or BF16.
//!
//! Reference: llama.cpp `src/llama-quant.cpp` (`llama_tensor_get_type`, `llama_model_quantize_impl`).

use std::collections::BTreeSet;

use super::facts::ModelFacts;
use super::file_type::FileType;
use super::mixture::Mixture;
use super::names::{OUTPUT, PER_LAYER_EMBEDDING, Role, file_order, is_kept};
use super::overrides::TensorTypeRule;
use super::prune::{Pruning, write_block_count};
use super::tensor_type::{divides, is_quantization_target, needs_importance, that_fits};
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::formats::gguf::{Metadata, QUANTIZATION_VERSION, QUANTIZATION_VERSION_KEY};
use crate::quant::can_decode;
use crate::source::TensorInfo;

/// A file type with the options of llama-quantize.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The file type.
    pub file_type: FileType,
    /// `--output-tensor-type`: the type of `output.weight`, or of embeddings used in its place.
    pub output_tensor_type: Option<DType>,
    /// `--token-embedding-type`: the type of the embeddings.
    pub token_embedding_type: Option<DType>,
    /// `--tensor-type` and `--tensor-type-file`: of the rules that match a tensor's name, the first counts.
    pub tensor_types: Vec<TensorTypeRule>,
    /// `--pure`: every quantized tensor gets the base type.
    pub pure: bool,
    /// `--leave-output-tensor`: `output.weight` keeps its type.
    pub leave_output_tensor: bool,
    /// `--allow-requantize`: quantized tensors may be converted to other types.
    pub allow_requantize: bool,
    /// `--prune-layers`: blocks that are removed.
    pub prune_layers: BTreeSet<usize>,
}

/// The decision about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chosen {
    /// Its name in the written file, which differs if layers were pruned.
    pub name: String,
    /// Its type in the written file.
    pub dtype: DType,
    /// The preferred type, if rows don't divide into its blocks so that another had to be used.
    pub instead_of: Option<DType>,
    /// Whether it is converted to a type that can't be encoded without importance.
    pub needs_importance: bool,
}

/// The reason for a tensor's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// It keeps its type.
    Kept,
    /// `--leave-output-tensor`.
    Left,
    /// `--output-tensor-type`.
    Output,
    /// `--output-tensor-type`, for embeddings in place of the output.
    TiedOutput,
    /// `--token-embedding-type`.
    Embedding,
    /// `--tensor-type`.
    Rule,
    FileType,
}

impl From<FileType> for Recipe {
    /// A recipe without options.
    fn from(file_type: FileType) -> Self {
        Self {
            file_type,
            output_tensor_type: None,
            token_embedding_type: None,
            tensor_types: Vec::new(),
            pure: false,
            leave_output_tensor: false,
            allow_requantize: false,
            prune_layers: BTreeSet::new(),
        }
    }
}

impl Recipe {
    /// The decision about each tensor, in the order of `tensors`; `None` for those of pruned layers. `importance` says
    /// for which tensors there is importance, by their names before pruning.
    ///
    /// # Errors
    /// [`Error::Setting`] for options that don't fit each other or the model; [`Error::Mismatch`] for quantized tensors
    /// without [`Recipe::allow_requantize`], and for tensors without the importance that they need; [`Error::Format`]
    /// for missing keys of the model; [`Error::Unsupported`] for tensors that can't be decoded.
    pub fn types(
        &self,
        metadata: &Metadata,
        tensors: &[TensorInfo],
        importance: Option<&dyn Fn(&str) -> bool>,
    ) -> Result<Vec<Option<Chosen>>> {
        let all = self.types_if_importance(metadata, tensors, importance.is_some())?;
        let lacks = |name: &str| importance.is_none_or(|has| !has(name));
        for (tensor, chosen) in tensors.iter().zip(&all) {
            if let Some(chosen) = chosen.as_ref().filter(|chosen| chosen.needs_importance && lacks(&tensor.name)) {
                let found = if importance.is_some() { "none for it in the imatrix file" } else { "no imatrix file" };
                return Err(about(metadata, &tensor.name)
                    .expected(format_args!("importance, as {} needs it", chosen.dtype))
                    .found(found)
                    .hint("make an imatrix file and pass it with `imatrix`, or choose a larger type")
                    .mismatch());
            }
        }
        Ok(all)
    }

    /// Like [`Recipe::types`], but doesn't check whether tensors have the importance that they need; this suffices to
    /// know all sizes. `importance` says whether there will be an importance matrix, because rules depend on it.
    ///
    /// # Errors
    /// As [`Recipe::types`].
    pub fn types_if_importance(
        &self,
        metadata: &Metadata,
        tensors: &[TensorInfo],
        importance: bool,
    ) -> Result<Vec<Option<Chosen>>> {
        self.check_options()?;
        let pruning = Pruning::new(&self.prune_layers, metadata, tensors)?;
        let names: Vec<_> = tensors.iter().map(|tensor| pruning.rename(&tensor.name)).collect();
        let facts;
        let mut mixture = None;
        if let Some(base) = self.file_type.base().filter(|base| !base.is_plain()) {
            facts = ModelFacts::read(metadata)?;
            let names = names.iter().flatten().map(AsRef::as_ref);
            mixture = Some(Mixture::new(metadata, &facts, (self.file_type, base), importance, names));
        }
        let mut chosen = vec![None; tensors.len()];
        let mut reasons = Vec::new();
        for place in file_order(tensors) {
            let Some(name) = names[place].as_deref() else { continue };
            let tensor = &tensors[place];
            let (preferred_type, reason) = self.preferred_type(metadata, name, tensor, mixture.as_mut())?;
            reasons.push(reason);
            let dtype = self.fitted(metadata, tensor, preferred_type, reason)?;
            if dtype != tensor.dtype {
                self.check_source(metadata, tensor, dtype)?;
            }
            chosen[place] = Some(Chosen {
                name: name.to_owned(),
                dtype,
                instead_of: (dtype != preferred_type).then_some(preferred_type),
                needs_importance: dtype != tensor.dtype && needs_importance(Role::of(name), dtype, self.file_type),
            });
        }
        self.check_effects(metadata, &reasons, names.iter().flatten().map(AsRef::as_ref))?;
        Ok(chosen)
    }

    /// Writes the keys that describe the tensors' types after all others, in llama-quantize's order. COPY keeps an
    /// existing file type, and adds none.
    pub fn write_type(&self, metadata: &mut Metadata) {
        const FILE_TYPE: &str = "general.file_type";
        metadata.remove(QUANTIZATION_VERSION_KEY);
        metadata.insert(QUANTIZATION_VERSION_KEY, QUANTIZATION_VERSION);
        let old = metadata.remove(FILE_TYPE);
        if let Some(value) = self.file_type.number().map(Into::into).or(old) {
            metadata.insert(FILE_TYPE, value);
        }
    }

    /// Writes the number of blocks after pruning. llama-quantize does this after keys that were set by the user.
    ///
    /// # Errors
    /// [`Error::Format`] for a file without `block_count`.
    pub fn write_block_count(&self, metadata: &mut Metadata) -> Result<()> {
        write_block_count(&self.prune_layers, metadata)
    }

    /// The type that a tensor should have, and the reason.
    fn preferred_type(
        &self,
        metadata: &Metadata,
        name: &str,
        tensor: &TensorInfo,
        mixture: Option<&mut Mixture<'_>>,
    ) -> Result<(DType, Reason)> {
        let Some(base) = self.file_type.base() else { return Ok((tensor.dtype, Reason::Kept)) };
        let role = Role::of(name);
        if is_kept(metadata.text("general.architecture")?, name, &tensor.shape) {
            return Ok((tensor.dtype, Reason::Kept));
        }
        if self.leave_output_tensor && role == Role::Output {
            return Ok((tensor.dtype, Reason::Left));
        }
        let rule = self.tensor_types.iter().find(|rule| rule.is_for(name)).map(|rule| rule.dtype);
        match (role, self.token_embedding_type, self.output_tensor_type) {
            // The second large embedding table gets the type of the embeddings, unless a rule names it.
            (Role::Embedding, Some(_), _) if name == PER_LAYER_EMBEDDING && rule.is_some() => {}
            (Role::Embedding, Some(dtype), _) => return Ok((dtype, Reason::Embedding)),
            (Role::Output, _, Some(dtype)) => return Ok((dtype, Reason::Output)),
            _ => {}
        }
        let Some(mixture) = mixture else { return Ok((base, Reason::FileType)) };
        if let Some(dtype) = rule {
            return Ok((dtype, Reason::Rule));
        }
        if self.pure {
            return Ok((base, Reason::FileType));
        }
        match self.output_tensor_type.filter(|_| mixture.is_output(role)) {
            Some(dtype) => Ok((dtype, Reason::TiedOutput)),
            None => Ok((mixture.preferred_type(name, tensor, role)?, Reason::FileType)),
        }
    }

    /// `preferred_type`, or its replacement if rows don't divide into its blocks. A type that an option gives to a
    /// single tensor isn't replaced.
    fn fitted(&self, metadata: &Metadata, tensor: &TensorInfo, preferred_type: DType, reason: Reason) -> Result<DType> {
        let row_len = tensor.row_len();
        let fitted = match reason {
            Reason::Kept | Reason::Left => Some(preferred_type),
            Reason::Output | Reason::Embedding => {
                Some(preferred_type).filter(|preferred_type| divides(row_len, *preferred_type))
            }
            Reason::TiedOutput | Reason::Rule | Reason::FileType => that_fits(preferred_type, row_len),
        };
        fitted.ok_or_else(|| {
            about(metadata, &tensor.name)
                .expected(format_args!(
                    "rows that divide into blocks of {}, as {preferred_type} has them",
                    preferred_type.block_elems()
                ))
                .found(format_args!("rows of {row_len}"))
                .mismatch()
        })
    }

    /// Checks that a tensor may and can be converted to another type.
    fn check_source(&self, metadata: &Metadata, tensor: &TensorInfo, dtype: DType) -> Result<()> {
        let found = tensor.dtype.to_string();
        if !tensor.dtype.is_plain() && !self.allow_requantize {
            return Err(about(metadata, &tensor.name)
                .expected(format_args!("F32, F16 or BF16 to make {dtype} of"))
                .found(found)
                .hint("quantize from the original, or pass `allow_requantize`, at a loss")
                .mismatch());
        }
        if !can_decode(tensor.dtype) {
            let finding = about(metadata, &tensor.name).expected(format_args!("a type to make {dtype} of"));
            return Err(finding.found(found).unsupported());
        }
        Ok(())
    }

    /// Refuses options that exclude each other.
    fn check_options(&self) -> Result<()> {
        let rules = !self.tensor_types.is_empty();
        let given = [
            ("output_tensor_type", self.output_tensor_type.is_some()),
            ("token_embedding_type", self.token_embedding_type.is_some()),
            ("tensor_type", rules),
            ("pure", self.pure),
            ("leave_output_tensor", self.leave_output_tensor),
        ];
        let refuse = |option: &str, with: &dyn std::fmt::Display| -> Error {
            Finding::new("", option).expected("none").found(format_args!("one, with {with}")).setting()
        };
        match self.file_type.base() {
            None => {
                if let Some((option, _)) = given.iter().find(|(_, given)| *given) {
                    return Err(refuse(option, &"file type COPY, which changes no types"));
                }
            }
            Some(base) if base.is_plain() && rules => {
                return Err(refuse("tensor_type", &format_args!("file type {base}, which has no exceptions")));
            }
            Some(_) => {}
        }
        if self.leave_output_tensor && self.output_tensor_type.is_some() {
            return Err(refuse("output_tensor_type", &"`leave_output_tensor`, which keeps the type it has"));
        }
        for (option, dtype) in given[..2].iter().zip([self.output_tensor_type, self.token_embedding_type]) {
            if let Some(dtype) = dtype.filter(|dtype| !is_quantization_target(*dtype)) {
                let finding = Finding::new("", option.0).expected("a type that tensors are quantized to");
                return Err(finding.found(dtype).setting());
            }
        }
        match self.tensor_types.iter().find(|rule| !is_quantization_target(rule.dtype)) {
            None => Ok(()),
            Some(rule) => {
                Err(rule.finding().expected("a type that tensors are quantized to").found(rule.dtype).setting())
            }
        }
    }

    /// Refuses options that affect no tensor.
    fn check_effects<'n>(
        &self,
        metadata: &Metadata,
        reasons: &[Reason],
        names: impl Iterator<Item = &'n str> + Clone,
    ) -> Result<()> {
        let none = |option: &str, expected: &str| {
            Err(Finding::new(metadata.file(), option).expected(expected).found("none that it would change").setting())
        };
        let used = |any_of: &[Reason]| reasons.iter().any(|reason| any_of.contains(reason));
        if self.output_tensor_type.is_some() && !used(&[Reason::Output, Reason::TiedOutput]) {
            return none("output_tensor_type", "output.weight, or embeddings in its place");
        }
        if self.token_embedding_type.is_some() && !used(&[Reason::Embedding]) {
            return none("token_embedding_type", "token_embd.weight");
        }
        if self.leave_output_tensor && !used(&[Reason::Left]) {
            return none("leave_output_tensor", OUTPUT);
        }
        match self.tensor_types.iter().find(|rule| !names.clone().any(|name| rule.is_for(name))) {
            None => Ok(()),
            Some(rule) => Err(rule.finding().expected("a part of a tensor's name").found("none like it").setting()),
        }
    }
}

fn about(metadata: &Metadata, tensor: &str) -> Finding {
    Finding::new(metadata.file(), format!("tensor {tensor:?}"))
}
