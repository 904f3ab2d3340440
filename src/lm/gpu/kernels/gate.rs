//! The gate of a feed-forward layer.

use candle_core::{Result, Tensor};

use super::launch::{Launch, unwritten};

const THREADS: usize = 256;

/// Rows and width of gate and up, and how far it is from row to row, which must be the same in both.
struct Rows {
    gate: Tensor,
    up: Tensor,
    rows: usize,
    width: usize,
    stride: usize,
}

impl Rows {
    fn of(gate: &Tensor, up: &Tensor) -> Result<Self> {
        let (rows, width) = gate.dims2()?;
        // Parts of one product lie side by side, and may be read there.
        if gate.stride() == up.stride() && gate.stride()[1] == 1 {
            return Ok(Self { gate: gate.clone(), up: up.clone(), rows, width, stride: gate.stride()[0] });
        }
        Ok(Self { gate: gate.contiguous()?, up: up.contiguous()?, rows, width, stride: width })
    }

    fn grid(&self) -> [usize; 3] {
        let at_once = 16 / self.gate.dtype().size_in_bytes();
        [self.width.div_ceil(THREADS * at_once).max(1), self.rows.clamp(1, 65_535), 1]
    }
}

/// silu(gate) · up of (N, F) each.
pub(in crate::lm::gpu) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    let rows = Rows::of(gate, up)?;
    let out = unwritten(gate.shape(), gate.dtype(), gate.device())?;
    Launch::new("gate", "swiglu", gate.dtype())
        .over(rows.grid(), [THREADS, 1, 1])
        .reads(&rows.gate)
        .reads(&rows.up)
        .writes(&out)
        .u64(rows.rows)
        .u32(rows.width)
        .u64(rows.stride)
        .run(gate.device())?;
    Ok(out)
}

/// The gradients of [`swiglu`] to gate and up.
pub(in crate::lm::gpu) fn swiglu_back(gate: &Tensor, up: &Tensor, gradient: &Tensor) -> Result<(Tensor, Tensor)> {
    let (rows, gradient) = (Rows::of(gate, up)?, gradient.contiguous()?);
    let new = || unwritten(gate.shape(), gate.dtype(), gate.device());
    let (to_gate, to_up) = (new()?, new()?);
    Launch::new("gate", "swiglu_back", gate.dtype())
        .over(rows.grid(), [THREADS, 1, 1])
        .reads(&rows.gate)
        .reads(&rows.up)
        .reads(&gradient)
        .writes(&to_gate)
        .writes(&to_up)
        .u64(rows.rows)
        .u32(rows.width)
        .u64(rows.stride)
        .run(gate.device())?;
    Ok((to_gate, to_up))
}
