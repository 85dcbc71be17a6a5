//! Settings of all jobs that write a checkpoint: where, in which form, and with which type.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::RecipeSettings;
use crate::convert::OutType;
use crate::error::{Finding, Result};
use crate::formats::PYTORCH_EXTENSIONS;
use crate::output::Destination;
use crate::quantize::FileType;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// A Hugging Face folder: safetensors, config, tokenizer files.
    Hf,
    /// One GGUF file, or several.
    Gguf,
    /// Only the tensors, as safetensors.
    Safetensors,
    /// Only the tensors, in the form of torch.save; a folder also gets config and tokenizer.
    Pytorch,
    /// A PEFT LoRA folder.
    Lora,
    /// The folder of a LoRA as mlx-lm has it.
    Mlx,
    /// Only the tensors, with three plain convolutions in the place of each that a bank of filter atoms has.
    #[serde(rename = "three-convolutions")]
    ThreeConvolutions,
}

/// Where a checkpoint is written, in which form and with which type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSettings {
    /// The path, and how the output is written there.
    pub destination: Destination,
    /// The form of the output; determined by the destination's extension if not given.
    #[serde(default)]
    pub to: Option<OutputKind>,
    /// The element type: `f32`, `f16`, `bf16`, `auto`, `source`; for GGUF also `q8_0` and llama-quantize's mixtures.
    /// The default is `auto` for GGUF and `source` for everything else.
    #[serde(default)]
    pub r#type: Option<String>,
    /// The largest size of a tensor file in a folder, in bytes.
    #[serde(default = "shard_size")]
    pub shard_size: u64,
    /// The largest size of a file of a split GGUF, in bytes.
    #[serde(default)]
    pub split_max_size: Option<u64>,
    /// The largest number of tensors in a file of a split GGUF.
    #[serde(default)]
    pub split_max_tensors: Option<usize>,
    /// Whether a GGUF is big-endian.
    #[serde(default)]
    pub bigendian: bool,
    /// The pre-tokenizer's name in GGUF, in place of the detected one.
    #[serde(default)]
    pub pre: Option<String>,
    /// How a mixture is quantized.
    #[serde(default)]
    pub recipe: RecipeSettings,
    /// Whether tensors that share a storage are each written, where the form could say that they share it.
    #[serde(default)]
    pub expand_shared: bool,
    /// A PyTorch file that is written again with the new values in place of its own: everything else in it stays.
    #[serde(default)]
    pub into: Option<PathBuf>,
    /// The part of that file that gets the values, such as `state_dict`.
    #[serde(default)]
    pub into_key: Option<String>,
    /// Whether the output is only described: then values that are only needed for writing aren't computed.
    #[serde(default)]
    pub dry_run: bool,
}

fn shard_size() -> u64 {
    5_000_000_000
}

impl OutputKind {
    /// Whether it is a LoRA in a folder of its own.
    pub(super) fn is_lora(self) -> bool {
        matches!(self, OutputKind::Lora | OutputKind::Mlx)
    }
}

