//! The settings of the hub, from the environment variables of Python's `huggingface_hub`.
//!
//! Reference: huggingface_hub `constants.py` and `utils/_auth.py`.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{Finding, Result};

/// How long to wait for an answer, unless a variable says otherwise.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The pause before the first retry.
const PAUSE: Duration = Duration::from_secs(1);

/// The hub and the cache to use.
#[derive(Debug, Clone)]
pub struct HubSettings {
    /// The cache, with one folder for each model.
    pub cache: PathBuf,
    /// The hub's address.
    pub endpoint: String,
    /// The access token of the user's account, for models with restricted access.
    pub token: Option<String>,
    /// The variable that forbids requests to the hub, so that only the cache is used.
    pub offline: Option<&'static str>,
    /// Whether to ask the hub even if the cache has the whole model, because branches move.
    pub refresh: bool,
    /// How long the hub may take to answer a question about a model or a file.
    pub etag_timeout: Duration,
    /// How long a download may wait without receiving anything.
    pub download_timeout: Duration,
    /// The pause before the first retry. It doubles with each retry, up to eight times its length.
    pub pause: Duration,
    /// Notes for the user about the variables.
    pub notes: Vec<String>,
}

/// Every variable that is read.
const VARIABLES: [&str; 14] = [
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_ENDPOINT",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN",
    "HF_HUB_OFFLINE",
    "TRANSFORMERS_OFFLINE",
    "HF_HUB_ETAG_TIMEOUT",
    "HF_HUB_DOWNLOAD_TIMEOUT",
];

