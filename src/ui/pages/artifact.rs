//! `/artifact`: what an artifact is, what is in it, what it was made of and what was made of it.

use serde::Serialize;

use super::content::{self, file};
use crate::digest::Digest;
use crate::inspect::artifact::{self, Known};
use crate::inspect::evaluation::{self, Evaluation};
use crate::inspect::lineage::{Follow, Lineage, Way, walk_some};
use crate::inspect::{contrast, metric};
use crate::store::{Index, Store, Use};
use crate::ui::html::{Page, Tab};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Steps of the lineage that are shown.
const DEPTH: usize = 3;
/// Steps that can be asked for.
const DEEPEST: usize = 50;
/// Artifacts of a lineage.
const ITEMS: usize = 150;
/// Tensors of a page.
const TENSORS: usize = 200;
/// Files that are listed.
const FILES: usize = 200;
/// Nodes that are listed that took it.
const USERS: usize = 30;

#[derive(Debug, Serialize)]
struct File {
    name: String,
    size: u64,
    digest: String,
    is_text: bool,
}

/// A line of a lineage that is drawn as a tree.
#[derive(Debug, Serialize)]
struct Twig {
    level: usize,
    field: String,
    id: Digest,
    kind: Option<String>,
    size: Option<u64>,
    /// The node that made it, or what it is called that comes from outside.
    name: String,
    pipeline: Option<String>,
    /// Whether it is drawn above with what follows it.
    again: bool,
}

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (store, mut index) = site.open()?;
    index.catch_up(&store)?;
    let id = asked(&store, &index, query)?;
    let known = artifact::know(&store, &index, id)?;
    let files = store.files(&id)?;
    let name = known.record.as_ref().map_or_else(|| id.short(), |record| record.node.clone());
    let depth = query.number("depth", DEPTH)?.min(DEEPEST);
    let mut page = Page::new(Tab::Artifacts, format!("{} of {name}", known.manifest.kind), "artifact.html")
        .with("id", &id)
        .with("short", &id.short())
        .with("kind", &known.manifest.kind)
        .with("has_contrast", &contrast::TYPES.contains(&known.manifest.kind.as_str()))
        .with("size", &known.manifest.size())
        .with("record", &known.record)
        .with("class", &known.record.as_ref().and_then(|record| record.class.as_ref()).map(ToString::to_string))
        .with("metrics", &known.record.as_ref().map(|record| metric::all(&record.metrics)).unwrap_or_default())
        .with("external", &store.external(&id)?.map(|external| external.directory))
        .with("pinned", &store.pins()?.contains(&id))
        .with("others", &others(&known.makers))
        .with("users", &users(&known.users))
        .with("more_users", &known.users.len().saturating_sub(USERS))
        .with("depth", &depth)
        .with("deeper", &query.with("depth", &(2 * depth.max(1)).to_string()))
        .with("files", &listed(&known))
        .with("more_files", &known.manifest.files.len().saturating_sub(FILES));
    for (way, name) in [(Way::Up, "up"), (Way::Down, "down")] {
        let lineage = walk_some(&store, &index, &[id], way, &Follow::Nothing, Some(depth), ITEMS)?;
        page = page.with(name, &tree(&lineage));
        page = page.with(if way == Way::Up { "up_cut" } else { "down_cut" }, &lineage.cut);
    }
    if files.contains_key("config.json") {
        let weights = artifact::weights(files.iter());
        let part = query.get("tensor").unwrap_or_default();
        let found = weights.tensors.iter().filter(|(_, tensor)| tensor.name.contains(part));
        let count = found.clone().count();
        let some: Vec<_> = found
            .take(TENSORS)
            .map(|(file, tensor)| {
                serde_json::json!({"file": file, "name": tensor.name, "dtype": tensor.dtype,
                "shape": tensor.shape, "size": tensor.size, "parameters": tensor.parameters()})
            })
            .collect();
        page = page
            .with("config", &files.get("config.json").and_then(|path| artifact::json(path)))
            .with("adapter", &files.get("adapter_config.json").and_then(|path| artifact::json(path)))
            .with(
                "weights",
                &serde_json::json!({"parameters": weights.parameters, "size": weights.size,
                "dtypes": weights.dtypes, "parts": weights.parts.iter().take(60).collect::<Vec<_>>(),
                "more_parts": weights.parts.len().saturating_sub(60), "count": weights.tensors.len(),
                "unread": weights.unread}),
            )
            .with("tensors", &some)
            .with("tensor", &part)
            .with("more_tensors", &count.saturating_sub(TENSORS));
    }
    if let Some(read) = files.get("constitutions.json").and_then(|path| artifact::json(path)) {
        page = page.with("constitutions", &read);
    }
    if let Some(found) = files.get(evaluation::FILE).and_then(|path| Evaluation::read(path)) {
        let rates = found.candidates.iter().flat_map(|(name, own)| own.principles.iter().map(move |part| (name, part)));
        page = page.with("rates", &rates.collect::<Vec<_>>());
    }
    if let Some((name, path)) = file(&files, query.get("file"), content::is_rows)? {
        page = match content::rows(path, name, query) {
            Ok(rows) => page.with("rows", &rows),
            Err(problem) if problem.status == 400 => return Err(problem),
            // The rest can be told without the rows.
            Err(problem) => {
                page.with("unread", &problem.findings.first().map(|finding| &finding.title)).with("rows_of", name)
            }
        };
    }
    Ok(page)
}

