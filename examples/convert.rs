//! Converts a Hugging Face folder to a GGUF:
//! `cargo run --example convert -- MODEL OUT.gguf [TYPE]`.
//! TYPE is `f16`, `bf16`, `q8_0`, or a mixture of llama-quantize like `Q4_K_M`.

use atombank::jobs::{ConvertSettings, convert};

fn main() -> atombank::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(output)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: convert MODEL OUT.gguf [TYPE]");
        std::process::exit(2);
    };
    let mut settings = ConvertSettings::new(model, output);
    settings.output.r#type = arguments.next();
    let made = convert(&settings)?;
    for note in &made.notes {
        eprintln!("note: {note}");
    }
    let written = made.write(&settings.output.destination, &|_| ())?;
    println!("{}: {} tensors, {} bytes", written.path.display(), written.tensors, written.bytes);
    Ok(())
}
