//! Win rates and what is made of them: pure functions over comparisons.

mod interval;
mod length;
mod paired;

pub(super) use interval::{Interval, bootstrap, mean_interval, wald, wilson};
pub(super) use length::{Controlled, balanced};
pub(super) use paired::{Paired, paired};

/// A candidate's comparisons with another, query by query, `per_query` of them for each.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Trials {
    /// Of each comparison what the candidate won: 1, 0, or a part of 1 where it was not decided.
    pub(super) wins: Vec<f64>,
    /// Of each comparison how much longer the candidate's response is, in whatever unit; none where lengths are not known.
    pub(super) longer: Option<Vec<f64>>,
    /// Comparisons of a query, at least 1.
    pub(super) per_query: usize,
}

impl Trials {
    /// Number of queries.
    pub(super) fn queries(&self) -> usize {
        self.wins.len() / self.per_query
    }

    /// Of each query the mean over its comparisons.
    pub(super) fn by_query(&self) -> Vec<f64> {
        self.wins.chunks(self.per_query).map(|wins| wins.iter().sum::<f64>() / self.per_query as f64).collect()
    }

    /// The mean over queries; 0 of none.
    pub(super) fn win_rate(&self) -> f64 {
        self.by_query().iter().sum::<f64>() / self.queries().max(1) as f64
    }

    /// Those of some queries, in the order given; a query may come more than once.
    pub(super) fn of(&self, queries: &[usize]) -> Self {
        let pick = |values: &[f64]| {
            let of = |query: &usize| &values[query * self.per_query..(query + 1) * self.per_query];
            queries.iter().flat_map(of).copied().collect()
        };
        Self { wins: pick(&self.wins), longer: self.longer.as_deref().map(pick), per_query: self.per_query }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_counts_once_however_many_comparisons_it_has() {
        let trials = Trials { wins: vec![1.0, 0.0, 0.5, 0.5, 1.0, 1.0], longer: None, per_query: 2 };
        assert_eq!((trials.queries(), trials.by_query(), trials.win_rate()), (3, vec![0.5, 0.5, 1.0], 2.0 / 3.0));
        assert_eq!(trials.of(&[2, 2, 0]).wins, [1.0, 1.0, 1.0, 1.0, 1.0, 0.0]);
    }
}
