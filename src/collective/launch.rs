//! Who this process is among the ranks of an attempt: started by hand or by `sami`, or as a task of a step of Slurm.

use std::path::{Path, PathBuf};

use super::rendezvous::{Door, Meeting, Rendezvous, join};
use super::team::Team;
use super::token::Token;
use super::{MOST_RANKS, TeamError};
use crate::env;
use crate::fs;

/// How an attempt's ranks come to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Launch {
    /// There is one.
    Alone,
    /// This process is rank 0 and starts the others, here.
    Local {
        /// How many there are.
        ranks: usize,
    },
    /// Whoever started this process has started the others, too.
    Task(Task),
}

/// A task of a step of Slurm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Its number, which is its rank.
    pub rank: usize,
    /// Tasks of the step.
    pub ranks: usize,
    /// Tells this start of the step from others.
    pub step: String,
}

impl Task {
    /// What the variables of the environment say; `None` outside of a step. A batch script is in none, even where its job has
    /// several tasks: it starts the step.
    pub fn of(variable: impl Fn(&env::Variable) -> Option<String>) -> Result<Option<Self>, TeamError> {
        let Some(step) = variable(&env::SLURM_STEP_ID) else { return Ok(None) };
        let number = |of: &env::Variable| -> Result<Option<usize>, TeamError> {
            let Some(text) = variable(of) else { return Ok(None) };
            let bad = |_| TeamError::Launch { what: format!("`{}` is `{text}`, which is no number", of.name) };
            text.parse().map(Some).map_err(bad)
        };
        let (Some(rank), Some(ranks)) = (
            number(&env::SLURM_PROCID)?,
            number(&env::SLURM_STEP_NUM_TASKS)?.map_or_else(|| number(&env::SLURM_NTASKS), |tasks| Ok(Some(tasks)))?,
        ) else {
            return Ok(None);
        };
        let job = variable(&env::SLURM_JOB_ID).unwrap_or_default();
        let again = variable(&env::SLURM_RESTART_COUNT).unwrap_or_default();
        Ok(Some(Self { rank, ranks, step: format!("{job}.{step}.{again}") }))
    }

    /// The file in an attempt's directory through which its ranks find each other.
    fn file(&self, directory: &Path) -> PathBuf {
        // Numbers, if Slurm has set them.
        let step: String = self.step.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
        directory.join(format!("ranks-{step}.json"))
    }

    /// Comes together with the other tasks of the step, through a file in a directory that all of them see.
    pub fn meet(&self, directory: &Path, meeting: &Meeting) -> Result<Team, TeamError> {
        let path = self.file(directory);
        if self.rank != 0 {
            return join(meeting, || Rendezvous::read(&path));
        }
        let names = env::RANKS_ADDRESS.get().map_or_else(own_names, |name| vec![name]);
        let door = Door::everywhere(Token::draw()?, names)?;
        let failed = |error: std::io::Error| TeamError::Join { what: error.to_string() };
        door.rendezvous().write(&path).map_err(failed)?;
        let met = door.meet(meeting, || Ok(()));
        // All have read it, or none is to read it any more.
        fs::remove_file(&path).map_err(failed)?;
        met
    }
}

/// What this machine is called by others.
fn own_names() -> Vec<String> {
    let host = fs_err::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let names = [env::SLURMD_NODENAME.get(), Some(host.trim().to_owned())];
    let mut names: Vec<String> = names.into_iter().flatten().filter(|name| !name.is_empty()).collect();
    names.dedup();
    names
}

impl Launch {
    /// Of an attempt that is to have so many ranks, in a process that may be a task.
    ///
    /// Errs if there are other numbers of tasks and ranks, or more ranks than can be.
    pub fn of(ranks: Option<usize>, task: Option<Task>) -> Result<Self, TeamError> {
        let Some(ranks) = ranks else { return Ok(Self::Alone) };
        if !(1..=MOST_RANKS).contains(&ranks) {
            let what = format!("`run.ranks` is {ranks}, it is 1 to {MOST_RANKS}");
            return Err(TeamError::Launch { what });
        }
        match task {
            Some(task) if task.ranks > 1 => {
                if task.ranks != ranks || task.rank >= ranks {
                    let Task { rank, ranks: tasks, .. } = task;
                    let what = format!("this is task {rank} of {tasks} of the Slurm step, and `run.ranks` is {ranks}");
                    return Err(TeamError::Launch { what });
                }
                Ok(Self::Task(task))
            }
            _ if ranks == 1 => Ok(Self::Alone),
            _ => Ok(Self::Local { ranks }),
        }
    }
}

impl Rendezvous {
    /// Comes together with the other ranks, as another than rank 0.
    pub fn join(&self, meeting: &Meeting) -> Result<Team, TeamError> {
        join(meeting, || Ok(Some(self.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(variables: &[(&str, &str)]) -> Result<Option<Task>, TeamError> {
        Task::of(|variable| {
            let found = variables.iter().find(|(name, _)| *name == variable.name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_task_is_known_by_its_variables() {
        let step = [("SLURM_PROCID", "1"), ("SLURM_NTASKS", "3"), ("SLURM_STEP_ID", "0"), ("SLURM_JOB_ID", "77")];
        let found = task(&step).expect("reads").expect("is one");
        assert_eq!(found, Task { rank: 1, ranks: 3, step: "77.0.".to_owned() });
        assert_eq!(found.file(Path::new("/x")), Path::new("/x/ranks-77-0-.json"));
        assert_eq!(task(&step[..2]).expect("reads"), None, "a batch script");
        assert_eq!(task(&[]).expect("reads"), None);
        let fewer = [step[0], step[1], step[2], ("SLURM_STEP_NUM_TASKS", "2")];
        assert_eq!(task(&fewer).expect("reads").expect("is one").ranks, 2, "the step's, not the job's");
        let bad = task(&[("SLURM_PROCID", "x"), step[1], step[2]]).expect_err("no number");
        assert!(bad.to_string().contains("`SLURM_PROCID` is `x`"), "{bad}");
    }

    #[test]
    fn ranks_are_started_by_whoever_can() {
        let task = |rank, ranks| Some(Task { rank, ranks, step: String::new() });
        assert_eq!(Launch::of(None, task(0, 2)), Ok(Launch::Alone));
        assert_eq!(Launch::of(Some(1), None), Ok(Launch::Alone));
        assert_eq!(Launch::of(Some(2), None), Ok(Launch::Local { ranks: 2 }));
        assert_eq!(Launch::of(Some(2), task(0, 1)), Ok(Launch::Local { ranks: 2 }));
        assert!(matches!(Launch::of(Some(2), task(1, 2)), Ok(Launch::Task(_))));
        for (ranks, task, words) in [
            (0, None, "`run.ranks` is 0, it is 1 to 16"),
            (17, None, "`run.ranks` is 17"),
            (2, task(2, 3), "task 2 of 3 of the Slurm step, and `run.ranks` is 2"),
            (2, task(5, 2), "task 5 of 2"),
        ] {
            let error = Launch::of(Some(ranks), task).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
