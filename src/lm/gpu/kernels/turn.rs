//! Norms and rotations of heads.

use candle_core::{Result, Tensor};

use super::launch::{Launch, unwritten};

/// Heads that one block turns.
const HEADS: usize = 8;

/// What is turned: heads of tokens, (N, H, E) and (N, K, E), each token's side by side.
#[derive(Clone, Copy)]
pub(in crate::lm::gpu) struct Turned<'a> {
    pub(in crate::lm::gpu) query: &'a Tensor,
    pub(in crate::lm::gpu) key: &'a Tensor,
    /// Copied where its tokens do not follow each other: (N, K, E).
    pub(in crate::lm::gpu) value: Option<&'a Tensor>,
    /// Weights of the norms of queries and keys before the turn: (E).
    pub(in crate::lm::gpu) norms: [Option<&'a Tensor>; 2],
    pub(in crate::lm::gpu) eps: f64,
}

/// Heads that lie side by side, and how far it is from token to token.
fn side_by_side(x: &Tensor) -> Result<(Tensor, usize)> {
    let (_, heads, width) = x.dims3()?;
    let stride = x.stride();
    if stride[2] == 1 && (stride[1] == width || heads == 1) {
        return Ok((x.clone(), stride[0]));
    }
    Ok((x.contiguous()?, heads * width))
}

/// Queries, normed, turned and times `scale`, keys likewise without scale, and values as they are, all without gaps.
/// `cos` and `sin` are (N, E/2); `sign` −1 turns back.
pub(in crate::lm::gpu) fn turn(
    what: Turned<'_>,
    (cos, sin): (&Tensor, &Tensor),
    scale: f64,
    sign: f64,
) -> Result<(Tensor, Tensor, Option<Tensor>)> {
    let (tokens, queries, width) = what.query.dims3()?;
    let keys = what.key.dim(1)?;
    let (dtype, device) = (what.query.dtype(), what.query.device());
    let (query, query_stride) = side_by_side(what.query)?;
    let (key, key_stride) = side_by_side(what.key)?;
    let copied = what.value.filter(|value| !value.is_contiguous()).map(side_by_side).transpose()?;
    let values = copied.as_ref().map_or(Ok(0), |(value, _)| value.dim(1))?;
    let new = |heads: usize| unwritten((tokens, heads, width), dtype, device);
    let (out_query, out_key) = (new(queries)?, new(keys)?);
    let out_value = copied.as_ref().map(|_| new(values)).transpose()?;
    let rows = tokens * (queries + keys + values);
    if rows > 0 {
        Launch::new("turn", "turn", dtype)
            .over([rows.div_ceil(HEADS), 1, 1], [32, HEADS, 1])
            .reads(&query)
            .reads(&key)
            .reads_any(copied.as_ref().map(|(value, _)| value))
            .reads_any(what.norms[0])
            .reads_any(what.norms[1])
            .reads(cos)
            .reads(sin)
            .writes(&out_query)
            .writes(&out_key)
            .writes_any(out_value.as_ref())
            .u32(tokens)
            .u32(queries)
            .u32(keys)
            .u32(values)
            .u32(width / 2)
            .u64(query_stride)
            .u64(key_stride)
            .u64(copied.as_ref().map_or(0, |(_, stride)| *stride))
            .f32(scale)
            .f32(sign)
            .f32(what.eps)
            .run(device)?;
    }
    Ok((out_query, out_key, out_value.or_else(|| what.value.cloned())))
}
