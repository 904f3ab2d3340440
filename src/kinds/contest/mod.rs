//! The contest behind kind `evaluate`: candidates answer, the judge marks, marks become rates.

use std::cell::RefCell;

use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use super::breakdown::{self, Bout};
use super::evaluate::{Compare, Evaluate};
use super::judge::model::{Comparison, Counts, ModelJudge};
use super::judge::rules::RuleJudge;
use super::policy::{Pair, Policy, Reuse, Work};
use super::query::Query;
use super::responses::Scoring;
use super::speaker::{SpeakSettings, Speaker};
use super::stats::{Trials, paired};
use super::versus::{Ties, Versus, paired_metrics, paired_report};
use super::{Cx, NodeError, imported, query, responses, rows};
use crate::lm::SamplingSettings;
use crate::pipeline::ArtifactType;

mod candidate;
mod questions;

use candidate::Candidate;
pub(super) use candidate::Said;
use questions::Questions;

/// What came of it.
#[derive(Debug)]
pub(super) struct Contest {
    against: String,
    queries: Vec<Query>,
    /// Constitutions of a query under which responses are compared, from the first.
    compared: usize,
    candidates: IndexMap<String, Candidate>,
    /// How every other candidate did against that one.
    versus: IndexMap<String, Versus>,
    /// What a model that judges was asked.
    judged: Option<Counts>,
    /// What calls of endpoints came to.
    calls: Map<String, Value>,
    seed: u64,
}

/// Where a candidate's responses come from.
enum Source {
    /// A model with weights, which can also say how likely they are.
    Model(Box<RefCell<Policy>>, Questions),
    /// A model that is called over HTTP.
    Endpoint(Box<RefCell<Speaker>>),
    /// They were made elsewhere.
    Imported(Vec<Said>),
}

impl Contest {
    /// Lets every candidate answer the same questions with the same random numbers, and has the answers judged. Nothing comes of
    /// a part of the queries.
    pub(super) fn hold(kind: &Evaluate, cx: &mut Cx<'_>) -> Result<Option<Self>, NodeError> {
        let constitutions = query::read_constitutions(cx.input("constitutions")?)?;
        let rows = rows::read_input(cx.input("queries")?)?;
        let queries = query::pose(&rows, &constitutions, kind.seed, kind.combinations, 1)?;
        if queries.is_empty() {
            return Err(NodeError::with_help("there are no queries", "lower `skip`, or raise `take`"));
        }
        let queries = cx.part.own(queries, |query| &query.row);
        if queries.is_empty() {
            return Ok(None);
        }
        let size = constitutions.per_query;
        let compared = if kind.compare == Compare::All { size } else { 1 };
        let mut sources = IndexMap::new();
        for name in kind.candidates.keys() {
            sources.insert(name.clone(), source(kind, cx, name, &queries, compared)?);
        }
        // What a judge cannot do is told before candidates answer.
        let mut rules = kind.rules.as_ref().map(RuleJudge::new).transpose()?;
        let judge = kind.judge.is_some().then(|| ModelJudge::open(kind, cx)).transpose()?;
        let mut candidates = answer(kind, cx, &queries, &sources, compared)?;
        let mut calls = calls(&sources);
        drop(sources);
        if let Some(rules) = &mut rules {
            for candidate in candidates.values_mut() {
                mark(rules, &queries, candidate, compared)?;
            }
        }
        let mut judged = None;
        if let Some(mut judge) = judge {
            judged = Some(Self::judge(&mut judge, kind, cx, &queries, &mut candidates, compared)?);
            calls.extend(judge.metrics());
            calls.extend(judge.reuse().metrics("judge."));
        }
        if cx.part.is_shard() {
            return Ok(None);
        }
        let mut contest = Self {
            against: kind.against.clone(),
            queries,
            compared,
            candidates,
            versus: IndexMap::new(),
            judged,
            calls,
            seed: kind.seed,
        };
        contest.versus = contest.rivals().map(|name| (name.clone(), contest.versus(name, kind.ties))).collect();
        Ok(Some(contest))
    }

