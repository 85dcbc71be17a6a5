//! The executor: evaluates a plan in parallel and writes every tensor at its planned place.

use std::fs::OpenOptions;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::checksum::fill_checksums;
use super::{Layout, Plan, PlannedTensor, Staging};
use crate::error::{IoContext, Result};

/// How a plan is run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Bytes of anonymous memory for values in flight, over all threads.
    pub max_memory_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_memory_bytes: 128 << 20 }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensor data written.
    pub done_bytes: u64,
    /// Bytes of tensor data in all.
    pub total_bytes: u64,
}

/// Runs `plan`, writing the files of `layout` into `staging`; the caller commits.
///
/// Rows of tensors are evaluated in parallel on rayon's current pool; each chunk is written at its
/// offset as soon as it is made. Values in flight stay under `options.max_memory_bytes` as long as
/// a single row of each tensor does. Bytes that need no work go from map to file uncopied.
///
/// # Errors
/// What [`Plan::check`] finds, [`crate::Error::NotFinite`] for a NaN or an infinity, or [`crate::Error::Io`].
pub fn execute(
    plan: &Plan,
    layout: &Layout,
    staging: &Staging,
    options: Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<()> {
    plan.check()?;
    let mut files = Vec::with_capacity(layout.files.len());
    for file in &layout.files {
        let path = staging.path_of(&file.name);
        // Read as well, for checksums of what is written.
        let handle = OpenOptions::new().read(true).write(true).create_new(true).open(&path).at(&path, "create")?;
        handle.set_len(file.byte_len).at(&path, "write")?;
        handle.write_all_at(&file.head, 0).at(&path, "write")?;
        for (offset, piece) in &file.pieces {
            handle.write_all_at(piece, *offset).at(&path, "write")?;
        }
        files.push((handle, path));
    }
    // A value in flight takes 4 bytes as f32 and at most 4 encoded.
    let per_thread = options.max_memory_bytes / rayon::current_num_threads() as u64 / 8;
    let chunk_elems = per_thread.clamp(1, 1 << 20) as usize;
    let tasks: Vec<(usize, Range<usize>)> = plan
        .tensors
        .iter()
        .enumerate()
        .flat_map(|(i, tensor)| chunks(tensor, chunk_elems).map(move |rows| (i, rows)))
        .collect();
    let total_bytes = plan.tensors.iter().map(PlannedTensor::byte_len).sum();
    let done = AtomicU64::new(0);
    tasks.par_iter().try_for_each_init(
        || (Vec::new(), Vec::new()),
        |(scratch, out), (i, rows)| -> Result<()> {
            let tensor = &plan.tensors[*i];
            let bytes = match tensor.borrow_rows(rows.clone()) {
                Some(bytes) => bytes?,
                None => {
                    tensor.encode_rows(rows.clone(), scratch, out)?;
                    &*out
                }
            };
            let place = layout.places[*i];
            let (file, path) = &files[place.file];
            let row_bytes = tensor.byte_len() / tensor.rows().max(1) as u64;
            file.write_all_at(bytes, place.offset + rows.start as u64 * row_bytes).at(path, "write")?;
            let done_bytes = done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
            progress(Progress { done_bytes, total_bytes });
            Ok(())
        },
    )?;
    for ((file, path), layout) in files.iter().zip(&layout.files) {
        fill_checksums(file, path, &layout.checksums)?;
        file.sync_all().at(path, "sync")?;
    }
    Ok(())
}

/// The tensor's rows in ranges of about `chunk_elems` elements.
fn chunks(tensor: &PlannedTensor, chunk_elems: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    // Rows of a tensor without elements can be without number, and there is nothing to make.
    let total = if tensor.elems() == 0 { 0 } else { tensor.rows() };
    let step = (chunk_elems / tensor.row_len().max(1)).max(1);
    (0..total).step_by(step).map(move |start| start..(start + step).min(total))
}
