//! What is found out about a profile before any work: whether the engine takes what nodes ask for, and, by one small job,
//! whether jobs see the cache and the same `sami`.
//!
//! What a job found is remembered for some hours. Where the queue is long, work goes on without it: each worker looks for
//! the same when it starts.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::script::{NO_PROGRAM, UNSEEN, script_into};
use super::{Seen, Standing, Submission};
use crate::diag::{Diagnostic, Severity};
use crate::digest::Digest;
use crate::exec::{Away, ExecError, host};
use crate::fs;
use crate::settings::Resources;
use crate::store::{Store, StoreError};

/// How long what a probe found is good for.
const GOOD_FOR: Duration = Duration::from_secs(6 * 3600);
/// Between two looks for what it found.
const LOOK: Duration = Duration::from_millis(200);
/// Kinds of jobs that the engine is asked about.
const MOST_ASKED: usize = 16;
/// Seconds by which clocks may differ.
const SKEW: f64 = 5.0;

const ASKED: &str = "probe.json";
const FOUND: &str = "found.json";

/// What a job is to find.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    token: String,
}

/// What it found.
#[derive(Debug, Serialize, Deserialize)]
struct Found {
    token: String,
    version: String,
    host: String,
    /// Seconds since 1970 by its clock.
    clock: f64,
}

/// Executes a probe: says where it is, beside the file that it was given.
pub(in crate::exec) fn probe(path: &Path) -> Result<u8, ExecError> {
    let bad = |what: String| ExecError::BadJob { path: path.to_owned(), what };
    let bytes = fs_err::read(path).map_err(|error| bad(error.to_string()))?;
    let asked: Asked = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let found =
        Found { token: asked.token, version: env!("CARGO_PKG_VERSION").to_owned(), host: host(), clock: clock() };
    let bytes = serde_json::to_vec(&found).map_err(StoreError::from)?;
    fs::write_atomic(&path.with_file_name(FOUND), &bytes)?;
    Ok(0)
}

fn clock() -> f64 {
    fs::now().as_microsecond() as f64 / 1e6
}

/// Looks whether jobs that ask for these resources can do their work; they are those of the nodes that will run. Returns
/// what is worth a look; errs with what is wrong.
pub fn check(away: &Away, store: &Store, asked: &[Resources]) -> Result<Vec<Diagnostic>, ExecError> {
    let mut distinct: Vec<&Resources> = Vec::new();
    for resources in asked {
        if !distinct.contains(&resources) && distinct.len() < MOST_ASKED {
            distinct.push(resources);
        }
    }
    let Some(first) = distinct.first() else { return Ok(Vec::new()) };
    let mut faults: Vec<Diagnostic> = Vec::new();
    for resources in &distinct {
        for fault in away.engine.review(&submission(away, store.root(), resources)) {
            if !faults.iter().any(|known| known.id == fault.id && known.notes == fault.notes) {
                faults.push(fault);
            }
        }
    }
    if faults.iter().any(|fault| fault.severity == Severity::Error) {
        return Err(ExecError::Cluster(faults));
    }
    let Some(patience) = away.profile.probe else { return Ok(faults) };
    let mark = remembered(away, store, first);
    let is_good = fs_err::metadata(&mark)
        .and_then(|file| file.modified())
        .is_ok_and(|at| fs::system_now().duration_since(at).is_ok_and(|age| age < GOOD_FOR));
    if is_good {
        return Ok(faults);
    }
    let directory = store.tmp().join(format!("probe-{}-{}", host(), std::process::id()));
    fs::create_directory(&directory)?;
    let findings = sent(away, &directory, &small(first), patience);
    fs::remove_directory(&directory)?;
    let findings = findings?;
    if findings.iter().any(|finding| finding.severity == Severity::Error) {
        return Err(ExecError::Cluster(findings));
    }
    if findings.is_empty() {
        fs::write(&mark, "")?;
    }
    faults.extend(findings);
    Ok(faults)
}

/// Where it is remembered that a probe found all well: named by all that this rests on.
fn remembered(away: &Away, store: &Store, resources: &Resources) -> PathBuf {
    let program = fs_err::metadata(&away.program).map(|file| (file.len(), file.modified().ok())).ok();
    let rests = format!(
        "{} {} {:?} {} {program:?} {} {resources:?}",
        env!("CARGO_PKG_VERSION"),
        host(),
        away.engine.name(),
        away.program.display(),
        store.root().display(),
    );
    store.tmp().join(format!("probed-{}", Digest::of(rests.as_bytes()).short()))
}

