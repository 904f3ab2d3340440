//! Causal attention within each sequence of a batch, query heads in groups that share keys and values.
//!
//! No (tokens × tokens) matrix is kept: a few rows of it at a time are made, and made again for the gradient (Dao et al.
//! 2022). A token's result is computed in one order, whatever the batch and however the sequence is cut up: so reading a
//! text at once or token by token gives the same bits.

use std::ops::Range;
use std::sync::Arc;

use rayon::prelude::*;

use super::layout::Group;
use super::pool::{Buffer, Pool};
use super::simd::{self, level};
use super::tile::{COLUMNS, ROWS, Strided, tile};
use crate::lm::Config;

/// The form of attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// H.
    pub(super) heads: usize,
    /// K.
    pub(super) kv_heads: usize,
    /// E.
    pub(super) width: usize,
    /// Tokens that a token sees, itself among them; layers differ in it.
    pub(super) window: usize,
}

impl Shape {
    pub(super) fn of(config: &Config) -> Self {
        Self {
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            width: config.head_dim,
            window: usize::MAX,
        }
    }

    /// As a layer of this window has it.
    pub(super) fn seeing(self, window: usize) -> Self {
        Self { window, ..self }
    }

    /// Query heads of a key/value head.
    pub(super) fn repeats(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Numbers of a token's queries, and of its mixed values.
    pub(super) fn queries(&self) -> usize {
        self.heads * self.width
    }

    /// Numbers of a token's queries, keys and values, which lie one after the other.
    pub(super) fn row(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.width
    }

    fn key_at(&self, kv_head: usize) -> usize {
        (self.heads + kv_head) * self.width
    }

    fn value_at(&self, kv_head: usize) -> usize {
        (self.heads + self.kv_heads + kv_head) * self.width
    }

    /// Width of a row of values, filled up to what tiles can read.
    pub(super) fn padded(&self) -> usize {
        self.width.next_multiple_of(16)
    }

    /// Numbers that the keys of so many tokens take.
    pub(super) fn keys_size(&self, tokens: usize) -> usize {
        tokens.next_multiple_of(COLUMNS) * self.width
    }

    pub(super) fn scale(&self) -> f32 {
        1.0 / (self.width as f32).sqrt()
    }

    /// Puts the key of a token among others: (panels of 32 tokens, E, 32).
    pub(super) fn put_key(&self, keys: &mut [f32], token: usize, key: &[f32]) {
        let panel = &mut keys[token / COLUMNS * COLUMNS * self.width..];
        for (value, line) in key.iter().zip(panel.chunks_exact_mut(COLUMNS)) {
            line[token % COLUMNS] = *value;
        }
    }

    /// Puts a row of E numbers among others that are filled up.
    pub(super) fn put_row(&self, rows: &mut [f32], token: usize, row: &[f32]) {
        rows[token * self.padded()..][..self.width].copy_from_slice(row);
    }

    /// The keys that a token sees.
    pub(super) fn sees(&self, token: usize) -> Range<usize> {
        (token + 1).saturating_sub(self.window)..token + 1
    }
}

/// Where rows are written to, so far apart.
struct Target<'a> {
    values: &'a mut [f32],
    row: usize,
}

/// The attention weights of a few rows of queries, the `i`th of them of token `token_of(i)`.
///
/// Writes them to `scores`, whose rows are `stride` apart and whose columns are the keys of the range that is returned: a
/// multiple of 32 up to the last one that a row sees.
fn weights(
    shape: &Shape,
    rows: usize,
    query: Strided<'_>,
    keys: &[f32],
    token_of: impl Fn(usize) -> usize,
    scores: &mut [f32],
    stride: usize,
) -> Range<usize> {
    let level = level();
    let (from, to) = (shape.sees(token_of(0)).start / COLUMNS * COLUMNS, token_of(rows - 1) + 1);
    for start in (from..to).step_by(COLUMNS) {
        let panel = &keys[start * shape.width..][..COLUMNS * shape.width];
        let width = (to - start).min(COLUMNS);
        tile(level, (rows, shape.width, width), query, panel, COLUMNS, &mut scores[start - from..], stride, false);
    }
    for row in 0..rows {
        let seen = shape.sees(token_of(row));
        let line = &mut scores[row * stride..][..to - from];
        line[..seen.start - from].fill(0.0);
        line[seen.end - from..].fill(0.0);
        simd::softmax(&mut line[seen.start - from..seen.end - from], shape.scale());
    }
    from..to
}

