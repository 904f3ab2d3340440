//! A real GGUF file beside the same model in safetensors.

use sami::cli::{DONE, USAGE};
use sami::lm::sampling::sample;
use sami::lm::{Device, Files, Model, Prompt, SamplingSettings, Tokenizer};

use super::real::test_data;
use super::sandbox::Sandbox;

#[test]
fn a_gguf_file_is_the_model_that_it_was_made_of() {
    let Some(directory) = test_data("models/stories260K") else { return };
    let names = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"];
    let safe: Files = names.map(|name| (name.to_owned(), directory.join(name))).into();
    let gguf = Files::from([("model.gguf".to_owned(), directory.join("original/stories260K.gguf"))]);
    let [safe, gguf] = [safe, gguf].map(|files| {
        let model = Model::load(&files, &Device::Cpu).expect("loads");
        (model, Tokenizer::load(&files).expect("loads"))
    });
    for (name, tensor) in safe.0.weights() {
        let values =
            |tensor: &sami::lm::Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1::<f32>()).expect("numbers");
        let (a, b) = (values(tensor), values(&gguf.0.weights()[name]));
        let off = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(a.len() == b.len() && off < 1e-6, "{name}: {off}");
    }
    let texts =
        ["Once upon a time", " two  spaces\n\nand lines ", "ünï 你好 <s> </s>", "", "Lily's 12 dogs; \"why?\"", "\t"];
    let books = directory.join("../../queries/vicuna_bench_questions.jsonl");
    let more = fs_err::read_to_string(books).unwrap_or_default();
    for text in texts.iter().copied().chain(more.lines()) {
        let [a, b] = [&safe.1, &gguf.1].map(|tokenizer| tokenizer.prompt(text).expect("encodes"));
        assert_eq!(a, b, "{text:?}");
        assert_eq!(safe.1.decode(&a).expect("decodes"), gguf.1.decode(&a).expect("decodes"), "{text:?}");
    }
    let [a, b] = [&safe, &gguf].map(|(model, tokenizer)| {
        let prompts: Vec<Prompt> = ["Once upon a time", "Lily and Ben"]
            .iter()
            .map(|text| Prompt { ids: tokenizer.prompt(text).expect("encodes"), seed: 0 })
            .collect();
        sample(model, tokenizer, &prompts, &SamplingSettings::greedy(80)).expect("samples")
    });
    assert_eq!(a.iter().map(|one| &one.text).collect::<Vec<_>>(), b.iter().map(|one| &one.text).collect::<Vec<_>>());
    assert!(a[0].text.len() > 60, "{:?}", a[0].text);
}

const PIPELINE: &str = r#"
[models.base]
source = "gguf:GGUF"
[datasets.questions]
make = { rows = 3, seed = 1, template = '{"query": "Once upon a time, {{ row }}"}' }
[nodes.constitutions]
kind = "constitutions"
principles.brief = { definition = "be brief .", antithesis = "be long ." }
[nodes.generate]
kind = "generate"
model = "base"
queries = "questions"
constitutions = "constitutions"
prompt = "{{ constitution }} {{ query }}"
max_new_tokens = 12
temperature = 1.0
[nodes.score]
kind = "score"
model = "base"
responses = "generate"
prompt = "{{ constitution }} {{ query }}"
[nodes.finetune]
kind = "finetune"
objective = "sami"
model = "base"
examples = "score"
steps = 1
batch_queries = 2
optimizer = { name = "adamw", lr = 1e-4 }
[nodes.adapted]
kind = "finetune"
objective = "sami"
model = "base"
examples = "score"
steps = 1
batch_queries = 2
lora = { rank = 2 }
optimizer = { name = "adamw", lr = 1e-2 }
[nodes.after]
kind = "score"
model = "adapted"
reference = "base"
responses = "generate"
prompt = "{{ constitution }} {{ query }}"
"#;

#[test]
fn a_gguf_file_goes_through_a_pipeline() {
    let sandbox = Sandbox::with(&PIPELINE.replace("GGUF", "none.gguf"));
    let output = sandbox.sami(&["check", "p.toml"]).exits(USAGE.into());
    assert!(output.stderr.contains("none.gguf") && output.stderr.contains("p.toml:3:10"), "{}", output.stderr);
    sandbox.write("none.gguf", "nothing of that kind");
    let output = sandbox.sami(&["run", "p.toml"]).exits(USAGE.into());
    assert!(output.stderr.contains("does not begin as GGUF files do"), "{}", output.stderr);
    let Some(file) = test_data("models/stories260K/original/stories260K.gguf") else { return };
    fs_err::copy(&file, sandbox.path("a.gguf")).expect("copies");
    fs_err::rename(sandbox.path("a.gguf"), sandbox.path("none.gguf")).expect("renames");
    let first = sandbox.run(&[], DONE.into());
    assert_eq!(first.names("ran"), ["constitutions", "generate", "score", "finetune", "adapted", "after"]);
    // The trained one is a directory for everyone, its tokenizer too.
    sandbox.sami(&["cache", "checkout", "finetune", "out"]).exits(DONE.into());
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        assert!(sandbox.path("out").join(name).is_file(), "{name}");
    }
    // What it is called does not matter, what is in it does; a tokenizer of its own is another model.
    fs_err::rename(sandbox.path("none.gguf"), sandbox.path("b.gguf")).expect("renames");
    sandbox.write("p.toml", &PIPELINE.replace("GGUF", "b.gguf"));
    assert_eq!(sandbox.run(&[], DONE.into()).names("ran"), [""; 0]);
    sandbox.write("p.toml", &PIPELINE.replace("\"gguf:GGUF\"", "\"gguf:b.gguf\"\ntokenizer = \"out/tokenizer.json\""));
    assert_eq!(sandbox.run(&["generate"], DONE.into()).names("ran"), ["generate"]);
    sandbox.verify();
}
