//! The passes of a step: from examples to the sums that the update is made of.

use std::ops::Range;

use super::super::cpu::Keep;
use super::super::loss::Contrast;
use super::super::{LmError, Model, Sequence};
use super::batch::{examples_in_runs, sequences_in_runs};
use super::gradients::Gradients;
use super::objective::{Preferences, Totals, Verdict};
use super::pass::Pass;
use super::together::Work;
use super::{Example, KlOver, Trainer};

/// What the passes of a step have brought so far.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    pub(super) gradients: Gradients,
    pub(super) objective: f64,
    pub(super) figures: Vec<Contrast>,
    pub(super) diagonal: f64,
    pub(super) off_diagonal: f64,
    pub(super) preferences: Preferences,
    /// Sum of KL over the response tokens of all sequences.
    pub(super) kl: f64,
    /// The same over those of the diagonal.
    pub(super) kl_diagonal: f64,
}

impl Trainer {
    /// What some of a step's examples bring; `None` if their loss is not finite.
    pub(super) fn passes(&self, work: &Work<'_>, of: Range<usize>) -> Result<Option<Gathered>, LmError> {
        let (examples, indices) = (&work.examples[of.clone()], &work.indices[of]);
        let mut gathered = Gathered::default();
        for run in examples_in_runs(examples, self.room()) {
            let anchors = self.anchor.as_ref().map(|anchor| anchor.sums(&indices[run.clone()])).unwrap_or_default();
            if !self.gather(work.policy, &examples[run], &anchors, work.totals, work.keep, &mut gathered)? {
                return Ok(None);
            }
        }
        Ok(Some(gathered))
    }

    /// Adds some of a step's examples to what is gathered; `anchors` are their sums under the reference, where the
    /// objective asks for them. Returns false if their loss is not finite.
    fn gather(
        &self,
        policy: &Model,
        examples: &[&Example],
        anchors: &[f64],
        totals: Totals,
        keep: Keep,
        gathered: &mut Gathered,
    ) -> Result<bool, LmError> {
        let sequences: Vec<Sequence> = examples.iter().flat_map(|example| example.sequences.iter().cloned()).collect();
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.ids.len() - sequence.prompt).collect();
        let form = self.settings.form();
        let on_diagonal: Vec<bool> = examples
            .iter()
            .map(|example| example.sequences.len())
            .flat_map(|cells| (0..cells).map(move |cell| form.is_own(cell, cells)))
            .collect();
        let judge = |sums: &[f64]| -> Result<Option<Verdict>, LmError> {
            if !sums.iter().all(|sum| sum.is_finite()) {
                return Ok(None);
            }
            self.settings.objective.judge(form, examples, sums, anchors, &lengths, totals).map(Some)
        };
        let runs = sequences_in_runs(&sequences, self.room());
        let verdict = if runs.len() == 1 {
            let pass = Pass::new(policy, self.reference.as_ref(), &sequences, keep)?;
            let Some(verdict) = judge(&sums(&pass.logprobs, &lengths))? else { return Ok(false) };
            let rows = Rows { slopes: &verdict.slopes, lengths: &lengths, on_diagonal: &on_diagonal };
            self.backward(pass, rows, totals, gathered)?;
            verdict
        } else {
            let mut all = Vec::with_capacity(sequences.len());
            for run in &runs {
                let pass = Pass::new(policy, None, &sequences[run.clone()], Keep::Nothing)?;
                all.extend(sums(&pass.logprobs, &lengths[run.clone()]));
            }
            let Some(verdict) = judge(&all)? else { return Ok(false) };
            for run in runs {
                let pass = Pass::new(policy, self.reference.as_ref(), &sequences[run.clone()], keep)?;
                let rows = Rows {
                    slopes: &verdict.slopes[run.clone()],
                    lengths: &lengths[run.clone()],
                    on_diagonal: &on_diagonal[run],
                };
                self.backward(pass, rows, totals, gathered)?;
            }
            verdict
        };
        gathered.objective += verdict.loss;
        gathered.figures.extend(verdict.figures);
        gathered.diagonal += verdict.diagonal;
        gathered.off_diagonal += verdict.off_diagonal;
        gathered.preferences.add(verdict.preferences);
        Ok(true)
    }

    /// Adds the gradient of a pass: the slope of each sequence times its tokens' log-probabilities, and the KL term.
    fn backward(&self, pass: Pass, rows: Rows<'_>, totals: Totals, gathered: &mut Gathered) -> Result<(), LmError> {
        let by_token = |weight: &dyn Fn(usize) -> f64| -> Vec<f32> {
            let tokens = rows.lengths.iter().enumerate();
            tokens.flat_map(|(row, length)| std::iter::repeat_n(weight(row) as f32, *length)).collect()
        };
        let weight = self.settings.kl_weight;
        let mut to_kls = None;
        if let Some(kls) = &pass.kls {
            for (sum, on_diagonal) in sums(kls, rows.lengths).iter().zip(rows.on_diagonal) {
                gathered.kl += sum;
                gathered.kl_diagonal += if *on_diagonal { *sum } else { 0.0 };
            }
            to_kls = (weight > 0.0).then(|| match self.settings.kl_over {
                KlOver::Cells => by_token(&|_| weight / totals.responses as f64),
                KlOver::Diagonal => by_token(&|row| {
                    f64::from(u8::from(rows.on_diagonal[row])) * weight / totals.diagonal_responses as f64
                }),
            });
        }
        let to_logprobs = by_token(&|row| rows.slopes[row]);
        pass.backward(&to_logprobs, to_kls.as_deref(), self.policy.variables(), &mut gathered.gradients)
    }
}

/// What the loss has for each sequence of a pass.
struct Rows<'a> {
    slopes: &'a [f64],
    lengths: &'a [usize],
    on_diagonal: &'a [bool],
}

pub(super) fn sum(numbers: &[f32]) -> f64 {
    numbers.iter().map(|number| f64::from(*number)).sum()
}

/// The sum of each sequence's numbers.
pub(super) fn sums(numbers: &[f32], lengths: &[usize]) -> Vec<f64> {
    let mut rest = numbers;
    let of = |length: &usize| {
        let (first, after) = rest.split_at(*length);
        rest = after;
        sum(first)
    };
    lengths.iter().map(of).collect()
}
