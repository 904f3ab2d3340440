//! The language model as the row-wise kinds use it: rows remembered, batches sized, progress told, interrupts heeded.

use std::collections::HashSet;
use std::hash::Hash;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::memo::RowMemo;
use super::{Cx, InputArtifact, NodeError, Progress};
use crate::digest::{Digest, Hasher};
use crate::lm::logprobs::{response_kl, response_logprobs};
use crate::lm::sampling::sample;
use crate::lm::{Finish, Model, Prompt, Response, SamplingSettings, Sequence, Tokenizer};

/// Raised when equal rows would give other results.
const VERSION: u64 = 1;

/// Rows in a batch at most, so that a kill loses little and progress moves.
const MOST_ROWS: usize = 128;

/// Bytes of activations and KV cache that a batch may take.
const BATCH_BYTES: usize = 1 << 30;

/// A model that is loaded once it is needed: with every row remembered it never is.
pub(super) struct Policy {
    input: InputArtifact,
    device: String,
    model: Option<Model>,
    tokenizer: Option<Tokenizer>,
}

/// A response that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// The prompt.
    pub(super) prompt: String,
    /// Seed of its random numbers.
    pub(super) seed: u64,
}

/// A response as it was sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Answer {
    /// Its text, without the stop text.
    pub(super) text: String,
    /// Its number of tokens.
    pub(super) tokens: usize,
    /// Why it ended.
    pub(super) finish: Finish,
}

/// A response whose log-probability is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    /// The prompt.
    pub(super) prompt: String,
    /// The response.
    pub(super) response: String,
    /// Whether the end-of-sequence token is part of it.
    pub(super) eos: bool,
}

/// A sum over the tokens of a response.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Sum {
    /// Nats.
    pub(super) nats: f64,
    /// Tokens.
    pub(super) tokens: usize,
}

/// The mean over the tokens of all responses, in nats; 0 of none.
pub(super) fn per_token(sums: &[Sum]) -> f64 {
    let nats: f64 = sums.iter().map(|sum| sum.nats).sum();
    let tokens: usize = sums.iter().map(|sum| sum.tokens).sum();
    nats / tokens.max(1) as f64
}

/// Results in the order of what was asked for.
#[derive(Debug)]
pub(super) struct Rows<V> {
    /// The results.
    pub(super) values: Vec<V>,
    /// Whether each was remembered.
    pub(super) reused: Vec<bool>,
}

/// Counts what is done over the phases of a node.
pub(super) struct Work<'a, 'cx> {
    cx: &'a mut Cx<'cx>,
    unit: &'static str,
    done: u64,
    total: u64,
}

impl<'a, 'cx> Work<'a, 'cx> {
    /// Starts to count; `total` is what all phases together will compute or look up.
    pub(super) fn new(cx: &'a mut Cx<'cx>, unit: &'static str, total: usize) -> Self {
        Self { cx, unit, done: 0, total: total as u64 }
    }

    fn advance(&mut self, by: usize) {
        self.done += by as u64;
        let progress = Progress { done: self.done, total: self.total, unit: self.unit.to_owned(), metrics: Map::new() };
        (self.cx.progress)(progress);
    }

