//! Slurm, by the programs that every site offers: `sbatch`, `squeue`, `scancel`, and `sacct` where there is accounting.
//!
//! Their answers are read as text with `|` between the fields: the shapes of `--json` change from release to release.
//! `squeue` forgets a job some minutes after its end (`MinJobAge`); `sacct` may lag behind, or not be there at all. So
//! both are asked only for what the worker's own record does not say.
//!
//! Jobs are not requeued by Slurm (`--no-requeue`): a new attempt is a new job with directories of its own, as the first
//! one may still be running on a machine that was only thought lost.

use std::collections::{BTreeMap, HashMap};
use std::process::Command;

use super::program::{Answer, ask};
use super::{Engine, Refusal, Seen, Standing, Submission};
use crate::diag::Diagnostic;
use crate::settings::Resources;

mod array;
mod complaint;

use complaint::complaint;

/// Slurm.
#[derive(Debug)]
pub(super) struct Slurm;

/// Longest name of a job.
const LONGEST: usize = 60;
/// Calls of `sbatch` at once.
const AT_ONCE: usize = 4;
/// Ids in one call: a command line has a length.
const MOST_IDS: usize = 5000;

impl Engine for Slurm {
    fn name(&self) -> &'static str {
        "slurm"
    }

    fn submit(&self, jobs: &[Submission]) -> Vec<Result<String, Refusal>> {
        let one = |group: &Vec<usize>| match group[..] {
            [place] => vec![submit(&jobs[place])],
            _ => array::submit(&group.iter().map(|place| &jobs[*place]).collect::<Vec<_>>()),
        };
        let groups = array::groups(jobs);
        let mut outcomes: BTreeMap<usize, Result<String, Refusal>> = BTreeMap::new();
        // A busy controller takes its time with each.
        std::thread::scope(|scope| {
            let share = groups.len().div_ceil(AT_ONCE).max(1);
            let each = |part: &[Vec<usize>]| {
                part.iter().flat_map(|group| group.iter().copied().zip(one(group))).collect::<Vec<_>>()
            };
            let parts: Vec<_> = groups.chunks(share).map(|part| scope.spawn(move || each(part))).collect();
            outcomes.extend(parts.into_iter().flat_map(|part| part.join().unwrap_or_default()));
        });
        outcomes.into_values().collect()
    }

    fn poll(&self, jobs: &[&str]) -> Result<HashMap<String, Seen>, Refusal> {
        let mut seen = HashMap::new();
        for jobs in jobs.chunks(MOST_IDS) {
            let answer = squeue(&["-j", &jobs.join(","), "-o", "%i|%T|%N|%r"])?;
            seen.extend(answer.lines().filter_map(line));
            let failed = |seen: &Seen| matches!(seen.state, Standing::Ended(None));
            let failed: Vec<&str> = jobs.iter().copied().filter(|job| seen.get(*job).is_some_and(failed)).collect();
            if !failed.is_empty() {
                let codes = squeue(&["-j", &failed.join(","), "-O", "JobArrayID:40,exit_code:20"])?;
                for (job, code) in codes.lines().filter_map(exit_code) {
                    seen.entry(job).and_modify(|seen| seen.state = Standing::Ended(Some(code)));
                }
            }
            let gone: Vec<&str> = jobs.iter().copied().filter(|job| !seen.contains_key(*job)).collect();
            seen.extend(accounted(&gone));
        }
        Ok(seen)
    }

    fn find(&self, marks: &[&str]) -> Result<HashMap<String, String>, Refusal> {
        let answer = squeue(&["--me", "-o", "%i|%K|%k"])?;
        let mut found = HashMap::new();
        for line in answer.lines() {
            let mut fields = line.splitn(3, '|');
            let (Some(id), Some(task), Some(comment)) = (fields.next(), fields.next(), fields.next()) else { continue };
            let mark = comment.split_whitespace().next().unwrap_or_default();
            let mark = array::mark_of(mark, task).unwrap_or_else(|| mark.to_owned());
            if marks.contains(&mark.as_str()) {
                found.insert(mark, id.to_owned());
            }
        }
        Ok(found)
    }

    fn cancel(&self, jobs: &[&str]) -> Result<(), Refusal> {
        for jobs in jobs.chunks(MOST_IDS) {
            let mut command = Command::new("scancel");
            // One that is over already is not told of.
            command.arg("--quiet").args(jobs);
            let answer = ask(command)?;
            if !answer.ok && !answer.err.contains("Invalid job id") {
                return Err(complaint("scancel", &answer));
            }
        }
        Ok(())
    }

    fn review(&self, asked: &Submission) -> Vec<Diagnostic> {
        let mut command = sbatch(asked);
        command.arg("--test-only").args(["--wrap", "true"]);
        match ask(command) {
            Ok(answer) if answer.ok => Vec::new(),
            Ok(answer) => vec![*complaint("sbatch", &answer).finding],
            Err(refusal) => vec![*refusal.finding],
        }
    }

    fn look(&self, job: &str) -> String {
        format!("scontrol show job {job}")
    }
}

