//! CUDA kernels of our own, where candle's operations read and write the same memory several times.
//!
//! - `*.cu`: the kernels, compiled for each type of numbers by `build.rs` where the feature `cuda` is on.
//! - `norm.rs`, `turn.rs`, `gate.rs`, `update.rs`, `attention.rs`, `decode.rs`, `pick.rs`: what each needs, and its launch.
//!   `launch.rs` runs it.
//! - `check.rs`: each kernel beside plain operations on a small input, before a device's first use of them.
//! - `emulation.rs` runs the same launches in tests, on the CPU.
//!
//! Whether a kernel computes is decided by [`Kernel::computes`] alone. Who would launch one asks it, and has a way of
//! computing the same without.

mod attention;
mod check;
mod decode;
mod gate;
mod launch;
mod norm;
mod pick;
mod turn;
mod update;

#[cfg(test)]
pub(in crate::lm) mod emulation;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{DType, Device, DeviceLocation};

pub(super) use self::attention::{Tiles, attention, attention_back};
pub(super) use self::decode::{Slots, decode, decodes};
pub(super) use self::gate::{swiglu, swiglu_back};
#[cfg(feature = "cuda")]
pub(in crate::lm) use self::launch::address;
pub(super) use self::norm::{WIDEST, add_rms_norm, rms_norm, rms_norm_back};
pub(in crate::lm) use self::pick::NONE;
pub(super) use self::pick::pick;
pub(super) use self::turn::{Turned, turn};
pub(in crate::lm) use self::update::{Updated, squares, update};
use crate::env;

/// A kernel, or a few that one function launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::lm) enum Kernel {
    /// [`rms_norm`] and [`add_rms_norm`].
    Norm,
    /// [`rms_norm_back`].
    NormBack,
    /// [`turn()`].
    Turn,
    /// [`swiglu`].
    Gate,
    /// [`swiglu_back`].
    GateBack,
    /// [`update()`].
    Update,
    /// [`squares`].
    Squares,
    /// [`attention()`].
    Attention,
    /// [`attention_back`].
    AttentionBack,
    /// [`decode()`].
    Decode,
    /// [`pick()`].
    Pick,
}

impl Kernel {
    /// All of them.
    pub(in crate::lm) const ALL: [Self; 11] = [
        Self::Norm,
        Self::NormBack,
        Self::Turn,
        Self::Gate,
        Self::GateBack,
        Self::Update,
        Self::Squares,
        Self::Attention,
        Self::AttentionBack,
        Self::Decode,
        Self::Pick,
    ];

    /// What messages call it.
    pub(in crate::lm) fn name(self) -> &'static str {
        match self {
            Self::Norm => "rms_norm",
            Self::NormBack => "rms_norm_back",
            Self::Turn => "turn",
            Self::Gate => "swiglu",
            Self::GateBack => "swiglu_back",
            Self::Update => "update",
            Self::Squares => "squares",
            Self::Attention => "attention",
            Self::AttentionBack => "attention_back",
            Self::Decode => "decode",
            Self::Pick => "pick",
        }
    }

    /// Whether it computes tensors of this type on this device. The first time on a device and type, all kernels are
    /// checked there; one that fails is told of, and computes nothing.
    pub(in crate::lm) fn computes(self, device: &Device, dtype: DType) -> bool {
        if !matches!(dtype, DType::BF16 | DType::F16 | DType::F32) {
            return false;
        }
        match device.location() {
            DeviceLocation::Cuda { gpu_id } => verdicts(device, gpu_id, dtype)[&self].is_ok(),
            #[cfg(test)]
            DeviceLocation::Cpu => emulation::is_on(),
            _ => false,
        }
    }
}

/// What became of each kernel's check: how far it was from what it should be, relative to the largest number, `None` if it
/// was not checked; or why it is not used.
pub(in crate::lm) type Verdicts = BTreeMap<Kernel, Result<Option<f64>, String>>;

/// Checks all kernels on a GPU, once for each type.
pub(in crate::lm) fn verdicts(device: &Device, gpu: usize, dtype: DType) -> Arc<Verdicts> {
    static MADE: Mutex<BTreeMap<(usize, &'static str), Arc<Verdicts>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let key = (gpu, dtype.as_str());
    if let Some(verdicts) = made.get(&key) {
        return Arc::clone(verdicts);
    }
    let setting = env::KERNELS.get().unwrap_or_default();
    let mut stopped: Option<&'static str> = None;
    let mut verdicts = Verdicts::new();
    for kernel in Kernel::ALL {
        let name = kernel.name();
        let off = left_out(&setting, name);
        let verdict = match (off, stopped) {
            (true, _) => Err(format!("switched off by {}", env::KERNELS.name)),
            (false, Some(by)) => Err(format!("not checked: `{by}` stopped the GPU")),
            (false, None) if setting.contains("unchecked") => Ok(None),
            (false, None) => check::check(kernel, device, dtype).map(Some),
        };
        if let Err(why) = &verdict
            && !off
        {
            // After an access to what is not its own, a GPU does nothing more for a process.
            let alive = stopped.is_some() || device.synchronize().is_ok();
            let way_out = if alive { String::new() } else { format!("; set {}=-{name}", env::KERNELS.name) };
            if !alive {
                stopped = Some(name);
            }
            let numbers = dtype.as_str();
            tracing::warn!(
                "the kernel `{name}` is not used on cuda:{gpu} in {numbers}, candle's operations are: {why}{way_out}"
            );
        }
        verdicts.insert(kernel, verdict);
    }
    let verdicts = Arc::new(verdicts);
    made.insert(key, Arc::clone(&verdicts));
    verdicts
}

/// Whether a setting leaves a kernel out: `off` all of them, `-NAME` one.
fn left_out(setting: &str, name: &str) -> bool {
    setting.split(',').any(|part| part == "off" || part.strip_prefix('-') == Some(name))
}
