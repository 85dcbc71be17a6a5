//! Files with a text on each line: instructions, prompts.

use std::path::Path;

use crate::error::{Finding, IoContext, Result};

/// The lines of the file at `path`, without empty ones and without the spaces around each.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Mismatch`] for a file without any.
pub fn lines_of(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).at(path, "read")?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<String> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
    if lines.is_empty() {
        return Err(Finding::new(path, "").expected("a text on each line").found("none").mismatch());
    }
    Ok(lines)
}
