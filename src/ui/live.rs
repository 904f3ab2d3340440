//! How pages learn that something changed: one thread looks at the cache while someone listens, and every open page is told.
//!
//! What is told is only *that* something changed; a page then asks for itself again and takes over what differs. So what is
//! live and what is reloaded cannot disagree.

use std::convert::Infallible;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use tokio::sync::watch;

use super::pipelines::LATEST;
use super::{Problem, Site};
use crate::fs;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A sign of life for what stands between browser and server.
const SIGN: Duration = Duration::from_secs(15);
/// Streams at once. A browser closes that of a tab that is not looked at.
const STREAMS: usize = 64;

/// The watcher.
pub(super) struct Live {
    /// Counts the changes.
    changes: Arc<watch::Sender<u64>>,
}

impl Live {
    /// Begins to follow a cache; it is looked at only while someone listens.
    pub(super) fn follow(site: Arc<Site>) -> Self {
        let changes = Arc::new(watch::Sender::new(0));
        let told = Arc::clone(&changes);
        // What changes before the first page listens is told to it.
        let mut seen = look(&site);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                if told.receiver_count() == 0 {
                    continue;
                }
                let site = Arc::clone(&site);
                let Ok(now) = tokio::task::spawn_blocking(move || look(&site)).await else { continue };
                if seen != now {
                    told.send_modify(|changes| *changes += 1);
                }
                seen = now;
            }
        });
        Self { changes }
    }

    /// A stream of changes for a page: `change` with a number each time.
    pub(super) fn stream(&self) -> Response {
        if self.changes.receiver_count() >= STREAMS {
            let problem = Problem::new(503, "too many pages are open", "close some; this one can be reloaded");
            return super::server::refuse(&problem);
        }
        let events = stream::unfold((self.changes.subscribe(), true), |(mut changes, first)| async move {
            if !first {
                changes.changed().await.ok()?;
            }
            let number = *changes.borrow_and_update();
            Some((Ok::<_, Infallible>(Event::default().event("change").data(number.to_string())), (changes, false)))
        });
        Sse::new(events).keep_alive(KeepAlive::new().interval(SIGN)).into_response()
    }
}

/// What the cache looks like from afar: which runs there are, and how far the latest ones are. Of a file or directory, size and
/// time of change.
fn look(site: &Site) -> Vec<Option<(u64, i64, i64)>> {
    let latest = fs::list(&site.root().join("runs")).unwrap_or_default();
    let files = latest.iter().rev().take(LATEST).flat_map(|run| [run.join("run.json"), run.join("events.jsonl")]);
    let places = ["VERSION", "runs", "artifacts", "nodes"].map(|name| site.root().join(name));
    let glance = |path: &PathBuf| {
        let found = fs_err::metadata(path).ok()?;
        Some((found.len(), found.mtime(), found.mtime_nsec()))
    };
    places.iter().chain(&files.collect::<Vec<_>>()).map(glance).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_that_may_go_on_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let site = Site::new(folder.path().to_owned(), Vec::new(), Vec::new());
        let events = |run: usize| folder.path().join(format!("runs/{run:02}/events.jsonl"));
        for run in 0..=LATEST {
            fs::create_directory(events(run).parent().unwrap()).unwrap();
            fs::write(&events(run), "").unwrap();
        }
        let changed = |run: usize| {
            let before = look(&site);
            fs::write(&events(run), "more").unwrap();
            look(&site) != before
        };
        assert_eq!([changed(LATEST), changed(1), changed(0)], [true, true, false]);
    }
}
