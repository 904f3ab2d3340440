//! Verification finds what is wrong, whatever was done to the store.

use super::super::record::tests::{record, run};
use super::super::{Index, NodeRecord, Stamps};
use super::*;
use crate::fs;
use crate::fs::with_fault;
use std::path::Path;

/// All that a small run does to the store.
fn work(root: &Path, outside: &Path, text: &str) -> Result<Digest, StoreError> {
    let store = Store::open(root)?;
    let mut index = Index::open(&store)?;
    let mut a = record(&store, "a", text)?;
    let staging = store.staging_dir(&a.key)?;
    fs::write_atomic(&staging.join("rows.jsonl"), text.as_bytes())?;
    let _lock = store.lock_key(&a.key, &mut || {})?;
    store.partial_dir(&a.key)?;
    let files = [("made".to_owned(), staging.join("rows.jsonl")), ("taken".to_owned(), outside.to_owned())];
    a.artifact = store.put_artifact("files", &files.into())?;
    store.put_node(&a)?;
    store.clear_partial(&a.key)?;
    store.put_run(&run(&a.run, &[&a]))?;
    index.add_node(&a);
    let mut stamps = index.stamps();
    store.health(&a.artifact, &mut stamps)?;
    index.save_stamps(&stamps);
    Ok(a.key)
}

#[test]
fn whichever_disk_operation_fails_the_old_or_the_new_state_is_there_and_whole() {
    let directory = tempfile::tempdir().unwrap();
    let outside = directory.path().join("outside");
    fs::write_atomic(&outside, b"outside").unwrap();
    for n in 1.. {
        let root = directory.path().join(n.to_string());
        let (result, reached) = with_fault(n, || work(&root, &outside, "text"));
        if let Err(error) = &result {
            assert_eq!(error.diagnostic().id, "store::full", "{error}");
        }
        let store = Store::open(&root).unwrap();
        let findings = store.verify(&mut |_, _| {}).unwrap().findings;
        assert!(findings.is_empty(), "after operation {n} failed: {findings:?}");
        for key in store.node_keys().unwrap() {
            let record = store.node(&key).unwrap().unwrap();
            assert_eq!(store.health(&record.artifact, &mut Stamps::default()).unwrap(), super::super::Health::Whole);
        }
        drop(store);
        // The same again, with room on the disk, ends as if nothing had happened.
        let key = work(&root, &outside, "text").unwrap();
        let store = Store::open(&root).unwrap();
        let record = store.node(&key).unwrap().unwrap();
        let files = store.files(&record.artifact).unwrap();
        assert_eq!(fs_err::read_to_string(&files["made"]).unwrap(), "text");
        assert_eq!(fs_err::read_to_string(&files["taken"]).unwrap(), "outside");
        if !reached {
            assert!(n > 30, "only {n} operations");
            break;
        }
    }
}

#[test]
fn whichever_operation_of_gc_fails_no_record_is_without_its_artifact() {
    for n in 1.. {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let [old, new] = ["old", "new"].map(|node| record(&store, node, node).unwrap());
        for (record, id) in [(&old, "20260101-000000-aaaa"), (&new, "20260102-000000-aaaa")] {
            store.put_node(record).unwrap();
            store.put_run(&run(id, &[record])).unwrap();
        }
        let (result, reached) = with_fault(n, || store.gc(1, false));
        // The first is the lock; where there is no room to move things away they are deleted at once.
        assert!(n > 1 || result.is_err());
        assert!(store.verify(&mut |_, _| {}).unwrap().is_whole(), "after operation {n} failed");
        assert!(store.node(&new.key).unwrap().is_some());
        store.gc(1, false).unwrap();
        assert!(store.node(&old.key).unwrap().is_none());
        if !reached {
            break;
        }
    }
}

#[test]
fn verify_finds_what_was_changed_cut_short_or_lost() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|node| record(&store, node, node).unwrap());
    for record in [&a, &b, &c] {
        store.put_node(record).unwrap();
    }
    let object = store.files(&a.artifact).unwrap()["rows.jsonl"].clone();
    fs_err::set_permissions(&object, PermissionsExt::from_mode(0o644)).unwrap();
    fs_err::write(&object, "z").unwrap();
    fs::remove_file(&store.files(&b.artifact).unwrap()["rows.jsonl"]).unwrap();
    fs_err::write(store.manifest_path(&c.artifact), "{}").unwrap();
    fs_err::write(store.node_path(&b.key), "{}").unwrap();
    let found = store.verify(&mut |_, _| {}).unwrap().findings;
    let found: Vec<_> = found
        .iter()
        .map(|f| (f.state.name(), f.what, f.nodes.iter().map(String::as_str).collect::<Vec<_>>()))
        .collect();
    assert_eq!(
        found,
        [
            ("damaged", "manifest", vec!["c"]),
            ("damaged", "node", vec![]),
            ("missing", "object", vec![]),
            ("damaged", "object", vec!["a"]),
        ]
    );
    let usage = store.shares(&mut Index::open(&store).unwrap()).unwrap();
    assert!(usage.parts.iter().any(|share| share.part == "objects: files"));
}

/// A store of two nodes, `b` takes what `a` made, that a run recorded, with a pin and rows.
fn filled(root: &Path) -> (Store, NodeRecord, NodeRecord) {
    let store = Store::open(root).unwrap();
    let a = record(&store, "a", "one").unwrap();
    let mut b = record(&store, "b", "two").unwrap();
    b.inputs.insert("data".into(), a.artifact);
    for record in [&a, &b] {
        store.put_node(record).unwrap();
    }
    store.put_run(&run(&a.run, &[&a, &b])).unwrap();
    store.pin(&a.artifact).unwrap();
    (store, a, b)
}

