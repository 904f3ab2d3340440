use super::*;
use crate::store::{Health, Stamps};
use std::os::unix::fs::PermissionsExt;

/// A file of safetensors with these tensors, of bytes each.
pub(in crate::store) fn tensors(tensors: &[(&str, &[u8])]) -> Vec<u8> {
    let mut at = 0;
    let entries = tensors.iter().map(|(name, bytes)| {
        let from = at;
        at += bytes.len();
        (name.to_string(), serde_json::json!({"dtype": "U8", "shape": [bytes.len()], "data_offsets": [from, at]}))
    });
    let mut header = entries.collect::<serde_json::Map<_, _>>();
    header.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let header = serde_json::to_vec(&header).unwrap();
    let numbers = tensors.iter().flat_map(|(_, bytes)| bytes.iter().copied());
    (header.len() as u64).to_le_bytes().into_iter().chain(header.iter().copied()).chain(numbers).collect()
}

fn bytes(seed: u8, size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + at / 251) as u8 ^ seed).collect()
}

/// A store that cuts everything, and a directory for files outside.
fn store(directory: &Path) -> Store {
    let mut store = Store::open(&directory.join("cache")).unwrap();
    store.thin_from = 0;
    store
}

/// Bytes of all objects and recipes.
fn held(store: &Store) -> u64 {
    fs::walk(&store.root.join("objects")).unwrap().iter().map(|path| fs_err::metadata(path).unwrap().len()).sum()
}

fn put(store: &Store, text: &[u8]) -> Blob {
    let staged = store.unfinished().unwrap();
    fs_err::write(&staged, text).unwrap();
    store.put_file(&staged).unwrap()
}

fn read(store: &Store, blob: &Blob) -> Vec<u8> {
    let mut text = Vec::new();
    store.read_blob(blob).unwrap().read_to_end(&mut text).unwrap();
    text
}

/// Writes into an object in place, leaving size and modification time as they were.
fn rot(path: &Path) {
    let modified = fs_err::metadata(path).unwrap().modified().unwrap();
    let mut text = fs_err::read(path).unwrap();
    let middle = text.len() / 2;
    text[middle] ^= 1;
    fs_err::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    fs_err::write(path, text).unwrap();
    File::open(path).unwrap().file().set_modified(modified).unwrap();
}

#[test]
fn a_file_of_tensors_is_cut_where_they_begin() {
    let big = SMALL as usize;
    let file =
        tensors(&[("a", &bytes(1, big)), ("b", &[1; 10]), ("c", &[2; 20]), ("d", &bytes(2, 2 * big)), ("e", &[3; 5])]);
    let header = 8 + u64::from_le_bytes(file[..8].try_into().unwrap());
    assert_eq!(cuts(&mut &*file, file.len() as u64), Some(vec![header, SMALL, 30, 2 * SMALL, 5]));
    let none = tensors(&[]);
    assert_eq!(cuts(&mut &*none, none.len() as u64), Some(vec![none.len() as u64]));
}

#[test]
fn what_is_no_safetensors_to_the_letter_stays_whole() {
    let with = |header: &str, numbers: usize| {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; numbers]].concat()
    };
    let entry = |from: u64, to: u64| format!(r#""a{from}":{{"dtype":"U8","shape":[1],"data_offsets":[{from},{to}]}}"#);
    let whole = with(&format!("{{{}}}", entry(0, 4)), 4);
    assert!(cuts(&mut &*whole, whole.len() as u64).is_some());
    for file in [
        vec![],
        vec![1; 7],
        vec![255; 64],
        with("{", 0),
        with("[]", 0),
        with(r#"{"a":1}"#, 4),
        with(&format!("{{{}}}", entry(0, 4)), 5),
        with(&format!("{{{}}}", entry(0, 4)), 3),
        with(&format!("{{{}}}", entry(1, 4)), 4),
        with(&format!("{{{}}}", entry(4, 0)), 4),
        with(&format!("{{{},{}}}", entry(0, 3), entry(2, 4)), 4),
        with(&format!("{{{}}}", entry(0, u64::MAX)), 4),
        with(&"[".repeat(10_000), 4),
    ] {
        assert_eq!(cuts(&mut &*file, file.len() as u64), None, "{file:?}");
    }
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let blob = put(&store, b"no tensors");
    assert!(store.blob_path(&blob.digest).is_file() && store.recipe_ids().unwrap().is_empty());
}

#[test]
fn a_second_model_adds_what_changed_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let frozen = bytes(1, 1 << 20);
    let model = |head: u8| tensors(&[("embed", &frozen), ("head", &bytes(head, 100_000)), ("norm", &[head; 64])]);
    let base = put(&store, &model(2));
    let before = held(&store);
    let tuned = put(&store, &model(3));
    let added = held(&store) - before;
    assert!((100_064..101_000).contains(&added), "{added} bytes for a head of 100,000 and a norm of 64");
    for (blob, head) in [(base, 2), (tuned, 3)] {
        // Its digest and its size are those of the file.
        assert_eq!(blob.digest, Digest::of(&model(head)));
        assert_eq!(read(&store, &blob), model(head));
        assert_eq!(store.stands_on(&blob.digest).unwrap().len(), 4);
        assert!(!store.blob_path(&blob.digest).exists());
    }
    // Again, from outside and as an object of the store: nothing new.
    let held_before = held(&store);
    let outside = directory.path().join("outside");
    fs_err::write(&outside, model(3)).unwrap();
    assert_eq!(store.put_file(&outside).unwrap(), tuned);
    assert_eq!(store.put_file(&store.recipe_path(&tuned.digest)).unwrap(), tuned);
    assert_eq!(held(&store), held_before);
    assert!(fs::list(&store.tmp()).unwrap().is_empty());
    // The header and each tensor are objects like any other.
    assert_eq!(store.stands_on(&Digest::of(&frozen)).unwrap(), [Digest::of(&frozen)]);
}

