//! What a run's models said: the first queries of its last evaluation or, if there was none, of its last responses.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::rows::{self, Ask};
use crate::store::{RunNode, RunRecord, Store};

/// Letters of a text that are shown.
const LETTERS: usize = 2000;

/// Queries and what was said to them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Samples {
    /// The node that they are from.
    pub node: String,
    /// The candidate that others are held against, if there is one.
    pub against: String,
    /// How many queries there are in all, about.
    pub of: u64,
    /// The first ones, in the order of the file.
    pub queries: Vec<Sample>,
}

/// A query.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Its id.
    pub id: String,
    /// Its text.
    pub query: String,
    /// What was asked of responses.
    pub constitution: String,
    /// What was said.
    pub responses: Vec<Response>,
}

/// A response.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Response {
    /// Whose it is.
    pub candidate: String,
    /// Its text.
    pub text: String,
    /// What it won against that of the other: 1, 0, or one half.
    pub win: Option<f64>,
    /// How many principles it followed, and of how many, by rules.
    pub followed: Option<(u64, u64)>,
    /// Whether rules found it well formed.
    pub well_formed: Option<bool>,
}

/// The first `count` queries; none if the run has no responses that are still in the cache.
pub fn of_run(store: &Store, run: &RunRecord, count: usize) -> Option<Samples> {
    let of_kind =
        |kind: &'static str| run.nodes.iter().rev().filter(move |node| node.kind == kind && node.artifact.is_some());
    of_kind("evaluate").chain(of_kind("generate")).find_map(|node| of_node(store, node, count))
}

fn of_node(store: &Store, node: &RunNode, count: usize) -> Option<Samples> {
    let files = store.files(node.artifact.as_ref()?).ok()?;
    let against = files.get(super::evaluation::FILE).and_then(|path| super::evaluation::Evaluation::read(path));
    let against = against.map(|evaluation| evaluation.against).unwrap_or_default();
    let (queries, of) = read(files.get("rows.jsonl")?, &against, count)?;
    Some(Samples { node: node.name.clone(), against, of, queries })
}

fn read(path: &Path, against: &str, count: usize) -> Option<(Vec<Sample>, u64)> {
    let found = rows::look(path, &Ask { take: count, budget: rows::BUDGET, ..Ask::default() }).ok()?;
    let parsed = found.rows.iter().filter_map(|row| {
        let text = if row.is_whole() { row.text.clone() } else { rows::mend(&row.text) };
        serde_json::from_str::<Value>(&text).ok()
    });
    let queries: Vec<Sample> = parsed.map(|row| sample(&row, against)).collect();
    (!queries.is_empty()).then(|| (queries, found.rows_in_all()))
}

fn sample(row: &Value, against: &str) -> Sample {
    let mut responses = Vec::new();
    match row["candidates"].as_object() {
        Some(candidates) => {
            // The one that others are held against comes first.
            let order = candidates.iter().filter(|(name, _)| *name == against);
            for (name, own) in order.chain(candidates.iter().filter(|(name, _)| *name != against)) {
                let mark = &own["marks"][0];
                responses.push(Response {
                    candidate: name.clone(),
                    text: text(&own["responses"][0]),
                    win: own["win"].as_f64().filter(|_| name != against),
                    followed: mark["followed"].as_u64().zip(mark["principles"].as_u64()),
                    well_formed: mark["well_formed"].as_bool(),
                });
            }
        }
        None => {
            let (followed, well_formed, win, candidate) = (None, None, None, String::new());
            let text = text(&row["responses"][0]);
            responses.push(Response { candidate, text, win, followed, well_formed });
        }
    }
    let query = match row.get("query") {
        Some(query) => text(query),
        // A row that calls it something else: all of its texts.
        None => row
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| *name != "id")
            .filter_map(|(name, value)| Some(format!("{name}: {}", value.as_str()?)))
            .collect::<Vec<_>>()
            .join("\n"),
    };
    let id = row.get("id").map(text).unwrap_or_default();
    Sample { id, query: cut(query), constitution: text(&row["constitutions"][0]), responses }
}

/// A text, that of an object under `text`, or whatever it is as JSON.
fn text(value: &Value) -> String {
    cut(match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Object(fields) if fields.get("text").is_some_and(Value::is_string) => {
            fields["text"].as_str().unwrap_or_default().to_owned()
        }
        other => other.to_string(),
    })
}

fn cut(text: String) -> String {
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::sample as world;
    use super::*;

    #[test]
    fn samples_are_the_first_queries_with_the_other_candidate_first() {
        let (_folder, store, _) = world::store();
        let part = |text: &str, win: f64| {
            json!({"responses": [{"text": text, "tokens": 2, "finish": "eos"}, {"text": "other"}], "win": win,
                "marks": [{"followed": 1, "principles": 2, "well_formed": true}]})
        };
        let row = |id: u64| {
            json!({"id": id.to_string(), "query": "why?", "constitutions": [{"text": "be brief", "principles": []}],
                "candidates": {"sami": part("<b>no</b>", 1.0), "zero": part("yes", 0.5)}})
            .to_string()
                + "\n"
        };
        let rows: String = (0..9).map(row).collect();
        let breakdown = json!({"against": "zero", "candidates": {}}).to_string();
        let artifact =
            world::put(&store, "evaluation", &[("rows.jsonl", rows), (super::super::evaluation::FILE, breakdown)]);
        let mut run = store.runs().unwrap().remove(0);
        let fallback = of_run(&store, &run, 2).unwrap();
        assert_eq!((fallback.node.as_str(), fallback.of, fallback.queries.len()), ("generate@2", 7, 2));
        let evaluate = RunNode {
            name: "evaluate".into(),
            kind: "evaluate".into(),
            artifact: Some(artifact),
            ..run.nodes[0].clone()
        };
        run.nodes.insert(0, evaluate);
        let samples = of_run(&store, &run, 2).unwrap();
        assert_eq!((samples.node.as_str(), samples.against.as_str(), samples.of), ("evaluate", "zero", 9));
        let first = &samples.queries[0];
        assert_eq!((first.constitution.as_str(), first.responses[0].candidate.as_str()), ("be brief", "zero"));
        assert_eq!((first.responses[0].win, first.responses[1].win), (None, Some(1.0)));
        assert_eq!((first.responses[1].text.as_str(), first.responses[1].followed), ("<b>no</b>", Some((1, 2))));
        run.nodes.clear();
        assert_eq!(of_run(&store, &run, 2), None);
    }
}
