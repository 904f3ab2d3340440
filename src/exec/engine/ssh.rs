//! Hosts without a queue, by the system's `ssh`: a few machines with GPUs that people log in to. What `~/.ssh/config` says of
//! hosts, keys and jumps holds here, too.
//!
//! A job is a process in a session of its own on one of the hosts, with its mark in the environment. Its id is
//! `HOST#SLOT:PROCESS:START`, START being when the kernel says that it started: numbers of processes are given again. Each
//! host has so many slots; where jobs ask for a GPU, a slot is the GPU of its number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::program::{Answer, ask_with};
use super::{Engine, Refusal, Seen, Standing, Submission};
use crate::diag::Diagnostic;
use crate::settings::Hosts;
use crate::shell::quoted;

/// For how long a host may give no answer before its jobs count as lost.
const LOST_AFTER: Duration = Duration::from_secs(600);

/// Prints the start of process `$1`, if it lives.
const START: &str = "start() { sed 's/.*) //' \"/proc/$1/stat\" 2>/dev/null | { read -r s _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ _ t _ && [ \"$s\" != Z ] && echo \"$t\"; }; }\n";

/// The hosts of a profile.
#[derive(Debug)]
pub(super) struct Ssh {
    name: String,
    hosts: Hosts,
    /// Jobs that were submitted or seen by this process and are not known to be over.
    taken: Mutex<BTreeSet<String>>,
    /// Since when hosts give no answer.
    silent: Mutex<HashMap<String, Instant>>,
}

impl Ssh {
    pub(super) fn new(profile: &str, hosts: Hosts) -> Self {
        Self { name: format!("ssh:{profile}"), hosts, taken: Mutex::default(), silent: Mutex::default() }
    }

    /// What a script for `sh` answers on a host.
    fn on(&self, host: &str, script: &str) -> Result<String, Refusal> {
        let mut words = self.hosts.ssh.iter();
        let mut command = Command::new(words.next().map_or("ssh", String::as_str));
        command.args(words).args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=15", "--", host, "/bin/sh", "-s"]);
        match ask_with(command, script.as_bytes())? {
            Answer { ok: true, out, .. } => Ok(out),
            answer => {
                let finding = Diagnostic::error("cluster::ssh", format!("`ssh {host}` fails"))
                    .note(answer.complaint())
                    .help(format!(
                        "`ssh {host} true` must succeed without a question: keys and names belong into ~/.ssh/config"
                    ));
                Err(Refusal { finding: Box::new(finding), passing: true })
            }
        }
    }

