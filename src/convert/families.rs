//! The model families that are known, as data: for listing, showing and checking them.

use std::path::Path;

use serde::Serialize;

use super::{Input, Opening};
use crate::arch::Family;
use crate::arch::params::{Params, Parts};
use crate::arch::registry::{self, Short};
use crate::error::Result;

/// A family, in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyInfo {
    /// The name of its file.
    pub name: String,
    /// The architecture's name in GGUF.
    pub gguf: String,
    /// The classes in config.json's `architectures`.
    pub classes: Vec<String>,
    /// Those of them whose models run: `generate`, `route`, `train`.
    pub runs: Vec<String>,
    /// Whether it describes a projector and not a text model.
    pub projector: bool,
}

impl From<Short> for FamilyInfo {
    fn from(family: Short) -> Self {
        let Short { name, gguf, classes, runs, is_projector } = family;
        Self { name, gguf, classes, runs, projector: is_projector }
    }
}

fn info(family: &Family) -> FamilyInfo {
    Short::from(family).into()
}

/// Every family that is known, by name.
pub fn list() -> Vec<FamilyInfo> {
    let mut all: Vec<FamilyInfo> = registry::all().into_iter().map(FamilyInfo::from).collect();
    all.sort_by(|a, b| (a.projector, &a.name).cmp(&(b.projector, &b.name)));
    all
}

/// The file of a family that is built in.
///
/// # Errors
/// [`crate::Error::Setting`] for a name that is no family.
pub fn text(name: &str) -> Result<&'static str> {
    registry::text(name).ok_or_else(|| registry::unknown(name))
}

/// Reads a family file and adds it before the families that are built in, for the rest of the program.
///
/// # Errors
/// [`crate::Error::Format`] for a mistake in it, naming line and column; errors of reading it.
pub fn add(path: &Path) -> Result<FamilyInfo> {
    registry::register(path).map(info)
}

/// What a family would do with a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FamilyCheck {
    /// The family.
    pub family: FamilyInfo,
    /// For every GGUF tensor, its name, shape and what it is made of. Empty without a model.
    pub tensors: Vec<String>,
}

/// Reads a family file and, with a model, says what it would do.
///
/// # Errors
/// As [`add`]; errors of converting the model.
pub fn check(path: &Path, model: Option<&Path>) -> Result<FamilyCheck> {
    let Some(model) = model else {
        return Ok(FamilyCheck { family: info(&registry::read(path)?), tensors: Vec::new() });
    };
    let family = registry::register(path)?;
    let tensors = made_of(model, family);
    registry::remove(family);
    Ok(FamilyCheck { family: info(family), tensors: tensors? })
}

/// The tensors that a registered family makes of a model.
fn made_of(model: &Path, family: &'static Family) -> Result<Vec<String>> {
    let mut tensors = Vec::new();
    let Input::Model(folder) = Input::open(model, Opening::default())? else {
        let finding = crate::error::Finding::new(model.join("config.json"), "");
        return Err(finding.expected("the config of a model's folder").found("none").mismatch());
    };
    let options = super::ConvertOptions {
        vocab: false,
        outtype: super::OutType::Auto,
        part: if family.is_projector { super::ModelPart::Projector } else { super::ModelPart::Whole },
        ..super::ConvertOptions::default()
    };
    let read = match family.is_projector {
        true => Params::of_projector(folder.path(), &folder.config_json)?,
        false => Params::read_parts(folder.path(), &folder.config_json, Parts::default(), &mut Vec::new())?,
    };
    if read.is_none_or(|params| params.family != family) {
        let finding = crate::error::Finding::new(model.join("config.json"), "architectures");
        let expected = format!("a class of the family: {}", family.classes.join(", "));
        return Err(finding.expected(expected).found(super::class(&folder)).mismatch());
    }
    let made = super::to_gguf(&folder, folder.weights(), &options)?;
    // Names, shapes and types are checked like those of a file.
    made.describe(Path::new("model.gguf"))?;
    for tensor in &made.plan.tensors {
        let mut sources: Vec<&str> = tensor.expr.sources().iter().map(|source| source.info().name.as_str()).collect();
        sources.dedup();
        let count = sources.len();
        let shown = match sources.as_slice() {
            [] => "config.json".to_owned(),
            [one] => (*one).to_owned(),
            [first, ..] => format!("{first} and {} more", count - 1),
        };
        let shape = crate::source::show_shape(&tensor.shape);
        tensors.push(format!("{} {shape} {} = {shown}", tensor.name, tensor.dtype));
    }
    Ok(tensors)
}
