//! The profile for Ray that the documents show, on a real Ray.

use std::path::Path;
use std::process::Command;

use sami::env;

use super::docs::root;
use super::sandbox::{Output, Sandbox, skipped};

/// A profile that `docs/cluster.md` shows.
fn shown(name: &str) -> String {
    let page = fs_err::read_to_string(root().join("docs/cluster.md")).expect("the page");
    let head = format!("[profiles.{name}]");
    let block =
        page.split("```toml\n").filter_map(|rest| rest.split("\n```").next()).find(|block| block.contains(&head));
    block.expect("it is shown").to_owned()
}

#[test]
fn profiles_that_are_shown_can_be_read() {
    for name in ["cluster", "lab", "kubernetes", "ray", "background"] {
        let settings = sami::settings::Settings::parse("sami.toml", &shown(name)).expect("it is sound");
        assert_eq!(settings.profiles[0].name, name);
    }
}

#[test]
#[ignore = "slow: starts Ray"]
fn the_profile_for_ray_runs_on_ray() {
    let Some(programs) = env::TEST_RAY.get() else { return skipped("SAMI_TEST_RAY is not set") };
    let lacks = ["/usr/bin/jq", "/usr/bin/curl"].into_iter().find(|program| !Path::new(program).exists());
    if lacks.is_some() || !rustix::process::getuid().is_root() {
        return skipped("Ray's profile needs curl and jq, and the test root");
    }
    let sandbox = Sandbox::with(
        r#"
        schema = 1
        name = "toy"
        [nodes.words]
        kind = "command"
        program = "sh"
        args = ["-c", "seq 1 20 > out; echo said"]
        [nodes.turned]
        kind = "command"
        program = "sh"
        args = ["-c", "tac {input.words}/out > out"]
        inputs = { words = "words" }
        [nodes.bad]
        kind = "command"
        program = "sh"
        args = ["-c", "echo because; exit 3"]
        "#,
    );
    // Here are no GPUs.
    let profile = shown("ray").replace("--entrypoint-num-gpus 1", "--entrypoint-num-cpus 1");
    sandbox.write("sami.toml", &format!("{profile}\ninterval = \"1s\"\nlag = \"5s\"\n"));
    let expected = sandbox.sami(&["run", "p.toml", "--json", "--cache", "local", "turned"]).exits(0).done();
    let folder = tempfile::Builder::new().prefix("ray").tempdir().expect("a directory");
    let path = format!(
        "{programs}:{}",
        env::variables()
            .find(|(name, _)| name == "PATH")
            .map(|(_, path)| path.to_string_lossy().into_owned())
            .unwrap_or_default()
    );
    let run = |args: &[&str]| -> Output {
        let sami = sandbox.command(args);
        let mut command = Command::new("unshare");
        command.args(["--net", "--pid", "--fork", "--mount-proc"]).arg(root().join("tests/it/ray.sh"));
        command.arg(folder.path().join("r")).arg(sami.get_program()).args(args).current_dir(sandbox.path(""));
        for variable in env::ALL {
            command.env_remove(variable.name);
        }
        command.env("PATH", &path).output().expect("it starts").into()
    };
    let output = run(&["run", "p.toml", "--json", "--profile", "ray", "--keep-going"]).exits(1);
    assert!(output.stderr.contains("because"), "{}", output.stderr);
    let done = output.done();
    assert_eq!((done.names("ran"), done.names("failed")), (vec!["words", "turned"], vec!["bad"]));
    let artifacts = |done: &super::sandbox::Done| -> Vec<Option<String>> {
        done.nodes.iter().filter(|node| node.name != "bad").map(|node| node.artifact.clone()).collect()
    };
    assert_eq!(artifacts(&done), artifacts(&expected));
}
