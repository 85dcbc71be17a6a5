//! The vocabularies that tests read, here and inside the library.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The unpacked `fixtures/vocabs`, or a folder of other vocabularies, given by an environment
/// variable.
pub fn vocabularies() -> (Option<tempfile::TempDir>, Vec<PathBuf>) {
    let (held, folder) = match std::env::var_os("ATOMBANK_VOCABS") {
        Some(folder) => (None, PathBuf::from(folder)),
        None => {
            let unpacked = tempfile::tempdir().unwrap();
            for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/vocabs")).unwrap() {
                let path = entry.unwrap().path();
                if path.extension().is_some_and(|extension| extension == "zip") {
                    zip::ZipArchive::new(File::open(path).unwrap()).unwrap().extract(unpacked.path()).unwrap();
                }
            }
            let path = unpacked.path().to_owned();
            (Some(unpacked), path)
        }
    };
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> =
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "gguf")).collect();
    paths.sort();
    assert!(!paths.is_empty());
    (held, paths)
}
