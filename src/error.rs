//! The crate's errors. The variant gives the kind of problem. The message is one line with the place, what was
//! expected, what was found and what to try.

use std::fmt;
use std::path::{Path, PathBuf};

/// The result of every fallible call of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error, grouped by its kind of cause.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused to read or write `path`.
    // The system's error is part of the message and therefore not a `source`: programs that print both would repeat it.
    #[error("{}: cannot {action}: {error}", Shown(.path))]
    Io {
        /// The file or folder concerned.
        path: PathBuf,
        /// The failed action, as a verb phrase: "open", "write".
        action: &'static str,
        /// The system's own error.
        error: std::io::Error,
    },
    /// The bytes of a file break the rules of its format.
    #[error("{0}")]
    Format(Box<Finding>),
    /// Two inputs that are well-formed don't fit each other, or a setting doesn't fit them.
    #[error("{0}")]
    Mismatch(Box<Finding>),
    /// A setting has an invalid value, or excludes another setting. The finding's subject is the setting's field.
    #[error("{0}")]
    Setting(Box<Finding>),
    /// The input is well-formed, but this version doesn't support it.
    #[error("{0}")]
    Unsupported(Box<Finding>),
    /// A NaN or an infinity where only finite numbers make sense.
    #[error("{0}")]
    NotFinite(Box<Finding>),
    /// The output exists already.
    #[error("{}: already exists; choose another name or pass `overwrite`", Shown(.0))]
    Exists(PathBuf),
    /// The run was asked to stop, and its progress is saved.
    #[error("{}: interrupted after step {step}; the checkpoint and the adapter are written, `resume` continues", Shown(.folder))]
    Interrupted {
        /// The run's output folder.
        folder: PathBuf,
        /// The last completed optimizer step.
        step: usize,
    },
    /// candle refused an operation: a defect of this crate, or a device that ran out of memory.
    #[cfg(feature = "train")]
    #[error("computation failed: {0}")]
    Compute(candle_core::Error),
}

#[cfg(feature = "train")]
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::Compute(error)
    }
}

impl Error {
    /// Adds a hint where there is none.
    pub(crate) fn or_hint(mut self, hint: impl FnOnce() -> String) -> Self {
        if let Error::Format(finding) | Error::Mismatch(finding) | Error::Setting(finding) | Error::Unsupported(finding) =
            &mut self
            && finding.hint.is_empty()
        {
            finding.hint = hint();
        }
        self
    }
}

impl Error {
    /// Takes the hint out of the error; empty if there is none.
    #[cfg(feature = "train")]
    pub(crate) fn take_hint(&mut self) -> String {
        match self {
            Error::Format(finding)
            | Error::Mismatch(finding)
            | Error::Setting(finding)
            | Error::Unsupported(finding) => std::mem::take(&mut finding.hint),
            _ => String::new(),
        }
    }

    /// Returns the same error with other texts: `change` receives each path and each part of the message.
    pub(crate) fn map_texts(self, change: &dyn Fn(&str) -> String) -> Self {
        let path = |path: PathBuf| path.to_str().map(|text| PathBuf::from(change(text))).unwrap_or(path);
        let finding = |found: Box<Finding>| {
            let Finding { file, subject, expected, found, hint } = *found;
            let [subject, expected, found, hint] = [subject, expected, found, hint].map(|text| change(&text));
            Box::new(Finding { file: path(file), subject, expected, found, hint })
        };
        match self {
            Error::Io { path: place, action, error } => Error::Io { path: path(place), action, error },
            Error::Format(found) => Error::Format(finding(found)),
            Error::Mismatch(found) => Error::Mismatch(finding(found)),
            Error::Setting(found) => Error::Setting(finding(found)),
            Error::Unsupported(found) => Error::Unsupported(finding(found)),
            Error::NotFinite(found) => Error::NotFinite(finding(found)),
            other => other,
        }
    }
}

/// The longest quoted text in a message, in characters. The limits keep a message readable on one line, because names
/// in files can have any length.
const MAX_QUOTED: usize = 80;
/// The longest path that is shown in full, in characters. Paths can come from files, too.
const MAX_PATH: usize = 1000;
/// The longest part of a message, in characters.
const MAX_PART: usize = 400;
/// The longest found part, in characters. It may be about several rows.
const MAX_FOUND: usize = 640;
/// The longest expected part, in characters. It may list everything that is available.
const MAX_EXPECTED: usize = 1600;

