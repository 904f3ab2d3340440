//! The index and the files that it is a view of: it is made from them, and told where it says what they do not.

use std::collections::BTreeMap;

use rusqlite::OpenFlags;

use super::{Index, bytes, existing, insert_latest, insert_node, insert_run};
use crate::digest::Digest;
use crate::store::{Store, StoreError};

impl Index {
    /// The index if there is one, as it is; errs in words if it is damaged.
    pub(in crate::store) fn look(store: &Store) -> Result<Option<Self>, String> {
        let path = store.root().join("index.sqlite");
        let open = |flags| existing(&path, flags).map_err(|error| error.to_string());
        let opened = match open(OpenFlags::SQLITE_OPEN_READ_WRITE) {
            Ok(Some(connection)) => Some(connection),
            _ => open(OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let Some(connection) = opened else { return Ok(None) };
        match connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0)) {
            Ok(said) if said == "ok" => Ok(Some(Self { connection })),
            Ok(said) => Err(said),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The runs that it knows.
    pub(in crate::store) fn run_ids(&self) -> Vec<String> {
        self.collect("SELECT run FROM runs ORDER BY run", [], |row| row.get(0))
    }

    /// Forgets runs, and what is recorded under keys.
    pub(in crate::store) fn drop_records(&mut self, keys: &[Digest], runs: &[String]) {
        if keys.is_empty() && runs.is_empty() {
            return;
        }
        self.write(|connection| {
            let transaction = connection.transaction()?;
            for key in keys {
                transaction.prepare_cached("DELETE FROM nodes WHERE key = ?1")?.execute([bytes(key)])?;
                transaction.prepare_cached("DELETE FROM inputs WHERE key = ?1")?.execute([bytes(key)])?;
            }
            for run in runs {
                transaction.prepare_cached("DELETE FROM runs WHERE run = ?1")?.execute([run])?;
            }
            transaction.commit()
        });
    }

    /// Puts in all that the files say.
    pub(super) fn fill(&mut self, store: &Store) -> Result<(), StoreError> {
        let transaction = self.connection.transaction()?;
        // A run that was killed has no list of nodes; what it recorded carries its name.
        let mut killed: BTreeMap<String, Vec<(String, Digest)>> = BTreeMap::new();
        let runs = store.runs()?;
        for run in runs.iter().filter(|run| run.nodes.is_empty()) {
            killed.insert(run.run.clone(), Vec::new());
        }
        for key in store.node_keys()? {
            if let Some(record) = store.node(&key)? {
                insert_node(&transaction, &record)?;
                if let Some(nodes) = killed.get_mut(&record.run) {
                    nodes.push((record.node, key));
                }
            }
        }
        for run in runs {
            insert_run(&transaction, &run)?;
            for (node, key) in killed.remove(&run.run).unwrap_or_default() {
                insert_latest(&transaction, &run.pipeline, &node, &key)?;
            }
            for node in &run.nodes {
                if let (Some(key), Some(_)) = (&node.key, &node.artifact) {
                    insert_latest(&transaction, &run.pipeline, &node.name, key)?;
                }
            }
        }
        Ok(transaction.commit()?)
    }
}
