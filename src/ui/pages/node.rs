//! `/node`: a node of a pipeline: what it is made of, why it is stale, what it made, what it said, what it cost.

use serde::Serialize;
use serde_json::Value;

use crate::digest::Digest;
use crate::exec;
use crate::inspect::attempts::{self, Attempt};
use crate::inspect::dag::Item;
use crate::inspect::reasons::{self, Told};
use crate::inspect::story;
use crate::pipeline::Target;
use crate::store::{Index, NodeRecord, Store};
use crate::ui::html::{Page, Tab};
use crate::ui::pipelines::{Planned, tail};
use crate::ui::query::Query;
use crate::ui::{Problem, Site};

/// Runs of the pipeline that are looked through for attempts.
const RUNS: usize = 20;
/// Attempts that are listed.
const ATTEMPTS: usize = 12;
/// Bytes of the log that are shown.
const LOG: u64 = 16 << 10;
/// Steps of an explanation that are shown.
const STEPS: usize = 40;
/// Nodes below that are listed.
const BELOW: usize = 40;
/// Longest value of a field that is shown; what is longer is in the file.
const LONGEST: usize = 2000;

/// What a node takes.
#[derive(Debug, Serialize)]
struct Taken {
    field: String,
    /// The node, dataset or model.
    from: String,
    is_node: bool,
    artifact: Option<Digest>,
    /// Type and bytes of the artifact, if it is there.
    kind: String,
    bytes: Option<u64>,
}

/// What it made.
#[derive(Debug, Serialize)]
struct Made {
    id: Digest,
    kind: String,
    bytes: Option<u64>,
    files: usize,
    /// Whether the cache has it.
    is_here: bool,
}

/// The page.
pub(super) fn page(site: &Site, query: &Query) -> Result<Page, Problem> {
    let (store, mut index) = site.open()?;
    let (pipeline, name) = asked(&store, query)?;
    let known = site.known_as(&store, &index, &pipeline)?;
    let planned = site.planned(&store, &mut index, &known, query.get("params") == Some("run"))?;
    let at = planned.dag.items.iter().position(|item| item.name == name && !item.is_source);
    let at = at.ok_or_else(|| Problem::absent(format!("the pipeline `{pipeline}` has no node `{name}`")))?;
    let item = &planned.dag.items[at];
    let record = latest(&store, &index, item, planned.pipeline.as_ref().map_or(&pipeline, |pipeline| &pipeline.name))?;
    let node = planned.pipeline.as_ref().and_then(|pipeline| pipeline.nodes.get(at));
    let attempts =
        found(&store, &index, &planned, known.latest.as_ref().map(|run| run.run.as_str()), &pipeline, &name)?;
    let log = attempts.iter().find(|attempt| attempt.has_log);
    let told = planned.story.as_ref().and_then(|story| story.told.get(&name));
    let is_current = record.as_ref().is_some_and(|record| item.key.is_none_or(|key| key == record.key));
    let fields = match (node, &record) {
        (Some(node), _) => node.spec.fields(),
        (None, Some(record)) => record.preimage.get("fields").cloned().unwrap_or_default(),
        (None, None) => Value::Null,
    };
    let page = Page::new(Tab::Pipeline, name.as_str(), "node.html")
        .with("pipeline", &pipeline)
        .with("params", &query.get("params"))
        .with("node", item)
        .with("running", &told.filter(|told| told.state == "running"))
        .with("left", &told.and_then(story::Told::left))
        .with("shards_done", &told.map(story::Told::shards_done))
        .with("why", &why(&store, &index, &planned, at)?)
        .with("recipe", &flat(&fields))
        .with("run_fields", &node.map(|node| flat(&serde_json::to_value(&*node.run).unwrap_or_default())))
        .with("inputs", &inputs(&store, &index, &planned, at, record.as_ref())?)
        .with("below", &below(&planned, at))
        .with("record", &record)
        .with("class", &record.as_ref().and_then(|record| record.class.as_ref()).map(ToString::to_string))
        .with("price", &record.as_ref().map(NodeRecord::price))
        .with("is_current", &is_current)
        .with("made", &record.as_ref().map(|record| made(&store, &record.artifact)))
        .with("log", &log.map(|attempt| tail(&attempt.log, None, LOG)).transpose()?)
        .with("log_of", &log)
        .with("attempts", &attempts);
    Ok(page)
}

/// The pipeline and the node that are asked for, by name or by key.
fn asked(store: &Store, query: &Query) -> Result<(String, String), Problem> {
    if let Some(key) = query.get("key") {
        let key: Digest = key.parse().map_err(|_| Problem::request(format!("`{key}` is no key of a node")))?;
        let record =
            store.node(&key)?.ok_or_else(|| Problem::absent(format!("the cache has no node {}", key.short())))?;
        return Ok((record.pipeline, record.node));
    }
    Ok((query.need("pipeline")?.to_owned(), query.need("name")?.to_owned()))
}

