//! Models by their names on the Hugging Face hub: `hf:org/name`.
//!
//! A name resolves to a folder of the cache that all Hugging Face programs share. Files that are in the
//! cache are used without asking the hub; missing ones are downloaded, but only those that a command needs.
//!
//! A hub is a stranger. Nothing it says becomes a path unchecked, a content gets its name in the cache when its hash
//! is right, and the token goes to nobody else. What can go wrong, and what is done then, stands in
//! `docs/hub.md`.

mod address;
mod cache;
mod client;
mod digest;
mod download;
mod fault;
mod fetch;
mod files;
mod header;
mod lock;
mod metadata;
mod name;
mod outline;
mod settings;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use files::Need;
pub use name::{is_hub_name, plain_name};
pub use outline::Outline;
pub use settings::HubSettings;

use self::cache::{Snapshot, Store};
use self::client::Client;
use self::fault::Fault;
use self::fetch::{Failed, Fetch};
use self::files::Weights;
use self::name::Name;
use super::read_index;
use crate::error::{Finding, Result};

/// A model of the hub on this computer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// The model's folder, or the GGUF file that was asked for.
    pub path: PathBuf,
    /// The model's name, `org/name`.
    pub id: String,
}

/// How far a download is.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// Bytes downloaded so far.
    pub done: u64,
    /// Bytes of the file.
    pub total: u64,
}