fn found(store: &Store) -> Vec<Finding> {
    store.verify(&mut |_, _| {}).unwrap().findings
}

#[test]
fn whatever_does_not_belong_into_a_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let (store, a, _) = filled(directory.path());
    let id = Digest::of(b"nothing");
    let strays = [
        "objects/ab/short".to_owned(),
        "objects/loose".to_owned(),
        "objects/abc/x".to_owned(),
        "artifacts/ab/x.json".to_owned(),
        format!("artifacts/ab/{}", &id.to_string()[2..]),
        "nodes/README".to_owned(),
        format!("external/{id}.json"),
        "external/x".to_owned(),
        "runs/loose".to_owned(),
        "rows/loose".to_owned(),
        "pins/mine".to_owned(),
        "thesis.tex".to_owned(),
    ];
    for stray in &strays {
        let path = directory.path().join(stray);
        fs::create_directory(path.parent().unwrap()).unwrap();
        fs::write(&path, if stray.starts_with("external") { "{\"directory\": \"/x\"}" } else { "x" }).unwrap();
    }
    let seen = store.verify(&mut |_, _| {}).unwrap();
    assert!(seen.findings.iter().all(|finding| finding.state == State::Foreign && finding.nodes.is_empty()));
    assert_eq!(seen.findings.len(), strays.len(), "{:?}", seen.findings);
    // They are moved aside, nothing else is.
    assert_eq!(store.repair(&seen, &mut || {}).unwrap().len(), strays.len());
    assert!(found(&store).is_empty());
    assert_eq!(fs::list(&directory.path().join("quarantine")).unwrap().len(), strays.len());
    assert!(store.node(&a.key).unwrap().is_some());
}

#[test]
fn a_record_of_which_any_byte_changed_is_found_and_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let (store, a, _) = filled(directory.path());
    let index = Index::open(&store).unwrap();
    drop(index);
    let path = store.node_path(&a.key);
    let whole = fs_err::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 7);
        fs_err::write(&path, &bytes).unwrap();
        let findings = found(&store);
        // The name of the digest itself may change: then there is none to hold the rest to, and the rest is as it was.
        let named = String::from_utf8_lossy(&whole[..at]).rfind('"').map(|quote| &whole[quote..]);
        if named.is_some_and(|rest| rest.starts_with(b"\"check")) {
            continue;
        }
        assert_eq!(findings.len(), 1, "byte {at}: {findings:?}");
        assert_eq!((findings[0].what, &findings[0].nodes[..]), ("node", &["a".to_owned()][..]), "byte {at}");
        assert_eq!(store.node(&a.key).unwrap(), None);
        // It ran again.
        store.put_node(&a).unwrap();
        assert!(found(&store).is_empty());
    }
}

#[test]
fn a_record_that_is_gone_is_missed_once() {
    let directory = tempfile::tempdir().unwrap();
    let (store, a, _) = filled(directory.path());
    drop(Index::open(&store).unwrap());
    fs::remove_file(&store.node_path(&a.key)).unwrap();
    fs::remove_file(&store.run_dir(&a.run).join("run.json")).unwrap();
    let findings = found(&store);
    let told: Vec<_> = findings.iter().map(|found| (found.state, found.what)).collect();
    assert_eq!(told, [(State::Missing, "node"), (State::Missing, "run")]);
    // The index forgot it, so that the next run does what was said.
    assert!(!Index::open(&store).unwrap().artifacts_by_key().contains_key(&a.key));
    assert!(found(&store).is_empty());
}

#[test]
fn nested_and_huge_files_are_damaged_files_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let (store, a, b) = filled(directory.path());
    fs_err::write(store.node_path(&a.key), "[".repeat(10_000_000)).unwrap();
    fs_err::OpenOptions::new().write(true).open(store.node_path(&b.key)).unwrap().set_len(1 << 42).unwrap();
    let run = store.run_dir(&a.run).join("run.json");
    fs_err::write(&run, format!("{}1{}", "{\"a\":".repeat(1_000_000), "}".repeat(1_000_000))).unwrap();
    fs_err::OpenOptions::new().write(true).open(store.manifest_path(&a.artifact)).unwrap().set_len(1 << 42).unwrap();
    let findings = found(&store);
    assert_eq!(findings.len(), 4, "{findings:?}");
    assert!(findings.iter().all(|finding| finding.state == State::Damaged), "{findings:?}");
    assert_eq!((store.node(&a.key).unwrap(), store.node(&b.key).unwrap()), (None, None));
    assert!(store.runs().unwrap().is_empty());
    for record in [&a, &b] {
        let blob = store.put_bytes(if record.node == "a" { b"one" } else { b"two" }).unwrap();
        let files = [("rows.jsonl".to_owned(), blob)].into();
        store.put_manifest(&super::super::Manifest { kind: "files".into(), files }).unwrap();
        store.put_node(record).unwrap();
    }
    fs::remove_file(&run).unwrap();
    assert!(found(&store).is_empty());
}

#[test]
fn what_an_older_version_recorded_has_no_digest_and_is_sound() {
    let directory = tempfile::tempdir().unwrap();
    let (store, a, _) = filled(directory.path());
    fs_err::write(store.node_path(&a.key), serde_json::to_vec_pretty(&a).unwrap()).unwrap();
    assert_eq!(store.node(&a.key).unwrap().unwrap(), a);
    assert!(found(&store).is_empty());
    let mut other = a.clone();
    other.preimage["fields"]["program"] = "rm".into();
    fs_err::write(store.node_path(&a.key), serde_json::to_vec_pretty(&other).unwrap()).unwrap();
    assert!(found(&store)[0].how.contains("hashed to its key"));
}
