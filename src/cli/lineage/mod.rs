//! `sami lineage`: where something comes from, and what it went into.

use indexmap::IndexSet;
use serde_json::Value;

use super::find::{self, Thing};
use super::screen::Screen;
use super::{CommandResult, Context, DONE, LineageArgs, context};
use crate::diag::{Diagnostic, did_you_mean};
use crate::digest::Digest;
use crate::inspect::lineage::{Follow, Way, first_ids, is_rows, walk};
use crate::store::{Index, RunRecord, Store};
use context::Failure;

mod text;

/// Follows what is named, up to its sources or down to all that it touched.
pub(super) fn run(context: &Context, args: &LineageArgs) -> CommandResult {
    let (store, index) = context.open_existing()?;
    let way = if args.down || args.principle.is_some() { Way::Down } else { Way::Up };
    let roots = match &args.what {
        Some(what) => Some(roots(&store, &index, what, way)?),
        None => None,
    };
    let (roots, follow) = match (roots, &args.principle, &args.row) {
        (Some(roots), None, None) => (roots, Follow::Nothing),
        (Some(roots), None, Some(row)) => {
            let follow = Follow::Row(row.clone());
            must_have(&store, &index, &roots, &follow, row)?;
            (roots, follow)
        }
        (roots, Some(principle), _) => constitutions(&store, &index, roots, principle)?,
        (None, None, _) => {
            let fault = Diagnostic::error("cli::lineage-of-nothing", "nothing is named whose lineage is asked for");
            let help = "name an artifact, a node, a run, `dataset:NAME` or `model:NAME`, or give `--principle NAME`";
            return Err(fault.help(help).into());
        }
    };
    let lineage = walk(&store, &index, &roots, way, &follow, args.depth)?;
    if context.json() {
        context::print_json(&lineage)?;
    } else {
        context::print(&text::text(&lineage, &store, Screen::of_stdout()))?;
    }
    Ok(DONE)
}

/// The artifacts that a name means.
fn roots(store: &Store, index: &Index, what: &str, way: Way) -> Result<Vec<Digest>, Failure> {
    if let Some((kind @ ("dataset" | "model"), name)) = what.split_once(':') {
        let named = index.named(what);
        if !named.is_empty() {
            return Ok(named);
        }
        // A model that a node makes has the node's record.
        if kind == "model"
            && let Ok(Thing::Artifact { id, .. }) = find::thing(store, index, name)
        {
            return Ok(vec![id]);
        }
        let names = index.names_of_sources();
        let fault = Diagnostic::error("cli::unknown-source", format!("no node took a {kind} that is called `{name}`"));
        return Err(match did_you_mean(what, names.iter().map(String::as_str)) {
            Some(near) => fault.help(format!("one with a similar name exists: `{near}`")).into(),
            None => fault.help("records of version 0.1.0 do not have the names of sources: name a slice by its id, which `sami cache ls --type dataset` lists").into(),
        });
    }
    Ok(match find::thing(store, index, what)? {
        Thing::Artifact { id, .. } => vec![id],
        Thing::Run(run) => of_run(store, &run, way)?,
    })
}

/// Up: what a run made or took that none of its own nodes needs. Down: what it made.
fn of_run(store: &Store, run: &RunRecord, way: Way) -> Result<Vec<Digest>, Failure> {
    let mut taken: IndexSet<Digest> = IndexSet::new();
    if way == Way::Up {
        for key in run.nodes.iter().filter_map(|node| node.key) {
            taken.extend(store.node(&key)?.into_iter().flat_map(|record| record.inputs.into_values()));
        }
    }
    let wanted = run.nodes.iter().filter(|node| way == Way::Up || node.state == "ran");
    let all: IndexSet<Digest> = wanted.filter_map(|node| node.artifact).filter(|id| !taken.contains(id)).collect();
    if all.is_empty() {
        let fault = Diagnostic::error("cli::lineage-of-nothing", format!("run {} made nothing", run.run));
        return Err(fault.help("without `--down`, what it took from the cache is followed, too").into());
    }
    Ok(all.into_iter().collect())
}

/// Errs if none of the artifacts, and none of the examples of models among them, has the row.
fn must_have(store: &Store, index: &Index, roots: &[Digest], follow: &Follow, row: &str) -> Result<(), Failure> {
    let mut examples = Vec::new();
    for id in roots {
        if follow.rows_of(store, id)?.is_some_and(|found| !found.is_empty()) {
            return Ok(());
        }
        if let Some(record) = index.makers(id).first().map(|maker| store.node(&maker.key)).transpose()?.flatten() {
            examples.extend(record.inputs.into_iter().filter(|(field, _)| is_rows(field)));
        }
    }
    for (field, id) in examples {
        if follow.through(&field).rows_of(store, &id)?.is_some_and(|found| !found.is_empty()) {
            return Ok(());
        }
    }
    let some = roots.first().map(|id| first_ids(store, id)).transpose()?.unwrap_or_default();
    let fault = Diagnostic::error("cli::no-row", format!("no row there has the id `{row}`"));
    Err(match &some[..] {
        [] => fault.help("give the id of one of its rows; `sami cache show` shows the first ones").into(),
        some => fault.help(format!("its first ids are {}", some.join(", "))).into(),
    })
}

/// The constitutions that have a principle of this name, or of this number, from 1, and how it is followed.
fn constitutions(
    store: &Store,
    index: &Index,
    roots: Option<Vec<Digest>>,
    principle: &str,
) -> Result<(Vec<Digest>, Follow), Failure> {
    let candidates = match roots {
        Some(roots) => roots,
        None => index.of_kind("constitutions"),
    };
    let mut known: IndexSet<String> = IndexSet::new();
    let mut found: Vec<(Digest, String)> = Vec::new();
    let number = principle.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    for id in candidates {
        let names = principles(store, &id)?;
        let numbered = number.and_then(|at| names.get(at)).filter(|_| !names.iter().any(|name| name == principle));
        if let Some(name) = names.iter().find(|name| *name == principle).or(numbered) {
            found.push((id, name.clone()));
        }
        known.extend(names);
    }
    let Some((_, name)) = found.first().cloned() else {
        let fault =
            Diagnostic::error("cli::unknown-principle", format!("no constitutions have a principle `{principle}`"));
        return Err(match did_you_mean(principle, known.iter().map(String::as_str)) {
            Some(near) => fault.help(format!("one with a similar name exists: `{near}`")).into(),
            None if known.is_empty() => {
                fault.help("name the node of the constitutions, or an artifact of theirs").into()
            }
            None => fault
                .help(format!("there are {}", known.iter().take(12).cloned().collect::<Vec<_>>().join(", ")))
                .into(),
        });
    };
    // A number means one name: that of the latest constitutions.
    found.retain(|(_, other)| *other == name);
    Ok((found.into_iter().map(|(id, _)| id).collect(), Follow::Principle(name)))
}

/// The names of the principles of an artifact, in order; none if it has none.
fn principles(store: &Store, id: &Digest) -> Result<Vec<String>, Failure> {
    let Ok(files) = store.files(id) else { return Ok(Vec::new()) };
    let Some(path) = files.get("constitutions.json") else { return Ok(Vec::new()) };
    let read: indexmap::IndexMap<String, Value> = match fs_err::read(path).map(|bytes| serde_json::from_slice(&bytes)) {
        Ok(Ok(read)) => read,
        _ => return Ok(Vec::new()),
    };
    let principles = read.get("principles").cloned().unwrap_or_default();
    let names: indexmap::IndexMap<String, Value> = serde_json::from_value(principles).unwrap_or_default();
    Ok(names.into_keys().collect())
}
