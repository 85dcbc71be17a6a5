//! The families that are known: those that are built in, and files of the user.

use std::borrow::Cow;
use std::collections::HashSet;
use std::path::Path;
use std::sync::RwLock;

use serde_json::json;

use super::families::FILES;
use super::family::Family;
use super::index::{self, About, Entry};
use super::language::{Facts, Formula, Mistake, Scope};
use super::statement::{Statement, statements};
use super::{Config, GgufContents};
use crate::error::{Error, Finding, IoContext, Result};
use crate::plan::Plan;

/// The ending of family files.
pub(crate) const EXTENSION: &str = "family";

/// The family whose statements all others have.
const CORE: &str = "core";

/// Why a family file can't be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    Mistake(Mistake),
    /// `from` names no family.
    NoFamily(String),
    /// `from` leads back to the file itself.
    Circle(String),
}

/// A file's statements, and whether it is the user's.
type Found = (Result<Vec<Statement>, Unusable>, bool);

/// The file of a family, by its name and by whether the file that builds on it is the user's.
type Lookup<'a> = dyn Fn(&str, bool) -> Option<Found> + 'a;

/// What the user has added, in front of those built in.
static ADDED: RwLock<Vec<&'static Family>> = RwLock::new(Vec::new());

/// The family of a built-in file; a test reads every file, so there is always one.
pub(super) fn read_built_in(entry: &Entry) -> Option<&'static Family> {
    *entry.family.get_or_init(|| {
        let family = made(entry.name, &built_in_only, false).ok()?;
        Some(Box::leak(Box::new(family)))
    })
}

/// The built-in families that `is_wanted` selects, in the order in which they are asked.
fn built_in(is_wanted: impl Fn(&About) -> bool) -> impl Iterator<Item = &'static Family> {
    index::entries().iter().filter(move |entry| is_wanted(&entry.about)).filter_map(read_built_in)
}

fn built_in_statements(name: &str) -> Option<Result<Vec<Statement>, Unusable>> {
    let (_, text) = FILES.iter().find(|(known, _)| *known == name)?;
    Some(statements(text).map_err(Unusable::Mistake))
}

fn built_in_only(name: &str, _: bool) -> Option<Found> {
    built_in_statements(name).map(|statements| (statements, false))
}

/// The family of this name, with everything it takes over.
fn made(name: &str, lookup: &Lookup, is_users: bool) -> Result<Family, Unusable> {
    let mut family = Family::default();
    family.name = name.to_owned();
    let mut open = Vec::new();
    if name != CORE {
        add(&mut family, CORE, false, lookup, &mut open)?;
    }
    add(&mut family, name, is_users, lookup, &mut open)?;
    Ok(family)
}

/// Adds the statements of the file `name` to a family. `for_users` is whether the user's files are asked first.
fn add(
    family: &mut Family,
    name: &str,
    for_users: bool,
    lookup: &Lookup,
    open: &mut Vec<(String, bool)>,
) -> Result<(), Unusable> {
    let (statements, is_users) = lookup(name, for_users).ok_or_else(|| Unusable::NoFamily(name.to_owned()))?;
    let file = (name.to_owned(), is_users);
    if open.contains(&file) {
        return Err(Unusable::Circle(name.to_owned()));
    }
    open.push(file);
    for statement in statements? {
        for from in family.apply(statement) {
            // A file of the same name as one that is built in may build on that one.
            add(family, &from, is_users && from != name, lookup, open)?;
        }
    }
    open.pop();
    Ok(())
}

/// A family, in short.
pub(crate) struct Short {
    pub(crate) name: String,
    pub(crate) gguf: String,
    pub(crate) classes: Vec<String>,
    /// Those of them whose models run.
    pub(crate) runs: Vec<String>,
    pub(crate) is_projector: bool,
}

impl From<&Family> for Short {
    fn from(family: &Family) -> Self {
        let Family { name, gguf, classes, is_projector, .. } = family;
        let runs = classes.iter().filter(|class| family.runs.contains(class)).cloned().collect();
        Self { name: name.clone(), gguf: gguf.clone(), classes: classes.clone(), runs, is_projector: *is_projector }
    }
}

/// All families, those of the user first.
pub(crate) fn all() -> Vec<Short> {
    let added = ADDED.read().map(|added| added.clone()).unwrap_or_default();
    let of_entry = |entry: &Entry| Short {
        name: entry.name.to_owned(),
        gguf: entry.about.gguf.to_owned(),
        classes: entry.about.classes.iter().map(|class| (*class).to_owned()).collect(),
        runs: entry
            .about
            .classes
            .iter()
            .filter(|class| entry.about.runs.contains(class))
            .map(|c| (*c).to_owned())
            .collect(),
        is_projector: entry.about.is_projector,
    };
    added.into_iter().map(Short::from).chain(index::entries().iter().map(of_entry)).collect()
}

