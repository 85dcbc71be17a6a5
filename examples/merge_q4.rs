//! Merges an adapter into its base and writes a quantized GGUF, in one pass over the base:
//! `cargo run --example merge_q4 -- MODEL ADAPTER OUT.gguf`.

use atombank::jobs::{MergeSettings, merge};

fn main() -> atombank::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, adapter, output] = arguments.as_slice() else {
        eprintln!("usage: merge_q4 MODEL ADAPTER OUT.gguf");
        std::process::exit(2);
    };
    let mut settings = MergeSettings::new(model, [adapter], output);
    settings.output.r#type = Some("Q4_K_M".to_owned());
    let merged = merge(&settings, &|_| ())?;
    let written = merged.output.write(&settings.output.destination, &|_| ())?;
    println!("{}: {} tensors, {} bytes", written.path.display(), written.tensors, written.bytes);
    Ok(())
}
