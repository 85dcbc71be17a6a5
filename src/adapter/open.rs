//! Opening adapters: finds the adapter at a path by its content, and says what it changes in a base.
//!
//! PEFT writes an adapter as a folder. Trainers write such folders into others: one for every checkpoint of a run, one
//! for every named adapter. A path may name any of these folders, or a file in them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::beside::{self, Beside};
use super::gguf;
use super::kohya;
use super::mlx::{self, Mlx};
use super::peft::{self, Base, Changes};
use crate::checkpoint::ADAPTER_CONFIG;
use crate::error::{Error, Finding, IoContext, Result};
use crate::formats::FileKind;
use crate::formats::gguf::{GgufModel, Metadata};
use crate::formats::pytorch::PytorchFile;
use crate::formats::safetensors::SafetensorsFile;
use crate::json::read_json_object;
use crate::plan::Plan;
use crate::source::Source;

/// PEFT's names of an adapter's weights, the preferred one first.
pub(super) const WEIGHTS: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// The prefix of a trainer's checkpoint folders. The step follows.
const CHECKPOINT: &str = "checkpoint-";

/// Reads the adapter at `path` as changes to the tensors of `base`. It can be a folder of PEFT, of mlx-lm or of a
/// trainer, a file of kohya-ss/sd-scripts or LyCORIS, or a LoRA in a GGUF.
///
/// # Errors
/// Those of [`AdapterFiles::find`] and [`AdapterFiles::changes`]; [`crate::Error::Unsupported`] for an adapter that
/// acts only after certain tokens.
pub fn open(path: &Path, base: &Base) -> Result<Changes> {
    AdapterFiles::find(path)?.merged_changes(base)
}

/// The open files of one adapter, before its tensors are interpreted.
#[derive(Debug)]
pub struct AdapterFiles {
    path: PathBuf,
    file: PathBuf,
    tensors: Plan,
    form: AdapterForm,
    notes: Vec<String>,
}

/// The form in which an adapter is stored.
#[derive(Debug)]
enum AdapterForm {
    /// A folder of PEFT, with its settings.
    Peft(Map<String, Value>),
    /// A folder of mlx-lm: the factors and settings as PEFT has them, or whole tensors without settings.
    Mlx(Option<Map<String, Value>>),
    /// One file, as saved by kohya-ss/sd-scripts and LyCORIS. It has no settings besides the names of tensors.
    Kohya,
    /// A LoRA in a GGUF, as llama.cpp loads it.
    Gguf(Metadata),
}

impl AdapterFiles {
    /// Finds the adapter that `path` names: a file of an adapter, its folder, or a folder that contains only one
    /// adapter. Of a run's checkpoints, it is the latest, unless the run itself calls another one its best.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] where there is none, or several (it names them); errors of reading the files.
    pub fn find(path: &Path) -> Result<Self> {
        if path.is_file() {
            return Self::of_file(path);
        }
        if !path.is_dir() {
            return Err(Finding::new(path, "")
                .expected("an adapter's folder or file, or a model")
                .found("nothing")
                .mismatch());
        }
        let mut notes = Vec::new();
        let folder = match path.join(ADAPTER_CONFIG).is_file() {
            true => path.to_owned(),
            false => below(path, &mut notes)?,
        };
        let config = read_json_object(&folder.join(ADAPTER_CONFIG))?;
        if let Some(file) = mlx_file(&folder) {
            return Self::of_mlx(&folder, file, &config, notes);
        }
        let file = weights(&folder)?;
        let tensors = tensors_of(&file)?;
        notes.extend(FileKind::note_of_name(&file)?);
        Ok(Self { path: folder, file, tensors, form: AdapterForm::Peft(config), notes })
    }

    /// Opens an adapter of mlx-lm, whose tensors are in `file`.
    fn of_mlx(folder: &Path, file: PathBuf, config: &Map<String, Value>, mut notes: Vec<String>) -> Result<Self> {
        let config_path = folder.join(ADAPTER_CONFIG);
        let Mlx { settings, tensors, notes: own } = mlx::read(&config_path, config, &file, tensors_of(&file)?)?;
        notes.extend(own);
        Ok(Self { path: folder.to_owned(), file, tensors, form: AdapterForm::Mlx(settings), notes })
    }

    /// Whether the file at `path`, with these tensors, is that of an adapter.
    pub(crate) fn is_file(path: &Path, tensors: &Plan) -> bool {
        let has_config = || path.with_file_name(ADAPTER_CONFIG).is_file();
        let has_names = || peft::names_are_pefts(tensors) || mlx::has_factors(tensors);
        kohya::is_kohya(tensors) || has_names() && has_config()
    }

