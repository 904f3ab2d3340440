//! Token by token on the CPU: keys and values of each row lie by themselves, so that rows of different lengths need no
//! padding and a row that is finished just leaves.

use rayon::prelude::*;

use super::attention::{self, Shape, attend};
use super::forward::{Context, Finished, Share, finish, layers, normalise, project};
use super::graph::in_pool;
use super::layout::Layout;
use super::tile::{COLUMNS, ROWS};
use crate::lm::{LmError, Model};

/// Tokens that a row has room for at first beyond its prompt; more room is made when it is needed.
const ROOM: usize = 64;
/// Prompt tokens in one pass; more are split up.
const TOKENS_PER_PASS: usize = 1 << 14;

/// Keys and values of one row: for each layer and key/value head the keys (panels, E, 32), then the values (S, E filled up).
struct Slot {
    values: Vec<f32>,
    length: usize,
    capacity: usize,
}

impl Slot {
    fn new(shape: &Shape, layers: usize, capacity: usize) -> Self {
        let values = vec![0.0; layers * shape.kv_heads * Self::size(shape, capacity)];
        Self { values, length: 0, capacity }
    }

    /// Numbers of one layer and key/value head.
    fn size(shape: &Shape, capacity: usize) -> usize {
        shape.keys_size(capacity) + capacity * shape.padded()
    }

    /// Makes room for one more token, and for more to come.
    fn make_room(&mut self, shape: &Shape, layers: usize) {
        if self.length < self.capacity {
            return;
        }
        let mut larger = Self::new(shape, layers, self.capacity * 2);
        for layer in 0..layers {
            for ((from_keys, from_values), (keys, values)) in self.layer(shape, layer).zip(larger.layer(shape, layer)) {
                keys[..from_keys.len()].copy_from_slice(from_keys);
                values[..from_values.len()].copy_from_slice(from_values);
            }
        }
        *self = Self { length: self.length, ..larger };
    }

    /// Keys and values of one layer, head by head.
    fn layer(&mut self, shape: &Shape, layer: usize) -> impl Iterator<Item = (&mut [f32], &mut [f32])> {
        let size = Self::size(shape, self.capacity);
        let (heads, keys) = (shape.kv_heads, shape.keys_size(self.capacity));
        let part = &mut self.values[layer * heads * size..][..heads * size];
        part.chunks_exact_mut(size).map(move |part| part.split_at_mut(keys))
    }

    /// Adds a token's keys and values to one layer's, from its row of queries, keys and values.
    fn put(&mut self, shape: &Shape, layer: usize, token: usize, row: &[f32]) {
        let (keys_at, values_at) = (shape.queries(), shape.queries() + shape.kv_heads * shape.width);
        for (head, (keys, values)) in self.layer(shape, layer).enumerate() {
            shape.put_key(keys, token, &row[keys_at + head * shape.width..][..shape.width]);
            shape.put_row(values, token, &row[values_at + head * shape.width..][..shape.width]);
        }
    }
}

/// Rows of a batch in the middle of decoding.
pub(in crate::lm) struct Decoding {
    context: Context,
    slots: Vec<Slot>,
}

impl Decoding {
    /// Reads prompts, each with the number of tokens that may follow it. Puts the logits after each into `logits`: (B, V).
    pub(in crate::lm) fn start(
        model: &Model,
        prompts: &[(&[u32], usize)],
        logits: &mut Vec<f32>,
    ) -> Result<Self, LmError> {
        in_pool(|| {
            let longest = prompts.iter().map(|(ids, _)| ids.len()).max().unwrap_or(0);
            let context = Context::new(model, longest + ROOM)?;
            let mut decoding = Self { context, slots: Vec::with_capacity(prompts.len()) };
            logits.clear();
            let mut rest = prompts;
            while !rest.is_empty() {
                let mut tokens = 0;
                let fits = rest.iter().take_while(|(ids, _)| {
                    tokens += ids.len();
                    tokens <= TOKENS_PER_PASS
                });
                let (pass, after) = rest.split_at(fits.count().max(1));
                decoding.read(model, pass, logits)?;
                rest = after;
            }
            Ok(decoding)
        })
    }

