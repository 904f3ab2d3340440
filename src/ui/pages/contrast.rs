//! `/contrast`: how likely each response of a query is under each constitution, before and after each iteration.
//!
//! Without an artifact: those that say so. With one: its queries. With one of these: its matrices.

use serde::Serialize;
use serde_json::{Value, json};

use super::artifact::asked;
use crate::digest::Digest;
use crate::inspect::contrast::{self, Case, Listing, Panel, Sort, marks};
use crate::inspect::rows::Place;
use crate::plot::heat::{self, Heat};
use crate::store::{Index, Line, Store, Wanted};
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Queries of a page.
const PAGE: usize = 50;
/// Artifacts that are offered.
const ARTIFACTS: u64 = 100;
/// Models beside each other.
const PANELS: usize = 24;
/// Constitutions, and responses of each model, whose texts are shown.
const TEXTS: usize = 32;

/// What the numbers of a matrix are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Sum,
    Token,
    Share,
}

impl By {
    const ALL: [(Self, &'static str, &'static str); 3] = [
        (Self::Token, "token", "nats a token"),
        (Self::Sum, "sum", "nats, summed"),
        (Self::Share, "share", "share of each constitution"),
    ];

    fn named(name: Option<&str>) -> Self {
        Self::ALL.into_iter().find(|(_, known, _)| Some(*known) == name).map_or(Self::Sum, |(by, _, _)| by)
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Sum => "nats",
            Self::Token => "nats a token",
            Self::Share => "",
        }
    }

    fn digits(self) -> usize {
        if self == Self::Sum { 1 } else { 2 }
    }

    fn cells(self, panel: &Panel) -> Vec<Vec<Option<f64>>> {
        match self {
            Self::Sum => panel.cells.clone(),
            Self::Token => panel.per_token(),
            Self::Share => panel.shares(),
        }
    }
}

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (store, mut index) = site.open()?;
    index.catch_up(&store)?;
    if query.get("id").is_none() {
        return Ok(choose(&index));
    }
    let id = asked(&store, &index, query)?;
    let path = contrast::rows_file(&store, &id)?.ok_or_else(|| {
        let help = "artifacts of the types `scores` and `evaluation` have matrices";
        Problem::new(404, format!("{} has no rows in the cache", id.short()), help)
    })?;
    let mut listing = contrast::list(&path)?;
    let candidate = chosen(&listing, query);
    let sort = query.get("sort").and_then(Sort::named).unwrap_or_default();
    listing.sort(sort, candidate);
    match query.get("at") {
        None => queries(&store, &index, id, &listing, query, (sort, candidate)),
        Some(_) => matrices(&store, &index, id, &path, &listing, query, (sort, candidate)),
    }
}

/// The candidate whose figures count: the one that is named, or else the last, for the first is what others are held against.
fn chosen(listing: &Listing, query: &Query) -> usize {
    let named = query.get("candidate").and_then(|name| listing.candidates.iter().position(|known| known == name));
    named.unwrap_or(listing.candidates.len().saturating_sub(1))
}

/// Artifacts with matrices.
fn choose(index: &Index) -> Page {
    let of =
        |kind: &str| index.list(&Wanted { kind: Some(kind.to_owned()), last: ARTIFACTS, ..Wanted::default() }).lines;
    let mut lines: Vec<Line> = contrast::TYPES.iter().flat_map(|kind| of(kind)).collect();
    let started = |line: &Line| line.maker.as_ref().map(|maker| maker.started.clone());
    lines.sort_by_key(|line| std::cmp::Reverse(started(line)));
    let shown: Vec<Value> = lines
        .iter()
        .map(|line| {
            let maker = line.maker.as_ref();
            json!({"id": line.id, "kind": line.kind, "node": maker.map(|maker| &maker.node), "pipeline": maker.map(|maker| &maker.pipeline),
                "run": maker.map(|maker| &maker.run), "started": maker.map(|maker| &maker.started)})
        })
        .collect();
    Page::new(Tab::Contrast, "Contrast", "contrasts.html").with("artifacts", &shown)
}

