//! Estimates of kinds that make models.

use super::{Amount, Estimate, Facts, Known, Place};
use crate::kinds::finetune::{Finetune, Objective};
use crate::kinds::init::Init;
use crate::lm::train::{Beside, Held, footprint, on_ranks, trained};
use crate::pipeline::dataset::Row;

/// A random model's weights and tokenizer. Its vocabulary may turn out smaller.
pub(in crate::kinds) fn init(kind: &Init) -> Estimate {
    let config = kind.form(kind.tokenizer.vocab_size);
    let bytes = config.parameters().saturating_mul(4);
    Estimate {
        disk: Some(Amount::at_most(bytes + 40 * config.vocab_size as u64)),
        made: Facts::of_bound(config),
        ..Estimate::default()
    }
}

/// Tokens of an example, and of its longest sequence.
fn example(kind: &Finetune, model: &Facts, examples: &Facts) -> Option<(Amount, Amount)> {
    let tokens = |template: &str, rows: &[Row]| model.prompt_tokens(template, rows, None);
    let Some((prompt, response)) = examples.prompt.zip(examples.response) else {
        let whole = match kind.objective {
            Objective::Lm => tokens(kind.text.as_deref().unwrap_or("{{ text }}"), &examples.some)?,
            Objective::Dpo => {
                let prompt = tokens(kind.prompt.as_ref()?, &examples.some)?;
                prompt
                    + tokens(kind.chosen.as_ref()?, &examples.some)?
                    + tokens(kind.rejected.as_ref()?, &examples.some)?
            }
            _ => tokens(kind.prompt.as_ref()?, &examples.some)? + tokens(kind.response.as_ref()?, &examples.some)?,
        };
        return Some((whole, whole));
    };
    let prompts = examples.principles.as_ref()?.per_query;
    let each = prompts * examples.responses_each.max(1);
    Some(match kind.objective {
        Objective::Sft => (prompt + response, prompt + response),
        _ => ((prompt + response * each) * prompts, prompt + response * each),
    })
}

/// What is known of the examples: of several inputs the rows add up, and the first one's are taken to be like all.
fn mixed(kind: &Finetune, known: &Known<'_>) -> Facts {
    let fields = kind.examples.fields("examples", &[]);
    let mut parts = fields.iter().map(|field| known.input(&field.path));
    let mut mixed = parts.next().cloned().unwrap_or_default();
    for part in parts {
        mixed.rows = mixed.rows.zip(part.rows).map(|(rows, more)| rows + more);
        mixed.unknown = mixed.unknown.or_else(|| part.unknown.clone());
    }
    mixed
}

/// Steps × examples × their tokens, and what is held for it.
pub(in crate::kinds) fn finetune(kind: &Finetune, known: &Known<'_>) -> Estimate {
    let (model, examples) = (known.input("model"), &mixed(kind, known));
    let unknown = known.why(&["model", "reference"]).or_else(|| examples.unknown.clone());
    // Of scored responses each is an example of its own where they are only imitated.
    let of_a_row = match (kind.objective, examples.prompt, &examples.principles) {
        (Objective::Sft, Some(_), Some(principles)) => principles.per_query * examples.responses_each.max(1),
        _ => 1,
    };
    let rows = examples.rows.map(|rows| rows * of_a_row);
    let settings = Held {
        optimizer: &kind.optimizer,
        compute: kind.compute,
        lora: kind.lora.as_ref(),
        micro_batch: known.run.micro_batch,
        activation_checkpointing: known.run.activation_checkpointing,
    };
    let steps = match (kind.steps, rows) {
        // A budget may end it sooner.
        (Some(steps), _) if kind.kl_budget.is_some() => Some(Amount::at_most(steps)),
        (Some(steps), _) => Some(Amount::exactly(steps)),
        (None, Some(rows)) => {
            let steps = kind.epochs.unwrap_or(1.0) * rows.number as f64 / kind.batch_queries.max(1) as f64;
            Some(Amount { number: steps.ceil().max(1.0) as u64, how: rows.how })
        }
        (None, None) => None,
    };
    let example = example(kind, model, examples);
    let tokens = steps.zip(example).map(|(steps, (tokens, _))| steps * kind.batch_queries as u64 * tokens);
    let Some(config) = model.config() else {
        let why = unknown.unwrap_or_else(|| "until its model is there".to_owned());
        return Estimate { rows, steps, tokens_trained: tokens, ..Estimate::unknown(why) };
    };
    let is_bound = model.model.as_ref().is_some_and(|model| model.is_bound);
    let beside = match (kind.wants_reference(), &kind.reference) {
        (_, Some(_)) => Beside::Another,
        (true, None) => Beside::Itself,
        (false, None) => Beside::Nothing,
    };
    let longest = example.map_or(0, |(_, longest)| longest.number).min(config.max_position_embeddings as u64);
    let held = footprint(config, settings, known.place, longest, beside);
    let (moments, held) = match known.run.ranks {
        Some(ranks) if known.place == Place::Cpu => (held.moments, on_ranks(held, ranks)),
        _ => (held.moments, held),
    };
    let adapters = 4 * trained(config, settings.lora);
    let (weights, lora) = (4 * config.parameters(), kind.lora.is_some());
    let disk = match (lora, kind.merge) {
        (true, false) => adapters,
        (true, true) => weights + adapters,
        (false, _) => weights,
    };
    // What is trained and its moments, from time to time.
    let checkpoints = steps.is_some_and(|steps| steps.number > kind.checkpoint_every);
    let saved = adapters + moments;
    Estimate {
        rows,
        steps,
        tokens_trained: tokens,
        memory: Some(held),
        disk: Some(if is_bound { Amount::at_most(disk) } else { Amount::about(disk) }),
        scratch: checkpoints.then(|| Amount::about(saved)),
        unknown,
        made: Facts { model: model.model.clone(), ..Facts::default() },
        ..Estimate::default()
    }
}
