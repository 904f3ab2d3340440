//! What is read of records, manifests and runs where there are very many: what edges are made of, nothing else.

use std::borrow::Cow;
use std::collections::BTreeMap;

use memchr::memmem;
use rayon::prelude::*;
use serde::Deserialize;

use super::{Blob, Store, StoreError, Usage};
use crate::digest::Digest;

/// What is read of a node record.
#[derive(Debug, Deserialize)]
pub(super) struct RecordGlance<'a> {
    pub(super) key: Digest,
    #[serde(borrow)]
    pub(super) node: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) pipeline: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) kind: Cow<'a, str>,
    pub(super) artifact: Digest,
    #[serde(borrow)]
    pub(super) inputs: BTreeMap<Cow<'a, str>, Digest>,
    #[serde(borrow)]
    pub(super) run: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) started: Cow<'a, str>,
    pub(super) seconds: f64,
    #[serde(borrow)]
    pub(super) device: Cow<'a, str>,
    #[serde(default)]
    pub(super) usage: Option<Usage>,
    /// An earlier artifact that its own counts as for what is below.
    #[serde(default)]
    pub(super) equal_to_within: Option<EqualGlance>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EqualGlance {
    pub(super) artifact: Digest,
}

/// What is read of a manifest.
#[derive(Debug, Deserialize)]
pub(super) struct ManifestGlance<'a> {
    #[serde(rename = "type", borrow)]
    pub(super) kind: Cow<'a, str>,
    #[serde(borrow)]
    pub(super) files: BTreeMap<Cow<'a, str>, Blob>,
}

/// A run, as far as gc needs it.
#[derive(Debug)]
pub(super) struct Run {
    /// Its id.
    pub(super) id: String,
    /// `None` if it did not get as far as writing its record.
    pub(super) record: Option<RunGlance>,
}

/// What is read of a run's record.
#[derive(Debug, Deserialize)]
pub(super) struct RunGlance {
    /// Pipeline name.
    pub(super) pipeline: String,
    /// Start, as RFC 3339.
    pub(super) started: String,
    /// End; absent while it runs and after a kill.
    pub(super) finished: Option<String>,
    /// Its nodes.
    pub(super) nodes: Vec<RunNodeGlance>,
}

/// What is read of a node in it.
#[derive(Debug, Deserialize)]
pub(super) struct RunNodeGlance {
    /// Node name.
    pub(super) name: String,
    /// The key, if it was known.
    pub(super) key: Option<Digest>,
    /// The artifact, if there is one.
    pub(super) artifact: Option<Digest>,
}

/// What is read of a run to tell how a node came out of it.
#[derive(Debug, Deserialize)]
struct StateGlance {
    nodes: Vec<NodeStateGlance>,
}

#[derive(Debug, Deserialize)]
struct NodeStateGlance {
    name: String,
    state: String,
    key: Option<Digest>,
}

/// A node's key, if it was known, and its state in a run.
pub(super) type KeyAndState = (Option<Digest>, String);

impl Store {
    /// The key and the state of the node of a name in each of these runs, if the run has it. A record of a run that is damaged
    /// may be read as if it was not: a key is good for looking for the record under it, and a state for a word that it is equal to.
    pub fn node_in_runs(&self, runs: &[String], node: &str) -> Result<Vec<Option<KeyAndState>>, StoreError> {
        let find = |run: &String| {
            let record = self.run_dir(run).join("run.json");
            let found = super::record::glance_at(&record, |bytes| state_in(bytes, node))?.flatten();
            Ok(found.map(|found| (found.key, found.state)))
        };
        runs.par_iter().map(find).collect()
    }

    /// Hands on all runs, newest first. Few are in memory at once.
    pub(super) fn each_run(&self, see: &mut dyn FnMut(Run)) -> Result<(), StoreError> {
        let mut ids = self.run_ids()?;
        ids.reverse();
        for some in ids.chunks(8) {
            let read = |id: &String| {
                let record = super::record::read_json(&self.run_dir(id).join("run.json"))?;
                Ok(Run { id: id.clone(), record })
            };
            let runs: Result<Vec<Run>, StoreError> = some.par_iter().map(read).collect();
            runs?.into_iter().for_each(&mut *see);
        }
        Ok(())
    }
}

