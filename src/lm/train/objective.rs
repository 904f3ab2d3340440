//! What is minimised, on numbers alone: from the log-probabilities of a step's sequences to the loss and its slope.

use candle_core::{Device, Var};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::LmError;
use super::super::loss::preference::{Directions, dpo};
use super::super::loss::{Contrast, LengthNorm, Sides, contrast};
use super::Example;
use super::form::Form;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Cross-entropy of the C×CM log-probabilities to the identity; mean over the step's examples.
    Sami {
        /// Which contrasts count.
        sides: Sides,
        /// How a response's token log-probabilities become one number.
        length_norm: LengthNorm,
    },
    /// Each of a constitution's own responses is preferred to each of the others, see [`dpo`]; mean over the preferences
    /// of an example, and over the step's examples.
    Dpo {
        /// What implicit rewards are multiplied by, β: the less, the farther the policy may go from the reference.
        beta: f64,
        /// The chance that a preference is the wrong way round.
        label_smoothing: f64,
        /// How a response's token log-probabilities become one number.
        length_norm: LengthNorm,
        /// Whether examples have a row for each constitution, or one row, in which the first responses are preferred.
        directions: Directions,
    },
    /// Negative log-likelihood; mean over the step's response tokens.
    Likelihood,
}

/// Which sequences a KL term is taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum KlOver {
    /// All cells of the matrix.
    #[default]
    Cells,
    /// Each response under its own constitution.
    Diagonal,
}

/// What the sequences of a whole step count, which each of its passes is measured against.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Totals {
    /// Examples.
    pub(super) examples: usize,
    /// Sequences.
    pub(super) sequences: usize,
    /// Those with a response under its own constitution.
    pub(super) diagonal: usize,
    /// Tokens of prompts and responses.
    pub(super) tokens: usize,
    /// Response tokens.
    pub(super) responses: usize,
    /// Response tokens of the diagonal.
    pub(super) diagonal_responses: usize,
}

impl Totals {
    /// Of the examples of a step.
    pub(super) fn of<'a>(examples: impl Iterator<Item = &'a Example>, form: Form) -> Self {
        let mut totals = Self::default();
        for example in examples {
            totals.examples += 1;
            for (cell, sequence) in example.sequences.iter().enumerate() {
                let response = sequence.ids.len() - sequence.prompt;
                totals.sequences += 1;
                totals.tokens += sequence.ids.len();
                totals.responses += response;
                if form.is_own(cell, example.sequences.len()) {
                    totals.diagonal += 1;
                    totals.diagonal_responses += response;
                }
            }
        }
        totals
    }
}

/// What some of a step's examples add to it.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Their part of the loss, nats.
    pub(super) loss: f64,
    /// The slope of the loss against the log-probability of each sequence's response tokens, all alike.
    pub(super) slopes: Vec<f64>,
    /// The figures of each matrix.
    pub(super) figures: Vec<Contrast>,
    /// Sum over cells on the diagonal of their mean log-probability a token, nats.
    pub(super) diagonal: f64,
    /// The same over the other cells.
    pub(super) off_diagonal: f64,
    /// With [`Objective::Dpo`].
    pub(super) preferences: Preferences,
}

/// Sums over preferences.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Preferences {
    /// How many there are.
    pub(super) count: usize,
    /// Implicit rewards of the responses that are preferred, nats times β.
    pub(super) chosen: f64,
    /// Those of the others.
    pub(super) rejected: f64,
    /// Preferences that the rewards agree with; equal ones count half.
    pub(super) right: f64,
}

impl Preferences {
    /// Adds the sums over other preferences.
    pub(super) fn add(&mut self, others: Self) {
        self.count += others.count;
        self.chosen += others.chosen;
        self.rejected += others.rejected;
        self.right += others.right;
    }
}

impl Objective {
    /// Whether log-probabilities of a reference are part of it.
    pub(super) fn is_anchored(self) -> bool {
        matches!(self, Self::Dpo { .. })
    }

    /// The form of its examples, with `each` responses to a constitution.
    pub(super) fn form(self, each: usize) -> Form {
        match self {
            Self::Likelihood => Form::Alone,
            Self::Dpo { directions: Directions::First, .. } => Form::Row { each },
            Self::Dpo { .. } | Self::Sami { .. } => Form::Square { each },
        }
    }