/// What the head of both pages says.
fn head(page: Page, store: &Store, index: &Index, id: Digest, query: &Query) -> Result<Page, Problem> {
    let maker = index.makers(&id).into_iter().next();
    let kind = store.manifest(&id)?.kind;
    Ok(page
        .with("id", &id)
        .with("short", &id.short())
        .with("kind", &kind)
        .with("node", &maker.as_ref().map(|maker| &maker.node))
        .with("pipeline", &maker.as_ref().map(|maker| &maker.pipeline))
        .with("run", &query.get("run")))
}

/// The orders that there are for what was listed.
fn sorts(listing: &Listing) -> Vec<(&'static str, &'static str)> {
    let several = listing.candidates.len() > 1;
    let all = Sort::ALL.into_iter().filter(|(sort, _, _)| several || !matches!(sort, Sort::Lost | Sort::Gained));
    all.map(|(_, name, words)| (name, words)).collect()
}

fn sort_name(sort: Sort) -> &'static str {
    Sort::ALL.iter().find(|(known, _, _)| *known == sort).map_or("file", |(_, name, _)| *name)
}

/// The queries of an artifact.
fn queries(
    store: &Store,
    index: &Index,
    id: Digest,
    listing: &Listing,
    query: &Query,
    (sort, candidate): (Sort, usize),
) -> Result<Page, Problem> {
    let skip: usize = query.number("skip", 0)?;
    let entries: Vec<_> = listing.entries.iter().skip(skip).take(PAGE).collect();
    let seen = skip.saturating_add(entries.len());
    let page = Page::new(Tab::Contrast, "Contrast", "contrasts.html")
        .with("entries", &entries)
        .with("candidates", &listing.candidates)
        .with("candidate", &listing.candidates.get(candidate))
        .with("sorts", &sorts(listing))
        .with("sort", &sort_name(sort))
        .with("skip", &skip)
        .with("seen", &seen)
        .with("all", &listing.entries.len())
        .with("ended", &listing.ended)
        .with("back", &(skip > 0).then(|| query.with("skip", &skip.saturating_sub(PAGE).to_string())))
        .with("forth", &(seen < listing.entries.len()).then(|| query.with("skip", &seen.to_string())));
    head(page, store, index, id, query)
}

/// A model in the page of a query.
#[derive(Debug, Serialize)]
struct Shown<'a> {
    title: String,
    when: String,
    model: Option<Digest>,
    by: &'a [(Digest, String)],
    figures: Option<Value>,
    why: &'a Option<String>,
    /// The responses cut into parts, with their tokens and why they ended.
    responses: Vec<Value>,
    more: usize,
    /// Whether the responses are those of the model above.
    same_responses: bool,
    cells: Vec<Vec<Option<f64>>>,
}

/// The matrices of a query.
fn matrices(
    store: &Store,
    index: &Index,
    id: Digest,
    path: &std::path::Path,
    listing: &Listing,
    query: &Query,
    (sort, candidate): (Sort, usize),
) -> Result<Page, Problem> {
    let byte: u64 = query.number("at", 0)?;
    let place = listing.entries.iter().position(|entry| entry.at.byte == byte);
    let (at, length) = match place.and_then(|place| listing.entries.get(place)) {
        Some(entry) => (entry.at, entry.length),
        // Beyond what was listed: the row says itself how long it is.
        None => (Place { byte, row: query.number("row", 0)?, nth: 0 }, u64::MAX),
    };
    let text = contrast::text_at(path, at, length)?;
    let case = contrast::case(store, index, &id, &text, query.get("run"))?;
    let case = case.ok_or_else(|| Problem::absent("there is no row that can be read at this place"))?;
    let by = By::named(query.get("by"));
    let step = |to: Option<usize>| to.and_then(|to| listing.entries.get(to)).map(|entry| address(query, entry.at));
    let (shown, pictures) = show(&case, by);
    let constitutions: Vec<&str> = case.constitutions.iter().take(TEXTS).map(String::as_str).collect();
    let all: Vec<_> = case.panels.iter().take(PANELS).flat_map(|panel| by.cells(panel)).flatten().flatten().collect();
    let legend = heat::legend(scale(by, all.iter().copied()), by.digits(), by.unit());
    let options: Vec<(&str, &str)> = By::ALL.iter().map(|(_, name, words)| (*name, *words)).collect();
    let name = By::ALL.iter().find(|(known, _, _)| *known == by).map_or("sum", |(_, name, _)| *name);
    let page = Page::new(
        Tab::Contrast,
        format!("Contrast: {}", case.query.chars().take(60).collect::<String>()),
        "contrast.html",
    )
    .with("row", &case.id)
    .with("query", &case.query)
    .with("constitutions", &marks(&constitutions))
    .with("more_constitutions", &case.constitutions.len().saturating_sub(TEXTS))
    .with("ceiling", &(case.constitutions.len().max(1) as f64).ln())
    .with("panels", &shown)
    .with("more_panels", &case.panels.len().saturating_sub(PANELS))
    .with("unlooked", &case.unlooked)
    .pictures("pictures", pictures)
    .picture("legend", legend)
    .with("by", &name)
    .with("bys", &options)
    .with("sorts", &sorts(listing))
    .with("sort", &sort_name(sort))
    .with("candidates", &listing.candidates)
    .with("candidate", &listing.candidates.get(candidate))
    .with("at", &byte)
    .with("at_row", &at.row)
    .with("place", &place.map(|place| place + 1))
    .with("all", &listing.entries.len())
    .with("ended", &listing.ended)
    .with("previous", &step(place.and_then(|place| place.checked_sub(1))))
    .with("next", &step(place.map(|place| place + 1)))
    .with("list", &Query::parse(&query.without("at")).without("row"));
    head(page, store, index, id, query)
}

