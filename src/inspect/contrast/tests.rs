use super::*;
use serde_json::{Value, json};

fn scored(id: &str, cells: Value) -> String {
    json!({"id": id, "query": format!("q {id}"), "constitutions": [{"text": "be brief ."}, {"text": "be long ."}],
        "responses": [{"text": "a b", "tokens": 2, "finish": "eos"}, {"text": "a c", "finish": "length"}],
        "lengths": [2, 4], "logprobs": cells})
    .to_string()
}

fn panel(cells: Value) -> Panel {
    let row = read(&scored("0", cells)).unwrap();
    let candidate = row.candidates[0].clone();
    let figures = candidate.figures();
    let asked = Asked { model: "m".into(), artifact: None, candidate: String::new(), iteration: 0, order: 0 };
    Panel {
        asked,
        by: Vec::new(),
        responses: candidate.responses,
        cells: candidate.cells,
        figures: figures.clone().ok(),
        why: figures.err(),
    }
}

#[test]
fn a_matrix_is_read_in_nats_per_token_and_in_shares() {
    let panel = panel(json!([[-2.0, -8.0], [-4.0, -4.0]]));
    let figures = panel.figures.unwrap();
    assert!(
        (figures.bound - (2f64.ln() - 0.5 * ((1.0 + (-2f64).exp()).ln() + (1.0 + (-4f64).exp()).ln()))).abs() < 1e-9
    );
    assert_eq!((figures.accuracy_column, figures.accuracy_row), (1.0, 0.75), "a tie is half");
    assert_eq!(panel.per_token(), [[Some(-1.0), Some(-2.0)], [Some(-2.0), Some(-1.0)]]);
    let shares = panel.shares();
    assert!((shares[0][0].unwrap() - 1.0 / (1.0 + (-2f64).exp())).abs() < 1e-12);
    assert!((shares[0][1].unwrap() + shares[1][1].unwrap() - 1.0).abs() < 1e-12);
    assert_eq!(panel.each(), 1);
}

#[test]
fn what_is_no_matrix_says_why() {
    let why = |cells: Value| panel(cells).why.unwrap();
    assert_eq!(why(json!([[-2.0, null], [-4.0, "x"]])), "2 of 4 cells are no finite number");
    assert_eq!(why(json!([])), "nothing was scored");
    assert_eq!(why(json!([[-1.0, -2.0], [-1.0]])), "its rows are not equally long");
    assert!(why(json!([[-1.0]])).contains("C×C"), "{}", why(json!([[-1.0]])));
    assert_eq!(panel(json!([[-2.0, null], [-4.0, -1.0]])).shares()[0], [Some(1.0 / (1.0 + (-2f64).exp())), None]);
    assert!(read("[]").is_none() && read("{").is_none());
    let empty = read(r#"{"id": 7, "text": "<b>", "constitutions": "x", "responses": []}"#).unwrap();
    assert_eq!((empty.id.as_str(), empty.query.as_str(), empty.candidates.len()), ("7", "<b>", 0));
}

#[test]
fn queries_are_listed_by_their_bound() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    let rows = [
        scored("0", json!([[-2.0, -2.0], [-2.0, -2.0]])),
        scored("1", json!([[-9.0, -2.0], [-2.0, -9.0]])),
        scored("2", json!([[null, -2.0], [-2.0, -9.0]])),
        scored("3", json!([[-2.0, -9.0], [-9.0, -2.0]])),
        "no row".to_owned(),
    ];
    crate::fs::write(&path, rows.join("\n")).unwrap();
    let listing = list(&path).unwrap();
    assert!(listing.ended && listing.candidates == [""]);
    let ids = |sort: Sort| {
        let mut listing = listing.clone();
        listing.sort(sort, 0);
        listing.entries.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(ids(Sort::File), "0 1 2 3 ");
    assert_eq!(ids(Sort::BoundUp), "1 0 3 2 ", "without figures last");
    assert_eq!(ids(Sort::BoundDown), "3 0 1 2 ");
    assert_eq!(ids(Sort::Gap), "3 0 1 2 ");
    assert_eq!(listing.entries[1].at.byte, rows[0].len() as u64 + 1);
    assert!(Sort::ALL.iter().all(|(sort, name, _)| Sort::named(name) == Some(*sort)));
}

#[test]
fn words_that_are_not_in_all_texts_are_marked() {
    let shown = |texts: &[&str]| -> Vec<String> {
        let part = |part: &Part| if part.differs { format!("[{}]", part.text) } else { part.text.clone() };
        marks(texts).iter().map(|parts| parts.iter().map(part).collect()).collect()
    };
    assert_eq!(
        shown(&["be brief now .", "be long now .", "be brief then ."]),
        ["be [brief] [now] .", "be [long] now .", "be brief [then] ."]
    );
    assert_eq!(shown(&["same", "same"]), ["same", "same"]);
    assert_eq!(shown(&["", "ü"]), ["", "[ü]"]);
    assert_eq!(shown(&["alone"]), ["alone"]);
    assert!(shown(&[]).is_empty());
}

mod in_a_store;