fn submit(job: &Submission) -> Result<String, Refusal> {
    let mut command = sbatch(job);
    command.arg(job.directory.join("job.sh"));
    let answer = ask(command)?;
    // `ID`, or `ID;CLUSTER`.
    let id = answer.out.lines().last().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    if answer.ok && !id.is_empty() { Ok(id) } else { Err(complaint("sbatch", &answer)) }
}

/// `sbatch` with all that a job asks for, but without its script.
fn sbatch(job: &Submission) -> Command {
    let Resources { partition, account, qos, constraint, gres, cpus, memory, time, extra, .. } = &job.resources;
    let name: String = job.name.chars().take(LONGEST).collect();
    let mut command = Command::new("sbatch");
    command
        .args(["--parsable", "--no-requeue", "--open-mode=append", "--input=/dev/null"])
        .arg(format!("--job-name={name}"))
        .arg(format!("--comment={} {}", job.mark, job.what.replace('|', "/")))
        .arg(format!("--output={}", escaped(&job.log.display().to_string())));
    let options = [
        ("partition", partition.clone()),
        ("account", account.clone()),
        ("qos", qos.clone()),
        ("constraint", constraint.clone()),
        ("gres", gres.clone()),
        ("cpus-per-task", cpus.map(|cpus| cpus.to_string())),
        // In MiB, rounded up.
        ("mem", memory.map(|bytes| format!("{}M", bytes.div_ceil(1 << 20)))),
        // In minutes, rounded up: what is shorter Slurm does not know.
        ("time", time.map(|time| time.as_secs().div_ceil(60).max(1).to_string())),
    ];
    for (option, value) in options.into_iter().filter_map(|(option, value)| Some((option, value?))) {
        command.arg(format!("--{option}={value}"));
    }
    if let Some(notice) = job.notice() {
        command.arg(format!("--signal=B:USR1@{notice}"));
    }
    command.args(extra.iter().flatten());
    command
}

/// A path in which `%` is no pattern.
fn escaped(path: &str) -> String {
    path.replace('%', "%%")
}

/// `squeue` for jobs in any state, without header, tasks of arrays one by one.
fn squeue(arguments: &[&str]) -> Result<String, Refusal> {
    let mut command = Command::new("squeue");
    command.args(["--noheader", "-r", "-t", "all"]).args(arguments);
    match ask(command)? {
        Answer { ok: true, out, .. } => Ok(out),
        // A single job that it does not know (any more).
        Answer { err, .. } if err.contains("Invalid job id") => Ok(String::new()),
        answer => Err(complaint("squeue", &answer)),
    }
}

/// What accounting says of jobs that `squeue` has forgotten; nothing where there is none.
fn accounted(jobs: &[&str]) -> BTreeMap<String, Seen> {
    if jobs.is_empty() {
        return BTreeMap::new();
    }
    let mut command = Command::new("sacct");
    command.args(["-X", "-n", "-P", "-o", "jobid,state,exitcode,nodelist,reason", "-j", &jobs.join(",")]);
    match ask(command) {
        Ok(answer) if answer.ok => answer.out.lines().filter_map(accounted_line).collect(),
        _ => BTreeMap::new(),
    }
}

/// `ID|STATE|NODES|REASON`.
fn line(line: &str) -> Option<(String, Seen)> {
    let mut fields = line.trim().split('|');
    let (id, state, host) = (fields.next()?, fields.next()?, fields.next()?);
    Some((id.to_owned(), Seen { state: standing(state)?, host: host_of(host), why: reason(fields.next()?) }))
}

/// `ID|STATE|CODE:SIGNAL|NODES|REASON`.
fn accounted_line(line: &str) -> Option<(String, Seen)> {
    let mut fields = line.trim().split('|');
    let (id, state, code, host) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let state = match standing(state)? {
        Standing::Ended(None) => Standing::Ended(code_of(code)),
        state => state,
    };
    // `CANCELLED by 1000`: by whom.
    let why = reason(fields.next().unwrap_or_default());
    Some((id.to_owned(), Seen { state, host: host_of(host), why }))
}

/// `CODE:SIGNAL` as shells have it.
fn code_of(text: &str) -> Option<i32> {
    let (code, signal) = text.split_once(':')?;
    match signal.trim().parse::<i32>().ok()? {
        0 => code.trim().parse().ok(),
        signal => Some(128 + signal),
    }
}