    fn taken(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A free slot on the host with the most of them.
    fn slot(&self) -> Option<(String, usize)> {
        let taken = self.taken();
        let slots: Vec<(&str, usize)> =
            taken.iter().filter_map(|id| Job::parse(id)).map(|job| (job.host, job.slot)).collect();
        let free = |host: &String| -> Vec<usize> {
            (0..self.hosts.slots).filter(|slot| !slots.contains(&(host.as_str(), *slot))).collect()
        };
        let silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        let hosts = self.hosts.hosts.iter().filter(|host| !silent.contains_key(*host)).map(|host| (host, free(host)));
        // The first of several.
        let best = hosts.rev().max_by_key(|(_, free)| free.len())?;
        Some((best.0.clone(), *best.1.first()?))
    }

    fn submit(&self, job: &Submission) -> Result<String, Refusal> {
        let Some((host, slot)) = self.slot() else {
            let finding = Diagnostic::error("cluster::hosts-full", "all hosts have as many jobs as they have slots");
            return Err(Refusal {
                finding: Box::new(finding.help("raise `slots` in the profile, or name more `hosts`")),
                passing: true,
            });
        };
        let gpu = if job.resources.device().starts_with("cuda") {
            format!("export CUDA_VISIBLE_DEVICES={slot}\n")
        } else {
            String::new()
        };
        let here = std::env::current_dir().map(|here| here.display().to_string()).unwrap_or_default();
        let script = format!(
            "{START}cd {here} 2>/dev/null\n{gpu}export SAMI_JOB={mark}\n\
             setsid sh {script} </dev/null >>{log} 2>&1 &\np=$!\necho \"$p:$(start $p)\"\n",
            here = quoted(&here),
            mark = quoted(&job.mark),
            script = quoted(&job.directory.join("job.sh").display().to_string()),
            log = quoted(&job.log.display().to_string()),
        );
        let out = match self.on(&host, &script) {
            Ok(out) => out,
            Err(refusal) => {
                self.silent.lock().unwrap_or_else(PoisonError::into_inner).entry(host).or_insert_with(Instant::now);
                return Err(refusal);
            }
        };
        let id = format!("{host}#{slot}:{}", out.lines().last().unwrap_or_default().trim());
        if Job::parse(&id).is_none() {
            let finding = Diagnostic::error("cluster::ssh", format!("no process was started on {host}"))
                .note(format!("it printed: {}", out.trim()))
                .help("a host needs /proc, `setsid` and a shell that prints nothing when it starts");
            return Err(Refusal { finding: Box::new(finding), passing: false });
        }
        self.taken().insert(id.clone());
        Ok(id)
    }
}

/// An id, taken apart.
struct Job<'a> {
    host: &'a str,
    slot: usize,
    process: u32,
    start: &'a str,
}

impl<'a> Job<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let (host, rest) = id.rsplit_once('#')?;
        let mut parts = rest.split(':');
        let (slot, process, start) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        (parts.next().is_none() && start.bytes().all(|byte| byte.is_ascii_digit())).then_some(Self {
            host,
            slot,
            process,
            start,
        })
    }
}

/// Jobs by their hosts.
fn by_host<'a>(jobs: &[&'a str]) -> BTreeMap<&'a str, Vec<(&'a str, Job<'a>)>> {
    let mut hosts: BTreeMap<&str, Vec<(&str, Job<'_>)>> = BTreeMap::new();
    for (id, job) in jobs.iter().filter_map(|id| Some((*id, Job::parse(id)?))) {
        hosts.entry(job.host).or_default().push((id, job));
    }
    hosts
}

impl Engine for Ssh {
    fn name(&self) -> &str {
        &self.name
    }

    fn submit(&self, jobs: &[Submission]) -> Vec<Result<String, Refusal>> {
        jobs.iter().map(|job| self.submit(job)).collect()
    }