/// The address of the query of a row.
fn address(query: &Query, at: Place) -> String {
    Query::parse(&query.with("at", &at.byte.to_string())).with("row", &at.row.to_string())
}

/// What the first colour stands for and what the last: the same for all models, so that they can be compared.
fn scale(by: By, numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    if by == By::Share { (0.0, 1.0) } else { heat::range(numbers) }
}

fn show(case: &Case, by: By) -> (Vec<Shown<'_>>, Vec<String>) {
    let panels = &case.panels[..case.panels.len().min(PANELS)];
    let cells: Vec<Vec<Vec<Option<f64>>>> = panels.iter().map(|panel| by.cells(panel)).collect();
    let range = scale(by, cells.iter().flatten().flatten().flatten().copied());
    let trained = panels.iter().any(|panel| panel.asked.iteration > 0);
    let (mut shown, mut pictures) = (Vec::new(), Vec::new());
    for (at, (panel, cells)) in panels.iter().zip(&cells).enumerate() {
        let names = |letter: &str, count: usize| (1..=count).map(|n| format!("{letter}{n}")).collect::<Vec<_>>();
        let columns = cells.iter().map(Vec::len).max().unwrap_or(0);
        let (rows, columns) = (names("C", cells.len()), names("R", columns));
        let title = match panel.asked.candidate.as_str() {
            "" => panel.asked.model.clone(),
            name if name == panel.asked.model => name.to_owned(),
            name => format!("{} ({name})", panel.asked.model),
        };
        let when = match panel.asked.iteration {
            0 if trained => "before iteration 1".to_owned(),
            0 => String::new(),
            iteration => format!("after iteration {iteration}"),
        };
        let picture = if cells.is_empty() {
            String::new()
        } else {
            let words = format!("Log-probabilities by {title}");
            Heat { title: &words, rows: &rows, columns: &columns, cells, own: panel.each(), range, digits: by.digits() }
                .svg()
        };
        pictures.push(picture);
        let texts: Vec<&str> = panel.responses.iter().take(TEXTS).map(|response| response.text.as_str()).collect();
        let told = panel.responses.iter().zip(marks(&texts));
        let responses =
            told.map(|(response, parts)| json!({"parts": parts, "tokens": response.tokens, "finish": response.finish}));
        shown.push(Shown {
            title,
            when,
            model: panel.asked.artifact,
            by: &panel.by,
            figures: panel.figures.map(|figures| {
                json!({"bound": figures.bound, "gap": figures.gap, "row": figures.accuracy_row, "column": figures.accuracy_column})
            }),
            why: &panel.why,
            responses: responses.collect(),
            more: panel.responses.len().saturating_sub(TEXTS),
            same_responses: at > 0 && panels[at - 1].responses == panel.responses && !panel.responses.is_empty(),
            cells: if cells.len() * columns.len() <= 400 { cells.clone() } else { Vec::new() },
        });
    }
    (shown, pictures)
}
