//! Reads files of rows: JSON lines, JSON arrays, CSV and Parquet.

mod csv;
mod json;
mod parquet;

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use serde_json::{Map, Value};

use super::place::{Place, Unit};
use crate::error::{Finding, IoContext, Result, no_lfs_pointer};

pub(super) use json::{object, unique};

/// The fields of a row, by column.
pub(super) type Columns = Map<String, Value>;

/// A row as a file has it.
pub(super) struct RawRow {
    pub(super) place: Place,
    /// Its columns, or why it can't be read.
    pub(super) columns: Result<Columns>,
}

/// The files that `pattern` names: itself, or those that match it, sorted.
///
/// # Errors
/// [`crate::Error::Mismatch`] where nothing matches, and for a folder.
pub(super) fn files(pattern: &Path) -> Result<Vec<PathBuf>> {
    let text = pattern.to_string_lossy();
    if pattern.is_dir() {
        let hint = format!("{}/*.jsonl names all files with that ending", text.trim_end_matches('/'));
        return Err(Finding::new(pattern, "").expected("a file of rows").found("a folder").hint(hint).mismatch());
    }
    if pattern.exists() || !text.contains(['*', '?', '[']) {
        return Ok(vec![pattern.to_owned()]);
    }
    let found = glob::glob(&text)
        .map_err(|error| Finding::new(pattern, "").expected("a pattern of file names").found(error).mismatch())?;
    let mut files = Vec::new();
    for path in found {
        let path = match path {
            Ok(path) => path,
            Err(error) => {
                let path = error.path().to_owned();
                return Err(error.into()).at(path, "read");
            }
        };
        if path.is_file() {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Finding::new(pattern, "").expected("files that match").found("none").mismatch());
    }
    Ok(files)
}

/// The rows of one file. What it is follows from the ends of its name; anything else is read as JSON. Columns called
/// `ignored` may be left out.
///
/// # Errors
/// [`crate::Error::Io`], and [`crate::Error::Format`] for faults that aren't one row's; [`crate::Error::Mismatch`] for a
/// file without rows.
pub(super) fn rows(path: &Path, ignored: &[String]) -> Result<Vec<RawRow>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let inner = name.strip_suffix(".gz").unwrap_or(&name);
    let extension = inner.rsplit_once('.').map_or("", |(_, extension)| extension);
    let rows = match extension {
        "parquet" => parquet::rows(path, ignored)?,
        "csv" => csv::rows(path, b',')?,
        "tsv" => csv::rows(path, b'\t')?,
        "zst" | "bz2" | "xz" | "zip" | "7z" | "arrow" | "feather" | "xlsx" => {
            return Err(Finding::new(path, "")
                .expected("a file of rows: .jsonl, .json, .csv, .tsv, each also with .gz, or .parquet")
                .found(format!(".{extension}"))
                .unsupported());
        }
        _ => json::rows(path)?,
    };
    if rows.is_empty() {
        return Err(Finding::new(path, "").expected("at least one row").found("none").mismatch());
    }
    Ok(rows)
}

/// A file's text, decompressed where it is compressed, without a byte order mark.
fn text(path: &Path) -> Result<Box<dyn BufRead>> {
    let mut file = BufReader::new(File::open(path).at(path, "open")?);
    let start = file.fill_buf().at(path, "read")?;
    no_lfs_pointer(path, start)?;
    let mut text: Box<dyn BufRead> = match start.starts_with(&[0x1f, 0x8b]) {
        true => Box::new(BufReader::new(MultiGzDecoder::new(file))),
        false => Box::new(file),
    };
    if text.fill_buf().at(path, "read")?.starts_with(b"\xef\xbb\xbf") {
        text.consume(3);
    }
    Ok(text)
}

/// All of a file's text.
fn whole(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    text(path)?.read_to_end(&mut bytes).at(path, "read")?;
    Ok(bytes)
}

/// Makes the places of a file's rows.
fn place(file: &Arc<Path>, unit: Unit, number: usize) -> Place {
    Place { file: file.clone(), unit, number }
}
