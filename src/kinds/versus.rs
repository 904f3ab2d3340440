//! How a candidate did against another one: every win rate with its interval.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::stats::{Controlled, Interval, Paired, Trials, balanced, bootstrap, wald, wilson};

/// What a comparison counts that nobody won.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Ties {
    /// Half a win.
    #[default]
    Half,
    /// Nothing: only what is more than half a win counts, and counts whole.
    Loss,
}

impl Ties {
    /// Whether it is the default, which stands in no key.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks with a reference")]
    pub(super) fn is_half(&self) -> bool {
        *self == Self::Half
    }

    fn count(self, win: f64) -> f64 {
        match self {
            Self::Half => win,
            Self::Loss => f64::from(u8::from(win > 0.5)),
        }
    }
}

/// A candidate's comparisons with the one that all are held against, and the figures of them.
#[derive(Debug, Clone)]
pub(super) struct Versus {
    /// The comparisons, ties counted as they shall be.
    pub(super) trials: Trials,
    /// Comparisons that nobody won.
    ties: usize,
    rate: Rate,
    wilson: Interval,
    balanced: Option<Rate>,
    controlled: Option<Rate>,
}

/// A rate and its bootstrap interval over queries.
#[derive(Debug, Clone, Copy)]
struct Rate {
    value: f64,
    interval: Option<Interval>,
}

impl Versus {
    /// Computes all figures; `seed` is that of the resamples.
    pub(super) fn new(trials: &Trials, ties: Ties, seed: u64) -> Self {
        let tied = trials.wins.iter().filter(|win| **win == 0.5).count();
        let wins = trials.wins.iter().map(|win| ties.count(*win)).collect();
        let trials = Trials { wins, ..trials.clone() };
        let queries = trials.queries();
        let rate = |figure: &dyn Fn(&Trials) -> Option<f64>| {
            let interval = bootstrap(queries, seed, |drawn| figure(&trials.of(drawn)));
            figure(&trials).map(|value| Rate { value, interval })
        };
        let raw = rate(&|trials| Some(trials.win_rate())).unwrap_or(Rate { value: 0.0, interval: None });
        let controlled = Controlled::choose(&trials);
        let controlled = controlled.and_then(|controlled| rate(&|trials| controlled.rate(trials)));
        let wilson = wilson(trials.by_query().iter().sum(), queries);
        Self { ties: tied, rate: raw, wilson, balanced: rate(&balanced), controlled, trials }
    }

    /// The figures, named after the candidate; without one they stand without a name.
    pub(super) fn metrics(&self, name: Option<&str>) -> Map<String, Value> {
        let suffix = name.map_or_else(String::new, |name| format!(".{name}"));
        let mut metrics = Map::new();
        let mut add = |figure: &str, value: Option<f64>| {
            if let Some(value) = value {
                metrics.insert(format!("{figure}{suffix}"), json!(value));
            }
        };
        add("win_rate", Some(self.rate.value));
        add("win_rate_low", Some(self.wilson.0));
        add("win_rate_high", Some(self.wilson.1));
        let bootstrapped = |rate: Option<Rate>| {
            let interval = rate.and_then(|rate| rate.interval).unzip();
            (rate.map(|rate| rate.value), interval.0, interval.1)
        };
        let (_, low, high) = bootstrapped(Some(self.rate));
        add("win_rate_bootstrap_low", low);
        add("win_rate_bootstrap_high", high);
        for (figure, rate) in [("win_rate_balanced", self.balanced), ("win_rate_controlled", self.controlled)] {
            let (value, low, high) = bootstrapped(rate);
            add(figure, value);
            add(&format!("{figure}_low"), low);
            add(&format!("{figure}_high"), high);
        }
        add("ties", Some(self.ties as f64 / self.trials.wins.len().max(1) as f64));
        metrics
    }

    /// All figures with all their intervals.
    pub(super) fn report(&self) -> Value {
        let queries = self.trials.queries();
        let part = |rate: Option<Rate>| {
            rate.map(|rate| json!({"value": rate.value, "bootstrap": rate.interval, "wald": wald(rate.value, queries)}))
        };
        json!({
            "queries": queries,
            "comparisons": self.trials.wins.len(),
            "ties": self.ties,
            "raw": {"value": self.rate.value, "wilson": self.wilson, "bootstrap": self.rate.interval,
                "wald": wald(self.rate.value, queries)},
            "balanced": part(self.balanced),
            "controlled": part(self.controlled),
        })
    }
}

/// The figures of two candidates beside each other, named after both.
pub(super) fn paired_metrics(one: &str, other: &str, paired: &Paired) -> Map<String, Value> {
    let name = |figure: &str| format!("{figure}.{one}.{other}");
    let mut metrics = Map::from_iter([(name("paired"), json!(paired.difference)), (name("paired_p"), json!(paired.p))]);
    if let Some((low, high)) = paired.interval {
        metrics.insert(name("paired_low"), json!(low));
        metrics.insert(name("paired_high"), json!(high));
    }
    metrics
}

/// Two candidates beside each other, all figures.
pub(super) fn paired_report(one: &str, other: &str, paired: &Paired) -> Value {
    json!({"one": one, "other": other, "difference": paired.difference, "bootstrap": paired.interval,
        "better": paired.better, "worse": paired.worse, "p": paired.p})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_count_as_they_shall() {
        let trials = Trials { wins: vec![1.0, 0.5, 0.5, 0.75, 0.0], longer: None, per_query: 1 };
        let rate = |ties| Versus::new(&trials, ties, 0).metrics(Some("sami"))["win_rate.sami"].as_f64();
        assert_eq!((rate(Ties::Half), rate(Ties::Loss)), (Some(0.55), Some(0.4)));
        assert_eq!(Versus::new(&trials, Ties::Loss, 0).metrics(None)["ties"], json!(0.4));
    }

    #[test]
    fn figures_that_have_no_value_are_left_out() {
        let names = |longer: Option<Vec<f64>>| {
            let trials = Trials { wins: vec![1.0, 0.0, 0.5, 1.0], longer, per_query: 1 };
            Versus::new(&trials, Ties::Half, 0).metrics(None).into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        let raw =
            ["ties", "win_rate", "win_rate_bootstrap_high", "win_rate_bootstrap_low", "win_rate_high", "win_rate_low"];
        assert_eq!(sorted(names(None)), raw);
        let all = sorted(names(Some(vec![3.0, -2.0, 1.0, -1.0])));
        assert!(all.contains(&"win_rate_balanced".to_owned()) && all.contains(&"win_rate_controlled_low".to_owned()));
        let longer = sorted(names(Some(vec![3.0, 2.0, 1.0, 1.0])));
        assert!(!longer.iter().any(|name| name.contains("balanced")), "none is shorter: {longer:?}");
    }

    fn sorted(mut names: Vec<String>) -> Vec<String> {
        names.sort();
        names
    }
}
