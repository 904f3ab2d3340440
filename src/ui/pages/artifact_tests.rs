//! Pages of artifacts, of their rows and of contrasts, asked as a browser asks for them.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::digest::Digest;
use crate::inspect::sample;
use crate::store::Store;

/// The answer to an address, or the status of the problem.
fn get(site: &Site, address: &str) -> Result<String, u16> {
    let (path, query) = address.split_once('?').unwrap_or((address, ""));
    let answer = find(path).unwrap()(site, &Query::parse(query)).map_err(|problem| problem.status)?;
    Ok(answer.into_text().unwrap().1)
}

fn site(store: &Store) -> Site {
    Site::new(store.root().to_owned(), Vec::new(), Vec::new())
}

fn put(store: &Store, kind: &str, rows: &[String]) -> Digest {
    sample::put(store, kind, &[("rows.jsonl", rows.iter().map(|row| row.clone() + "\n").collect())])
}

#[test]
fn artifacts_are_browsed_searched_and_looked_into() {
    let (_folder, store, index) = sample::store();
    let site = site(&store);
    let all = get(&site, "/artifacts").unwrap();
    assert!(all.contains("train@2") && all.contains("from outside, taken by toy/"), "{all}");
    let found = get(&site, "/artifacts?q=GENERATE").unwrap();
    assert!(found.contains("generate@1</a>") && !found.contains("train@1</a>"));
    let id = store.node(&index.latest_of("generate@2").unwrap()).unwrap().unwrap().artifact;
    assert!(get(&site, &format!("/artifacts?q={}", &id.to_string()[..9])).unwrap().contains("1 to 1 of 1"));
    assert!(get(&site, "/artifacts?q=%3Cb%3E").unwrap().contains("No artifact is like that"));
    let page = get(&site, &format!("/artifact?id={id}&q=iteration%3D2+id%3E4")).unwrap();
    assert!(page.contains("2 that pass the filter, of 7 rows"), "{page}");
    // Up: the model that answered; down: what was trained on it.
    assert!(page.contains("model =") && page.contains("train@1</a>") && page.contains("train@2</a>"));
    assert!(get(&site, "/artifact?id=train@2").unwrap().contains("Weights"));
    let row = get(&site, &format!("/row?id={id}&row=6")).unwrap();
    assert!(row.contains("Row 6") && row.contains("← previous") && !row.contains("next →"));
    for (address, status) in [
        ("/artifact", 400),
        ("/artifact?id=nothing", 404),
        (&format!("/artifact?id={}", Digest::of(b"x"))[..], 404),
        (&format!("/artifact?id={id}&nth=-1"), 400),
        (&format!("/artifact?id={id}&file=../../VERSION"), 404),
        (&format!("/text?id={id}&file=/etc/passwd"), 404),
        (&format!("/raw?id={id}&file=../../VERSION"), 404),
        (&format!("/raw?id={id}"), 400),
        (&format!("/row?id={id}&row=7"), 404),
        (&format!("/contrast?id={}", Digest::of(b"x")), 404),
    ] {
        assert_eq!(get(&site, address).err(), Some(status), "{address}");
    }
}

#[test]
fn what_an_artifact_holds_is_text_whatever_it_is() {
    let (_folder, store, _) = sample::store();
    let site = site(&store);
    let evil = "<script>alert(1)</script><img src=x onerror='alert(2)'>\"";
    let row = json!({"id": evil, "query": evil, evil: evil, "constitutions": [{"text": evil}, {"text": "x"}],
        "responses": [{"text": evil}, {"text": evil, "finish": evil}], "logprobs": [[-1.0, null], [-2.0, -3.0]]});
    let rows = [row.to_string(), evil.to_owned(), json!({"id": "none"}).to_string(), "x".repeat(10 << 20)];
    let id = put(&store, "scores", &rows);
    let last = rows[..3].iter().map(|row| row.len() + 1).sum::<usize>();
    for address in [
        format!("/artifact?id={id}&q=%3Cscript%3E"),
        format!("/artifact?id={id}&columns=%3Cscript%3E,id"),
        format!("/artifact?id={id}"),
        format!("/row?id={id}&row=0"),
        format!("/row?id={id}&row=1"),
        format!("/row?id={id}&row=3&at={last}"),
        format!("/text?id={id}&file=rows.jsonl"),
        format!("/contrast?id={id}&sort=%3Cscript%3E&candidate=%3Cscript%3E&run=%3Cscript%3E"),
        format!("/contrast?id={id}&at=0&by=%3Cscript%3E"),
        format!("/contrast?id={id}&at={}", rows[0].len() + 1 + rows[1].len() + 1),
        "/artifacts?q=%3Cscript%3E&type=%3Cscript%3E&pipeline=%3Cscript%3E".to_owned(),
    ] {
        let page = get(&site, &address).unwrap_or_else(|status| panic!("{status}: {address}"));
        assert!(!page.contains("<script>") && !page.contains("<img"), "{address}: {page}");
        assert!(page.len() < 300_000, "{address} has {} bytes", page.len());
    }
    let contrast = get(&site, &format!("/contrast?id={id}&at=0")).unwrap();
    assert!(contrast.contains("1 of 4 cells are no finite number") && contrast.contains(">NaN</text>"), "{contrast}");
    let none = get(&site, &format!("/contrast?id={id}&at={}", rows[0].len() + 1 + rows[1].len() + 1)).unwrap();
    assert!(none.contains("neither responses nor log-probabilities"), "{none}");
    assert_eq!(
        get(&site, &format!("/contrast?id={id}&at={}", rows[0].len() + 1)).err(),
        Some(404),
        "a row that is none"
    );
    let raw = get(&site, &format!("/raw?id={id}&file=rows.jsonl&at={last}&length={}", 10 << 20)).unwrap();
    assert_eq!(raw.len(), 10 << 20);
}

