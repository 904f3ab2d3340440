//! The SAMI objective on matrices of log-probabilities, and the figures read off them.
//!
//! Letters: Q queries, C constitutions of a query, M responses to each. Rows are constitutions (k), columns are responses
//! (j), constitution by constitution: response j was written for constitution ⌊j/M⌋, its own. With M = 1 the matrix is a
//! square, and the diagonal holds each response under its own constitution.

pub mod preference;

use std::ops::Range;

use candle_core::Tensor;
use candle_nn::ops::log_softmax;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LmError;

/// Which contrasts of the matrix count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
/// `matrix` (Q, C, C·M) float, `[q, k, j]` the score of response j under constitution k. The row side is
/// −(1/CM) Σ_j log softmax_j' ℓ[k,·] at j' = j with k = ⌊j/M⌋, less ln M; the column side −(1/CM) Σ_j log softmax_k ℓ[·,j]
/// at k = ⌊j/M⌋. ln C for a matrix that tells nothing, whatever M is; more than ln C where pairs are the wrong way round.
///
/// With several responses to a constitution all of them stand in the row side's denominator. So its own have the share 1/C
/// there that they have with one each, ln C less the loss stays a bound with the ceiling ln C, and 0 is reached where a
/// constitution's own responses share all of its probability evenly.
///
/// Source: SAMI (Fränken et al., 2024), equations 1 and 2 as their trainer computes them, with one log-softmax. Several
/// positives as in supervised contrastive learning (Khosla et al., 2020, equation 2).
pub fn contrast(matrix: &Tensor, sides: Sides) -> Result<Tensor, LmError> {
    let (queries, count, responses) = matrix.dims3()?;
    let each = responses / count.max(1);
    if each == 0 || each * count != responses {
        let what = format!("has {count} rows and {responses} columns, it must have as many to each row");
        return Err(LmError::Matrix { what });
    }
    let own = (0..count).flat_map(|k| (0..responses).map(move |j| f64::from(u8::from(j / each == k)))).collect();
    let own = Tensor::from_vec(own, (count, responses), matrix.device())?.to_dtype(matrix.dtype())?;
    let side = |dim: usize| -> Result<Tensor, LmError> {
        let scores = log_softmax(matrix, dim)?.broadcast_mul(&own)?; // (Q, C, C·M)
        Ok((scores.sum_all()? * (-1.0 / (queries * responses) as f64))?)
    };
    let row = || -> Result<Tensor, LmError> {
        let side = side(2)?;
        Ok(if each == 1 { side } else { (side - (each as f64).ln())? })
    };
    match sides {
        Sides::Row => row(),
        Sides::Column => side(1),
        Sides::Both => Ok(((row()? + side(1)?)? * 0.5)?),
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
    /// Share of constitutions of which an own response scores highest; of a tie that share of it that is own.
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
        Self::with(scores, sums, 1)
    }

    /// As [`Contrast::new`], of C×CM cells: `each` responses (M) to a constitution.
    pub fn with(scores: &[f64], sums: &[f64], each: usize) -> Result<Self, LmError> {
        let count = side(scores.len(), each).filter(|_| scores.len() == sums.len());
        let count = count.ok_or_else(|| LmError::Matrix {
            what: format!("has {} cells, it must be C×C with C of 2 or more", scores.len()),
        })?;
        let responses = count * each;
        if let Some(cell) = (0..sums.len()).find(|cell| !(scores[*cell].is_finite() && sums[*cell].is_finite())) {
            let (row, column) = (cell / responses, cell % responses);
            return Err(LmError::Matrix { what: format!("is not finite in row {row}, column {column}") });
        }
        let row = |of: &[f64], k: usize| -> Vec<f64> { of[k * responses..(k + 1) * responses].to_vec() };
        let column = |of: &[f64], j: usize| -> Vec<f64> { (0..count).map(|k| of[k * responses + j]).collect() };
        let own = |of: &[f64], j: usize| of[j / each * responses + j];
        let mean = |of: &dyn Fn(usize) -> f64| (0..responses).map(of).sum::<f64>() / responses as f64;
        let right = |k: usize| share_of_first(&row(scores, k), k * each..(k + 1) * each);
        Ok(Self {
            loss_row: mean(&|j| log_sum_exp(&row(scores, j / each)) - own(scores, j)) - (each as f64).ln(),
            loss_column: mean(&|j| log_sum_exp(&column(scores, j)) - own(scores, j)),
            bound: mean(&|j| own(sums, j) - log_sum_exp(&column(sums, j))) + (count as f64).ln(),
            gap: mean(&|j| own(sums, j) - column(sums, j).iter().sum::<f64>() / count as f64),
            accuracy_row: (0..count).map(right).sum::<f64>() / count as f64,
            accuracy_column: mean(&|j| share_of_first(&column(scores, j), j / each..j / each + 1)),
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

/// C of a C×CM matrix with that many cells, if there is one of 2 or more.
pub(super) fn side(cells: usize, each: usize) -> Option<usize> {
    let count = (cells / each.max(1)).isqrt();
    (count >= 2 && count * count * each == cells).then_some(count)
}

fn log_sum_exp(values: &[f64]) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + values.iter().map(|value| (value - largest).exp()).sum::<f64>().ln()
}

/// How much of the largest value lies within `own`: 1 if only values there are as large, else their share of those that are.
fn share_of_first(values: &[f64], own: Range<usize>) -> f64 {
    let largest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let ties = |values: &[f64]| values.iter().filter(|value| **value == largest).count() as f64;
    ties(&values[own]) / ties(values)
}

#[cfg(test)]
mod tests;
