//! What a file is, by its first bytes. Suffixes are only names: `.tar`, `.pkl`, `.model` or none can be any of these.

use std::fmt;
use std::io::Read;
use std::path::Path;

use super::safetensors::MAX_HEADER_BYTES;
use crate::error::{IoContext, Result};

/// The bytes that are looked at: those before the mark of a tar, and the mark.
const BEGINNING: usize = 262;
/// The beginning of torch's magic number in protocols 0 and 1.
const MAGIC_IN_DIGITS: &[u8] = b"L119547037146038801333356L";

/// Extensions of PyTorch files. What a file is follows from its first bytes; these are for files to be written, and for
/// files that begin like nothing known.
pub const PYTORCH_EXTENSIONS: [&str; 6] = ["bin", "pt", "pth", "ckpt", "tar", "pkl"];

/// A format of files with named tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// GGUF.
    Gguf,
    /// safetensors.
    Safetensors,
    /// What torch.save writes: a zip, or pickles; also the tar of torch before 0.2, which is refused by name.
    Pytorch,
}

impl FileKind {
    /// The kind of the file at `path`; `None` if it begins like none of them, or is no file.
    ///
    /// # Errors
    /// [`crate::Error::Io`] if it can't be read.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        // A pipe would wait for a writer; the readers refuse what is no plain file.
        let Ok(found) = std::fs::metadata(path) else { return Ok(None) };
        if !found.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(BEGINNING);
        let file = std::fs::File::open(path).at(path, "open")?;
        file.take(BEGINNING as u64).read_to_end(&mut bytes).at(path, "read")?;
        Ok(Self::by_bytes(&bytes))
    }

    /// The kind that the name of a file claims.
    pub(crate) fn by_name(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "gguf" => Some(Self::Gguf),
            "safetensors" => Some(Self::Safetensors),
            extension => PYTORCH_EXTENSIONS.contains(&extension).then_some(Self::Pytorch),
        }
    }

    /// A note for a file whose name claims another kind than its first bytes have, which it is read as.
    ///
    /// # Errors
    /// As [`FileKind::of`].
    pub(crate) fn note_of_name(path: &Path) -> Result<Option<String>> {
        let (found, claimed) = (Self::of(path)?, Self::by_name(path));
        let note = |kind: Self| format!("{}: by its first bytes it is {kind}, and is read as one", path.display());
        Ok(found.filter(|found| claimed.is_some_and(|claimed| claimed != *found)).map(note))
    }

    fn by_bytes(bytes: &[u8]) -> Option<Self> {
        let is_header = |length: [u8; 8]| u64::from_le_bytes(length) <= MAX_HEADER_BYTES;
        match bytes {
            // A header of JSON follows its length.
            [a, b, c, d, e, f, g, h, b'{', ..] if is_header([*a, *b, *c, *d, *e, *f, *g, *h]) => {
                Some(Self::Safetensors)
            }
            [b'G', b'G', b'U', b'F', ..] => Some(Self::Gguf),
            [b'P', b'K', 3, 4, ..] | [0x80, 0..=5, ..] => Some(Self::Pytorch),
            _ if bytes.starts_with(MAGIC_IN_DIGITS) || bytes.get(257..262) == Some(b"ustar") => Some(Self::Pytorch),
            _ => None,
        }
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gguf => "a GGUF",
            Self::Safetensors => "a safetensors file",
            Self::Pytorch => "a PyTorch file",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_what_a_file_is() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, kind) in [
            (&b"GGUF\x03\0\0\0"[..], Some(FileKind::Gguf)),
            (b"PK\x03\x04\0\0\x08\x08", Some(FileKind::Pytorch)),
            (b"\x80\x02\x8a\x0al\xfc", Some(FileKind::Pytorch)),
            (b"L119547037146038801333356L\n.", Some(FileKind::Pytorch)),
            (&tar, Some(FileKind::Pytorch)),
            (b"\x40\0\0\0\0\0\0\0{\"a\":", Some(FileKind::Safetensors)),
            // A length that begins like a pickle, or like a GGUF, which is too long for a header.
            (b"\x80\x02\0\0\0\0\0\0{}", Some(FileKind::Safetensors)),
            (b"GGUF\0\0\0\0{", Some(FileKind::Gguf)),
            (b"\x80\x77", None),
            (b"{\"a\": 1}", None),
            (b"", None),
        ] {
            assert_eq!(FileKind::by_bytes(bytes), kind, "{}", bytes.escape_ascii());
        }
    }
}
