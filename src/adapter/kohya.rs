//! Adapters in one safetensors file, as kohya-ss/sd-scripts and LyCORIS save them.
//!
//! Names of modules are their paths with underscores in place of dots. Only the base tells where
//! the dots were.

mod update;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::peft::{Base, Changes};
use crate::error::{Finding, Result};
use crate::plan::{Plan, PlannedTensor};
pub(crate) use update::method_of;
use update::{ModuleTensors, Update};

/// Prefixes of module names.
const PREFIXES: [&str; 6] = ["lora_te1_", "lora_te2_", "lora_te_", "lora_unet_", "lycoris_", "lora_"];

/// Whether the names of a file's tensors are those of such an adapter.
pub(crate) fn is_kohya(tensors: &Plan) -> bool {
    let named = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && name.contains('.');
    !tensors.tensors.is_empty() && tensors.tensors.iter().all(|tensor| named(&tensor.name))
}

/// Reads the adapter with these tensors, from the file at `file`, as changes to `base`.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a kind of update that this version can't merge, naming the tensor;
/// [`crate::Error::Mismatch`] for an adapter of another base.
pub(super) fn changes(file: &Path, tensors: Plan, base: &Base) -> Result<Changes> {
    let mut modules: BTreeMap<String, ModuleTensors> = BTreeMap::new();
    for tensor in tensors.tensors {
        let Some((module, part)) = tensor.name.split_once('.') else {
            let finding = Finding::new(file, format!("tensor {:?}", tensor.name));
            return Err(finding.expected("a module's name, a dot, and what it is of it").found("no dot").unsupported());
        };
        let (module, part) = (module.to_owned(), part.to_owned());
        modules.entry(module).or_default().insert(part, tensor);
    }
    let mut paths: HashMap<String, Vec<String>> = HashMap::new();
    let named: HashMap<String, &PlannedTensor> = base.named().collect();
    for name in named.keys() {
        if let Some(path) = name.strip_suffix(".weight") {
            // Paths in an adapter of an inner model lack the outer modules.
            for (start, _) in path.match_indices('.').chain([(usize::MAX, "")]) {
                let inner = &path[start.wrapping_add(1)..];
                paths.entry(inner.replace('.', "_")).or_default().push(path.to_owned());
            }
        }
    }
    let mut changes = Changes { path: file.to_owned(), ..Changes::default() };
    let mut taken: HashMap<String, String> = HashMap::new();
    for (module, parts) in modules {
        let path = find(file, &module, &parts, &paths, base)?;
        if let Some(other) = taken.insert(path.clone(), module.clone()) {
            // The result would depend on the order of the two updates, which the file doesn't
            // define.
            return Err(Finding::new(file, subject(&module, &parts))
                .expected(format_args!("one update of the base's {path:?}"))
                .found(format_args!("another, {other:?}"))
                .unsupported());
        }
        changes.changes.extend(Update::new(file, module, parts).changes(&path, base, &named)?);
    }
    if changes.changes.is_empty() {
        return Err(Finding::new(file, "").expected("tensors that change the base").found("none").format());
    }
    Ok(changes)
}

/// The path of the module that has the name `module` in the file.
fn find(
    file: &Path,
    module: &str,
    parts: &ModuleTensors,
    paths: &HashMap<String, Vec<String>>,
    base: &Base,
) -> Result<String> {
    let bare = PREFIXES.iter().find_map(|prefix| module.strip_prefix(prefix)).unwrap_or(module);
    let found = paths.get(bare).map(Vec::as_slice).unwrap_or_default();
    // A match of a whole path takes precedence over matches of a path's end.
    let whole: Vec<&String> = found.iter().filter(|path| path.len() == bare.len()).collect();
    match (whole.as_slice(), found) {
        ([path], _) => return Ok((*path).clone()),
        ([], [path]) => return Ok(path.clone()),
        _ => {}
    }
    let finding = Finding::new(file, subject(module, parts)).expected(format_args!(
        "one module of the base model {} whose path is {bare:?} with dots",
        base.path().display()
    ));
    if found.is_empty() {
        let numbered = |part: &str| part.parse::<usize>().is_ok();
        let alike = |path: &String| {
            path.split('_').count() == bare.split('_').count()
                && path.split('_').zip(bare.split('_')).all(|(a, b)| a == b || numbered(a) && numbered(b))
        };
        let hint = match paths.keys().any(alike) {
            true => "the base has no layer of this number: this adapter belongs to another base model",
            false => "",
        };
        return Err(finding.found("none").hint(hint).mismatch());
    }
    let mut found = found.to_vec();
    found.sort_unstable();
    Err(finding.found(found.join(", ")).unsupported())
}

/// One of a module's tensors, for messages.
fn subject(module: &str, parts: &ModuleTensors) -> String {
    let part = parts.keys().next().map(|part| format!(".{part}")).unwrap_or_default();
    format!("tensor {:?}", format!("{module}{part}"))
}
