//! A launch: which kernel, over what grid, with what arguments. On a GPU candle's device runs it; in tests the emulation
//! does, on tensors of the CPU.

#![cfg_attr(
    not(any(test, feature = "cuda")),
    expect(dead_code, reason = "launches are only looked into where they run")
)]

use candle_core::{DType, Device, Result, Shape, Tensor};

/// One argument, as the kernel declares it.
#[derive(Debug)]
pub(super) enum Argument<'a> {
    /// Where a tensor's numbers begin.
    Read(&'a Tensor),
    /// The same, of one that is written to. It shares its storage with no other argument.
    Written(&'a Tensor),
    /// A null pointer.
    Nothing,
    U32(u32),
    U64(u64),
    F32(f32),
}

/// A kernel and what it is launched with.
#[derive(Debug)]
pub(super) struct Launch<'a> {
    /// The `.cu` file.
    pub(super) file: &'static str,
    pub(super) name: &'static str,
    /// What `Number` is in it.
    pub(super) dtype: DType,
    /// Blocks.
    pub(super) grid: [u32; 3],
    /// Threads of a block.
    pub(super) threads: [u32; 3],
    /// Bytes of shared memory beside what the kernel declares.
    pub(super) shared: u32,
    pub(super) arguments: Vec<Argument<'a>>,
}

impl<'a> Launch<'a> {
    pub(super) fn new(file: &'static str, name: &'static str, dtype: DType) -> Self {
        Self { file, name, dtype, grid: [1; 3], threads: [1; 3], shared: 0, arguments: Vec::new() }
    }

    /// At most 2³¹−1 blocks by 65,535 by 65,535, of 1024 threads together at most.
    pub(super) fn over(mut self, grid: [usize; 3], threads: [usize; 3]) -> Self {
        self.grid = grid.map(|count| count as u32);
        self.threads = threads.map(|count| count as u32);
        self
    }

    pub(super) fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u32;
        self
    }

    fn with(mut self, argument: Argument<'a>) -> Self {
        self.arguments.push(argument);
        self
    }

    pub(super) fn reads(self, tensor: &'a Tensor) -> Self {
        self.with(Argument::Read(tensor))
    }

    pub(super) fn reads_any(self, tensor: Option<&'a Tensor>) -> Self {
        self.with(tensor.map_or(Argument::Nothing, Argument::Read))
    }

    pub(super) fn writes(self, tensor: &'a Tensor) -> Self {
        self.with(Argument::Written(tensor))
    }

    pub(super) fn writes_any(self, tensor: Option<&'a Tensor>) -> Self {
        self.with(tensor.map_or(Argument::Nothing, Argument::Written))
    }

    pub(super) fn u32(self, number: usize) -> Self {
        self.with(Argument::U32(number as u32))
    }

    pub(super) fn u64(self, number: usize) -> Self {
        self.with(Argument::U64(number as u64))
    }

    pub(super) fn f32(self, number: f64) -> Self {
        self.with(Argument::F32(number as f32))
    }

    /// Runs it after what was asked of the device before. Errs if the device refuses it; what goes wrong in it shows later.
    pub(super) fn run(self, device: &Device) -> Result<()> {
        match device {
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => cuda::run(&self, device),
            #[cfg(test)]
            Device::Cpu => super::emulation::run(&self),
            _ => candle_core::bail!("the kernel `{}` is for GPUs", self.name),
        }
    }
}

/// A tensor that a kernel will write all numbers of.
pub(super) fn unwritten(shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
    #[cfg(test)]
    if device.is_cpu() {
        // What is not written shows.
        return Tensor::full(f32::NAN, shape, device)?.to_dtype(dtype);
    }
    #[expect(unsafe_code, reason = "zeros would cost a pass over the memory")]
    // SAFETY: the kernel that it is made for writes every number before anything reads one.
    unsafe {
        Tensor::empty(shape, dtype, device)
    }
}

