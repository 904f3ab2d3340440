//! `index.sqlite`: a view of the store's files for questions that would have to read many of them.
//!
//! It can be deleted at any time: it is made again when it is absent, damaged or of another schema. What it alone
//! knows (stamps, which files a source was read from) only saves time. Hence no write to it can fail a command.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use serde_json::{Map, Value};

use super::{AttemptRecord, NodeRecord, RunRecord, Stamps, Store, StoreError, uses};
use crate::digest::Digest;
use crate::fs;

/// Raised with the tables; an index of another schema is made again.
const SCHEMA: i64 = 2;

const TABLES: &str = "
    CREATE TABLE nodes (key BLOB PRIMARY KEY, node TEXT, pipeline TEXT, kind TEXT, artifact BLOB, run TEXT,
        attempt INTEGER, started TEXT, seconds REAL, metrics TEXT) WITHOUT ROWID;
    CREATE INDEX nodes_artifact ON nodes (artifact);
    CREATE INDEX nodes_kind ON nodes (kind, run);
    CREATE TABLE inputs (key BLOB, field TEXT, artifact BLOB, PRIMARY KEY (key, field)) WITHOUT ROWID;
    CREATE INDEX inputs_artifact ON inputs (artifact);
    CREATE TABLE latest (pipeline TEXT, node TEXT, key BLOB, PRIMARY KEY (pipeline, node)) WITHOUT ROWID;
    CREATE TABLE runs (run TEXT PRIMARY KEY, pipeline TEXT, file TEXT, started TEXT, finished TEXT, ok INTEGER);
    CREATE TABLE attempts (run TEXT, node TEXT, attempt INTEGER, key BLOB, state TEXT, error TEXT, seconds REAL,
        directory TEXT, PRIMARY KEY (run, node, attempt)) WITHOUT ROWID;
    CREATE TABLE sources (declaration BLOB PRIMARY KEY, artifact BLOB) WITHOUT ROWID;
    CREATE TABLE named (name TEXT, artifact BLOB, PRIMARY KEY (name, artifact)) WITHOUT ROWID;
    CREATE TABLE seals (artifact BLOB PRIMARY KEY, seal BLOB) WITHOUT ROWID;
";

/// The open index.
#[derive(Debug)]
pub struct Index {
    connection: Connection,
}

impl Index {
    /// Opens the index of a store, making it from the files if it is absent, damaged or of another schema. Where it
    /// cannot be written it is read, or else made in memory.
    pub fn open(store: &Store) -> Result<Self, StoreError> {
        let path = store.root().join("index.sqlite");
        if let Ok(Some(connection)) = existing(&path, OpenFlags::SQLITE_OPEN_READ_WRITE) {
            return Ok(Self { connection });
        }
        match Self::rebuild(store) {
            Ok(index) => Ok(index),
            Err(error) => {
                tracing::debug!("the index cannot be written: {error}");
                if let Ok(Some(connection)) = existing(&path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
                    return Ok(Self { connection });
                }
                let mut index = Self { connection: fresh(Connection::open_in_memory()?)? };
                index.fill(store)?;
                Ok(index)
            }
        }
    }

