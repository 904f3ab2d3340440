//! `index.sqlite`: a view of the store's files for questions that would have to read many of them.
//!
//! It can be deleted at any time: it is made again when it is absent, damaged or of another schema. What it alone
//! knows (stamps, which files a source was read from) only saves time. Hence no write to it can fail a command.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OpenFlags, params};
use serde_json::{Map, Value};

use super::{AttemptRecord, NodeRecord, RunRecord, Stamps, Store, StoreError};
use crate::digest::Digest;
use crate::fs;

mod batch;
mod catch_up;
mod edges;
mod forget;
mod glimpse;
mod insert;
mod list;
mod place;
mod restore;

pub use glimpse::Glimpse;
pub use list::{Line, Lines, Maker, Order, Wanted};

pub(super) use edges::objects;
use insert::{NodeRow, insert_latest, insert_node, insert_run};
pub(super) use insert::{bytes, digest};

/// Raised with the tables; an index of another schema is made again.
const SCHEMA: i64 = 5;

const TABLES: &str = "
    CREATE TABLE nodes (key BLOB PRIMARY KEY, node TEXT, pipeline TEXT, kind TEXT, artifact BLOB, run TEXT,
        attempt INTEGER, started TEXT, seconds REAL, metrics TEXT, device TEXT, price REAL, made INTEGER,
        bytes INTEGER,
        equal BLOB) WITHOUT ROWID;
    CREATE TABLE inputs (key BLOB, field TEXT, artifact BLOB, PRIMARY KEY (key, field)) WITHOUT ROWID;
    CREATE TABLE artifacts (id BLOB PRIMARY KEY, type TEXT, size INTEGER, files INTEGER, bytes INTEGER, objects BLOB,
        made INTEGER, maker BLOB) WITHOUT ROWID;
    CREATE TABLE unlisted (artifact BLOB PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE shards (folder TEXT, shard TEXT, changed INTEGER, PRIMARY KEY (folder, shard)) WITHOUT ROWID;
    CREATE TABLE latest (pipeline TEXT, node TEXT, key BLOB, PRIMARY KEY (pipeline, node)) WITHOUT ROWID;
    CREATE TABLE runs (run TEXT PRIMARY KEY, pipeline TEXT, file TEXT, started TEXT, finished TEXT, ok INTEGER);
    CREATE TABLE attempts (run TEXT, node TEXT, attempt INTEGER, key BLOB, state TEXT, error TEXT, seconds REAL,
        directory TEXT, PRIMARY KEY (run, node, attempt)) WITHOUT ROWID;
    CREATE TABLE sources (declaration BLOB PRIMARY KEY, artifact BLOB) WITHOUT ROWID;
    CREATE TABLE named (name TEXT, artifact BLOB, PRIMARY KEY (name, artifact)) WITHOUT ROWID;
    CREATE TABLE seals (artifact BLOB PRIMARY KEY, seal BLOB) WITHOUT ROWID;
";

/// Made when the tables are filled, which is faster. Whatever is listed is listed in the order of one of them.
const INDEXES: &str = "
    CREATE INDEX nodes_artifact ON nodes (artifact, made);
    CREATE INDEX nodes_node ON nodes (node, made, pipeline);
    CREATE INDEX nodes_pipeline ON nodes (pipeline, made);
    CREATE INDEX nodes_kind ON nodes (kind, run);
    CREATE INDEX inputs_artifact ON inputs (artifact);
    CREATE INDEX latest_node ON latest (node);
    UPDATE artifacts SET (made, maker) =
        (SELECT made, key FROM nodes WHERE artifact = id ORDER BY made DESC, key DESC LIMIT 1);
    CREATE INDEX artifacts_made ON artifacts (made);
    CREATE INDEX artifacts_type ON artifacts (type, made);
    CREATE INDEX artifacts_size ON artifacts (size);
    CREATE INDEX artifacts_type_size ON artifacts (type, size);
";

/// The open index.
#[derive(Debug)]
pub struct Index {
    connection: Connection,
    /// Which file it is open on, if one: device and inode.
    at: Option<(u64, u64)>,
}

impl Index {
    /// Opens the index of a store, making it from the files if it is absent, damaged or of another schema. Where it
    /// cannot be written it is read, or else made in memory; as is that of a store which is only looked for.
    pub fn open(store: &Store) -> Result<Self, StoreError> {
        if !store.exists() {
            return Self::in_memory(store);
        }
        let path = store.root().join("index.sqlite");
        if let Ok(Some(index)) = Self::existing(&path, OpenFlags::SQLITE_OPEN_READ_WRITE) {
            return Ok(index);
        }
        match Self::rebuild(store) {
            Ok(index) => Ok(index),
            Err(error) => {
                tracing::debug!("the index cannot be written: {error}");
                if let Ok(Some(index)) = Self::existing(&path, OpenFlags::SQLITE_OPEN_READ_ONLY) {
                    return Self::copy_of(&path).or(Ok(index));
                }
                Self::in_memory(store)
            }
        }
    }

    fn in_memory(store: &Store) -> Result<Self, StoreError> {
        let mut index = Self { connection: fresh(Connection::open_in_memory()?)?, at: None };
        index.fill(store)?;
        Ok(index)
    }

    /// A copy in memory of an index that can only be read: one that follows the files, too.
    fn copy_of(path: &Path) -> Result<Self, StoreError> {
        let connection = fresh(Connection::open_in_memory()?)?;
        connection.execute("ATTACH ?1 AS there", [path.to_string_lossy()])?;
        let query = "SELECT group_concat(name) FROM main.sqlite_schema WHERE type = 'table'";
        let tables: String = connection.query_row(query, [], |row| row.get(0))?;
        for table in tables.split(',') {
            connection.execute(&format!("INSERT INTO main.{table} SELECT * FROM there.{table}"), [])?;
        }
        connection.execute("DETACH there", [])?;
        connection.execute_batch(INDEXES)?;
        Ok(Self { connection, at: None })
    }

    /// Makes the index again from the files. It is made beside, so that others find a whole one.
    pub fn rebuild(store: &Store) -> Result<Self, StoreError> {
        let path = store.root().join("index.sqlite");
        let unfinished = store.unfinished()?;
        fs::create(&unfinished)?;
        let made = (|| {
            let connection = fresh(Connection::open(&unfinished)?)?;
            // Of no use to anyone until it is whole; what is sorted goes to the disk by the size of the cache.
            connection.execute_batch("PRAGMA journal_mode = OFF; PRAGMA cache_size = -49152")?;
            let mut index = Self { connection, at: None };
            index.fill(store)?;
            drop(index);
            place::put(&unfinished, &path)?;
            store.forget_answers()?;
            Self::existing(&path, OpenFlags::SQLITE_OPEN_READ_WRITE)
        })();
        if made.is_err() {
            fs::discard(&unfinished);
        }
        let damaged = || StoreError::Damaged { what: format!("`{}` cannot be read back", path.display()) };
        made?.ok_or_else(damaged)
    }

    /// Opens an index that is there and of this schema.
    fn existing(path: &Path, flags: OpenFlags) -> Result<Option<Self>, StoreError> {
        // Before it is opened: if another takes its place in between, that shows at the first write.
        let at = file_at(path);
        Ok(existing(path, flags)?.map(|connection| Self { connection, at }))
    }

    /// Opens the index that has taken the place of the one that is open, if one has: what is written into a file that was
    /// replaced is read by no one.
    fn follow(&mut self) {
        let Some(path) = self.connection.path().filter(|_| self.at.is_some()).map(Path::new) else { return };
        if file_at(path) == self.at {
            return;
        }
        match Self::existing(path, OpenFlags::SQLITE_OPEN_READ_WRITE) {
            Ok(Some(index)) => *self = index,
            _ => tracing::debug!("the index was taken away"),
        }
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

    /// How many node records there are.
    pub fn node_count(&self) -> usize {
        self.collect("SELECT COUNT(*) FROM nodes", [], |row| row.get::<_, i64>(0))
            .first()
            .map_or(0, |count| *count as usize)
    }

    /// The artifact recorded under a key.
    pub fn artifact_of(&self, key: &Digest) -> Option<Digest> {
        self.collect("SELECT artifact FROM nodes WHERE key = ?1", [bytes(key)], |row| digest(row, 0)).pop()
    }

    /// The key that a node of a pipeline had when it last had an artifact.
    pub fn latest_key(&self, pipeline: &str, node: &str) -> Option<Digest> {
        let query = "SELECT key FROM latest WHERE pipeline = ?1 AND node = ?2";
        self.collect(query, [pipeline, node], |row| digest(row, 0)).pop()
    }

    /// How large the index is, in bytes.
    pub fn size(&self) -> u64 {
        let pages = |pragma| self.connection.query_row(pragma, [], |row| row.get::<_, i64>(0)).unwrap_or(0) as u64;
        pages("PRAGMA page_count") * pages("PRAGMA page_size")
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
            let transaction = connection.savepoint()?;
            for (node, key) in keys {
                insert_latest(&transaction, pipeline, node, key)?;
            }
            transaction.commit()
        });
    }

    /// The key that the node of this name had latest in any pipeline: that of the latest run.
    pub fn latest_of(&self, node: &str) -> Option<Digest> {
        let query = "SELECT latest.key FROM latest LEFT JOIN nodes ON nodes.key = latest.key WHERE latest.node = ?1
            ORDER BY nodes.run DESC, latest.pipeline LIMIT 1";
        self.connection.query_row(query, [node], |row| digest(row, 0)).ok()
    }

    /// All seals, for [`Store::health`].
    pub fn stamps(&self) -> Stamps {
        Stamps::loaded(self.pairs("SELECT artifact, seal FROM seals", |row| Ok((digest(row, 0)?, row.get(1)?))))
    }

    /// Takes the seal of an artifact into `stamps`.
    pub fn load_stamp(&self, stamps: &mut Stamps, artifact: &Digest) {
        if stamps.seal(artifact).is_none() {
            let seal = "SELECT seal FROM seals WHERE artifact = ?1";
            let seals = self.collect(seal, [bytes(artifact)], |row| row.get(0));
            seals.into_iter().for_each(|seal| stamps.load(*artifact, seal));
        }
    }

    /// Takes the seals that are not in `stamps` yet into it.
    pub fn load_stamps(&self, stamps: &mut Stamps) {
        let seals = self.collect("SELECT artifact, seal FROM seals", [], |row| Ok((digest(row, 0)?, row.get(1)?)));
        seals.into_iter().for_each(|(artifact, seal)| stamps.load(artifact, seal));
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
            let transaction = connection.savepoint()?;
            // Whose maker is another one now is found out when somebody lists them.
            let unlist = "INSERT OR IGNORE INTO unlisted SELECT artifact FROM nodes WHERE key = ?1 UNION SELECT ?2";
            transaction.prepare_cached(unlist)?.execute([bytes(&record.key), bytes(&record.artifact)])?;
            insert_node(&transaction, &NodeRow::new(record, None))?;
            transaction.commit()
        });
    }

    /// Adds an attempt.
    pub fn add_attempt(&mut self, attempt: &AttemptRecord) {
        let insert = "INSERT OR REPLACE INTO attempts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
        let AttemptRecord { run, node, attempt, key, state, error, seconds, directory } = attempt;
        let row = params![run, node, attempt, bytes(key), state, error, seconds, directory];
        self.write(|connection| connection.prepare_cached(insert)?.execute(row).map(drop));
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
        let artifacts = store.artifacts_beginning(what)?;
        match artifacts[..] {
            [id] => return Ok(id),
            [] => {}
            _ => return Err(StoreError::Ambiguous { prefix: what.to_owned(), ids: artifacts }),
        }
        let keys = store.keys_beginning(what)?;
        match &keys[..] {
            [key] => of_key(key)?.ok_or_else(unknown),
            [] => Err(unknown()),
            _ => Err(StoreError::Ambiguous { prefix: what.to_owned(), ids: keys }),
        }
    }

    /// Writes; what goes wrong is logged and costs time only.
    fn write(&mut self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<()>) {
        self.follow();
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

/// Which file is at a path.
fn file_at(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
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
    Ok(connection)
}

/// No WAL: its shared memory fails on network file systems. No syncs: after a power cut the index is made again. The
/// journal stays where it is: to make a file and remove it costs more than to write it.
fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(10))?;
    connection.execute_batch("PRAGMA synchronous = OFF; PRAGMA journal_mode = TRUNCATE; PRAGMA cache_size = -8192")
}

#[cfg(test)]
mod property;
#[cfg(test)]
mod tests;