/// What a probe asks for: a place in the same queue, and little of it.
fn small(resources: &Resources) -> Resources {
    let most = |asked: Option<u64>, most: u64| asked.map(|asked| asked.min(most));
    Resources {
        cpus: resources.cpus.map(|_| 1),
        memory: most(resources.memory, 512 << 20),
        time: resources.time.map(|time| time.min(Duration::from_secs(300))),
        ..resources.clone()
    }
}

fn submission(away: &Away, directory: &Path, resources: &Resources) -> Submission {
    Submission {
        mark: format!("probe/{}-{}", host(), std::process::id()),
        name: "sami:probe".to_owned(),
        what: format!("looks whether jobs of profile {} see what they need", away.profile.name),
        directory: directory.to_owned(),
        // On a machine that does not see the directory nothing could be said at all.
        log: PathBuf::from("/dev/null"),
        resources: resources.clone(),
        notice: Duration::ZERO,
        group: None,
    }
}

/// Sends a job and waits for what it finds.
fn sent(
    away: &Away,
    directory: &Path,
    resources: &Resources,
    patience: Duration,
) -> Result<Vec<Diagnostic>, ExecError> {
    let began = Instant::now();
    let token = Digest::of(format!("{} {}", host(), fs::now()).as_bytes()).short();
    let path = directory.join(ASKED);
    fs::write(&path, serde_json::to_vec(&Asked { token: token.clone() }).map_err(StoreError::from)?)?;
    let (job, log) = (submission(away, directory, resources), directory.join("log.txt"));
    let arguments = ["worker", &path.display().to_string(), "--probe"];
    fs::write(
        &directory.join("job.sh"),
        script_into(&job.what, resources, &path, &away.program, &arguments, Some(&log)),
    )?;
    let before = clock();
    let id = match away.engine.submit(std::slice::from_ref(&job)).remove(0) {
        Ok(id) => id,
        Err(refusal) => return Ok(vec![*refusal.finding]),
    };
    let (mut polled, mut over): (Option<Instant>, Option<(Instant, Option<Seen>)>) = (None, None);
    loop {
        // Listed, not looked up: NFS remembers for a while that a name was not there.
        let is_there = fs::list(directory)?.iter().any(|file| file.ends_with(FOUND));
        let found = is_there.then(|| fs_err::read(directory.join(FOUND)).ok()).flatten();
        if let Some(found) = found.and_then(|bytes| serde_json::from_slice::<Found>(&bytes).ok()) {
            return Ok(judged(&found, &token, (before, clock())));
        }
        if let Some((_, seen)) = over.as_ref().filter(|(since, _)| since.elapsed() >= away.profile.lag) {
            return Ok(vec![failed(seen.as_ref(), &log)]);
        }
        if over.is_none()
            && polled.is_none_or(|polled| polled.elapsed() >= away.profile.interval.min(Duration::from_secs(2)))
        {
            let mut seen = away.engine.poll(&[&id]).unwrap_or_default();
            let seen = seen.remove(&id);
            // Their exit codes say it all.
            if let Some(Seen { state: Standing::Ended(Some(UNSEEN | NO_PROGRAM)), .. }) = &seen {
                return Ok(vec![failed(seen.as_ref(), &log)]);
            }
            if seen.as_ref().is_none_or(|seen| seen.state.is_over()) && polled.is_some() {
                over = Some((Instant::now(), seen));
            }
            polled = Some(Instant::now());
        }
        if began.elapsed() > patience && over.is_none() {
            let _ = away.engine.cancel(&[&id]);
            let what = format!("the queue did not take a small job within {} s", patience.as_secs());
            let finding = Diagnostic::warning("cluster::probe-waits", what);
            return Ok(vec![finding.help(
                "nothing is wrong with that: each job looks by itself whether it sees the cache and the same `sami`; \
                 `probe = false` in the profile leaves this out",
            )]);
        }
        std::thread::sleep(LOOK);
    }
}

