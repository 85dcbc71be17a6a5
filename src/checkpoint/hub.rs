//! Models by their names on the Hugging Face hub: `hf:org/name`.
//!
//! A name resolves to a folder of the cache that all Hugging Face programs share. Files that are in the
//! cache are used without asking the hub; missing ones are downloaded, but only those that a conversion reads.
//!
//! hf-hub does the transfers. It uses the file names that the hub gives without a check; here they are
//! checked first. The cache's layout is that of Python's `huggingface_hub`
//! (`blobs/`, `refs/REVISION`, `snapshots/COMMIT/`).

mod files;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::PathBuf;

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use self::files::Weights;
use super::read_index;
use crate::error::{Error, Finding, IoContext, Result};

/// The prefix of a model's name on the hub.
const PREFIX: &str = "hf:";

/// How often a download is tried again; each attempt continues where the last one stopped.
const RETRIES: usize = 3;

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

/// The hub and the cache that are used.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The cache, with one folder for each model.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// The access token of the user's account, for models with restricted access.
    pub token: Option<String>,
    /// Whether only the cache is used, and the hub is never asked.
    pub offline: bool,
}

impl HubSettings {
    /// The settings of the environment: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`,
    /// `HF_TOKEN_PATH`, `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is no home folder either.
    pub fn from_env() -> Result<Self> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`HubSettings::from_env`], of any set of variables; the token may be in a file of the
    /// folder that they name.
    ///
    /// # Errors
    /// As there.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let any = |names: &[&str]| names.iter().find_map(|name| variable(name).filter(|text| !text.is_empty()));
        let folder = |names: &[&str]| any(names).map(PathBuf::from);
        let home = folder(&["HF_HOME"])
            .or_else(|| folder(&["XDG_CACHE_HOME"]).map(|cache| cache.join("huggingface")))
            .or_else(|| folder(&["HOME"]).map(|home| home.join(".cache/huggingface")));
        let cache = folder(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]);
        let cache = cache.or_else(|| home.as_ref().map(|home| home.join("hub"))).ok_or_else(|| {
            let finding = Finding::new("the environment", "HF_HOME");
            finding.expected("a folder for the cache of models").found("none, and no HOME").mismatch()
        })?;
        let token_file = folder(&["HF_TOKEN_PATH"]).or_else(|| home.map(|home| home.join("token")));
        let kept = || token_file.and_then(|path| fs::read_to_string(path).ok());
        let token = any(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).or_else(kept);
        let endpoint = any(&["HF_ENDPOINT"]).unwrap_or_else(|| "https://huggingface.co".to_owned());
        let offline = any(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]).unwrap_or_default();
        Ok(Self {
            cache,
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            token: token.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()),
            offline: ["1", "on", "yes", "true"].iter().any(|yes| offline.eq_ignore_ascii_case(yes)),
        })
    }
}

/// Whether `text` is the name of a model on the hub.
pub fn is_hub_name(text: &str) -> bool {
    text.starts_with(PREFIX)
}

/// A model as PEFT's settings name it: `org/name` for a name on the hub, whatever its revision and file; anything
/// else as it is.
pub fn plain_name(text: &str) -> &str {
    let Some(name) = text.strip_prefix(PREFIX) else { return text };
    let name = name.split('@').next().unwrap_or(name);
    match name.match_indices('/').nth(1) {
        Some((end, _)) => &name[..end],
        None => name,
    }
}

/// The folder of the model `name`: `hf:org/name`, `hf:org/name@REVISION`, or one GGUF file of it,
/// `hf:org/name/FILE.gguf`. What the cache doesn't have is fetched; `progress` is told about it.
///
/// A revision is a branch, a tag or a commit.
///
/// # Errors
/// [`Error::Mismatch`] for another form of name, for a model that isn't there or not everybody's,
/// and for one that isn't in the cache when the hub is not to be asked; [`Error::Format`] for names
/// of files that leave their folder; [`Error::Io`] where the network or the disk fails.
pub fn resolve(name: &str, settings: &HubSettings, progress: &dyn Fn(Download<'_>)) -> Result<HubModel> {
    let wanted = Name::parse(name)?;
    let id = wanted.id.clone();
    if let Some(path) = wanted.cached(settings) {
        return Ok(HubModel { path, id });
    }
    if settings.offline {
        return Err(Finding::new(name, "")
            .expected(format_args!("all of it in the cache {}", settings.cache.display()))
            .found("nothing, or a part")
            .hint("HF_HUB_OFFLINE is set: fetch it without that first")
            .mismatch());
    }
    let path = Fetch::new(wanted, settings, progress)?.run()?;
    Ok(HubModel { path, id })
}

/// A name on the hub, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    /// The name as the user wrote it, for messages.
    text: String,
    id: String,
    file: Option<String>,
    revision: String,
}

