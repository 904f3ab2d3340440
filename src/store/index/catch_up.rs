//! The tables of artifacts and nodes are what the store's directories list, again.
//!
//! A directory's own time of change tells whether names were added or removed in it. So of a store in which nothing happened 512
//! directories are looked at and none is read, and of one into which another was copied what is new is read. A record that was
//! written over under the same name does not show like that; who writes one adds it itself.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::sync_channel;

use rayon::prelude::*;
use rusqlite::{Connection, params};
use serde::de::IgnoredAny;

use super::insert::{NodeRow, bytes, digest, insert_latest, insert_node, insert_run};
use super::{INDEXES, Index, SCHEMA};
use crate::digest::Digest;
use crate::store::ids::shard_ids;
use crate::store::inventory::each_stand;
use crate::store::{NodeRecord, Store, StoreError};

/// A directory that changed a shorter while ago could change once more at the same time.
const TICK: i64 = 20_000_000;
/// Directories that are read at once: in memory are the records of three times as many.
const AT_ONCE: usize = 4;
/// Threads that read: a file that is not in memory is waited for, and a disk gives many at once as soon as one.
const READERS: usize = 16;
/// Files in directories that are read at once, from which on it takes so many threads.
const MANY: usize = 500;

/// A manifest as a row.
struct ArtifactRow {
    id: Digest,
    kind: String,
    size: u64,
    files: u64,
    bytes: u64,
    /// Digests and sizes of the objects that it stands on.
    objects: Vec<u8>,
}

/// What of a directory is not in the index, and what of the index is not in it.
struct Difference {
    shard: String,
    changed: i64,
    added: Vec<Digest>,
    removed: Vec<Digest>,
}