    /// Makes the index again from the files. It is made beside and renamed, so that others find a whole one.
    pub fn rebuild(store: &Store) -> Result<Self, StoreError> {
        let path = store.root().join("index.sqlite");
        let unfinished = fs::unfinished(&store.root().join("tmp"));
        fs::create(&unfinished)?;
        let made = (|| {
            let mut index = Self { connection: fresh(Connection::open(&unfinished)?)? };
            index.fill(store)?;
            drop(index);
            // A journal of the old one must not be played into the new one.
            fs::remove_file(&store.root().join("index.sqlite-journal"))?;
            fs::rename(&unfinished, &path)?;
            existing(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        })();
        if made.is_err() {
            fs::discard(&unfinished);
        }
        let damaged = || StoreError::Damaged { what: format!("`{}` cannot be read back", path.display()) };
        Ok(Self { connection: made?.ok_or_else(damaged)? })
    }

    /// As [`Index::rebuild`], but what only the index knows of artifacts that are still there is kept.
    pub(super) fn rebuild_with_memory(store: &Store) -> Result<Self, StoreError> {
        let old = Self::open(store)?;
        let seals = old.pairs("SELECT artifact, seal FROM seals", |row| Ok((digest(row, 0)?, row.get(1)?)));
        let sources =
            old.pairs("SELECT declaration, artifact FROM sources", |row| Ok((digest(row, 0)?, digest(row, 1)?)));
        drop(old);
        let mut index = Self::rebuild(store)?;
        let there: HashSet<Digest> = store.artifact_ids()?.into_iter().collect();
        index.save_stamps(&Stamps::unsaved(seals.into_iter().filter(|(id, _)| there.contains(id)).collect()));
        index.write(|connection| {
            let transaction = connection.transaction()?;
            let mut sources: Vec<_> = sources.iter().filter(|(_, id)| there.contains(id)).collect();
            sources.sort_unstable();
            for (declaration, artifact) in sources {
                let insert = "INSERT OR REPLACE INTO sources VALUES (?1, ?2)";
                transaction.prepare_cached(insert)?.execute([bytes(declaration), bytes(artifact)])?;
            }
            transaction.commit()
        });
        Ok(index)
    }

    fn fill(&mut self, store: &Store) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        for key in store.node_keys()? {
            if let Some(record) = store.node(&key)? {
                insert_node(&transaction, &record)?;
            }
        }
        for run in store.runs()? {
            insert_run(&transaction, &run)?;
            for node in &run.nodes {
                if let (Some(key), Some(_)) = (&node.key, &node.artifact) {
                    insert_latest(&transaction, &run.pipeline, &node.name, key)?;
                }
            }
        }
        Ok(transaction.commit()?)
    }

    /// The artifact that a source had when its declaration and stamps hashed to this.
    pub fn source(&self, declaration: &Digest) -> Option<Digest> {
        let query = "SELECT artifact FROM sources WHERE declaration = ?1";
        self.connection.query_row(query, [bytes(declaration)], |row| digest(row, 0)).ok()
    }

    /// Remembers the artifact that a source was read into.
    pub fn remember_source(&mut self, declaration: &Digest, artifact: &Digest) {
        let insert = "INSERT OR REPLACE INTO sources VALUES (?1, ?2)";
        self.write(|connection| connection.execute(insert, [bytes(declaration), bytes(artifact)]).map(drop));
    }

    /// Every node key with the artifact recorded under it.
    pub fn artifacts_by_key(&self) -> HashMap<Digest, Digest> {
        self.pairs("SELECT key, artifact FROM nodes", |row| Ok((digest(row, 0)?, digest(row, 1)?)))
    }

    /// The key that each node of a pipeline had when it last had an artifact.
    pub fn latest_keys(&self, pipeline: &str) -> HashMap<String, Digest> {
        let query = "SELECT node, key FROM latest WHERE pipeline = ?1";
        self.collect(query, [pipeline], |row| Ok((row.get(0)?, digest(row, 1)?))).into_iter().collect()
    }

    /// Sets latest keys of nodes of a pipeline.
    pub fn set_latest(&mut self, pipeline: &str, keys: &BTreeMap<String, Digest>) {
        if keys.is_empty() {
            return;
        }
        self.write(|connection| {
            let transaction = connection.transaction()?;
            for (node, key) in keys {
                insert_latest(&transaction, pipeline, node, key)?;
            }
            transaction.commit()
        });
    }

    /// The key that the node of this name had latest in any pipeline, that of the latest run if there are several.
    pub fn latest_of(&self, node: &str) -> Option<Digest> {
        let query = "SELECT latest.key FROM latest LEFT JOIN nodes ON nodes.key = latest.key WHERE latest.node = ?1
            ORDER BY nodes.run DESC, latest.pipeline LIMIT 1";
        self.connection.query_row(query, [node], |row| digest(row, 0)).ok()
    }

