//! Token by token: keys and values lie in slots that were made before, and are written and read in place.
//!
//! Rows that go on are always in the first slots, so that a step reads what it needs and no more: where one leaves, the
//! last takes its slot.

use candle_core::{DType, Result, Tensor};

use super::attention::Heads;
use super::experts;
use super::head::logits as logits_of;
use super::kernels::{self, Kernel, Slots};
use super::linear::{linear, queries_keys_values};
use super::ops::{Turn, add_rms_norm, rms_norm, softmax};
use super::pass::{Pass, turn};
use super::replay::{Fixed, Replay};
use crate::lm::cpu::Keep;
use crate::lm::decode::{Entering, Picking};
use crate::lm::decoder::{Layer, Mlp};
use crate::lm::layout::{Group, Layout};
use crate::lm::{LmError, Model};

/// Rows of a step that is recorded are so many times a number.
const ROWS_AT_ONCE: usize = 8;

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
    /// What a step is told and gives; made with the slots.
    fixed: Option<Fixed>,
    replay: Replay,
}

/// Where a step's results go: logits, or the tokens that are picked by them.
enum Out<'a> {
    Logits(&'a mut Vec<f32>),
    Tokens(Picking<'a>, Vec<u32>),
}

impl Out<'_> {
    /// Takes the results of rows that follow, which `hidden` (R, D) has at `at`.
    fn take(&mut self, model: &Model, hidden: &Tensor, at: &[usize]) -> Result<()> {
        match self {
            Self::Logits(logits) => {
                let found = logits_of(model, hidden)?.to_vec2::<f32>()?;
                logits.extend(at.iter().flat_map(|at| &found[*at]));
            }
            Self::Tokens(Picking { inverse, numbers }, tokens) => {
                let logits = hidden.matmul(&model.head.detach().t()?)?;
                let at: Vec<u32> = at.iter().map(|at| *at as u32).collect();
                let numbers = &numbers[tokens.len()..][..at.len()];
                let (at, numbers) = (Tensor::new(at, hidden.device())?, Tensor::new(numbers, hidden.device())?);
                let picked = at.zeros_like()?;
                kernels::pick(&logits, &at, &numbers, *inverse, &picked)?;
                tokens.extend(picked.to_vec1::<u32>()?);
            }
        }
        Ok(())
    }
}

/// Whether tokens are picked by the device that has the model's logits.
pub(in crate::lm) fn picks(model: &Model) -> bool {
    Kernel::Pick.computes(model.device(), model.dtype())
}

impl Decoding {
    /// Without rows; `pass` is the number of tokens in one pass at most.
    pub(in crate::lm) fn new(pass: usize) -> Self {
        Self {
            pass,
            layers: Vec::new(),
            slots: 0,
            capacity: 0,
            lengths: Vec::new(),
            order: Vec::new(),
            turn: None,
            fixed: None,
            replay: Replay::default(),
        }
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
        logits.clear();
        self.advance(model, kept, tokens, entering, &mut Out::Logits(logits))
    }