    /// Judges examples by the log-probabilities of their sequences: `sums` in nats and `lengths` in tokens, example after
    /// example; `anchors` are the sums under the reference, where the objective [is anchored](Self::is_anchored).
    ///
    /// The slope of the SAMI loss comes from candle's backward pass through [`contrast`] on the matrices alone; it is
    /// exact because the loss knows the model through these numbers only.
    pub(super) fn judge(
        self,
        form: Form,
        examples: &[&Example],
        sums: &[f64],
        anchors: &[f64],
        lengths: &[usize],
        step: Totals,
    ) -> Result<Verdict, LmError> {
        let mut verdict = Verdict::default();
        let mut start = 0;
        for alike in examples.chunk_by(|one, other| one.sequences.len() == other.sequences.len()) {
            let cells = alike[0].sequences.len();
            let range = start..start + alike.len() * cells;
            start = range.end;
            let anchors = anchors.get(range.clone()).unwrap_or_default();
            let (sums, lengths) = (&sums[range.clone()], &lengths[range]);
            for (index, (sum, length)) in sums.iter().zip(lengths).enumerate() {
                let own = form.is_own(index % cells, cells);
                *(if own { &mut verdict.diagonal } else { &mut verdict.off_diagonal }) += sum / *length as f64;
            }
            match self {
                Self::Likelihood => {
                    let slope = -1.0 / step.responses as f64;
                    verdict.loss += slope * sums.iter().sum::<f64>();
                    verdict.slopes.extend(std::iter::repeat_n(slope, sums.len()));
                }
                Self::Sami { sides, length_norm } => {
                    let weights: Vec<f64> = lengths.iter().map(|length| length_norm.weight(*length)).collect();
                    let scores: Vec<f64> = sums.iter().zip(&weights).map(|(sum, weight)| sum * weight).collect();
                    for (scores, sums) in scores.chunks(cells).zip(sums.chunks(cells)) {
                        verdict.figures.push(Contrast::with(scores, sums, form.each())?);
                    }
                    let count = form.rows(cells).unwrap_or(1);
                    let matrix = Var::from_vec(scores, (alike.len(), count, cells / count), &Device::Cpu)?;
                    let share = alike.len() as f64 / step.examples as f64;
                    let loss = (contrast(&matrix, sides)? * share)?;
                    let slopes = loss.backward()?.remove(&matrix);
                    let slopes = slopes.ok_or(LmError::NoGradient { name: "matrix".to_owned() })?;
                    let slopes: Vec<f64> = slopes.flatten_all()?.to_vec1()?;
                    verdict.loss += loss.to_scalar::<f64>()?;
                    verdict.slopes.extend(slopes.iter().zip(&weights).map(|(slope, weight)| slope * weight));
                }
                Self::Dpo { beta, label_smoothing, length_norm, .. } => {
                    let weights: Vec<f64> = lengths.iter().map(|length| beta * length_norm.weight(*length)).collect();
                    let rewards: Vec<f64> = sums
                        .iter()
                        .zip(anchors)
                        .zip(&weights)
                        .map(|((sum, anchor), weight)| weight * (sum - anchor))
                        .collect();
                    for ((rewards, weights), sums) in
                        rewards.chunks(cells).zip(weights.chunks(cells)).zip(sums.chunks(cells))
                    {
                        if let Form::Square { each } = form {
                            verdict.figures.push(Contrast::with(sums, sums, each)?);
                        }
                        let preferred = prefer(form, rewards, label_smoothing);
                        let share = 1.0 / step.examples as f64;
                        verdict.loss += share * preferred.loss;
                        verdict
                            .slopes
                            .extend(preferred.slopes.iter().zip(weights).map(|(slope, weight)| share * slope * weight));
                        verdict.preferences.add(preferred.sums);
                    }
                }
            }
        }
        Ok(verdict)
    }
}

/// What the preferences of one example come to.
struct Preferred {
    /// Mean over them.
    loss: f64,
    /// Its slope against each reward.
    slopes: Vec<f64>,
    sums: Preferences,
}

