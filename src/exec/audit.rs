//! `sami audit`: computes again what the cache says was computed, and compares.
//!
//! A node is audited from its record alone, by a worker like any other: the recipe's fields and inputs, no remembered row, its
//! files in a temporary place. Nothing that is made goes into the store.
//!
//! Of a kind whose rows are made one by one, some are sampled: the worker gets these rows of the input and nothing else, and
//! each row that comes out is held against the artifact's row of the same `id`. Of other kinds the whole node is run.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::ExecError;
use super::compare::Comparison;
use super::job::{Job, JobInput, JobResult};
use super::journal::{attempt_directory, tail};
use super::local::{Message, Worker};
use crate::digest::{Digest, Hasher};
use crate::fs;
use crate::graph::key::field_mut;
use crate::kinds;
use crate::pipeline::{ArtifactType, Pipeline};
use crate::store::{Class, Health, NodeRecord, Reproduces, Stamps, Store, StoreError, Tolerance, Worst};

/// Lines of the worker's log that are told if it failed.
const TAIL: usize = 12;

/// How to audit.
#[derive(Debug, Clone)]
pub struct AuditOptions {
    /// Rows to sample of a kind whose rows are made one by one; all of the node without it.
    pub rows: Option<usize>,
    /// What decides which rows are sampled.
    pub seed: u64,
    /// Whether nodes are computed, too, of which anything may come out; what differs then is no mismatch.
    pub any: bool,
    /// What `command` nodes may run, by [`commands`]; a record that says another thing is skipped.
    pub commands: Vec<Value>,
    /// Where to compute: `cpu` or `cuda:N`.
    pub device: String,
    /// Threads to compute with.
    pub threads: usize,
    /// The program that is a worker when called with `worker JOB`.
    pub program: PathBuf,
}

/// How an audit ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// What came out is what the cache has, as near as its class promises.
    Same,
    /// It is not.
    Differs,
    /// It is not, and nothing else was promised.
    Unpromised,
    /// It was not computed.
    Skipped,
}

/// What an audit of a node found.
#[derive(Debug, Clone, Serialize)]
pub struct Audited {
    /// Node name.
    pub node: String,
    /// Kind name.
    pub kind: String,
    /// The node key.
    pub key: Digest,
    /// The artifact that was held against.
    pub artifact: Digest,
    /// What was promised; none of a record of an older version, of which the same bytes are expected.
    pub class: Option<Class>,
    /// How it ended.
    pub verdict: Verdict,
    /// Rows that were held against each other; none if it was the whole node.
    pub rows: Option<u64>,
    /// Those of them that are the same, within what was promised.
    pub same: u64,
    /// The numbers farthest apart.
    pub worst: Worst,
    /// What differs, the first few.
    pub differences: Vec<String>,
    /// Why it was skipped.
    pub why: Option<String>,
}

