//! Fixes an atom bank for one instruction and writes the result as plain weights:
//! `cargo run --example bake -- MODEL BANK INSTRUCTION OUT`.

use atombank::jobs::{BakeSettings, bake};

fn main() -> atombank::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, bank, instruction, output] = arguments.as_slice() else {
        eprintln!("usage: bake MODEL BANK INSTRUCTION OUT");
        std::process::exit(2);
    };
    let settings = BakeSettings::new(model, bank, instruction, output);
    let baked = bake(&settings)?;
    let written = baked.output.write(&settings.output.destination, &|_| ())?;
    println!("{}: {} tensors, {} bytes", written.path.display(), written.tensors, written.bytes);
    if let Some(agreement) = baked.parts.first().and_then(|part| part.verified) {
        println!("against the routed model: mean KL {:.1e}, top-1 agreement {:.3}", agreement.mean_kl, agreement.top1);
    }
    Ok(())
}
