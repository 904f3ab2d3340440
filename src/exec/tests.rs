//! Plans over a store that is filled by hand: no process is started.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::*;
use crate::graph::{self, Graph};
use crate::pipeline::Pipeline;
use crate::store::{Index, Manifest, NodeRecord, Store};

struct Project {
    folder: tempfile::TempDir,
    store: Store,
    index: Index,
}

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("cache")).unwrap();
        let index = Index::open(&store).unwrap();
        Self { folder, store, index }
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        fs_err::write(&path, text).unwrap();
        path
    }

    fn load(&self, text: &str) -> (Pipeline, Graph) {
        let pipeline = toy::load_in(self.folder.path(), text);
        let graph = graph::build(&pipeline).unwrap();
        (pipeline, graph)
    }

    fn plan(&mut self, pipeline: &Pipeline, graph: &Graph) -> Plan {
        let looked_up = self.plan_by(pipeline, graph, true);
        let loaded = self.plan_by(pipeline, graph, false);
        assert_eq!(looked_up.nodes, loaded.nodes);
        loaded
    }

    fn plan_by(&mut self, pipeline: &Pipeline, graph: &Graph, few: bool) -> Plan {
        let options = PlanOptions { few, ..PlanOptions::default() };
        plan(pipeline, graph, &self.store, &mut self.index, &options).unwrap()
    }

    /// Does all that is to do: each node makes a file that holds what `makes` says, or its name.
    fn complete(&mut self, text: &str, makes: &[(&str, &str)]) -> Vec<String> {
        let (pipeline, graph) = self.load(text);
        let mut plan = self.plan(&pipeline, &graph);
        let mut ran = Vec::new();
        for at in 0..plan.order.len() {
            let node = plan.order[at];
            if !matches!(plan.nodes[node], State::Hit { .. }) {
                plan.nodes[node] = plan.decide(&pipeline, &self.store, &mut self.index, node).unwrap();
            }
            if let State::Run { key, .. } = plan.nodes[node] {
                let name = &pipeline.nodes[node].name;
                let content = makes.iter().find(|(made, _)| made == name).map_or(name.as_str(), |(_, content)| content);
                let record = self.record(&pipeline, &plan, node, content);
                self.store.put_node(&record).unwrap();
                self.index.add_node(&record);
                plan.records.add(&record);
                plan.nodes[node] = State::Hit { key, artifact: record.artifact };
                ran.push(name.clone());
            }
            let name = pipeline.nodes[node].name.clone();
            if let State::Hit { key, .. } = &plan.nodes[node] {
                self.index.set_latest(&pipeline.name, &BTreeMap::from([(name, *key)]));
            }
        }
        ran
    }

    fn record(&self, pipeline: &Pipeline, plan: &Plan, node: usize, content: &str) -> NodeRecord {
        let blob = self.store.put_bytes(content.as_bytes()).unwrap();
        let files = BTreeMap::from([("out".to_owned(), blob)]);
        let artifact = self.store.put_manifest(&Manifest { kind: "files".into(), files }).unwrap();
        let recipe = plan.recipe(pipeline, node);
        NodeRecord {
            format: 1,
            key: recipe.key,
            node: pipeline.nodes[node].name.clone(),
            pipeline: pipeline.name.clone(),
            kind: "command".into(),
            artifact,
            preimage: recipe.preimage,
            inputs: recipe.inputs,
            sources: BTreeMap::new(),
            metrics: serde_json::Map::new(),
            run: "20260101-000000-aaaa".into(),
            attempt: 1,
            started: "2026-01-01T00:00:00Z".into(),
            seconds: 0.5,
            usage: None,
            host: "here".into(),
            device: "cpu".into(),
            class: None,
            equal_to_within: None,
            version: "0.1.0".into(),
        }
    }

    /// State and reason of each node, in words.
    fn states(&mut self, text: &str) -> Vec<String> {
        let (pipeline, graph) = self.load(text);
        let plan = self.plan(&pipeline, &graph);
        let name = |node: &usize| pipeline.nodes[*node].name.clone();
        let word = |state: &State| match state {
            State::Outside => "outside".to_owned(),
            State::Hit { .. } => "hit".to_owned(),
            State::Run { reason, .. } => format!("run: {reason}"),
            State::Unknown { until, .. } => format!("until {}", until.iter().map(name).collect::<Vec<_>>().join(" ")),
        };
        plan.nodes.iter().map(word).collect()
    }

    fn why(&mut self, text: &str, node: &str) -> Vec<(String, Finding)> {
        let (pipeline, graph) = self.load(text);
        let plan = self.plan(&pipeline, &graph);
        let node = select(&pipeline, &[node.to_owned()], Bare::Last).unwrap()[0];
        let steps = why(&pipeline, &self.store, &self.index, &plan, node).unwrap();
        let looked_up = self.plan_by(&pipeline, &graph, true);
        assert_eq!(why(&pipeline, &self.store, &self.index, &looked_up, node).unwrap(), steps);
        steps.into_iter().map(|step| (step.name, step.finding)).collect()
    }
}