    /// As [`Decoding::step`], but gives the tokens that are picked. Only where [`picks`].
    pub(in crate::lm) fn pick(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        entering: &[Entering<'_>],
        picking: Picking<'_>,
    ) -> std::result::Result<Vec<u32>, LmError> {
        let mut out = Out::Tokens(picking, Vec::with_capacity(picking.numbers.len()));
        self.advance(model, kept, tokens, entering, &mut out)?;
        match out {
            Out::Tokens(_, tokens) => Ok(tokens),
            Out::Logits(_) => unreachable!("tokens were asked for"),
        }
    }

    fn advance(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        entering: &[Entering<'_>],
        out: &mut Out<'_>,
    ) -> std::result::Result<(), LmError> {
        self.keep(kept)?;
        if !kept.is_empty() {
            self.forward(model, tokens, out)?;
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
            self.enter(model, pass, out)?;
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
        self.fixed = Some(Fixed::new(slots, device)?);
        self.replay.forget();
        (self.slots, self.capacity) = (slots, capacity);
        Ok(())
    }

    /// Reads the prompts of rows that enter, and adds what follows them.
    fn enter(&mut self, model: &Model, entering: &[Entering<'_>], out: &mut Out<'_>) -> Result<()> {
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
        out.take(model, &pass.hidden, &branches)?;
        for row in entering {
            self.order.push(self.lengths.len());
            self.lengths.push(row.ids.len());
        }
        Ok(())
    }

    /// One token for each row.
    fn forward(&mut self, model: &Model, tokens: &[u32], out: &mut Out<'_>) -> Result<()> {
        let longest = self.lengths.iter().copied().max().unwrap_or(0) + 1;
        self.reserve(model, self.slots, longest)?;
        let mut by_slot = vec![0u32; tokens.len()];
        for (slot, token) in self.order.iter().zip(tokens) {
            by_slot[*slot] = *token;
        }
        // Taken out for the time of the step, and put back.
        let mut fixed = self.fixed.take().expect("made with the slots");
        let mut replay = std::mem::take(&mut self.replay);
        let done = self.told(model, &by_slot, (&mut fixed, &mut replay), out);
        (self.fixed, self.replay) = (Some(fixed), replay);
        self.lengths.iter_mut().for_each(|length| *length += 1);
        done
    }

    /// One token for each slot.
    fn told(
        &self,
        model: &Model,
        tokens: &[u32],
        (fixed, replay): (&mut Fixed, &mut Replay),
        out: &mut Out<'_>,
    ) -> Result<()> {
        let device = model.device();
        let decodes = Step::decodes(model);
        if !(decodes && Replay::records(device) && Step::stays(model)) {
            fixed.tell(tokens, &self.lengths, None)?;
            return out.take(model, &self.hidden(model, fixed, tokens.len())?, &self.order);
        }
        let rows = tokens.len().next_multiple_of(ROWS_AT_ONCE).min(self.slots);
        let picking = match out {
            Out::Tokens(picking, _) => Some(*picking),
            Out::Logits(_) => None,
        };
        match picking {
            Some(Picking { numbers, .. }) => {
                let mut by_slot = vec![0f64; tokens.len()];
                self.order.iter().zip(numbers).for_each(|(slot, number)| by_slot[*slot] = *number);
                fixed.tell(tokens, &self.lengths, Some(&by_slot))?;
            }
            None => {
                fixed.make_room(model.config().vocab_size)?;
                fixed.tell(tokens, &self.lengths, None)?;
            }
        }
        let fixed = &*fixed;
        let pieces = || {
            let hidden = self.hidden(model, fixed, rows)?;
            match picking {
                Some(Picking { inverse, .. }) => {
                    let logits = hidden.matmul(&model.head.detach().t()?)?;
                    kernels::pick(&logits, &fixed.each(rows)?, &fixed.numbers, inverse, &fixed.tokens)
                }
                None => fixed.logits()?.slice_set(&logits_of(model, &hidden)?, 0, 0),
            }
        };
        let found = || match picking {
            Some(_) => fixed.tokens.narrow(0, 0, tokens.len())?.to_dtype(DType::F32)?.to_vec1(),
            None => fixed.logits()?.narrow(0, 0, tokens.len())?.flatten_all()?.to_vec1(),
        };
        let kind = (rows, picking.map(|picking| picking.inverse.to_bits()));
        replay.step(device, kind, pieces, found)?;
        match out {
            Out::Tokens(_, picked) => {
                let by_slot = fixed.tokens.narrow(0, 0, tokens.len())?.to_vec1::<u32>()?;
                picked.extend(self.order.iter().map(|slot| by_slot[*slot]));
            }
            Out::Logits(logits) => {
                let by_slot = fixed.logits()?.narrow(0, 0, tokens.len())?.to_vec2::<f32>()?;
                logits.extend(self.order.iter().flat_map(|slot| &by_slot[*slot]));
            }
        }
        Ok(())
    }

    /// Hidden states after the tokens that the first slots were told: (rows, D).
    fn hidden(&self, model: &Model, fixed: &Fixed, rows: usize) -> Result<Tensor> {
        let step = Step::new(model, self, fixed.lengths(rows)?)?;
        let mut x = model.embedding.detach().index_select(&fixed.ids(rows)?, 0)?;
        let mut change = None;
        for (layer, cache) in model.layers.iter().zip(&self.layers) {
            let (middle, made) = step.layer(model, layer, cache, (&x, change.as_ref()))?;
            (x, change) = (middle, Some(made));
        }
        Ok(norm_of((&x, change.as_ref()), &model.norm, model.config().rms_norm_eps)?.1)
    }
}

/// What does not change from layer to layer.
struct Step {
    heads: Heads,
    turn: Turn,
    /// Tokens in each slot before: (B).
    lengths: Tensor,
    /// Where no kernel decodes.
    masked: Option<Masked>,
}

/// What candle's operations need to write and read slots.
struct Masked {
    /// Keys that are looked at.
    keys: usize,
    /// Where each row's new key goes: (B, K, 1, E).
    at: Tensor,
    /// By window: 0 for the keys that a row sees, −∞ for others: (B, 1, 1, S).
    masks: Vec<(Option<usize>, Tensor)>,
}

impl Masked {
    fn new(model: &Model, decoding: &Decoding, lengths: &Tensor) -> Result<Self> {
        let (heads, rows) = (Heads::of(model.config()), lengths.elem_count());
        let longest = decoding.lengths.iter().copied().max().unwrap_or(0) + 1;
        let keys = longest.next_multiple_of(8).min(decoding.capacity);
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
            masks.push((window, Tensor::from_vec(mask, (rows, 1, 1, keys), model.device())?.to_dtype(model.dtype())?));
        }
        Ok(Self { keys, at, masks })
    }

    /// As the kernel: queries (B, H, E), keys and values (B, K, E) to (B, H·E).
    fn attend(&self, [query, key, value]: [&Tensor; 3], cache: &Cache, window: Option<usize>) -> Result<Tensor> {
        let ((rows, queries, width), kv_heads) = (query.dims3()?, key.dim(1)?);
        let new = (rows, kv_heads, 1, width);
        let all = |cache: &Tensor, new_rows: &Tensor| {
            let cache = cache.narrow(0, 0, rows)?;
            cache.scatter_set(&self.at, &new_rows.reshape(new)?.contiguous()?, 2)?;
            cache.narrow(2, 0, self.keys)
        };
        let (keys, values) = (all(&cache.keys, key)?, all(&cache.values, value)?);
        let mask = self.masks.iter().find(|(made, _)| *made == window).map(|(_, mask)| mask);
        let query = query.reshape((rows, kv_heads, queries / kv_heads, width))?;
        let scores = query.matmul(&keys.t()?)?.broadcast_add(mask.expect("one for each window"))?;
        softmax(&scores)?.matmul(&values)?.reshape((rows, queries * width))
    }
}

impl Step {
    fn new(model: &Model, decoding: &Decoding, lengths: Tensor) -> Result<Self> {
        let masked = (!Self::decodes(model)).then(|| Masked::new(model, decoding, &lengths)).transpose()?;
        let turn = decoding.turn.as_ref().expect("made with the slots").select(&lengths)?;
        Ok(Self { heads: Heads::of(model.config()), turn, lengths, masked })
    }

    /// Whether a kernel computes its attention.
    fn decodes(model: &Model) -> bool {
        kernels::decodes(model.config().head_dim, model.dtype())
            && Kernel::Decode.computes(model.device(), model.dtype())
    }

    /// Whether it is the same launches every time: which experts have work is found out on the host.
    fn stays(model: &Model) -> bool {
        model.layers.iter().all(|layer| matches!(layer.mlp, Mlp::Dense(_)))
    }

    /// What the residual stream is in the middle of a layer, and what its second half adds: from the same of the layer
    /// before.
    fn layer(
        &self,
        model: &Model,
        layer: &Layer,
        cache: &Cache,
        x: (&Tensor, Option<&Tensor>),
    ) -> Result<(Tensor, Tensor)> {
        let eps = model.config().rms_norm_eps;
        let (x, normed) = norm_of(x, &layer.attention_norm, eps)?;
        let [query, key, value] = queries_keys_values(&normed, layer, self.heads)?;
        let norms = [layer.query_norm.as_ref(), layer.key_norm.as_ref()];
        let [query, key, value] = self.turn.apply([&query, &key, &value], norms, eps)?;
        let inputs = [&query, &key, &value];
        let mixed = match &self.masked {
            Some(masked) => masked.attend(inputs, cache, layer.window)?,
            None => {
                let slots = Slots { keys: &cache.keys, values: &cache.values, lengths: &self.lengths };
                kernels::decode(inputs, slots, layer.window)?
            }
        };
        let change = linear(&mixed, &layer.output)?;
        let (x, normed) = add_rms_norm(&x, &change, &layer.mlp_norm.detach(), eps)?;
        let change = experts::forward(&normed, &layer.mlp)?.0;
        Ok((x, change))
    }
}

/// The residual stream with what is to be added to it, and its norm.
fn norm_of((x, change): (&Tensor, Option<&Tensor>), weight: &Tensor, eps: f64) -> Result<(Tensor, Tensor)> {
    match change {
        Some(change) => add_rms_norm(x, change, &weight.detach(), eps),
        None => Ok((x.clone(), rms_norm(x, &weight.detach(), eps)?)),
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