/// Audits a node by its record. Errs if it cannot be computed: an input is missing, or the attempt fails.
pub fn audit(store: &Store, record: &NodeRecord, options: &AuditOptions) -> Result<Audited, ExecError> {
    let mut audited = Audited {
        node: record.node.clone(),
        kind: record.kind.clone(),
        key: record.key,
        artifact: record.artifact,
        class: record.class.clone(),
        verdict: Verdict::Skipped,
        rows: None,
        same: 0,
        worst: Worst::default(),
        differences: Vec::new(),
        why: None,
    };
    let entry = kinds::find(&record.kind);
    audited.why = reason_to_skip(store, record, entry, options)?;
    let (Some(entry), None) = (entry, &audited.why) else { return Ok(audited) };
    let mut stamps = Stamps::default();
    whole(store, &mut stamps, &record.artifact, "its artifact", record)?;
    for (field, id) in &record.inputs {
        whole(store, &mut stamps, id, &format!("input `{field}`"), record)?;
    }
    let place = Place::new(store, record)?;
    let mut job = job(store, record, options, &place)?;
    let mut sample = None;
    if let (Some(field), Some(rows)) = (entry.rows_of, options.rows) {
        sample = sampled(store, record, &mut job, field, rows, options.seed, &place)?;
    }
    let (outputs, artifact, metrics) = compute(&job, &place, options)?;
    let tolerance = match record.class.as_ref().map(|class| &class.reproduces) {
        Some(Reproduces::Within(tolerance)) => *tolerance,
        _ => Tolerance::default(),
    };
    let mut comparison = Comparison::new(tolerance);
    let files = store.files(&record.artifact)?;
    if let Some(ids) = sample {
        let (rows, same) = hold(&mut comparison, &ids, &files, &outputs)?;
        (audited.rows, audited.same) = (Some(rows), same);
    } else {
        if artifact != record.artifact {
            comparison.files(&files, &outputs)?;
            let exact = record.class.as_ref().is_none_or(|class| matches!(class.reproduces, Reproduces::BitExact));
            if exact && comparison.is_alike() {
                comparison.differs(|| "other bytes, of the same values".to_owned());
            }
        }
        hold_metrics(&mut comparison, &record.metrics, &metrics);
        audited.same = u64::from(comparison.is_alike());
    }
    let promised = !matches!(record.class.as_ref().map(|class| &class.reproduces), Some(Reproduces::No { .. }));
    audited.verdict = match (comparison.is_alike(), promised) {
        (true, _) => Verdict::Same,
        (false, true) => Verdict::Differs,
        (false, false) => Verdict::Unpromised,
    };
    (audited.worst, audited.differences) = (comparison.worst, comparison.differences);
    Ok(audited)
}

/// Why a node is not computed, if it is not.
fn reason_to_skip(
    store: &Store,
    record: &NodeRecord,
    entry: Option<&kinds::Entry>,
    options: &AuditOptions,
) -> Result<Option<String>, ExecError> {
    let Some(entry) = entry else { return Ok(Some(format!("there is no kind `{}` in this version", record.kind))) };
    let version = record.preimage.get("version").and_then(Value::as_u64);
    if version != Some(u64::from(entry.spec.version)) {
        let version = version.unwrap_or(0);
        return Ok(Some(format!("made by version {version} of the kind, this is {}", entry.spec.version)));
    }
    for id in record.inputs.values() {
        if store.manifest(id).is_ok_and(|manifest| manifest.kind == ArtifactType::Endpoint.name()) {
            return Ok(Some("an endpoint would be called, and paid".to_owned()));
        }
    }
    let stranger = (!may_run(record, options)).then(|| STRANGER.to_owned());
    let Some(class) = &record.class else { return Ok(stranger) };
    if let (Reproduces::No { because }, false) = (&class.reproduces, options.any) {
        return Ok(Some(format!("not reproducible: {because}; `--any` computes it all the same")));
    }
    let here = kinds::device_class(&options.device)
        .map_err(|error| StoreError::Io(std::io::Error::other(error.to_string())))?;
    if here != class.on {
        return Ok(Some(format!("made on {}, and `--device {}` is {here}", class.on, options.device)));
    }
    Ok(stranger)
}

const STRANGER: &str = "a program runs only as a pipeline that you name says: `--pipeline FILE`";

/// Whether a node may be computed at all: a record may come from anyone, and of the kinds a `command` alone runs what its
/// fields say.
fn may_run(record: &NodeRecord, options: &AuditOptions) -> bool {
    let fields = || record.preimage.get("fields").cloned().map(without_inputs);
    record.kind != COMMAND || fields().is_some_and(|fields| options.commands.contains(&fields))
}

const COMMAND: &str = "command";

fn without_inputs(mut fields: Value) -> Value {
    if let Some(fields) = fields.as_object_mut() {
        fields.remove("inputs");
    }
    fields
}

/// What the `command` nodes of a pipeline run, for [`AuditOptions::commands`].
pub fn commands(pipeline: &Pipeline) -> Vec<Value> {
    let commands = pipeline.nodes.iter().filter(|node| node.kind.name == COMMAND);
    commands.map(|node| without_inputs(node.spec.fields())).collect()
}

