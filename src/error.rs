//! The crate's errors: who is at fault, and one line that says where, what was expected, what was
//! found and what to try.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, grouped by whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write `path`.
    #[error("{}: cannot {action}: {source}", .path.display())]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// What was tried, as a verb phrase: "open", "write".
        action: &'static str,
        /// The system's own error.
        source: std::io::Error,
    },
    /// The bytes of a file break the rules of its format.
    #[error("{0}")]
    Format(Box<Finding>),
    /// Two inputs that are well-formed don't fit each other, or a setting doesn't fit them.
    #[error("{0}")]
    Mismatch(Box<Finding>),
    /// Well-formed, but nothing this version can do.
    #[error("{0}")]
    Unsupported(Box<Finding>),
    /// A NaN or an infinity where only finite numbers make sense.
    #[error("{0}")]
    NotFinite(Box<Finding>),
    /// The output is there already.
    #[error("{}: already exists; choose another name or pass --overwrite", .0.display())]
    Exists(PathBuf),
    /// The run was asked to stop; what it had is saved.
    #[error("{}: interrupted after step {step}; the checkpoint and the adapter are written, --resume continues", .folder.display())]
    Interrupted {
        /// The run's output folder.
        folder: PathBuf,
        /// The last completed optimizer step.
        step: usize,
    },
    /// candle refused an operation: a defect of ours or a device that ran out of memory.
    #[cfg(feature = "train")]
    #[error("computation failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// One finding: file, subject, expected, found, and what to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file (or folder) in which it was found.
    pub file: PathBuf,
    /// The tensor, key or field concerned; empty where it is the whole file.
    pub subject: String,
    /// What would have been right; empty where nothing would have been.
    pub expected: String,
    /// What is there instead.
    pub found: String,
    /// What the user can try; empty where there is nothing.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if !self.subject.is_empty() {
            write!(f, ": {}", self.subject)?;
        }
        match (self.expected.is_empty(), self.found.is_empty()) {
            (false, false) => write!(f, ": expected {}, found {}", self.expected, self.found)?,
            (false, true) => write!(f, ": expected {}", self.expected)?,
            (true, false) => write!(f, ": {}", self.found)?,
            (true, true) => {}
        }
        if !self.hint.is_empty() {
            write!(f, "; {}", self.hint)?;
        }
        Ok(())
    }
}

impl Finding {
    /// A finding in `file` about `subject`, to be completed by the methods below.
    pub fn new(file: impl AsRef<Path>, subject: impl Into<String>) -> Self {
        Self {
            file: file.as_ref().to_owned(),
            subject: subject.into(),
            expected: String::new(),
            found: String::new(),
            hint: String::new(),
        }
    }

    /// Sets what would have been right.
    pub fn expected(mut self, what: impl fmt::Display) -> Self {
        self.expected = what.to_string();
        self
    }

    /// Sets what is there instead.
    pub fn found(mut self, what: impl fmt::Display) -> Self {
        self.found = what.to_string();
        self
    }

    /// Sets what the user can try.
    pub fn hint(mut self, what: impl fmt::Display) -> Self {
        self.hint = what.to_string();
        self
    }

    /// As a breach of the file's format.
    pub fn format(self) -> Error {
        Error::Format(Box::new(self))
    }

    /// As inputs that don't fit each other.
    pub fn mismatch(self) -> Error {
        Error::Mismatch(Box::new(self))
    }

    /// As something this version can't do.
    pub fn unsupported(self) -> Error {
        Error::Unsupported(Box::new(self))
    }

    /// As a number that isn't finite.
    pub fn not_finite(self) -> Error {
        Error::NotFinite(Box::new(self))
    }
}

/// Attaches a path and an action to an I/O result.
pub(crate) trait IoContext<T> {
    /// Turns the error into [`Error::Io`].
    fn at(self, path: impl AsRef<Path>, action: &'static str) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at(self, path: impl AsRef<Path>, action: &'static str) -> Result<T> {
        self.map_err(|source| Error::Io { path: path.as_ref().to_owned(), action, source })
    }
}
