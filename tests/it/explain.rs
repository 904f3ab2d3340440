//! What `plan`, `status` and `why` say of a pipeline that was changed.

use super::sandbox::Sandbox;

/// A draft, its revision and a verdict on that, over the first two rows of a dataset.
fn pipeline(tone: &str) -> String {
    format!(
        r#"
        [datasets.posts]
        source = "posts.txt"
        [nodes.draft]
        kind = "command"
        program = "sh"
        args = ["-c", "cat {{input.posts}}/rows.jsonl > out; echo $TONE >> out"]
        inputs = {{ posts = {{ from = "posts", take = 2 }} }}
        env = {{ TONE = "{tone}" }}
        [nodes.revision]
        kind = "command"
        program = "sh"
        args = ["-c", "tr a-z A-Z < {{input.draft}}/out > out"]
        inputs = {{ draft = "draft" }}
        [nodes.verdict]
        kind = "command"
        program = "sh"
        args = ["-c", "wc -l < {{input.revision}}/out > out; test ! -e {{output}}/../../../../fail"]
        inputs = {{ revision = "revision" }}
        [nodes.apart]
        kind = "command"
        program = "sh"
        args = ["-c", "echo > out"]
        "#
    )
}

/// Ids, which differ from machine to machine only if something is wrong, and times, which always do, as stars.
fn masked(text: &str) -> String {
    let mask = |word: &str| {
        let id = word.len() >= 12 && word.chars().all(|letter| letter.is_ascii_hexdigit());
        if id { "*".to_owned() } else { word.to_owned() }
    };
    let line = |line: &str| line.split_whitespace().map(mask).collect::<Vec<_>>().join(" ");
    let times = regex::Regex::new(r"\d+ ms|\d+\.\d+ s").expect("a pattern");
    times.replace_all(text, "* s").lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn plan_status_and_why_name_what_changed() {
    let sandbox = Sandbox::with(&pipeline("warm"));
    sandbox.write("posts.txt", "one\ntwo\nthree\n");
    let plan = sandbox.sami(&["plan", "p.toml"]).exits(0).stdout;
    assert_eq!(
        masked(&plan),
        "state node why\nrun draft never ran\nunknown revision until draft\nunknown verdict until draft\n\
         run apart never ran\n4 nodes: 2 to run, 2 unknown until others have run"
    );
    sandbox.run(&[], 0);
    assert_eq!(masked(&sandbox.sami(&["plan", "p.toml"]).exits(0).stdout).lines().last(), Some("4 nodes: 4 fresh"));

    sandbox.write("p.toml", &pipeline("cold"));
    let status = sandbox.sami(&["status", "p.toml"]).exits(0).stdout;
    assert_eq!(
        masked(&status),
        "node kind state took artifact why\ndraft command stale env.TONE \"warm\" -> \"cold\"\n\
         revision command unknown until draft\nverdict command unknown until draft\napart command fresh * s *"
    );
    assert_eq!(
        sandbox.sami(&["why", "p.toml", "verdict"]).exits(0).stdout,
        "verdict is unknown until revision has run: input inputs.revision comes from it\n\
         revision is unknown until draft has run: input inputs.draft comes from it\n\
         draft has to run: env.TONE \"warm\" -> \"cold\"\n"
    );
    let fresh = sandbox.sami(&["why", "p.toml", "apart"]).exits(0).stdout;
    assert!(fresh.starts_with("apart is fresh: artifact ") && fresh.contains(" by run "), "{fresh}");

    // What is above has run already: the explanation goes through it.
    sandbox.write("fail", "");
    let done = sandbox.run(&[], 1);
    assert_eq!((done.names("ran"), done.names("failed")), (vec!["draft", "revision"], vec!["verdict"]));
    assert_eq!(
        masked(&sandbox.sami(&["why", "p.toml", "verdict"]).exits(0).stdout),
        "verdict has to run: input inputs.revision * -> *\nrevision made that anew: input inputs.draft * -> *\n\
         draft made that anew: env.TONE \"warm\" -> \"cold\""
    );
    let steps = sandbox.sami(&["why", "p.toml", "verdict", "--json"]).exits(0).json();
    assert_eq!(steps[0][2]["changes"][0], serde_json::json!({"path": "env.TONE", "old": "warm", "new": "cold"}));
    fs_err::remove_file(sandbox.path("fail")).expect("removes");
    sandbox.run(&[], 0);

    // A row that is taken.
    sandbox.write("posts.txt", "one\n2\nthree\n");
    assert_eq!(
        masked(&sandbox.sami(&["why", "p.toml", "draft"]).exits(0).stdout),
        "draft has to run: input inputs.posts * -> *\nposts comes from outside and is not what it was"
    );
    // A row that is not.
    sandbox.write("posts.txt", "one\ntwo\n3\n");
    let plan = sandbox.sami(&["plan", "p.toml", "--json"]).exits(0).json();
    assert_eq!(
        (&plan["hits"], &plan["nodes"][0]["state"], &plan["nodes"][0]["why"]),
        (&4.into(), &"hit".into(), &"".into())
    );
    let typo = sandbox.sami(&["why", "p.toml", "verdikt"]).exits(2).stderr;
    assert!(typo.contains("`verdict`"), "{typo}");
}
