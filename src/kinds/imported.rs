//! Responses that were made elsewhere, as the kinds read them.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::contest::Said;
use super::contrast::{Constitution, Format};
use super::query::Query;
use super::rows::Row;
use super::{InputArtifact, NodeError, rows};
use crate::lm::Finish;

/// Ids that an error names.
const NAMED: usize = 5;

/// A response as it may stand in a row.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Given {
    Text(String),
    Whole {
        text: String,
        #[serde(default)]
        tokens: Option<usize>,
        #[serde(default = "ended")]
        finish: Finish,
    },
}

/// A response made elsewhere ended by itself.
fn ended() -> Finish {
    Finish::Eos
}

impl Given {
    fn said(self) -> Said {
        match self {
            Self::Text(text) => Said { text: text.trim().to_owned(), tokens: None, finish: ended() },
            Self::Whole { text, tokens, finish } => Said { text: text.trim().to_owned(), tokens, finish },
        }
    }
}

/// A candidate's responses to queries, to the first `compared` constitutions of each: `response` of the row with the query's id, or
/// `responses`, one per constitution.
pub(super) fn answers(
    input: &InputArtifact,
    name: &str,
    queries: &[Query],
    compared: usize,
) -> Result<Vec<Said>, NodeError> {
    let rows = rows::read_input(input)?;
    let mut by_id = HashMap::with_capacity(rows.len());
    for row in rows {
        by_id.insert(rows::id(&row)?.to_owned(), row);
    }
    let missing: Vec<&str> =
        queries.iter().map(|query| query.id.as_str()).filter(|id| !by_id.contains_key(*id)).collect();
    if !missing.is_empty() {
        let named: Vec<String> = missing.iter().take(NAMED).map(|id| format!("`{id}`")).collect();
        let more = missing.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        return Err(NodeError::with_help(
            format!(
                "candidate `{name}` has no response to {} of {} queries: {}{more}",
                missing.len(),
                queries.len(),
                named.join(", ")
            ),
            "responses are joined to queries by their ids: give both datasets the same ones with `id = \"{{ … }}\"`, or take \
             the queries that there are responses to",
        ));
    }
    let mut answers = Vec::with_capacity(queries.len() * compared);
    for query in queries {
        let given = given(&by_id[&query.id], query, compared).map_err(|what| {
            NodeError::with_help(
                format!("row `{}` of candidate `{name}` {what}", query.id),
                "a row has `response`, a text, or `responses`, a text for each of the query's constitutions in their order; a \
                 template of the dataset can give it: `response = \"{{ output }}\"`",
            )
        })?;
        answers.extend(given.into_iter().map(Given::said));
    }
    Ok(answers)
}

/// The responses of a row to the first constitutions of a query.
fn given(row: &Row, query: &Query, compared: usize) -> Result<Vec<Given>, String> {
    if let Some(whole) = row.get("responses") {
        let all: Vec<Given> = serde_json::from_value(whole.clone())
            .map_err(|error| format!("has `responses` that are no list of texts: {error}"))?;
        if all.len() < compared {
            return Err(format!("has {} responses, and {compared} are compared", all.len()));
        }
        // What another node made says which constitutions it answers to.
        if let Some(own) = row.get("constitutions").cloned()
            && let Ok(own) = serde_json::from_value::<Vec<Constitution>>(own)
            && own.iter().zip(&query.constitutions).take(compared).any(|(own, asked)| own.text != asked.text)
        {
            return Err(
                "answers to other constitutions than those drawn here: use the same `seed`, `combinations` and \
                        `constitutions` node there and here"
                    .to_owned(),
            );
        }
        // Several responses to each constitution stand constitution by constitution; the first of each is compared.
        let constitutions = row.get("constitutions").and_then(Value::as_array).map_or(all.len(), Vec::len);
        let each =
            if constitutions > 0 && all.len().is_multiple_of(constitutions) { all.len() / constitutions } else { 1 };
        return Ok(all.into_iter().step_by(each.max(1)).take(compared).collect());
    }
    let Some(one) = row.get("response") else { return Err("has no `response`".to_owned()) };
    if compared > 1 {
        return Err(format!("has one `response`, and responses to {compared} constitutions are compared"));
    }
    let one = serde_json::from_value(one.clone()).map_err(|_| format!("has a `response` that is no text: {one}"))?;
    Ok(vec![one])
}

/// A row of responses made elsewhere in the form that kinds make: constitutions and responses that are plain texts become whole
/// ones, and the authors' pairs, `items` of a prompt and a response each, become constitutions that are the whole prompt. What is
/// not understood stays as it is.
pub(super) fn canonical(mut row: Row) -> Row {
    if let Some(Value::Array(items)) = row.get("items")
        && !row.contains_key("responses")
    {
        let field = |name: &str| items.iter().map(|item| item.get(name).cloned()).collect::<Option<Vec<Value>>>();
        if let (Some(prompts), Some(responses)) = (field("prompt"), field("response")) {
            row.insert("constitutions".to_owned(), Value::Array(prompts));
            row.insert("responses".to_owned(), Value::Array(responses));
            row.remove("items");
        }
    }
    let whole =
        |text: &str| json!(Constitution { text: text.to_owned(), format: Format::Lines, principles: Vec::new() });
    in_place(&mut row, "constitutions", &|text| whole(text));
    in_place(&mut row, "responses", &|text| Value::Object(Map::from_iter([("text".to_owned(), json!(text.trim()))])));
    row
}

