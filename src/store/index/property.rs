//! What the index says of random stores is what their files say.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::insert::made;
use super::*;
use crate::store::gc::Roots;
use crate::store::inventory::Inventory;
use crate::store::record::tests::{record, run};
use crate::store::{Line, Lines, Maker, Manifest, Order, Wanted};

/// Something that happens to a store.
#[derive(Debug, Clone)]
enum Happens {
    /// A node is recorded in a run; whether by the process of the index.
    Record { node: u8, pipeline: u8, text: u8, input: u8, run: u8, told: bool },
    /// A source comes in.
    Source { text: u8 },
    /// A record goes by hand.
    LoseRecord { which: u8 },
    /// A manifest goes by hand.
    LoseArtifact { which: u8 },
    /// gc keeps so many runs.
    Collect { keep_runs: u8, latest: bool },
    /// Somebody asks.
    Ask,
}

fn happens() -> impl Strategy<Value = Happens> {
    prop_oneof![
        8 => (0..4_u8, 0..2_u8, 0..12_u8, any::<u8>(), 0..5_u8, any::<bool>()).prop_map(
            |(node, pipeline, text, input, run, told)| Happens::Record { node, pipeline, text, input, run, told }
        ),
        2 => (0..12_u8).prop_map(|text| Happens::Source { text }),
        1 => any::<u8>().prop_map(|which| Happens::LoseRecord { which }),
        1 => any::<u8>().prop_map(|which| Happens::LoseArtifact { which }),
        1 => (0..3_u8, any::<bool>()).prop_map(|(keep_runs, latest)| Happens::Collect { keep_runs, latest }),
        2 => Just(Happens::Ask),
    ]
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let name = |letters: &'static [&'static str]| proptest::option::of(proptest::sample::select(letters));
    let day = || proptest::option::of(1..6_u8);
    let (kinds, pipelines, nodes) = (name(&["files", "dataset"]), name(&["p0", "p1"]), name(&["n0", "n1", "n2"]));
    let size = || proptest::option::of(0..300_u64);
    (kinds, pipelines, nodes, size(), size(), day(), day(), any::<bool>(), 0..4_u64, 1..6_u64).prop_map(
        |(kind, pipeline, node, larger, smaller, since, before, by_size, skip, last)| Wanted {
            kind: kind.map(str::to_owned),
            pipeline: pipeline.map(str::to_owned),
            node: node.map(str::to_owned),
            like: None,
            larger,
            smaller,
            since: since.map(|day| format!("2026-01-0{day}T00:00:00Z").parse().unwrap()),
            before: before.map(|day| format!("2026-01-0{day}T00:00:00Z").parse().unwrap()),
            order: if by_size { Order::Size } else { Order::Age },
            skip,
            last,
        },
    )
}

fn run_id(run: u8) -> String {
    format!("2026010{}-000000-aaaa", run + 1)
}

fn happen(store: &Store, index: &mut Index, what: &Happens) {
    match what {
        Happens::Record { node, pipeline, text, input, run: number, told } => {
            let mut made = record(store, &format!("n{node}"), &"x".repeat(usize::from(*text) * 20)).unwrap();
            let ids = store.artifact_ids().unwrap();
            made.inputs.insert("data".into(), ids[usize::from(*input) % ids.len()]);
            made.pipeline = format!("p{pipeline}");
            made.run = run_id(*number);
            // Several in a run, some at the same time.
            made.started = format!("2026-01-0{}T00:00:0{}Z", number + 1, text % 3);
            // Another run has another key: a record that is written over is told of, or the index does not hear of it.
            made.key = Digest::of(&[*node, *pipeline, *text, *input, *number]);
            made.device = if text % 2 == 0 { "cpu" } else { "cuda:0" }.into();
            store.put_node(&made).unwrap();
            let mut record = store.run(&made.run).unwrap().unwrap_or_else(|| run(&made.run, &[]));
            record.pipeline.clone_from(&made.pipeline);
            record.nodes.extend(run(&made.run, &[&made]).nodes);
            store.put_run(&record).unwrap();
            if *told {
                index.add_node(&made);
            }
        }
        Happens::Source { text } => {
            let blob = store.put_bytes(&[*text; 7]).unwrap();
            let files = BTreeMap::from([("rows.jsonl".to_owned(), blob), ("again.jsonl".to_owned(), blob)]);
            store.put_manifest(&Manifest { kind: "dataset".into(), files }).unwrap();
        }
        Happens::LoseRecord { which } => {
            let keys = store.node_keys().unwrap();
            if let Some(key) = keys.get(usize::from(*which) % keys.len().max(1)) {
                fs::remove_file(&store.node_path(key)).unwrap();
            }
        }
        Happens::LoseArtifact { which } => {
            let ids = store.artifact_ids().unwrap();
            if let Some(id) = ids.get(usize::from(*which) % ids.len().max(1)) {
                fs::remove_file(&store.manifest_path(id)).unwrap();
            }
        }
        Happens::Collect { keep_runs, latest } => {
            let roots = Roots { keep_runs: usize::from(*keep_runs), latest: *latest, ..Roots::default() };
            store.collect(&roots, &mut |_| true, &mut || {}).unwrap();
        }
        Happens::Ask => index.catch_up(store).unwrap(),
    }
}

