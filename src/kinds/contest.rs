//! The contest behind kind `evaluate`: candidates answer, the judge marks, marks become rates.

use std::cell::RefCell;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::evaluate::{Compare, Evaluate};
use super::figures::ContrastFigures;
use super::judge::rules::{Mark, RuleJudge};
use super::policy::{Answer, Ask, Pair, Policy, Sum, Work, per_token, response_seed};
use super::prompter::Prompter;
use super::query::Query;
use super::stats::wilson;
use super::{Cx, NodeError, query, responses, rows};
use crate::lm::SamplingSettings;

/// What came of it.
#[derive(Debug)]
pub(super) struct Contest {
    against: String,
    queries: Vec<Query>,
    /// Constitutions of a query under which responses are compared, from the first.
    compared: usize,
    candidates: IndexMap<String, Candidate>,
}

/// A candidate's part in it. Everything goes query by query, constitution by constitution.
#[derive(Debug)]
struct Candidate {
    /// A response to each constitution.
    answers: Vec<Answer>,
    /// Queries whose responses were all remembered.
    reused: usize,
    /// Marks of the compared responses.
    marks: Vec<Mark>,
    /// The C×C cells of each query under the candidate itself.
    cells: Vec<Sum>,
    /// KL from the candidate `against` on each response; none for that one itself.
    kl: Vec<Sum>,
}

/// What a candidate is asked.
struct Questions {
    asks: Vec<Ask>,
    /// The training prompt under each constitution.
    prompts: Vec<String>,
}

impl Contest {
    /// Lets every candidate answer the same questions with the same random numbers, and marks the answers.
    pub(super) fn hold(kind: &Evaluate, cx: &mut Cx<'_>) -> Result<Self, NodeError> {
        let constitutions = query::read_constitutions(cx.input("constitutions")?)?;
        let rows = rows::read_input(cx.input("queries")?)?;
        let queries = query::pose(&rows, &constitutions, kind.seed, kind.combinations, 1)?;
        if queries.is_empty() {
            return Err(NodeError::with_help("there are no queries", "lower `skip`, or raise `take`"));
        }
        let size = constitutions.per_query;
        let compared = if kind.compare == Compare::All { size } else { 1 };
        let mut questions = IndexMap::new();
        for name in kind.candidates.keys() {
            questions.insert(name.clone(), self::questions(kind, cx, name, &queries)?);
        }
        let rules = kind.rules.as_ref().ok_or_else(|| NodeError::failed("there is no judge"))?;
        let mut judge = RuleJudge::new(rules)?;
        // One is borrowed beside another when KL is measured.
        let mut policies = IndexMap::new();
        for name in kind.candidates.keys() {
            let input = cx.input(&format!("candidates.{name}"))?;
            policies.insert(name.clone(), RefCell::new(Policy::new(cx, input).with(kind.too_long)));
        }
        let asked = queries.len() * size;
        let total = policies.len() * (asked + asked * size) + (policies.len() - 1) * asked;
        let mut work = Work::new(cx, "responses and log-probs", total);
        let mut candidates = IndexMap::new();
        for name in kind.candidates.keys() {
            let policy = &mut *policies[name].borrow_mut();
            let questions = &questions[name];
            let answers = work.sample(policy, &settings(kind), &questions.asks)?;
            let reused = answers.groups_reused(size);
            let answers: Vec<Answer> = answers.values.into_iter().map(trimmed).collect();
            let marks = mark(&mut judge, &queries, &answers, compared)?;
            let pairs = cells(&queries, &questions.prompts, &answers, kind.score_eos);
            let own = responses::diagonal(&pairs, size);
            let cells = work.logprobs(policy, &pairs)?.values;
            let mut kl = Vec::new();
            if *name != kind.against {
                kl = work.kl(policy, &mut policies[&kind.against].borrow_mut(), &own)?.values;
                // Only the model that KL is measured from is needed again.
                policy.unload();
            }
            candidates.insert(name.clone(), Candidate { answers, reused, marks, cells, kl });
        }
        Ok(Self { against: kind.against.clone(), queries, compared, candidates })
    }

