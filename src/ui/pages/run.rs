//! `/run`: one run: how it went, its curves, its nodes.

use crate::inspect::run;
use crate::ui::account;
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let store = site.store()?;
    let account = account::of(&store, query.need("run")?)?;
    let before = run::before(&store, &account.run)?.map(|before| before.run);
    Ok(Page::new(Tab::Runs, format!("Run {}", account.run.run), "run.html")
        .with("head", &account::head(&account))
        .with("before", &before)
        .value("failures", account::failures(&account))
        .value("rates", account::rates(&store, &account))
        .value("iterations", account::iterations(&account))
        .value("training", account::training(&store, &account))
        .value("nodes", account::nodes(&account)))
}