/// Prefers each row's own responses to the row's others, by their implicit rewards.
fn prefer(form: Form, rewards: &[f64], label_smoothing: f64) -> Preferred {
    let rows = form.rows(rewards.len()).unwrap_or(1);
    let columns = rewards.len() / rows;
    let share = 1.0 / (rows * form.each() * (columns - form.each())) as f64;
    let mut preferred = Preferred { loss: 0.0, slopes: vec![0.0; rewards.len()], sums: Preferences::default() };
    for row in 0..rows {
        let cells = row * columns..(row + 1) * columns;
        let (own, others): (Vec<usize>, Vec<usize>) = cells.partition(|cell| form.is_own(*cell, rewards.len()));
        for (own, other) in own.iter().flat_map(|own| others.iter().map(move |other| (*own, *other))) {
            let margin = rewards[own] - rewards[other];
            let (loss, slope) = dpo(margin, label_smoothing);
            preferred.loss += share * loss;
            preferred.slopes[own] += share * slope;
            preferred.slopes[other] -= share * slope;
            preferred.sums.add(Preferences {
                count: 1,
                chosen: rewards[own],
                rejected: rewards[other],
                right: if margin == 0.0 { 0.5 } else { f64::from(u8::from(margin > 0.0)) },
            });
        }
    }
    preferred
}

#[cfg(test)]
mod tests {
    use super::super::super::Sequence;
    use super::*;

    fn example(lengths: &[usize]) -> Example {
        let sequence = |length: &usize| Sequence { ids: vec![1; 3 + length], prompt: 3 };
        Example { id: "x".to_owned(), sequences: lengths.iter().map(sequence).collect() }
    }

    fn judge(objective: Objective, examples: &[&Example], sums: &[f64]) -> Verdict {
        judge_each(objective, 1, examples, sums)
    }

    /// With `each` responses to a constitution.
    fn judge_each(objective: Objective, each: usize, examples: &[&Example], sums: &[f64]) -> Verdict {
        let lengths: Vec<usize> =
            examples.iter().flat_map(|one| &one.sequences).map(|one| one.ids.len() - one.prompt).collect();
        let form = objective.form(each);
        let anchors: Vec<f64> = (0..sums.len()).map(|cell| -5.5 - (cell as f64 * 0.9).cos()).collect();
        let totals = Totals::of(examples.iter().copied(), form);
        objective.judge(form, examples, sums, &anchors, &lengths, totals).expect("judges")
    }

    fn dpo_of(length_norm: LengthNorm, directions: Directions) -> Objective {
        Objective::Dpo { beta: 0.3, label_smoothing: 0.05, length_norm, directions }
    }

