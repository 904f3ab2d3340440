//! The forward pass: what `plain.rs` computes, a block of rows at a time so that they stay in the processor's cache.

use std::sync::Arc;

use rayon::prelude::*;

use super::attention::Shape;
use super::experts::{self, PackedDense};
use super::layout::Layout;
use super::matmul::Panels;
use super::packed::{Angles, Kept, Packed, PackedLayer, PackedMlp, view};
use super::pool::{Buffer, Pool};
use super::simd;
use crate::lm::{LmError, Model};

/// Rows that go through a layer together.
pub(super) const BLOCK: usize = 96;

/// What does not change from layer to layer.
pub(super) struct Context {
    pub(super) shape: Shape,
    /// D.
    pub(super) width: usize,
    /// F.
    pub(super) inner: usize,
    pub(super) eps: f32,
    pub(super) pool: Arc<Pool>,
    pub(super) angles: Arc<Angles>,
    pub(super) packed: Arc<Packed>,
}

impl Context {
    /// For a pass over positions up to `positions`.
    pub(super) fn new(model: &Model, positions: usize) -> Result<Self, LmError> {
        let (config, kept): (_, &Kept) = (model.config(), &model.kept);
        kept.pool.begin();
        Ok(Self {
            shape: Shape::of(config),
            width: config.hidden_size,
            inner: config.intermediate_size,
            eps: config.rms_norm_eps as f32,
            pool: Arc::clone(&kept.pool),
            angles: kept.angles(config, positions),
            packed: kept.packed(model)?,
        })
    }

    /// Makes sure that there are angles for so many positions.
    pub(super) fn reach(&mut self, model: &Model, positions: usize) {
        if self.angles.positions() < positions {
            self.angles = model.kept.angles(model.config(), positions);
        }
    }

    /// The embeddings of tokens: (N, D).
    pub(super) fn embed(&self, model: &Model, ids: &[u32]) -> Result<Buffer, LmError> {
        let table = view(&model.embedding)?;
        let mut x = self.pool.take(ids.len() * self.width);
        for (x, id) in x.chunks_exact_mut(self.width).zip(ids) {
            x.copy_from_slice(&table[*id as usize * self.width..][..self.width]);
        }
        Ok(x)
    }
}

/// How the rows of a step are shared out.
#[derive(Clone, Copy)]
pub(super) enum Share {
    /// Blocks of so many rows, each on one thread.
    Rows(usize),
    /// All rows together, each product on all threads.
    Columns,
}

impl Share {
    /// Enough rows for every thread, or else the columns are shared out. The result is the same.
    pub(super) fn of(rows: usize) -> Self {
        let threads = rayon::current_num_threads();
        if threads == 1 {
            Self::Rows(BLOCK)
        } else if rows >= 16 * threads {
            Self::Rows(rows.div_ceil(2 * threads).next_multiple_of(8).min(BLOCK))
        } else {
            Self::Columns
        }
    }

    pub(super) fn rows(self, all: usize) -> usize {
        match self {
            Self::Rows(rows) => rows,
            Self::Columns => all.max(1),
        }
    }

    pub(super) fn multiply(self, panels: &Panels, a: &[f32], c: &mut [f32], add: bool) {
        match self {
            Self::Rows(_) => panels.multiply(a, c, add),
            Self::Columns => panels.multiply_wide(a, c, add),
        }
    }
}

/// RMS normalisation of rows.
pub(super) fn normalise(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        simd::rms_norm(x, weight, eps, out);
    }
}

/// Queries, keys and values of rows `x` (N, D) at `positions`, queries and keys turned: (N, (H + 2K)·E).
pub(super) fn project(context: &Context, layer: &PackedLayer, x: &[f32], positions: &[u32], qkv: &mut [f32]) {
    let (width, row) = (context.width, context.shape.row());
    let share = Share::of(positions.len());
    let rows = share.rows(positions.len());
    let blocks = x.par_chunks(rows * width).zip(qkv.par_chunks_mut(rows * row)).zip(positions.par_chunks(rows));
    blocks.for_each(|((x, qkv), positions)| {
        let mut normed = context.pool.take(x.len());
        normalise(x, &layer.attention_norm, context.eps, &mut normed);
        layer.qkv.apply(share, &normed, qkv, false);
        normalise_heads(context, layer, qkv);
        turn(context, qkv, positions, 1.0);
    });
}

/// Normalises the heads of queries and keys of rows, where a layer has norms for them.
fn normalise_heads(context: &Context, layer: &PackedLayer, qkv: &mut [f32]) {
    let Some(norms) = &layer.head_norms else { return };
    let mut before = context.pool.take(context.shape.width);
    for qkv in qkv.chunks_exact_mut(context.shape.row()) {
        for (head, norm) in heads_and_norms(&context.shape, qkv, norms) {
            before.copy_from_slice(head);
            simd::rms_norm(&before, norm, context.eps, head);
        }
    }
}