/// What the files say.
fn listed(store: &Store, wanted: &Wanted) -> Lines {
    let records: Vec<NodeRecord> =
        store.node_keys().unwrap().iter().map(|key| store.node(key).unwrap().unwrap()).collect();
    let mut lines: Vec<(Option<i64>, Line)> = Vec::new();
    for id in store.artifact_ids().unwrap() {
        let manifest = store.manifest(&id).unwrap();
        let makers = records.iter().filter(|record| record.artifact == id);
        let maker = makers.max_by_key(|record| (made(&record.run, &record.started), record.key));
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        let day = |record: &NodeRecord| record.run[..8].to_owned();
        let bound = |time: &Option<jiff::Timestamp>| time.map(|time| time.strftime("%Y%m%d").to_string());
        let (since, before) = (bound(&wanted.since), bound(&wanted.before));
        let by_maker = match maker {
            Some(maker) => {
                is(&wanted.pipeline, &maker.pipeline)
                    && is(&wanted.node, &maker.node)
                    && since.is_none_or(|since| day(maker) >= since)
                    && before.is_none_or(|before| day(maker) < before)
            }
            None => [&wanted.pipeline, &wanted.node, &since, &before].iter().all(|asked| asked.is_none()),
        };
        let size = manifest.size();
        let by_size = wanted.larger.is_none_or(|least| size >= least) && wanted.smaller.is_none_or(|most| size < most);
        if by_maker && by_size && is(&wanted.kind, &manifest.kind) {
            let files = manifest.files.len() as u64;
            let line = Line {
                id,
                size,
                files,
                kind: manifest.kind,
                maker: maker.map(|record| Maker {
                    key: record.key,
                    pipeline: record.pipeline.clone(),
                    node: record.node.clone(),
                    run: record.run.clone(),
                    started: record.started.clone(),
                }),
            };
            lines.push((maker.map(|record| made(&record.run, &record.started)), line));
        }
    }
    match wanted.order {
        Order::Age => lines.sort_by_key(|(made, line)| Reverse((*made, line.id))),
        Order::Size => lines.sort_by_key(|(_, line)| Reverse((line.size, line.id))),
    }
    let all = lines.len() as u64;
    let lines: Vec<Line> =
        lines.into_iter().map(|(_, line)| line).skip(wanted.skip as usize).take(wanted.last as usize).collect();
    let more = if (lines.len() as u64) < wanted.last { 0 } else { all - wanted.skip - lines.len() as u64 };
    Lines { lines, more, more_than: false }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_index_says_what_the_files_say(
        all in proptest::collection::vec(happens(), 1..25),
        asked in proptest::collection::vec(wanted(), 6),
        keep_runs in 0..3_usize,
        latest in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let mut index = Index::open(&Store::open(directory.path()).unwrap()).unwrap();
        for what in &all {
            // Each is done by a process of its own, that ends: none of it is needed by a living one.
            happen(&Store::open(directory.path()).unwrap(), &mut index, what);
        }
        let store = Store::open(directory.path()).unwrap();
        index.catch_up(&store).unwrap();
        for wanted in asked.iter().chain([&Wanted { last: 1000, ..Wanted::default() }]) {
            prop_assert_eq!(index.list(wanted), listed(&store, wanted));
        }
        let roots = Roots { keep_runs, latest, ..Roots::default() };
        let (by_index, by_files) = (store.preview_gc(&mut index, &roots).unwrap(), store.plan_gc(&roots).unwrap());
        prop_assert_eq!((&by_index.garbage, &by_index.types), (&by_files.garbage, &by_files.types));
        prop_assert_eq!(&by_index.largest, &by_files.largest);
        // It does not list what goes; by the index that would be the same, too.
        let mut view = Inventory::of_index(&store, &mut index).unwrap();
        view.is_view = false;
        prop_assert_eq!(&store.plan_by(&view, &roots).unwrap(), &by_files);
        // One that is made anew says the same.
        let mut rebuilt = Index::rebuild(&store).unwrap();
        for wanted in &asked {
            prop_assert_eq!(index.list(wanted), rebuilt.list(wanted));
        }
        let garbage = store.collect(&roots, &mut |_| true, &mut || {}).unwrap().unwrap();
        prop_assert_eq!(garbage, by_files.garbage);
        // The old one is nobody's any more, and SQLite does not write to it.
        let index = &mut rebuilt;
        index.catch_up(&store).unwrap();
        let all = Wanted { last: 1000, ..Wanted::default() };
        prop_assert_eq!(index.list(&all), listed(&store, &all));
    }
}
