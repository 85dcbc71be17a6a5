//! Output to stdout and stderr: results, which end silently if their reader has gone, and errors, with the names of
//! options.

use std::fmt::Arguments;
use std::io::{ErrorKind, Write, stdout};
use std::process::{ExitCode, exit};
use std::sync::OnceLock;

use atombank::Error;
use clap::{ArgMatches, Command, CommandFactory, FromArgMatches};

use super::Arguments as Parsed;

/// The name of the command that runs, with that of its subcommand: "bank build".
static RUNNING: OnceLock<String> = OnceLock::new();

/// Parses the arguments of the program. Messages then name the options of their command.
pub fn parse() -> Parsed {
    let matches = Parsed::command().get_matches();
    let _ = RUNNING.set(name_of(&matches));
    Parsed::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

fn name_of(matches: &ArgMatches) -> String {
    match matches.subcommand() {
        Some((name, inner)) => [name, &name_of(inner)].join(" ").trim_end().to_owned(),
        None => String::new(),
    }
}

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
                // A hint about other commands is none.
                Some(start) => match with_options(&format!("; {}", finding.hint), &options) {
                    hint if hint.is_empty() => (start.trim_end_matches("; ").to_owned(), false),
                    hint => (format!("{start}{}", hint.trim_start_matches("; ")), false),
                },
                None => (text, false),
            }
        }
        _ => (format!("{error:#}"), false),
    };
    eprintln!("error: {text}");
    if usage { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// The options that a message may name.
pub(crate) struct Options {
    /// The long options of the command that runs.
    own: Vec<String>,
    /// Those of all commands, by the commands' names.
    all: Vec<(String, Vec<String>)>,
}

/// The options that messages of the running command may name.
pub(crate) fn options() -> Options {
    Options::of(RUNNING.get().map_or("", String::as_str))
}

impl Options {
    fn of(running: &str) -> Self {
        let long = |command: &Command| -> Vec<String> {
            command.get_arguments().filter_map(|argument| argument.get_long()).map(str::to_owned).collect()
        };
        let root = Parsed::command();
        let mut own = long(&root);
        let mut at = &root;
        for part in running.split(' ').filter(|part| !part.is_empty()) {
            let Some(inner) = at.find_subcommand(part) else { break };
            own.extend(long(inner));
            at = inner;
        }
        let all = root.get_subcommands().map(|command| (command.get_name().to_owned(), long(command))).collect();
        Self { own, all }
    }

    fn has(&self, name: &str) -> bool {
        self.own.iter().any(|own| own == name)
    }

    fn is_of_another(&self, name: &str) -> bool {
        !self.has(name) && self.all.iter().any(|(_, options)| options.iter().any(|option| option == name))
    }

    /// Those of a message: one that names other commands may name their options, too.
    fn with_commands_in(&self, text: &str) -> Self {
        let named = |name: &str| text.contains(&format!("`jobs::{name}`"));
        let others = self.all.iter().filter(|(name, _)| named(name)).flat_map(|(_, options)| options.clone());
        Self { own: self.own.iter().cloned().chain(others).collect(), all: self.all.clone() }
    }
}

/// Settings whose options have other names.
const RENAMED: [(&str, &str); 5] = [
    ("mixture", "instruction"),
    ("prompts", "prompt"),
    ("chunk_size", "ctx"),
    ("verify=false", "no-verify"),
    ("others_as", "as"),
];

/// Functions of the library with the names of their commands; functions in `jobs` have the same names.
const CALLS: [(&str, &str); 3] =
    [("imatrix::measure", "imatrix"), ("report::Report", "inspect"), ("convert::families", "families")];

/// The option for a setting: `split_max_size` is `--split-max-size`.
fn option(field: &str, options: &Options) -> Option<String> {
    let name = option_name(field);
    options.has(&name).then(|| format!("--{name}"))
}

fn option_name(field: &str) -> String {
    let renamed = RENAMED.iter().find(|(name, _)| *name == field).map(|(_, option)| *option);
    renamed.unwrap_or(field).replace('_', "-")
}

/// `text` without the parts that name an option which only other commands have: a text in parentheses, the last of
/// several alternatives, or what follows a semicolon.
fn without_foreign(text: &str, options: &Options) -> String {
    let is_foreign =
        |part: &str| part.split('`').skip(1).step_by(2).any(|quoted| options.is_of_another(&option_name(quoted)));
    let mut parts: Vec<String> = text.split("; ").map(str::to_owned).collect();
    for part in &mut parts {
        while let Some(start) = part.rfind(" (").filter(|start| is_foreign(&part[*start..])) {
            let end = part[start..].find(')').map_or(part.len(), |end| start + end + 1);
            part.replace_range(start..end, "");
        }
        if let Some(or) = part.rfind(" or ").filter(|or| is_foreign(&part[*or..]) && !is_foreign(&part[..*or])) {
            part.truncate(or);
        }
    }
    let mut place = 0;
    parts.retain(|part| {
        place += 1;
        place == 1 || !is_foreign(part)
    });
    parts.join("; ")
}

/// The command for a function of the library: `jobs::bake` is `atombank bake`.
fn command(call: &str) -> Option<String> {
    let known = CALLS.iter().find(|(name, _)| *name == call).map(|(_, command)| *command);
    known.or_else(|| call.strip_prefix("jobs::")).map(|command| format!("atombank {command}"))
}

/// `text` with settings in backticks replaced by options, and functions of the library by commands.
pub(crate) fn with_options(text: &str, options: &Options) -> String {
    let options = &options.with_commands_in(text);
    let text = &without_foreign(text, options);
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
    fn options_of_other_commands_are_not_named() {
        let options = Options::of("merge");
        let shown = |text: &str| with_options(text, &options);
        assert_eq!(shown("; `generic` keeps names"), "");
        assert_eq!(shown("`jobs::convert` with `generic` keeps names"), "atombank convert with --generic keeps names");
        assert_eq!(shown("the model is taken (`others_as` chooses)"), "the model is taken (--as chooses)");
        assert_eq!(shown("written; `resume` continues; or `overwrite`"), "written; or --overwrite");
        let exists = "m: already exists; choose another name or pass `overwrite`";
        assert_eq!(shown(exists), "m: already exists; choose another name or pass --overwrite");
        assert_eq!(with_options(exists, &Options::of("train")), "m: already exists; choose another name");
        let options = Options::of("quantize");
        assert_eq!(with_options("the model is taken (`as` chooses)", &options), "the model is taken");
        assert_eq!(Options::of("bank build").own.iter().filter(|name| *name == "top-k").count(), 1);
    }

    #[test]
    fn settings_become_options() {
        let options = Options::of("bake");
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