fn whole(store: &Store, stamps: &mut Stamps, id: &Digest, what: &str, record: &NodeRecord) -> Result<(), ExecError> {
    let gone = match store.health(id, stamps) {
        Ok(Health::Whole) => return Ok(()),
        Ok(Health::Missing(file)) => format!("`{file}` of {what} ({}) is missing", id.short()),
        Ok(Health::Damaged(file)) => format!("`{file}` of {what} ({}) is damaged", id.short()),
        Err(StoreError::Io(error)) => return Err(error.into()),
        Err(_) => format!("{what} ({}) is not in the cache any more", id.short()),
    };
    Err(ExecError::Audit {
        node: record.node.clone(),
        what: gone,
        help: "run the pipeline that made it, then audit again".into(),
        tail: Vec::new(),
    })
}

/// Where an audit's files are; removed when dropped.
struct Place(PathBuf);

impl Place {
    fn new(store: &Store, record: &NodeRecord) -> Result<Self, ExecError> {
        let (process, time) = (u64::from(std::process::id()), fs::now().as_nanosecond() as u64);
        let name = Hasher::new().text("audit").digest(&record.key).number(process).number(time).finish();
        let place = Self(store.staging_dir(&name)?);
        for part in ["scratch", "staging"] {
            fs::create_directory(&place.0.join(part))?;
        }
        Ok(place)
    }

    fn part(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // What stays is swept up by gc.
        let _ = fs::remove_directory(&self.0);
    }
}

/// The job of a record, as far as it says; of how it was executed what its job file still says.
fn job(store: &Store, record: &NodeRecord, options: &AuditOptions, place: &Place) -> Result<Job, ExecError> {
    let mut fields = record.preimage.get("fields").cloned().unwrap_or_default();
    let mut inputs = BTreeMap::new();
    for (path, id) in &record.inputs {
        let mut slice = Value::Null;
        if let Some(place) = field_mut(&mut fields, path) {
            // What it was called does not matter.
            slice = std::mem::replace(place, json!("input"));
        }
        let number = |name: &str| slice.get(name).and_then(Value::as_u64);
        let kind = type_of(&store.manifest(id)?.kind)?;
        let (files, skip, take) = (store.files(id)?, number("skip").unwrap_or(0), number("take"));
        inputs.insert(path.clone(), JobInput { id: *id, kind, files, skip, take, calling: None });
    }
    let attempt = store.run_dir(&record.run).join(attempt_directory(&record.node, record.attempt)).join("job.json");
    let before: Option<Job> = fs_err::read(attempt).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let before = before.filter(|job| job.key == record.key);
    Ok(Job {
        node: record.node.clone(),
        kind: record.kind.clone(),
        fields,
        inputs,
        key: record.key,
        output: type_of(&store.manifest(&record.artifact)?.kind)?,
        device: options.device.clone(),
        // On a CPU one rank computes what several did, to the same bits.
        ranks: before.as_ref().and_then(|job| job.ranks.map(|_| 1)),
        devices: Vec::new(),
        threads: options.threads,
        micro_batch: before.as_ref().and_then(|job| job.micro_batch),
        activation_checkpointing: before.as_ref().and_then(|job| job.activation_checkpointing),
        allowance: crate::endpoint::Allowance::default(),
        afresh: true,
        part: None,
        gpu_bytes: None,
        live: None,
        keep: Vec::new(),
        trusted: Vec::new(),
        store: store.root().to_owned(),
        scratch: place.part("scratch"),
        staging: place.part("staging"),
        log: None,
        result: Some(place.part("result.json")),
        version: None,
    })
}

fn type_of(name: &str) -> Result<ArtifactType, ExecError> {
    let damaged = |_| StoreError::Damaged { what: format!("an artifact of type `{name}`") };
    Ok(serde_json::from_value(json!(name)).map_err(damaged)?)
}

