//! Everything that the index knows of artifacts and records, in the order of ids: what an inventory is made of.

use super::{Index, digest};
use crate::digest::Digest;
use crate::store::{Store, StoreError};

/// A row of the artifacts.
pub(in crate::store) struct ArtifactEdges<'a> {
    pub(in crate::store) id: Digest,
    pub(in crate::store) kind: &'a str,
    /// Bytes of the manifest.
    pub(in crate::store) bytes: u32,
    /// Digests and sizes of objects: see [`objects`].
    pub(in crate::store) objects: &'a [u8],
}

/// A row of the nodes.
pub(in crate::store) struct NodeEdges<'a> {
    pub(in crate::store) key: Digest,
    pub(in crate::store) artifact: Digest,
    pub(in crate::store) pipeline: &'a str,
    pub(in crate::store) node: &'a str,
    pub(in crate::store) kind: &'a str,
    pub(in crate::store) run: &'a str,
    pub(in crate::store) started: &'a str,
    pub(in crate::store) seconds: f64,
    pub(in crate::store) device: &'a str,
    pub(in crate::store) price: f64,
    /// Bytes of the record; 0 where that is not known.
    pub(in crate::store) bytes: u32,
}

/// The objects in a row of the artifacts: digest and size.
pub(in crate::store) fn objects(packed: &[u8]) -> impl Iterator<Item = (Digest, u64)> {
    packed.as_chunks::<40>().0.iter().filter_map(|one| {
        let (id, size) = one.split_first_chunk::<32>()?;
        Some((Digest::from_bytes(*id), u64::from_le_bytes(size.try_into().ok()?)))
    })
}

impl Index {
    /// A second connection to the same index, for another thread; `None` of one in memory.
    pub(in crate::store) fn reader(&self, store: &Store) -> Option<Self> {
        self.connection.path().filter(|path| !path.is_empty())?;
        let path = store.root().join("index.sqlite");
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        Self::existing(&path, flags).ok().flatten()
    }

    /// Ids of artifacts, in order.
    pub(in crate::store) fn artifact_ids(&self) -> Result<Vec<Digest>, StoreError> {
        let mut query = self.connection.prepare("SELECT id FROM artifacts ORDER BY id")?;
        let ids = query.query_map([], |row| digest(row, 0))?;
        Ok(ids.collect::<rusqlite::Result<_>>()?)
    }

    /// Hands on all artifacts, in the order of ids.
    pub(in crate::store) fn each_artifact(&self, mut see: impl FnMut(&ArtifactEdges<'_>)) -> Result<(), StoreError> {
        let mut query = self.connection.prepare("SELECT id, type, bytes, objects FROM artifacts ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
            let objects = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
            see(&ArtifactEdges { id: digest(row, 0)?, kind: text(1)?, bytes: row.get(2)?, objects });
        }
        Ok(())
    }

    /// Hands on all records, in the order of keys, each with its inputs, and with the artifact that its own counts as.
    pub(in crate::store) fn each_node(&self, mut see: impl FnMut(&NodeEdges<'_>, &[Digest])) -> Result<(), StoreError> {
        let mut nodes = self.connection.prepare(
            "SELECT key, artifact, pipeline, node, kind, run, started, seconds, device, price, bytes, equal
                FROM nodes ORDER BY key",
        )?;
        let mut inputs = self.connection.prepare("SELECT key, artifact FROM inputs ORDER BY key")?;
        let mut inputs = inputs.query([])?;
        let mut ahead: Option<(Digest, Digest)> = None;
        let mut taken = Vec::new();
        let mut rows = nodes.query([])?;
        while let Some(row) = rows.next()? {
            let text = |column| row.get_ref(column)?.as_str().map_err(rusqlite::Error::from);
            let key = digest(row, 0)?;
            taken.clear();
            loop {
                match ahead.take() {
                    Some((of, artifact)) if of == key => taken.push(artifact),
                    // Inputs of a record that is gone.
                    Some((of, _)) if of < key => {}
                    Some(other) => {
                        ahead = Some(other);
                        break;
                    }
                    None => {}
                }
                ahead = match inputs.next()? {
                    Some(row) => Some((digest(row, 0)?, digest(row, 1)?)),
                    None => break,
                };
            }
            if let Some(equal) = row.get::<_, Option<[u8; 32]>>(11)? {
                taken.push(Digest::from_bytes(equal));
            }
            let node = NodeEdges {
                key,
                artifact: digest(row, 1)?,
                pipeline: text(2)?,
                node: text(3)?,
                kind: text(4)?,
                run: text(5)?,
                started: text(6)?,
                seconds: row.get(7)?,
                device: text(8)?,
                price: row.get(9)?,
                bytes: row.get(10)?,
            };
            see(&node, &taken);
        }
        Ok(())
    }
}
