//! The faults of requests to a hub, and the errors that users get for them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::HubSettings;
use super::address::shown;
use super::name::Name;
use crate::error::{Error, Finding};

/// The reason why a request failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// The hub answered with an error status.
    Status {
        address: String,
        status: u16,
        /// The hub's own error code: `GatedRepo`, `RevisionNotFound`.
        code: String,
        /// How long the hub asks to wait.
        wait: Option<Duration>,
    },
    /// No complete answer came. `again` says whether a retry may help.
    Transfer { address: String, what: String, again: Again },
    /// A web page came instead of an answer.
    Page { address: String },
    /// The answer is not one that a hub gives.
    Odd { address: String, expected: String, found: String },
    /// The fault is on this computer, not in the network.
    Own(Error),
}

/// How often a retry makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Again {
    No,
    /// A few times, because no server was reached.
    Few,
    Often,
}

/// The largest number of retries, the same as in `huggingface_hub`.
const MOST_TRIES: u32 = 5;
/// The number of retries if there wasn't even a connection.
const FEW_TRIES: u32 = 2;

impl Fault {
    /// Returns how often the request may be retried.
    pub(super) fn tries(&self) -> u32 {
        match self {
            Fault::Status { status: 408 | 429 | 500 | 502 | 503 | 504, .. } => MOST_TRIES,
            Fault::Transfer { again: Again::Often, .. } => MOST_TRIES,
            Fault::Transfer { again: Again::Few, .. } => FEW_TRIES,
            _ => 0,
        }
    }

    /// Returns how long the hub asks to wait before the next request.
    pub(super) fn wait(&self) -> Option<Duration> {
        match self {
            Fault::Status { wait, .. } => *wait,
            _ => None,
        }
    }

    pub(super) fn transfer(address: &str, what: impl fmt::Display, again: Again) -> Self {
        Fault::Transfer { address: shown(address).to_owned(), what: what.to_string(), again }
    }

    pub(super) fn odd(address: &str, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        let (expected, found) = (expected.to_string(), found.to_string());
        Fault::Odd { address: shown(address).to_owned(), expected, found }
    }

    /// Returns the fault for a web page that came instead of an answer.
    pub(super) fn page(address: &str) -> Self {
        Fault::Page { address: shown(address).to_owned() }
    }

    /// Returns the error for a user who asked for `name`, or for its file `file`.
    pub(super) fn into_error(self, name: &Name, settings: &HubSettings, file: &str) -> Error {
        let finding = Finding::new(&name.text, file);
        match self {
            Fault::Own(error) => error,
            Fault::Transfer { address, what, .. } => {
                let mut place = name.text.clone();
                if !file.is_empty() {
                    place = format!("{place}: {file}");
                }
                let error = std::io::Error::other(format!("{address}: {what}"));
                Error::Io { path: PathBuf::from(place), action: "download", error }
            }
            Fault::Page { address } => finding
                .expected(format_args!("a hub's answer at {address}"))
                .found("a web page")
                .hint("a login page or a proxy may have answered, or HF_ENDPOINT is not the address of a hub")
                .format(),
            Fault::Odd { address, expected, found } => {
                finding.expected(format_args!("{expected} at {address}")).found(found).format()
            }
            Fault::Status { status: status @ (401 | 403), code, .. } => {
                let page = format!("{}/{}", settings.endpoint, name.id);
                let hint = match (&settings.token, code.as_str()) {
                    (None, "GatedRepo") => format!("ask for it on its page {page}, then set HF_TOKEN"),
                    (None, _) => "it is private, or to be asked for on its page, or not there: set HF_TOKEN".to_owned(),
                    (Some(_), _) => format!("the token in use has no access: ask for it on the model's page {page}"),
                };
                finding.expected("access to it").found(format_args!("status {status}")).hint(hint).mismatch()
            }
            Fault::Status { status: 404, address, code, .. } => {
                let hint = match code.as_str() {
                    "RevisionNotFound" => "the model is there, that revision isn't",
                    _ => "is the name right?",
                };
                let expected = match file.is_empty() {
                    true => format!("a model at {} with revision {:?}", settings.endpoint, name.revision),
                    false => format!("the file that the hub lists at {address}"),
                };
                finding.expected(expected).found("status 404").hint(hint).mismatch()
            }
            Fault::Status { status, address, wait, .. } => {
                let found = format!("status {status}");
                let finding = finding.expected(format_args!("an answer of {address}")).found(found);
                match wait {
                    Some(wait) => finding.hint(format_args!("it asks to wait {} s", wait.as_secs())).mismatch(),
                    None if matches!(status, 408 | 429 | 500..=599) => finding.hint("try again later").mismatch(),
                    None => finding.mismatch(),
                }
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Status { address, status, .. } => write!(f, "{address}: status {status}"),
            Fault::Transfer { address, what, .. } => write!(f, "{address}: {what}"),
            Fault::Page { address } => write!(f, "{address}: a web page instead of an answer"),
            Fault::Odd { address, expected, found } => write!(f, "{address}: expected {expected}, found {found}"),
            Fault::Own(error) => write!(f, "{error}"),
        }
    }
}