/// The artifact that an address names: by its id, the beginning of it, or that of a node's key or a node's name.
pub(super) fn asked(store: &Store, index: &Index, query: &Query) -> Result<Digest, Problem> {
    let what = query.need("id")?;
    match what.parse::<Digest>() {
        Ok(id) => Ok(id),
        Err(_) => Ok(index.resolve(store, what)?),
    }
}

fn listed(known: &Known) -> Vec<File> {
    let file = |(name, blob): (&String, &crate::store::Blob)| File {
        name: name.clone(),
        size: blob.size,
        digest: blob.digest.to_string(),
        is_text: content::is_text(name),
    };
    known.manifest.files.iter().take(FILES).map(file).collect()
}

/// Work that made it, too.
fn others(makers: &[Use]) -> Vec<&Use> {
    let first = makers.first().map(|maker| (&maker.pipeline, &maker.node));
    let mut seen = std::collections::BTreeSet::new();
    let others = makers.iter().filter(|maker| Some((&maker.pipeline, &maker.node)) != first);
    others.filter(|maker| seen.insert((&maker.pipeline, &maker.node))).take(USERS).collect()
}

/// Nodes that took it, each once for each of its inputs.
fn users(users: &[Use]) -> Vec<&Use> {
    let mut seen = std::collections::BTreeSet::new();
    users.iter().filter(|user| seen.insert((&user.pipeline, &user.node, &user.field))).take(USERS).collect()
}

/// A lineage as lines, without what it begins at.
fn tree(lineage: &Lineage) -> Vec<Twig> {
    let mut drawn = vec![false; lineage.items.len()];
    let mut twigs: Vec<Twig> = Vec::new();
    let mut open: Vec<(usize, &str, usize)> = (0..lineage.roots).rev().map(|root| (root, "", 0)).collect();
    while let Some((at, field, level)) = open.pop() {
        let item = &lineage.items[at];
        let again = std::mem::replace(&mut drawn[at], true);
        let name = match (&item.made, &item.source) {
            (Some(made), _) => made.node.clone(),
            (None, Some(source)) => source.clone(),
            (None, None) => "from outside".to_owned(),
        };
        if level > 0 {
            twigs.push(Twig {
                level,
                field: field.to_owned(),
                id: item.artifact,
                kind: item.kind.clone(),
                size: item.size,
                name,
                pipeline: item.made.as_ref().map(|made| made.pipeline.clone()),
                again: again && !item.links.is_empty(),
            });
        }
        if !again {
            open.extend(item.links.iter().rev().map(|link| (link.item, link.field.as_str(), level + 1)));
        }
    }
    twigs
}
