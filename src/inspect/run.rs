//! A run: how it ended, how long it took.

use crate::store::RunRecord;

/// The states that a run's nodes end in.
pub const STATES: [&str; 4] = ["ran", "hit", "failed", "skipped"];

/// How a run ended, in a word.
pub fn state(run: &RunRecord) -> &'static str {
    match (run.ok, &run.finished) {
        (Some(true), _) => "ok",
        (Some(false), _) if run.nodes.iter().any(|node| node.state == "failed") => "failed",
        (Some(false), _) | (None, Some(_)) => "interrupted",
        (None, None) => "unfinished",
    }
}

/// Wall seconds of a run that has ended.
pub fn took(run: &RunRecord) -> Option<f64> {
    let time = |text: &str| text.parse::<jiff::Timestamp>().ok();
    Some((time(run.finished.as_deref()?)? - time(&run.started)?).as_secs_f64().max(0.0))
}

/// Nodes by state, in the order of [`STATES`].
pub fn counts(run: &RunRecord) -> [usize; 4] {
    STATES.map(|state| run.nodes.iter().filter(|node| node.state == state).count())
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn how_a_run_ended_shows_in_its_record() {
        let (_folder, store, _) = sample::store();
        let run = store.run("20260102-000000-bbbb").unwrap().unwrap();
        assert_eq!((state(&run), took(&run), counts(&run)), ("ok", Some(125.0), [3, 1, 0, 0]));
        let stopped = RunRecord { ok: Some(false), ..run };
        assert_eq!(state(&stopped), "interrupted");
        let mut failed = stopped.clone();
        failed.nodes[1].state = "failed".to_owned();
        assert_eq!((state(&failed), counts(&failed)), ("failed", [2, 1, 1, 0]));
        let killed = RunRecord { ok: None, finished: None, ..failed };
        assert_eq!((state(&killed), took(&killed)), ("unfinished", None));
        let backwards = RunRecord { finished: Some("2025-01-01T00:00:00Z".to_owned()), ..killed };
        assert_eq!(took(&backwards), Some(0.0));
    }
}
