//! Rows of the tables, in and out.

use rusqlite::{Connection, params};
use serde_json::Value;

use crate::digest::Digest;
use crate::store::uses::insert_named;
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

/// Adds a record, of a file with so many bytes if that is known.
pub(super) fn insert_node<P>(
    connection: &Connection,
    record: &NodeRecord<P>,
    length: Option<u64>,
) -> rusqlite::Result<()> {
    let insert =
        "INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15)";
    let metrics =
        if record.metrics.is_empty() { "{}".to_owned() } else { Value::Object(record.metrics.clone()).to_string() };
    connection.prepare_cached(insert)?.execute(params![
        bytes(&record.key),
        record.node,
        record.pipeline,
        record.kind,
        bytes(&record.artifact),
        record.run,
        record.attempt,
        record.started,
        record.seconds,
        metrics,
        record.device,
        record.price(),
        made(&record.run, &record.started),
        length.unwrap_or(0) as i64,
        record.equal_to_within.as_ref().map(|equal| bytes(&equal.artifact)),
    ])?;
    for (field, artifact) in &record.inputs {
        connection.prepare_cached("INSERT OR REPLACE INTO inputs VALUES (?1, ?2, ?3)")?.execute(params![
            bytes(&record.key),
            field,
            bytes(artifact)
        ])?;
    }
    insert_named(connection, record)
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