    /// Opens an adapter of a single file.
    fn of_file(path: &Path) -> Result<Self> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if path.file_name().is_some_and(|name| name == ADAPTER_CONFIG) {
            return Self::find(folder);
        }
        let (file, notes) = (path.to_owned(), Vec::new());
        if FileKind::of(path)? == Some(FileKind::Gguf) {
            let model = GgufModel::open(path)?;
            let tensors = model.tensors().iter().cloned().collect();
            let form = AdapterForm::Gguf(model.metadata().clone());
            return Ok(Self { path: file.clone(), file, tensors, form, notes });
        }
        let tensors = tensors_of(path)?;
        let is_mlx = path.file_name().is_some_and(|name| name == mlx::WEIGHTS) || mlx::has_factors(&tensors);
        if is_mlx && folder.join(ADAPTER_CONFIG).is_file() {
            return Self::of_mlx(folder, file, &read_json_object(&folder.join(ADAPTER_CONFIG))?, notes);
        }
        if !peft::names_are_pefts(&tensors) {
            return Ok(Self { path: file.clone(), file, tensors, form: AdapterForm::Kohya, notes });
        }
        let config_path = folder.join(ADAPTER_CONFIG);
        if !config_path.is_file() {
            return Err(Finding::new(path, "")
                .expected(format_args!("{ADAPTER_CONFIG} beside it, as its tensors are called as those of PEFT"))
                .found("none")
                .mismatch());
        }
        let form = AdapterForm::Peft(read_json_object(&config_path)?);
        Ok(Self { path: folder.to_owned(), file, tensors, form, notes })
    }

    /// The same adapter in PEFT's form with other settings and tensors.
    pub(crate) fn with(&self, settings: Map<String, Value>, tensors: Plan, notes: Vec<String>) -> Self {
        let (path, file) = (self.path.clone(), self.file.clone());
        Self { path, file, tensors, form: AdapterForm::Peft(settings), notes }
    }

    /// How it was found, where `path` didn't say.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The folder or file that was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file that holds the tensors.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// All tensors, under the names and with the types that the file has.
    pub fn tensors(&self) -> &Plan {
        &self.tensors
    }

    /// The content of PEFT's adapter_config.json, if the adapter has one. For mlx-lm's factors, what PEFT would have.
    pub fn settings(&self) -> Option<&Map<String, Value>> {
        match &self.form {
            AdapterForm::Peft(settings) => Some(settings),
            AdapterForm::Mlx(settings) => settings.as_ref(),
            AdapterForm::Kohya | AdapterForm::Gguf(_) => None,
        }
    }

    /// Whether mlx-lm has saved it.
    pub fn is_mlx(&self) -> bool {
        matches!(self.form, AdapterForm::Mlx(_))
    }

    /// The error if the adapter's settings alone show that no base can have it merged.
    pub fn refusal(&self) -> Option<Error> {
        let settings = self.settings()?;
        peft::refusal(&self.path.join(ADAPTER_CONFIG), settings).err()
    }

    /// The changes that the adapter makes to `base`.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a kind, a field or a tensor that this version can't turn into changes of
    /// weights, naming it; [`crate::Error::Mismatch`] for an adapter of another base.
    pub fn changes(&self, base: &Base) -> Result<Changes> {
        let tensors = self.tensors.clone();
        let config_path = self.path.join(ADAPTER_CONFIG);
        let mut changes = match &self.form {
            AdapterForm::Peft(config) | AdapterForm::Mlx(Some(config)) => {
                peft::changes(&config_path, config, &self.file, tensors, base)?
            }
            AdapterForm::Mlx(None) => peft::whole(&config_path, &self.file, tensors, base)?,
            AdapterForm::Kohya => {
                let changes = kohya::changes(&self.file, tensors, base)?;
                base.check_f64(&changes.changes, || {
                    Finding::new(&self.file, "").found("an adapter of LyCORIS or kohya-ss")
                })?;
                changes
            }
            AdapterForm::Gguf(metadata) => gguf_changes(&self.file, metadata, &tensors, base)?,
        };
        changes.check_numbers()?;
        changes = changes.on_main_names(base)?;
        changes.notes.splice(0..0, self.notes.iter().cloned());
        Ok(changes)
    }

    /// What the adapter says about the rows of embeddings and head.
    pub(super) fn token_rows(&self, base: &Base) -> Result<Vec<peft::TokenRows>> {
        let none = Map::new();
        let config = match &self.form {
            AdapterForm::Peft(config) | AdapterForm::Mlx(Some(config)) => config,
            AdapterForm::Mlx(None) => &none,
            AdapterForm::Kohya | AdapterForm::Gguf(_) => return Ok(Vec::new()),
        };
        peft::token_rows(&self.path.join(ADAPTER_CONFIG), config, &self.file, &self.tensors, base)
    }

    /// The changes that the adapter makes to `base`, for every token.
    ///
    /// # Errors
    /// As [`AdapterFiles::changes`]; [`crate::Error::Unsupported`] for an adapter that acts only after certain tokens.
    pub fn merged_changes(&self, base: &Base) -> Result<Changes> {
        let mut changes = self.changes(base)?;
        changes.check_always_on()?;
        if self.path.is_dir() {
            let Beside { whole, notes } = beside::read(&self.path, &self.file, base)?;
            changes.changes.splice(0..0, whole);
            changes.notes.extend(notes);
        }
        Ok(changes)
    }
}

