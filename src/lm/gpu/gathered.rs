//! Attention in candle's operations: rows are gathered into padded batches, the mask is aligned right.
//!
//! Rows of like size are one batch. Every token is the query of one row; keys of a prefix stand in several, whose gradients
//! are added up by gathering as well: candle's operations that scatter are serial on a GPU.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor};

use super::attention::{Heads, Row};
use super::ops::softmax;

/// Numbers of scores that one batch may have.
const SCORES: usize = 1 << 28;
/// Rows are one batch as long as padding makes it no larger than so many times what its rows need.
const SLACK: usize = 2;

/// Rows of one batch: B rows, T queries, S keys.
#[derive(Debug)]
struct Batch {
    rows: usize,
    queries: usize,
    keys: usize,
    /// Which row of (N·H, E) each of (B, H, T) is.
    queries_at: Tensor,
    /// Which row of (N·K, E) each of (B, K, S) is.
    keys_at: Tensor,
    /// 0 where a query sees a key, −∞ elsewhere, by window: (B, 1, 1, T, S).
    masks: BTreeMap<Option<usize>, Tensor>,
    /// 1 where a query is a token, 0 where it is padding: (B, 1, T, 1); `None` if none is.
    real: Option<Tensor>,
}

/// Where the queries and keys of all tokens of a pass are.
#[derive(Debug)]
pub(super) struct Gathered {
    heads: Heads,
    batches: Vec<Batch>,
    /// Which row of all batches' (B, H, T) each of (N, H) is.
    back: Tensor,
    /// Which row of all batches' (B, K, S) each of (N, K) is; then for the tokens that are keys more often, the next
    /// places, with one that is padding for the others.
    keys_back: Vec<Tensor>,
}

/// Rows by size, in batches that do not waste much.
fn batches(rows: Vec<Row>, heads: usize) -> Vec<Vec<Row>> {
    let mut rows = rows;
    rows.sort_by_key(|row| std::cmp::Reverse((row.queries.len() * row.keys(), row.queries.start)));
    let mut batches: Vec<Vec<Row>> = Vec::new();
    let (mut queries, mut keys, mut needed) = (0, 0, 0);
    for row in rows {
        let wider = (queries.max(row.queries.len()), keys.max(row.keys()));
        let count = batches.last().map_or(0, Vec::len) + 1;
        let (size, need) = (wider.0 * wider.1 * count, needed + row.queries.len() * row.keys());
        if count > 1 && size <= need * SLACK && size * heads <= SCORES {
            (queries, keys, needed) = (wider.0, wider.1, need);
            batches.last_mut().expect("there is one").push(row);
        } else {
            (queries, keys, needed) = (row.queries.len(), row.keys(), row.queries.len() * row.keys());
            batches.push(vec![row]);
        }
    }
    batches
}

impl Gathered {
    /// `windows` are those of the model's layers.
    pub(super) fn new(
        rows: Vec<Row>,
        heads: Heads,
        windows: &[Option<usize>],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let tokens = rows.iter().map(|row| row.queries.len()).sum();
        let mut back = vec![0u32; tokens * heads.queries];
        // Where a token is a key: its place for the first head, and the step from head to head.
        let mut places: Vec<Vec<(usize, usize)>> = vec![Vec::new(); tokens];
        let (mut queries_before, mut keys_before, mut padding) = (0, 0, 0);
        let mut made = Vec::new();
        for rows in batches(rows, heads.queries) {
            let batch = Batch::new(&rows, heads, windows, dtype, device)?;
            for (index, row) in rows.iter().enumerate() {
                for head in 0..heads.queries {
                    let start = queries_before + (index * heads.queries + head) * batch.queries;
                    for (place, token) in row.queries.clone().enumerate() {
                        back[token * heads.queries + head] = (start + place) as u32;
                    }
                }
                let start = keys_before + index * heads.keys * batch.keys;
                for (place, token) in row.tokens().enumerate() {
                    places[token].push((start + place, batch.keys));
                }
            }
            padding = keys_before + batch.keys - 1;
            queries_before += batch.rows * heads.queries * batch.queries;
            keys_before += batch.rows * heads.keys * batch.keys;
            made.push(batch);
        }
        let most = places.iter().map(Vec::len).max().unwrap_or(0);
        let nth = |nth: usize| {
            let of_token = |places: &Vec<(usize, usize)>| {
                let place = places.get(nth).copied();
                (0..heads.keys).map(move |head| place.map_or(padding, |(first, step)| first + head * step) as u32)
            };
            let all: Vec<u32> = places.iter().flat_map(of_token).collect();
            Tensor::from_vec(all, tokens * heads.keys, device)
        };
        let back = Tensor::from_vec(back, tokens * heads.queries, device)?;
        Ok(Self { heads, batches: made, back, keys_back: (0..most).map(nth).collect::<Result<_>>()? })
    }

