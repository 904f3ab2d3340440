//! Fields of a finetune node that do not go together.

use super::super::check::{problem, require};
use super::super::template;
use super::{Finetune, Objective};
use crate::lm::adapter::Targets;
use crate::lm::config::LINEAR_NAMES;
use crate::lm::loss::Sides;
use crate::lm::schedule::Span;
use crate::lm::train::KlOver;
use crate::pipeline::Problem;

/// What is wrong with the fields of a node.
pub(super) fn validate(kind: &Finetune) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut want = |holds, path: &str, what: &str, help: &str| require(&mut problems, holds, path, what, help);
    want(kind.batch_queries >= 1, "batch_queries", "a batch of nothing", "give 1 or more");
    want(
        kind.steps.is_some() != kind.epochs.is_some(),
        "steps",
        "give either `steps` or `epochs`",
        "for example `steps = 10`",
    );
    want(kind.steps != Some(0), "steps", "no steps", "give 1 or more");
    want(
        kind.epochs.is_none_or(|epochs| epochs > 0.0 && epochs.is_finite()),
        "epochs",
        "`epochs` is not above 0",
        "1.0 is one pass over the examples",
    );
    want(
        kind.optimizer.lr > 0.0 && kind.optimizer.lr.is_finite(),
        "optimizer.lr",
        "the learning rate is not above 0",
        "for example `lr = 5e-7`",
    );
    want((0.0..1.0).contains(&kind.optimizer.beta1), "optimizer.beta1", "`beta1` is not in [0, 1)", "0.9 is usual");
    want((0.0..1.0).contains(&kind.optimizer.beta2), "optimizer.beta2", "`beta2` is not in [0, 1)", "0.999 is usual");
    want((0.0..1.0).contains(&kind.optimizer.alpha), "optimizer.alpha", "`alpha` is not in [0, 1)", "0.99 is usual");
    want(
        matches!(kind.optimizer.state_bits, 8 | 32),
        "optimizer.state_bits",
        "`state_bits` is neither 32 nor 8",
        "8 makes the optimiser's memory a quarter",
    );
    want(kind.optimizer.weight_decay >= 0.0, "optimizer.weight_decay", "the weight decay is below 0", "0 is none");
    want(
        (0.0..=1.0).contains(&kind.schedule.floor),
        "schedule.floor",
        "`floor` is not in [0, 1]",
        "0 lets the rate fall to nothing",
    );
    want(kind.clip >= 0.0, "clip", "the gradient's norm cannot be below 0", "1 is usual, 0 does not clip");
    want(kind.kl_weight >= 0.0 && kind.kl_weight.is_finite(), "kl_weight", "`kl_weight` is below 0", "0 is none");
    want(
        kind.kl_budget.is_none_or(|budget| budget > 0.0),
        "kl_budget",
        "the KL budget is not above 0",
        "for example 0.1 nats a token",
    );
    want(kind.probe_every != Some(0), "probe_every", "KL measured every 0 steps", "give 1 or more, or leave it out");
    want(kind.checkpoint_every >= 1, "checkpoint_every", "a checkpoint every 0 steps", "give 1 or more");
    lora(kind, &mut want);
    fields_of_objectives(kind, &mut want);
    batch(kind, &mut want);
    if kind.reference.is_some() && !kind.wants_reference() {
        problems.push(problem(
            "reference",
            "a reference without `kl_weight`, `kl_budget` or `probe_every` does nothing",
            "give one of them or remove `reference`",
        ));
    }
    for (path, field) in templates(kind) {
        if let Some(text) = field {
            template::check(&mut problems, path, text);
        }
    }
    problems
}

