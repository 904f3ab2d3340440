//! Rows of Parquet files.
//!
//! A column of structs becomes an object, a list an array, a map an object by its keys as text; dates and times become text
//! as ISO 8601 has them. Bytes become text where they are UTF-8, and null otherwise: there are no bytes in JSON.

use std::path::Path;

use jiff::Timestamp;
use parquet::basic::{Compression, ConvertedType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use serde_json::{Map, Number, Value};

use super::most_unpacked;
use crate::fs;
use crate::pipeline::dataset::Row;

const BROKEN: &str = "fetch or write the file again";

/// The thread that reads: what panics there is the library over a damaged file, and told as that.
pub(crate) const THREAD: &str = "parquet";

/// Rows at the beginning of a file, at most so many if that is said, and how many rows it has. The error says what is
/// wrong with the file, and what to do.
pub(super) fn read(path: &Path, most: Option<usize>) -> Result<(Vec<Row>, u64), (String, &'static str)> {
    let opened =
        fs::open(path).map_err(|error| (error.to_string(), "paths start from the pipeline file's directory"))?;
    let (file, _) = opened.into_parts();
    // A value that repeats takes no room in the file.
    let room = most_unpacked(file.metadata().map_or(0, |metadata| metadata.len()));
    let broken = |error: ParquetError| (error.to_string(), BROKEN);
    let read = || {
        let reader = SerializedFileReader::new(file).map_err(broken)?;
        check(&reader)?;
        let all = u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
        let rows = reader.get_row_iter(None).map_err(broken)?.take(most.unwrap_or(usize::MAX));
        let (mut list, mut held) = (Vec::new(), 0u64);
        for row in rows {
            let row = object(row.map_err(broken)?.into_columns());
            held += row.values().map(bytes).sum::<u64>() + 64;
            if held > room {
                let what = format!("its rows take more than {} MiB, far more than the file", room >> 20);
                return Err((what, "split the file"));
            }
            list.push(row);
        }
        Ok((list, all))
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name(THREAD.to_owned()).spawn_scoped(scope, read);
        let thread = thread.map_err(|error| (error.to_string(), "try again"))?;
        thread.join().unwrap_or_else(|_| Err(("its content is not what it says of itself".to_owned(), BROKEN)))
    })
}

/// Errs on what the library cannot read.
fn check(reader: &SerializedFileReader<std::fs::File>) -> Result<(), (String, &'static str)> {
    let rewrite =
        "write it again with pyarrow: `pq.write_table(pq.read_table(\"FILE\"), \"NEW\", compression=\"snappy\")`";
    let metadata = reader.metadata();
    for column in metadata.row_groups().iter().flat_map(parquet::file::metadata::RowGroupMetaData::columns) {
        let offsets =
            [Some(column.data_page_offset()), column.dictionary_page_offset(), Some(column.compressed_size())];
        if offsets.into_iter().flatten().any(|offset| offset < 0) {
            return Err(("it says of a column that it lies before its beginning".to_owned(), BROKEN));
        }
        let packed = column.compression();
        if !matches!(packed, Compression::UNCOMPRESSED | Compression::SNAPPY | Compression::GZIP(_)) {
            let name = packed.to_string();
            let name = name.split('(').next().unwrap_or_default();
            return Err((format!("it is compressed with {name}; supported are SNAPPY, GZIP and none"), rewrite));
        }
    }
    for column in metadata.file_metadata().schema_descr().columns() {
        if column.converted_type() == ConvertedType::INTERVAL {
            return Err((
                format!("its column `{}` holds intervals of time", column.path().string()),
                "leave the column out",
            ));
        }
    }
    Ok(())
}

/// About how much memory a value takes.
fn bytes(value: &Value) -> u64 {
    32 + match value {
        Value::String(text) => text.len() as u64,
        Value::Array(items) => items.iter().map(bytes).sum(),
        Value::Object(map) => map.iter().map(|(key, value)| key.len() as u64 + 32 + bytes(value)).sum(),
        _ => 0,
    }
}

fn object(columns: Vec<(String, Field)>) -> Row {
    columns.into_iter().map(|(name, field)| (name, value(field))).collect()
}

fn value(field: Field) -> Value {
    let float = |number: f64| Number::from_f64(number).map_or(Value::Null, Value::Number);
    match field {
        Field::Null => Value::Null,
        Field::Bool(flag) => flag.into(),
        Field::Byte(number) => number.into(),
        Field::Short(number) => number.into(),
        Field::Int(number) => number.into(),
        Field::Long(number) => number.into(),
        Field::UByte(number) => number.into(),
        Field::UShort(number) => number.into(),
        Field::UInt(number) => number.into(),
        Field::ULong(number) => number.into(),
        Field::Float16(number) => float(number.into()),
        // The shortest text that is the number, and not the digits of its neighbour among f64.
        Field::Float(number) => float(number.to_string().parse().unwrap_or(f64::from(number))),
        Field::Double(number) => float(number),
        Field::Str(text) => text.into(),
        Field::Bytes(bytes) => std::str::from_utf8(bytes.data()).map_or(Value::Null, Value::from),
        Field::Group(row) => Value::Object(object(row.into_columns())),
        Field::ListInternal(list) => list.elements().iter().cloned().map(value).collect(),
        Field::MapInternal(map) => {
            let key = |key: &Field| match value(key.clone()) {
                Value::String(text) => text,
                other => other.to_string(),
            };
            map.entries().iter().map(|(name, field)| (key(name), value(field.clone()))).collect::<Map<_, _>>().into()
        }
        // All its digits.
        field @ Field::Decimal(_) => field.to_string().into(),
        Field::Date(days) => {
            let epoch = jiff::civil::date(1970, 1, 1);
            let date = jiff::Span::new().try_days(days).and_then(|span| epoch.checked_add(span));
            date.map_or_else(|_| days.into(), |date| date.to_string().into())
        }
        Field::TimeMillis(millis) => time(i64::from(millis) * 1000),
        Field::TimeMicros(micros) => time(micros),
        Field::TimestampMillis(millis) => timestamp(millis, Timestamp::from_millisecond(millis)),
        Field::TimestampMicros(micros) => timestamp(micros, Timestamp::from_microsecond(micros)),
    }
}

