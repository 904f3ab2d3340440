//! A model's weights as products want them, and the angles of its positions.

use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{Storage, Tensor};
use rayon::prelude::*;

use super::forward::BLOCK;
use super::matmul::Panels;
use super::pool::{Buffer, Pool};
use crate::lm::decoder::{Dense, Layer, Linear, Mlp};
use crate::lm::{Config, LmError, Model};

/// The numbers of a contiguous f32 tensor on the CPU.
struct View<Guard> {
    storage: Guard,
    range: Range<usize>,
}

/// Opens the numbers of a contiguous f32 tensor on the CPU for reading.
pub(super) fn view(tensor: &Tensor) -> Result<impl Deref<Target = [f32]>, LmError> {
    let fail = |what: &str| LmError::Candle(candle_core::Error::Msg(what.to_owned()).bt());
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| fail("a weight is not contiguous"))?;
    // Later on there is no way to err.
    match &*storage {
        Storage::Cpu(numbers) => numbers.as_slice::<f32>()?,
        _ => return Err(fail("a weight is not on the CPU")),
    };
    Ok(View { storage, range: start..end })
}

impl<Guard: Deref<Target = Storage>> Deref for View<Guard> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(numbers) => &numbers.as_slice::<f32>().expect("`view` has seen to it")[self.range.clone()],
            _ => unreachable!("`view` has seen to it"),
        }
    }
}

/// Whether the passes here compute such a layer.
pub(in crate::lm) fn can(layer: &Layer) -> bool {
    let plain = |linear: &Linear| linear.bias.is_none();
    layer.linears().into_iter().all(plain) && layer.query_norm.is_none() && matches!(layer.mlp, Mlp::Dense(_))
}

pub(super) fn dense(layer: &Layer) -> &Dense {
    match &layer.mlp {
        Mlp::Dense(dense) => dense,
        Mlp::Experts { .. } => unreachable!("`can` has seen to it"),
    }
}

/// The numbers of a linear layer's weight, with what an adapter adds: (out, in).
pub(super) fn effective<'a>(
    pool: &Arc<Pool>,
    linear: &'a Linear,
) -> Result<Effective<impl Deref<Target = [f32]> + use<'a>>, LmError> {
    let weight = view(&linear.weight)?;
    let Some(adapter) = &linear.adapter else { return Ok(Effective::Plain(weight)) };
    let (rank, inputs) = adapter.a.dims2()?;
    let mut sum = pool.take(weight.len());
    sum.copy_from_slice(&weight);
    let a = Panels::stacked(pool, &[&view(&adapter.a)?], inputs); // (r, in)
    let scaled: Vec<f32> = view(&adapter.b)?.iter().map(|b| b * adapter.scale as f32).collect(); // (out, r)
    let rows = sum.par_chunks_mut(BLOCK * inputs).zip(scaled.par_chunks(BLOCK * rank));
    rows.for_each(|(sum, b)| a.multiply(b, sum, true));
    Ok(Effective::Merged(sum))
}

/// Numbers as they are, or with something added.
pub(super) enum Effective<Plain> {
    Plain(Plain),
    Merged(Buffer),
}

impl<Plain: Deref<Target = [f32]>> Deref for Effective<Plain> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Plain(numbers) => numbers,
            Self::Merged(numbers) => numbers,
        }
    }
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct PackedLayer {
    pub(super) attention_norm: Vec<f32>,
    /// Tokens that a token sees, itself among them.
    pub(super) window: usize,
    /// (D, (H + 2K)·E)
    pub(super) qkv: Panels,
    /// (H·E, D)
    pub(super) output: Panels,
    pub(super) mlp_norm: Vec<f32>,
    /// (D, 2F)
    pub(super) gate_up: Panels,
    /// (F, D)
    pub(super) down: Panels,
}

