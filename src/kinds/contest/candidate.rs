//! A candidate's part in a contest.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::kinds::NodeError;
use crate::kinds::figures::ContrastFigures;
use crate::kinds::judge::rules::Mark;
use crate::kinds::judge::verdict::Verdict;
use crate::kinds::policy::{Answer, Reuse, Sum, per_token};
use crate::kinds::shape::{Shape, Shaped};
use crate::lm::Finish;

/// A response as the contest keeps it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(in crate::kinds) struct Said {
    /// The text, without white space around it.
    pub(in crate::kinds) text: String,
    /// Its number of tokens, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(in crate::kinds) tokens: Option<usize>,
    /// Why it ended.
    pub(in crate::kinds) finish: Finish,
}

/// What a candidate said and how it did. Everything goes query by query, constitution by constitution.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    /// A response to each constitution, or to each that responses are compared under.
    pub(super) answers: Vec<Said>,
    /// Queries it answered, and those of them whose responses were all remembered.
    pub(super) reuse: Reuse,
    /// Marks of the compared responses by the rules, if there are any.
    pub(super) marks: Vec<Mark>,
    /// Verdicts on the compared responses by a model, if one judges; none for the one that all are held against.
    pub(super) verdicts: Vec<Verdict>,
    /// The C×C cells of each query under the candidate itself; none of one whose weights are not here.
    pub(super) cells: Vec<Sum>,
    /// KL from the candidate `against` on each response; none for that one itself.
    pub(super) kl: Vec<Sum>,
}

impl Said {
    /// Of a sampled response.
    pub(super) fn of(answer: Answer) -> Self {
        Self { text: answer.text.trim().to_owned(), tokens: Some(answer.tokens), finish: answer.finish }
    }

    /// Of the part of an answer that is the response, the text that it begins with put back.
    pub(super) fn part(shape: Shape<'_>, prefix: &str, answer: &Answer) -> Self {
        let Shaped { text, finish, .. } = shape.of(prefix, answer);
        Self { text, tokens: Some(answer.tokens), finish }
    }

    /// How long it is for figures that take length out: in characters, which mean the same for models of any tokenizer.
    fn length(&self) -> f64 {
        self.text.chars().count() as f64
    }
}

impl Candidate {
    /// Responses to a query.
    pub(super) fn answers_to(&self, query: usize, queries: usize) -> &[Said] {
        let held = self.answers.len() / queries;
        &self.answers[query * held..(query + 1) * held]
    }

    /// The compared responses, query by query.
    pub(super) fn compared(&self, queries: usize, compared: usize) -> impl Iterator<Item = &Said> {
        (0..queries).flat_map(move |query| &self.answers_to(query, queries)[..compared])
    }

    /// What the candidate won in each comparison: as the model judged, or else as the marks say.
    pub(super) fn wins(&self, against: &Self) -> Vec<f64> {
        if !self.verdicts.is_empty() {
            return self.verdicts.iter().map(|verdict| verdict.win).collect();
        }
        self.marks.iter().zip(&against.marks).map(|(own, other)| own.against(other)).collect()
    }

    /// How much longer each compared response is than that of the other.
    pub(super) fn longer(&self, against: &Self, queries: usize, compared: usize) -> Vec<f64> {
        let pairs = self.compared(queries, compared).zip(against.compared(queries, compared));
        pairs.map(|(own, other)| own.length() - other.length()).collect()
    }

    /// The figures that need no other candidate, `suffix` after their names.
    pub(super) fn metrics(
        &self,
        suffix: &str,
        queries: usize,
        compared: usize,
    ) -> Result<Map<String, Value>, NodeError> {
        let size = self.answers.len() / queries;
        let mut figures = ContrastFigures::default();
        self.cells.chunks(size * size).try_for_each(|cells| figures.add(cells))?;
        let mut metrics = figures.metrics(suffix);
        let share = |part: usize, whole: usize| json!(part as f64 / whole.max(1) as f64);
        if !self.marks.is_empty() {
            let followed: usize = self.marks.iter().map(|mark| mark.followed).sum();
            let principles: usize = self.marks.iter().map(|mark| mark.principles).sum();
            let well_formed = self.marks.iter().filter(|mark| mark.well_formed).count();
            metrics.insert(format!("adherence{suffix}"), share(followed, principles));
            metrics.insert(format!("well_formed{suffix}"), share(well_formed, self.marks.len()));
        }
        let tokens: Option<Vec<usize>> = self.compared(queries, compared).map(|said| said.tokens).collect();
        match tokens {
            Some(tokens) => metrics.insert(format!("mean_length{suffix}"), share(tokens.iter().sum(), tokens.len())),
            None => metrics.remove(&format!("mean_length{suffix}")),
        };
        let characters: f64 = self.compared(queries, compared).map(Said::length).sum();
        metrics.insert(format!("mean_characters{suffix}"), json!(characters / (queries * compared) as f64));
        if !self.kl.is_empty() {
            metrics.insert(format!("kl{suffix}"), json!(per_token(&self.kl)));
        }
        Ok(metrics)
    }
}
