use std::collections::BTreeMap;

use super::*;
use crate::fs;
use crate::store::NodeRecord;
use crate::store::record::tests::{record, run};
use crate::store::thin::tests::tensors;

/// What is put by a process that has ended since.
fn put(directory: &Path) -> Store {
    Store::open(directory).unwrap()
}

fn make_old(path: &Path) {
    let file = fs_err::OpenOptions::new().write(true).open(path).unwrap();
    file.file().set_modified(std::time::UNIX_EPOCH).unwrap();
}

#[test]
fn gc_keeps_what_recent_runs_and_pins_need_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let store = put(directory.path());
    let [old, new, source, pinned, by_pinned] =
        ["old", "new", "source", "pinned", "x"].map(|node| record(&store, node, node).unwrap());
    let new = NodeRecord { inputs: [("data".to_owned(), source.artifact)].into(), ..new };
    for (record, id) in [(&old, "20260101-000000-aaaa"), (&new, "20260102-000000-aaaa")] {
        store.put_node(record).unwrap();
        store.put_run(&run(id, &[record])).unwrap();
    }
    let pinned = NodeRecord { inputs: [("data".to_owned(), by_pinned.artifact)].into(), ..pinned };
    store.put_node(&pinned).unwrap();
    store.pin(&pinned.artifact).unwrap();
    store.partial_dir(&old.key).unwrap();
    store.partial_dir(&Digest::of(b"killed")).unwrap();
    for name in ["stray", "young"] {
        fs::write_atomic(&store.tmp().join(name), b"stray").unwrap();
    }
    make_old(&store.tmp().join("stray"));
    drop(store);

    let store = Store::open(directory.path()).unwrap();
    let planned = store.gc(1, true).unwrap();
    assert!(store.node(&old.key).unwrap().is_some());
    let done = store.gc(1, false).unwrap();
    assert_eq!(planned, done);
    assert_eq!((done.nodes, done.artifacts, done.objects, done.runs), (1, 1, 1, 1));
    assert!(store.node(&old.key).unwrap().is_none());
    let mut kept = vec![new.artifact, source.artifact, pinned.artifact, by_pinned.artifact];
    kept.sort_unstable();
    assert_eq!(store.artifact_ids().unwrap(), kept);
    assert_eq!(store.run_ids().unwrap(), ["20260102-000000-aaaa"]);
    assert_eq!(fs::list(&store.root.join("partial")).unwrap().len(), 1);
    assert_eq!(fs::list(&store.tmp()).unwrap().len(), 1);
    assert!(!store.root.join("trash").exists());
    assert!(store.verify(&mut |_, _| {}).unwrap().is_whole());
    assert_eq!(store.gc(1, false).unwrap(), Garbage::default());
}

#[test]
fn gc_keeps_what_was_made_and_is_yet_to_be_recorded() {
    let directory = tempfile::tempdir().unwrap();
    let made = record(&put(directory.path()), "made", "made").unwrap();
    put(directory.path()).promise(&made.key, &made.artifact).unwrap();
    let store = put(directory.path());
    assert_eq!(store.gc(1, false).unwrap().artifacts, 0);
    assert_eq!(store.artifact_ids().unwrap(), [made.artifact]);
    store.clear_partial(&made.key).unwrap();
    assert_eq!(store.gc(1, false).unwrap().artifacts, 1);
}