impl Name {
    fn parse(text: &str) -> Result<Self> {
        let wrong = |found: &str| {
            let expected = "hf:org/name, hf:org/name@REVISION or hf:org/name/FILE.gguf";
            Err(Finding::new(text, "").expected(expected).found(found).mismatch())
        };
        let Some(rest) = text.strip_prefix(PREFIX) else { return wrong("another beginning") };
        let (path, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let mut parts = path.splitn(3, '/');
        let id: Vec<&str> = parts.by_ref().take(2).collect();
        let file = parts.next();
        // The hub's own rule: no double hyphens or dots, which have a meaning in the cache.
        let is_word = |text: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            !text.is_empty() && text.bytes().all(plain) && !text.contains("--") && !text.contains("..")
        };
        if !id.iter().all(|part| is_word(part)) {
            return wrong("a name that the hub doesn't allow");
        }
        let revision_fits = |b: u8| b.is_ascii_alphanumeric() || b"-_./+".contains(&b);
        if !files::is_plain(revision) || !revision.bytes().all(revision_fits) {
            return wrong("a revision that is no branch, tag or commit");
        }
        if file.is_some_and(|file| !files::is_plain(file) || !file.ends_with(".gguf")) {
            return wrong("a file that is no GGUF");
        }
        let file = file.map(str::to_owned);
        Ok(Self { text: text.to_owned(), id: id.join("/"), file, revision: revision.to_owned() })
    }

    fn folder(&self, settings: &HubSettings) -> PathBuf {
        settings.cache.join(Repo::new(self.id.clone(), RepoType::Model).folder_name())
    }

    /// The folder or file that was asked for, if the cache has all of it.
    fn cached(&self, settings: &HubSettings) -> Option<PathBuf> {
        let folder = self.folder(settings);
        let commit = match is_commit(&self.revision) {
            true => self.revision.clone(),
            false => fs::read_to_string(folder.join("refs").join(&self.revision)).ok()?.trim().to_owned(),
        };
        let snapshot = Some(folder.join("snapshots").join(&commit)).filter(|_| is_commit(&commit))?;
        match &self.file {
            Some(file) => {
                let path = snapshot.join(file);
                let beside = path.parent()?.read_dir().ok()?.flatten();
                let prefix = file.rsplit_once('/').map_or(String::new(), |(folder, _)| format!("{folder}/"));
                let names: Vec<String> =
                    beside.map(|entry| format!("{prefix}{}", entry.file_name().to_string_lossy())).collect();
                let parts = files::parts(file, &names);
                let whole = parts.len() == files::part_count(file);
                (whole && parts.iter().all(|part| snapshot.join(part).is_file())).then_some(path)
            }
            None => files::is_complete(&snapshot).then_some(snapshot),
        }
    }
}

/// Whether a text is the name of a commit. Every snapshot is called by its commit.
fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// A model that is being downloaded.
struct Fetch<'a> {
    name: Name,
    settings: &'a HubSettings,
    progress: &'a dyn Fn(Download<'_>),
    api: Api,
    /// The commit that the revision stands for now. All files are taken from it.
    commit: String,
    names: Vec<String>,
}

impl<'a> Fetch<'a> {
    fn new(name: Name, settings: &'a HubSettings, progress: &'a dyn Fn(Download<'_>)) -> Result<Self> {
        let builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_retries(RETRIES)
            .with_user_agent("atombank", env!("CARGO_PKG_VERSION"))
            .with_progress(false);
        let api = builder.build().map_err(|e| refused(&name, settings, "", e))?;
        let repo = Repo::with_revision(name.id.clone(), RepoType::Model, name.revision.clone());
        let info = api.repo(repo).info().map_err(|e| refused(&name, settings, "", e))?;
        let odd = |expected: &str, found: &str| {
            Err(Finding::new(&name.text, "").expected(expected).found(format_args!("{found:?}")).format())
        };
        if !is_commit(&info.sha) {
            return odd("a commit of 40 hexadecimal digits", &info.sha);
        }
        let names: Vec<String> = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        if let Some(name) = names.iter().find(|name| !files::is_plain(name)) {
            return odd("names of files that stay in their folder", name);
        }
        Ok(Self { name, settings, progress, api, commit: info.sha, names })
    }

    fn run(&self) -> Result<PathBuf> {
        let snapshot = self.name.folder(self.settings).join("snapshots").join(&self.commit);
        if let Some(file) = &self.name.file {
            if !self.names.contains(file) {
                return Err(self.choose(file));
            }
            self.files(files::parts(file, &self.names).iter().map(String::as_str))?;
            self.keep_reference()?;
            return Ok(snapshot.join(file));
        }
        // Weights come last: whoever finds them finds the rest.
        match files::weights(&self.names) {
            Weights::Files(weights) => {
                self.files(files::companions(&self.names))?;
                self.files(weights.iter().map(String::as_str))?;
            }
            Weights::Indexed(index) => {
                self.files(files::companions(&self.names))?;
                let shards = read_index(&snapshot.join(index))?;
                let mut shards: Vec<&str> = shards.values().map(String::as_str).collect();
                shards.sort_unstable();
                shards.dedup();
                self.files(shards)?;
            }
            Weights::Gguf(all) => match all.as_slice() {
                [only] => {
                    self.files([only.as_str()])?;
                    self.keep_reference()?;
                    return Ok(snapshot.join(only));
                }
                _ => return Err(self.choose("weights")),
            },
        }
        self.keep_reference()?;
        Ok(snapshot)
    }

    /// The error that lists the repository's GGUF files.
    fn choose(&self, subject: &str) -> Error {
        let ggufs: Vec<&str> = self.names.iter().map(String::as_str).filter(|name| name.ends_with(".gguf")).collect();
        let finding =
            Finding::new(&self.name.text, subject).expected("safetensors, PyTorch's weights or one GGUF file");
        match ggufs.first() {
            None => finding.found("none").mismatch(),
            Some(first) => finding
                .found(format_args!("{} GGUF files: {}", ggufs.len(), ggufs.join(", ")))
                .hint(format_args!("choose one: hf:{}/{first}", self.name.id))
                .mismatch(),
        }
    }

    fn files<'n>(&self, names: impl IntoIterator<Item = &'n str>) -> Result<()> {
        names.into_iter().try_for_each(|name| self.file(name))
    }

