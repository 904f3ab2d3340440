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

const PARTS: &str = crate::pieces::SUFFIX;

/// Whether a name is that of a list of parts.
pub(super) fn is_recipe(name: &str) -> bool {
    name.ends_with(PARTS)
}

fn sharded(folder: &str, id: &Digest, suffix: &str) -> String {
    let hex = id.to_string();
    let (shard, rest) = hex.split_at(2);
    format!("{folder}/{shard}/{rest}{suffix}")
}

pub(super) fn object(id: &Digest) -> String {
    sharded(OBJECTS, id, "")
}

/// The list of the objects that a large one lies in, in its place.
pub(super) fn recipe(id: &Digest) -> String {
    sharded(OBJECTS, id, PARTS)
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

/// The id in a name that [`object`], [`recipe`], [`artifact`] or [`node`] made; `None` for other names.
pub(super) fn id(name: &str) -> Option<Digest> {
    let mut parts = name.split('/');
    let (_, shard, rest) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || shard.len() != 2 {
        return None;
    }
    let rest = rest.strip_suffix(".json").or(rest.strip_suffix(PARTS)).unwrap_or(rest);
    format!("{shard}{rest}").parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_their_ids_back() {
        let digest = Digest::of(b"x");
        for name in [object(&digest), recipe(&digest), artifact(&digest), node(&digest)] {
            assert_eq!(id(&name), Some(digest), "{name}");
        }
        for name in ["remote.json", "objects/ab", "objects/ab/cd", "objects/a/b/c"] {
            assert_eq!(id(name), None, "{name}");
        }
    }
}