/// What is wrong with what a probe found, if something is. `window`: when it was sent and when it was seen, by the clock
/// here.
fn judged(found: &Found, token: &str, (sent, seen): (f64, f64)) -> Vec<Diagnostic> {
    let (ours, theirs, on) = (env!("CARGO_PKG_VERSION"), &found.version, &found.host);
    let mut findings = Vec::new();
    if found.token != token {
        findings.push(not_shared(on).note("what is there is another run's"));
    }
    if theirs != ours {
        let finding =
            Diagnostic::error("cluster::version", format!("`sami` on {on} is {theirs}, and here it is {ours}"));
        findings.push(finding.help("install one of them in both places, or name a `program` in the profile"));
    }
    let skew = if found.clock < sent { found.clock - sent } else { (found.clock - seen).max(0.0) };
    if skew.abs() > SKEW {
        let finding = Diagnostic::warning(
            "cluster::clock-skew",
            format!("the clock of {on} is off by {skew:.0} s from the one here"),
        );
        findings.push(
            finding.help("nothing that `sami` decides rests on it, but MUNGE refuses what is minutes off: see to NTP"),
        );
    }
    findings
}

fn not_shared(on: &str) -> Diagnostic {
    Diagnostic::error("cluster::not-shared", format!("{on} does not see the cache"))
        .help("put it into a directory that all hosts share under one path: `--cache`, or `SAMI_CACHE`")
}

/// A probe that ended and left nothing.
fn failed(seen: Option<&Seen>, log: &Path) -> Diagnostic {
    let on = seen.and_then(|seen| seen.host.clone()).unwrap_or_else(|| "the machine of a job".to_owned());
    match seen.map(|seen| seen.state) {
        // It said that it wrote what it found.
        Some(Standing::Ended(Some(UNSEEN | 0))) => not_shared(&on),
        Some(Standing::Ended(Some(NO_PROGRAM))) => {
            let finding = Diagnostic::error("cluster::no-worker", format!("{on} has no such program"));
            finding.help("name a `program` in the profile that is there under the same path on all hosts")
        }
        state => {
            let finding = Diagnostic::error("cluster::probe", format!("a small job fails on {on}"));
            let finding = match (state, seen) {
                (Some(Standing::Ended(Some(code))), _) => finding.note(format!("its exit code is {code}")),
                (Some(state), Some(seen)) if seen.why.is_empty() => finding.note(format!("it ended as {state:?}")),
                (_, Some(seen)) => finding.note(seen.why.clone()),
                _ => finding.note("the engine does not know it any more"),
            };
            let tail = crate::exec::journal::tail(log, 12);
            let finding =
                if tail.is_empty() { finding } else { finding.note(format!("it said:\n{}", tail.join("\n"))) };
            finding.help("see `setup`, `container` and `extra` in the profile")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_probe_finds_is_judged() {
        let found =
            |version: &str, clock: f64| Found { token: "t".into(), version: version.into(), host: "n1".into(), clock };
        let ids =
            |found: Found| -> Vec<&str> { judged(&found, "t", (100.0, 110.0)).iter().map(|found| found.id).collect() };
        let ours = env!("CARGO_PKG_VERSION");
        assert!(ids(found(ours, 105.0)).is_empty() && ids(found(ours, 96.0)).is_empty());
        assert_eq!(ids(found("0.0.0", 105.0)), ["cluster::version"]);
        assert_eq!(ids(found(ours, 94.0)), ["cluster::clock-skew"]);
        assert_eq!(ids(found(ours, 400.0)), ["cluster::clock-skew"]);
        assert_eq!(judged(&found(ours, 105.0), "other", (100.0, 110.0))[0].id, "cluster::not-shared");
    }

    #[test]
    fn a_probe_that_left_nothing_says_why() {
        let seen = |state| Seen { state, host: Some("n1".into()), why: String::new() };
        let id = |state| failed(Some(&seen(state)), Path::new("/nowhere")).id;
        assert_eq!(id(Standing::Ended(Some(UNSEEN))), "cluster::not-shared");
        assert_eq!(id(Standing::Ended(Some(0))), "cluster::not-shared");
        assert_eq!(id(Standing::Ended(Some(NO_PROGRAM))), "cluster::no-worker");
        assert_eq!(id(Standing::HostFailed), "cluster::probe");
        assert_eq!(failed(None, Path::new("/nowhere")).id, "cluster::probe");
    }
}
