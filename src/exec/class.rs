//! The class of what a node makes, for its record.

use crate::graph::made_by;
use crate::kinds::{self, Setting};
use crate::pipeline::{ArtifactType, Node, Pipeline};
use crate::store::Class;

/// What may be expected of computing a node again that ran on a device.
pub(super) fn class(pipeline: &Pipeline, node: &Node, device: &str) -> Option<Class> {
    // A device that is gone by now has its name left.
    let on = kinds::device_class(device).unwrap_or_else(|_| device.to_owned());
    let given = Setting {
        class: &on,
        called: node.links.iter().any(|link| made_by(link, pipeline) == ArtifactType::Endpoint),
        said: node.run.reproducible,
    };
    let reproduces = kinds::find(node.kind.name)?.reproduces(&*node.spec, &given);
    Some(Class { reproduces, on })
}
