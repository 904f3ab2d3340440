//! A model's weights as products want them, and the angles of its positions.

use std::ops::{Deref, Range};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{Storage, Tensor};

use super::experts::{PackedDense, PackedExperts};
use super::linear::Forwards;
use super::matmul::Panels;
use super::pool::Pool;
use crate::lm::decoder::{Layer, Mlp};
use crate::lm::memory::guarded;
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

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct PackedLayer {
    pub(super) attention_norm: Vec<f32>,
    /// Tokens that a token sees, itself among them.
    pub(super) window: usize,
    pub(super) qkv: Forwards, // D to (H + 2K)·E
    /// Of the heads of queries and of keys: (E) each.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    pub(super) output: Forwards, // H·E to D
    pub(super) mlp_norm: Vec<f32>,
    pub(super) mlp: PackedMlp,
}

/// What stands after attention.
#[derive(Debug)]
pub(super) enum PackedMlp {
    Dense(PackedDense),
    Experts(PackedExperts),
}

impl PackedMlp {
    /// How many feed-forward layers a token goes through.
    pub(super) fn per_token(&self) -> usize {
        match self {
            Self::Dense(_) => 1,
            Self::Experts(experts) => experts.per_token,
        }
    }
}

impl PackedLayer {
    fn new(layer: &Layer, pool: &Arc<Pool>) -> Result<Self, LmError> {
        let numbers = |tensor: &Tensor| -> Result<Vec<f32>, LmError> { Ok(view(tensor)?.to_vec()) };
        let mlp = match &layer.mlp {
            Mlp::Dense(dense) => PackedMlp::Dense(PackedDense::new(pool, dense)?),
            Mlp::Experts { router, experts, per_token, normalise } => PackedMlp::Experts(PackedExperts {
                router: Panels::transposed(pool, &[&view(router)?], router.dim(1)?),
                experts: experts.iter().map(|dense| PackedDense::new(pool, dense)).collect::<Result<_, _>>()?,
                per_token: *per_token,
                normalise: *normalise,
            }),
        };
        Ok(Self {
            attention_norm: numbers(&layer.attention_norm)?,
            window: layer.window.unwrap_or(usize::MAX),
            qkv: Forwards::new(pool, &[&layer.query, &layer.key, &layer.value])?,
            head_norms: match (&layer.query_norm, &layer.key_norm) {
                (Some(query), Some(key)) => Some([numbers(query)?, numbers(key)?]),
                _ => None,
            },
            output: Forwards::new(pool, &[&layer.output])?,
            mlp_norm: numbers(&layer.mlp_norm)?,
            mlp,
        })
    }
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
        Ok(Self {
            layers: model.layers.iter().map(|layer| PackedLayer::new(layer, pool)).collect::<Result<_, _>>()?,
            norm: view(&model.norm)?.to_vec(),
            head: Panels::transposed(pool, &[&view(&model.head)?], model.config().hidden_size),
        })
    }
}

/// Weights that are packed as they are read, so that they are never held twice.
pub(in crate::lm) struct Packing {
    pool: Arc<Pool>,
    packed: Packed,
}

impl Packing {
    /// Begins with the last norm and the head.
    pub(in crate::lm) fn new(norm: &Tensor, head: &Tensor) -> Result<Self, LmError> {
        let pool = Arc::new(Pool::default());
        let head = guarded(|| Ok(Panels::transposed(&pool, &[&view(head)?], head.dim(1)?)))?;
        let packed = Packed { layers: Vec::new(), norm: view(norm)?.to_vec(), head };
        Ok(Self { pool, packed })
    }

    /// Adds the next layer.
    pub(in crate::lm) fn add(&mut self, layer: &Layer) -> Result<(), LmError> {
        self.packed.layers.push(guarded(|| PackedLayer::new(layer, &self.pool))?);
        Ok(())
    }

    /// What a model of these weights keeps.
    pub(in crate::lm) fn finish(self) -> Kept {
        let packed = OnceLock::from(Arc::new(self.packed));
        Kept { pool: self.pool, packed, angles: Mutex::default() }
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
    /// From now on buffers are so many bytes at most, packed weights among them.
    pub(in crate::lm) fn limit(&self, bytes: Option<u64>) {
        self.pool.limit(bytes);
    }

    /// What another model with the same memory keeps.
    pub(in crate::lm) fn beside(&self) -> Self {
        Self { pool: Arc::clone(&self.pool), ..Self::default() }
    }

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