impl OutputSettings {
    /// Settings for a new file or folder, with the program's defaults.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            destination: Destination::new(path),
            to: None,
            r#type: None,
            shard_size: shard_size(),
            split_max_size: None,
            split_max_tensors: None,
            bigendian: false,
            pre: None,
            recipe: RecipeSettings::default(),
            expand_shared: false,
            into: None,
            into_key: None,
            dry_run: false,
        }
    }

    /// The form of the output.
    pub fn kind(&self) -> OutputKind {
        self.to.unwrap_or(match self.extension().as_str() {
            "gguf" => OutputKind::Gguf,
            "safetensors" => OutputKind::Safetensors,
            extension if PYTORCH_EXTENSIONS.contains(&extension) || self.into.is_some() => OutputKind::Pytorch,
            _ => OutputKind::Hf,
        })
    }

    fn extension(&self) -> String {
        let extension = self.destination.path.extension().and_then(|e| e.to_str());
        extension.unwrap_or_default().to_ascii_lowercase()
    }

    /// Whether the output is a file, judging by its name.
    pub fn is_file(&self) -> bool {
        let extension = self.extension();
        let is_known = matches!(extension.as_str(), "gguf" | "safetensors");
        is_known || PYTORCH_EXTENSIONS.contains(&extension.as_str()) || self.into.is_some()
    }

    /// The same settings for a GGUF at another path.
    pub fn beside(&self, path: &Path) -> Self {
        let mut settings = self.clone();
        settings.destination.path = path.to_owned();
        settings.to = Some(OutputKind::Gguf);
        (settings.into, settings.into_key) = (None, None);
        settings
    }

    /// Checks everything that needs no input: nothing is in the way, the parent folder exists, the output can have the
    /// type, and settings fit together.
    ///
    /// # Errors
    /// [`crate::Error::Setting`]; those of [`Destination::check`].
    pub fn check(&self) -> Result<()> {
        self.check_type()?;
        self.check_into()?;
        self.check_place()
    }

    /// Checks the settings for writing into a PyTorch file.
    fn check_into(&self) -> Result<()> {
        let given = |field: &str| setting(field).expected("none with `into`, where the file decides").found("one");
        match (&self.into, &self.into_key) {
            (None, Some(_)) => {
                Err(setting("into_key").expected("`into`, whose part it chooses").found("none").setting())
            }
            (None, None) => Ok(()),
            (Some(_), _) if self.kind() != OutputKind::Pytorch => {
                Err(setting("into").expected("a PyTorch file as output").found("another output").setting())
            }
            (Some(_), _) if self.r#type.as_deref().is_some_and(|name| name != "source") => Err(given("type").setting()),
            (Some(_), _) if self.expand_shared => Err(given("expand_shared").setting()),
            (Some(_), _) => Ok(()),
        }
    }

    /// The part of [`OutputSettings::check`] that doesn't concern types.
    pub(super) fn check_place(&self) -> Result<()> {
        if self.to.is_none()
            && let Some(known) = nearly_known_ending(&self.destination.path)
        {
            let found = self.destination.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let finding = setting("output").expected(format_args!("a name that ends in .{known}, or a folder's"));
            let hint = "a folder of this name is made with `to`";
            return Err(finding.found(format_args!("{found:?}")).hint(hint).setting());
        }
        let limits = [
            ("split_max_size", self.split_max_size == Some(0)),
            ("split_max_tensors", self.split_max_tensors == Some(0)),
        ];
        if let Some((field, _)) = limits.into_iter().find(|(_, zero)| *zero) {
            return Err(setting(field).expected("a number above 0").found(0).setting());
        }
        if self.dry_run { Ok(()) } else { self.destination.check() }
    }

    fn check_type(&self) -> Result<()> {
        let kind = self.kind();
        if kind == OutputKind::ThreeConvolutions {
            let finding = setting("to").expected("another form: this one is of banks of filter atoms alone");
            return Err(finding.found("three-convolutions").hint("see `jobs::bake`").setting());
        }
        for (field, given) in
            [("split_max_size", self.split_max_size.is_some()), ("split_max_tensors", self.split_max_tensors.is_some())]
        {
            if given && kind != OutputKind::Gguf {
                let finding = setting(field).expected("a GGUF").found("another output");
                return Err(finding.hint("`shard_size` splits folders").setting());
            }
        }
        if self.shard_size != shard_size() && kind == OutputKind::Gguf {
            let finding = setting("shard_size").expected("a folder").found("a GGUF");
            return Err(finding.hint("`split_max_size` splits a GGUF").setting());
        }
        if self.bigendian && kind != OutputKind::Gguf {
            return Err(setting("bigendian").expected("a GGUF").found("another output").setting());
        }
        let quantized = self.quantized()?;
        if let (Some(field), None) = (self.recipe.first_given(), quantized) {
            if kind != OutputKind::Gguf {
                return Err(setting(field).expected("a GGUF").found("another output").setting());
            }
            let finding = setting(field).expected("a `type` that is a mixture, like Q4_K_M");
            return Err(finding.found(self.r#type.as_deref().unwrap_or("none")).setting());
        }
        let Some(name) = &self.r#type else { return Ok(()) };
        let expected = match kind {
            OutputKind::Gguf => "f32, f16, bf16, q8_0, auto, source, or a mixture like Q4_K_M",
            OutputKind::Hf => "f32, f16, bf16, auto or source for a Hugging Face folder",
            OutputKind::Safetensors | OutputKind::Pytorch => "f32, f16, bf16, auto or source",
            OutputKind::Lora | OutputKind::Mlx | OutputKind::ThreeConvolutions => "f32, f16 or bf16 for a LoRA",
        };
        match (kind, name.parse::<OutType>().ok()) {
            (OutputKind::Gguf, None) if quantized.is_some() => Ok(()),
            (OutputKind::Gguf, Some(_)) => Ok(()),
            (OutputKind::Hf | OutputKind::Safetensors | OutputKind::Pytorch, Some(known)) if !known.is_in_blocks() => {
                Ok(())
            }
            (OutputKind::Lora | OutputKind::Mlx, Some(OutType::F32 | OutType::F16 | OutType::BF16)) => Ok(()),
            _ => Err(setting("type").expected(expected).found(name).setting()),
        }
    }

    /// The requested mixture, if the type is one of llama-quantize's types that the converters don't support directly.
    ///
    /// # Errors
    /// [`crate::Error::Setting`] for an unknown type.
    pub fn quantized(&self) -> Result<Option<FileType>> {
        let Some(name) = self.r#type.as_deref().filter(|_| self.kind() == OutputKind::Gguf) else { return Ok(None) };
        if name.parse::<OutType>().is_ok() {
            return Ok(None);
        }
        name.parse().map(Some).map_err(|_| {
            let mixtures = FileType::all().map(FileType::name).collect::<Vec<_>>();
            let expected =
                format!("f32, f16, bf16, q8_0, tq1_0, tq2_0, auto, source, or a mixture: {}", mixtures.join(", "));
            let known = OutType::ALL.map(|outtype| outtype.to_string());
            let all: Vec<&str> = known.iter().map(String::as_str).chain(mixtures).collect();
            setting("type").expected(expected).found(name).did_you_mean(name, &all).setting()
        })
    }

    /// Refuses types for converting a GGUF to a GGUF that [`crate::jobs::quantize()`] handles: all except mixtures and
    /// the tensors' own types.
    pub(super) fn check_gguf_again(&self) -> Result<()> {
        if self.r#type.as_deref().is_none_or(|name| name == "source") {
            return Ok(());
        }
        let finding = setting("type").expected("source or a mixture, from GGUF to GGUF");
        let hint = "`jobs::quantize` makes F32, F16, BF16 and Q8_0 of a GGUF, too";
        Err(finding.found("another type").hint(hint).setting())
    }

    /// The requested type, or the default of the output's form.
    ///
    /// # Errors
    /// [`crate::Error::Setting`].
    pub fn outtype(&self) -> Result<OutType> {
        match &self.r#type {
            // Tensors that will be quantized shouldn't be rounded before.
            Some(_) if self.quantized()?.is_some() => Ok(OutType::F32),
            Some(name) => name.parse(),
            None if self.kind() == OutputKind::Gguf => Ok(OutType::Auto),
            None => Ok(OutType::Source),
        }
    }
}

