//! Reading prompts and going on from them token by token: what a prompt shares with others is read once, and rows enter
//! and leave as they like.

use std::sync::Arc;

use rayon::prelude::*;

use super::attend::{Reader, Sight};
use super::attention::Shape;
use super::cache::{Cache, Run};
use super::forward::{Context, Share, layers, normalise};
use super::layout::Layout;
use super::scored::in_pool;
use crate::lm::decode::Entering;
use crate::lm::memory::guarded;
use crate::lm::prefixes::Prefixes;
use crate::lm::{LmError, Model};

/// Tokens in one pass at most, from the start; more are split up.
pub(in crate::lm) const TOKENS_PER_PASS: usize = 1 << 11;
/// Fewer new keys and values are not worth a second thread.
const WORTH_A_THREAD: usize = 32;

/// A row in the middle of decoding.
struct Row {
    prompt: usize,
    /// Its runs in the cache; the last is its own.
    path: Vec<usize>,
}

/// Rows in the middle of decoding.
///
/// After an error nothing more can be asked of it.
pub(in crate::lm) struct Decoding {
    context: Context,
    cache: Cache,
    prefixes: Arc<Prefixes>,
    /// The shared runs in the cache.
    shared: Vec<Option<usize>>,
    /// How many prompts still need each shared run.
    needed: Vec<usize>,
    rows: Vec<Row>,
    /// Tokens in one pass at most.
    pass: usize,
}

/// Tokens to be read into a run.
struct Read<'a> {
    ids: &'a [u32],
    /// The place of the first in its sequence.
    position: usize,
    path: Vec<usize>,
    /// Whether the logits after the last are wanted.
    wanted: bool,
}

impl Decoding {
    /// Without rows. `pass` is the number of tokens in one pass at most.
    pub(in crate::lm) fn new(model: &Model, prefixes: Arc<Prefixes>, pass: usize) -> Result<Self, LmError> {
        let context = guarded(|| Context::new(model, 1))?;
        Ok(Self {
            cache: Cache::new(context.packed.layers.len(), &context.pool),
            context,
            shared: vec![None; prefixes.runs.len()],
            needed: prefixes.runs.iter().map(|run| run.prompts).collect(),
            prefixes,
            rows: Vec::new(),
            pass: pass.max(1),
        })
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
    ) -> Result<(), LmError> {
        self.leave(kept);
        self.context.pool.begin();
        let mut reads = Vec::with_capacity(tokens.len() + entering.len());
        for (row, token) in self.rows.iter().zip(tokens.chunks(1)) {
            let position = self.cache.run(row.path[row.path.len() - 1]).end();
            reads.push(Read { ids: token, position, path: row.path.clone(), wanted: true });
        }
        for row in entering {
            self.enter(row, &mut reads)?;
        }
        let end = reads.iter().map(|read| read.position + read.ids.len()).max().unwrap_or(0);
        self.context.reach(model, end);
        logits.clear();
        guarded(|| in_pool(|| self.read(model, reads, logits)))
    }

    /// Takes rows out that are not kept.
    fn leave(&mut self, kept: &[usize]) {
        let mut kept = kept.iter().peekable();
        let mut staying = Vec::with_capacity(self.rows.len());
        for (place, row) in std::mem::take(&mut self.rows).into_iter().enumerate() {
            if kept.next_if(|kept| **kept == place).is_some() {
                staying.push(row);
                continue;
            }
            self.cache.remove(row.path[row.path.len() - 1]);
            for run in self.prefixes.path(row.prompt) {
                self.needed[run] -= 1;
                if self.needed[run] == 0
                    && let Some(number) = self.shared[run].take()
                {
                    self.cache.remove(number);
                }
            }
        }
        self.rows = staying;
    }