#[cfg(feature = "cuda")]
pub(in crate::lm) use self::cuda::address;

#[cfg(feature = "cuda")]
mod cuda {
    use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute;
    use candle_core::cuda_backend::cudarc::driver::{DevicePtr, LaunchConfig, PushKernelArg};
    use candle_core::cuda_backend::{CudaStorageSlice, WrapErr};
    use candle_core::{CudaDevice, DType, Result, Storage, Tensor};

    use super::{Argument, Launch};

    /// Bytes of shared memory that a block gets without asking.
    const SHARED: u32 = 48 << 10;

    /// The PTX of a file for a type of numbers, and the name that it is loaded under.
    fn source(file: &str, dtype: DType) -> Option<(&'static str, &'static str)> {
        macro_rules! one {
            ($file:literal, $suffix:literal) => {
                (concat!("sami_", $file, $suffix), include_str!(concat!(env!("OUT_DIR"), "/", $file, $suffix, ".ptx")))
            };
        }
        macro_rules! table {
            ($($file:literal),*) => {
                match (file, dtype) {
                    $(
                        ($file, DType::BF16) => Some(one!($file, "_bf16")),
                        ($file, DType::F16) => Some(one!($file, "_f16")),
                        ($file, DType::F32) => Some(one!($file, "_f32")),
                    )*
                    _ => None,
                }
            };
        }
        table!("attention", "attention_back", "decode", "gate", "norm", "pick", "turn", "update")
    }

    /// The address of a tensor's first number.
    pub(in crate::lm) fn address(tensor: &Tensor, device: &CudaDevice) -> Result<u64> {
        let (storage, layout) = tensor.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { candle_core::bail!("a tensor of another device") };
        let stream = device.cuda_stream();
        macro_rules! of {
            ($($kind:ident),*) => {
                match &storage.slice {
                    $(CudaStorageSlice::$kind(slice) => slice.device_ptr(&stream).0,)*
                    _ => candle_core::bail!("a tensor of {:?}", tensor.dtype()),
                }
            };
        }
        let first = of!(U8, U32, I64, BF16, F16, F32, F64);
        Ok(first + (layout.start_offset() * tensor.dtype().size_in_bytes()) as u64)
    }

    pub(super) fn run(launch: &Launch<'_>, device: &CudaDevice) -> Result<()> {
        let Some((module, ptx)) = source(launch.file, launch.dtype) else {
            candle_core::bail!("no kernel `{}` for {:?}", launch.name, launch.dtype)
        };
        let function = device.get_or_load_custom_func(launch.name, module, ptx)?;
        if launch.shared > SHARED {
            let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, launch.shared as i32).w()?;
        }
        // The builder takes addresses of numbers that must stay where they are.
        let addresses = launch.arguments.iter().map(|argument| match argument {
            Argument::Read(tensor) | Argument::Written(tensor) => address(tensor, device),
            _ => Ok(0),
        });
        let addresses: Vec<u64> = addresses.collect::<Result<_>>()?;
        let mut builder = function.builder();
        for (argument, address) in launch.arguments.iter().zip(&addresses) {
            match argument {
                Argument::Read(_) | Argument::Written(_) | Argument::Nothing => builder.arg(address),
                Argument::U32(number) => builder.arg(number),
                Argument::U64(number) => builder.arg(number),
                Argument::F32(number) => builder.arg(number),
            };
        }
        let [x, y, z] = launch.grid;
        let [across, down, deep] = launch.threads;
        let config =
            LaunchConfig { grid_dim: (x, y, z), block_dim: (across, down, deep), shared_mem_bytes: launch.shared };
        #[expect(unsafe_code, reason = "a kernel is launched")]
        // SAFETY: the arguments are those that the kernel declares, in its order; the tests hold each launch to its kernel.
        // Tensors live on the device's one stream, where freeing waits for what was asked before.
        unsafe {
            builder.launch(config).w()?;
        }
        Ok(())
    }
}