    /// A row per query: what each candidate said and how it did.
    pub(super) fn rows(&self) -> Vec<rows::Row> {
        let against = &self.candidates[&self.against];
        let size = against.answers.len() / self.queries.len();
        let row = |(at, query): (usize, &Query)| {
            let mut row = query.row.clone();
            row.insert("constitutions".to_owned(), json!(query.constitutions));
            let candidates: Map<String, Value> = self
                .candidates
                .iter()
                .map(|(name, candidate)| {
                    let answers = &candidate.answers[at * size..(at + 1) * size];
                    let marks = &candidate.marks[at * self.compared..(at + 1) * self.compared];
                    let logprobs: Vec<Vec<f64>> = candidate.cells[at * size * size..(at + 1) * size * size]
                        .chunks(size)
                        .map(|cells| cells.iter().map(|cell| cell.nats).collect())
                        .collect();
                    let value = json!({"responses": answers, "marks": marks, "logprobs": logprobs,
                        "win": candidate.win(against, at, self.compared)});
                    (name.clone(), value)
                })
                .collect();
            row.insert("candidates".to_owned(), json!(candidates));
            row
        };
        self.queries.iter().enumerate().map(row).collect()
    }

    /// Every figure of every candidate.
    pub(super) fn metrics(&self) -> Result<Map<String, Value>, NodeError> {
        let against = &self.candidates[&self.against];
        let mut metrics = Map::new();
        for (name, candidate) in &self.candidates {
            metrics.extend(candidate.metrics(&format!(".{name}"), self.compared)?);
            if *name != self.against {
                let wins: f64 = (0..self.queries.len()).map(|at| candidate.win(against, at, self.compared)).sum();
                let (low, high) = wilson(wins, self.queries.len());
                metrics.insert(format!("win_rate.{name}"), json!(wins / self.queries.len() as f64));
                metrics.insert(format!("win_rate_low.{name}"), json!(low));
                metrics.insert(format!("win_rate_high.{name}"), json!(high));
            }
        }
        let others: Vec<&String> = self.candidates.keys().filter(|name| **name != self.against).collect();
        if let [other] = others[..] {
            for figure in ["win_rate", "win_rate_low", "win_rate_high"] {
                if let Some(value) = metrics.get(&format!("{figure}.{other}")).cloned() {
                    metrics.insert(figure.to_owned(), value);
                }
            }
        }
        let reused = self.candidates.values().map(|candidate| candidate.reused).min().unwrap_or(0);
        let tokens: usize =
            self.candidates.values().flat_map(|candidate| &candidate.answers).map(|answer| answer.tokens).sum();
        metrics.insert("rows".to_owned(), json!(self.queries.len()));
        metrics.insert("rows_reused".to_owned(), json!(reused));
        metrics.insert("tokens".to_owned(), json!(tokens));
        Ok(metrics)
    }
}

impl Candidate {
    /// The share of a query's comparisons that the candidate wins, a tie being half a win.
    fn win(&self, against: &Self, query: usize, compared: usize) -> f64 {
        let own = &self.marks[query * compared..(query + 1) * compared];
        let others = &against.marks[query * compared..(query + 1) * compared];
        own.iter().zip(others).map(|(own, other)| own.against(*other)).sum::<f64>() / compared as f64
    }

