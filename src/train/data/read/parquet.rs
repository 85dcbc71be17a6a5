//! Parquet: columns of texts, numbers, structs and lists of them, as JSON values.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::Compression;
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Number, Value};

use super::{Columns, RawRow, Unit, place};
use crate::error::{Finding, IoContext, Result};
use crate::tokenizer::library::guarded;

/// The rows of the file at `path`, without the columns called `ignored`.
pub(super) fn rows(path: &Path, ignored: &[String]) -> Result<Vec<RawRow>> {
    let file: Arc<Path> = path.into();
    let opened = File::open(path).at(path, "open")?;
    let bad = |error: &dyn std::fmt::Display| {
        let found = error.to_string();
        Finding::new(path, "").expected("a Parquet file").found(found.replace('\n', " ")).format()
    };
    // Other compressions are left out when the library is built.
    let unread = |opened: &File| -> Option<&'static str> {
        let reader = SerializedFileReader::new(opened.try_clone().ok()?).ok()?;
        let chunks = reader.metadata().row_groups().iter().flat_map(|group| group.columns());
        let chunks =
            chunks.filter(|chunk| !ignored.iter().any(|name| chunk.column_path().parts().first() == Some(name)));
        chunks.map(ColumnChunkMetaData::compression).find_map(|compression| match compression {
            Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_) | Compression::ZSTD(_) => None,
            Compression::BROTLI(_) => Some("brotli"),
            Compression::LZ4 | Compression::LZ4_RAW => Some("lz4"),
            Compression::LZO => Some("lzo"),
        })
    };
    if let Ok(Some(compression)) = guarded(|| Ok(unread(&opened))) {
        return Err(Finding::new(path, "")
            .expected("columns that are compressed by snappy, gzip or zstd, or not at all")
            .found(compression)
            .hint("write the file anew with one of these")
            .unsupported());
    }
    // The library has no value for some types of columns, and panics.
    let read = guarded(|| {
        let reader = SerializedFileReader::new(opened)?;
        let schema = reader.metadata().file_metadata().schema();
        let kept: Vec<Arc<Type>> = schema
            .get_fields()
            .iter()
            .filter(|column| !ignored.iter().any(|name| name == column.name()))
            .cloned()
            .collect();
        let columns = Type::group_type_builder(schema.name()).with_fields(kept).build()?;
        Ok(reader.get_row_iter(Some(columns))?.collect::<parquet::errors::Result<Vec<Row>>>()?)
    });
    let rows = read.map_err(|error| bad(&error))?;
    let row = |(i, row): (usize, Row)| {
        let place = place(&file, Unit::Row, i + 1);
        let columns = columns(row, &place);
        RawRow { place, columns }
    };
    Ok(rows.into_iter().enumerate().map(row).collect())
}

fn columns(row: Row, place: &super::Place) -> Result<Columns> {
    let mut columns = Columns::new();
    for (name, field) in row.into_columns() {
        let value = value(field).map_err(|found| {
            let finding = place.field(&name).expected("texts, numbers, true or false, and lists and structs of them");
            finding.found(found).hint("data.ignore_fields leaves a column out").format()
        })?;
        columns.insert(name, value);
    }
    Ok(columns)
}

/// The value as JSON. Fields of structs that are null are left out: every struct of a column has the fields of all
/// others. An error names what has no value.
fn value(field: Field) -> std::result::Result<Value, &'static str> {
    let float = |number: f64| Number::from_f64(number).map(Value::Number).ok_or("a number that isn't finite");
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => value.into(),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => float(value.to_f64())?,
        Field::Float(value) => float(value.into())?,
        Field::Double(value) => float(value)?,
        Field::Str(text) => text.into(),
        Field::Group(row) => {
            let mut fields = Columns::new();
            for (name, field) in row.into_columns() {
                match value(field)? {
                    Value::Null => {}
                    value => _ = fields.insert(name, value),
                }
            }
            fields.into()
        }
        Field::ListInternal(list) => {
            list.elements().iter().cloned().map(value).collect::<std::result::Result<Vec<Value>, _>>()?.into()
        }
        Field::MapInternal(map) => {
            let mut fields = Columns::new();
            for (name, field) in map.entries() {
                let Field::Str(name) = name else { return Err("a map whose keys aren't texts") };
                fields.insert(name.clone(), value(field.clone())?);
            }
            fields.into()
        }
        Field::Bytes(_) => return Err("bytes that aren't marked as text"),
        Field::Decimal(_) => return Err("a decimal"),
        Field::Date(_) | Field::TimeMillis(_) | Field::TimeMicros(_) => return Err("a date or a time"),
        Field::TimestampMillis(_) | Field::TimestampMicros(_) => return Err("a timestamp"),
    })
}