#[test]
fn each_root_keeps_what_it_says() {
    let directory = tempfile::tempdir().unwrap();
    let store = put(directory.path());
    // `b` ran once, long ago; `a` in every run, each time with another result.
    let b = NodeRecord { started: "2026-01-01T00:00:00Z".into(), ..record(&store, "b", "b").unwrap() };
    let mut all = vec![b.clone()];
    store.put_node(&b).unwrap();
    for day in 1..=4 {
        let mut a = record(&store, "a", &format!("a{day}")).unwrap();
        a.key = Digest::of(&[day]);
        a.started = format!("2026-01-0{day}T12:00:00Z");
        store.put_node(&a).unwrap();
        let nodes = if day == 1 { vec![&a, &b] } else { vec![&a] };
        store.put_run(&run(&format!("2026010{day}-120000-aaaa"), &nodes)).unwrap();
        all.push(a);
    }
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    let goes = |roots: Roots| {
        let plan = store.plan_gc(&roots).unwrap();
        let keys: Vec<Digest> =
            plan.items.iter().filter_map(|item| if let Item::Node(key) = item { Some(*key) } else { None }).collect();
        let mut names: Vec<String> = Vec::new();
        for (number, record) in all.iter().enumerate() {
            if keys.contains(&record.key) {
                names.push(if number == 0 { "b".to_owned() } else { format!("a{number}") });
            }
        }
        names.join(" ")
    };
    let since = |text: &str| Some(text.parse().unwrap());
    assert_eq!(goes(Roots::default()), "b a1 a2 a3 a4");
    assert_eq!(goes(Roots { keep_runs: 1, ..Roots::default() }), "b a1 a2 a3");
    assert_eq!(goes(Roots { keep_runs: 1, latest: true, ..Roots::default() }), "a1 a2 a3");
    assert_eq!(goes(Roots { latest: true, ..Roots::default() }), "a1 a2 a3");
    assert_eq!(goes(Roots { since: since("2026-01-03T00:00:00Z"), ..Roots::default() }), "b a1 a2");
    assert_eq!(goes(Roots { keep_runs: 9, ..Roots::default() }), "");
    // The run in which `b` ran stays as long as that is the latest that is known of `b`.
    let roots = Roots { keep_runs: 1, latest: true, ..Roots::default() };
    store.collect(&roots, &mut |_| true, &mut || {}).unwrap();
    assert_eq!(store.run_ids().unwrap(), ["20260101-120000-aaaa", "20260104-120000-aaaa"]);
    assert!(store.collect(&roots, &mut |_| false, &mut || {}).unwrap().is_none());
    assert_eq!(store.collect(&roots, &mut |_| true, &mut || {}).unwrap(), Some(Garbage::default()));
}

#[test]
fn what_a_living_process_found_or_put_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = put(directory.path());
    let [hit, gone] = ["hit", "gone"].map(|node| record(&store, node, node).unwrap());
    for record in [&hit, &gone] {
        store.put_node(record).unwrap();
    }
    drop(store);
    let run = Store::open(directory.path()).unwrap();
    let section = run.sharing().unwrap();
    run.need_hits([(hit.key, hit.artifact)]).unwrap();
    drop(section);
    // Put, and not recorded yet.
    let made = record(&run, "made", "made").unwrap();
    let gc = Store::open(directory.path()).unwrap();
    assert_eq!(gc.gc(0, false).unwrap().nodes, 1);
    assert!(gc.node(&gone.key).unwrap().is_none());
    run.put_node(&made).unwrap();
    assert!(gc.verify(&mut |_, _| {}).unwrap().is_whole());
    drop(run);
    assert_eq!(gc.gc(0, false).unwrap().nodes, 2);
}

#[test]
fn what_is_named_while_gc_goes_on_stays_or_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let store = put(directory.path());
    let all: Vec<NodeRecord> = (0..3).map(|n| record(&store, &n.to_string(), &n.to_string()).unwrap()).collect();
    for record in &all {
        store.put_node(record).unwrap();
    }
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    let late = std::cell::RefCell::new(None);
    let garbage = store
        .collect(
            &Roots::default(),
            &mut |plan| {
                assert_eq!(plan.garbage.nodes, 3);
                let run = Store::open(directory.path()).unwrap();
                run.need_hits([(all[0].key, all[0].artifact)]).unwrap();
                // The same bytes again: what is there is not written twice, and garbage until now.
                let again = record(&run, "1", "1").unwrap();
                assert_eq!(again.artifact, all[1].artifact);
                *late.borrow_mut() = Some(run);
                true
            },
            &mut || {},
        )
        .unwrap()
        .unwrap();
    assert_eq!((garbage.nodes, garbage.artifacts, garbage.objects), (2, 1, 1));
    let mut kept = [all[0].artifact, all[1].artifact];
    kept.sort_unstable();
    assert_eq!(store.artifact_ids().unwrap(), kept);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_whole());

    // A step moved it away before it was named.
    drop(late);
    let mut sweep = Sweep::new(&store, Box::leak(Box::new(|| {})));
    sweep.go(Item::Node(all[0].key)).unwrap();
    sweep.go(Item::Artifact(all[0].artifact)).unwrap();
    let object = store.manifest(&all[1].artifact).unwrap().files["rows.jsonl"].digest;
    sweep.go(Item::Object(object)).unwrap();
    assert!(store.node(&all[0].key).unwrap().is_none());
    let run = Store::open(directory.path()).unwrap();
    run.need_hits([(all[0].key, all[0].artifact)]).unwrap();
    run.need_artifacts([all[1].artifact]).unwrap();
    sweep.listen().unwrap();
    assert_eq!(store.node(&all[0].key).unwrap().unwrap(), all[0]);
    // The record's key is no digest of what it says.
    let findings = store.verify(&mut |_, _| {}).unwrap().findings;
    assert!(findings.iter().all(|finding| finding.what == "node"), "{findings:?}");
}

