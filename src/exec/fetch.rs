//! Downloads from the hub, before a run is planned: a key is made of what a model or a dataset is, not of what it is called.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::model::{hub_finding, open_hub};
use super::plan::asked;
use super::{Event, ExecError};
use crate::graph::Graph;
use crate::hub::{Downloaded, Hub, HubError};
use crate::pipeline::dataset::RowSource;
use crate::pipeline::{Origin, Pipeline, Target};

/// Between two events of one download.
const BEAT: Duration = Duration::from_millis(200);

/// Something that comes from the hub: what it is, its place in the pipeline, and how it is got.
type Wanted<'a> =
    (&'static str, &'a Range<usize>, Box<dyn Fn(&Hub, &mut dyn FnMut(Downloaded)) -> Result<(), HubError> + 'a>);

/// Sees to it that the models and datasets from the hub that these nodes need are there, as the hub has them now.
///
/// Errs with every one that is not to be had; what has been downloaded stays and is gone on with.
pub fn fetch(
    pipeline: &Pipeline,
    graph: &Graph,
    targets: &[String],
    tell: &mut dyn FnMut(&Event),
) -> Result<(), ExecError> {
    let order = asked(pipeline, graph, targets)?;
    let links = order.iter().flat_map(|node| &pipeline.nodes[*node].links);
    let names: BTreeSet<&String> = links
        .filter_map(|link| match &link.target {
            Target::Model(name) | Target::Dataset(name) => Some(name),
            Target::Node(_) => None,
        })
        .collect();
    let mut findings = Vec::new();
    for name in names {
        let Some((what, span, get)) = wanted(pipeline, name) else { continue };
        let began = Instant::now();
        let (mut told, mut so_far) = (None::<Instant>, None);
        let mut event = |progress: Downloaded, finished| {
            tell(&Event::Download {
                name: name.clone(),
                done: progress.done,
                total: progress.total,
                seconds: began.elapsed().as_secs_f64(),
                finished,
            });
        };
        let fetched = open_hub().and_then(|hub| {
            get(&hub, &mut |progress| {
                so_far = Some(progress);
                if told.is_none_or(|told| told.elapsed() >= BEAT) {
                    told = Some(Instant::now());
                    event(progress, false);
                }
            })
        });
        match (fetched, so_far) {
            (Ok(()), Some(progress)) => event(progress, true),
            (Ok(()), None) => {}
            (Err(error), _) => findings.push(hub_finding(what, name, span, pipeline, &error)),
        }
    }
    if findings.is_empty() { Ok(()) } else { Err(ExecError::Sources(findings)) }
}

/// How the source of a name is got, if it comes from the hub.
fn wanted<'a>(pipeline: &'a Pipeline, name: &str) -> Option<Wanted<'a>> {
    if let Some(model) = pipeline.models.get(name) {
        let Origin::Hub(repo) = &model.origin else { return None };
        return Some(("model", &model.span, Box::new(move |hub, progress| hub.fetch(repo, progress).map(drop))));
    }
    let dataset = pipeline.datasets.get(name)?;
    let RowSource::Hub { repo, part } = &dataset.source else { return None };
    let get = move |hub: &Hub, progress: &mut dyn FnMut(Downloaded)| hub.fetch_rows(repo, part, progress).map(drop);
    Some(("dataset", &dataset.span, Box::new(get)))
}