/// The heads of queries and of keys of a token's row, each with its kind's of two norms.
pub(super) fn heads_and_norms<'a>(
    shape: &Shape,
    row: &'a mut [f32],
    [query, key]: &'a [Vec<f32>; 2],
) -> impl Iterator<Item = (&'a mut [f32], &'a [f32])> {
    let (queries, all, width) = (shape.heads, shape.heads + shape.kv_heads, shape.width);
    let heads = row[..all * width].chunks_exact_mut(width).enumerate();
    heads.map(move |(head, row)| (row, if head < queries { query.as_slice() } else { key.as_slice() }))
}

/// Turns queries and keys of rows by the angles of their positions, or back with `sign` −1.
pub(super) fn turn(context: &Context, qkv: &mut [f32], positions: &[u32], sign: f32) {
    let (shape, row) = (&context.shape, context.shape.row());
    for (qkv, position) in qkv.chunks_exact_mut(row).zip(positions) {
        let (cos, sin) = context.angles.of(*position);
        for head in qkv[..(shape.heads + shape.kv_heads) * shape.width].chunks_exact_mut(shape.width) {
            simd::rotate(head, cos, sin, sign);
        }
    }
}

/// Where a layer's second half puts its results.
pub(super) struct Finished<'a> {
    /// The residual stream after attention: (N, D).
    pub(super) middle: &'a mut [f32],
    /// Gate and up, if they are kept: (N, 2F), or (N·k, 2F) of k experts.
    pub(super) gate_up: Option<&'a mut [f32]>,
    /// The residual stream after the layer: (N, D).
    pub(super) out: &'a mut [f32],
}

/// silu(gate) · up of rows of both (N, 2F): (N, F).
pub(super) fn swiglu(pool: &Arc<Pool>, gate_up: &[f32], inner: usize) -> Buffer {
    let mut product = pool.take(gate_up.len() / 2);
    for (both, product) in gate_up.chunks_exact(2 * inner).zip(product.chunks_exact_mut(inner)) {
        let (gate, up) = both.split_at(inner);
        simd::swiglu(gate, up, product);
    }
    product
}

/// A feed-forward layer of rows `x` (N, D), with gate and up in `gate_up` (N, 2F): writes to `out` (N, D), or adds to it.
pub(super) fn feed_forward(
    context: &Context,
    share: Share,
    dense: &PackedDense,
    x: &[f32],
    gate_up: &mut [f32],
    out: &mut [f32],
    add: bool,
) {
    let inner = context.inner;
    dense.gate_up.apply(share, x, gate_up, false);
    let product = swiglu(&context.pool, gate_up, inner);
    dense.down.apply(share, &product, out, add);
}

/// The rest of a layer: from its input `x` (N, D) and the mixed values (N, H·E).
pub(super) fn finish(context: &Context, layer: &PackedLayer, x: &[f32], mixed: &[f32], to: Finished<'_>) {
    // A prompt that is read in several passes wants nothing of the last layer in all but one.
    if x.is_empty() {
        return;
    }
    let (width, queries, inner) = (context.width, context.shape.queries(), context.inner);
    let all = x.len() / width;
    let share = Share::of(all);
    let rows = share.rows(all);
    let Finished { middle, gate_up, out } = to;
    let blocks = x
        .par_chunks(rows * width)
        .zip(mixed.par_chunks(rows * queries))
        .zip(middle.par_chunks_mut(rows * width))
        .zip(out.par_chunks_mut(rows * width));
    let attended = |x: &[f32], mixed: &[f32], middle: &mut [f32], normed: &mut [f32]| {
        middle.copy_from_slice(x);
        layer.output.apply(share, mixed, middle, true);
        normalise(middle, &layer.mlp_norm, context.eps, normed);
    };
    let dense = match &layer.mlp {
        PackedMlp::Dense(dense) => dense,
        PackedMlp::Experts(experts) => {
            let mut normed = context.pool.take(x.len());
            blocks.zip(normed.par_chunks_mut(rows * width)).for_each(|((((x, mixed), middle), out), normed)| {
                attended(x, mixed, middle, normed);
                out.copy_from_slice(middle);
            });
            return experts::forward(context, experts, &normed, gate_up, out);
        }
    };
    let block = |x: &[f32], mixed: &[f32], middle: &mut [f32], gate_up: &mut [f32], out: &mut [f32]| {
        let mut normed = context.pool.take(x.len());
        attended(x, mixed, middle, &mut normed);
        out.copy_from_slice(middle);
        feed_forward(context, share, dense, &normed, gate_up, out, true);
    };
    match gate_up {
        Some(kept) => blocks
            .zip(kept.par_chunks_mut(rows * 2 * inner))
            .for_each(|((((x, mixed), middle), out), kept)| block(x, mixed, middle, kept, out)),
        None => blocks.for_each(|(((x, mixed), middle), out)| {
            let mut scratch = context.pool.take(x.len() / width * 2 * inner);
            block(x, mixed, middle, &mut scratch, out);
        }),
    }
}