/// The node of a name in a run's record; `None` if the run does not have it.
fn state_in(record: &[u8], node: &str) -> serde_json::Result<Option<NodeStateGlance>> {
    if let Ok(found) = state_by_layout(record, node) {
        return Ok(found);
    }
    let all: StateGlance = serde_json::from_slice(record)?;
    Ok(all.nodes.into_iter().find(|known| known.name == node))
}

/// A record is not laid out as we write it.
struct OtherLayout;

/// As [`state_in`], of a record that is laid out as we write it: its nodes stand on lines of their own, and the one that is
/// looked for is parsed alone, which of a thousand takes a twentieth of the time. Errs of one that is laid out otherwise.
///
/// No text in JSON has the end of a line in it, so a line that looks like the name of a node is one of the record's own; that it
/// is the name of a node shows when what is around it is read.
fn state_by_layout(record: &[u8], node: &str) -> Result<Option<NodeStateGlance>, OtherLayout> {
    let list = memmem::find(record, b"\n  \"nodes\": [\n").ok_or(OtherLayout)?;
    if !record.trim_ascii_end().ends_with(b"\n}") {
        return Err(OtherLayout);
    }
    let line = format!("\n      \"name\": {}", serde_json::Value::from(node));
    for at in memmem::find_iter(&record[list..], &line).map(|at| list + at) {
        if !matches!(record.get(at + line.len()), Some(b',' | b'\n')) {
            continue;
        }
        let Some(begin) = memmem::rfind(&record[list..=at], b"\n    {\n").map(|begin| list + begin) else { continue };
        let mut rest = serde_json::Deserializer::from_slice(&record[begin..]).into_iter::<NodeStateGlance>();
        let found = rest.next().and_then(Result::ok).ok_or(OtherLayout)?;
        if found.name == node {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::tests::{record, run};
    use serde_json::json;

    #[test]
    fn a_node_is_found_in_a_record_however_that_is_laid_out() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let odd = "b\"},\n    {\n      \"name\": \"c\"";
        let records = ["a", odd, "d", "e"].map(|name| record(&store, name, name).unwrap());
        let mut run = run("20260101-000000-aaaa", &records.each_ref());
        run.nodes[2].key = None;
        run.nodes[2].state = "failed".to_owned();
        run.nodes[3].metrics.insert("name".to_owned(), json!("f"));
        let likeness = json!({"name": "g", "state": "ran", "key": null});
        run.params.insert("g".to_owned(), likeness.clone());
        run.params.insert("list".to_owned(), json!([likeness]));
        store.put_run(&run).unwrap();
        let path = store.run_dir(&run.run).join("run.json");
        let written = fs_err::read(&path).unwrap();
        let plain = serde_json::to_vec(&run).unwrap();
        let in_order = serde_json::to_vec_pretty(&run).unwrap();
        let names = ["a", odd, "b", "c", "d", "e", "f", "g", ""];
        for text in [&written, &plain, &in_order] {
            for name in names {
                let known = run.nodes.iter().find(|node| node.name == name);
                let found = state_in(text, name).unwrap().map(|node| (node.name, node.key, node.state));
                assert_eq!(found, known.map(|node| (node.name.clone(), node.key, node.state.clone())), "{name}");
            }
        }
        assert!([&written, &in_order].iter().all(|text| state_by_layout(text, "a").is_ok()));
        assert!(state_by_layout(&plain, "a").is_err());
        // Cut off wherever: it is damaged, and says nothing.
        for end in [written.len() / 2, written.len() - 2] {
            fs_err::write(&path, &written[..end]).unwrap();
            assert_eq!(store.node_in_runs(&[run.run.clone()], "a").unwrap(), [None]);
        }
    }
}