/// A node that runs `program` on others.
fn node(name: &str, program: &str, inputs: &[&str]) -> String {
    let inputs: Vec<String> = inputs.iter().map(|input| format!("{input} = \"{input}\"")).collect();
    format!("[nodes.{name}]\nkind = \"command\"\nprogram = \"{program}\"\ninputs = {{ {} }}\n", inputs.join(", "))
}

fn chain(programs: [&str; 3]) -> String {
    [node("a", programs[0], &[]), node("b", programs[1], &["a"]), node("c", programs[2], &["b"])].concat()
}

#[test]
fn a_plan_tells_what_runs_why_and_what_is_unknown_until_when() {
    let mut project = Project::new();
    let first = chain(["x", "y", "z"]);
    assert_eq!(project.states(&first), ["run: never ran", "until a", "until a"]);
    assert_eq!(project.complete(&first, &[]), ["a", "b", "c"]);
    assert_eq!(project.states(&first), ["hit", "hit", "hit"]);

    let second = chain(["x", "y2", "z"]);
    assert_eq!(project.states(&second), ["hit", "run: program \"y\" -> \"y2\"", "until b"]);
    // The same output: what is below stays.
    assert_eq!(project.complete(&second, &[]), ["b"]);
    assert_eq!(project.states(&second), ["hit", "hit", "hit"]);
    // Back again: the result is still there.
    assert_eq!(project.states(&first), ["hit", "hit", "hit"]);

    let third = chain(["x", "y3", "z"]);
    assert_eq!(project.complete(&third, &[("b", "other")]), ["b", "c"]);
}

#[test]
fn what_was_lost_or_damaged_runs_again() {
    let mut project = Project::new();
    let text = chain(["x", "y", "z"]);
    project.complete(&text, &[]);
    let (pipeline, graph) = project.load(&text);
    let plan = project.plan(&pipeline, &graph);
    let State::Hit { key, artifact } = plan.nodes[1] else { panic!() };
    let path = project.store.files(&artifact).unwrap().remove("out").unwrap();
    fs_err::remove_file(&path).unwrap();
    assert_eq!(project.states(&text), ["hit", "run: out is missing from its artifact", "until b"]);
    fs_err::write(&path, "B").unwrap();
    assert_eq!(project.states(&text), ["hit", "run: out of its artifact is damaged", "until b"]);
    assert_eq!(project.complete(&text, &[]), ["b"]);
    assert_eq!(project.states(&text), ["hit", "hit", "hit"]);

    let record = project.store.root().join(format!("nodes/{}/{}.json", &key.to_string()[..2], &key.to_string()[2..]));
    fs_err::remove_file(record).unwrap();
    project.index = Index::rebuild(&project.store).unwrap();
    let latest = BTreeMap::from([("b".to_owned(), key)]);
    project.index.set_latest("toy", &latest);
    assert_eq!(project.states(&text)[1], "run: its record is gone");
}

#[test]
fn a_result_that_the_index_does_not_know_is_found_in_the_files() {
    let mut project = Project::new();
    let text = chain(["x", "y", "z"]);
    project.complete(&text, &[]);
    let other = Project::new();
    // An index of another store knows none of these keys.
    project.index = other.index;
    assert_eq!(project.states(&text), ["hit", "hit", "hit"]);
}

