//! The index and the files that it is a view of: it is made from them, and told where it says what they do not.

use rusqlite::OpenFlags;

use super::Index;
use crate::store::Store;

impl Index {
    /// The index if there is one, as it is; errs in words if it is damaged.
    pub(in crate::store) fn look(store: &Store) -> Result<Option<Self>, String> {
        let path = store.root().join("index.sqlite");
        let open = |flags| Self::existing(&path, flags).map_err(|error| error.to_string());
        let opened = match open(OpenFlags::SQLITE_OPEN_READ_WRITE) {
            Ok(Some(index)) => Some(index),
            _ => open(OpenFlags::SQLITE_OPEN_READ_ONLY)?,
        };
        let Some(index) = opened else { return Ok(None) };
        let said = index.connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get::<_, String>(0));
        match said {
            Ok(said) if said == "ok" => Ok(Some(index)),
            Ok(said) => Err(said),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The runs that it knows.
    pub(in crate::store) fn run_ids(&self) -> Vec<String> {
        self.collect("SELECT run FROM runs ORDER BY run", [], |row| row.get(0))
    }
}
