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
        "draft has to run: input inputs.posts * -> *\nposts comes from outside and is not what it was\n\
         2 rows -> 2, 1 changed\nfields text in 1\n\nrow 1\ntext \"two\" -> \"2\""
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

#[test]
fn why_shows_lines_of_texts_rows_of_datasets_and_the_nearest_cell() {
    let pipeline = |line: &str, scale: &str| {
        format!(
            r#"
            [datasets.posts]
            source = "posts.txt"
            [nodes.draft]
            kind = "command"
            program = "sh"
            args = ["-c", "sh {{script}} < {{input.posts}}/rows.jsonl > out"]
            script = """
# one
# two
{line}
# four
"""
            inputs = {{ posts = "posts" }}
            [nodes.sweep]
            kind = "command"
            program = "sh"
            matrix = {{ scale = [{scale}] }}
            args = ["-c", "echo $SCALE > out; cat {{input.draft}}/out >> out"]
            env = {{ SCALE = "x${{scale}}" }}
            inputs = {{ draft = "draft" }}
            "#
        )
    };
    let sandbox = Sandbox::with(&pipeline("cat", "1, 2"));
    sandbox.write("posts.txt", "one\ntwo\nthree\n");
    sandbox.run(&[], 0);
    let why = |node: &str| masked(&sandbox.sami(&["why", "p.toml", node]).exits(0).stdout);
    sandbox.write("p.toml", &pipeline("cat -", "1, 2"));
    assert_eq!(why("draft"), "draft has to run:\nscript\n…\n# two\n- cat\n+ cat -\n# four");
    // The same bytes come of it: what is below stays.
    sandbox.run(&[], 0);
    sandbox.write("posts.txt", "one\n2\nthree\nfour\n");
    let told = why("sweep[scale=1]");
    assert!(
        told.starts_with("sweep[scale=1] is unknown until draft has run: input inputs.draft comes from it\n"),
        "{told}"
    );
    assert!(
        told.contains("posts comes from outside and is not what it was\n3 rows -> 4, 1 added, 1 changed\n"),
        "{told}"
    );
    assert!(told.contains("row 1\ntext \"two\" -> \"2\"\n") && told.contains("+ row 3"), "{told}");
    let json = sandbox.sami(&["why", "p.toml", "draft", "--json"]).exits(0).json();
    assert_eq!((&json[0][1]["finding"], &json[0][1]["rows"]["changed"]), (&"source".into(), &1.into()));
    sandbox.write("posts.txt", "one\ntwo\nthree\n");
    sandbox.write("p.toml", &pipeline("cat -", "1, 2, 3"));
    let told = why("sweep[scale=3]");
    assert_eq!(
        told,
        "sweep[scale=3] has to run: never ran\nit is most like sweep[scale=1]: env.SCALE \"x1\" -> \"x3\""
    );
    // What a waiting node knows of itself already.
    sandbox.write("p.toml", &pipeline("cat - # again", "1, 2").replace("$SCALE >", "$SCALE >>"));
    let told = why("sweep[scale=1]");
    assert!(told.contains("whatever that gives, it has to run:\nargs[1]\n"), "{told}");
}

#[test]
fn a_plan_says_how_long_nodes_are_likely_to_take() {
    let pipeline = |tone: &str| {
        format!(
            "[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo $TONE > out\"]\nenv = {{ TONE = \"{tone}\" }}\n"
        )
    };
    let sandbox = Sandbox::with(&pipeline("0"));
    assert!(!sandbox.sami(&["plan", "p.toml"]).exits(0).stdout.contains("time"));
    for run in 1..=3 {
        sandbox.run(&[], 0);
        sandbox.write("p.toml", &pipeline(&run.to_string()));
    }
    let plan = sandbox.sami(&["plan", "p.toml", "--estimate"]).exits(0).stdout;
    assert!(
        plan.contains("one after another; from 3 earlier attempts") && plan.contains("its 3 attempts here"),
        "{plan}"
    );
    let past = sandbox.sami(&["plan", "p.toml", "--json"]).exits(0).json()["nodes"][0]["estimate"]["past"].clone();
    assert_eq!((&past["attempts"], &past["likeness"]), (&3.into(), &"node".into()));
    let ends = ["low", "middle", "high"].map(|end| past["seconds"][end].as_f64().expect("a number"));
    assert!(0.0 < ends[0] && ends[0] < ends[1] && ends[1] < ends[2], "{past}");
}
