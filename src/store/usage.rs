//! What takes how much room.

use std::collections::BTreeMap;

use serde::Serialize;

use super::gc::STAY;
use super::inventory::Inventory;
use super::inventory::weigh;
use super::{Index, Store, StoreError};

/// A part of the store and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Share {
    /// `objects: model`, `rows`, `runs`, …; a pipeline; a kind.
    pub part: String,
    /// Files in it, or artifacts.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What takes how much room, each list largest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Shares {
    /// Bytes in all.
    pub bytes: u64,
    /// All files, by what they are. An object that several artifacts share counts for the first of them.
    pub parts: Vec<Share>,
    /// Artifacts and their objects by the pipeline that made them last; `(from outside)` are sources.
    pub pipelines: Vec<Share>,
    /// The same by the kind of the node.
    pub kinds: Vec<Share>,
}

/// What no node made.
const OUTSIDE: &str = "(from outside)";

impl Store {
    /// What takes how much room, as far as the index knows.
    pub fn shares(&self, index: &mut Index) -> Result<Shares, StoreError> {
        let inventory = Inventory::of_index(self, index)?;
        let mut makers: Vec<Option<usize>> = vec![None; inventory.artifacts.len()];
        let mut nodes = (0, 0);
        for (place, record) in inventory.records.iter().enumerate() {
            let Some(record) = record else { continue };
            nodes.0 += 1;
            nodes.1 += match record.bytes {
                0 => super::gc::size(&self.node_path(&inventory.keys[place])),
                bytes => u64::from(bytes),
            };
            let Some(artifact) = record.artifact() else { continue };
            let known = makers[artifact].and_then(|place| inventory.records[place].as_ref());
            if known.is_none_or(|known| known.made < record.made) {
                makers[artifact] = Some(place);
            }
        }
        let mut seen = vec![false; inventory.objects.len()];
        let [mut parts, mut pipelines, mut kinds] = [(); 3].map(|()| BTreeMap::<String, (u64, u64)>::new());
        let mut manifests = (0, 0);
        for (artifact, manifest) in inventory.manifests.iter().enumerate() {
            manifests.0 += 1;
            manifests.1 += u64::from(manifest.bytes);
            let mut own = (0, 0);
            for object in inventory.stands(artifact) {
                if !std::mem::replace(&mut seen[object], true) {
                    own.0 += 1;
                    own.1 += self.object_bytes(&inventory, object);
                }
            }
            add(&mut parts, &format!("objects: {}", inventory.types.get(manifest.kind)), own);
            let maker = makers[artifact].and_then(|place| inventory.records[place].as_ref());
            let of_maker = maker.map(|maker| (inventory.names.get(maker.node), inventory.names.get(maker.kind)));
            let pipeline =
                of_maker.and_then(|(name, _)| name.split_once('/')).map_or(OUTSIDE, |(pipeline, _)| pipeline);
            add(&mut pipelines, pipeline, (1, own.1));
            add(&mut kinds, of_maker.map_or(OUTSIDE, |(_, kind)| kind), (1, own.1));
        }
        for object in (0..inventory.objects.len()).filter(|object| !seen[*object]) {
            add(&mut parts, "objects: unused", (1, self.object_bytes(&inventory, object)));
        }
        add(&mut parts, "artifacts", manifests);
        add(&mut parts, "nodes", nodes);
        for part in STAY.iter().chain(&["partial", "quarantine", "rows", "runs", "tmp", "trash"]) {
            add(&mut parts, part, weigh(&self.root.join(part))?);
        }
        add(&mut parts, "index", (1, super::gc::size(&self.root.join("index.sqlite"))));
        let [parts, pipelines, kinds] = [parts, pipelines, kinds].map(sorted);
        Ok(Shares { bytes: parts.iter().map(|share| share.bytes).sum(), parts, pipelines, kinds })
    }
}

fn add(shares: &mut BTreeMap<String, (u64, u64)>, part: &str, (files, bytes): (u64, u64)) {
    if files == 0 {
        return;
    }
    match shares.get_mut(part) {
        Some(share) => *share = (share.0 + files, share.1 + bytes),
        None => _ = shares.insert(part.to_owned(), (files, bytes)),
    }
}

fn sorted(shares: BTreeMap<String, (u64, u64)>) -> Vec<Share> {
    let mut shares: Vec<_> = shares.into_iter().map(|(part, (files, bytes))| Share { part, files, bytes }).collect();
    shares.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.part.cmp(&b.part)));
    shares
}