    /// Reads some prompts, and adds their rows and the logits after them.
    fn read(&mut self, model: &Model, prompts: &[(&[u32], usize)], logits: &mut Vec<f32>) -> Result<(), LmError> {
        let (context, shape) = (&self.context, self.context.shape);
        let (layout, rows) = Layout::of_prompts(&prompts.iter().map(|(ids, _)| *ids).collect::<Vec<_>>());
        let slot = |(ids, room): &(&[u32], usize)| Slot::new(&shape, model.layers.len(), ids.len() + (*room).min(ROOM));
        let mut slots: Vec<Slot> = prompts.iter().map(slot).collect();
        let attend = |layer: usize, qkv: &[f32], mixed: &mut [f32]| {
            slots.par_iter_mut().zip(&rows).for_each(|(slot, row)| {
                for (place, token) in layout.groups[*row].tokens().enumerate() {
                    slot.put(&shape, layer, place, &qkv[token * shape.row()..][..shape.row()]);
                }
            });
            let shape = shape.seeing(context.packed.layers[layer].window);
            attention::forward(&shape, &layout.groups, qkv, mixed, &context.pool);
        };
        let x = layers(context, model, &layout, attend, None)?;
        for (slot, row) in slots.iter_mut().zip(&rows) {
            slot.length = layout.groups[*row].tokens().len();
        }
        let mut unique = Vec::new();
        put_logits(context, &x, &mut unique);
        let vocabulary = context.packed.head.columns();
        for row in rows {
            logits.extend_from_slice(&unique[row * vocabulary..][..vocabulary]);
        }
        self.slots.extend(slots);
        Ok(())
    }

    /// Goes on with those rows that are kept, by their ascending places in the last call, and a token for each; puts the
    /// logits after each into `logits`: (B, V).
    pub(in crate::lm) fn step(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), LmError> {
        let mut place = 0;
        let mut left = kept.iter().peekable();
        self.slots.retain(|_| {
            place += 1;
            left.next_if(|kept| **kept + 1 == place).is_some()
        });
        in_pool(|| self.forward(model, tokens, logits))
    }

    fn forward(&mut self, model: &Model, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), LmError> {
        let longest = self.slots.iter().map(|slot| slot.length).max().unwrap_or(0);
        self.context.reach(model, longest + 1);
        let (context, slots) = (&self.context, &mut self.slots);
        let (shape, pool, n) = (&context.shape, &context.pool, tokens.len());
        let (row, queries, heads) = (shape.row(), shape.queries(), shape.repeats() * shape.width);
        let positions: Vec<u32> = slots.iter().map(|slot| slot.length as u32).collect();
        for slot in slots.iter_mut() {
            slot.make_room(shape, context.packed.layers.len());
        }
        let mut x = context.embed(model, tokens)?;
        let mut qkv = pool.take(n * row);
        let mut mixed = pool.take(n * queries);
        let mut middle = pool.take(n * context.width);
        let mut out = pool.take(n * context.width);
        for (index, layer) in context.packed.layers.iter().enumerate() {
            project(context, layer, &x, &positions, &mut qkv);
            let shape = &shape.seeing(layer.window);
            let see = |((slot, qkv), mixed): ((&mut Slot, &[f32]), &mut [f32])| {
                let token = slot.length;
                slot.put(shape, index, token, qkv);
                let mut scores = pool.take(ROWS * (token + 1).next_multiple_of(COLUMNS));
                let heads = qkv[..queries].chunks_exact(heads).zip(mixed.chunks_exact_mut(heads));
                for ((keys, values), (query, out)) in slot.layer(shape, index).zip(heads) {
                    attend(shape, token, query, keys, values, &mut scores, out);
                }
            };
            slots.par_iter_mut().zip(qkv.par_chunks_exact(row)).zip(mixed.par_chunks_exact_mut(queries)).for_each(see);
            finish(context, layer, &x, &mixed, Finished { middle: &mut middle, gate_up: None, out: &mut out });
            std::mem::swap(&mut x, &mut out);
        }
        for slot in slots.iter_mut() {
            slot.length += 1;
        }
        put_logits(context, &x, logits);
        Ok(())
    }
}

/// The logits of rows of the residual stream after the last layer (N, D): (N, V).
fn put_logits(context: &Context, x: &[f32], logits: &mut Vec<f32>) {
    let (width, vocabulary) = (context.width, context.packed.head.columns());
    let n = x.len() / width;
    logits.resize(n * vocabulary, 0.0);
    let mut hidden = context.pool.take(x.len());
    normalise(x, &context.packed.norm, context.eps, &mut hidden);
    let share = Share::of(n);
    let rows = share.rows(n);
    hidden
        .par_chunks(rows * width)
        .zip(logits.par_chunks_mut(rows * vocabulary))
        .for_each(|(hidden, logits)| share.multiply(&context.packed.head, hidden, logits, false));
}
