//! The executor: evaluates a plan in parallel and writes every tensor at its planned offset.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::Duration;

use rayon::prelude::*;

use super::checksum::fill_checksums;
use super::{Layout, Plan, PlannedTensor, Staging, TensorRef};
use crate::dtype::DType;
use crate::error::{Finding, IoContext, Result};

/// Time between two syncs of what was written meanwhile.
const FLUSH_INTERVAL: Duration = Duration::from_millis(50);

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

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensor data written.
    pub done_bytes: u64,
    /// Bytes of tensor data in total.
    pub total_bytes: u64,
}

/// A plan, and where its tensors are written.
pub struct Work<'a> {
    /// What is written.
    pub plan: &'a Plan,
    /// The files, and the places of the tensors in them.
    pub layout: &'a Layout,
    /// Where the files are made.
    pub staging: &'a Staging,
}

/// Runs `plan`, writing the files of `layout` into `staging`; the caller commits.
///
/// Rows of tensors are evaluated in parallel on rayon's current pool; each chunk is written at its offset as soon as it
/// is made. Values in flight stay under `options.max_memory_bytes` as long as a single row of each tensor does. Bytes
/// that need no arithmetic go from the memory map to the file without a copy in between.
///
/// # Errors
/// What [`Plan::check`] finds, [`crate::Error::NotFinite`] for a NaN or an infinity, [`crate::Error::Mismatch`]
/// for a source file that changes during the run, or [`crate::Error::Io`].
pub fn execute(
    plan: &Plan,
    layout: &Layout,
    staging: &Staging,
    options: Options,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<()> {
    execute_all(&[Work { plan, layout, staging }], options, progress)
}

/// Runs several plans in one pass: the same rows of each are made one after the other, so that plans over the same
/// sources read them from the disk once. The caller commits.
///
/// # Errors
/// As [`execute`].
pub fn execute_all(runs: &[Work<'_>], options: Options, progress: &(dyn Fn(Progress) + Sync)) -> Result<()> {
    let mut files = Vec::new();
    // Where the files of each run begin among all.
    let mut first_file = Vec::with_capacity(runs.len());
    for Work { plan, layout, staging } in runs {
        plan.check()?;
        first_file.push(files.len());
        for file in &layout.files {
            let (handle, path) = staging.create(&file.name)?;
            if let Some(original) = &file.copy_of {
                copy(original, &handle, &path, file.byte_len)?;
            }
            handle.set_len(file.byte_len).at(&path, "write")?;
            handle.write_all_at(&file.head, 0).at(&path, "write")?;
            for (offset, piece) in &file.pieces {
                handle.write_all_at(piece, *offset).at(&path, "write")?;
            }
            files.push((handle, path));
        }
    }
    let per_thread = options.max_memory_bytes / rayon::current_num_threads() as u64;
    // A value in flight takes 4 bytes in each of its buffers, and at most 4 more once it is encoded; in f64 twice that.
    let chunk_elems = |tensor: &PlannedTensor| {
        let bytes = if tensor.dtype == DType::F64 { 8 } else { 4 };
        (per_thread / (bytes * tensor.expr.buffers() as u64 + bytes)).clamp(1, 1 << 20) as usize
    };
    let mut tasks: Vec<(usize, Range<usize>, usize)> = Vec::new();
    for (number, run) in runs.iter().enumerate() {
        for (i, tensor) in run.plan.tensors.iter().enumerate() {
            tasks.extend(chunks(tensor, chunk_elems(tensor)).map(|rows| (i, rows, number)));
        }
    }
    if runs.len() > 1 {
        tasks.sort_by_key(|(i, rows, number)| (*i, rows.start, *number));
    }
    let tensors = || runs.iter().flat_map(|run| &run.plan.tensors);
    let files_of: Vec<Vec<Vec<&TensorRef>>> =
        runs.iter().map(|run| run.plan.tensors.iter().map(one_of_each_file).collect()).collect();
    let total_bytes = tensors().map(PlannedTensor::byte_len).sum();
    let syncs = |run: &Work| run.staging.syncs();
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| -> Result<()> {
        // `running` is dropped however this scope ends, which stops the flushing.
        let (running, stopped) = channel::<()>();
        // If no thread can be started, the final sync does all the work.
        let flush = || Builder::new().spawn_scoped(scope, || flush_until(stopped, &files)).ok();
        let flusher = if runs.iter().any(syncs) { flush() } else { None };
        tasks.par_iter().try_for_each_init(
            || (Vec::new(), Vec::new()),
            |(scratch, out), (i, rows, number)| -> Result<()> {
                let Work { plan, layout, .. } = &runs[*number];
                let (tensor, sources) = (&plan.tensors[*i], &files_of[*number][*i]);
                check_unchanged(sources)?;
                let borrowed = tensor.borrow_rows(rows.clone()).transpose()?;
                let bytes = match (borrowed, layout.recode) {
                    (Some(bytes), None) => bytes,
                    (borrowed, recode) => {
                        match borrowed {
                            Some(bytes) => bytes.clone_into(out),
                            None => tensor.encode_rows(rows.clone(), scratch, out)?,
                        }
                        if let Some(recode) = recode {
                            recode(tensor.dtype, out);
                        }
                        &*out
                    }
                };
                let place = layout.places[*i];
                let (file, path) = &files[first_file[*number] + place.file];
                let row_bytes = tensor.byte_len() / tensor.rows().max(1) as u64;
                if let Err(error) = file.write_all_at(bytes, place.offset + rows.start as u64 * row_bytes) {
                    // The kernel reads mapped bytes during the write, and fails where the source was truncated.
                    check_unchanged(sources)?;
                    return Err(error).at(path, "write");
                }
                let done_bytes = done.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
                progress(Progress { done_bytes, total_bytes });
                Ok(())
            },
        )?;
        drop(running);
        flusher.map_or(Ok(()), |thread| thread.join().unwrap_or_else(|panic| resume_unwind(panic)))
    })?;
    files_of.iter().flatten().try_for_each(|files| check_unchanged(files))?;
    for (run, first) in runs.iter().zip(first_file) {
        for ((file, path), layout) in files[first..].iter().zip(&run.layout.files) {
            fill_checksums(file, path, &layout.checksums)?;
            if syncs(run) {
                file.sync_all().at(path, "sync")?;
            }
        }
    }
    Ok(())
}

/// Copies the file at `original`, which must have `byte_len` bytes, to the beginning of another.
fn copy(original: &Path, mut to: &File, path: &Path, byte_len: u64) -> Result<()> {
    let mut file = File::open(original).at(original, "open")?;
    let copied = std::io::copy(&mut file, &mut to).at(path, "write")?;
    if copied == byte_len {
        return Ok(());
    }
    Err(Finding::new(original, "")
        .expected(format_args!("{byte_len} bytes"))
        .found(format_args!("{copied} now: it was written to while it was read"))
        .mismatch())
}

/// One tensor from each file that `tensor` reads.
fn one_of_each_file(tensor: &PlannedTensor) -> Vec<&TensorRef> {
    let mut found: Vec<&TensorRef> = Vec::new();
    for source in tensor.expr.sources() {
        if !found.iter().any(|known| known.is_of_file(source)) {
            found.push(source);
        }
    }
    found
}

/// Checks that none of these files was truncated or rewritten since it was opened.
fn check_unchanged(files: &[&TensorRef]) -> Result<()> {
    files.iter().try_for_each(|tensor| tensor.check_unchanged())
}

/// Syncs the written files again and again until `stopped` hangs up: the disk works while values are computed, and the
/// final sync has little left to do. The system reports a failed write only once, so an error here fails the run.
fn flush_until(stopped: Receiver<()>, files: &[(File, PathBuf)]) -> Result<()> {
    while stopped.recv_timeout(FLUSH_INTERVAL) == Err(RecvTimeoutError::Timeout) {
        for (file, path) in files {
            file.sync_data().at(path, "sync")?;
        }
    }
    Ok(())
}

/// Cuts the tensor's rows into ranges of about `chunk_elems` elements.
fn chunks(tensor: &PlannedTensor, chunk_elems: usize) -> impl Iterator<Item = Range<usize>> + use<> {
    // A tensor without elements can still have a huge number of rows; there is nothing to make for it.
    let total = if tensor.elems() == 0 { 0 } else { tensor.rows() };
    let step = (chunk_elems / tensor.row_len().max(1)).max(1);
    (0..total).step_by(step).map(move |start| start..(start + step).min(total))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::formats::safetensors::{self, SafetensorsFile};
    use crate::source::Source;

    #[test]
    fn flushing_ends_when_the_run_does_and_tells_of_a_failure() {
        let file = tempfile::tempfile().unwrap();
        let (running, stopped) = channel::<()>();
        let thread = std::thread::spawn(move || flush_until(stopped, &[(file, "model.gguf".into())]));
        drop(running);
        thread.join().unwrap().unwrap();
        // /dev/null can't be synced: it acts as a failing disk.
        let (_running, stopped) = channel::<()>();
        let device = File::open("/dev/null").unwrap();
        let error = flush_until(stopped, &[(device, "model.gguf".into())]).unwrap_err().to_string();
        assert!(error.contains("model.gguf: cannot sync"), "{error}");
    }
    #[test]
    fn a_source_that_is_cut_or_rewritten_meanwhile_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let header = r#"{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}"#;
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 16]].concat();
        let run = |change: &dyn Fn(&File)| {
            std::fs::write(&path, &bytes).unwrap();
            let source: Arc<dyn Source> = Arc::new(SafetensorsFile::open(&path).unwrap());
            let plan = Plan::taking(&source);
            let layout = safetensors::layout(&plan.tensors, "out", u64::MAX).unwrap();
            let staging = Staging::file(&dir.path().join("out"), true).unwrap();
            change(&File::options().write(true).open(&path).unwrap());
            execute(&plan, &layout, &staging, Options::default(), &|_| {})
        };
        run(&|_| {}).unwrap();
        let error = run(&|file| file.set_len(bytes.len() as u64 - 4).unwrap()).unwrap_err().to_string();
        assert!(
            error.contains("model.safetensors: expected") && error.contains("it was cut while it was read"),
            "{error}"
        );
        let later = std::time::SystemTime::now() + Duration::from_secs(5);
        let error = run(&|file| file.set_modified(later).unwrap()).unwrap_err().to_string();
        assert!(error.contains("model.safetensors: it was written to while it was read"), "{error}");
    }
}