    /// Has a model judge every candidate's responses against those of the one that all are held against.
    fn judge(
        judge: &mut ModelJudge<'_>,
        kind: &Evaluate,
        cx: &mut Cx<'_>,
        queries: &[Query],
        candidates: &mut IndexMap<String, Candidate>,
        compared: usize,
    ) -> Result<Counts, NodeError> {
        let rivals: Vec<String> = candidates.keys().filter(|name| **name != kind.against).cloned().collect();
        let mut comparisons = Vec::with_capacity(rivals.len() * queries.len() * compared);
        for name in &rivals {
            let own = candidates[name].compared(queries.len(), compared);
            let others = candidates[&kind.against].compared(queries.len(), compared);
            let places = queries.iter().flat_map(|query| (0..compared).map(move |place| (query, place)));
            comparisons.extend(places.zip(own.zip(others)).map(|((query, place), (own, other))| Comparison {
                query,
                place,
                own: &own.text,
                other: &other.text,
            }));
        }
        let (verdicts, counts) = judge.judge(cx, &comparisons)?;
        let mut verdicts = verdicts.into_iter();
        for name in &rivals {
            let own = verdicts.by_ref().take(queries.len() * compared).collect();
            candidates[name].verdicts = own;
        }
        Ok(counts)
    }

    /// The candidates but for the one that they are held against.
    fn rivals(&self) -> impl Iterator<Item = &String> {
        self.candidates.keys().filter(|name| **name != self.against)
    }

    fn versus(&self, name: &str, ties: Ties) -> Versus {
        let (own, against) = (&self.candidates[name], &self.candidates[&self.against]);
        let longer = own.longer(against, self.queries.len(), self.compared);
        let trials = Trials { wins: own.wins(against), longer: Some(longer), per_query: self.compared };
        Versus::new(&trials, ties, self.seed)
    }

    /// A row per query: what each candidate said and how it did.
    pub(super) fn rows(&self) -> Vec<rows::Row> {
        let row = |(at, query): (usize, &Query)| {
            let mut row = query.row.clone();
            row.insert("constitutions".to_owned(), json!(query.constitutions));
            let candidates: Map<String, Value> = self
                .candidates
                .iter()
                .map(|(name, candidate)| (name.clone(), self.part(name, candidate, at)))
                .collect();
            row.insert("candidates".to_owned(), json!(candidates));
            row
        };
        self.queries.iter().enumerate().map(row).collect()
    }

    /// A candidate's part of a query's row.
    fn part(&self, name: &str, candidate: &Candidate, at: usize) -> Value {
        let own = at * self.compared..(at + 1) * self.compared;
        let answers = candidate.answers_to(at, self.queries.len());
        let win = match self.versus.get(name) {
            Some(versus) => versus.trials.wins[own.clone()].iter().sum::<f64>() / self.compared as f64,
            None => 0.5,
        };
        let mut part = Map::from_iter([("responses".to_owned(), json!(answers))]);
        if !candidate.marks.is_empty() {
            part.insert("marks".to_owned(), json!(candidate.marks[own.clone()]));
        }
        if !candidate.verdicts.is_empty() {
            part.insert("verdicts".to_owned(), json!(candidate.verdicts[own]));
        }
        if !candidate.cells.is_empty() {
            let size = answers.len();
            let cells = candidate.cells[at * size * size..(at + 1) * size * size].chunks(size);
            let logprobs: Vec<Vec<f64>> = cells.map(|cells| cells.iter().map(|cell| cell.nats).collect()).collect();
            part.insert("logprobs".to_owned(), json!(logprobs));
        }
        part.insert("win".to_owned(), json!(win));
        Value::Object(part)
    }

