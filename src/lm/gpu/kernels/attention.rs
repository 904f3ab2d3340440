//! Attention over packed tokens.

use candle_core::{DType, Device, Result, Tensor};

use super::super::attention::{Heads, Row};
use super::launch::{Launch, unwritten};

/// Widths of heads that there are kernels for; those between are computed as the next.
const WIDTHS: [usize; 2] = [64, 128];
/// Rows of a tile, each a query's head.
const ROWS: usize = 64;
/// Rows of the other tile that come by at a time.
const BY: usize = 32;
const THREADS: usize = 128;

/// The width of the kernel for heads, if there is one.
pub(super) fn padded(width: usize, dtype: DType) -> Option<usize> {
    let aligned = (width * dtype.size_in_bytes()).is_multiple_of(16);
    WIDTHS.into_iter().find(|widest| width <= *widest).filter(|_| aligned && width > 0)
}

/// The window as a kernel takes it.
pub(super) fn keys_seen(window: Option<usize>) -> usize {
    window.unwrap_or(usize::MAX).min(i32::MAX as usize)
}

/// Rows cut into tiles: which queries and keys each block of threads has.
#[derive(Debug)]
pub(in crate::lm::gpu) struct Tiles {
    heads: Heads,
    padded: usize,
    /// Of queries, five numbers each: first token and tokens of the row, tokens and first of its prefix, first head.
    queries: (Tensor, usize),
    /// Of keys, five numbers each: first token, tokens, position of the first, stretches that see them from, to.
    keys: (Tensor, usize),
    /// Queries by row, three numbers each: first token, tokens, position of the first.
    stretches: Tensor,
}

impl Tiles {
    /// `None` where no kernel fits the heads.
    pub(in crate::lm::gpu) fn new(rows: &[Row], heads: Heads, dtype: DType, device: &Device) -> Result<Option<Self>> {
        let Some(padded) = padded(heads.width, dtype) else { return Ok(None) };
        let groups = heads.queries / heads.keys;
        let mut queries: Vec<(usize, [u32; 5])> = Vec::new();
        let mut keys: Vec<(usize, [u32; 5])> = Vec::new();
        let mut stretches: Vec<[u32; 3]> = Vec::new();
        let stretch = |row: &Row| [row.queries.start, row.queries.len(), row.prefix.len()].map(|number| number as u32);
        for row in rows {
            for first in (0..row.queries.len() * groups).step_by(ROWS) {
                let numbers = [row.queries.start, row.queries.len(), row.prefix.len(), row.prefix.start, first];
                queries.push((row.prefix.len() + first / groups, numbers.map(|number| number as u32)));
            }
            let from = stretches.len();
            stretches.push(stretch(row));
            let seen_by = |other: &&Row| !other.prefix.is_empty() && other.prefix == row.queries;
            stretches.extend(rows.iter().filter(seen_by).map(stretch));
            let pairs: usize = stretches[from..].iter().map(|stretch| stretch[1] as usize).sum();
            for first in row.queries.clone().step_by(ROWS) {
                let count = ROWS.min(row.queries.end - first);
                let position = row.prefix.len() + first - row.queries.start;
                let numbers = [first, count, position, from, stretches.len()];
                keys.push((pairs - (first - row.queries.start), numbers.map(|number| number as u32)));
            }
        }
        // What takes longest begins first.
        let tensor = |mut tiles: Vec<(usize, [u32; 5])>| {
            tiles.sort_by_key(|(work, _)| std::cmp::Reverse(*work));
            let count = tiles.len();
            let numbers: Vec<u32> = tiles.into_iter().flat_map(|(_, numbers)| numbers).collect();
            Ok::<_, candle_core::Error>((Tensor::from_vec(numbers, (count, 5), device)?, count))
        };
        let count = stretches.len();
        Ok(Some(Self {
            heads,
            padded,
            queries: tensor(queries)?,
            keys: tensor(keys)?,
            stretches: Tensor::from_vec(stretches.concat(), (count, 3), device)?,
        }))
    }

