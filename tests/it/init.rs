//! What `sami init` writes: checked for every kind of answer, and run.

use super::sandbox::Sandbox;

#[test]
fn init_writes_what_runs_and_nothing_twice() {
    let project = Sandbox::new();
    project.sami(&["init", "--yes"]).exits(0);
    let text = project.read("pipelines/first.toml");
    assert!(text.starts_with("#:schema .schema.json\n") && !text.contains('@'), "{text}");
    assert!(project.read("pipelines/.schema.json").contains("draft-07") && project.read(".gitignore") == "/cache/\n");
    assert_eq!(project.read("sami.toml"), "", "what was there stays");
    project.sami(&["check", "pipelines/first.toml"]).exits(0);
    let again = project.sami(&["init", "--yes"]).exits(2);
    assert!(again.stderr.contains("cli::exists"), "{}", again.stderr);
    assert_eq!(project.read("pipelines/first.toml"), text);
    assert_eq!(project.files("pipelines").len(), 2, "nothing is left over");
    let tiny = ["iterations=1", "queries=4", "held_out=4", "steps=1", "documents=64", "pretrain_steps=2", "width=16"];
    let sets = tiny.iter().flat_map(|set| ["--set", set]);
    let args: Vec<&str> = ["run", "pipelines/first.toml", "--json"].into_iter().chain(sets).collect();
    project.sami(&args).exits(0);
}

#[test]
fn init_takes_rows_of_ones_own_and_says_what_it_cannot_use() {
    let project = Sandbox::new();
    let rows: String =
        (0..30).fold(String::new(), |text, row| text + &format!("{{\"id\": {row}, \"post\": \"p{row}\"}}\n"));
    project.write("data/posts.jsonl", &rows);
    project.sami(&["init", "--name", "posts", "--queries", "data/posts.jsonl"]).exits(0);
    let text = project.read("pipelines/posts.toml");
    assert!(text.contains("source = \"../data/posts.jsonl\"\nquery = \"{{ post }}\""), "{text}");
    for (args, named) in [
        (&["--model", "nothing"][..], "cli::no-answer"),
        (&["--queries", "gone.csv"], "gone.csv"),
        (&["--queries", "data/posts.jsonl", "--field", "body"], "`post`"),
        (&["--name", "a/b"], "cannot be a name"),
    ] {
        let args: Vec<&str> = ["init"].iter().chain(args).copied().collect();
        let said = project.sami(&args).exits(2);
        assert!(said.stderr.contains(named), "{args:?}: {}", said.stderr);
    }
    assert_eq!(project.files("pipelines").len(), 2);
}

/// A directory that looks like a model, as far as loading a pipeline looks.
fn model(project: &Sandbox, name: &str, more: &[(&str, &str)]) {
    let files = [("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "")];
    for (file, text) in files.iter().chain(more) {
        project.write(&format!("{name}/{file}"), text);
    }
}

#[test]
fn every_answer_gives_a_pipeline_that_is_sound() {
    let project = Sandbox::new();
    model(&project, "plain", &[]);
    model(&project, "chat", &[("chat_template.jinja", "{{ messages }}")]);
    model(&project, "talk", &[("tokenizer_config.json", "{\"chat_template\": \"{{ messages }}\"}")]);
    project.write("model.gguf", "GGUF");
    let rows = |row: fn(usize) -> String| (0..30).map(row).collect::<String>();
    project.write("rows.jsonl", &rows(|row| format!("{{\"id\": {row}, \"post\": \"p{row}\", \"n\": 1}}\n")));
    project.write("rows.csv", &(String::from("n,question\n") + &rows(|row| format!("{row},what {row}\n"))));
    project.write("rows.txt", &rows(|row| format!("line {row}\n")));
    let models = [
        ("tiny", false),
        ("plain", false),
        ("chat", true),
        ("talk", true),
        ("gguf:model.gguf", false),
        ("hf:mistralai/Mistral-7B-v0.1", false),
        ("hf:Qwen/Qwen2.5-0.5B-Instruct", true),
    ];
    let queries = ["made", "rows.jsonl", "rows.csv --field question", "rows.txt", "hf:datasets/org/name --field q"];
    for (number, (model, chat)) in models.iter().enumerate() {
        for (other, queries) in queries.iter().enumerate() {
            let name = format!("p{number}-{other}");
            let args = ["init", "--name", &name, "--model", model, "--queries"].into_iter().chain(queries.split(' '));
            project.sami(&args.collect::<Vec<_>>()).exits(0);
            let path = format!("pipelines/{name}.toml");
            let text = project.read(&path);
            assert_eq!(text.contains("\nchat = true "), *chat, "{model}, {queries}: {text}");
            assert_eq!(text.contains("\nlora = "), *model != "tiny", "{model}, {queries}: {text}");
            // No one is asked what is in a repository.
            let mut check = project.command(&["check", &path]);
            let said: super::sandbox::Output = check.env("HF_HUB_OFFLINE", "1").output().expect("it starts").into();
            said.exits(0);
        }
    }
    let broken = project.sami(&["init", "--name", "broken", "--model", "pipelines"]).exits(2);
    assert!(broken.stderr.contains("pipelines/broken.toml:"), "as it would be called: {}", broken.stderr);
    assert_eq!(project.files("pipelines").len(), models.len() * queries.len() + 1, "nothing is left over");
}

const OWN: &str = r#"
[datasets.documents]
make = { rows = 40, seed = 1, template = '{"text": "{{ choose(["yes it is a b c .", "no it is not d e f ."]) }}"}' }
[models.own]
init = { hidden_size = 32, layers = 1, heads = 2, max_positions = 1024, tokenizer = { from = "documents" } }
[nodes.looks]
kind = "command"
program = "true"
inputs = { model = "own" }
"#;

#[test]
#[ignore = "slow: samples and trains"]
fn what_is_written_for_models_and_rows_of_ones_own_runs() {
    let project = Sandbox::with(OWN);
    project.run(&["models.own"], 0);
    project.sami(&["cache", "checkout", "models.own", "plain"]).exits(0);
    super::commands::world::copy(&project.path("plain"), &project.path("chat"));
    project.write("chat/chat_template.jinja", "{% for message in messages %}{{ message.content }} {% endfor %}");
    let rows: Vec<String> = (0..20).map(|row| format!("{{\"id\": {row}, \"post\": \"yes {row}\"}}\n")).collect();
    project.write("rows.jsonl", &rows.concat());
    for (name, model, queries) in [("first", "plain", "rows.jsonl"), ("second", "chat", "made")] {
        project.sami(&["init", "--name", name, "--model", model, "--queries", queries]).exits(0);
        let path = format!("pipelines/{name}.toml");
        // Responses as short as can be, of a model that never learnt to end one.
        let text = project.read(&path).replace("max_new_tokens = 200", "max_new_tokens = 8");
        project.write(&path, &text);
        let tiny = ["iterations=1", "queries=4", "held_out=4", "steps=1"].iter().flat_map(|set| ["--set", set]);
        let args: Vec<&str> = ["run", &path, "--json"].into_iter().chain(tiny).collect();
        let done = project.sami(&args).exits(0).done();
        assert!(done.names("ran").contains(&"evaluate@1"), "{done:?}");
    }
}
