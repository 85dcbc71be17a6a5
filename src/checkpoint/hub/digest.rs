//! Checks a content against the hash in its ETag. For large files the ETag is the SHA-256; for all others it is the
//! SHA-1 of the file as a git blob. Some mirrors give the SHA-1 of the file itself.

use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

/// A hash that is being computed, and its expected value.
pub(super) struct Digest {
    expected: String,
    state: State,
}

enum State {
    Sha256(Sha256),
    /// Two SHA-1 hashes: as a git blob, if the length is known beforehand, and of the file alone.
    Sha1 {
        git: Option<Sha1>,
        plain: Sha1,
    },
    /// The ETag is not a hash.
    None,
}

/// The result of the check.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Right,
    /// The ETag says nothing about the content.
    Unknown,
    Wrong {
        kind: &'static str,
        found: String,
    },
}

impl Digest {
    /// Creates the digest for a content of `size` bytes with this ETag.
    pub(super) fn new(etag: &str, size: Option<u64>) -> Self {
        let is_hash = etag.bytes().all(|b| b.is_ascii_hexdigit());
        let state = match etag.len() {
            64 if is_hash => State::Sha256(Sha256::new()),
            40 if is_hash => State::Sha1 { git: size.map(git_start), plain: Sha1::new() },
            _ => State::None,
        };
        Self { expected: etag.to_ascii_lowercase(), state }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            State::Sha256(hash) => hash.update(bytes),
            State::Sha1 { git, plain } => {
                git.iter_mut().for_each(|git| git.update(bytes));
                plain.update(bytes);
            }
            State::None => {}
        }
    }

    /// Adds everything in `reader`.
    pub(super) fn read(&mut self, reader: &mut dyn Read) -> io::Result<()> {
        each_piece(reader, &mut |bytes| self.update(bytes))
    }

    /// Compares the hash with the ETag. If the length wasn't known beforehand, the git hash needs a second pass over
    /// the content, which is in the file at `path`.
    pub(super) fn verdict(self, path: &Path) -> io::Result<Verdict> {
        let (kind, found) = match self.state {
            State::None => return Ok(Verdict::Unknown),
            State::Sha256(hash) => ("sha256", hex(&hash.finalize())),
            State::Sha1 { git, plain } => {
                let git = match git {
                    Some(git) => git,
                    None => {
                        let mut file = std::fs::File::open(path)?;
                        let mut git = git_start(file.metadata()?.len());
                        each_piece(&mut file, &mut |bytes| git.update(bytes))?;
                        git
                    }
                };
                if hex(&plain.finalize()) == self.expected {
                    return Ok(Verdict::Right);
                }
                ("SHA-1 as a blob of git", hex(&git.finalize()))
            }
        };
        Ok(if found == self.expected { Verdict::Right } else { Verdict::Wrong { kind, found } })
    }
}

/// Passes everything in `reader` to `take`, piece by piece.
fn each_piece(reader: &mut dyn Read, take: &mut dyn FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => take(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Starts the SHA-1 of a git blob with the blob's header.
fn git_start(size: u64) -> Sha1 {
    Sha1::new_with_prefix(format!("blob {size}\0"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etags_are_the_hashes_of_git_and_of_large_files() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "abc").unwrap();
        let verdict = |etag: &str, size| {
            let mut digest = Digest::new(etag, size);
            digest.update(b"a");
            digest.update(b"bc");
            digest.verdict(file.path()).unwrap()
        };
        // echo -n abc | git hash-object --stdin, sha1sum, sha256sum
        for (etag, sizes) in [
            ("f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f", [Some(3), None]),
            ("a9993e364706816aba3e25717850c26c9cd0d89d", [Some(3), None]),
            ("BA7816BF8F01CFEA414140DE5DAE2223B00361A396177A9CB410FF61F20015AD", [Some(3), None]),
        ] {
            sizes.iter().for_each(|size| assert_eq!(verdict(etag, *size), Verdict::Right, "{etag}"));
        }
        assert_eq!(verdict("abc", Some(3)), Verdict::Unknown);
        let wrong = verdict(&"0".repeat(40), None);
        let found = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f".to_owned();
        assert_eq!(wrong, Verdict::Wrong { kind: "SHA-1 as a blob of git", found });
        assert!(matches!(verdict(&"0".repeat(64), Some(3)), Verdict::Wrong { kind: "sha256", .. }));
    }
}
