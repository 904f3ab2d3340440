//! Reading prompts and going on from them token by token, with the keys and values of earlier tokens kept.

use std::sync::Arc;

use candle_core::Tensor;

use super::decoder::Engine;
use super::plain::{self, Cache, Places};
use super::prefixes::Prefixes;
use super::{LmError, Model, cpu, gpu};

/// A row that enters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entering<'a> {
    /// Its tokens: the prompt, and what was sampled already if it was in before.
    pub(super) ids: &'a [u32],
    /// Which of the prompts it is.
    pub(super) prompt: usize,
    /// Tokens that may follow.
    pub(super) room: usize,
}

/// How the device that has the logits picks the next tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct Picking<'a> {
    /// What logits are multiplied by; 0 takes the likeliest token.
    pub(super) inverse: f32,
    /// A random number of [0, 1) for each row: those that go on, then those that enter.
    pub(super) numbers: &'a [f64],
}

/// Rows of a batch in the middle of decoding.
///
/// After an error nothing more can be asked of it.
pub(super) enum Decoding {
    /// On the CPU.
    Cpu(Box<cpu::Decoding>),
    /// On other devices.
    Tensors(gpu::Decoding),
    /// In candle's operations, padded.
    Plain(Option<Plain>),
}

impl Decoding {
    /// Without rows. `prefixes` is what all prompts share, `pass` the number of tokens in one pass at most.
    pub(super) fn new(model: &Model, prefixes: &Arc<Prefixes>, pass: usize) -> Result<Self, LmError> {
        Ok(match model.engine() {
            Engine::Cpu => Self::Cpu(Box::new(cpu::Decoding::new(model, Arc::clone(prefixes), pass)?)),
            Engine::Tensors => Self::Tensors(gpu::Decoding::new(pass)),
            Engine::Plain => Self::Plain(None),
        })
    }

    /// Whether rows may enter while others are going on.
    pub(super) fn joins(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// Whether [`Decoding::pick`] picks tokens.
    pub(super) fn picks(&self, model: &Model) -> bool {
        matches!(self, Self::Tensors(_)) && gpu::picks(model)
    }

    /// As [`Decoding::step`], but gives the tokens that were picked, of rows that go on first; [`gpu::NONE`] for a row whose
    /// logits are broken. Only where [`Decoding::picks`].
    pub(super) fn pick(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        entering: &[Entering<'_>],
        picking: Picking<'_>,
    ) -> Result<Vec<u32>, LmError> {
        let Self::Tensors(decoding) = self else {
            unreachable!("only a decoding on a device picks there");
        };
        decoding.pick(model, kept, tokens, entering, picking)
    }

    /// Goes on with those rows that are kept, by their ascending places in the last call, and a token for each; the others
    /// are finished. Others enter after them. Puts the logits after each into `logits`: (B, V).
    pub(super) fn step(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        entering: &[Entering<'_>],
        logits: &mut Vec<f32>,
    ) -> Result<(), LmError> {
        match self {
            Self::Cpu(decoding) => decoding.step(model, kept, tokens, entering, logits),
            Self::Tensors(decoding) => decoding.step(model, kept, tokens, entering, logits),
            Self::Plain(decoding) if kept.is_empty() => {
                let prompts: Vec<(&[u32], usize)> = entering.iter().map(|row| (row.ids, row.room)).collect();
                *decoding = Some(Plain::start(model, &prompts, logits)?);
                Ok(())
            }
            Self::Plain(decoding) => {
                let decoding = decoding.as_mut().expect("kept rows have entered");
                decoding.step(model, kept, tokens, logits)
            }
        }
    }
}

/// Decoding in candle's operations: rows padded on the left.
pub(super) struct Plain {
    cache: Cache,
    /// Padding on the left of each row.
    starts: Vec<usize>,
    /// Columns so far, padding too.
    columns: usize,
}

impl Plain {
    pub(super) fn start(model: &Model, prompts: &[(&[u32], usize)], logits: &mut Vec<f32>) -> Result<Self, LmError> {
        let rows: Vec<&[u32]> = prompts.iter().map(|(ids, _)| *ids).collect();
        let ids = plain::pad(&rows, true, model.device())?;
        let columns = ids.dim(1)?;
        let starts: Vec<usize> = rows.iter().map(|row| columns - row.len()).collect();
        let mut decoding = Self { cache: model.layers.iter().map(|_| None).collect(), starts, columns: 0 };
        *logits = decoding.forward(model, &ids)?;
        Ok(decoding)
    }

    pub(super) fn step(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), LmError> {
        if kept.len() < self.starts.len() {
            let places: Vec<u32> = kept.iter().map(|place| *place as u32).collect();
            let places = Tensor::new(places, model.device())?;
            for (keys, values) in self.cache.iter_mut().flatten() {
                *keys = keys.index_select(&places, 0)?;
                *values = values.index_select(&places, 0)?;
            }
            self.starts = kept.iter().map(|place| self.starts[*place]).collect();
        }
        let ids = Tensor::new(tokens, model.device())?.unsqueeze(1)?;
        *logits = self.forward(model, &ids)?;
        Ok(())
    }

    fn forward(&mut self, model: &Model, ids: &Tensor) -> Result<Vec<f32>, LmError> {
        let tokens = ids.dim(1)?;
        let columns = self.columns..self.columns + tokens;
        let places = Places::new(model.config(), &self.starts, columns, model.device())?;
        let hidden = plain::hidden(model, ids, &places, Some(&mut self.cache))?;
        self.columns += tokens;
        let last = hidden.narrow(1, tokens - 1, 1)?.squeeze(1)?.contiguous()?;
        // Weights may be variables; what is kept must not keep their graph.
        for (keys, values) in self.cache.iter_mut().flatten() {
            *keys = keys.detach();
            *values = values.detach();
        }
        Ok(plain::logits(model, &last)?.detach().flatten_all()?.to_vec1()?)
    }
}
