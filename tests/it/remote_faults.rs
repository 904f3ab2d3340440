//! A remote cache that fails in every way that servers do: what is asked for is told, a run goes on without, and nothing
//! wrong gets a name.

use std::time::Instant;

use super::remote_server::{Server, Wrong};
use super::sandbox::{Output, Sandbox};
use super::sharing::{pipeline, project};

const KEY: &str = "AKIDHUNTER1";
const SECRET: &str = "hunter2hunter2";

fn sami(sandbox: &Sandbox, args: &[&str]) -> Output {
    let mut command = sandbox.command(args);
    command
        .env("AWS_ACCESS_KEY_ID", KEY)
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_SESSION_TOKEN", "hunter3hunter3");
    command.output().expect("the binary starts").into()
}

fn run(sandbox: &Sandbox, args: &[&str]) -> Output {
    sami(sandbox, &[&["run", "p.toml", "--json"], args].concat())
}

/// A server that has what a run made, and another machine.
fn shared() -> (Server, Sandbox) {
    let server = Server::start();
    let here = project(&pipeline("true"), &server.remote());
    run(&here, &["--push"]).exits(0);
    server.take();
    let there = project(&pipeline("true"), &(server.remote() + "pull = true\n"));
    (server, there)
}

#[test]
fn a_bucket_carries_runs_from_one_machine_to_another() {
    let (server, there) = shared();
    let done = run(&there, &[]).exits(0).done();
    assert_eq!((done.ran, done.hits), (0, 2));
    there.verify();
    let asked = server.take();
    // The two records are asked for one after the other, for the second key hangs on the first artifact.
    assert!(asked.len() < 20, "{asked:#?}");
    assert_eq!(run(&there, &[]).exits(0).done().hits, 2);
    assert!(server.take().is_empty(), "nothing is asked where all is fresh");
    assert!(sami(&there, &["remote", "--verify"]).exits(0).stdout.contains("every byte"));
    assert!(server.state().objects.keys().all(|name| name.starts_with("/bucket/pre/fix/")));
}

#[test]
fn what_fails_for_a_while_is_tried_again() {
    for (method, path, what, times) in [
        ("GET", "nodes/", Wrong::Status(503), 2),
        ("GET", "objects/", Wrong::Status(500), 1),
        ("GET", "objects/", Wrong::Cut(1_000_000), 1),
        ("GET", "objects/", Wrong::Lost, 1),
        ("GET", "objects/", Wrong::Bit, 1),
        ("GET", "objects/", Wrong::NoRange, 1),
        ("GET", "artifacts/", Wrong::Bit, 1),
    ] {
        let (server, there) = shared();
        server.fail(method, path, what.clone(), times);
        sami(&there, &["pull"]).exits(0);
        assert_eq!(run(&there, &["--no-remote"]).exits(0).done().ran, 0, "{what:?}");
        there.verify();
        assert_eq!(server.state().faults[0].times, 0, "{what:?}");
    }
}

#[test]
fn what_is_asked_for_and_fails_is_an_error_that_says_what() {
    for (path, what, told) in [
        ("", Wrong::Status(403), "remote::denied"),
        ("objects/", Wrong::Status(403), "remote::denied"),
        ("objects/", Wrong::Bit, "wrong bytes"),
        ("objects/", Wrong::Half, "wrong bytes"),
        ("artifacts/", Wrong::Bit, "wrong bytes"),
        ("objects/", Wrong::Status(404), "lacks `objects/"),
        ("artifacts/", Wrong::Status(404), "lacks `artifacts/"),
    ] {
        let (server, there) = shared();
        server.fail("", path, what.clone(), usize::MAX);
        let output = sami(&there, &["pull"]).exits(1);
        assert!(output.stderr.contains(told), "{what:?}: {}", output.stderr);
        there.sami(&["cache", "rebuild"]);
        assert_eq!(run(&there, &["--no-remote"]).exits(0).done().failed, 0);
        there.verify();
    }
    let (server, there) = shared();
    server.fail("PUT", "", Wrong::Status(403), usize::MAX);
    run(&there, &["--no-remote", "--force", "b"]).exits(0);
    assert!(sami(&there, &["push", "--again"]).exits(1).stderr.contains("remote::denied"));
}

#[test]
fn a_run_goes_on_without_what_fails() {
    for (path, what) in [
        ("", Wrong::Status(403)),
        ("", Wrong::Status(503)),
        ("", Wrong::Slow(60_000)),
        ("nodes/", Wrong::Slow(60_000)),
        ("objects/", Wrong::Status(503)),
        ("objects/", Wrong::Bit),
        ("objects/", Wrong::Half),
        ("objects/", Wrong::Cut(10)),
        ("artifacts/", Wrong::Bit),
        ("nodes/", Wrong::Bit),
    ] {
        let (server, there) = shared();
        server.fail("", path, what.clone(), usize::MAX);
        let start = Instant::now();
        let output = run(&there, &[]).exits(0);
        let done = output.done();
        assert!(done.ok && done.ran > 0, "{what:?}");
        let told = output.stderr.matches("warning[").count() + output.stderr.matches("WARN passed over").count();
        assert!((1..=2).contains(&told), "{path} {what:?}: {}", output.stderr);
        assert!(start.elapsed().as_secs() < 30, "{what:?}: {:?}", start.elapsed());
        there.verify();
    }
    // Nobody listens.
    let there = project(
        &pipeline("true"),
        "url = \"s3://bucket\"\nendpoint = \"http://127.0.0.1:9\"\nallow_http = true\ntimeout = 1\npull = true\npush = \"on-success\"",
    );
    let output = run(&there, &[]).exits(0);
    assert_eq!(output.done().ran, 2);
    assert_eq!(output.stderr.matches("remote::unreachable").count(), 2, "{}", output.stderr);
    assert_eq!(run(&there, &["--push", "--force", "b"]).exits(1).done().ran, 1);
    assert!(run(&there, &["--no-remote", "--force", "b"]).exits(0).stderr.is_empty());
}

