//! Constitutions: the authors' files as they are, principles kept out of training, and what is wrong with principles.

use sami::cli::{DONE, USAGE};
use sami::kinds::principles::Principles;

use super::real::test_data;
use super::sandbox::Sandbox;

/// Files, how many principles each has, and whether all of those have an antithesis.
const FILES: &[(&str, usize, bool)] = &[
    ("sami_tldr_mistral.json", 2, true),
    ("sami_tldr_opus.json", 2, true),
    ("sami_tldr_human.json", 2, true),
    ("sami_tldr_pirate.json", 3, true),
    ("sami_tldr_opus_diverse.json", 20, true),
    ("sami_principles.json", 5, true),
    ("sami_styles.json", 31, false),
    ("sami_star_gate_personas.json", 100, false),
    ("sami_ext_math.json", 2, true),
    ("sami_ext_mt_bench.json", 9, true),
];

#[test]
fn the_authors_files_are_read_as_they_are() {
    let Some(directory) = test_data("constitutions") else { return };
    for (name, count, whole) in FILES {
        let path = directory.join(name);
        let text = fs_err::read_to_string(&path).expect("a file");
        let principles: Principles = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(principles.0.len(), *count, "{name}");
        assert!(principles.0.values().all(|draft| draft.definition.is_some()), "{name}");
        assert_eq!(principles.0.values().all(|draft| draft.written_antithesis().is_some()), *whole, "{name}");
        let sandbox = Sandbox::with(&format!(
            "[nodes.constitutions]\nkind = \"constitutions\"\nprinciples = {{ file = {path:?} }}\n\
             principles_per_constitution = 2\n"
        ));
        let output = sandbox.sami(&["check", "p.toml"]).exits(if *whole { DONE.into() } else { USAGE.into() });
        if !whole {
            assert!(output.stderr.contains("has no antithesis, and there is no writer"), "{name}: {}", output.stderr);
        }
    }
    let listed = fs_err::read_dir(directory).expect("a directory").count();
    assert_eq!(listed, FILES.len(), "a file is not tried");
}

/// Of twenty principles the first fifteen are for training and the last five for the evaluation, two of them at a time.
#[test]
fn the_diverse_principles_are_split_as_the_authors_split_them() {
    let Some(directory) = test_data("constitutions/sami_tldr_opus_diverse.json") else { return };
    let sandbox = Sandbox::with(&format!(
        "[nodes.constitutions]\nkind = \"constitutions\"\nprinciples = {{ file = {directory:?} }}\n\
         contrast = \"complement\"\nprinciples_per_constitution = 2\nhold_out = {{ principles = 5 }}\n"
    ));
    let done = sandbox.run(&[], DONE.into());
    let key = done.nodes[0].key.clone().expect("a key");
    let made = sandbox.sami(&["cache", "cat", &key, "constitutions.json"]).exits(DONE.into()).stdout;
    let made: serde_json::Value = serde_json::from_str(&made).expect("JSON");
    let held = ["satirical", "philosophical", "motivational", "analytical", "sarcastic"];
    assert_eq!(made["hold_out"]["principles"], serde_json::json!(held));
    let shown = sandbox.sami(&["show", "constitutions"]).exits(DONE.into()).stdout;
    // 105 pairs and 10, each in two polarities that are not each other's complement.
    assert!(shown.contains("230") && shown.contains("20"), "{shown}");
}

#[test]
fn what_is_wrong_with_principles_is_told_before_a_run() {
    let says = |fields: &str| {
        let sandbox = Sandbox::with(&format!("[nodes.constitutions]\nkind = \"constitutions\"\n{fields}\n"));
        sandbox.sami(&["check", "p.toml"]).exits(USAGE.into()).stderr
    };
    let two = "principles = { brief = { definition = \"Be brief.\", antithesis = \"Ramble.\" }, \
               short = { definition = \"be BRIEF\", antithesis = \"Say it all.\" } }";
    let error = says(two);
    assert!(error.contains("the definition of `brief` and the definition of `short` say the same"), "{error}");
    let error = says("principles = { brief = { definition = \"Be brief.\", antithesis = \"Be brief!\" } }");
    assert!(error.contains("the antithesis of `brief` says the same as its definition"), "{error}");
    let apart = two.replace("be BRIEF", "Be kind.");
    let error = says(&format!("{apart}\nhold_out = {{ principles = [\"long\"] }}\nprinciples_per_constitution = 1"));
    assert!(error.contains("there is no principle `long`") && error.contains("`brief`, `short`"), "{error}");
    let error = says(&format!("{apart}\nhold_out = {{ principles = 1 }}"));
    assert!(error.contains("a constitution of 2 principles cannot be drawn from 1"), "{error}");
    let error = says(&format!("{apart}\nhold_out = {{ principle = 1 }}"));
    assert!(error.contains("has no key `principle`"), "{error}");
    let error = says(&format!("{apart}\nmust_flip = [\"kind\"]"));
    assert!(error.contains("there is no principle `kind`"), "{error}");
}
