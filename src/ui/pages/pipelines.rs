//! `/pipelines`: all that have run, and those named on the command line.

use serde::Serialize;

use crate::inspect::run;
use crate::store::{Index, Store};
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
            state: latest.map_or("", |run| run::state_now(store, run)),
            name: known.name,
            file: known.file,
        }
    };
    Ok(site.known(store, index)?.into_iter().map(line).collect())
}
