//! What went from the store goes from the index.

use std::collections::HashSet;

use super::{Index, bytes, digest};
use crate::digest::Digest;
use crate::store::gc::Gone;

impl Index {
    /// Forgets what is no longer in the store. The keys that nodes had latest stay: that a record is gone is worth telling.
    pub(in crate::store) fn forget(&mut self, gone: &Gone) {
        self.write(|connection| {
            let transaction = connection.transaction()?;
            for key in &gone.keys {
                transaction.prepare_cached("DELETE FROM nodes WHERE key = ?1")?.execute([bytes(key)])?;
                transaction.prepare_cached("DELETE FROM inputs WHERE key = ?1")?.execute([bytes(key)])?;
            }
            for id in &gone.artifacts {
                transaction.prepare_cached("DELETE FROM artifacts WHERE id = ?1")?.execute([bytes(id)])?;
                transaction.prepare_cached("DELETE FROM seals WHERE artifact = ?1")?.execute([bytes(id)])?;
            }
            for run in &gone.runs {
                transaction.prepare_cached("DELETE FROM runs WHERE run = ?1")?.execute([run])?;
                transaction.prepare_cached("DELETE FROM attempts WHERE run = ?1")?.execute([run])?;
            }
            // By artifact there is no index; the table is small.
            let gone: HashSet<&Digest> = gone.artifacts.iter().collect();
            let mut sources = transaction.prepare("SELECT declaration, artifact FROM sources")?;
            let rows = sources.query_map([], |row| Ok((digest(row, 0)?, digest(row, 1)?)))?;
            let stale: Vec<Digest> = rows
                .filter_map(|row| row.ok().filter(|(_, id)| gone.contains(id)).map(|(declared, _)| declared))
                .collect();
            drop(sources);
            for declared in &stale {
                transaction.execute("DELETE FROM sources WHERE declaration = ?1", [bytes(declared)])?;
            }
            transaction.commit()
        });
    }
}
