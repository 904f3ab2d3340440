//! `/log`: what an attempt said, from its end backwards.

use crate::inspect::attempts;
use crate::inspect::story::Story;
use crate::ui::html::{Page, Tab};
use crate::ui::pipelines::tail;
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Bytes in a page.
const MOST: u64 = 256 << 10;

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let store = site.store()?;
    let (run, node) = (query.need("run")?, query.need("node")?);
    // A run is one of those that there are, never a path.
    if !store.run_ids()?.iter().any(|known| known == run) {
        return Err(Problem::absent(format!("the cache has no run `{run}`")));
    }
    let number = query.number("attempt", 1_u32)?;
    let pipeline = store.run(run)?.map(|run| run.pipeline).unwrap_or_default();
    let story = Story::of(&store, run)?;
    let goes_on = Some(&story).filter(|story| story.goes_on);
    let attempts = attempts::of(&store, run, node, goes_on)?;
    let attempt = attempts.into_iter().find(|attempt| attempt.number == number && attempt.has_log);
    let attempt =
        attempt.ok_or_else(|| Problem::absent(format!("run {run} has no log of attempt {number} at `{node}`")))?;
    let end = query.get("end").map(|_| query.number("end", 0_u64)).transpose()?;
    let (text, start, size) = tail(&attempt.log, end, MOST)?;
    let page = Page::new(Tab::Pipeline, format!("Log of {node}"), "log.html")
        .with("pipeline", &pipeline)
        .with("node", &node)
        .with("attempt", &attempt)
        .with("text", &text)
        .with("start", &start)
        .with("size", &size)
        .with("earlier", &(start > 0).then(|| query.with("end", &start.to_string())))
        .with("newest", &end.map(|_| query.without("end")));
    Ok(page)
}