/// The family of this name.
#[cfg(test)]
pub(crate) fn by_name(name: &str) -> Option<&'static Family> {
    let added = ADDED.read().ok().and_then(|added| added.iter().find(|family| family.name == name).copied());
    added.or_else(|| index::entries().iter().find(|entry| entry.name == name).and_then(read_built_in))
}

/// The families whose models run, those of the user first.
pub(super) fn decoders() -> impl Iterator<Item = &'static Family> {
    let added = ADDED.read().map(|added| added.clone()).unwrap_or_default();
    added.into_iter().filter(|family| family.is_run()).chain(built_in(About::is_run))
}

/// The text of a family that is built in.
pub(crate) fn text(name: &str) -> Option<&'static str> {
    FILES.iter().find(|(known, _)| *known == name).map(|(_, text)| *text)
}

/// Whether any class has a field of this name.
pub(super) fn is_known_field(name: &str) -> bool {
    let added = ADDED.read().is_ok_and(|added| added.iter().any(|family| family.has_field(name)));
    added || index::fields().contains(name)
}

/// Reads a family file. Families that it builds on are files beside it, or built in.
///
/// # Errors
/// [`Error::Format`], naming line and column; errors of reading the file.
pub(crate) fn read(path: &Path) -> Result<Family> {
    let text = file_text(path)?;
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let folder = path.parent().unwrap_or(Path::new(""));
    let wrong = |mistake: &Mistake, path: &Path| {
        let place = format!("line {}, column {}", mistake.line, mistake.column);
        Finding::new(path, place).expected(&mistake.expected).found(&mistake.found).format()
    };
    if let Err(mistake) = statements(&text) {
        return Err(wrong(&mistake, path));
    }
    let beside = |other: &str| folder.join(format!("{other}.{EXTENSION}"));
    let lookup = |other: &str, for_users: bool| {
        let text = match other == name {
            true => Some(text.clone()),
            false => file_text(&beside(other)).ok().filter(|_| other != CORE),
        };
        match text.filter(|_| for_users) {
            Some(text) => Some((statements(&text).map_err(Unusable::Mistake), true)),
            None => built_in_only(other, false),
        }
    };
    let mut family = made(&name, &lookup, true).map_err(|error| match error {
        Unusable::Mistake(mistake) => {
            let finding = Finding::new(path, "from").expected("families without mistakes");
            finding.found(mistake.to_string()).format()
        }
        Unusable::NoFamily(other) => {
            let file = format!("a family that is built in, or a file {other}.{EXTENSION} beside this one");
            Finding::new(path, "from").expected(file).found(other).format()
        }
        Unusable::Circle(other) => {
            let finding = Finding::new(path, "from").expected("families that do not build on each other in a circle");
            finding.found(other).format()
        }
    })?;
    if let Some(name) = family.left_nothing_out.first() {
        let finding = Finding::new(path, "no").expected("a line of the family that `from` names");
        return Err(finding.found(name).format());
    }
    for (what, is_missing) in
        [("class", family.classes.is_empty()), ("gguf", family.gguf.is_empty()), ("tensor", family.rows.is_empty())]
    {
        if is_missing {
            return Err(Finding::new(path, what)
                .expected(format!("at least one statement `{what}`"))
                .found("none")
                .format());
        }
    }
    family.file = Some(path.to_owned());
    Ok(family)
}

/// The largest family file, in bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The text of a family file.
fn file_text(path: &Path) -> Result<String> {
    let about = std::fs::metadata(path).at(path, "read")?;
    if !about.is_file() || about.len() > MAX_BYTES {
        let finding = Finding::new(path, "").expected(format!("a family file of at most {MAX_BYTES} bytes"));
        return Err(finding.found(if about.is_file() { "a larger one" } else { "no file" }).format());
    }
    let text = std::fs::read_to_string(path).at(path, "read")?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Adds a family of the user, which goes before all others.
///
/// # Errors
/// As [`read`].
pub(crate) fn register(path: &Path) -> Result<&'static Family> {
    let family: &'static Family = Box::leak(Box::new(read(path)?));
    if let Ok(mut added) = ADDED.write() {
        added.insert(0, family);
    }
    Ok(family)
}

/// Takes a family out again that [`register`] has added.
pub(crate) fn remove(family: &'static Family) {
    if let Ok(mut added) = ADDED.write() {
        added.retain(|known| !std::ptr::eq(*known, family));
    }
}

fn holds(family: &Family, formula: &Option<Formula>, facts: &dyn Facts) -> bool {
    let facts = WithLets { family, facts };
    formula.as_ref().is_none_or(|formula| Scope::new(&facts).holds(formula).unwrap_or(false))
}