/// out (rows, E) = a (rows, keys) · b, where b has a row of E numbers, filled up, for each of the keys.
fn mix(shape: &Shape, rows: usize, a: Strided<'_>, keys: Range<usize>, b: &[f32], out: Target<'_>, add: bool) {
    let (level, padded) = (level(), shape.padded());
    for start in (0..shape.width).step_by(COLUMNS) {
        let width = (shape.width - start).min(COLUMNS);
        let b = &b[keys.start * padded + start..];
        tile(level, (rows, keys.len(), width), a, b, padded, &mut out.values[start..], out.row, add);
    }
}

/// A batch's part that one task works on: a group's tokens and one key/value head.
struct Part<'a> {
    shape: Shape,
    group: &'a Group,
    kv_head: usize,
    pool: &'a Arc<Pool>,
}

impl Part<'_> {
    /// Sequences of the group, one after the other: the tokens before their own, and their own.
    fn branches(&self) -> impl Iterator<Item = (usize, Range<usize>)> {
        let before = self.group.prefix.len();
        // The prefix comes last: the gradients to its keys and values come from all of them.
        let branches = self.group.branches.iter().map(move |branch| (before, branch.clone()));
        branches.chain([(0, self.group.prefix.clone())]).filter(|(_, tokens)| !tokens.is_empty())
    }

    fn longest(&self) -> usize {
        self.group.prefix.len() + self.group.branches.iter().map(Range::len).max().unwrap_or(0)
    }

    /// A head of one token, of rows that hold queries, keys and values.
    fn head<'b>(&self, qkv: &'b [f32], token: usize, at: usize) -> &'b [f32] {
        &qkv[token * self.shape.row() + at..][..self.shape.width]
    }

    /// Hands each key and value of some tokens to `put`, with its place among the keys.
    fn for_each_key(
        &self,
        qkv: &[f32],
        tokens: Range<usize>,
        before: usize,
        mut put: impl FnMut(usize, &[f32], &[f32]),
    ) {
        let (key_at, value_at) = (self.shape.key_at(self.kv_head), self.shape.value_at(self.kv_head));
        for (place, token) in (before..).zip(tokens) {
            put(place, self.head(qkv, token, key_at), self.head(qkv, token, value_at));
        }
    }

    /// Writes the mixed values of the query heads; the first row of `out` is the group's first token.
    fn forward(&self, qkv: &[f32], out: Target<'_>, out_at: usize) {
        let (shape, row_size) = (&self.shape, out.row);
        let longest = self.longest();
        let stride = longest.next_multiple_of(COLUMNS);
        let mut keys = self.pool.take(shape.keys_size(longest));
        let mut values = self.pool.take(longest * shape.padded());
        let mut scores = self.pool.take(ROWS * stride);
        let first = self.group.tokens().start;
        self.for_each_key(qkv, self.group.prefix.clone(), 0, |place, key, value| {
            shape.put_key(&mut keys, place, key);
            shape.put_row(&mut values, place, value);
        });
        for (before, tokens) in self.branches() {
            if before > 0 || self.group.prefix.is_empty() {
                self.for_each_key(qkv, tokens.clone(), before, |place, key, value| {
                    shape.put_key(&mut keys, place, key);
                    shape.put_row(&mut values, place, value);
                });
            }
            for repeat in 0..shape.repeats() {
                let at = (self.kv_head * shape.repeats() + repeat) * shape.width;
                for start in (0..tokens.len()).step_by(ROWS) {
                    let rows = (tokens.len() - start).min(ROWS);
                    let token = tokens.start + start;
                    let query = Strided { values: &qkv[token * shape.row() + at..], row: shape.row(), column: 1 };
                    let place = |row| before + start + row;
                    let seen = weights(shape, rows, query, &keys, place, &mut scores, stride);
                    let scores = Strided { values: &scores, row: stride, column: 1 };
                    let out = &mut out.values[(token - first) * row_size + out_at + repeat * shape.width..];
                    mix(shape, rows, scores, seen, &values, Target { values: out, row: row_size }, false);
                }
            }
        }
    }
}

