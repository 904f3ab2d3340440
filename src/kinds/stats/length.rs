//! Win rates with the length of responses taken out: judges like long ones.

use super::Trials;

/// The strengths of the penalty that are tried: half of the squared slope, divided by each of ten numbers from 1e-4 to
/// 1e4, evenly spaced as logarithms.
const STRENGTHS: usize = 10;

/// Parts of the comparisons for the choice among them.
const FOLDS: usize = 5;

/// Newton's method stops here; it has always converged long before.
const STEPS: usize = 100;

/// A step that short is the last: the error after it is about its square.
const CONVERGED: f64 = 1e-6;

/// The length-balanced win rate: the mean of the win rate where the candidate's response is longer, and where it is
/// not. None where there is no comparison of one sort.
pub(in crate::kinds) fn balanced(trials: &Trials) -> Option<f64> {
    let longer = trials.longer.as_ref()?;
    let rate = |wanted: bool| {
        let all = trials.wins.iter().zip(longer).filter(|(_, longer)| (**longer > 0.0) == wanted);
        let (sum, count) = all.fold((0.0, 0), |(sum, count), (win, _)| (sum + win, count + 1));
        (count > 0).then(|| sum / f64::from(count))
    };
    Some(f64::midpoint(rate(true)?, rate(false)?))
}

/// The length-controlled win rate: a logistic regression of winning on length, read off where both are equally long.
///
/// `win ~ σ(a + b tanh(Δ / s))`, where Δ is how much longer the candidate's response is and s the standard deviation of
/// Δ; the slope b is penalised, the intercept a is not; the figure is σ(a). How strongly it is penalised is chosen by
/// the likelihood of left-out comparisons, in five parts that have their share of wins, ties and losses. That is scikit-learn's
/// `LogisticRegressionCV(scoring = "neg_log_loss")` with its defaults, and gives back every cell of the paper's tables
/// 2 and 3.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::kinds) struct Controlled {
    /// Weight of half the squared slope beside the sum of the comparisons' log-losses.
    penalty: f64,
    /// The line of all comparisons: that of a resample is near.
    line: Line,
}

impl Controlled {
    /// Chooses the penalty. None without lengths, or without comparisons.
    pub(in crate::kinds) fn choose(trials: &Trials) -> Option<Self> {
        let terms = terms(trials)?;
        let fold = folds(&trials.wins);
        let loss = |penalty: f64| -> f64 {
            let parts = (0..FOLDS).map(|part| {
                let (train, test): (Vec<_>, Vec<_>) = (0..fold.len()).partition(|at| fold[*at] != part);
                let pick = |places: &[usize]| places.iter().map(|at| terms[*at]).collect::<Vec<_>>();
                let (test, line) = (pick(&test), Line::fit(&pick(&train), penalty));
                line.loss(&test) / test.len().max(1) as f64
            });
            parts.sum()
        };
        let strengths = (0..STRENGTHS).map(|at| 10f64.powf(4.0 - 8.0 * at as f64 / (STRENGTHS - 1) as f64));
        let best = strengths.map(|penalty| (penalty, loss(penalty))).reduce(|best, next| {
            // Of equal ones the strongest stays.
            if next.1 < best.1 { next } else { best }
        });
        best.map(|(penalty, _)| Self { penalty, line: Line::fit(&terms, penalty) })
    }

    /// The figure, of these comparisons or of resampled ones.
    pub(in crate::kinds) fn rate(self, trials: &Trials) -> Option<f64> {
        let first = trials.wins.first()?;
        if (*first == 0.0 || *first == 1.0) && trials.wins.iter().all(|win| win == first) {
            return trials.longer.is_some().then_some(*first);
        }
        Some(sigmoid(Line::fit_from(self.line, &terms(trials)?, self.penalty).intercept))
    }
}

/// What was won, and tanh(Δ / s), of each comparison.
fn terms(trials: &Trials) -> Option<Vec<(f64, f64)>> {
    let longer = trials.longer.as_ref().filter(|longer| !longer.is_empty())?;
    let n = longer.len() as f64;
    let mean = longer.iter().sum::<f64>() / n;
    let deviation = (longer.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / n).sqrt();
    // With all equally much longer there is nothing to tell length from merit by.
    let scaled = |one: &f64| if deviation > 0.0 { (one / deviation).tanh() } else { 0.0 };
    Some(trials.wins.iter().copied().zip(longer.iter().map(scaled)).collect())
}