    /// Samples a response for each prompt.
    pub(super) fn sample(
        &mut self,
        policy: &mut Policy,
        settings: &SamplingSettings,
        asks: &[Ask],
    ) -> Result<Rows<Answer>, NodeError> {
        let space = space("sample", &[&policy.input], &json!(settings));
        let keys: Vec<Digest> =
            asks.iter().map(|ask| Hasher::new().text(&ask.prompt).number(ask.seed).finish()).collect();
        self.remembered(&space, &keys, policy, |policy, missing| {
            let (model, tokenizer) = policy.loaded()?;
            let mut prompts = Vec::with_capacity(missing.len());
            for at in missing {
                let Ask { prompt, seed } = &asks[*at];
                let ids = tokenizer.prompt(prompt)?;
                fits(model, ids.len() + 1, prompt)?;
                prompts.push(Prompt { ids, seed: *seed });
            }
            let cost = |prompt: &Prompt| bytes(model, prompt.ids.len() + settings.max_new_tokens);
            let lengths = prompts.iter().map(|prompt| (prompt.ids.len(), cost(prompt))).collect();
            Ok((lengths, move |batch: &[usize]| {
                let batch: Vec<Prompt> = batch.iter().map(|at| prompts[*at].clone()).collect();
                let responses = sample(model, tokenizer, &batch, settings)?;
                let answer = |response: Response| Answer {
                    text: response.text,
                    tokens: response.ids.len(),
                    finish: response.finish,
                };
                Ok(responses.into_iter().map(answer).collect())
            }))
        })
    }

    /// The log-probability of each response after its prompt.
    pub(super) fn logprobs(&mut self, policy: &mut Policy, pairs: &[Pair]) -> Result<Rows<Sum>, NodeError> {
        let space = space("logprobs", &[&policy.input], &Value::Null);
        let keys: Vec<Digest> = pairs.iter().map(pair_key).collect();
        self.remembered(&space, &keys, policy, |policy, missing| {
            let (model, tokenizer) = policy.loaded()?;
            let sequences = sequences(model, tokenizer, pairs, missing)?;
            let lengths = costs(model, &sequences);
            Ok((lengths, move |batch: &[usize]| sums(&sequences, batch, |batch| Ok(response_logprobs(model, batch)?))))
        })
    }

    /// KL(policy‖reference) over the tokens of each response after its prompt, exact over the vocabulary.
    pub(super) fn kl(
        &mut self,
        policy: &mut Policy,
        reference: &mut Policy,
        pairs: &[Pair],
    ) -> Result<Rows<Sum>, NodeError> {
        let space = space("kl", &[&policy.input, &reference.input], &Value::Null);
        let keys: Vec<Digest> = pairs.iter().map(pair_key).collect();
        let same = policy.input.id == reference.input.id;
        let mut both = (policy, reference);
        self.remembered(&space, &keys, &mut both, |(policy, reference), missing| {
            let (model, tokenizer) = policy.loaded()?;
            let sequences = sequences(model, tokenizer, pairs, missing)?;
            let lengths = costs(model, &sequences);
            let reference = if same { None } else { Some(reference.loaded()?.0) };
            if let Some(reference) = reference
                && reference.config().vocab_size != model.config().vocab_size
            {
                return Err(NodeError::with_help(
                    "KL needs two models with one vocabulary, and theirs differ in size",
                    "give a reference that the model was trained from",
                ));
            }
            Ok((lengths, move |batch: &[usize]| match reference {
                Some(reference) => sums(&sequences, batch, |batch| Ok(response_kl(model, reference, batch)?)),
                // A model does not differ from itself.
                None => sums(&sequences, batch, |batch| {
                    Ok(batch.iter().map(|one| vec![0.0; response_tokens(one)]).collect())
                }),
            }))
        })
    }

    /// Looks rows up and computes the missing ones in batches of like length. `prepare` gets the places of the missing
    /// rows and gives their lengths and costs in bytes, and what computes a batch of them.
    fn remembered<'p, V, P, C>(
        &mut self,
        space: &Digest,
        keys: &[Digest],
        policy: &'p mut P,
        prepare: impl FnOnce(&'p mut P, &[usize]) -> Result<(Vec<(usize, usize)>, C), NodeError>,
    ) -> Result<Rows<V>, NodeError>
    where
        V: Clone + Serialize + DeserializeOwned,
        C: FnMut(&[usize]) -> Result<Vec<V>, NodeError>,
    {
        let mut memo: RowMemo<V> = RowMemo::open(self.cx.store, space)?;
        let reused: Vec<bool> = keys.iter().map(|key| memo.get(key).is_some()).collect();
        let missing = first_of_each(keys.iter().enumerate().filter(|(at, _)| !reused[*at]));
        self.advance(keys.len() - missing.len());
        if !missing.is_empty() {
            let (lengths, mut compute) = prepare(policy, &missing)?;
            for batch in batches(&lengths, self.cx.micro_batch) {
                self.cx.check_interrupt()?;
                let values = compute(&batch)?;
                let batch_keys = batch.iter().map(|at| keys[missing[*at]]);
                memo.add(batch_keys.zip(values).collect())?;
                self.advance(batch.len());
            }
        }
        let value = |key| memo.get(key).cloned().ok_or_else(|| NodeError::failed("a row was not computed"));
        Ok(Rows { values: keys.iter().map(value).collect::<Result<_, _>>()?, reused })
    }
}

