//! Fields of a finetune node that do not go together.

use super::super::check::{problem, require};
use super::super::template;
use super::{Finetune, Objective};
use crate::lm::adapter::Targets;
use crate::lm::config::LINEAR_NAMES;
use crate::lm::loss::Sides;
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
    if kind.objective != Objective::Sami {
        want(kind.sides == Sides::Both, "sides", "only the objective `sami` has sides", "remove `sides`");
    }
    match kind.objective {
        Objective::Sami => {
            for (path, field) in [("text", &kind.text), ("prompt", &kind.prompt), ("response", &kind.response)] {
                want(
                    field.is_none(),
                    path,
                    "the objective `sami` takes prompts and responses from the scores",
                    "remove the field",
                );
            }
        }
        Objective::Sft => {
            want(
                kind.text.is_none(),
                "text",
                "the objective `sft` takes `prompt` and `response`",
                "use `objective = \"lm\"` to train on whole texts",
            );
            want(
                kind.prompt.is_some() == kind.response.is_some(),
                "prompt",
                "`prompt` and `response` go together",
                "give both (or neither, with scores as examples)",
            );
        }
        Objective::Lm => {
            let pair = kind.prompt.is_some() || kind.response.is_some();
            want(!pair, "prompt", "the objective `lm` takes `text`", "use `objective = \"sft\"` to train on responses");
        }
    }
    if kind.reference.is_some() && !kind.wants_reference() {
        problems.push(problem(
            "reference",
            "a reference without `kl_weight`, `kl_budget` or `probe_every` does nothing",
            "give one of them or remove `reference`",
        ));
    }
    for (path, field) in [("text", &kind.text), ("prompt", &kind.prompt), ("response", &kind.response)] {
        if let Some(text) = field {
            template::check(&mut problems, path, text);
        }
    }
    problems
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
