//! Secrets in every place that has one, in runs that end well and badly: none is ever shown or stored. And what of the
//! environment a `command` gets.

use std::collections::BTreeMap;

use super::endpoint_server::{Act, Server};
use super::sandbox::{Output, Sandbox};

/// Variables with values that nothing else has in it.
const CANARIES: [(&str, &str); 7] = [
    ("ACME_KEY", "canary-acme-51d0c1"),
    ("AWS_ACCESS_KEY_ID", "canary-aws-id-77aa31"),
    ("AWS_SECRET_ACCESS_KEY", "canary/aws+secret/0c4e=="),
    ("AWS_SESSION_TOKEN", "canary-aws-session-91"),
    ("HF_TOKEN", "canary_hf_20b1c9"),
    ("MY_DECLARED", "canary \"declared\" 8f3a"),
    ("OPENAI_API_KEY", "canary-openai-3f77aa"),
];

fn sami(sandbox: &Sandbox, args: &[&str]) -> Output {
    let output = sandbox.command(args).envs(CANARIES).output().expect("starts");
    let output = Output::from(output);
    for (name, canary) in CANARIES {
        assert!(!output.stdout.contains(canary), "{args:?} printed {name}:\n{}", output.stdout);
        assert!(!output.stderr.contains(canary), "{args:?} said {name}:\n{}", output.stderr);
    }
    output
}

/// Asserts that no file of the cache holds a canary, or one of its pieces as JSON has it.
#[track_caller]
fn search(sandbox: &Sandbox) {
    let files = sandbox.files("cache");
    assert!(files.iter().any(|file| file.ends_with("events.jsonl") || file.ends_with("VERSION")));
    for file in files {
        let text = String::from_utf8_lossy(&fs_err::read(&file).expect("reads")).replace('\\', "");
        for (name, canary) in CANARIES {
            assert!(!text.contains(canary), "{} holds {name}", file.display());
        }
    }
}

fn command(name: &str, env: &str, script: &str) -> String {
    format!("[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\nenv = {env}\nargs = [\"-c\", '''{script}''']\n")
}

#[test]
fn what_a_command_prints_has_no_secret_in_it() {
    let leak = "printf 'it is canary '; sleep 0.05; printf '\"declared\" 8f3a, twice: %s\n' \"$MY_DECLARED\"; echo \"$MY_DECLARED\" >&2";
    let sandbox = Sandbox::with(
        &[
            command("well", "[\"MY_DECLARED\"]", &format!("{leak}; echo $${{#MY_DECLARED}} > length")),
            command("badly", "{ MY_DECLARED = true, A = \"x\" }", &format!("{leak}; exit 3")),
            command("never", "[\"MY_DECLARED\", \"AWS_SECRET_ACCESS_KEY\"]", "exec \"no such $MY_DECLARED\""),
            command(
                "metrics",
                "[\"MY_DECLARED\"]",
                "echo x > out; echo \"{\\\"a\\\": \\\"$MY_DECLARED\\\"}\" > metrics.json",
            ),
            command("left", "[\"HF_TOKEN\"]", "(sleep 5; echo late) & echo $HF_TOKEN; echo > out"),
        ]
        .concat(),
    );
    let output = sami(&sandbox, &["run", "p.toml", "--keep-going"]).exits(1);
    assert!(output.stderr.contains("[value of MY_DECLARED]"), "the log's tail is shown: {}", output.stderr);
    assert_eq!(sami(&sandbox, &["cache", "cat", "well"]).exits(0).stdout, "22\n", "the program itself has it");
    let log = sami(&sandbox, &["logs", "well"]).exits(0).stdout;
    let said = "it is [value of MY_DECLARED], twice: [value of MY_DECLARED]\n[value of MY_DECLARED]\n";
    assert!(log.contains(said), "{log}");
    let json = sami(&sandbox, &["run", "p.toml", "--keep-going", "--json"]).exits(1);
    assert!(json.stdout.contains("[value of MY_DECLARED]"));
    for args in [
        &["plan", "p.toml"][..],
        &["plan", "p.toml", "--json"],
        &["status", "p.toml"],
        &["why", "p.toml", "badly"],
        &["show", "well", "--json"],
        &["logs", "badly"],
        &["runs", "--json"],
        &["cache", "ls", "--json"],
        &["cache", "show", "well"],
        &["doctor"],
    ] {
        sami(&sandbox, args);
    }
    search(&sandbox);
}

