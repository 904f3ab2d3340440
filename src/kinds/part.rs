//! A row-wise node in parts: each attempt at a part computes its rows, and one more attempt puts all rows together.
//!
//! Rows reach that one through the row memo, as they reach an attempt that goes on where another was killed: to it nothing is new
//! but that it finds every row. So what it makes is what one attempt alone would have made, whatever the number of parts. What it
//! cannot see there (which rows are new, what calls came to) the parts tell in reports.
//!
//! Rows go to parts in turn, by what they ask: rows that are alike but for their `id`, what was drawn for them and what was
//! answered go to the same part, as such rows may lead to equal prompts, which are computed once then.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};

use super::rows::Row;
use crate::digest::{Digest, Hasher};
use crate::endpoint::Tally;

/// Fields that do not tell rows apart.
const OWN: [&str; 4] = ["id", "constitutions", "responses", "candidates"];

/// Which rows of a node an attempt computes.
#[derive(Debug, Default)]
pub enum Part {
    /// All, and it makes the artifact.
    #[default]
    Whole,
    /// Those of one part; it makes nothing else.
    Shard(Shard),
    /// None, as all parts are done: it makes the artifact. A row that is not there after all it computes.
    Joined(Joined),
}

/// A part, and what has been done in it.
#[derive(Debug, Default)]
pub struct Shard {
    /// Its number, from 0.
    pub number: usize,
    /// How many parts there are.
    pub of: usize,
    /// For the attempt that puts the parts together.
    pub report: Report,
}

/// What an attempt at a part did.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Rows that it computed, by the space of the memo that they are kept in.
    rows: BTreeMap<Digest, Vec<Digest>>,
    /// What calls came to, by the field of the model that was called.
    calls: BTreeMap<String, Tally>,
}

/// What the attempts at all parts did.
#[derive(Debug, Default)]
pub struct Joined {
    /// Rows that were computed, not remembered from before. One that is asked for again is remembered.
    rows: HashMap<Digest, HashSet<Digest>>,
    calls: BTreeMap<String, Tally>,
    /// The class of device that they were computed on.
    class: Option<String>,
}

impl Joined {
    /// Of all reports; `class` is the class of device of all parts.
    pub fn of(reports: Vec<Report>, class: Option<String>) -> Self {
        let mut joined = Self { class, ..Self::default() };
        for report in reports {
            for (space, rows) in report.rows {
                joined.rows.entry(space).or_default().extend(rows);
            }
            for (path, tally) in report.calls {
                let sum = joined.calls.entry(path).or_default();
                *sum = sum.and(tally);
            }
        }
        joined
    }
}

impl Part {
    /// Whether the attempt computes the rows of a part, and makes nothing.
    pub(super) fn is_shard(&self) -> bool {
        matches!(self, Self::Shard(_))
    }

    /// Of rows those that this attempt computes; `row` gives the row that tells what is asked.
    pub(super) fn own<T>(&self, rows: Vec<T>, row: impl Fn(&T) -> &Row) -> Vec<T> {
        let Self::Shard(shard) = self else { return rows };
        let mut groups = HashMap::new();
        let is_own = |one: &T| {
            let next = groups.len();
            groups.entry(asked(row(one))).or_insert(next).checked_rem(shard.of) == Some(shard.number)
        };
        let own: Vec<bool> = rows.iter().map(is_own).collect();
        rows.into_iter().zip(own).filter_map(|(one, own)| own.then_some(one)).collect()
    }

    /// The class of device that the rows were computed on, if that is not where this attempt is.
    pub(super) fn class(&self) -> Option<&String> {
        match self {
            Self::Joined(joined) => joined.class.as_ref(),
            _ => None,
        }
    }

    /// Of rows that were found in a space, those that were remembered from before the node began.
    pub(super) fn remembered(&mut self, space: &Digest, keys: &[Digest], found: Vec<bool>) -> Vec<bool> {
        let Self::Joined(joined) = self else { return found };
        let Some(new) = joined.rows.get_mut(space) else { return found };
        let remembered = keys.iter().zip(found).map(|(key, found)| found && !new.contains(key)).collect();
        for key in keys {
            new.remove(key);
        }
        remembered
    }

