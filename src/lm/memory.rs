//! How much memory there is, and memory that may not be there.

use std::alloc::{Layout, alloc_zeroed};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{DType, Device};

use super::{Config, LmError};

/// A share of what is free that is never taken: for the rest of the program, and for those beside it.
const SPARED: u64 = 4;

/// Bytes that this process can still have: what the system calls available, or what the control groups leave if that is
/// less. `None` where the system does not say.
pub fn free() -> Option<u64> {
    let available = fs_err::read_to_string("/proc/meminfo").ok().and_then(|text| field(&text, "MemAvailable:"));
    let available = available.map(|kibibytes| kibibytes << 10);
    let groups = fs_err::read_to_string("/proc/self/cgroup").ok();
    let groups =
        groups.iter().flat_map(|text| text.lines()).filter_map(|line| group(Path::new("/sys/fs/cgroup"), line));
    available.into_iter().chain(groups).min()
}

/// Bytes that a batch may take: three quarters of what is free, or a gibibyte where nobody knows.
pub(super) fn budget(device: &Device) -> u64 {
    let free = if device.is_cpu() { free() } else { free_of(device) };
    free.map_or(1 << 30, |free| free / SPARED * (SPARED - 1))
}

/// Whether so many bytes are there on a device, and as many again for the work with them.
pub fn is_ample(device: &Device, bytes: u64) -> bool {
    budget(device) / 2 >= bytes
}

/// Bytes that this process may take of a GPU; all without a number. Of the process, as a worker has one GPU.
static BOUND: AtomicU64 = AtomicU64::new(u64::MAX);
/// Bytes that it has held of it at most.
static PEAK: AtomicU64 = AtomicU64::new(0);

/// Bounds what batches may take of a GPU that others are on, too.
pub fn bound(bytes: Option<u64>) {
    BOUND.store(bytes.unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Bytes that this process has held of a GPU at most, as far as it was looked at; `None` if it was not on one.
pub fn peak() -> Option<u64> {
    Some(PEAK.load(Ordering::Relaxed)).filter(|peak| *peak > 0)
}

/// Gives back what this process holds of a GPU and does not use, and begins to measure anew what it holds at most. Of another device there is
/// nothing to do.
pub(super) fn begin_anew(device: &str) {
    PEAK.store(0, Ordering::Relaxed);
    #[cfg(feature = "cuda")]
    if let Err(error) = tidy(device) {
        tracing::warn!("the memory of {device} cannot be tidied: {error}");
    }
    #[cfg(not(feature = "cuda"))]
    let _ = device;
}

/// See [`begin_anew`].
#[cfg(feature = "cuda")]
fn tidy(device: &str) -> Result<(), LmError> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let device = super::device(device)?;
    let Ok(cuda) = device.as_cuda_device() else { return Ok(()) };
    // What was freed is free once the work before it is done.
    device.synchronize()?;
    let mut mark = 0u64;
    #[expect(unsafe_code, reason = "no safe call does this")]
    // SAFETY: the device is open; the attribute is a u64, which lives until the call is over, and 0 is what sets it to what is held.
    unsafe {
        let pool = result::device::get_default_mem_pool(cuda.cuda_stream().context().cu_device()).w()?;
        result::mem_pool::trim_to(pool, 0).w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut mark).cast()).w()?;
    }
    Ok(())
}

/// What is left of a GPU for a process that uses so much of it.
#[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "there are no GPUs without CUDA"))]
fn left(free: u64, used: u64, bound: u64) -> u64 {
    free.min(bound.saturating_sub(used))
}

/// Bytes that are free on a GPU, with those that the process holds and does not use.
#[cfg(feature = "cuda")]
fn free_of(device: &Device) -> Option<u64> {
    use candle_core::cuda_backend::cudarc::driver::{result, sys};

    let device = device.as_cuda_device().ok()?;
    let held = || {
        #[expect(unsafe_code, reason = "no safe call finds the pool")]
        // SAFETY: the device is open.
        let pool = unsafe { result::device::get_default_mem_pool(device.cuda_stream().context().cu_device()) }.ok()?;
        let attribute = |which| {
            let mut bytes = 0u64;
            #[expect(unsafe_code, reason = "no safe call reads these")]
            // SAFETY: the attributes are u64, and the variable lives until the call is over.
            unsafe { sys::cuMemPoolGetAttribute(pool, which, (&raw mut bytes).cast()) }.result().ok()?;
            Some(bytes)
        };
        let reserved = attribute(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT)?;
        let used = attribute(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)?;
        let most = attribute(sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH);
        PEAK.fetch_max(most.unwrap_or(reserved), Ordering::Relaxed);
        Some((used, reserved.saturating_sub(used)))
    };
    let (free, _) = result::mem_get_info().ok()?;
    let (used, unused) = held().unwrap_or_default();
    Some(left(free as u64 + unused, used, BOUND.load(Ordering::Relaxed)))
}

#[cfg(not(feature = "cuda"))]
fn free_of(_: &Device) -> Option<u64> {
    None
}

/// Bytes of the keys and values of so many tokens.
pub(super) fn keys_and_values(config: &Config, tokens: usize, dtype: DType) -> u64 {
    let token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim.next_multiple_of(16);
    token as u64 * tokens as u64 * dtype.size_in_bytes() as u64
}

