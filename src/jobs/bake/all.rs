//! One output for each instruction of a file: how they are named.

use std::path::{Path, PathBuf};

use super::super::settings::setting;
use crate::bank::lines_of;
use crate::error::{Finding, Result};

/// What stands for the name of an instruction in the path of the outputs.
const NAME: &str = "{name}";

/// The longest name that is made of an instruction, in characters.
const LONGEST: usize = 60;

/// An instruction and the name of its output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name, which can be a part of a file's name.
    pub name: String,
    /// The instruction.
    pub instruction: String,
}

/// Reads the instructions of a file, one a line: `NAME<TAB>instruction`, or the instruction alone, whose letters and
/// digits then make the name: "Reverse the letters." is `reverse-the-letters`.
///
/// # Errors
/// [`crate::Error::Io`]; [`crate::Error::Mismatch`] for a name that occurs twice or can't be a file's, and for a file
/// without instructions.
pub fn named_instructions(path: &Path) -> Result<Vec<Named>> {
    let mut all: Vec<Named> = Vec::new();
    for line in lines_of(path)? {
        let (name, instruction) = match line.split_once('\t') {
            Some((name, instruction)) => (name.trim().to_owned(), instruction.trim().to_owned()),
            None => (slug(&line), line.clone()),
        };
        let finding = |expected: &str| Finding::new(path, format!("{line:?}")).expected(expected.to_owned());
        if instruction.is_empty() {
            return Err(finding("an instruction after the name").found("none").mismatch());
        }
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
            let finding = finding("a name for the output: letters and digits").found(format_args!("{name:?}"));
            return Err(finding.hint("write NAME<TAB>instruction").mismatch());
        }
        if let Some(other) = all.iter().find(|other| other.name == name) {
            let finding = finding("another name than that of the line before it with the same");
            return Err(finding
                .found(format_args!("{name:?} for {:?}, too", other.instruction))
                .hint("write NAME<TAB>instruction")
                .mismatch());
        }
        all.push(Named { name, instruction });
    }
    Ok(all)
}

/// The letters and digits of a text in lower case, with a dash in place of everything between them.
fn slug(text: &str) -> String {
    let mut name = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        match c.is_alphanumeric() {
            true => name.push(c),
            false if !name.is_empty() && !name.ends_with('-') => name.push('-'),
            false => {}
        }
    }
    let name: String = name.chars().take(LONGEST).collect();
    name.trim_end_matches('-').to_owned()
}

/// The path of the output called `name`: `pattern` with the name in place of `{name}`.
///
/// # Errors
/// [`crate::Error::Setting`] for a pattern without `{name}` in its last part.
pub fn named_output(pattern: &Path, name: &str) -> Result<PathBuf> {
    let last = pattern.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if !last.contains(NAME) {
        let finding = setting("output").expected("a path whose last part has {name} in it: models/{name}.gguf");
        return Err(finding.found(pattern.display()).setting());
    }
    Ok(pattern.with_file_name(last.replace(NAME, name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_named_by_their_lines() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let read = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            named_instructions(file.path())
        };
        let all = read("Reverse the letters.\nup\tUse capital letters.\n\n  Ärger & Öl!  \n").unwrap();
        let names: Vec<&str> = all.iter().map(|named| named.name.as_str()).collect();
        assert_eq!(names, ["reverse-the-letters", "up", "ärger-öl"]);
        assert_eq!(all[1].instruction, "Use capital letters.");
        assert_eq!(named_output(Path::new("a/b-{name}.gguf"), "up").unwrap(), Path::new("a/b-up.gguf"));
        for (text, expected) in [
            ("a\tx\na\ty", "\"a\\ty\": expected another name"),
            ("...", "expected a name for the output: letters and digits, found \"\""),
            ("../x\ty", "expected a name for the output: letters and digits, found \"../x\""),
            ("\n\n", "expected a text on each line, found none"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(named_output(Path::new("{name}/x.gguf"), "up").is_err());
    }
}
