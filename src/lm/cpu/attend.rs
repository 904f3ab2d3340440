//! Attention of new tokens to keys and values that are kept: of prompts that are being read, and of rows that go on.
//!
//! Queries of several rows that see one run of keys go through it together. Every score is a chain of its own and the
//! mixed values are one chain over the keys from first to last, in however many runs they lie: so what is shared, and
//! with whom, changes no bit.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::attention::Shape;
use super::cache::Cache;
use super::pool::Pool;
use super::simd::{self, level};
use super::tile::{COLUMNS, ROWS, Strided, To, tile, tile_to};

/// New tokens one after the other in the batch, and the runs of keys that they see.
#[derive(Debug, Clone)]
pub(super) struct Reader {
    /// Places in the batch.
    pub(super) tokens: Range<usize>,
    /// The place of the first in its sequence.
    pub(super) position: usize,
    /// The runs' numbers, first to last; the last holds the tokens themselves.
    pub(super) path: Vec<usize>,
}

/// A few tokens whose queries go through the keys together.
#[derive(Debug)]
struct Tile {
    tokens: Range<usize>,
    /// Of each token.
    positions: Vec<usize>,
    /// Runs in the order of their places, and which of the tile's tokens see them.
    pieces: Vec<(usize, Range<usize>)>,
}

/// What the tokens of a batch see.
#[derive(Debug)]
pub(super) struct Sight {
    tiles: Vec<Tile>,
    /// Keys of the longest sequence.
    longest: usize,
}

impl Sight {
    /// The readers' tokens cover the batch, in order.
    pub(super) fn new(shape: &Shape, readers: &[Reader]) -> Self {
        let most = (ROWS / shape.repeats()).max(1);
        let mut tiles: Vec<Tile> = Vec::new();
        let mut longest = 0;
        for reader in readers {
            longest = longest.max(reader.position + reader.tokens.len());
            for (token, position) in reader.tokens.clone().zip(reader.position..) {
                if tiles.last().is_none_or(|tile| tile.tokens.len() == most) {
                    tiles.push(Tile { tokens: token..token, positions: Vec::new(), pieces: Vec::new() });
                }
                let tile = tiles.last_mut().expect("it was just put there");
                let at = tile.tokens.len();
                tile.tokens.end = token + 1;
                tile.positions.push(position);
                for run in &reader.path {
                    match tile.pieces.iter_mut().find(|(known, tokens)| known == run && tokens.end == at) {
                        Some((_, tokens)) => tokens.end += 1,
                        None => tile.pieces.push((*run, at..at + 1)),
                    }
                }
            }
        }
        Self { tiles, longest }
    }

    /// Mixes values in one layer: queries (N, (H + 2K)·E), turned already, to `mixed` (N, H·E). The tokens' own keys and
    /// values are in the cache.
    pub(super) fn attend(
        &self,
        shape: &Shape,
        cache: &Cache,
        layer: usize,
        qkv: &[f32],
        mixed: &mut [f32],
        pool: &Arc<Pool>,
    ) {
        let stride = self.longest.next_multiple_of(COLUMNS);
        let room = ROWS * (stride + 2 * shape.padded());
        let run = |tile: &Tile, heads: Range<usize>, out: &mut [f32], out_row: usize, scratch: &mut [f32]| {
            let (scores, rest) = scratch.split_at_mut(ROWS * stride);
            for head in heads.clone() {
                let at = (head - heads.start) * shape.repeats() * shape.width;
                let out = Out { values: &mut *out, row: out_row, at };
                tile.attend(shape, cache, (layer, head), qkv, out, (scores, stride), rest);
            }
        };
        let parts = rayon::current_num_threads().min(shape.kv_heads);
        if self.tiles.len() == 1 && parts > 1 && self.longest * self.tiles[0].tokens.len() > 512 {
            // One tile's heads go to several threads.
            let (tile, share) = (&self.tiles[0], shape.kv_heads.div_ceil(parts));
            let width = shape.repeats() * shape.width;
            let done: Vec<_> = (0..shape.kv_heads.div_ceil(share))
                .into_par_iter()
                .map(|part| {
                    let heads = part * share..((part + 1) * share).min(shape.kv_heads);
                    let row = heads.len() * width;
                    let mut out = pool.take(tile.tokens.len() * row);
                    run(tile, heads.clone(), &mut out, row, &mut pool.take(room));
                    (heads.start * width, row, out)
                })
                .collect();
            for (from, row, part) in &done {
                for (part, mixed) in part.chunks_exact(*row).zip(mixed.chunks_exact_mut(shape.queries())) {
                    mixed[*from..from + row].copy_from_slice(part);
                }
            }
            return;
        }
        let share = self.tiles.len().div_ceil(4 * rayon::current_num_threads()).max(1);
        let mut parts = Vec::new();
        let mut rest = mixed;
        for tiles in self.tiles.chunks(share) {
            let tokens: usize = tiles.iter().map(|tile| tile.tokens.len()).sum();
            let (part, after) = rest.split_at_mut(tokens * shape.queries());
            parts.push((tiles, part));
            rest = after;
        }
        parts.into_par_iter().for_each(|(tiles, mut out)| {
            let mut scratch = pool.take(room);
            for tile in tiles {
                let (here, after) = out.split_at_mut(tile.tokens.len() * shape.queries());
                run(tile, 0..shape.kv_heads, here, shape.queries(), &mut scratch);
                out = after;
            }
        });
    }
}

