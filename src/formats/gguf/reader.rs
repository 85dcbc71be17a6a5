//! Reading: the header is checked once, completely; rows are slices of the memory map.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use super::cursor::Cursor;
use super::endian::{swap, swapped_fields};
use super::{
    Array, MAGIC, MAX_DIMS, MAX_NAME_BYTES, Metadata, SPLIT_COUNT, VERSION, Value, ValueType, alignment_of,
    removed_type,
};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::source::{MappedFile, Source, TensorInfo, show_shape};

/// The fewest bytes of a key and value: a length, a one-byte key, a type, and a one-byte value.
const MIN_ENTRY_BYTES: u64 = 8 + 1 + 4 + 1;

/// The fewest bytes of a tensor's description: a one-byte name and no dimension.
const MIN_TENSOR_BYTES: u64 = 8 + 1 + 4 + 4 + 8;

/// An open GGUF file.
pub struct GgufFile {
    file: MappedFile,
    version: u32,
    big_endian: bool,
    alignment: u64,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    ranges: Vec<Range<usize>>,
}

/// Keys and tensors from the header of a file. The tensors' data need not exist.
#[derive(Debug, Clone)]
pub struct GgufHeader {
    /// The file's keys and values.
    pub metadata: Metadata,
    /// Its tensors, in order.
    pub tensors: Vec<TensorInfo>,
}

impl GgufHeader {
    /// Reads the header of the file at `path`. Anything after it may be missing.
    ///
    /// # Errors
    /// As [`GgufFile::open`] for the header; [`crate::Error::Mismatch`] for a shard, which has only some of a model's
    /// tensors.
    pub fn read(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let header = read_header(&mut Cursor::new(path, file.bytes()))?;
        if header.metadata.get(SPLIT_COUNT).and_then(Value::as_unsigned).is_some_and(|count| count > 1) {
            let finding = header.metadata.finding(SPLIT_COUNT).expected("the header of a whole model");
            return Err(finding.found("the header of one shard").hint("fetch all shards, with their data").mismatch());
        }
        let missing = i64::MAX as u64;
        place(path, &header.tensors, &header.offsets, header.end, alignment_of(&header.metadata)?, missing)?;
        Ok(Self { metadata: header.metadata, tensors: header.tensors })
    }
}

/// The content of a header.
struct Header {
    version: u32,
    big_endian: bool,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    /// Tensor offsets, from the start of the data.
    offsets: Vec<u64>,
    /// The offset at which the header ends.
    end: u64,
}