/// Queries whose weights are in memory at once for the gradient.
const QUERIES: usize = 64;

/// What the gradient of a part needs beside the batch.
struct Scratch {
    keys: Buffer,           // (panels, E, 32)
    values: Buffer,         // (panels, E, 32)
    key_rows: Buffer,       // (S, E filled up)
    key_gradient: Buffer,   // (S, E filled up)
    value_gradient: Buffer, // (S, E filled up)
    weights: Buffer,        // (64, S filled up)
    gradient: Buffer,       // (64, S filled up)
    queries: Buffer,        // (64, E filled up)
    outputs: Buffer,        // (64, E filled up)
    stride: usize,
}

impl Part<'_> {
    fn scratch(&self) -> Scratch {
        let (longest, padded) = (self.longest(), self.shape.padded());
        let stride = longest.next_multiple_of(COLUMNS);
        let take = |length| self.pool.take(length);
        Scratch {
            keys: take(self.shape.keys_size(longest)),
            values: take(self.shape.keys_size(longest)),
            key_rows: take(longest * padded),
            key_gradient: self.pool.zeros(longest * padded),
            value_gradient: self.pool.zeros(longest * padded),
            weights: take(QUERIES * stride),
            gradient: take(QUERIES * stride),
            queries: take(QUERIES * padded),
            outputs: take(QUERIES * padded),
            stride,
        }
    }

    /// Writes the gradients to queries, keys and values of this part's heads; the first row of `out` is the group's first
    /// token, and `out_at` says where in a row queries, keys and values begin.
    fn backward(&self, batch: &Backward<'_>, out: Target<'_>, out_at: [usize; 3]) {
        let (shape, row_size) = (&self.shape, out.row);
        let mut scratch = self.scratch();
        let first = self.group.tokens().start;
        let padded = shape.padded();
        let put = |scratch: &mut Scratch, tokens: Range<usize>, before: usize| {
            self.for_each_key(batch.qkv, tokens, before, |place, key, value| {
                shape.put_key(&mut scratch.keys, place, key);
                shape.put_key(&mut scratch.values, place, value);
                shape.put_row(&mut scratch.key_rows, place, key);
            });
        };
        put(&mut scratch, self.group.prefix.clone(), 0);
        for (before, tokens) in self.branches() {
            if before > 0 || self.group.prefix.is_empty() {
                put(&mut scratch, tokens.clone(), before);
                let own = before * padded..(before + tokens.len()) * padded;
                scratch.key_gradient[own.clone()].fill(0.0);
                scratch.value_gradient[own].fill(0.0);
            }
            for repeat in 0..shape.repeats() {
                for start in (0..tokens.len()).step_by(QUERIES) {
                    let here = tokens.start + start..(tokens.start + start + QUERIES).min(tokens.end);
                    let values = &mut out.values[(here.start - first) * row_size + out_at[0] + repeat * shape.width..];
                    let out = Target { values, row: row_size };
                    self.backward_of_queries(batch, &mut scratch, repeat, here, before + start, out);
                }
            }
            for (place, token) in (before..).zip(tokens) {
                let row = &mut out.values[(token - first) * row_size..][..row_size];
                for (gradient, at) in [(&scratch.key_gradient, out_at[1]), (&scratch.value_gradient, out_at[2])] {
                    row[at..at + shape.width].copy_from_slice(&gradient[place * padded..][..shape.width]);
                }
            }
        }
    }

    /// The gradient through the weights of some queries of one head, the first of them at place `first` among the keys.
    /// Writes the gradient to them, and adds those to keys and values.
    fn backward_of_queries(
        &self,
        batch: &Backward<'_>,
        scratch: &mut Scratch,
        repeat: usize,
        tokens: Range<usize>,
        first: usize,
        out: Target<'_>,
    ) {
        let (shape, level, stride) = (&self.shape, level(), scratch.stride);
        let at = (self.kv_head * shape.repeats() + repeat) * shape.width;
        let to = first + tokens.len();
        let from = shape.sees(first).start / COLUMNS * COLUMNS;
        for start in (0..tokens.len()).step_by(ROWS) {
            let rows = (tokens.len() - start).min(ROWS);
            let token = tokens.start + start;
            let query = Strided { values: &batch.qkv[token * shape.row() + at..], row: shape.row(), column: 1 };
            let place = |row| first + start + row;
            let lines = &mut scratch.weights[start * stride..];
            let seen = weights(shape, rows, query, &scratch.keys, place, lines, stride);
            for row in 0..rows {
                let line = &mut lines[row * stride..][..to - from];
                if seen.start > from {
                    // The block's first query sees further back than this one: its columns begin at `from`.
                    line.copy_within(..seen.len(), seen.start - from);
                }
                line[..seen.start - from].fill(0.0);
                line[seen.end - from..].fill(0.0);
            }
            let gradient_at = &batch.gradient[token * shape.queries() + at..];
            let gradient = Strided { values: gradient_at, row: shape.queries(), column: 1 };
            let to_weights = &mut scratch.gradient[start * stride..];
            for panel in (seen.start..seen.end).step_by(COLUMNS) {
                let values = &scratch.values[panel * shape.width..][..COLUMNS * shape.width];
                let width = (seen.end - panel).min(COLUMNS);
                let c = &mut to_weights[panel - from..];
                tile(level, (rows, shape.width, width), gradient, values, COLUMNS, c, stride, false);
            }
            for row in 0..rows {
                let mixed = &batch.mixed[(token + row) * shape.queries() + at..][..shape.width];
                let along = simd::dot(&gradient_at[row * shape.queries()..][..shape.width], mixed);
                let line = &mut to_weights[row * stride..][..to - from];
                line[..seen.start - from].fill(0.0);
                line[seen.end - from..].fill(0.0);
                let weights = &lines[row * stride..][..to - from];
                simd::softmax_backward(weights, line, along, shape.scale());
                shape.put_row(&mut scratch.queries, start + row, &query.values[row * shape.row()..][..shape.width]);
                shape.put_row(&mut scratch.outputs, start + row, &gradient_at[row * shape.queries()..][..shape.width]);
            }
            let to_weights = Strided { values: &to_weights[seen.start - from..], row: stride, column: 1 };
            let out = Target { values: &mut out.values[start * out.row..], row: out.row };
            mix(shape, rows, to_weights, seen, &scratch.key_rows, out, false);
        }
        for start in (from..to).step_by(ROWS) {
            let rows = (to - start).min(ROWS);
            // Queries before the first of these keys do not see them.
            let blind = start.saturating_sub(first).min(tokens.len());
            let sees = blind..tokens.len();
            let columns = |values| Strided { values, row: 1, column: stride };
            let at = blind * stride + start - from;
            let (keys, values) = (&mut scratch.key_gradient, &mut scratch.value_gradient);
            let padded = shape.padded();
            let to_weights = columns(&scratch.gradient[at..]);
            let keys = Target { values: &mut keys[start * padded..], row: padded };
            mix(shape, rows, to_weights, sees.clone(), &scratch.queries, keys, true);
            let weights = columns(&scratch.weights[at..]);
            let values = Target { values: &mut values[start * padded..], row: padded };
            mix(shape, rows, weights, sees, &scratch.outputs, values, true);
        }
    }
}

