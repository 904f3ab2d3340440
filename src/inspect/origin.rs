//! How what a run made came about: of each node the work that made its artifact and what that took; and what it takes to do it again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use indexmap::IndexMap;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::shell::quoted;
use crate::store::{NodeRecord, RunRecord, Store, StoreError};

/// Letters of a param that is worth typing.
const TYPED: usize = 80;

/// The work that made a node's artifact.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Origin {
    /// The node's name in the run.
    pub node: String,
    /// Its kind.
    pub kind: String,
    /// The key.
    pub key: Digest,
    /// The artifact.
    pub artifact: Digest,
    /// What it took.
    pub takes: Vec<Taken>,
    /// The fields that say something.
    pub fields: Vec<(String, Value)>,
    /// The run that did the work, if that is another one.
    pub elsewhere: Option<String>,
    /// Wall seconds.
    pub seconds: f64,
    /// What may be expected of doing it again, in words; not known of older versions.
    pub again: Option<String>,
}

/// An input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Taken {
    /// The field.
    pub field: String,
    /// The artifact.
    pub artifact: Digest,
    /// The node that made it, or the name of the dataset or model; empty if neither is known.
    pub from: String,
}

/// What a run stood on.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Origins {
    /// Its nodes, in their order; those whose records are gone are left out.
    pub nodes: Vec<Origin>,
    /// Nodes whose records are gone, or that made nothing.
    pub missing: Vec<String>,
    /// Datasets and models that came from outside, by name, and what of each was taken.
    pub sources: BTreeMap<String, BTreeSet<Digest>>,
    /// Machines, with their devices.
    pub machines: BTreeSet<String>,
    /// Versions of sami.
    pub versions: BTreeSet<String>,
}

/// Looks up how a run's nodes came about.
///
/// Errs if the disk does.
pub fn of_run(store: &Store, run: &RunRecord) -> Result<Origins, StoreError> {
    let makers: HashMap<Digest, &str> =
        run.nodes.iter().rev().filter_map(|node| Some((node.artifact?, node.name.as_str()))).collect();
    let mut origins = Origins::default();
    for node in &run.nodes {
        let record = node.key.map(|key| store.node(&key)).transpose()?.flatten();
        let Some(record) = record.filter(|_| node.artifact.is_some()) else {
            origins.missing.push(node.name.clone());
            continue;
        };
        origins.machines.insert(format!("{} ({})", record.host, record.device));
        origins.versions.insert(record.version.clone());
        for (field, source) in &record.sources {
            let taken = record.inputs.get(field).copied();
            origins.sources.entry(source.clone()).or_default().extend(taken);
        }
        origins.nodes.push(origin(&node.name, run, record, &makers));
    }
    Ok(origins)
}

fn origin(node: &str, run: &RunRecord, record: NodeRecord, makers: &HashMap<Digest, &str>) -> Origin {
    let from = |field: &str, id: &Digest| match (makers.get(id), record.sources.get(field)) {
        (Some(maker), _) if *maker != node => (*maker).to_owned(),
        (_, Some(source)) => source.clone(),
        _ => String::new(),
    };
    let taken = |(field, id): (&String, &Digest)| Taken { field: field.clone(), artifact: *id, from: from(field, id) };
    Origin {
        node: node.to_owned(),
        kind: record.kind.clone(),
        key: record.key,
        artifact: record.artifact,
        takes: record.inputs.iter().map(taken).collect(),
        fields: fields(&record.preimage),
        elsewhere: (record.run != run.run).then(|| record.run.clone()),
        seconds: record.seconds,
        again: record.class.as_ref().map(ToString::to_string),
    }
}

/// The fields of a preimage that say something: inputs, which are told by their ids, leave holes in them.
pub fn fields(preimage: &Value) -> Vec<(String, Value)> {
    let fields = preimage.get("fields").and_then(Value::as_object);
    let fields = fields.into_iter().flatten().map(|(name, value)| (name.clone(), without_holes(value)));
    fields.filter(|(_, value)| !is_empty(value)).collect()
}

fn without_holes(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), without_holes(value)));
            Value::Object(fields.filter(|(_, value)| !is_empty(value)).collect::<Map<String, Value>>())
        }
        other => other.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

/// The command that does what a run did, and the params that are too long to type: they stand in the pipeline file.
pub fn command(run: &RunRecord) -> (String, Vec<String>) {
    let mut command = format!("sami run {}", quoted(&run.file));
    let mut in_file = Vec::new();
    for (name, value) in &run.params {
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Object(_) | Value::Null => String::new(),
            other => other.to_string(),
        };
        let typed =
            !value.is_object() && !value.is_null() && text.chars().count() <= TYPED && !text.contains(char::is_control);
        if typed {
            command.push_str(&format!(" --set {}", quoted(&format!("{name}={text}"))));
        } else {
            in_file.push(name.clone());
        }
    }
    (command, in_file)
}

/// How many nodes of each kind there are, in the order of the first of each.
pub fn kinds(run: &RunRecord) -> IndexMap<String, usize> {
    let mut kinds = IndexMap::new();
    run.nodes.iter().for_each(|node| *kinds.entry(node.kind.clone()).or_default() += 1);
    kinds
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::sample;
    use super::*;

    #[test]
    fn what_a_run_took_is_told_by_name() {
        let (_folder, store, _) = sample::store();
        let run = store.runs().unwrap().pop().unwrap();
        let origins = of_run(&store, &run).unwrap();
        let told: Vec<(&str, &str, &str)> = origins
            .nodes
            .iter()
            .flat_map(|node| {
                node.takes.iter().map(|taken| (node.node.as_str(), taken.field.as_str(), taken.from.as_str()))
            })
            .collect();
        assert_eq!(told[1], ("train@1", "examples", "generate@1"));
        assert_eq!(told[2], ("generate@2", "model", "train@1"));
        assert_eq!(origins.machines.iter().collect::<Vec<_>>(), ["here (cpu)"]);
        assert_eq!(origins.nodes[0].fields, [("temperature".to_owned(), json!(0.7))], "holes say nothing");
        let mut lost = run.clone();
        lost.nodes[0].key = Some(Digest::of(b"gone"));
        assert_eq!(of_run(&store, &lost).unwrap().missing, ["generate@1"]);
        assert_eq!(kinds(&run)["generate"], 2);
    }

    #[test]
    fn the_command_can_be_typed() {
        let (_folder, store, _) = sample::store();
        let mut run = store.runs().unwrap().remove(0);
        run.params = [
            ("lr", json!(5e-7)),
            ("name", json!("it's \"x\"")),
            ("seeds", json!([0, 1])),
            ("words", json!("a\nb")),
            ("table", json!({"a": 1})),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        let (command, in_file) = command(&run);
        assert_eq!(
            command,
            r#"sami run pipelines/toy.toml --set lr=5e-7 --set 'name=it'\''s "x"' --set 'seeds=[0,1]'"#
        );
        assert_eq!(in_file, ["table", "words"]);
    }
}
