//! `/`: what there is, and what goes on.

use serde::Serialize;

use crate::store::RunRecord;
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Runs that are listed.
const RUNS: usize = 10;

#[derive(Debug, Serialize)]
struct Line {
    run: RunRecord,
}

/// The page.
pub(super) fn page(site: &Site, _query: &Query) -> Result<Page, Problem> {
    let store = site.store()?;
    let runs: Vec<Line> = store
        .run_ids()?
        .iter()
        .rev()
        .filter_map(|id| store.run(id).ok().flatten())
        .take(RUNS)
        .map(|run| Line { run })
        .collect();
    Ok(Page::new(Tab::Overview, "Overview", "overview.html").with("runs", &runs).with("root", &site.root()))
}
