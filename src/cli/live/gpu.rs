//! What GPUs are doing, as the driver's own tool tells it again and again while a run goes on.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use crate::env;

/// Seconds between two words of it.
const EVERY: &str = "2";

/// What a GPU is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gpu {
    /// `cuda:N`.
    pub(super) name: String,
    /// Bytes of its memory in use, by whatever process.
    pub(super) used: u64,
    /// Bytes that it has.
    pub(super) total: u64,
    /// Percent of the time in which it computed lately, where that is known.
    pub(super) busy: Option<u64>,
}

/// The tool, while it is asked.
#[derive(Debug)]
pub(super) struct Gpus {
    asked: Option<Child>,
    told: Arc<Mutex<Vec<Gpu>>>,
}

impl Gpus {
    /// Begins to ask. Where there is no such tool, no GPU is told of.
    pub(super) fn ask() -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let mut command = Command::new("nvidia-smi");
        command
            .args(["--query-gpu=index,uuid,memory.used,memory.total,utilization.gpu", "--format=csv,noheader,nounits"])
            .args(["--loop", EVERY])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut asked = command.spawn().ok();
        if let Some(output) = asked.as_mut().and_then(|child| child.stdout.take()) {
            let told = told.clone();
            let visible = env::VISIBLE.get();
            // It ends with the tool, which is ended when this is dropped; or with the first word that has no reader.
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let Some(gpu) = read(&line, visible.as_deref()) else { continue };
                    let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
                    told.retain(|other: &Gpu| other.name != gpu.name);
                    told.push(gpu);
                    told.sort_by(|one, other| one.name.cmp(&other.name));
                }
            });
        }
        Self { asked, told }
    }

    /// What was told last.
    pub(super) fn told(&self) -> Vec<Gpu> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Gpus {
    fn drop(&mut self) {
        if let Some(child) = &mut self.asked {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A line such as `0, GPU-5f2a…, 1024, 81559, 97`; none of a GPU that is not to be used. What is not to be had stands there as
/// `[N/A]`.
fn read(line: &str, visible: Option<&str>) -> Option<Gpu> {
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    let [index, uuid, used, total, busy] = cells[..] else { return None };
    let place = match visible {
        None => index.parse::<usize>().ok()?,
        // By number, or by the beginning of its name.
        Some(list) => list
            .split(',')
            .map(str::trim)
            .position(|wanted| wanted == index || (wanted.starts_with("GPU-") && uuid.starts_with(wanted)))?,
    };
    const MIB: u64 = 1 << 20;
    Some(Gpu {
        name: format!("cuda:{place}"),
        used: used.parse::<u64>().ok()? * MIB,
        total: total.parse::<u64>().ok()? * MIB,
        busy: busy.parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tool_says_is_told_of_the_devices_that_are_used() {
        let line = "1, GPU-5f2a-77, 1024, 81559, 97";
        let gpu = |name: &str, busy| Gpu { name: name.into(), used: 1 << 30, total: 81_559 << 20, busy };
        assert_eq!(read(line, None), Some(gpu("cuda:1", Some(97))));
        assert_eq!(read(line, Some("3,1")), Some(gpu("cuda:1", Some(97))));
        assert_eq!(read(line, Some("GPU-5f2a")), Some(gpu("cuda:0", Some(97))));
        assert_eq!(read(line, Some("0")), None);
        assert_eq!(read("1, GPU-5f2a-77, 1024, 81559, [N/A]", None), Some(gpu("cuda:1", None)));
        for odd in ["", "No devices were found", "0, GPU-1, [N/A], [N/A], 3", "a,b,c,d,e"] {
            assert_eq!(read(odd, None), None, "{odd}");
        }
    }
}
