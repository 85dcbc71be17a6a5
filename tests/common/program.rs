//! Runs the program in tests: takes arguments, returns what was printed.
#![allow(dead_code)] // Each test file uses only a part of it.

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

/// Runs a command that must succeed, and returns its stdout.
pub fn done(args: &[&str]) -> String {
    let out = atombank(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Copies the files of folder `from` to `to`, where tests may change them.
pub fn copy(from: &Path, to: &Path) -> PathBuf {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
    to.to_owned()
}

/// Exit codes for wrong input, and for wrong arguments.
pub const INPUT: i32 = 1;
pub const USAGE: i32 = 2;

/// Like [`refused`], for a command that must leave the folder `untouched` unchanged.
#[track_caller]
pub fn refused_leaving(exit: i32, untouched: &Path, args: &[&str]) -> String {
    let count = || fs::read_dir(untouched).unwrap().count();
    let before = count();
    let line = refused(exit, args);
    assert_eq!(count(), before, "{args:?}: something is left");
    line
}

/// The only line on stderr, apart from notes, of a command that ends with exit code `exit` and
/// prints nothing on stdout.
#[track_caller]
pub fn refused(exit: i32, args: &[&str]) -> String {
    let out = atombank(args);
    let stderr = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(exit), "{args:?}: {stderr}");
    assert_eq!(stderr.lines().filter(|line| !line.starts_with("note: ")).count(), 1, "{args:?}: {stderr}");
    assert!(out.stdout.is_empty(), "{args:?}");
    stderr
}