#[test]
fn a_model_that_is_there_whole_stays_whole() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = store(directory.path());
    let model = tensors(&[("a", &bytes(1, 100_000))]);
    store.thin_from = u64::MAX;
    let blob = put(&store, &model);
    store.thin_from = 0;
    assert_eq!(put(&store, &model), blob);
    assert!(store.blob_path(&blob.digest).is_file() && store.recipe_ids().unwrap().is_empty());
    assert_eq!(store.stands_on(&blob.digest).unwrap(), [blob.digest]);
    // One that is damaged is put in pieces.
    rot(&store.blob_path(&blob.digest));
    assert_eq!(put(&store, &model), blob);
    assert_eq!(read(&store, &blob), model);
    assert_eq!(store.recipe_ids().unwrap(), [blob.digest]);
}

#[test]
fn damage_to_a_piece_is_named_and_putting_again_mends_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = store(directory.path());
    let model = tensors(&[("a", &bytes(1, 100_000)), ("b", &bytes(2, 100_000))]);
    let blob = put(&store, &model);
    let manifest = crate::store::Manifest { kind: "model".into(), files: [("m.safetensors".into(), blob)].into() };
    let id = store.put_manifest(&manifest).unwrap();
    let mut stamps = Stamps::default();
    assert_eq!(store.health(&id, &mut stamps).unwrap(), Health::Whole);
    assert_eq!(stamps.changes().count(), 1, "what was put by this process is sealed at once");
    // A process that knows nothing reads all once, and one with the seal nothing.
    std::thread::sleep(std::time::Duration::from_millis(30));
    let mut fresh = Store::open(store.root()).unwrap();
    fresh.thin_from = 0;
    for stamps in [&mut stamps, &mut Stamps::default()] {
        assert_eq!(fresh.health(&id, stamps).unwrap(), Health::Whole);
    }
    let part = Digest::of(&bytes(2, 100_000));
    let named = format!("m.safetensors, part {}", part.short());
    for damage in [rot as fn(&Path), |path| fs::remove_file(path).unwrap()] {
        damage(&store.blob_path(&part));
        let is_there = store.blob_path(&part).exists();
        let wrong = if is_there { Health::Damaged(named.clone()) } else { Health::Missing(named.clone()) };
        for stamps in [&mut stamps, &mut Stamps::default()] {
            assert_eq!(fresh.health(&id, stamps).unwrap(), wrong);
        }
        assert_eq!(put(&fresh, &model), blob);
        assert_eq!(fresh.health(&id, &mut stamps).unwrap(), Health::Whole);
        assert_eq!(read(&fresh, &blob), model);
    }
    // A list that is none, and one that lists other pieces.
    let other = put(&store, &tensors(&[("a", &bytes(1, 100_000)), ("b", &bytes(3, 100_000))]));
    for text in [b"{".to_vec(), fs_err::read(store.recipe_path(&other.digest)).unwrap()] {
        let recipe = store.recipe_path(&blob.digest);
        fs_err::set_permissions(&recipe, PermissionsExt::from_mode(0o644)).unwrap();
        fs_err::write(&recipe, text).unwrap();
        let wrong = Health::Damaged("m.safetensors, its list of parts".into());
        assert_eq!(fresh.health(&id, &mut stamps).unwrap(), wrong);
        assert_eq!(put(&fresh, &model), blob);
        assert_eq!(fresh.health(&id, &mut stamps).unwrap(), Health::Whole);
    }
}

#[test]
fn whichever_operation_fails_a_file_in_pieces_is_whole_or_absent() {
    let model = tensors(&[("a", &bytes(1, 100_000)), ("b", &bytes(2, 100_000)), ("c", &bytes(1, 100_000))]);
    let digest = Digest::of(&model);
    for n in 1.. {
        let directory = tempfile::tempdir().unwrap();
        let store = store(directory.path());
        let outside = directory.path().join("model");
        fs_err::write(&outside, &model).unwrap();
        let (result, reached) = fs::with_fault(n, || store.put_file(&outside));
        if store.recipe_ids().unwrap().is_empty() {
            result.as_ref().unwrap_err();
            assert!(!store.blob_path(&digest).exists());
        } else {
            assert_eq!(read(&store, &Blob { digest, size: model.len() as u64 }), model);
        }
        assert!(fs::list(&store.tmp()).unwrap().is_empty(), "after operation {n} failed");
        assert!(store.verify(&mut |_, _| {}).unwrap().is_whole());
        assert_eq!(store.put_file(&outside).unwrap().digest, digest);
        assert_eq!(read(&store, &Blob { digest, size: model.len() as u64 }), model);
        if !reached {
            assert!(n > 20, "only {n} operations");
            break;
        }
    }
}