    /// What each token takes from those that it sees: queries (N, H, E), scaled, keys and values (N, K, E) to (N, H·E).
    pub(super) fn forward(&self, [query, key, value]: [&Tensor; 3], window: Option<usize>) -> Result<Tensor> {
        let mut mixed = Vec::with_capacity(self.batches.len());
        for batch in &self.batches {
            let value = batch.keys_of(value, self.heads)?;
            let weights = batch.weights(query, key, window, self.heads)?.2;
            mixed.push(weights.matmul(&value)?.reshape(((), self.heads.width))?); // (B·H·T, E)
        }
        rows(&mixed, &self.back)?.reshape(((), self.heads.queries * self.heads.width))
    }

    /// The gradients to queries, keys and values, from what [`Gathered::forward`] was given and gave (`mixed`), and the
    /// gradient to that (N, H·E).
    pub(super) fn backward(
        &self,
        [query, key, value]: [&Tensor; 3],
        mixed: &Tensor,
        gradient: &Tensor,
        window: Option<usize>,
    ) -> Result<[Tensor; 3]> {
        let Heads { queries: heads, keys: kv_heads, width } = self.heads;
        let tokens = query.dim(0)?;
        let by_head = (tokens, heads, width);
        // Σ over the keys of weight times its gradient: of each query, in f32.
        let along = gradient.reshape(by_head)?.to_dtype(DType::F32)? * mixed.reshape(by_head)?.to_dtype(DType::F32)?;
        let along = along?.sum_keepdim(D::Minus1)?.to_dtype(query.dtype())?; // (N, H, 1)
        let gradient = gradient.reshape(by_head)?;
        let (mut to_query, mut to_key, mut to_value) = (Vec::new(), Vec::new(), Vec::new());
        for batch in &self.batches {
            let values = batch.keys_of(value, self.heads)?; // (B·K, S, E)
            let (queries, keys, weights) = batch.weights(query, key, window, self.heads)?;
            let gradient = batch.real_queries_of(&gradient, self.heads)?;
            let along = batch.real_queries_of(&along, Heads { width: 1, ..self.heads })?; // (B·K, H/K·T, 1)
            to_value.push(weights.t()?.contiguous()?.matmul(&gradient)?.reshape(((), width))?);
            let to_scores = (gradient.matmul(&values.t()?)?.broadcast_sub(&along)? * weights)?; // (B·K, H/K·T, S)
            to_query.push(to_scores.matmul(&keys)?.reshape(((), width))?);
            to_key.push(to_scores.t()?.contiguous()?.matmul(&queries)?.reshape(((), width))?);
        }
        let to_query = rows(&to_query, &self.back)?.reshape(by_head)?;
        let of_keys = |parts: &[Tensor]| -> Result<Tensor> {
            let all = Tensor::cat(parts, 0)?;
            let mut places = self.keys_back.iter();
            let first =
                places.next().map_or_else(|| all.clone().narrow(0, 0, 0), |places| all.index_select(places, 0))?;
            let sum = places.try_fold(first, |sum, places| sum + all.index_select(places, 0)?)?;
            sum.reshape((tokens, kv_heads, width))
        };
        Ok([to_query, of_keys(&to_key)?, of_keys(&to_value)?])
    }
}

/// Rows of several matrices, one below the other.
fn rows(parts: &[Tensor], at: &Tensor) -> Result<Tensor> {
    match parts {
        [one] => one.index_select(at, 0),
        parts => Tensor::cat(parts, 0)?.index_select(at, 0),
    }
}

