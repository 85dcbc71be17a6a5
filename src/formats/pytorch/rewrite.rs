//! Writing a file again with other values in some of its storages. Every other byte stays: the pickle, with settings and
//! optimizer, is never understood for this.

use std::collections::HashMap;
use std::ops::Range;

use super::PytorchFile;
use super::archive::is_archive;
use super::zip::{Sums, read_sums};
use crate::error::{Finding, Result};
use crate::plan::{Checksum, FileLayout, Layout, Place, PlannedTensor};
use crate::source::{Source, show_shape};

impl PytorchFile {
    /// The layout of this file with `tensors` in place of its tensors with the numbers `places`. Types and shapes are the
    /// same.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for values that don't stand in the file as they are written: deflated ones, those of
    /// big-endian machines, and tensors that are no run of their storage; [`crate::Error::Mismatch`] for two tensors that
    /// have bytes in common, and for other sizes.
    pub(crate) fn rewritten(&self, tensors: &[PlannedTensor], places: &[usize]) -> Result<Layout> {
        let (mut found, mut ranges) = (Vec::with_capacity(places.len()), Vec::with_capacity(places.len()));
        for (tensor, &number) in tensors.iter().zip(places) {
            let range = self.run_of(number, tensor)?;
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
        Ok(Layout { files: vec![file], places: found, recode: None })
    }

    /// The bytes of tensor `number`, which `tensor` is to replace.
    fn run_of(&self, number: usize, tensor: &PlannedTensor) -> Result<Range<usize>> {
        let (own, view) = (&self.tensors[number], &self.views[number]);
        let finding = || Finding::new(self.path(), format!("tensor {:?}", own.name));
        if (own.dtype, &own.shape) != (tensor.dtype, &tensor.shape) {
            return Err(finding()
                .expected(format_args!("{} {}", own.dtype, show_shape(&own.shape)))
                .found(format_args!("{} {}", tensor.dtype, show_shape(&tensor.shape)))
                .mismatch());
        }
        let hint = "load the file and save it again with torch.save, or write a new one";
        match view.run(own) {
            Some(range) => Ok(range),
            None => Err(finding()
                .expected("values that stand in the file in their order, to be replaced there")
                .found("deflated values, those of a big-endian machine, or a tensor that is no run of its storage")
                .hint(hint)
                .unsupported()),
        }
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
