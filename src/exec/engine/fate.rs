//! What the end of a job means for its node.
//!
//! | what is known | what follows |
//! |---|---|
//! | the worker's record: done, or failed and the engine does not say preempted | that |
//! | the record: done, but what was made is not to be seen here | again, so often |
//! | the record: saved and ended as its time was nearly up | again, from what it saved, as long as it gets on |
//! | the record: told to end, and the engine says preempted, or does not say why; told of its time long before that was up | again, from what it saved, so often |
//! | no record, and the engine says time limit, preempted or host failed; or the job is not known any more | again, so often |
//! | out of memory, and no record or that of a failure | again with more memory, so often and up to the limit |
//! | cancelled, and not by this run | the node fails: a person wanted that |
//! | no record, ended by itself | the node fails, with the log's last lines |

use super::script::{NO_PROGRAM, NO_ROOM, UNSEEN};
use super::{Refusal, Seen, Standing};
use crate::exec::job::{Exit, JobResult, ToldBy};

/// All that is known of how a job ended.
#[derive(Debug, Clone, Default)]
pub(in crate::exec) struct Fate {
    /// The worker's record.
    pub(in crate::exec) exit: Option<Exit>,
    /// What the engine says, if it knows the job.
    pub(in crate::exec) seen: Option<Seen>,
    /// Why there was no job at all.
    pub(in crate::exec) refusal: Option<Refusal>,
    /// Whether there is a record of something made that is not to be seen here.
    pub(in crate::exec) unseen: bool,
}

impl PartialEq for Fate {
    fn eq(&self, other: &Self) -> bool {
        (&self.exit, &self.seen, self.unseen) == (&other.exit, &other.seen, other.unseen)
            && self.refusal.is_some() == other.refusal.is_some()
    }
}

/// What a node, or a part of one, has been through with the engine in this run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::exec) struct Patience {
    /// Attempts that were lost, preempted, or ran out of memory.
    pub(in crate::exec) lost: u32,
    /// Of these, those that ran out of memory.
    pub(in crate::exec) grown: u32,
    /// Attempts in a row that ended at their time limit and were no further than the one before.
    pub(in crate::exec) stuck: u32,
    /// How far the last one came that ended at its time limit.
    pub(in crate::exec) reached: u64,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::exec) enum Judged {
    /// The attempt ended so.
    Ended(JobResult),
    /// Another attempt is made.
    Again(Again),
}

/// Why another attempt is made.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::exec) struct Again {
    /// For people.
    pub(in crate::exec) what: String,
    /// What the node has been through now.
    pub(in crate::exec) patience: Patience,
}

/// What to do where files are seen late.
const LATE: &str = "let `lag` in the profile be as long as it takes until files are seen here that other machines wrote; its log says what it did";
/// Attempts in a row that end at their time limit without getting on.
const STUCK: u32 = 2;

/// What the end of a job is judged by besides.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::exec) struct Terms {
    /// How far it came.
    pub(in crate::exec) reached: u64,
    /// How many attempts may be lost.
    pub(in crate::exec) retries: u32,
    /// Whether more memory can be asked for.
    pub(in crate::exec) growing: bool,
    /// Whether it ended long before its time was up.
    pub(in crate::exec) early: bool,
}