/// A part for each comparison: those with equal results are dealt out in order, so that each part has its share.
fn folds(wins: &[f64]) -> Vec<usize> {
    let mut results: Vec<f64> = Vec::new();
    for win in wins {
        if !results.contains(win) {
            results.push(*win);
        }
    }
    let class = |win: &f64| results.iter().position(|result| result == win).unwrap_or(0);
    let mut sorted: Vec<usize> = wins.iter().map(class).collect();
    sorted.sort_unstable();
    let mut fold = vec![0; wins.len()];
    for (result, own) in results.iter().enumerate() {
        let share = |part: usize| sorted.iter().skip(part).step_by(FOLDS).filter(|class| **class == result).count();
        let parts = (0..FOLDS).flat_map(|part| std::iter::repeat_n(part, share(part)));
        let places = wins.iter().enumerate().filter(|(_, win)| *win == own).map(|(at, _)| at);
        places.zip(parts).for_each(|(at, part)| fold[at] = part);
    }
    fold
}

/// A line through the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    intercept: f64,
    slope: f64,
}

impl Line {
    /// The line of the least penalised loss.
    fn fit(terms: &[(f64, f64)], penalty: f64) -> Self {
        Self::fit_from(Self::flat(terms), terms, penalty)
    }

    /// The best line without a slope. Of nothing but wins, or losses, no finite intercept is best; beyond ±30 the sigmoid is 1
    /// or 0 to twelve digits.
    fn flat(terms: &[(f64, f64)]) -> Self {
        let mean = terms.iter().map(|(win, _)| win).sum::<f64>() / terms.len().max(1) as f64;
        Self { intercept: (mean / (1.0 - mean)).ln().clamp(-30.0, 30.0), slope: 0.0 }
    }

