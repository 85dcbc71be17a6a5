//! The demo's folder: what is embedded in the program, and deleting the folder of an earlier demo.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use atombank::error::Finding;
use atombank::output::Destination;

/// The files of the example: fixtures/demo.
const FILES: [(&str, &[u8]); 10] = [
    ("base/config.json", include_bytes!("../../../fixtures/demo/base/config.json")),
    ("base/generation_config.json", include_bytes!("../../../fixtures/demo/base/generation_config.json")),
    ("base/model.safetensors", include_bytes!("../../../fixtures/demo/base/model.safetensors")),
    ("base/tokenizer.json", include_bytes!("../../../fixtures/demo/base/tokenizer.json")),
    ("base/tokenizer_config.json", include_bytes!("../../../fixtures/demo/base/tokenizer_config.json")),
    ("train.jsonl", include_bytes!("../../../fixtures/demo/train.jsonl")),
    ("heldout.jsonl", include_bytes!("../../../fixtures/demo/heldout.jsonl")),
    ("names-bank.toml", include_bytes!("../../../fixtures/demo/names-bank.toml")),
    ("names-lora.toml", include_bytes!("../../../fixtures/demo/names-lora.toml")),
    ("names-grow.toml", include_bytes!("../../../fixtures/demo/names-grow.toml")),
];

/// What the demo makes besides, by the beginnings of the names.
const MADE: [&str; 6] = ["base", "bank", "lora", "grown", "baked-", "names-"];

/// A folder that is deleted when it is dropped.
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Temporary {
    /// A name for a folder of this process, which isn't made yet.
    pub(crate) fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("atombank-{name}-{}", std::process::id())))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the example's files into a new folder.
pub(crate) fn unpack(dir: &Path) -> Result<()> {
    Destination::new(dir).check()?;
    fs::create_dir(dir).with_context(|| format!("{}: cannot create", dir.display()))?;
    fs::create_dir(dir.join("base")).with_context(|| format!("{}: cannot create", dir.join("base").display()))?;
    for (name, bytes) in FILES {
        fs::write(dir.join(name), bytes).with_context(|| format!("{}: cannot write", dir.join(name).display()))?;
    }
    Ok(())
}

/// Deletes the folder of an earlier demo, and no other: everything in it must have a name that a demo uses.
pub(super) fn remove_demo(dir: &Path) -> Result<()> {
    if dir.symlink_metadata().is_err() {
        return Ok(());
    }
    let other = |found: String| {
        let finding = Finding::new(dir, "").expected("the folder of a demo, to replace it").found(found);
        Err(finding.hint("delete it yourself, or choose another name").mismatch().into())
    };
    if dir.is_symlink() || !dir.is_dir() {
        return other("something else".to_owned());
    }
    // Those that demos of earlier versions have, too.
    if let Some((missing, _)) = FILES[..7].iter().find(|(name, _)| !dir.join(name).is_file()) {
        return other(format!("a folder without {missing}"));
    }
    for entry in fs::read_dir(dir).with_context(|| format!("{}: cannot read", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let known = MADE.iter().any(|start| name == *start || start.ends_with('-') && name.starts_with(start));
        let earlier = ["bank.toml", "lora.toml"].contains(&name.as_str());
        if !known && !earlier && !FILES.iter().any(|(file, _)| *file == name) {
            return other(format!("{name:?} in it"));
        }
    }
    fs::remove_dir_all(dir).with_context(|| format!("{}: cannot delete", dir.display()))
}
