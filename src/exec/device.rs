//! Devices by name.

use std::sync::Arc;

use super::ExecError;
use super::room::{ANY_GPU, computes_on_cpu};
use super::slots::Gpu;
use crate::pipeline::{Node, Pipeline};

/// The device that a name means: `cpu`, `cuda:N`, or any GPU. `auto` is any GPU where there are `gpus`, else the CPU;
/// `cuda` is any GPU, the first one if no one knows which there are.
pub(super) fn device(name: &str, gpus: bool) -> Option<Arc<str>> {
    match name {
        "auto" | "cuda" if gpus => Some(ANY_GPU.into()),
        "auto" | "cpu" => Some("cpu".into()),
        "cuda" => Some("cuda:0".into()),
        _ => {
            let number: u32 = name.strip_prefix("cuda:")?.parse().ok()?;
            Some(format!("cuda:{number}").into())
        }
    }
}

/// The device of each node; `default` is for those that compute and name none. `gpus`: whether `auto` may be a GPU.
pub(super) fn devices(pipeline: &Pipeline, default: &str, gpus: bool) -> Result<Vec<Arc<str>>, ExecError> {
    let bad = || ExecError::BadDevice { device: default.to_owned(), place: None };
    let fallback = device(default, gpus).ok_or_else(bad)?;
    let cpu: Arc<str> = "cpu".into();
    let of_node = |node: &Node| match node.run.device.as_deref() {
        None | Some("auto") if computes_on_cpu(pipeline, node) => Ok(Arc::clone(&cpu)),
        None | Some("auto") => Ok(Arc::clone(&fallback)),
        Some(name) => device(name, gpus).ok_or_else(|| ExecError::BadDevice {
            device: name.to_owned(),
            place: Some((Arc::clone(&pipeline.source), node.span.clone())),
        }),
    };
    pipeline.nodes.iter().map(of_node).collect()
}

/// Errs with the first of some nodes that names a GPU which is not there, if it is known which there are, or that has more ranks
/// than there are GPUs for them.
pub(super) fn check_gpus(
    pipeline: &Pipeline,
    nodes: impl IntoIterator<Item = usize>,
    devices: &[Arc<str>],
    gpus: &[Gpu],
) -> Result<(), ExecError> {
    let is_there =
        |device: &str| !device.starts_with("cuda:") || gpus.is_empty() || gpus.iter().any(|gpu| gpu.device == device);
    for node in nodes {
        let declared = &pipeline.nodes[node];
        if !is_there(&devices[node]) {
            let there: Vec<&str> = gpus.iter().map(|gpu| gpu.device.as_str()).collect();
            let (device, there) = (devices[node].to_string(), there.join(", "));
            let place = Box::new((Arc::clone(&pipeline.source), declared.span.clone()));
            return Err(ExecError::NoGpu { device, there, place });
        }
        match &*devices[node] {
            "cpu" => {}
            ANY_GPU => check_ranks(pipeline, declared, gpus.len())?,
            _ => check_ranks(pipeline, declared, 1)?,
        }
    }
    Ok(())
}

/// Errs if a node on GPUs has more ranks than it may take of them.
pub(super) fn check_ranks(pipeline: &Pipeline, node: &Node, gpus: usize) -> Result<(), ExecError> {
    let ranks = node.run.ranks.unwrap_or(1);
    if ranks <= gpus.max(1) {
        return Ok(());
    }
    let place = Box::new((Arc::clone(&pipeline.source), node.span.clone()));
    Err(ExecError::TooManyRanks { node: node.name.clone(), ranks, gpus, place })
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn devices_have_one_name_each() {
        let names = ["auto", "cpu", "cuda", "cuda:0", "cuda:01", "cuda:-1", "cuda:x", "gpu", ""];
        let names = names.map(|name| device(name, false));
        let names = names.each_ref().map(Option::as_deref);
        assert_eq!(names[..5], [Some("cpu"), Some("cpu"), Some("cuda:0"), Some("cuda:0"), Some("cuda:1")]);
        assert_eq!(names[5..], [None; 4]);
        assert_eq!(device("auto", true).as_deref(), Some("any GPU"));
        assert_eq!(device("cuda", true).as_deref(), Some("any GPU"));
    }
}