/// Judges the end of a job.
pub(in crate::exec) fn judge(fate: &Fate, patience: Patience, terms: Terms) -> Judged {
    let Terms { reached, retries, growing, early } = terms;
    let failed = |what: String, help: &str| {
        Judged::Ended(JobResult::Failed { what, help: (!help.is_empty()).then(|| help.to_owned()) })
    };
    if let Some(refusal) = &fate.refusal {
        return failed(refusal.line(), refusal.finding.help.first().map_or("", String::as_str));
    }
    let on = |host: Option<&String>| host.map_or_else(String::new, |host| format!(" on {host}"));
    // Engines have names for machines that people know them by.
    let seen_on = fate.seen.as_ref().and_then(|seen| seen.host.as_ref());
    let place = on(seen_on.or(fate.exit.as_ref().map(|exit| &exit.host)));
    let lost_of = |what: String, help: &str| {
        let patience = Patience { lost: patience.lost + 1, ..patience };
        if patience.lost <= retries {
            Judged::Again(Again { what, patience })
        } else {
            failed(format!("{what}, {} times in this run", patience.lost), help)
        }
    };
    let lost = |what: String| lost_of(what, "`retries` of the profile says how often it is made again");
    let limited = || {
        let stuck = if reached > patience.reached { 0 } else { patience.stuck + 1 };
        let patience = Patience { stuck, reached: patience.reached.max(reached), ..patience };
        if stuck < STUCK {
            Judged::Again(Again { what: format!("its time was up{place}"), patience })
        } else {
            failed(
                format!("its time was up{place}, and it came no further than the attempt before"),
                "give it more `time` in the profile, or let the node save more often",
            )
        }
    };
    let state = fate.seen.as_ref().map(|seen| seen.state);
    let why = fate.seen.as_ref().map(|seen| seen.why.as_str()).unwrap_or_default();
    if fate.unseen {
        return lost_of(format!("what its job made{place} is not to be seen here"), LATE);
    }
    match (&fate.exit, state) {
        (Some(Exit { result: JobResult::Interrupted, told, .. }), state) => match (told, state) {
            // Before it has to go, it may be told as it is before its time is up.
            (_, Some(Standing::Preempted | Standing::HostFailed)) => lost(format!("its job was preempted{place}")),
            (_, Some(Standing::TimeLimit)) => limited(),
            (Some(ToldBy::TimeLimit), _) if early => {
                lost(format!("its worker was told to save{place} long before its time was up"))
            }
            (Some(ToldBy::TimeLimit), _) => limited(),
            (_, Some(Standing::Cancelled)) => cancelled(&place, why),
            // One that saves and ends before it has to has ended by itself, as far as the engine goes.
            (Some(ToldBy::Signal), _) => {
                lost(format!("its worker was ended by a signal{place}, and the engine does not say why"))
            }
            _ => Judged::Ended(JobResult::Interrupted),
        },
        (None, Some(Standing::TimeLimit)) => limited(),
        (None, Some(Standing::Preempted)) => lost(format!("its job was preempted{place}")),
        (None, Some(Standing::HostFailed)) => lost(format!("its machine failed{place}{}", bracketed(why))),
        // With a record: what the worker started ran out of it, and the worker lived to tell.
        (None | Some(Exit { result: JobResult::Failed { .. }, .. }), Some(Standing::OutOfMemory)) => {
            let patience = Patience { lost: patience.lost + 1, grown: patience.grown + 1, ..patience };
            let what = format!("its memory was not enough{place}");
            if growing && patience.lost <= retries {
                Judged::Again(Again { what, patience })
            } else {
                failed(what, "give it more `memory` in the profile, or lower `run.micro_batch`")
            }
        }
        // What the worker started had to go, too, and was the first to.
        (Some(Exit { result: JobResult::Failed { .. }, .. }), Some(Standing::Preempted)) => {
            lost(format!("its job was preempted{place}"))
        }
        (Some(exit), _) => Judged::Ended(exit.result.clone()),
        (None, Some(Standing::Cancelled)) => cancelled(&place, why),
        (None, Some(Standing::Ended(Some(UNSEEN)))) => failed(
            format!("the cache is not to be seen{place}"),
            "let the cache be in a directory that all hosts share: `--cache`, or `SAMI_CACHE`",
        ),
        (None, Some(Standing::Ended(Some(NO_PROGRAM)))) => failed(
            format!("there is no `sami`{place}"),
            "name a `program` in the profile that is in a directory that all hosts share",
        ),
        (None, Some(Standing::Ended(Some(code)))) if code == i32::from(NO_ROOM) => failed(
            format!("the disk of the cache is full{place}, and how it ended could not be written down"),
            "make room (`sami cache gc` removes what no recent run uses), then run the same command again",
        ),
        (None, Some(Standing::Ended(Some(0)))) => {
            failed(format!("its job ended well{place}, and what it says of that is not to be seen here"), LATE)
        }
        // Only a crash, or a disk that takes nothing, keeps a worker from leaving a record.
        (None, Some(Standing::Ended(code))) => failed(
            format!(
                "the worker ended without a result{place}{}",
                code.map_or_else(|| bracketed(why), |code| format!(" (exit code {code})"))
            ),
            "its log says what went wrong",
        ),
        (None, Some(Standing::Waits | Standing::Runs) | None) => {
            lost("its job is not known to the engine any more".to_owned())
        }
    }
}

fn bracketed(why: &str) -> String {
    if why.is_empty() { String::new() } else { format!(" ({why})") }
}