/// The changes of a LoRA in a GGUF.
fn gguf_changes(path: &Path, metadata: &Metadata, tensors: &Plan, base: &Base) -> Result<Changes> {
    let folder = gguf::from_gguf(metadata, tensors, base)?;
    let mut changes = peft::changes(path, &folder.config, path, folder.tensors, base)?;
    changes.notes.extend(folder.notes);
    Ok(changes)
}

/// The weights of mlx-lm in `folder`, if it has these and none of PEFT.
fn mlx_file(folder: &Path) -> Option<PathBuf> {
    let has_pefts = WEIGHTS.iter().any(|name| folder.join(name).is_file());
    Some(folder.join(mlx::WEIGHTS)).filter(|file| file.is_file() && !has_pefts)
}

/// The weights in a folder of PEFT: safetensors if there are any, otherwise torch's file.
fn weights(folder: &Path) -> Result<PathBuf> {
    let finding = || {
        Finding::new(folder, "weights")
            .expected(format_args!("{}, {} or mlx-lm's {}", WEIGHTS[0], WEIGHTS[1], mlx::WEIGHTS))
            .found("none of them")
            .hint("is the download complete?")
    };
    WEIGHTS.map(|name| folder.join(name)).into_iter().find(|file| file.is_file()).ok_or_else(|| finding().mismatch())
}

/// The tensors in a file of an adapter. As everywhere, its first bytes say what the file is; its name does only where they
/// don't.
pub(super) fn tensors_of(file: &Path) -> Result<Plan> {
    let source: Arc<dyn Source> = match FileKind::of(file)?.or_else(|| FileKind::by_name(file)) {
        Some(FileKind::Pytorch) => Arc::new(PytorchFile::open(file, None)?),
        _ => Arc::new(SafetensorsFile::open(file)?),
    };
    Ok(Plan::taking(&source))
}