    /// Every figure of every candidate.
    pub(super) fn metrics(&self) -> Result<Map<String, Value>, NodeError> {
        let mut metrics = Map::new();
        for (name, candidate) in &self.candidates {
            metrics.extend(candidate.metrics(&format!(".{name}"), self.queries.len(), self.compared)?);
        }
        self.versus.iter().for_each(|(name, versus)| metrics.extend(versus.metrics(Some(name))));
        if self.versus.len() == 1 {
            self.versus.values().for_each(|versus| metrics.extend(versus.metrics(None)));
        }
        self.pairs(|one, other, found| metrics.extend(paired_metrics(one, other, found)));
        if let Some(counts) = self.judged {
            let judge = [
                ("rulings", counts.rulings),
                ("identical", counts.identical),
                ("asked_again", counts.asked_again),
                ("unparsed", counts.unparsed),
                ("split", counts.split),
                ("for_first", counts.for_first),
            ];
            metrics.extend(judge.map(|(name, count)| (format!("judge.{name}"), json!(count))));
        }
        metrics.extend(self.calls.clone());
        let reuse = self.candidates.values().fold(Reuse::default(), |sum, candidate| sum.and(candidate.reuse));
        let answers = self.candidates.values().flat_map(|candidate| &candidate.answers);
        let tokens: usize = answers.filter_map(|said| said.tokens).sum();
        metrics.insert("rows".to_owned(), json!(self.queries.len()));
        metrics.extend(reuse.metrics(""));
        metrics.insert("tokens".to_owned(), json!(tokens));
        Ok(metrics)
    }

    /// What stands in `breakdown.json`.
    pub(super) fn report(&self) -> Value {
        let mut candidates = Map::new();
        for (name, versus) in &self.versus {
            let mut report = versus.report();
            let bouts = self.bouts(name, versus);
            report["principles"] = json!(breakdown::by_principle(&bouts));
            report["constitutions"] = json!(breakdown::by_constitution(&bouts));
            candidates.insert(name.clone(), report);
        }
        let mut pairs = Vec::new();
        self.pairs(|one, other, found| pairs.push(paired_report(one, other, found)));
        json!({"against": self.against, "candidates": candidates, "paired": pairs})
    }

    fn bouts(&self, name: &str, versus: &Versus) -> Vec<Bout<'_>> {
        let (own, against) = (&self.candidates[name], &self.candidates[&self.against]);
        let bout = |(at, win): (usize, &f64)| {
            let (query, place) = (at / self.compared, at % self.compared);
            let follows = own.marks.get(at).zip(against.marks.get(at));
            Bout {
                query,
                constitution: &self.queries[query].constitutions[place],
                win: *win,
                follows: follows.map(|(own, other)| (&own.follows[..], &other.follows[..])),
            }
        };
        versus.trials.wins.iter().enumerate().map(bout).collect()
    }

    /// Every two candidates beside each other on the same queries.
    fn pairs(&self, mut tell: impl FnMut(&str, &str, &super::stats::Paired)) {
        let by_query: Vec<(&String, Vec<f64>)> =
            self.versus.iter().map(|(name, versus)| (name, versus.trials.by_query())).collect();
        for (at, (one, own)) in by_query.iter().enumerate() {
            for (other, others) in &by_query[at + 1..] {
                tell(one, other, &paired(own, others, self.seed));
            }
        }
    }
}

/// Gets ready what a candidate's responses come from; imported ones are read and checked.
fn source(kind: &Evaluate, cx: &Cx<'_>, name: &str, queries: &[Query], compared: usize) -> Result<Source, NodeError> {
    let path = format!("candidates.{name}");
    let input = cx.input(&path)?;
    match input.kind {
        ArtifactType::Dataset | ArtifactType::Responses => {
            Ok(Source::Imported(imported::answers(input, name, queries, compared)?))
        }
        ArtifactType::Endpoint => Ok(Source::Endpoint(Box::new(RefCell::new(Speaker::open(cx, &path)?)))),
        _ => {
            // One is borrowed beside another when KL is measured.
            let policy = RefCell::new(Policy::new(cx, input).with(kind.too_long));
            Ok(Source::Model(Box::new(policy), questions::of_model(kind, cx, name, queries)?))
        }
    }
}

