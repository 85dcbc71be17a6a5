//! CSV: a line of names, then rows of cells. Every cell is text.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::{Columns, RawRow, Unit, place, whole};
use crate::error::{Finding, Result, counted};

/// A last row of our own. If it isn't read as one, a quote before it is still open.
const END: &[u8] = b"\n\x01the end\x01";

/// The rows of the file at `path`, whose cells are parted by `delimiter`.
pub(super) fn rows(path: &Path, delimiter: u8) -> Result<Vec<RawRow>> {
    let file: Arc<Path> = path.into();
    let mut text = whole(path)?;
    text.extend_from_slice(END);
    let text = text.as_slice();
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(false).from_reader(text);
    let (mut names, mut rows, mut record) = (Vec::<String>::new(), Vec::new(), csv::ByteRecord::new());
    let mut last_line = 1;
    loop {
        let more = reader.read_byte_record(&mut record);
        let more = more.map_err(|error| Finding::new(path, "").expected("a CSV file").found(error).format())?;
        let (line, cells_text) = match record.position() {
            Some(start) => at(text, start, reader.position().byte()),
            None => (0, &[][..]),
        };
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
            names = header(path, &record, delimiter)?;
            continue;
        }
        let place = place(&file, Unit::Line, line);
        let columns = match behind_quotes(cells_text, delimiter) {
            Some(found) => Err(place
                .finding()
                .expected("the end of a cell behind the quote that closes it")
                .found(format!("{found:?}"))
                .hint("quotes inside a cell are written twice")
                .format()),
            None => cells(&names, &record, || place.finding()),
        };
        rows.push(RawRow { place, columns });
    }
}

/// The line on which the row begins that the reader found from `start` to `end`, and its text. The reader leaves line ends
/// and blank lines of the row before to the next one.
fn at<'a>(text: &'a [u8], start: &csv::Position, end: u64) -> (usize, &'a [u8]) {
    let all = text.get(start.byte() as usize..end as usize).unwrap_or_default();
    let (ends, row) = all.split_at(all.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count());
    (start.line() as usize + ends.iter().filter(|byte| **byte == b'\n').count(), row)
}

/// The text between the quote that closes a cell of `row` and the end of the cell, if there is any: one reader takes it as a
/// part of the cell, another refuses it.
fn behind_quotes(row: &[u8], delimiter: u8) -> Option<String> {
    let is_end = |byte: &u8| *byte == delimiter || matches!(byte, b'\r' | b'\n');
    let mut rest = row;
    loop {
        if let Some(quoted) = rest.strip_prefix(b"\"") {
            rest = quoted;
            loop {
                // A quote that doesn't end is an error of its own.
                let quote = rest.iter().position(|byte| *byte == b'"')?;
                rest = &rest[quote + 1..];
                match rest.strip_prefix(b"\"") {
                    Some(after) => rest = after,
                    None => break,
                }
            }
            let behind = rest.iter().position(is_end).unwrap_or(rest.len());
            if behind > 0 {
                return Some(String::from_utf8_lossy(&rest[..behind]).into_owned());
            }
        }
        let end = rest.iter().position(is_end)?;
        if rest[end] != delimiter {
            return None;
        }
        rest = &rest[end + 1..];
    }
}

/// The names of the columns.
fn header(path: &Path, record: &csv::ByteRecord, delimiter: u8) -> Result<Vec<String>> {
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
    let (other, hint) = match delimiter {
        b',' => ([';', '\t'], "save it with commas between the columns; a file with tabs is called .tsv"),
        _ => ([';', ','], "save it with tabs between the columns; a file with commas is called .csv"),
    };
    match names.as_slice() {
        [one] if one.contains(other) => {
            let parted = if delimiter == b',' { "commas" } else { "tabs" };
            let finding = finding().expected(format_args!("columns that are parted by {parted}"));
            Err(finding.found(format!("{one:?}")).hint(hint).format())
        }
        _ => Ok(names),
    }
}

fn cells(names: &[String], record: &csv::ByteRecord, finding: impl Fn() -> Finding) -> Result<Columns> {
    if record.len() != names.len() {
        return Err(finding().expected(counted(names.len(), "cell")).found(record.len()).format());
    }
    let mut columns = Columns::new();
    for (name, cell) in names.iter().zip(record) {
        let cell = std::str::from_utf8(cell)
            .map_err(|error| finding().expected(format_args!("UTF-8 text in {name:?}")).found(error).format())?;
        columns.insert(name.clone(), Value::String(cell.to_owned()));
    }
    Ok(columns)
}
