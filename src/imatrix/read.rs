//! The GGUF form: sums of squared activations and counts as pairs of tensors.
//!
//! Reference: llama.cpp `common/imatrix-loader.cpp` (`common_imatrix_load`),
//! `tools/quantize/quantize.cpp` (`load_imatrix`).

use std::collections::BTreeMap;
use std::path::Path;

use super::{
    CHUNK_COUNT, CHUNK_SIZE, COUNTS_SUFFIX, DATASETS, GENERAL_TYPE, ImportanceMatrix, SUMS_SUFFIX, check_weights,
    entry_finding, legacy, until_zero,
};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::formats::gguf::{GgufFile, Metadata};
use crate::source::{MappedFile, Source, show_shape};

/// The first bytes of every GGUF file. As a count in the older form, they would be more entries
/// than any file has room for.
const GGUF_MAGIC: &[u8] = b"GGUF";

/// Counts from here on don't fit into the reference's integers.
pub(super) const COUNT_LIMIT: f32 = 9_223_372_036_854_775_808.0;

/// Reads a file of either form.
pub(super) fn open(path: &Path) -> Result<ImportanceMatrix> {
    let file = MappedFile::open(path)?;
    if !file.bytes().starts_with(GGUF_MAGIC) {
        return legacy::read(path, file.bytes());
    }
    drop(file);
    of_gguf(&GgufFile::open(path)?)
}

fn of_gguf(file: &GgufFile) -> Result<ImportanceMatrix> {
    let metadata = file.metadata();
    check_kind(metadata)?;
    let path = file.path();
    let mut pairs: BTreeMap<&str, (Option<usize>, Option<usize>)> = BTreeMap::new();
    for (index, tensor) in file.tensors().iter().enumerate() {
        if let Some(name) = tensor.name.strip_suffix(SUMS_SUFFIX) {
            pairs.entry(name).or_default().0 = Some(index);
        } else if let Some(name) = tensor.name.strip_suffix(COUNTS_SUFFIX) {
            pairs.entry(name).or_default().1 = Some(index);
        }
    }
    if pairs.is_empty() {
        return Err(Finding::new(path, "tensors")
            .expected(format_args!("names that end in {SUMS_SUFFIX} and {COUNTS_SUFFIX}"))
            .found(format_args!("{} of other names", file.tensors().len()))
            .format());
    }
    let mut entries = BTreeMap::new();
    for (name, pair) in pairs {
        let finding = || entry_finding(path, name);
        if name.is_empty() {
            return Err(finding().expected("a tensor's name").found("none").format());
        }
        let (sums, counts) = match pair {
            (Some(sums), Some(counts)) => (sums, counts),
            (sums, _) => {
                let found = if sums.is_some() { "sums alone" } else { "counts alone" };
                return Err(finding().expected("sums and counts").found(found).format());
            }
        };
        entries.insert(name.to_owned(), means(file, name, sums, counts)?);
    }
    Ok(ImportanceMatrix {
        path: path.to_owned(),
        entries,
        datasets: metadata.strings(DATASETS)?.iter().map(|text| until_zero(text).to_vec()).collect(),
        chunk_count: chunk_count(metadata)?,
    })
}

/// Checks that the file is an importance matrix: by its type, if it has one, and by the three keys.
fn check_kind(metadata: &Metadata) -> Result<()> {
    let hint = "this isn't an importance matrix; llama-imatrix or `imatrix::measure` computes one";
    if let Some(kind) = metadata.get("general.type")
        && kind.as_text() != Some(GENERAL_TYPE)
    {
        let finding = metadata.finding("general.type").expected(format_args!("{GENERAL_TYPE:?}"));
        return Err(finding.found(kind).hint(hint).format());
    }
    match [DATASETS, CHUNK_COUNT, CHUNK_SIZE].into_iter().find(|key| metadata.get(key).is_none()) {
        Some(key) => Err(metadata.finding(key).expected("a value").found("none").hint(hint).format()),
        None => metadata.u32(CHUNK_SIZE).map(|_| ()),
    }
}

fn chunk_count(metadata: &Metadata) -> Result<u32> {
    let count = metadata.u32(CHUNK_COUNT)?;
    if i32::try_from(count).is_err() {
        return Err(metadata.finding(CHUNK_COUNT).expected("a number below 2^31").found(count).format());
    }
    Ok(count)
}

/// Sums divided by counts, matrix by matrix. It is 1 for a matrix with a count of 0, such as an
/// expert that was never selected.
fn means(file: &GgufFile, name: &str, sums: usize, counts: usize) -> Result<Vec<f32>> {
    let finding = || entry_finding(file.path(), name);
    let infos = [&file.tensors()[sums], &file.tensors()[counts]];
    if let Some(other) = infos.iter().find(|info| info.dtype != DType::F32) {
        return Err(finding().expected("sums and counts in F32").found(other.dtype).format());
    }
    let [elems, matrices] = infos.map(|info| info.elems());
    if elems == 0 || matrices == 0 || !elems.is_multiple_of(matrices) {
        return Err(finding()
            .expected("a count for each matrix, and as many sums for one as for the other")
            .found(format_args!("sums {}, counts {}", show_shape(&infos[0].shape), show_shape(&infos[1].shape)))
            .format());
    }
    let mut means = floats(&file.bytes(sums));
    let counts = floats(&file.bytes(counts));
    for (matrix, count) in means.chunks_exact_mut(elems / matrices).zip(counts) {
        if !(0.0..COUNT_LIMIT).contains(&count) {
            return Err(finding().expected("counts from 0 to 2^63").found(count).format());
        }
        match count.round() {
            0.0 => matrix.fill(1.0),
            count => matrix.iter_mut().for_each(|sum| *sum /= count),
        }
    }
    check_weights(file.path(), name, &means)?;
    Ok(means)
}

/// Decodes little-endian f32.
pub(super) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}