fn cancelled(place: &str, why: &str) -> Judged {
    let what = format!("its job was cancelled{place}{}", bracketed(why));
    Judged::Ended(JobResult::Failed { what, help: Some("run it again: it goes on from what was saved".to_owned()) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Usage;

    fn seen(state: Standing) -> Fate {
        Fate { seen: Some(Seen { state, host: Some("n1".to_owned()), why: String::new() }), ..Fate::default() }
    }

    fn terms(reached: u64, retries: u32, growing: bool) -> Terms {
        Terms { reached, retries, growing, early: false }
    }

    fn with_exit(result: JobResult, told: Option<ToldBy>, state: Option<Standing>) -> Fate {
        let exit = Exit {
            result,
            told,
            host: "n1".into(),
            seconds: 1.0,
            usage: Usage::default(),
            spent: crate::endpoint::Spent::default(),
        };
        Fate { exit: Some(exit), ..state.map(seen).unwrap_or_default() }
    }

    fn patience(judged: Judged) -> Patience {
        let Judged::Again(again) = judged else { panic!("{judged:?}") };
        again.patience
    }

    fn fault(judged: Judged) -> String {
        let Judged::Ended(JobResult::Failed { what, .. }) = judged else { panic!("{judged:?}") };
        what
    }

    #[test]
    fn a_record_is_believed_whatever_the_engine_says() {
        let failed = JobResult::Failed { what: "x".into(), help: None };
        for state in [None, Some(Standing::HostFailed), Some(Standing::Ended(Some(0)))] {
            let judged = judge(&with_exit(failed.clone(), None, state), Patience::default(), terms(0, 3, true));
            assert_eq!(judged, Judged::Ended(failed.clone()));
        }
    }

    #[test]
    fn what_is_lost_is_made_again_so_often() {
        for state in [Standing::Preempted, Standing::HostFailed] {
            let once = patience(judge(&seen(state), Patience::default(), terms(0, 2, true)));
            assert_eq!(once.lost, 1);
            let twice = patience(judge(&seen(state), once, terms(0, 2, true)));
            assert!(fault(judge(&seen(state), twice, terms(0, 2, true))).contains("3 times"));
        }
        assert_eq!(patience(judge(&Fate::default(), Patience::default(), terms(0, 1, true))).lost, 1, "it vanished");
    }

    #[test]
    fn a_time_limit_is_no_loss_as_long_as_the_attempts_get_on() {
        let saved = with_exit(JobResult::Interrupted, Some(ToldBy::TimeLimit), None);
        let mut now = Patience::default();
        for reached in [10, 20, 30] {
            now = patience(judge(&saved, now, terms(reached, 0, true)));
        }
        assert_eq!((now.lost, now.stuck, now.reached), (0, 0, 30));
        now = patience(judge(&seen(Standing::TimeLimit), now, terms(30, 0, true)));
        assert!(fault(judge(&saved, now, terms(30, 0, true))).contains("no further"));
    }

    #[test]
    fn memory_grows_and_a_person_s_word_is_final() {
        assert_eq!(patience(judge(&seen(Standing::OutOfMemory), Patience::default(), terms(0, 3, true))).grown, 1);
        assert!(fault(judge(&seen(Standing::OutOfMemory), Patience::default(), terms(0, 3, false))).contains("memory"));
        let killed = JobResult::Failed { what: "signal 9".into(), help: None };
        let child = with_exit(killed, None, Some(Standing::OutOfMemory));
        assert_eq!(patience(judge(&child, Patience::default(), terms(0, 3, true))).grown, 1);
        let term = with_exit(JobResult::Interrupted, Some(ToldBy::Signal), Some(Standing::Cancelled));
        assert!(fault(judge(&term, Patience::default(), terms(0, 3, true))).contains("cancelled on n1"));
        let preempted = with_exit(JobResult::Interrupted, Some(ToldBy::Signal), Some(Standing::Preempted));
        assert_eq!(patience(judge(&preempted, Patience::default(), terms(0, 3, true))).lost, 1);
        assert!(
            fault(judge(&seen(Standing::Ended(Some(UNSEEN))), Patience::default(), terms(0, 3, true)))
                .contains("cache")
        );
    }

    #[test]
    fn what_is_told_to_save_before_it_has_to_go_is_lost_and_not_at_its_time_limit() {
        let saved = |told, state| with_exit(JobResult::Interrupted, Some(told), Some(state));
        let ended = Standing::Ended(Some(130));
        for (fate, early) in [
            (saved(ToldBy::TimeLimit, Standing::Preempted), false),
            (saved(ToldBy::TimeLimit, ended), true),
            (saved(ToldBy::Signal, ended), false),
            (with_exit(JobResult::Failed { what: "x".into(), help: None }, None, Some(Standing::Preempted)), false),
        ] {
            let now = patience(judge(&fate, Patience::default(), Terms { early, ..terms(0, 1, true) }));
            assert_eq!((now.lost, now.stuck), (1, 0), "{fate:?}");
        }
        let now = patience(judge(&saved(ToldBy::TimeLimit, ended), Patience::default(), terms(0, 1, true)));
        assert_eq!((now.lost, now.stuck), (0, 1));
        // This run told it to.
        let judged = judge(&saved(ToldBy::File, ended), Patience::default(), terms(0, 1, true));
        assert_eq!(judged, Judged::Ended(JobResult::Interrupted));
    }

    #[test]
    fn what_is_not_to_be_seen_is_made_again_and_told_of() {
        let made = JobResult::Done {
            artifact: crate::digest::Digest::of(b"x"),
            metrics: serde_json::Map::new(),
            put: Vec::new(),
            unsettled: Vec::new(),
        };
        let unseen = Fate { unseen: true, ..with_exit(made, None, None) };
        let once = patience(judge(&unseen, Patience::default(), terms(0, 1, true)));
        assert!(fault(judge(&unseen, once, terms(0, 1, true))).contains("on n1 is not to be seen here, 2 times"));
        let silent = judge(&seen(Standing::Ended(Some(0))), Patience::default(), terms(0, 1, true));
        assert!(fault(silent).contains("ended well on n1"));
        let full = judge(&seen(Standing::Ended(Some(NO_ROOM.into()))), Patience::default(), terms(0, 1, true));
        assert!(fault(full).contains("is full on n1"));
    }
}
