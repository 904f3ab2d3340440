//! Token by token: keys and values lie in slots that were made before, and are written and read in place.
//!
//! Rows that go on are always in the first slots, so that a step reads what it needs and no more: where one leaves, the
//! last takes its slot.

use candle_core::{Device, Result, Tensor};

use super::attention::Heads;
use super::experts;
use super::head::logits as logits_of;
use super::linear::linear;
use super::ops::{Turn, add_rms_norm, rms_norm, softmax};
use super::pass::{Pass, turn};
use crate::lm::cpu::Keep;
use crate::lm::decode::Entering;
use crate::lm::decoder::{Layer, Linear};
use crate::lm::layout::{Group, Layout};
use crate::lm::{LmError, Model};

/// Keys and values of one layer: (slots, K, capacity, E) each.
struct Cache {
    keys: Tensor,
    values: Tensor,
}

/// Rows of a batch in the middle of decoding.
pub(in crate::lm) struct Decoding {
    pass: usize,
    layers: Vec<Cache>,
    slots: usize,
    /// Tokens that a slot has room for.
    capacity: usize,
    /// Tokens in each slot that is in use; those are the first ones.
    lengths: Vec<usize>,
    /// The slot of each row.
    order: Vec<usize>,
    /// Angles of all positions so far.
    turn: Option<Turn>,
}

impl Decoding {
    /// Without rows; `pass` is the number of tokens in one pass at most.
    pub(in crate::lm) fn new(pass: usize) -> Self {
        Self { pass, layers: Vec::new(), slots: 0, capacity: 0, lengths: Vec::new(), order: Vec::new(), turn: None }
    }

