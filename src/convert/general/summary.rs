//! A summary of what a model or an adapter is for, in a sentence or two, from its card.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::card::{self, MAX_BYTES};
use crate::error::{IoContext, Result};
use crate::yaml::Node;

/// The summary in the README.md of `folder`: the `description` in its front matter, or else the first paragraph of
/// text. Titles, lists, tables, pictures, comments and unedited parts of Hugging Face's templates don't count as text.
/// Front matter that can't be read gets a note.
///
/// # Errors
/// [`crate::Error::Io`].
pub fn summary(folder: &Path, notes: &mut Vec<String>) -> Result<Option<String>> {
    let path = folder.join("README.md");
    if !path.is_file() {
        return Ok(None);
    }
    if let Some(Node::Text(text)) = card::load(folder, notes)?.get("description")
        && !text.trim().is_empty()
    {
        return Ok(Some(one_line(text)));
    }
    let mut bytes = Vec::new();
    File::open(&path).and_then(|file| file.take(MAX_BYTES).read_to_end(&mut bytes)).at(&path, "read")?;
    Ok(first_paragraph(&String::from_utf8_lossy(&bytes)))
}

/// Beginnings of sentences in the model card templates of Hugging Face and PEFT, which say nothing about the model.
const BOILERPLATE: [&str; 5] = [
    "This modelcard aims to be a base template",
    "Users (both direct and downstream) should be made aware",
    "Use the code below to get started",
    "Carbon emissions can be estimated",
    "More information needed",
];

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The first run of lines with running text, joined into one line.
fn first_paragraph(text: &str) -> Option<String> {
    let mut lines = text.lines().peekable();
    if lines.peek() == Some(&"---") {
        lines.next();
        // Skip the line of dashes that ends the front matter.
        lines.by_ref().find(|line| *line == "---");
    }
    let (mut paragraph, mut comment, mut code) = (Vec::new(), false, false);
    for line in lines.map(str::trim) {
        if line.starts_with("```") || line.starts_with("~~~") {
            code = !code;
        }
        comment |= line.starts_with("<!--");
        let is_text = !comment && !code && is_running_text(line);
        comment &= !line.contains("-->");
        match is_text {
            true => paragraph.push(line),
            false if paragraph.is_empty() => {}
            false => break,
        }
    }
    (!paragraph.is_empty()).then(|| one_line(&paragraph.join(" ")))
}

/// Whether a line begins like a sentence and isn't a placeholder of a template.
fn is_running_text(line: &str) -> bool {
    let marked = ["#", "-", "*", "+", ">", "|", "<", "!", "[!", "```", "~~~", "===", "---"];
    let of_template = |line: &str| {
        line.contains("[More Information Needed]") || BOILERPLATE.iter().any(|start| line.starts_with(start))
    };
    !line.is_empty() && !marked.iter().any(|mark| line.starts_with(mark)) && !of_template(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text of the card that PEFT saves with an adapter.
    const UNEDITED: &str = "---\nbase_model: some/base\nlibrary_name: peft\n---\n\n# Model Card for Model ID\n\n\
        <!-- Provide a quick summary of what the model is/does. -->\n\n\n\n## Model Details\n\n### Model Description\n\n\
        <!-- Provide a longer summary of what this model is. -->\n\n[More Information Needed]\n\n\
        - **Developed by:** [More Information Needed]\n\n### Direct Use\n\n[More Information Needed]\n\n\
        ### Recommendations\n\nUsers (both direct and downstream) should be made aware of the risks, biases and \
        limitations of the model. More information needed for further recommendations.\n\n\
        ## How to Get Started with the Model\n\nUse the code below to get started with the model.\n\n\
        [More Information Needed]\n\n## Environmental Impact\n\nCarbon emissions can be estimated using the \
        [Machine Learning Impact calculator](https://mlco2.github.io/impact#compute).\n\n\
        - **Hardware Type:** [More Information Needed]\n### Framework versions\n\n- PEFT 0.21.2";

    #[test]
    fn the_first_paragraph_is_running_text() {
        for (text, expected) in [
            ("Reverses words.", Some("Reverses words.")),
            ("# Title\n\n![picture](x.png)\n\nReverses\nwords.\n\nMore.", Some("Reverses words.")),
            ("---\nlicense: mit\n---\n# Title\nReverses words.\n- one\n", Some("Reverses words.")),
            ("<!-- a comment\nof two lines -->\n\n| a | b |\n\n```\ncode\n```\nText.", Some("Text.")),
            ("# Model\n<!-- Provide a summary. -->\n\n## Details\n- **By:** [More Information Needed]\n", None),
            ("[More Information Needed]\n", None),
            (UNEDITED, None),
            (&UNEDITED.replacen("[More Information Needed]", "Reverses words.", 1), Some("Reverses words.")),
            ("---\nlicense: mit\n", None),
            ("", None),
        ] {
            assert_eq!(first_paragraph(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn a_description_at_the_head_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let said = |text: &str| {
            std::fs::write(dir.path().join("README.md"), text).unwrap();
            let mut notes = Vec::new();
            (summary(dir.path(), &mut notes).unwrap(), notes.len())
        };
        assert_eq!(said("---\ndescription: Reverses\n  words.\n---\nText."), (Some("Reverses words.".into()), 0));
        assert_eq!(said("---\nlicense: mit\n---\nText."), (Some("Text.".into()), 0));
        assert_eq!(said("---\n- a list\n---\nText."), (Some("Text.".into()), 1));
        assert_eq!(summary(&dir.path().join("none"), &mut Vec::new()).unwrap(), None);
    }
}