/// Cuts rows at the borders of groups.
fn split<'a>(groups: &'a [Group], mut rows: &'a mut [f32], width: usize) -> Vec<(&'a Group, &'a mut [f32])> {
    let mut parts = Vec::with_capacity(groups.len());
    for group in groups {
        let (part, rest) = rows.split_at_mut(group.tokens().len() * width);
        parts.push((group, part));
        rows = rest;
    }
    parts
}

/// Runs `each` for every group and key/value head. With few groups, heads go to several threads, each with rows of its
/// own: `each` gets rows of `widths`' sum, the places of the heads in them, and then they are put where they belong.
fn run(
    shape: &Shape,
    groups: &[Group],
    out: Target<'_>,
    pool: &Arc<Pool>,
    blocks: &[(usize, usize)],
    each: impl Fn(&Part<'_>, Target<'_>, &[usize]) + Sync,
) {
    let few = groups.len() < rayon::current_num_threads();
    let places = |kv_head: usize| blocks.iter().map(move |(at, width)| at + kv_head * width);
    let out_row = out.row;
    split(groups, out.values, out_row).into_par_iter().for_each(|(group, out)| {
        let part = |kv_head| Part { shape: *shape, group, kv_head, pool };
        if !few {
            for kv_head in 0..shape.kv_heads {
                each(&part(kv_head), Target { values: out, row: out_row }, &places(kv_head).collect::<Vec<_>>());
            }
            return;
        }
        let width: usize = blocks.iter().map(|(_, width)| width).sum();
        let mine: Vec<Buffer> = (0..shape.kv_heads)
            .into_par_iter()
            .map(|kv_head| {
                let mut rows = pool.take(group.tokens().len() * width);
                let at: Vec<usize> = blocks
                    .iter()
                    .scan(0, |end, (_, width)| {
                        *end += width;
                        Some(*end - width)
                    })
                    .collect();
                each(&part(kv_head), Target { values: &mut rows, row: width }, &at);
                rows
            })
            .collect();
        for (kv_head, rows) in mine.iter().enumerate() {
            for (row, out) in rows.chunks_exact(width).zip(out.chunks_exact_mut(out_row)) {
                let mut start = 0;
                for (place, (_, width)) in places(kv_head).zip(blocks) {
                    out[place..place + width].copy_from_slice(&row[start..start + width]);
                    start += width;
                }
            }
        }
    });
}