/// Facts of a config or a GGUF, with the values that a family names.
struct WithLets<'a> {
    family: &'a Family,
    facts: &'a dyn Facts,
}

impl Facts for WithLets<'_> {
    fn formula(&self, name: &str) -> Option<&Formula> {
        self.family.lets.get(name)
    }

    fn field(&self, name: &str) -> Option<Cow<'_, serde_json::Value>> {
        self.facts.field(name)
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.facts.shape(name)
    }

    fn gguf(&self, key: &str) -> Option<serde_json::Value> {
        self.facts.gguf(key)
    }

    fn root(&self, name: &str) -> Option<serde_json::Value> {
        self.facts.root(name)
    }
}

/// The family of a class of transformers with this config.
pub(crate) fn of_class(class: &str, config: &Config) -> Option<&'static Family> {
    of_class_and_kind(class, config, false)
}

/// The family of a class's projector.
pub(crate) fn projector_of(class: &str, config: &Config) -> Option<&'static Family> {
    of_class_and_kind(class, config, true)
}

fn of_class_and_kind(class: &str, config: &Config, is_projector: bool) -> Option<&'static Family> {
    let fits = |family: &&'static Family| family.is_projector == is_projector && holds(family, &family.when, config);
    let added = ADDED.read().ok().and_then(|added| {
        added.iter().copied().filter(|family| family.classes.iter().any(|known| known == class)).find(fits)
    });
    added.or_else(|| built_in(|about| about.classes.contains(&class)).find(fits))
}

/// The family of the class that transformers builds from a config of this `model_type`.
pub(crate) fn of_model_type(model_type: &str, config: &Config) -> Option<&'static Family> {
    let fits = |family: &&'static Family| {
        !family.is_projector
            && family.model_types.iter().any(|known| known == model_type)
            && holds(family, &family.when, config)
    };
    // A family whose first type this is goes before those that only know it.
    let added = ADDED.read().map(|added| added.clone()).unwrap_or_default();
    let built_in = built_in(|about| about.model_types.contains(&model_type));
    let mut found: Vec<&'static Family> = added.into_iter().chain(built_in).filter(fits).collect();
    found.sort_by_key(|family| (family.model_type() != model_type, !family.class().ends_with("ForCausalLM")));
    found.first().copied()
}

/// The config of a folder without config.json, if a family knows it by a tensor: class and `model_type`. Its sizes are
/// those of tensors.
pub(crate) fn config_by_tensors(weights: &Plan) -> Option<Config> {
    let names: HashSet<&str> = weights.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    let added = ADDED.read().ok().and_then(|added| {
        let is_known = |family: &&'static Family| family.detect.as_deref().is_some_and(|name| names.contains(name));
        added.iter().copied().find(is_known)
    });
    let built_in = || built_in(|about| about.detect.is_some_and(|name| names.contains(name))).next();
    let family = added.or_else(built_in)?;
    let config = json!({"architectures": [family.class()], "model_type": family.model_type()});
    config.as_object().cloned()
}

/// The family for converting a GGUF file back.
pub(crate) fn of_gguf(architecture: &str, found: &GgufContents) -> Option<&'static Family> {
    let fits = |family: &&'static Family| {
        !family.is_projector && family.gguf == architecture && holds(family, &family.fits, found)
    };
    let added = ADDED.read().ok().and_then(|added| added.iter().copied().find(fits));
    // One with a condition goes before one without, and one that bears the architecture's name before the others.
    let order = |family: &&'static Family| (family.fits.is_none(), family.name != architecture);
    added.or_else(|| built_in(|about| about.gguf == architecture).filter(fits).min_by_key(order))
}

/// The error for a name that is no family.
pub(crate) fn unknown(name: &str) -> Error {
    let all = all();
    let names: Vec<&str> = all.iter().map(|family| family.name.as_str()).collect();
    let near = crate::error::nearest(name, &names).map(|near| format!("did you mean {near}?"));
    let finding = Finding::new("", "name").expected("the name of a family, as `families` lists them").found(name);
    finding.hint(near.unwrap_or_default()).setting()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_is_built_in_is_read() {
        let mistakes = FILES.iter().filter_map(|(name, _)| match made(name, &built_in_only, false) {
            // What others build on leaves out what they have.
            Ok(family) if family.left_nothing_out.is_empty() || family.classes.is_empty() => None,
            Ok(family) => Some(format!("{name}.{EXTENSION}: no {}", family.left_nothing_out.join(", "))),
            Err(error) => Some(format!("{name}.{EXTENSION}: {error:?}")),
        });
        let mistakes: Vec<String> = mistakes.collect();
        assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
    }
}