#[test]
fn an_explanation_leads_to_the_first_ancestor_that_differs() {
    let mut project = Project::new();
    let first = chain(["x", "y", "z"]);
    project.complete(&first, &[]);
    let second = chain(["x2", "y", "z"]);
    let steps = project.why(&second, "c");
    assert_eq!(
        steps[0],
        ("c".into(), Finding::Waits { inputs: vec![("inputs.b".into(), "b".into())], changes: Vec::new() })
    );
    assert_eq!(
        steps[1],
        ("b".into(), Finding::Waits { inputs: vec![("inputs.a".into(), "a".into())], changes: Vec::new() })
    );
    let Finding::Runs { reason: Reason::Changed(changes), .. } = &steps[2].1 else { panic!("{steps:?}") };
    assert_eq!((steps[2].0.as_str(), changes[0].to_string()), ("a", "program \"x\" -> \"x2\"".to_owned()));

    // a and b have run with other results, c has not.
    let (pipeline, graph) = project.load(&second);
    let mut plan = project.plan(&pipeline, &graph);
    for node in 0..2 {
        let record = project.record(&pipeline, &plan, node, "other");
        project.store.put_node(&record).unwrap();
        project.index.add_node(&record);
        plan.nodes[node] = State::Hit { key: record.key, artifact: record.artifact };
    }
    let steps = project.why(&second, "c");
    let names: Vec<&str> = steps.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["c", "b", "a"]);
    let Finding::Remade { changes } = &steps[2].1 else { panic!("{steps:?}") };
    assert_eq!(changes[0].to_string(), "program \"x\" -> \"x2\"");
    assert!(matches!(project.why(&second, "a")[0].1, Finding::Fresh { .. }));
}

#[test]
fn rows_that_no_node_takes_make_nothing_stale() {
    let mut project = Project::new();
    project.write("rows.txt", "one\ntwo\nthree\n");
    let text = "[datasets.rows]\nsource = \"rows.txt\"\n[nodes.a]\nkind = \"command\"\nprogram = \"x\"\n\
                inputs = { rows = { from = \"rows\", take = 2 } }\n[nodes.b]\nkind = \"command\"\nprogram = \"x\"\n\
                inputs = { rows = { from = \"rows\", skip = 2 } }\n";
    project.complete(text, &[]);
    assert_eq!(project.states(text), ["hit", "hit"]);
    project.write("rows.txt", "one\ntwo\nfour\n");
    let states = project.states(text);
    assert_eq!(states[0], "hit");
    assert!(states[1].starts_with("run: input inputs.rows "), "{states:?}");
    let steps = project.why(text, "b");
    assert!(
        matches!(&steps[1], (name, Finding::Source { taken: (1, input), .. }) if name == "rows" && input == "inputs.rows")
    );
    let (pipeline, _) = project.load(text);
    assert_eq!(rows_now(&pipeline, 1, "inputs.rows").unwrap()[0]["text"], "four");
    project.write("rows.txt", "one\n");
    let (pipeline, graph) = project.load(text);
    let error = plan(&pipeline, &graph, &project.store, &mut project.index, &PlanOptions::default()).unwrap_err();
    let findings = error.diagnostics();
    assert_eq!((findings.len(), findings[0].id), (1, "exec::empty-slice"));
    fs_err::remove_file(project.folder.path().join("rows.txt")).unwrap();
    let error = plan(&pipeline, &graph, &project.store, &mut project.index, &PlanOptions::default()).unwrap_err();
    assert_eq!(error.diagnostics()[0].labels[0].text, "of this dataset");
}

#[test]
fn a_model_is_its_weights_configuration_tokenizer_and_dtype() {
    let mut project = Project::new();
    for (name, text) in
        [("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w"), ("README.md", "a")]
    {
        project.write(&format!("model/{name}"), text);
    }
    std::thread::sleep(Duration::from_millis(40));
    let text = |dtype: &str| {
        format!(
            "[models.m]\nsource = \"model\"\n{dtype}\n[nodes.a]\nkind = \"command\"\nprogram = \"x\"\ninputs = {{ m = \"m\" }}\n"
        )
    };
    project.complete(&text(""), &[]);
    assert_eq!(project.states(&text("")), ["hit"]);
    assert!(project.states(&text("dtype = \"bf16\""))[0].starts_with("run: input inputs.m"));
    for (file, content, state) in
        [("README.md", "b", "hit"), ("pytorch_model.bin", "w", "hit"), ("config.json", "{ }", "run: input")]
    {
        project.write(&format!("model/{file}"), content);
        assert!(project.states(&text(""))[0].starts_with(state), "{file}");
    }
    fs_err::remove_file(project.folder.path().join("model/model.safetensors")).unwrap();
    let (pipeline, graph) = project.load(&text(""));
    let error = plan(&pipeline, &graph, &project.store, &mut project.index, &PlanOptions::default()).unwrap_err();
    assert_eq!(error.diagnostics()[0].labels[0].text, "it has no *.safetensors");
}