/// A path on one line, with control characters escaped.
struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&cut(&one_line(&self.0.to_string_lossy()), MAX_PATH))
    }
}

/// Returns `text` with control characters escaped as in Rust and JSON.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() || is_unseen(c) {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

/// Returns whether a character is invisible but changes how others are shown: line ends, writing direction, zero-width
/// spaces.
fn is_unseen(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Prepares a part of a message: one line, quotes of at most [`MAX_QUOTED`] characters, at most [`MAX_PART`] characters
/// in total.
fn part(text: &str) -> String {
    bounded(text, MAX_PART)
}

/// Does the same as [`part`] with another length limit.
fn bounded(text: &str, max: usize) -> String {
    let text = one_line(text);
    if text.len() <= MAX_QUOTED {
        return text;
    }
    let mut short = String::new();
    let mut rest = text.as_str();
    while let Some(start) = rest.find('"') {
        let (before, quote) = rest.split_at(start + 1);
        short.push_str(before);
        let end = end_of_quote(quote);
        short.push_str(&cut(&quote[..end], MAX_QUOTED));
        rest = &quote[end..];
        // Copy the closing quote.
        short.extend(rest.chars().take(1));
        rest = rest.get(1..).unwrap_or_default();
    }
    short.push_str(rest);
    cut(&short, max)
}

/// Returns the index at which the quoted text at the start of `quote` ends.
fn end_of_quote(quote: &str) -> usize {
    let mut escaped = false;
    for (i, c) in quote.char_indices() {
        match c {
            '"' if !escaped => return i,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    quote.len()
}

/// Returns the first `max` characters of `text`, followed by "..." if there are more.
fn cut(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// One finding: file, subject, expected, found, and what to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file (or folder) in which it was found.
    pub file: PathBuf,
    /// The tensor, key or field concerned; empty if the whole file is.
    pub subject: String,
    /// The expected value; empty if no value is right.
    pub expected: String,
    /// The value that was found instead.
    pub found: String,
    /// A suggestion for the user; empty if there is none.
    pub hint: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = |subject: &str| if self.file.as_os_str().is_empty() && !subject.is_empty() { "" } else { ": " };
        write!(f, "{}", Shown(&self.file))?;
        if !self.subject.is_empty() {
            write!(f, "{}{}", before(&self.subject), part(&self.subject))?;
        }
        match (self.expected.is_empty(), self.found.is_empty()) {
            (false, false) => {
                let found = bounded(&self.found, MAX_FOUND);
                write!(f, ": expected {}, found {found}", bounded(&self.expected, MAX_EXPECTED))?
            }
            (false, true) => write!(f, ": expected {}", bounded(&self.expected, MAX_EXPECTED))?,
            (true, false) => write!(f, ": {}", bounded(&self.found, MAX_FOUND))?,
            (true, true) => {}
        }
        if !self.hint.is_empty() {
            write!(f, "; {}", part(&self.hint))?;
        }
        Ok(())
    }
}

impl Finding {
    /// Makes a finding in `file` about `subject`. The methods below complete it.
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

    /// Sets what was found instead.
    pub fn found(mut self, what: impl fmt::Display) -> Self {
        self.found = what.to_string();
        self
    }

    /// Sets what the user can try.
    pub fn hint(mut self, what: impl fmt::Display) -> Self {
        self.hint = what.to_string();
        self
    }

    /// Makes it [`Error::Format`]: the file breaks the rules of its format.
    pub fn format(self) -> Error {
        Error::Format(Box::new(self))
    }

    /// Makes it [`Error::Mismatch`]: inputs don't fit each other.
    pub fn mismatch(self) -> Error {
        Error::Mismatch(Box::new(self))
    }

    /// Makes it [`Error::Setting`]: a setting has an invalid value.
    pub fn setting(self) -> Error {
        Error::Setting(Box::new(self))
    }

    /// Adds a hint with the entry of `known` that `text` was probably meant to be, if there is one.
    pub fn did_you_mean(self, text: &str, known: &[&str]) -> Self {
        match nearest(text, known) {
            Some(near) => self.hint(format_args!("did you mean {near}?")),
            None => self,
        }
    }

    /// Makes it [`Error::Unsupported`]: this version can't do it.
    pub fn unsupported(self) -> Error {
        Error::Unsupported(Box::new(self))
    }

    /// Makes it [`Error::NotFinite`]: a number is a NaN or an infinity.
    pub fn not_finite(self) -> Error {
        Error::NotFinite(Box::new(self))
    }
}

/// `1 row`, `2 rows`: a number of things.
pub fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Returns the entry of `known` that is most similar to `text`, ignoring case; `None` if none is similar enough.
pub fn nearest<'a>(text: &str, known: &[&'a str]) -> Option<&'a str> {
    let text = text.to_lowercase().replace('-', "_");
    // Names are short; a long text is not a misspelling of one.
    let most = (text.chars().count() / 3).min(3);
    let distance = |known: &str| distance(&text, &known.to_lowercase().replace('-', "_"));
    let near = known.iter().map(|known| (distance(known), *known)).filter(|(far, _)| *far <= most);
    near.min_by_key(|(far, _)| *far).filter(|_| text.len() <= 64).map(|(_, known)| known)
}

