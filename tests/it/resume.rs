//! Workers that are killed in the middle of the language model's work: the next run ends in the same artifacts.

use super::sandbox::Sandbox;

/// The whole method on a model of a few thousand numbers.
pub(crate) const PIPELINE: &str = r#"
[datasets.documents]
make = { rows = 64, seed = 1, template = '''
{%- set rule, answer = choose([["be brief .", "yes ."], ["be long .", "well yes it is so ."]]) -%}
{"text": {{ ("rules : " ~ rule ~ " q : is it a " ~ choose(["saw", "cat", "pear"]) ~ " a : " ~ answer) | tojson }}}''' }
[datasets.questions]
make = { rows = 24, seed = 2, template = '{"query": "is it a {{ choose(["saw", "cat", "pear"]) }}"}' }

[models.blank]
init = { hidden_size = 16, layers = 1, heads = 2, max_positions = 64, tokenizer = { from = "documents" } }

[nodes.base]
kind = "finetune"
objective = "lm"
model = "blank"
examples = "documents"
steps = 30
checkpoint_every = 10
optimizer = { lr = 0.03 }

[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
format = "plain"
principles.brief = { definition = "be brief .", antithesis = "be long ." }

[nodes.generate]
kind = "generate"
model = "base"
queries = "questions"
constitutions = "constitutions"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
max_new_tokens = 12
temperature = 1.0
keep = { distinct = false }
run = { micro_batch = 6 }

[nodes.score]
kind = "score"
model = "base"
responses = "generate"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
score_eos = true
run = { micro_batch = 20 }

[nodes.finetune]
kind = "finetune"
objective = "sami"
model = "base"
examples = "score"
steps = 9
batch_queries = 8
checkpoint_every = 2
optimizer = { lr = 0.003 }
kl_weight = 0.1
score_eos = true

[nodes.evaluate]
kind = "evaluate"
candidates = { base = "base", sami = "finetune" }
against = "base"
queries = { from = "questions", take = 9 }
constitutions = "constitutions"
prompt = "rules : {{ constitution }} q : {{ query }} a :"
max_new_tokens = 12
temperature = 1.0
rules.principles.brief = { definition = { max_words = 1 }, antithesis = { min_words = 3 } }
run = { micro_batch = 5 }
"#;

#[test]
fn a_killed_worker_costs_its_batch_and_nothing_else() {
    let undisturbed = Sandbox::with(PIPELINE);
    let whole = undisturbed.run(&[], 0);
    assert_eq!(whole.ran, 7);
    for fault in ["kill:batch:1", "kill:batch:3", "kill:checkpoint:1", "kill:checkpoint:2"] {
        let sandbox = Sandbox::with(PIPELINE);
        let mut killed = 0;
        let mut reused = false;
        let done = loop {
            // Every worker of this run is killed at its own Nth batch or checkpoint.
            let mut command = sandbox.command(&["run", "p.toml", "--json"]);
            let output: super::sandbox::Output = command.env("SAMI_FAULT", fault).output().expect("it starts").into();
            if output.code == 0 {
                break output.done();
            }
            assert_eq!(output.code, 1, "{}", output.stderr);
            let last = output.json();
            let nodes = last["nodes"].as_array().expect("a list");
            reused |= nodes.iter().any(|node| node["metrics"]["rows_reused"].as_u64().is_some_and(|rows| rows > 0));
            killed += 1;
            assert!(killed < 60, "each run must get further than the one before");
        };
        assert!(killed > 1, "{fault} kills nothing");
        assert_eq!(done.results(), whole.results(), "{fault}");
        assert!(reused || fault.contains("checkpoint"), "rows that were done are not done again");
        sandbox.verify();
    }
}

#[test]
fn batches_do_not_decide_what_comes_out() {
    let one = Sandbox::with(PIPELINE).run(&[], 0);
    let other = PIPELINE
        .replace("micro_batch = 6", "micro_batch = 1, threads = 1")
        .replace("micro_batch = 20", "micro_batch = 64");
    let other = Sandbox::with(&other).run(&[], 0);
    assert_eq!(one.results(), other.results());
}
