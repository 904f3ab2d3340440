//! One execution of a node, as the scheduler sees it: from its job file to its result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use serde_json::{Map, Value};

use super::away::{Remote, Sending, Yard};
use super::class::class;
use super::engine::Ticket;
use super::job::{Job, JobInput, JobResult};
use super::journal::{Journal, tail};
use super::kept::{Idle, Keeper};
use super::local::{Message, Worker};
use super::plan::Recipe;
use super::room::Place;
use super::shards::Role;
use super::{Event, ExecError, Reason};
use crate::digest::Digest;
use crate::endpoint::{Allowance, Calling};
use crate::fs;
use crate::graph::made_by;
use crate::pipeline::{Link, Node, Origin, Pipeline, Target};
use crate::store::{KeyLock, NodeRecord, Stamps, Store, Usage};

/// Lines of a log that are shown when its attempt failed.
const TAIL: usize = 12;

/// Files of inputs from this size on are told of to the worker as checked: it may have to put them again.
const LARGE: u64 = 1 << 20;

/// An attempt that goes on.
pub(super) struct Attempt {
    /// The node, by index.
    pub(super) node: usize,
    /// Number of the attempt at this node in this run, from 1.
    pub(super) number: u32,
    /// Why.
    pub(super) reason: Reason,
    /// What it executes.
    pub(super) recipe: Recipe,
    /// Its room on the machine.
    pub(super) place: Place,
    /// When it began, for people.
    pub(super) started: String,
    /// What it printed.
    pub(super) log: PathBuf,
    /// How it ended, once it has said so.
    pub(super) result: Option<JobResult>,
    /// What it used, once it has said so.
    pub(super) usage: Option<Usage>,
    /// Whether it ran out of memory; with a single row?
    pub(super) full: Option<bool>,
    /// When it began.
    pub(super) began: Instant,
    /// Until its end; a light one then goes on with other attempts.
    worker: Option<Worker>,
    light: bool,
    /// Whether its worker ends with it.
    pub(super) last: bool,
    /// The models whose weights are worth keeping when it is done.
    keep: Vec<(Target, Digest)>,
    /// Those that its worker keeps, now that it is done.
    pub(super) kept: Vec<Digest>,
    own: Option<Own>,
    /// Of one that an engine executes.
    pub(super) remote: Option<Remote>,
    /// Nobody else works at the key until it is dropped.
    pub(super) lock: Arc<KeyLock>,
    /// Whether it is at a part of the node.
    pub(super) role: Role,
}

/// What an attempt has for itself if its worker has: directories in `tmp/`, and one in the run's.
struct Own {
    tmp: PathBuf,
    staging: PathBuf,
    directory: PathBuf,
}

/// What is needed to start one.
pub(super) struct Start<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) store: &'a Store,
    pub(super) journal: &'a Journal,
    pub(super) program: &'a Path,
    pub(super) inbox: &'a Sender<Message>,
    /// Seals of what was checked.
    pub(super) stamps: &'a Stamps,
    /// Tells attempts of this run apart.
    pub(super) serial: u64,
}

/// The node and what it was given.
pub(super) struct Given {
    pub(super) node: usize,
    pub(super) number: u32,
    pub(super) reason: Reason,
    pub(super) recipe: Recipe,
    pub(super) place: Place,
    pub(super) lock: Arc<KeyLock>,
    pub(super) allowance: Allowance,
    pub(super) role: Role,
    /// Rows to compute together, where what the node says was too many.
    pub(super) micro_batch: Option<usize>,
    /// The models that it samples or scores with.
    pub(super) models: Vec<(Target, Digest)>,
    /// Those of them whose weights others will want when it is done.
    pub(super) keep: Vec<(Target, Digest)>,
}

