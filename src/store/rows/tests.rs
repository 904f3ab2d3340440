use super::*;
use serde_json::Value;

fn about(paid: bool) -> About {
    About { what: "sample".into(), models: vec![key(0)], fields: Value::Null, class: None, paid, model: None }
}

fn key(n: u64) -> Digest {
    Digest::of(&n.to_le_bytes())
}

fn store() -> (tempfile::TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("cache")).unwrap();
    (folder, store)
}

/// Adds the rows of these numbers in a use of its own.
fn add(store: &Store, space: u64, rows: std::ops::Range<u64>) {
    let mut open = store.open_rows(&key(space), about(false)).unwrap();
    let values: Vec<String> = rows.clone().map(|n| format!("\"result {n}\"")).collect();
    let batch: Vec<NewRow<'_>> = rows
        .zip(&values)
        .map(|(n, value)| NewRow { key: key(n), value, note: (n % 2 == 0).then_some("asked") })
        .collect();
    open.add(&batch).unwrap();
    open.finish("node");
}

/// Which of the rows 0..count are known; each must have its own result.
fn known(store: &Store, space: u64, count: u64) -> Vec<u64> {
    let keys: Vec<Digest> = (0..count).map(key).collect();
    let mut open = store.open_rows(&key(space), about(false)).unwrap();
    let mut found = Vec::new();
    open.read(&keys, |at, value| {
        assert_eq!(value, format!("\"result {at}\""));
        found.push(at as u64);
        true
    })
    .unwrap();
    found.sort_unstable();
    found
}

fn directory(store: &Store, space: u64) -> PathBuf {
    store.rows_dir(&key(space)).unwrap()
}

fn all(count: u64) -> Vec<u64> {
    (0..count).collect()
}

fn age(path: &Path, hours: u64) {
    let file = fs_err::OpenOptions::new().append(true).open(path).unwrap();
    file.file().set_modified(fs::system_now() - Duration::from_secs(3600 * hours)).unwrap();
}

#[test]
fn segments_that_are_merged_while_they_are_read_are_no_trouble() {
    let (_folder, store) = store();
    for n in 0..20 {
        let mut open = store.open_rows(&key(1), about(false)).unwrap();
        open.add(&[NewRow { key: key(n), value: "1", note: None }]).unwrap();
        open.seal().unwrap();
    }
    let mut open = store.open_rows(&key(1), about(false)).unwrap();
    // As where locks do not reach.
    drop(open.lock.take());
    open.read(&(0..20).map(key).collect::<Vec<_>>(), |_, _| true).unwrap();
    merge::merge(&directory(&store, 1)).unwrap();
    let mut found = 0;
    let seen = |_: usize, _: &str| {
        found += 1;
        true
    };
    open.read(&(0..20).map(key).collect::<Vec<_>>(), seen).unwrap();
    assert_eq!(found, 20);
    open.touch().unwrap();
}

#[test]
fn rows_are_found_with_tables_without_them_and_with_wrong_ones() {
    let (_folder, store) = store();
    add(&store, 1, 0..10_000);
    add(&store, 1, 10_000..10_100);
    let paths = segments(&directory(&store, 1)).unwrap();
    assert_eq!(paths.len(), 2);
    assert_eq!(known(&store, 1, 10_200), all(10_100));
    for path in &paths {
        fs_err::remove_file(table::beside(path)).unwrap();
    }
    assert_eq!(known(&store, 1, 10_200), all(10_100));
    // A table of places that hold something else gives nothing wrong.
    let wrong = (0..10_000).map(|n| (key(n), Place { offset: n * 7, length: 40 })).collect();
    Table::of(wrong).write(&paths[0]).unwrap();
    assert_eq!(known(&store, 1, 10_200), (10_000..10_100).collect::<Vec<_>>());
    let far = (0..10_000).map(|n| (key(n), Place { offset: u64::MAX - n, length: u32::MAX })).collect();
    Table::of(far).write(&paths[0]).unwrap();
    assert_eq!(known(&store, 1, 10_200), (10_000..10_100).collect::<Vec<_>>());
}

