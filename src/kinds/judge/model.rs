//! The judge that is a model: by what it says, or by the log-probabilities of the two labels.

use serde_json::{Map, Value};

use super::prompt::{JudgePrompt, Shown};
use super::verdict::{Ruling, Verdict};
use crate::digest::Hasher;
use crate::kinds::evaluate::{By, Evaluate, Orders};
use crate::kinds::policy::{Pair, Reuse, Work};
use crate::kinds::query::Query;
use crate::kinds::speaker::{Say, SpeakSettings, Speaker};
use crate::kinds::{Cx, NodeError};
use crate::lm::Join;

/// Two responses to be compared, that of a candidate and that of the one that all are held against.
#[derive(Debug, Clone, Copy)]
pub(in crate::kinds) struct Comparison<'a> {
    /// The query.
    pub(in crate::kinds) query: &'a Query,
    /// Number of the constitution among the query's.
    pub(in crate::kinds) place: usize,
    /// The candidate's response.
    pub(in crate::kinds) own: &'a str,
    /// The other response.
    pub(in crate::kinds) other: &'a str,
}

/// Counts of what was asked, over all comparisons.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::kinds) struct Counts {
    /// Comparisons of identical responses, which the judge was not asked about.
    pub(in crate::kinds) identical: usize,
    /// Orders of comparisons that were judged.
    pub(in crate::kinds) rulings: usize,
    /// Those of them for which the judge was asked once more, and how often in all.
    pub(in crate::kinds) asked_again: usize,
    /// Those of which there is no usable verdict.
    pub(in crate::kinds) unparsed: usize,
    /// Comparisons of which the two orders came to different results.
    pub(in crate::kinds) split: usize,
    /// Usable verdicts for the response that was shown first.
    pub(in crate::kinds) for_first: usize,
}

/// A question to the judge.
struct Question {
    /// Number of the comparison.
    at: usize,
    /// Whether the candidate's response is shown first.
    first: bool,
    say: Say,
}

/// A model that judges.
pub(in crate::kinds) struct ModelJudge<'a> {
    kind: &'a Evaluate,
    speaker: Speaker,
    prompt: JudgePrompt,
    in_words: bool,
    reuse: Reuse,
}

impl<'a> ModelJudge<'a> {
    /// The judge of the field `judge`. Nothing is loaded or called yet.
    pub(in crate::kinds) fn open(kind: &'a Evaluate, cx: &Cx<'_>) -> Result<Self, NodeError> {
        let speaker = Speaker::open(cx, "judge")?;
        let in_words = match kind.judge_by {
            None => speaker.is_endpoint(),
            Some(By::Words) => true,
            Some(By::Labels) if speaker.is_endpoint() => {
                return Err(NodeError::with_help(
                    "an endpoint does not tell the log-probabilities of labels",
                    "write `judge_by = \"words\"`, or give a judge with weights",
                ));
            }
            Some(By::Labels) => false,
        };
        let (prompt, system) = (kind.judge_prompt.as_deref(), kind.judge_system.as_deref());
        let prompt = JudgePrompt::new(prompt, system, &kind.judge_labels, in_words)?;
        Ok(Self { kind, speaker, prompt, in_words, reuse: Reuse::default() })
    }