impl Batch {
    fn new(rows: &[Row], heads: Heads, windows: &[Option<usize>], dtype: DType, device: &Device) -> Result<Self> {
        let queries = rows.iter().map(|row| row.queries.len()).max().unwrap_or(0);
        // One more than there are, so that there is always a place that no query sees.
        let keys = (rows.iter().map(Row::keys).max().unwrap_or(0) + 1).next_multiple_of(8);
        let mut queries_at = vec![0u32; rows.len() * heads.queries * queries];
        let mut keys_at = vec![0u32; rows.len() * heads.keys * keys];
        for (row, at) in rows.iter().zip(queries_at.chunks_exact_mut((heads.queries * queries).max(1))) {
            for (head, at) in at.chunks_exact_mut(queries).enumerate() {
                at.iter_mut()
                    .zip(row.queries.clone())
                    .for_each(|(at, token)| *at = (token * heads.queries + head) as u32);
            }
        }
        for (row, at) in rows.iter().zip(keys_at.chunks_exact_mut(heads.keys * keys)) {
            for (head, at) in at.chunks_exact_mut(keys).enumerate() {
                at.iter_mut().zip(row.tokens()).for_each(|(at, token)| *at = (token * heads.keys + head) as u32);
            }
        }
        let mut masks = BTreeMap::new();
        for window in windows {
            if masks.contains_key(window) {
                continue;
            }
            let mut mask = Vec::with_capacity(rows.len() * queries * keys);
            for row in rows {
                let before = row.prefix.len();
                for query in before..before + queries {
                    // Padding sees what the last token sees, so that no row of the softmax is empty.
                    let query = query.min(row.keys() - 1);
                    let sees = |key: usize| key <= query && query - key < window.unwrap_or(usize::MAX);
                    mask.extend((0..keys).map(|key| if sees(key) { 0f32 } else { f32::NEG_INFINITY }));
                }
            }
            let mask = Tensor::from_vec(mask, (rows.len(), 1, 1, queries, keys), device)?.to_dtype(dtype)?;
            masks.insert(*window, mask);
        }
        let real = if rows.iter().all(|row| row.queries.len() == queries) {
            None
        } else {
            let of_row = |row: &Row| {
                let count = row.queries.len();
                (0..queries).map(move |query| f32::from(u8::from(query < count)))
            };
            let real: Vec<f32> = rows.iter().flat_map(of_row).collect();
            Some(Tensor::from_vec(real, (rows.len(), 1, queries, 1), device)?.to_dtype(dtype)?)
        };
        let (queries_at, keys_at) =
            (Tensor::new(queries_at.as_slice(), device)?, Tensor::new(keys_at.as_slice(), device)?);
        Ok(Self { rows: rows.len(), queries, keys, queries_at, keys_at, masks, real })
    }

    /// Of tokens (N, H, E) those that are queries here: (B·K, H/K·T, E).
    fn queries_of(&self, x: &Tensor, heads: Heads) -> Result<Tensor> {
        let shape = (self.rows * heads.keys, heads.queries / heads.keys * self.queries, heads.width);
        x.reshape(((), heads.width))?.index_select(&self.queries_at, 0)?.reshape(shape)
    }

    /// The same, zero where a query is padding.
    fn real_queries_of(&self, x: &Tensor, heads: Heads) -> Result<Tensor> {
        let of_rows = self.queries_of(x, heads)?;
        let Some(real) = &self.real else { return Ok(of_rows) };
        let by_row = (self.rows, heads.queries, self.queries, heads.width);
        of_rows.reshape(by_row)?.broadcast_mul(real)?.reshape(of_rows.shape())
    }

    /// Of tokens (N, K, E) those that are keys here: (B·K, S, E).
    fn keys_of(&self, x: &Tensor, heads: Heads) -> Result<Tensor> {
        let shape = (self.rows * heads.keys, self.keys, heads.width);
        x.reshape(((), heads.width))?.index_select(&self.keys_at, 0)?.reshape(shape)
    }

    /// Queries, keys, and how much each query takes of each key: (B·K, H/K·T, S).
    fn weights(
        &self,
        query: &Tensor,
        key: &Tensor,
        window: Option<usize>,
        heads: Heads,
    ) -> Result<(Tensor, Tensor, Tensor)> {
        let (queries, keys) = (self.queries_of(query, heads)?, self.keys_of(key, heads)?);
        let scores = queries.matmul(&keys.t()?)?;
        let by_row = (self.rows, heads.keys, heads.queries / heads.keys, self.queries, self.keys);
        let masked = scores.reshape(by_row)?.broadcast_add(&self.masks[&window])?;
        let weights = softmax(&masked)?.reshape(scores.shape())?;
        Ok((queries, keys, weights))
    }
}
