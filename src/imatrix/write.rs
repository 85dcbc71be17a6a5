//! Writes a measurement, byte for byte as llama-imatrix does.
//!
//! Reference: llama.cpp `tools/imatrix/imatrix.cpp` (`save_imatrix`, `save_imatrix_legacy`).

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::{CHUNK_COUNT, CHUNK_SIZE, COUNTS_SUFFIX, DATASETS, GENERAL_TYPE, SUMS_SUFFIX, entry_finding};
use crate::dtype::DType;
use crate::error::Result;
use crate::formats::gguf::{Array, Metadata};
use crate::output::{self, Output, Sidecars};
use crate::plan::{Expr, Plan, PlannedTensor};

/// The two forms of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// GGUF: sums and counts.
    Gguf,
    /// The older binary form: means times calls.
    Legacy,
}

/// The sums over the input activations of one weight.
#[derive(Debug, Clone, PartialEq)]
pub struct Sums {
    /// Sums of squares by column, for each matrix (expert) in turn.
    pub squares: Vec<f32>,
    /// The number of summed activations for each matrix; there is at least one matrix.
    pub counts: Vec<u64>,
}

/// An importance matrix as it is measured: sums instead of means.
#[derive(Debug, Clone, PartialEq)]
pub struct Measurement {
    /// Sums by the weight's name in GGUF.
    pub entries: BTreeMap<String, Sums>,
    /// The texts' paths, as given.
    pub datasets: Vec<Vec<u8>>,
    /// The number of chunks of text.
    pub chunk_count: u32,
    /// The number of tokens in a chunk, at least 1.
    pub chunk_size: u32,
}

impl Measurement {
    /// The file in one of the two forms. Errors name `file`.
    ///
    /// # Errors
    /// [`crate::Error::NotFinite`] for a sum that isn't finite; [`crate::Error::Format`] for names
    /// that are too long for GGUF, and for counts that are too large for the older form.
    pub fn output(&self, file: &Path, form: Form) -> Result<Output> {
        for (name, sums) in &self.entries {
            if let Some(place) = sums.squares.iter().position(|sum| !sum.is_finite()) {
                let finding = entry_finding(file, name).expected("finite activations");
                return Err(finding.found(format_args!("{} at {place}", sums.squares[place])).not_finite());
            }
        }
        match form {
            Form::Gguf => Ok(self.gguf(file)),
            Form::Legacy => {
                let form = output::Form::Bytes(self.legacy(file)?);
                let (plan, sidecars) = (Plan::default(), Sidecars::default());
                Ok(Output { form, plan, sidecars, notes: Vec::new() })
            }
        }
    }

    fn gguf(&self, file: &Path) -> Output {
        let mut metadata = Metadata::new(file);
        metadata.insert("general.type", GENERAL_TYPE);
        metadata.insert(DATASETS, Array::String(self.datasets.clone()));
        metadata.insert(CHUNK_COUNT, self.chunk_count);
        metadata.insert(CHUNK_SIZE, self.chunk_size);
        let mut plan = Plan::default();
        for (name, sums) in &self.entries {
            let counts: Vec<f32> = sums.counts.iter().map(|count| *count as f32).collect();
            let matrices = counts.len();
            plan.tensors.push(tensor(format!("{name}{SUMS_SUFFIX}"), matrices, &sums.squares));
            plan.tensors.push(tensor(format!("{name}{COUNTS_SUFFIX}"), matrices, &counts));
        }
        Output::gguf(metadata, plan, Vec::new())
    }

    /// The bytes of the older form. Entries with counts of 0 are left out.
    fn legacy(&self, file: &Path) -> Result<Vec<u8>> {
        let number = |name: &str, count: u64| -> Result<[u8; 4]> {
            let finding = || entry_finding(file, name).expected("numbers below 2^31 in the older form");
            let number = i32::try_from(count).map_err(|_| finding().found(count).hint("write it as GGUF").format());
            number.map(i32::to_le_bytes)
        };
        let most = |sums: &Sums| sums.counts.iter().copied().max().unwrap_or(0);
        let kept: Vec<_> = self.entries.iter().filter(|(_, sums)| most(sums) > 0).collect();
        let mut out = number("", kept.len() as u64)?.to_vec();
        for (name, sums) in kept {
            let calls = most(sums).div_ceil(u64::from(self.chunk_size.max(1)));
            out.extend(number(name, name.len() as u64)?);
            out.extend(name.as_bytes());
            out.extend(number(name, calls)?);
            out.extend(number(name, sums.squares.len() as u64)?);
            let row_len = (sums.squares.len() / sums.counts.len().max(1)).max(1);
            for (row, count) in sums.squares.chunks(row_len).zip(&sums.counts) {
                for square in row {
                    // A matrix with a count of 0 gets importance 1, as when the other form is read.
                    let mean = if *count == 0 { 1.0 } else { square / *count as f32 };
                    out.extend((mean * calls as f32).to_le_bytes());
                }
            }
        }
        out.extend(number("", self.chunk_count.into())?);
        let dataset = self.datasets.last().map_or(&[][..], Vec::as_slice);
        out.extend(number("", dataset.len() as u64)?);
        out.extend(dataset);
        Ok(out)
    }
}

/// A tensor with one row per matrix, or a vector if there is only one matrix.
fn tensor(name: String, matrices: usize, values: &[f32]) -> PlannedTensor {
    let shape = match matrices {
        0 | 1 => vec![values.len()],
        _ => vec![matrices, values.len() / matrices],
    };
    let expr = Expr::Values { shape: shape.clone(), values: Arc::from(values) };
    PlannedTensor { name, dtype: DType::F32, shape, expr }
}