/// A number of a file of lines `NAME NUMBER …`.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok())
}

/// What a control group leaves, by its line of `/proc/self/cgroup`: `ID:CONTROLLERS:PATH`. The limit may be any parent's.
fn group(root: &Path, line: &str) -> Option<u64> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (root, limit, used, cache) = match controllers {
        "" => (root.to_owned(), "memory.max", "memory.current", "inactive_file "),
        "memory" => (root.join("memory"), "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
        _ => return None,
    };
    let number = |path: &Path| fs_err::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let own = root.join(path.trim_start_matches('/'));
    let left = |directory: &Path| {
        let limit = number(&directory.join(limit))?;
        // Files that were read count as used, and go when memory is wanted.
        let stat = fs_err::read_to_string(directory.join("memory.stat")).unwrap_or_default();
        let used = number(&directory.join(used))?.saturating_sub(field(&stat, cache).unwrap_or(0));
        Some(limit.saturating_sub(used))
    };
    // In a container the path may be the host's, and the group's files lie at the root.
    own.ancestors().take_while(|directory| directory.starts_with(&root)).filter_map(left).min()
}

/// So many zeros, which take memory only once they are written to. Errs where the memory cannot be had.
pub(super) fn zeros(numbers: usize) -> Result<Vec<f32>, LmError> {
    if numbers == 0 {
        return Ok(Vec::new());
    }
    let missing = || full(numbers as u64 * 4);
    let layout = Layout::array::<f32>(numbers).map_err(|_| missing())?;
    #[expect(unsafe_code, reason = "the standard library has no zeros that may fail and are not written at once")]
    // SAFETY: the layout is not empty; what is not null is so many numbers of zero bits, aligned as the layout asks, and
    // the box owns it.
    unsafe {
        #[expect(clippy::cast_ptr_alignment, reason = "the layout is that of f32")]
        let start = alloc_zeroed(layout).cast::<f32>();
        if start.is_null() {
            return Err(missing());
        }
        Ok(Box::from_raw(std::ptr::slice_from_raw_parts_mut(start, numbers)).into_vec())
    }
}

/// Runs work that takes buffers; where there is no memory for one, that is an error.
///
/// Buffers are taken deep in loops over threads, where nothing can be returned: [`give_up`] unwinds to here.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, LmError>) -> Result<T, LmError> {
    // Nothing is used after an error but what the work's own locks guard.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| match payload.downcast::<Missing>() {
        Ok(missing) => Err(full(missing.0)),
        Err(other) => resume_unwind(other),
    })
}

/// The error that so many bytes could not be had.
pub(super) fn full(bytes: u64) -> LmError {
    LmError::OutOfMemory { what: format!("{:.1} MiB more could not be had", bytes as f64 / f64::from(1 << 20)) }
}

/// Bytes that could not be had.
struct Missing(u64);

/// Ends what [`guarded`] runs, for want of so many bytes.
pub(super) fn give_up(bytes: u64) -> ! {
    resume_unwind(Box::new(Missing(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_leaves_what_is_not_used_of_it() {
        assert_eq!((left(50, 20, 40), left(5, 20, 40), left(50, 60, 40)), (20, 5, 0));
        assert_eq!(left(50, 20, u64::MAX), 50);
    }

    #[test]
    fn memory_is_found_where_linux_says_it() {
        if Path::new("/proc/meminfo").exists() {
            let free = free().expect("Linux says");
            assert!(free > 1 << 20 && free < 1 << 50, "{free}");
        }
        assert!(budget(&Device::Cpu) >= 1 << 20);
    }

    #[test]
    fn a_groups_limit_or_its_parents_counts() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs_err::create_dir_all(path.parent().expect("has one")).expect("made");
            fs_err::write(path, text).expect("written");
        };
        write("a/memory.max", "1000\n");
        write("a/memory.current", "700\n");
        write("a/memory.stat", "anon 500\ninactive_file 100\n");
        write("a/b/memory.max", "max\n");
        write("a/b/memory.current", "10\n");
        assert_eq!(group(folder.path(), "0::/a/b"), Some(400));
        write("a/b/memory.max", "15\n");
        assert_eq!(group(folder.path(), "0::/a/b"), Some(5));
        assert_eq!(group(folder.path(), "4:cpu:/a/b"), None);
        assert_eq!(group(folder.path(), "0::/c"), None);
        write("memory/c/memory.limit_in_bytes", "50\n");
        write("memory/c/memory.usage_in_bytes", "60\n");
        assert_eq!(group(folder.path(), "4:memory:/c"), Some(0));
    }

    #[test]
    fn what_no_machine_has_is_an_error() {
        assert!(matches!(zeros(1 << 58), Err(LmError::OutOfMemory { .. })));
        assert_eq!(zeros(3).expect("is there"), [0.0; 3]);
        assert!(zeros(0).expect("is there").is_empty());
        let error = guarded(|| -> Result<(), LmError> { give_up(7 << 20) }).expect_err("there is no memory");
        assert_eq!(error.to_string(), "the memory is full: 7.0 MiB more could not be had");
        assert_eq!(guarded(|| Ok(1)).expect("works"), 1);
    }
}