    /// Goes on with those rows that are kept, by their ascending places in the last call, and a token for each; the others
    /// are finished. Others enter after them. Puts the logits after each into `logits`: (B, V).
    pub(in crate::lm) fn step(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        entering: &[Entering<'_>],
        logits: &mut Vec<f32>,
    ) -> std::result::Result<(), LmError> {
        self.keep(kept)?;
        logits.clear();
        if !kept.is_empty() {
            let by_slot = self.forward(model, tokens)?;
            if self.order.is_sorted() {
                *logits = by_slot;
            } else {
                let vocabulary = model.config().vocab_size;
                self.order
                    .iter()
                    .for_each(|slot| logits.extend_from_slice(&by_slot[slot * vocabulary..][..vocabulary]));
            }
        }
        let most = entering.iter().map(|row| row.ids.len() + row.room).max().unwrap_or(0);
        self.reserve(model, self.lengths.len() + entering.len(), most)?;
        let mut rest = entering;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|row| {
                tokens += row.ids.len();
                tokens <= self.pass
            });
            let (pass, after) = rest.split_at(fits.count().max(1));
            self.enter(model, pass, logits)?;
            rest = after;
        }
        Ok(())
    }

    /// Lets go of the rows that are not kept.
    fn keep(&mut self, kept: &[usize]) -> Result<()> {
        let mut order: Vec<usize> = kept.iter().map(|row| self.order[*row]).collect();
        let count = order.len();
        let mut holes: Vec<usize> = (0..count).filter(|slot| !order.contains(slot)).collect();
        for slot in &mut order {
            if *slot < count {
                continue;
            }
            let hole = holes.pop().expect("as many slots are free below as are in use above");
            for Cache { keys, values } in &self.layers {
                for cache in [keys, values] {
                    cache.slice_set(&cache.narrow(0, *slot, 1)?.copy()?, 0, hole)?;
                }
            }
            self.lengths[hole] = self.lengths[*slot];
            *slot = hole;
        }
        self.lengths.truncate(count);
        self.order = order;
        Ok(())
    }

    /// Makes room for rows and tokens.
    fn reserve(&mut self, model: &Model, slots: usize, capacity: usize) -> Result<()> {
        if slots <= self.slots && capacity <= self.capacity {
            return Ok(());
        }
        let (slots, capacity) = (slots.max(self.slots), capacity.max(self.capacity).next_multiple_of(64));
        let Heads { keys, width, .. } = Heads::of(model.config());
        let (used, device) = (self.lengths.len(), model.device());
        let longest = self.lengths.iter().copied().max().unwrap_or(0);
        let mut layers = std::mem::take(&mut self.layers).into_iter();
        for _ in 0..model.layers.len() {
            let old = layers.next();
            let larger = |old: Option<Tensor>| -> Result<Tensor> {
                let new = Tensor::zeros((slots, keys, capacity, width), model.dtype(), device)?;
                if let Some(old) = old.filter(|_| used > 0) {
                    let there = old.narrow(0, 0, used)?.narrow(2, 0, longest)?.contiguous()?;
                    new.narrow(0, 0, used)?.slice_set(&there, 2, 0)?;
                }
                Ok(new)
            };
            let (old_keys, old_values) = old.map(|old| (old.keys, old.values)).unzip();
            self.layers.push(Cache { keys: larger(old_keys)?, values: larger(old_values)? });
        }
        let positions: Vec<u32> = (0..capacity as u32).collect();
        self.turn = Some(turn(model, &positions)?);
        (self.slots, self.capacity) = (slots, capacity);
        Ok(())
    }

    /// Reads the prompts of rows that enter, and adds the logits after them.
    fn enter(&mut self, model: &Model, entering: &[Entering<'_>], logits: &mut Vec<f32>) -> Result<()> {
        let first = self.lengths.len();
        let (layout, branches) = layout(&entering.iter().map(|row| row.ids).collect::<Vec<_>>());
        let (kv_heads, width) = (model.config().num_key_value_heads, model.config().head_dim);
        let longest = entering.iter().map(|row| row.ids.len()).max().unwrap_or(0);
        // Which token's head each of (rows, K, T) is; what is past a row's end is never looked at.
        let mut at = vec![0u32; entering.len() * kv_heads * longest];
        for (branch, at) in branches.iter().zip(at.chunks_exact_mut(kv_heads * longest)) {
            let tokens = || layout.groups[0].prefix.clone().chain(layout.groups[0].branches[*branch].clone());
            for (head, at) in at.chunks_exact_mut(longest).enumerate() {
                at.iter_mut().zip(tokens()).for_each(|(at, token)| *at = (token * kv_heads + head) as u32);
            }
        }
        let at = Tensor::new(at.as_slice(), model.device())?;
        let layers = &self.layers;
        let write = |cache: &Tensor, tokens: &Tensor| {
            let rows = tokens.reshape(((), width))?.index_select(&at, 0)?;
            let rows = rows.reshape((entering.len(), kv_heads, longest, width))?;
            cache.narrow(0, first, entering.len())?.slice_set(&rows, 2, 0)
        };
        let see = |layer: usize, keys: &Tensor, values: &Tensor| {
            write(&layers[layer].keys, keys)?;
            write(&layers[layer].values, values)
        };
        let pass = Pass::new(model, &layout, Keep::Nothing, see)?;
        let unique = logits_of(model, &pass.hidden)?.to_vec2::<f32>()?;
        for (row, branch) in entering.iter().zip(branches) {
            logits.extend_from_slice(&unique[branch]);
            self.order.push(self.lengths.len());
            self.lengths.push(row.ids.len());
        }
        Ok(())
    }

    /// One token for each row; returns the logits by slot: (B, V).
    fn forward(&mut self, model: &Model, tokens: &[u32]) -> Result<Vec<f32>> {
        let device = model.device();
        let longest = self.lengths.iter().copied().max().unwrap_or(0) + 1;
        self.reserve(model, self.slots, longest)?;
        let mut by_slot = vec![0u32; tokens.len()];
        for (slot, token) in self.order.iter().zip(tokens) {
            by_slot[*slot] = *token;
        }
        let step = Step::new(model, self, longest, device)?;
        let ids = Tensor::new(by_slot.as_slice(), device)?;
        let mut x = model.embedding.detach().index_select(&ids, 0)?;
        for (layer, cache) in model.layers.iter().zip(&self.layers) {
            x = step.layer(model, layer, cache, &x)?;
        }
        let hidden = rms_norm(&x, &model.norm.detach(), model.config().rms_norm_eps)?;
        self.lengths.iter_mut().for_each(|length| *length += 1);
        logits_of(model, &hidden)?.flatten_all()?.to_vec1()
    }
}

/// One token for each row.
struct Step {
    heads: Heads,
    turn: Turn,
    /// Keys that are looked at.
    keys: usize,
    /// Where each row's new key goes: (B, K, 1, E).
    at: Tensor,
    /// By window: 0 for the keys that a row sees, −∞ for others: (B, 1, 1, S).
    masks: Vec<(Option<usize>, Tensor)>,
}

