//! What is remembered of work: node records and runs, and the directories that go with them.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Class, EqualToWithin, Health, Stamps, Store, StoreError, is_no_file, name};
use crate::digest::Digest;
use crate::fs;

/// A run of a hundred thousand nodes with their metrics stays below.
pub(super) const LARGEST_RECORD: u64 = 256 << 20;

/// In the directory of a key: the artifact that was made and is not recorded yet.
const PROMISE: &str = "made";

/// What is remembered of a node's work: the truth behind a hit. `P` is what of the preimage is in memory: it is the largest part, and
/// few need it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord<P = Value> {
    /// Format of this record.
    pub format: u32,
    /// The node key.
    pub key: Digest,
    /// Node name at the time.
    pub node: String,
    /// Pipeline name at the time.
    pub pipeline: String,
    /// Kind name.
    pub kind: String,
    /// The artifact made.
    pub artifact: Digest,
    /// The key's preimage.
    pub preimage: P,
    /// Inputs: field path → artifact id.
    pub inputs: BTreeMap<String, Digest>,
    /// What inputs from outside are called in the pipeline, by field path: `dataset:NAME` or `model:NAME`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sources: BTreeMap<String, String>,
    /// Metrics.
    pub metrics: Map<String, Value>,
    /// Run and attempt that made it.
    pub run: String,
    /// Attempt number within the run.
    pub attempt: u32,
    /// Start, as RFC 3339.
    pub started: String,
    /// Wall seconds.
    pub seconds: f64,
    /// What the attempt used, as far as it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Host name, device, version of sami.
    pub host: String,
    /// `cpu` or `cuda:N`.
    pub device: String,
    /// Version of sami.
    pub version: String,
    /// What may be expected of computing it again; none of a record of an older version, of which that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<Class>,
    /// The earlier artifact that this one counts as for what is below, if the node has a tolerance and it is within it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub equal_to_within: Option<EqualToWithin>,
}

/// What an attempt used, as far as it was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds of processors, its own and those of what it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_seconds: Option<f64>,
    /// Bytes of memory of the worker at its peak; not of what it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// Bytes of a GPU's memory at its peak, as far as it was looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_peak_bytes: Option<u64>,
    /// Seconds on a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu_seconds: Option<f64>,
    /// How often weights of a model that samples or scores were read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_loaded: Option<u32>,
    /// How often such weights were in memory from the node before, in the same worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_kept: Option<u32>,
    /// Requests to endpoints, tries again included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calls: Option<u64>,
    /// What those cost by the endpoints' prices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dollars: Option<f64>,
}

impl Usage {
    /// The same with seconds on a GPU, if none were counted.
    pub fn on_gpu_for(self, seconds: Option<f64>) -> Self {
        Self { gpu_seconds: self.gpu_seconds.or(seconds), ..self }
    }
}

/// Seconds on a processor that a second on a GPU is worth: about what they cost where they are rented.
pub const GPU: f64 = 10.0;

impl<P> NodeRecord<P> {
    /// Seconds on a processor that it would cost to make the artifact again, those on a GPU taken [`GPU`] times: as measured, or by
    /// the wall clock where it was not.
    pub fn price(&self) -> f64 {
        price(self.seconds, &self.device, self.usage.as_ref())
    }
}

/// See [`NodeRecord::price`].
pub(super) fn price(seconds: f64, device: &str, usage: Option<&Usage>) -> f64 {
    let (processors, gpu) = usage.map_or((None, None), |usage| (usage.cpu_seconds, usage.gpu_seconds));
    let wall = if device.starts_with("cuda") { seconds * GPU } else { seconds };
    match (processors, gpu) {
        (None, None) => wall,
        (Some(processors), None) if device.starts_with("cuda") => processors.max(wall),
        (processors, gpu) => processors.unwrap_or(0.0) + GPU * gpu.unwrap_or(0.0),
    }
}

/// A node in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunNode {
    /// Node name.
    pub name: String,
    /// Kind name.
    pub kind: String,
    /// `ran`, `hit`, `failed` or `skipped`.
    pub state: String,
    /// The key, if it was known.
    pub key: Option<Digest>,
    /// The artifact, if there is one.
    pub artifact: Option<Digest>,
    /// Wall seconds of the attempt that made the artifact.
    pub seconds: f64,
    /// Metrics.
    pub metrics: Map<String, Value>,
}

