//! Devices by name, and what this program was built for.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, DeviceLocation};
use serde::Serialize;

use super::LmError;
use super::driver::{self, Driver, OLDEST_CUDA};
use super::gpu::kernels::{Kernel, verdicts};

/// Whether this program was built with CUDA.
pub const CUDA: bool = cfg!(feature = "cuda");

/// The instructions that the passes on the CPU use here.
pub fn instructions() -> &'static str {
    super::cpu::instructions()
}

/// Opens a device by its name: `cpu`, `cuda`, or `cuda:N`.
///
/// The same name gives the same device every time. Errs if there is no such device, or if this build has no CUDA in it;
/// panics nowhere, whatever the machine lacks.
pub fn device(name: &str) -> Result<Device, LmError> {
    let Some((ordinal, _)) = gpu(name)? else { return Ok(Device::Cpu) };
    open(ordinal).map_err(|error| LmError::Device { name: name.to_owned(), what: error.to_string() })
}

/// The number of a GPU by its name, and what the driver says; none for the CPU. Opens nothing.
fn gpu(name: &str) -> Result<Option<(usize, Driver)>, LmError> {
    let fail = |what: String| LmError::Device { name: name.to_owned(), what };
    let no_name = || fail("no such name; names are `cpu`, `cuda` and `cuda:N`".to_owned());
    if name == "cpu" {
        return Ok(None);
    }
    let ordinal = match name.strip_prefix("cuda") {
        Some("") => 0,
        Some(rest) => rest.strip_prefix(':').and_then(|ordinal| ordinal.parse().ok()).ok_or_else(no_name)?,
        None => return Err(no_name()),
    };
    let driver = cuda().map_err(fail)?;
    if ordinal >= driver.gpus.len() {
        let what = match driver.gpus.as_slice() {
            [] => "this machine has no GPU that this process may use".to_owned(),
            [_] => "this machine has one GPU, `cuda:0`".to_owned(),
            gpus => format!("this machine has {} GPUs, `cuda:0` to `cuda:{}`", gpus.len(), gpus.len() - 1),
        };
        return Err(fail(what));
    }
    Ok(Some((ordinal, driver)))
}

/// The class of a device: `cpu`, or `cuda:sm_90` by compute capability. What one of a class computes another computes to the
/// same bits, or on GPUs as near as rounding lets it; what devices of two classes compute differs.
///
/// On CPUs every sum runs in one order, whatever the processor, so that all that fuse a product and a sum are one class (AVX2
/// with FMA, aarch64), and the others are `cpu:unfused`. On GPUs it counts which kernels compute, see `SAMI_KERNELS`. Opens no
/// GPU. Errs if there is no such device.
pub fn class(name: &str) -> Result<String, LmError> {
    let Some((ordinal, driver)) = gpu(name)? else {
        return Ok(if super::cpu::fuses() { "cpu" } else { "cpu:unfused" }.to_owned());
    };
    let kernels = crate::env::KERNELS.get().map_or_else(String::new, |kernels| format!(" kernels {kernels}"));
    Ok(format!("cuda:sm_{}{kernels}", driver.gpus[ordinal].capability.replace('.', "")))
}

/// What the driver says, if this build can use it here. Errs with the reason why not.
///
/// Asked before candle touches a GPU: it panics where a library is missing.
pub fn cuda() -> Result<Driver, String> {
    if !CUDA {
        return Err("this program was built without CUDA".to_owned());
    }
    let driver = driver::probe()?;
    let oldest = (OLDEST_CUDA / 1000, OLDEST_CUDA % 1000 / 10);
    let served =
        driver.cuda.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    if served.is_some_and(|served: (i32, i32)| served < oldest) {
        return Err(format!("the driver serves CUDA {}, this program needs {}.{}", driver.cuda, oldest.0, oldest.1));
    }
    // cuBLAS opens cuBLASLt itself where it lies beside it.
    let needed = driver::libraries().iter().filter(|library| !library.name.starts_with("libcublasLt"));
    match needed.into_iter().find(|library| library.found.is_none()) {
        Some(library) => Err(format!(
            "the driver is here, but `{}` is not found; name its directory in `{}`",
            library.name,
            crate::env::CUDA_LIBS.name
        )),
        None => Ok(driver),
    }
}

