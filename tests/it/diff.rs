//! What `diff` and `lineage` say of a project's runs, artifacts and rows.

use super::sandbox::Sandbox;
use serde_json::Value;

/// Posts, answers to them under a constitution, scores, a verdict: the files of the real kinds, written by `sh`.
fn pipeline(word: &str, take: u32) -> String {
    let add = |more: &str| format!("sed 's/}}$/,{more}}}/' {{input.rows}}/rows.jsonl > rows.jsonl");
    let stance = |name: &str, text: &str| {
        format!(
            r#"{{"text":"{text}","format":"plain","principles":[{{"name":"{name}","polarity":"definition","text":"{text}"}}]}}"#
        )
    };
    let answers = add(&format!(
        r#""constitutions":[{}],"responses":[{{"text":"this is a {word} answer to it"}}]"#,
        stance("length", "be brief")
    ));
    let scores = add(r#""logprobs":[[-1.5]]"#);
    let verdict = format!(
        r#"cp {{input.rows}}/rows.jsonl rows.jsonl; n=$(grep -c {word} rows.jsonl); echo '{{"win_rate.sami":0.'$n'5,"win_rate_low.sami":0.'$n'1,"win_rate_high.sami":0.'$n'9}}' > metrics.json"#
    );
    format!(
        r#"
        [params]
        word = "{word}"
        [datasets.posts]
        source = "posts.txt"
        [nodes.constitutions]
        kind = "constitutions"
        per_query = 2
        [nodes.constitutions.principles]
        length = {{ definition = "be brief", antithesis = "be long" }}
        tone = {{ definition = "be kind", antithesis = "be rude" }}
        [nodes.answers]
        kind = "command"
        program = "sh"
        args = ["-c", '''{answers}''']
        inputs = {{ rows = {{ from = "posts", take = {take} }}, constitutions = "constitutions" }}
        output = "responses"
        [nodes.scores]
        kind = "command"
        program = "sh"
        args = ["-c", '''{scores}''']
        inputs = {{ rows = "answers" }}
        output = "scores"
        [nodes.verdict]
        kind = "command"
        program = "sh"
        args = ["-c", '''{verdict}''']
        inputs = {{ rows = {{ from = "scores", take = 2 }} }}
        output = "evaluation"
        "#
    )
}

fn ran() -> Sandbox {
    let sandbox = Sandbox::with(&pipeline("quick", 3));
    sandbox.write("posts.txt", "why is it\nwhere is it\nwho is it\nwhen is it\n");
    sandbox.run(&[], 0);
    sandbox.write("p.toml", &pipeline("slow", 4));
    sandbox.run(&[], 0);
    sandbox
}

/// Ids and times as stars.
fn masked(text: &str) -> String {
    let ids =
        regex::Regex::new(r"\d{8}-\d{6}-[0-9a-f]{4}|\d{4}-\d\d-\d\d \d\d:\d\d:\d\d|\b[0-9a-f]{12}\b|\d+ ms|\d+\.\d+ s")
            .expect("a pattern");
    ids.replace_all(text, "*").lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[test]
fn two_runs_are_told_from_what_changed_first() {
    let sandbox = ran();
    let runs = sandbox.sami(&["runs", "--json"]).exits(0).json();
    let id = |at: usize| runs[at]["run"].as_str().expect("an id").to_owned();
    let told = masked(&sandbox.sami(&["diff", &id(1), &id(0)]).exits(0).stdout);
    assert!(told.contains("\nnodes   1 the same, 3 not the same\n"), "{told}");
    assert!(told.contains("\nparams\n  word \"quick\" -> \"slow\"\n"), "{told}");
    assert!(told.contains("\nchanged first\n  answers\n    args[1]\n"), "{told}");
    assert!(told.contains("[-quick-]{+slow+}"), "{told}");
    assert!(told.contains("    input inputs.rows * -> *\n"), "{told}");
    // The verdict's own program changed, too; the scores only follow.
    assert!(told.contains("\nchanged by what they take\n  scores: input inputs.rows of answers\n"), "{told}");
    // A run alone is compared with the one before.
    let json = sandbox.sami(&["diff", &id(0), "--json"]).exits(0).json();
    let changed: Vec<_> = json["changed"].as_array().expect("a list").iter().map(|node| &node["node"]).collect();
    assert_eq!(changed, ["answers", "verdict", "scores"]);
    assert_eq!((&json["before"]["run"], &json["same"]), (&Value::from(id(1)), &1.into()));
    let alone = sandbox.sami(&["diff", &id(1)]).exits(2).stderr;
    assert!(alone.contains("error[cli::diff-alone]"), "{alone}");
}

#[test]
fn artifacts_are_compared_by_recipe_metrics_and_rows() {
    let sandbox = ran();
    let runs = sandbox.sami(&["runs", "--json"]).exits(0).json();
    let old = format!("answers@{}", runs[1]["run"].as_str().expect("an id"));
    let told = masked(&sandbox.sami(&["diff", &old, "answers", "--rows", "1"]).exits(0).stdout);
    let rows = told.split("\nrows.jsonl\n").nth(1).expect("rows");
    assert_eq!(
        rows,
        "  3 rows -> 4, 1 added, 3 changed\n  fields  responses in 3\n\n  row 0\n    responses[0].text \"this is a quick answer to it\" \
         -> \"this is a slow answer to it\"\n\n+ row 3\n    id 3 · text when is it\n      constitutions  be brief\n      \
         responses      this is a slow answer to it\n"
    );
    let json = sandbox.sami(&["diff", "verdict", "--json"]).exits(0).json();
    assert_eq!(json["metrics"], serde_json::json!([]));
    assert_eq!(json["files"][0]["content"]["rows"]["changed"], 2);
    assert_eq!(json["files"][0]["content"]["rows"]["fields"]["responses"], 2);
    let types = sandbox.sami(&["diff", "answers", "scores"]).exits(2).stderr;
    assert!(types.contains("is of type responses") && types.contains("error[cli::diff-types]"), "{types}");
    let mixed = sandbox.sami(&["diff", "answers", runs[1]["run"].as_str().expect("an id")]).exits(2).stderr;
    assert!(mixed.contains("error[cli::diff-types]"), "{mixed}");
    let nobody = sandbox.sami(&["diff", "answers@1999", "scores"]).exits(2).stderr;
    assert!(nobody.contains("error[cli::unknown]"), "{nobody}");
    assert!(sandbox.sami(&["diff", "scores", "scores"]).exits(0).stdout.contains("the same artifact"));
}

#[test]
fn lineage_goes_up_to_the_row_and_down_to_all_that_it_touched() {
    let sandbox = ran();
    let told = |args: &[&str]| masked(&sandbox.sami(&[&["lineage"], args].concat()).exits(0).stdout);
    // Names with what they are taken as, sizes and ids left out.
    let tree = |args: &[&str]| -> Vec<String> {
        let text = told(args);
        let lines = text.lines().take_while(|line| !line.is_empty());
        lines
            .map(|line| {
                line.split("  * ").next().unwrap_or_default().split(" *,").next().unwrap_or_default().to_owned()
            })
            .collect()
    };
    assert_eq!(
        tree(&["verdict"]),
        [
            "verdict  evaluation",
            "└─ inputs.rows = scores  scores",
            "   └─ inputs.rows = answers  responses",
            "      ├─ inputs.constitutions = constitutions  constitutions",
            "      └─ inputs.rows = dataset:posts  dataset"
        ],
        "{}",
        told(&["verdict"])
    );
    let up = told(&["verdict", "--row", "1"]);
    assert!(up.contains("row id 1 · text where is it\n"), "{up}");
    assert!(up.contains("principle length (definition)  be brief\n"), "{up}");
    assert!(up.contains("responses      this is a slow answer to it"), "{up}");
    // The verdict is on two rows only.
    let none = sandbox.sami(&["lineage", "verdict", "--row", "9"]).exits(2).stderr;
    assert!(none.contains("error[cli::no-row]") && none.contains("`0`, `1`"), "{none}");
    let touched = |row: &str| {
        let json = sandbox.sami(&["lineage", "dataset:posts", "--down", "--row", row, "--json"]).exits(0).json();
        let items = json["items"].as_array().expect("a list").clone();
        let mut names: Vec<String> =
            items.iter().filter_map(|item| item["made"]["node"].as_str().map(str::to_owned)).collect();
        names.sort();
        names
    };
    // Two runs have made two artifacts of each; the fourth row only the second run took, and no verdict is on it.
    assert_eq!(touched("1"), ["answers", "answers", "scores", "scores", "verdict", "verdict"]);
    assert_eq!(touched("2"), ["answers", "answers", "scores", "scores"]);
    assert_eq!(touched("3"), ["answers", "scores"]);
    let principle = told(&["--principle", "length"]);
    assert!(principle.contains("4 of 4 rows") && principle.contains("made in 2 runs: "), "{principle}");
    assert!(principle.contains("verdict"), "{principle}");
    assert_eq!(tree(&["--principle", "1"]), tree(&["--principle", "length"]));
    // No row was answered under the other one.
    assert_eq!(tree(&["--principle", "tone"]).len(), 1, "{}", told(&["--principle", "tone"]));
    let typo = sandbox.sami(&["lineage", "--principle", "lenght"]).exits(2).stderr;
    assert!(typo.contains("`length`"), "{typo}");
    let typo = sandbox.sami(&["lineage", "dataset:post"]).exits(2).stderr;
    assert!(typo.contains("`dataset:posts`"), "{typo}");
    sandbox.sami(&["lineage"]).exits(2);
    let depth = told(&["verdict", "--depth", "1"]);
    assert!(depth.contains("more further away"), "{depth}");
    let run = sandbox.sami(&["runs", "--json"]).exits(0).json()[0]["run"].as_str().expect("an id").to_owned();
    assert_eq!(tree(&[&run]), tree(&["verdict"]));
    assert!(tree(&[&run, "--down"]).len() >= 3);
}
