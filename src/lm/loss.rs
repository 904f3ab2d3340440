//! The SAMI objective on matrices of log-probabilities, and the figures read off them.
//!
//! Letters: Q queries, C constitutions of a query and as many responses. Rows are constitutions (k), columns are
//! responses (j); the diagonal holds each response under the constitution it was written for.

use candle_core::Tensor;
use candle_nn::ops::log_softmax;
use serde::{Deserialize, Serialize};

use super::LmError;

/// Which contrasts of the matrix count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sides {
    /// Both, with equal weight.
    #[default]
    Both,
    /// Over responses: a constitution must favour its own response.
    Row,
    /// Over constitutions: a response must be likeliest under its own constitution.
    Column,
}

/// How a response's token log-probabilities become one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LengthNorm {
    /// Their mean: nats per token.
    #[default]
    Mean,
    /// Their sum: nats.
    Sum,
}

impl LengthNorm {
    /// What a token's log-probability is multiplied by in a response of `tokens` tokens.
    pub fn weight(self, tokens: usize) -> f64 {
        match self {
            Self::Mean => 1.0 / tokens as f64,
            Self::Sum => 1.0,
        }
    }
}

/// Returns the cross-entropy of the matrices to the identity, nats, mean over queries; differentiable.
///
/// `matrix` (Q, C, C) float, `[q, k, j]` the score of response j under constitution k. The row side is
/// −(1/C) Σ_k log softmax_j ℓ[k,·] at j = k, the column side the same over k. ln C for a matrix that tells nothing;
/// more than ln C where pairs are the wrong way round.
///
/// Source: SAMI (Fränken et al., 2024), equations 1 and 2 as their trainer computes them, with one log-softmax.
pub fn contrast(matrix: &Tensor, sides: Sides) -> Result<Tensor, LmError> {
    let (queries, count, _) = matrix.dims3()?;
    let identity = Tensor::eye(count, matrix.dtype(), matrix.device())?; // (C, C)
    let side = |dim: usize| -> Result<Tensor, LmError> {
        let scores = log_softmax(matrix, dim)?.broadcast_mul(&identity)?; // (Q, C, C)
        Ok((scores.sum_all()? * (-1.0 / (queries * count) as f64))?)
    };
    match sides {
        Sides::Row => side(2),
        Sides::Column => side(1),
        Sides::Both => Ok(((side(2)? + side(1)?)? * 0.5)?),
    }
}

/// The figures of one query's matrix, or means of them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Contrast {
    /// Cross-entropy over responses, nats.
    pub loss_row: f64,
    /// Cross-entropy over constitutions, nats.
    pub loss_column: f64,
    /// InfoNCE lower bound on the mutual information of constitution and response, nats; at most ln C.
    pub bound: f64,
    /// Mean of S_jj − mean_k S_kj, nats: the authors' figure of mutual information, which has no ceiling.
    pub gap: f64,
    /// Share of constitutions whose own response scores highest; a tie of n counts 1/n.
    pub accuracy_row: f64,
    /// Share of responses that score highest under their own constitution; a tie of n counts 1/n.
    pub accuracy_column: f64,
}

impl Contrast {
    /// The figures of a matrix of summed log-probabilities, nats, C×C in row-major order.
    ///
    /// Errs if the matrix is not square, C is below 2, or a cell is not finite.
    pub fn of_sums(sums: &[f64]) -> Result<Self, LmError> {
        Self::new(sums, sums)
    }

    /// As [`Contrast::of_sums`], with losses and accuracies taken from `scores` (such as means per token) while the
    /// bound and the gap, which speak of whole responses, are taken from `sums`.
    pub fn new(scores: &[f64], sums: &[f64]) -> Result<Self, LmError> {
        let count = side(scores.len()).filter(|_| scores.len() == sums.len());
        let count = count.ok_or_else(|| LmError::Matrix {
            what: format!("has {} cells, it must be C×C with C of 2 or more", scores.len()),
        })?;
        if let Some(cell) = (0..sums.len()).find(|cell| !(scores[*cell].is_finite() && sums[*cell].is_finite())) {
            let (row, column) = (cell / count, cell % count);
            return Err(LmError::Matrix { what: format!("is not finite in row {row}, column {column}") });
        }
        let row = |of: &[f64], k: usize| -> Vec<f64> { of[k * count..(k + 1) * count].to_vec() };
        let column = |of: &[f64], j: usize| -> Vec<f64> { (0..count).map(|k| of[k * count + j]).collect() };
        let mean = |of: &dyn Fn(usize) -> f64| (0..count).map(of).sum::<f64>() / count as f64;
        Ok(Self {
            loss_row: mean(&|k| log_sum_exp(&row(scores, k)) - scores[k * count + k]),
            loss_column: mean(&|j| log_sum_exp(&column(scores, j)) - scores[j * count + j]),
            bound: mean(&|j| sums[j * count + j] - log_sum_exp(&column(sums, j))) + (count as f64).ln(),
            gap: mean(&|j| sums[j * count + j] - column(sums, j).iter().sum::<f64>() / count as f64),
            accuracy_row: mean(&|k| share_of_first(&row(scores, k), k)),
            accuracy_column: mean(&|j| share_of_first(&column(scores, j), j)),
        })
    }

