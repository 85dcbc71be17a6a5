//! Writing a file again with other values in some of its storages. Every other byte stays: the pickle, with settings and
//! optimizer, is never understood for this.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::PytorchFile;
use super::archive::is_archive;
use super::view::View;
use super::zip::{Sums, read_sums};
use crate::dtype::DType;
use crate::error::{Finding, Result};
use crate::plan::{Checksum, FileLayout, Layout, Place, PlannedTensor};
use crate::source::{Source, show_shape};

/// Reverses the bytes of numbers of this type, as files of big-endian machines have them.
fn reverse(dtype: DType, rows: &mut [u8]) {
    let width = if dtype == DType::C64 { 4 } else { dtype.block_bytes() };
    rows.chunks_exact_mut(width).for_each(<[u8]>::reverse);
}

impl PytorchFile {
    /// The order in which the dimensions of tensor `number` stand in the file: the values that are written there have to be
    /// in this order.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for values that don't fill a run of bytes: parts of a storage with others between
    /// them.
    pub(crate) fn stored_order(&self, number: usize) -> Result<Vec<usize>> {
        Ok(self.run_of(number)?.1)
    }

    /// The layout of this file with `tensors` in place of its tensors with the numbers `places`. Types and sizes are the
    /// same, and values are in the order in which they stand there. None is deflated: see [`PytorchFile::stored`].
    ///
    /// # Errors
    /// As [`PytorchFile::stored_order`]; [`crate::Error::Mismatch`] for two tensors that have bytes in common, and for other
    /// sizes.
    pub(crate) fn rewritten(&self, tensors: &[PlannedTensor], places: &[usize]) -> Result<Layout> {
        let (mut found, mut ranges) = (Vec::with_capacity(places.len()), Vec::with_capacity(places.len()));
        for (tensor, &number) in tensors.iter().zip(places) {
            let (own, (range, order)) = (&self.tensors[number], self.run_of(number)?);
            let shape: Vec<usize> = order.iter().map(|dim| own.shape[*dim]).collect();
            if (own.dtype, &shape) != (tensor.dtype, &tensor.shape) {
                return Err(Finding::new(self.path(), format!("tensor {:?}", own.name))
                    .expected(format_args!("{} {}", own.dtype, show_shape(&shape)))
                    .found(format_args!("{} {}", tensor.dtype, show_shape(&tensor.shape)))
                    .mismatch());
            }
            found.push(Place { file: 0, offset: range.start as u64 });
            ranges.push((range, number));
        }
        ranges.sort_by_key(|(range, _)| (range.start, range.end));
        for pair in ranges.windows(2) {
            let [(one, first), (other, second)] = pair else { continue };
            if other.start < one.end && !other.is_empty() {
                let [first, second] = [first, second].map(|number| &self.tensors[*number].name);
                return Err(Finding::new(self.path(), format!("tensor {second:?}"))
                    .expected(format_args!("bytes of its own, or all of those of {first:?}"))
                    .found("some in common, and new values for both")
                    .mismatch());
            }
        }
        let bytes = self.file.bytes();
        let mut file = FileLayout::new("", Vec::new(), bytes.len() as u64);
        file.copy_of = Some(self.path().to_owned());
        if is_archive(bytes) {
            file.checksums = self.checksums(&ranges)?;
        }
        let is_swapped = self.views.iter().any(View::is_swapped);
        let recode = is_swapped.then_some(reverse as fn(DType, &mut [u8]));
        Ok(Layout { files: vec![file], places: found, recode })
    }

    /// The names of the tensors that have bytes in common with those of the numbers `places`, without being names of the
    /// same storage: parts of one that is changed, or a whole of which a part is.
    pub(crate) fn overlapping(&self, places: &[usize]) -> Vec<&str> {
        let span = |number: usize| (self.views[number].inflated, self.views[number].span(&self.tensors[number]));
        let changed: HashSet<usize> = places.iter().map(|number| self.first_of_same(*number)).collect();
        let mut spans: Vec<(bool, Range<usize>)> = changed.iter().map(|number| span(*number)).collect();
        spans.sort_by_key(|(inflated, span)| (*inflated, span.start));
        let is_hit = |number: &usize| {
            let (inflated, own) = span(*number);
            let before = spans.partition_point(|(other, span)| (*other, span.start) < (inflated, own.end));
            // Those that are changed have no bytes in common, so that the last one before the end reaches furthest.
            let last = spans[..before].last().filter(|(other, _)| *other == inflated);
            !own.is_empty() && last.is_some_and(|(_, span)| span.end > own.start)
        };
        let others = (0..self.tensors.len()).filter(|number| !changed.contains(&self.first_of_same(*number)));
        others.filter(is_hit).map(|number| self.tensors[number].name.as_str()).collect()
    }

    /// The bytes of tensor `number`, and the order in which its dimensions stand there.
    fn run_of(&self, number: usize) -> Result<(Range<usize>, Vec<usize>)> {
        let own = &self.tensors[number];
        self.views[number].run(own).ok_or_else(|| {
            Finding::new(self.path(), format!("tensor {:?}", own.name))
                .expected("values that fill a run of bytes of the file, to be replaced there")
                .found("a part of a storage with others between")
                .hint("load the file and save it again with torch.save, or write a new one")
                .unsupported()
        })
    }

    /// The checksums of the entries in which a range lies, at all places where they stand.
    fn checksums(&self, ranges: &[(Range<usize>, usize)]) -> Result<Vec<Checksum>> {
        let entries = read_sums(self.path(), self.file.bytes())?;
        let starts: HashMap<usize, &Sums> = entries.iter().map(|entry| (entry.data.start, entry)).collect();
        let mut sorted: Vec<usize> = starts.keys().copied().collect();
        sorted.sort_unstable();
        let mut touched: Vec<usize> = Vec::new();
        for (range, _) in ranges.iter().filter(|(range, _)| !range.is_empty()) {
            let before = sorted.partition_point(|start| *start <= range.start);
            touched.extend(before.checked_sub(1).map(|place| sorted[place]));
        }
        touched.sort_unstable();
        touched.dedup();
        let sum = |entry: &&Sums| Checksum {
            over: entry.data.start as u64..entry.data.end as u64,
            at: entry.at.iter().map(|at| *at as u64).collect(),
        };
        Ok(touched.iter().filter_map(|start| starts.get(start)).map(sum).collect())
    }
}
