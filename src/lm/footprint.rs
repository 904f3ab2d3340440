//! What work on a model will hold in a device's memory, before it is done.
//!
//! Sums of what the passes keep, buffers by their leading terms: good to a tenth or so where weights outweigh the rest.

use candle_core::DType;
use serde::Serialize;

use super::Config;
use super::memory::keys_and_values;

/// Rows in work at once, as `sampling/batch.rs` has them.
const ROWS: [u64; 2] = [64, 256];
/// Tokens of a pass, as sampling and scoring have them.
const PASS: u64 = 1 << 12;

/// Bytes at the peak, by what holds them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Footprint {
    /// Weights, in every type in which they are held.
    pub weights: u64,
    /// A frozen model beside them.
    pub reference: u64,
    /// The sum of gradients.
    pub gradients: u64,
    /// The optimiser's moments.
    pub moments: u64,
    /// What a pass keeps or works in.
    pub activations: u64,
    /// Keys and values of the rows in work.
    pub cache: u64,
}

impl Footprint {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { weights, reference, gradients, moments, activations, cache } = *self;
        [weights, reference, gradients, moments, activations, cache].into_iter().fold(0, u64::saturating_add)
    }

    /// Of so many processes that each hold it.
    pub fn times(self, count: u64) -> Self {
        let Self { weights, reference, gradients, moments, activations, cache } = self;
        let [weights, reference, gradients, moments, activations, cache] =
            [weights, reference, gradients, moments, activations, cache].map(|bytes| bytes.saturating_mul(count));
        Self { weights, reference, gradients, moments, activations, cache }
    }
}

/// Where work is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On the CPU, in f32 always.
    Cpu,
    /// On a GPU, in the model's own type.
    Gpu,
}

impl Place {
    /// The type that a frozen model is held in.
    pub(super) fn dtype(self, config: &Config) -> DType {
        match self {
            Self::Cpu => DType::F32,
            Self::Gpu => config.dtype,
        }
    }

    /// The bytes of a frozen model's weights. The CPU holds the embedding twice, once as it computes with it.
    pub(super) fn weights(self, config: &Config) -> u64 {
        let size = self.dtype(config).size_in_bytes() as u64;
        let embedding = (config.vocab_size * config.hidden_size) as u64;
        size.saturating_mul(config.parameters()) + if self == Self::Cpu { size * embedding } else { 0 }
    }

    /// What a forward pass over so many tokens works in: the residual stream and a layer's inner values, and the logits of
    /// so many of them.
    fn pass(self, config: &Config, tokens: u64, logits: u64) -> u64 {
        let size = self.dtype(config).size_in_bytes() as u64;
        let experts = config.experts.as_ref().map_or(1, |experts| experts.num_experts_per_tok) as u64;
        let token = 4 * config.hidden_size as u64 + 2 * experts * config.intermediate_size as u64;
        size * tokens * token + 4 * logits * config.vocab_size as u64
    }
}

/// Of sampling `rows` responses of so many tokens each, prompts and all; fewer go together where `micro_batch` says so.
pub fn sampling(config: &Config, place: Place, rows: u64, tokens: u64, micro_batch: Option<usize>) -> Footprint {
    let most = micro_batch.map_or(ROWS[usize::from(place == Place::Gpu)], |most| most as u64);
    let rows = rows.min(most).max(1);
    let tokens = tokens.min(config.max_position_embeddings as u64);
    Footprint {
        weights: place.weights(config),
        activations: place.pass(config, PASS.min(rows * tokens), rows),
        cache: keys_and_values(config, (rows * tokens) as usize, place.dtype(config)),
        ..Footprint::default()
    }
}

/// Of scoring responses of so many tokens each, prompts and all; `references` models are held beside.
pub fn scoring(config: &Config, place: Place, tokens: u64, references: u64) -> Footprint {
    let pass = PASS.max(tokens);
    Footprint {
        weights: place.weights(config),
        reference: references * place.weights(config),
        // Logits are made of a part of a pass at a time.
        activations: place.pass(config, pass, 512),
        ..Footprint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_of_seven_billion_is_as_large_as_people_know_it() {
        let config = Config { dtype: DType::BF16, ..Config::default() };
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        // 6.74e9 weights, 0.5 MiB of keys and values a token.
        let one = sampling(&config, Place::Gpu, 1, 1024, None);
        assert!((gib(one.weights) - 12.55).abs() < 0.01, "{one:?}");
        assert_eq!(one.cache, 1024 * (1 << 19));
        assert!(gib(one.activations) < 0.5, "{one:?}");
        let cpu = sampling(&config, Place::Cpu, 1000, 1024, Some(8));
        assert_eq!((cpu.cache, cpu.weights > 2 * one.weights), (8 * 2 * one.cache, true));
        assert_eq!(scoring(&config, Place::Gpu, 500, 1).reference, one.weights);
        assert_eq!(one.total(), one.weights + one.activations + one.cache);
    }
}
