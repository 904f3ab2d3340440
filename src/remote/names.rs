//! Names at a remote: as in a store, so that a directory of one can be looked into with the same eyes.

use crate::digest::Digest;

/// What says that the rest is ours, and of which version.
pub(super) const MARKER: &str = "remote.json";
/// What says so in a store that someone shares as it is.
pub(super) const VERSION: &str = "VERSION";

pub(super) const OBJECTS: &str = "objects";
pub(super) const ARTIFACTS: &str = "artifacts";
pub(super) const NODES: &str = "nodes";
pub(super) const RUNS: &str = "runs";

fn sharded(folder: &str, id: &Digest, suffix: &str) -> String {
    let hex = id.to_string();
    let (shard, rest) = hex.split_at(2);
    format!("{folder}/{shard}/{rest}{suffix}")
}

pub(super) fn object(id: &Digest) -> String {
    sharded(OBJECTS, id, "")
}

pub(super) fn artifact(id: &Digest) -> String {
    sharded(ARTIFACTS, id, ".json")
}

pub(super) fn node(key: &Digest) -> String {
    sharded(NODES, key, ".json")
}

pub(super) fn run(run: &str) -> String {
    format!("{RUNS}/{run}/run.json")
}

/// The id in a name that [`object`], [`artifact`] or [`node`] made; `None` for other names.
pub(super) fn id(name: &str) -> Option<Digest> {
    let mut parts = name.split('/');
    let (_, shard, rest) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || shard.len() != 2 {
        return None;
    }
    format!("{shard}{}", rest.strip_suffix(".json").unwrap_or(rest)).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_their_ids_back() {
        let digest = Digest::of(b"x");
        for name in [object(&digest), artifact(&digest), node(&digest)] {
            assert_eq!(id(&name), Some(digest), "{name}");
        }
        for name in ["remote.json", "objects/ab", "objects/ab/cd", "objects/a/b/c"] {
            assert_eq!(id(name), None, "{name}");
        }
    }
}
