//! Opens the two sides of a comparison, and gives their tensors common names.

use std::path::Path;

use serde_json::{Map, Value as Json};

use crate::arch::Naming;
use crate::convert::{FIELDS, Input, Opening, from_gguf, generic};
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::formats::gguf::{GgufModel, Value};
use crate::output::Output;
use crate::plan::Plan;

/// What a path contains, by the kind of names that its tensors have.
enum Side {
    /// A GGUF, with GGUF's names.
    Gguf(GgufModel),
    /// Hugging Face's names, or whatever names the files have, with config.json if there is one.
    Named(Plan, Option<Map<String, Json>>),
}

/// The tensors of the models at `a` and `b`, each opened by [`Input::open`], under common names.
/// For two GGUFs these are GGUF's names, otherwise Hugging Face's, to which a GGUF is converted
/// back. A generic GGUF has the names of its source. Tensors of a GGUF that have no place in a
/// folder keep their names. If a GGUF also stores the source's values (`--type source`), those are
/// restored.
///
/// # Errors
/// [`Error::Unsupported`] for an adapter; errors of opening the inputs, and those of [`from_gguf`]
/// if only one of them is a GGUF.
pub fn sides(a: &Path, b: &Path) -> Result<(Plan, Plan)> {
    sides_of((a, Opening::default()), (b, Opening::default()))
}

/// Like [`sides`], each opened as its options say.
///
/// # Errors
/// As [`sides`].
pub fn sides_of(a: (&Path, Opening), b: (&Path, Opening)) -> Result<(Plan, Plan)> {
    Ok(match (open(a)?, open(b)?) {
        (Side::Gguf(a), Side::Gguf(b)) => (taken(&a), taken(&b)),
        (Side::Gguf(a), Side::Named(b, config)) => (restored(&a, &b, config.as_ref())?, b),
        (Side::Named(a, config), Side::Gguf(b)) => {
            let b = restored(&b, &a, config.as_ref())?;
            (a, b)
        }
        (Side::Named(a, a_config), Side::Named(mut b, b_config)) => {
            // Tensors without a config are named as those of the other model.
            if let Some(config) = a_config.as_ref().or(b_config.as_ref()) {
                let [of_a, of_b] = [&a_config, &b_config].map(|own| Naming::of(own.as_ref().unwrap_or(config)));
                of_b.spelled_as(&mut b, &a, of_a);
            }
            (a, b)
        }
    })
}

fn open((path, opening): (&Path, Opening)) -> Result<Side> {
    match Input::open(path, opening)? {
        Input::Adapter => Err(adapter(path)),
        Input::Model(folder) => Ok(Side::Named(folder.weights().clone(), Some(folder.config_json))),
        Input::Weights { plan, .. } => Ok(Side::Named(plan, None)),
        Input::Gguf(model) => {
            let text = |key: &str| model.metadata().get(key).and_then(Value::as_text);
            if text("general.type") == Some("adapter") || text("adapter.type").is_some() {
                return Err(adapter(path));
            }
            match text("general.architecture") {
                Some(generic::ARCHITECTURE) => {
                    Ok(Side::Named(generic::from_gguf(model.metadata(), &taken(&model))?.plan, None))
                }
                _ => Ok(Side::Gguf(model)),
            }
        }
    }
}

fn adapter(path: &Path) -> Error {
    Finding::new(path, "")
        .expected("a model or tensors")
        .found("an adapter")
        .hint("bake or merge it into its base, and compare what that gives")
        .unsupported()
}

fn taken(model: &GgufModel) -> Plan {
    model.tensors().iter().cloned().collect()
}

/// The tensors of `model` under the names in `other`; `config` is the other's.
fn restored(model: &GgufModel, other: &Plan, config: Option<&Map<String, Json>>) -> Result<Plan> {
    const HINT: &str = "a GGUF goes by Hugging Face's names against what is none; two GGUFs go by their own";
    // F32 keeps every stored value.
    let found = from_gguf(model, Some(DType::F32)).map_err(|error| match error {
        Error::Unsupported(finding) if finding.hint.is_empty() => finding.hint(HINT).unsupported(),
        Error::Mismatch(finding) if finding.hint.is_empty() => finding.hint(HINT).mismatch(),
        error => error,
    })?;
    let Some((own, Output { mut plan, .. })) = found else {
        let metadata = model.metadata();
        return Err(metadata
            .finding("general.architecture")
            .expected("an architecture that this version has a family for")
            .found(format!("{:?}", metadata.text("general.architecture")?))
            .hint(HINT)
            .unsupported());
    };
    Naming::of(&own).spelled_as(&mut plan, other, Naming::of(config.unwrap_or(&own)));
    // Tensors that the conversion turns into config fields are compared as well.
    let fields = model.tensors().iter().filter(|t| FIELDS.contains(&t.info().name.as_str()));
    plan.tensors.extend(fields.cloned().collect::<Plan>().tensors);
    Ok(plan)
}
