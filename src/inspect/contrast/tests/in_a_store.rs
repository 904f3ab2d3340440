//! Models beside each other: what the artifacts of a run say of one query.

use std::collections::BTreeMap;

use super::*;
use crate::graph::key;
use crate::store::{Manifest, NodeRecord, RunNode, RunRecord};

const RUN: &str = "20260101-000000-aaaa";

struct Made {
    store: Store,
    index: Index,
    records: Vec<NodeRecord>,
    _folder: tempfile::TempDir,
}

impl Made {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let index = Index::open(&store).unwrap();
        Self { store, index, records: Vec::new(), _folder: folder }
    }

    fn put(&self, kind: &str, file: &str, text: &str) -> Digest {
        let files = BTreeMap::from([(file.to_owned(), self.store.put_bytes(text.as_bytes()).unwrap())]);
        self.store.put_manifest(&Manifest { kind: kind.to_owned(), files }).unwrap()
    }

    fn node(&mut self, name: &str, kind: &str, inputs: &[(&str, Digest)], artifact: Digest) -> Digest {
        let inputs: BTreeMap<String, Digest> = inputs.iter().map(|(field, id)| ((*field).to_owned(), *id)).collect();
        let preimage = json!({"kind": kind, "version": 1, "fields": {"name": name}, "inputs": inputs});
        let record = json!({"format": 1, "key": key::key(&preimage), "node": name, "pipeline": "toy", "kind": kind,
            "artifact": artifact, "preimage": preimage, "inputs": inputs, "metrics": {}, "run": RUN, "attempt": 1,
            "started": "2026-01-01T00:00:01Z", "seconds": 1.0, "host": "here", "device": "cpu", "version": "0.1.0"});
        let record: NodeRecord = serde_json::from_value(record).unwrap();
        self.store.put_node(&record).unwrap();
        self.index.add_node(&record);
        self.index.set_latest("toy", &BTreeMap::from([(name.to_owned(), record.key)]));
        self.records.push(record);
        artifact
    }

    fn end(&mut self) {
        let node = |record: &NodeRecord| RunNode {
            name: record.node.clone(),
            kind: record.kind.clone(),
            state: "ran".into(),
            key: Some(record.key),
            artifact: Some(record.artifact),
            seconds: 1.0,
            metrics: serde_json::Map::new(),
        };
        let run = RunRecord {
            run: RUN.into(),
            pipeline: "toy".into(),
            file: "toy.toml".into(),
            params: BTreeMap::new(),
            started: "2026-01-01T00:00:00Z".into(),
            finished: None,
            ok: None,
            nodes: self.records.iter().map(node).collect(),
        };
        self.store.put_run(&run).unwrap();
        self.index.add_run(&run);
    }

    fn case(&self, artifact: Digest, row: &str) -> Case {
        case(&self.store, &self.index, &artifact, row, None).unwrap().unwrap()
    }
}

/// A row of an evaluation: the base model and one that was trained.
fn judged(id: &str, sami: Value) -> String {
    let part =
        |cells: Value, text: &str| json!({"logprobs": cells, "responses": [{"text": text}, {"text": "c"}], "win": 0.5});
    json!({"id": id, "query": format!("q {id}"), "constitutions": [{"text": "be brief ."}, {"text": "be long ."}],
        "candidates": {"base": part(json!([[-1.0, -1.0], [-1.0, -1.0]]), "b"), "sami": part(sami, "s")}})
    .to_string()
}

#[test]
fn models_stand_beside_each_other_in_the_order_in_which_they_were_made() {
    let mut made = Made::new();
    let base = made.put("model", "config.json", "{}");
    let base = made.node("base", "finetune", &[], base);
    let mut evaluations = Vec::new();
    let mut models = vec![base];
    for iteration in [10, 2] {
        let model = made.put("model", "config.json", &format!("{{\"n\":{iteration}}}"));
        let model = made.node(&format!("finetune@{iteration}"), "finetune", &[], model);
        models.push(model);
        let rows = [judged("0", json!([[-1.0, -f64::from(iteration)], [-5.0, -1.0]])), judged("1", json!([[null]]))];
        let evaluation = made.put("evaluation", "rows.jsonl", &rows.join("\n"));
        let inputs = [("candidates.base", base), ("candidates.sami", model)];
        evaluations.push(made.node(&format!("evaluate@{iteration}"), "evaluate", &inputs, evaluation));
    }
    // Another query with an id that is there, too, and one that is scored with the same responses.
    let other = judged("0", json!([[0.0]])).replace("q 0", "another");
    let other = made.put("evaluation", "rows.jsonl", &other);
    made.node("other", "evaluate", &[("candidates.sami", models[1])], other);
    let row = judged("0", json!([[-1.0, -2.0], [-5.0, -1.0]]));
    let told = |made: &Made| -> Vec<String> {
        let case = made.case(evaluations[1], &row);
        assert!(case.unlooked.is_empty() && case.query == "q 0" && case.constitutions == ["be brief .", "be long ."]);
        let by = |panel: &Panel| panel.by.iter().map(|(_, node)| node.clone()).collect::<Vec<_>>().join("+");
        case.panels
            .iter()
            .map(|panel| format!("{} {} {}", panel.asked.model, panel.asked.iteration, by(panel)))
            .collect()
    };
    // While the run goes on, and when it has ended.
    assert_eq!(told(&made), ["base 0 evaluate@10+evaluate@2", "finetune@2 2 evaluate@2", "finetune@10 10 evaluate@10"]);
    made.end();
    assert_eq!(told(&made), ["base 0 evaluate@10+evaluate@2", "finetune@2 2 evaluate@2", "finetune@10 10 evaluate@10"]);
    let damaged = made.case(evaluations[0], &judged("1", json!([[null]])));
    assert_eq!(
        damaged.panels.iter().filter_map(|panel| panel.why.as_deref()).next(),
        Some("1 of 1 cells are no finite number")
    );
}

#[test]
fn an_artifact_that_no_node_made_stands_alone() {
    let made = Made::new();
    let artifact = made.put("scores", "rows.jsonl", "");
    let case = made.case(artifact, &scored("0", json!([[-1.0, -2.0], [-5.0, -1.0]])));
    assert_eq!(case.panels.len(), 1);
    assert_eq!(case.panels[0].by, [(artifact, artifact.short())]);
    assert!(super::super::case(&made.store, &made.index, &artifact, "no row", None).unwrap().is_none());
}
