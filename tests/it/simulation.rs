//! The scheduler on a simulated cluster on which jobs fail, vanish and come back, and which does not always answer: whatever happens,
//! every node is done once, and what fails is what was to fail.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use sami::exec::{self, Away, Event, PlanOptions, Summary};
use sami::graph::{self, Graph};
use sami::pipeline::{self, Pipeline};
use sami::store::{Index, Store};

use super::simulated::{Cluster, Fate, Manner, Trouble, options, profile};

/// A pipeline, a cluster, and when the scheduler dies.
#[derive(Debug, Clone)]
struct Case {
    /// What each node needs, by number.
    needs: Vec<Vec<usize>>,
    retries: u32,
    seed: u64,
    fates: Vec<Fate>,
    /// Of a hundred jobs, and of a hundred calls.
    trouble: (u64, u64),
    machines: usize,
    jobs: usize,
    /// After how many events the scheduler dies, each time that it is started.
    deaths: Vec<usize>,
}

fn cases() -> impl Strategy<Value = Case> {
    let fates = [Fate::Fails, Fate::Lost, Fate::Orphan, Fate::Vanishes, Fate::Preempted, Fate::TimeLimit];
    let needs = prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..4), 1..24);
    let fates = prop::sample::subsequence(fates.to_vec(), 0..=6);
    let trouble = (0..60u64, prop_oneof![3 => Just(0u64), 1 => 1..30u64]);
    let deaths = prop_oneof![2 => Just(Vec::new()), 1 => prop::collection::vec(1..60usize, 1..3)];
    (needs, 0..3u32, any::<u64>(), fates, trouble, 1..9usize, 1..12usize, deaths).prop_map(
        |(needs, retries, seed, fates, trouble, machines, jobs, deaths)| {
            let earlier = |(node, needs): (usize, Vec<prop::sample::Index>)| {
                let mut needs: Vec<usize> = needs.iter().filter(|_| node > 0).map(|need| need.index(node)).collect();
                needs.sort_unstable();
                needs.dedup();
                needs
            };
            let needs = needs.into_iter().enumerate().map(earlier).collect();
            Case { needs, retries, seed, fates, trouble, machines, jobs, deaths }
        },
    )
}

fn name(node: usize) -> String {
    format!("n{node}")
}

impl Case {
    fn pipeline(&self) -> String {
        let mut text = "name = \"simulated\"\n".to_owned();
        for (node, needs) in self.needs.iter().enumerate() {
            let inputs: Vec<String> = needs.iter().map(|need| format!("i{need} = \"n{need}\"")).collect();
            let _ = writeln!(
                text,
                "[nodes.n{node}]\nkind = \"command\"\nprogram = \"make\"\nargs = [\"n{node}\"]\ninputs = {{ {} }}\nrun = {{ retries = {} }}",
                inputs.join(", "),
                self.retries
            );
        }
        text
    }

    fn manner(&self) -> Manner {
        Manner {
            submit: (Duration::from_millis(1), Duration::ZERO),
            poll: Duration::from_millis(1),
            queue: Duration::from_millis(1),
            work: (Duration::from_millis(1), Duration::from_millis(6)),
            machines: self.machines,
            trouble: Trouble { fates: self.fates.clone(), jobs: self.trouble.0, calls: self.trouble.1 },
            seed: self.seed,
        }
    }

    /// What becomes of each node if the scheduler lives.
    fn expected(&self) -> Vec<&'static str> {
        let manner = self.manner();
        let mut states: Vec<&str> = Vec::new();
        for (node, needs) in self.needs.iter().enumerate() {
            if needs.iter().any(|need| states[*need] != "ran") {
                states.push("skipped");
                continue;
            }
            let mut failures = 0;
            let ended = (1..).find_map(|attempt| match manner.fate(&name(node), attempt) {
                Fate::Done => Some("ran"),
                Fate::Fails => {
                    failures += 1;
                    (failures > self.retries).then_some("failed")
                }
                _ => None,
            });
            states.push(ended.expect("one ends it"));
        }
        states
    }
}

/// The scheduler's death.
struct Death;

/// What was told in all runs of a case.
#[derive(Debug, Default)]
struct Told {
    /// How often a node was told to be done.
    finished: BTreeMap<String, usize>,
    /// Failures of attempts.
    failed: Vec<String>,
}

struct Run<'a> {
    pipeline: &'a Pipeline,
    graph: &'a Graph,
    store: &'a Store,
    away: &'a Away,
}

