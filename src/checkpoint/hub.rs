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
/// gives, and contents that aren't what their marks say; [`crate::Error::Io`] where the network or the disk fails.
pub fn resolve(name: &str, settings: &HubSettings, need: Need, tell: &dyn Fn(Event<'_>)) -> Result<HubModel> {
    let wanted = Name::parse(name)?;
    let id = wanted.id.clone();
    settings.notes.iter().for_each(|note| tell(Event::Note(note)));
    let store = Store::new(&settings.cache, &wanted);
    let commit = store.commit(&wanted.revision);
    let found = commit.as_deref().and_then(|commit| cached(&wanted, &store.snapshot(commit), need));
    if let Some(variable) = settings.offline {
        return offline(&wanted, settings, variable, found, tell).map(|path| HubModel { path, id });
    }
    let endpoint = &settings.endpoint;
    let client = Client::new(settings, tell).ok_or_else(|| {
        let finding = Finding::new("the hub's address", "").expected("an address of http or https");
        finding.found(format_args!("{endpoint:?}")).mismatch()
    })?;
    let fetch = Fetch { name: &wanted, settings, client: &client, store: &store, need };
    let error = |failed: Failed| failed.fault.into_error(&wanted, settings, &failed.file);
    let path = match (found, commit) {
        (Some(found), _) if found.unknown.is_empty() && !settings.refresh => found.path,
        // What is missing belongs to the commit that the rest is of. A hub that isn't there, or no longer has it, leaves
        // what the cache has.
        (Some(found), Some(commit)) if !settings.refresh => match fetch.run(&commit, false) {
            Ok(path) => path,
            Err(Failed { fault, .. }) if !matches!(fault, Fault::Odd { .. }) => {
                client.note(&format!(
                    "{}: not known whether the model has {}: {fault}; what the cache has is used",
                    wanted.text,
                    some_of(&found.unknown)
                ));
                found.path
            }
            Err(failed) => return Err(error(failed)),
        },
        _ => fetch.run(&wanted.revision, true).map_err(error)?,
    };
    Ok(HubModel { path, id })
}

/// The model `name` to be looked at: a folder with its config and tokenizer, and weights that are headers alone. `None`
/// where [`resolve`] has nothing to fetch, or the model can't be looked at in this way.
///
/// # Errors
/// As [`resolve`].
pub fn outline(name: &str, settings: &HubSettings, need: Need, tell: &dyn Fn(Event<'_>)) -> Result<Option<Outline>> {
    let wanted = Name::parse(name)?;
    let store = Store::new(&settings.cache, &wanted);
    let commit = store.commit(&wanted.revision);
    // Of a vocabulary alone, too, the types of the weights may be asked for.
    let need = if need == Need::Vocabulary { Need::Model } else { need };
    let found = commit.as_deref().and_then(|commit| cached(&wanted, &store.snapshot(commit), need));
    if found.is_some() && !settings.refresh || settings.offline.is_some() || wanted.file.is_some() {
        return Ok(None);
    }
    let Some(client) = Client::new(settings, tell) else { return Ok(None) };
    let fetch = Fetch { name: &wanted, settings, client: &client, store: &store, need };
    let error = |failed: Failed| failed.fault.into_error(&wanted, settings, &failed.file);
    let made = fetch.outline(&wanted.revision).map_err(error)?;
    if made.is_some() {
        settings.notes.iter().for_each(|note| tell(Event::Note(note)));
    }
    Ok(made)
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
