//! `sami cache rows` and what runs say of rows that were remembered, with a model that is called so that no time goes by.

use super::endpoint_server::{Act, Server, questions};
use super::sandbox::Sandbox;

fn echo() -> Server {
    Server::start(|call| Act::say(format!("said {}", call.user())))
}

#[test]
fn a_dataset_that_grew_costs_its_new_rows_and_runs_say_so() {
    let server = echo();
    let model = server.model("voice", "");
    let sandbox = Sandbox::with(&questions(&model, 10));
    let told = sandbox.sami(&["run", "p.toml"]).exits(0).stderr;
    assert!(told.contains("reused 0 of 10 rows"), "{told}");
    sandbox.write("p.toml", &questions(&model, 11));
    let told = sandbox.sami(&["run", "p.toml"]).exits(0).stderr;
    assert!(told.contains("reused 10 of 11 rows") && server.calls().len() == 22, "{told}");
    // Another pipeline, other names.
    let other = questions(&model, 11).replace("voice", "speaker").replace("[nodes.generate]", "[nodes.answers]");
    sandbox.write("other.toml", &other.replace("distinct = false", "distinct = false, min_tokens = 0"));
    let told = sandbox.sami(&["run", "other.toml"]).exits(0).stderr;
    assert!(told.contains("reused 11 of 11 rows") && server.calls().len() == 22, "{told}");
    let shown = sandbox.sami(&["show", "answers"]).exits(0).stdout;
    assert!(shown.contains("rows_asked 11") && shown.contains("rows_reused 11"), "{shown}");
    assert!(shown.contains("not reproducible: an endpoint"), "{shown}");
}

#[test]
fn the_memo_can_be_looked_into_and_bounded() {
    let server = echo();
    let sandbox = Sandbox::with(&questions(&server.model("voice", ""), 10));
    sandbox.sami(&["cache", "rows"]).exits(2);
    sandbox.run(&[], 0);
    let listed = sandbox.sami(&["cache", "rows"]).exits(0).stdout;
    for part in ["speak", "paid", "max_new_tokens 12", "20", "0 of 20", "generate", "1 space", "of at most 18.6 GiB"] {
        assert!(listed.contains(part), "`{part}` is not in\n{listed}");
    }
    let json = sandbox.sami(&["cache", "rows", "--json"]).exits(0).json();
    let space = json["spaces"][0]["space"].as_str().expect("an id").to_owned();
    assert_eq!((&json["spaces"][0]["rows"], &json["spaces"][0]["about"]["what"]), (&20.into(), &"speak".into()));
    let shown = sandbox.sami(&["cache", "rows", &space[..8], "--grep", "question 3", "--last", "1"]).exits(0).stdout;
    assert!(shown.contains("question 3\n  = \"said ") && shown.contains("1 before these"), "{shown}");
    let json = sandbox.sami(&["cache", "rows", &space, "--last", "3", "--json"]).exits(0).json();
    assert_eq!((json["rows"].as_array().map(Vec::len), &json["matching"]), (Some(3), &20.into()));
    let told = sandbox.sami(&["cache", "rows", "nothing"]).exits(2).stderr;
    assert!(told.contains("no space of the row memo begins with `nothing`"), "{told}");

    let told = sandbox.sami(&["cache", "rows", "--evict", "--limit", "0B"]).exits(0).stdout;
    assert!(told.contains("evicted 0 B") && told.contains("--paid SPACE"), "{told}");
    let evict = ["cache", "rows", "--evict", "--limit", "0B", "--paid", &space[..12]];
    let told = sandbox.sami(&[&evict[..], &["--dry-run"]].concat()).exits(0).stdout;
    assert!(told.contains("would evict") && sandbox.sami(&["cache", "rows"]).stdout.contains("speak"), "{told}");
    sandbox.sami(&evict).exits(0);
    assert!(sandbox.sami(&["cache", "rows"]).exits(0).stdout.contains("no rows are remembered"));
    assert_eq!(sandbox.run(&[], 0).hits, 2, "artifacts do not rest on it");
    sandbox.verify();

    let told = sandbox.sami(&["cache", "rows", "--evict", "--limit", "much"]).exits(2).stderr;
    assert!(told.contains("--limit: `much` is no size"), "{told}");
    let output = sandbox.command(&["cache", "rows"]).env("SAMI_ROWS_LIMIT", "9 apples").output().expect("starts");
    assert!(String::from_utf8_lossy(&output.stderr).contains("SAMI_ROWS_LIMIT: `9 apples` is no size"));
}
