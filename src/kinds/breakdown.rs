//! `breakdown.json` of an evaluation: the figures in full, and by principle and by constitution.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use indexmap::IndexMap;
use serde_json::{Value, json};

use super::NodeError;
use super::contrast::{Constitution, Polarity};
use super::stats::wilson;

/// The file's name in the artifact.
pub(super) const FILE: &str = "breakdown.json";

/// A comparison of a candidate with the one that all are held against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bout<'a> {
    /// Number of the query.
    pub(super) query: usize,
    /// What the responses are to follow.
    pub(super) constitution: &'a Constitution,
    /// What the candidate won, ties counted.
    pub(super) win: f64,
    /// Of each principle whether the candidate followed it, and whether the other did; none without rules.
    pub(super) follows: Option<(&'a [bool], &'a [bool])>,
}

/// The figures of a part of the comparisons. A query counts once.
#[derive(Debug, Clone, Default)]
struct Part {
    /// Of each query what was won, and in how many comparisons.
    wins: BTreeMap<usize, (f64, usize)>,
    /// Principles that were to be followed.
    asked: usize,
    /// Those that the candidate followed.
    own: usize,
    /// Those that the other followed.
    other: usize,
}

impl Part {
    fn add(&mut self, bout: &Bout<'_>, follows: &[(bool, bool)]) {
        let won = self.wins.entry(bout.query).or_default();
        *won = (won.0 + bout.win, won.1 + 1);
        self.asked += follows.len();
        self.own += follows.iter().filter(|(own, _)| *own).count();
        self.other += follows.iter().filter(|(_, other)| *other).count();
    }

    fn report(&self, mut named: serde_json::Map<String, Value>) -> Value {
        let queries = self.wins.len();
        let wins: f64 = self.wins.values().map(|(sum, count)| sum / *count as f64).sum();
        let (low, high) = wilson(wins, queries);
        let share = |followed: usize| (self.asked > 0).then(|| followed as f64 / self.asked as f64);
        let figures = [
            ("queries", json!(queries)),
            ("win_rate", json!(wins / queries.max(1) as f64)),
            ("low", json!(low)),
            ("high", json!(high)),
            ("adherence", json!(share(self.own))),
            ("adherence_against", json!(share(self.other))),
        ];
        named.extend(figures.map(|(name, value)| (name.to_owned(), value)));
        Value::Object(named)
    }
}

