//! An optimiser's update.

use candle_core::{DType, Device, Result, Tensor};

use super::launch::Launch;
use crate::lm::optimizer::Rates;

const THREADS: usize = 256;
/// Blocks at most: each multiprocessor of a large GPU has several, and goes on where one of them ends.
const BLOCKS: usize = 1056;
/// Blocks that sum squares, at most.
const SUMS: usize = 256;

fn grid(count: usize, most: usize) -> [usize; 3] {
    [count.div_ceil(THREADS).clamp(1, most), 1, 1]
}

/// What an update changes, in place: f32, without gaps, and a copy of the parameter in bf16.
#[derive(Clone, Copy)]
pub(in crate::lm) struct Updated<'a> {
    pub(in crate::lm) parameter: &'a Tensor,
    /// AdamW's first moment; `RMSprop` has none.
    pub(in crate::lm) first: Option<&'a Tensor>,
    pub(in crate::lm) second: &'a Tensor,
    pub(in crate::lm) copy: Option<&'a Tensor>,
}

/// One update, from a gradient of any type that there are kernels for.
pub(in crate::lm) fn update(rates: &Rates, what: Updated<'_>, gradient: &Tensor) -> Result<()> {
    let (gradient, count) = (gradient.detach().contiguous()?, what.parameter.elem_count());
    let (grid, threads) = (grid(count, BLOCKS), [THREADS, 1, 1]);
    let named = |name| Launch::new("update", name, gradient.dtype()).over(grid, threads).reads(&gradient);
    let launch = match what.first {
        Some(first) => named("adamw")
            .writes(what.parameter)
            .writes(first)
            .writes(what.second)
            .writes_any(what.copy)
            .u64(count)
            .f32(rates.scale)
            .f32(rates.size)
            .f32(rates.keep)
            .f32(1.0 - rates.first)
            .f32(rates.second)
            .f32(1.0 - rates.second)
            .f32(rates.root)
            .f32(rates.eps),
        None => named("rmsprop")
            .writes(what.parameter)
            .writes(what.second)
            .writes_any(what.copy)
            .u64(count)
            .f32(rates.scale)
            .f32(rates.size)
            .f32(rates.pull)
            .f32(rates.second)
            .f32(1.0 - rates.second)
            .f32(rates.eps),
    };
    launch.run(what.parameter.device())
}

/// The sum of the squares of all tensors' numbers, in f64: each in parts by the device, the parts here in their order.
pub(in crate::lm) fn squares(tensors: &[&Tensor], device: &Device) -> Result<f64> {
    let parts = Tensor::zeros((tensors.len(), SUMS), DType::F64, device)?;
    for (index, tensor) in tensors.iter().enumerate() {
        let (tensor, sums) = (tensor.detach().contiguous()?, parts.narrow(0, index, 1)?);
        Launch::new("update", "squares", tensor.dtype())
            .over(grid(tensor.elem_count(), SUMS), [THREADS, 1, 1])
            .reads(&tensor)
            .writes(&sums)
            .u64(tensor.elem_count())
            .run(device)?;
    }
    Ok(parts.flatten_all()?.to_vec1::<f64>()?.iter().sum())
}