/// Where the header ends that `bytes`, the beginning of the file at `path`, begin with; `None` where they end before it.
///
/// # Errors
/// As [`GgufFile::open`] for the header.
#[cfg_attr(not(feature = "hub"), allow(dead_code, reason = "only the hub gives files in parts"))]
pub(crate) fn header_end(path: &Path, bytes: &[u8]) -> Result<Option<u64>> {
    let mut cursor = Cursor::new(path, bytes);
    match read_header(&mut cursor) {
        Ok(header) => Ok(Some(header.end)),
        Err(_) if cursor.has_run_out() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the keys and values of `bytes`, a file without tensors that messages call `name`.
///
/// # Errors
/// As [`GgufFile::open`] for the header.
pub(crate) fn metadata_of(name: &Path, bytes: &[u8]) -> Result<Metadata> {
    Ok(read_header(&mut Cursor::new(name, bytes))?.metadata)
}

fn read_header(cursor: &mut Cursor<'_>) -> Result<Header> {
    let path = cursor.path;
    let version = read_version(cursor)?;
    let tensor_count = cursor.count("tensor count", MIN_TENSOR_BYTES)?;
    let key_count = cursor.count("key count", MIN_ENTRY_BYTES)?;
    let metadata = read_metadata(cursor, key_count)?;
    let mut tensors = Vec::with_capacity(tensor_count);
    let mut offsets = Vec::with_capacity(tensor_count);
    let mut names = HashSet::with_capacity(tensor_count);
    for number in 0..tensor_count {
        let (info, offset) = read_tensor(cursor, number)?;
        if !names.insert(info.name.clone()) {
            return Err(tensor_finding(path, &info.name).expected("each name once").found("it twice").format());
        }
        tensors.push(info);
        offsets.push(offset);
    }
    Ok(Header { version, big_endian: cursor.big_endian, metadata, tensors, offsets, end: cursor.at() })
}

impl GgufFile {
    /// Maps `path` and checks its header by ggml's rules: no repeated names, known types, rows of whole blocks, every
    /// tensor aligned and directly after the one before it, and all of them inside the file.
    ///
    /// Bytes after the last tensor are ignored: files may be padded to the alignment.
    ///
    /// # Errors
    /// [`crate::Error::Io`]; [`crate::Error::Format`] naming the file and the key or tensor;
    /// [`crate::Error::Unsupported`] for version 1, later versions, removed types and, in big-endian files, types whose
    /// byte order isn't known.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let Header { version, big_endian, metadata, tensors, offsets, end } =
            read_header(&mut Cursor::new(path, file.bytes()))?;
        let alignment = alignment_of(&metadata)?;
        let ranges = place(path, &tensors, &offsets, end, alignment, file.bytes().len() as u64)?;
        Ok(Self { file, version, big_endian, alignment, metadata, tensors, ranges })
    }

    /// The version of the format: 2 or 3.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether the file is big-endian. Metadata and rows are converted to the usual byte order; [`GgufFile::range`]
    /// gives the position of the file's unconverted bytes.
    pub fn big_endian(&self) -> bool {
        self.big_endian
    }

    /// The alignment of tensor data, in bytes.
    pub fn alignment(&self) -> u64 {
        self.alignment
    }

    /// The file's keys and values.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The position of tensor number `index`, in bytes from the file's start.
    ///
    /// # Panics
    /// If `index` is not below the number of tensors.
    pub fn range(&self, index: usize) -> Range<usize> {
        self.ranges[index].clone()
    }
}

impl Source for GgufFile {
    fn path(&self) -> &Path {
        self.file.path()
    }

    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn rows(&self, index: usize, rows: Range<usize>) -> Cow<'_, [u8]> {
        let info = &self.tensors[index];
        let bytes = info.slice(self.file.values(self.ranges[index].clone()), rows);
        match self.big_endian {
            true => swapped(info.dtype, bytes),
            false => Cow::Borrowed(bytes),
        }
    }

    fn check_unchanged(&self) -> Result<()> {
        self.file.check_unchanged()
    }

    fn check_values(&self) -> Result<()> {
        self.file.check_values()
    }
}

/// Reads the magic number and the version.
fn read_version(cursor: &mut Cursor) -> Result<u32> {
    let finding = |path| Finding::new(path, "GGUF header");
    let magic = cursor.take(4, "GGUF header")?;
    if magic != MAGIC {
        return Err(finding(cursor.path)
            .expected("the magic \"GGUF\"")
            .found(format_args!("\"{}\"", magic.escape_ascii()))
            .hint("is the download complete, and is it a GGUF file?")
            .format());
    }
    let mut version = cursor.u32("GGUF header")?;
    // In the other byte order, the low half of a small number is zero.
    if version != 0 && version & 0xffff == 0 {
        cursor.big_endian = true;
        version = version.swap_bytes();
    }
    match version {
        2 | VERSION => Ok(version),
        v => {
            let order = if cursor.big_endian { ", big-endian" } else { "" };
            let found = format_args!("version {v}{order}").to_string();
            Err(finding(cursor.path).expected(format_args!("version 2 or {VERSION}")).found(found).unsupported())
        }
    }
}

/// Reads `count` keys with their values.
fn read_metadata(cursor: &mut Cursor, count: usize) -> Result<Metadata> {
    let mut metadata = Metadata::new(cursor.path);
    for number in 0..count {
        let subject = format!("key {number}");
        let key = cursor.string(&subject)?;
        let Ok(key) = std::str::from_utf8(key) else {
            let found = format!("\"{}\"", key.escape_ascii());
            return Err(Finding::new(cursor.path, subject).expected("a UTF-8 name").found(found).format());
        };
        if key.is_empty() {
            return Err(Finding::new(cursor.path, subject).expected("a name").found("an empty one").format());
        }
        let value = read_value(cursor, key)?;
        if metadata.insert(key, value).is_some() {
            return Err(metadata.finding(key).expected("each key once").found("it twice").format());
        }
    }
    Ok(metadata)
}

