//! Bytes that change at rest are found before a node takes them, and made again within the same run.

use super::sandbox::Sandbox;

/// Overwrites a byte of each of these files, leaving size and modification time as they were.
fn damage(files: &[String]) -> String {
    let files = files.join(" ");
    format!(
        "for f in {files}; do touch -r $f ref; chmod u+w $f; printf '\\377' | dd of=$f conv=notrunc bs=1 count=1 \
         2>/dev/null; touch -r ref $f; chmod a-w $f; done; rm -f ref"
    )
}

/// `a` and `b` are a chain; `last` takes `b`, and `slow`, which may do damage while it runs.
fn pipeline(slow: &str) -> String {
    let node = |name: &str, inputs: &[&str], script: &str| {
        let inputs: Vec<String> = inputs.iter().map(|input| format!("{input} = \"{input}\"")).collect();
        format!(
            "[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-ec\", '''{script}''']\ninputs = {{ {} }}\n",
            inputs.join(", ")
        )
    };
    [
        "[datasets.source]\nsource = \"source.txt\"\n".to_owned(),
        node("a", &["source"], "cat {input.source}/rows.jsonl > out; echo a >> out"),
        node("b", &["a"], "cat {input.a}/out > out; echo b >> out"),
        node("slow", &[], slow),
        node("last", &["b", "slow"], "cat {input.b}/out {input.slow}/out > out"),
        node("other", &["b", "slow"], "wc -c < {input.b}/out > out"),
    ]
    .concat()
}

/// Where the only file of what a node made is.
fn object(sandbox: &Sandbox, node: &str) -> String {
    let shown = sandbox.sami(&["cache", "show", node, "--json"]).exits(0).json();
    shown["paths"]["out"].as_str().expect("a path").to_owned()
}

/// How nodes come out of a run whose `slow` damages these files.
fn states(sandbox: &Sandbox, files: &[String]) -> String {
    sandbox.write("p.toml", &pipeline(&format!("{}; echo slower > out", damage(files))));
    let done = sandbox.run(&[], 0);
    done.nodes.iter().map(|node| format!("{} {}", node.name, node.state)).collect::<Vec<_>>().join(", ")
}

/// A project that has run, and what each node made.
fn ready() -> (Sandbox, Vec<(String, String)>) {
    let sandbox = Sandbox::with(&pipeline("echo slow > out"));
    sandbox.write("source.txt", "one\ntwo\n");
    let ids = |done: super::sandbox::Done| {
        done.nodes.into_iter().map(|node| (node.name, node.artifact.expect("made"))).collect()
    };
    let made = ids(sandbox.run(&[], 0));
    (sandbox, made)
}

#[test]
fn bit_rot_at_rest_is_found_and_made_again() {
    let sandbox = Sandbox::with(&pipeline("echo slow > out"));
    sandbox.write("source.txt", "one\ntwo\n");
    let first = sandbox.run(&[], 0);
    let (b, last) = (object(&sandbox, "b"), object(&sandbox, "last"));
    for path in [&b, &last] {
        let mut shell = std::process::Command::new("sh");
        let done = shell.args(["-ec", &damage(std::slice::from_ref(path))]).current_dir(sandbox.path("")).status();
        assert!(done.expect("there is a shell").success());
    }
    let plan = sandbox.sami(&["plan", "p.toml"]).exits(0).stdout;
    assert!(plan.contains("out of its artifact is damaged"), "{plan}");
    let again = sandbox.run(&[], 0);
    // `other` has what it made of `b`, which comes out as it was.
    assert_eq!((again.names("ran"), again.names("hit")), (vec!["b", "last"], vec!["a", "slow", "other"]));
    let ids = |done: &super::sandbox::Done| done.nodes.iter().map(|node| node.artifact.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&again), ids(&first));
    sandbox.verify();
}

#[test]
fn damage_between_plan_and_use_is_made_again_within_the_run() {
    let (sandbox, made) = ready();
    let b = object(&sandbox, "b");
    let ran = states(&sandbox, &[b]);
    assert_eq!(ran, "a hit, b ran, slow ran, last ran, other ran");
    sandbox.verify();
    let text = sandbox.sami(&["cache", "cat", "last"]).exits(0).stdout;
    assert!(text.ends_with("a\nb\nslower\n"), "{text}");
    let again = sandbox.run(&[], 0);
    assert_eq!(again.hits, 5);
    let id = |name: &str| made.iter().find(|(node, _)| node == name).map(|(_, id)| id.clone());
    assert_eq!(again.nodes.iter().find(|node| node.name == "b").and_then(|node| node.artifact.clone()), id("b"));
}

#[test]
fn damage_further_up_is_made_again_too() {
    let (sandbox, _) = ready();
    let files = ["a", "b"].map(|node| object(&sandbox, node));
    assert_eq!(states(&sandbox, &files), "a ran, b ran, slow ran, last ran, other ran");
    sandbox.verify();
    let text = sandbox.sami(&["cache", "cat", "last"]).exits(0).stdout;
    assert!(text.ends_with("a\nb\nslower\n"), "{text}");
}

#[test]
fn a_model_that_changes_while_a_run_goes_on_is_an_error() {
    let sandbox = Sandbox::new();
    for (name, text) in [("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "weights")] {
        sandbox.write(&format!("model/{name}"), text);
    }
    let path = sandbox.path("model/model.safetensors").display().to_string();
    let text = |slow: &str| {
        format!(
            "[models.m]\nsource = \"model\"\n\
             [nodes.slow]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-ec\", '''{slow}''']\n\
             [nodes.use]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-ec\", \"cat {{input.m}}/model.safetensors > out; echo . >> out\"]\n\
             inputs = {{ m = \"m\", slow = \"slow\" }}\n"
        )
    };
    sandbox.write("p.toml", &text("echo slow > out"));
    std::thread::sleep(std::time::Duration::from_millis(30));
    sandbox.run(&[], 0);
    sandbox.write("p.toml", &text(&format!("printf X | dd of={path} conv=notrunc bs=1 count=1; echo slower > out")));
    let output = sandbox.sami(&["run", "p.toml"]).exits(1);
    assert!(output.stderr.contains("`model.safetensors` of model `m` is not what it was"), "{}", output.stderr);
    assert!(output.stderr.contains("run it again"), "{}", output.stderr);
    // The next run takes it as it is now.
    sandbox.run(&[], 0);
    assert_eq!(sandbox.sami(&["cache", "cat", "use"]).exits(0).stdout, "Xeights.\n");
}
