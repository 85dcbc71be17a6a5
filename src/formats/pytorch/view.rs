//! Views: a tensor's position in its storage, checked when the file is opened, and its rows in
//! order.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use super::pickle::{Storage, Tensor};
use super::storages::Place;
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::source::{TensorInfo, show_shape};

/// The most bytes of a tensor that repeats elements of a smaller storage. Real ones are masks and
/// position tables; a hostile file could describe a tensor of any size with a single byte.
const MAX_EXPANDED_BYTES: usize = 1 << 30;

/// The position of a tensor's elements. Every index is checked to be inside the storage.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct View {
    /// Whether the storage is in the inflated file.
    pub inflated: bool,
    /// The offset of the first element in bytes.
    pub start: usize,
    /// The distance between neighbours along each dimension, in bytes.
    strides: Vec<usize>,
    /// Whether the elements are in row-major order without gaps.
    dense: bool,
    /// The width of numbers whose bytes must be reversed; 1 if none.
    swap: usize,
}

impl View {
    /// Checks type, shape, strides and offset of tensor `name` against its storage.
    pub(super) fn check(
        path: &Path,
        name: String,
        tensor: &Tensor,
        storage: &Storage<'_>,
        place: &Place,
        big_endian: bool,
    ) -> Result<(TensorInfo, Self)> {
        let subject = || Finding::new(path, format!("tensor {name:?}"));
        let dtype = tensor
            .element
            .dtype
            .ok_or_else(|| subject().expected("a type this version reads").found(tensor.element.name).unsupported())?;
        let bytes = tensor.element.bytes;
        // Zeros count as ones, so that no product of some of the dimensions can overflow.
        let limit = isize::MAX as usize / bytes;
        let extent = tensor.shape.iter().try_fold(1usize, |n, d| n.checked_mul((*d).max(1)).filter(|n| *n <= limit));
        let extent = extent.ok_or_else(|| {
            let found = format!("shape {}", show_shape(&tensor.shape));
            subject().expected("a size below 2^63 bytes").found(found).format()
        })?;
        let empty = tensor.shape.contains(&0);
        // In the older form, a view is a part of a storage, within which offsets are counted.
        let whole = (place.size / storage.element.bytes) as u64;
        let (first, elems) = storage.view.unwrap_or((0, whole));
        let outside = |what: &str, last: String| {
            subject()
                .expected(format_args!("elements inside the {what} of storage {:?}", storage.key))
                .found(format_args!(
                    "offset {}, shape {}, strides {:?}: up to element {last}",
                    tensor.offset,
                    show_shape(&tensor.shape),
                    tensor.strides
                ))
                .format()
        };
        if first.checked_add(elems).is_none_or(|end| end > whole) {
            return Err(outside(&format!("{whole} elements"), format!("{first} and {elems} more")));
        }
        let room = (elems as usize).saturating_mul(storage.element.bytes) / bytes;
        let last = tensor.shape.iter().zip(&tensor.strides).try_fold(tensor.offset, |last, (d, stride)| {
            let steps = if empty { 0 } else { (*d as u64).saturating_sub(1) };
            steps.checked_mul(*stride)?.checked_add(last)
        });
        let last = last.ok_or_else(|| outside(&format!("{room} elements"), "2^64 or more".to_owned()))?;
        if last > room as u64 || (last == room as u64 && !empty) {
            return Err(outside(&format!("{room} elements"), last.to_string()));
        }
        if !empty && extent > room && extent * bytes > MAX_EXPANDED_BYTES {
            let found = format!("{} over a storage of {room} elements", show_shape(&tensor.shape));
            let expected = format!("at most {MAX_EXPANDED_BYTES} bytes where elements are repeated");
            return Err(subject().expected(expected).found(found).unsupported());
        }
        let offset = first as usize * storage.element.bytes + tensor.offset as usize * bytes;
        let start = if place.deflated.is_some() { offset } else { place.data.start + offset };
        // The stride of a dimension of one element is never used, so it can have any value.
        let strides = tensor.shape.iter().zip(&tensor.strides);
        let strides = strides.map(|(d, stride)| if *d > 1 && !empty { *stride as usize * bytes } else { 0 }).collect();
        let component = if dtype == DType::C64 { 4 } else { bytes };
        let mut view = Self {
            inflated: place.deflated.is_some(),
            start,
            strides,
            dense: false,
            swap: if big_endian { component } else { 1 },
        };
        view.dense = empty || view.is_dense(&tensor.shape, bytes);
        Ok((TensorInfo { name, dtype, shape: tensor.shape.clone() }, view))
    }

