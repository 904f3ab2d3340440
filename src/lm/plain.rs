//! The decoder in candle's own operations: what it computes, on any device, with gradients.
//!
//! On a CPU, `cpu/` computes the same many times faster; the tests hold it to this.
//!
//! Only operations with a backward pass may stand here: candle's fused ones (`softmax_last_dim`, `rms_norm`, `rope`) cut
//! the gradient in silence.

use candle_core::{D, DType, Device, Result, Tensor};

use super::Config;
use super::decoder::{Layer, Model};

/// Keys and values of the tokens so far, for each layer: (B, K, S, E).
pub(super) type Cache = Vec<Option<(Tensor, Tensor)>>;

/// Where the tokens of a batch are and what they see.
pub(super) struct Places {
    /// Cosine and sine of each position's angles: (B, 1, T, E/2).
    cos: Tensor,
    sin: Tensor,
    /// 0 where a token sees another one, −∞ elsewhere: (B, 1, T, S).
    mask: Tensor,
}

impl Places {
    /// `starts[b]` tokens of row `b` are padding on its left; the batch's tokens are the last T of S columns.
    pub(super) fn new(
        config: &Config,
        starts: &[usize],
        columns: std::ops::Range<usize>,
        device: &Device,
    ) -> Result<Self> {
        let (rows, tokens, all) = (starts.len(), columns.len(), columns.end);
        let half = config.head_dim / 2;
        let mut angles = Vec::with_capacity(rows * tokens * half);
        let mut mask = Vec::with_capacity(rows * tokens * all);
        let window = config.sliding_window.unwrap_or(usize::MAX);
        for start in starts {
            for query in columns.clone() {
                let position = query.saturating_sub(*start);
                angles.extend((0..half).map(|pair| position as f32 * frequency(config, pair)));
                // Padding sees itself, so that no row of the softmax is empty.
                mask.extend((0..all).map(|key| {
                    let sees = key <= query && query - key < window && (key >= *start || key == query);
                    if sees { 0f32 } else { f32::NEG_INFINITY }
                }));
            }
        }
        let angles = Tensor::from_vec(angles, (rows, 1, tokens, half), device)?;
        Ok(Self {
            cos: angles.cos()?,
            sin: angles.sin()?,
            mask: Tensor::from_vec(mask, (rows, 1, tokens, all), device)?,
        })
    }
}

/// The angle between two neighbouring positions of one pair of a head's numbers.
pub(super) fn frequency(config: &Config, pair: usize) -> f32 {
    (1.0 / config.rope_theta.powf(2.0 * pair as f64 / config.head_dim as f64)) as f32
}

/// x · Wᵀ for `x` (B, T, D) and `weight` (F, D); flat, because candle would make it a product of batches.
fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let (rows, tokens, width) = x.dims3()?;
    x.reshape((rows * tokens, width))?.matmul(&weight.t()?)?.reshape((rows, tokens, ()))
}

/// Zhang and Sennrich 2019, "Root mean square layer normalization".
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Su et al. 2021, "RoFormer", with the pairs that `transformers` makes: the first half of a head with the second.
fn rotate(x: &Tensor, places: &Places) -> Result<Tensor> {
    let half = x.dim(D::Minus1)? / 2;
    let (first, second) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
    let turn = |a: &Tensor, b: &Tensor| a.broadcast_mul(&places.cos)? + b.broadcast_mul(&places.sin)?;
    Tensor::cat(&[turn(&first, &second.neg()?)?, turn(&second, &first)?], D::Minus1)
}