impl Index {
    /// Fills an empty index.
    pub(super) fn fill(&mut self, store: &Store) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        let mut shards = Vec::new();
        let thin = store.thin_objects()?;
        let read = |store: &Store, id: &Digest| read_artifact(store, id, &|blob| thin.contains(blob));
        each_row(store, "artifacts", &mut shards, read, |row| insert_artifact(&transaction, &row))?;
        each_row(store, "nodes", &mut shards, read_node, |row| insert_node(&transaction, &row))?;
        for (folder, shard, changed) in shards {
            set_shard(&transaction, folder, &shard, changed)?;
        }
        for some in store.run_ids()?.chunks(AT_ONCE) {
            let runs: Result<Vec<_>, StoreError> = some.par_iter().map(|run| store.run(run)).collect();
            for run in runs?.into_iter().flatten() {
                insert_run(&transaction, &run)?;
                if run.nodes.is_empty() {
                    // One that was killed has no list of nodes; what it recorded carries its name.
                    transaction.execute_batch("CREATE INDEX IF NOT EXISTS nodes_run ON nodes (run)")?;
                    let latest = "INSERT OR REPLACE INTO latest SELECT pipeline, node, key FROM nodes WHERE run = ?1";
                    transaction.execute(latest, [&run.run])?;
                }
                for node in &run.nodes {
                    if let (Some(key), Some(_)) = (&node.key, &node.artifact) {
                        insert_latest(&transaction, &run.pipeline, &node.name, key)?;
                    }
                }
            }
        }
        transaction.execute_batch("DROP INDEX IF EXISTS nodes_run")?;
        transaction.execute_batch(INDEXES)?;
        transaction.pragma_update(None, "user_version", SCHEMA)?;
        Ok(transaction.commit()?)
    }

    /// Makes the tables of artifacts and nodes what the store's files are. Where the index cannot be written it stays what it is.
    ///
    /// Errs if the disk does.
    pub fn catch_up(&mut self, store: &Store) -> Result<(), StoreError> {
        let known: BTreeMap<(String, String), i64> = self
            .collect("SELECT folder, shard, changed FROM shards", [], |row| {
                Ok(((row.get(0)?, row.get(1)?), row.get(2)?))
            })
            .into_iter()
            .collect();
        let artifacts = self.differences(store, "artifacts", "id", &known)?;
        let nodes = self.differences(store, "nodes", "key", &known)?;
        let unlisted = self.collect("SELECT artifact FROM unlisted", [], |row| digest(row, 0));
        if artifacts.is_empty() && nodes.is_empty() && unlisted.is_empty() {
            return Ok(());
        }
        // Read before the index is locked: a run may want to write to it.
        let added = |differences: &[Difference]| -> Vec<Digest> {
            differences.iter().flat_map(|difference| difference.added.iter().copied()).collect()
        };
        let new_artifacts: Result<Vec<_>, StoreError> =
            added(&artifacts).par_iter().map(|id| read_artifact(store, id, &|blob| store.is_thin(blob))).collect();
        let new_nodes: Result<Vec<_>, StoreError> = added(&nodes).par_iter().map(|key| read_node(store, key)).collect();
        let (new_artifacts, new_nodes) = (new_artifacts?, new_nodes?);
        self.write(|connection| {
            let transaction = connection.transaction()?;
            // Artifacts of which the maker may be another one now.
            let mut touched: Vec<Digest> = unlisted;
            for artifact in new_artifacts.iter().flatten() {
                insert_artifact(&transaction, artifact)?;
                touched.push(artifact.id);
            }
            for row in new_nodes.iter().flatten() {
                insert_node(&transaction, row)?;
                touched.push(row.artifact);
            }
            let artifact_of = "SELECT artifact FROM nodes WHERE key = ?1";
            transaction.execute("DELETE FROM unlisted", [])?;
            for key in nodes.iter().flat_map(|difference| &difference.removed) {
                let row = transaction.prepare_cached(artifact_of)?.query_row([bytes(key)], |row| digest(row, 0));
                touched.extend(row.ok());
                transaction.prepare_cached("DELETE FROM nodes WHERE key = ?1")?.execute([bytes(key)])?;
                transaction.prepare_cached("DELETE FROM inputs WHERE key = ?1")?.execute([bytes(key)])?;
            }
            for id in artifacts.iter().flat_map(|difference| &difference.removed) {
                transaction.prepare_cached("DELETE FROM artifacts WHERE id = ?1")?.execute([bytes(id)])?;
            }
            touched.sort_unstable();
            touched.dedup();
            for id in &touched {
                transaction
                    .prepare_cached(
                        "UPDATE artifacts SET (made, maker) = (SELECT made, key FROM nodes WHERE artifact = ?1
                            ORDER BY made DESC, key DESC LIMIT 1) WHERE id = ?1",
                    )?
                    .execute([bytes(id)])?;
            }
            for (folder, differences) in [("artifacts", &artifacts), ("nodes", &nodes)] {
                for difference in differences {
                    set_shard(&transaction, folder, &difference.shard, difference.changed)?;
                }
            }
            transaction.commit()
        });
        Ok(())
    }

    /// What changed in the directories of a folder.
    fn differences(
        &self,
        store: &Store,
        folder: &'static str,
        id: &str,
        known: &BTreeMap<(String, String), i64>,
    ) -> Result<Vec<Difference>, StoreError> {
        let mut differences = Vec::new();
        for number in 0..=255_u8 {
            let shard = format!("{number:02x}");
            let directory = store.root().join(folder).join(&shard);
            let changed = changed(&directory);
            let before = known.get(&(folder.to_owned(), shard.clone())).copied().unwrap_or(0);
            if changed == before {
                continue;
            }
            let there = shard_ids(&directory, ".json")?;
            let (mut from, mut to) = ([0; 32], [255; 32]);
            (from[0], to[0]) = (number, number);
            let query = format!("SELECT {id} FROM {folder} WHERE {id} BETWEEN ?1 AND ?2 ORDER BY {id}");
            let listed = self.collect(&query, params![&from[..], &to[..]], |row| digest(row, 0));
            let added = there.iter().filter(|id| listed.binary_search(id).is_err()).copied().collect();
            let removed = listed.iter().filter(|id| there.binary_search(id).is_err()).copied().collect();
            differences.push(Difference { shard, changed: settled(changed), added, removed });
        }
        Ok(differences)
    }
}

