//! An axis: from numbers to places between its ends, with marks at round numbers.

/// Numbers beyond are taken for these, so that differences stay finite.
const FURTHEST: f64 = 1e300;
/// From which ratio of the largest number to the least positive ones go by their logarithms.
const WIDE: f64 = 1000.0;

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    low: f64,
    high: f64,
    /// Where marks are, in order.
    pub ticks: Vec<f64>,
    /// Whether it goes by logarithms.
    pub log: bool,
    step: f64,
}

impl Axis {
    /// An axis that has all these numbers on it, its ends on round ones; `ticks` is about how many marks there are. What is not
    /// finite counts for nothing.
    pub fn of(numbers: impl Iterator<Item = f64>, ticks: usize) -> Self {
        let (low, high) = ends(numbers);
        Self::between(low, high, ticks)
    }

    /// The same; positive numbers that are a thousand times apart go by their logarithms.
    pub fn wide(numbers: impl Iterator<Item = f64> + Clone, ticks: usize) -> Self {
        let (low, high) = ends(numbers);
        if low > 0.0 && high / low > WIDE {
            Self::logarithmic(low, high, ticks)
        } else {
            Self::between(low, high, ticks)
        }
    }

    /// An axis whose ends are these, marks at round numbers between them.
    pub fn exactly(low: f64, high: f64, ticks: usize) -> Self {
        let round = Self::between(low, high, ticks);
        let within = |tick: &f64| *tick >= low - 1e-9 * round.step && *tick <= high + 1e-9 * round.step;
        Self { low, high, ticks: round.ticks.iter().copied().filter(within).collect(), ..round }
    }

    /// The same axis with marks at other numbers.
    pub fn marked(self, ticks: Vec<f64>) -> Self {
        Self { ticks, ..self }
    }

    fn between(low: f64, high: f64, ticks: usize) -> Self {
        let step = round_step((high - low) / ticks.max(1) as f64);
        let (first, last) = ((low / step).floor(), (high / step).ceil());
        let count = (last - first).clamp(1.0, 64.0) as usize;
        let ticks: Vec<f64> = (0..=count).map(|tick| (first + tick as f64) * step).collect();
        Self { low: ticks[0], high: ticks[count], ticks, log: false, step }
    }

    fn logarithmic(low: f64, high: f64, ticks: usize) -> Self {
        let (first, last) = (low.log10().floor(), high.log10().ceil());
        let every = ((last - first) / ticks.max(1) as f64).ceil().max(1.0);
        let count = ((last - first) / every).ceil() as usize;
        let ticks: Vec<f64> = (0..=count).map(|tick| 10f64.powf(first + tick as f64 * every)).collect();
        Self { low: ticks[0], high: ticks[count], ticks, log: true, step: 0.0 }
    }

    /// Where a number is: 0 at the low end, 1 at the high one; what is beyond the ends is at them.
    pub fn at(&self, number: f64) -> f64 {
        let place = if self.log {
            (number.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (number - self.low) / (self.high - self.low)
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// A mark's number as it is written: as many digits as tell marks apart.
    pub fn label(&self, tick: f64) -> String {
        let largest = self.low.abs().max(self.high.abs());
        if tick == 0.0 {
            return "0".to_owned();
        }
        if self.log {
            return if (1e-3..1e5).contains(&tick) { trimmed(&format!("{tick:.3}")) } else { format!("{tick:.0e}") };
        }
        if largest >= 1e6 || self.step < 1e-4 {
            let digits = (tick.abs().log10().floor() - self.step.log10().floor()).clamp(0.0, 6.0) as usize;
            let text = format!("{tick:.digits$e}");
            return match text.split_once('e') {
                Some((digits, power)) => format!("{}e{power}", trimmed(digits)),
                None => text,
            };
        }
        let whole = self.ticks.iter().all(|tick| tick.fract() == 0.0);
        let decimals = if whole { 0 } else { (-self.step.log10().floor()).max(0.0) as usize };
        grouped(&format!("{tick:.decimals$}"))
    }
}

/// The least and the largest finite number; apart even where they are one, and 0 and 1 where there is none.
fn ends(numbers: impl Iterator<Item = f64>) -> (f64, f64) {
    let finite = numbers.filter(|number| number.is_finite()).map(|number| number.clamp(-FURTHEST, FURTHEST));
    let (low, high) =
        finite.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), number| (low.min(number), high.max(number)));
    if low > high {
        return (0.0, 1.0);
    }
    // Closer together than numbers can tell.
    if high - low <= 1e-9 * low.abs().max(high.abs()) {
        let room = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
        return (low - room, high + room);
    }
    (low, high)
}

/// The round number (1, 2 or 5 times a power of ten) that is next above.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    let digit = step / power;
    let round = if digit <= 1.0 + 1e-9 {
        1.0
    } else if digit <= 2.0 + 1e-9 {
        2.0
    } else if digit <= 5.0 + 1e-9 {
        5.0
    } else {
        10.0
    };
    let step = round * power;
    if step.is_normal() { step } else { f64::MIN_POSITIVE }
}

