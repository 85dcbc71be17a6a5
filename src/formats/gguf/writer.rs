//! Layout: the header's bytes and every tensor's offset, before any data is written.

use std::collections::HashSet;
use std::path::PathBuf;

use super::endian::{ByteOrder, swapped_fields};
use super::{Array, MAGIC, MAX_DIMS, MAX_NAME_BYTES, Metadata, VERSION, Value, alignment_of};
use crate::error::{Finding, Result};
use crate::plan::{FileLayout, Layout, Place, PlannedTensor};
use crate::source::show_shape;

/// Lays out one version 3 file that holds `metadata` and `tensors`, in their order.
///
/// Every tensor starts at a multiple of `general.alignment` (32 bytes without that key). The file's
/// end is padded to it too, as gguf-py and ggml do.
///
/// # Errors
/// [`crate::Error::Unsupported`] for a type that GGUF has no number for; [`crate::Error::Format`]
/// for what readers refuse: empty, repeated or long names, more than four dimensions, rows that
/// don't divide into blocks, an alignment that isn't a power of two.
pub fn layout(metadata: &Metadata, tensors: &[PlannedTensor]) -> Result<Layout> {
    let (file, offsets) = one_file(metadata, tensors, "model.gguf".into(), ByteOrder::Little)?;
    let places = offsets.into_iter().map(|offset| Place { file: 0, offset }).collect();
    Ok(Layout { files: vec![file], places, recode: None })
}

/// Lays out one file called `name`. Also returns the offset of each tensor.
pub(super) fn one_file(
    metadata: &Metadata,
    tensors: &[PlannedTensor],
    name: PathBuf,
    order: ByteOrder,
) -> Result<(FileLayout, Vec<u64>)> {
    let alignment = alignment_of(metadata)?;
    let mut head = Head { bytes: MAGIC.to_vec(), order };
    head.put(VERSION.to_le_bytes());
    head.put((tensors.len() as u64).to_le_bytes());
    head.put((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        if key.is_empty() {
            return Err(metadata.finding(key).expected("a name").found("none").format());
        }
        head.put_string(key.as_bytes());
        head.put_value(value);
    }
    let mut names = HashSet::with_capacity(tensors.len());
    let mut offsets = Vec::with_capacity(tensors.len());
    let mut offset = 0u64;
    for tensor in tensors {
        let finding = || Finding::new(metadata.file(), format!("tensor {:?}", tensor.name));
        if !names.insert(&tensor.name) {
            return Err(finding().expected("each name once").found("it twice").format());
        }
        if tensor.name.is_empty() || tensor.name.len() > MAX_NAME_BYTES {
            return Err(finding()
                .expected(format_args!("a name of 1 to {MAX_NAME_BYTES} bytes"))
                .found(format_args!("{} bytes", tensor.name.len()))
                .format());
        }
        let shape = tensor.shape.as_slice();
        if shape.len() > MAX_DIMS {
            return Err(finding()
                .expected(format_args!("at most {MAX_DIMS} dimensions"))
                .found(format_args!("shape {}", show_shape(shape)))
                .format());
        }
        let id = tensor
            .dtype
            .ggml_id()
            .ok_or_else(|| finding().expected("a type of GGUF").found(tensor.dtype).unsupported())?;
        if order == ByteOrder::Big && swapped_fields(tensor.dtype).is_none() {
            let finding = finding().expected("a type whose byte order is known, for a big-endian file");
            return Err(finding.found(tensor.dtype).unsupported());
        }
        head.put_string(tensor.name.as_bytes());
        head.put((shape.len() as u32).to_le_bytes());
        for dim in shape.iter().rev() {
            head.put((*dim as u64).to_le_bytes());
        }
        head.put(id.to_le_bytes());
        head.put(offset.to_le_bytes());
        offsets.push(offset);
        let elems = shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim as u64));
        let row_len = shape.last().map_or(1, |&dim| dim as u64);
        offset = elems
            .and_then(|elems| tensor.dtype.bytes_of(elems, row_len))
            .and_then(|bytes| offset.checked_add(bytes)?.checked_next_multiple_of(alignment))
            .filter(|&end| end <= i64::MAX as u64)
            .ok_or_else(|| {
                finding()
                    .expected(format_args!("rows of whole {} blocks and less than 2^63 bytes", tensor.dtype))
                    .found(format_args!("shape {}", show_shape(shape)))
                    .format()
            })?;
    }
    // The padding isn't part of `head`, because an alignment can be gigabytes; the file's length
    // includes it.
    let start = (head.bytes.len() as u64).next_multiple_of(alignment);
    for offset in &mut offsets {
        *offset += start;
    }
    Ok((FileLayout::new(name, head.bytes, start + offset), offsets))
}

/// The bytes of a header, in the making.
struct Head {
    bytes: Vec<u8>,
    order: ByteOrder,
}

impl Head {
    /// Appends a number, given by its bytes from the lowest to the highest.
    fn put<const WIDTH: usize>(&mut self, mut number: [u8; WIDTH]) {
        if self.order == ByteOrder::Big {
            number.reverse();
        }
        self.bytes.extend(number);
    }

    fn put_string(&mut self, bytes: &[u8]) {
        self.put((bytes.len() as u64).to_le_bytes());
        self.bytes.extend(bytes);
    }

    fn put_value(&mut self, value: &Value) {
        self.put(value.kind().id().to_le_bytes());
        match value {
            Value::U8(v) => self.put(v.to_le_bytes()),
            Value::I8(v) => self.put(v.to_le_bytes()),
            Value::U16(v) => self.put(v.to_le_bytes()),
            Value::I16(v) => self.put(v.to_le_bytes()),
            Value::U32(v) => self.put(v.to_le_bytes()),
            Value::I32(v) => self.put(v.to_le_bytes()),
            Value::F32(v) => self.put(v.to_le_bytes()),
            Value::Bool(v) => self.put([u8::from(*v)]),
            Value::String(v) => self.put_string(v),
            Value::Array(v) => self.put_array(v),
            Value::U64(v) => self.put(v.to_le_bytes()),
            Value::I64(v) => self.put(v.to_le_bytes()),
            Value::F64(v) => self.put(v.to_le_bytes()),
        }
    }

    fn put_array(&mut self, array: &Array) {
        self.put(array.kind().id().to_le_bytes());
        self.put((array.len() as u64).to_le_bytes());
        match array {
            Array::U8(v) => self.bytes.extend(v),
            Array::I8(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::U16(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::I16(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::U32(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::I32(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::F32(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::Bool(v) => self.bytes.extend(v.iter().map(|x| u8::from(*x))),
            Array::String(v) => v.iter().for_each(|s| self.put_string(s)),
            Array::U64(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::I64(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
            Array::F64(v) => v.iter().for_each(|x| self.put(x.to_le_bytes())),
        }
    }
}
