//! A store of two small runs, for tests of what is shown of it.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::fs;
use crate::graph::key;
use crate::store::{Class, Index, NodeRecord, Reproduces, RunNode, RunRecord, Store};

/// A directory that is removed when dropped, the store in it, and its index. Two iterations of `generate` and
/// `train`; the second run had another learning rate.
pub(crate) fn store() -> (tempfile::TempDir, Store, Index) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("cache")).unwrap();
    let mut index = Index::open(&store).unwrap();
    for (run, lr) in [("20260101-000000-aaaa", 5e-7), ("20260102-000000-bbbb", 1e-6)] {
        let mut nodes = Vec::new();
        let mut model = put(&store, "model", &[("config.json", "{\"hidden_size\": 2}".to_owned())]);
        for iteration in 1..=2 {
            let rows: String =
                (0..7).map(|row| json!({"id": row, "iteration": iteration, "lr": lr}).to_string() + "\n").collect();
            let responses = put(&store, "responses", &[("rows.jsonl", rows)]);
            let metrics = json!({"rows": 7, "tokens": 12_345 * iteration});
            let name = format!("generate@{iteration}");
            let fields = json!({"temperature": 0.7, "stop": [], "top_k": null});
            nodes.push(record(run, &name, "generate", &[("model", model)], fields, metrics, responses));
            model = put(&store, "model", &[("config.json", json!({"trained": lr, "times": iteration}).to_string())]);
            let fields = json!({"optimizer": {"lr": lr, "name": "adamw"}, "steps": 2 * iteration});
            let metrics = json!({"bound": 0.1 * f64::from(iteration) + lr, "kl": 0.01});
            let name = format!("train@{iteration}");
            nodes.push(record(run, &name, "finetune", &[("examples", responses)], fields, metrics, model));
        }
        for node in &nodes {
            store.put_node(node).unwrap();
            index.add_node(node);
        }
        let latest = nodes.iter().map(|node| (node.node.clone(), node.key)).collect();
        index.set_latest("toy", &latest);
        let run = invocation(run, lr, &nodes);
        store.put_run(&run).unwrap();
        index.add_run(&run);
    }
    (folder, store, index)
}

pub(crate) fn put(store: &Store, kind: &str, files: &[(&str, String)]) -> Digest {
    let blob = |(name, text): &(&str, String)| ((*name).to_owned(), store.put_bytes(text.as_bytes()).unwrap());
    store
        .put_manifest(&crate::store::Manifest { kind: kind.to_owned(), files: files.iter().map(blob).collect() })
        .unwrap()
}

/// Lets a run have told something, and go on as long as what is returned is kept.
pub(crate) fn hold(store: &Store, run: &str, told: &str) -> fs::Writer {
    let mut events = fs::writer(&store.run_dir(run).join("events.jsonl")).unwrap();
    events.write_all(told.as_bytes()).unwrap();
    events.hold().unwrap();
    events
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

pub(crate) fn record(
    run: &str,
    node: &str,
    kind: &str,
    inputs: &[(&str, Digest)],
    fields: Value,
    metrics: Value,
    artifact: Digest,
) -> NodeRecord {
    let inputs: BTreeMap<String, Digest> = inputs.iter().map(|(field, id)| ((*field).to_owned(), *id)).collect();
    let preimage = json!({"kind": kind, "version": 1, "fields": fields, "inputs": inputs});
    NodeRecord {
        format: 1,
        key: key::key(&preimage),
        node: node.to_owned(),
        pipeline: "toy".to_owned(),
        kind: kind.to_owned(),
        artifact,
        preimage,
        inputs,
        sources: BTreeMap::new(),
        metrics: map(metrics),
        run: run.to_owned(),
        attempt: 1,
        started: format!("{}-{}-{}T00:00:01.5Z", &run[..4], &run[4..6], &run[6..8]),
        seconds: 1.25,
        usage: None,
        host: "here".to_owned(),
        device: "cpu".to_owned(),
        class: Some(Class { reproduces: Reproduces::BitExact, on: "cpu".into() }),
        equal_to_within: None,
        version: "0.1.0".to_owned(),
    }
}

fn invocation(run: &str, lr: f64, nodes: &[NodeRecord]) -> RunRecord {
    let day = format!("{}-{}-{}", &run[..4], &run[4..6], &run[6..8]);
    let node = |record: &NodeRecord| RunNode {
        name: record.node.clone(),
        kind: record.kind.clone(),
        state: if record.node == "generate@1" && lr > 5e-7 { "hit" } else { "ran" }.to_owned(),
        key: Some(record.key),
        artifact: Some(record.artifact),
        seconds: record.seconds,
        metrics: record.metrics.clone(),
    };
    RunRecord {
        run: run.to_owned(),
        pipeline: "toy".to_owned(),
        file: "pipelines/toy.toml".to_owned(),
        params: BTreeMap::from([("lr".to_owned(), json!(lr)), ("name".to_owned(), json!("x"))]),
        started: format!("{day}T00:00:00Z"),
        finished: Some(format!("{day}T00:02:05Z")),
        ok: Some(true),
        nodes: nodes.iter().map(node).collect(),
    }
}
