use super::*;
use proptest::prelude::*;
use serde_json::json;

fn file(text: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    crate::fs::write(&path, text).unwrap();
    (folder, path)
}

fn ask(nth: u64, take: usize, filter: &str) -> Ask {
    Ask { nth, take, filter: Filter::parse(filter), budget: BUDGET, ..Ask::default() }
}

fn numbered(count: u64) -> String {
    let row = |n: u64| {
        json!({"id": n.to_string(), "n": n, "finish": if n % 3 == 0 { "length" } else { "eos" }}).to_string() + "\n"
    };
    (0..count).map(row).collect()
}

fn numbers(found: &Found) -> Vec<u64> {
    found.rows.iter().map(|row| row.at.row).collect()
}

#[test]
fn pages_follow_each_other() {
    let (_folder, path) = file(&numbered(10));
    let first = look(&path, &ask(0, 4, "")).unwrap();
    assert_eq!((numbers(&first), first.rows_in_all(), first.ended), (vec![0, 1, 2, 3], 10, true));
    let next = first.next.unwrap();
    assert_eq!((next.row, next.nth), (4, 4));
    let second = look(&path, &Ask { from: next, ..ask(4, 4, "") }).unwrap();
    assert_eq!(numbers(&second), [4, 5, 6, 7]);
    assert_eq!(second.rows, look(&path, &ask(4, 4, "")).unwrap().rows, "with and without the place");
    let last = look(&path, &ask(8, 4, "")).unwrap();
    assert_eq!((numbers(&last), last.next), (vec![8, 9], None));
    assert_eq!(numbers(&look(&path, &ask(99, 4, "")).unwrap()), Vec::<u64>::new());
    let inside = Place { byte: 3, row: 3, nth: 3 };
    assert_eq!(numbers(&look(&path, &Ask { from: inside, ..ask(4, 1, "") }).unwrap()), [4], "no beginning of a row");
}

#[test]
fn words_and_conditions_choose_rows() {
    let (_folder, path) = file(
        &[
            json!({"id": "a", "text": "The \"quick\" fox", "win": 0.5, "responses": [{"finish": "eos"}, {"finish": "length"}]}),
            json!({"id": "b", "text": "the lazy dög\n", "win": 1, "responses": [{"finish": "eos"}]}),
            json!({"id": "c", "win": null, "deep": {"er": {"x": true}}}),
        ]
        .map(|row| row.to_string() + "\n")
        .concat(),
    );
    let ids = |filter: &str| {
        let found = look(&path, &ask(0, 9, filter)).unwrap();
        found
            .rows
            .iter()
            .map(|row| row.text[row.text.find("\"id\":\"").unwrap() + 6..][..1].to_owned())
            .collect::<String>()
    };
    for (filter, expected) in [
        ("", "abc"),
        ("THE", "ab"),
        ("the fox", "a"),
        ("\"the lazy\"", "b"),
        ("dög", "b"),
        ("win>0.5", "b"),
        ("win>=0.5 win<1", "a"),
        ("win=1", "b"),
        ("win=null", "c"),
        ("win!=1", "ac"),
        ("responses.finish=length", "a"),
        ("responses.0.finish=eos", "ab"),
        ("deep.er.x=true", "c"),
        ("text=\"the lazy dog\"", ""),
        ("nothing=1", ""),
        ("=1", ""),
        ("\"", "abc"),
    ] {
        assert_eq!(ids(filter), expected, "{filter}");
    }
    let found = look(&path, &Ask { filter: Filter::of_id("b"), ..ask(0, 2, "") }).unwrap();
    assert_eq!(numbers(&found), [1]);
}

#[test]
fn what_was_not_looked_at_is_told_and_gone_on_with() {
    let (_folder, path) = file(&numbered(1000));
    let mut asked = Ask { budget: 4000, ..ask(0, 3, "finish=length n>=500") };
    let (mut found, mut tries) = (look(&path, &asked).unwrap(), 1);
    assert!(!found.ended && found.rows.is_empty() && found.looked.row > 50, "{found:?}");
    assert!(found.rows_in_all().abs_diff(1000) < 150, "{}", found.rows_in_all());
    while found.rows.is_empty() {
        asked.from = found.looked;
        found = look(&path, &asked).unwrap();
        tries += 1;
    }
    assert_eq!(found.rows[0].at.row, 501);
    assert!(tries > 3);
}

#[test]
fn long_rows_are_cut_and_found() {
    let long = "x".repeat(10 << 20);
    let rows = json!({"id": "0", "a": long}).to_string() + "\n" + &json!({"id": "1", "b": long + "needle"}).to_string();
    let (_folder, path) = file(&rows);
    let found = look(&path, &ask(0, 5, "")).unwrap();
    assert_eq!(found.rows.iter().map(|row| row.length).sum::<u64>(), rows.len() as u64 - 1);
    assert!(found.rows.iter().all(|row| row.text.len() == KEPT && !row.is_whole()));
    assert_eq!(numbers(&look(&path, &ask(0, 5, "needle")).unwrap()), [1]);
    assert_eq!(numbers(&look(&path, &ask(0, 5, "id=1")).unwrap()), [1]);
    let (_folder, path) = file(&("y".repeat(70 << 20) + "z needle"));
    let found = look(&path, &ask(0, 5, "needle")).unwrap();
    assert_eq!((numbers(&found), found.rows[0].length), (vec![0], (70 << 20) + 8), "longer than is held");
}

#[test]
fn a_million_rows_are_looked_through() {
    let rows: String =
        (0..1_000_000).map(|n| format!("{{\"id\":\"{n}\",\"text\":\"the quick brown fox {n}\"}}\n")).collect();
    let (_folder, path) = file(&rows);
    let last = look(&path, &ask(999_990, 50, "")).unwrap();
    assert_eq!((numbers(&last).len(), last.rows_in_all(), last.ended), (10, 1_000_000, true));
    let found = look(&path, &ask(0, 50, "fox 99999")).unwrap();
    assert_eq!((found.looked.nth, numbers(&found)[0]), (19, 99_999));
}

proptest! {
    /// Any file, in any pages, has the rows that splitting it at the ends of lines has.
    #[test]
    fn pages_are_the_lines_of_the_file(text in "[ab\n]{0,60}", take in 1usize..5, word in "[ab]{0,2}") {
        let (_folder, path) = file(&text);
        let lines: Vec<&str> = text.strip_suffix('\n').unwrap_or(&text).split('\n').filter(|_| !text.is_empty()).collect();
        let expected: Vec<&str> = lines.iter().copied().filter(|line| line.contains(&word)).collect();
        let (mut got, mut from) = (Vec::new(), Place::default());
        loop {
            let found = look(&path, &Ask { from, ..ask(from.nth, take, &word) }).unwrap();
            got.extend(found.rows.into_iter().map(|row| row.text));
            match found.next {
                Some(next) => from = next,
                None => break,
            }
        }
        prop_assert_eq!(got, expected);
    }
}