/// One invocation: `runs/RUN/run.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// The run's id, which sorts by time.
    pub run: String,
    /// Pipeline name.
    pub pipeline: String,
    /// Pipeline file as typed.
    pub file: String,
    /// Params after `--set`.
    pub params: BTreeMap<String, Value>,
    /// Start, as RFC 3339.
    pub started: String,
    /// End, as RFC 3339; absent while it runs and after a kill.
    pub finished: Option<String>,
    /// Whether all went well; absent while it runs and after a kill.
    pub ok: Option<bool>,
    /// Its nodes, in the order of the pipeline; none until it ends.
    pub nodes: Vec<RunNode>,
}

/// One execution of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct AttemptRecord {
    /// The run's id.
    pub run: String,
    /// Node name.
    pub node: String,
    /// Number of the attempt within the run.
    pub attempt: u32,
    /// The node key.
    pub key: Digest,
    /// `done`, `failed` or `interrupted`.
    pub state: String,
    /// Why it failed.
    pub error: Option<String>,
    /// Wall seconds.
    pub seconds: f64,
    /// Its directory within the run's.
    pub directory: String,
}

impl Store {
    /// The record under a key. One that cannot be read is as good as none: the node runs again.
    pub fn node(&self, key: &Digest) -> Result<Option<NodeRecord>, StoreError> {
        let record: Option<NodeRecord> = read_json(&self.node_path(key))?;
        Ok(record.filter(|record| record.key == *key))
    }

    /// Records a node's work. The first artifact recorded under a key stays, as long as it is whole: then its record is
    /// returned.
    pub fn put_node(&self, record: &NodeRecord) -> Result<Option<NodeRecord>, StoreError> {
        let _section = self.sharing()?;
        self.need_hits([(record.key, record.artifact)])?;
        if let Some(first) = self.node(&record.key)?
            && first.artifact != record.artifact
            && matches!(self.health(&first.artifact, &mut Stamps::default())?, Health::Whole)
        {
            return Ok(Some(first));
        }
        self.write(&self.node_path(&record.key), &checked(record)?)?;
        Ok(None)
    }

    /// Keys of all node records, in order.
    pub fn node_keys(&self) -> Result<Vec<Digest>, StoreError> {
        self.sharded_ids("nodes", ".json")
    }

    /// Keys of node records that begin with these hex digits, two at least, in order.
    pub fn keys_beginning(&self, prefix: &str) -> Result<Vec<Digest>, StoreError> {
        self.ids_beginning("nodes", ".json", prefix)
    }

    pub(super) fn node_path(&self, key: &Digest) -> PathBuf {
        self.sharded("nodes", key, ".json")
    }

    /// The directory in which attempts at a key leave what the next one can go on with; made if absent.
    pub fn partial_dir(&self, key: &Digest) -> Result<PathBuf, StoreError> {
        let directory = self.root.join("partial").join(key.to_string());
        fs::create_directory(&directory)?;
        Ok(directory)
    }

    /// Notes that an attempt at a key has made this artifact, which is not recorded yet: until it is, gc leaves it alone, however
    /// long no process lives that needs it.
    pub fn promise(&self, key: &Digest, artifact: &Digest) -> Result<(), StoreError> {
        Ok(fs::write_atomic(&self.partial_dir(key)?.join(PROMISE), artifact.to_string().as_bytes())?)
    }

    /// The artifacts that are promised. A promise that cannot be read is none.
    pub(super) fn promises(&self) -> Result<Vec<Digest>, StoreError> {
        let promise = |path: &PathBuf| fs::read_text(&path.join(PROMISE), 1 << 10).ok()?.trim().parse().ok();
        Ok(fs::list(&self.root.join("partial"))?.iter().filter_map(promise).collect())
    }

    /// Removes what attempts at a key left: one has succeeded.
    pub fn clear_partial(&self, key: &Digest) -> Result<(), StoreError> {
        Ok(fs::remove_directory(&self.root.join("partial").join(key.to_string()))?)
    }

    /// The directory in which attempts at a key have a directory each for their files; made if absent. There is more than
    /// one attempt where one was taken for dead, on another machine, and was not: each has its own.
    pub fn staging_dir(&self, key: &Digest) -> Result<PathBuf, StoreError> {
        let directory = self.tmp().join(key.to_string());
        fs::create_directory(&directory)?;
        Ok(directory)
    }

    /// The directory of a row memo; made if absent.
    pub fn rows_dir(&self, space: &Digest) -> Result<PathBuf, StoreError> {
        let directory = self.root.join("rows").join(space.to_string());
        fs::create_lasting_directory(&directory)?;
        Ok(directory)
    }

