//! Downloads of models from the hub, before a run is planned: a key is made of what a model is, not of what it is called.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::model::{hub_finding, open_hub};
use super::plan::asked;
use super::{Event, ExecError};
use crate::graph::Graph;
use crate::pipeline::{Origin, Pipeline, Target};

/// Between two events of one download.
const BEAT: Duration = Duration::from_millis(200);

/// Sees to it that the models from the hub that these nodes need are there, as the hub has them now.
///
/// Errs with every model that is not to be had; what has been downloaded stays and is gone on with.
pub fn fetch(
    pipeline: &Pipeline,
    graph: &Graph,
    targets: &[String],
    tell: &mut dyn FnMut(&Event),
) -> Result<(), ExecError> {
    let order = asked(pipeline, graph, targets)?;
    let links = order.iter().flat_map(|node| &pipeline.nodes[*node].links);
    let names: BTreeSet<&String> =
        links.filter_map(|link| if let Target::Model(name) = &link.target { Some(name) } else { None }).collect();
    let mut findings = Vec::new();
    for name in names {
        let Some(model) = pipeline.models.get(name) else { continue };
        let Origin::Hub(repo) = &model.origin else { continue };
        let began = Instant::now();
        let (mut told, mut so_far) = (None::<Instant>, None);
        let mut event = |progress: crate::hub::Downloaded, finished| {
            tell(&Event::Download {
                model: name.clone(),
                done: progress.done,
                total: progress.total,
                seconds: began.elapsed().as_secs_f64(),
                finished,
            });
        };
        let fetched = open_hub().and_then(|hub| {
            hub.fetch(repo, &mut |progress| {
                so_far = Some(progress);
                if told.is_none_or(|told| told.elapsed() >= BEAT) {
                    told = Some(Instant::now());
                    event(progress, false);
                }
            })
        });
        match (fetched, so_far) {
            (Ok(_), Some(progress)) => event(progress, true),
            (Ok(_), None) => {}
            (Err(error), _) => findings.push(hub_finding(name, model, pipeline, &error)),
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(ExecError::Sources(findings)) }
}
