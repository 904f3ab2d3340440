//! All that a store has, in memory, as compactly as a million artifacts ask for: what gc and `du` decide by.
//!
//! Records, artifacts and objects are known by their places in three sorted lists, and edges between them are places.
//! An inventory of the files is the truth. (That of the index is faster to make.)

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Mutex;

use super::cas::Blob;
use super::cas::LARGEST_MANIFEST;
use super::glance::{ManifestGlance, RecordGlance};
use super::ids::{Ids, each_name, id_in};
use super::record::price;
use super::{Index, Store, StoreError};
use crate::digest::Digest;
use crate::fs;

/// No such artifact.
const NONE: u32 = u32::MAX;

/// All that a store has.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    /// Keys of records, those of damaged ones, too.
    pub(super) keys: Ids,
    /// By place among the keys; `None` of damaged ones.
    pub(super) records: Vec<Option<Record>>,
    /// Inputs of records, by place among the artifacts.
    inputs: Vec<u32>,
    /// Ids of artifacts.
    pub(super) artifacts: Ids,
    /// By place among the artifacts.
    pub(super) manifests: Vec<Artifact>,
    /// Objects that artifacts stand on, by place among the objects.
    stands: Vec<u32>,
    /// Digests of objects.
    pub(super) objects: Ids,
    /// Bytes by place among the objects; 0 where no artifact tells.
    pub(super) sizes: Vec<u64>,
    /// Names of pipelines and nodes, of kinds and of runs: what records name by number.
    pub(super) names: Names,
    /// Names of types of artifacts.
    pub(super) types: Names,
    /// Whether the index says so: good for telling what would go, not for letting it go.
    pub(super) is_view: bool,
}

/// A node record.
#[derive(Debug, Clone)]
pub(super) struct Record {
    /// Its artifact, by place.
    artifact: u32,
    inputs: (u32, u32),
    /// Pipeline and node, by number.
    pub(super) node: u32,
    /// The kind of the node, by number.
    pub(super) kind: u32,
    /// The run, by number.
    pub(super) run: u32,
    /// When it was made, in seconds since 1970.
    pub(super) made: i64,
    /// Wall seconds that it took.
    pub(super) seconds: f32,
    /// Whether on a GPU.
    pub(super) gpu: bool,
    /// Seconds on a processor that it would cost: see [`NodeRecord::price`](super::NodeRecord::price).
    pub(super) price: f32,
    /// Bytes of its file.
    pub(super) bytes: u32,
}

/// An artifact.
#[derive(Debug, Clone, Default)]
pub(super) struct Artifact {
    stands: (u32, u32),
    /// Its type, by number.
    pub(super) kind: u32,
    /// Bytes of its manifest.
    pub(super) bytes: u32,
}

/// Strings by number, each once.
#[derive(Debug, Default)]
pub(super) struct Names {
    numbers: HashMap<String, u32>,
    names: Vec<String>,
}

impl Names {
    pub(super) fn number(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.numbers.insert(name.to_owned(), number);
        number
    }

