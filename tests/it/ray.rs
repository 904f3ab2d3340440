//! The profile for Ray that the documents show, on a real Ray.

use std::process::Command;

use sami::env;

use super::docs::{profile, root};
use super::sandbox::{Output, Sandbox, is_installed, skipped};

#[test]
#[ignore = "slow: starts Ray"]
fn the_profile_for_ray_runs_on_ray() {
    let Some(programs) = env::TEST_RAY.get() else { return skipped("SAMI_TEST_RAY is not set") };
    if !["jq", "curl"].into_iter().all(is_installed) || !rustix::process::getuid().is_root() {
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
    let profile = profile("ray").replace("--entrypoint-num-gpus 1", "--entrypoint-num-cpus 1");
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
