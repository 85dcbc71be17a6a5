//! What goes to stdout. A reader who has gone, as `head` goes, ends the program without a word.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};
use std::process::exit;

/// Prints `what` and the end of the line.
pub(crate) fn println(what: impl Display) {
    let mut out = stdout().lock();
    if let Err(error) = writeln!(out, "{what}").and_then(|()| out.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            exit(0);
        }
        eprintln!("error: cannot write to stdout: {error}");
        exit(1);
    }
}
