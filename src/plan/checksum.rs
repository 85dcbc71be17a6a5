//! Checksums of written bytes. The headers of a zip hold the CRC-32 of data that follows them, so
//! the executor fills the sums in after the data is written.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rayon::prelude::*;

use crate::error::{IoContext, Result};

/// How many bytes one task reads back.
const CHUNK_BYTES: u64 = 1 << 20;

/// A CRC-32 (the one of zip and gzip) over part of a file, and the places where it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checksum {
    /// The bytes that are summed. They must not contain the place of a checksum.
    pub over: Range<u64>,
    /// Offsets of the sum. Each takes four little-endian bytes.
    pub at: Vec<u64>,
}

/// Reads back the ranges in parallel and writes their sums.
pub(super) fn fill_checksums(file: &File, path: &Path, checksums: &[Checksum]) -> Result<()> {
    for checksum in checksums {
        let sum = crc32(file, &checksum.over).at(path, "read back")?;
        for offset in &checksum.at {
            file.write_all_at(&sum.to_le_bytes(), *offset).at(path, "write")?;
        }
    }
    Ok(())
}

/// The CRC-32 of a range: chunks are summed in parallel and their sums combined in order.
fn crc32(file: &File, over: &Range<u64>) -> std::io::Result<u32> {
    let chunks = over.end.saturating_sub(over.start).div_ceil(CHUNK_BYTES);
    let sum = (0..chunks)
        .into_par_iter()
        .map_init(Vec::new, |buffer, i| {
            let start = over.start + i * CHUNK_BYTES;
            buffer.resize((over.end - start).min(CHUNK_BYTES) as usize, 0);
            file.read_exact_at(buffer, start)?;
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(buffer);
            Ok::<_, std::io::Error>(hasher)
        })
        .try_reduce(crc32fast::Hasher::new, |mut left, right| {
            left.combine(&right);
            Ok(left)
        })?;
    Ok(sum.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_chunks_join_to_the_sum_of_the_whole() {
        let bytes: Vec<u8> = (0..5 * CHUNK_BYTES / 2 + 7).map(|i| (i.wrapping_mul(i) >> 3) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        for range in [0..bytes.len() as u64, 3..CHUNK_BYTES + 3, 5..6, 9..9] {
            let expected = crc32fast::hash(&bytes[range.start as usize..range.end as usize]);
            assert_eq!(crc32(file.as_file(), &range).unwrap(), expected, "{range:?}");
        }
        let past = 0..bytes.len() as u64 + 1;
        assert!(crc32(file.as_file(), &past).is_err(), "a range past the file's end");
    }
}
