//! From what people type to what they mean: runs, nodes and artifacts by name or by the beginning of an id.

use crate::diag::{Diagnostic, did_you_mean};
use crate::digest::Digest;
use crate::shell::quoted;
use crate::store::{Index, NodeRecord, RunRecord, Store, StoreError};

use super::context::Failure;

/// Candidates that an error lists.
const LISTED: usize = 8;

/// What `sami show` can show.
#[derive(Debug)]
pub(super) enum Found {
    /// An invocation.
    Run(RunRecord),
    /// What a node made.
    Node(Box<NodeRecord>),
}

/// The latest run that `wanted` says yes to.
pub(super) fn latest_run(store: &Store, wanted: impl Fn(&RunRecord) -> bool) -> Result<Option<RunRecord>, StoreError> {
    for id in store.run_ids()?.iter().rev() {
        if let Some(run) = store.run(id)?.filter(|run| wanted(run)) {
            return Ok(Some(run));
        }
    }
    Ok(None)
}

/// The run that is named or, without a name, the latest that told anything.
pub(super) fn run_or_latest(store: &Store, named: Option<&str>) -> Result<RunRecord, Failure> {
    if let Some(named) = named {
        return run(store, named);
    }
    latest_run(store, |_| true)?.ok_or_else(|| {
        let fault = Diagnostic::error("cli::no-runs", "there are no runs in this cache");
        fault.help("`sami run PIPELINE` makes one; `--cache DIR` names another cache").into()
    })
}

/// The run or the node's latest record that a name, an id or the beginning of an id means.
pub(super) fn run_or_node(store: &Store, index: &Index, what: &str) -> Result<Found, Failure> {
    if let Some(record) = node(store, index, what)? {
        return Ok(Found::Node(Box::new(record)));
    }
    let runs = beginning(store.run_ids()?, what);
    let keys = if is_hex(what) { store.keys_beginning(what)? } else { Vec::new() };
    match (&runs[..], &keys[..]) {
        ([run], []) => Ok(Found::Run(run_record(store, run)?)),
        ([], [key]) => match store.node(key)? {
            Some(record) => Ok(Found::Node(Box::new(record))),
            None => Err(StoreError::Damaged { what: format!("the record of key {}", key.short()) }.into()),
        },
        ([], []) => {
            let fault = Diagnostic::error("cli::unknown", format!("no run, node or key is called `{what}`"));
            // The id of an artifact is easily taken for that of a node.
            if is_hex(what) && index.resolve(store, what).is_ok() {
                return Err(fault.help(format!("an artifact is: `sami cache show {what}`")).into());
            }
            Err(similar(fault, store, what)?.into())
        }
        _ => {
            let runs = runs.iter().map(|run| format!("run {run}"));
            let all = runs.chain(keys.iter().map(|key| key_line(store, key)));
            Err(ambiguous(what, all.collect()))
        }
    }
}

/// The run that an id, or the beginning of one, means.
pub(super) fn run(store: &Store, what: &str) -> Result<RunRecord, Failure> {
    let runs = beginning(store.run_ids()?, what);
    match &runs[..] {
        [run] => run_record(store, run),
        [] => Err(Diagnostic::error("cli::unknown-run", format!("no run is called `{what}`"))
            .help("`sami runs` lists them")
            .into()),
        _ => Err(ambiguous(what, runs.iter().map(|run| format!("run {run}")).collect())),
    }
}

