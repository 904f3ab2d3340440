//! Ranks: an attempt that several processes compute together.
//!
//! Rank 0 is the worker that the scheduler knows. On one machine it starts the others, as children in its own process group,
//! so that whatever ends the group ends them; each is told where to come, and the secret that lets it in, over its standard
//! input, and ends itself when that is closed. As tasks of a step of Slurm all are started alike and find each other through
//! a file in the attempt's directory. The others read what rank 0 reads, and write nothing.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use signal_hook::consts::SIGUSR1;

use super::ExecError;
use super::job::Job;
use super::worker;
use crate::collective::{Door, Launch, Line, Meeting, Rendezvous, Task, Team, TeamError, Token};
use crate::endpoint::{Allowance, Purse};
use crate::env;
use crate::kinds::NodeError;
use crate::store::Store;

/// How long ranks that have done their part, or are about to end, may take to end.
const END: Duration = Duration::from_secs(20);

/// What a rank is told over its standard input.
#[derive(Debug, Serialize, Deserialize)]
struct Told {
    ranks: usize,
    rendezvous: Rendezvous,
    /// Where rank 0 goes on from: a detached one may have another place than its file says.
    scratch: PathBuf,
}

/// The other ranks of an attempt, as rank 0 has them.
pub(super) struct Others {
    line: Line,
    children: Children,
}

/// Ranks that this process has started; they end with it.
struct Children(Vec<(usize, Child)>);

/// Who this process is in an attempt; as a task of a step it may be another than rank 0.
pub(super) fn launch(job: &Job) -> Result<Launch, NodeError> {
    Ok(Launch::of(job.ranks, Task::of(env::Variable::get)?)?)
}

/// The same of a process that is no task, be it started from one.
pub(super) fn local(job: &Job) -> Result<Launch, NodeError> {
    Ok(Launch::of(job.ranks, None)?)
}

/// Whether this process is one of several tasks of a step, and not the first.
pub(super) fn is_follower() -> bool {
    matches!(Task::of(env::Variable::get), Ok(Some(task)) if task.rank > 0)
}

fn meeting(job: &Job, rank: usize, ranks: usize) -> Meeting {
    Meeting::new(rank, ranks, format!("node {} with key {}", job.node, job.key.short()))
}

/// Comes together with the other ranks, as rank 0; `path` is the job's file. There is no team where there is one rank.
pub(super) fn lead(job: &Job, path: &Path, launch: &Launch) -> Result<Option<(Team, Others)>, NodeError> {
    let (team, children) = match launch {
        Launch::Alone => return Ok(None),
        Launch::Task(task) => (meet(job, path, task)?, Children(Vec::new())),
        Launch::Local { ranks } => {
            let door = Door::here(Token::draw()?)?;
            let mut children = Children::start(job, path, *ranks, door.rendezvous())?;
            let met = door.meet(&meeting(job, 0, *ranks), || children.are_there());
            (met.map_err(|error| children.explain(error.into()))?, children)
        }
    };
    let others = Others { line: team.line(), children };
    Ok(Some((team, others)))
}

/// Comes together with the other tasks of a step.
fn meet(job: &Job, path: &Path, task: &Task) -> Result<Team, NodeError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    Ok(task.meet(directory, &meeting(job, task.rank, task.ranks))?)
}

/// Computes a job as a task of a step that is not rank 0. Returns the process's exit code.
pub(super) fn task(job: &Job, path: &Path, task: &Task) -> u8 {
    follow(job, meet(job, path, task))
}

/// Computes a job as a rank that rank 0 has started. Returns the process's exit code.
pub fn rank(path: &Path, rank: usize) -> Result<u8, ExecError> {
    let bad = |what: String| ExecError::BadJob { path: path.to_owned(), what };
    let mut job = Job::read(path)?;
    // Rank 0 is told to stop, and tells the others. Of a job that is to save all processes may be told so.
    let cancel = worker::heed_signals()?;
    signal_hook::flag::register(SIGUSR1, cancel)?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    let Told { ranks, rendezvous, scratch } = serde_json::from_str(&line)
        .map_err(|_| bad("standard input does not say where rank 0 is: ranks are started by rank 0".to_owned()))?;
    // Whoever reads this is rank 0's child, and is not to outlive it.
    std::thread::spawn(|| {
        let mut rest = BufReader::new(std::io::stdin());
        while rest.read_line(&mut String::new()).is_ok_and(|length| length > 0) {}
        std::process::abort();
    });
    job.scratch = scratch;
    if let Some(device) = job.devices.get(rank) {
        job.device.clone_from(device);
    }
    let team = rendezvous.join(&meeting(&job, rank, ranks)).map_err(NodeError::from);
    Ok(follow(&job, team))
}