#[test]
fn servers_that_repeat_the_key_tell_no_one() {
    let server = Server::start(|call| {
        let key = call.header("authorization").unwrap_or_default().to_owned();
        match call.number % 4 {
            0 => Act::Status(500, "", format!("{{\"error\": {{\"message\": \"try again, {key}\"}}}}")),
            1 => Act::Status(503, "", key),
            2 => Act::Body(format!("not JSON: {key}")),
            _ => Act::error(401, &format!("wrong key: {key}")),
        }
    });
    let node = r#"
[nodes.answers]
kind = "generate"
model = "voice"
queries = "questions"
prompt = "{{ query }}"
constitutions = "constitutions"
max_new_tokens = 4
[nodes.constitutions]
kind = "constitutions"
contrast = "complement"
principles.brief = { definition = "be brief .", antithesis = "be long ." }
[datasets.questions]
make = { rows = 2, seed = 2, template = '{"query": "question {{ row }}"}' }
"#;
    let model = server.model("voice", "api_key_env = \"ACME_KEY\"\nretries = 4");
    let sandbox = Sandbox::with(&(model + node));
    let output = sandbox.command(&["run", "p.toml"]).envs(CANARIES).env("SAMI_LOG", "trace").output().expect("starts");
    let output = Output::from(output).exits(1);
    assert!(output.stderr.contains("wrong key"), "{}", output.stderr);
    assert!(!output.stderr.contains("canary"), "{}", output.stderr);
    assert!(server.calls().len() >= 4);
    sami(&sandbox, &["logs", "answers"]).exits(0);
    search(&sandbox);
}

#[test]
fn a_secret_that_stands_in_a_pipeline_stops_it() {
    let canary = CANARIES[4].1;
    let text = command("a", "{}", "echo ${mode} > out").replace("[nodes", "[params]\nmode = \"x\"\n[nodes");
    let sandbox = Sandbox::with(&text);
    let refused = |sandbox: &Sandbox, args: &[&str], place: &str| {
        let output = sami(sandbox, args).exits(2);
        assert!(output.stderr.contains("`HF_TOKEN`") && output.stderr.contains(place), "{}", output.stderr);
    };
    refused(&sandbox, &["run", "p.toml", "--set", &format!("mode={canary}")], "`--set`, line 1");
    assert!(!sandbox.path("cache/runs").exists());
    sandbox.write("p.toml", &text.replace("\"x\"", &format!("\"{canary}\"")));
    refused(&sandbox, &["check", "p.toml"], "p.toml, line 2");
    sandbox.write("p.toml", &text.replace("'''echo ${mode} > out'''", "{ file = \"arg\" }"));
    sandbox.write("arg", &format!("curl -H 'Authorization: {canary}'"));
    refused(&sandbox, &["run", "p.toml"], "stands in it");
}

#[test]
fn a_command_gets_of_the_environment_what_is_listed() {
    let sandbox = Sandbox::with(
        &[
            command("a", "{}", "env > out"),
            command("b", "{ OTHER = true, MINE = \"{output}\", LANG = \"C\", NOT_SET = true }", "env > out"),
        ]
        .concat(),
    );
    let listed = [("LANG", "en_GB.UTF-8"), ("VIRTUAL_ENV", "/venv"), ("CUDA_VISIBLE_DEVICES", "0")];
    let other = [("OTHER", "one"), ("SAMI_FAULT", ""), ("LD_PRELOAD", ""), ("EDITOR", "vi")];
    let run = |other: &[(&str, &str)]| {
        let mut command = sandbox.command(&["run", "p.toml", "--json"]);
        command.envs(CANARIES).envs(listed).envs(other.iter().copied());
        Output::from(command.output().expect("starts")).exits(0).done()
    };
    assert_eq!(run(&other).ran, 2);
    let variables = |node: &str| {
        let text = sandbox.sami(&["cache", "cat", node]).exits(0).stdout;
        let pair = |line: &str| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
        text.lines().filter_map(pair).collect::<BTreeMap<_, _>>()
    };
    let (a, b) = (variables("a"), variables("b"));
    for (name, value) in listed {
        assert_eq!(a.get(name).map(String::as_str), Some(value));
    }
    // Shells add some of their own.
    let own = ["SAMI_OUTPUT", "RAYON_NUM_THREADS", "PWD", "OLDPWD", "SHLVL", "_"];
    let more: Vec<_> = a
        .keys()
        .filter(|name| !own.contains(&name.as_str()) && !sami::env::PASSED_ON.contains(&name.as_str()))
        .collect();
    assert!(more.is_empty(), "{more:?}");
    assert_eq!((b["OTHER"].as_str(), b["LANG"].as_str(), &b["MINE"]), ("one", "C", &b["SAMI_OUTPUT"]));
    assert!(!b.contains_key("NOT_SET"));
    // What is listed is in no key; what a node names is in its key alone.
    let other = [("OTHER", "two"), ("LANG", "fr_FR"), ("EDITOR", "ed")];
    assert_eq!(run(&other).names("ran"), ["b"]);
    assert_eq!(run(&other).ran, 0);
    let why = {
        let mut command = sandbox.command(&["why", "p.toml", "b"]);
        Output::from(command.output().expect("starts")).exits(0).stdout
    };
    assert!(why.contains("env.OTHER.passed"), "{why}");
    assert!(!why.contains("two"), "{why}");
}

#[test]
fn wrong_environments_are_named() {
    for (env, says) in [
        ("[\"A B\"]", "no name of a variable"),
        ("{ A = false }", "true to pass the variable on"),
        ("{ A = 1 }", "a string, or true"),
        ("\"PATH\"", "names of variables"),
        ("{ \"A=B\" = \"x\" }", "no name of a variable"),
        ("[1]", "expected a string"),
    ] {
        let output = Sandbox::with(&command("a", env, "true")).sami(&["check", "p.toml"]).exits(2);
        assert!(output.stderr.contains(says), "{env}: {}", output.stderr);
    }
}
