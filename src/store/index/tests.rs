use super::*;
use crate::store::record::tests::{record, run};

fn filled(root: &Path) -> (Store, Vec<NodeRecord>) {
    let store = Store::open(root).unwrap();
    let a = record(&store, "a", "one").unwrap();
    let mut b = record(&store, "b", "two").unwrap();
    b.inputs.insert("data".into(), a.artifact);
    for record in [&a, &b] {
        store.put_node(record).unwrap();
    }
    store.put_run(&run(&a.run, &[&a, &b])).unwrap();
    (store, vec![a, b])
}

#[test]
fn the_index_is_made_from_the_files_whatever_is_in_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled(directory.path());
    let path = directory.path().join("index.sqlite");
    let garbage: &[&[u8]] = &[b"", b"not a database, but long enough to have a header of a hundred bytes............................................................"];
    for garbage in garbage {
        fs::write_atomic(&path, garbage).unwrap();
        let index = Index::open(&store).unwrap();
        assert_eq!(index.artifacts_by_key()[&records[0].key], records[0].artifact);
        assert_eq!(index.latest_keys("toy")["b"], records[1].key);
        assert_eq!(index.figures()[&records[0].key].0, 0.5);
        assert_eq!(index.makers(&records[0].artifact)[0].node, "a");
        assert_eq!(index.users(&records[0].artifact)[0].field, "data");
    }
    assert!(fs::list(&store.tmp()).unwrap().is_empty());
}

/// An index as an earlier version made it, and as a later one might.
#[test]
fn an_index_of_another_schema_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled(directory.path());
    drop(Index::open(&store).unwrap());
    for schema in [SCHEMA - 1, SCHEMA + 1, 0] {
        let old = Connection::open(directory.path().join("index.sqlite")).unwrap();
        let change = "DROP INDEX nodes_node; CREATE INDEX nodes_node ON nodes (node, made); DELETE FROM nodes";
        old.execute_batch(&format!("{change}; PRAGMA user_version = {schema}")).unwrap();
        drop(old);
        assert!(Glimpse::open(directory.path()).is_none(), "words are completed from no other schema");
        let index = Index::open(&store).unwrap();
        assert_eq!(index.keys_of_node("toy", "a", 5), [records[0].key]);
        assert_eq!(index.artifacts_by_key().len(), 2);
        assert!(Glimpse::open(directory.path()).is_some());
    }
}

#[test]
fn two_processes_share_it_and_seals_survive() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled(directory.path());
    let (mut one, mut two) = (Index::open(&store).unwrap(), Index::open(&store).unwrap());
    let keys = BTreeMap::from([("a".to_owned(), records[1].key)]);
    one.set_latest("toy", &keys);
    two.remember_source(&records[0].key, &records[0].artifact);
    assert_eq!(two.latest_keys("toy")["a"], records[1].key);
    assert_eq!(one.source(&records[0].key), Some(records[0].artifact));
    std::thread::sleep(Duration::from_millis(60));
    let mut stamps = one.stamps();
    store.health(&records[0].artifact, &mut stamps).unwrap();
    one.save_stamps(&stamps);
    let mut stamps = two.stamps();
    store.health(&records[0].artifact, &mut stamps).unwrap();
    assert_eq!(stamps.changes().count(), 0);
}

#[test]
#[ignore = "a measurement: writes 10,000 artifacts, then prints the time of the pass of a run with nothing to do"]
#[expect(clippy::print_stderr, reason = "a measurement is for reading")]
fn ten_thousand_nodes() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut keys = BTreeMap::new();
    for number in 0..10_000 {
        let name = format!("node-{number}");
        let record = record(&store, &name, &name).unwrap();
        store.put_node(&record).unwrap();
        keys.insert(name, record.key);
    }
    std::thread::sleep(Duration::from_millis(60));
    let mut index = Index::open(&store).unwrap();
    index.set_latest("toy", &keys);
    for pass in ["first", "second"] {
        let start = std::time::Instant::now();
        let (artifacts, mut stamps) = (index.artifacts_by_key(), index.stamps());
        let (latest, figures) = (index.latest_keys("toy"), index.figures());
        let loaded = start.elapsed();
        let mut artifacts: Vec<_> = artifacts.into_values().collect();
        artifacts.sort_unstable();
        for artifact in &artifacts {
            assert_eq!(store.health(artifact, &mut stamps).unwrap(), crate::store::Health::Whole);
        }
        eprintln!("{pass}: loaded {loaded:?}, in all {:?}; {} figures", start.elapsed(), figures.len());
        assert_eq!(latest.len(), 10_000);
        index.save_stamps(&stamps);
    }
}

#[test]
fn names_and_prefixes_resolve() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled(directory.path());
    let index = Index::open(&store).unwrap();
    let [a, b] = &records[..] else { panic!() };
    assert_eq!(index.resolve(&store, "a").unwrap(), a.artifact);
    assert_eq!(index.resolve(&store, &b.artifact.short()).unwrap(), b.artifact);
    assert_eq!(index.resolve(&store, &b.key.short()).unwrap(), b.artifact);
    assert!(matches!(index.resolve(&store, "nothing"), Err(StoreError::Unknown(_))));
    assert!(matches!(index.resolve(&store, "ffffffffffff"), Err(StoreError::Unknown(_))));
}

#[test]
fn what_is_written_after_the_index_was_replaced_is_in_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled(directory.path());
    let mut open = Index::open(&store).unwrap();
    let keys = BTreeMap::from([("n".to_owned(), records[0].key)]);
    drop(Index::rebuild(&store).unwrap());
    open.set_latest("another", &keys);
    assert_eq!(Index::open(&store).unwrap().latest_keys("another").len(), 1);
    // One that is taken away altogether is no error.
    fs::remove_file(&store.root().join("index.sqlite")).unwrap();
    open.set_latest("third", &keys);
    assert!(Index::open(&store).unwrap().latest_keys("third").is_empty());
}

/// SQLite finds a journal by the name of the file: one in whose place another was put would play back the journal of that.
#[test]
fn who_has_the_index_open_while_it_is_made_again_reads_the_new_one() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled(directory.path());
    let open = Index::open(&store).unwrap();
    let lost = "DELETE FROM nodes; DELETE FROM latest; PRAGMA user_version = 1";
    open.connection.execute_batch(lost).unwrap();
    assert_eq!(open.latest_of("b"), None);
    let writer = Index::rebuild(&store).unwrap();
    assert_eq!((writer.at, open.latest_of("b")), (open.at, Some(records[1].key)));
    writer.connection.execute_batch("BEGIN IMMEDIATE; UPDATE nodes SET seconds = 7").unwrap();
    assert_eq!(open.artifacts_by_key().len(), 2);
    writer.connection.execute_batch("ROLLBACK").unwrap();
    assert_eq!(open.figures()[&records[0].key].0, 0.5);
}

#[test]
fn an_index_is_made_again_when_others_have_done_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let (store, records) = filled(directory.path());
    let reader = Index::open(&store).unwrap();
    reader.connection.execute_batch("BEGIN; SELECT * FROM nodes").unwrap();
    std::thread::scope(|scope| {
        let rebuild = scope.spawn(|| Index::rebuild(&store).map(|index| index.latest_of("b")));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!rebuild.is_finished());
        reader.connection.execute_batch("COMMIT").unwrap();
        assert_eq!(rebuild.join().unwrap().unwrap(), Some(records[1].key));
    });
    assert!(fs::list(&store.tmp()).unwrap().is_empty());
}