    /// Makes room for a row, and adds what is to be read for it.
    fn enter<'a>(&mut self, row: &Entering<'a>, reads: &mut Vec<Read<'a>>) -> Result<(), LmError> {
        let shape = self.context.shape;
        let mut path = Vec::new();
        let mut position = 0;
        for run in self.prefixes.path(row.prompt) {
            let places = self.prefixes.runs[run].places.clone();
            position = places.end;
            if let Some(number) = self.shared[run] {
                path.push(number);
                continue;
            }
            let number = self.cache.add(&shape, places.start, places.len())?;
            self.shared[run] = Some(number);
            path.push(number);
            reads.push(Read {
                ids: &row.ids[places.clone()],
                position: places.start,
                path: path.clone(),
                wanted: false,
            });
        }
        path.push(self.cache.add(&shape, position, row.ids.len() - position + row.room)?);
        reads.push(Read { ids: &row.ids[position..], position, path: path.clone(), wanted: true });
        self.rows.push(Row { prompt: row.prompt, path });
        Ok(())
    }

    /// Reads tokens, in passes of few enough of them.
    fn read(&mut self, model: &Model, reads: Vec<Read<'_>>, logits: &mut Vec<f32>) -> Result<(), LmError> {
        let mut pass: Vec<Read<'_>> = Vec::new();
        let mut room = self.pass;
        for mut read in reads {
            while read.ids.len() > room {
                let (now, later) = read.ids.split_at(room);
                if !now.is_empty() {
                    pass.push(Read { ids: now, position: read.position, path: read.path.clone(), wanted: false });
                }
                self.forward(model, &std::mem::take(&mut pass), logits)?;
                read = Read { ids: later, position: read.position + now.len(), ..read };
                room = self.pass;
            }
            room -= read.ids.len();
            pass.push(read);
        }
        if pass.is_empty() { Ok(()) } else { self.forward(model, &pass, logits) }
    }

    fn forward(&mut self, model: &Model, reads: &[Read<'_>], logits: &mut Vec<f32>) -> Result<(), LmError> {
        let mut layout = Layout::default();
        let mut readers = Vec::with_capacity(reads.len());
        for read in reads {
            let tokens = layout.push(read.ids, read.position);
            if read.wanted {
                layout.chosen.push(tokens.end - 1);
            }
            let own = self.cache.run_mut(read.path[read.path.len() - 1]);
            own.length += read.ids.len();
            readers.push(Reader { tokens, position: read.position, path: read.path.clone() });
        }
        let (context, cache) = (&self.context, &mut self.cache);
        let pool = &context.pool;
        let sight = Sight::new(&context.shape, &readers);
        let mut writers: Vec<Option<&Reader>> = vec![None; cache.all_mut().len()];
        for reader in &readers {
            writers[reader.path[reader.path.len() - 1]] = Some(reader);
        }
        let few = layout.ids.len() < WORTH_A_THREAD;
        let attend = |layer: usize, shape: &Shape, qkv: &[f32], mixed: &mut [f32]| {
            let put = |(run, writer): (&mut Option<Run>, Option<&Reader>)| {
                if let (Some(run), Some(reader)) = (run, writer) {
                    for (token, place) in reader.tokens.clone().zip(reader.position..) {
                        run.put(shape, layer, place, &qkv[token * shape.row()..][..shape.row()]);
                    }
                }
            };
            if few {
                cache.all_mut().iter_mut().zip(writers.iter().copied()).for_each(put);
            } else {
                cache.all_mut().par_iter_mut().zip(writers.par_iter().copied()).for_each(put);
            }
            sight.attend(shape, cache, layer, qkv, mixed, pool);
        };
        let x = layers(context, model, &layout, attend, None)?;
        put_logits(context, &x, logits);
        Ok(())
    }
}

/// Adds the logits of rows of the residual stream after the last layer (N, D): (N, V).
fn put_logits(context: &Context, x: &[f32], logits: &mut Vec<f32>) {
    let (width, vocabulary) = (context.width, context.packed.head.columns());
    let (n, before) = (x.len() / width, logits.len());
    if n == 0 {
        return;
    }
    logits.resize(before + n * vocabulary, 0.0);
    let mut hidden = context.pool.take(x.len());
    normalise(x, &context.packed.norm, context.eps, &mut hidden);
    let share = Share::of(n);
    let rows = share.rows(n);
    hidden
        .par_chunks(rows * width)
        .zip(logits[before..].par_chunks_mut(rows * vocabulary))
        .for_each(|(hidden, logits)| share.multiply(&context.packed.head, hidden, logits, false));
}