/// The weights for the forward pass.
#[derive(Debug)]
pub(super) struct Packed {
    pub(super) layers: Vec<PackedLayer>,
    pub(super) norm: Vec<f32>,
    /// (D, V)
    pub(super) head: Panels,
}

impl Packed {
    fn new(model: &Model, pool: &Arc<Pool>) -> Result<Self, LmError> {
        let config = model.config();
        let width = config.hidden_size;
        let transposed = |linears: &[&Linear], depth| -> Result<Panels, LmError> {
            let weights = linears.iter().map(|linear| effective(pool, linear)).collect::<Result<Vec<_>, _>>()?;
            Ok(Panels::transposed(pool, &weights.iter().map(|numbers| &**numbers).collect::<Vec<_>>(), depth))
        };
        let layer = |layer: &Layer| -> Result<PackedLayer, LmError> {
            let Dense { gate, up, down } = dense(layer);
            Ok(PackedLayer {
                attention_norm: view(&layer.attention_norm)?.to_vec(),
                window: layer.window.unwrap_or(usize::MAX),
                qkv: transposed(&[&layer.query, &layer.key, &layer.value], width)?,
                output: transposed(&[&layer.output], config.num_attention_heads * config.head_dim)?,
                mlp_norm: view(&layer.mlp_norm)?.to_vec(),
                gate_up: transposed(&[gate, up], width)?,
                down: transposed(&[down], config.intermediate_size)?,
            })
        };
        Ok(Self {
            layers: model.layers.iter().map(layer).collect::<Result<_, _>>()?,
            norm: view(&model.norm)?.to_vec(),
            head: Panels::transposed(pool, &[&view(&model.head)?], width),
        })
    }
}

/// Cosines and sines of the angles of positions 0 to n: (n, E/2) each.
#[derive(Debug, Default)]
pub(super) struct Angles {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    fn new(config: &Config, positions: usize) -> Self {
        let half = config.head_dim / 2;
        let frequencies: Vec<f32> = (0..half).map(|pair| config.frequency(pair)).collect();
        let (mut cos, mut sin) = (Vec::with_capacity(positions * half), Vec::with_capacity(positions * half));
        for position in 0..positions {
            for frequency in &frequencies {
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32);
                sin.push(angle.sin() as f32);
            }
        }
        Self { half, cos, sin }
    }

    pub(super) fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Cosines and sines of one position: (E/2) each.
    pub(super) fn of(&self, position: u32) -> (&[f32], &[f32]) {
        let start = position as usize * self.half;
        (&self.cos[start..start + self.half], &self.sin[start..start + self.half])
    }
}

/// What a model keeps between passes.
#[derive(Debug, Default)]
pub(in crate::lm) struct Kept {
    pub(super) pool: Arc<Pool>,
    /// Only of a model whose weights cannot change.
    packed: OnceLock<Arc<Packed>>,
    angles: Mutex<Arc<Angles>>,
}

impl Kept {
    /// The model's weights, packed; made anew for each pass where they may change.
    pub(super) fn packed(&self, model: &Model) -> Result<Arc<Packed>, LmError> {
        if let Some(packed) = self.packed.get() {
            return Ok(Arc::clone(packed));
        }
        let packed = Arc::new(Packed::new(model, &self.pool)?);
        if model.wanted().next().is_none() {
            // Another thread may have been faster; then there are two for a while.
            let _ = self.packed.set(Arc::clone(&packed));
        }
        Ok(packed)
    }

    /// The angles of so many positions at least.
    pub(super) fn angles(&self, config: &Config, positions: usize) -> Arc<Angles> {
        // A panic elsewhere leaves the angles whole.
        let mut angles = self.angles.lock().unwrap_or_else(PoisonError::into_inner);
        if angles.positions() < positions {
            // A multiple, so that decoding does not make them anew for every token.
            *angles = Arc::new(Angles::new(config, positions.next_multiple_of(256)));
        }
        Arc::clone(&angles)
    }
}
