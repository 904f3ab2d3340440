use std::collections::BTreeMap;

use serde_json::{Map, json};

use super::*;
use crate::fs;
use crate::store::{Manifest, NodeRecord, RunNode, RunRecord, Store};

/// A store with a node's record, its artifact of two files, its input, and a run.
fn filled(directory: &Path) -> (Store, Contents) {
    let store = Store::open(directory).unwrap();
    let input = store.put_bytes(b"input").unwrap();
    let input = Manifest { kind: "dataset".into(), files: BTreeMap::from([("rows.jsonl".to_owned(), input)]) };
    let input = store.put_manifest(&input).unwrap();
    let (rows, big) = (store.put_bytes(b"rows\n").unwrap(), store.put_bytes(&vec![7; 3_000_000]).unwrap());
    let files = BTreeMap::from([("rows.jsonl".to_owned(), rows), ("a/big".to_owned(), big)]);
    let artifact = store.put_manifest(&Manifest { kind: "files".into(), files }).unwrap();
    let preimage = json!({"kind": "command", "version": 1, "fields": {}, "inputs": {"a": input.to_string()}});
    // As text, so that fields which may be absent need not be named here.
    let record: NodeRecord = serde_json::from_value(json!({
        "format": 1, "key": Digest::of_value(&preimage), "node": "n", "pipeline": "toy", "kind": "command",
        "artifact": artifact, "preimage": preimage, "inputs": {"a": input}, "metrics": {},
        "run": "20260101-000000-aaaa", "attempt": 1, "started": "2026-01-01T00:00:00Z", "seconds": 0.5,
        "host": "here", "device": "cpu", "version": "0.1.0",
    }))
    .unwrap();
    store.put_node(&record).unwrap();
    let node = RunNode {
        name: "n".into(),
        kind: "command".into(),
        state: "ran".into(),
        key: Some(record.key),
        artifact: Some(artifact),
        seconds: 0.5,
        metrics: Map::new(),
    };
    let run = RunRecord {
        run: record.run.clone(),
        pipeline: "toy".into(),
        file: "toy.toml".into(),
        params: BTreeMap::new(),
        started: record.started.clone(),
        finished: None,
        ok: Some(true),
        nodes: vec![node],
    };
    store.put_run(&run).unwrap();
    let contents = Contents { keys: vec![record.key], artifacts: Vec::new(), runs: vec![run.run] };
    (store, contents)
}

fn quiet(_: u64, _: u64) {}

/// All files of a store, by their digests, but those that say nothing of what is in it.
fn files(root: &Path) -> BTreeMap<PathBuf, Digest> {
    let all = fs::walk(root).unwrap().into_iter();
    let kept =
        all.filter(|path| !["locks", "live", "index.sqlite"].iter().any(|part| path.to_string_lossy().contains(part)));
    kept.map(|path| (path.strip_prefix(root).unwrap().to_owned(), Digest::of(&fs_err::read(&path).unwrap()))).collect()
}

#[test]
fn what_goes_in_comes_out_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let (store, contents) = filled(&folder.path().join("here"));
    for name in ["a.tar", "a.tar.zst", "a.tgz"] {
        let (file, again) = (folder.path().join(name), folder.path().join(format!("again-{name}")));
        let head = export(&store, &contents, &file, &mut quiet).unwrap();
        assert_eq!((head.objects, head.artifacts, head.nodes, head.runs), (3, 2, 1, 1));
        export(&store, &contents, &again, &mut quiet).unwrap();
        assert_eq!(fs_err::read(&file).unwrap(), fs_err::read(&again).unwrap());
        let there = Store::open(&folder.path().join(format!("there-{name}"))).unwrap();
        assert_eq!(import(&there, &file, true, &mut quiet).unwrap(), Imported::default());
        let imported = import(&there, &file, false, &mut quiet).unwrap();
        assert_eq!((imported.objects, imported.artifacts, imported.nodes, imported.runs), (3, 2, 1, 1));
        assert_eq!(files(store.root()), files(there.root()));
        let second = import(&there, &file, false, &mut quiet).unwrap();
        assert_eq!((second.objects, second.nodes, second.bytes), (0, 0, 0));
    }
    let odd = export(&store, &contents, &folder.path().join("a.zip"), &mut quiet);
    assert!(matches!(odd, Err(ArchiveError::Name(_))));
}

#[test]
fn an_archive_that_is_cut_or_changed_anywhere_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (store, contents) = filled(&folder.path().join("here"));
    for name in ["a.tar", "a.tar.zst", "a.tar.gz"] {
        let file = folder.path().join(name);
        export(&store, &contents, &file, &mut quiet).unwrap();
        let whole = fs_err::read(&file).unwrap();
        let there = Store::open(&folder.path().join(format!("there-{name}"))).unwrap();
        let before = files(there.root());
        let mut places: Vec<usize> = (0..whole.len()).step_by(whole.len() / 40 + 1).collect();
        places.extend((0..6).map(|blocks| whole.len().saturating_sub(blocks * 512 + 1)));
        for at in places {
            fs_err::write(&file, &whole[..at]).unwrap();
            // Of the zeros at the end of a plain archive some may be gone.
            if import(&there, &file, true, &mut quiet).is_ok() {
                assert!(name == "a.tar" && at + 1024 >= whole.len(), "{name} cut at {at} of {}", whole.len());
                continue;
            }
            assert!(import(&there, &file, false, &mut quiet).is_err());
            assert_eq!(files(there.root()), before, "{name} cut at {at}");
        }
        let there = Store::open(&folder.path().join(format!("flipped-{name}"))).unwrap();
        let before = files(there.root());
        for at in (0..whole.len()).step_by(whole.len() / 40 + 1) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs_err::write(&file, &bytes).unwrap();
            if import(&there, &file, false, &mut quiet).is_ok() {
                // A bit that says nothing, such as one in a header's padding; then all is as it should be.
                assert_eq!(files(store.root()), files(there.root()), "{name} flipped at {at}");
                break;
            }
            assert_eq!(files(there.root()), before, "{name} flipped at {at}");
        }
    }
}

