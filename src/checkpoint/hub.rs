//! Models by their names on the Hugging Face hub: `hf:org/name`.
//!
//! A name resolves to a folder of the cache that all Hugging Face programs share. Files in the cache are used without
//! asking the hub. Missing files are downloaded, but only those that a command needs.
//!
//! A hub is not trusted. No part of its answers becomes a path unchecked, a content gets its name in the cache only
//! when its hash is right, and the token goes to no other server. `docs/hub.md` lists the possible failures and how
//! they are handled.

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
use super::{ADAPTER_CONFIG, read_index};
use crate::error::{Finding, Result};

/// A model of the hub that is now on this computer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubModel {
    /// The model's folder, or the requested GGUF file.
    pub path: PathBuf,
    /// The model's name, `org/name`.
    pub id: String,
}

/// The progress of a download.
#[derive(Debug, Clone, Copy)]
pub struct Download<'a> {
    /// The file's name in the repository.
    pub file: &'a str,
    /// The number of bytes downloaded so far.
    pub done: u64,
    /// The number of bytes of the file.
    pub total: u64,
}

/// An event while a model is fetched.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// The progress of a file.
    Download(Download<'a>),
    /// Information for the user: a wait, a retry, files that the cache may lack.
    Note(&'a str),
}

/// Finds the folder of the model `name`: `hf:org/name`, `hf:org/name@REVISION`, or one GGUF file of it,
/// `hf:org/name/FILE.gguf`. Files that `need` asks for are fetched if the cache lacks them; `tell` receives the events.
///
/// A revision is a branch, a tag or a commit.
///
/// # Errors
/// [`crate::Error::Mismatch`] for another form of name, for a model that doesn't exist or has restricted access, and
/// for one that isn't in the cache when the hub may not be asked; [`crate::Error::Format`] for answers that no hub
/// gives, and for contents that don't match the hash in their ETag; [`crate::Error::Io`] if the network or the disk
/// fails.
pub fn resolve(name: &str, settings: &HubSettings, need: Need, tell: &dyn Fn(Event<'_>)) -> Result<HubModel> {
    let fetched = |fetch: &Fetch<'_>, revision: &str, tries: bool| fetch.run(revision, tries);
    let name = Name::parse(name)?;
    let path = from_cache_or(&name, settings, need, tell, &|path| path, &fetched)?;
    Ok(HubModel { path, id: name.id })
}

/// The files of a model on the hub that a job needs for planning.
pub enum Looked {
    /// The whole model.
    Whole(HubModel),
    /// Everything but the weights, and their headers.
    Outline(Box<Outline>),
}

/// Opens the model `name` for inspection before its weights are fetched. The result is the whole model if the cache has
/// it, or if the headers can't be fetched on their own, as in PyTorch files that aren't zips.
///
/// # Errors
/// The same as for [`resolve`].
pub fn look(name: &str, settings: &HubSettings, need: Need, tell: &dyn Fn(Event<'_>)) -> Result<Looked> {
    let name = Name::parse(name)?;
    // Even a job that only needs a vocabulary may ask for the types of the weights.
    let seen = if need == Need::Vocabulary && settings.offline.is_none() { Need::Model } else { need };
    let whole = |path| Looked::Whole(HubModel { path, id: name.id.clone() });
    from_cache_or(&name, settings, seen, tell, &whole, &|fetch, revision, tries| fetch.look(revision, tries, need))
}

/// Returns the model in the cache, or the result of `fetched` for a revision. The last argument of `fetched` says
/// whether to ask again if the hub doesn't answer.
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
        // The missing files are fetched for the same commit as the others. If the hub can't be reached or no longer has
        // that commit, the cache's files are used. It is an error if a file fails that the hub does list.
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

/// Returns a model from the cache alone.
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
            .found("nothing, or only a part")
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

/// Returns the requested folder or file, if the cache has all files that are required.
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
            // A single GGUF is the model, as far as the cache knows.
            Weights::Gguf(found) => {
                let [only] = found.as_slice() else { return None };
                let complete = whole(only) && only.iter().all(|part| has(part));
                let unknown = if snapshot.was_listed() { Vec::new() } else { vec!["config.json".to_owned()] };
                return complete.then(|| Found { path: snapshot.file(&only[0]), unknown });
            }
        }
    }
    // A config may belong to weights that no program has requested so far.
    let lacks_model = has("config.json") && files::model(&names).is_none() && !snapshot.lacks("model.safetensors");
    let lacks_adapter = has(ADAPTER_CONFIG) && files::adapter(&names).is_none();
    match need {
        Need::Model if lacks_model => return None,
        Need::Adapter if lacks_adapter => return None,
        Need::Everything if lacks_model => unknown.push("model.safetensors".to_owned()),
        Need::Everything if lacks_adapter => unknown.push("adapter_model.safetensors".to_owned()),
        _ => {}
    }
    let is_config = |name: &String| name == "config.json";
    let config = has("config.json") || has(ADAPTER_CONFIG) || !unknown.iter().any(is_config);
    config.then(|| Found { path: snapshot.path(), unknown })
}

/// Returns names for use in a sentence.
fn some_of(names: &[String]) -> String {
    match names {
        [one] => one.clone(),
        [first, second] => format!("{first} or {second}"),
        [first, second, rest @ ..] => format!("{first}, {second} or {} more files", rest.len()),
        [] => "more files".to_owned(),
    }
}
