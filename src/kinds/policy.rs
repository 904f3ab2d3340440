//! The language model as the row-wise kinds use it: rows remembered, batches sized, progress told, interrupts heeded.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::memo::{Space, note};
use super::shelf::{Loaded, Shelf};
use super::{Cx, InputArtifact, NodeError, Progress};
use crate::digest::{Digest, Hasher};
use crate::lm::logprobs::{response_kl, response_logprobs};
use crate::lm::sampling::{Limits, sample_each};
use crate::lm::{Finish, Join, LmError, Model, Prompt, Response, SamplingSettings, Sequence, Tokenizer};

mod batches;
mod fit;
mod keeper;

use batches::batches;
use fit::Fit;
pub(super) use fit::TooLong;
use keeper::Keeper;
pub(super) use keeper::{Reuse, Rows};

/// A model that is loaded once it is needed: with every row remembered it never is.
pub(super) struct Policy {
    input: InputArtifact,
    device: String,
    /// The class of device that its rows are of, if that is another one's.
    class: Option<String>,
    too_long: TooLong,
    shelf: Arc<Shelf>,
    loaded: Option<Loaded>,
}

/// A response that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    /// The row it is for, for messages.
    pub(super) row: String,
    /// The prompt.
    pub(super) prompt: String,
    /// Seed of its random numbers.
    pub(super) seed: u64,
    /// Whether the prompt ends within the response: then the white space between the two counts.
    pub(super) continues: bool,
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
    /// The row it is of, for messages.
    pub(super) row: String,
    /// The prompt.
    pub(super) prompt: String,
    /// The response.
    pub(super) response: String,
    /// What stands between the two.
    pub(super) join: Join,
    /// Whether the end-of-sequence token is part of it.
    pub(super) eos: bool,
}

impl Pair {
    /// What it asks, in a word.
    fn note(&self) -> String {
        note(&format!("{} → {}", self.prompt, self.response))
    }
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