impl Attempt {
    /// Starts it: in one of `idle` that has its models' weights, or in a worker of its own; if the node is light, in one of `idle` or one
    /// that will be there when it ends.
    pub(super) fn start(start: &Start<'_>, given: Given, idle: &mut Idle) -> Result<Self, ExecError> {
        let job = job(start, &given)?;
        let Given { node, number, reason, recipe, place, lock, role, models, keep, .. } = given;
        let Start { pipeline, store, journal, .. } = *start;
        let name = &pipeline.nodes[node].name;
        let light = takes_turns(&pipeline.nodes[node]);
        let (began, started) = (Instant::now(), fs::now().to_string());
        let (worker, log, own) = if light {
            let log = journal.log(name, number);
            let job = Job { log: Some(log.clone()), ..job };
            (idle.give(start, job)?, log, None)
        } else {
            let directory = role.of(&journal.attempt(name, number)?)?;
            let tmp = store.staging_dir(&recipe.key)?;
            let staging = role.beside(tmp.join(format!("{}.{number}", journal.run())));
            fs::create_directory(&staging)?;
            let (scratch, result) = (role.of(&store.partial_dir(&recipe.key)?)?, directory.join("result.json"));
            let job = Job { scratch, staging: staging.clone(), result: Some(result), ..job };
            let path = directory.join("job.json");
            let bytes = serde_json::to_vec_pretty(&job).map_err(crate::store::StoreError::from)?;
            fs::write(&path, bytes)?;
            let log = directory.join("log.txt");
            let output = fs::create(&log)?;
            let worker = match idle.go_on(place.device(), &models, (start.serial, &path))? {
                Some(worker) => worker,
                None => Worker::start(start.program, &path, output, job.threads, start.serial, start.inbox)
                    .map_err(ExecError::Spawn)?,
            };
            (worker, log, Some(Own { tmp, staging, directory }))
        };
        Ok(Self {
            node,
            number,
            reason,
            recipe,
            place,
            started,
            log,
            result: None,
            usage: None,
            full: None,
            began,
            worker: Some(worker),
            light,
            last: false,
            keep,
            kept: Vec::new(),
            own,
            remote: None,
            lock,
            role,
        })
    }

    /// Has an engine execute it, or listens to what it already executes for an earlier run.
    pub(super) fn send(
        start: &Start<'_>,
        given: Given,
        yard: &mut Yard,
        ticket: Option<Ticket>,
    ) -> Result<Self, ExecError> {
        let directory = start.journal.attempt(&start.pipeline.nodes[given.node].name, given.number)?;
        let directory = given.role.of(&directory)?;
        let remote = match ticket {
            Some(ticket) => yard.adopt(ticket, start.serial, &directory)?,
            None => {
                let sending = Sending {
                    store: start.store,
                    pipeline: start.pipeline,
                    run: start.journal.run(),
                    node: given.node,
                    number: given.number,
                    serial: start.serial,
                    directory: &directory,
                    role: &given.role,
                };
                yard.submit(sending, job(start, &given)?)?
            }
        };
        let Given { node, number, reason, recipe, place, lock, role, .. } = given;
        Ok(Self {
            node,
            number,
            reason,
            recipe,
            place,
            started: fs::now().to_string(),
            log: remote.directory.join("log.txt"),
            result: None,
            usage: None,
            full: None,
            began: Instant::now(),
            worker: None,
            light: false,
            last: false,
            keep: Vec::new(),
            kept: Vec::new(),
            own: None,
            remote: Some(remote),
            lock,
            role,
        })
    }

    /// The device that the node is computed on.
    fn device(&self) -> &str {
        match &self.role {
            Role::Join { device, .. } => device,
            _ => self.place.device(),
        }
    }

    /// Whether its worker goes on when it has ended.
    pub(super) fn is_light(&self) -> bool {
        self.light
    }

    /// Whether it is done, and its worker waits for the next one with weights in memory.
    pub(super) fn keeps_weights(&self) -> bool {
        !self.kept.is_empty() && self.result.as_ref().is_some_and(JobResult::is_done)
    }

    /// Tells it to finish the batch, save and end.
    pub(super) fn stop(&mut self) {
        self.worker.iter_mut().for_each(Worker::stop);
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        self.worker.iter_mut().for_each(Worker::kill);
    }

