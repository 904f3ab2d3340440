//! The decoder in candle's own operations: what it computes, on any device, with gradients.
//!
//! On a CPU, `cpu/` computes the same many times faster; the tests hold it to this.
//!
//! Only operations with a backward pass may stand here: candle's fused ones (`softmax_last_dim`, `rms_norm`, `rope`) cut
//! the gradient in silence.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor};

use super::Config;
use super::decoder::{Dense, Layer, Linear, Mlp, Model};

/// Keys and values of the tokens so far, for each layer: (B, K, S, E).
pub(super) type Cache = Vec<Option<(Tensor, Tensor)>>;

/// Where the tokens of a batch are and what they see.
pub(super) struct Places {
    /// Cosine and sine of each position's angles: (B, 1, T, E/2).
    cos: Tensor,
    sin: Tensor,
    /// For each window of the model: 0 where a token sees another one, −∞ elsewhere: (B, 1, T, S).
    masks: BTreeMap<Option<usize>, Tensor>,
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
        for start in starts {
            for query in columns.clone() {
                let position = query.saturating_sub(*start);
                angles.extend((0..half).map(|pair| position as f32 * config.frequency(pair)));
            }
        }
        let angles = Tensor::from_vec(angles, (rows, 1, tokens, half), device)?;
        let mut masks = BTreeMap::new();
        for window in (0..config.num_hidden_layers).map(|layer| config.window(layer)) {
            if masks.contains_key(&window) {
                continue;
            }
            let mut mask = Vec::with_capacity(rows * tokens * all);
            for start in starts {
                for query in columns.clone() {
                    // Padding sees itself, so that no row of the softmax is empty.
                    mask.extend((0..all).map(|key| {
                        let near = key <= query && query - key < window.unwrap_or(usize::MAX);
                        if near && (key >= *start || key == query) { 0f32 } else { f32::NEG_INFINITY }
                    }));
                }
            }
            masks.insert(window, Tensor::from_vec(mask, (rows, 1, tokens, all), device)?);
        }
        Ok(Self { cos: angles.cos()?, sin: angles.sin()?, masks })
    }
}

/// A linear layer for `x` (B, T, in); flat, because candle would make it a product of batches.
fn linear(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    let (rows, tokens, width) = x.dims3()?;
    linear_of_rows(&x.reshape((rows * tokens, width))?, layer)?.reshape((rows, tokens, ()))
}

/// A linear layer for `x` (N, in).
fn linear_of_rows(x: &Tensor, layer: &Linear) -> Result<Tensor> {
    let mut y = x.matmul(&layer.weight.t()?)?;
    if let Some(bias) = &layer.bias {
        y = y.broadcast_add(bias)?;
    }
    if let Some(adapter) = &layer.adapter {
        y = (y + (x.matmul(&adapter.a.t()?)?.matmul(&adapter.b.t()?)? * adapter.scale)?)?;
    }
    Ok(y)
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
    let split = |x: Tensor, heads, norm: Option<&Tensor>| {
        let x = x.reshape((rows, tokens, heads, width))?;
        let x = norm.map_or(Ok(x.clone()), |norm| rms_norm(&x, norm, config.rms_norm_eps))?;
        x.transpose(1, 2)?.contiguous()
    };

    let normed = rms_norm(x, &layer.attention_norm, config.rms_norm_eps)?;
    let query = split(linear(&normed, &layer.query)?, heads, layer.query_norm.as_ref())?;
    let query = rotate(&query, places)?; // (B, H, T, E)
    let key = split(linear(&normed, &layer.key)?, kv_heads, layer.key_norm.as_ref())?;
    let mut key = rotate(&key, places)?; // (B, K, T, E)
    let mut value = split(linear(&normed, &layer.value)?, kv_heads, None)?; // (B, K, T, E)
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
    let weights = candle_nn::ops::softmax(&scores.broadcast_add(&places.masks[&layer.window])?, D::Minus1)?; // (B, H, T, S)
    let mixed = weights.matmul(&share(&value)?.contiguous()?)?; // (B, H, T, E)
    let mixed = mixed.transpose(1, 2)?.reshape((rows, tokens, heads * width))?; // (B, T, H·E)
    let x = (x + linear(&mixed, &layer.output)?)?;

    let normed = rms_norm(&x, &layer.mlp_norm, config.rms_norm_eps)?;
    let normed = normed.flatten_to(1)?; // (B·T, D)
    let change = match &layer.mlp {
        Mlp::Dense(dense) => feed_forward(&normed, dense)?,
        Mlp::Experts { router, experts, per_token, normalise } => {
            mixture(&normed, router, experts, *per_token, *normalise)?
        }
    };
    x + change.reshape((rows, tokens, ()))?
}

/// Shazeer 2020, "GLU variants improve transformer": (N, D) to (N, D).
fn feed_forward(x: &Tensor, dense: &Dense) -> Result<Tensor> {
    let inner = (linear_of_rows(x, &dense.gate)?.silu()? * linear_of_rows(x, &dense.up)?)?; // (N, F)
    linear_of_rows(&inner, &dense.down)
}

/// The sum of the experts that each token uses, weighted by the router: (N, D) to (N, D).
fn mixture(x: &Tensor, router: &Tensor, experts: &[Dense], per_token: usize, normalise: bool) -> Result<Tensor> {
    let weights = candle_nn::ops::softmax(&x.matmul(&router.t()?)?.to_dtype(DType::F32)?, D::Minus1)?; // (N, X)
    let chosen: Vec<Vec<usize>> = weights.to_vec2::<f32>()?.iter().map(|row| largest(row, per_token)).collect();
    let mut kept = vec![0f32; chosen.len() * experts.len()];
    let mut users = vec![Vec::new(); experts.len()];
    for (token, chosen) in chosen.iter().enumerate() {
        for expert in chosen {
            kept[token * experts.len() + expert] = 1.0;
            users[*expert].push(token as u32);
        }
    }
    let mut weights = (weights * Tensor::from_vec(kept, (chosen.len(), experts.len()), x.device())?)?;
    if normalise {
        weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    }
    let weights = weights.to_dtype(x.dtype())?;
    let mut sum = x.zeros_like()?;
    for (index, (expert, mut users)) in experts.iter().zip(users).enumerate() {
        if users.is_empty() {
            if !expert.gate.weight.track_op() {
                continue;
            }
            // With a weight of 0: so an expert that no token uses gets a gradient, of zeros.
            users.push(0);
        }
        let users = Tensor::new(users, x.device())?;
        let mine = weights.narrow(1, index, 1)?.contiguous()?.index_select(&users, 0)?; // (M, 1)
        let change = feed_forward(&x.index_select(&users, 0)?, expert)?.broadcast_mul(&mine)?; // (M, D)
        sum = sum.index_add(&users, &change, 0)?;
    }
    Ok(sum)
}

/// Where the largest numbers of a row are, the largest first; of equal ones the first.
pub(super) fn largest(row: &[f32], count: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..row.len()).collect();
    places.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
    places.truncate(count);
    places
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