#[test]
fn a_server_that_ignores_conditions_is_found_out() {
    let server = Server::start();
    server.state().ignores_conditions = true;
    let text = pipeline("date +%s%N > when");
    let (here, there) = (project(&text, &server.remote()), project(&text, &server.remote()));
    run(&here, &["--push"]).exits(0);
    assert!(sami(&here, &["remote"]).exits(0).stdout.contains("lets a second writer replace"));
    assert!(run(&there, &["--push"]).exits(0).stderr.contains("cli::other-artifact"));
}

#[test]
fn an_answer_that_was_lost_is_no_other_writer() {
    let server = Server::start();
    let here = project(&pipeline("true"), &server.remote());
    server.fail("PUT", "nodes/", Wrong::Lost, 1);
    let output = run(&here, &["--push"]).exits(0);
    assert!(!output.stderr.contains("cli::other-artifact"), "{}", output.stderr);
    assert!(sami(&here, &["remote", "--verify"]).exits(0).stdout.contains("every byte"));
}

#[test]
fn uploads_in_parts_are_gone_on_with() {
    let server = Server::start();
    let here = project(&pipeline("true"), &server.remote());
    run(&here, &[]).exits(0);
    let mut killed = here.command(&["push"]);
    killed.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET).env("SAMI_FAULT", "kill:send:1");
    assert!(!killed.output().expect("it starts").status.success());
    let parts = |asked: &[String]| asked.iter().filter(|line| line.contains("partNumber=")).count();
    let before = parts(&server.take());
    sami(&here, &["push"]).exits(0);
    let after = parts(&server.take());
    assert!(before >= 1 && after <= 1, "{before} parts, then {after}");
    sami(&here, &["remote", "--verify"]).exits(0);
    assert!(here.files("cache/tmp/arriving").is_empty());
}

#[test]
fn no_secret_is_ever_written() {
    let server = Server::start();
    let here = project(&pipeline("true"), &(server.remote() + "pull = true\npush = \"on-success\"\n"));
    let mut told = String::new();
    for fault in [None, Some(Wrong::Status(403)), Some(Wrong::Status(500))] {
        server.state().faults.clear();
        if let Some(fault) = fault {
            server.fail("", "", fault, usize::MAX);
        }
        for args in [&["run", "p.toml", "--json", "--force", "a"][..], &["push"], &["pull"], &["remote", "--json"]] {
            let mut command = here.command(args);
            command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET);
            command.env("AWS_SESSION_TOKEN", "hunter3hunter3").env("SAMI_LOG", "trace");
            let output = Output::from(command.output().expect("it starts"));
            told += &(output.stdout + &output.stderr);
        }
    }
    for path in here.files("") {
        told += &String::from_utf8_lossy(&fs_err::read(&path).expect("reads"));
    }
    told +=
        &server.state().objects.values().map(|bytes| String::from_utf8_lossy(bytes).into_owned()).collect::<String>();
    for secret in [SECRET, "hunter3"] {
        assert!(
            !told.contains(secret),
            "{secret} is told: {:?}",
            told.find(secret).map(|at| &told[at.saturating_sub(300)..at + 20])
        );
    }
    assert!(server.state().headers.contains(KEY), "it was used");
}

#[test]
fn a_web_server_is_read_from() {
    let (server, _) = shared();
    let web = format!("url = \"{}/bucket/pre/fix\"\nallow_http = true\n", server.address);
    let there = project(&pipeline("true"), &(web.clone() + "pull = true\n"));
    let done = there.run(&[], 0);
    assert_eq!((done.ran, done.hits), (0, 2));
    there.verify();
    let key = done.nodes[1].key.clone().expect("a key");
    let other = project(&pipeline("true"), &web);
    other.sami(&["pull", &key]).exits(0);
    assert!(other.sami(&["pull"]).exits(1).stderr.contains("name whole keys"));
    assert!(there.sami(&["push"]).exits(2).stderr.contains("remote::read-only"));
    // Half of what is asked for a range, and none of the rest.
    server.fail("GET", "objects/", Wrong::NoRange, 1);
    project(&pipeline("true"), &(web + "pull = true\n")).run(&[], 0);
}

#[test]
fn without_credentials_nothing_is_tried() {
    let server = Server::start();
    let here = project(&pipeline("true"), &server.remote());
    here.run(&[], 0);
    let told = here.sami(&["push"]).exits(2).stderr;
    assert!(told.contains("no credentials"), "{told}");
    let public = project(&pipeline("true"), &(server.remote() + "anonymous = true\n"));
    public.run(&["--push"], 0);
}
