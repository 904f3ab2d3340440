//! Reading prompts and going on from them token by token, with the keys and values of earlier tokens kept.

use candle_core::Tensor;

use super::plain::{self, Cache, Places};
use super::{LmError, Model};

/// Rows of a batch in the middle of decoding.
pub(super) struct Decoding {
    cache: Cache,
    /// Padding on the left of each row.
    starts: Vec<usize>,
    /// Columns so far, padding too.
    columns: usize,
}

impl Decoding {
    /// Reads prompts, each with the number of tokens that may follow it. Returns the logits after each: (B, V).
    pub(super) fn start(model: &Model, prompts: &[(&[u32], usize)]) -> Result<(Self, Vec<f32>), LmError> {
        let rows: Vec<&[u32]> = prompts.iter().map(|(ids, _)| *ids).collect();
        let ids = plain::pad(&rows, true, model.device())?;
        let columns = ids.dim(1)?;
        let starts: Vec<usize> = rows.iter().map(|row| columns - row.len()).collect();
        let mut decoding = Self { cache: model.layers.iter().map(|_| None).collect(), starts, columns: 0 };
        let logits = decoding.forward(model, &ids)?;
        Ok((decoding, logits))
    }

    /// Goes on with those rows that are kept, by their place in the last call, and a token for each: (B, V).
    pub(super) fn step(&mut self, model: &Model, kept: &[usize], tokens: &[u32]) -> Result<Vec<f32>, LmError> {
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
        self.forward(model, &ids)
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
