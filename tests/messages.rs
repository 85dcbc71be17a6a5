//! Tests that messages of the library name fields, never options or commands: `src/cli` translates them.

use std::fs;
use std::path::{Path, PathBuf};

/// All Rust files below `folder`, except tests.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let tests = path.file_stem().is_some_and(|name| name == "tests");
        if path.is_dir() && !tests && path.file_name().is_some_and(|name| name != "cli") {
            sources(&path, found);
        } else if !tests && path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The string literals in `code` before its tests. Comments and character literals are skipped.
fn literals(code: &str) -> Vec<String> {
    let end = code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len());
    let code: Vec<char> = code[..end].chars().collect();
    let at = |i: usize| code.get(i).copied().unwrap_or('\0');
    let (mut found, mut i) = (Vec::new(), 0);
    while i < code.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < code.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            // Character literals: '"' and '\''; a lifetime has no closing quote.
            ('\'', '\\') => i += 3,
            ('\'', _) if at(i + 2) == '\'' => i += 2,
            ('r', '"' | '#') if !at(i.wrapping_sub(1)).is_alphanumeric() && at(i.wrapping_sub(1)) != '_' => {
                let marks = (i + 1..).take_while(|i| at(*i) == '#').count();
                if at(i + 1 + marks) == '"' {
                    let start = i + 2 + marks;
                    let closes = |i: &usize| at(*i) == '"' && (1..=marks).all(|mark| at(i + mark) == '#');
                    let end = (start..code.len()).find(closes).unwrap();
                    found.push(code[start..end].iter().collect());
                    i = end + marks;
                }
            }
            ('"', _) => {
                let (start, mut end) = (i + 1, i + 1);
                while at(end) != '"' {
                    end += if at(end) == '\\' { 2 } else { 1 };
                }
                found.push(code[start..end].iter().collect());
                i = end;
            }
            _ => {}
        }
        i += 1;
    }
    found
}

/// The option (such as --type) or command of this program that a text names, if any.
fn of_the_program(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split([' ', '\n', '(', '`', '"', '\\', ',']).collect();
    let option = |word: &&&str| word.strip_prefix("--").is_some_and(|name| name.starts_with(char::is_alphabetic));
    if let Some(option) = words.iter().find(option) {
        return Some((*option).to_string());
    }
    const COMMANDS: [&str; 13] = [
        "demo",
        "train",
        "bake",
        "bank",
        "merge",
        "extract",
        "route",
        "generate",
        "imatrix",
        "convert",
        "quantize",
        "inspect",
        "tokensurgeon",
    ];
    let command = |pair: &&[&str]| pair[0] == "atombank" && COMMANDS.contains(&pair[1]);
    words.windows(2).find(command).map(|pair| pair.join(" "))
}

#[test]
fn messages_of_the_library_name_no_options_and_no_commands() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 200, "{}", files.len());
    let mut texts = 0;
    let mut wrong = Vec::new();
    for file in files {
        let literals = literals(&fs::read_to_string(&file).unwrap());
        texts += literals.len();
        let named = |text: &String| Some((of_the_program(text)?, text.clone()));
        wrong.extend(
            literals.iter().filter_map(named).map(|(what, text)| format!("{}: {what}: {text}", file.display())),
        );
    }
    assert!(texts > 2000, "{texts}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn options_and_commands_are_seen_in_texts() {
    let code = "let a = '\"'; // \"--no\"\nf(\"pass --type\", r#\"a \"--b\"\"#, 'x', \"see `atombank bake`\", \"a \\\" --- b\");";
    let found = literals(code);
    assert_eq!(found, ["pass --type", "a \"--b\"", "see `atombank bake`", "a \\\" --- b"]);
    let named: Vec<Option<String>> = found.iter().map(|text| of_the_program(text)).collect();
    let texts = ["--type", "--b", "atombank bake"].map(|text| Some(text.to_owned()));
    assert_eq!(named, [&texts[..], &[None]].concat());
}