    /// A launch over tiles, with blocks of `shared` bytes.
    fn launch<'a>(
        &self,
        file: &'static str,
        names: [&'static str; 2],
        query: &'a Tensor,
        tiles: usize,
        shared: usize,
    ) -> Launch<'a> {
        Launch::new(file, names[usize::from(self.padded > WIDTHS[0])], query.dtype())
            .over([tiles, self.heads.keys, 1], [THREADS, 1, 1])
            .shared(shared)
    }

    /// The arguments that end each kernel's.
    fn shape<'a>(&self, launch: Launch<'a>, [query, key, value]: [&Tensor; 3], window: Option<usize>) -> Launch<'a> {
        let Heads { queries, keys, width } = self.heads;
        let launch = launch.u32(queries).u32(keys).u32(width).u32(keys_seen(window));
        launch.u32(query.stride()[0]).u32(key.stride()[0]).u32(value.stride()[0])
    }

    /// Bytes of a matrix in shared memory.
    fn bytes(&self, rows: usize, dtype: DType) -> usize {
        rows * (self.padded * dtype.size_in_bytes() + 16)
    }
}

/// What each token takes from those that it sees: queries (N, H, E), scaled, keys and values (N, K, E) to (N, H·E), and the
/// logarithm of the sum of e to the scores: (N, H) f32.
pub(in crate::lm::gpu) fn attention(
    tiles: &Tiles,
    [query, key, value]: [&Tensor; 3],
    window: Option<usize>,
) -> Result<(Tensor, Tensor)> {
    let (tokens, heads, width) = query.dims3()?;
    let (dtype, device) = (query.dtype(), query.device());
    let mixed = unwritten((tokens, heads * width), dtype, device)?;
    let sums = unwritten((tokens, heads), DType::F32, device)?;
    let size = dtype.size_in_bytes();
    let by = if size == 2 { 2 * BY } else { BY };
    let weights = ROWS * (by * size + 16) + 4 * ROWS * (by + 4) + 4 * ROWS;
    let shared = tiles.bytes(ROWS + 2 * by, dtype) + weights;
    let launch = tiles
        .launch("attention", ["attention_64", "attention_128"], query, tiles.queries.1, shared)
        .reads(query)
        .reads(key)
        .reads(value)
        .writes(&mixed)
        .writes(&sums)
        .reads(&tiles.queries.0);
    tiles.shape(launch, [query, key, value], window).run(device)?;
    Ok((mixed, sums))
}

/// The gradients to queries (N, H, E), keys and values (N, K, E), from what [`attention`] was given and gave, and the
/// gradient to that (N, H·E).
pub(in crate::lm::gpu) fn attention_back(
    tiles: &Tiles,
    inputs: [&Tensor; 3],
    (mixed, sums): (&Tensor, &Tensor),
    gradient: &Tensor,
    window: Option<usize>,
) -> Result<[Tensor; 3]> {
    let [query, key, value] = inputs;
    let (dtype, device, gradient) = (query.dtype(), query.device(), gradient.contiguous()?);
    let new = |like: &Tensor| unwritten(like.shape(), dtype, device);
    let [to_query, to_key, to_value] = [new(query)?, new(key)?, new(value)?];
    let along = unwritten(sums.shape(), DType::F32, device)?;
    let both = tiles.bytes(2 * ROWS + 2 * BY, dtype);
    let one = ROWS * (BY * dtype.size_in_bytes() + 16);
    let names = ["attention_to_queries_64", "attention_to_queries_128"];
    let launch = tiles
        .launch("attention_back", names, query, tiles.queries.1, both + one + 12 * ROWS)
        .reads(query)
        .reads(key)
        .reads(value)
        .reads(mixed)
        .reads(&gradient)
        .reads(sums)
        .writes(&along)
        .writes(&to_query)
        .reads(&tiles.queries.0);
    tiles.shape(launch, inputs, window).run(device)?;
    let names = ["attention_to_keys_64", "attention_to_keys_128"];
    let launch = tiles
        .launch("attention_back", names, query, tiles.keys.1, both + 2 * one + 12 * BY)
        .reads(query)
        .reads(key)
        .reads(value)
        .reads(&gradient)
        .reads(sums)
        .reads(&along)
        .writes(&to_key)
        .writes(&to_value)
        .reads(&tiles.keys.0)
        .reads(&tiles.stretches);
    tiles.shape(launch, inputs, window).run(device)?;
    Ok([to_query, to_key, to_value])
}
