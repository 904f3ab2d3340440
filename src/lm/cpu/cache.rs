//! Keys and values of tokens that were read, in runs: a run that many rows share lies here once.

use std::sync::Arc;

use super::attention::Shape;
use super::pool::{Buffer, Pool};
use crate::lm::LmError;

/// Keys and values of a run of tokens: for each layer and key/value head the keys (panels, E, 32), then the values (S, E
/// filled up).
#[derive(Debug)]
pub(super) struct Run {
    values: Buffer,
    /// The place of its first token in its sequence.
    pub(super) start: usize,
    /// Tokens that are there.
    pub(super) length: usize,
    capacity: usize,
}

/// Runs by number.
#[derive(Debug)]
pub(super) struct Cache {
    runs: Vec<Option<Run>>,
    /// Numbers of runs that are gone, to be given again.
    free: Vec<usize>,
    layers: usize,
    pool: Arc<Pool>,
}

/// Numbers of one layer and key/value head of so many tokens.
fn size(shape: &Shape, capacity: usize) -> usize {
    shape.keys_size(capacity) + capacity * shape.padded()
}

impl Run {
    /// The place after its last token.
    pub(super) fn end(&self) -> usize {
        self.start + self.length
    }

    /// Keys and values of one layer and head.
    pub(super) fn head(&self, shape: &Shape, layer: usize, head: usize) -> (&[f32], &[f32]) {
        let size = size(shape, self.capacity);
        self.values[(layer * shape.kv_heads + head) * size..][..size].split_at(shape.keys_size(self.capacity))
    }

    /// Puts the keys and values of a token, by its place in the sequence, into one layer, from its row of queries, keys and
    /// values.
    pub(super) fn put(&mut self, shape: &Shape, layer: usize, place: usize, row: &[f32]) {
        let (size, heads) = (size(shape, self.capacity), shape.kv_heads);
        let (keys_at, values_at) = (shape.queries(), shape.queries() + heads * shape.width);
        for head in 0..heads {
            let part = &mut self.values[(layer * heads + head) * size..][..size];
            let (keys, values) = part.split_at_mut(shape.keys_size(self.capacity));
            shape.put_key(keys, place - self.start, &row[keys_at + head * shape.width..][..shape.width]);
            shape.put_row(values, place - self.start, &row[values_at + head * shape.width..][..shape.width]);
        }
    }
}

impl Cache {
    pub(super) fn new(layers: usize, pool: &Arc<Pool>) -> Self {
        Self { runs: Vec::new(), free: Vec::new(), layers, pool: Arc::clone(pool) }
    }

    /// Makes an empty run with room for so many tokens from a place on.
    pub(super) fn add(&mut self, shape: &Shape, start: usize, capacity: usize) -> Result<usize, LmError> {
        let values = self.pool.try_take(self.layers * shape.kv_heads * size(shape, capacity))?;
        let run = Some(Run { values, start, length: 0, capacity });
        if let Some(number) = self.free.pop() {
            self.runs[number] = run;
            return Ok(number);
        }
        self.runs.push(run);
        Ok(self.runs.len() - 1)
    }

    /// Lets go of a run.
    pub(super) fn remove(&mut self, number: usize) {
        self.runs[number] = None;
        self.free.push(number);
    }

    pub(super) fn run(&self, number: usize) -> &Run {
        self.runs[number].as_ref().expect("a run is there as long as a row has it")
    }

    pub(super) fn run_mut(&mut self, number: usize) -> &mut Run {
        self.runs[number].as_mut().expect("a run is there as long as a row has it")
    }

    /// All runs by number, those that are gone too.
    pub(super) fn all_mut(&mut self) -> &mut [Option<Run>] {
        &mut self.runs
    }
}
