//! Devices by name.

use std::sync::Arc;

use super::ExecError;
use super::room::{ANY_GPU, computes_on_cpu};
use crate::pipeline::Pipeline;

/// The device that a name means: `cpu`, `cuda:N`, or any GPU. `auto` is any GPU where there are `gpus`, else the CPU;
/// `cuda` is the first GPU.
pub(super) fn device(name: &str, gpus: bool) -> Option<Arc<str>> {
    match name {
        "auto" if gpus => Some(ANY_GPU.into()),
        "auto" | "cpu" => Some("cpu".into()),
        "cuda" => Some("cuda:0".into()),
        _ => {
            let number: u32 = name.strip_prefix("cuda:")?.parse().ok()?;
            Some(format!("cuda:{number}").into())
        }
    }
}

/// The device of each node; `default` is for those that compute and name none. `gpus`: how many `auto` may be.
///
/// Errs if a node has more ranks than GPUs.
pub(super) fn devices(pipeline: &Pipeline, default: &str, gpus: usize) -> Result<Vec<Arc<str>>, ExecError> {
    let bad = || ExecError::BadDevice { device: default.to_owned(), place: None };
    let (count, gpus) = (gpus, gpus > 0);
    let fallback = device(default, gpus).ok_or_else(bad)?;
    let cpu: Arc<str> = "cpu".into();
    let of_node = |node: &crate::pipeline::Node| match node.run.device.as_deref() {
        None | Some("auto") if computes_on_cpu(pipeline, node) => Ok(Arc::clone(&cpu)),
        None | Some("auto") => Ok(Arc::clone(&fallback)),
        Some(name) => device(name, gpus).ok_or_else(|| ExecError::BadDevice {
            device: name.to_owned(),
            place: Some((Arc::clone(&pipeline.source), node.span.clone())),
        }),
    };
    let of_ranks = |node: &crate::pipeline::Node| {
        let device = of_node(node)?;
        let (ranks, gpus) = match &*device {
            "cpu" => (0, 0),
            ANY_GPU => (node.run.ranks.unwrap_or(1), count),
            _ => (node.run.ranks.unwrap_or(1), 1),
        };
        if ranks > gpus {
            let place = (Arc::clone(&pipeline.source), node.span.clone());
            return Err(ExecError::TooManyRanks { node: node.name.clone(), ranks, gpus, place });
        }
        Ok(device)
    };
    pipeline.nodes.iter().map(of_ranks).collect()
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
    }
}