/// A moment as text; one that no calendar has, as its number.
fn timestamp(number: i64, moment: Result<Timestamp, jiff::Error>) -> Value {
    moment.map_or_else(|_| number.into(), |moment| moment.to_string().into())
}

/// A time of day from microseconds since midnight.
fn time(micros: i64) -> Value {
    let time =
        jiff::Span::new().try_microseconds(micros).and_then(|span| jiff::civil::Time::midnight().checked_add(span));
    time.map_or_else(|_| micros.into(), |time| time.to_string().into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::basic::GzipLevel;
    use parquet::column::writer::ColumnWriter;
    use parquet::data_type::ByteArray;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use serde_json::json;

    use super::*;

    const SCHEMA: &str = "message m {
        required binary id (UTF8);
        optional group info { required binary post (UTF8); optional int32 score; }
        optional group tags (LIST) { repeated group list { optional binary element (UTF8); } }
        required float share;
        optional int32 day (DATE);
        optional binary raw;
    }";

    /// Three rows; the second has nulls wherever it may.
    fn write(path: &Path, packed: Compression) {
        let schema = Arc::new(parse_message_type(SCHEMA).expect("a schema"));
        let properties = Arc::new(WriterProperties::builder().set_compression(packed).build());
        let (file, _) = fs_err::File::create(path).expect("a file").into_parts();
        let mut writer = SerializedFileWriter::new(file, schema, properties).expect("a writer");
        let mut group = writer.next_row_group().expect("a row group");
        let bytes = |texts: &[&str]| texts.iter().map(|text| ByteArray::from(*text)).collect::<Vec<_>>();
        // Values, definition and repetition levels, column by column.
        let texts: [(Vec<ByteArray>, Vec<i16>, Vec<i16>); 6] = [
            (bytes(&["a", "b", "c"]), vec![], vec![]),
            (bytes(&["first", "third"]), vec![1, 0, 1], vec![]),
            (vec![], vec![2, 0, 1], vec![]),
            (bytes(&["x", "y"]), vec![3, 3, 0, 1], vec![0, 1, 0, 0]),
            (vec![], vec![1, 0, 0], vec![]),
            (vec![ByteArray::from(vec![0xff, 0xfe]), ByteArray::from("plain")], vec![1, 0, 1], vec![]),
        ];
        let mut texts = texts.into_iter();
        let mut floats = 0;
        while let Some(mut column) = group.next_column().expect("a column") {
            match column.untyped() {
                ColumnWriter::FloatColumnWriter(column) => {
                    floats += 1;
                    column.write_batch(&[0.1, -2.0, f32::NAN], None, None).expect("writes");
                }
                ColumnWriter::Int32ColumnWriter(column) => {
                    let (_, levels, _) = texts.next().expect("one a column");
                    let value = if levels[0] == 2 { 7 } else { 19_000 };
                    column.write_batch(&[value], Some(&levels), None).expect("writes");
                }
                ColumnWriter::ByteArrayColumnWriter(column) => {
                    let (values, levels, repeats) = texts.next().expect("one a column");
                    let some = |levels: &Vec<i16>| (!levels.is_empty()).then(|| levels.clone());
                    column.write_batch(&values, some(&levels).as_deref(), some(&repeats).as_deref()).expect("writes");
                }
                _ => unreachable!("the schema has no such column"),
            }
            column.close().expect("closes");
        }
        assert_eq!(floats, 1);
        group.close().expect("closes");
        writer.close().expect("closes");
    }

    #[test]
    fn columns_become_json() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.parquet");
        for packed in [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::GZIP(GzipLevel::default())] {
            write(&path, packed);
            let (rows, all) = read(&path, None).expect("reads");
            let found: Vec<Value> = rows.into_iter().map(Value::Object).collect();
            let wanted = [
                json!({"id": "a", "info": {"post": "first", "score": 7}, "tags": ["x", "y"], "share": 0.1, "day": "2022-01-08", "raw": null}),
                json!({"id": "b", "info": null, "tags": null, "share": -2.0, "day": null, "raw": null}),
                json!({"id": "c", "info": {"post": "third", "score": null}, "tags": [], "share": null, "day": null, "raw": "plain"}),
            ];
            assert_eq!((found.as_slice(), all), (&wanted[..], 3));
            assert_eq!(read(&path, Some(1)).map(|(rows, all)| (rows.len(), all)), Ok((1, 3)));
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.parquet");
        assert!(read(&path, None).is_err());
        write(&path, Compression::SNAPPY);
        let whole = fs_err::read(&path).expect("reads");
        // Cut off, or with bits flipped: an error or rows, never a crash.
        for length in (0..whole.len()).step_by(11) {
            fs_err::write(&path, &whole[..length]).expect("writes");
            assert!(read(&path, None).is_err(), "{length}");
        }
        for at in (0..whole.len()).step_by(5) {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x55;
            fs_err::write(&path, &damaged).expect("writes");
            let _ = read(&path, None);
        }
    }
}
