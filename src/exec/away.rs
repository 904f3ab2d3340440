//! Attempts that an engine executes, as the scheduler sees them: what is written before a job is submitted, and who
//! listens to it afterwards.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use super::ExecError;
use super::device::check_ranks;
use super::engine::{Engine, Order, Patience, Rhythm, Submission, Terms, Ticket, Watcher, bare, script};
use super::job::Job;
use super::journal::attempt_directory;
use super::local::Message;
use super::record::host;
use super::room::{computes_on_cpu, is_light};
use super::shards::Role;
use super::slots::number;
use crate::fs;
use crate::graph::made_by;
use crate::pipeline::{ArtifactType, Node, Pipeline};
use crate::settings::{Executor, OnInterrupt, Profile, Resources, Site};
use crate::store::{Store, StoreError};

/// The device that nodes wait for which an engine executes.
pub(super) const AWAY: &str = "a job";

/// Where attempts execute that are no processes of this machine.
#[derive(Debug, Clone)]
pub struct Away {
    /// What they ask for.
    pub profile: Profile,
    /// What executes them.
    pub engine: Arc<dyn Engine>,
    /// The program there.
    pub program: PathBuf,
}

impl Away {
    /// What the nodes ask for that an engine will execute.
    pub fn asked(&self, pipeline: &Pipeline, nodes: impl IntoIterator<Item = usize>) -> Vec<Resources> {
        let (inbox, _) = std::sync::mpsc::channel();
        let yard = Yard::new(Some(self.clone()), inbox, Path::new(""));
        let away = nodes.into_iter().filter(|node| yard.goes_away(pipeline, *node));
        away.map(|node| yard.resources(pipeline, node)).collect()
    }
}

/// All that a run has of engines.
#[derive(Debug)]
pub(super) struct Yard {
    away: Option<Away>,
    /// By the engine's name. Of another engine than the profile's where an earlier run left something there.
    watchers: BTreeMap<String, Watcher>,
    inbox: Sender<Message>,
    /// Where the cache is.
    root: PathBuf,
    /// What nodes have been through by their index, and parts of nodes by their number, too.
    pub(super) patience: HashMap<At, Patience>,
    /// Jobs at once.
    pub(super) jobs: usize,
    /// What was left running, and how to see it.
    pub(super) left: Vec<String>,
}

/// A node by its index, or a part of one.
type At = (usize, Option<usize>);

/// What an attempt has of its job.
#[derive(Debug)]
pub(super) struct Remote {
    engine: String,
    serial: u64,
    /// Where its files are: in the run's directory, or, of one that was adopted, in that of the run that began it.
    pub(super) directory: PathBuf,
    /// Its directory in this run's.
    pub(super) here: PathBuf,
    pub(super) ticket: Ticket,
    /// How far it has come.
    pub(super) reached: u64,
    /// Why another attempt follows.
    pub(super) again: Option<String>,
    /// What its worker's record says, where it left one: seconds, and where.
    pub(super) exit: Option<(f64, String)>,
    /// Whether it left none.
    pub(super) silent: bool,
}

impl Yard {
    pub(super) fn new(away: Option<Away>, inbox: Sender<Message>, root: &Path) -> Self {
        let (watchers, root) = (BTreeMap::new(), root.to_owned());
        Self { away, watchers, inbox, root, patience: HashMap::new(), jobs: 0, left: Vec::new() }
    }

    /// Which nodes an engine executes: commands, and what computes on a model's weights. What else there is takes seconds,
    /// or waits for an endpoint, which machines of a cluster often do not reach.
    pub(super) fn goes_away(&self, pipeline: &Pipeline, node: usize) -> bool {
        let Some(Away { profile, .. }) = &self.away else { return false };
        let node = &pipeline.nodes[node];
        let computes = || {
            let weights = node.links.iter().any(|link| made_by(link, pipeline) == ArtifactType::Model);
            node.kind.name == "command" || weights && !is_light(pipeline, node)
        };
        match profile.resources(node.kind.name, &node.name).site {
            Some(site) => site == Site::Job,
            None => computes(),
        }
    }

    /// Jobs at once; none without a profile.
    pub(super) fn slots(&self) -> usize {
        self.away.as_ref().map_or(0, |away| away.profile.jobs)
    }

    /// Whether no further job may be submitted now.
    pub(super) fn is_full(&self) -> bool {
        self.away.as_ref().is_none_or(|away| self.jobs >= away.profile.jobs)
    }

    /// What a node asks for.
    pub(super) fn resources(&self, pipeline: &Pipeline, node: usize) -> Resources {
        let Some(Away { profile, .. }) = &self.away else { return Resources::default() };
        let declared = &pipeline.nodes[node];
        let asked = profile.resources(declared.kind.name, &declared.name);
        // One for each rank at least.
        let ranks = declared.run.ranks.filter(|ranks| *ranks > 1);
        let cpus = declared.run.threads.or(asked.cpus).max(ranks);
        Resources { cpus, ..asked }
    }