#[test]
fn rows_of_an_older_version_are_read() {
    let (_folder, store) = store();
    let line = |n: u64| {
        let (key, value) = (key(n), format!("\"result {n}\""));
        format!("{key} {} {value}\n", Digest::of(format!("{key} {value}").as_bytes()).short())
    };
    let text: String = (0..30).map(line).collect();
    fs_err::write(directory(&store, 1).join("1700000000000000000-17-0.jsonl"), text).unwrap();
    assert_eq!(known(&store, 1, 40), all(30));
    let listed = store.rows_list().unwrap();
    assert_eq!((listed[0].rows, &listed[0].about), (30, &None));
}

#[test]
fn every_torn_end_and_every_changed_byte_costs_its_rows_and_no_other() {
    let (_folder, store) = store();
    add(&store, 1, 0..4);
    let path = segments(&directory(&store, 1)).unwrap().remove(0);
    let bytes = fs_err::read(&path).unwrap();
    let ends: Vec<usize> = (1..=bytes.len()).filter(|at| bytes[at - 1] == b'\n').collect();
    for with_table in [true, false] {
        if !with_table {
            fs_err::remove_file(table::beside(&path)).unwrap();
        }
        for length in 0..bytes.len() {
            fs_err::write(&path, &bytes[..length]).unwrap();
            let whole = ends.iter().filter(|end| **end <= length).count() as u64;
            // A line that lacks nothing but its end is not torn.
            let nearly = u64::from(ends.contains(&(length + 1)));
            let found = known(&store, 1, 5);
            assert!(found == all(whole) || found == all(whole + nearly), "{length}: {found:?}");
        }
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 8;
            fs_err::write(&path, &damaged).unwrap();
            let line = ends.iter().position(|end| at < *end).unwrap() as u64;
            let found = known(&store, 1, 5);
            let lost = |n: &u64| *n != line && (damaged[at] == b'\n' || bytes[at] != b'\n' || *n != line + 1);
            assert_eq!(found, (0..4).filter(lost).collect::<Vec<_>>(), "byte {at}");
        }
        fs_err::write(&path, &bytes).unwrap();
    }
}

#[test]
fn attempts_write_beside_each_other_and_see_what_was_there() {
    let (_folder, store) = store();
    let mut one = store.open_rows(&key(1), about(false)).unwrap();
    let mut two = store.open_rows(&key(1), about(false)).unwrap();
    one.add(&[NewRow { key: key(0), value: "\"result 0\"", note: None }]).unwrap();
    two.add(&[NewRow { key: key(1), value: "\"result 1\"", note: None }]).unwrap();
    assert_eq!(known(&store, 1, 3), all(2));
    one.finish("one");
    two.finish("two");
    assert_eq!(known(&store, 1, 3), all(2));
}

#[test]
fn threads_and_merges_lose_no_row() {
    let (_folder, store) = store();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for turn in 0..12 {
                    let first = (thread * 12 + turn) * 5;
                    add(store, 1, first..first + 5);
                    known(store, 1, 240);
                }
            });
        }
    });
    assert_eq!(known(&store, 1, 300), all(240));
    add(&store, 1, 240..241);
    assert!(segments(&directory(&store, 1)).unwrap().len() < 17, "merged");
    assert_eq!(known(&store, 1, 300), all(241));
}

