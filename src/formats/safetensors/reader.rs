//! Reading: the header is checked once, completely; rows are slices of the memory map.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::{FORMAT, MAX_HEADER_BYTES};
use crate::dtype::DType;
use crate::error::{Error, Finding, Result};
use crate::json;
use crate::source::{MappedFile, Source, TensorInfo, show_shape};

/// The header's only entry that isn't a tensor.
const METADATA: &str = "__metadata__";

/// An open safetensors file.
pub struct SafetensorsFile {
    file: MappedFile,
    tensors: Vec<TensorInfo>,
    ranges: Vec<Range<usize>>,
    /// For every tensor, the first with the same bytes: others are second names, which stand in the metadata.
    first: Vec<usize>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Maps `path` and checks its header: every tensor is inside the file and has the size of its type and shape,
    /// tensors don't overlap, every byte belongs to a tensor, and no name occurs twice.
    ///
    /// Names of tensors that share a storage with another stand in the metadata, as `{name: other}`
    /// (`safetensors.torch.save_model`). They are tensors like any others, and follow after them.
    ///
    /// # Errors
    /// [`Error::Io`], or [`Error::Format`] naming the file and the tensor.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let bytes = file.bytes();
        let bad = |expected: &dyn fmt::Display, found: &dyn fmt::Display| {
            Finding::new(path, "safetensors header").expected(expected).found(found).format()
        };
        let (length, rest) = bytes
            .split_first_chunk::<8>()
            .ok_or_else(|| bad(&"at least 8 bytes", &bytes.len()).with_hint("is the download complete?"))?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER_BYTES || length > rest.len() as u64 {
            let limit = MAX_HEADER_BYTES.min(rest.len() as u64);
            return Err(bad(&format_args!("a length of at most {limit} bytes"), &length)
                .with_hint("is the download complete, and is it a safetensors file?"));
        }
        let (header, data) = rest.split_at(length as usize);
        let header: Header =
            serde_json::from_slice(header).map_err(|e| bad(&"a JSON object of tensors", &json::plain(&e)))?;
        let mut tensors = Vec::with_capacity(header.tensors.len());
        let mut ranges = Vec::with_capacity(header.tensors.len());
        let mut names = HashSet::with_capacity(header.tensors.len());
        for (name, raw) in header.tensors {
            let (info, range) = check(path, name, &raw, data.len())?;
            if !names.insert(info.name.clone()) {
                let finding = Finding::new(path, format!("tensor {:?}", info.name));
                return Err(finding.expected("each name once").found("it twice").format());
            }
            tensors.push(info);
            ranges.push(range);
        }
        no_gap_or_overlap(path, &tensors, &ranges, data.len())?;
        let start = 8 + length as usize;
        for range in &mut ranges {
            *range = range.start + start..range.end + start;
        }
        let mut metadata = header.metadata;
        let mut first: Vec<usize> = (0..tensors.len()).collect();
        let places: HashMap<String, usize> =
            tensors.iter().enumerate().map(|(place, info)| (info.name.clone(), place)).collect();
        metadata.retain(|name, text| match places.get(text) {
            Some(&place) if name != FORMAT && !places.contains_key(name) => {
                tensors.push(TensorInfo { name: name.clone(), ..tensors[place].clone() });
                ranges.push(ranges[place].clone());
                first.push(place);
                false
            }
            _ => true,
        });
        Ok(Self { file, tensors, ranges, first, metadata })
    }
}

impl Source for SafetensorsFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn text_metadata(&self) -> Option<&BTreeMap<String, String>> {
        Some(&self.metadata)
    }

    fn first_of_same(&self, index: usize) -> usize {
        self.first[index]
    }

    fn rows(&self, index: usize, rows: Range<usize>) -> Cow<'_, [u8]> {
        let bytes = self.file.values(self.ranges[index].clone());
        Cow::Borrowed(self.tensors[index].slice(bytes, rows))
    }

    fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }

    fn check_values(&self) -> Result<()> {
        self.file.check_values()
    }
}