fn read_value(cursor: &mut Cursor, key: &str) -> Result<Value> {
    let subject = format!("key {key:?}");
    let subject = subject.as_str();
    Ok(match read_type(cursor, subject)? {
        ValueType::U8 => Value::U8(u8::from_le_bytes(cursor.array(subject)?)),
        ValueType::I8 => Value::I8(i8::from_le_bytes(cursor.array(subject)?)),
        ValueType::U16 => Value::U16(u16::from_le_bytes(cursor.array(subject)?)),
        ValueType::I16 => Value::I16(i16::from_le_bytes(cursor.array(subject)?)),
        ValueType::U32 => Value::U32(u32::from_le_bytes(cursor.array(subject)?)),
        ValueType::I32 => Value::I32(i32::from_le_bytes(cursor.array(subject)?)),
        ValueType::F32 => Value::F32(f32::from_le_bytes(cursor.array(subject)?)),
        ValueType::U64 => Value::U64(u64::from_le_bytes(cursor.array(subject)?)),
        ValueType::I64 => Value::I64(i64::from_le_bytes(cursor.array(subject)?)),
        ValueType::F64 => Value::F64(f64::from_le_bytes(cursor.array(subject)?)),
        ValueType::Bool => Value::Bool(cursor.bool(subject)?),
        ValueType::String => Value::String(cursor.string(subject)?.to_vec()),
        ValueType::Array => Value::Array(read_array(cursor, subject)?),
    })
}

fn read_array(cursor: &mut Cursor, subject: &str) -> Result<Array> {
    let kind = read_type(cursor, subject)?;
    Ok(match kind {
        ValueType::U8 => Array::U8(cursor.numbers(subject, u8::from_le_bytes)?),
        ValueType::I8 => Array::I8(cursor.numbers(subject, i8::from_le_bytes)?),
        ValueType::U16 => Array::U16(cursor.numbers(subject, u16::from_le_bytes)?),
        ValueType::I16 => Array::I16(cursor.numbers(subject, i16::from_le_bytes)?),
        ValueType::U32 => Array::U32(cursor.numbers(subject, u32::from_le_bytes)?),
        ValueType::I32 => Array::I32(cursor.numbers(subject, i32::from_le_bytes)?),
        ValueType::F32 => Array::F32(cursor.numbers(subject, f32::from_le_bytes)?),
        ValueType::U64 => Array::U64(cursor.numbers(subject, u64::from_le_bytes)?),
        ValueType::I64 => Array::I64(cursor.numbers(subject, i64::from_le_bytes)?),
        ValueType::F64 => Array::F64(cursor.numbers(subject, f64::from_le_bytes)?),
        ValueType::Bool => {
            let count = cursor.count(subject, 1)?;
            Array::Bool((0..count).map(|_| cursor.bool(subject)).collect::<Result<_>>()?)
        }
        ValueType::String => {
            let count = cursor.count(subject, 8)?;
            let mut strings = Vec::with_capacity(count);
            for _ in 0..count {
                strings.push(cursor.string(subject)?.to_vec());
            }
            Array::String(strings)
        }
        ValueType::Array => {
            return Err(Finding::new(cursor.path, subject)
                .expected("elements of a plain type")
                .found("arrays inside an array")
                .unsupported());
        }
    })
}

fn read_type(cursor: &mut Cursor, subject: &str) -> Result<ValueType> {
    let id = cursor.u32(subject)?;
    ValueType::from_id(id)
        .ok_or_else(|| Finding::new(cursor.path, subject).expected("a value type from 0 to 12").found(id).format())
}