    #[test]
    fn slopes_are_those_of_finite_differences() {
        let (two, three) = (example(&[4, 6, 4, 6]), example(&[2, 3, 5, 2, 3, 5, 2, 3, 5]));
        let examples = [&two, &two, &three];
        let sums: Vec<f64> = (0..17).map(|cell| -5.0 - (f64::from(cell) * 1.7).sin() * 2.0).collect();
        for objective in [
            Objective::Likelihood,
            Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean },
            Objective::Sami { sides: Sides::Row, length_norm: LengthNorm::Sum },
            Objective::Sami { sides: Sides::Column, length_norm: LengthNorm::Mean },
            dpo_of(LengthNorm::Sum, Directions::Both),
            dpo_of(LengthNorm::Mean, Directions::Both),
            dpo_of(LengthNorm::Sum, Directions::First),
        ] {
            assert_slopes(objective, 1, &examples, &sums);
        }
        let several = example(&[4, 6, 2, 3, 4, 6, 2, 3]);
        for objective in [
            Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean },
            dpo_of(LengthNorm::Sum, Directions::Both),
            dpo_of(LengthNorm::Sum, Directions::First),
        ] {
            assert_slopes(objective, 2, &[&several, &several], &sums[..16]);
        }
    }

    fn assert_slopes(objective: Objective, each: usize, examples: &[&Example], sums: &[f64]) {
        let verdict = judge_each(objective, each, examples, sums);
        assert_eq!(verdict.slopes.len(), sums.len());
        for (cell, slope) in verdict.slopes.iter().enumerate() {
            let moved = |by: f64| {
                let mut sums = sums.to_vec();
                sums[cell] += by;
                judge_each(objective, each, examples, &sums).loss
            };
            let wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((slope - wanted).abs() < 1e-9, "{objective:?}, cell {cell}: {slope} is not {wanted}");
        }
    }

    #[test]
    fn dpo_by_pytorch() {
        let objective =
            |directions| Objective::Dpo { beta: 0.1, label_smoothing: 0.0, length_norm: LengthNorm::Sum, directions };
        let of = |directions, cells: usize| {
            let one = example(&[4, 6, 4, 6][..cells]);
            let (objective, examples) = (objective(directions), [&one]);
            let form = objective.form(1);
            let totals = Totals::of(examples.into_iter(), form);
            let (sums, anchors) = ([-40.0, -75.0, -46.0, -70.0], [-42.0, -70.0, -44.0, -71.0]);
            let (sums, anchors) = (&sums[..cells], &anchors[..cells]);
            objective.judge(form, &examples, sums, anchors, &[4, 6, 4, 6][..cells], totals).expect("judges")
        };
        let both = of(Directions::Both, 4);
        assert!((both.loss - 0.478_770_646_676_992_5).abs() < 1e-12, "{both:?}");
        let wanted = [-0.016_590_611_391_591_7, 0.016_590_611_391_591_7, 0.021_277_874_159_417, -0.021_277_874_159_417];
        assert!(both.slopes.iter().zip(wanted).all(|(slope, wanted)| (slope - wanted).abs() < 1e-12), "{both:?}");
        let preferences = both.preferences;
        assert_eq!((preferences.count, preferences.right), (2, 2.0));
        assert!((preferences.chosen - preferences.rejected - 1.0).abs() < 1e-12, "margins of 0.7 and 0.3");
        assert_eq!(both.figures.len(), 1);
        let first = of(Directions::First, 2);
        assert!((first.loss - (1.0 + (-0.7f64).exp()).ln()).abs() < 1e-12, "{first:?}");
        assert!(first.figures.is_empty() && first.preferences.count == 1);
    }

    #[test]
    fn likelihood_is_a_mean_over_tokens() {
        let (short, long) = (example(&[2]), example(&[6]));
        let verdict = judge(Objective::Likelihood, &[&short, &long], &[-2.0, -12.0]);
        assert!((verdict.loss - 14.0 / 8.0).abs() < 1e-12);
        assert!((verdict.diagonal - (-1.0 - 2.0)).abs() < 1e-12);
        assert!(verdict.figures.is_empty());
    }

    #[test]
    fn sami_is_a_mean_over_examples_and_parts_of_a_step_add_up_to_it() {
        let objective = Objective::Sami { sides: Sides::Both, length_norm: LengthNorm::Mean };
        let (one, other) = (example(&[4, 6, 4, 6]), example(&[3, 2, 3, 2]));
        let sums = [-2.0, -3.6, -2.32, -3.3, -1.2, -2.4, -2.7, -1.4];
        let whole = judge(objective, &[&one, &other], &sums);
        let form = objective.form(1);
        let totals = Totals::of([&one, &other].into_iter(), form);
        let part = |example, sums, lengths| objective.judge(form, &[example], sums, &[], lengths, totals);
        let first = part(&one, &sums[..4], &[4, 6, 4, 6]).expect("judges");
        let second = part(&other, &sums[4..], &[3, 2, 3, 2]).expect("judges");
        assert!((whole.loss - first.loss - second.loss).abs() < 1e-12);
        let parts: Vec<f64> = first.slopes.iter().chain(&second.slopes).copied().collect();
        assert!(whole.slopes.iter().zip(&parts).all(|(one, other)| (one - other).abs() < 1e-12));
        // Means per token of the two matrices: the first two rows of the golden vectors of `loss`.
        assert!((whole.loss - f64::midpoint(0.661_266, 0.479_348)).abs() < 1e-6, "{}", whole.loss);
        assert_eq!(whole.figures.len(), 2);
        assert!((whole.diagonal - (-0.5 - 0.55 - 0.4 - 0.7)).abs() < 1e-12);
        assert!((whole.off_diagonal - (-0.6 - 0.58 - 1.2 - 0.9)).abs() < 1e-12);
    }
}