/// Lets the candidates answer, and scores the answers of those whose weights are here.
fn answer(
    kind: &Evaluate,
    cx: &mut Cx<'_>,
    queries: &[Query],
    sources: &IndexMap<String, Source>,
    compared: usize,
) -> Result<IndexMap<String, Candidate>, NodeError> {
    let size = queries.first().map_or(0, |query| query.constitutions.len());
    let measured = match &sources[&kind.against] {
        Source::Model(policy, _) => Some(policy),
        _ => None,
    };
    let asked = queries.len() * size;
    let work = |(name, source): (&String, &Source)| match source {
        Source::Model(..) => {
            let kl = if *name != kind.against && measured.is_some() { asked } else { 0 };
            asked + asked * size + kl
        }
        Source::Endpoint(_) => queries.len() * compared,
        Source::Imported(_) => 0,
    };
    let total = sources.iter().map(work).sum();
    let mut work = Work::new(cx, "responses and log-probs", total);
    let mut candidates = IndexMap::new();
    for (name, source) in sources {
        let candidate = match source {
            Source::Imported(answers) => Candidate { answers: answers.clone(), ..Candidate::default() },
            Source::Endpoint(speaker) => {
                let says = questions::of_endpoint(kind, queries, compared)?;
                let answers = work.speak(&mut speaker.borrow_mut(), &speaking(kind), &says)?;
                let reuse = answers.reuse(compared);
                let answers = answers.values.into_iter().map(Said::of).collect();
                Candidate { answers, reuse, ..Candidate::default() }
            }
            Source::Model(policy, questions) => {
                let policy = &mut *policy.borrow_mut();
                let answers = work.sample(policy, &settings(kind), &questions.asks)?;
                let reuse = answers.reuse(size);
                let shape = kind.shape(questions.in_chat);
                let said = |(prefix, answer): (&String, &_)| Said::part(shape, prefix, answer);
                let mut answers: Vec<Said> = questions.prefixes.iter().zip(&answers.values).map(said).collect();
                let pairs =
                    cells(queries, &questions.prompts, &answers, Scoring { eos: kind.score_eos, join: kind.join });
                let own = responses::diagonal(&pairs, size);
                let cells = work.logprobs(policy, &pairs)?.values;
                if !questions.in_chat && (kind.prefix.is_some() || kind.after.is_some()) {
                    // With what it was made to begin with, without the reasoning.
                    let own = cells.chunks(size * size).flat_map(|cells| cells.iter().step_by(size + 1));
                    answers.iter_mut().zip(own).for_each(|(said, own)| said.tokens = Some(own.tokens));
                }
                let mut kl = Vec::new();
                if *name != kind.against {
                    if let Some(against) = measured {
                        kl = work.kl(policy, &mut against.borrow_mut(), &own)?.values;
                    }
                    // Only the model that KL is measured from is needed again.
                    policy.unload();
                }
                Candidate { answers, reuse, cells, kl, ..Candidate::default() }
            }
        };
        candidates.insert(name.clone(), candidate);
    }
    Ok(candidates)
}

/// What the calls of candidates that are endpoints came to, named after them.
fn calls(sources: &IndexMap<String, Source>) -> Map<String, Value> {
    let mut calls = Map::new();
    for (name, source) in sources {
        if let Source::Endpoint(speaker) = source {
            let own = speaker.borrow().metrics("");
            calls.extend(own.into_iter().map(|(figure, value)| (format!("{figure}.{name}"), value)));
        }
    }
    calls
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

fn speaking(kind: &Evaluate) -> SpeakSettings {
    SpeakSettings {
        max_new_tokens: kind.max_new_tokens,
        temperature: kind.temperature,
        top_p: kind.top_p,
        stop: kind.stop.clone(),
    }
}

/// Marks the compared responses. The judge gets texts only: it does not know whose they are.
fn mark(
    judge: &mut RuleJudge<'_>,
    queries: &[Query],
    candidate: &mut Candidate,
    compared: usize,
) -> Result<(), NodeError> {
    let mut marks = Vec::with_capacity(queries.len() * compared);
    for (at, query) in queries.iter().enumerate() {
        let fields = query::fields(&query.row);
        let answers = candidate.answers_to(at, queries.len());
        for (constitution, answer) in query.constitutions.iter().zip(answers).take(compared) {
            marks.push(judge.mark(&query.id, &fields, constitution, &answer.text)?);
        }
    }
    candidate.marks = marks;
    Ok(())
}

/// The C×C cells of every query, see [`responses::cells`].
fn cells(queries: &[Query], prompts: &[String], answers: &[Said], scoring: Scoring) -> Vec<Pair> {
    let size = answers.len() / queries.len();
    let each = queries.iter().zip(prompts.chunks(size)).zip(answers.chunks(size));
    each.flat_map(|((query, prompts), answers)| {
        let answers: Vec<_> = answers.iter().map(|answer| (answer.text.as_str(), answer.finish)).collect();
        responses::cells(&query.id, prompts, &answers, scoring)
    })
    .collect()
}
