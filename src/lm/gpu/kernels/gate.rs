//! The gate of a feed-forward layer.

use candle_core::{Result, Tensor};

use super::launch::{Launch, unwritten};

/// Threads of a block, at most.
const THREADS: usize = 256;

/// Rows and width of gate and up, and how far it is from row to row, which must be the same in both.
struct Rows {
    gate: Tensor,
    up: Tensor,
    count: usize,
    width: usize,
    stride: usize,
}

impl Rows {
    fn of(gate: &Tensor, up: &Tensor) -> Result<Self> {
        let (rows, width) = gate.dims2()?;
        // Parts of one product lie side by side, and may be read there.
        if gate.stride() == up.stride() && gate.stride()[1] == 1 {
            return Ok(Self { gate: gate.clone(), up: up.clone(), count: rows, width, stride: gate.stride()[0] });
        }
        Ok(Self { gate: gate.contiguous()?, up: up.contiguous()?, count: rows, width, stride: width })
    }

    /// The launch of a kernel, but for what it writes: blocks for the columns by rows.
    fn launch(&self, name: &'static str) -> Launch<'_> {
        let at_once = 16 / self.gate.dtype().size_in_bytes();
        let threads = self.width.div_ceil(at_once).next_multiple_of(32).clamp(32, THREADS);
        let columns = self.width.div_ceil(threads * at_once).max(1);
        Launch::new("gate", name, self.gate.dtype())
            .over([columns, self.count.clamp(1, 65_535), 1], [threads, 1, 1])
            .reads(&self.gate)
            .reads(&self.up)
    }
}

/// silu(gate) · up of (N, F) each.
pub(in crate::lm::gpu) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let rows = Rows::of(gate, up)?;
    let out = unwritten(gate.shape(), gate.dtype(), gate.device())?;
    rows.launch("swiglu").writes(&out).u64(rows.count).u32(rows.width).u64(rows.stride).run(gate.device())?;
    Ok(out)
}

/// The gradients of [`swiglu`] to gate and up.
pub(in crate::lm::gpu) fn swiglu_back(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, gradient) = (Rows::of(gate, up)?, gradient.contiguous()?);
    let new = || unwritten(gate.shape(), gate.dtype(), gate.device());
    let (to_gate, to_up) = (new()?, new()?);
    rows.launch("swiglu_back")
        .reads(&gradient)
        .writes(&to_gate)
        .writes(&to_up)
        .u64(rows.count)
        .u32(rows.width)
        .u64(rows.stride)
        .run(gate.device())?;
    Ok((to_gate, to_up))
}