/// Mixes values: `qkv` (N, (H + 2K)·E), queries and keys turned already, to `out` (N, H·E).
pub(super) fn forward(shape: &Shape, groups: &[Group], qkv: &[f32], out: &mut [f32], pool: &Arc<Pool>) {
    let blocks = [(0, shape.repeats() * shape.width)];
    let out = Target { values: out, row: shape.queries() };
    run(shape, groups, out, pool, &blocks, |part, out, at| part.forward(qkv, out, at[0]));
}

/// What the gradient is computed from.
pub(super) struct Backward<'a> {
    /// (N, (H + 2K)·E)
    pub(super) qkv: &'a [f32],
    /// What [`forward`] gave: (N, H·E).
    pub(super) mixed: &'a [f32],
    /// The gradient to it: (N, H·E).
    pub(super) gradient: &'a [f32],
}

/// Writes the gradient to queries, keys and values: (N, (H + 2K)·E).
pub(super) fn backward(shape: &Shape, groups: &[Group], batch: &Backward<'_>, out: &mut [f32], pool: &Arc<Pool>) {
    let (width, queries) = (shape.width, shape.queries());
    let blocks = [(0, shape.repeats() * width), (queries, width), (queries + shape.kv_heads * width, width)];
    let out = Target { values: out, row: shape.row() };
    run(shape, groups, out, pool, &blocks, |part, out, at| part.backward(batch, out, [at[0], at[1], at[2]]));
}