    /// All seals, for [`Store::health`].
    pub fn stamps(&self) -> Stamps {
        Stamps::loaded(self.pairs("SELECT artifact, seal FROM seals", |row| Ok((digest(row, 0)?, row.get(1)?))))
    }

    /// Writes the seals that changed.
    pub fn save_stamps(&mut self, stamps: &Stamps) {
        if stamps.changes().next().is_none() {
            return;
        }
        self.write(|connection| {
            let transaction = connection.transaction()?;
            for (artifact, seal) in stamps.changes() {
                match seal {
                    Some(seal) => transaction
                        .prepare_cached("INSERT OR REPLACE INTO seals VALUES (?1, ?2)")?
                        .execute(params![bytes(artifact), seal])?,
                    None => transaction
                        .prepare_cached("DELETE FROM seals WHERE artifact = ?1")?
                        .execute([bytes(artifact)])?,
                };
            }
            transaction.commit()
        });
    }

    /// Adds a node record that is in the store.
    pub fn add_node(&mut self, record: &NodeRecord) {
        self.write(|connection| {
            let transaction = connection.transaction()?;
            insert_node(&transaction, record)?;
            transaction.commit()
        });
    }

    /// Adds an attempt.
    pub fn add_attempt(&mut self, attempt: &AttemptRecord) {
        let insert = "INSERT OR REPLACE INTO attempts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let AttemptRecord { run, node, attempt, key, state, error, seconds, directory } = attempt;
        self.write(|connection| {
            let row = params![run, node, attempt, bytes(key), state, error, seconds, directory];
            connection.prepare_cached(insert)?.execute(row).map(drop)
        });
    }

    /// Adds or updates a run.
    pub fn add_run(&mut self, record: &RunRecord) {
        self.write(|connection| insert_run(connection, record));
    }

    /// Wall seconds and metrics by node key.
    pub fn figures(&self) -> HashMap<Digest, (f64, Map<String, Value>)> {
        self.pairs("SELECT key, seconds, metrics FROM nodes", |row| {
            let metrics = row.get_ref(2)?.as_str()?;
            let metrics = if metrics == "{}" { Map::new() } else { serde_json::from_str(metrics).unwrap_or_default() };
            Ok((digest(row, 0)?, (row.get(1)?, metrics)))
        })
    }

    /// The artifact that a node name, or a prefix of an artifact's id or a node key, means.
    pub fn resolve(&self, store: &Store, what: &str) -> Result<Digest, StoreError> {
        let of_key = |key: &Digest| Ok::<_, StoreError>(store.node(key)?.map(|record| record.artifact));
        if let Some(key) = self.latest_of(what)
            && let Some(artifact) = of_key(&key)?
        {
            return Ok(artifact);
        }
        let unknown = || StoreError::Unknown(what.to_owned());
        if what.len() < 2 || !what.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(unknown());
        }
        let begins = |ids: Vec<Digest>| -> Vec<Digest> {
            ids.into_iter().filter(|id| id.to_string().starts_with(what)).collect()
        };
        let artifacts = begins(store.artifact_ids()?);
        match artifacts[..] {
            [id] => return Ok(id),
            [] => {}
            _ => return Err(StoreError::Ambiguous { prefix: what.to_owned(), ids: artifacts }),
        }
        let keys = begins(store.node_keys()?);
        match &keys[..] {
            [key] => of_key(key)?.ok_or_else(unknown),
            [] => Err(unknown()),
            _ => Err(StoreError::Ambiguous { prefix: what.to_owned(), ids: keys }),
        }
    }

    /// Writes; what goes wrong is logged and costs time only.
    fn write(&mut self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<()>) {
        if let Err(error) = work(&mut self.connection) {
            self.complain(&error);
        }
    }

    fn pairs<K: Eq + std::hash::Hash, V>(
        &self,
        query: &str,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<(K, V)>,
    ) -> HashMap<K, V> {
        self.collect(query, [], read).into_iter().collect()
    }

    pub(super) fn collect<T>(
        &self,
        query: &str,
        params: impl rusqlite::Params,
        read: impl FnMut(&rusqlite::Row<'_>) -> rusqlite::Result<T>,
    ) -> Vec<T> {
        let rows = self.connection.prepare_cached(query).and_then(|mut query| query.query_map(params, read)?.collect());
        rows.unwrap_or_else(|error| {
            self.complain(&error);
            Vec::new()
        })
    }

    /// Logs an error; deletes an index that turns out to be damaged, so that the next command makes it again.
    fn complain(&self, error: &rusqlite::Error) {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                tracing::warn!("the index is damaged ({error}); the next command makes it again");
                if let Some(path) = self.connection.path() {
                    fs::discard(Path::new(path));
                }
            }
            Some(ErrorCode::ReadOnly) => tracing::debug!("the index is read-only"),
            _ => tracing::warn!("the index could not be used, which costs time only: {error}"),
        }
    }
}

