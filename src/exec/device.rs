//! Devices by name.

use super::ExecError;
use super::room::is_light;
use crate::pipeline::Pipeline;

/// The device that a name means: `cpu`, or `cuda:N`. `auto` is the CPU; `cuda` is the first GPU.
pub(super) fn device(name: &str) -> Option<String> {
    match name {
        "auto" | "cpu" => Some("cpu".to_owned()),
        "cuda" => Some("cuda:0".to_owned()),
        _ => {
            let number: u32 = name.strip_prefix("cuda:")?.parse().ok()?;
            Some(format!("cuda:{number}"))
        }
    }
}

/// The device of each node; `default` is for those that compute and name none.
pub(super) fn devices(pipeline: &Pipeline, default: &str) -> Result<Vec<String>, ExecError> {
    let fallback = device(default).ok_or_else(|| ExecError::BadDevice { device: default.to_owned(), place: None })?;
    let of_node = |node: &crate::pipeline::Node| match node.run.device.as_deref() {
        None if is_light(node.kind.name) => Ok("cpu".to_owned()),
        None | Some("auto") => Ok(fallback.clone()),
        Some(name) => device(name).ok_or_else(|| ExecError::BadDevice {
            device: name.to_owned(),
            place: Some((std::sync::Arc::clone(&pipeline.source), node.span.clone())),
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