    /// The number of a name that something has.
    pub(super) fn find(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// All of them, by number.
    pub(super) fn all(&self) -> &[String] {
        &self.names
    }

    pub(super) fn get(&self, number: u32) -> &str {
        self.names.get(number as usize).map_or("", String::as_str)
    }
}

/// `PIPELINE/NODE`, as one name.
pub(super) fn node_name(pipeline: &str, node: &str) -> String {
    format!("{pipeline}/{node}")
}

/// What a shard came to.
#[derive(Default)]
struct Shard<T> {
    ids: Vec<Digest>,
    items: Vec<T>,
    edges: Vec<u32>,
}

impl<T> Shard<T> {
    /// Joins shards in their order; `shift` moves an item's edges by so many.
    fn join(shards: Vec<Self>, mut shift: impl FnMut(&mut T, u32)) -> (Vec<Digest>, Vec<T>, Vec<u32>) {
        let (mut ids, mut items, mut edges) = (Vec::new(), Vec::new(), Vec::new());
        ids.reserve_exact(shards.iter().map(|shard| shard.ids.len()).sum());
        items.reserve_exact(shards.iter().map(|shard| shard.items.len()).sum());
        edges.reserve_exact(shards.iter().map(|shard| shard.edges.len()).sum());
        for mut shard in shards {
            let by = edges.len() as u32;
            shard.items.iter_mut().for_each(|item| shift(item, by));
            ids.append(&mut shard.ids);
            items.append(&mut shard.items);
            edges.append(&mut shard.edges);
        }
        (ids, items, edges)
    }
}

impl Record {
    /// Its artifact, if that is there.
    pub(super) fn artifact(&self) -> Option<usize> {
        (self.artifact != NONE).then_some(self.artifact as usize)
    }
}

/// Files under a directory of the store, and their bytes.
pub(super) fn weigh(directory: &Path) -> Result<(u64, u64), StoreError> {
    let files = fs::walk(directory)?;
    Ok((files.len() as u64, files.iter().map(|file| super::gc::size(file)).sum()))
}

impl Inventory {
    /// Reads all files of the store but the objects. What comes into the store meanwhile may be in it or not.
    ///
    /// Errs if the disk does. A record or manifest that is damaged counts, and needs nothing.
    pub(super) fn of_files(store: &Store) -> Result<Self, StoreError> {
        let (names, types) = (Mutex::new(Names::default()), Mutex::new(Names::default()));
        // Objects before the manifests that name them, manifests before records: what is listed later may name what came
        // later, which is then no candidate for anything.
        let Objects { ids: objects, thin } = store.list_objects()?;
        let sizes: Vec<std::sync::atomic::AtomicU64> = (0..objects.len()).map(|_| 0.into()).collect();
        let manifests = store.each_shard("artifacts", |shard| {
            let mut found = Shard { ids: super::ids::shard_ids(shard, ".json")?, ..Shard::default() };
            for id in &found.ids {
                let start = found.edges.len() as u32;
                let (kind, bytes) = read_manifest(store, id, &thin, &types, &mut |blob| {
                    found.edges.extend(objects.find(&blob.digest).map(|place| {
                        sizes[place].store(blob.size, std::sync::atomic::Ordering::Relaxed);
                        place as u32
                    }));
                })?;
                found.items.push(Artifact { stands: (start, found.edges.len() as u32), kind, bytes });
            }
            Ok(found)
        })?;
        let (ids, manifests, stands) = Shard::join(manifests, |artifact: &mut Artifact, by| {
            artifact.stands = (artifact.stands.0 + by, artifact.stands.1 + by);
        });
        let artifacts = Ids::new(ids);
        let records = store.each_shard("nodes", |shard| {
            let mut found = Shard { ids: super::ids::shard_ids(shard, ".json")?, ..Shard::default() };
            for key in &found.ids {
                found.items.push(read_record(store, key, &artifacts, &names, &mut found.edges)?);
            }
            Ok(found)
        })?;
        let (keys, records, inputs) = Shard::join(records, |record: &mut Option<Record>, by| {
            if let Some(record) = record {
                record.inputs = (record.inputs.0 + by, record.inputs.1 + by);
            }
        });
        Ok(Self {
            keys: Ids::new(keys),
            records,
            inputs,
            artifacts,
            manifests,
            stands,
            objects,
            sizes: sizes.into_iter().map(std::sync::atomic::AtomicU64::into_inner).collect(),
            names: names.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
            types: types.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner),
            is_view: false,
        })
    }

    /// As [`Inventory::of_files`], but what artifacts and records say is taken from the index, which is brought up to the
    /// directories first. For telling only: a record that was written over may say something else.
    pub(super) fn of_index(store: &Store, index: &mut Index) -> Result<Self, StoreError> {
        index.catch_up(store)?;
        let (objects, ids) = std::thread::scope(|scope| {
            let objects = scope.spawn(|| store.list_objects());
            let ids = index.artifact_ids();
            (objects.join(), ids)
        });
        let objects = objects.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.ids;
        let artifacts = Ids::new(ids?);
        let reader = index.reader(store);
        let (nodes, (manifests, stands, sizes, types)) = match reader {
            Some(reader) => std::thread::scope(|scope| {
                let known = &artifacts;
                let nodes = scope.spawn(move || nodes_of(&reader, known));
                let manifests = manifests_of(index, &objects, &artifacts);
                let nodes = nodes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                Ok::<_, StoreError>((nodes?, manifests?))
            })?,
            None => (nodes_of(index, &artifacts)?, manifests_of(index, &objects, &artifacts)?),
        };
        let (keys, records, inputs, names) = nodes;
        Ok(Self { keys, records, inputs, artifacts, manifests, stands, objects, sizes, names, types, is_view: true })
    }

