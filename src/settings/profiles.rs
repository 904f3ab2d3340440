//! The tables `[profiles.NAME]`: where a run's attempts execute, and what they ask for there.

use std::time::Duration;

use super::section::Section;
use crate::amount;

mod templates;
mod time;

pub use templates::Templates;

/// Where a run's attempts execute: `sami run --profile NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// What executes them.
    pub executor: Executor,
    /// What attempts ask for, as far as neither their kind nor their node says otherwise.
    pub base: Resources,
    /// What nodes of a kind ask for, by the kind's name.
    pub kinds: Vec<(String, Resources)>,
    /// What nodes ask for, by their name, in which `*` stands for anything; later ones win.
    pub nodes: Vec<(String, Resources)>,
    /// What the first interrupt does to jobs.
    pub on_interrupt: OnInterrupt,
    /// Between two looks at the jobs.
    pub interval: Duration,
    /// How long a file may take to be seen that another machine has written.
    pub lag: Duration,
    /// How long before its time limit a job is told to save.
    pub notice: Duration,
    /// Jobs at once, waiting ones included.
    pub jobs: usize,
    /// How often an attempt is made again that was preempted, lost, or ran out of memory.
    pub retries: u32,
    /// By what the memory grows after an attempt that ran out of it.
    pub memory_growth: f64,
    /// Bytes up to which it grows.
    pub memory_limit: Option<u64>,
    /// The program there; the one that runs here without it.
    pub program: Option<String>,
    /// Whether a small job looks first whether all is as it must be, and how long it is waited for.
    pub probe: Option<Duration>,
}

/// What executes attempts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Executor {
    /// Processes of this machine.
    Local,
    /// Slurm's `sbatch`, `squeue` and `scancel`.
    Slurm,
    /// Processes on hosts that `ssh` reaches.
    Ssh(Hosts),
    /// Whatever programs these are.
    Command(Templates),
}

/// Hosts that `ssh` reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hosts {
    /// By the names that `ssh` knows.
    pub hosts: Vec<String>,
    /// Jobs at once on each; where a GPU is asked for, the GPUs of each.
    pub slots: usize,
    /// The program, with its first arguments.
    pub ssh: Vec<String>,
}

/// What the first interrupt does to jobs; the second one ends them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnInterrupt {
    /// They save and end, those that wait are cancelled.
    Stop,
    /// They go on, to be found again.
    Leave,
    /// They are ended.
    Cancel,
}

/// Where a node's attempts execute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Site {
    /// In a process of the machine that runs the scheduler.
    Here,
    /// In a job.
    Job,
}

/// What an attempt asks for. What is `None` is left to the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// Where it executes.
    pub site: Option<Site>,
    /// Slurm partition.
    pub partition: Option<String>,
    /// Account that is charged.
    pub account: Option<String>,
    /// Quality of service.
    pub qos: Option<String>,
    /// Features that the machine must have.
    pub constraint: Option<String>,
    /// Generic resources, such as `gpu:1`.
    pub gres: Option<String>,
    /// CPUs, and threads of the worker.
    pub cpus: Option<usize>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Time limit.
    pub time: Option<Duration>,
    /// Device of nodes that name none: `cpu` or `cuda:N`.
    pub device: Option<String>,
    /// Lines of shell before the worker starts.
    pub setup: Option<Vec<String>>,
    /// The command that the worker is started with, such as `apptainer exec --nv image.sif`.
    pub container: Option<Vec<String>>,
    /// Further arguments of the program that submits.
    pub extra: Option<Vec<String>>,
}

impl Resources {
    /// These, with what `other` says in place of what they say.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        Self {
            site: other.site.or(self.site),
            partition: other.partition.clone().or_else(|| self.partition.clone()),
            account: other.account.clone().or_else(|| self.account.clone()),
            qos: other.qos.clone().or_else(|| self.qos.clone()),
            constraint: other.constraint.clone().or_else(|| self.constraint.clone()),
            gres: other.gres.clone().or_else(|| self.gres.clone()),
            cpus: other.cpus.or(self.cpus),
            memory: other.memory.or(self.memory),
            time: other.time.or(self.time),
            device: other.device.clone().or_else(|| self.device.clone()),
            setup: other.setup.clone().or_else(|| self.setup.clone()),
            container: other.container.clone().or_else(|| self.container.clone()),
            extra: other.extra.clone().or_else(|| self.extra.clone()),
        }
    }

    /// The device of a node that names none: what is said, or the first GPU if one is asked for.
    pub fn device(&self) -> &str {
        let gpus = self.gres.iter().chain(self.extra.iter().flatten()).any(|text| text.contains("gpu"));
        self.device.as_deref().unwrap_or(if gpus { "cuda:0" } else { "cpu" })
    }

    /// GPUs of a job, where `gres` alone says how many: not beside options or programs that may spread it over machines.
    pub fn gpus(&self) -> Option<usize> {
        let spreads = |container: &Vec<String>| container.first().is_some_and(|program| program.ends_with("srun"));
        if self.extra.is_some() || self.container.as_ref().is_some_and(spreads) {
            return None;
        }
        let gpus = self.gres.as_ref()?.split(',').filter(|gres| gres.starts_with("gpu"));
        // `gpu`, `gpu:2`, `gpu:a100:2`
        Some(gpus.map(|gpus| gpus.rsplit(':').next().and_then(|count| count.parse().ok()).unwrap_or(1)).sum())
    }
}