/// The record of a node's key, or else of its latest work.
fn latest(store: &Store, index: &Index, item: &Item, pipeline: &str) -> Result<Option<NodeRecord>, Problem> {
    if let Some(record) = item.key.map(|key| store.node(&key)).transpose()?.flatten() {
        return Ok(Some(record));
    }
    let keys = index.keys_of_node(pipeline, &item.name, 1);
    Ok(keys.first().map(|key| store.node(key)).transpose()?.flatten())
}

fn why(store: &Store, index: &Index, planned: &Planned, at: usize) -> Result<Vec<Told>, Problem> {
    let (Some(pipeline), Some(plan)) = (&planned.pipeline, &planned.plan) else { return Ok(Vec::new()) };
    if matches!(plan.nodes.get(at), None | Some(exec::State::Hit { .. } | exec::State::Outside)) {
        return Ok(Vec::new());
    }
    let steps = exec::why(pipeline, store, index, plan, at)?;
    Ok(steps.iter().take(STEPS).map(reasons::told).collect())
}

fn inputs(
    store: &Store,
    index: &Index,
    planned: &Planned,
    at: usize,
    record: Option<&NodeRecord>,
) -> Result<Vec<Taken>, Problem> {
    let taken = |field: &str, from: String, is_node: bool, artifact: Option<Digest>| {
        let manifest = artifact.and_then(|id| store.manifest(&id).ok());
        Taken {
            field: field.to_owned(),
            from,
            is_node,
            artifact,
            bytes: manifest.as_ref().map(crate::store::Manifest::size),
            kind: manifest.map(|manifest| manifest.kind).unwrap_or_default(),
        }
    };
    let of = |field: &str| record.and_then(|record| record.inputs.get(field)).copied();
    if let Some(pipeline) = &planned.pipeline {
        let each = |link: &crate::pipeline::Link| {
            let field = link.field.path.as_str();
            match &link.target {
                Target::Node(from) => {
                    let artifact = planned.dag.items[*from].artifact.or_else(|| of(field));
                    taken(field, pipeline.nodes[*from].name.clone(), true, artifact)
                }
                Target::Model(name) => taken(field, format!("model {name}"), false, of(field)),
                Target::Dataset(name) => taken(field, format!("dataset {name}"), false, of(field)),
            }
        };
        return Ok(pipeline.nodes[at].links.iter().map(each).collect());
    }
    let Some(record) = record else { return Ok(Vec::new()) };
    let each = |(field, id): (&String, &Digest)| match record.sources.get(field) {
        Some(source) => taken(field, source.replacen(':', " ", 1), false, Some(*id)),
        None => {
            let maker = index.makers(id).into_iter().next();
            let (name, is_node) = maker.map_or((String::new(), false), |maker| (maker.node, true));
            taken(field, name, is_node, Some(*id))
        }
    };
    Ok(record.inputs.iter().map(each).collect())
}

/// Names of the nodes that take what this one makes.
fn below(planned: &Planned, at: usize) -> Vec<String> {
    let takers = planned.dag.arrows.iter().filter(|(from, _)| *from == at);
    takers.take(BELOW).map(|(_, to)| planned.dag.items[*to].name.clone()).collect()
}

fn made(store: &Store, id: &Digest) -> Made {
    let manifest = store.manifest(id).ok();
    Made {
        id: *id,
        is_here: manifest.is_some(),
        bytes: manifest.as_ref().map(crate::store::Manifest::size),
        files: manifest.as_ref().map_or(0, |manifest| manifest.files.len()),
        kind: manifest.map(|manifest| manifest.kind).unwrap_or_default(),
    }
}

/// The attempts at the node in the latest runs, the last one first.
fn found(
    store: &Store,
    index: &Index,
    planned: &Planned,
    latest: Option<&str>,
    pipeline: &str,
    node: &str,
) -> Result<Vec<Attempt>, Problem> {
    let mut runs = index.runs_of(pipeline, RUNS);
    if let Some(latest) = latest
        && !runs.iter().any(|run| run == latest)
    {
        runs.insert(0, latest.to_owned());
    }
    let mut all = Vec::new();
    for run in runs {
        let story = planned.story.as_ref().filter(|_| Some(run.as_str()) == latest);
        all.extend(attempts::of(store, &run, node, story)?);
        if all.len() >= ATTEMPTS {
            break;
        }
    }
    all.truncate(ATTEMPTS);
    Ok(all)
}

/// The fields of a recipe that say something, by dotted path.
fn flat(fields: &Value) -> Vec<(String, String)> {
    fn walk(path: &str, value: &Value, told: &mut Vec<(String, String)>) {
        match value {
            Value::Null => {}
            Value::Object(fields) => {
                for (name, value) in fields {
                    walk(&if path.is_empty() { name.clone() } else { format!("{path}.{name}") }, value, told);
                }
            }
            Value::Array(items) if items.is_empty() => {}
            value => {
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let cut = text.char_indices().nth(LONGEST).map(|(end, _)| end);
                told.push((path.to_owned(), cut.map_or(text.clone(), |end| format!("{}…", &text[..end]))));
            }
        }
    }
    let mut told = Vec::new();
    walk("", fields, &mut told);
    told
}