#[test]
fn a_model_that_was_read_once_is_known_by_its_stamps_and_left_where_it_is() {
    let mut project = Project::new();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        project.write(&format!("model/{name}"), "{}");
    }
    let text = "[models.m]\nsource = \"model\"\ndtype = \"f16\"\n[nodes.a]\nkind = \"command\"\nprogram = \"x\"\ninputs = { m = \"m\" }\n";
    let (pipeline, graph) = project.load(text);
    std::thread::sleep(Duration::from_millis(40));
    let options = PlanOptions { put_sources: true, ..PlanOptions::default() };
    let id = |project: &mut Project| {
        let plan = plan(&pipeline, &graph, &project.store, &mut project.index, &options).unwrap();
        plan.sources.id(&pipeline.nodes[0].links[0]).unwrap()
    };
    let first = id(&mut project);
    let files = project.store.files(&first).unwrap();
    assert_eq!(files["model.safetensors"], project.folder.path().join("model/model.safetensors"));
    assert_eq!(fs_err::read_to_string(&files["sami.json"]).unwrap(), "{\"dtype\":\"f16\"}");
    // It is not read again: an artifact remembered in its place is believed.
    let model::Located::Here(place) = model::locate("m", &pipeline.models["m"], &pipeline).unwrap() else {
        panic!("a directory is here")
    };
    let (declared, settled) = place.declaration(&pipeline.models["m"]).unwrap();
    assert!(settled && project.index.source(&declared) == Some(first));
    let fake = crate::digest::Digest::of(b"fake");
    project.index.remember_source(&declared, &fake);
    assert_eq!(id(&mut project), fake);
}

#[test]
fn long_chains_and_nested_diamonds_are_planned_in_one_pass() {
    let mut project = Project::new();
    let mut text = node("n0", "x", &[]);
    for at in 1..10_000 {
        text.push_str(&node(&format!("n{at}"), "x", &[&format!("n{}", at - 1)]));
    }
    let states = project.states(&text);
    assert_eq!((states.len(), states[9_999].as_str()), (10_000, "until n0"));

    // Eight diamonds in a row, eighteen wide: 18^8 paths.
    let mut text = node("join0", "x", &[]);
    for layer in 1..=8 {
        let mut fan = Vec::new();
        for at in 0..18 {
            let name = format!("fan{layer}x{at}");
            let _ = write!(text, "{}", node(&name, &format!("x{at}"), &[&format!("join{}", layer - 1)]));
            fan.push(name);
        }
        let fan: Vec<&str> = fan.iter().map(String::as_str).collect();
        let _ = write!(text, "{}", node(&format!("join{layer}"), "x", &fan));
    }
    assert_eq!(project.complete(&text, &[]).len(), 8 * 19 + 1);
    assert!(project.states(&text).iter().all(|state| state == "hit"));
}

#[test]
#[ignore = "a measurement: 10,000 nodes with results, then prints the time of an explanation"]
#[expect(clippy::print_stderr, reason = "a measurement is for reading")]
fn an_explanation_of_ten_thousand_nodes() {
    let mut project = Project::new();
    let text = |first: &str| {
        let mut text = node("n0", first, &[]);
        for at in 1..10_000 {
            // A hundred chains of a hundred nodes.
            let above = if at % 100 == 0 { 0 } else { at - 1 };
            text.push_str(&node(&format!("n{at}"), &format!("x{at}"), &[&format!("n{above}")]));
        }
        text
    };
    project.complete(&text("x"), &[]);
    let (pipeline, graph) = project.load(&text("y"));
    for pass in ["first", "second"] {
        let plan = project.plan(&pipeline, &graph);
        let start = std::time::Instant::now();
        let waits = why(&pipeline, &project.store, &project.index, &plan, 9_999).unwrap();
        let took = start.elapsed();
        eprintln!("{pass}: {} steps in {took:?}", waits.len());
        assert!(matches!(waits.last().unwrap().finding, Finding::Runs { .. }));
    }
}