    /// The bytes of the tensor in its file, mapped or inflated, if its values fill a run of bytes there, and the order in which its
    /// dimensions stand in the run: with the first the slowest. A matrix that was transposed has [1, 0].
    pub(super) fn run(&self, info: &TensorInfo) -> Option<(Range<usize>, Vec<usize>)> {
        let mut order: Vec<usize> = (0..info.shape.len()).collect();
        if !self.dense {
            // Strides of dimensions of one element are never used, and are 0 here.
            order.sort_by_key(|dim| std::cmp::Reverse((info.shape[*dim] > 1).then_some(self.strides[*dim])));
            let mut expected = info.dtype.block_bytes();
            for &dim in order.iter().rev().filter(|dim| info.shape[**dim] > 1) {
                if self.strides[dim] != expected {
                    return None;
                }
                expected *= info.shape[dim];
            }
        }
        Some((self.start..self.start + info.elems() * info.dtype.block_bytes(), order))
    }

    /// The bytes from the tensor's first element to its last.
    pub(super) fn span(&self, info: &TensorInfo) -> Range<usize> {
        if info.shape.contains(&0) {
            return self.start..self.start;
        }
        let last: usize = info.shape.iter().zip(&self.strides).map(|(size, stride)| (size - 1) * stride).sum();
        self.start..self.start + last + info.dtype.block_bytes()
    }

    /// Whether the bytes of its numbers stand in the opposite order.
    pub(super) fn is_swapped(&self) -> bool {
        self.swap > 1
    }

    fn is_dense(&self, shape: &[usize], bytes: usize) -> bool {
        let mut expected = bytes;
        shape.iter().zip(&self.strides).rev().all(|(d, stride)| {
            let fits = *d <= 1 || *stride == expected;
            expected *= d;
            fits
        })
    }

    /// The bytes of rows `rows` in the mapped file, borrowed if the file has exactly these bytes.
    pub(super) fn rows<'a>(&self, info: &TensorInfo, file: &'a [u8], rows: Range<usize>) -> Cow<'a, [u8]> {
        let size = info.dtype.block_bytes();
        let (from, to) = (rows.start * info.row_len(), rows.end * info.row_len());
        let mut made = if from == to {
            return Cow::Borrowed(&[]);
        } else if self.dense {
            let bytes = &file[self.start + from * size..self.start + to * size];
            if self.swap == 1 {
                return Cow::Borrowed(bytes);
            }
            bytes.to_vec()
        } else {
            let mut out = Vec::with_capacity((to - from) * size);
            match size {
                1 => self.gather::<1>(&info.shape, file, from..to, &mut out),
                2 => self.gather::<2>(&info.shape, file, from..to, &mut out),
                4 => self.gather::<4>(&info.shape, file, from..to, &mut out),
                _ => self.gather::<8>(&info.shape, file, from..to, &mut out),
            }
            out
        };
        if self.swap > 1 {
            made.chunks_exact_mut(self.swap).for_each(<[u8]>::reverse);
        }
        Cow::Owned(made)
    }

    /// Appends elements `elems`, counted in row-major order, of `N` bytes each.
    fn gather<const N: usize>(&self, shape: &[usize], file: &[u8], elems: Range<usize>, out: &mut Vec<u8>) {
        let Some((width, leading)) = shape.split_last() else { return };
        let step = self.strides[leading.len()];
        let mut at = elems.start;
        while at < elems.end {
            // Find the start of a run along the last dimension: split the index from the innermost
            // dimension out.
            let (mut rest, column) = (at / width, at % width);
            let mut start = self.start + column * step;
            for (d, stride) in leading.iter().zip(&self.strides).rev() {
                start += rest % d * stride;
                rest /= d;
            }
            let count = (width - column).min(elems.end - at);
            if step == N {
                out.extend_from_slice(&file[start..start + count * N]);
            } else {
                for i in 0..count {
                    let place = start + i * step;
                    out.extend_from_slice(&file[place..place + N]);
                }
            }
            at += count;
        }
    }
}