    /// Set when the run is interrupted.
    pub(super) fn cancel(&self) -> &'cx AtomicBool {
        self.cx.cancel
    }

    fn advance(&mut self, by: usize) {
        self.done += by as u64;
        let (done, total, unit) = (self.done, self.total, self.unit.to_owned());
        let progress = Progress { done, total, unit, ..Progress::default() };
        (self.cx.progress)(progress);
    }

    /// Samples a response for each prompt.
    pub(super) fn sample(
        &mut self,
        policy: &mut Policy,
        settings: &SamplingSettings,
        asks: &[Ask],
    ) -> Result<Rows<Answer>, NodeError> {
        let space = Space::here("sample", &[&policy.input.id], json!(settings), &policy.class()?);
        let key = |ask: &Ask| {
            let mut hasher = Hasher::new();
            hasher.text(&ask.prompt).number(ask.seed);
            if ask.continues {
                hasher.text("continues");
            }
            hasher.finish()
        };
        let keys: Vec<Digest> = asks.iter().map(key).collect();
        let limits = Limits { rows: self.cx.micro_batch };
        self.remembered(
            &space,
            &keys,
            |at| note(&asks[at].prompt),
            |missing, keeper| {
                let fit = policy.fit()?;
                let (model, tokenizer) = (fit.model, fit.tokenizer);
                let mut prompts = Vec::with_capacity(missing.len());
                for at in missing {
                    let Ask { row, prompt, seed, .. } = &asks[*at];
                    prompts.push(Prompt { ids: fit.prompt(row, prompt, settings.max_new_tokens)?, seed: *seed });
                }
                let answer = |(at, response): (usize, Response)| {
                    let Response { ids, mut text, finish } = response;
                    if asks[missing[at]].continues {
                        text = following(tokenizer, &prompts[at].ids, &ids, &text)?;
                    }
                    Ok::<_, LmError>((at, Answer { text, tokens: ids.len(), finish }))
                };
                let finished = |responses: Vec<_>| {
                    let answers: Vec<_> = responses.into_iter().map(answer).collect::<Result<_, _>>()?;
                    keeper.take(answers.into_iter())
                };
                sample_each(model, tokenizer, &prompts, settings, limits, finished).map_err(|error| match error {
                    NodeError::Lm(error) => named(error, |at| &asks[missing[at]].row),
                    other => other,
                })
            },
        )
    }

    /// The log-probability of each response after its prompt.
    pub(super) fn logprobs(&mut self, policy: &mut Policy, pairs: &[Pair]) -> Result<Rows<Sum>, NodeError> {
        let space = Space::here("logprobs", &[&policy.input.id], Value::Null, &policy.class()?);
        let keys: Vec<Digest> = pairs.iter().map(pair_key).collect();
        self.remembered(
            &space,
            &keys,
            |at| pairs[at].note(),
            |missing, keeper| {
                let fit = policy.fit()?;
                sums(&fit, pairs, missing, keeper, |batch| response_logprobs(fit.model, batch))
            },
        )
    }

    /// KL(policy‖reference) over the tokens of each response after its prompt, exact over the vocabulary.
    pub(super) fn kl(
        &mut self,
        policy: &mut Policy,
        reference: &mut Policy,
        pairs: &[Pair],
    ) -> Result<Rows<Sum>, NodeError> {
        let space = Space::here("kl", &[&policy.input.id, &reference.input.id], Value::Null, &policy.class()?);
        let keys: Vec<Digest> = pairs.iter().map(pair_key).collect();
        let same = policy.input.id == reference.input.id;
        self.remembered(
            &space,
            &keys,
            |at| pairs[at].note(),
            |missing, keeper| {
                let fit = policy.fit()?;
                let model = fit.model;
                if same {
                    // A model does not differ from itself.
                    let nothing =
                        |batch: &[Sequence]| Ok(batch.iter().map(|one| vec![0.0; response_tokens(one)]).collect());
                    return sums(&fit, pairs, missing, keeper, nothing);
                }
                let reference = reference.loaded()?.0;
                if reference.config().vocab_size != model.config().vocab_size {
                    return Err(NodeError::with_help(
                        "KL needs two models with one vocabulary, and theirs differ in size",
                        "give a reference that the model was trained from",
                    ));
                }
                sums(&fit, pairs, missing, keeper, |batch| response_kl(model, reference, batch))
            },
        )
    }
}

impl Policy {
    /// A model that is not loaded yet.
    pub(super) fn new(cx: &Cx<'_>, input: &InputArtifact) -> Self {
        let (device, class) = (cx.device.clone(), cx.part.class().cloned());
        let (input, shelf) = (input.clone(), Arc::clone(&cx.shelf));
        Self { input, device, class, too_long: TooLong::Error, shelf, loaded: None }
    }

    /// Does so with prompts that are too long.
    pub(super) fn with(mut self, too_long: TooLong) -> Self {
        self.too_long = too_long;
        self
    }

    /// The class of the device that it computes on.
    fn class(&self) -> Result<String, NodeError> {
        self.class.clone().map_or_else(|| Ok(crate::lm::device::class(&self.device)?), Ok)
    }

    /// The model, loaded if it was not, and what prompts must fit.
    fn fit(&mut self) -> Result<Fit<'_>, NodeError> {
        let too_long = self.too_long;
        let (model, tokenizer) = self.loaded()?;
        Ok(Fit { model, tokenizer, too_long })
    }

    /// Lets go of the model's memory; it is loaded again if it is needed.
    pub(super) fn unload(&mut self) {
        self.loaded = None;
    }

    /// The model and its tokenizer, loaded if they were not.
    pub(super) fn loaded(&mut self) -> Result<(&Model, &Tokenizer), NodeError> {
        if self.loaded.is_none() {
            self.loaded = Some(self.shelf.take(&self.input, &self.device)?);
        }
        match &self.loaded {
            Some(loaded) => Ok((&loaded.model, &loaded.tokenizer)),
            None => Err(NodeError::failed("the model was not loaded")),
        }
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if let Some(loaded) = self.loaded.take() {
            self.shelf.put(&self.input, &self.device, loaded);
        }
    }
}