/// Notes on values that aren't tensors, which the output has no place for.
pub(super) fn left_out(others: &[(String, String)]) -> Vec<String> {
    others.iter().map(|(path, what)| format!("no tensor, left out: {path} ({what})")).collect()
}

/// What the user calls an input: its name on the hub, or its path.
pub(super) fn name_of(id: Option<&str>, path: &Path) -> String {
    id.map_or_else(|| path.display().to_string(), str::to_owned)
}

/// A finding about the setting `field`.
pub(super) fn setting(field: &str) -> Finding {
    Finding::new("", field)
}

/// The known extension that the name of `path` nearly has: `gguf` for `x.ggfu` and for `x.gguf.tmp`.
pub fn nearly_known_ending(path: &Path) -> Option<&'static str> {
    const KNOWN: [&str; 4] = ["gguf", "safetensors", "ckpt", "bin"];
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let parts: Vec<&str> = name.split('.').skip(1).collect();
    let last = parts.last()?;
    if KNOWN.contains(last) || PYTORCH_EXTENSIONS.contains(last) {
        return None;
    }
    let before = parts.iter().rev().skip(1).find_map(|part| KNOWN[..3].iter().find(|known| *known == part));
    let near =
        || KNOWN[..3].iter().find(|known| last.len() > 2 && crate::error::distance(last, known) <= 1 + known.len() / 8);
    before.or_else(near).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_that_are_nearly_known_are_told_from_folders() {
        for (name, known) in [
            ("x.safetensor", Some("safetensors")),
            ("x.gguf.tmp", Some("gguf")),
            ("x.guff", None),
            ("x.ggu", Some("gguf")),
            ("x.saftensors", Some("safetensors")),
            ("x.gguf", None),
            ("x.bin", None),
            ("Llama-3.2-1B", None),
            ("v1.0", None),
            ("folder", None),
        ] {
            assert_eq!(nearly_known_ending(Path::new(name)), known, "{name}");
        }
    }

    #[test]
    fn settings_are_data() {
        let mut settings = OutputSettings::new("out.gguf");
        settings.r#type = Some("Q4_K_M".to_owned());
        let text = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<OutputSettings>(&text).unwrap(), settings);
        let least: OutputSettings = serde_json::from_str(r#"{"destination": {"path": "out"}}"#).unwrap();
        assert_eq!(least, OutputSettings::new("out"));
    }
}