#[test]
fn merging_can_fail_anywhere_and_loses_nothing() {
    let (_folder, store) = store();
    for n in 0..20 {
        let mut open = store.open_rows(&key(1), about(false)).unwrap();
        open.add(&[NewRow { key: key(n), value: &format!("\"result {n}\""), note: None }]).unwrap();
        open.seal().unwrap();
    }
    let directory = directory(&store, 1);
    assert_eq!(segments(&directory).unwrap().len(), 20);
    for n in 1.. {
        let (_, reached) = fs::with_fault(n, || merge::merge(&directory));
        assert_eq!(known(&store, 1, 30), all(20));
        if !reached {
            break;
        }
    }
    // What failed left segments without tables, which count as complete after a while.
    segments(&directory).unwrap().iter().for_each(|path| age(path, 2));
    for n in 20..40 {
        add(&store, 1, n..n + 1);
    }
    assert!(segments(&directory).unwrap().len() < 16);
    assert_eq!(known(&store, 1, 50), all(40));
    assert!(fs::list(&directory).unwrap().iter().all(|path| !crate::store::name(path).starts_with('.')));
}

#[test]
fn merging_drops_damaged_lines_and_leaves_segments_alone_that_may_be_written_to() {
    let (_folder, store) = store();
    for n in 0..16 {
        let mut open = store.open_rows(&key(1), about(false)).unwrap();
        open.add(&[NewRow { key: key(n), value: &format!("\"result {n}\""), note: None }]).unwrap();
        open.seal().unwrap();
    }
    // One that a killed attempt left, with half a line.
    let killed = directory(&store, 1).join("1-1-0.jsonl");
    let mut text = String::new();
    line::write(&mut text, &key(16), "\"result 16\"", None);
    fs_err::write(&killed, format!("{text}{}", &text[..50])).unwrap();
    merge::merge(&directory(&store, 1)).unwrap();
    assert!(killed.exists() && segments(&directory(&store, 1)).unwrap().len() == 2);
    age(&killed, 2);
    for n in 17..33 {
        add(&store, 1, n..n + 1);
    }
    assert!(!killed.exists());
    assert_eq!(known(&store, 1, 40), all(33));
}