    /// The objects that an artifact stands on.
    pub(super) fn stands(&self, artifact: usize) -> impl Iterator<Item = usize> {
        let (start, end) = self.manifests[artifact].stands;
        self.stands[start as usize..end as usize].iter().map(|place| *place as usize)
    }

    /// The inputs of a record that are there.
    pub(super) fn inputs(&self, record: &Record) -> impl Iterator<Item = usize> {
        let (start, end) = record.inputs;
        self.inputs[start as usize..end as usize].iter().map(|place| *place as usize)
    }
}

/// Type and length of a manifest; hands on the objects that it stands on.
fn read_manifest(
    store: &Store,
    id: &Digest,
    thin: &HashSet<Digest>,
    kinds: &Mutex<Names>,
    stand: &mut dyn FnMut(&Blob),
) -> Result<(u32, u32), StoreError> {
    let Some(bytes) = read(&store.manifest_path(id))? else { return Ok((0, 0)) };
    let length = bytes.len() as u32;
    let number = |name: &str| kinds.lock().unwrap_or_else(std::sync::PoisonError::into_inner).number(name);
    let glance: Option<ManifestGlance<'_>> =
        Some(&bytes).filter(|bytes| Digest::of(bytes) == *id).and_then(|bytes| serde_json::from_slice(bytes).ok());
    let Some(manifest) = glance else { return Ok((number("damaged"), length)) };
    each_stand(store, manifest.files.values(), &|blob| thin.contains(blob), stand)?;
    Ok((number(&manifest.kind), length))
}

/// Hands on the objects that the bytes of files lie in, and the sizes of these. One that lies in parts counts with them: what
/// says in which is a file of its own, under its digest.
pub(super) fn each_stand<'a>(
    store: &Store,
    blobs: impl Iterator<Item = &'a Blob>,
    is_thin: &dyn Fn(&Digest) -> bool,
    stand: &mut dyn FnMut(&Blob),
) -> Result<(), StoreError> {
    for blob in blobs {
        if !is_thin(&blob.digest) {
            stand(blob);
            continue;
        }
        stand(&Blob { size: super::gc::size(&store.sharded("objects", &blob.digest, PARTS)), ..*blob });
        for digest in store.kept_by(&blob.digest)? {
            let size = super::gc::size(&store.blob_path(&digest));
            stand(&Blob { digest, size });
        }
    }
    Ok(())
}

fn read_record(
    store: &Store,
    key: &Digest,
    artifacts: &Ids,
    names: &Mutex<Names>,
    inputs: &mut Vec<u32>,
) -> Result<Option<Record>, StoreError> {
    let Some(bytes) = read(&store.node_path(key))? else { return Ok(None) };
    let glance: Option<RecordGlance<'_>> = serde_json::from_slice(&bytes).ok();
    let Some(glance) = glance.filter(|record| record.key == *key) else { return Ok(None) };
    let start = inputs.len() as u32;
    let equal = glance.equal_to_within.map(|equal| equal.artifact);
    inputs.extend(glance.inputs.values().chain(&equal).filter_map(|id| artifacts.find(id)).map(|place| place as u32));
    let made = second(&glance.started);
    let mut names = names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(Some(Record {
        artifact: artifacts.find(&glance.artifact).map_or(NONE, |place| place as u32),
        inputs: (start, inputs.len() as u32),
        node: names.number(&node_name(&glance.pipeline, &glance.node)),
        kind: names.number(&glance.kind),
        run: names.number(&glance.run),
        made,
        seconds: glance.seconds as f32,
        gpu: glance.device.starts_with("cuda"),
        price: price(glance.seconds, &glance.device, glance.usage.as_ref()) as f32,
        bytes: bytes.len() as u32,
    }))
}

/// The bytes of a file; `None` if it is gone, and none of one that is too large to be what it should be.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    use std::io::ErrorKind;
    match fs::read(path, LARGEST_MANIFEST) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) if super::is_no_file(&error) => Ok(Some(Vec::new())),
        Err(error) => Err(error.into()),
    }
}

/// A time in RFC 3339, in seconds since 1970.
fn second(time: &str) -> i64 {
    time.parse().map_or(0, jiff::Timestamp::as_second)
}

type Nodes = (Ids, Vec<Option<Record>>, Vec<u32>, Names);