impl Run<'_> {
    /// Runs all that is stale; `None` if the scheduler died after so many events.
    fn run(&self, death: Option<usize>, told: &mut Told) -> Option<Summary> {
        let mut index = Index::open(self.store).expect("the index");
        let all = PlanOptions::default();
        let mut plan = exec::plan(self.pipeline, self.graph, self.store, &mut index, &all).expect("a plan");
        let options = options(self.away.clone());
        let mut events = 0;
        let mut report = |event: &Event| {
            match event {
                Event::NodeFinish { node, .. } => *told.finished.entry(node.clone()).or_default() += 1,
                Event::NodeFail { node, attempt, error, .. } => told.failed.push(format!("{node}.{attempt}: {error}")),
                _ => {}
            }
            events += 1;
            if Some(events) == death {
                resume_unwind(Box::new(Death));
            }
        };
        let ran = catch_unwind(AssertUnwindSafe(|| {
            exec::run(self.pipeline, self.graph, self.store, &mut index, &mut plan, &options, &mut report)
        }));
        match ran {
            Ok(summary) => Some(summary.expect("the run goes on")),
            Err(death) if death.is::<Death>() => None,
            Err(other) => resume_unwind(other),
        }
    }
}

fn holds(case: &Case) -> Result<(), TestCaseError> {
    // Where syncing costs nothing: what is lost with the power is not the question here.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.expect("a directory");
    let path = folder.path().join("p.toml");
    fs_err::write(&path, case.pipeline()).expect("writes");
    let pipeline = pipeline::load(&path, &[], &sami::kinds::specs()).expect("it is sound");
    let graph = graph::build(&pipeline).expect("it has no cycle");
    let store = Store::open(&folder.path().join("cache")).expect("a store");
    let cluster = Cluster::start(store.root(), case.manner());
    let away = Away {
        profile: profile(Duration::from_millis(3), Duration::from_millis(12), case.jobs),
        engine: Arc::new(cluster.clone()),
        program: "sami".into(),
    };
    let run = Run { pipeline: &pipeline, graph: &graph, store: &store, away: &away };
    let mut told = Told::default();
    let mut ended = None;
    for death in case.deaths.iter().map(|death| Some(*death)).chain([None]) {
        ended = run.run(death, &mut told);
        if ended.is_some() {
            break;
        }
    }
    let summary = ended.expect("the last one does not die");
    if case.deaths.is_empty() {
        let states: Vec<&str> = summary.nodes.iter().map(|node| node.state.as_str()).collect();
        prop_assert_eq!(states, case.expected(), "{:?}", told.failed);
    }
    // Without trouble all that is left is done, and nothing else.
    cluster.calm_down();
    let summary = run.run(None, &mut told).expect("it does not die");
    cluster.end();
    prop_assert!(summary.ok(), "{:?}", told.failed);
    for (at, node) in summary.nodes.iter().enumerate() {
        let artifact = node.artifact.expect("it has one");
        let files = store.files(&artifact).expect("it is there");
        prop_assert_eq!(fs_err::read_to_string(&files["out"]).expect("it is read"), name(at));
    }
    prop_assert!(told.finished.values().all(|times| *times == 1), "told more than once: {:?}", told.finished);
    if case.deaths.is_empty() {
        prop_assert_eq!(told.finished.len(), case.needs.len());
    }
    cluster.account(|account| {
        prop_assert!(account.doubled.is_empty(), "two jobs at once: {:?}", account.doubled);
        prop_assert!(account.reused.is_empty(), "submitted twice: {:?}", account.reused);
        prop_assert!(account.most <= case.jobs, "{} jobs at once, of {}", account.most, case.jobs);
        Ok(())
    })
}

/// Tries so many cases, some at once: most of what they take is waiting.
fn try_cases(cases_each: u32) {
    const AT_ONCE: u8 = 8;
    std::thread::scope(|scope| {
        for thread in 0..AT_ONCE {
            scope.spawn(move || {
                let config = Config { cases: cases_each, failure_persistence: None, ..Config::default() };
                let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[thread + 1; 32]);
                let tried = TestRunner::new_with_rng(config, rng).run(&cases(), |case| holds(&case));
                if let Err(TestError::Fail(why, case)) = &tried {
                    panic!("{why}\n{case:?}");
                }
                tried.expect("they can be tried");
            });
        }
    });
}

#[test]
fn whatever_befalls_jobs_every_node_is_done_once() {
    try_cases(8);
}

#[test]
#[ignore = "slow: a thousand runs"]
fn whatever_befalls_jobs_of_a_thousand_runs_every_node_is_done_once() {
    try_cases(125);
}