#[test]
fn a_gc_that_was_killed_is_undone_by_the_next() {
    let directory = tempfile::tempdir().unwrap();
    let store = put(directory.path());
    let [a, b] = ["a", "b"].map(|node| record(&store, node, node).unwrap());
    for record in [&a, &b] {
        store.put_node(record).unwrap();
        store.put_run(&run(&format!("2026010{}-000000-aaaa", 1 + u32::from(record.node == "b")), &[record])).unwrap();
    }
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    let plan = store.plan_gc(&Roots { keep_runs: 1, ..Roots::default() }).unwrap();
    let count = plan.items.len();
    // Moved, and never deleted.
    let mut sweep = Sweep::new(&store, Box::leak(Box::new(|| {})));
    for item in plan.items {
        sweep.go(item).unwrap();
    }
    assert_eq!(count, 4);
    assert!(store.node(&a.key).unwrap().is_none());
    assert!(store.verify(&mut |_, _| {}).unwrap().is_whole());
    // With other roots it is wanted.
    assert_eq!(store.gc(2, false).unwrap(), Garbage::default());
    assert_eq!(store.node(&a.key).unwrap().unwrap(), a);
    assert!(store.verify(&mut |_, _| {}).unwrap().is_whole());
    assert_eq!(store.gc(1, false).unwrap().nodes, 1);
}

#[test]
fn locks_of_keys_that_are_worked_on_stay() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let [held, free] = [Digest::of(b"held"), Digest::of(b"free")];
    let lock = store.try_lock_key(&held).unwrap().unwrap();
    drop(store.try_lock_key(&free).unwrap());
    for key in [held, free] {
        fs::write_atomic(&store.staging_dir(&key).unwrap().join("x"), b"x").unwrap();
    }
    let planned = store.gc(0, true).unwrap();
    assert_eq!((planned.files, planned.bytes), (1, 1));
    assert_eq!(store.gc(0, false).unwrap(), planned);
    assert!(store.key_lock_path(&held).exists() && !store.key_lock_path(&free).exists());
    drop(lock);
    assert_eq!(store.gc(0, false).unwrap().files, 1);
    let left = fs::list(&store.tmp()).unwrap();
    assert!(left.is_empty());
}

/// A chain and its leaves: name, what it takes, seconds, device, bytes, day.
type Node = (&'static str, &'static [&'static str], f64, &'static str, usize, u8);

/// A store with one run of these nodes.
fn priced(directory: &Path, nodes: &[Node]) -> BTreeMap<String, NodeRecord> {
    let store = put(directory);
    let mut all: BTreeMap<String, NodeRecord> = BTreeMap::new();
    for (name, inputs, seconds, device, bytes, day) in nodes {
        let text = format!("{name}{}", "x".repeat(bytes - name.len()));
        let mut one = record(&store, name, &text).unwrap();
        one.inputs = inputs.iter().map(|input| ((*input).to_owned(), all[*input].artifact)).collect();
        (one.seconds, one.device, one.started) =
            (*seconds, (*device).to_owned(), format!("2026-01-{day:02}T00:00:00Z"));
        store.put_node(&one).unwrap();
        all.insert((*name).to_owned(), one);
    }
    let mut ran = run("20251231-000000-aaaa", &all.values().collect::<Vec<_>>());
    ran.started = "2025-12-31T00:00:00Z".into();
    store.put_run(&ran).unwrap();
    all
}

/// Names of what goes when so many bytes less may stay than there are, in the order of names.
fn evicted(directory: &Path, all: &BTreeMap<String, NodeRecord>, by: By, less: u64) -> (String, Room) {
    let store = Store::open(directory).unwrap();
    let roots = |keep| Roots { keep_runs: 9, latest: true, budget: Some(Budget { keep, by }), ..Roots::default() };
    let before = store.plan_gc(&roots(u64::MAX)).unwrap();
    assert!(before.is_empty() && before.items.is_empty());
    let held = before.room.unwrap().left;
    let plan = store.plan_gc(&roots(held - less)).unwrap();
    let names = all.iter().filter(|(_, record)| plan.items.contains(&Item::Node(record.key)));
    let room = plan.room.unwrap();
    // What is said to be left is what is left.
    assert_eq!(held - room.left, plan.garbage.bytes);
    (names.map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" "), room)
}

