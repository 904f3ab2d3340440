//! `tolerance`: an artifact that is so near an earlier one that nothing below its node runs again.
//!
//! What a node makes is recorded as it is: the record's `artifact` is what came out. If the node declares a tolerance, what it
//! had before is another artifact, and the two are alike within the tolerance, the record also says which one it is equal to,
//! `equal_to_within`. A node that declares a tolerance which covers the one in the record hands that artifact down; one that
//! declares none, or a narrower one, hands down what was made. So a key never stands for what it did not make, and who wants
//! the numbers themselves gets them by taking the tolerance away.
//!
//! Compared is always with what was handed down before, never with what merely came out last: so a series of small steps
//! does not lead away from it.

use super::ExecError;
use super::compare::Comparison;
use crate::digest::Digest;
use crate::pipeline;
use crate::store::{EqualToWithin, Health, NodeRecord, Stamps, Store, StoreError, Tolerance};

fn of(tolerance: pipeline::Tolerance) -> Tolerance {
    Tolerance { relative: tolerance.relative, absolute: tolerance.absolute }
}

/// Notes in the record of what a node made just now whether it counts as what the node handed down before; `latest` is the
/// key of that.
pub(super) fn settle(
    store: &Store,
    stamps: &mut Stamps,
    tolerance: Option<pipeline::Tolerance>,
    latest: Option<&Digest>,
    record: &mut NodeRecord,
) -> Result<(), ExecError> {
    let (Some(tolerance), Some(latest)) = (tolerance, latest) else { return Ok(()) };
    if *latest == record.key {
        return Ok(());
    }
    let Some(before) = store.node(latest)? else { return Ok(()) };
    let earlier = handed_down(store, stamps, tolerance, &before)?;
    if earlier == record.artifact || !is_whole(store, stamps, &earlier)? {
        return Ok(());
    }
    if store.manifest(&earlier)?.kind != store.manifest(&record.artifact)?.kind {
        return Ok(());
    }
    let tolerance = of(tolerance);
    let mut comparison = Comparison::new(tolerance);
    comparison.files(&store.files(&earlier)?, &store.files(&record.artifact)?)?;
    if comparison.is_alike() {
        record.equal_to_within = Some(EqualToWithin { artifact: earlier, tolerance, worst: comparison.worst });
    } else {
        tracing::info!("{}: beyond its tolerance: {}", record.node, comparison.differences.join("; "));
    }
    Ok(())
}

/// What a node with this tolerance hands down of what a record says.
pub(super) fn handed_down(
    store: &Store,
    stamps: &mut Stamps,
    tolerance: pipeline::Tolerance,
    record: &NodeRecord,
) -> Result<Digest, StoreError> {
    match &record.equal_to_within {
        Some(equal) if of(tolerance).covers(&equal.tolerance) && is_whole(store, stamps, &equal.artifact)? => {
            Ok(equal.artifact)
        }
        _ => Ok(record.artifact),
    }
}

fn is_whole(store: &Store, stamps: &mut Stamps, artifact: &Digest) -> Result<bool, StoreError> {
    Ok(matches!(store.health(artifact, stamps)?, Health::Whole))
}