/// How a kernel of our own fared on a GPU.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KernelCheck {
    /// What it is called.
    pub kernel: &'static str,
    /// The type of numbers, such as `bf16`.
    pub numbers: &'static str,
    /// How far it was from plain operations, relative to the largest number, where it was checked.
    pub apart: Option<f64>,
    /// Why it is not used, where it is not.
    pub unused: Option<String>,
}

impl std::fmt::Display for KernelCheck {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} in {}: ", self.kernel, self.numbers)?;
        match (&self.apart, &self.unused) {
            (_, Some(why)) => write!(formatter, "not used: {why}"),
            (Some(apart), None) => write!(formatter, "right, {apart:.0e} apart"),
            (None, None) => write!(formatter, "used unchecked"),
        }
    }
}

/// Has each kernel of our own compute a small input on a GPU, in the types that models mostly have. Errs if it cannot be
/// opened.
pub fn check_kernels(gpu: &str) -> Result<Vec<KernelCheck>, LmError> {
    let device = device(gpu)?;
    let DeviceLocation::Cuda { gpu_id } = device.location() else { return Ok(Vec::new()) };
    let of_type = |dtype: DType| {
        let verdicts = verdicts(&device, gpu_id, dtype);
        let check = |(kernel, verdict): (&Kernel, &Result<Option<f64>, String>)| KernelCheck {
            kernel: kernel.name(),
            numbers: dtype.as_str(),
            apart: verdict.as_ref().ok().copied().flatten(),
            unused: verdict.as_ref().err().cloned(),
        };
        verdicts.iter().map(check).collect::<Vec<_>>()
    };
    Ok([DType::BF16, DType::F32].into_iter().flat_map(of_type).collect())
}

/// Opens a GPU, or gives the one that is open: candle takes two openings of one GPU for two devices.
fn open(ordinal: usize) -> candle_core::Result<Device> {
    static OPEN: Mutex<BTreeMap<usize, Device>> = Mutex::new(BTreeMap::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(device) = open.get(&ordinal) {
        return Ok(device.clone());
    }
    // On a stream of its own: each thread has another default one, and threads of the pool work on one device in turn.
    let device = Device::new_cuda_with_stream(ordinal)?;
    #[cfg(feature = "cuda")]
    tune(&device, ordinal)?;
    open.insert(ordinal, device.clone());
    Ok(device)
}

/// Sets what candle leaves at defaults that cost time.
#[cfg(feature = "cuda")]
fn tune(device: &Device, ordinal: usize) -> candle_core::Result<()> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let mut keep = u64::MAX;
    #[expect(unsafe_code, reason = "no safe call sets these")]
    // SAFETY: all work on the device is on one stream, so no event is needed to order it; the attribute is a u64, as the
    // driver wants it, and lives until the call is over.
    unsafe {
        // Two events for every tensor otherwise.
        device.as_cuda_device()?.disable_event_tracking();
        // Freed memory stays with the process; by default every synchronisation gives it back, to be taken again.
        let pool = result::device::get_default_mem_pool(result::device::get(ordinal as i32).w()?).w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut keep).cast()).w()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_are_checked_before_anything_is_opened() {
        assert!(device("cpu").expect("always there").is_cpu());
        assert_eq!(class("cpu").expect("always there"), "cpu");
        assert!(class("gpu").is_err());
        for name in ["", "gpu", "cuda:", "cuda:x", "cuda0", "CPU"] {
            let error = device(name).expect_err("no such name").to_string();
            assert!(error.contains(&format!("`{name}` cannot be used: no such name")), "{error}");
        }
    }

    #[test]
    fn a_machine_or_build_without_gpus_is_told_of_not_panicked_over() {
        // Whatever this machine has, it has no such GPU.
        let error = device("cuda:4711").expect_err("not so many").to_string();
        let reasons = ["built without CUDA", "no NVIDIA driver", "the driver", "this machine has"];
        assert!(reasons.iter().any(|reason| error.contains(reason)), "{error}");
    }
}
