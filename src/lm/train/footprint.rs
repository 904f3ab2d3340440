//! What training will hold in a device's memory.

use super::super::Config;
use super::super::adapter::{LoraSettings, Targets};
use super::super::footprint::{Footprint, Place};
use super::super::optimizer::{OptimizerName, OptimizerSettings};
use super::batch::{Room, kept_of_a_token};
use super::settings::Compute;
use super::together::PARTS;

/// The reference that KL is measured from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beside {
    /// There is none.
    Nothing,
    /// The model as it was.
    Itself,
    /// Another one.
    Another,
}

/// Of how to train, what decides what is held.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// The optimiser.
    pub optimizer: &'a OptimizerSettings,
    /// What the passes compute in.
    pub compute: Compute,
    /// Adapters that are trained instead of the weights.
    pub lora: Option<&'a LoraSettings>,
    /// Sequences in a pass, if that is said.
    pub micro_batch: Option<usize>,
    /// Whether a pass keeps little, if that is said.
    pub activation_checkpointing: Option<bool>,
}

/// How many numbers are trained.
pub fn trained(config: &Config, lora: Option<&LoraSettings>) -> u64 {
    let Some(lora) = lora else { return config.parameters() };
    let wanted = |name: &str| match &lora.targets {
        Targets::All(_) => true,
        Targets::Named(names) => names.iter().any(|wanted| name.ends_with(&format!(".{wanted}"))),
    };
    let linears = config.linears().into_iter().filter(|(name, _)| wanted(name));
    linears.map(|(_, [out, inputs])| (lora.rank * (out + inputs)) as u64).sum()
}

/// Of training with these settings on sequences of so many tokens, prompts and all.
pub fn footprint(config: &Config, settings: Held<'_>, place: Place, tokens: u64, beside: Beside) -> Footprint {
    let (all, trained) = (config.parameters(), trained(config, settings.lora));
    let rounded = settings.compute == Compute::Bf16;
    let computed = if rounded { 2 } else { 4 };
    let lora = settings.lora.is_some();
    // Parameters in f32, and what the passes compute with where that is another type.
    let weights = match (lora, rounded) {
        (true, _) => computed * all + 4 * trained,
        (false, false) => 4 * all,
        (false, true) => 6 * all,
    };
    let moments = match settings.optimizer.name {
        OptimizerName::AdamW => 2,
        OptimizerName::RmsProp => 1,
    };
    let pass = match Room::of(config, settings.micro_batch) {
        Room::Tokens(room) => (room as u64).max(tokens),
        Room::Sequences(most) => most as u64 * tokens,
    };
    let layer = kept_of_a_token(config) / config.num_hidden_layers.max(1) as u64;
    let inputs = 4 * (config.num_hidden_layers * config.hidden_size) as u64 + 2 * layer;
    // Where nobody says, a GPU keeps little, and a CPU all that it has room for.
    let light = settings.activation_checkpointing.unwrap_or(place == Place::Gpu);
    Footprint {
        weights,
        reference: match beside {
            Beside::Nothing => 0,
            Beside::Itself if lora => 0,
            Beside::Itself => computed * all,
            Beside::Another => place.weights(config),
        },
        gradients: 4 * trained,
        moments: moments * u64::from(settings.optimizer.state_bits / 8) * trained,
        activations: pass * if light { inputs } else { kept_of_a_token(config) },
        cache: 0,
    }
}

/// Of training on so many ranks of one machine's CPU, of what one process without ranks holds. Each has some gradients while a
/// step's parts add up: those of branches that wait for their neighbours, that of the part at work, and a copy of it.
pub fn on_ranks(alone: Footprint, ranks: usize) -> Footprint {
    let waiting = PARTS.div_ceil(ranks.max(1)).next_power_of_two().ilog2();
    let each = Footprint { gradients: alone.gradients.saturating_mul(u64::from(waiting) + 2), ..alone };
    each.times(ranks.max(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_trains_decides_what_is_held() {
        let config = Config::default();
        let optimizer = OptimizerSettings::new(OptimizerName::AdamW, 1e-6);
        let full = Held {
            optimizer: &optimizer,
            compute: Compute::F32,
            lora: None,
            micro_batch: None,
            activation_checkpointing: None,
        };
        let all = config.parameters();
        let of = |settings: Held<'_>, beside| footprint(&config, settings, Place::Gpu, 500, beside);
        let held = of(full, Beside::Itself);
        assert_eq!((held.weights, held.gradients, held.moments, held.reference), (4 * all, 4 * all, 8 * all, 4 * all));
        let eight = OptimizerSettings { state_bits: 8, ..optimizer.clone() };
        let held = of(Held { optimizer: &eight, compute: Compute::Bf16, ..full }, Beside::Nothing);
        assert_eq!((held.weights, held.moments, held.reference), (6 * all, 2 * all, 0));
        let lora: LoraSettings = serde_json::from_str("{\"rank\": 16}").expect("settings");
        // 16 × (4 × (4096 + 4096) + 3 × (4096 + 11008)) a layer, as `peft` counts for Llama 7B.
        assert_eq!(trained(&config, Some(&lora)), 39_976_960);
        let held = of(Held { lora: Some(&lora), compute: Compute::Bf16, ..full }, Beside::Itself);
        assert_eq!((held.weights, held.reference), (2 * all + 4 * 39_976_960, 0));
        assert_eq!((on_ranks(held, 1).gradients, on_ranks(held, 1).moments), (6 * held.gradients, held.moments));
        assert_eq!((on_ranks(held, 2).gradients, on_ranks(held, 2).weights), (10 * held.gradients, 2 * held.weights));
        assert_eq!(on_ranks(held, 16).gradients, 32 * held.gradients);
        let whole = Held { activation_checkpointing: Some(false), ..full };
        assert!(of(whole, Beside::Nothing).activations > 5 * of(full, Beside::Nothing).activations);
    }
}