    /// Downloads one file, if the snapshot doesn't have it.
    fn file(&self, file: &str) -> Result<()> {
        let repo = Repo::with_revision(self.name.id.clone(), RepoType::Model, self.commit.clone());
        let repo: ApiRepo = self.api.repo(repo);
        let folder = self.name.folder(self.settings);
        let path = folder.join("snapshots").join(&self.commit).join(file);
        if path.is_file() {
            return Ok(());
        }
        let failed = |e| refused(&self.name, self.settings, file, e);
        let known = self.api.metadata(&repo.url(file)).map_err(failed)?;
        // hf-hub makes paths of both.
        let is_word =
            |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let finding = || Finding::new(&self.name.text, file);
        if !is_word(known.etag()) {
            let found = format!("{:?}", known.etag());
            return Err(finding().expected("a mark of letters and digits").found(found).format());
        }
        if known.commit_hash() != self.commit {
            let found = format!("{:?}", known.commit_hash());
            return Err(finding().expected(format_args!("the file of commit {}", self.commit)).found(found).format());
        }
        let report = Report { progress: self.progress, file, done: 0, total: 0 };
        let fetched = repo.download_with_progress(file, report).map_err(failed)?;
        // It leaves a reference for the commit, which nothing needs.
        let _ = fs::remove_file(folder.join("refs").join(&self.commit));
        let len = fs::metadata(&fetched).at(&fetched, "read")?.len();
        if len != known.size() as u64 {
            // Otherwise the next run would take it for complete.
            let _ = fs::remove_file(folder.join("blobs").join(known.etag()));
            let _ = fs::remove_file(&fetched);
            let expected = format!("{} bytes", known.size());
            return Err(finding().expected(expected).found(len).hint("try again").format());
        }
        Ok(())
    }

    /// Writes down which commit the revision stands for, once all its files are in the cache.
    fn keep_reference(&self) -> Result<()> {
        if is_commit(&self.name.revision) {
            return Ok(());
        }
        let repo = Repo::with_revision(self.name.id.clone(), RepoType::Model, self.name.revision.clone());
        let cache = Cache::new(self.settings.cache.clone()).repo(repo);
        cache.create_ref(&self.commit).at(self.name.folder(self.settings).join("refs"), "write")
    }
}

/// Passes hf-hub's progress on.
struct Report<'a> {
    progress: &'a dyn Fn(Download<'_>),
    file: &'a str,
    done: u64,
    total: u64,
}

impl Report<'_> {
    fn tell(&self) {
        (self.progress)(Download { file: self.file, done: self.done, total: self.total });
    }
}

impl hf_hub::api::Progress for Report<'_> {
    fn init(&mut self, size: usize, _filename: &str) {
        (self.done, self.total) = (0, size as u64);
        self.tell();
    }

    fn update(&mut self, size: usize) {
        self.done = self.done.saturating_add(size as u64);
        self.tell();
    }

    fn finish(&mut self) {
        self.tell();
    }
}

/// The error for an answer of the hub that isn't the file, or for none.
fn refused(name: &Name, settings: &HubSettings, file: &str, error: ApiError) -> Error {
    // The last of several attempts says it all.
    let error = match error {
        ApiError::TooManyRetries(last) => *last,
        error => error,
    };
    let finding = Finding::new(&name.text, file);
    let status = match &error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    };
    match status {
        Some(status @ (401 | 403)) => {
            let hint = match settings.token {
                None => "it is private, or to be asked for on its page, or not there: set HF_TOKEN",
                Some(_) => "the token in use has no access: ask for it on the model's page",
            };
            finding.expected("access to it").found(format_args!("status {status}")).hint(hint).mismatch()
        }
        Some(404) => finding
            .expected(format_args!("a model at {} with revision {:?}", settings.endpoint, name.revision))
            .found("status 404")
            .hint("is the name right?")
            .mismatch(),
        Some(status) => {
            let found = format!("status {status}");
            finding.expected(format_args!("an answer of {}", settings.endpoint)).found(found).mismatch()
        }
        None => Error::Io {
            path: PathBuf::from(if file.is_empty() { name.text.clone() } else { format!("{}: {file}", name.text) }),
            action: "download",
            error: std::io::Error::other(error.to_string()),
        },
    }
}