impl Step {
    fn new(model: &Model, decoding: &Decoding, longest: usize, device: &Device) -> Result<Self> {
        let heads = Heads::of(model.config());
        let rows = decoding.lengths.len();
        let keys = longest.next_multiple_of(8).min(decoding.capacity);
        let lengths: Vec<u32> = decoding.lengths.iter().map(|length| *length as u32).collect();
        let lengths = Tensor::new(lengths.as_slice(), device)?;
        let turn = decoding.turn.as_ref().expect("made with the slots").select(&lengths)?;
        let at = lengths.reshape((rows, 1, 1, 1))?.broadcast_as((rows, heads.keys, 1, heads.width))?.contiguous()?;
        let mut masks: Vec<(Option<usize>, Tensor)> = Vec::new();
        for window in model.layers.iter().map(|layer| layer.window) {
            if masks.iter().any(|(made, _)| *made == window) {
                continue;
            }
            let sees = |length: usize, key: usize| key <= length && length - key < window.unwrap_or(usize::MAX);
            let of_row = |length: &usize| {
                let length = *length;
                (0..keys).map(move |key| if sees(length, key) { 0f32 } else { f32::NEG_INFINITY })
            };
            let mask: Vec<f32> = decoding.lengths.iter().flat_map(of_row).collect();
            masks.push((window, Tensor::from_vec(mask, (rows, 1, 1, keys), device)?.to_dtype(model.dtype())?));
        }
        Ok(Self { heads, turn, keys, at, masks })
    }

    fn layer(&self, model: &Model, layer: &Layer, cache: &Cache, x: &Tensor) -> Result<Tensor> {
        let Heads { queries, keys: kv_heads, width } = self.heads;
        let (rows, eps) = (x.dim(0)?, model.config().rms_norm_eps);
        let normed = rms_norm(x, &layer.attention_norm.detach(), eps)?;
        let heads = |layer: &Linear, count: usize| linear(&normed, layer)?.reshape((rows, count, width));
        let query = heads(&layer.query, queries)?;
        let (key, value) = (heads(&layer.key, kv_heads)?, heads(&layer.value, kv_heads)?);
        let norms = [layer.query_norm.as_ref(), layer.key_norm.as_ref()];
        let [query, key, value] = self.turn.apply([&query, &key, &value], norms, eps)?;
        let new = (rows, kv_heads, 1, width);
        let all = |cache: &Tensor, new_rows: Tensor| {
            let cache = cache.narrow(0, 0, rows)?;
            cache.scatter_set(&self.at, &new_rows.reshape(new)?.contiguous()?, 2)?;
            cache.narrow(2, 0, self.keys)
        };
        let (keys, values) = (all(&cache.keys, key)?, all(&cache.values, value)?);
        let mask = self.masks.iter().find(|(window, _)| *window == layer.window).map(|(_, mask)| mask);
        let query = query.reshape((rows, kv_heads, queries / kv_heads, width))?;
        let scores = query.matmul(&keys.t()?)?.broadcast_add(mask.expect("one for each window"))?;
        let mixed = softmax(&scores)?.matmul(&values)?.reshape((rows, queries * width))?;
        let change = linear(&mixed, &layer.output)?;
        let (x, normed) = add_rms_norm(x, &change, &layer.mlp_norm.detach(), eps)?;
        x + experts::forward(&normed, &layer.mlp)?.0
    }
}

/// Lays out prompts: what all have in common once, equal ones once. Also says which branch each is.
fn layout(prompts: &[&[u32]]) -> (Layout, Vec<usize>) {
    let mut unique: Vec<&[u32]> = prompts.to_vec();
    unique.sort_unstable();
    unique.dedup();
    // The first and the last of sorted rows differ the soonest. Each keeps its last token, after which something comes.
    let (first, last) = (unique[0], unique[unique.len() - 1]);
    let shortest = unique.iter().map(|ids| ids.len()).min().unwrap_or(1) - 1;
    let common = first.iter().zip(last).take(shortest).take_while(|(a, b)| a == b).count();
    let common = if unique.len() > 1 { common } else { 0 };
    let mut layout = Layout::default();
    let prefix = layout.push(&first[..common], 0);
    let mut branches = Vec::with_capacity(unique.len());
    for ids in &unique {
        let branch = layout.push(&ids[common..], common);
        layout.chosen.push(branch.end - 1);
        layout.predictions.push(Vec::new());
        branches.push(branch);
    }
    layout.groups.push(Group { prefix, branches });
    let place = |ids: &&[u32]| unique.binary_search(ids).expect("it is among them");
    (layout, prompts.iter().map(place).collect())
}
