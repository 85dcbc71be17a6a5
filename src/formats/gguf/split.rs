//! Lays out a model over several files: which tensors and keys go into which shard.
//!
//! Reference: llama.cpp `gguf-py/gguf/gguf_writer.py` (`add_tensor_info`, `add_shard_kv_data`,
//! `format_shard_names`), which `convert_hf_to_gguf.py` splits with.

use std::collections::HashSet;
use std::ops::Range;
use std::path::PathBuf;

use super::endian::ByteOrder;
use super::writer::one_file;
use super::{ALIGNMENT_KEY, Metadata, SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, shard_suffix};
use crate::error::{Finding, Result};
use crate::plan::{Layout, Place, PlannedTensor};

/// Limits after which a new shard begins, and the byte order. Without limits, a model isn't split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SplitLimits {
    /// The most tensors in one shard.
    pub max_tensors: Option<usize>,
    /// The most bytes of tensors in one shard, not counting padding and header. A larger tensor
    /// gets its own shard.
    pub max_bytes: Option<u64>,
    /// Whether the first shard holds only the keys, so that these can be downloaded separately.
    pub no_tensor_first: bool,
    /// Whether the files are big-endian.
    pub big_endian: bool,
}

/// Lays out `metadata` and `tensors`, in their order, over as many files as `limits` require:
/// `{stem}.gguf` if one is enough, `{stem}-00001-of-00003.gguf` and so on otherwise.
///
/// The first shard has all keys. The others have only `split.no`, `split.count` and
/// `split.tensors.count`, and `general.alignment` if the model has it.
///
/// # Errors
/// As [`super::layout`]; [`crate::Error::Mismatch`] for limits of 0 and for more than 65535 shards.
pub fn split_layout(metadata: &Metadata, tensors: &[PlannedTensor], stem: &str, limits: SplitLimits) -> Result<Layout> {
    let whole = PathBuf::from(format!("{stem}.gguf"));
    if limits.max_tensors == Some(0) || limits.max_bytes == Some(0) {
        let finding = Finding::new(&whole, "limit of a shard").expected("a number above 0");
        return Err(finding.found(0).mismatch());
    }
    let order = if limits.big_endian { ByteOrder::Big } else { ByteOrder::Little };
    let ranges = shards(tensors, limits);
    if ranges.len() == 1 {
        let (file, offsets) = one_file(metadata, tensors, whole, order)?;
        return Ok(Layout { files: vec![file], places: places(0, offsets).collect(), recode: order.recode() });
    }
    let mut names = HashSet::with_capacity(tensors.len());
    if let Some(tensor) = tensors.iter().find(|tensor| !names.insert(&tensor.name)) {
        let finding = Finding::new(metadata.file(), format!("tensor {:?}", tensor.name));
        return Err(finding.expected("each name once").found("it twice").format());
    }
    let (Ok(count), Ok(total)) = (u16::try_from(ranges.len()), i32::try_from(tensors.len())) else {
        return Err(Finding::new(&whole, "shards")
            .expected(format_args!("at most {}", u16::MAX))
            .found(ranges.len())
            .hint("allow more tensors or bytes in each shard")
            .mismatch());
    };
    let mut alone = Metadata::new(metadata.file());
    if let Some(alignment) = metadata.get(ALIGNMENT_KEY) {
        alone.insert(ALIGNMENT_KEY, alignment.clone());
    }
    let mut layout = Layout {
        files: Vec::with_capacity(ranges.len()),
        places: Vec::with_capacity(tensors.len()),
        recode: order.recode(),
    };
    for (no, range) in (0..count).zip(ranges) {
        let mut keys = if no == 0 { metadata.clone() } else { alone.clone() };
        keys.insert(SPLIT_NO, no);
        keys.insert(SPLIT_COUNT, count);
        keys.insert(SPLIT_TENSORS, total);
        let name = PathBuf::from(format!("{stem}{}", shard_suffix(no.into(), count.into())));
        let (file, offsets) = one_file(&keys, &tensors[range], name, order)?;
        layout.places.extend(places(layout.files.len(), offsets));
        layout.files.push(file);
    }
    Ok(layout)
}

fn places(file: usize, offsets: Vec<u64>) -> impl Iterator<Item = Place> {
    offsets.into_iter().map(move |offset| Place { file, offset })
}

/// The tensors of each shard. No shard is empty, except a first one that has only keys.
fn shards(tensors: &[PlannedTensor], limits: SplitLimits) -> Vec<Range<usize>> {
    let mut done = Vec::new();
    if limits.no_tensor_first {
        done.push(0..0);
    }
    let mut start = 0;
    let mut filled = 0u64;
    for (i, tensor) in tensors.iter().enumerate() {
        let bytes = tensor.byte_len();
        let full = limits.max_tensors.is_some_and(|most| i - start >= most)
            || limits.max_bytes.is_some_and(|most| filled.saturating_add(bytes) > most);
        if full && i > start {
            done.push(start..i);
            start = i;
            filled = 0;
        }
        filled = filled.saturating_add(bytes);
    }
    done.push(start..tensors.len());
    done
}

#[cfg(test)]
mod tests;
