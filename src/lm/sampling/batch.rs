//! The rows in work: finished ones leave, waiting ones enter.

use std::collections::VecDeque;
use std::sync::Arc;

use rayon::prelude::*;

use super::pick::{on_device, pick};
use super::{Finish, Limits, Prompt, Response, SamplingSettings};
use crate::lm::cpu::{TOKENS_PER_PASS, in_pool};
use crate::lm::decode::{Decoding, Entering, Picking};
use crate::lm::gpu::NONE;
use crate::lm::prefixes::Prefixes;
use crate::lm::random::Stream;
use crate::lm::{LmError, Model, Tokenizer, memory};

/// Rows in work at most, if nothing else bounds them: with more, tokens cost no less.
const MOST_ROWS: usize = 64;
/// The same on a GPU, where a step reads all weights whatever the rows.
const MOST_ROWS_ON_GPU: usize = 256;
/// Tokens in one pass on a GPU.
const TOKENS_PER_PASS_ON_GPU: usize = 1 << 14;

/// A row that is not finished.
struct Row {
    index: usize,
    stream: Stream,
    /// What was sampled.
    ids: Vec<u32>,
    /// Tokens of its response at most.
    room: usize,
}

/// Where the earliest stop text begins in a text.
fn stop_at(text: &str, stop: &[String]) -> Option<usize> {
    stop.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

impl Row {
    /// Takes a sampled token; returns the response if that ends it.
    fn take(
        &mut self,
        token: u32,
        ends: bool,
        tokenizer: &Tokenizer,
        stop: &[String],
    ) -> Result<Option<Response>, LmError> {
        if ends {
            return self.end(Finish::Eos, tokenizer.decode(&self.ids)?);
        }
        self.ids.push(token);
        if !stop.is_empty() {
            let mut text = tokenizer.decode(&self.ids)?;
            if let Some(end) = stop_at(&text, stop) {
                text.truncate(end);
                return self.end(Finish::Stop, text);
            }
        }
        if self.ids.len() < self.room {
            return Ok(None);
        }
        self.end(Finish::Length, tokenizer.decode(&self.ids)?)
    }

    fn end(&mut self, finish: Finish, text: String) -> Result<Option<Response>, LmError> {
        Ok(Some(Response { ids: std::mem::take(&mut self.ids), text, finish }))
    }
}

/// The places and tokens of rows that go on, and the others' responses.
type Picked = (Vec<usize>, Vec<u32>, Vec<(usize, Response)>);

/// All rows that are not finished.
pub(super) struct Batch<'a> {
    model: &'a Model,
    tokenizer: &'a Tokenizer,
    prompts: &'a [Prompt],
    settings: &'a SamplingSettings,
    prefixes: Arc<Prefixes>,
    waiting: VecDeque<Row>,
    /// In the order in which they entered.
    working: Vec<Row>,
    /// Rows in work at most.
    most: usize,
    /// Tokens in one pass at most.
    pass: usize,
    /// Bytes that the rows in work may take.
    budget: u64,
}

impl<'a> Batch<'a> {
    pub(super) fn new(
        model: &'a Model,
        tokenizer: &'a Tokenizer,
        prompts: &'a [Prompt],
        settings: &'a SamplingSettings,
        limits: Limits,
    ) -> Self {
        let prefixes = Prefixes::of(&prompts.iter().map(|prompt| prompt.ids.as_slice()).collect::<Vec<_>>());
        let positions = model.config().max_position_embeddings;
        let on_cpu = model.device().is_cpu();
        let row = |index: &usize| Row {
            index: *index,
            stream: Stream::new(prompts[*index].seed, "sampling"),
            ids: Vec::new(),
            room: settings.max_new_tokens.min(positions - prompts[*index].ids.len()),
        };
        Self {
            waiting: prefixes.order.iter().map(row).collect(),
            prefixes: Arc::new(prefixes),
            working: Vec::new(),
            most: limits.rows.unwrap_or(if on_cpu { MOST_ROWS } else { MOST_ROWS_ON_GPU }).max(1),
            pass: if on_cpu { TOKENS_PER_PASS } else { TOKENS_PER_PASS_ON_GPU },
            budget: memory::budget(model.device()),
            model,
            tokenizer,
            prompts,
            settings,
        }
    }