/// A response's text as it goes on from its prompt: by itself a tokenizer may take off the white space that it begins with.
fn following(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32], text: &str) -> Result<String, LmError> {
    let context = &prompt[prompt.len().saturating_sub(8)..];
    let (before, whole) = (tokenizer.decode(context)?, tokenizer.decode(&[context, ids].concat())?);
    let Some(after) = whole.strip_prefix(before.as_str()) else { return Ok(text.to_owned()) };
    let space = &after[..after.len() - after.trim_start().len()];
    Ok(format!("{space}{}", text.trim_start()))
}

/// The seed of a response: it depends on what the user seeded, the row and the place of the constitution only.
pub(super) fn response_seed(seed: u64, row: &str, place: usize) -> u64 {
    Hasher::new().text("response").number(seed).text(row).number(place as u64).seed()
}

fn pair_key(pair: &Pair) -> Digest {
    let mut hasher = Hasher::new();
    hasher.text(&pair.prompt).text(&pair.response).number(u64::from(pair.eos));
    if pair.join != Join::Space {
        hasher.text("joined by nothing");
    }
    hasher.finish()
}

/// An error of the language model, its index of a row made the row's name.
fn named<'r>(error: LmError, name: impl Fn(usize) -> &'r String) -> NodeError {
    let help = error.diagnostic().help.into_iter().next();
    let full = matches!(error, LmError::RowOutOfMemory { .. });
    let what = match error {
        LmError::TooLong { row, tokens, positions } => {
            format!("row `{}` has {tokens} tokens, the model has {positions} positions", name(row))
        }
        LmError::Sequence { row, what } => format!("row `{}` {what}", name(row)),
        LmError::RowOutOfMemory { row, what } => {
            format!(
                "row `{}` does not fit the memory, even by itself: {what}; the rows done so far are kept",
                name(row)
            )
        }
        other => return NodeError::Lm(other),
    };
    if full { NodeError::Full { what, help } } else { NodeError::Failed { what, help } }
}

/// How many tokens of a sequence are the response.
pub(super) fn response_tokens(sequence: &Sequence) -> usize {
    sequence.ids.len().saturating_sub(sequence.prompt)
}

/// Computes numbers for the response tokens of pairs, and sums over each response. One without tokens (the model ended at
/// once) sums to nothing. Errs, naming the row, on a sum that is not finite.
fn sums(
    fit: &Fit<'_>,
    pairs: &[Pair],
    missing: &[usize],
    keeper: &mut Keeper<'_, '_, '_, Sum>,
    compute: impl Fn(&[Sequence]) -> Result<Vec<Vec<f32>>, LmError>,
) -> Result<(), NodeError> {
    let mut sequences = Vec::with_capacity(missing.len());
    for at in missing {
        sequences.push(fit.sequence(&pairs[*at])?);
    }
    let row = |at: usize| &pairs[missing[at]].row;
    for batch in batches(&sequences, keeper.work.cx.micro_batch) {
        let together: Vec<Sequence> = batch.iter().map(|at| sequences[*at].clone()).collect();
        let computed = compute(&together).map_err(|error| named(error, |at| row(batch[at])))?;
        let mut broken = None;
        let mut sums = Vec::with_capacity(batch.len());
        for (at, tokens) in batch.iter().zip(computed) {
            let nats: f64 = tokens.iter().map(|nats| f64::from(*nats)).sum();
            if nats.is_finite() {
                sums.push((*at, Sum { nats, tokens: tokens.len() }));
            } else {
                broken.get_or_insert(*at);
            }
        }
        keeper.take(sums.into_iter())?;
        if let Some(at) = broken {
            let what = format!("row `{}` has log-probabilities that are not finite: the model is broken", row(at));
            return Err(NodeError::failed(what));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_depend_on_each_part() {
        let seed = response_seed(1, "a", 0);
        assert!(
            [response_seed(2, "a", 0), response_seed(1, "b", 0), response_seed(1, "a", 1)].iter().all(|s| *s != seed)
        );
    }
}