    /// What the next attempt asks for: more memory after those that ran out of it.
    fn resources_next(&self, pipeline: &Pipeline, (node, part): At) -> Resources {
        let asked = self.resources(pipeline, node);
        let Some(Away { profile, .. }) = &self.away else { return asked };
        Resources { memory: memory(profile, asked.memory, self.grown((node, part))), ..asked }
    }

    /// How often it ran out of memory.
    fn grown(&self, place: At) -> u32 {
        self.patience.get(&place).map_or(0, |patience| patience.grown)
    }

    /// Errs with the first of some nodes whose job will have fewer GPUs than the node has ranks, as far as that is known.
    pub(super) fn check_gpus(&self, pipeline: &Pipeline, nodes: Vec<usize>) -> Result<(), ExecError> {
        let Some(Away { profile, .. }) = &self.away else { return Ok(()) };
        for node in nodes {
            let (declared, resources) = (&pipeline.nodes[node], self.resources(pipeline, node));
            let is_named = declared.run.device.as_ref().is_some_and(|device| device.starts_with("cuda:"));
            let gpus = match &profile.executor {
                _ if devices_in_job(pipeline, declared, &resources).is_empty() => continue,
                // A slot is a GPU.
                Executor::Ssh(_) => Some(1),
                _ if is_named => Some(1),
                _ => resources.gpus(),
            };
            gpus.map_or(Ok(()), |gpus| check_ranks(pipeline, declared, gpus))?;
        }
        Ok(())
    }

    /// What the end of a job is judged by. `seconds`: how long its worker took, if it says so.
    pub(super) fn terms(&self, pipeline: &Pipeline, place: At, reached: u64, seconds: Option<f64>) -> Terms {
        let Some(Away { profile, .. }) = &self.away else { return Terms { reached, retries: 3, ..Terms::default() } };
        let Resources { memory: asked, time, .. } = self.resources(pipeline, place.0);
        let grown = self.grown(place);
        let growing = memory(profile, asked, grown + 1) > memory(profile, asked, grown);
        // It is told that its time is nearly up when half of that has passed at the earliest; what came before the worker is
        // part of it.
        let early = seconds.zip(time).is_some_and(|(seconds, time)| seconds < time.as_secs_f64() / 4.0);
        Terms { reached, retries: profile.retries, growing, early }
    }

    /// What the first interrupt does.
    pub(super) fn on_interrupt(&self) -> OnInterrupt {
        self.away.as_ref().map_or(OnInterrupt::Stop, |away| away.profile.on_interrupt)
    }

    /// Has a job submitted. All is written down before; the watcher waits for the disk, for many jobs at once.
    pub(super) fn submit(&mut self, given: Sending<'_>, mut job: Job) -> Result<Remote, ExecError> {
        let Sending { store, pipeline, run, node, number, serial, directory, role } = given;
        let resources = self.resources_next(pipeline, (node, role.part()));
        let Some(Away { profile, engine, program }) = &self.away else {
            return Err(ExecError::Spawn(std::io::Error::other("there is no engine")));
        };
        let declared = &pipeline.nodes[node];
        job.version = Some(env!("CARGO_PKG_VERSION").to_owned());
        job.scratch = role.of(&store.partial_dir(&job.key)?)?;
        job.staging = directory.join("staging");
        job.result = Some(directory.join(super::job::RESULT));
        let path = directory.join("job.json");
        fs::write(&path, serde_json::to_vec_pretty(&job).map_err(StoreError::from)?)?;
        let what = format!(
            "node {} ({}) of pipeline {}, run {run}, attempt {number}{}",
            declared.name,
            declared.kind.name,
            pipeline.name,
            role.told()
        );
        let arguments = ["worker", &path.display().to_string(), "--detached"];
        // Each rank has its share of the threads.
        let own = Resources { cpus: resources.cpus.map(|_| job.threads), ..resources.clone() };
        let text = script(&what, &own, &path, program, &arguments);
        fs::write(&directory.join("job.sh"), text)?;
        fs::write(&directory.join("log.txt"), "")?;
        let place = attempt_directory(&declared.name, number);
        let mark = format!("{run}/{place}{}", role.mark());
        let ticket = Ticket {
            engine: engine.name().to_owned(),
            mark: mark.clone(),
            job: None,
            host: host(),
            submitted: fs::now().to_string(),
            directory: directory.to_owned(),
            look: String::new(),
            part: role.part(),
        };
        let (written, unsettled) = fs::deferred(|| ticket.write(store, &job.key));
        written?;
        let submission = Submission {
            mark,
            name: plain(&format!("sami:{}/{}", pipeline.name, declared.name)),
            what,
            directory: directory.to_owned(),
            log: directory.join("log.txt"),
            notice: profile.notice,
            resources,
            // The parts of a node ask for the same.
            group: role.part().map(|_| format!("{run}/{place}")),
        };
        let (engine, submission) = (engine.name().to_owned(), Box::new(submission));
        self.watcher(&engine)?.order(Order::Submit { attempt: serial, submission, unsettled });
        self.jobs += 1;
        Ok(Remote::new(engine, serial, directory, directory, ticket))
    }

