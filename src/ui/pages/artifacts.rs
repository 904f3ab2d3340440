//! `/artifacts`: what the cache has, a page at a time.

use serde::Serialize;

use crate::store::{Index, Line, Order, Store, Wanted};
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Artifacts of a page.
const PAGE: u64 = 50;
/// Names of nodes that are offered while one is typed.
const NAMES: usize = 500;

#[derive(Debug, Serialize)]
struct Shown {
    id: String,
    kind: String,
    size: u64,
    files: u64,
    node: String,
    pipeline: String,
    run: String,
    started: String,
    /// What took it, if nothing made it.
    source_of: String,
}

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (store, mut index) = site.open()?;
    index.catch_up(&store)?;
    let search = query.get("q").unwrap_or_default().trim();
    let skip: u64 = query.number("skip", 0)?;
    let mut wanted = Wanted {
        kind: query.get("type").map(str::to_owned),
        pipeline: query.get("pipeline").map(str::to_owned),
        order: if query.get("order") == Some("size") { Order::Size } else { Order::Age },
        skip,
        last: PAGE,
        ..Wanted::default()
    };
    let by_id = if is_id(search) { store.artifacts_beginning(search)? } else { Vec::new() };
    let (shown, more, more_than) = if by_id.is_empty() {
        wanted.like = Some(search.to_owned()).filter(|search| !search.is_empty());
        let lines = index.list(&wanted);
        let shown: Vec<Shown> = lines.lines.into_iter().map(|line| show(&index, line)).collect();
        (shown, lines.more, lines.more_than)
    } else {
        let all = by_id.len() as u64;
        let some = by_id.into_iter().skip(usize::try_from(skip).unwrap_or(usize::MAX)).take(PAGE as usize);
        let shown: Vec<Shown> = some.filter_map(|id| line(&store, &index, id)).map(|line| show(&index, line)).collect();
        (shown, all.saturating_sub(skip + PAGE), false)
    };
    let seen = skip + shown.len() as u64;
    let names: Vec<String> = index.node_names().into_iter().take(NAMES).collect();
    Ok(Page::new(Tab::Artifacts, "Artifacts", "artifacts.html")
        .with("artifacts", &shown)
        .with("q", &search)
        .with("type", &query.get("type"))
        .with("pipeline", &query.get("pipeline"))
        .with("order", &query.get("order").unwrap_or("age"))
        .with("types", &index.types())
        .with("pipelines", &index.pipeline_names())
        .with("names", &names)
        .with("skip", &skip)
        .with("seen", &seen)
        .with("more", &more)
        .with("more_than", &more_than)
        .with("back", &(skip > 0).then(|| query.with("skip", &skip.saturating_sub(PAGE).to_string())))
        .with("forth", &(more > 0).then(|| query.with("skip", &seen.to_string()))))
}

/// Whether a text can be the beginning of an id.
fn is_id(text: &str) -> bool {
    text.len() >= 2 && text.len() <= 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn line(store: &Store, index: &Index, id: crate::digest::Digest) -> Option<Line> {
    let manifest = store.manifest(&id).ok()?;
    let record = index.makers(&id).first().and_then(|maker| store.node(&maker.key).ok().flatten());
    let maker = record.map(|record| crate::store::Maker {
        key: record.key,
        pipeline: record.pipeline,
        node: record.node,
        run: record.run,
        started: record.started,
    });
    Some(Line { id, size: manifest.size(), files: manifest.files.len() as u64, kind: manifest.kind, maker })
}

fn show(index: &Index, line: Line) -> Shown {
    let source_of = match &line.maker {
        Some(_) => String::new(),
        None => {
            index.users(&line.id).first().map_or_else(String::new, |user| format!("{}/{}", user.pipeline, user.node))
        }
    };
    let maker = line.maker;
    let part = |part: fn(&crate::store::Maker) -> &String| maker.as_ref().map(part).cloned().unwrap_or_default();
    Shown {
        id: line.id.to_string(),
        kind: line.kind,
        size: line.size,
        files: line.files,
        node: part(|maker| &maker.node),
        pipeline: part(|maker| &maker.pipeline),
        run: part(|maker| &maker.run),
        started: part(|maker| &maker.started),
        source_of,
    }
}