fn trimmed(number: &str) -> String {
    if number.contains('.') { number.trim_end_matches('0').trim_end_matches('.').to_owned() } else { number.to_owned() }
}

/// Thousands apart.
fn grouped(number: &str) -> String {
    let (whole, rest) = number.split_once('.').map_or((number, None), |(whole, rest)| (whole, Some(rest)));
    let (sign, digits) = whole.strip_prefix('-').map_or(("", whole), |digits| ("-", digits));
    let mut text = sign.to_owned();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    rest.into_iter().for_each(|rest| text.extend([".", rest]));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks.iter().map(|tick| axis.label(*tick)).collect()
    }

    #[test]
    fn marks_are_at_round_numbers() {
        assert_eq!(labels(&Axis::of([0.03, 0.68].into_iter(), 4)), ["0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(labels(&Axis::of([1.0, 1000.0].into_iter(), 4)), ["0", "500", "1,000"]);
        assert_eq!(labels(&Axis::of([-2.4, -1.9].into_iter(), 4)), ["-2.4", "-2.2", "-2.0", "-1.8"]);
        assert_eq!(labels(&Axis::of([1e-7, 5e-7].into_iter(), 4)), ["1e-7", "2e-7", "3e-7", "4e-7", "5e-7"]);
        assert_eq!(labels(&Axis::of([0.0, 3.2e7].into_iter(), 4)), ["0", "1e7", "2e7", "3e7", "4e7"]);
        assert_eq!(labels(&Axis::exactly(0.0, 1.0, 4)), ["0", "0.5", "1.0"]);
    }

    #[test]
    fn numbers_a_thousand_times_apart_go_by_logarithms() {
        let axis = Axis::wide([0.02, 900.0].into_iter(), 5);
        assert!(axis.log);
        assert_eq!(labels(&axis), ["0.01", "0.1", "1", "10", "100", "1000"]);
        assert!((axis.at(1.0) - 0.4).abs() < 1e-9);
        assert!(!Axis::wide([-1.0, 9000.0].into_iter(), 5).log);
    }

    #[test]
    fn whatever_the_numbers_are_all_is_on_the_axis() {
        for numbers in [
            vec![],
            vec![f64::NAN, f64::INFINITY],
            vec![0.0],
            vec![3.0, 3.0],
            vec![f64::MAX, f64::MIN],
            vec![f64::MIN_POSITIVE, 0.0],
            vec![5e-324, 5e-324],
            vec![1e16, 1e16 + 2.0],
        ] {
            for axis in [Axis::of(numbers.iter().copied(), 5), Axis::wide(numbers.iter().copied(), 5)] {
                assert!(axis.ticks.len() >= 2 && axis.ticks.len() < 70, "{numbers:?}: {axis:?}");
                assert!(axis.ticks.iter().all(|tick| tick.is_finite() && axis.label(*tick).len() < 24), "{axis:?}");
                assert!(numbers.iter().all(|number| (0.0..=1.0).contains(&axis.at(*number))), "{axis:?}");
            }
        }
    }
}