    /// The record of what it made; takes its recipe.
    pub(super) fn record(&mut self, made: Made<'_>, seconds: f64) -> NodeRecord {
        let node = &made.pipeline.nodes[self.node];
        NodeRecord {
            format: 1,
            key: self.recipe.key,
            node: node.name.clone(),
            pipeline: made.pipeline.name.clone(),
            kind: node.kind.name.to_owned(),
            artifact: made.artifact,
            preimage: std::mem::take(&mut self.recipe.preimage),
            sources: sources(node),
            inputs: std::mem::take(&mut self.recipe.inputs),
            metrics: made.metrics,
            run: made.run.to_owned(),
            attempt: self.number,
            started: self.started.clone(),
            seconds,
            usage: self.usage.map(|usage| usage.on_gpu_for(self.place.gpu_seconds(seconds))),
            host: made.host.to_owned(),
            device: self.device().to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            class: class(made.pipeline, node, self.device()),
            equal_to_within: None,
        }
    }

    /// How one ended that an engine executed.
    fn end_of(&self, remote: &Remote) -> Ended {
        let result = self.result.clone().unwrap_or_else(|| no_result(None));
        let seconds = remote.exit.as_ref().map_or(self.began.elapsed().as_secs_f64(), |(seconds, _)| *seconds);
        let directory = remote.here.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ended { result, silent: remote.silent, seconds, directory }
    }

    /// Ends one that has told its result or whose worker is ending; a worker that goes on joins those in `idle`, one that keeps weights
    /// if it `stays`.
    pub(super) fn end(&mut self, idle: &mut Idle, stays: bool) -> Result<Ended, ExecError> {
        if let Some(remote) = &self.remote {
            return Ok(self.end_of(remote));
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let status = match self.worker.take() {
            Some(worker) if self.light && self.result.is_some() && !self.last => {
                idle.add(worker);
                None
            }
            Some(worker) if stays => {
                let (device, mut models) = (self.place.device().to_owned(), std::mem::take(&mut self.keep));
                models.retain(|(_, id)| self.kept.contains(id));
                idle.keep(Keeper { worker, device, models });
                None
            }
            Some(mut worker) => Some(worker.wait()?),
            None => None,
        };
        let said = self.result.take().or_else(|| {
            let own = self.own.as_ref()?;
            serde_json::from_slice(&fs_err::read(own.directory.join("result.json")).ok()?).ok()
        });
        let silent = said.is_none();
        let result = said.unwrap_or_else(|| no_result(status));
        if let Some(own) = &self.own {
            fs::remove_directory(&own.staging)?;
            fs::remove_if_empty(&own.tmp)?;
        }
        let left = self.own.as_ref().map_or(&self.log, |own| &own.directory);
        let directory = left.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok(Ended { result, silent, seconds, directory: directory.unwrap_or_default() })
    }
}

/// What an attempt executes, but for its directories.
fn job(start: &Start<'_>, given: &Given) -> Result<Job, ExecError> {
    let Start { pipeline, store, .. } = *start;
    let (declared, recipe) = (&pipeline.nodes[given.node], &given.recipe);
    Ok(Job {
        node: declared.name.clone(),
        kind: declared.kind.name.to_owned(),
        fields: declared.spec.fields(),
        inputs: inputs(pipeline, store, given.node, recipe)?,
        trusted: recipe.inputs.values().flat_map(|id| store.sealed(id, start.stamps, LARGE)).collect(),
        key: recipe.key,
        output: declared.spec.output(),
        device: given.place.device().to_owned(),
        ranks: declared.run.ranks,
        devices: given.place.devices().to_vec(),
        threads: (given.place.threads / declared.run.ranks.unwrap_or(1).max(1)).max(1),
        gpu_bytes: given.place.bytes(),
        micro_batch: given.micro_batch.or(declared.run.micro_batch),
        activation_checkpointing: declared.run.activation_checkpointing,
        afresh: false,
        part: given.role.job(),
        keep: given.keep.iter().map(|(_, id)| *id).collect(),
        store: store.root().to_owned(),
        live: Some(store.live_file()?),
        scratch: PathBuf::new(),
        staging: PathBuf::new(),
        log: None,
        result: None,
        allowance: given.allowance,
        version: None,
    })
}

/// Whether attempts at a node may follow one another in one worker: they do nothing in it but to wait for a program, so
/// that there is no memory that only the end of a process gives back.
fn takes_turns(node: &Node) -> bool {
    node.kind.name == "command"
}

/// What an attempt made, and where.
pub(super) struct Made<'a> {
    pub(super) pipeline: &'a Pipeline,
    pub(super) run: &'a str,
    pub(super) host: &'a str,
    pub(super) artifact: Digest,
    pub(super) metrics: Map<String, Value>,
}

