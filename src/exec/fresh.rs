//! A run of a pipeline that is all fresh, told from what an earlier one remembered: nothing is parsed or planned.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::journal::Journal;
use super::{Event, ExecError, Plan, State};
use crate::digest::Digest;
use crate::fs::{self, Aspect, Watch};
use crate::pipeline::dataset::{self, RowSource};
use crate::pipeline::{Origin, Pipeline};
use crate::store::{Fresh, Index, RunNode, Store, StoreError};

/// All that loading and planning a pipeline reads besides the cache, as it was before that; to be taken between the two.
/// `None` if that cannot be told: something changed just now, or is asked of the hub.
pub fn watched(pipeline: &Pipeline, store: &Store) -> Option<Vec<Watch>> {
    if pipeline.nodes.iter().any(|node| node.spec.depends_on_environment()) {
        return None;
    }
    let mut watches: Vec<Watch> = pipeline.read.iter().cloned().collect::<Option<_>>()?;
    let mut add = |path: &Path, aspect| Watch::of(path, aspect).ok().flatten().map(|watch| watches.push(watch));
    // Another program may make other keys, or say something else.
    add(Path::new("/proc/self/exe"), Aspect::Content)?;
    // What is taken out of the records goes with the index, which is made anew then.
    add(&store.root().join("index.sqlite"), Aspect::Identity)?;
    for spec in pipeline.datasets.values() {
        if matches!(spec.source, RowSource::Hub { .. }) {
            return None;
        }
        for file in dataset::files(spec, &pipeline.directory) {
            add(&file.path, Aspect::Content)?;
        }
    }
    for model in pipeline.models.values() {
        match &model.origin {
            Origin::Hub(_) => return None,
            Origin::Endpoint { .. } => {}
            Origin::Gguf { file, tokenizer } => {
                for path in [Some(file), tokenizer.as_ref()].into_iter().flatten() {
                    add(&pipeline.directory.join(path), Aspect::Content)?;
                }
            }
            Origin::Directory(directory) => {
                let directory = pipeline.directory.join(directory);
                add(&directory, Aspect::Content)?;
                for path in fs::list(&directory).ok()? {
                    add(&path, Aspect::Content)?;
                }
            }
        }
    }
    Some(watches)
}

/// Remembers the answer to a command that planned and found all nodes fresh; nothing is remembered of another plan.
pub fn remember(
    store: &Store,
    asked: &Digest,
    watched: &[Watch],
    plan: &Plan,
    head: &[u8],
    body: &[u8],
) -> Result<(), StoreError> {
    let artifact = |node: &usize| match plan.nodes[*node] {
        State::Hit { artifact, .. } => Some(artifact),
        _ => None,
    };
    match plan.order.iter().map(artifact).collect::<Option<BTreeSet<Digest>>>() {
        Some(artifacts) => store.remember(asked, watched, &artifacts, &plan.records.stamps, head, body),
        None => Ok(()),
    }
}

/// What is remembered of a run, besides its nodes as they are in `run.json`.
#[derive(Debug, Serialize, Deserialize)]
pub struct FreshRun {
    /// Pipeline name.
    pub pipeline: String,
    /// Params after `--set`.
    pub params: BTreeMap<String, Value>,
    /// Nodes asked for, all of them fresh.
    pub nodes: usize,
    /// The table of figures that the run ends with.
    pub table: Option<String>,
}

/// The nodes of a run as text for [`run_fresh`]: a line of JSON each.
pub fn nodes_as_text(nodes: &[RunNode]) -> serde_json::Result<Vec<u8>> {
    let mut text = Vec::new();
    for (at, node) in nodes.iter().enumerate() {
        text.extend(if at == 0 { b"\n    ".as_slice() } else { b",\n    ".as_slice() });
        serde_json::to_writer(&mut text, node)?;
    }
    Ok(text)
}

/// Runs a pipeline of which it was remembered that all is fresh: leaves behind what any run does. Returns the run's id and
/// its wall seconds; `None`, and nothing left behind, if what was remembered turns out to be damaged.
pub fn run_fresh(
    store: &Store,
    fresh: &mut Fresh,
    run: &FreshRun,
    file: &str,
    threads: usize,
    report: &mut dyn FnMut(&Event),
) -> Result<Option<f64>, ExecError> {
    let mut journal = Journal::begin(&run.pipeline, &run.params, store, file)?;
    let section = store.sharing();
    if !journal.end_with(store, &mut |out: &mut dyn Write| fresh.copy_body(out))? {
        journal.undo()?;
        return Ok(None);
    }
    if let Ok(mut index) = Index::open(store) {
        index.add_run(journal.record());
    }
    drop(section);
    let start = Event::Start {
        run: journal.run().to_owned(),
        pipeline: run.pipeline.clone(),
        nodes: run.nodes,
        hits: run.nodes,
        threads,
        likely: BTreeMap::new(),
    };
    let done = Event::Done { ok: true, ran: 0, hits: run.nodes, failed: 0, nodes: Vec::new() };
    for event in [start, done] {
        report(&event);
        journal.write(&event)?;
    }
    journal.flush()?;
    Ok(Some(journal.seconds()))
}