/// A row for each principle in each polarity, in the order of their names.
pub(super) fn by_principle(bouts: &[Bout<'_>]) -> Vec<Value> {
    let mut parts: IndexMap<(&str, Polarity), Part> = IndexMap::new();
    for bout in bouts {
        for (place, stance) in bout.constitution.principles.iter().enumerate() {
            let follows = bout.follows.and_then(|(own, other)| Some((*own.get(place)?, *other.get(place)?)));
            let part = parts.entry((&stance.name, stance.polarity)).or_default();
            part.add(bout, follows.as_slice());
        }
    }
    let order = |key: &(&str, Polarity)| (key.0.to_owned(), key.1 == Polarity::Antithesis);
    parts.sort_by(|one, _, other, _| order(one).cmp(&order(other)));
    let named = |(name, polarity): (&str, Polarity)| {
        [("principle".to_owned(), json!(name)), ("polarity".to_owned(), json!(polarity))].into_iter().collect()
    };
    parts.into_iter().map(|(key, part)| part.report(named(key))).collect()
}

/// A row for each constitution, whatever the order of its principles; those of most comparisons first.
pub(super) fn by_constitution(bouts: &[Bout<'_>]) -> Vec<Value> {
    let mut parts: IndexMap<String, Part> = IndexMap::new();
    for bout in bouts {
        let follows: Vec<(bool, bool)> =
            bout.follows.map_or_else(Vec::new, |(own, other)| own.iter().copied().zip(other.iter().copied()).collect());
        parts.entry(name(bout.constitution)).or_default().add(bout, &follows);
    }
    parts.sort_by(|one, first, other, second| (second.wins.len(), one).cmp(&(first.wins.len(), other)));
    let named = |name: String| [("constitution".to_owned(), json!(name))].into_iter().collect();
    parts.into_iter().map(|(key, part)| part.report(named(key))).collect()
}

/// The principles of a constitution in the order of their names, those that are asked against after `not`; the text of one
/// that has no named principles.
fn name(constitution: &Constitution) -> String {
    if constitution.principles.is_empty() {
        return constitution.text.clone();
    }
    let mut stances: Vec<_> = constitution.principles.iter().collect();
    stances.sort_by(|one, other| one.name.cmp(&other.name));
    let told = stances.iter().map(|stance| match stance.polarity {
        Polarity::Definition => stance.name.clone(),
        Polarity::Antithesis => format!("not {}", stance.name),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// Writes the file.
pub(super) fn write(path: &Path, report: &Value) -> Result<(), NodeError> {
    let text = serde_json::to_string_pretty(report).map_err(std::io::Error::from)?;
    Ok(crate::fs::write(path, text + "\n")?)
}

/// The first text that comes twice.
pub(super) fn doubled<'a>(mut texts: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    texts.find(|text| !seen.insert(*text))
}

#[cfg(test)]
mod tests {
    use super::super::contrast::{Format, Stance};
    use super::*;

    fn constitution(principles: &[(&str, Polarity)]) -> Constitution {
        let stance = |(name, polarity): &(&str, Polarity)| Stance {
            name: (*name).to_owned(),
            polarity: *polarity,
            text: format!("{name} {polarity:?}"),
        };
        Constitution::new(Format::Plain, principles.iter().map(stance).collect())
    }

    #[test]
    fn comparisons_are_told_apart_by_principle_and_by_constitution() {
        use Polarity::{Antithesis, Definition};
        let one = constitution(&[("brief", Definition), ("formal", Antithesis)]);
        let turned = constitution(&[("formal", Antithesis), ("brief", Definition)]);
        let other = constitution(&[("brief", Antithesis), ("formal", Antithesis)]);
        let bout = |query, constitution, win, follows| Bout { query, constitution, win, follows };
        let bouts = [
            bout(0, &one, 1.0, Some((&[true, true][..], &[false, true][..]))),
            bout(1, &turned, 0.5, Some((&[true, false], &[true, false]))),
            bout(2, &other, 0.0, Some((&[false, true], &[true, true]))),
        ];
        let rows = by_principle(&bouts);
        let told: Vec<(&str, &str)> =
            rows.iter().map(|row| (row["principle"].as_str().unwrap(), row["polarity"].as_str().unwrap())).collect();
        assert_eq!(told, [("brief", "definition"), ("brief", "antithesis"), ("formal", "antithesis")]);
        assert_eq!((&rows[0]["win_rate"], &rows[0]["queries"]), (&json!(0.75), &json!(2)));
        assert_eq!((&rows[0]["adherence"], &rows[0]["adherence_against"]), (&json!(0.5), &json!(0.0)));
        assert_eq!((&rows[2]["win_rate"], &rows[2]["adherence"]), (&json!(0.5), &json!(1.0)));
        let rows = by_constitution(&bouts);
        let told: Vec<&str> = rows.iter().map(|row| row["constitution"].as_str().unwrap()).collect();
        assert_eq!(told, ["brief, not formal", "not brief, not formal"]);
        assert_eq!((&rows[0]["win_rate"], &rows[0]["adherence"]), (&json!(0.75), &json!(0.75)));
    }

    #[test]
    fn a_query_counts_once_and_adherence_needs_rules() {
        let whole = Constitution { text: "be kind".to_owned(), format: Format::Lines, principles: Vec::new() };
        let bouts = [0.0, 1.0].map(|win| Bout { query: 4, constitution: &whole, win, follows: None });
        assert!(by_principle(&bouts).is_empty());
        let rows = by_constitution(&bouts);
        assert_eq!(
            (&rows[0]["constitution"], &rows[0]["queries"], &rows[0]["win_rate"]),
            (&json!("be kind"), &json!(1), &json!(0.5))
        );
        assert_eq!(rows[0]["adherence"], Value::Null);
    }
}
