//! Inputs are looked at once more before a node takes them: they may have been found whole long ago.
//!
//! What has the stamps that it had when it was last found whole is not read; all else is, against its digest.

use super::plan::{Plan, Recipe};
use super::source::{Source, provide};
use super::{ExecError, Reason};
use crate::pipeline::{Pipeline, Target};
use crate::store::{Health, Store};

/// An input that is not what it was.
#[derive(Debug)]
pub(super) struct Wrong {
    /// What is wrong, for people.
    pub(super) what: String,
    /// The node that makes it, and why it has to run again; `None` of a source.
    pub(super) maker: Option<(usize, Reason)>,
}

/// What is wrong with the inputs of a node that is about to start, if anything. Sources that are not there any more, but
/// can be read again, are put again.
pub(super) fn check_inputs(
    pipeline: &Pipeline,
    store: &Store,
    plan: &mut Plan,
    node: usize,
    recipe: &Recipe,
) -> Result<Option<Wrong>, ExecError> {
    for link in &pipeline.nodes[node].links {
        let Some(id) = recipe.inputs.get(&link.field.path) else { continue };
        let stamps = &mut plan.records.stamps;
        let input = &link.field.path;
        let (what, reason) = match Source::of(link) {
            Some(source) => match provide(pipeline, store, &source, id, stamps)? {
                Some(what) => (format!("input `{input}`: {what}"), None),
                None => continue,
            },
            None => match store.health(id, stamps)? {
                Health::Whole => continue,
                Health::Missing(file) => (
                    format!("input `{input}`: `{file}` of artifact {} went missing", id.short()),
                    Some(Reason::Missing(file)),
                ),
                Health::Damaged(file) => (
                    format!("input `{input}`: `{file}` of artifact {} was damaged", id.short()),
                    Some(Reason::Damaged(file)),
                ),
            },
        };
        let maker = match link.target {
            Target::Node(maker) => reason.map(|reason| (maker, reason)),
            _ => None,
        };
        return Ok(Some(Wrong { what, maker }));
    }
    Ok(None)
}