fn nodes_of(index: &Index, artifacts: &Ids) -> Result<Nodes, StoreError> {
    let (mut keys, mut records, mut inputs, mut names) = (Vec::new(), Vec::new(), Vec::new(), Names::default());
    let mut name = String::new();
    index.each_node(|node, taken| {
        let start = inputs.len() as u32;
        inputs.extend(taken.iter().filter_map(|id| artifacts.find(id)).map(|place| place as u32));
        name.clear();
        name.push_str(node.pipeline);
        name.push('/');
        name.push_str(node.node);
        keys.push(node.key);
        records.push(Some(Record {
            artifact: artifacts.find(&node.artifact).map_or(NONE, |place| place as u32),
            inputs: (start, inputs.len() as u32),
            node: names.number(&name),
            kind: names.number(node.kind),
            run: names.number(node.run),
            made: second(node.started),
            seconds: node.seconds as f32,
            gpu: node.device.starts_with("cuda"),
            price: node.price as f32,
            bytes: node.bytes,
        }));
    })?;
    Ok((Ids::new(keys), records, inputs, names))
}

type Manifests = (Vec<Artifact>, Vec<u32>, Vec<u64>, Names);

/// By place among `artifacts`: whoever lists others, or fewer, in the meantime changes nothing of that.
fn manifests_of(index: &Index, objects: &Ids, artifacts: &Ids) -> Result<Manifests, StoreError> {
    let mut manifests = Vec::with_capacity(artifacts.len());
    let (mut stands, mut types) = (Vec::new(), Names::default());
    let mut sizes = vec![0; objects.len()];
    index.each_artifact(|artifact| {
        while artifacts.all().get(manifests.len()).is_some_and(|id| *id < artifact.id) {
            manifests.push(Artifact::default());
        }
        if artifacts.all().get(manifests.len()) != Some(&artifact.id) {
            return;
        }
        let start = stands.len() as u32;
        for (id, size) in super::index::objects(artifact.objects) {
            // One that was left outside, or that went, takes no room.
            if let Some(place) = objects.find(&id) {
                sizes[place] = size;
                stands.push(place as u32);
            }
        }
        let kind = types.number(artifact.kind);
        manifests.push(Artifact { stands: (start, stands.len() as u32), kind, bytes: artifact.bytes });
    })?;
    manifests.resize(artifacts.len(), Artifact::default());
    Ok((manifests, stands, sizes, types))
}

/// The objects of a store.
#[derive(Debug)]
pub(super) struct Objects {
    /// Their digests.
    pub(super) ids: Ids,
    /// Those that lie in parts.
    pub(super) thin: HashSet<Digest>,
}

/// What follows an object's name where the file says only which others it lies in.
pub(super) use crate::pieces::SUFFIX as PARTS;

impl Store {
    /// Lists the objects.
    pub(super) fn list_objects(&self) -> Result<Objects, StoreError> {
        let shards = self.each_shard("objects", |shard| {
            let (mut ids, mut thin) = (Vec::new(), Vec::new());
            each_name(shard, |name| {
                let whole = name.strip_suffix(PARTS);
                let id = id_in(shard, whole.unwrap_or(name));
                ids.extend(id);
                thin.extend(id.filter(|_| whole.is_some()));
            })?;
            ids.sort_unstable();
            ids.dedup();
            Ok((ids, thin))
        })?;
        let (mut ids, mut thin) = (Vec::new(), HashSet::new());
        for (some, some_thin) in shards {
            ids.extend(some);
            thin.extend(some_thin);
        }
        Ok(Objects { ids: Ids::new(ids), thin })
    }

    /// The objects that lie in parts.
    pub(super) fn thin_objects(&self) -> Result<HashSet<Digest>, StoreError> {
        let shards = self.each_shard("objects", |shard| {
            let mut thin = Vec::new();
            each_name(shard, |name| thin.extend(name.strip_suffix(PARTS).and_then(|whole| id_in(shard, whole))))?;
            Ok(thin)
        })?;
        Ok(shards.into_iter().flatten().collect())
    }

    /// The objects that a blob keeps. A recipe that is damaged keeps none: the next run makes it and its pieces again.
    pub(super) fn kept_by(&self, id: &Digest) -> Result<Vec<Digest>, StoreError> {
        match self.stands_on(id) {
            Err(StoreError::Damaged { .. }) => Ok(Vec::new()),
            other => other,
        }
    }

    /// Whether an object lies in parts.
    pub(super) fn is_thin(&self, id: &Digest) -> bool {
        self.sharded("objects", id, PARTS).exists()
    }
}