    /// The directory of a run; not made.
    pub fn run_dir(&self, run: &str) -> PathBuf {
        self.root.join("runs").join(run)
    }

    /// Records a run, as far as it is.
    pub fn put_run(&self, record: &RunRecord) -> Result<(), StoreError> {
        let directory = self.run_dir(&record.run);
        self.write(&directory.join("run.json"), &checked(record)?)?;
        // Who made the run's directory did not wait for that.
        Ok(directory.parent().map_or(Ok(()), fs::sync_directory)?)
    }

    /// Ids of all runs, oldest first.
    pub fn run_ids(&self) -> Result<Vec<String>, StoreError> {
        Ok(fs::list(&self.root.join("runs"))?.iter().map(|path| name(path)).collect())
    }

    /// A run's record, if there is one.
    pub fn run(&self, run: &str) -> Result<Option<RunRecord>, StoreError> {
        read_json(&self.run_dir(run).join("run.json"))
    }

    /// Records of all runs, oldest first.
    pub fn runs(&self) -> Result<Vec<RunRecord>, StoreError> {
        self.run_ids()?.iter().filter_map(|run| self.run(run).transpose()).collect()
    }

    /// The time to name a new run by: now, or a second after the latest run if the clock says that it is earlier.
    /// So ids of runs sort in the order of the runs even when a clock jumps back.
    pub fn run_time(&self) -> Result<jiff::Timestamp, StoreError> {
        let now = fs::now();
        let stamp = |run: &String| {
            let civil = jiff::civil::DateTime::strptime("%Y%m%d-%H%M%S", run.get(..15)?).ok()?;
            jiff::tz::TimeZone::UTC.to_timestamp(civil).ok()
        };
        let latest = self.run_ids()?.iter().rev().find_map(stamp);
        Ok(match latest {
            Some(latest) if latest >= now => latest.checked_add(jiff::SignedDuration::from_secs(1)).unwrap_or(latest),
            _ => now,
        })
    }

    /// Makes gc keep an artifact, and all that a look at it needs.
    pub fn pin(&self, id: &Digest) -> Result<(), StoreError> {
        let _section = self.sharing()?;
        self.need_artifacts([*id])?;
        self.write(&self.root.join("pins").join(id.to_string()), b"")
    }

    /// Undoes [`Store::pin`].
    pub fn unpin(&self, id: &Digest) -> Result<(), StoreError> {
        Ok(fs::remove_file(&self.root.join("pins").join(id.to_string()))?)
    }

    /// Ids that gc keeps, in order.
    pub fn pins(&self) -> Result<Vec<Digest>, StoreError> {
        Ok(fs::list(&self.root.join("pins"))?.iter().filter_map(|path| name(path).parse().ok()).collect())
    }
}

/// The name under which a record has its own digest. Records of earlier versions have none.
const CHECK: &str = "check";

/// A record as it is written: with the digest of all else that is in it.
fn checked(record: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut value = serde_json::to_value(record)?;
    let check = serde_json::to_value(Digest::of_value(&value))?;
    if let Value::Object(fields) = &mut value {
        fields.insert(CHECK.to_owned(), check);
    }
    Ok(serde_json::to_vec_pretty(&value)?)
}

/// Reads a record, `None` if there is none. What is wrong with it is told in words.
pub(super) fn sound<T: DeserializeOwned>(path: &std::path::Path) -> Result<Option<T>, String> {
    let bytes = match fs::read(path, LARGEST_RECORD) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    parse(&bytes).map(Some)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let other = || "it does not have the digest that it gives".to_owned();
    let no_record = |error: serde_json::Error| format!("it is no record: {error}");
    let no_json = |error: serde_json::Error| format!("it is no JSON: {error}");
    if memchr::memmem::find(bytes, b"\"check\"").is_none() {
        // Nothing in it gives a digest.
        let wrong = |error: serde_json::Error| if error.is_data() { no_record(error) } else { no_json(error) };
        return serde_json::from_slice(bytes).map_err(wrong);
    }
    // A tree of what is large takes several times as long.
    if let Some((digest, check)) = Digest::of_object_but(bytes, CHECK) {
        return match check {
            Some(check) if check != digest.to_string() => Err(other()),
            _ => serde_json::from_slice(bytes).map_err(no_record),
        };
    }
    let mut value: Value = serde_json::from_slice(bytes).map_err(no_json)?;
    if let Some(check) = value.as_object_mut().and_then(|fields| fields.remove(CHECK))
        && serde_json::to_value(Digest::of_value(&value)).ok() != Some(check)
    {
        return Err(other());
    }
    serde_json::from_value(value).map_err(no_record)
}

