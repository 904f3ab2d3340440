//! A writer of principles behind an endpoint: answers of every kind, and what becomes of them.

use sami::cli;
use serde_json::{Value, json};

use super::endpoint_server::{Act, Server};
use super::sandbox::Sandbox;

const DONE: i32 = cli::DONE as i32;
const FAILED: i32 = cli::FAILED as i32;
const USAGE: i32 = cli::USAGE as i32;

const GOOD: &str = r#"{"concise": {"definition": "Summaries are brief.", "antithesis": "Summaries ramble."},
"comprehensive": {"definition": "Summaries leave out nothing.", "antithesis": "Summaries leave out most."}}"#;

fn pipeline(server: &Server, more: &str) -> String {
    format!(
        "{}\n[nodes.constitutions]\nkind = \"constitutions\"\nwriter = \"voice\"\ntask = \"summarize a post\"\n\
         principles = {{ concise = {{}}, comprehensive = {{}} }}\n{more}\n",
        server.model("voice", "")
    )
}

fn made(sandbox: &Sandbox) -> Value {
    let text = sandbox.sami(&["cache", "cat", "constitutions", "constitutions.json"]).exits(DONE).stdout;
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn bad_answers_are_told_to_the_writer_until_one_is_good() {
    let answers = [
        "A concise summary is a short one.".to_owned(),
        GOOD.replacen('{', r#"{"poetic": {"definition": "Rhyme.", "antithesis": "Prose."}, "#, 1),
        "I'm sorry, but I cannot do that.".to_owned(),
        GOOD.replace("Summaries ramble.", "…"),
        format!("Here you are:\n```json\n{GOOD}\n```\nAnything else?"),
    ];
    let script = answers.clone();
    let server = Server::start(move |call| Act::say(script[call.number.min(4)].clone()));
    let sandbox =
        Sandbox::with(&pipeline(&server, "writer_attempts = 5\nwriter_system = \"You write for {{ task }}.\""));
    let output = sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE);
    let made = made(&sandbox);
    assert_eq!(made["principles"]["concise"]["antithesis"], "Summaries ramble.");
    let metrics = &output.json()["nodes"][0]["metrics"];
    assert_eq!((&metrics["tries"], &metrics["written"], &metrics["calls"]), (&json!(5), &json!(2), &json!(5)));

    // Each question but the first has the answer before it and what is wrong with that.
    let calls = server.calls();
    assert_eq!(calls.len(), 5);
    assert_eq!(calls[0].said("system"), Some("You write for summarize a post."));
    assert!(calls[0].user().contains("summarize a post") && calls[0].user().contains("comprehensive, concise"));
    for (call, (answer, fault)) in calls[1..].iter().zip(answers.iter().zip([
        "there is no JSON object in it",
        "has `poetic`, which was not asked for",
        "it is a refusal",
        "the antithesis of `concise` is \"…\"",
    ])) {
        assert!(call.user().contains(answer.as_str()) && call.user().contains(fault), "{}", call.user());
        assert!(call.user().starts_with(calls[0].user()));
    }

    // All of it stands beside the principles.
    let provenance = &made["provenance"];
    assert_eq!(
        (&provenance["model"], &provenance["principles"]["concise"]["definition"]),
        (&json!("tiny"), &json!("written"))
    );
    let attempts = provenance["attempts"].as_array().expect("a list");
    assert_eq!((attempts.len(), &attempts[0]["reply"]), (5, &json!(answers[0])));
    assert!(attempts[0]["fault"].is_string() && attempts[4].get("fault").is_none(), "{provenance}");

    // Nothing is asked again: not by another run, not by another node that asks the same.
    assert_eq!(sandbox.run(&[], DONE).ran, 0);
    sandbox.write(
        "p.toml",
        &pipeline(&server, "writer_attempts = 5\nwriter_system = \"You write for {{ task }}.\"\nper_query = 3"),
    );
    assert_eq!((sandbox.run(&[], DONE).ran, server.calls().len()), (1, 5));
}

#[test]
fn the_last_answer_is_shown_where_none_can_be_used() {
    let server = Server::start(|_| Act::say("Both are good principles."));
    let sandbox = Sandbox::with(&pipeline(&server, ""));
    let output = sandbox.sami(&["run", "p.toml"]).exits(FAILED);
    for told in ["in 3 tries", "there is no JSON object in it", "Both are good principles.", "`writer_attempts`"] {
        assert!(output.stderr.contains(told), "{told}: {}", output.stderr);
    }
    assert_eq!(server.calls().len(), 3);
    // A run after it repeats no question, and asks the ones that are new.
    sandbox.write("p.toml", &pipeline(&server, "writer_attempts = 4"));
    sandbox.sami(&["run", "p.toml"]).exits(FAILED);
    assert_eq!(server.calls().len(), 4);
}

#[test]
fn what_a_person_wrote_is_kept_and_only_the_rest_is_asked_for() {
    let server = Server::start(|_| Act::say(r#"{"kind": {"definition": "Be nice!", "antithesis": "Be mean."}}"#));
    let principles = "principles = { brief = { definition = \"Be brief.\", antithesis = \"Ramble.\" }, \
                      kind = { definition = \"Be kind.\" } }";
    let text = pipeline(&server, "").replace("principles = { concise = {}, comprehensive = {} }", principles);
    let sandbox = Sandbox::with(&text);
    sandbox.run(&[], DONE);
    let made = made(&sandbox);
    assert_eq!(made["principles"]["kind"], json!({"definition": "Be kind.", "antithesis": "Be mean."}));
    assert_eq!(made["provenance"]["principles"]["kind"], json!({"definition": "given", "antithesis": "written"}));
    let calls = server.calls();
    assert!(calls[0].user().contains("- brief: Be brief. Its opposite: Ramble."), "{}", calls[0].user());
    assert!(calls[0].user().ends_with("{\n  \"kind\": {\"definition\": \"Be kind.\", \"antithesis\": \"…\"}\n}"));
}

#[test]
fn fields_of_a_writer_are_checked_before_it_is_asked() {
    let server = Server::start(|_| Act::say(GOOD));
    let says = |text: String| Sandbox::with(&text).sami(&["check", "p.toml"]).exits(USAGE).stderr;
    let whole = "principles = { a = { definition = \"x y\", antithesis = \"z\" } }";
    let error = says(pipeline(&server, "").replace("principles = { concise = {}, comprehensive = {} }", whole));
    assert!(error.contains("there is nothing to write"), "{error}");
    let error = says(pipeline(&server, "writer_attempts = 0\nwriter_prompt = \"{{ task\""));
    assert!(error.contains("the writer is never asked") && error.contains("the template does not parse"), "{error}");
    let error = says(pipeline(&server, "writer_attempts = 2").replace("writer = \"voice\"\n", ""));
    assert!(error.contains("`writer_attempts` without `writer`"), "{error}");
    assert!(
        error.contains("the principle `concise` has no definition") && error.contains("writer = \"MODEL\""),
        "{error}"
    );
    assert_eq!(server.calls().len(), 0);
}