/// Cuts the input that rows are made from to a sample of those that have rows in the artifact, and returns their ids; none
/// if there are no more rows than asked for.
fn sampled(
    store: &Store,
    record: &NodeRecord,
    job: &mut Job,
    field: &str,
    rows: usize,
    seed: u64,
    place: &Place,
) -> Result<Option<HashSet<String>>, ExecError> {
    let made: HashSet<String> = match store.files(&record.artifact)?.get("rows.jsonl") {
        Some(path) => read_rows(path)?.into_iter().map(|(id, _)| source(&id).to_owned()).collect(),
        None => return Ok(None),
    };
    let Some(input) = job.inputs.get_mut(field) else { return Ok(None) };
    let Some(path) = input.files.get("rows.jsonl") else { return Ok(None) };
    let mut chosen: Vec<(u64, usize, String, String)> = Vec::new();
    let skip = usize::try_from(input.skip).unwrap_or(usize::MAX);
    let take = input.take.map_or(usize::MAX, |take| usize::try_from(take).unwrap_or(usize::MAX));
    for (at, line) in BufReader::new(fs_err::File::open(path)?).lines().enumerate().skip(skip).take(take) {
        let line = line?;
        let Some(id) = id_of(&line) else { return Ok(None) };
        if made.contains(source(&id)) {
            let draw = Hasher::new().text("audit").number(seed).text(&id).seed();
            chosen.push((draw, at, id, line));
        }
    }
    if chosen.is_empty() {
        return Ok(None);
    }
    chosen.sort_unstable();
    chosen.truncate(rows.max(1));
    chosen.sort_unstable_by_key(|(_, at, ..)| *at);
    let path = place.part("rows.jsonl");
    let mut file = fs::create(&path)?;
    for (.., line) in &chosen {
        file.write_all(format!("{line}\n").as_bytes())?;
    }
    input.files = [("rows.jsonl".to_owned(), path)].into();
    (input.skip, input.take) = (0, None);
    Ok(Some(chosen.into_iter().map(|(_, _, id, _)| source(&id).to_owned()).collect()))
}

/// The id of the row that a row was made from: `7#2` is the second sample of `7`.
fn source(id: &str) -> &str {
    match id.rsplit_once('#') {
        Some((source, number)) if !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit()) => source,
        _ => id,
    }
}

fn id_of(line: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Named {
        id: String,
    }
    serde_json::from_str::<Named>(line).ok().map(|row| row.id)
}

fn read_rows(path: &Path) -> std::io::Result<Vec<(String, String)>> {
    let mut rows = Vec::new();
    for line in BufReader::new(fs_err::File::open(path)?).lines() {
        let line = line?;
        rows.extend(id_of(&line).map(|id| (id, line)));
    }
    Ok(rows)
}

/// Holds the rows that were made from a sample against those of the artifact. Returns how many there are, and how many are
/// the same.
fn hold(
    comparison: &mut Comparison,
    sample: &HashSet<String>,
    files: &BTreeMap<String, PathBuf>,
    outputs: &BTreeMap<String, PathBuf>,
) -> Result<(u64, u64), ExecError> {
    let rows = |files: &BTreeMap<String, PathBuf>| files.get("rows.jsonl").map(|path| read_rows(path)).transpose();
    let earlier = rows(files)?.unwrap_or_default().into_iter().filter(|(id, _)| sample.contains(source(id)));
    let later = rows(outputs)?.unwrap_or_default();
    let mut made: HashMap<String, String> = later.into_iter().collect();
    let (mut count, mut same) = (0, 0);
    for (id, earlier) in earlier {
        count += 1;
        let before = comparison.different;
        match made.remove(&id) {
            Some(later) => {
                let value = |text: &str| serde_json::from_str(text).unwrap_or(Value::Null);
                comparison.value(&format!("row `{id}`"), &value(&earlier), &value(&later));
            }
            None => comparison.differs(|| format!("row `{id}` was not made again")),
        }
        same += u64::from(comparison.different == before);
    }
    let mut more: Vec<&String> = made.keys().collect();
    more.sort_unstable();
    for id in more {
        count += 1;
        comparison.differs(|| format!("row `{id}` was made, and is not in the artifact"));
    }
    Ok((count, same))
}

/// Holds metrics against each other but for those that tell how the work went: what was remembered, and times.
fn hold_metrics(comparison: &mut Comparison, earlier: &Map<String, Value>, later: &Map<String, Value>) {
    let tells = |name: &str| !name.contains("reused") && !name.contains("second") && !name.contains("calls");
    for (name, value) in earlier.iter().filter(|(name, _)| tells(name)) {
        if let Some(later) = later.get(name) {
            comparison.value(&format!("metric `{name}`"), value, later);
        }
    }
}