#[test]
fn a_contrast_has_its_neighbours_in_the_order_that_was_asked_for() {
    let (_folder, store, _) = sample::store();
    let site = site(&store);
    let row = |id: &str, own: f64| {
        json!({"id": id, "query": format!("query {id}"), "constitutions": [{"text": "a"}, {"text": "b"}],
            "responses": [{"text": "r"}, {"text": "s"}], "logprobs": [[own, -5.0], [-5.0, own]]})
        .to_string()
    };
    let rows = [row("0", -9.0), row("1", -1.0), row("2", -4.0)];
    let id = put(&store, "scores", &rows);
    let places: BTreeMap<usize, usize> =
        [(0, 0), (1, rows[0].len() + 1), (2, rows[0].len() + rows[1].len() + 2)].into();
    let list = get(&site, &format!("/contrast?id={id}&sort=bound-down")).unwrap();
    let at = |text: &str| list.find(text).unwrap_or_else(|| panic!("{text}: {list}"));
    assert!(at("query 1") < at("query 2") && at("query 2") < at("query 0"));
    let page = get(&site, &format!("/contrast?id={id}&at={}&sort=bound-down", places[&2])).unwrap();
    let link = |rel: &str| {
        let start = page.find(&format!("rel=\"{rel}\"")).unwrap();
        page[start..].split('"').nth(3).unwrap().replace("&amp;", "&").replace("&#x2f;", "/")
    };
    assert!(get(&site, &link("prev")).unwrap().contains("<h1>query 1</h1>"));
    assert!(get(&site, &link("next")).unwrap().contains("<h1>query 0</h1>"));
    assert!(page.contains("<b>C1</b>") && page.contains("2 of 3 in this order"), "{page}");
}

#[test]
fn pages_of_a_cache_that_changes_say_what_is_gone() {
    let (_folder, store, index) = sample::store();
    let site = site(&store);
    let record = store.node(&index.latest_of("generate@2").unwrap()).unwrap().unwrap();
    let id = record.artifact;
    // The rows went, as after a gc of them or by hand: the page is there, or says what is missing.
    crate::fs::remove_file(&store.files(&id).unwrap()["rows.jsonl"]).unwrap();
    assert!(get(&site, &format!("/artifact?id={id}")).unwrap().contains("cannot be read"));
    assert_eq!(get(&site, &format!("/contrast?id={id}")).err(), Some(404));
    // What it was made of is told without the files of that.
    let model = record.inputs["model"];
    for path in store.files(&model).unwrap().into_values() {
        crate::fs::write_atomic(&path, b"{").unwrap();
    }
    assert!(get(&site, &format!("/artifact?id={model}")).is_ok(), "a damaged config");
    crate::fs::write_atomic(&store.root().join("VERSION"), b"99\n").unwrap();
    assert_eq!(get(&site, &format!("/artifact?id={model}")).err(), Some(500), "a later version");
    drop(index);
    crate::fs::remove_directory(store.root()).unwrap();
    assert_eq!(get(&site, "/artifacts").err(), Some(503));
}

#[test]
fn an_evaluation_tells_its_win_rates_by_principle() {
    let (_folder, store, _) = sample::store();
    let part = |rate: f64| json!({"principle": "brief", "polarity": "thesis", "queries": 9, "win_rate": rate, "low": 0.25, "high": 0.75});
    let found = json!({"against": "base", "candidates": {"z": {"principles": [part(0.625)]}, "a": {"principles": [part(0.5)]}}});
    let id = sample::put(&store, "evaluation", &[("breakdown.json", found.to_string())]);
    let page = get(&site(&store), &format!("/artifact?id={id}")).unwrap();
    let cells = |name: &str, rate: &str| {
        format!(
            "<tr><td>{name}</td><td>brief</td><td>thesis</td><td class=\"number\">9</td><td class=\"number\">{rate}</td><td class=\"number\">0.2500 to 0.7500</td></tr>"
        )
    };
    assert!(page.contains(&(cells("a", "0.5000") + &cells("z", "0.6250"))), "{page}");
    assert!(page.contains(&format!("/contrast?id={id}")));
}
