//! Where a node is in a run.
//!
//! ```text
//!             ┌───────────────────────────────────┬─ Hit
//!  Waiting ───┤            ┌─────── Held ────────┤        (the key is worked on elsewhere; then it is a hit, mostly)
//!     │       └── Ready ───┴────── Running ───────┼─ Ran
//!     │             ▲                │            ├─ Failed
//!     │             └──── retry ─────┘            └─ Stopped
//!     └── Skipped (one that it needs failed)
//! ```
//!
//! One that is Hit or Ran goes back to Ready if what it made turns out to be damaged when another is about to take it.

use serde_json::{Map, Value};

use super::{Plan, Reason, State};
use crate::digest::Digest;
use crate::pipeline::{Pipeline, Target};

/// Where a node is in a run.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Phase {
    /// Not asked for.
    Outside,
    /// So many of its inputs have no artifact yet.
    Waiting { inputs: usize },
    /// It starts when there is room.
    Ready { key: Digest, reason: Reason },
    /// Its key is worked on, by another process or for another node of this run.
    Held { key: Digest, reason: Reason },
    /// An attempt goes on.
    Running { key: Digest },
    /// It was fresh.
    Hit { key: Digest, artifact: Digest },
    /// An attempt succeeded.
    Ran { key: Digest, artifact: Digest, seconds: f64, metrics: Map<String, Value> },
    /// Its last attempt failed.
    Failed { key: Digest, seconds: f64 },
    /// Its attempt was stopped.
    Stopped { key: Digest, seconds: f64 },
    /// One that it needs failed.
    Skipped,
}

/// The phases that a plan leaves nodes in.
pub(super) fn phases(pipeline: &Pipeline, plan: &Plan) -> Vec<Phase> {
    let phase = |(node, state): (usize, &State)| match state {
        State::Outside => Phase::Outside,
        State::Hit { key, artifact } => Phase::Hit { key: *key, artifact: *artifact },
        State::Run { key, reason } => Phase::Ready { key: *key, reason: reason.clone() },
        State::Unknown { .. } => {
            let open = |target: &Target| matches!(target, Target::Node(input) if plan.artifact(*input).is_none());
            Phase::Waiting { inputs: pipeline.nodes[node].links.iter().filter(|link| open(&link.target)).count() }
        }
    };
    plan.nodes.iter().enumerate().map(phase).collect()
}
