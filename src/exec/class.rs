//! The class of what a node makes, for its record.

use crate::kinds::{self, Setting};
use crate::pipeline::{Node, Origin, Pipeline, Target};
use crate::store::Class;

/// What may be expected of computing a node again that ran on a device.
pub(super) fn class(pipeline: &Pipeline, node: &Node, device: &str) -> Option<Class> {
    let is_called = |target: &Target| match target {
        Target::Model(name) => {
            pipeline.models.get(name).is_some_and(|model| matches!(model.origin, Origin::Endpoint { .. }))
        }
        _ => false,
    };
    // A device that is gone by now has its name left.
    let on = kinds::device_class(device).unwrap_or_else(|_| device.to_owned());
    let given = Setting {
        class: &on,
        called: node.links.iter().any(|link| is_called(&link.target)),
        said: node.run.reproducible,
    };
    let reproduces = kinds::find(node.kind.name)?.reproduces(&*node.spec, &given);
    Some(Class { reproduces, on })
}
