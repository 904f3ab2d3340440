//! The pages, one file each: what it is asked, what it reads, what it gives its template.

use serde_json::Value;

use super::html::Page;
use super::query::Query;
use super::{Problem, Site};

mod artifact;
mod artifacts;
mod compare;
mod content;
mod contrast;
mod log;
mod node;
mod overview;
mod pipeline;
mod pipelines;
mod run;
mod runs;

/// What a request is answered with.
#[derive(Debug)]
pub(super) enum Answer {
    /// HTML.
    Page(Page),
    /// What a script asks for.
    Json(Value),
    /// What an artifact has, as it is.
    Text(String),
}

impl From<Page> for Answer {
    fn from(page: Page) -> Self {
        Self::Page(page)
    }
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        Self::Json(value)
    }
}

impl Answer {
    /// Its media type and itself.
    pub(super) fn into_text(self) -> Result<(&'static str, String), Problem> {
        match self {
            Self::Page(page) => {
                let bug =
                    |error| Problem::new(500, format!("the page could not be drawn: {error:#}"), "please report it");
                Ok(("text/html; charset=utf-8", page.html().map_err(bug)?))
            }
            Self::Json(value) => Ok(("application/json", value.to_string())),
            Self::Text(text) => Ok(("text/plain; charset=utf-8", text)),
        }
    }
}

/// Makes the answer to a request.
pub(super) type Make = fn(&Site, &Query) -> Result<Answer, Problem>;

/// Every address and what answers there. What a page is about stands in its query.
const PAGES: &[(&str, Make)] = &[
    ("/", |site, query| overview::page(site, query).map(Answer::from)),
    ("/runs", |site, query| runs::page(site, query).map(Answer::from)),
    ("/run", |site, query| run::page(site, query).map(Answer::from)),
    ("/compare", |site, query| compare::page(site, query).map(Answer::from)),
    ("/pipelines", |site, query| pipelines::page(site, query).map(Answer::from)),
    ("/pipeline", |site, query| pipeline::page(site, query).map(Answer::from)),
    ("/node", |site, query| node::page(site, query).map(Answer::from)),
    ("/artifacts", |site, query| artifacts::page(site, query).map(Answer::from)),
    ("/artifact", |site, query| artifact::page(site, query).map(Answer::from)),
    ("/row", |site, query| content::row(site, query).map(Answer::from)),
    ("/text", |site, query| content::text(site, query).map(Answer::from)),
    ("/raw", |site, query| content::raw(site, query).map(Answer::Text)),
    ("/contrast", |site, query| contrast::page(site, query).map(Answer::from)),
    ("/log", |site, query| log::page(site, query).map(Answer::from)),
];

/// What answers at a path.
pub(super) fn find(path: &str) -> Option<Make> {
    PAGES.iter().find(|(known, _)| *known == path).map(|(_, make)| *make)
}

#[cfg(test)]
mod artifact_tests;
#[cfg(test)]
mod tests;