#[test]
fn below_a_budget_the_cheapest_goes_first_and_the_oldest() {
    let directory = tempfile::tempdir().unwrap();
    let all = priced(
        directory.path(),
        &[
            ("cheap", &[], 1.0, "cpu", 10_000, 9),
            ("dear", &[], 1000.0, "cpu", 10_000, 1),
            // Ten times as dear as it looks.
            ("gpu", &[], 200.0, "cuda:0", 10_000, 5),
            // As dear as `cheap`, for a byte.
            ("small", &[], 0.2, "cpu", 1_000, 2),
        ],
    );
    let goes = |by, less| evicted(directory.path(), &all, by, less).0;
    assert_eq!(goes(By::Price, 0), "");
    assert_eq!(goes(By::Price, 1), "cheap");
    assert_eq!(goes(By::Price, 11_200), "cheap small");
    assert_eq!(goes(By::Price, 15_000), "cheap dear small");
    assert_eq!(goes(By::Price, 25_000), "cheap dear gpu small");
    assert_eq!(goes(By::Age, 1), "dear");
    assert_eq!(goes(By::Age, 11_200), "dear small");
    assert_eq!(goes(By::Age, 15_000), "dear gpu small");
}

#[test]
fn what_was_made_of_what_is_gone_is_dearer() {
    let directory = tempfile::tempdir().unwrap();
    let all = priced(
        directory.path(),
        &[
            ("base", &[], 500.0, "cpu", 100_000, 1),
            ("leaf", &["base"], 10.0, "cpu", 1_000, 2),
            ("other", &[], 50.0, "cpu", 1_000, 3),
        ],
    );
    let goes = |less| evicted(directory.path(), &all, By::Price, less).0;
    // For a byte `base` is cheapest; without it `leaf` costs 510 seconds and `other` 50, with it 10.
    assert_eq!(goes(1), "base");
    assert_eq!(goes(101_200), "base other");
    assert_eq!(goes(103_000), "base leaf other");
}

#[test]
fn pins_and_the_living_are_never_evicted() {
    let directory = tempfile::tempdir().unwrap();
    let all = priced(
        directory.path(),
        &[
            ("input", &[], 1.0, "cpu", 10_000, 1),
            ("pinned", &["input"], 1.0, "cpu", 10_000, 1),
            ("used", &[], 1.0, "cpu", 10_000, 1),
            ("free", &[], 1.0, "cpu", 10_000, 1),
        ],
    );
    let living = Store::open(directory.path()).unwrap();
    living.pin(&all["pinned"].artifact).unwrap();
    living.need_hits([(all["used"].key, all["used"].artifact)]).unwrap();
    for by in [By::Price, By::Age] {
        let (goes, room) = evicted(directory.path(), &all, by, 35_000);
        assert_eq!(goes, "free");
        assert!(room.left > room.keep);
        assert_eq!(room.evicted, 1);
    }
    let store = Store::open(directory.path()).unwrap();
    let roots = Roots { budget: Some(Budget { keep: 0, by: By::Price }), ..Roots::default() };
    store.collect(&roots, &mut |_| true, &mut || {}).unwrap();
    assert_eq!(store.artifact_ids().unwrap().len(), 3);
    // The record's key is no digest of what it says.
    let findings = store.verify(&mut |_, _| {}).unwrap().findings;
    assert!(findings.iter().all(|finding| finding.what == "node"), "{findings:?}");
}