/// `ID CODE`, the code as `wait` has it, or `CODE:SIGNAL`.
fn exit_code(line: &str) -> Option<(String, i32)> {
    let mut fields = line.split_whitespace();
    let (id, code) = (fields.next()?, fields.next()?);
    let code = match code_of(code) {
        Some(code) => code,
        None => {
            let status: i32 = code.parse().ok()?;
            match status & 0x7f {
                0 => status >> 8,
                signal => 128 + signal,
            }
        }
    };
    Some((id.to_owned(), code))
}

fn host_of(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty() && text != "None assigned").then(|| text.to_owned())
}

fn reason(text: &str) -> String {
    let text = text.trim();
    if text == "None" || text == "NonZeroExitCode" { String::new() } else { text.to_owned() }
}

/// A state by the name that all of Slurm's programs use; `None` if it is a new one.
fn standing(name: &str) -> Option<Standing> {
    Some(match name.split_whitespace().next()? {
        "PENDING" | "REQUEUED" | "REQUEUE_HOLD" | "REQUEUE_FED" | "SPECIAL_EXIT" | "RESV_DEL_HOLD" => Standing::Waits,
        "RUNNING" | "CONFIGURING" | "COMPLETING" | "SUSPENDED" | "STOPPED" | "SIGNALING" | "STAGE_OUT" | "RESIZING" => {
            Standing::Runs
        }
        "COMPLETED" => Standing::Ended(Some(0)),
        "FAILED" => Standing::Ended(None),
        "CANCELLED" | "REVOKED" => Standing::Cancelled,
        "TIMEOUT" | "DEADLINE" => Standing::TimeLimit,
        "OUT_OF_MEMORY" => Standing::OutOfMemory,
        "PREEMPTED" => Standing::Preempted,
        "NODE_FAIL" | "BOOT_FAIL" | "LAUNCH_FAILED" | "RECONFIG_FAIL" => Standing::HostFailed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_squeue_and_sacct_are_read() {
        let seen =
            |state, host: Option<&str>, why: &str| Seen { state, host: host.map(str::to_owned), why: why.to_owned() };
        let parsed = line("17_3|PENDING||Resources\n");
        assert_eq!(parsed, Some(("17_3".to_owned(), seen(Standing::Waits, None, "Resources"))));
        let parsed = line("18|RUNNING|n1|None");
        assert_eq!(parsed, Some(("18".to_owned(), seen(Standing::Runs, Some("n1"), ""))));
        assert_eq!(line("slurm_load_jobs error"), None);
        assert_eq!(line("18|SOMETHING_NEW|n1|None"), None);
        let parsed = accounted_line("7|CANCELLED by 1000|0:15|n2|None");
        assert_eq!(parsed, Some(("7".to_owned(), seen(Standing::Cancelled, Some("n2"), ""))));
        let parsed = accounted_line("8|FAILED|41:0|None assigned|");
        assert_eq!(parsed, Some(("8".to_owned(), seen(Standing::Ended(Some(41)), None, ""))));
        let parsed = accounted_line("9|FAILED|0:9|n3|");
        assert_eq!(parsed, Some(("9".to_owned(), seen(Standing::Ended(Some(137)), Some("n3"), ""))));
        assert_eq!(exit_code("1                    1792       "), Some(("1".to_owned(), 7)));
        assert_eq!(exit_code("1 11"), Some(("1".to_owned(), 139)));
        assert_eq!(exit_code("1 41:0"), Some(("1".to_owned(), 41)));
        assert_eq!(exit_code(""), None);
    }

    #[test]
    fn what_is_asked_for_is_on_the_command_line() {
        let resources = Resources {
            partition: Some("gpu".into()),
            gres: Some("gpu:1".into()),
            cpus: Some(4),
            memory: Some((1 << 30) + 1),
            time: Some(std::time::Duration::from_secs(61)),
            extra: Some(vec!["--nice".into()]),
            ..Resources::default()
        };
        let job = Submission { resources, ..Submission::sample() };
        let command = sbatch(&job);
        let arguments: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        for word in [
            "--partition=gpu",
            "--gres=gpu:1",
            "--cpus-per-task=4",
            "--mem=1025M",
            "--time=2",
            "--nice",
            "--no-requeue",
            "--signal=B:USR1@30",
            "--comment=run/node.1 a job for a test",
        ] {
            assert!(arguments.iter().any(|argument| argument == word), "{word} is not in {arguments:?}");
        }
        assert!(!arguments.iter().any(|argument| argument.starts_with("--account")));
    }
}
