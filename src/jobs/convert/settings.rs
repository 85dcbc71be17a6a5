//! Settings of a conversion, and which of them fit together.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::super::settings::setting;
use super::super::{OutputKind, OutputSettings, RecipeSettings};
use crate::convert::{Content, Fuse, OutType, is_adapter};
use crate::error::Result;
use crate::formats::gguf::Override;

/// Settings of [`convert`](super::convert()).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertSettings {
    /// A model or adapter folder, a .gguf, .safetensors, .bin, .pt, .pth or .ckpt file.
    pub input: PathBuf,
    /// Where the result is written, and in which form.
    pub output: OutputSettings,
    /// The part of a PyTorch file to convert, such as `state_dict`.
    #[serde(default)]
    pub key: Option<String>,
    /// What is taken off the names of tensors alone that begin with it, such as `module.`.
    #[serde(default)]
    pub strip_prefix: Option<String>,
    /// What names the tensors under `key` get, which are a list: those of a part of the file, of another file, or of a part
    /// of it (`FILE:KEY`). For averages of weights.
    #[serde(default)]
    pub names_from: Option<String>,
    /// Whether coefficients and atoms that research code keeps (convnet_finetune, DCFNet-Pytorch, CL_Atom_Swapping) become
    /// dense kernels.
    #[serde(default)]
    pub dense_kernels: bool,
    /// The base model, for a LoRA: a folder or a GGUF.
    #[serde(default)]
    pub base: Option<PathBuf>,
    /// A JSON file with `general.*` keys for the GGUF, which take precedence over the model card.
    #[serde(default)]
    pub metadata: Option<PathBuf>,
    /// The model's name in the GGUF.
    #[serde(default)]
    pub model_name: Option<String>,
    /// The model's name on the hub, `org/name`, if it was downloaded from there.
    #[serde(default)]
    pub model_id: Option<String>,
    /// Keys of the GGUF whose values are replaced: `KEY=VALUE` or `KEY=TYPE:VALUE`.
    #[serde(default)]
    pub override_key: Vec<String>,
    /// Whether the GGUF only gets keys and the vocabulary, without tensors.
    #[serde(default)]
    pub vocab_only: bool,
    /// Whether layers for multi-token prediction are left out.
    #[serde(default)]
    pub no_nextn: bool,
    /// Whether only the layers for multi-token prediction are converted.
    #[serde(default)]
    pub mtp: bool,
    /// Whether the projector of a multimodal model is converted, and not its text model.
    #[serde(default)]
    pub mmproj: bool,
    /// The folder of the model that this one makes drafts for, whose vocabulary it gets.
    #[serde(default)]
    pub target_model_dir: Option<PathBuf>,
    /// Whether the dense layers that sentence-transformers puts behind the model are converted, too.
    #[serde(default)]
    pub sentence_transformers_dense_modules: bool,
    /// Which tensors of a layer are joined.
    #[serde(default)]
    pub fuse: Fuse,
    /// How to read a folder that has both a model and adapter_config.json.
    #[serde(default)]
    pub r#as: Option<Content>,
    /// Whether the GGUF keeps names and files as they are, so that the same folder can be restored.
    /// llama.cpp can't run it. This is for classes without a family and for tensors without a
    /// config.
    #[serde(default)]
    pub generic: bool,
}

impl ConvertSettings {
    /// Settings to convert `input` to the form that the name of `output` implies: a GGUF, a file of
    /// tensors, or a folder.
    pub fn new(input: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Self {
            input: input.into(),
            output: OutputSettings::new(output),
            key: None,
            strip_prefix: None,
            names_from: None,
            dense_kernels: false,
            base: None,
            metadata: None,
            model_name: None,
            model_id: None,
            override_key: Vec::new(),
            vocab_only: false,
            no_nextn: false,
            mtp: false,
            mmproj: false,
            target_model_dir: None,
            sentence_transformers_dense_modules: false,
            fuse: Fuse::default(),
            r#as: None,
            generic: false,
        }
    }

    /// The settings that write the projector of the same model to the file `path`. Its matrices get the same type, but
    /// none of llama-quantize's mixtures: these are for text models.
    pub fn of_projector(&self, path: &Path) -> Self {
        let mut settings = self.clone();
        settings.output = self.output.beside(path);
        settings.output.recipe = RecipeSettings::default();
        (settings.output.split_max_size, settings.output.split_max_tensors) = (None, None);
        if self.output.quantized().is_ok_and(|mixture| mixture.is_some()) {
            settings.output.r#type = None;
        }
        (settings.mmproj, settings.no_nextn, settings.fuse) = (true, false, Fuse::default());
        (settings.sentence_transformers_dense_modules, settings.target_model_dir) = (false, None);
        settings
    }

    pub(super) fn check(&self) -> Result<()> {
        let is_gguf = self.output.kind() == OutputKind::Gguf;
        let can_be_lora = is_adapter(&self.input, self.r#as) || self.input.extension().is_some_and(|e| e == "gguf");
        if self.output.kind().is_lora() && !can_be_lora {
            let finding = setting("to").expected("an adapter as input, for a LoRA").found("a model");
            return Err(finding
                .hint("`jobs::extract` makes a LoRA of a finetuned model, `jobs::bake` of an atom bank")
                .setting());
        }
        self.output.check()?;
        let only_gguf = [
            (self.metadata.is_some(), "metadata"),
            (self.model_name.is_some(), "model_name"),
            (!self.override_key.is_empty(), "override_key"),
            (self.vocab_only, "vocab_only"),
            (self.generic, "generic"),
        ];
        let mut only_gguf = only_gguf.into_iter().chain(self.of_families());
        if let Some((_, name)) = only_gguf.find(|(given, _)| *given && !is_gguf) {
            return Err(setting(name).expected("a GGUF").found("another output").setting());
        }
        let not_generic = [
            (self.metadata.is_some(), "metadata"),
            (self.model_name.is_some(), "model_name"),
            (self.vocab_only, "vocab_only"),
            (self.output.pre.is_some(), "pre"),
        ];
        match not_generic.into_iter().chain(self.of_families()).find(|(given, _)| *given && self.generic) {
            None => self.check_generic_type(),
            Some((_, name)) => Err(setting(name).expected("none with `generic`").found("both").setting()),
        }
    }

    /// A generic GGUF becomes the folder again, so it has types that a folder can have.
    fn check_generic_type(&self) -> Result<()> {
        let Some(name) = self.output.r#type.as_deref().filter(|_| self.generic) else { return Ok(()) };
        match name.parse() {
            Ok(OutType::F32 | OutType::F16 | OutType::BF16 | OutType::Auto | OutType::Source) => Ok(()),
            _ => {
                let finding = setting("type").expected("f32, f16, bf16, auto or source with `generic`");
                Err(finding.found(name).setting())
            }
        }
    }

    /// Settings of the conversion of a model's folder by its family, and whether they are given.
    pub(super) fn of_families(&self) -> [(bool, &'static str); 7] {
        [
            (self.no_nextn, "no_nextn"),
            (self.mtp, "mtp"),
            (self.mmproj, "mmproj"),
            (self.target_model_dir.is_some(), "target_model_dir"),
            (self.sentence_transformers_dense_modules, "sentence_transformers_dense_modules"),
            (self.fuse.qkv, "fuse_qkv"),
            (self.fuse.gate_up_experts, "fuse_gate_up_exps"),
        ]
    }

    pub(super) fn overrides(&self) -> Result<Vec<Override>> {
        self.override_key.iter().map(|text| Override::parse(text)).collect()
    }
}