    /// Decides comparisons, in their order.
    pub(in crate::kinds) fn judge(
        &mut self,
        cx: &mut Cx<'_>,
        comparisons: &[Comparison<'_>],
    ) -> Result<(Vec<Verdict>, Counts), NodeError> {
        let mut questions = Vec::new();
        for (at, comparison) in comparisons.iter().enumerate() {
            if comparison.own != comparison.other {
                for first in self.orders(comparison) {
                    questions.push(Question { at, first, say: self.ask(comparison, first)? });
                }
            }
        }
        let mut counts = Counts { rulings: questions.len(), ..Counts::default() };
        let rulings = if self.in_words {
            self.by_words(cx, &mut questions, &mut counts)?
        } else {
            self.by_labels(cx, &questions)?
        };
        let mut grouped: Vec<Vec<Ruling>> = comparisons.iter().map(|_| Vec::new()).collect();
        for (question, ruling) in questions.iter().zip(rulings) {
            counts.unparsed += usize::from(!ruling.parsed);
            counts.for_first += usize::from(ruling.parsed && ruling.win == f64::from(u8::from(ruling.first)));
            grouped[question.at].push(ruling);
        }
        let verdict =
            |rulings: Vec<Ruling>| if rulings.is_empty() { Verdict::identical() } else { Verdict::of(rulings) };
        let verdicts: Vec<Verdict> = grouped.into_iter().map(verdict).collect();
        counts.identical = verdicts.iter().filter(|verdict| verdict.rulings.is_empty()).count();
        counts.split = verdicts.iter().filter(|verdict| verdict.is_split()).count();
        Ok((verdicts, counts))
    }

    /// What the calls of an endpoint came to; nothing of a judge with weights here.
    pub(in crate::kinds) fn metrics(&self) -> Map<String, Value> {
        self.speaker.metrics("judge.")
    }

    /// How many answers were asked of it, and how many were remembered.
    pub(in crate::kinds) fn reuse(&self) -> Reuse {
        self.reuse
    }

    /// In which orders a comparison is judged: whether the candidate's response is shown first.
    fn orders(&self, comparison: &Comparison<'_>) -> Vec<bool> {
        match self.kind.judge_orders {
            Orders::Both => vec![true, false],
            Orders::One => vec![self.hash("order", comparison).is_multiple_of(2)],
        }
    }

    fn ask(&self, comparison: &Comparison<'_>, first: bool) -> Result<Say, NodeError> {
        let query = comparison.query;
        let constitution = query.constitutions[comparison.place].shuffled(self.hash("judge", comparison));
        let (a, b) = if first { (comparison.own, comparison.other) } else { (comparison.other, comparison.own) };
        let shown = Shown { id: &query.id, row: &query.row, constitution: &constitution, a, b };
        let (system, user) = self.prompt.fill(&shown)?;
        Ok(Say { row: query.id.clone(), system, user, seed: self.kind.seed })
    }

    /// Depends on the seed, the query and the constitution only: all candidates are judged alike.
    fn hash(&self, what: &str, comparison: &Comparison<'_>) -> u64 {
        let mut hasher = Hasher::new();
        hasher.text(what).number(self.kind.seed).text(&comparison.query.id).number(comparison.place as u64).seed()
    }

    fn by_words(
        &mut self,
        cx: &mut Cx<'_>,
        questions: &mut [Question],
        counts: &mut Counts,
    ) -> Result<Vec<Ruling>, NodeError> {
        let settings = SpeakSettings {
            max_new_tokens: self.kind.judge_max_tokens,
            temperature: 0.0,
            top_p: 1.0,
            stop: Vec::new(),
        };
        let labels = &self.kind.judge_labels;
        let mut rulings: Vec<Option<Ruling>> = questions.iter().map(|_| None).collect();
        for times in 0..=self.kind.judge_retries {
            let open: Vec<usize> =
                (0..questions.len()).filter(|at| rulings[*at].as_ref().is_none_or(|ruling| !ruling.parsed)).collect();
            if open.is_empty() {
                break;
            }
            let say = |at: &usize| {
                let say = questions[*at].say.clone();
                if times == 0 { say } else { Say { user: self.prompt.again(&say.user, times), ..say } }
            };
            let says: Vec<Say> = open.iter().map(say).collect();
            if times > 0 {
                counts.asked_again += says.len();
            }
            let answers = Work::new(cx, "verdicts", says.len()).speak(&mut self.speaker, &settings, &says)?;
            self.reuse = self.reuse.and(answers.reuse(1));
            for (at, answer) in open.iter().zip(answers.values) {
                rulings[*at] = Some(Ruling::of_words(questions[*at].first, answer.text.trim(), labels));
            }
        }
        rulings
            .into_iter()
            .map(|ruling| ruling.ok_or_else(|| NodeError::failed("a comparison was not judged")))
            .collect()
    }

    fn by_labels(&mut self, cx: &mut Cx<'_>, questions: &[Question]) -> Result<Vec<Ruling>, NodeError> {
        let labels = &self.kind.judge_labels;
        let local = self.speaker.local().ok_or_else(|| NodeError::failed("the judge has no weights here"))?;
        let mut pairs = Vec::with_capacity(2 * questions.len());
        for Question { say, .. } in questions {
            let prompt = local.prompt(say)?;
            pairs.extend(labels.iter().map(|label| Pair {
                row: say.row.clone(),
                prompt: prompt.clone(),
                response: label.clone(),
                join: Join::Space,
                eos: false,
            }));
        }
        let sums = Work::new(cx, "verdicts", pairs.len()).logprobs(local.policy(), &pairs)?;
        self.reuse = self.reuse.and(sums.reuse(2));
        let ruling = |(question, sums): (&Question, &[crate::kinds::policy::Sum])| {
            Ruling::of_labels(question.first, [sums[0].nats, sums[1].nats])
        };
        Ok(questions.iter().zip(sums.values.chunks(2)).map(ruling).collect())
    }
}