fn follow(job: &Job, team: Result<Team, NodeError>) -> u8 {
    let mut line = None;
    let followed = team.and_then(|team| {
        line = Some(team.line());
        let store = Store::open_existing(&job.store)?;
        // Rank 0 is asked.
        let cancel = AtomicBool::new(false);
        let purse = Arc::new(Purse::new(Allowance::default()));
        worker::compute(job, &store, Some(team), &mut |_| {}, (purse, Arc::default()), &cancel)
    });
    match followed {
        Ok(_) | Err(NodeError::Interrupted) => {
            line.iter().for_each(Line::leave);
            0
        }
        Err(error) => {
            tracing::error!("a rank has failed: {error}");
            line.iter().for_each(|line| line.abort(&error.to_string()));
            1
        }
    }
}

impl Others {
    /// Waits for them to end, after `result`; says of one that was lost how it ended.
    pub(super) fn end<T>(mut self, result: Result<T, NodeError>) -> Result<T, NodeError> {
        match result {
            Ok(done) => {
                self.line.leave();
                self.children.wait();
                Ok(done)
            }
            Err(NodeError::Interrupted) => {
                self.line.leave();
                self.children.wait();
                Err(NodeError::Interrupted)
            }
            Err(error) => {
                self.line.abort(&error.to_string());
                Err(self.children.explain(error))
            }
        }
    }
}

impl Children {
    fn start(job: &Job, path: &Path, ranks: usize, rendezvous: &Rendezvous) -> Result<Self, NodeError> {
        let mut children = Self(Vec::new());
        let told = Told { ranks, rendezvous: rendezvous.clone(), scratch: job.scratch.clone() };
        let mut told = serde_json::to_vec(&told).map_err(std::io::Error::from)?;
        told.push(b'\n');
        for rank in 1..ranks {
            // This very program, even if its file was replaced.
            let mut child = Command::new("/proc/self/exe")
                .args(["worker", "--rank", &rank.to_string()])
                .arg(path)
                .env("RAYON_NUM_THREADS", job.threads.to_string())
                .stdin(Stdio::piped())
                .spawn()?;
            let stdin = child.stdin.as_mut().map(|stdin| stdin.write_all(&told));
            children.0.push((rank, child));
            // One that has died already is found when it is waited for.
            if let Some(Err(error)) = stdin {
                tracing::debug!("rank {rank} cannot be told where to come: {error}");
            }
        }
        Ok(children)
    }

    /// Errs if one has ended.
    fn are_there(&mut self) -> Result<(), TeamError> {
        let ranks = self.0.len() + 1;
        for (rank, child) in &mut self.0 {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(TeamError::Lost { rank: *rank, ranks, what: end_of(status) });
            }
        }
        Ok(())
    }

    /// Waits for all to end by themselves, if not for long.
    fn wait(&mut self) {
        let deadline = Instant::now() + END;
        for (rank, child) in &mut self.0 {
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() > deadline {
                    tracing::warn!("rank {rank} does not end, and is ended");
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// What a failure is, where it is that a rank was lost which this process has started.
    fn explain(&mut self, error: NodeError) -> NodeError {
        let Some(TeamError::Lost { rank, ranks, .. }) = error.of_team() else { return error };
        let Some((_, child)) = self.0.iter_mut().find(|(number, _)| number == rank) else { return error };
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => {
                    let lost = TeamError::Lost { rank: *rank, ranks: *ranks, what: end_of(status) };
                    return lost.into();
                }
                Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                _ => return error,
            }
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            // One that has ended is not there to be killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn end_of(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(9), _) => "it was killed (signal 9)".to_owned(),
        (Some(signal), _) => format!("it crashed (signal {signal})"),
        (None, code) => format!("it ended with exit code {}", code.unwrap_or(-1)),
    }
}
