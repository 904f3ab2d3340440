//! Verification finds what is wrong, whatever was done to the store.

use super::super::record::tests::{record, run};
use super::super::{Index, Stamps};
use super::*;
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
        assert_eq!(result.is_err() && n < 4, reached && n < 4);
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
            ("damaged", "object", vec!["a"]),
            ("missing", "object", vec![]),
        ]
    );
    assert!(store.usage().unwrap().iter().any(|share| share.part == "objects: files"));
}