/// The artifact that a node's name, or the beginning of an artifact's id or of a node's key, means.
pub(super) fn artifact(store: &Store, index: &Index, what: &str) -> Result<Digest, Failure> {
    if let Some(record) = node(store, index, what)? {
        return Ok(record.artifact);
    }
    match index.resolve(store, what) {
        Ok(id) => Ok(id),
        Err(StoreError::Ambiguous { prefix, ids }) => {
            let line = |id: &Digest| match store.manifest(id) {
                Ok(manifest) => {
                    let maker = index.makers(id).into_iter().next();
                    let maker = maker.map_or_else(String::new, |maker| format!(" of {}", maker.node));
                    format!("{} {}{maker}", id.short(), manifest.kind)
                }
                Err(_) => key_line(store, id),
            };
            Err(ambiguous(&prefix, ids.iter().take(LISTED + 1).map(line).collect()))
        }
        Err(StoreError::Unknown(_)) => {
            let what_is = format!("no artifact, key or node is called `{what}`");
            Err(similar(Diagnostic::error("cli::unknown", what_is), store, what)?.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// What `sami diff` and `sami lineage` take.
#[derive(Debug)]
pub(super) enum Thing {
    /// An invocation.
    Run(Box<RunRecord>),
    /// An artifact, and the work that made it, if a node did.
    Artifact {
        /// Its id.
        id: Digest,
        /// The work: that of the name or key that was typed, or else of the latest run.
        record: Option<Box<NodeRecord>>,
    },
}

/// The run or the artifact that is meant by a node's name (`NODE@RUN` is what the node made or took in that run), or by the
/// beginning of the id of a run, an artifact or a key.
pub(super) fn thing(store: &Store, index: &Index, what: &str) -> Result<Thing, Failure> {
    let of = |record: NodeRecord| Thing::Artifact { id: record.artifact, record: Some(Box::new(record)) };
    if let Some(record) = node(store, index, what)? {
        return Ok(of(record));
    }
    let runs = beginning(store.run_ids()?, what);
    let found = if is_hex(what) { index.resolve(store, what) } else { Err(StoreError::Unknown(what.to_owned())) };
    match (&runs[..], found) {
        ([run], Err(StoreError::Unknown(_))) => Ok(Thing::Run(Box::new(run_record(store, run)?))),
        ([], Ok(id)) => {
            let makers = index.makers(&id);
            let typed = makers.iter().find(|maker| maker.key.to_string().starts_with(what));
            let record = typed.or(makers.first()).map(|maker| store.node(&maker.key)).transpose()?.flatten();
            Ok(Thing::Artifact { id, record: record.map(Box::new) })
        }
        ([], Err(_)) => artifact(store, index, what).map(|id| Thing::Artifact { id, record: None }),
        (runs, found) => {
            let runs = runs.iter().map(|run| format!("run {run}"));
            let artifact = found.ok().map(|id| format!("artifact {}", id.short()));
            Err(ambiguous(what, runs.chain(artifact).collect()))
        }
    }
}

/// The record of `NODE@RUN`: what the node of this name made in a run, or took from the cache.
fn node_of_run(store: &Store, what: &str) -> Result<Option<NodeRecord>, Failure> {
    // A number after the `@` is an iteration.
    let Some((name, typed)) = what.rsplit_once('@').filter(|(_, run)| run.len() >= 4) else { return Ok(None) };
    let runs = beginning(store.run_ids()?, typed);
    let run = match &runs[..] {
        [run] => run_record(store, run)?,
        [] => return Ok(None),
        _ => return Err(ambiguous(what, runs.iter().map(|run| format!("{name}@{run}")).collect())),
    };
    let names: Vec<&str> = run.nodes.iter().map(|node| node.name.as_str()).collect();
    let Some(name) = member(&names, name)? else {
        let fault = Diagnostic::error("cli::unknown", format!("run {} has no node `{name}`", run.run));
        return Err(fault.help(format!("`sami show {}` lists its nodes", run.run)).into());
    };
    let key = run.nodes.iter().find(|node| node.name == name).and_then(|node| node.key);
    match key.map(|key| store.node(&key)).transpose()?.flatten() {
        Some(record) => Ok(Some(record)),
        None => Err(Diagnostic::error("cli::unknown", format!("node `{name}` has no result in run {}", run.run))
            .help(format!("see what the run did: `sami show {}`", run.run))
            .into()),
    }
}

/// The latest record of the node that a name means: the name itself, `PIPELINE/NODE`, or the name of a node of the
/// loop, which is its last iteration. Of `NODE@RUN` it is the record that the node had in that run.
pub(super) fn node(store: &Store, index: &Index, what: &str) -> Result<Option<NodeRecord>, Failure> {
    let named = index.latest_of(what).or_else(|| {
        let (pipeline, node) = what.rsplit_once('/')?;
        index.latest_keys(pipeline).get(node).copied()
    });
    if let Some(key) = named
        && let Some(record) = store.node(&key)?
    {
        return Ok(Some(record));
    }
    // To look through the names takes reading all runs, and what is the beginning of an id is seldom that of a name.
    if is_id(store, what)? {
        return Ok(None);
    }
    let all = names(store)?;
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let chosen = member(&all, what)?.and_then(|name| index.latest_of(name));
    match chosen.map(|key| store.node(&key)).transpose()?.flatten() {
        Some(record) => Ok(Some(record)),
        None => node_of_run(store, what),
    }
}

/// Which of the nodes a name means: the one of that name, that of a model of that name, the last iteration of a node
/// of the loop, or the only cell of a matrix.
pub(super) fn member<'a>(names: &[&'a str], what: &str) -> Result<Option<&'a str>, Failure> {
    let made = format!("models.{what}");
    for exact in [what, &made] {
        if let Some(name) = names.iter().find(|name| **name == exact) {
            return Ok(Some(name));
        }
    }
    let family: indexmap::IndexSet<&str> = names.iter().copied().filter(|name| is_of(name, what)).collect();
    let iteration = |name: &&str| name.strip_prefix(what)?.strip_prefix('@')?.parse::<u64>().ok();
    // `what@2` beside `what[lr=1]` is several; iterations alone are one node that went on.
    if family.iter().all(|name| iteration(name).is_some()) {
        return Ok(family.iter().max_by_key(|name| iteration(name)).copied());
    }
    match family.len() {
        0 | 1 => Ok(family.first().copied()),
        _ => Err(ambiguous(what, family.iter().map(|name| format!("node {name}")).collect())),
    }
}

/// Whether a node is an iteration or a cell of what is called `base`.
fn is_of(name: &str, base: &str) -> bool {
    name.strip_prefix(base).is_some_and(|rest| rest.starts_with(['@', '[']))
}

/// Names of the nodes of all runs, those of the latest run first, each once.
pub(super) fn names(store: &Store) -> Result<Vec<String>, Failure> {
    let mut seen = indexmap::IndexSet::new();
    for run in store.runs()?.into_iter().rev() {
        seen.extend(run.nodes.into_iter().map(|node| node.name));
    }
    Ok(seen.into_iter().collect())
}

/// The latest run that had a node of this name, and the state that it ended in.
pub(super) fn latest_state(store: &Store, node: &str) -> Result<Option<(String, String)>, StoreError> {
    let mut runs = store.run_ids()?;
    runs.reverse();
    for some in runs.chunks(8) {
        let found = store.node_in_runs(some, node)?;
        for run in some.iter().zip(found).filter_map(|(run, found)| found.map(|_| run)) {
            // Read again, and held against its digest: the word is told.
            let record = store.run(run)?;
            if let Some(known) = record.and_then(|record| record.nodes.into_iter().find(|known| known.name == node)) {
                return Ok(Some((run.clone(), known.state)));
            }
        }
    }
    Ok(None)
}

/// Adds what became of the node of this name, which has no result, or the name that was perhaps meant.
pub(super) fn similar(fault: Diagnostic, store: &Store, what: &str) -> Result<Diagnostic, Failure> {
    let names = names(store)?;
    let known: Vec<&str> = names.iter().map(String::as_str).collect();
    if let Some(node) = member(&known, what)?
        && let Some((run, state)) = latest_state(store, node)?
    {
        let became = if state == "failed" { "it failed".to_owned() } else { format!("it was {state}") };
        let fault = fault.note(format!("node `{node}` has no result: {became} in run {run}"));
        return Ok(match state.as_str() {
            "failed" => fault.help(format!("see why: `sami logs {}`", quoted(node))),
            _ => fault.help(format!("see what the run did: `sami show {run}`")),
        });
    }
    Ok(match did_you_mean(what, names.iter().map(String::as_str)) {
        Some(near) => fault.help(format!("a node with a similar name exists: `{near}`")),
        None => fault.help("`sami runs` lists runs, `sami show RUN` the nodes of one, `sami cache ls` artifacts"),
    })
}

fn run_record(store: &Store, run: &str) -> Result<RunRecord, Failure> {
    Ok(store.run(run)?.ok_or_else(|| StoreError::Damaged { what: format!("the record of run {run}") })?)
}

fn key_line(store: &Store, key: &Digest) -> String {
    let node = store.node(key).ok().flatten().map_or_else(String::new, |record| format!(" of {}", record.node));
    format!("key {}{node}", key.short())
}

pub(super) fn beginning<T: ToString>(ids: Vec<T>, what: &str) -> Vec<T> {
    let mut ids: Vec<T> = ids.into_iter().filter(|id| id.to_string().starts_with(what)).collect();
    // An id that begins another one can still be typed.
    if let Some(exact) = ids.iter().position(|id| id.to_string() == what) {
        ids = ids.into_iter().skip(exact).take(1).collect();
    }
    ids
}

/// Whether this is the id of a run, or looks like the beginning of an id of something that is there.
fn is_id(store: &Store, what: &str) -> Result<bool, StoreError> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-';
    if !what.is_empty() && what.chars().all(plain) && store.run_dir(what).exists() {
        return Ok(true);
    }
    Ok(what.len() >= 8
        && is_hex(what)
        && !(store.keys_beginning(what)?.is_empty() && store.artifacts_beginning(what)?.is_empty()))
}