/// How an attempt ended.
pub(super) struct Ended {
    /// What came of it.
    pub(super) result: JobResult,
    /// Whether the worker died without a word.
    pub(super) silent: bool,
    /// Wall seconds.
    pub(super) seconds: f64,
    /// Its directory within the run's, or its log if that is all it left.
    pub(super) directory: String,
}

fn inputs(
    pipeline: &Pipeline,
    store: &Store,
    node: usize,
    recipe: &Recipe,
) -> Result<BTreeMap<String, JobInput>, ExecError> {
    let mut inputs = BTreeMap::new();
    for link in &pipeline.nodes[node].links {
        let Some(id) = recipe.inputs.get(&link.field.path) else { continue };
        // Rows of datasets are cut before they are hashed.
        let slice = matches!(link.target, Target::Node(_)).then_some(&link.field.input);
        let input = JobInput {
            id: *id,
            kind: made_by(link, pipeline),
            files: store.files(id)?,
            skip: slice.and_then(|input| input.skip).unwrap_or(0),
            take: slice.and_then(|input| input.take),
            calling: calling(pipeline, link),
        };
        inputs.insert(link.field.path.clone(), input);
    }
    Ok(inputs)
}

/// What a node's inputs from outside are called.
fn sources(node: &Node) -> BTreeMap<String, String> {
    let named = node.links.iter().filter_map(|link| {
        let name = match &link.target {
            Target::Node(_) => return None,
            Target::Dataset(name) => format!("dataset:{name}"),
            Target::Model(name) => format!("model:{name}"),
        };
        Some((link.field.path.clone(), name))
    });
    named.collect()
}

/// How the endpoint is called that a link leads to, if it leads to one.
fn calling(pipeline: &Pipeline, link: &Link) -> Option<Calling> {
    let Target::Model(name) = &link.target else { return None };
    match &pipeline.models.get(name)?.origin {
        Origin::Endpoint { calling, .. } => Some(calling.clone()),
        _ => None,
    }
}

/// What a worker's end says when it has said nothing.
fn no_result(status: Option<std::process::ExitStatus>) -> JobResult {
    use std::os::unix::process::ExitStatusExt;
    let (what, help) = match (status.and_then(|status| status.code()), status.and_then(|status| status.signal())) {
        (_, Some(9)) => (
            "the worker was killed (signal 9)".to_owned(),
            "if no one did that, the machine ran out of memory: lower `run.micro_batch`, or `-j`",
        ),
        (_, Some(signal)) => {
            (format!("the worker crashed (signal {signal})"), "run it again; if it stays so, report it")
        }
        (Some(101), _) => ("the worker panicked, which is a bug".to_owned(), "report it with the lines of the log"),
        (code, _) => (
            format!("the worker ended without a result (exit code {})", code.unwrap_or(-1)),
            "its log says what went wrong",
        ),
    };
    JobResult::Failed { what, help: Some(help.to_owned()) }
}

/// What is told of a failure.
pub(super) struct Fault {
    pub(super) attempt: u32,
    pub(super) what: String,
    pub(super) help: Option<String>,
    pub(super) log: Option<PathBuf>,
    pub(super) tail: Vec<String>,
}

impl Fault {
    pub(super) fn of(log: &Path, attempt: u32, what: String, help: Option<String>) -> Self {
        Self { attempt, what, help, log: Some(log.to_owned()), tail: tail(log, TAIL) }
    }

    pub(super) fn event(&self, node: String, retry: bool) -> Event {
        let (attempt, error, help) = (self.attempt, self.what.clone(), self.help.clone());
        Event::NodeFail { node, attempt, retry, error, help, log: self.log.clone(), tail: self.tail.clone() }
    }
}