    fn metrics(&self, suffix: &str, compared: usize) -> Result<Map<String, Value>, NodeError> {
        let queries = self.marks.len() / compared;
        let size = self.answers.len() / queries;
        let mut figures = ContrastFigures::default();
        self.cells.chunks(size * size).try_for_each(|cells| figures.add(cells))?;
        let mut metrics = figures.metrics(suffix);
        let followed: usize = self.marks.iter().map(|mark| mark.followed).sum();
        let principles: usize = self.marks.iter().map(|mark| mark.principles).sum();
        let well_formed = self.marks.iter().filter(|mark| mark.well_formed).count();
        let tokens: usize =
            self.answers.chunks(size).flat_map(|answers| &answers[..compared]).map(|answer| answer.tokens).sum();
        let share = |part: usize, whole: usize| json!(part as f64 / whole.max(1) as f64);
        metrics.insert(format!("adherence{suffix}"), share(followed, principles));
        metrics.insert(format!("well_formed{suffix}"), share(well_formed, self.marks.len()));
        metrics.insert(format!("mean_length{suffix}"), share(tokens, self.marks.len()));
        if !self.kl.is_empty() {
            metrics.insert(format!("kl{suffix}"), json!(per_token(&self.kl)));
        }
        Ok(metrics)
    }
}

fn settings(kind: &Evaluate) -> SamplingSettings {
    SamplingSettings {
        max_new_tokens: kind.max_new_tokens,
        temperature: kind.temperature,
        top_k: kind.top_k,
        top_p: kind.top_p,
        stop: kind.stop.clone(),
    }
}

/// What a candidate is asked: the same as all others, or the same in its own form of conversation.
fn questions(kind: &Evaluate, cx: &Cx<'_>, name: &str, queries: &[Query]) -> Result<Questions, NodeError> {
    let (prompter, score_prompter) = if kind.chat.iter().any(|chat| chat == name) {
        let (field, text) = kind.chat_prompt.as_ref().map_or(("prompt", &kind.prompt), |text| ("chat_prompt", text));
        let input = cx.input(&format!("candidates.{name}"))?;
        (Prompter::new(field, text)?.in_chat(input, kind.system.as_deref())?, None)
    } else {
        let score_prompter = kind.score_prompt.as_ref().map(|text| Prompter::new("score_prompt", text)).transpose()?;
        (Prompter::new("prompt", &kind.prompt)?, score_prompter)
    };
    let (mut asks, mut prompts) = (Vec::new(), Vec::new());
    for query in queries {
        for (place, constitution) in query.constitutions.iter().enumerate() {
            let asked = prompter.fill(&query.id, &query.row, constitution)?;
            prompts.push(match &score_prompter {
                Some(prompter) => prompter.fill(&query.id, &query.row, constitution)?,
                None => asked.clone(),
            });
            let seed = response_seed(kind.seed, &query.id, place);
            asks.push(Ask { row: query.id.clone(), prompt: asked, seed });
        }
    }
    Ok(Questions { asks, prompts })
}

fn trimmed(answer: Answer) -> Answer {
    Answer { text: answer.text.trim().to_owned(), ..answer }
}

/// Marks the compared responses. The judge gets texts only: it does not know whose they are.
fn mark(
    judge: &mut RuleJudge<'_>,
    queries: &[Query],
    answers: &[Answer],
    compared: usize,
) -> Result<Vec<Mark>, NodeError> {
    let size = answers.len() / queries.len();
    let mut marks = Vec::with_capacity(queries.len() * compared);
    for (query, answers) in queries.iter().zip(answers.chunks(size)) {
        let fields = query::fields(&query.row);
        for (constitution, answer) in query.constitutions.iter().zip(answers).take(compared) {
            marks.push(judge.mark(&query.id, &fields, constitution, &answer.text)?);
        }
    }
    Ok(marks)
}

/// The C×C cells of every query, see [`responses::cells`].
fn cells(queries: &[Query], prompts: &[String], answers: &[Answer], score_eos: bool) -> Vec<Pair> {
    let size = answers.len() / queries.len();
    let each = queries.iter().zip(prompts.chunks(size)).zip(answers.chunks(size));
    each.flat_map(|((query, prompts), answers)| {
        let answers: Vec<_> = answers.iter().map(|answer| (answer.text.as_str(), answer.finish)).collect();
        responses::cells(&query.id, prompts, &answers, score_eos)
    })
    .collect()
}
