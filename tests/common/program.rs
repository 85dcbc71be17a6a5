//! Running the program in tests: arguments in, what it printed out.
#![allow(dead_code)] // Each test file uses its own part.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

pub fn atombank(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_atombank")).args(args).output().unwrap()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What a command that succeeds prints on stdout.
pub fn done(args: &[&str]) -> String {
    let out = atombank(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// A copy of the files of folder `from` whose files tests may change.
pub fn copy(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to.to_owned()
}

/// Exit codes: what is wrong with the input, and what is wrong with the arguments alone.
pub const INPUT: i32 = 1;
pub const USAGE: i32 = 2;

/// As [`refused`], of a command that leaves folder `untouched` as it was.
#[track_caller]
pub fn refused_leaving(exit: i32, untouched: &Path, args: &[&str]) -> String {
    let count = || fs::read_dir(untouched).unwrap().count();
    let before = count();
    let line = refused(exit, args);
    assert_eq!(count(), before, "{args:?}: something is left");
    line
}

/// The one line on stderr, notes apart, of a command that ends with exit code `exit` and prints nothing on stdout.
#[track_caller]
pub fn refused(exit: i32, args: &[&str]) -> String {
    let out = atombank(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(exit), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().filter(|line| !line.starts_with("note: ")).count(), 1, "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?}");
    stderr
}