    /// Samples until every row is finished.
    pub(super) fn run<E: From<LmError>>(
        mut self,
        each: &mut impl FnMut(Vec<(usize, Response)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut decoding = Decoding::new(self.model, &self.prefixes, self.pass)?;
        let (mut kept, mut tokens, mut logits) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let going = self.working.len();
            self.admit(decoding.joins());
            if self.working.is_empty() {
                return Ok(());
            }
            let picked = in_pool(|| self.step(&mut decoding, going, (&kept, &tokens), &mut logits));
            match picked {
                Ok(picked) => {
                    let finished;
                    (kept, tokens, finished) = picked;
                    each(finished)?;
                }
                Err(LmError::OutOfMemory { what }) => {
                    drop(decoding);
                    self.retreat(what)?;
                    decoding = Decoding::new(self.model, &self.prefixes, self.pass)?;
                    (kept, tokens) = (Vec::new(), Vec::new());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Lets waiting rows into work as far as there is room.
    fn admit(&mut self, joins: bool) {
        if !joins && !self.working.is_empty() {
            return;
        }
        let mut taken: u64 = self.working.iter().map(|row| self.bytes(row)).sum();
        while let Some(row) = self.waiting.front() {
            taken += self.bytes(row);
            if self.working.len() >= self.most || (taken > self.budget && !self.working.is_empty()) {
                return;
            }
            self.working.extend(self.waiting.pop_front());
        }
    }

    /// What a row takes: keys and values of its own tokens, those to come too, and a row of logits with its copy.
    fn bytes(&self, row: &Row) -> u64 {
        let own = self.prompts[row.index].ids.len() - self.prefixes.shared(row.index) + row.room;
        memory::keys_and_values(self.model.config(), own, self.model.dtype())
            + 8 * self.model.config().vocab_size as u64
    }

    /// A token for each row in work; the first `going` of them were in the last step, which kept some and their tokens.
    /// `logits` is room.
    fn step(
        &mut self,
        decoding: &mut Decoding,
        going: usize,
        (kept, tokens): (&[usize], &[u32]),
        logits: &mut Vec<f32>,
    ) -> Result<Picked, LmError> {
        let entering = &self.working[going..];
        let ids: Vec<Vec<u32>> =
            entering.iter().map(|row| [self.prompts[row.index].ids.as_slice(), &row.ids].concat()).collect();
        let entering: Vec<Entering<'_>> = entering
            .iter()
            .zip(&ids)
            .map(|(row, ids)| Entering { ids, prompt: row.index, room: row.room - row.ids.len() })
            .collect();
        let (model, settings, vocabulary) = (self.model, self.settings, self.model.config().vocab_size);
        if let Some(inverse) = on_device(settings, vocabulary).filter(|_| decoding.picks(model)) {
            // Drawn for good once there is a token: a step that finds no memory is done again.
            let numbers: Vec<f64> = self.working.iter().map(|row| row.stream.clone().uniform()).collect();
            let picking = Picking { inverse, numbers: &numbers };
            let picked = decoding.pick(model, kept, tokens, &entering, picking)?;
            return self.take(|place, stream| {
                stream.uniform();
                picked.get(place).copied().filter(|token| *token != NONE)
            });
        }
        decoding.step(model, kept, tokens, &entering, logits)?;
        self.take(|place, stream| pick(settings, &logits[place * vocabulary..][..vocabulary], stream))
    }

    /// Puts all rows in work back, to go on in halves.
    fn retreat(&mut self, what: String) -> Result<(), LmError> {
        let rows = self.working.len();
        if rows == 1 && self.pass == 1 {
            return Err(LmError::RowOutOfMemory { row: self.working[0].index, what });
        }
        tracing::warn!("{what}: going on with {} rows at a time", (rows / 2).max(1));
        self.most = (rows / 2).max(1);
        self.pass = if rows == 1 { self.pass / 8 } else { self.pass / 2 }.max(1);
        for row in std::mem::take(&mut self.working).into_iter().rev() {
            self.waiting.push_front(row);
        }
        Ok(())
    }

    /// Gives each row in work the token for its place.
    fn take(&mut self, token: impl Fn(usize, &mut Stream) -> Option<u32> + Sync) -> Result<Picked, LmError> {
        let (settings, tokenizer, config) = (self.settings, self.tokenizer, self.model.config());
        let ends = |token| config.eos_token_ids.contains(&token) || tokenizer.eos().contains(&token);
        let picked: Vec<(u32, Option<Response>)> = self
            .working
            .par_iter_mut()
            .enumerate()
            .map(|(place, row)| {
                let token = token(place, &mut row.stream).ok_or_else(|| LmError::Sequence {
                    row: row.index,
                    what: "has logits that are not numbers: the model is broken".to_owned(),
                })?;
                Ok((token, row.take(token, ends(token), tokenizer, &settings.stop)?))
            })
            .collect::<Result<_, LmError>>()?;
        let (mut kept, mut tokens, mut finished, mut going) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (place, (row, (token, response))) in std::mem::take(&mut self.working).into_iter().zip(picked).enumerate() {
            match response {
                Some(response) => finished.push((row.index, response)),
                None => {
                    kept.push(place);
                    tokens.push(token);
                    going.push(row);
                }
            }
        }
        self.working = going;
        Ok((kept, tokens, finished))
    }
}