/// Where the mixed values of a tile's heads go: rows so far apart, from a column on.
struct Out<'a> {
    values: &'a mut [f32],
    row: usize,
    at: usize,
}

impl Tile {
    /// Mixes the values of one key/value head for its query heads.
    #[expect(clippy::too_many_arguments, reason = "what is read, what is written, and room in between")]
    fn attend(
        &self,
        shape: &Shape,
        cache: &Cache,
        (layer, head): (usize, usize),
        qkv: &[f32],
        out: Out<'_>,
        (scores, stride): (&mut [f32], usize),
        scratch: &mut [f32],
    ) {
        let (width, padded) = (shape.width, shape.padded());
        let (queries, mixed) = scratch.split_at_mut(ROWS * padded);
        // More query heads than a tile has rows go through one after the other.
        for first in (0..shape.repeats()).step_by(ROWS) {
            let heads = (shape.repeats() - first).min(ROWS);
            let place = |line: usize| (line / heads, (first + line % heads) * width);
            for (line, query) in queries.chunks_exact_mut(padded).take(self.tokens.len() * heads).enumerate() {
                let (token, at) = place(line);
                let at = (self.tokens.start + token) * shape.row() + head * shape.repeats() * width + at;
                query[..width].copy_from_slice(&qkv[at..at + width]);
            }
            self.mix(shape, cache, (layer, head), heads, queries, (scores, stride), mixed);
            for (line, mixed) in mixed.chunks_exact(padded).take(self.tokens.len() * heads).enumerate() {
                let (token, at) = place(line);
                out.values[token * out.row + out.at + at..][..width].copy_from_slice(&mixed[..width]);
            }
        }
    }

    /// Mixes values for `heads` queries of each token, token by token (lines, E filled up).
    #[expect(clippy::too_many_arguments, reason = "what is read, what is written, and room in between")]
    fn mix(
        &self,
        shape: &Shape,
        cache: &Cache,
        (layer, head): (usize, usize),
        heads: usize,
        queries: &[f32],
        (scores, stride): (&mut [f32], usize),
        mixed: &mut [f32],
    ) {
        let (level, width, padded) = (level(), shape.width, shape.padded());
        let seen = |token: usize| shape.sees(self.positions[token]);
        let from = (0..self.positions.len()).map(|token| seen(token).start).min().unwrap_or(0);
        let to = (0..self.positions.len()).map(|token| seen(token).end).max().unwrap_or(0);
        // A panel of a run may begin a little before what is seen.
        let base = from.saturating_sub(COLUMNS);
        let pieces = self.pieces.iter().filter_map(|(run, tokens)| {
            let run = cache.run(*run);
            let to = tokens.clone().map(|token| seen(token).end).max().unwrap_or(0).min(run.end());
            let from = tokens.clone().map(|token| seen(token).start).min().unwrap_or(0).max(run.start);
            // Where the keys lie in the run, and the lines that see them.
            let lines = tokens.start * heads..tokens.end * heads;
            (from < to).then(|| (run, from - run.start..to - run.start, lines))
        });
        for (run, keys, lines) in pieces.clone() {
            let (panels, _) = run.head(shape, layer, head);
            let query = Strided { values: &queries[lines.start * padded..], row: padded, column: 1 };
            for start in (keys.start / COLUMNS * COLUMNS..keys.end).step_by(COLUMNS) {
                let panel = &panels[start * width..][..COLUMNS * width];
                let to = &mut scores[lines.start * stride + run.start + start - base..];
                let columns = (keys.end - start).min(COLUMNS);
                tile(level, (lines.len(), width, columns), query, panel, COLUMNS, to, stride, false);
            }
        }
        for token in 0..self.positions.len() {
            let seen = seen(token);
            for line in token * heads..(token + 1) * heads {
                let line = &mut scores[line * stride..][..to - base];
                line[..seen.start - base].fill(0.0);
                line[seen.end - base..].fill(0.0);
                simd::softmax(&mut line[seen.start - base..seen.end - base], shape.scale());
            }
        }
        mixed[..self.positions.len() * heads * padded].fill(0.0);
        for (run, keys, lines) in pieces {
            let (_, values) = run.head(shape, layer, head);
            let weights = &scores[lines.start * stride + run.start + keys.start - base..];
            let weights = Strided { values: weights, row: stride, column: 1 };
            for start in (0..width).step_by(COLUMNS) {
                let columns = (width - start).min(COLUMNS);
                let values = &values[keys.start * padded + start..];
                let to = &mut mixed[lines.start * padded + start..];
                tile_to(level, (lines.len(), keys.len(), columns), weights, values, padded, to, padded, To::Chain);
            }
        }
    }
}
