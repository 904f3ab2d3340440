//! Another cache that is a store beside this one: no network, no process.

use std::path::PathBuf;
use std::sync::Mutex;

use super::*;
use crate::exec::{PlanOptions, plan, toy};
use crate::graph;
use crate::store::{Manifest, NodeRecord, StoreError};

/// A store of records, which counts what it is asked, and may fail to bring.
#[derive(Debug)]
struct Other {
    here: PathBuf,
    there: Store,
    asked: Mutex<Vec<usize>>,
    brought: Mutex<Vec<String>>,
    lacks: Vec<&'static str>,
}

impl Elsewhere for Other {
    fn look(&self, keys: &[Digest]) -> HashMap<Digest, Digest> {
        self.asked.lock().unwrap().push(keys.len());
        keys.iter().filter_map(|key| Some((*key, self.there.node(key).unwrap()?.artifact))).collect()
    }

    fn bring(&self, keys: &[Digest]) {
        let here = Store::open(&self.here).unwrap();
        for record in keys.iter().map(|key| self.there.node(key).unwrap().unwrap()) {
            if self.lacks.contains(&record.node.as_str()) {
                continue;
            }
            copy(&self.there, &here, &record).unwrap();
            self.brought.lock().unwrap().push(record.node);
        }
    }
}

fn copy(from: &Store, to: &Store, record: &NodeRecord) -> Result<(), StoreError> {
    for path in from.files(&record.artifact)?.values() {
        to.put_file(path)?;
    }
    to.put_manifest(&from.manifest(&record.artifact)?)?;
    to.put_node(record).map(drop)
}

/// Does all of a pipeline in a store, each node making a file with its name.
fn complete(pipeline: &Pipeline, graph: &Graph, store: &Store) {
    let mut index = Index::open(store).unwrap();
    let mut plan = plan(pipeline, graph, store, &mut index, &PlanOptions::default()).unwrap();
    for at in 0..plan.order.len() {
        let node = plan.order[at];
        let State::Run { key, .. } = plan.state(pipeline, store, &mut index, node).unwrap() else { continue };
        let recipe = plan.recipe(pipeline, node);
        let name = pipeline.nodes[node].name.clone();
        let blob = store.put_bytes(name.as_bytes()).unwrap();
        let artifact = store.put_manifest(&Manifest { kind: "files".into(), files: [("out".to_owned(), blob)].into() });
        let artifact = artifact.unwrap();
        // As text, so that fields which may be absent need not be named here.
        let record: NodeRecord = serde_json::from_value(serde_json::json!({
            "format": 1, "key": key, "node": name, "pipeline": pipeline.name, "kind": "command",
            "artifact": artifact, "preimage": recipe.preimage, "inputs": recipe.inputs, "metrics": {},
            "run": "20260101-000000-aaaa", "attempt": 1, "started": "2026-01-01T00:00:00Z", "seconds": 1.0,
            "host": "there", "device": "cpu", "version": "0.1.0",
        }))
        .unwrap();
        store.put_node(&record).unwrap();
        plan.nodes[node] = State::Hit { key, artifact };
    }
}

/// `a → b → c → d`, and `x` that nothing is known of elsewhere if its program differs.
fn chain(last: &str) -> String {
    let node = |name: &str, program: &str, input: &str| {
        let inputs = if input.is_empty() { String::new() } else { format!("inputs = {{ {input} = \"{input}\" }}\n") };
        format!("[nodes.{name}]\nkind = \"command\"\nprogram = \"{program}\"\n{inputs}")
    };
    [node("a", "true", ""), node("b", "true", "a"), node("c", "true", "b"), node("d", last, "c")].concat()
}

struct Case {
    _folder: tempfile::TempDir,
    other: Other,
    store: Store,
}