/// Hands on what the files of a folder say, in the order of ids, while the next ones are read.
fn each_row<T: Send>(
    store: &Store,
    folder: &'static str,
    shards: &mut Vec<(&'static str, String, i64)>,
    read: impl Fn(&Store, &Digest) -> Result<Option<T>, StoreError> + Sync,
    mut see: impl FnMut(T) -> rusqlite::Result<()>,
) -> Result<(), StoreError> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel(1);
        let read = &read;
        scope.spawn(move || {
            let readers = std::cell::OnceCell::new();
            for some in (0..=255_u8).collect::<Vec<_>>().chunks(AT_ONCE) {
                let list = |number: &u8| {
                    let shard = format!("{number:02x}");
                    let directory = store.root().join(folder).join(&shard);
                    let changed = settled(changed(&directory));
                    Ok::<_, StoreError>((shard, changed, shard_ids(&directory, ".json")?))
                };
                let listed: Vec<_> = some.par_iter().map(list).collect();
                let files: usize = listed.iter().flatten().map(|(_, _, ids)| ids.len()).sum();
                let all = || {
                    let read_shard = |listed: Result<(String, i64, Vec<Digest>), StoreError>| {
                        let (shard, changed, ids) = listed?;
                        let rows: Result<Vec<T>, StoreError> =
                            ids.par_iter().filter_map(|id| read(store, id).transpose()).collect();
                        Ok::<_, StoreError>((shard, changed, rows?))
                    };
                    listed.into_par_iter().map(read_shard).collect()
                };
                // Of a small store the threads would cost more than the files.
                let readers = (files > MANY)
                    .then(|| readers.get_or_init(|| rayon::ThreadPoolBuilder::new().num_threads(READERS).build().ok()));
                let read: Vec<_> = match readers {
                    Some(Some(readers)) => readers.install(all),
                    _ => all(),
                };
                if sender.send(read).is_err() {
                    return;
                }
            }
        });
        for some in receiver {
            for shard in some {
                let (shard, changed, rows) = shard?;
                shards.push((folder, shard, changed));
                rows.into_iter().try_for_each(&mut see)?;
            }
        }
        Ok(())
    })
}

fn read_node(store: &Store, key: &Digest) -> Result<Option<NodeRow>, StoreError> {
    // A record that is damaged is none; one that went since it was listed, too.
    let Some(bytes) = crate::store::inventory::read(&store.node_path(key))? else { return Ok(None) };
    // The index has nothing of preimages.
    let record: Option<NodeRecord<IgnoredAny>> = serde_json::from_slice(&bytes).ok();
    Ok(record.filter(|record| record.key == *key).map(|record| NodeRow::new(&record, Some(bytes.len() as u64))))
}

fn read_artifact(
    store: &Store,
    id: &Digest,
    is_thin: &dyn Fn(&Digest) -> bool,
) -> Result<Option<ArtifactRow>, StoreError> {
    let Some(text) = crate::store::inventory::read(&store.manifest_path(id))? else { return Ok(None) };
    let manifest = match store.manifest_of(id, &text) {
        Ok(manifest) => manifest,
        // `verify` tells of it.
        Err(StoreError::Damaged { .. } | StoreError::BadName(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut objects: BTreeMap<Digest, u64> = BTreeMap::new();
    each_stand(store, manifest.files.values(), is_thin, &mut |blob| {
        objects.insert(blob.digest, blob.size);
    })?;
    let objects = objects.iter().flat_map(|(id, size)| [&id.as_bytes()[..], &size.to_le_bytes()].concat()).collect();
    let (size, files) = (manifest.size(), manifest.files.len() as u64);
    Ok(Some(ArtifactRow { id: *id, kind: manifest.kind, size, files, bytes: text.len() as u64, objects }))
}

fn insert_artifact(connection: &Connection, row: &ArtifactRow) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO artifacts VALUES (?1, ?2, ?3, ?4, ?5, ?6, NULL, NULL)";
    let ArtifactRow { id, kind, size, files, bytes: length, objects } = row;
    let row = params![bytes(id), kind, *size as i64, *files as i64, *length as i64, objects];
    connection.prepare_cached(insert)?.execute(row).map(drop)
}

fn set_shard(connection: &Connection, folder: &str, shard: &str, changed: i64) -> rusqlite::Result<()> {
    let insert = "INSERT OR REPLACE INTO shards VALUES (?1, ?2, ?3)";
    connection.prepare_cached(insert)?.execute(params![folder, shard, changed]).map(drop)
}

/// When names in a directory changed last, in nanoseconds; 0 if it is not there.
fn changed(directory: &Path) -> i64 {
    std::fs::metadata(directory).map_or(0, |directory| directory.mtime() * 1_000_000_000 + directory.mtime_nsec())
}

/// What to remember of a time at which a directory changed: it could change again at the same one, if that is now.
fn settled(changed: i64) -> i64 {
    let now = jiff::Timestamp::now().as_nanosecond();
    if now - i128::from(changed) > i128::from(TICK) { changed } else { 1 }
}
