//! The root mean square norm.

use candle_core::{DType, Result, Tensor};

use super::launch::{Launch, unwritten};

/// Blocks that add up the gradient to the weight, at most: two for each multiprocessor of a large GPU.
const BLOCKS: usize = 264;
/// Numbers of a row for which their block has shared memory without asking: 48 KiB, less some that the kernel declares.
pub(in crate::lm::gpu) const WIDEST: usize = 12_000;

/// Threads of a row and rows of a block.
fn threads(width: usize, dtype: DType) -> [usize; 3] {
    let at_once = if width.is_multiple_of(16 / dtype.size_in_bytes()) { 16 / dtype.size_in_bytes() } else { 1 };
    let across = width.div_ceil(at_once).next_power_of_two().clamp(32, 1024);
    [across, (128 / across).max(1), 1]
}

/// Rows of the last dimension.
fn rows(x: &Tensor) -> (usize, usize) {
    let width = x.dims().last().copied().unwrap_or(1).max(1);
    (x.elem_count() / width, width)
}

/// The norm of x, or of x + change, with that.
fn forward(x: &Tensor, change: Option<&Tensor>, weight: &Tensor, eps: f64) -> Result<(Option<Tensor>, Tensor)> {
    let (x, change) = (x.contiguous()?, change.map(Tensor::contiguous).transpose()?);
    let (rows, width) = rows(&x);
    let new = || unwritten(x.shape(), x.dtype(), x.device());
    let (sum, out) = (change.as_ref().map(|_| new()).transpose()?, new()?);
    if rows > 0 {
        let threads = threads(width, x.dtype());
        Launch::new("norm", "rms_norm", x.dtype())
            .over([rows.div_ceil(threads[1]), 1, 1], threads)
            .reads(&x)
            .reads_any(change.as_ref())
            .writes_any(sum.as_ref())
            .reads(weight)
            .writes(&out)
            .u64(rows)
            .u32(width)
            .f32(eps)
            .run(x.device())?;
    }
    Ok((sum, out))
}

/// Rows of the last dimension over their root mean square, times `weight`: any shape (…, D).
pub(in crate::lm::gpu) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    Ok(forward(x, None, weight, eps)?.1)
}

/// x + change, and its [`rms_norm`].
pub(in crate::lm::gpu) fn add_rms_norm(
    x: &Tensor,
    change: &Tensor,
    weight: &Tensor,
    eps: f64,
) -> Result<(Tensor, Tensor)> {
    let (sum, out) = forward(x, Some(change), weight, eps)?;
    Ok((sum.unwrap_or_else(|| x.clone()), out))
}

/// The gradients of [`rms_norm`] to x, plus `residual`, and to the weight if it is `wanted`. That needs rows that are not
/// wider than [`WIDEST`].
pub(in crate::lm::gpu) fn rms_norm_back(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    gradient: &Tensor,
    residual: Option<&Tensor>,
    wanted: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let (x, gradient, residual) =
        (x.contiguous()?, gradient.contiguous()?, residual.map(Tensor::contiguous).transpose()?);
    let (dtype, device) = (x.dtype(), x.device());
    let (rows, width) = rows(&x);
    let to_x = unwritten(x.shape(), dtype, device)?;
    if rows == 0 {
        return Ok((to_x, wanted.then(|| weight.zeros_like()).transpose()?));
    }
    let mut threads = threads(width, dtype);
    if wanted && threads[1] * width > WIDEST {
        threads[1] = 1;
    }
    let all = rows.div_ceil(threads[1]);
    let blocks = if wanted { all.min(BLOCKS) } else { all };
    let parts = wanted.then(|| unwritten((blocks, width), DType::F32, device)).transpose()?;
    Launch::new("norm", "rms_norm_back", dtype)
        .over([blocks, 1, 1], threads)
        .shared(if wanted { 4 * threads[1] * width } else { 0 })
        .reads(&x)
        .reads(weight)
        .reads(&gradient)
        .reads_any(residual.as_ref())
        .writes(&to_x)
        .writes_any(parts.as_ref())
        .u64(rows)
        .u32(width)
        .f32(eps)
        .run(device)?;
    let Some(parts) = parts else { return Ok((to_x, None)) };
    let to_weight = unwritten(weight.shape(), dtype, device)?;
    Launch::new("norm", "sum_rows", dtype)
        .over([width.div_ceil(32), 1, 1], [32, 8, 1])
        .reads(&parts)
        .writes(&to_weight)
        .u32(blocks)
        .u32(width)
        .run(device)?;
    Ok((to_x, Some(to_weight)))
}
