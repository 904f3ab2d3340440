//! `sami doctor`: what this machine and this program offer, and what would be used.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::figures::bytes;
use super::{CommandResult, Context, DONE, context};
use crate::exec;
use crate::lm::device::{self, CUDA, KernelCheck};
use crate::lm::driver::{self, Driver, Gpu, Library};
use crate::store::Store;
use crate::{env, secret};

/// The setting in which no kernel is checked, as none is used.
const KERNELS_OFF: &str = "off";

/// Everything that is told.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    /// `cuda`, if it is compiled in.
    features: Vec<&'static str>,
    cpu: Cpu,
    cuda: Cuda,
    cache: Cache,
    /// Variables that are set, of those that matter.
    environment: Vec<(&'static str, String)>,
    /// What `auto` shares out, best first.
    auto: Vec<String>,
}

/// What `run` wants to know of it.
#[derive(Deserialize)]
struct Auto {
    auto: Vec<String>,
    cuda: AutoCuda,
}

#[derive(Deserialize)]
struct AutoCuda {
    driver: Option<AutoDriver>,
}

#[derive(Deserialize)]
struct AutoDriver {
    gpus: Vec<AutoGpu>,
}

#[derive(Deserialize)]
struct AutoGpu {
    device: String,
    memory: u64,
    free: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Cpu {
    name: Option<String>,
    threads: usize,
    /// What the passes on the CPU use.
    instructions: &'static str,
    memory: Option<u64>,
    available: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Cuda {
    /// Why it cannot be used; `None` if it can.
    unusable: Option<String>,
    driver: Option<Driver>,
    libraries: Vec<Library>,
    kernels: Vec<Kernels>,
}

/// How our kernels fared on a GPU.
#[derive(Debug, Serialize)]
struct Kernels {
    gpu: String,
    checks: Vec<KernelCheck>,
    /// Why they were not checked; `None` if they were.
    unchecked: Option<String>,
}

#[derive(Debug, Serialize)]
struct Cache {
    directory: String,
    state: String,
}

/// Prints what there is.
pub(super) fn run(context: &Context) -> CommandResult {
    let report = Report::of(context)?;
    if context.json() {
        context::print_json(&report)?;
    } else {
        context::print(&report.text())?;
    }
    Ok(DONE)
}

/// The GPUs that `auto` shares out, as `program doctor` tells: the driver is asked in a process of its own, so that one
/// that hangs, dies or takes memory does not do so here. None if this build has no CUDA, or what it needs is not there.
pub(super) fn gpus(program: &Path) -> Vec<exec::Gpu> {
    if !CUDA {
        return Vec::new();
    }
    let mut command = std::process::Command::new(program);
    // Checking kernels would take of a GPU's memory.
    command.args(["doctor", "--json"]).env(env::KERNELS.name, KERNELS_OFF).stdin(std::process::Stdio::null());
    let asked = command.output();
    let told = asked.ok().and_then(|output| serde_json::from_slice::<Auto>(&output.stdout).ok());
    let Some(Auto { auto, cuda }) = told else {
        tracing::warn!("what GPUs there are cannot be found out; computing on the CPU");
        return Vec::new();
    };
    let known: Vec<AutoGpu> = cuda.driver.into_iter().flat_map(|driver| driver.gpus).collect();
    let memory = |device: &String| {
        let gpu = known.iter().find(|gpu| gpu.device == *device)?;
        Some(gpu.free.unwrap_or(gpu.memory))
    };
    let gpus = auto.into_iter().filter(|device| device != "cpu");
    gpus.map(|device| exec::Gpu { memory: memory(&device), device }).collect()
}

impl Report {
    fn of(context: &Context) -> Result<Self, super::context::Failure> {
        let usable = device::cuda();
        let mut libraries = if CUDA { driver::libraries().to_vec() } else { Vec::new() };
        if usable.is_ok() {
            libraries.push(driver::nccl());
        }
        let (unusable, driver) = match usable {
            Ok(driver) => (None, Some(driver)),
            Err(why) => (Some(why), driver::probe().ok()),
        };
        let gpus = driver.iter().filter(|_| unusable.is_none()).flat_map(|driver| &driver.gpus);
        let off = env::KERNELS.get().is_some_and(|setting| setting == KERNELS_OFF);
        let kernels = gpus.filter(|_| !off).map(Kernels::of).collect();
        let auto = match (&unusable, &driver) {
            (None, Some(driver)) if !driver.gpus.is_empty() => by_load(&driver.gpus),
            _ => vec!["cpu".to_owned()],
        };
        let set = |variable: &&env::Variable| {
            let value = variable.get()?;
            let secret = secret::is_named_so(variable.name);
            Some((variable.name, if secret { "(set)".to_owned() } else { value }))
        };
        Ok(Self {
            version: env!("CARGO_PKG_VERSION"),
            features: if CUDA { vec!["cuda"] } else { Vec::new() },
            cpu: Cpu::here(),
            cuda: Cuda { unusable, driver, libraries, kernels },
            cache: Cache::of(&context.cache_directory(None)?),
            environment: env::ALL.iter().filter_map(set).collect(),
            auto,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: String| text.push_str(&format!("{name:<13}{value}\n"));
        let features = if self.features.is_empty() { "without CUDA".to_owned() } else { self.features.join(", ") };
        line(
            "sami",
            format!("{}, built {}{features}", self.version, if self.features.is_empty() { "" } else { "with " }),
        );
        let Cpu { name, threads, instructions, memory, available } = &self.cpu;
        line("cpu", name.clone().unwrap_or_else(|| "unknown".to_owned()));
        line("threads", threads.to_string());
        line("instructions", (*instructions).to_owned());
        if let (Some(memory), Some(available)) = (memory, available) {
            line("memory", format!("{}, {} available", bytes(*memory), bytes(*available)));
        }
        let Cuda { unusable, driver, libraries, kernels } = &self.cuda;
        match driver {
            None => line("driver", "none".to_owned()),
            Some(Driver { version, cuda, .. }) => {
                line("driver", format!("{}, serves CUDA {cuda}", version.as_deref().unwrap_or("NVIDIA's")));
            }
        }
        for Library { name, found } in libraries {
            line("library", format!("{name}: {}", found.as_deref().unwrap_or("not found")));
        }
        for gpu in driver.iter().flat_map(|driver| &driver.gpus) {
            let free = gpu.free.map_or_else(String::new, |free| format!(", {} free", bytes(free)));
            line(&gpu.device, format!("{}, capability {}, {}{free}", gpu.name, gpu.capability, bytes(gpu.memory)));
        }
        for Kernels { gpu, checks, unchecked } in kernels {
            if let Some(why) = unchecked {
                line("kernels", format!("{gpu}: {why}"));
            }
            for check in checks {
                line("kernel", format!("{gpu} {check}"));
            }
        }
        if let Some(why) = unusable {
            line("no GPU", why.clone());
        }
        line("cache", format!("{} ({})", self.cache.directory, self.cache.state));
        for (name, value) in &self.environment {
            line("environment", format!("{name}={value}"));
        }
        line("auto", self.auto.join(", "));
        text
    }
}

impl Kernels {
    fn of(gpu: &Gpu) -> Self {
        let gpu = gpu.device.clone();
        match device::check_kernels(&gpu) {
            Ok(checks) => Self { gpu, checks, unchecked: None },
            Err(error) => Self { gpu, checks: Vec::new(), unchecked: Some(error.to_string()) },
        }
    }
}

/// Devices, those with the least of their memory taken first; sixteenths, so that a little does not turn the order.
fn by_load(gpus: &[Gpu]) -> Vec<String> {
    let taken = |gpu: &Gpu| {
        let taken = gpu.memory.saturating_sub(gpu.free.unwrap_or(gpu.memory));
        taken.saturating_mul(16) / gpu.memory.max(1)
    };
    let mut order: Vec<&Gpu> = gpus.iter().collect();
    order.sort_by_key(|gpu| taken(gpu));
    order.into_iter().map(|gpu| gpu.device.clone()).collect()
}

impl Cpu {
    fn here() -> Self {
        let file = |path: &str| fs_err::read_to_string(path).unwrap_or_default();
        let (cpu, memory) = (file("/proc/cpuinfo"), file("/proc/meminfo"));
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        // In kB.
        let size = |name: &str| Some(field(&memory, name)?.split(' ').next()?.parse::<u64>().ok()? * 1024);
        Self {
            name: field(&cpu, "model name"),
            threads: std::thread::available_parallelism().map_or(1, usize::from),
            instructions: device::instructions(),
            memory: size("MemTotal"),
            available: size("MemAvailable"),
        }
    }
}

impl Cache {
    fn of(directory: &Path) -> Self {
        let state = if directory.exists() {
            match Store::open_existing(directory) {
                Ok(store) => match store.run_ids() {
                    Ok(runs) => super::figures::plural(runs.len() as u64, "run"),
                    Err(error) => error.to_string(),
                },
                Err(error) => error.to_string(),
            }
        } else {
            "not there yet".to_owned()
        };
        Self { directory: directory.display().to_string(), state }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_emptiest_gpu_comes_first_and_a_little_memory_turns_no_order() {
        let gpu = |ordinal: usize, free: Option<u64>| Gpu {
            device: format!("cuda:{ordinal}"),
            name: "a".to_owned(),
            capability: "9.0".to_owned(),
            memory: 160,
            free,
        };
        let order = |free: [Option<u64>; 3]| {
            by_load(&free.into_iter().enumerate().map(|(n, free)| gpu(n, free)).collect::<Vec<_>>())
        };
        assert_eq!(order([Some(10), Some(155), Some(160)]), ["cuda:1", "cuda:2", "cuda:0"]);
        assert_eq!(order([None, None, None]), ["cuda:0", "cuda:1", "cuda:2"]);
    }
}
