//! A remote cache in Google's storage: its own conditions, names, lists and tokens, spoken by the real client to a server
//! on this machine.

use std::process::Command;

use super::remote_server::{Server, Wrong};
use super::sandbox::{Output, Sandbox};
use super::sharing::{pipeline, project};

/// What `[remote]` says; the environment says that the storage is the server.
const REMOTE: &str = "url = \"gs://bucket/pre/fix\"\nallow_http = true\ntimeout = 2\n";
const TOKEN: &str = "ya29.hunter2hunter2";

/// A server that hands out a token to machines and wants it back, and lists two names a page.
fn server() -> Server {
    let server = Server::start();
    server.state().token = Some(TOKEN);
    server.state().page = 2;
    server
}

/// On a machine whose address for credentials and whose storage are the server.
fn command(server: &Server, sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut command = sandbox.command(args);
    command
        .env("GOOGLE_BASE_URL", &server.address)
        .env("GCE_METADATA_HOST", server.address.trim_start_matches("http://"))
        .env("SAMI_LOG", "trace");
    command
}

fn sami(server: &Server, sandbox: &Sandbox, args: &[&str]) -> Output {
    command(server, sandbox, args).output().expect("the binary starts").into()
}

fn run(server: &Server, sandbox: &Sandbox, args: &[&str]) -> Output {
    sami(server, sandbox, &[&["run", "p.toml", "--json"], args].concat())
}

#[test]
fn a_bucket_of_google_s_carries_runs_from_one_machine_to_another() {
    let server = server();
    let pulled = REMOTE.to_owned() + "pull = true\n";
    let (here, there) = (project(&pipeline("true"), REMOTE), project(&pipeline("true"), &pulled));
    let mut told = run(&server, &here, &["--push"]).exits(0).stderr;
    assert!(server.state().objects.keys().all(|name| name.starts_with("/bucket/pre/fix/")));
    let asked = server.take();
    assert!(asked.iter().any(|line| line.contains("partNumber=2")), "large objects go in parts: {asked:#?}");
    let output = run(&server, &there, &[]).exits(0);
    assert_eq!((output.done().ran, output.done().hits), (0, 2));
    told += &output.stderr;
    there.verify();
    let survey = sami(&server, &there, &["remote", "--verify"]).exits(0);
    assert!(survey.stdout.contains("every byte") && survey.stdout.contains("second is refused"), "{}", survey.stdout);
    told += &survey.stderr;
    assert!(server.take().iter().any(|line| line.contains("continuation-token")), "lists have pages");
    let listed = sami(&server, &there, &["pull", "--list"]).exits(0).stdout;
    assert!(listed.contains("toy"), "{listed}");
    assert!(!told.contains("hunter2"), "the token is told");
    assert!(server.state().headers.contains(TOKEN), "it was used");
}

#[test]
fn of_two_writers_to_google_s_storage_the_second_is_told() {
    let server = server();
    let text = pipeline("date +%s%N > when");
    let (here, there) = (project(&text, REMOTE), project(&text, REMOTE));
    run(&server, &here, &["--push"]).exits(0);
    let before = server.state().objects.clone();
    let second = run(&server, &there, &["--push"]).exits(0);
    assert!(second.stderr.contains("cli::other-artifact"), "{}", second.stderr);
    let after = server.state().objects.clone();
    let mut records = before.iter().filter(|(name, _)| name.contains("/nodes/"));
    assert!(records.all(|(name, bytes)| after.get(name) == Some(bytes)), "the first writer's records stay");
}

#[test]
fn what_google_s_storage_refuses_says_so_and_a_run_goes_on() {
    let server = server();
    let here = project(&pipeline("true"), &(REMOTE.to_owned() + "pull = true\n"));
    // For a while.
    server.fail("", "/bucket", Wrong::Status(503), 1);
    run(&server, &here, &["--push"]).exits(0);
    server.fail("", "/bucket", Wrong::Status(403), usize::MAX);
    let there = project(&pipeline("true"), &(REMOTE.to_owned() + "pull = true\n"));
    let denied = sami(&server, &there, &["pull"]).exits(1).stderr;
    assert!(denied.contains("remote::denied"), "{denied}");
    assert_eq!(run(&server, &there, &[]).exits(0).done().ran, 2);
    server.state().faults.clear();
    sami(&server, &there, &["pull"]).exits(0);
    there.verify();
}

#[test]
fn an_upload_in_parts_to_google_s_storage_is_gone_on_with() {
    let server = server();
    let here = project(&pipeline("true"), REMOTE);
    run(&server, &here, &[]).exits(0);
    let mut killed = command(&server, &here, &["push"]);
    assert!(!killed.env("SAMI_FAULT", "kill:send:1").output().expect("it starts").status.success());
    let parts = |asked: &[String]| asked.iter().filter(|line| line.contains("partNumber=")).count();
    let before = parts(&server.take());
    sami(&server, &here, &["push"]).exits(0);
    let after = parts(&server.take());
    assert!(before >= 1 && after <= 1, "{before} parts, then {after}");
    sami(&server, &here, &["remote", "--verify"]).exits(0);
}

#[test]
fn without_an_account_google_s_storage_is_not_asked() {
    let server = server();
    let here = project(&pipeline("true"), REMOTE);
    here.run(&[], 0);
    let mut command = here.command(&["push"]);
    command.env("HOME", here.path(""));
    let told = Output::from(command.output().expect("the binary starts")).exits(2).stderr;
    assert!(told.contains("no credentials for `gs://`") && told.contains("GOOGLE_APPLICATION_CREDENTIALS"), "{told}");
    // What is public is read, and not written to.
    run(&server, &here, &["--push"]).exits(0);
    server.state().token = None;
    let public = |args: &[&str]| {
        let there = project(&pipeline("true"), &(REMOTE.to_owned() + "anonymous = true\n"));
        let mut command = there.command(args);
        command.env("GOOGLE_BASE_URL", &server.address);
        Output::from(command.output().expect("the binary starts"))
    };
    assert_eq!(public(&["run", "p.toml", "--json", "--pull"]).exits(0).done().hits, 2);
    let refused = public(&["run", "p.toml", "--push"]).exits(2).stderr;
    assert!(refused.contains("remote::read-only") && !refused.contains("start a"), "{refused}");
    assert!(public(&["remote"]).exits(0).stdout.contains("nodes"));
}
