//! What is minimised, on numbers alone: from the log-probabilities of a step's sequences to the loss and its slope.

use candle_core::{Device, Var};
use serde::{Deserialize, Serialize};

use super::super::LmError;
use super::super::loss::{Contrast, LengthNorm, Sides, contrast, side};
use super::Example;

/// What is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// Cross-entropy of the C×C log-probabilities to the identity; mean over the step's examples.
    Sami {
        /// Which contrasts count.
        sides: Sides,
        /// How a response's token log-probabilities become one number.
        length_norm: LengthNorm,
    },
    /// Negative log-likelihood; mean over the step's response tokens.
    Likelihood,
}

/// Which sequences a KL term is taken over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KlOver {
    /// All cells of the matrix.
    #[default]
    Cells,
    /// Each response under its own constitution.
    Diagonal,
}

/// Whether a sequence holds a response under its own constitution: on the diagonal, or alone.
pub(super) fn is_diagonal(cell: usize, cells: usize) -> bool {
    cell.is_multiple_of(side(cells).map_or(1, |count| count + 1))
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
    pub(super) fn of<'a>(examples: impl Iterator<Item = &'a Example>) -> Self {
        let mut totals = Self::default();
        for example in examples {
            totals.examples += 1;
            for (cell, sequence) in example.sequences.iter().enumerate() {
                let response = sequence.ids.len() - sequence.prompt;
                totals.sequences += 1;
                totals.tokens += sequence.ids.len();
                totals.responses += response;
                if is_diagonal(cell, example.sequences.len()) {
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
}

impl Objective {
    /// Judges examples by the log-probabilities of their sequences: `sums` in nats and `lengths` in tokens, example after
    /// example.
    ///
    /// The slope of the SAMI loss comes from candle's backward pass through [`contrast`] on the matrices alone; it is
    /// exact because the loss knows the model through these numbers only.
    pub(super) fn judge(
        self,
        examples: &[&Example],
        sums: &[f64],
        lengths: &[usize],
        step: Totals,
    ) -> Result<Verdict, LmError> {
        let mut verdict = Verdict::default();
        let mut start = 0;
        for alike in examples.chunk_by(|one, other| one.sequences.len() == other.sequences.len()) {
            let cells = alike[0].sequences.len();
            let range = start..start + alike.len() * cells;
            start = range.end;
            let (sums, lengths) = (&sums[range.clone()], &lengths[range]);
            for (index, (sum, length)) in sums.iter().zip(lengths).enumerate() {
                let diagonal = is_diagonal(index % cells, cells);
                *(if diagonal { &mut verdict.diagonal } else { &mut verdict.off_diagonal }) += sum / *length as f64;
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
                        verdict.figures.push(Contrast::new(scores, sums)?);
                    }
                    let count = side(cells).unwrap_or(1);
                    let matrix = Var::from_vec(scores, (alike.len(), count, count), &Device::Cpu)?;
                    let share = alike.len() as f64 / step.examples as f64;
                    let loss = (contrast(&matrix, sides)? * share)?;
                    let slopes = loss.backward()?.remove(&matrix);
                    let slopes = slopes.ok_or(LmError::NoGradient { name: "matrix".to_owned() })?;
                    let slopes: Vec<f64> = slopes.flatten_all()?.to_vec1()?;
                    verdict.loss += loss.to_scalar::<f64>()?;
                    verdict.slopes.extend(slopes.iter().zip(&weights).map(|(slope, weight)| slope * weight));
                }
            }
        }
        Ok(verdict)
    }
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
        let lengths: Vec<usize> =
            examples.iter().flat_map(|one| &one.sequences).map(|one| one.ids.len() - one.prompt).collect();
        let totals = Totals::of(examples.iter().copied());
        objective.judge(examples, sums, &lengths, totals).expect("judges")
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
        ] {
            let verdict = judge(objective, &examples, &sums);
            assert_eq!(verdict.slopes.len(), 17);
            for (cell, slope) in verdict.slopes.iter().enumerate() {
                let moved = |by: f64| {
                    let mut sums = sums.clone();
                    sums[cell] += by;
                    judge(objective, &examples, &sums).loss
                };
                let wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope - wanted).abs() < 1e-9, "{objective:?}, cell {cell}: {slope} is not {wanted}");
            }
        }
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
        let totals = Totals::of([&one, &other].into_iter());
        let first = objective.judge(&[&one], &sums[..4], &[4, 6, 4, 6], totals).expect("judges");
        let second = objective.judge(&[&other], &sums[4..], &[3, 2, 3, 2], totals).expect("judges");
        assert!((whole.loss - first.loss - second.loss).abs() < 1e-12);
        let parts: Vec<f64> = first.slopes.iter().chain(&second.slopes).copied().collect();
        assert!(whole.slopes.iter().zip(&parts).all(|(one, other)| (one - other).abs() < 1e-12));
        // Means per token of the two matrices: the first two rows of the golden vectors of `loss`.
        assert!((whole.loss - f64::midpoint(0.661_266, 0.479_348)).abs() < 1e-6, "{}", whole.loss);
        assert_eq!(whole.figures.len(), 2);
        assert!((whole.diagonal - (-0.5 - 0.55 - 0.4 - 0.7)).abs() < 1e-12);
        assert!((whole.off_diagonal - (-0.6 - 0.58 - 1.2 - 0.9)).abs() < 1e-12);
    }

    #[test]
    fn diagonal_cells() {
        let of = |cells| (0..cells).filter(|cell| is_diagonal(*cell, cells)).collect::<Vec<_>>();
        assert_eq!((of(1), of(4), of(9)), (vec![0], vec![0, 3], vec![0, 4, 8]));
    }
}