/// Reads one tensor's description: name, type and shape, and its offset from the start of the data.
fn read_tensor(cursor: &mut Cursor, number: usize) -> Result<(TensorInfo, u64)> {
    let subject = format!("tensor {number}");
    let name = cursor.string(&subject)?;
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(Finding::new(cursor.path, subject)
            .expected(format_args!("a name of 1 to {MAX_NAME_BYTES} bytes"))
            .found(format_args!("{} bytes", name.len()))
            .format());
    }
    let Ok(name) = std::str::from_utf8(name) else {
        let found = format!("\"{}\"", name.escape_ascii());
        return Err(Finding::new(cursor.path, subject).expected("a UTF-8 name").found(found).format());
    };
    let path = cursor.path;
    let finding = || tensor_finding(path, name);
    let subject = format!("tensor {name:?}");
    let dims = cursor.u32(&subject)?;
    if dims as usize > MAX_DIMS {
        return Err(finding().expected(format_args!("at most {MAX_DIMS} dimensions")).found(dims).format());
    }
    let mut shape = Vec::with_capacity(MAX_DIMS);
    for _ in 0..dims {
        let dim = cursor.u64(&subject)?;
        if dim > i64::MAX as u64 {
            return Err(finding().expected("dimensions below 2^63").found(dim).format());
        }
        shape.push(dim as usize);
    }
    shape.reverse();
    let row_len = shape.last().map_or(1, |&dim| dim);
    let id = cursor.u32(&subject)?;
    let offset = cursor.u64(&subject)?;
    let dtype = DType::from_ggml_id(id).ok_or_else(|| match removed_type(id) {
        Some(name) => finding()
            .expected("a type of today's ggml")
            .found(format_args!("{name} (type {id}), which was removed"))
            .hint("convert the model again from its source")
            .unsupported(),
        None => finding().expected("a type this version knows").found(format_args!("type {id}")).unsupported(),
    })?;
    if !row_len.is_multiple_of(dtype.block_elems()) {
        return Err(finding()
            .expected(format_args!("rows that divide into blocks of {} for {dtype}", dtype.block_elems()))
            .found(format_args!("rows of {row_len}"))
            .format());
    }
    if cursor.big_endian && swapped_fields(dtype).is_none() {
        return Err(finding()
            .expected("a type whose byte order is known to differ in big-endian files")
            .found(dtype)
            .hint("convert or quantize the model on a little-endian machine")
            .unsupported());
    }
    Ok((TensorInfo { name: name.to_owned(), dtype, shape }, offset))
}

/// Every tensor's range in the file. ggml requires that each one starts at the padded end of the one before, so tensors
/// can't overlap and nothing can hide between them.
fn place(
    path: &Path,
    tensors: &[TensorInfo],
    offsets: &[u64],
    header_end: u64,
    alignment: u64,
    file_len: u64,
) -> Result<Vec<Range<usize>>> {
    let mut ranges = Vec::with_capacity(tensors.len());
    // Neither sum overflows: a file is below 2^63 bytes and an alignment below 2^32.
    let start = header_end.next_multiple_of(alignment);
    let mut next = 0u64;
    for (info, &offset) in tensors.iter().zip(offsets) {
        let finding = || tensor_finding(path, &info.name);
        if offset != next {
            return Err(finding()
                .expected(format_args!("offset {next}, the padded end of the tensor before it"))
                .found(format_args!("offset {offset}"))
                .format());
        }
        let shape = info.shape.as_slice();
        let row_len = shape.last().map_or(1, |&dim| dim as u64);
        let elems = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
        let bytes = elems
            .filter(|&elems| elems <= i64::MAX as u64)
            .and_then(|elems| info.dtype.bytes_of(elems, row_len))
            .filter(|&bytes| bytes <= i64::MAX as u64)
            .ok_or_else(|| {
                let found = format_args!("shape {}", show_shape(shape)).to_string();
                finding().expected("a size below 2^63 bytes").found(found).format()
            })?;
        let begin = start.checked_add(offset);
        let end = begin.and_then(|begin| begin.checked_add(bytes)).filter(|&end| end <= file_len);
        let (Some(begin), Some(end)) = (begin, end) else {
            let here = file_len.saturating_sub(begin.unwrap_or(u64::MAX));
            return Err(finding()
                .expected(format_args!("{bytes} bytes for {} {}", info.dtype, show_shape(shape)))
                .found(format_args!("{here} bytes until the file's end"))
                .hint("the file is cut short or damaged; fetch it again")
                .format());
        };
        ranges.push(begin as usize..end as usize);
        next = (end - start).next_multiple_of(alignment);
    }
    Ok(ranges)
}

/// Converts rows of a big-endian file to little-endian.
fn swapped(dtype: DType, bytes: &[u8]) -> Cow<'_, [u8]> {
    if swapped_fields(dtype).is_none_or(|fields| fields.is_nothing()) {
        return Cow::Borrowed(bytes);
    }
    let mut bytes = bytes.to_vec();
    swap(dtype, &mut bytes);
    Cow::Owned(bytes)
}

fn tensor_finding(path: &Path, name: &str) -> Finding {
    Finding::new(path, format!("tensor {name:?}"))
}

#[cfg(test)]
mod tests;