/// What a worker made: files by name, what they are called, and metrics.
type Computed = (BTreeMap<String, PathBuf>, Digest, Map<String, Value>);

/// Lets a worker do the job.
fn compute(job: &Job, place: &Place, options: &AuditOptions) -> Result<Computed, ExecError> {
    let path = place.part("job.json");
    fs::create(&path)?.write_all(&serde_json::to_vec(job).map_err(StoreError::from)?)?;
    let log = place.part("log.txt");
    let (outbox, inbox) = channel();
    let mut worker = Worker::start(&options.program, &path, fs::create(&log)?, options.threads, 0, &outbox)
        .map_err(ExecError::Spawn)?;
    // What it says on the way is heard and not told: its result is in a file.
    while !matches!(inbox.recv(), Ok(Message::Gone { .. }) | Err(_)) {}
    let status = worker.wait()?;
    let read = |name: &str| fs_err::read(place.part(name)).ok();
    let result: Option<JobResult> = read("result.json").and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let outputs = read("outputs.json").and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let failed = |what: String, help: Option<String>| ExecError::Audit {
        node: job.node.clone(),
        what,
        help: help.unwrap_or_else(|| "the worker's last lines may say more".to_owned()),
        tail: tail(&log, TAIL),
    };
    match (result, outputs) {
        (Some(JobResult::Done { artifact, metrics, .. }), Some(outputs)) => Ok((outputs, artifact, metrics)),
        (Some(JobResult::Failed { what, help }), _) => Err(failed(what, help)),
        _ => Err(failed(format!("the worker ended without a result ({status})"), None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_a_row_are_known_by_their_ids() {
        let sources = ["7", "7#2", "a#b", "a#", "x#2#3"].map(source);
        assert_eq!(sources, ["7", "7", "a#b", "a#", "x#2"]);
    }

    #[test]
    fn rows_are_held_against_those_of_the_same_id() {
        let folder = tempfile::tempdir().unwrap();
        let rows = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs_err::write(&path, text).unwrap();
            BTreeMap::from([("rows.jsonl".to_owned(), path)])
        };
        let before = rows(
            "before",
            "{\"id\":\"1\",\"x\":1.0}\n{\"id\":\"2\",\"x\":2.0}\n{\"id\":\"3\",\"x\":3.0}\n{\"id\":\"3#2\",\"x\":4.0}\n",
        );
        let held = |after: &str, ids: &[&str]| {
            let mut comparison = Comparison::new(Tolerance::default());
            let sample = ids.iter().map(|id| (*id).to_owned()).collect();
            let counts = hold(&mut comparison, &sample, &before, &rows("after", after)).unwrap();
            (counts, comparison.differences)
        };
        assert_eq!(held("{\"x\":2.0,\"id\":\"2\"}\n", &["2"]), ((1, 1), vec![]));
        let (counts, differences) = held("{\"id\":\"3\",\"x\":3.5}\n{\"id\":\"4\"}\n", &["3"]);
        assert_eq!(counts, (3, 0));
        assert_eq!(differences.len(), 3, "{differences:?}");
        assert!(differences[0].contains("row `3` `x`: 3.0 -> 3.5") && differences[1].contains("`3#2` was not made"));
    }

    #[test]
    fn metrics_of_how_the_work_went_are_left_out() {
        let map = |value: Value| value.as_object().cloned().unwrap();
        let mut comparison = Comparison::new(Tolerance::default());
        let earlier = map(json!({"bound": 0.5, "rows_reused": 7, "calls_reused": 1, "only_before": 1}));
        hold_metrics(&mut comparison, &earlier, &map(json!({"bound": 0.5, "rows_reused": 0, "new": 2})));
        assert!(comparison.is_alike());
        hold_metrics(&mut comparison, &earlier, &map(json!({"bound": 0.75})));
        assert_eq!(comparison.differences, ["metric `bound`: 0.5 -> 0.75"]);
    }
}