#[test]
fn what_is_damaged_is_not_exported() {
    let folder = tempfile::tempdir().unwrap();
    let (store, contents) = filled(&folder.path().join("here"));
    let object = store.blob_path(&Digest::of(b"rows\n"));
    fs::remove_file(&object).unwrap();
    fs_err::write(&object, "ROWS\n").unwrap();
    let file = folder.path().join("a.tar");
    assert!(matches!(export(&store, &contents, &file, &mut quiet), Err(ArchiveError::Store(_))));
    assert_eq!(fs::list(folder.path()).unwrap().len(), 1, "nothing is left of it");
}

/// An archive with these entries after a head that announces `head`.
fn made(head: &Head, entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let bytes = serde_json::to_vec(head).unwrap();
    let first = [(HEAD, tar::EntryType::Regular, &bytes[..])];
    for (name, kind, bytes) in first.iter().chain(entries) {
        let mut header = tar::Header::new_gnu();
        let place = &mut header.as_mut_bytes()[..name.len()];
        place.copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_entry_type(*kind);
        header.set_cksum();
        builder.append(&header, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn what_must_not_be_in_an_archive_has_it_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("cache")).unwrap();
    let before = files(store.root());
    let object = Name::Object(Digest::of(b"x")).text();
    let capitals = object.to_uppercase().replace("OBJECTS", "objects");
    use tar::EntryType as T;
    let cases: &[(&str, T, &[u8], &str)] = &[
        ("/etc/passwd", T::Regular, b"x", "leads out"),
        ("objects/../../x", T::Regular, b"x", "leads out"),
        ("../x", T::Regular, b"x", "leads out"),
        ("objects/x", T::Regular, b"x", "no name"),
        ("VERSION", T::Regular, b"x", "no name"),
        ("runs/../run.json", T::Regular, b"x", "leads out"),
        ("runs/A/run.json", T::Regular, b"x", "no name"),
        (&capitals, T::Regular, b"x", "no name"),
        (&object, T::Symlink, b"", "is a link"),
        (&object, T::Link, b"", "is a link"),
        (&object, T::Char, b"", "is a device"),
        (&object, T::Fifo, b"", "is a device"),
        ("objects/", T::Directory, b"", "is a directory"),
        (&object, T::GNULongName, b"objects/../../x\0", "no plain file"),
        (&object, T::XHeader, b"13 path=/x\n\n", "no plain file"),
        (&object, T::GNUSparse, b"x", "no plain file"),
        (&object, T::Regular, b"y", "does not have the bytes"),
        (&object, T::Regular, b"x", "belongs to nothing"),
        (HEAD, T::Regular, b"{}", "there twice"),
    ];
    for (name, kind, bytes, told) in cases {
        let head = Head { format: 1, objects: 1, bytes: bytes.len() as u64, ..Head::default() };
        let file = folder.path().join("evil.tar");
        fs_err::write(&file, made(&head, &[(name, *kind, bytes)])).unwrap();
        let error = import(&store, &file, false, &mut quiet).unwrap_err().to_string();
        assert!(error.contains(told), "{name}: {error}");
        assert_eq!(files(store.root()), before, "{name}");
    }
    let head = Head { format: 1, objects: 2, bytes: 2, ..Head::default() };
    let twice = made(&head, &[(&object, T::Regular, b"x"), (&object, T::Regular, b"x")]);
    let more = made(&Head { bytes: 0, ..head.clone() }, &[(&object, T::Regular, b"x")]);
    let large = made(&Head { bytes: u64::MAX, ..head.clone() }, &[]);
    let later = made(&Head { format: 9, ..head }, &[]);
    for (bytes, told) in
        [(twice, "twice"), (more, "more than"), (large, "are free"), (later, "version 9"), (Vec::new(), "empty")]
    {
        let file = folder.path().join("evil.tar");
        fs_err::write(&file, bytes).unwrap();
        let error = import(&store, &file, false, &mut quiet).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    }
    assert_eq!(files(store.root()), before);
}

#[test]
fn import_can_fail_anywhere_and_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let (store, contents) = filled(&folder.path().join("here"));
    let file = folder.path().join("a.tar.zst");
    export(&store, &contents, &file, &mut quiet).unwrap();
    for n in 1.. {
        let there = Store::open(&folder.path().join(format!("there-{n}"))).unwrap();
        let (result, reached) = fs::with_fault(n, || import(&there, &file, false, &mut quiet));
        assert_eq!(result.is_err(), reached);
        assert!(there.verify(&mut |_, _| {}).unwrap().is_whole(), "operation {n}");
        import(&there, &file, false, &mut quiet).unwrap();
        assert_eq!(files(store.root()), files(there.root()), "operation {n}");
        if !reached {
            break;
        }
    }
}
