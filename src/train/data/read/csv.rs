//! CSV: a line of names, then rows of cells. Every cell is text.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::{Columns, RawRow, Unit, place, whole};
use crate::error::{Finding, Result};

/// A last row of our own. If it isn't read as one, a quote before it is still open.
const END: &[u8] = b"\n\x01the end\x01";

/// The rows of the file at `path`, whose cells are parted by `delimiter`.
pub(super) fn rows(path: &Path, delimiter: u8) -> Result<Vec<RawRow>> {
    let file: Arc<Path> = path.into();
    let mut text = whole(path)?;
    text.extend_from_slice(END);
    let mut reader =
        csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(false).from_reader(text.as_slice());
    let (mut names, mut rows, mut record) = (Vec::<String>::new(), Vec::new(), csv::ByteRecord::new());
    let mut last_line = 1;
    loop {
        let more = reader.read_byte_record(&mut record);
        let more = more.map_err(|error| Finding::new(path, "").expected("a CSV file").found(error).format())?;
        let line = record.position().map_or(0, |position| position.line() as usize);
        if !more {
            // The last row was swallowed by a cell.
            let finding = Finding::new(path, format!("line {last_line}")).expected("a quote that ends");
            return Err(finding.found("one that is open at the end of the file").format());
        }
        if record.len() == 1 && record.get(0) == END.get(1..) {
            return Ok(rows);
        }
        last_line = line;
        if names.is_empty() {
            names = header(path, &record)?;
            continue;
        }
        let place = place(&file, Unit::Line, line);
        let columns = cells(&names, &record, || place.finding());
        rows.push(RawRow { place, columns });
    }
}

/// The names of the columns.
fn header(path: &Path, record: &csv::ByteRecord) -> Result<Vec<String>> {
    let finding = || Finding::new(path, "line 1");
    let mut names: Vec<String> = Vec::with_capacity(record.len());
    for name in record {
        let name = std::str::from_utf8(name);
        let name = name.map_err(|error| finding().expected("UTF-8 text").found(error).format())?.trim();
        if name.is_empty() {
            return Err(finding().expected("a name for each column").found("an empty one").format());
        }
        if names.iter().any(|other| other == name) {
            return Err(finding().expected("each column once").found(format!("{name:?} twice")).format());
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

fn cells(names: &[String], record: &csv::ByteRecord, finding: impl Fn() -> Finding) -> Result<Columns> {
    if record.len() != names.len() {
        return Err(finding().expected(format_args!("{} cells", names.len())).found(record.len()).format());
    }
    let mut columns = Columns::new();
    for (name, cell) in names.iter().zip(record) {
        let cell = std::str::from_utf8(cell)
            .map_err(|error| finding().expected(format_args!("UTF-8 text in {name:?}")).found(error).format())?;
        columns.insert(name.clone(), Value::String(cell.to_owned()));
    }
    Ok(columns)
}