    /// The mean of each figure; `None` of none.
    pub fn mean(of: &[Self]) -> Option<Self> {
        let mean = |figure: fn(&Self) -> f64| of.iter().map(figure).sum::<f64>() / of.len() as f64;
        (!of.is_empty()).then(|| Self {
            loss_row: mean(|one| one.loss_row),
            loss_column: mean(|one| one.loss_column),
            bound: mean(|one| one.bound),
            gap: mean(|one| one.gap),
            accuracy_row: mean(|one| one.accuracy_row),
            accuracy_column: mean(|one| one.accuracy_column),
        })
    }
}

/// C of a C×C matrix with that many cells, if there is one of 2 or more.
pub(super) fn side(cells: usize) -> Option<usize> {
    let count = cells.isqrt();
    (count >= 2 && count * count == cells).then_some(count)
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// 1 if the value at `index` is the largest, 1/n if it shares that with n − 1 others, else 0.
fn share_of_first(values: &[f64], index: usize) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if values[index] < largest {
        return 0.0;
    }
    1.0 / values.iter().filter(|value| **value == largest).count() as f64
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Loss and gradient of one matrix.
    fn graded(cells: &[f64], sides: Sides) -> (f64, Vec<f64>) {
        let count = side(cells.len()).expect("square");
        let matrix = Var::from_slice(cells, (1, count, count), &Device::Cpu).expect("fits");
        let loss = contrast(&matrix, sides).expect("computes");
        let gradients = loss.backward().expect("has a backward");
        let gradient = gradients.get(&matrix).expect("a gradient reaches the matrix");
        let gradient = gradient.flatten_all().and_then(|flat| flat.to_vec1()).expect("f64");
        (loss.to_scalar().expect("scalar"), gradient)
    }

    fn assert_near(found: &[f64], wanted: &[f64], tolerance: f64) {
        assert_eq!(found.len(), wanted.len());
        for (one, other) in found.iter().zip(wanted) {
            assert!((one - other).abs() <= tolerance, "{found:?} is not {wanted:?}");
        }
    }

    /// Matrix, `loss_row`, `loss_column`, loss, gradient of the loss.
    type Golden = (&'static [f64], f64, f64, f64, &'static [f64]);

    /// Computed apart from this code, in Python.
    const GOLDEN: [Golden; 3] = [
        (
            &[-0.50, -0.60, -0.58, -0.55],
            0.661_328,
            0.661_203,
            0.661_266,
            &[-0.238_758, 0.240_631, 0.243_128, -0.245_001],
        ),
        (&[-0.4, -1.2, -0.9, -0.7], 0.484_620, 0.474_077, 0.479_348, &[-0.171_892, 0.171_892, 0.206_927, -0.206_927]),
        (
            &[-1.0, -2.0, -3.0, -2.5, -0.5, -1.5, -3.0, -2.0, -0.25],
            0.342_823,
            0.325_254,
            0.334_038,
            &[-0.099_772, 0.066_502, 0.022_895, 0.042_380, -0.107_220, 0.076_148, 0.025_212, 0.049_114, -0.075_258],
        ),
    ];

    #[test]
    fn golden_losses_and_gradients() {
        for (matrix, row, column, both, gradient) in GOLDEN {
            assert_near(&[graded(matrix, Sides::Row).0], &[row], 5.1e-7);
            assert_near(&[graded(matrix, Sides::Column).0], &[column], 5.1e-7);
            let found = graded(matrix, Sides::Both);
            assert_near(&[found.0], &[both], 5.1e-7);
            assert_near(&found.1, gradient, 5.1e-7);
            let figures = Contrast::of_sums(matrix).expect("sound");
            assert_near(&[figures.loss_row, figures.loss_column], &[row, column], 5.1e-7);
        }
    }

    #[test]
    fn golden_bound_and_gap_of_summed_logprobs() {
        let figures = Contrast::of_sums(&[-40.0, -75.0, -46.0, -70.0]).expect("sound");
        assert_near(&[figures.gap, figures.bound], &[2.75, 0.688_552], 5e-7);
        assert!(figures.bound < 2f64.ln());
        // Row 0 prefers its own response, row 1 the other one; both columns are the right way round.
        assert_eq!((figures.accuracy_row, figures.accuracy_column), (0.5, 1.0));
    }

    #[test]
    fn gradient_is_that_of_finite_differences() {
        for sides in [Sides::Both, Sides::Row, Sides::Column] {
            for (matrix, ..) in GOLDEN {
                let (_, gradient) = graded(matrix, sides);
                let slopes: Vec<f64> = (0..matrix.len())
                    .map(|cell| {
                        let moved = |by: f64| {
                            let mut matrix = matrix.to_vec();
                            matrix[cell] += by;
                            graded(&matrix, sides).0
                        };
                        (moved(1e-5) - moved(-1e-5)) / 2e-5
                    })
                    .collect();
                assert_near(&gradient, &slopes, 1e-9);
            }
        }
    }

    #[test]
    fn uniform_matrix_costs_ln_c_and_pulls_no_row_or_column_as_a_whole() {
        for count in [2, 3, 4] {
            let (loss, gradient) = graded(&vec![-1.7; count * count], Sides::Both);
            assert_near(&[loss], &[(count as f64).ln()], 1e-12);
            for one in 0..count {
                assert_near(&[gradient[one * count..(one + 1) * count].iter().sum()], &[0.0], 1e-12);
                assert_near(&[gradient.iter().skip(one).step_by(count).sum()], &[0.0], 1e-12);
            }
            let figures = Contrast::of_sums(&vec![-1.7; count * count]).expect("sound");
            assert_near(&[figures.bound, figures.gap], &[0.0, 0.0], 1e-12);
            assert_near(&[figures.accuracy_row, figures.accuracy_column], &[1.0 / count as f64; 2], 1e-12);
        }
    }

    #[test]
    fn order_of_constitutions_and_a_constant_change_nothing() {
        let (matrix, ..) = GOLDEN[2];
        let permuted: Vec<f64> =
            [2, 0, 1].iter().flat_map(|k| [2, 0, 1].iter().map(move |j| matrix[k * 3 + j])).collect();
        let shifted: Vec<f64> = matrix.iter().map(|cell| cell - 30.0).collect();
        for sides in [Sides::Both, Sides::Row, Sides::Column] {
            let loss = graded(matrix, sides).0;
            assert_near(&[graded(&permuted, sides).0, graded(&shifted, sides).0], &[loss, loss], 1e-12);
        }
    }

    #[test]
    fn identical_responses_leave_the_row_side_still_and_pull_the_column_side_together() {
        // Columns are equal: the responses are the same text, so both cells of a row are one number and its gradient
        // is their sum.
        let matrix = [-0.4, -0.4, -0.9, -0.9];
        let by_constitution = |sides| {
            let (loss, gradient) = graded(&matrix, sides);
            (loss, [gradient[0] + gradient[1], gradient[2] + gradient[3]])
        };
        assert_near(&by_constitution(Sides::Row).1, &[0.0, 0.0], 1e-15);
        let (loss, [of_first_constitution, of_second_constitution]) = by_constitution(Sides::Column);
        assert_near(&[of_first_constitution], &[-of_second_constitution], 1e-12);
        // ½[sp(Δ) + sp(−Δ)] with Δ = ½: the likelier constitution is pushed down.
        let softplus = |x: f64| (1.0 + x.exp()).ln();
        assert_near(&[loss], &[0.5 * (softplus(0.5) + softplus(-0.5))], 1e-12);
        assert!(of_first_constitution > 0.0);
    }

    #[test]
    fn several_queries_are_averaged() {
        let (one, other) = (GOLDEN[0].0, GOLDEN[1].0);
        let both: Vec<f64> = one.iter().chain(other).copied().collect();
        let matrix = Tensor::from_vec(both, (2, 2, 2), &Device::Cpu).expect("fits");
        let loss: f64 = contrast(&matrix, Sides::Both).and_then(|loss| Ok(loss.to_scalar()?)).expect("computes");
        assert_near(&[loss], &[f64::midpoint(GOLDEN[0].3, GOLDEN[1].3)], 1e-6);
        let figures: Vec<_> = [one, other].map(|matrix| Contrast::of_sums(matrix).expect("sound")).into();
        let mean = Contrast::mean(&figures).expect("two");
        assert_near(&[mean.gap], &[f64::midpoint(figures[0].gap, figures[1].gap)], 1e-12);
        assert!(Contrast::mean(&[]).is_none());
    }

    #[test]
    fn bound_never_passes_its_ceiling_and_scores_do_not_move_it() {
        let sums = [-10.0, -900.0, -800.0, -20.0];
        let means = [-1.0, -9.0, -8.0, -2.0];
        let figures = Contrast::new(&means, &sums).expect("sound");
        assert_near(&[figures.bound], &[2f64.ln()], 1e-12);
        assert_near(&[figures.gap], &[f64::midpoint(395.0, 440.0)], 1e-9);
        assert_near(&[figures.loss_row], &[Contrast::of_sums(&means).expect("sound").loss_row], 1e-15);
    }

    #[test]
    fn matrices_that_are_none_are_refused() {
        for cells in [&[-1.0][..], &[-1.0; 3], &[]] {
            assert!(matches!(Contrast::of_sums(cells), Err(LmError::Matrix { .. })), "{cells:?}");
        }
        let error = Contrast::of_sums(&[-1.0, f64::NAN, -1.0, -1.0]).expect_err("not a number");
        assert!(error.to_string().contains("row 0, column 1"), "{error}");
    }
}