    /// Takes down rows that were computed.
    pub(super) fn computed(&mut self, space: &Digest, keys: impl Iterator<Item = Digest>) {
        if let Self::Shard(shard) = self {
            shard.report.rows.entry(*space).or_default().extend(keys);
        }
    }

    /// Takes down what calls of the model of a field came to.
    pub(super) fn called(&mut self, path: &str, tally: Tally) {
        if let Self::Shard(shard) = self {
            let sum = shard.report.calls.entry(path.to_owned()).or_default();
            *sum = sum.and(tally);
        }
    }

    /// What calls of the model of a field came to before this attempt.
    pub(super) fn calls(&self, path: &str) -> Tally {
        match self {
            Self::Joined(joined) => joined.calls.get(path).copied().unwrap_or_default(),
            _ => Tally::default(),
        }
    }
}

/// What a row asks: rows of which this is equal may lead to equal prompts.
fn asked(row: &Row) -> Digest {
    let mut hasher = Hasher::new();
    // In one order, whatever that of the fields in the file is.
    let fields: BTreeMap<_, _> = row.iter().filter(|(name, _)| !OWN.contains(&name.as_str())).collect();
    for (name, value) in fields {
        hasher.text(name).digest(&Digest::of_value(value));
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn shard(number: usize, of: usize) -> Part {
        Part::Shard(Shard { number, of, ..Shard::default() })
    }

    #[test]
    fn every_row_is_in_one_part_and_rows_that_ask_the_same_in_the_same() {
        let row = |id: usize, text: usize| Row::from_iter([("id".into(), json!(id)), ("text".into(), json!(text))]);
        // The last three ask what the first three ask.
        let rows: Vec<Row> = (0..13).map(|id| row(id, id % 10)).collect();
        for of in [1, 2, 3, 5, 13] {
            let parts: Vec<Vec<Row>> = (0..of).map(|number| shard(number, of).own(rows.clone(), |row| row)).collect();
            let mut all = parts.concat();
            all.sort_by_key(|row| row["id"].as_u64());
            assert_eq!(all, rows, "{of}");
            for part in &parts {
                let twins = |row: &Row| rows.iter().filter(|other| other["text"] == row["text"]).count();
                assert!(
                    part.iter()
                        .all(|row| part.iter().filter(|other| other["text"] == row["text"]).count() == twins(row))
                );
            }
            let sizes: Vec<usize> = parts.iter().map(Vec::len).collect();
            let widest = sizes.iter().max().unwrap() - sizes.iter().min().unwrap();
            assert!(of > 10 || widest <= 4, "{sizes:?}");
        }
        assert_eq!(Part::Whole.own(rows.clone(), |row| row), rows);
    }

    #[test]
    fn what_parts_computed_counts_as_new_once() {
        let (space, keys) = (Digest::of(b"space"), [b"a", b"b", b"c"].map(|key| Digest::of(key)));
        let tally = Tally { calls: 2, retries: 1, prompt_tokens: 5, completion_tokens: 3 };
        let reports = (0..2).map(|number| {
            let mut part = shard(number, 2);
            part.computed(&space, [keys[number]].into_iter());
            part.called("judge", tally);
            part.called("judge", tally);
            let Part::Shard(shard) = part else { panic!("a part") };
            // As they are told.
            serde_json::from_str(&serde_json::to_string(&shard.report).unwrap()).unwrap()
        });
        let mut joined = Part::Joined(Joined::of(reports.collect(), None));
        assert_eq!(joined.remembered(&space, &keys, vec![true; 3]), [false, false, true]);
        assert_eq!(joined.remembered(&space, &keys, vec![true; 3]), [true; 3], "asked for again");
        assert_eq!((joined.calls("judge").calls, joined.calls("writer")), (8, Tally::default()));
        assert_eq!(Part::Whole.remembered(&space, &keys, vec![true, false, true]), [true, false, true]);
    }
}