impl HubSettings {
    /// Reads the settings from the environment: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
    /// `HF_HUB_OFFLINE`, `HF_HUB_ETAG_TIMEOUT`, `HF_HUB_DOWNLOAD_TIMEOUT`.
    ///
    /// # Errors
    /// [`crate::Error::Mismatch`] for a variable with an invalid value, and if neither a variable nor a home folder
    /// gives a place for the cache.
    pub fn from_env() -> Result<Self> {
        for name in VARIABLES {
            if let Err(std::env::VarError::NotUnicode(_)) = std::env::var(name) {
                let finding = Finding::new("the environment", name).expected("text in UTF-8");
                return Err(finding.found("other bytes").mismatch());
            }
        }
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// Does the same as [`HubSettings::from_env`] for any set of variables. The token may come from a file in the
    /// folder that they name.
    ///
    /// # Errors
    /// The same as for [`HubSettings::from_env`].
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let set = |name: &str| variable(name).filter(|text| !text.is_empty());
        let any = |names: &[&'static str]| names.iter().find_map(|name| Some((*name, set(name)?)));
        let folder = |names: &[&'static str]| any(names).map(|(_, text)| PathBuf::from(expanded(&text, &set)));
        let home = folder(&["HF_HOME"])
            .or_else(|| folder(&["XDG_CACHE_HOME"]).map(|cache| cache.join("huggingface")))
            .or_else(|| folder(&["HOME"]).map(|home| home.join(".cache/huggingface")));
        let cache = folder(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]);
        let cache = cache.or_else(|| home.as_ref().map(|home| home.join("hub"))).ok_or_else(|| {
            let finding = Finding::new("the environment", "HF_HOME");
            finding.expected("a folder for the cache of models").found("none, and no HOME").mismatch()
        })?;
        let token_file = folder(&["HF_TOKEN_PATH"]).or_else(|| home.map(|home| home.join("token")));
        let kept = || {
            let path = token_file?;
            let text = fs::read_to_string(&path).ok()?;
            Some((path.display().to_string(), text))
        };
        let token = any(&["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]).map(|(name, text)| (name.to_owned(), text));
        let implicit = !set("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|text| is_true(&text));
        let token = token
            .or_else(kept)
            .filter(|_| implicit)
            .map(|(place, text)| clean_token(&place, &text))
            .transpose()?
            .flatten();
        let mut notes = Vec::new();
        let offline = any(&["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]);
        if let Some((name, text)) = offline.as_ref().filter(|(_, text)| !is_true(text) && !is_false(text)) {
            notes.push(format!(
                "{name} is {text:?}, which huggingface_hub takes as off; 1, on, yes and true switch it on"
            ));
        }
        let offline = offline.filter(|(_, text)| is_true(text));
        Ok(Self {
            cache,
            endpoint: set("HF_ENDPOINT")
                .map_or_else(|| Ok("https://huggingface.co".to_owned()), |text| address(&text))?,
            token,
            offline: offline.map(|(name, _)| name),
            refresh: false,
            etag_timeout: seconds("HF_HUB_ETAG_TIMEOUT", set("HF_HUB_ETAG_TIMEOUT"))?,
            download_timeout: seconds("HF_HUB_DOWNLOAD_TIMEOUT", set("HF_HUB_DOWNLOAD_TIMEOUT"))?,
            pause: PAUSE,
            notes,
        })
    }
}

fn is_true(text: &str) -> bool {
    ["1", "on", "yes", "true"].iter().any(|yes| text.eq_ignore_ascii_case(yes))
}

fn is_false(text: &str) -> bool {
    ["0", "off", "no", "false"].iter().any(|no| text.eq_ignore_ascii_case(no))
}

/// Expands `~` at the beginning, `$NAME` and `${NAME}`, as Python's `expanduser` and `expandvars` do. Variables that
/// aren't set stay as they are.
fn expanded(text: &str, set: &dyn Fn(&str) -> Option<String>) -> String {
    let home = match text.strip_prefix('~') {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => set("HOME").map(|home| home + rest),
        _ => None,
    };
    let text = home.unwrap_or_else(|| text.to_owned());
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find('$') {
        out.push_str(&rest[..start]);
        let after = &rest[start + 1..];
        let (name, end) = match after.strip_prefix('{').and_then(|inner| Some((inner, inner.find('}')?))) {
            Some((inner, len)) => (&inner[..len], len + 2),
            None => {
                let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                let len = after.find(|c| !word(c)).unwrap_or(after.len());
                (&after[..len], len)
            }
        };
        match set(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push_str(&value),
            None => out.push_str(&rest[start..start + 1 + end]),
        }
        rest = &after[end..];
    }
    out + rest
}

/// Returns a token without the line breaks and spaces that a variable or a file may add.
fn clean_token(place: &str, text: &str) -> Result<Option<String>> {
    let token: String = text.chars().filter(|c| !matches!(c, '\r' | '\n')).collect();
    let token = token.trim();
    match token.bytes().all(|b| b.is_ascii_graphic()) {
        true => Ok(Some(token.to_owned()).filter(|token| !token.is_empty())),
        // The message doesn't quote the token, because it is secret.
        false => Err(Finding::new("the environment", place)
            .expected("a token of letters, digits and marks")
            .found("other characters in it")
            .mismatch()),
    }
}

/// Checks the hub's address, and returns it without a slash at its end.
fn address(text: &str) -> Result<String> {
    let address = text.trim().trim_end_matches('/');
    let rest = ["https://", "http://"].iter().find_map(|scheme| {
        let start = address.get(..scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then(|| &address[scheme.len()..])
    });
    let expected = "an address like https://huggingface.co";
    let wrong = |hint: String| {
        let finding = Finding::new("the environment", "HF_ENDPOINT").expected(expected).found(format_args!("{text:?}"));
        Err(finding.hint(hint).mismatch())
    };
    let plain = |b: u8| b.is_ascii_graphic() && !b"?#\"<>\\^`{|}@".contains(&b);
    match rest {
        None if !address.contains("://") && !address.is_empty() => wrong(format!("https://{address}?")),
        None => wrong(String::new()),
        Some(rest) if rest.is_empty() || rest.starts_with('/') || !rest.bytes().all(plain) => wrong(String::new()),
        Some(_) => Ok(address.to_owned()),
    }
}

/// Parses a number of seconds; 10 if there is none, or if it is 0.
fn seconds(name: &str, text: Option<String>) -> Result<Duration> {
    let Some(text) = text else { return Ok(TIMEOUT) };
    match text.trim().parse::<u32>() {
        Ok(0) => Ok(TIMEOUT),
        Ok(seconds) => Ok(Duration::from_secs(seconds.into())),
        Err(_) => Err(Finding::new("the environment", name)
            .expected("a whole number of seconds")
            .found(format_args!("{text:?}"))
            .mismatch()),
    }
}
