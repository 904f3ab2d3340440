//! What went from the store goes from the index.

use std::collections::HashSet;

use rusqlite::Connection;

use super::{Index, bytes, digest};
use crate::digest::Digest;
use crate::store::gc::Gone;

/// Rows that go in one transaction: while it lasts nobody else writes.
const AT_ONCE: usize = 2000;

impl Index {
    /// Forgets what is no longer in the store. The keys that nodes had latest stay: that a record is gone is worth telling.
    pub(in crate::store) fn forget(&mut self, gone: &Gone) {
        for keys in gone.keys.chunks(AT_ONCE) {
            self.each(keys, |connection, key| {
                // Who made its artifact may be another one now.
                let unlist = "INSERT OR IGNORE INTO unlisted SELECT artifact FROM nodes WHERE key = ?1";
                connection.prepare_cached(unlist)?.execute([bytes(key)])?;
                connection.prepare_cached("DELETE FROM nodes WHERE key = ?1")?.execute([bytes(key)])?;
                connection.prepare_cached("DELETE FROM inputs WHERE key = ?1")?.execute([bytes(key)]).map(drop)
            });
        }
        for ids in gone.artifacts.chunks(AT_ONCE) {
            self.each(ids, |connection, id| {
                connection.prepare_cached("DELETE FROM artifacts WHERE id = ?1")?.execute([bytes(id)])?;
                connection.prepare_cached("DELETE FROM seals WHERE artifact = ?1")?.execute([bytes(id)]).map(drop)
            });
        }
        for runs in gone.runs.chunks(AT_ONCE) {
            self.each(runs, |connection, run| {
                connection.prepare_cached("DELETE FROM runs WHERE run = ?1")?.execute([run])?;
                connection.prepare_cached("DELETE FROM attempts WHERE run = ?1")?.execute([run]).map(drop)
            });
        }
        // By artifact there is no index; the table is small.
        let gone: HashSet<&Digest> = gone.artifacts.iter().collect();
        let sources = "SELECT declaration, artifact FROM sources";
        let mut sources = self.collect(sources, [], |row| Ok((digest(row, 0)?, digest(row, 1)?)));
        sources.retain(|(_, id)| gone.contains(id));
        self.each(&sources, |connection, (declared, _)| {
            let delete = "DELETE FROM sources WHERE declaration = ?1";
            connection.prepare_cached(delete)?.execute([bytes(declared)]).map(drop)
        });
    }

    /// Forgets that artifacts were found whole.
    pub(in crate::store) fn unseal(&mut self, artifacts: &[Digest]) {
        for ids in artifacts.chunks(AT_ONCE) {
            self.each(ids, |connection, id| {
                connection.prepare_cached("DELETE FROM seals WHERE artifact = ?1")?.execute([bytes(id)]).map(drop)
            });
        }
    }

    /// Does something with each, in one transaction.
    fn each<T>(&mut self, all: &[T], work: impl Fn(&Connection, &T) -> rusqlite::Result<()>) {
        self.write(|connection| {
            let transaction = connection.transaction()?;
            all.iter().try_for_each(|one| work(&transaction, one))?;
            transaction.commit()
        });
    }
}