/// Returns the edit distance: how many characters must be inserted, deleted or changed to turn one text into the other.
pub(crate) fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.chars().take(128).enumerate() {
        let mut corner = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in other.iter().enumerate() {
            let changed = corner + usize::from(a != *b);
            corner = row[j + 1];
            row[j + 1] = changed.min(corner + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

/// Attaches a path and an action to an I/O result.
pub(crate) trait IoContext<T> {
    /// Turns the error into [`Error::Io`].
    fn at(self, path: impl AsRef<Path>, action: &'static str) -> Result<T>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at(self, path: impl AsRef<Path>, action: &'static str) -> Result<T> {
        self.map_err(|error| Error::Io { path: path.as_ref().to_owned(), action, error })
    }
}

/// Rejects a git-lfs pointer: a clone without git-lfs has a text of three lines instead of the content.
pub(crate) fn no_lfs_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if !bytes.starts_with(b"version https://git-lfs.github.com/spec/") {
        return Ok(());
    }
    let finding = Finding::new(path, "").expected("the file itself").found("a pointer of git-lfs to it");
    Err(finding.hint("`git lfs pull` in its folder fetches it").format())
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn names_from_outside_are_cut_and_escaped() {
        let long = "x".repeat(1 << 20);
        let error = Finding::new("a\nb", format!("tensor {long:?}")).expected("one").found(&long).format().to_string();
        assert!(error.starts_with("a\\nb: tensor \"xxx"), "{}", &error[..40]);
        assert!(error.contains(&format!("{}...\": expected one", "x".repeat(80))), "{error}");
        assert!(error.len() < 840, "{}", error.len());
        let error = Finding::new("f", "key").found("\u{1b}[31mred\u{7}").format().to_string();
        assert_eq!(error, "f: key: \\u{1b}[31mred\\u{7}");
        let error = Finding::new("f", "\u{202e}gnp").expected(format_args!("data/{long}")).format().to_string();
        assert!(error.starts_with("f: \\u{202e}gnp: expected data/xxx"), "{}", &error[..40]);
        assert!(error.len() < 1700, "{}", error.len());
        let error = Finding::new(&long, "").found("nothing").format().to_string();
        assert!(error.len() < 1100 && error.ends_with("...: nothing"), "{}", error.len());
        // Escaped quotes inside a quoted text don't end it.
        let quoted = format!("tensor {:?}", "\"".repeat(50));
        assert!(part(&quoted).ends_with("...\""), "{}", part(&quoted));
    }

    #[test]
    fn the_systems_error_is_said_once() {
        let failed = std::fs::File::open("/nowhere/at/all").at("/nowhere/at/all", "open").unwrap_err();
        assert_eq!(failed.to_string().matches("os error").count(), 1);
        assert!(failed.source().is_none());
    }

    #[test]
    fn a_finding_without_a_file_begins_with_its_subject() {
        let error = Finding::new("", "density").expected("a number").found("none").mismatch().to_string();
        assert_eq!(error, "density: expected a number, found none");
    }
}