/// Opens an index that is there and of this schema.
fn existing(path: &Path, flags: OpenFlags) -> Result<Option<Connection>, StoreError> {
    if !path.exists() {
        return Ok(None);
    }
    let connection = Connection::open_with_flags(path, flags | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    configure(&connection)?;
    let schema: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let writable = !connection.is_readonly("main")?;
    let wanted = flags.contains(OpenFlags::SQLITE_OPEN_READ_WRITE);
    Ok(Some(connection).filter(|_| schema == SCHEMA && (writable || !wanted)))
}

fn fresh(connection: Connection) -> rusqlite::Result<Connection> {
    configure(&connection)?;
    connection.execute_batch(TABLES)?;
    connection.pragma_update(None, "user_version", SCHEMA)?;
    Ok(connection)
}

/// No WAL: its shared memory fails on network file systems. No syncs: after a power cut the index is made again.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "cache_size", -8192)
}

fn insert_node(connection: &Connection, record: &NodeRecord) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO nodes VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)";
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
        Value::Object(record.metrics.clone()).to_string(),
    ])?;
    for (field, artifact) in &record.inputs {
        connection.prepare_cached("INSERT OR REPLACE INTO inputs VALUES (?1, ?2, ?3)")?.execute(params![
            bytes(&record.key),
            field,
            bytes(artifact)
        ])?;
    }
    uses::insert_named(connection, record)
}

fn insert_run(connection: &Connection, run: &RunRecord) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO runs VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
    let row = params![run.run, run.pipeline, run.file, run.started, run.finished, run.ok];
    connection.prepare_cached(insert)?.execute(row).map(drop)
}

fn insert_latest(connection: &Connection, pipeline: &str, node: &str, key: &Digest) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO latest VALUES (?1, ?2, ?3)";
    connection.prepare_cached(insert)?.execute(params![pipeline, node, bytes(key)]).map(drop)
}

pub(super) fn bytes(digest: &Digest) -> &[u8] {
    digest.as_bytes()
}

