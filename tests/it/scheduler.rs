//! Random graphs and failures: no node before its inputs, no node lost or run twice, and a second run is all hits.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use proptest::prelude::*;
use proptest::test_runner::Config;

use super::sandbox::{Done, Sandbox};

/// Nodes by number: the lower ones that each needs, and whether it fails.
type Graph = Vec<(BTreeSet<usize>, bool)>;

fn graph() -> impl Strategy<Value = Graph> {
    let node = (proptest::collection::vec(any::<prop::sample::Index>(), 0..4), prop::bool::weighted(0.15));
    proptest::collection::vec(node, 1..14).prop_map(|nodes| {
        let needs = |(at, (needs, fails)): (usize, (Vec<prop::sample::Index>, bool))| {
            let needs = if at == 0 { BTreeSet::new() } else { needs.iter().map(|need| need.index(at)).collect() };
            (needs, fails)
        };
        nodes.into_iter().enumerate().map(needs).collect()
    })
}

/// A pipeline of that graph. Nodes note when they begin and end, and fail while there is a file `fail-N`. In the file
/// they stand in reverse, so that its order is of no help.
fn declare(graph: &Graph) -> Sandbox {
    let sandbox = Sandbox::new();
    let mut text = String::new();
    let folder = sandbox.path("").display().to_string();
    for (at, (needs, fails)) in graph.iter().enumerate().rev() {
        let inputs: Vec<String> = needs.iter().map(|need| format!("n{need} = \"n{need}\"")).collect();
        let reads = needs.iter().fold(String::new(), |text, need| format!("{text}cat {{input.n{need}}}/out; "));
        let _ = writeln!(
            text,
            "[nodes.n{at}]\nkind = \"command\"\nprogram = \"sh\"\ninputs = {{ {} }}\nargs = [\"-ec\", '''\
             echo begin {at} >> {folder}/notes; test ! -e {folder}/fail-{at}; (echo {at}; {reads}) > out; echo end {at} >> {folder}/notes''']",
            inputs.join(", ")
        );
        if *fails {
            sandbox.write(&format!("fail-{at}"), "");
        }
    }
    sandbox.write("p.toml", &text);
    sandbox
}

/// Nodes that a failing one keeps from running.
fn blocked(graph: &Graph) -> BTreeSet<usize> {
    let mut blocked = BTreeSet::new();
    for (at, (needs, _)) in graph.iter().enumerate() {
        if needs.iter().any(|need| graph[*need].1 || blocked.contains(need)) {
            blocked.insert(at);
        }
    }
    blocked
}

fn check_notes(graph: &Graph, notes: &str) {
    let (mut begun, mut ended) = (BTreeSet::new(), BTreeSet::new());
    for note in notes.lines() {
        let (what, number) = note.split_once(' ').expect("a note");
        let at: usize = number.parse().expect("a number");
        if what == "begin" {
            assert!(graph[at].0.is_subset(&ended), "n{at} began before its inputs were there:\n{notes}");
            assert!(begun.insert(at), "n{at} ran twice:\n{notes}");
        } else {
            ended.insert(at);
        }
    }
}

fn numbers(done: &Done, state: &str) -> BTreeSet<usize> {
    done.names(state).iter().map(|name| name[1..].parse().expect("a number")).collect()
}

fn try_graph(graph: &Graph) {
    let sandbox = declare(graph);
    let fails: BTreeSet<usize> = (0..graph.len()).filter(|at| graph[*at].1).collect();
    let blocked = blocked(graph);
    let all: BTreeSet<usize> = (0..graph.len()).collect();

    let done = sandbox.run(&["--keep-going", "-j", "3"], i32::from(!fails.is_empty()));
    let failed: BTreeSet<usize> = fails.difference(&blocked).copied().collect();
    let ran: BTreeSet<usize> = &(&all - &failed) - &blocked;
    assert_eq!(
        (numbers(&done, "ran"), numbers(&done, "failed"), numbers(&done, "skipped")),
        (ran.clone(), failed, blocked)
    );
    check_notes(graph, &sandbox.read("notes"));

    for at in &fails {
        fs_err::remove_file(sandbox.path(format!("fail-{at}"))).expect("removes");
    }
    sandbox.write("notes", "");
    let done = sandbox.run(&["-j", "3"], 0);
    assert_eq!((numbers(&done, "hit"), numbers(&done, "ran")), (ran.clone(), &all - &ran));
    let again = sandbox.run(&[], 0);
    assert_eq!((again.ran, again.hits), (0, graph.len()));
    assert_eq!(again.results(), done.results());
    sandbox.verify();
}

proptest! {
    #![proptest_config(Config { cases: 12, failure_persistence: None, ..Config::default() })]

    #[test]
    fn random_graphs_run_in_order_and_lose_nothing(graph in graph()) {
        try_graph(&graph);
    }
}

#[test]
fn nodes_of_one_key_run_once() {
    let node = |name: &str| {
        format!("[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"sleep 0.1; echo $$ > out\"]\n")
    };
    let sandbox = Sandbox::with(&["a", "b", "c"].map(node).concat());
    let done = sandbox.run(&["-j", "3"], 0);
    assert_eq!((done.ran, done.hits), (1, 2));
    assert!(done.nodes.iter().all(|node| node.artifact == done.nodes[0].artifact));
}

#[test]
fn targets_and_forced_nodes_go_by_name() {
    let sandbox = Sandbox::with(
        r#"
        [loop]
        times = 2
        [loop.nodes.a]
        kind = "command"
        program = "sh"
        args = ["-c", "echo ${iteration} > out"]
        [nodes.b]
        kind = "command"
        program = "sh"
        args = ["-c", "cat {input.a}/out > out"]
        inputs = { a = "a" }
        [nodes.c]
        kind = "command"
        program = "true"
        "#,
    );
    assert_eq!(sandbox.run(&["a"], 0).names("ran"), ["a@2"]);
    let done = sandbox.run(&["b", "--force", "a"], 0);
    assert_eq!((done.names("ran"), done.names("hit")), (vec!["a@2", "b"], vec![]));
    let done = sandbox.run(&["a@1", "b", "--force", "a"], 0);
    assert_eq!((done.names("ran"), done.names("hit")), (vec!["a@1", "a@2"], vec!["b"]));
    let output = sandbox.sami(&["run", "p.toml", "bb"]).exits(2);
    assert!(output.stderr.contains("exec::unknown-node") && output.stderr.contains("`b`"), "{}", output.stderr);
    sandbox.sami(&["run", "p.toml", "--device", "gpu"]).exits(2);
}

#[test]
fn a_failed_attempt_is_retried_as_often_as_asked() {
    let sandbox = Sandbox::with(
        r#"
        [nodes.a]
        kind = "command"
        program = "sh"
        args = ["-c", "echo . >> $TRIES; test $(wc -l < $TRIES) -ge 3 && echo > out"]
        env = { TRIES = "{output}/../../../../tries" }
        run = { retries = 2 }
        "#,
    );
    let output = sandbox.sami(&["run", "p.toml"]).exits(0);
    assert_eq!(sandbox.read("tries"), ".\n.\n.\n");
    assert_eq!(output.stderr.matches("tried once more").count(), 2, "{}", output.stderr);
    assert_eq!(
        sandbox.files("cache/runs").iter().filter(|path| path.extension().is_some_and(|end| end == "log")).count(),
        3
    );
}