impl<V> Rows<V> {
    /// How many groups of `size` results in a row were remembered whole.
    pub(super) fn groups_reused(&self, size: usize) -> usize {
        self.reused.chunks(size.max(1)).filter(|group| group.iter().all(|reused| *reused)).count()
    }
}

impl Policy {
    /// A model that is not loaded yet.
    pub(super) fn new(cx: &Cx<'_>, input: &InputArtifact) -> Self {
        Self { input: input.clone(), device: cx.device.clone(), model: None, tokenizer: None }
    }

    /// Lets go of the model's memory; it is loaded again if it is needed.
    pub(super) fn unload(&mut self) {
        self.model = None;
    }

    /// The model and its tokenizer, loaded if they were not.
    pub(super) fn loaded(&mut self) -> Result<(&Model, &Tokenizer), NodeError> {
        if self.tokenizer.is_none() {
            self.tokenizer = Some(Tokenizer::load(&self.input.files)?);
        }
        if self.model.is_none() {
            self.model = Some(Model::load(&self.input.files, &crate::lm::device(&self.device)?)?);
        }
        match (&self.model, &self.tokenizer) {
            (Some(model), Some(tokenizer)) => Ok((model, tokenizer)),
            _ => Err(NodeError::failed("the model was not loaded")),
        }
    }
}

/// The seed of a response: it depends on what the user seeded, the row and the place of the constitution only.
pub(super) fn response_seed(seed: u64, row: &str, place: usize) -> u64 {
    Hasher::new().text("response").number(seed).text(row).number(place as u64).seed()
}

fn space(what: &str, models: &[&InputArtifact], fields: &Value) -> Digest {
    let mut hasher = Hasher::new();
    hasher.text(what).number(VERSION).digest(&Digest::of_value(fields));
    for model in models {
        hasher.digest(&model.id);
    }
    hasher.finish()
}

fn pair_key(pair: &Pair) -> Digest {
    Hasher::new().text(&pair.prompt).text(&pair.response).number(u64::from(pair.eos)).finish()
}

fn sequences(model: &Model, tokenizer: &Tokenizer, pairs: &[Pair], at: &[usize]) -> Result<Vec<Sequence>, NodeError> {
    at.iter()
        .map(|at| {
            let Pair { prompt, response, eos } = &pairs[*at];
            let sequence = tokenizer.sequence(prompt, response, *eos)?;
            fits(model, sequence.ids.len(), prompt)?;
            Ok(sequence)
        })
        .collect()
}

/// Errs, naming the prompt, if so many tokens are more than the model has positions: before anything is computed.
fn fits(model: &Model, tokens: usize, prompt: &str) -> Result<(), NodeError> {
    let positions = model.config().max_position_embeddings;
    if tokens <= positions {
        return Ok(());
    }
    let begin: String = prompt.chars().take(60).collect();
    Err(NodeError::with_help(
        format!("the prompt that begins with {begin:?} needs {tokens} positions, and the model has {positions}"),
        "shorten the prompt's template or what is filled in, as in `{{ text[:2000] }}`, or give a model with more positions",
    ))
}