/// Finds the folder of the only adapter below `folder`, which is not an adapter itself.
fn below(folder: &Path, notes: &mut Vec<String>) -> Result<PathBuf> {
    let finding = || Finding::new(folder, ADAPTER_CONFIG);
    let mut found: Vec<PathBuf> = Vec::new();
    for child in subfolders(folder)? {
        match child.join(ADAPTER_CONFIG).is_file() {
            true => found.push(child),
            // A checkpoint may hold its adapter, or several, one level further down.
            false if step(&child).is_some() => {
                found.extend(subfolders(&child)?.into_iter().filter(|inner| inner.join(ADAPTER_CONFIG).is_file()));
            }
            false => {}
        }
    }
    let names = |found: &[PathBuf]| {
        let name = |path: &PathBuf| path.strip_prefix(folder).unwrap_or(path).display().to_string();
        found.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let chosen = match found.as_slice() {
        [] => {
            let model = crate::checkpoint::is_model(folder);
            let finding = finding().expected("an adapter: this file here, or in one of its folders");
            return Err(finding.found(if model { "a model" } else { "none" }).mismatch());
        }
        [one] => one,
        several => match latest(folder, several) {
            Some(latest) => latest,
            None => {
                let finding = finding().expected("one adapter").found(format_args!("several: {}", names(several)));
                return Err(finding.hint("name one of them").mismatch());
            }
        },
    };
    let others = if found.len() > 1 { format!(", the latest of {}", names(&found)) } else { String::new() };
    notes.push(format!(
        "{}: the adapter in {} is taken{others}",
        folder.display(),
        names(std::slice::from_ref(chosen))
    ));
    Ok(chosen.clone())
}

/// The folders in `folder`, sorted by name.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).at(folder, "read")? {
        let path = entry.at(folder, "read")?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The step of a trainer's checkpoint, from the name of its folder.
fn step(folder: &Path) -> Option<u64> {
    folder.file_name()?.to_str()?.strip_prefix(CHECKPOINT)?.parse().ok()
}

/// The adapter of a run's latest checkpoint. `None` unless all `adapters` belong to checkpoints, each checkpoint has
/// one, and the run doesn't name another checkpoint as its best.
fn latest<'a>(run: &Path, adapters: &'a [PathBuf]) -> Option<&'a PathBuf> {
    let checkpoint = |path: &'a PathBuf| path.ancestors().take_while(|path| *path != run).last();
    let mut steps: Vec<(u64, &Path, &PathBuf)> = Vec::new();
    for adapter in adapters {
        let checkpoint = checkpoint(adapter)?;
        steps.push((step(checkpoint)?, checkpoint, adapter));
    }
    steps.sort_unstable();
    if steps.windows(2).any(|pair| pair[0].0 == pair[1].0) {
        return None;
    }
    let (_, checkpoint, adapter) = steps.last()?;
    let state = read_json_object(&checkpoint.join("trainer_state.json")).unwrap_or_default();
    let best = state.get("best_model_checkpoint").and_then(Value::as_str).and_then(|best| Path::new(best).file_name());
    (best.is_none() || best == checkpoint.file_name()).then_some(adapter)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Copies a fixture's adapter to `to`.
    fn adapter(to: &Path) {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/adapters/lora");
        fs::create_dir_all(to).unwrap();
        for name in [ADAPTER_CONFIG, WEIGHTS[0]] {
            fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }

    #[test]
    fn an_adapter_is_found_in_every_layout_of_folders() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        adapter(&at("plain"));
        adapter(&at("named/default"));
        adapter(&at("run/checkpoint-9"));
        adapter(&at("run/checkpoint-10"));
        fs::create_dir_all(at("run/logs")).unwrap();
        adapter(&at("deep/checkpoint-5/adapter_model"));
        adapter(&at("two/first"));
        adapter(&at("two/second"));
        for (path, expected) in [
            ("plain", "plain"),
            ("plain/adapter_config.json", "plain"),
            ("plain/adapter_model.safetensors", "plain"),
            ("named", "named/default"),
            ("run", "run/checkpoint-10"),
            ("run/checkpoint-9", "run/checkpoint-9"),
            ("deep", "deep/checkpoint-5/adapter_model"),
            ("deep/checkpoint-5", "deep/checkpoint-5/adapter_model"),
            ("two/second", "two/second"),
        ] {
            let found = AdapterFiles::find(&at(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(found.path(), at(expected), "{path}");
            assert_eq!(found.notes.is_empty(), expected == path || path.starts_with("plain"), "{path}");
        }
        let note = &AdapterFiles::find(&at("run")).unwrap().notes[0];
        assert!(note.ends_with("checkpoint-10 is taken, the latest of checkpoint-10, checkpoint-9"), "{note}");
    }

    #[test]
    fn several_adapters_and_none_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let error = |path: &str| AdapterFiles::find(&at(path)).unwrap_err().to_string();
        adapter(&at("two/first"));
        adapter(&at("two/second"));
        assert!(error("two").ends_with("expected one adapter, found several: first, second; name one of them"));
        for step in [1, 2] {
            adapter(&at(&format!("run/checkpoint-{step}")));
        }
        // Now the trainer's state names another checkpoint as the best.
        let state = r#"{"best_model_checkpoint": "out/checkpoint-1"}"#;
        fs::write(at("run/checkpoint-2/trainer_state.json"), state).unwrap();
        assert!(error("run").contains("found several: checkpoint-1, checkpoint-2"), "{}", error("run"));
        fs::create_dir_all(at("empty/folder")).unwrap();
        assert!(error("empty").ends_with("expected an adapter: this file here, or in one of its folders, found none"));
        assert!(error("nowhere").contains("nowhere: expected an adapter's folder or file, or a model, found nothing"));
        fs::create_dir_all(at("alone")).unwrap();
        fs::copy(at("two/first").join(WEIGHTS[0]), at("alone").join(WEIGHTS[0])).unwrap();
        assert!(error("alone/adapter_model.safetensors").contains("expected adapter_config.json beside it"));
        fs::copy(at("two/first").join(ADAPTER_CONFIG), at("alone").join(ADAPTER_CONFIG)).unwrap();
        fs::remove_file(at("alone").join(WEIGHTS[0])).unwrap();
        assert!(
            error("alone")
                .contains("weights: expected adapter_model.safetensors, adapter_model.bin or mlx-lm's adapters")
        );
        fs::write(at("alone/adapters.safetensors"), b"").unwrap();
        assert!(error("alone").contains("adapters.safetensors"), "{}", error("alone"));
    }
}