    /// Listens to what an earlier run began, if its engine can be asked. `here` is its directory in this run's.
    pub(super) fn adopt(&mut self, ticket: Ticket, serial: u64, here: &Path) -> Result<Remote, ExecError> {
        let (directory, mark, job) = (ticket.directory.clone(), ticket.mark.clone(), ticket.job.clone());
        let engine = ticket.engine.clone();
        // What it prints is found in this run, too, as long as the file system lets one file have two names.
        let log = "log.txt";
        if let Err(error) = fs::hard_link(&directory.join(log), &here.join(log)) {
            tracing::debug!("its log stays where it is: {error}");
        }
        let order = Order::Adopt { attempt: serial, directory: directory.clone(), mark, job };
        self.watcher(&engine)?.order(order);
        self.jobs += 1;
        Ok(Remote::new(engine, serial, &directory, here, ticket))
    }

    /// Whether an engine of this name can be asked by this run.
    pub(super) fn knows(&self, engine: &str) -> bool {
        self.engine(engine).is_some()
    }

    fn engine(&self, name: &str) -> Option<Arc<dyn Engine>> {
        let ours = self.away.as_ref().map(|away| &away.engine).filter(|engine| engine.name() == name);
        ours.cloned().or_else(|| bare(name))
    }

    fn watcher(&mut self, engine: &str) -> Result<&Watcher, ExecError> {
        if !self.watchers.contains_key(engine) {
            let there = self.engine(engine);
            let there =
                there.ok_or_else(|| ExecError::Spawn(std::io::Error::other(format!("no engine `{engine}`"))))?;
            let profile = self.away.as_ref().map(|away| &away.profile);
            let rhythm = Rhythm {
                interval: profile.map_or(Duration::from_secs(5), |profile| profile.interval),
                lag: profile.map_or(Duration::from_secs(30), |profile| profile.lag),
            };
            let watcher = Watcher::start(there, rhythm, self.inbox.clone(), &self.root).map_err(ExecError::Spawn)?;
            self.watchers.insert(engine.to_owned(), watcher);
        }
        Ok(&self.watchers[engine])
    }

    /// Tells a job to save and end.
    pub(super) fn stop(&self, remote: &Remote) {
        self.order(remote, Order::Stop { attempt: remote.serial });
    }

    /// Ends a job.
    pub(super) fn cancel(&self, remote: &Remote) {
        self.order(remote, Order::Cancel { attempt: remote.serial });
    }

    fn order(&self, remote: &Remote, order: Order) {
        if let Some(watcher) = self.watchers.get(&remote.engine) {
            watcher.order(order);
        }
    }
}

impl Remote {
    /// Whether an earlier run began it.
    pub(super) fn is_adopted(&self) -> bool {
        self.here != self.directory
    }

    fn new(engine: String, serial: u64, directory: &Path, here: &Path, ticket: Ticket) -> Self {
        let (directory, here) = (directory.to_owned(), here.to_owned());
        Self { engine, serial, directory, here, ticket, reached: 0, again: None, exit: None, silent: false }
    }
}

/// What is sent.
pub(super) struct Sending<'a> {
    pub(super) store: &'a Store,
    pub(super) pipeline: &'a Pipeline,
    pub(super) run: &'a str,
    pub(super) node: usize,
    pub(super) number: u32,
    pub(super) serial: u64,
    pub(super) directory: &'a Path,
    pub(super) role: &'a Role,
}

/// The memory to ask for after so many attempts that ran out of it.
fn memory(profile: &Profile, asked: Option<u64>, grown: u32) -> Option<u64> {
    let asked = asked?;
    let most = profile.memory_limit.unwrap_or(u64::MAX).max(asked);
    Some(((asked as f64 * profile.memory_growth.powi(grown.cast_signed())) as u64).min(most))
}

/// The GPUs that a node has in its job, one for each rank, by the numbers that they have there; none on the CPU.
pub(super) fn devices_in_job(pipeline: &Pipeline, node: &Node, resources: &Resources) -> Vec<String> {
    let device = match node.run.device.as_deref().filter(|device| *device != "auto") {
        Some("cuda") => "cuda:0",
        Some(device) => device,
        None if computes_on_cpu(pipeline, node) => "cpu",
        None => resources.device(),
    };
    let Some(first) = number(device) else {
        return if device == "cpu" { Vec::new() } else { vec![device.to_owned()] };
    };
    (first..first + node.run.ranks.unwrap_or(1).max(1)).map(|number| format!("cuda:{number}")).collect()
}

/// A name that every engine takes.
fn plain(name: &str) -> String {
    name.chars()
        .map(|letter| if letter.is_ascii_alphanumeric() || "-_.:/@".contains(letter) { letter } else { '_' })
        .collect()
}
