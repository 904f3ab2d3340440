//! Fields of an evaluation that do not go together.

use super::super::check::{problem, require, sampling};
use super::super::judge::verdict;
use super::super::prompter::{check_shape, check_system};
use super::super::template;
use super::{By, Evaluate};
use crate::pipeline::Problem;

/// What is wrong with the fields of a node.
pub(super) fn validate(kind: &Evaluate) -> Vec<Problem> {
    let mut problems = Vec::new();
    candidates(kind, &mut problems);
    let templates = [
        ("prompt", Some(&kind.prompt)),
        ("score_prompt", kind.score_prompt.as_ref()),
        ("chat_prompt", kind.chat_prompt.as_ref()),
    ];
    for (field, text) in templates {
        if let Some(text) = text {
            template::check(&mut problems, field, text);
        }
    }
    check_shape(&mut problems, kind.prefix.as_deref(), kind.after.as_deref());
    sampling(&mut problems, kind.max_new_tokens, kind.temperature, kind.top_p, &kind.stop);
    match (&kind.judge, &kind.rules) {
        (None, None) => problems.push(problem(
            "rules",
            "there is no judge",
            "give `judge`, a model, or `rules = { principles = { NAME = { definition = { … }, antithesis = { … } } } }`",
        )),
        (_, Some(rules)) => problems.extend(rules.validate("rules")),
        (Some(_), None) => {}
    }
    judge(kind, &mut problems);
    problems
}

fn candidates(kind: &Evaluate, problems: &mut Vec<Problem>) {
    require(
        problems,
        !kind.candidates.is_empty(),
        "candidates",
        "no candidates",
        "give models by name: { base = \"base\", sami = \"finetune\" }",
    );
    let names: Vec<_> = kind.candidates.keys().map(|name| format!("`{name}`")).collect();
    let names = names.join(", ");
    if !kind.candidates.contains_key(&kind.against) {
        let what = format!("`{}` is not among the candidates", kind.against);
        problems.push(problem("against", what, format!("name one of {names}")));
    }
    if let Some(name) = kind.chat.iter().find(|name| !kind.candidates.contains_key(*name)) {
        problems.push(problem(
            "chat",
            format!("`{name}` is not among the candidates"),
            format!("name some of {names}"),
        ));
    }
    check_system(problems, kind.system.as_deref(), !kind.chat.is_empty());
    require(
        problems,
        kind.chat_prompt.is_none() || !kind.chat.is_empty(),
        "chat_prompt",
        "`chat_prompt` without `chat`",
        "name the candidates that are asked with it: `chat = [\"NAME\"]`",
    );
}

/// The fields of a model that judges.
fn judge(kind: &Evaluate, problems: &mut Vec<Problem>) {
    for (field, text) in [("judge_prompt", &kind.judge_prompt), ("judge_system", &kind.judge_system)] {
        if let Some(text) = text {
            template::check(problems, field, text);
        }
    }
    if let Some(what) = verdict::check(&kind.judge_labels) {
        problems.push(problem("judge_labels", what, "give two different words: `judge_labels = [\"A\", \"B\"]`"));
    }
    require(problems, kind.judge_max_tokens >= 1, "judge_max_tokens", "an answer of no tokens", "give at least 1");
    require(problems, kind.judge_retries <= 20, "judge_retries", "more than 20 retries", "2 or 3 are many");
    let given = [
        ("judge_prompt", kind.judge_prompt.is_some()),
        ("judge_system", kind.judge_system.is_some()),
        ("judge_by", kind.judge_by.is_some()),
    ];
    for (field, given) in given {
        let what = format!("`{field}` without `judge`");
        require(
            problems,
            !given || kind.judge.is_some(),
            field,
            &what,
            "name the model that judges: `judge = \"NAME\"`",
        );
    }
    let words = ["judge_retries", "judge_max_tokens"];
    let usual = [kind.judge_retries == super::retries(), kind.judge_max_tokens == super::judge_tokens()];
    for (field, usual) in words.into_iter().zip(usual) {
        let what = format!("`{field}` is for verdicts in words");
        let holds = usual || kind.judge_by != Some(By::Labels);
        require(problems, holds, field, &what, "remove it, or write `judge_by = \"words\"`");
    }
}
