//! Which artifacts of a run say how likely a model finds responses, and which model.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::digest::Digest;
use crate::inspect::name::Name;
use crate::store::{Index, NodeRecord, Store, StoreError};

/// Artifacts that are looked into.
const MOST: usize = 48;
/// Kinds whose rows have matrices.
const KINDS: [&str; 2] = ["score", "evaluate"];
/// More than a pipeline has nodes.
const NODES: usize = 1 << 24;

/// An artifact with matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// The artifact.
    pub artifact: Digest,
    /// The node that made it.
    pub node: String,
    /// The models by the name of the candidate, which is empty in what `score` made.
    models: BTreeMap<String, Asked>,
}

/// A model that was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    /// What it is called: the node that made it, or what the pipeline calls it.
    pub model: String,
    /// Its artifact, if that is known.
    pub artifact: Option<Digest>,
    /// Its name among the candidates of an evaluation.
    pub candidate: String,
    /// The iteration that made it; 0 of one that none made.
    pub iteration: u64,
    /// Its place among the models: by iteration, and then as the nodes of the pipeline are ordered.
    pub order: usize,
}

impl Source {
    /// The model behind a candidate.
    pub fn asked(&self, candidate: &str) -> Asked {
        self.models.get(candidate).cloned().unwrap_or_else(|| Asked {
            model: if candidate.is_empty() { self.node.clone() } else { candidate.to_owned() },
            artifact: None,
            candidate: candidate.to_owned(),
            iteration: 0,
            order: usize::MAX,
        })
    }
}

/// The artifact itself, and those that other nodes of its run made that score responses, in the order of the pipeline. The run
/// is the one that is named, or else the latest that made the artifact; of one that goes on still it is what its pipeline
/// made last.
pub fn sources(store: &Store, index: &Index, artifact: &Digest, run: Option<&str>) -> Result<Vec<Source>, StoreError> {
    let maker = index.makers(artifact).into_iter().next();
    let record = maker.map(|maker| store.node(&maker.key)).transpose()?.flatten();
    let run = match run.or(record.as_ref().map(|record| record.run.as_str())) {
        Some(run) if is_name(run) => store.run(run)?,
        _ => None,
    };
    let mut nodes: Vec<(String, Digest, Option<String>)> = Vec::new();
    match run {
        Some(run) if !run.nodes.is_empty() => {
            nodes.extend(run.nodes.into_iter().filter_map(|node| Some((node.name, node.key?, Some(node.kind)))));
        }
        _ => {
            let pipeline = record.as_ref().map(|record| record.pipeline.as_str()).unwrap_or_default();
            let latest = index.latest_keys(pipeline).into_iter();
            nodes.extend(latest.map(|(name, key)| (name, key, index.kind_of(&key))));
            nodes.sort();
        }
    }
    let order: BTreeMap<&str, usize> =
        nodes.iter().enumerate().map(|(at, (name, ..))| (name.as_str(), at + 1)).collect();
    let cell = record.as_ref().map(|record| Name::of(&record.node).cell.to_owned());
    let mut found: Vec<Source> = Vec::new();
    for (name, key, kind) in &nodes {
        // Cells of a matrix of settings are each by themselves.
        let beside = cell.as_ref().is_none_or(|cell| ["", cell].contains(&Name::of(name).cell));
        if found.len() == MOST || !beside || !kind.as_deref().is_some_and(|kind| KINDS.contains(&kind)) {
            continue;
        }
        if let Some(record) = store.node(key)? {
            found.push(source(index, &record, &order));
        }
    }
    if !found.iter().any(|source| source.artifact == *artifact) {
        found.push(match &record {
            Some(record) => source(index, record, &order),
            None => Source { artifact: *artifact, node: artifact.short(), models: BTreeMap::new() },
        });
    }
    Ok(found)
}

/// Whether this can be the name of a directory of a run.
fn is_name(run: &str) -> bool {
    !run.is_empty() && run.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn source(index: &Index, record: &NodeRecord, order: &BTreeMap<&str, usize>) -> Source {
    let mut models = BTreeMap::new();
    for (field, id) in &record.inputs {
        let candidate = match field.strip_prefix("candidates.") {
            Some(name) => name,
            None if field == "model" => "",
            None => continue,
        };
        let makers = index.makers(id);
        let maker = makers.iter().find(|maker| maker.pipeline == record.pipeline).or(makers.first());
        let model = match (maker, record.sources.get(field)) {
            (Some(maker), _) => maker.node.clone(),
            (None, Some(source)) => source.split_once(':').map_or(source.as_str(), |(_, name)| name).to_owned(),
            (None, None) => id.short(),
        };
        let iteration = Name::of(&model).iteration.unwrap_or(0);
        let order = iteration as usize * NODES + order.get(model.as_str()).copied().unwrap_or(0);
        let asked = Asked { model, artifact: Some(*id), candidate: candidate.to_owned(), iteration, order };
        models.insert(candidate.to_owned(), asked);
    }
    Source { artifact: record.artifact, node: record.node.clone(), models }
}
