//! Direct preference optimisation: a response that should be likelier than another one, each measured from a reference.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Under which of a query's constitutions its own responses are preferred to the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Directions {
    /// Each.
    #[default]
    Both,
    /// The first.
    First,
}

/// The loss of a preference, in nats, and its slope against `margin`.
///
/// `margin` is β·[(log π(y⁺|x) − log π_ref(y⁺|x)) − (log π(y⁻|x) − log π_ref(y⁻|x))]: how much more the implicit reward of
/// the preferred response y⁺ is than that of the other one, y⁻. The loss is −(1 − ε)·log σ(margin) − ε·log σ(−margin), ln 2
/// at a margin of 0, where training from the reference starts.
///
/// Source: DPO (Rafailov et al., 2023), equation 7; with label smoothing ε, the chance that a preference is the wrong way
/// round, as in cDPO (Mitchell, 2023).
pub fn dpo(margin: f64, label_smoothing: f64) -> (f64, f64) {
    let loss = (1.0 - label_smoothing) * softplus(-margin) + label_smoothing * softplus(margin);
    let slope = label_smoothing * sigmoid(margin) - (1.0 - label_smoothing) * sigmoid(-margin);
    (loss, slope)
}

/// log(1 + eˣ), with nothing lost at either end.
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Log-probabilities of the preferred and the other response, those of the reference; β, ε; PyTorch's loss and its
    /// gradient against the first of them.
    type Golden = ([f64; 4], f64, f64, f64, f64);

    const GOLDEN: [Golden; 4] = [
        ([-12.5, -14.0, -13.0, -13.2], 0.1, 0.0, 0.630_258_194_681_690_6, -0.046_754_569_361_268_12),
        ([-40.0, -38.0, -41.5, -35.0], 0.1, 0.0, 0.493_248_945_997_454_9, -0.038_936_076_605_077_81),
        ([-12.5, -14.0, -13.0, -13.2], 0.5, 0.1, 0.485_055_335_702_715_14, -0.121_494_768_663_250_54),
        ([-300.0, -900.0, -320.0, -310.0], 0.2, 0.0, 1.037_703_323_815_834_6e-53, -2.075_406_647_631_669_2e-54),
    ];

    #[test]
    fn golden_losses_and_slopes() {
        for ([own, other, own_before, other_before], beta, smoothing, loss, gradient) in GOLDEN {
            let (found, slope) = dpo(beta * ((own - own_before) - (other - other_before)), smoothing);
            assert!((found / loss - 1.0).abs() < 1e-12, "{found} is not {loss}");
            assert!((beta * slope / gradient - 1.0).abs() < 1e-12, "{slope} is not {gradient}");
        }
    }

    #[test]
    fn slope_is_that_of_finite_differences() {
        for smoothing in [0.0, 0.2] {
            for margin in [-30.0, -2.0, -0.1, 0.0, 0.7, 5.0] {
                let slope = (dpo(margin + 1e-5, smoothing).0 - dpo(margin - 1e-5, smoothing).0) / 2e-5;
                assert!((dpo(margin, smoothing).1 - slope).abs() < 1e-9, "at {margin}");
            }
        }
        assert_eq!(dpo(0.0, 0.3).0, 2f64.ln());
        let far = dpo(-1e6, 0.0);
        assert_eq!((far.0, far.1), (1e6, -1.0));
    }
}