impl Profile {
    /// What a node of a kind asks for.
    pub fn resources(&self, kind: &str, node: &str) -> Resources {
        let of_kind = self.kinds.iter().filter(|(name, _)| name == kind).map(|(_, resources)| resources);
        let of_node = self.nodes.iter().filter(|(pattern, _)| matches(pattern, node)).map(|(_, resources)| resources);
        of_kind.chain(of_node).fold(self.base.clone(), |all, next| all.with(next))
    }
}

/// Whether a name is as a pattern says, in which `*` stands for anything.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = name.strip_prefix(parts.next().unwrap_or_default()) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

const SIZE: &str = "write it as `\"16GB\"`";
const TIME: &str = "write it as `\"4h\"`, `\"1d 12h\"`, `\"90m\"` or `\"30s\"`";

/// Takes the keys of a profile. What is wrong is in the section's faults.
pub(super) fn take(name: &str, section: &mut Section<'_>) -> Profile {
    let executor = section.word("executor", &["local", "slurm", "ssh", "command"]).unwrap_or(0);
    let templates = templates::take(section, executor == 3);
    let hosts = hosts(section, executor == 2);
    let executor = match executor {
        1 => Executor::Slurm,
        2 => Executor::Ssh(hosts),
        3 => Executor::Command(templates),
        _ => Executor::Local,
    };
    let room = match &executor {
        Executor::Ssh(hosts) => hosts.hosts.len() * hosts.slots,
        _ => usize::MAX,
    };
    let base = resources(section);
    let kinds = section.tables("kinds", |_, section| resources(section));
    let nodes = section.tables("nodes", |_, section| resources(section));
    let on_interrupt = match section.word("on_interrupt", &["stop", "leave", "cancel"]) {
        Some(1) => OnInterrupt::Leave,
        Some(2) => OnInterrupt::Cancel,
        _ => OnInterrupt::Stop,
    };
    let seconds = Duration::from_secs;
    let probe = section.flag("probe").unwrap_or(true);
    let probe_wait = section.read("probe_wait", time::read, TIME).unwrap_or(seconds(120));
    Profile {
        name: name.to_owned(),
        executor,
        base,
        kinds,
        nodes,
        on_interrupt,
        interval: section.read("interval", time::read, TIME).unwrap_or(seconds(5)).max(Duration::from_millis(100)),
        lag: section.read("lag", time::read, TIME).unwrap_or(seconds(30)),
        notice: section.read("notice", time::read, TIME).unwrap_or(seconds(120)),
        jobs: section.number("jobs", 1..=100_000).unwrap_or(500).min(room as u64) as usize,
        retries: section.number("retries", 0..=1000).unwrap_or(3) as u32,
        memory_growth: section.real("memory_growth", 1.0).unwrap_or(1.5),
        memory_limit: section.read("memory_limit", amount::size, SIZE),
        program: section.text("program").map(|(text, _)| text),
        probe: probe.then_some(probe_wait),
    }
}

fn hosts(section: &mut Section<'_>, wanted: bool) -> Hosts {
    let is_there = section.has("hosts");
    let hosts = section.texts("hosts");
    let slots = section.number("slots", 1..=1024).unwrap_or(1) as usize;
    let ssh = section.texts("ssh").filter(|words| !words.is_empty()).unwrap_or_else(|| vec!["ssh".to_owned()]);
    if wanted && hosts.as_ref().map_or(!is_there, Vec::is_empty) {
        section.lacks("hosts", "name those that `ssh` reaches: `hosts = [\"gpu1\", \"gpu2\"]`");
    }
    Hosts { hosts: hosts.unwrap_or_default(), slots, ssh }
}

fn resources(section: &mut Section<'_>) -> Resources {
    let mut text = |key| section.text(key).map(|(text, _)| text);
    let (partition, account, qos) = (text("partition"), text("account"), text("qos"));
    let (constraint, gres, device) = (text("constraint"), text("gres"), text("device"));
    Resources {
        site: section.word("run_on", &["here", "job"]).map(|word| if word == 0 { Site::Here } else { Site::Job }),
        partition,
        account,
        qos,
        constraint,
        gres,
        cpus: section.number("cpus", 1..=4096).map(|cpus| cpus as usize),
        memory: section.read("memory", amount::size, SIZE),
        time: section.read("time", time::read, TIME),
        device,
        setup: section.texts("setup"),
        container: section.texts("container"),
        extra: section.texts("extra"),
    }
}

#[cfg(test)]
mod tests;
