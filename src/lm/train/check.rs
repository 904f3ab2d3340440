//! Settings and examples that cannot be trained with.

use super::super::{Config, LmError, Sequence};
use super::form::Form;
use super::{Accumulation, Example, Objective, TrainSettings};

/// Errs on settings that mean nothing.
pub(super) fn settings(settings: &TrainSettings) -> Result<(), LmError> {
    let want = |holds: bool, field: &'static str, what: &str| {
        if holds { Ok(()) } else { Err(LmError::Setting { field, what: what.to_owned() }) }
    };
    want(settings.batch > 0, "batch", "is 0, a step needs an example")?;
    want(settings.micro_batch != Some(0), "micro_batch", "is 0, a pass needs a sequence")?;
    want(settings.optimizer.lr.is_finite(), "optimizer.lr", "is not finite")?;
    // An embedding that never came up has a gradient and moments of 0, and 0/0 would make it NaN.
    want(settings.optimizer.eps > 0.0, "optimizer.eps", "is not above 0")?;
    want(matches!(settings.optimizer.state_bits, 8 | 32), "optimizer.state_bits", "is neither 32 nor 8")?;
    want(settings.clip >= 0.0, "clip", "is below 0; 0 does not clip")?;
    want(settings.kl_weight >= 0.0 && settings.kl_weight.is_finite(), "kl_weight", "is not a weight of 0 or more")?;
    want(settings.probe_every != Some(0), "probe_every", "is 0")?;
    if let Some(lora) = &settings.lora {
        want(lora.rank > 0, "lora.rank", "is 0")?;
        want(lora.alpha.is_finite() && lora.alpha > 0.0, "lora.alpha", "is not above 0")?;
        want((0.0..1.0).contains(&lora.dropout), "lora.dropout", "is not in [0, 1)")?;
    }
    want(settings.responses_each > 0, "responses_each", "is 0")?;
    let Accumulation { parts, .. } = settings.accumulation;
    want(parts > 0 && settings.batch.is_multiple_of(parts), "accumulation.parts", "does not divide the batch")?;
    if let Objective::Dpo { beta, label_smoothing, .. } = settings.objective {
        want(beta > 0.0 && beta.is_finite(), "beta", "is not above 0")?;
        want((0.0..0.5).contains(&label_smoothing), "label_smoothing", "is not in [0, 0.5)")?;
    }
    want(settings.kl_budget.is_none_or(|budget| budget > 0.0), "kl_budget", "is not above 0")
}

/// Errs on examples that the objective or the model cannot take.
pub(super) fn examples(examples: &[Example], form: Form, config: &Config) -> Result<(), LmError> {
    if examples.is_empty() {
        return Err(LmError::Setting { field: "examples", what: "are none".to_owned() });
    }
    for Example { id, sequences } in examples {
        let fail = |what: String| Err(LmError::Example { id: id.clone(), what });
        if form.rows(sequences.len()).is_none() {
            let wanted = match form {
                Form::Alone => "one".to_owned(),
                Form::Row { each } => format!("more than {each}"),
                Form::Square { each: 1 } => "C·C with C of 2 or more".to_owned(),
                Form::Square { each } => format!("C·C·{each} with C of 2 or more"),
            };
            return fail(format!("has {} sequences, it must be {wanted}", sequences.len()));
        }
        for Sequence { ids, prompt } in sequences {
            if *prompt == 0 {
                return fail("has no prompt, not even a token that begins a text".to_owned());
            }
            if *prompt >= ids.len() {
                return fail("has an empty response".to_owned());
            }
            if ids.len() > config.max_position_embeddings {
                return fail(format!(
                    "has {} tokens, the model has {} positions",
                    ids.len(),
                    config.max_position_embeddings
                ));
            }
            if let Some(token) = ids.iter().find(|token| **token as usize >= config.vocab_size) {
                return fail(format!("has the token {token}, the model has {}", config.vocab_size));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::loss::LengthNorm;
    use super::super::super::loss::preference::Directions;
    use super::super::tests::{config, sami, settings as sound};
    use super::*;

    #[test]
    fn settings_that_mean_nothing_are_named() {
        let sound = sound(sami());
        assert!(settings(&sound).is_ok());
        let in_parts = |parts| Accumulation { parts, ..Accumulation::default() };
        let dpo = |beta, label_smoothing| Objective::Dpo {
            beta,
            label_smoothing,
            length_norm: LengthNorm::Sum,
            directions: Directions::Both,
        };
        let mut lr = sound.clone();
        lr.optimizer.lr = f64::NAN;
        let mut eps = sound.clone();
        eps.optimizer.eps = 0.0;
        let mut bits = sound.clone();
        bits.optimizer.state_bits = 16;
        for (field, broken) in [
            ("optimizer.state_bits", bits),
            ("batch", TrainSettings { batch: 0, ..sound.clone() }),
            ("micro_batch", TrainSettings { micro_batch: Some(0), ..sound.clone() }),
            ("optimizer.lr", lr),
            ("optimizer.eps", eps),
            ("clip", TrainSettings { clip: -1.0, ..sound.clone() }),
            ("kl_weight", TrainSettings { kl_weight: f64::INFINITY, ..sound.clone() }),
            ("kl_budget", TrainSettings { kl_budget: Some(0.0), ..sound.clone() }),
            ("responses_each", TrainSettings { responses_each: 0, ..sound.clone() }),
            ("accumulation.parts", TrainSettings { accumulation: in_parts(2), ..sound.clone() }),
            ("beta", TrainSettings { objective: dpo(0.0, 0.0), ..sound.clone() }),
            ("label_smoothing", TrainSettings { objective: dpo(0.1, 0.5), ..sound.clone() }),
        ] {
            let error = settings(&broken).expect_err(field).to_string();
            assert!(error.contains(&format!("`{field}`")), "{error}");
        }
    }

    #[test]
    fn examples_that_cannot_be_trained_on_are_named() {
        let sequence = |ids: Vec<u32>, prompt| Sequence { ids, prompt };
        let one = |sequences: Vec<Sequence>| vec![Example { id: "seven".to_owned(), sequences }];
        let good = sequence(vec![1, 2, 3], 2);
        let likelihood = |sequence| (Objective::Likelihood, one(vec![sequence]));
        for (what, (objective, broken)) in [
            ("3 sequences", (sami(), one(vec![good.clone(); 3]))),
            ("1 sequences", (sami(), one(vec![good.clone()]))),
            ("4 sequences", (Objective::Likelihood, one(vec![good.clone(); 4]))),
            ("no prompt", likelihood(sequence(vec![1, 2], 0))),
            ("empty response", likelihood(sequence(vec![1, 2], 2))),
            ("positions", likelihood(sequence(vec![1; 1000], 2))),
            ("the token 99", likelihood(sequence(vec![1, 99], 1))),
        ] {
            let error = examples(&broken, objective.form(1), &config()).expect_err(what).to_string();
            assert!(error.contains(what) && error.contains("`seven`"), "{error}");
        }
        assert!(examples(&one(vec![good.clone(); 4]), sami().form(1), &config()).is_ok());
        assert!(examples(&one(vec![good.clone(); 8]), sami().form(2), &config()).is_ok());
        let error = examples(&one(vec![good.clone(); 4]), sami().form(2), &config()).expect_err("4 of 2").to_string();
        assert!(error.contains("4 sequences, it must be C·C·2"), "{error}");
        let error = examples(&[], sami().form(1), &config()).expect_err("none").to_string();
        assert!(error.contains("`examples` are none"), "{error}");
    }
}