#[test]
fn a_write_that_fails_leaves_no_table_that_claims_it() {
    let (_folder, store) = store();
    for n in 1..3 {
        let mut open = store.open_rows(&key(n), about(false)).unwrap();
        open.add(&[NewRow { key: key(0), value: "\"result 0\"", note: None }]).unwrap();
        let row = [NewRow { key: key(1), value: "\"result 1\"", note: None }];
        fs::with_fault(n, || open.add(&row)).0.unwrap_err();
        open.finish("node");
        assert_eq!(known(&store, n, 1), all(1));
        assert!(!table::beside(&segments(&directory(&store, n)).unwrap()[0]).exists());
    }
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_in_use_or_paid_stays() {
    let (_folder, store) = store();
    for space in 1..=4 {
        add(&store, space, 0..100);
    }
    let mut paid = store.open_rows(&key(5), about(true)).unwrap();
    paid.add(&[NewRow { key: key(0), value: &"9".repeat(8000), note: None }]).unwrap();
    paid.finish("judge");
    for (space, hours) in [(1, 5), (2, 50), (3, 20), (4, 90), (5, 900)] {
        let segment = segments(&directory(&store, space)).unwrap().remove(0);
        age(&segment, hours);
        age(&table::beside(&segment), hours);
    }
    let there = |space: u64| directory_exists(&store, space);
    let open = store.open_rows(&key(4), about(false)).unwrap();
    let bytes = store.evict_rows(RowLimit(u64::MAX), &[], true).unwrap().left;
    let planned = store.evict_rows(RowLimit(bytes - 1), &[], true).unwrap();
    assert_eq!((planned.segments, there(2)), (1, true), "a dry run changes nothing");
    let done = store.evict_rows(RowLimit(bytes - 1), &[], false).unwrap();
    assert_eq!(done.segments, 1);
    assert!(there(4) && !there(2), "the oldest that nobody uses");
    drop(open);
    let done = store.evict_rows(RowLimit(0), &[], false).unwrap();
    assert_eq!((done.segments, there(1), there(3), there(4), there(5)), (3, false, false, false, true));
    assert!(done.paid >= 8000 && done.left >= done.paid);
    assert_eq!(store.evict_rows(RowLimit(0), &[key(5)], false).unwrap().segments, 1);
    assert!(!there(5));
    assert_eq!(known(&store, 1, 3), Vec::<u64>::new());
}

fn directory_exists(store: &Store, space: u64) -> bool {
    store.root().join("rows").join(key(space).to_string()).exists()
}

#[test]
fn a_segment_that_is_written_to_is_not_evicted() {
    let (_folder, store) = store();
    add(&store, 1, 0..3);
    let segment = segments(&directory(&store, 1)).unwrap().remove(0);
    // As on another machine, whose lock does not reach here.
    fs_err::remove_file(table::beside(&segment)).unwrap();
    assert_eq!(store.evict_rows(RowLimit(0), &[], false).unwrap().segments, 0);
    age(&segment, 2);
    assert_eq!(store.evict_rows(RowLimit(0), &[], false).unwrap().segments, 1);
}

#[test]
fn a_space_that_is_evicted_under_ones_feet_is_there_again() {
    let (_folder, store) = store();
    let mut open = store.open_rows(&key(1), about(false)).unwrap();
    fs::remove_directory(&directory(&store, 1)).unwrap();
    open.add(&[NewRow { key: key(0), value: "\"result 0\"", note: None }]).unwrap();
    open.finish("node");
    assert_eq!(known(&store, 1, 2), all(1));
}

#[test]
fn spaces_and_rows_can_be_looked_at() {
    let (_folder, store) = store();
    add(&store, 1, 0..30);
    known(&store, 1, 40);
    let mut open = store.open_rows(&key(1), about(false)).unwrap();
    open.read(&(20..40).map(key).collect::<Vec<_>>(), |_, _| true).unwrap();
    open.finish("second");
    let lines = store.rows_list().unwrap();
    assert_eq!((lines.len(), lines[0].rows, lines[0].segments, lines[0].about.clone()), (1, 30, 1, Some(about(false))));
    let uses = &lines[0].uses;
    assert_eq!((uses.asked, uses.reused, uses.times, uses.node.as_str()), (20, 10, 2, "second"));
    let (rows, count) = store.rows_of(&key(1), 2, None).unwrap();
    assert_eq!((rows.len(), count), (2, 30));
    assert_eq!((rows[1].key, &rows[1].note, &rows[1].value), (key(29), &None, &Value::from("result 29")));
    assert_eq!(rows[0].note.as_deref(), Some("asked"));
    assert_eq!(store.rows_of(&key(1), 9, Some("result 2")).unwrap().1, 11);
    assert_eq!(store.rows_of(&key(1), 9, Some("asked")).unwrap().1, 15);
    assert_eq!(store.rows_of(&key(2), 9, None).unwrap().1, 0);
}

#[test]
fn counts_of_uses_are_summed_up_before_they_grow_long() {
    let folder = tempfile::tempdir().unwrap();
    for _ in 0..400 {
        Uses { asked: 3, reused: 1, ..Uses::default() }.tell(folder.path(), "a node").unwrap();
    }
    let uses = Uses::read(folder.path());
    assert_eq!((uses.asked, uses.reused, uses.times), (1200, 400, 400));
    assert!(crate::store::gc::size(&folder.path().join(about::USES)) < 20_000);
}

#[test]
fn sizes_are_read_as_people_write_them() {
    let size = |text: &str| text.parse::<RowLimit>().map(|limit| limit.0).map_err(drop);
    let sizes = ["20GB", "1.5 MiB", "0B", "7kb", "none"].map(size);
    assert_eq!(sizes, [Ok(20_000_000_000), Ok(1_572_864), Ok(0), Ok(7000), Ok(u64::MAX)]);
    for wrong in ["", "20", "GB", "1.2.3GB", "-1GB", "20 apples"] {
        assert!(size(wrong).is_err(), "{wrong}");
    }
}