pub(super) fn digest(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get::<_, [u8; 32]>(column).map(Digest::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::record::tests::{record, run};
    use super::*;

    fn filled(root: &Path) -> (Store, Vec<NodeRecord>) {
        let store = Store::open(root).unwrap();
        let a = record(&store, "a", "one").unwrap();
        let mut b = record(&store, "b", "two").unwrap();
        b.inputs.insert("data".into(), a.artifact);
        for record in [&a, &b] {
            store.put_node(record).unwrap();
        }
        store.put_run(&run(&a.run, &[&a, &b])).unwrap();
        (store, vec![a, b])
    }

    #[test]
    fn the_index_is_made_from_the_files_whatever_is_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let (store, records) = filled(directory.path());
        let path = directory.path().join("index.sqlite");
        let garbage: &[&[u8]] = &[b"", b"not a database, but long enough to have a header of a hundred bytes............................................................"];
        for garbage in garbage {
            fs::write_atomic(&path, garbage).unwrap();
            let index = Index::open(&store).unwrap();
            assert_eq!(index.artifacts_by_key()[&records[0].key], records[0].artifact);
            assert_eq!(index.latest_keys("toy")["b"], records[1].key);
            assert_eq!(index.figures()[&records[0].key].0, 0.5);
            assert_eq!(index.makers(&records[0].artifact)[0].node, "a");
            assert_eq!(index.users(&records[0].artifact)[0].field, "data");
        }
        assert!(fs::list(&store.tmp()).unwrap().is_empty());
    }

    #[test]
    fn two_processes_share_it_and_seals_survive() {
        let directory = tempfile::tempdir().unwrap();
        let (store, records) = filled(directory.path());
        let (mut one, mut two) = (Index::open(&store).unwrap(), Index::open(&store).unwrap());
        let keys = BTreeMap::from([("a".to_owned(), records[1].key)]);
        one.set_latest("toy", &keys);
        two.remember_source(&records[0].key, &records[0].artifact);
        assert_eq!(two.latest_keys("toy")["a"], records[1].key);
        assert_eq!(one.source(&records[0].key), Some(records[0].artifact));
        std::thread::sleep(Duration::from_millis(60));
        let mut stamps = one.stamps();
        store.health(&records[0].artifact, &mut stamps).unwrap();
        one.save_stamps(&stamps);
        let mut stamps = two.stamps();
        store.health(&records[0].artifact, &mut stamps).unwrap();
        assert_eq!(stamps.changes().count(), 0);
    }

    #[test]
    #[ignore = "a measurement: writes 10,000 artifacts, then prints the time of the pass of a run with nothing to do"]
    #[expect(clippy::print_stderr, reason = "a measurement is for reading")]
    fn ten_thousand_nodes() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut keys = BTreeMap::new();
        for number in 0..10_000 {
            let name = format!("node-{number}");
            let record = record(&store, &name, &name).unwrap();
            store.put_node(&record).unwrap();
            keys.insert(name, record.key);
        }
        std::thread::sleep(Duration::from_millis(60));
        let mut index = Index::open(&store).unwrap();
        index.set_latest("toy", &keys);
        for pass in ["first", "second"] {
            let start = std::time::Instant::now();
            let (artifacts, mut stamps) = (index.artifacts_by_key(), index.stamps());
            let (latest, figures) = (index.latest_keys("toy"), index.figures());
            let loaded = start.elapsed();
            let mut artifacts: Vec<_> = artifacts.into_values().collect();
            artifacts.sort_unstable();
            for artifact in &artifacts {
                assert_eq!(store.health(artifact, &mut stamps).unwrap(), super::super::Health::Whole);
            }
            eprintln!("{pass}: loaded {loaded:?}, in all {:?}; {} figures", start.elapsed(), figures.len());
            assert_eq!(latest.len(), 10_000);
            index.save_stamps(&stamps);
        }
    }

    #[test]
    fn names_and_prefixes_resolve() {
        let directory = tempfile::tempdir().unwrap();
        let (store, records) = filled(directory.path());
        let index = Index::open(&store).unwrap();
        let [a, b] = &records[..] else { panic!() };
        assert_eq!(index.resolve(&store, "a").unwrap(), a.artifact);
        assert_eq!(index.resolve(&store, &b.artifact.short()).unwrap(), b.artifact);
        assert_eq!(index.resolve(&store, &b.key.short()).unwrap(), b.artifact);
        assert!(matches!(index.resolve(&store, "nothing"), Err(StoreError::Unknown(_))));
        assert!(matches!(index.resolve(&store, "ffffffffffff"), Err(StoreError::Unknown(_))));
    }
}
