//! Models that judge, and responses made elsewhere that are judged.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use sami::cli;
use serde_json::Value;

use super::endpoint_server::{Act, Call, Server};
use super::sandbox::{Output, Sandbox};

const DONE: i32 = cli::DONE as i32;
const FAILED: i32 = cli::FAILED as i32;
const INTERRUPTED: i32 = cli::INTERRUPTED as i32;
const USAGE: i32 = cli::USAGE as i32;

/// Twelve queries, and responses of two candidates to them that were made elsewhere; `judge` is the table of a model.
fn pipeline(judge: &str, fields: &str) -> String {
    format!(
        r#"{judge}
[datasets.questions]
make = {{ rows = 12, seed = 2, template = '{{"query": "question {{{{ row }}}}"}}' }}
[datasets.short]
make = {{ rows = 12, seed = 2, template = '{{"response": "yes {{{{ row }}}}"}}' }}
[datasets.long]
make = {{ rows = 12, seed = 2, template = '{{"response": "well , yes it is so {{{{ row }}}}"}}' }}
[datasets.silent]
make = {{ rows = 12, seed = 2, template = '{{"response": ""}}' }}
[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
principles.brief = {{ definition = "be brief .", antithesis = "be long ." }}
principles.formal = {{ definition = "be formal .", antithesis = "be casual ." }}
[nodes.evaluate]
kind = "evaluate"
candidates = {{ long = "long", short = "short" }}
against = "long"
queries = "questions"
constitutions = "constitutions"
prompt = "{{{{ query }}}}"
judge = "judge"
{fields}
"#
    )
}

/// The responses as a judge is shown them.
fn shown(call: &Call) -> [String; 2] {
    ["A", "B"].map(|label| {
        let (_, rest) = call.user().split_once(&format!("<response-{label}>\n")).expect("it is shown");
        rest.split_once(&format!("\n</response-{label}>")).expect("it ends").0.to_owned()
    })
}

/// The verdict of a judge that likes what is short.
fn for_the_shorter(call: &Call) -> String {
    let [a, b] = shown(call);
    format!("A has {} letters and B has {}.\nVerdict: {}", a.len(), b.len(), if a.len() < b.len() { "A" } else { "B" })
}

/// A server that judges so, each answer after a moment.
fn judge(millis: u64) -> Server {
    Server::start(move |call| Act::Late(Duration::from_millis(millis), for_the_shorter(call)))
}

fn metrics(output: &Output) -> Value {
    let last = output.json();
    let nodes = last["nodes"].as_array().expect("a list");
    nodes.iter().find(|node| node["name"] == "evaluate").expect("it is there")["metrics"].clone()
}

/// Everything that was said to the server.
fn distinct(server: &Server) -> usize {
    server.calls().iter().map(|call| call.body.to_string()).collect::<BTreeSet<_>>().len()
}

#[test]
fn an_endpoint_judges_in_both_orders_and_is_asked_once() {
    let server = judge(0);
    let sandbox = Sandbox::with(&pipeline(&server.model("judge", ""), ""));
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((server.calls().len(), distinct(&server)), (24, 24));
    assert_eq!((&found["win_rate"], &found["win_rate.short"]), (&1.0.into(), &1.0.into()));
    let judge = |name: &str| found[format!("judge.{name}")].as_u64().unwrap_or_else(|| panic!("no {name}: {found}"));
    assert_eq!(["rulings", "identical", "unparsed", "asked_again", "split"].map(judge), [24, 0, 0, 0, 0]);
    assert_eq!(judge("for_first"), 12, "each response stands first once");
    assert!(found.get("bound.short").is_none() && found.get("mean_length.short").is_none(), "{found}");
    assert!(found["mean_characters.short"].as_f64() < found["mean_characters.long"].as_f64());
    let call = &server.calls()[0];
    assert!(call.said("system").is_some() && call.user().contains("question ") && call.user().contains("be "));
    assert!(!call.user().contains("short") && call.body["temperature"] == 0.0, "{}", call.body);

    // The words are kept beside the verdicts.
    let rows = sandbox.sami(&["cache", "cat", "evaluate", "rows.jsonl"]).exits(DONE).stdout;
    let row: Value = serde_json::from_str(rows.lines().next().expect("a row")).expect("JSON");
    let verdict = &row["candidates"]["short"]["verdicts"][0];
    assert_eq!((&verdict["win"], &verdict["rulings"][0]["first"]), (&1.0.into(), &true.into()));
    assert!(verdict["rulings"][1]["says"].as_str().expect("words").ends_with("Verdict: B"), "{verdict}");
    let page = sandbox.sami(&["show", "evaluate"]).exits(DONE).stdout;
    assert!(page.contains("brief") && page.contains("antithesis"), "{page}");

    // Another way to count is no other question, and neither is another candidate beside these.
    sandbox.write("p.toml", &pipeline(&server.model("judge", ""), "ties = \"loss\""));
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((server.calls().len(), &found["win_rate"]), (24, &1.0.into()));
    let more =
        pipeline(&server.model("judge", ""), "").replace("short = \"short\"", "short = \"short\", silent = \"silent\"");
    sandbox.write("p.toml", &more);
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((server.calls().len(), distinct(&server)), (48, 48));
    assert!(server.calls()[30].user().contains("(nothing)"), "an empty response is shown as what it is");
    assert_eq!((&found["paired.short.silent"], &found["paired_p.short.silent"]), (&0.0.into(), &1.0.into()));
    assert!(found.get("win_rate").is_none(), "with two rivals it would be unclear whose it is");
}

#[test]
fn answers_without_a_verdict_are_asked_again_and_counted() {
    // Of each question the first answer names both, the second is nothing; some never come to a verdict.
    let server = Server::start(|call| {
        let again = call.user().contains("reads exactly");
        let hopeless = call.user().contains("question 3\n");
        match (again, call.user().contains("for the 3. time")) {
            _ if hopeless => Act::say("Both have their merits."),
            (false, _) => Act::say("Verdict: Both"),
            (true, false) => Act::say("."),
            (true, true) => Act::say(for_the_shorter(call)),
        }
    });
    let sandbox = Sandbox::with(&pipeline(&server.model("judge", ""), ""));
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((server.calls().len(), distinct(&server)), (72, 72));
    assert_eq!((&found["judge.asked_again"], &found["judge.unparsed"]), (&48.into(), &2.into()));
    assert!((found["win_rate"].as_f64().expect("a rate") - 11.5 / 12.0).abs() < 1e-12);
    assert!((found["ties.short"].as_f64().expect("a share") - 1.0 / 12.0).abs() < 1e-12);
    // Without retries every one is a tie, and nothing is asked that was asked before.
    sandbox.write("p.toml", &pipeline(&server.model("judge", ""), "judge_retries = 0"));
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((server.calls().len(), &found["judge.unparsed"], &found["win_rate"]), (72, &24.into(), &0.5.into()));
    sandbox.write("p.toml", &pipeline(&server.model("judge", ""), "judge_retries = 0\nties = \"loss\""));
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((&found["win_rate"], &found["ties.short"]), (&0.0.into(), &1.0.into()));
}

#[test]
fn a_judge_that_likes_the_first_place_decides_nothing() {
    let server = Server::start(|_| Act::say("Verdict: A"));
    let sandbox = Sandbox::with(&pipeline(&server.model("judge", ""), ""));
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!(
        (&found["judge.split"], &found["judge.for_first"], &found["win_rate"]),
        (&12.into(), &24.into(), &0.5.into())
    );
    // In one order only, it decides everything by chance, with half the calls.
    sandbox.write("p.toml", &pipeline(&server.model("judge", ""), "judge_orders = \"one\""));
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((server.calls().len(), &found["judge.rulings"], &found["ties.short"]), (24, &12.into(), &0.0.into()));
}

#[test]
fn an_endpoint_can_be_a_candidate() {
    let server = Server::start(|call| {
        if call.user().contains("<response-A>") { Act::say(for_the_shorter(call)) } else { Act::say(" yes . ") }
    });
    let tables =
        format!("{}{}", server.model("judge", ""), server.model("voice", "price = { input = 1e6, output = 1e6 }"));
    let fields = "chat = [\"voice\"]\nsystem = \"You answer.\"\nchat_prompt = \"Say, {{ query }}?\"\ntemperature = 1.0";
    let text = pipeline(&tables, fields).replace("short = \"short\"", "voice = \"voice\"");
    let sandbox = Sandbox::with(&text);
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!(
        (&found["calls.voice"], &found["judge.calls"], &found["win_rate"]),
        (&12.into(), &24.into(), &1.0.into())
    );
    assert!(found["cost.voice"].as_f64() > Some(0.0) && found.get("bound.voice").is_none(), "{found}");
    assert_eq!((&found["mean_characters.voice"], &found["mean_length.voice"]), (&5.0.into(), &2.0.into()));
    let first = server.calls().into_iter().find(|call| !call.user().contains("<response-A>")).expect("it was asked");
    assert_eq!(first.said("system"), Some("You answer."));
    assert!(first.user().starts_with("Say, question ") && first.body["temperature"] == 1.0, "{}", first.body);
}

#[test]
fn identical_responses_are_ties_that_no_judge_is_asked_about() {
    let server = judge(0);
    let text = pipeline(&server.model("judge", ""), "").replace("short = \"short\"", "short = \"long\"");
    let found = metrics(&Sandbox::with(&text).sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!((server.calls().len(), &found["judge.identical"], &found["win_rate"]), (0, &12.into(), &0.5.into()));
}

#[test]
fn an_interrupted_judge_is_asked_the_missing_questions_only() {
    // The place of the interrupt is another one in each run of the test, and told if it fails.
    let at = usize::try_from(std::process::id()).expect("it fits") % 20 + 1;
    let server = judge(40);
    let sandbox = Sandbox::with(&pipeline(&server.model("judge", "concurrency = 2"), ""));
    let mut command: Command = sandbox.command(&["run", "p.toml"]);
    let mut child = command.stderr(std::process::Stdio::null()).spawn().expect("it starts");
    let start = Instant::now();
    while server.calls().len() < at && start.elapsed() < Duration::from_secs(120) {
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().expect("it runs").success());
    assert_eq!(child.wait().expect("it ends").code(), Some(INTERRUPTED), "interrupted at call {at}");
    let before = server.calls().len();
    assert!((at..24).contains(&before), "{before} calls at interrupt {at}");
    let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
    assert_eq!(
        (server.calls().len(), distinct(&server), &found["win_rate"]),
        (24, 24, &1.0.into()),
        "interrupted at {at}"
    );
}

#[test]
fn a_model_with_weights_judges_by_its_labels() {
    let blank = r#"
[datasets.words]
make = { rows = 40, seed = 1, template = '''{"text": "{{ choose(['yes', 'no', 'response', 'one', 'two', 'well']) }} {{ row }} verdict"}''' }
[models.judge]
init = { hidden_size = 16, layers = 1, heads = 2, max_positions = 1024, tokenizer = { from = "words", kind = "bpe", vocab_size = 300 } }
"#;
    let prompt = "judge_prompt = \"{{ a }} | {{ b }} :\"\njudge_system = \"\"\n";
    let sandbox = Sandbox::with(&pipeline(blank, prompt));
    let of = |fields: &str| {
        sandbox.write("p.toml", &pipeline(blank, &format!("{prompt}{fields}")));
        let found = metrics(&sandbox.sami(&["run", "p.toml", "--json"]).exits(DONE));
        let rows = sandbox.sami(&["cache", "cat", "evaluate", "rows.jsonl"]).exits(DONE).stdout;
        let row: Value = serde_json::from_str(rows.lines().next().expect("a row")).expect("JSON");
        (found, row["candidates"]["short"]["verdicts"][0].clone())
    };
    let (found, verdict) = of("");
    assert_eq!((&found["judge.rulings"], &found["judge.unparsed"]), (&24.into(), &0.into()));
    let nats: Vec<f64> = (0..2).map(|at| verdict["rulings"][at]["nats"].as_f64().expect("a number")).collect();
    let win = verdict["win"].as_f64().expect("a number");
    assert_eq!(win, f64::from(u8::from(nats.iter().sum::<f64>() > 0.0)), "{verdict}");
    // Labels of several tokens that begin alike are told apart by what follows.
    let (_, longer) = of("judge_labels = [\"response one\", \"response two\"]");
    assert!(longer["rulings"][0]["nats"].as_f64().is_some_and(|nats| nats != 0.0 && nats.is_finite()), "{longer}");
    // The other way round it is the other response's label.
    let (_, turned) = of("judge_labels = [\"response two\", \"response one\"]");
    let nats = |verdict: &Value, at: usize| verdict["rulings"][at]["nats"].as_f64().expect("a number");
    assert!((nats(&longer, 0) + nats(&turned, 0)).abs() < 1e-5, "{longer} {turned}");
    let (found, verdict) = of("judge_by = \"words\"\njudge_max_tokens = 4\njudge_retries = 1");
    assert_eq!(found["judge.rulings"], 24, "{found}");
    assert!(verdict["rulings"][0]["says"].is_string(), "{verdict}");
}

#[test]
fn what_cannot_be_judged_is_told_before_any_call() {
    let server = judge(0);
    let table = server.model("judge", "");
    let check = |fields: &str, what: &str| {
        let output = Sandbox::with(&pipeline(&table, fields)).sami(&["check", "p.toml"]).exits(USAGE);
        assert!(output.stderr.contains(what) || output.stdout.contains(what), "{what}: {}", output.stderr);
    };
    check("judge_labels = [\"A\", \"A.\"]", "the two labels are the same");
    check("judge_labels = [\"A\", \"*\"]", "is no label");
    check("judge_labels = [\"A\"]", "judge_labels");
    check("judge_prompt = \"{{ a\"", "judge_prompt");
    check("judge_by = \"labels\"\njudge_retries = 3", "for verdicts in words");
    let fails = |text: &str, what: &str| {
        let output = Sandbox::with(text).sami(&["run", "p.toml"]).exits(FAILED);
        assert!(output.stderr.contains(what), "{what}: {}", output.stderr);
    };
    fails(&pipeline(&table, "judge_by = \"labels\""), "log-probabilities of labels");
    let few = pipeline(&table, "").replace("short = \"short\"", "short = { from = \"short\", take = 9 }");
    fails(&few, "candidate `short` has no response to 3 of 12 queries: `9`, `10`, `11`");
    fails(&pipeline(&table, "compare = \"all\""), "responses to 2 constitutions are compared");
    assert!(server.calls().is_empty());
}