/// What a layer's gradient is computed from.
pub(super) struct Saved {
    /// The layer's input: (N, D).
    pub(super) x: Buffer,
    /// Queries, keys and values, turned: (N, (H + 2K)·E).
    pub(super) qkv: Buffer,
    /// What attention gave: (N, H·E).
    pub(super) mixed: Buffer,
    /// The residual stream after attention: (N, D), of the last layer (M, D).
    pub(super) middle: Buffer,
    /// (N, 2F), of the last layer (M, 2F); of k experts (N·k, 2F), (M·k, 2F).
    pub(super) gate_up: Buffer,
}

/// Picks rows.
pub(super) fn gather(pool: &Arc<Pool>, rows: &[f32], width: usize, chosen: &[usize]) -> Buffer {
    let mut picked = pool.take(chosen.len() * width);
    for (to, from) in picked.chunks_exact_mut(width).zip(chosen) {
        to.copy_from_slice(&rows[from * width..][..width]);
    }
    picked
}

/// What a pass keeps of a layer.
pub(super) enum Trace {
    /// All that the gradient is computed from.
    Whole(Saved),
    /// The layer's input (N, D): the rest is made again.
    Input(Buffer),
}

/// What a pass keeps for the gradient.
pub(super) struct Traces {
    /// Whether all of a layer is kept, rather than its input.
    pub(super) whole: bool,
    /// Layer by layer.
    pub(super) layers: Vec<Trace>,
}

/// A layer's intermediate results, and its output.
struct Through {
    qkv: Buffer,
    mixed: Buffer,
    middle: Buffer,
    gate_up: Option<Buffer>,
    out: Buffer,
}

/// Runs a layer over its input (N, D); the last layer's second half for the chosen tokens only.
fn through(
    context: &Context,
    layout: &Layout,
    index: usize,
    x: &[f32],
    attend: &mut impl FnMut(usize, &Shape, &[f32], &mut [f32]),
    keep: bool,
) -> Through {
    let (pool, shape) = (&context.pool, &context.shape);
    let layer = &context.packed.layers[index];
    let n = layout.ids.len();
    let mut qkv = pool.take(n * shape.row());
    project(context, layer, x, &layout.positions, &mut qkv);
    let mut mixed = pool.take(n * shape.queries());
    attend(index, &shape.seeing(layer.window), &qkv, &mut mixed);
    let last = index + 1 == context.packed.layers.len();
    let chosen = last.then(|| {
        let x = gather(pool, x, context.width, &layout.chosen);
        (x, gather(pool, &mixed, shape.queries(), &layout.chosen))
    });
    let (x_rows, mixed_rows) = chosen.as_ref().map_or((x, &*mixed), |(x, mixed)| (&**x, &**mixed));
    let rows = x_rows.len() / context.width;
    let mut middle = pool.take(rows * context.width);
    let mut out = pool.take(rows * context.width);
    let mut gate_up = keep.then(|| pool.take(rows * layer.mlp.per_token() * 2 * context.inner));
    let to = Finished { middle: &mut middle, gate_up: gate_up.as_deref_mut(), out: &mut out };
    finish(context, layer, x_rows, mixed_rows, to);
    Through { qkv, mixed, middle, gate_up, out }
}

/// Makes a layer's intermediate results again, to the same bits.
pub(super) fn again(
    context: &Context,
    layout: &Layout,
    index: usize,
    x: Buffer,
    attend: &mut impl FnMut(usize, &Shape, &[f32], &mut [f32]),
) -> Saved {
    let Through { qkv, mixed, middle, gate_up, .. } = through(context, layout, index, &x, attend, true);
    Saved { x, qkv, mixed, middle, gate_up: gate_up.expect("it was asked for") }
}

/// Runs the layers over a batch; returns the residual stream of the chosen tokens before the last norm: (M, D).
///
/// The last layer's second half runs for the chosen tokens only. `attend` gets each layer's number and shape, its queries,
/// keys and values (N, (H + 2K)·E), turned, and where the mixed values go (N, H·E); `traces` gets what the gradient needs,
/// if it is wanted.
pub(super) fn layers(
    context: &Context,
    model: &Model,
    layout: &Layout,
    mut attend: impl FnMut(usize, &Shape, &[f32], &mut [f32]),
    mut traces: Option<&mut Traces>,
) -> Result<Buffer, LmError> {
    let mut x = context.embed(model, &layout.ids)?;
    let whole = traces.as_ref().is_some_and(|traces| traces.whole);
    for index in 0..context.packed.layers.len() {
        let Through { qkv, mixed, middle, gate_up, out } = through(context, layout, index, &x, &mut attend, whole);
        let before = std::mem::replace(&mut x, out);
        if let Some(traces) = traces.as_deref_mut() {
            traces.layers.push(match gate_up {
                Some(gate_up) => Trace::Whole(Saved { x: before, qkv, mixed, middle, gate_up }),
                None => Trace::Input(before),
            });
        }
    }
    Ok(x)
}