/// Type, shape and range of one tensor, checked against each other and the file's length.
fn check(path: &Path, name: String, raw: &RawInfo, data_len: usize) -> Result<(TensorInfo, Range<usize>)> {
    let subject = || Finding::new(path, format!("tensor {name:?}"));
    let dtype =
        DType::from_safetensors(&raw.dtype).ok_or_else(|| match UNREAD_TYPES.contains(&raw.dtype.as_str()) {
            true => subject().expected("a type this version reads").found(&raw.dtype).unsupported(),
            false => subject().expected("a type of safetensors").found(format_args!("{:?}", raw.dtype)).format(),
        })?;
    let (start, end) = raw.data_offsets;
    let elems = raw.shape.iter().try_fold(1u64, |product, &d| product.checked_mul(d as u64));
    let needed = elems.and_then(|elems| dtype.bytes_of(elems, 1));
    let here = end.checked_sub(start).filter(|_| end <= data_len);
    match (needed, here) {
        (Some(needed), Some(here)) if needed == here as u64 => {
            Ok((TensorInfo { name, dtype, shape: raw.shape.clone() }, start..end))
        }
        (Some(needed), Some(here)) => Err(subject()
            .expected(format_args!("{needed} bytes for {dtype} {}", show_shape(&raw.shape)))
            .found(format_args!("{here} bytes"))
            .format()),
        (None, _) => Err(subject()
            .expected("a size below 2^64 bytes")
            .found(format_args!("shape {}", show_shape(&raw.shape)))
            .format()),
        (_, None) => Err(subject()
            .expected(format_args!("offsets inside the {data_len} bytes of data"))
            .found(format_args!("[{start}, {end}]"))
            .hint("the file is cut short or damaged; fetch it again")
            .format()),
    }
}

/// Checks that tensors fill the data without gaps, as the format requires, so that nothing can hide between them.
fn no_gap_or_overlap(path: &Path, tensors: &[TensorInfo], ranges: &[Range<usize>], data_len: usize) -> Result<()> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|&i| (ranges[i].start, ranges[i].end));
    let mut end = 0;
    for i in order {
        if ranges[i].start != end {
            return Err(Finding::new(path, format!("tensor {:?}", tensors[i].name))
                .expected(format_args!("data from offset {end}, where the tensor before it ends"))
                .found(format_args!("offset {}", ranges[i].start))
                .format());
        }
        end = ranges[i].end;
    }
    if end != data_len {
        return Err(Finding::new(path, "tensor data")
            .expected(format_args!("{end} bytes, as the header says"))
            .found(format_args!("{data_len} bytes"))
            .format());
    }
    Ok(())
}

/// Types of the format that this crate can't read: several elements in a byte, and AMD's own floats.
const UNREAD_TYPES: [&str; 3] = ["F4", "F6_E2M3", "F6_E3M2"];

/// One tensor as the header describes it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInfo {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The header as written: tensors in the file's order, including repeated names, so that these can be refused (in a
/// map, the last one would win).
struct Header {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, RawInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let mut header = Header { metadata: BTreeMap::new(), tensors: Vec::new() };
                let mut seen = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == METADATA {
                        if std::mem::replace(&mut seen, true) {
                            return Err(M::Error::duplicate_field(METADATA));
                        }
                        header.metadata = map.next_value().map_err(|e| named(METADATA, e))?;
                    } else {
                        let info = map.next_value().map_err(|e| named(&name, e))?;
                        header.tensors.push((name, info));
                    }
                }
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// Adds to the error the name of the header's entry with the wrong JSON.
fn named<E: serde::de::Error>(name: &str, error: E) -> E {
    E::custom(format_args!("in {name:?}: {error}"))
}

impl Error {
    /// Sets the hint of an error that has a finding.
    fn with_hint(mut self, hint: &str) -> Self {
        if let Error::Format(finding) = &mut self {
            finding.hint = hint.to_owned();
        }
        self
    }
}

#[cfg(test)]
mod tests;
