//! Chat templates against transformers, and in pipelines.

use std::collections::BTreeMap;

use sami::cli::{DONE, FAILED, USAGE};
use sami::lm::{ChatTemplate, Files, Message, Tokenizer};
use serde_json::Value;

use super::real::test_data;
use super::sandbox::Sandbox;

fn golden() -> Value {
    serde_json::from_str(include_str!("chat_golden.json")).expect("JSON")
}

fn conversation(turns: &Value) -> Vec<Message> {
    let turn = |turn: &Value| Message {
        role: match turn["role"].as_str() {
            Some("system") => "system",
            Some("user") => "user",
            _ => "assistant",
        },
        content: turn["content"].as_str().expect("a text").to_owned(),
    };
    turns.as_array().expect("a list").iter().map(turn).collect()
}

#[test]
fn conversations_are_put_as_transformers_puts_them() {
    let golden = golden();
    let tokens = BTreeMap::from([("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]);
    let tokens: BTreeMap<String, String> =
        tokens.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
    for case in golden["cases"].as_array().expect("a list") {
        let text = case["template"].as_str().expect("a text");
        let template = ChatTemplate::new(text, tokens.clone()).expect("parses");
        let expected = case["texts"].as_array().expect("a list");
        for (turns, expected) in golden["conversations"].as_array().expect("a list").iter().zip(expected) {
            let rendered = template.render(&conversation(turns));
            match expected.as_str() {
                Some(expected) => assert_eq!(rendered.expect("renders"), expected, "{}", case["name"]),
                None => {
                    let (error, says) = (rendered.expect_err("it is refused").to_string(), &expected["error"]);
                    assert!(error.contains(says.as_str().expect("a text")), "{error}");
                }
            }
        }
    }
}

#[test]
fn their_tokens_are_those_of_transformers() {
    let Some(directory) = test_data("models/stories260K") else { return };
    let files: Files = ["config.json", "tokenizer.json", "tokenizer_config.json"]
        .map(|name| (name.to_owned(), directory.join(name)))
        .into();
    let tokenizer = Tokenizer::load(&files).expect("loads");
    for case in golden()["cases"].as_array().expect("a list") {
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).expect("tokens");
        let mut own = tokenizer.prompt(case["texts"][0].as_str().expect("a text")).expect("encodes");
        if ids.first() != Some(&1) {
            // The template does not begin the text, and the tokenizer does.
            assert_eq!(own.remove(0), 1);
        }
        assert_eq!(own, ids, "{}", case["name"]);
    }
}

const PIPELINE: &str = r#"
[models.base]
init = { hidden_size = 16, layers = 1, heads = 2, max_positions = 96, seed = 1, tokenizer = { from = "questions" } }
[models.instruct]
source = "model"
[datasets.questions]
make = { rows = 4, seed = 1, template = '{"query": "q {{ row }}", "text": "rules : be brief . long user system says q {{ row }} a : yes no"}' }
[nodes.constitutions]
kind = "constitutions"
principles.brief = { definition = "be brief .", antithesis = "be long ." }
[nodes.generate]
kind = "generate"
model = "instruct"
queries = "questions"
constitutions = "constitutions"
prompt = "rules : {{ constitution }} {{ query }} a :"
chat = true
system = "system : {{ query }}"
max_new_tokens = 12
temperature = 1.0
[nodes.score]
kind = "score"
model = "instruct"
responses = "generate"
prompt = "{{ constitution }} {{ query }}"
chat = true
[nodes.evaluate]
kind = "evaluate"
candidates = { base = "base", instruct = "instruct" }
against = "base"
queries = "questions"
constitutions = "constitutions"
prompt = "plain {{ query }}"
chat = ["instruct"]
chat_prompt = "asked {{ query }}"
max_new_tokens = 8
temperature = 1.0
rules.principles.brief = { definition = { max_words = 3 }, antithesis = { min_words = 4 } }
"#;

#[test]
fn a_pipeline_asks_an_instruct_model_in_its_own_form() {
    let sandbox = Sandbox::with(PIPELINE);
    let own = PIPELINE.replace("[models.instruct]\nsource = \"model\"", "").replace("\"instruct\"", "\"base\"");
    sandbox.write("make.toml", &own);
    sandbox.sami(&["run", "make.toml", "models.base"]).exits(DONE.into());
    sandbox.sami(&["cache", "checkout", "models.base", "model"]).exits(DONE.into());
    let refused = sandbox.sami(&["run", "p.toml", "generate"]).exits(FAILED.into());
    assert!(refused.stderr.contains("the model has no chat template"), "{}", refused.stderr);

    sandbox.write(
        "model/chat_template.jinja",
        "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}] {{ m.content | trim }} {% endfor %}\n{% if add_generation_prompt %}[assistant]{% endif %}",
    );
    sandbox.run(&[], DONE.into());
    let rows = |node: &str| -> Vec<Value> {
        let shown = sandbox.sami(&["cache", "show", node, "--json"]).exits(DONE.into()).json();
        let text = fs_err::read_to_string(shown["paths"]["rows.jsonl"].as_str().expect("a path")).expect("rows");
        text.lines().map(|line| serde_json::from_str(line).expect("a row")).collect()
    };
    let scored = rows("score");
    let prompt = scored[0]["prompts"][0].as_str().expect("a prompt");
    assert!(prompt.starts_with("<bos>[user] ") && prompt.ends_with("q 0 [assistant]"), "{prompt:?}");

    // What is asked decides the answer: another system prompt is another question.
    let before = rows("generate");
    sandbox.write("p.toml", &PIPELINE.replace("system : {{ query }}", "no"));
    let again = sandbox.run(&["generate"], DONE.into());
    assert_eq!(again.names("ran"), ["generate"]);
    assert_ne!(rows("generate"), before);
    sandbox.write("p.toml", &PIPELINE.replace("chat = true\nsystem", "system"));
    let output = sandbox.sami(&["check", "p.toml"]).exits(USAGE.into());
    assert!(output.stderr.contains("`system` without `chat`"), "{}", output.stderr);
    sandbox.write("p.toml", &PIPELINE.replace("[\"instruct\"]", "[\"other\"]"));
    let output = sandbox.sami(&["check", "p.toml"]).exits(USAGE.into());
    assert!(output.stderr.contains("`other` is not among the candidates"), "{}", output.stderr);

    // A template that refuses a conversation is told with the row.
    sandbox.write("p.toml", PIPELINE);
    sandbox.write(
        "model/chat_template.jinja",
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}x",
    );
    let output = sandbox.sami(&["run", "p.toml", "generate"]).exits(FAILED.into());
    assert!(output.stderr.contains("no system here") && output.stderr.contains("row `0`"), "{}", output.stderr);
}