    fn poll(&self, jobs: &[&str]) -> Result<HashMap<String, Seen>, Refusal> {
        self.taken().extend(jobs.iter().map(|job| (*job).to_owned()));
        let hosts = by_host(jobs);
        // A host that is far or down keeps no one else waiting.
        let answers: Vec<(&str, Result<String, Refusal>)> = std::thread::scope(|scope| {
            let asked = hosts.iter().map(|(host, jobs)| {
                let each = |(_, job): &(&str, Job<'_>)| format!("echo {}:$(start {})\n", job.process, job.process);
                let each = jobs.iter().map(each).collect::<Vec<_>>().concat();
                (*host, scope.spawn(move || self.on(host, &format!("{START}{each}"))))
            });
            let asked: Vec<_> = asked.collect();
            asked.into_iter().filter_map(|(host, asked)| Some((host, asked.join().ok()?))).collect()
        });
        let mut seen = HashMap::new();
        for (host, answer) in answers {
            let mut silent = self.silent.lock().unwrap_or_else(PoisonError::into_inner);
            let state = match &answer {
                Ok(_) => {
                    silent.remove(host);
                    Standing::Runs
                }
                Err(_) if silent.entry(host.to_owned()).or_insert_with(Instant::now).elapsed() > LOST_AFTER => {
                    Standing::HostFailed
                }
                Err(_) => Standing::Runs,
            };
            let lines: BTreeSet<&str> = answer.as_deref().map(|out| out.lines().collect()).unwrap_or_default();
            for (id, job) in &hosts[host] {
                let lives = answer.is_err() || lines.contains(format!("{}:{}", job.process, job.start).as_str());
                if !lives {
                    self.taken().remove(*id);
                    continue;
                }
                let why = answer.as_ref().err().map(Refusal::line).unwrap_or_default();
                seen.insert((*id).to_owned(), Seen { state, host: Some(host.to_owned()), why });
            }
        }
        Ok(seen)
    }

    fn find(&self, marks: &[&str]) -> Result<HashMap<String, String>, Refusal> {
        let each = marks.iter().map(|mark| format!("look {}\n", quoted(mark))).collect::<Vec<_>>().concat();
        // The leader of its session is the script, or what took its place.
        let look = "look() { for d in $(grep -lazF \"SAMI_JOB=$1\" /proc/[0-9]*/environ 2>/dev/null); do \
                    p=${d#/proc/}; p=${p%/environ}; \
                    [ \"$(sed 's/.*) //' /proc/$p/stat 2>/dev/null | cut -d' ' -f4)\" = \"$p\" ] && \
                    grep -qazx \"SAMI_JOB=$1\" /proc/$p/environ && \
                    echo \"$1 $(tr '\\0' '\\n' </proc/$p/environ | sed -n 's/^CUDA_VISIBLE_DEVICES=//p' | grep -x '[0-9]*' || echo 0):$p:$(start $p)\"; done; }\n";
        let mut found = HashMap::new();
        for host in &self.hosts.hosts {
            let out = self.on(host, &format!("{START}{look}{each}true\n"))?;
            for (mark, rest) in out.lines().filter_map(|line| line.split_once(' ')) {
                found.insert(mark.to_owned(), format!("{host}#{}", rest.trim()));
            }
        }
        Ok(found)
    }

    fn cancel(&self, jobs: &[&str]) -> Result<(), Refusal> {
        for (host, jobs) in by_host(jobs) {
            let end = |(_, job): &(&str, Job<'_>)| {
                let (process, start) = (job.process, job.start);
                format!("[ \"$(start {process})\" = {start} ] && kill -TERM -{process}\n")
            };
            let each: String = jobs.iter().map(end).collect();
            self.on(host, &format!("{START}{each}true\n"))?;
        }
        Ok(())
    }

    fn over(&self, jobs: &[&str]) {
        jobs.iter().for_each(|job| _ = self.taken().remove(*job));
    }

    fn review(&self, _: &Submission) -> Vec<Diagnostic> {
        let ask = |host: &String| self.on(host, "[ -r /proc/self/stat ] && command -v setsid >/dev/null\n").err();
        self.hosts.hosts.iter().filter_map(ask).map(|refusal| *refusal.finding).collect()
    }

    fn look(&self, job: &str) -> String {
        let look = Job::parse(job).map(|job| format!("ssh {} ps -f --sid {}", job.host, job.process));
        look.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_taken_apart_and_slots_shared_out() {
        let job = Job::parse("me@gpu1#2:4711:99").unwrap();
        assert_eq!((job.host, job.slot, job.process, job.start), ("me@gpu1", 2, 4711, "99"));
        for bad in ["gpu1", "gpu1#0:12", "gpu1#0:12:x", "gpu1#a:1:2", "gpu1#0:1:2:3"] {
            assert!(Job::parse(bad).is_none(), "{bad}");
        }
        let hosts = Hosts { hosts: vec!["a".into(), "b".into()], slots: 2, ssh: vec!["ssh".into()] };
        let ssh = Ssh::new("lab", hosts);
        let mut order = Vec::new();
        while let Some((host, slot)) = ssh.slot() {
            ssh.taken().insert(format!("{host}#{slot}:1:1"));
            order.push(format!("{host}{slot}"));
        }
        assert_eq!(order, ["a0", "b0", "a1", "b1"]);
    }
}
