//! Devices by name.

use std::sync::Arc;

use super::ExecError;
use super::room::is_light;
use crate::pipeline::Pipeline;

/// The device that a name means: `cpu`, or `cuda:N`. `auto` is the CPU; `cuda` is the first GPU.
pub(super) fn device(name: &str) -> Option<Arc<str>> {
    match name {
        "auto" | "cpu" => Some("cpu".into()),
        "cuda" => Some("cuda:0".into()),
        _ => {
            let number: u32 = name.strip_prefix("cuda:")?.parse().ok()?;
            Some(format!("cuda:{number}").into())
        }
    }
}

/// The device of each node; `default` is for those that compute and name none.
pub(super) fn devices(pipeline: &Pipeline, default: &str) -> Result<Vec<Arc<str>>, ExecError> {
    let fallback = device(default).ok_or_else(|| ExecError::BadDevice { device: default.to_owned(), place: None })?;
    let cpu: Arc<str> = "cpu".into();
    let of_node = |node: &crate::pipeline::Node| match node.run.device.as_deref() {
        None if is_light(node.kind.name) => Ok(Arc::clone(&cpu)),
        None | Some("auto") => Ok(Arc::clone(&fallback)),
        Some(name) => device(name).ok_or_else(|| ExecError::BadDevice {
            device: name.to_owned(),
            place: Some((Arc::clone(&pipeline.source), node.span.clone())),
        }),
    };
    pipeline.nodes.iter().map(of_node).collect()
}

#[cfg(test)]
mod tests {
    use super::device;

    #[test]
    fn devices_have_one_name_each() {
        let names = ["auto", "cpu", "cuda", "cuda:0", "cuda:01", "cuda:-1", "cuda:x", "gpu", ""].map(device);
        let names = names.each_ref().map(Option::as_deref);
        assert_eq!(names[..5], [Some("cpu"), Some("cpu"), Some("cuda:0"), Some("cuda:0"), Some("cuda:1")]);
        assert_eq!(names[5..], [None; 4]);
    }
}