pub(super) fn is_hex(what: &str) -> bool {
    what.len() >= 2 && what.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(super) fn ambiguous(what: &str, candidates: Vec<String>) -> Failure {
    let count = candidates.len();
    let mut fault = Diagnostic::error("cli::ambiguous", format!("`{what}` means several things"));
    for candidate in candidates.into_iter().take(LISTED) {
        fault = fault.note(candidate);
    }
    if count > LISTED {
        fault = fault.note(format!("{} more", count - LISTED));
    }
    fault.help("type more of it").into()
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    #[test]
    fn beginnings_are_unique_or_exact() {
        let ids = || vec!["20260101-000000-aaaa", "20260101-000000-aaaab", "20260102-000000-aaaa"];
        assert_eq!(beginning(ids(), "20260102"), ["20260102-000000-aaaa"]);
        assert_eq!(beginning(ids(), "20260101-000000-aaaa"), ["20260101-000000-aaaa"]);
        assert_eq!(beginning(ids(), "20260101").len(), 2);
        assert!(is_of("train@2[lr=1]", "train") && is_of("train[lr=1]", "train") && !is_of("trainer", "train"));
        let names = ["a@1", "b", "a@2", "a@10", "a@2", "c[lr=1]", "d[x=1]", "d[x=2]", "models.m"];
        let member = |what| member(&names, what).unwrap();
        assert_eq!(
            ["a", "b", "a@2", "c", "m", "e"].map(member),
            [Some("a@10"), Some("b"), Some("a@2"), Some("c[lr=1]"), Some("models.m"), None]
        );
        assert_eq!(super::member(&names, "d").unwrap_err().diagnostics[0].notes, ["node d[x=1]", "node d[x=2]"]);
        assert!(is_hex("ab") && !is_hex("a") && !is_hex("xy"));
    }

    #[test]
    fn names_and_beginnings_of_ids_mean_runs_nodes_and_artifacts() {
        let (_folder, store, index) = sample::store();
        let found = |what| match run_or_node(&store, &index, what) {
            Ok(Found::Run(run)) => format!("run {}", run.run),
            Ok(Found::Node(node)) => format!("node {} of {}", node.node, node.run),
            Err(fault) => {
                let told = &fault.diagnostics[0];
                format!("{}: {} {}", told.id, told.notes.join(", "), told.help.join(", "))
            }
        };
        assert_eq!(found("20260101"), "run 20260101-000000-aaaa");
        assert_eq!(found("train"), "node train@2 of 20260102-000000-bbbb");
        assert_eq!(found("toy/train@1"), "node train@1 of 20260102-000000-bbbb");
        assert_eq!(found("811748"), "node train@2 of 20260101-000000-aaaa");
        assert_eq!(found("2026"), "cli::ambiguous: run 20260101-000000-aaaa, run 20260102-000000-bbbb type more of it");
        assert_eq!(found("trian@1"), "cli::unknown:  a node with a similar name exists: `train@1`");
        assert_eq!(found("912c"), "cli::unknown:  an artifact is: `sami cache show 912c`");
        assert!(found("policy").starts_with("cli::unknown:  `sami runs` lists runs"));
        assert_eq!(run(&store, "2026").unwrap_err().diagnostics[0].id, "cli::ambiguous");
        assert_eq!(artifact(&store, &index, "genrate@1").unwrap_err().diagnostics[0].id, "cli::unknown");
    }
}
