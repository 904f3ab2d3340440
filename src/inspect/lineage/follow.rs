//! Rows on their way through artifacts: by id, or by a principle in their constitutions.

use std::io::{BufRead, BufReader};

use serde::Serialize;
use serde_json::{Map, Value};

use crate::digest::Digest;
use crate::store::{Store, StoreError};

/// Rows of an artifact that are kept; of more the number is.
const KEPT: usize = 4;
/// Ids that an error lists.
const FIRST: usize = 6;

/// What is followed from artifact to artifact.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Follow {
    /// Nothing but the artifacts.
    Nothing,
    /// The row of this id. Of a query that was sampled more than once the second sample is `ID#2`.
    Row(String),
    /// Rows that have this principle in a constitution.
    Principle(String),
}

/// Rows of an artifact that were followed to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Rows {
    /// How many they are.
    pub found: u64,
    /// How many rows the artifact has.
    pub of: u64,
    /// The first of them.
    #[serde(rename = "rows")]
    pub first: Vec<Map<String, Value>>,
    /// Their numbers, from 0.
    #[serde(skip)]
    pub places: Vec<u64>,
}

impl Rows {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.found == 0
    }
}

/// Whether rows go on through an input of this name: queries, responses and examples, not what computes with them.
pub fn is_rows(field: &str) -> bool {
    let stem = field.split('.').next().unwrap_or(field);
    !["model", "reference", "judge", "writer"].contains(&stem)
}

/// The id of the query that a row is a sample of.
fn base(id: &str) -> &str {
    id.rsplit_once('#').filter(|(_, number)| number.parse::<u64>().is_ok()).map_or(id, |(base, _)| base)
}

impl Follow {
    /// What is followed through an input: of examples from several inputs the ids begin with the input's name.
    pub fn through(&self, field: &str) -> Self {
        let own = field.strip_prefix("examples.");
        match (self, own) {
            (Self::Row(id), Some(name)) => {
                Self::Row(id.strip_prefix(name).and_then(|rest| rest.strip_prefix('/')).unwrap_or(id).to_owned())
            }
            _ => self.clone(),
        }
    }

    /// Whether nothing but the artifacts is followed.
    pub fn is_nothing(&self) -> bool {
        *self == Self::Nothing
    }

    /// The rows of an artifact that are followed; `None` if it has no rows, or if nothing is followed.
    pub fn rows_of(&self, store: &Store, id: &Digest) -> Result<Option<Rows>, StoreError> {
        if self.is_nothing() {
            return Ok(None);
        }
        let files = match store.files(id) {
            Ok(files) => files,
            Err(StoreError::NoArtifact(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some(path) = files.get("rows.jsonl") else { return Ok(None) };
        let mut rows = Rows::default();
        for line in BufReader::new(fs_err::File::open(path)?).split(b'\n') {
            let line = line?;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let place = rows.of;
            rows.of += 1;
            if let Some(row) = self.wants(&line) {
                rows.found += 1;
                if let Self::Row(_) = self {
                    rows.places.push(place);
                }
                if rows.first.len() < KEPT {
                    rows.first.push(row);
                }
            }
        }
        Ok(Some(rows))
    }

    /// The row of a line, if it is followed.
    fn wants(&self, line: &[u8]) -> Option<Map<String, Value>> {
        // Most lines are passed over without being understood.
        let word = match self {
            Self::Nothing => return None,
            Self::Row(id) => base(id),
            Self::Principle(name) => name,
        };
        let written = serde_json::to_string(word).ok()?;
        let inner = &written.as_bytes()[1..written.len() - 1];
        let is_there = memchr(line, inner);
        let row: Map<String, Value> = is_there.then(|| serde_json::from_slice(line).ok()).flatten()?;
        let own = row.get("id").and_then(Value::as_str);
        let wanted = match self {
            Self::Nothing => false,
            // A row, its samples, and the query that a sample is of.
            Self::Row(id) => own.is_some_and(|own| own == id || base(own) == id || own == base(id)),
            Self::Principle(name) => stances(&row).any(|(stance, _)| stance == name),
        };
        wanted.then_some(row)
    }
}

/// Whether a text is in a line.
fn memchr(line: &[u8], text: &[u8]) -> bool {
    text.is_empty() || line.windows(text.len()).any(|window| window == text)
}

/// The principles in the constitutions of a row, with their polarity.
pub fn stances(row: &Map<String, Value>) -> impl Iterator<Item = (&str, &str)> {
    let constitutions = row.get("constitutions").and_then(Value::as_array).into_iter().flatten();
    let stances = constitutions.flat_map(|one| one.get("principles").and_then(Value::as_array).into_iter().flatten());
    stances.filter_map(|stance| Some((stance["name"].as_str()?, stance["polarity"].as_str()?)))
}

/// The first ids of an artifact's rows.
pub fn first_ids(store: &Store, id: &Digest) -> Result<Vec<String>, StoreError> {
    let files = store.files(id)?;
    let Some(path) = files.get("rows.jsonl") else { return Ok(Vec::new()) };
    let mut ids = Vec::new();
    for line in BufReader::new(fs_err::File::open(path)?).split(b'\n').take(FIRST) {
        let row: Map<String, Value> = serde_json::from_slice(&line?).unwrap_or_default();
        ids.extend(row.get("id").and_then(Value::as_str).map(|id| format!("`{id}`")));
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_row_its_samples_and_its_query_are_one() {
        let line = |id: &str| json!({"id": id, "text": "7"}).to_string().into_bytes();
        let follows = |follow: &str, id: &str| Follow::Row(follow.to_owned()).wants(&line(id)).is_some();
        assert!(follows("7", "7") && follows("7", "7#2") && follows("7#2", "7") && follows("7#2", "7#2"));
        assert!(!follows("7#2", "7#3") && !follows("7", "17") && !follows("a#b", "a"));
        let row = json!({"id": "1", "constitutions": [{"text": "be brief", "principles": [{"name": "length", "polarity": "definition"}]}]});
        let principle = |name: &str| Follow::Principle(name.to_owned()).wants(row.to_string().as_bytes()).is_some();
        assert!(principle("length") && !principle("brief"));
        assert_eq!(Follow::Row("web/3".into()).through("examples.web"), Follow::Row("3".into()));
        assert_eq!(Follow::Row("web/3".into()).through("examples"), Follow::Row("web/3".into()));
        assert!(is_rows("examples.web") && is_rows("candidates.sami") && !is_rows("judge"));
    }
}
