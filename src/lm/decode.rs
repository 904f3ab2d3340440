//! Reading prompts and going on from them token by token, with the keys and values of earlier tokens kept.

use candle_core::Tensor;

use super::decoder::Engine;
use super::plain::{self, Cache, Places};
use super::{LmError, Model, cpu, gpu};

/// Rows of a batch in the middle of decoding.
pub(super) enum Decoding {
    /// On the CPU.
    Cpu(cpu::Decoding),
    /// On other devices.
    Tensors(gpu::Decoding),
    /// In candle's operations, padded.
    Plain(Plain),
}

impl Decoding {
    /// Reads prompts, each with the number of tokens that may follow it. Puts the logits after each into `logits`: (B, V).
    pub(super) fn start(model: &Model, prompts: &[(&[u32], usize)], logits: &mut Vec<f32>) -> Result<Self, LmError> {
        match model.engine() {
            Engine::Cpu => Ok(Self::Cpu(cpu::Decoding::start(model, prompts, logits)?)),
            Engine::Tensors => {
                let mut decoding = gpu::Decoding::new();
                decoding.step(model, &[], &[], prompts, logits)?;
                Ok(Self::Tensors(decoding))
            }
            Engine::Plain => Ok(Self::Plain(Plain::start(model, prompts, logits)?)),
        }
    }

    /// Goes on with those rows that are kept, by their ascending places in the last call, and a token for each; puts the
    /// logits after each into `logits`: (B, V).
    pub(super) fn step(
        &mut self,
        model: &Model,
        kept: &[usize],
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), LmError> {
        match self {
            Self::Cpu(decoding) => decoding.step(model, kept, tokens, logits),
            Self::Tensors(decoding) => decoding.step(model, kept, tokens, &[], logits),
            Self::Plain(decoding) => decoding.step(model, kept, tokens, logits),
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
