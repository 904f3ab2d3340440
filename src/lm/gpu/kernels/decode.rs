//! Attention of one new token of each row to those in its slot.

use candle_core::{DType, Result, Tensor};

use super::attention::{keys_seen, padded};
use super::launch::{Launch, unwritten};

const THREADS: usize = 128;
/// Blocks that keep a GPU busy.
const BLOCKS: usize = 512;
/// Keys that are worth a block.
const KEYS: usize = 128;
/// Parts of the keys at most.
const PARTS: usize = 32;

/// Which kernel: by the width of heads, rounded up, and the query heads that one of keys serves.
const NAMES: [[&str; 4]; 2] = [
    ["decode_64_1", "decode_64_2", "decode_64_4", "decode_64_8"],
    ["decode_128_1", "decode_128_2", "decode_128_4", "decode_128_8"],
];

/// Whether there is a kernel for heads of a width.
pub(in crate::lm::gpu) fn decodes(width: usize, dtype: DType) -> bool {
    padded(width, dtype).is_some()
}

/// Keys and values of a layer, and how many tokens are in each slot.
#[derive(Clone, Copy)]
pub(in crate::lm::gpu) struct Slots<'a> {
    /// (slots, K, capacity, E)
    pub(in crate::lm::gpu) keys: &'a Tensor,
    pub(in crate::lm::gpu) values: &'a Tensor,
    /// Before the new token: (B) u32, each less than the capacity.
    pub(in crate::lm::gpu) lengths: &'a Tensor,
}

/// Writes the keys and values (B, K, E) of a new token of each row into the first B slots, behind those that are there, and
/// gives what its queries (B, H, E), scaled, take from all of them: (B, H·E).
pub(in crate::lm::gpu) fn decode(
    [query, key, value]: [&Tensor; 3],
    slots: Slots<'_>,
    window: Option<usize>,
) -> Result<Tensor> {
    let (rows, heads, width) = query.dims3()?;
    let (_, kv_heads, capacity, _) = slots.keys.dims4()?;
    let (dtype, device) = (query.dtype(), query.device());
    let Some(padded) = padded(width, dtype) else { candle_core::bail!("no kernel for heads of {width}") };
    let groups = heads / kv_heads;
    let together = groups.next_power_of_two().min(8);
    let name = NAMES[usize::from(padded > 64)][together.ilog2() as usize];
    let across = kv_heads * groups.div_ceil(together);
    // By what there is room for, not by what is there: so a captured step is good for all lengths.
    let most = keys_seen(window).min(capacity).div_ceil(KEYS).min(PARTS);
    let splits = (BLOCKS / (rows * across).max(1)).clamp(1, most);
    let mixed = unwritten((rows, heads * width), dtype, device)?;
    let parts = (splits > 1).then(|| unwritten((rows, heads, splits, width + 2), DType::F32, device)).transpose()?;
    Launch::new("decode", name, dtype)
        .over([splits, across, rows], [THREADS, 1, 1])
        .reads(query)
        .reads(key)
        .reads(value)
        .writes(slots.keys)
        .writes(slots.values)
        .reads(slots.lengths)
        .writes(&mixed)
        .writes_any(parts.as_ref())
        .u32(heads)
        .u32(kv_heads)
        .u32(width)
        .u32(capacity)
        .u32(keys_seen(window))
        .u32(query.stride()[0])
        .u32(key.stride()[0])
        .u32(value.stride()[0])
        .run(device)?;
    if let Some(parts) = &parts {
        Launch::new("decode", "decode_join", dtype)
            .over([heads, rows, 1], [padded, 1, 1])
            .reads(parts)
            .writes(&mixed)
            .u32(splits)
            .u32(width)
            .run(device)?;
    }
    Ok(mixed)
}