fn costs(model: &Model, sequences: &[Sequence]) -> Vec<(usize, usize)> {
    sequences.iter().map(|sequence| (sequence.ids.len(), bytes(model, sequence.ids.len()))).collect()
}

/// What a sequence of so many tokens takes: keys and values of every layer, and as much again for what passes.
fn bytes(model: &Model, tokens: usize) -> usize {
    let config = model.config();
    let cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim;
    let passing = 4 * config.hidden_size + 2 * config.intermediate_size;
    tokens.saturating_mul(cache + passing).saturating_mul(size_of::<f32>())
}

/// How many tokens of a sequence are the response.
pub(super) fn response_tokens(sequence: &Sequence) -> usize {
    sequence.ids.len().saturating_sub(sequence.prompt)
}

/// Computes a batch and sums over each response. One without tokens (the model ended at once) sums to nothing.
fn sums(
    sequences: &[Sequence],
    batch: &[usize],
    compute: impl FnOnce(&[Sequence]) -> Result<Vec<Vec<f32>>, NodeError>,
) -> Result<Vec<Sum>, NodeError> {
    let with_tokens: Vec<Sequence> =
        batch.iter().map(|at| &sequences[*at]).filter(|sequence| response_tokens(sequence) > 0).cloned().collect();
    let mut computed = if with_tokens.is_empty() { Vec::new() } else { compute(&with_tokens)? }.into_iter();
    let sum = |at: &usize| {
        let tokens =
            if response_tokens(&sequences[*at]) > 0 { computed.next().unwrap_or_default() } else { Vec::new() };
        Sum { nats: tokens.iter().map(|nats| f64::from(*nats)).sum(), tokens: tokens.len() }
    };
    Ok(batch.iter().map(sum).collect())
}

/// The places of the first item of each value.
fn first_of_each<'a, T: Eq + Hash + 'a>(items: impl Iterator<Item = (usize, &'a T)>) -> Vec<usize> {
    let mut seen = HashSet::new();
    items.filter(|(_, item)| seen.insert(*item)).map(|(at, _)| at).collect()
}

/// Splits rows, given as (length, bytes), into batches of like length, longest first, so that little of a batch is
/// padding and a batch that would not fit fails at once and not after hours.
fn batches(rows: &[(usize, usize)], micro_batch: Option<usize>) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(rows[*at].0));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut left = 0;
    for at in order {
        let bytes = rows[at].1;
        match batches.last_mut() {
            Some(batch)
                if batch.len() < micro_batch.unwrap_or(MOST_ROWS) && (micro_batch.is_some() || bytes <= left) =>
            {
                batch.push(at);
            }
            _ => {
                batches.push(vec![at]);
                left = BATCH_BYTES;
            }
        }
        left = left.saturating_sub(bytes);
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_row_once_and_fit() {
        let rows: Vec<(usize, usize)> = (0..300).map(|n| (n % 7, BATCH_BYTES / 10)).collect();
        for (micro_batch, most) in [(None, 10), (Some(4), 4), (Some(50), 50)] {
            let batches = batches(&rows, micro_batch);
            let mut all: Vec<usize> = batches.iter().flatten().copied().collect();
            all.sort_unstable();
            assert_eq!(all, (0..300).collect::<Vec<_>>());
            assert!(batches.iter().all(|batch| batch.len() <= most && !batch.is_empty()));
            assert_eq!(batches[0].len(), most);
            assert_eq!(rows[batches[0][0]].0, 6, "the longest come first");
        }
        assert_eq!(batches(&[(1, BATCH_BYTES * 2), (1, 1)], None).len(), 2, "what does not fit goes alone");
    }

    #[test]
    fn seeds_depend_on_each_part() {
        let seed = response_seed(1, "a", 0);
        assert!(
            [response_seed(2, "a", 0), response_seed(1, "b", 0), response_seed(1, "a", 1)].iter().all(|s| *s != seed)
        );
    }
}