    /// The line of the least penalised loss, by Newton's method from another line.
    fn fit_from(start: Self, terms: &[(f64, f64)], penalty: f64) -> Self {
        let decided = |result: f64| terms.iter().all(|(win, _)| *win == result);
        if decided(0.0) || decided(1.0) {
            return Self::flat(terms);
        }
        let mut line = start;
        let objective = |line: Self| line.loss(terms) + 0.5 * penalty * line.slope * line.slope;
        let mut reached = objective(line);
        for _ in 0..STEPS {
            let (mut g0, mut g1, mut h00, mut h01, mut h11) = (0.0, penalty * line.slope, 0.0, 0.0, penalty);
            for (win, x) in terms {
                let p = sigmoid(line.intercept + line.slope * x);
                let weight = p * (1.0 - p);
                g0 += p - win;
                g1 += (p - win) * x;
                h00 += weight;
                h01 += weight * x;
                h11 += weight * x * x;
            }
            let determinant = h00 * h11 - h01 * h01;
            if determinant <= 0.0 || !determinant.is_finite() {
                break;
            }
            let step = ((h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant);
            if step.0.abs().max(step.1.abs()) < CONVERGED {
                return Self { intercept: line.intercept - step.0, slope: line.slope - step.1 };
            }
            // A whole step first, then shorter ones until the objective falls.
            let tried = (0..30).map(|halvings| 0.5f64.powi(halvings)).find_map(|size| {
                let next = Self { intercept: line.intercept - size * step.0, slope: line.slope - size * step.1 };
                let value = objective(next);
                (value <= reached).then_some((next, value))
            });
            let Some((next, value)) = tried else { break };
            (line, reached) = (next, value);
        }
        line
    }

    /// The sum of the log-losses.
    fn loss(self, terms: &[(f64, f64)]) -> f64 {
        terms
            .iter()
            .map(|(win, x)| softplus(self.intercept + self.slope * x) - win * (self.intercept + self.slope * x))
            .sum()
    }
}

fn sigmoid(logit: f64) -> f64 {
    1.0 / (1.0 + (-logit).exp())
}

/// ln(1 + exp(x)).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trials(wins: &[f64], longer: &[f64]) -> Trials {
        Trials { wins: wins.to_vec(), longer: Some(longer.to_vec()), per_query: 1 }
    }

    #[test]
    fn balanced_is_the_mean_of_both_sides() {
        let of = |wins: &[f64], longer: &[f64]| balanced(&trials(wins, longer));
        assert_eq!(of(&[1.0, 1.0, 1.0, 0.0, 0.5], &[3.0, 1.0, 2.0, 0.0, -2.0]), Some(0.625));
        assert_eq!(of(&[1.0, 0.0], &[3.0, 1.0]), None, "none is shorter");
        assert_eq!(balanced(&Trials { wins: vec![1.0], longer: None, per_query: 1 }), None);
    }

    #[test]
    fn a_line_is_that_of_another_implementation() {
        // Twelve comparisons, solved with numpy to 1e-12.
        let wins = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0];
        let xs = [0.9, -0.5, 0.3, 0.8, 0.1, -0.2, -0.9, 0.4, 0.7, 0.6, -0.7, 0.2];
        let terms: Vec<(f64, f64)> = wins.into_iter().zip(xs).collect();
        for (penalty, intercept, slope) in [
            (0.1, 0.025_371_247_446_185_27, 2.741_363_548_354_898),
            (1.0, 0.193_583_942_099_782_75, 1.205_674_065_333_340_6),
            (10.0, 0.307_794_864_820_142_5, 0.210_577_400_886_877_01),
        ] {
            let line = Line::fit(&terms, penalty);
            assert!(
                (line.intercept - intercept).abs() < 1e-9 && (line.slope - slope).abs() < 1e-9,
                "{penalty}: {line:?}"
            );
        }
    }

    #[test]
    fn length_that_decides_everything_is_taken_out() {
        // The longer one wins nine times of ten; 80 of 100 are longer.
        let longer: Vec<f64> = (0..100).map(|n| if n % 5 == 0 { -20.0 } else { 20.0 }).collect();
        let wins: Vec<f64> = longer
            .iter()
            .enumerate()
            .map(|(n, d)| f64::from(u8::from((*d > 0.0) != (n % 10 == 3 || n % 50 == 5))))
            .collect();
        let trials = trials(&wins, &longer);
        let rate = Controlled::choose(&trials).and_then(|controlled| controlled.rate(&trials)).expect("a figure");
        assert!(trials.win_rate() > 0.7 && (rate - 0.5).abs() < 0.1, "{} {rate}", trials.win_rate());
    }

    #[test]
    fn what_cannot_be_controlled_for_is_the_raw_rate() {
        for (wins, longer) in [
            (vec![1.0; 6], vec![1.0, 2.0, 3.0, -4.0, 5.0, 6.0]),
            (vec![0.0; 3], vec![1.0, 2.0, 3.0]),
            (vec![1.0, 0.0, 0.5, 1.0], vec![7.0; 4]),
            (vec![0.5], vec![3.0]),
        ] {
            let trials = trials(&wins, &longer);
            let rate = Controlled::choose(&trials).and_then(|controlled| controlled.rate(&trials)).expect("a figure");
            assert!((rate - trials.win_rate()).abs() < 1e-9, "{wins:?}: {rate}");
        }
        assert_eq!(Controlled::choose(&trials(&[], &[])), None);
    }

    #[test]
    fn separable_comparisons_have_a_finite_figure() {
        let longer: Vec<f64> = (0..20).map(|n| f64::from(n) - 4.5).collect();
        let wins: Vec<f64> = longer.iter().map(|d| f64::from(u8::from(*d > 0.0))).collect();
        let trials = trials(&wins, &longer);
        let rate = Controlled::choose(&trials).and_then(|controlled| controlled.rate(&trials)).expect("a figure");
        assert!(rate > 0.0 && rate < 1.0, "{rate}");
    }

    #[test]
    fn folds_are_those_of_scikit_learn() {
        // StratifiedKFold(5) without shuffling, on these classes in this order.
        let wins = [1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.5, 0.0, 1.0, 1.0, 0.5, 1.0];
        assert_eq!(folds(&wins), [0, 0, 2, 1, 3, 1, 0, 4, 2, 3, 1, 4]);
    }
}
