//! Prints as JSON what is in a model, a file of tensors, a GGUF, an adapter or a bank:
//! `cargo run --example inspect -- PATH`.

use std::path::Path;

use atombank::convert::Opening;
use atombank::report::Report;

fn main() -> atombank::Result<()> {
    let Some(path) = std::env::args().nth(1) else {
        eprintln!("usage: inspect PATH");
        std::process::exit(2);
    };
    let report = Report::of(Path::new(&path), Opening::default())?;
    println!("{}", serde_json::to_string_pretty(&report).expect("a report is plain data"));
    Ok(())
}
