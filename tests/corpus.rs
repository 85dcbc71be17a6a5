//! Replays the corpora of the fuzz targets: every file must give a value or an error, `ok-*` a
//! value, `bad-*` an error.

use std::fs;
use std::path::Path;

#[path = "fuzz/readers.rs"]
mod readers;

/// The smallest number of files in all corpora, so that a missing folder is noticed.
const AT_LEAST: usize = 292;

#[test]
fn every_file_of_every_corpus_is_read_or_refused() {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus");
    let mut replayed = 0;
    let mut wrong = Vec::new();
    for corpus in fs::read_dir(corpora).unwrap() {
        let corpus = corpus.unwrap().path();
        let name = corpus.file_name().unwrap().to_str().unwrap();
        let (_, reader) = readers::READERS
            .iter()
            .find(|(reader, _)| *reader == name)
            .unwrap_or_else(|| panic!("no reader for the corpus {name:?}: add it to tests/fuzz/readers.rs"));
        for input in fs::read_dir(&corpus).unwrap() {
            let input = input.unwrap().path();
            let result = reader(&fs::read(&input).unwrap());
            let kind = input.file_name().unwrap().to_str().unwrap();
            match result {
                Err(error) if kind.starts_with("ok-") => wrong.push(format!("{name}/{kind} is refused: {error}")),
                Ok(()) if kind.starts_with("bad-") => wrong.push(format!("{name}/{kind} is accepted")),
                _ => {}
            }
            replayed += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(replayed >= AT_LEAST, "{replayed} files");
}