fn case(lacks: &[&'static str]) -> Case {
    let folder = tempfile::tempdir().unwrap();
    let (here, there) = (folder.path().join("here"), folder.path().join("there"));
    let (store, there) = (Store::open(&here).unwrap(), Store::open(&there).unwrap());
    let pipeline = toy::load(&chain("true"));
    complete(&pipeline, &graph::build(&pipeline).unwrap(), &there);
    let other = Other { here, there, asked: Mutex::default(), brought: Mutex::default(), lacks: lacks.to_vec() };
    Case { _folder: folder, other, store }
}

/// What is brought for a chain that ends so, for these targets, and the states of its nodes after that.
fn brought(case: &Case, last: &str, targets: &[&str]) -> (Vec<String>, String) {
    let pipeline = toy::load(&chain(last));
    let graph = graph::build(&pipeline).unwrap();
    let mut index = Index::open(&case.store).unwrap();
    let targets: Vec<String> = targets.iter().map(|target| (*target).to_owned()).collect();
    let options = PlanOptions { targets: targets.clone(), ..PlanOptions::default() };
    let mut plan = plan(&pipeline, &graph, &case.store, &mut index, &options).unwrap();
    bring(&pipeline, &graph, &case.store, &mut index, &mut plan, &targets, &case.other).unwrap();
    let states = plan.nodes.iter().map(|state| match state {
        State::Hit { .. } => 'h',
        State::Run { .. } => 'r',
        State::Unknown { .. } => 'u',
        State::Outside => '-',
    });
    let mut names = std::mem::take(&mut *case.other.brought.lock().unwrap());
    names.sort();
    (names, states.collect())
}

#[test]
fn all_is_brought_if_nothing_is_named() {
    let case = case(&[]);
    let (names, states) = brought(&case, "true", &[]);
    assert_eq!((names.join(" "), states.as_str()), ("a b c d".to_owned(), "hhhh"));
    assert_eq!(*case.other.asked.lock().unwrap(), [1, 1, 1, 1]);
    // Now it is here, and nothing is asked.
    assert_eq!(brought(&case, "true", &[]), (Vec::new(), "hhhh".to_owned()));
    assert_eq!(case.other.asked.lock().unwrap().len(), 4);
}

#[test]
fn what_lies_between_stays_where_it_is() {
    let (names, states) = brought(&case(&[]), "true", &["d"]);
    assert_eq!((names.join(" "), states.as_str()), ("d".to_owned(), "hhhh"));
    // What runs takes its input.
    let (names, states) = brought(&case(&[]), "false", &["d"]);
    assert_eq!((names.join(" "), states.as_str()), ("c".to_owned(), "hhhr"));
    let (names, states) = brought(&case(&[]), "true", &["b"]);
    assert_eq!((names.join(" "), states.as_str()), ("b".to_owned(), "hh--"));
}

#[test]
fn what_cannot_be_brought_runs_and_so_does_what_it_needs() {
    let (names, states) = brought(&case(&["c"]), "false", &["d"]);
    // `c` runs, so `b` is taken; what becomes of `d` shows then.
    assert_eq!((names.join(" "), states.as_str()), ("b".to_owned(), "hhru"));
    let (names, states) = brought(&case(&["a", "b", "c", "d"]), "true", &[]);
    assert_eq!((names.join(" "), states.as_str()), (String::new(), "ruuu"));
    let (names, states) = brought(&case(&["d"]), "true", &["d"]);
    assert_eq!((names.join(" "), states.as_str()), ("c".to_owned(), "hhhr"));
}

#[test]
fn what_is_forced_is_not_looked_for() {
    let case = case(&[]);
    let pipeline = toy::load(&chain("true"));
    let graph = graph::build(&pipeline).unwrap();
    let mut index = Index::open(&case.store).unwrap();
    let options = PlanOptions { force: vec!["a".to_owned()], ..PlanOptions::default() };
    let mut plan = plan(&pipeline, &graph, &case.store, &mut index, &options).unwrap();
    bring(&pipeline, &graph, &case.store, &mut index, &mut plan, &[], &case.other).unwrap();
    assert!(case.other.asked.lock().unwrap().is_empty());
    assert!(matches!(plan.nodes[1], State::Unknown { .. }));
}

#[test]
fn nodes_are_looked_for_beside_the_loop_many_at_once() {
    let case = case(&[]);
    let keys = case.other.there.node_keys().unwrap();
    let (sender, inbox) = channel();
    let here = case.other.here.clone();
    let mut seeker = Seeker::new(Some(Arc::new(case.other)));
    for (node, key) in keys.iter().enumerate() {
        assert!(seeker.seek(node, *key, &sender).unwrap());
    }
    let mut nodes = Vec::new();
    while seeker.is_open() {
        let Ok(Message::Sought { nodes: found }) = inbox.recv() else { panic!("another message") };
        seeker.found(&found);
        nodes.extend(found);
    }
    nodes.sort_unstable();
    assert_eq!(nodes, [0, 1, 2, 3]);
    assert_eq!(Store::open(&here).unwrap().node_keys().unwrap(), keys);
    assert!(!Seeker::new(None).seek(0, keys[0], &sender).unwrap());
}
