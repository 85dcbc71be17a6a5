//! Output to stdout and stderr: results, which end silently if their reader has gone, and errors, with the names of
//! options.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stdout};
use std::process::{ExitCode, exit};

use atombank::Error;
use clap::{Command, CommandFactory};

/// Prints a line to stdout like the standard library's macro. If the reader has gone, as `head` does, the program ends
/// silently.
macro_rules! println {
    ($($line:tt)*) => { crate::cli::print::line(format_args!($($line)*)) };
}

pub(crate) fn line(line: Arguments) {
    let mut out = stdout().lock();
    if let Err(error) = writeln!(out, "{line}") {
        if error.kind() == ErrorKind::BrokenPipe {
            exit(0);
        }
        eprintln!("error: cannot write to stdout: {error}");
        exit(1);
    }
}

/// Prints an error on stderr. A setting that is invalid whatever the input is a usage error, with exit code 2 as in
/// clap.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let options = options();
    let (text, usage) = match error.downcast_ref::<Error>() {
        Some(Error::Setting(finding)) => {
            let mut finding = finding.clone();
            let field = finding.subject.find([':', ' ']).unwrap_or(finding.subject.len());
            if let Some(option) = option(&finding.subject[..field], &options) {
                finding.subject.replace_range(..field, &option);
            }
            let usage = finding.file.as_os_str().is_empty();
            (with_options(&finding.to_string(), &options), usage)
        }
        Some(error @ (Error::Exists(_) | Error::Interrupted { .. })) => {
            (with_options(&error.to_string(), &options), false)
        }
        Some(Error::Format(finding) | Error::Mismatch(finding) | Error::Unsupported(finding)) => {
            let text = finding.to_string();
            // Text from files stays as it is; only the hint can name options.
            match text.strip_suffix(finding.hint.as_str()).filter(|_| !finding.hint.is_empty()) {
                Some(start) => (format!("{start}{}", with_options(&finding.hint, &options)), false),
                None => (text, false),
            }
        }
        _ => (format!("{error:#}"), false),
    };
    eprintln!("error: {text}");
    if usage { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// The long options of all commands.
pub(crate) fn options() -> Vec<String> {
    fn of(command: &Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned);
        own.chain(command.get_subcommands().flat_map(of)).collect()
    }
    of(&super::Arguments::command())
}

/// Settings whose options have other names.
const RENAMED: [(&str, &str); 4] =
    [("prompts", "prompt"), ("chunk_size", "ctx"), ("verify=false", "no-verify"), ("others_as", "as")];

/// Functions of the library with the names of their commands; functions in `jobs` have the same names.
const CALLS: [(&str, &str); 2] = [("imatrix::measure", "imatrix"), ("report::Report", "inspect")];

/// The option for a setting: `split_max_size` is `--split-max-size`.
fn option(field: &str, options: &[String]) -> Option<String> {
    let renamed = RENAMED.iter().find(|(name, _)| *name == field).map(|(_, option)| *option);
    let name = renamed.unwrap_or(field).replace('_', "-");
    options.contains(&name).then(|| format!("--{name}"))
}

/// The command for a function of the library: `jobs::bake` is `atombank bake`.
fn command(call: &str) -> Option<String> {
    let known = CALLS.iter().find(|(name, _)| *name == call).map(|(_, command)| *command);
    known.or_else(|| call.strip_prefix("jobs::")).map(|command| format!("atombank {command}"))
}

/// `text` with settings in backticks replaced by options, and functions of the library by commands.
pub(crate) fn with_options(text: &str, options: &[String]) -> String {
    let parts: Vec<&str> = text.split('`').collect();
    let mut out = String::new();
    let mut at = 0;
    while at < parts.len() {
        out.push_str(parts[at]);
        match parts.get(at + 1).filter(|_| at + 2 < parts.len()) {
            Some(quoted) => {
                match option(quoted, options).or_else(|| command(quoted)) {
                    Some(option) => out.push_str(&option),
                    None => out.extend(["`", quoted, "`"]),
                }
                at += 2;
            }
            None => {
                parts[at + 1..].iter().for_each(|part| out.extend(["`", part]));
                break;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_options() {
        let options = options();
        let shown = |text: &str| with_options(text, &options);
        assert_eq!(shown("`shard_size` splits folders"), "--shard-size splits folders");
        assert_eq!(shown("a `type`, or `speed`, or `"), "a --type, or `speed`, or `");
        assert_eq!(shown("nothing"), "nothing");
        assert_eq!(shown("`jobs::bake` with `to` lora, `imatrix`"), "atombank bake with --to lora, --imatrix");
        assert_eq!(shown("`imatrix::measure` or `report::Report`"), "atombank imatrix or atombank inspect");
        assert_eq!(shown("pass `verify=false`, `prompts`"), "pass --no-verify, --prompt");
        assert_eq!(option("split_max_tensors", &options).unwrap(), "--split-max-tensors");
        assert_eq!(option("architectures", &options), None);
    }
}
