//! `/pipelines`: all that have run, and those named on the command line.

use serde::Serialize;

use crate::exec;
use crate::inspect::run;
use crate::inspect::story::Story;
use crate::store::{Index, RunRecord, Store};
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// A pipeline in a list.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    name: String,
    file: String,
    is_here: bool,
    run: String,
    started: String,
    state: &'static str,
}

/// The page.
pub(super) fn page(site: &Site, _query: &Query) -> Result<Page, Problem> {
    let (store, index) = site.open()?;
    Ok(Page::new(Tab::Pipeline, "Pipelines", "pipelines.html").with("pipelines", &lines(site, &store, &index)?))
}

/// Every pipeline in a line, by name.
pub(super) fn lines(site: &Site, store: &Store, index: &Index) -> Result<Vec<Line>, Problem> {
    let line = |known: super::super::pipelines::Known| {
        let latest = known.latest.as_ref();
        Line {
            is_here: known.path.is_some(),
            run: latest.map(|run| run.run.clone()).unwrap_or_default(),
            started: latest.map(|run| run.started.clone()).unwrap_or_default(),
            state: latest.map_or("", |run| if goes_on(store, run) { "going" } else { run::state(run) }),
            name: known.name,
            file: known.file,
        }
    };
    Ok(site.known(store, index)?.into_iter().map(line).collect())
}

/// Whether a run goes on; of one of which nothing can be read that is not known.
fn goes_on(store: &Store, run: &RunRecord) -> bool {
    run.finished.is_none()
        && exec::goes_on(store, &run.run).unwrap_or_else(|| Story::of(store, &run.run).is_ok_and(|story| story.goes_on))
}
