//! Trackers of runs, as `sami.toml` names them.

use super::RunArgs;
use crate::cli::context::{Failure, project_of};
use crate::digest::{Digest, Hasher};
use crate::pipeline::Pipeline;
use crate::settings::Settings;
use crate::store::Store;
use crate::trackers::{About, Places, Trackers};

/// Starts the trackers of a run; `None` if there are none.
pub(super) fn start(
    settings: &Settings,
    pipeline: &Pipeline,
    store: &Store,
    args: &RunArgs,
) -> Result<Option<Trackers>, Failure> {
    let project = project_of(Some(&args.pipeline.pipeline))?;
    let places = Places::of(settings.tensorboard.as_ref(), settings.mlflow.as_ref(), store.root(), &project);
    if places.is_empty() {
        return Ok(None);
    }
    let about = About {
        cache: store.root().to_owned(),
        file: args.pipeline.pipeline.display().to_string(),
        params: pipeline.params.clone(),
        identity: identity(pipeline),
        again: false,
    };
    Ok(Some(Trackers::start(&places, about)))
}

/// What stands for all that a pipeline asks for. Of an edited one a tracker is told as of another: steps of two recipes
/// would make one curve.
fn identity(pipeline: &Pipeline) -> Digest {
    let mut hasher = Hasher::new();
    hasher.text(&pipeline.name);
    for (name, value) in &pipeline.params {
        hasher.text(name).text(&value.to_string());
    }
    for node in &pipeline.nodes {
        hasher.text(&node.name).text(node.kind.name).text(&node.spec.fields().to_string());
    }
    hasher.finish()
}