/// (B, T, D) to (B, T, D).
fn block(
    config: &Config,
    layer: &Layer,
    x: &Tensor,
    places: &Places,
    cache: Option<&mut Option<(Tensor, Tensor)>>,
) -> Result<Tensor> {
    let (rows, tokens, _) = x.dims3()?;
    let (heads, kv_heads, width) = (config.num_attention_heads, config.num_key_value_heads, config.head_dim);
    let split = |x: Tensor, heads| x.reshape((rows, tokens, heads, width))?.transpose(1, 2)?.contiguous();

    let normed = rms_norm(x, &layer.attention_norm, config.rms_norm_eps)?;
    let query = rotate(&split(linear(&normed, &layer.query)?, heads)?, places)?; // (B, H, T, E)
    let mut key = rotate(&split(linear(&normed, &layer.key)?, kv_heads)?, places)?; // (B, K, T, E)
    let mut value = split(linear(&normed, &layer.value)?, kv_heads)?; // (B, K, T, E)
    if let Some(cache) = cache {
        if let Some((keys, values)) = cache.take() {
            key = Tensor::cat(&[&keys, &key], 2)?; // (B, K, S, E)
            value = Tensor::cat(&[&values, &value], 2)?; // (B, K, S, E)
        }
        *cache = Some((key.clone(), value.clone()));
    }
    let share = |x: &Tensor| {
        let (rows, kv_heads, all, width) = x.dims4()?;
        x.unsqueeze(2)?.broadcast_as((rows, kv_heads, heads / kv_heads, all, width))?.reshape((rows, heads, all, width))
    };
    let scores = (query.matmul(&share(&key)?.transpose(2, 3)?.contiguous()?)? / (width as f64).sqrt())?; // (B, H, T, S)
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(&places.mask)?, D::Minus1)?; // (B, H, T, S)
    let mixed = weights.matmul(&share(&value)?.contiguous()?)?; // (B, H, T, E)
    let mixed = mixed.transpose(1, 2)?.reshape((rows, tokens, heads * width))?; // (B, T, H·E)
    let x = (x + linear(&mixed, &layer.output)?)?;

    let normed = rms_norm(&x, &layer.mlp_norm, config.rms_norm_eps)?;
    // Shazeer 2020, "GLU variants improve transformer".
    let inner = (linear(&normed, &layer.gate)?.silu()? * linear(&normed, &layer.up)?)?; // (B, T, F)
    x + linear(&inner, &layer.down)?
}

/// Hidden states after the last norm: `ids` (B, T) u32 to (B, T, D).
pub(super) fn hidden(model: &Model, ids: &Tensor, places: &Places, mut cache: Option<&mut Cache>) -> Result<Tensor> {
    let (rows, tokens) = ids.dims2()?;
    let config = model.config();
    let mut x = model.embedding.index_select(&ids.flatten_all()?, 0)?.reshape((rows, tokens, ()))?; // (B, T, D)
    for (index, layer) in model.layers.iter().enumerate() {
        x = block(config, layer, &x, places, cache.as_deref_mut().map(|cache| &mut cache[index]))?;
    }
    rms_norm(&x, &model.norm, config.rms_norm_eps)
}

/// Hidden states (N, D) to logits (N, V).
pub(super) fn logits(model: &Model, hidden: &Tensor) -> Result<Tensor> {
    hidden.matmul(&model.head.t()?)
}

/// Rows of tokens, padded with token 0 on one side to the longest: (B, T) u32.
pub(super) fn pad(rows: &[&[u32]], left: bool, device: &Device) -> Result<Tensor> {
    let longest = rows.iter().map(|row| row.len()).max().unwrap_or(0);
    let mut ids = vec![0u32; rows.len() * longest];
    for (row, line) in rows.iter().zip(ids.chunks_mut(longest.max(1))) {
        let start = if left { longest - row.len() } else { 0 };
        line[start..start + row.len()].copy_from_slice(row);
    }
    Tensor::from_vec(ids, (rows.len(), longest), device)
}

/// Log-probabilities over the vocabulary after each of the chosen tokens: (N, V).
///
/// `chosen` counts through the rows as [`pad`] lays them out on the right.
pub(super) fn log_softmax_at(model: &Model, rows: &[&[u32]], chosen: &[u32]) -> Result<Tensor> {
    let device = model.device();
    let ids = pad(rows, false, device)?;
    let places = Places::new(model.config(), &vec![0; rows.len()], 0..ids.dim(1)?, device)?;
    let hidden = hidden(model, &ids, &places, None)?.flatten_to(1)?; // (B·T, D)
    let chosen = Tensor::new(chosen, device)?;
    candle_nn::ops::log_softmax(&logits(model, &hidden.index_select(&chosen, 0)?)?, D::Minus1)
}

/// KL(p‖q) of each row, from log-probabilities (N, V): (N).
pub(super) fn kl(policy: &Tensor, reference: &Tensor) -> Result<Tensor> {
    (policy.exp()? * (policy - reference)?)?.sum(D::Minus1)
}

/// What is at `targets` (N) of each row of (N, V), as f32: (N).
pub(super) fn pick(rows: &Tensor, targets: &[u32]) -> Result<Tensor> {
    let targets = Tensor::new(targets, rows.device())?.unsqueeze(1)?;
    rows.gather(&targets, 1)?.squeeze(1)?.to_dtype(DType::F32)
}
