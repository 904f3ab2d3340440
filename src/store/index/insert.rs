//! Rows of the tables, in and out.

use rusqlite::{Connection, params};
use serde_json::Value;

use crate::digest::Digest;
use crate::store::{NodeRecord, RunRecord};

/// Milliseconds that a run can last before its nodes are in order by their keys alone.
const LONGEST: i64 = 1 << 28;

/// Where a record stands among all: by its run, then by the time within it. Ids of runs are in order even if the clock was not.
pub(super) fn made(run: &str, started: &str) -> i64 {
    let started = started.parse().map_or(0, jiff::Timestamp::as_millisecond);
    let stamp = run.get(..15).and_then(|stamp| jiff::civil::DateTime::strptime("%Y%m%d-%H%M%S", stamp).ok());
    let begun = stamp.and_then(|civil| jiff::tz::TimeZone::UTC.to_timestamp(civil).ok());
    let begun = begun.map_or(started / 1000, jiff::Timestamp::as_second);
    begun * LONGEST + (started - begun * 1000).clamp(0, LONGEST - 1)
}

/// The least that [`made`] is for runs that began at a time or later.
pub(super) fn made_since(time: jiff::Timestamp) -> i64 {
    time.as_second().saturating_mul(LONGEST)
}

/// What the index has of a record: a fifth of what the record is in memory.
pub(super) struct NodeRow {
    pub(super) key: Digest,
    pub(super) artifact: Digest,
    node: String,
    pipeline: String,
    kind: String,
    run: String,
    attempt: u32,
    started: String,
    seconds: f64,
    metrics: String,
    device: String,
    price: f64,
    made: i64,
    /// Bytes of its file; 0 where that is not known.
    bytes: u64,
    equal: Option<Digest>,
    /// Artifacts by field.
    inputs: Vec<(String, Digest)>,
    /// Artifacts by what the source is called that each was taken from.
    named: Vec<(String, Digest)>,
}

impl NodeRow {
    /// Of a record, and of how many bytes its file has if that is known.
    pub(super) fn new<P>(record: &NodeRecord<P>, length: Option<u64>) -> Self {
        let metrics =
            if record.metrics.is_empty() { "{}".to_owned() } else { Value::Object(record.metrics.clone()).to_string() };
        let named = record.sources.iter().filter_map(|(field, name)| Some((name.clone(), *record.inputs.get(field)?)));
        Self {
            key: record.key,
            artifact: record.artifact,
            node: record.node.clone(),
            pipeline: record.pipeline.clone(),
            kind: record.kind.clone(),
            run: record.run.clone(),
            attempt: record.attempt,
            started: record.started.clone(),
            seconds: record.seconds,
            metrics,
            device: record.device.clone(),
            price: record.price(),
            made: made(&record.run, &record.started),
            bytes: length.unwrap_or(0),
            equal: record.equal_to_within.as_ref().map(|equal| equal.artifact),
            inputs: record.inputs.iter().map(|(field, artifact)| (field.clone(), *artifact)).collect(),
            named: named.collect(),
        }
    }
}

/// Adds a record.
pub(super) fn insert_node(connection: &Connection, row: &NodeRow) -> rusqlite::Result<()> {
    let insert =
        "INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
    connection.prepare_cached(insert)?.execute(params![
        bytes(&row.key),
        row.node,
        row.pipeline,
        row.kind,
        bytes(&row.artifact),
        row.run,
        row.attempt,
        row.started,
        row.seconds,
        row.metrics,
        row.device,
        row.price,
        row.made,
        row.bytes as i64,
        row.equal.as_ref().map(bytes),
    ])?;
    for (field, artifact) in &row.inputs {
        let insert = "INSERT OR REPLACE INTO inputs VALUES (?1, ?2, ?3)";
        connection.prepare_cached(insert)?.execute(params![bytes(&row.key), field, bytes(artifact)])?;
    }
    for (name, artifact) in &row.named {
        let insert = "INSERT OR IGNORE INTO named VALUES (?1, ?2)";
        connection.prepare_cached(insert)?.execute(params![name, bytes(artifact)])?;
    }
    Ok(())
}

pub(super) fn insert_run(connection: &Connection, run: &RunRecord) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let row = params![run.run, run.pipeline, run.file, run.started, run.finished, run.ok];
    connection.prepare_cached(insert)?.execute(row).map(drop)
}

pub(super) fn insert_latest(connection: &Connection, pipeline: &str, node: &str, key: &Digest) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO latest VALUES (?1, ?2, ?3)";
    connection.prepare_cached(insert)?.execute(params![pipeline, node, bytes(key)]).map(drop)
}

pub(in crate::store) fn bytes(digest: &Digest) -> &[u8] {
    digest.as_bytes()
}

pub(in crate::store) fn digest(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get::<_, [u8; 32]>(column).map(Digest::from_bytes)
}