fn templates(kind: &Finetune) -> [(&'static str, Option<&String>); 5] {
    [
        ("text", kind.text.as_ref()),
        ("prompt", kind.prompt.as_ref()),
        ("response", kind.response.as_ref()),
        ("chosen", kind.chosen.as_ref()),
        ("rejected", kind.rejected.as_ref()),
    ]
}

/// Fields that only some objectives have.
fn fields_of_objectives(kind: &Finetune, want: &mut impl FnMut(bool, &str, &str, &str)) {
    let (name, known): (&str, &[&str]) = match kind.objective {
        Objective::Sami => ("sami", &[]),
        Objective::Dpo => ("dpo", &["prompt", "chosen", "rejected"]),
        Objective::Sft => ("sft", &["prompt", "response"]),
        Objective::Lm => ("lm", &["text"]),
    };
    let help = match kind.objective {
        Objective::Sami => "remove it: prompts and responses are those of the scores".to_owned(),
        _ => format!("it takes {}", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
    };
    for (path, field) in templates(kind) {
        let what = format!("the objective `{name}` has no `{path}`");
        want(field.is_none() || known.contains(&path), path, &what, &help);
    }
    let given: Vec<bool> =
        templates(kind).iter().filter(|(path, _)| known.contains(path)).map(|(_, field)| field.is_some()).collect();
    want(
        given.windows(2).all(|pair| pair[0] == pair[1]),
        "prompt",
        &format!("{} go together", known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")),
        "give all of them (or none, with scores as examples)",
    );
    let of_dataset = kind.prompt.is_some();
    let dpo = kind.objective == Objective::Dpo;
    want(
        kind.sides == Sides::Both || kind.objective == Objective::Sami,
        "sides",
        "only the objective `sami` has sides",
        "remove `sides`",
    );
    want(kind.beta.is_none() || dpo, "beta", "only the objective `dpo` has `beta`", "remove `beta`");
    want(
        kind.beta.is_none_or(|beta| beta > 0.0 && beta.is_finite()),
        "beta",
        "`beta` is not above 0",
        "0.1 is usual; the less, the farther the model may go",
    );
    want(
        kind.label_smoothing.is_none() || dpo,
        "label_smoothing",
        "only the objective `dpo` has `label_smoothing`",
        "remove it",
    );
    want(
        kind.label_smoothing.is_none_or(|smoothing| (0.0..0.5).contains(&smoothing)),
        "label_smoothing",
        "`label_smoothing` is not in [0, 0.5)",
        "it is the chance that a preference is the wrong way round",
    );
    want(
        kind.directions.is_none() || (dpo && !of_dataset),
        "directions",
        "only the objective `dpo` on scores has `directions`",
        "remove it",
    );
    want(
        kind.responses.is_all() || (kind.objective == Objective::Sft && !of_dataset),
        "responses",
        "only the objective `sft` on scores has `responses`",
        "remove it",
    );
    want(
        kind.join.is_space() || of_dataset,
        "join",
        "`join` is for datasets; scores are trained on as they were made",
        "give it to the `score` node",
    );
}

/// What a step is made of.
fn batch(kind: &Finetune, want: &mut impl FnMut(bool, &str, &str, &str)) {
    want(
        kind.accumulation.parts >= 1 && kind.batch_queries.is_multiple_of(kind.accumulation.parts),
        "accumulation.parts",
        "`parts` does not divide `batch_queries`",
        "for example 16 parts of `batch_queries = 128`",
    );
    want(
        kind.weights.is_default() || kind.lora.is_none(),
        "weights",
        "adapters are trained in f32",
        "remove `weights` or `lora`",
    );
    want(
        kind.kl_over == KlOver::Cells || kind.kl_weight > 0.0,
        "kl_over",
        "`kl_over` without `kl_weight` does nothing",
        "give `kl_weight` or remove `kl_over`",
    );
    want(
        !matches!(kind.schedule.span, Some(Span::Steps(0))),
        "schedule.span",
        "a schedule over no steps",
        "give a number of steps, or \"epoch\"",
    );
    want(
        !kind.schedule.from_zero || kind.schedule.warmup > 0,
        "schedule.from_zero",
        "`from_zero` is for a warm-up, and there is none",
        "give `warmup`",
    );
}

fn lora(kind: &Finetune, want: &mut impl FnMut(bool, &str, &str, &str)) {
    want(kind.merge || kind.lora.is_some(), "merge", "there is nothing to merge without `lora`", "remove `merge`");
    let Some(lora) = &kind.lora else { return };
    want(lora.rank >= 1, "lora.rank", "an adapter of rank 0 changes nothing", "16 is usual");
    want(lora.alpha > 0.0 && lora.alpha.is_finite(), "lora.alpha", "`alpha` is not above 0", "twice the rank is usual");
    want((0.0..1.0).contains(&lora.dropout), "lora.dropout", "`dropout` is not in [0, 1)", "0 is none");
    if let Targets::Named(targets) = &lora.targets {
        for target in targets.iter().filter(|target| !LINEAR_NAMES.contains(&target.as_str())) {
            let known = format!("models have layers of the names {}", LINEAR_NAMES.join(", "));
            want(false, "lora.targets", &format!("no model has a linear layer `{target}`"), &known);
        }
    }
    want(
        !matches!(&lora.targets, Targets::Named(targets) if targets.is_empty()),
        "lora.targets",
        "no layer gets an adapter",
        "for example `targets = [\"q_proj\", \"v_proj\"]`, or \"all-linear\"",
    );
}
