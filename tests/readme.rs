//! Tests that README.md's commands run as written, one after the other, and print what it shows.
//!
//! The commands are the lines with `$` in its `console` blocks. The lines below a command must occur in its output in
//! the same order; a line `...` stands for any lines. Numbers aren't compared, because times differ between runs, and
//! results of training differ in the last digits between processors.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

/// A command, and its output in the document.
struct Shown {
    command: String,
    lines: Vec<String>,
}

/// The commands of every `console` block, in order.
fn shown(document: &str) -> Vec<Shown> {
    let mut all: Vec<Shown> = Vec::new();
    let mut within = false;
    let mut goes_on = false;
    for line in document.lines() {
        match line {
            "```console" => within = true,
            "```" => within = false,
            _ if !within => {}
            _ if goes_on => {
                let command = &mut all.last_mut().unwrap().command;
                *command = format!("{command}\n{line}");
                goes_on = line.ends_with('\\');
            }
            _ => match line.strip_prefix("$ ") {
                Some(command) => {
                    goes_on = command.ends_with('\\');
                    all.push(Shown { command: command.to_owned(), lines: Vec::new() });
                }
                None => all.last_mut().expect("a command before its output").lines.push(line.to_owned()),
            },
        }
    }
    all
}

/// `line` with every number as `0`, spaces as one, and atoms with their weights once: which ones follow the first depends
/// on the last bits of training, which differ between processors.
fn without_numbers(line: &str) -> String {
    let mut text = String::new();
    let mut in_number = false;
    for c in line.chars() {
        let digit = c.is_ascii_digit() || in_number && matches!(c, '.' | 'e' | '-');
        match (digit, in_number) {
            (true, false) => text.push('0'),
            (true, true) => {}
            (false, _) => text.push(c),
        }
        in_number = digit;
    }
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words.dedup_by(|word, before| *before == "0" && (*word == "#0" || *word == "0"));
    words.join(" ")
}

#[test]
fn commands_run_and_print_what_is_shown() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = Path::new(env!("CARGO_BIN_EXE_atombank"));
    let folder = tempfile::tempdir().unwrap();
    symlink(root.join("fixtures"), folder.path().join("fixtures")).unwrap();
    let path = std::env::var("PATH").unwrap_or_default();
    let path = format!("{}:{path}", program.parent().unwrap().display());
    let commands = shown(&fs::read_to_string(root.join("README.md")).unwrap());
    assert!(commands.len() > 10, "the commands are found");
    for Shown { command, lines } in commands {
        let output = Command::new("bash")
            .args(["-c", &format!("exec 2>&1\n{command}")])
            .current_dir(folder.path())
            .env("PATH", &path)
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "$ {command}\n{printed}");
        let mut left = printed.lines();
        for line in lines.iter().filter(|line| *line != "...") {
            let wanted = without_numbers(line);
            assert!(
                left.any(|printed| without_numbers(printed) == wanted),
                "$ {command}\nshows {line:?} where the program prints\n{printed}"
            );
        }
    }
}

#[test]
fn numbers_are_not_compared() {
    assert_eq!(without_numbers("block 0   #3 0.94  1.5e-3 s"), without_numbers("block 12 #1 0.06 2.25e-4 s"));
    assert_ne!(without_numbers("wrote a"), without_numbers("wrote b"));
}