/// Makes something else of each text in a list.
fn in_place(row: &mut Row, field: &str, make: &dyn Fn(&str) -> Value) {
    if let Some(Value::Array(items)) = row.get_mut(field) {
        for item in items {
            if let Value::String(text) = item {
                *item = make(text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::contrast::{Polarity, Stance};
    use super::*;
    use crate::digest::Digest;
    use crate::pipeline::ArtifactType;

    fn object(value: &Value) -> Row {
        value.as_object().cloned().expect("an object")
    }

    fn query(id: &str) -> Query {
        let constitution = |polarity| {
            let stance = Stance { name: "brief".to_owned(), polarity, text: format!("{polarity:?}") };
            Constitution::new(Format::Plain, vec![stance])
        };
        let constitutions = [Polarity::Definition, Polarity::Antithesis].map(constitution).into();
        Query { id: id.to_owned(), row: object(&json!({"id": id})), constitutions }
    }

    fn read(rows: &[Value], ids: &[&str], compared: usize) -> Result<Vec<Said>, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rows.jsonl");
        rows::write(&path, &rows.iter().map(object).collect::<Vec<_>>()).expect("writes");
        let files = [("rows.jsonl".to_owned(), path)].into();
        let input = InputArtifact {
            id: Digest::of(b""),
            kind: ArtifactType::Dataset,
            files,
            skip: 0,
            take: None,
            calling: None,
        };
        let queries: Vec<Query> = ids.iter().map(|id| query(id)).collect();
        answers(&input, "gpt", &queries, compared).map_err(|error| error.to_string())
    }

    #[test]
    fn responses_are_joined_by_id() {
        let rows = [
            json!({"id": "b", "response": " yes \n"}),
            json!({"id": "unused", "response": 3}),
            json!({"id": "a", "response": {"text": "no", "tokens": 4, "finish": "length"}}),
        ];
        let said = read(&rows, &["a", "b"], 1).expect("reads");
        assert_eq!((said[0].text.as_str(), said[0].tokens, said[0].finish), ("no", Some(4), Finish::Length));
        assert_eq!((said[1].text.as_str(), said[1].tokens, said[1].finish), ("yes", None, Finish::Eos));
        let rows = [json!({"id": "a", "responses": ["one", {"text": "two"}, "three"]})];
        let said: Vec<String> = read(&rows, &["a"], 2).expect("reads").into_iter().map(|said| said.text).collect();
        assert_eq!(said, ["one", "two"]);
        let several = json!({"id": "a", "responses": ["1", "2", "3", "4"], "constitutions": query("a").constitutions});
        let said: Vec<String> = read(&[several], &["a"], 2).expect("reads").into_iter().map(|said| said.text).collect();
        assert_eq!(said, ["1", "3"], "two to each constitution");
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let ids: Vec<String> = (0..9).map(|n| format!("q{n}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let error = read(&[json!({"id": "q0", "response": "x"})], &ids, 1).expect_err("eight are missing");
        assert!(error.contains("8 of 9") && error.contains("`q1`, `q2`") && error.contains("and 3 more"), "{error}");
        let twice = [json!({"id": "a", "response": "x"}), json!({"id": "a", "response": "y"})];
        assert!(read(&twice, &["a"], 1).expect_err("doubled").contains("line 2"));
        let other = json!([query("a").constitutions[1], query("a").constitutions[0]]);
        for (row, compared, what) in [
            (json!({"id": "a"}), 1, "no `response`"),
            (json!({"id": "a", "response": 7}), 1, "no text: 7"),
            (json!({"id": "a", "response": "x"}), 2, "2 constitutions are compared"),
            (json!({"id": "a", "responses": ["x"]}), 2, "has 1 responses"),
            (json!({"id": "a", "responses": "x"}), 2, "no list of texts"),
            (json!({"id": "a", "responses": ["x", "y"], "constitutions": other}), 1, "other constitutions"),
        ] {
            let error = read(&[row], &["a"], compared).expect_err(what);
            assert!(error.contains("row `a` of candidate `gpt`") && error.contains(what), "{error}");
        }
    }

    #[test]
    fn rows_of_others_come_into_one_form() {
        let pairs =
            json!({"id": "1", "items": [{"prompt": "P0", "response": " y0"}, {"prompt": "P1", "response": "y1"}]});
        let row = canonical(object(&pairs));
        assert_eq!((&row["constitutions"][1]["text"], &row["responses"][0]["text"]), (&json!("P1"), &json!("y0")));
        let texts = json!({"id": "1", "constitutions": ["be brief", "be long"], "responses": ["a", {"text": "b", "tokens": 1}]});
        let row = canonical(object(&texts));
        let constitutions: Vec<Constitution> =
            serde_json::from_value(row["constitutions"].clone()).expect("whole ones");
        assert_eq!(
            (constitutions[0].text.as_str(), constitutions[0].shuffled(3)),
            ("be brief", constitutions[0].clone())
        );
        assert_eq!((&row["responses"][0]["text"], &row["responses"][1]["tokens"]), (&json!("a"), &json!(1)));
        let odd = object(&json!({"id": "1", "items": [{"prompt": "P0"}]}));
        assert_eq!(canonical(odd.clone()), odd);
    }
}