/// What happens while a model is fetched.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A file gets on.
    Download(Download<'a>),
    /// Something that the user should know: a wait, another try, what the cache may lack.
    Note(&'a str),
}

/// The folder of the model `name`: `hf:org/name`, `hf:org/name@REVISION`, or one GGUF file of it,
/// `hf:org/name/FILE.gguf`. What the cache doesn't have, and `need` asks for, is fetched; `tell` is told about it.
///
/// A revision is a branch, a tag or a commit.
///
/// # Errors
/// [`crate::Error::Mismatch`] for another form of name, for a model that isn't there or not everybody's,
/// and for one that isn't in the cache when the hub is not to be asked; [`crate::Error::Format`] for answers that no hub
/// gives, and contents without the hash that their ETag gives; [`crate::Error::Io`] where the network or the disk fails.
pub fn resolve(name: &str, settings: &HubSettings, need: Need, tell: &dyn Fn(Event<'_>)) -> Result<HubModel> {
    let fetched = |fetch: &Fetch<'_>, revision: &str, tries: bool| fetch.run(revision, tries);
    let name = Name::parse(name)?;
    let path = from_cache_or(&name, settings, need, tell, &|path| path, &fetched)?;
    Ok(HubModel { path, id: name.id })
}

/// A model of the hub as far as a job needs it to be planned.
pub enum Looked {
    /// All of it.
    Whole(HubModel),
    /// All but its weights, of which the headers are there.
    Outline(Box<Outline>),
}

/// The model `name`, to be looked at before its weights are fetched. What the cache has all of is the model itself, and so
/// is what has no headers that could be fetched alone: PyTorch files that are no zips.
///
/// # Errors
/// As [`resolve`].
pub fn look(name: &str, settings: &HubSettings, need: Need, tell: &dyn Fn(Event<'_>)) -> Result<Looked> {
    let name = Name::parse(name)?;
    // Of a vocabulary alone, too, the types of the weights may be asked for.
    let seen = if need == Need::Vocabulary && settings.offline.is_none() { Need::Model } else { need };
    let whole = |path| Looked::Whole(HubModel { path, id: name.id.clone() });
    from_cache_or(&name, settings, seen, tell, &whole, &|fetch, revision, tries| fetch.look(revision, tries, need))
}

/// What the cache has of a model, or what `fetched` makes of a revision. It is told, too, whether a hub that doesn't answer
/// is asked again.
fn from_cache_or<T>(
    name: &Name,
    settings: &HubSettings,
    need: Need,
    tell: &dyn Fn(Event<'_>),
    there: &dyn Fn(PathBuf) -> T,
    fetched: &dyn Fn(&Fetch<'_>, &str, bool) -> Result<T, Failed>,
) -> Result<T> {
    settings.notes.iter().for_each(|note| tell(Event::Note(note)));
    let store = Store::new(&settings.cache, name);
    let commit = store.commit(&name.revision);
    let found = commit.as_deref().and_then(|commit| cached(name, &store.snapshot(commit), need));
    if let Some(variable) = settings.offline {
        return offline(name, settings, variable, found, tell).map(there);
    }
    let client = Client::new(settings, tell)?;
    let fetch = Fetch { name, settings, client: &client, store: &store, need };
    match (found, commit) {
        (Some(found), _) if found.unknown.is_empty() && !settings.refresh => Ok(there(found.path)),
        // What is missing belongs to the commit that the rest is of. A hub that isn't there, or no longer has it, leaves
        // what the cache has. A file that the hub does list can't be done without.
        (Some(found), Some(commit)) if !settings.refresh => match fetched(&fetch, &commit, false) {
            Ok(made) => Ok(made),
            Err(Failed { fault, file }) if file.is_empty() && !matches!(fault, Fault::Odd { .. } | Fault::Own(_)) => {
                client.note(&format!(
                    "{}: not known whether the model has {}: {fault}; what the cache has is used",
                    name.text,
                    some_of(&found.unknown)
                ));
                Ok(there(found.path))
            }
            Err(failed) => Err(failed.into_error(name, settings)),
        },
        _ => fetched(&fetch, &name.revision, true).map_err(|failed| failed.into_error(name, settings)),
    }
}

/// What the cache alone has of a model.
fn offline(
    name: &Name,
    settings: &HubSettings,
    variable: &str,
    found: Option<Found>,
    tell: &dyn Fn(Event<'_>),
) -> Result<PathBuf> {
    if settings.refresh {
        let finding = Finding::new(&name.text, "refresh").expected("a hub to ask");
        return Err(finding.found(format_args!("{variable} in the environment")).mismatch());
    }
    if let Some(found) = found.as_ref().filter(|found| !found.unknown.is_empty()) {
        tell(Event::Note(&format!(
            "{}: not known whether the model has {}, for {variable} is set; what the cache has is used",
            name.text,
            some_of(&found.unknown)
        )));
    }
    found.map(|found| found.path).ok_or_else(|| {
        Finding::new(&name.text, "")
            .expected(format_args!("all of it in the cache {}", settings.cache.display()))
            .found("nothing, or a part")
            .hint(format_args!("{variable} is set: fetch it without that first"))
            .mismatch()
    })
}

/// A model in the cache.
struct Found {
    path: PathBuf,
    /// Files that the model may have, and the cache doesn't.
    unknown: Vec<String>,
}

/// The folder or file that was asked for, if the cache has all that can't be done without.
fn cached(name: &Name, snapshot: &Snapshot, need: Need) -> Option<Found> {
    let there = snapshot.names();
    let has = |name: &str| snapshot.has(name);
    let whole = |parts: &[String]| parts.first().is_some_and(|first| parts.len() == files::part_count(first));
    if let Some(file) = &name.file {
        let complete = has(file) && whole(&files::parts(file, &there));
        return complete.then(|| Found { path: snapshot.file(file), unknown: Vec::new() });
    }
    let names = snapshot.listed().unwrap_or(there);
    let mut unknown = snapshot.unknown();
    for form in files::weights(&names, need) {
        match form {
            Weights::Indexed(index) => {
                let named = read_index(&snapshot.file(index)).ok()?;
                named.values().all(|shard| has(shard)).then_some(())?;
            }
            Weights::Files(files) => files.iter().all(|name| has(name)).then_some(())?,
            // A single one is the model, as far as the cache knows.
            Weights::Gguf(found) => {
                let [only] = found.as_slice() else { return None };
                let complete = whole(only) && only.iter().all(|part| has(part));
                let unknown = if snapshot.was_listed() { Vec::new() } else { vec!["config.json".to_owned()] };
                return complete.then(|| Found { path: snapshot.file(&only[0]), unknown });
            }
        }
    }
    // A config may be of weights that nobody has asked for so far.
    let lacks_model = has("config.json") && files::model(&names).is_none() && !snapshot.lacks("model.safetensors");
    let lacks_adapter = has(files::ADAPTER_CONFIG) && files::adapter(&names).is_none();
    match need {
        Need::Model if lacks_model => return None,
        Need::Adapter if lacks_adapter => return None,
        Need::Everything if lacks_model => unknown.push("model.safetensors".to_owned()),
        Need::Everything if lacks_adapter => unknown.push("adapter_model.safetensors".to_owned()),
        _ => {}
    }
    let is_config = |name: &String| name == "config.json";
    let config = has("config.json") || has(files::ADAPTER_CONFIG) || !unknown.iter().any(is_config);
    config.then(|| Found { path: snapshot.path(), unknown })
}

/// Names in a sentence.
fn some_of(names: &[String]) -> String {
    match names {
        [one] => one.clone(),
        [first, second] => format!("{first} or {second}"),
        [first, second, rest @ ..] => format!("{first}, {second} or {} more files", rest.len()),
        [] => "more files".to_owned(),
    }
}