/// Reads JSON; `None` if the file is absent or is not what it should be, which a warning tells.
pub(super) fn read_json<T: DeserializeOwned>(path: &std::path::Path) -> Result<Option<T>, StoreError> {
    read_by(path, parse)
}

/// As [`read_json`], with no more than `parse` makes of a record, and without a look at its digest: for the few words of a large
/// one that are held against something else before anything is told by them.
pub(super) fn glance_at<T>(
    path: &std::path::Path,
    parse: impl FnOnce(&[u8]) -> serde_json::Result<T>,
) -> Result<Option<T>, StoreError> {
    read_by(path, |bytes| parse(bytes).map_err(|error| error.to_string()))
}

fn read_by<T>(path: &std::path::Path, parse: impl FnOnce(&[u8]) -> Result<T, String>) -> Result<Option<T>, StoreError> {
    let bytes = match fs::read(path, LARGEST_RECORD) {
        Ok(bytes) => bytes,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) if is_no_file(&error) => {
            tracing::warn!("passed over: {error}");
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    };
    Ok(parse(&bytes)
        .inspect_err(|error| tracing::warn!("`{}` is damaged and passed over: {error}", path.display()))
        .ok())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;

    /// A record of an artifact with one file that holds `text`.
    pub(in crate::store) fn record(store: &Store, node: &str, text: &str) -> Result<NodeRecord, StoreError> {
        let blob = store.put_bytes(text.as_bytes())?;
        let files = BTreeMap::from([("rows.jsonl".to_owned(), blob)]);
        let artifact = store.put_manifest(&super::super::Manifest { kind: "files".into(), files })?;
        let preimage = json!({"kind": "command", "version": 1, "fields": {"program": node}, "inputs": {}});
        Ok(NodeRecord {
            format: 1,
            key: Digest::of_value(&preimage),
            node: node.into(),
            pipeline: "toy".into(),
            kind: "command".into(),
            artifact,
            preimage,
            inputs: BTreeMap::new(),
            sources: BTreeMap::new(),
            metrics: Map::from_iter([("rows".to_owned(), json!(1))]),
            run: "20260101-000000-aaaa".into(),
            attempt: 1,
            started: "2026-01-01T00:00:00Z".into(),
            seconds: 0.5,
            usage: None,
            host: "here".into(),
            device: "cpu".into(),
            version: "0.1.0".into(),
            class: None,
            equal_to_within: None,
        })
    }

    pub(in crate::store) fn run(id: &str, records: &[&NodeRecord]) -> RunRecord {
        let node = |record: &&NodeRecord| RunNode {
            name: record.node.clone(),
            kind: record.kind.clone(),
            state: "ran".into(),
            key: Some(record.key),
            artifact: Some(record.artifact),
            seconds: record.seconds,
            metrics: record.metrics.clone(),
        };
        RunRecord {
            run: id.into(),
            pipeline: "toy".into(),
            file: "toy.toml".into(),
            params: BTreeMap::new(),
            started: "2026-01-01T00:00:00Z".into(),
            finished: Some("2026-01-01T00:00:01Z".into()),
            ok: Some(true),
            nodes: records.iter().map(node).collect(),
        }
    }

    #[test]
    fn the_first_artifact_under_a_key_stays_while_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let first = record(&store, "a", "first").unwrap();
        let second = NodeRecord { artifact: record(&store, "b", "second").unwrap().artifact, ..first.clone() };
        store.put_node(&first).unwrap();
        store.put_node(&second).unwrap();
        assert_eq!(store.node(&first.key).unwrap().unwrap(), first);
        fs::remove_file(&store.files(&first.artifact).unwrap()["rows.jsonl"]).unwrap();
        store.put_node(&second).unwrap();
        assert_eq!(store.node(&first.key).unwrap().unwrap(), second);
        fs::write_atomic(&store.node_path(&first.key), b"{").unwrap();
        assert_eq!(store.node(&first.key).unwrap(), None);
    }

    #[test]
    fn runs_sort_in_order_when_the_clock_jumps_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.run_time().unwrap() <= fs::now());
        store.put_run(&run("29991231-235950-ab12", &[])).unwrap();
        assert_eq!(store.run_time().unwrap().to_string(), "2999-12-31T23:59:51Z");
        assert_eq!(store.runs().unwrap().len(), 1);
    }
}
