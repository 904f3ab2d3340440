//! Rows in files: JSON lines, an object each with a unique `id`.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde_json::{Map, Value};

use super::{InputArtifact, NodeError};
use crate::fs;

/// A row; its id is under `id` as a string.
pub type Row = Map<String, Value>;

/// Reads all rows of a file.
pub fn read(path: &Path) -> Result<Vec<Row>, NodeError> {
    let mut rows = Vec::new();
    let mut seen = HashSet::new();
    for (number, line) in BufReader::new(fs_err::File::open(path)?).lines().enumerate() {
        let wrong = |what: &str| NodeError::failed(format!("{}, line {}: {what}", path.display(), number + 1));
        let row: Row = serde_json::from_str(&line?).map_err(|error| wrong(&format!("not a JSON object: {error}")))?;
        if !seen.insert(id(&row).map_err(|_| wrong("the row has no `id` that is a text"))?.to_owned()) {
            return Err(wrong("a row before has the same `id`"));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Reads the rows of an input, sliced as the reference says.
pub fn read_input(input: &InputArtifact) -> Result<Vec<Row>, NodeError> {
    let rows = read(input.file("rows.jsonl")?)?.into_iter().skip(usize::try_from(input.skip).unwrap_or(usize::MAX));
    Ok(match input.take {
        Some(take) => rows.take(usize::try_from(take).unwrap_or(usize::MAX)).collect(),
        None => rows.collect(),
    })
}

/// A row's id.
pub fn id(row: &Row) -> Result<&str, NodeError> {
    row.get("id").and_then(Value::as_str).ok_or_else(|| NodeError::failed("a row has no `id` that is a text"))
}

/// Writes rows, a line each.
pub fn write(path: &Path, rows: &[Row]) -> Result<(), NodeError> {
    let mut file = BufWriter::new(fs::writer(path)?);
    for row in rows {
        serde_json::to_writer(&mut file, row).map_err(std::io::Error::from)?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn row(id: &str) -> Row {
        Map::from_iter([("id".to_owned(), json!(id)), ("text".to_owned(), json!("ü\n"))])
    }

    #[test]
    fn rows_round_trip_and_slice() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        let rows: Vec<Row> = ["a", "b", "c"].map(row).into();
        write(&path, &rows).expect("writes");
        assert_eq!(read(&path).expect("reads"), rows);
        let input = InputArtifact {
            id: crate::digest::Digest::of(b""),
            kind: crate::pipeline::ArtifactType::Dataset,
            files: [("rows.jsonl".to_owned(), path)].into(),
            skip: 1,
            take: Some(1),
            calling: None,
        };
        assert_eq!(read_input(&input).expect("reads"), rows[1..2]);
    }

    #[test]
    fn a_broken_or_doubled_row_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        write(&path, &[row("a"), row("a")]).expect("writes");
        assert!(read(&path).expect_err("doubled").to_string().contains("line 2"));
        fs_err::write(&path, "{\"id\": \"a\"}\n[]\n").expect("writes");
        assert!(read(&path).expect_err("no object").to_string().contains("line 2"));
    }
}
