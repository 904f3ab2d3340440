//! From what people type to what lies there.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::{Found, Remote, RemoteError, Wanted, names};
use crate::digest::Digest;

/// The word for the newest run.
const LATEST: &str = "latest";

impl Remote {
    /// What there is under the names, ids and beginnings of ids: keys, artifacts, runs, `latest`, `NODE`, `PIPELINE/NODE`,
    /// `PIPELINE`.
    pub fn resolve(&self, what: &[String]) -> Result<Wanted, RemoteError> {
        let mut wanted = Wanted::default();
        let mut records = None;
        for what in what {
            if self.by_id(what, &mut wanted)? || self.by_run(what, &mut wanted)? {
                continue;
            }
            // Names stand in the records alone, and all of them have to be read.
            let records = match &mut records {
                Some(records) => records,
                None => records.insert(self.records()?),
            };
            let keys = by_name(records, what);
            if keys.is_empty() {
                return Err(RemoteError::Unknown(what.clone()));
            }
            wanted.keys.extend(keys);
        }
        wanted.keys.sort_unstable();
        wanted.keys.dedup();
        Ok(wanted)
    }

    /// All that there is.
    pub fn all(&self) -> Result<Wanted, RemoteError> {
        let ids = |folder| -> Result<Vec<Digest>, RemoteError> {
            Ok(self.client.list(folder)?.iter().filter_map(|(name, _)| names::id(name)).collect())
        };
        Ok(Wanted { keys: ids(names::NODES)?, artifacts: ids(names::ARTIFACTS)?, runs: self.run_ids()? })
    }

    /// All records, newest first.
    pub fn records(&self) -> Result<Vec<Found>, RemoteError> {
        let names = self.client.list(names::NODES)?;
        let keys: Vec<Digest> = names.iter().filter_map(|(name, _)| names::id(name)).collect();
        let found = Mutex::new(Vec::with_capacity(keys.len()));
        self.each(keys, |key| {
            let record = self.node(&key)?;
            found.lock().unwrap_or_else(std::sync::PoisonError::into_inner).extend(record);
            Ok(())
        })?;
        let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        let age = |found: &Found| (found.record.run.clone(), found.record.started.clone(), found.record.key);
        found.sort_by_cached_key(|found| std::cmp::Reverse(age(found)));
        Ok(found)
    }

    fn run_ids(&self) -> Result<Vec<String>, RemoteError> {
        let run = |(name, _): &(String, u64)| Some(name.strip_prefix("runs/")?.strip_suffix("/run.json")?.to_owned());
        let mut runs: Vec<String> = self.client.list(names::RUNS)?.iter().filter_map(run).collect();
        runs.sort_unstable();
        Ok(runs)
    }

    /// The key or the artifact that an id, or its beginning, means.
    fn by_id(&self, what: &str, wanted: &mut Wanted) -> Result<bool, RemoteError> {
        if let Ok(id) = what.parse::<Digest>() {
            let key = self.client.size(&names::node(&id))?.is_some();
            let artifact = self.client.size(&names::artifact(&id))?.is_some();
            wanted.keys.extend(key.then_some(id));
            wanted.artifacts.extend(artifact.then_some(id));
            return if key || artifact { Ok(true) } else { Err(RemoteError::Unknown(what.to_owned())) };
        }
        if what.len() < 4 || !what.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(false);
        }
        let beginning = |folder: &str| -> Result<Vec<Digest>, RemoteError> {
            let all = self.client.list(&format!("{folder}/{}", what[..2].to_lowercase()))?;
            let ids = all.iter().filter_map(|(name, _)| names::id(name));
            Ok(ids.filter(|id| id.to_string().starts_with(&what.to_lowercase())).collect())
        };
        let (keys, artifacts) = (beginning(names::NODES)?, beginning(names::ARTIFACTS)?);
        if keys.len() + artifacts.len() > 1 {
            return Err(RemoteError::Ambiguous { prefix: what.to_owned(), ids: [keys, artifacts].concat() });
        }
        let found = keys.len() + artifacts.len() == 1;
        wanted.keys.extend(keys);
        wanted.artifacts.extend(artifacts);
        Ok(found)
    }

    /// The run that an id, its beginning or `latest` means, with the keys of its nodes.
    fn by_run(&self, what: &str, wanted: &mut Wanted) -> Result<bool, RemoteError> {
        if what != LATEST && !what.starts_with(|first: char| first.is_ascii_digit()) {
            return Ok(false);
        }
        let runs = self.run_ids()?;
        let run = match what {
            LATEST => runs.last(),
            _ => match &runs.iter().filter(|run| run.starts_with(what)).collect::<Vec<_>>()[..] {
                [run] => Some(*run),
                _ => None,
            },
        };
        let Some(run) = run else { return Ok(false) };
        let Some((record, _)) = self.run(run)? else { return Ok(false) };
        wanted.keys.extend(record.nodes.iter().filter(|node| node.artifact.is_some()).filter_map(|node| node.key));
        wanted.runs.push(run.clone());
        Ok(true)
    }
}

/// Keys of the nodes that a name means: the newest of each; `records` are newest first.
fn by_name(records: &[Found], what: &str) -> Vec<Digest> {
    let mut keys = BTreeMap::new();
    for Found { record, .. } in records {
        let bare = record.node.split(['@', '[']).next().unwrap_or_default();
        let full = format!("{}/{}", record.pipeline, record.node);
        if [record.pipeline.as_str(), record.node.as_str(), bare, full.as_str()].contains(&what) {
            keys.entry((&record.pipeline, &record.node)).or_insert(record.key);
        }
    }
    keys.into_values().collect()
}