#[test]
fn checkpoints_and_shared_objects_count_and_go_by_rule() {
    let directory = tempfile::tempdir().unwrap();
    let all = priced(directory.path(), &[("a", &[], 1000.0, "cpu", 10_000, 1)]);
    let store = put(directory.path());
    // The same bytes under another name: to let `a` go alone frees nothing but its manifest and record.
    let object = store.manifest(&all["a"].artifact).unwrap().files["rows.jsonl"];
    let twin = crate::store::Manifest { kind: "files".into(), files: [("else".to_owned(), object)].into() };
    let twin = NodeRecord {
        artifact: store.put_manifest(&twin).unwrap(),
        key: Digest::of(b"twin"),
        seconds: 5000.0,
        ..record(&store, "a", "other").unwrap()
    };
    store.put_node(&twin).unwrap();
    store.put_run(&run("20260102-000000-aaaa", &[&twin, &all["a"]])).unwrap();
    let killed = Digest::of(b"killed");
    fs::write_atomic(&store.partial_dir(&killed).unwrap().join("checkpoint"), &vec![0; 20_000]).unwrap();
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    store.gc(9, false).unwrap();
    let roots = |keep| Roots { keep_runs: 9, budget: Some(Budget { keep, by: By::Price }), ..Roots::default() };
    let held = store.plan_gc(&roots(u64::MAX)).unwrap().room.unwrap().left;
    let plan = store.plan_gc(&roots(held - 1)).unwrap();
    assert_eq!((&plan.items[..], plan.garbage.bytes), (&[Item::Partial(killed)][..], 20_000));
    let plan = store.plan_gc(&roots(held - 25_000)).unwrap();
    assert_eq!(plan.room.unwrap().evicted, 2);
    // Someone works at it.
    let lock = store.try_lock_key(&killed).unwrap();
    assert_eq!(store.plan_gc(&roots(0)).unwrap().room.unwrap().evicted, 2);
    store.collect(&roots(0), &mut |_| true, &mut || {}).unwrap();
    assert!(store.root.join("partial").join(killed.to_string()).exists());
    drop(lock);
    store.collect(&roots(0), &mut |_| true, &mut || {}).unwrap();
    assert!(!store.root.join("partial").join(killed.to_string()).exists());
}

#[test]
fn models_in_pieces_keep_the_pieces_that_they_share() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = put(directory.path());
    store.thin_from = 1;
    let model = |name: &str, values: &[u8]| {
        let path = store.tmp().join(name);
        let file = tensors(&[("a", &vec![values[0]; 100_000]), ("b", &vec![values[1]; 100_000])]);
        fs::write_atomic(&path, &file).unwrap();
        let artifact = store.put_artifact("model", &[("model.safetensors".to_owned(), path)].into()).unwrap();
        let made = NodeRecord { artifact, key: Digest::of(name.as_bytes()), ..record(&store, name, name).unwrap() };
        store.put_node(&made).unwrap();
        store.put_run(&run(&format!("2026010{}-000000-aaaa", values[1]), &[&made])).unwrap();
        made
    };
    let (base, tuned) = (model("base", &[1, 2]), model("tuned", &[1, 3]));
    assert_eq!(store.recipe_ids().unwrap().len(), 2);
    drop(store);
    let store = Store::open(directory.path()).unwrap();
    // Of the base alone are one tensor (the headers are the same) and its recipe; and the text that `record` put, twice.
    let planned = store.gc(1, true).unwrap();
    assert_eq!((planned.nodes, planned.objects), (1, 4));
    assert_eq!(store.gc(1, false).unwrap(), planned);
    assert_eq!(store.recipe_ids().unwrap().len(), 1);
    assert!(store.node(&base.key).unwrap().is_none());
    assert_eq!(
        store.health(&tuned.artifact, &mut crate::store::Stamps::default()).unwrap(),
        crate::store::Health::Whole
    );
    // The record's key is no digest of what it says.
    let findings = store.verify(&mut |_, _| {}).unwrap().findings;
    assert!(findings.iter().all(|finding| finding.what == "node"), "{findings:?}");
}
