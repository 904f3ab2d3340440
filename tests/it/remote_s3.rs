//! The remote cache on a real server of S3's protocol, Ceph's gateway, which is started here. Skips with a printed reason
//! where its packages are not installed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::docs::root;
use super::sandbox::{Output, Sandbox, free_ports, skipped};
use super::sharing::{pipeline, project};

/// The server, until it is dropped.
struct Ceph {
    script: Child,
    url: String,
    _folder: tempfile::TempDir,
}

impl Drop for Ceph {
    fn drop(&mut self) {
        // It ends what it started when no one holds the other end.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}

/// Starts the server; `None`, with a printed reason, where it is not installed.
fn ceph() -> Option<Ceph> {
    let has = |program: &&str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .stdout(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let needed = ["ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "curl"];
    if let Some(lacks) = needed.iter().find(|program| !has(program)) {
        skipped(&format!("`{lacks}` is not installed (apt-get install ceph-mon ceph-osd radosgw ceph-common curl)"));
        return None;
    }
    let folder = tempfile::tempdir().expect("a directory");
    let mut script = Command::new(root().join("tests/it/ceph.sh"))
        .arg(folder.path())
        .args(free_ports::<3>().map(|port| port.to_string()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the script starts");
    let mut url = String::new();
    BufReader::new(script.stdout.take().expect("it is piped")).read_line(&mut url).expect("reads");
    assert!(url.starts_with("http://"), "the server did not start");
    Some(Ceph { script, url: url.trim().to_owned(), _folder: folder })
}

impl Ceph {
    fn remote(&self, prefix: &str) -> String {
        format!("url = \"s3://sami/{prefix}\"\nendpoint = \"{}\"\nallow_http = true\n", self.url)
    }
}

fn command(sandbox: &Sandbox, args: &[&str]) -> Command {
    let mut command = sandbox.command(args);
    command.env("AWS_ACCESS_KEY_ID", "samitest").env("AWS_SECRET_ACCESS_KEY", "samisecret");
    command
}

fn sami(sandbox: &Sandbox, args: &[&str]) -> Output {
    command(sandbox, args).output().expect("the binary starts").into()
}

const RUN: [&str; 3] = ["run", "p.toml", "--json"];

/// Two machines and one bucket: all that the first made are hits on the second, by itself.
fn two_machines(server: &Ceph) {
    // A run does not wait long for a server. This one has two cores with all else.
    let automatic = server.remote("two") + "push = \"on-success\"\npull = true\ntimeout = 300\n";
    let (here, there) = (project(&pipeline("true"), &automatic), project(&pipeline("true"), &automatic));
    let output = sami(&here, &RUN).exits(0);
    assert!(output.done().ran == 2 && output.stderr.contains("pushed 2 node records"), "{}", output.stderr);
    let output = sami(&there, &RUN).exits(0);
    let done = output.done();
    assert_eq!((done.ran, done.hits), (0, 2), "{}", output.stderr);
    there.verify();
    let survey = sami(&there, &["remote", "--verify"]).exits(0).stdout;
    assert!(survey.contains("every byte") && survey.contains("second is refused"), "{survey}");
}

/// Sixteen machines whose work under one key differs: one record, and all are told of it.
fn race(server: &Ceph) {
    let text = pipeline("date +%s%N > when");
    let machines: Vec<_> = (0..16).map(|_| project(&text, &server.remote("race"))).collect();
    for machine in &machines {
        sami(machine, &RUN).exits(0);
    }
    let started: Vec<_> = machines
        .iter()
        .map(|machine| {
            let mut push = command(machine, &["push", "a", "--json"]);
            push.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts")
        })
        .collect();
    let ended: Vec<Output> = started.into_iter().map(|push| push.wait_with_output().expect("it ends").into()).collect();
    let figures: Vec<_> = ended.into_iter().map(|output| output.exits(0).json()["pushed"].clone()).collect();
    let first = figures.iter().filter(|pushed| pushed["nodes"] == 1).count();
    let stays: std::collections::BTreeSet<String> = figures
        .iter()
        .flat_map(|pushed| pushed["others"].as_array().cloned().unwrap_or_default())
        .map(|other| other["stays"].to_string())
        .collect();
    assert_eq!((first, stays.len()), (1, 1), "{figures:#?}");
}

/// Killed in the middle, again and again: it gets on, and ends whole.
fn killed(server: &Ceph) {
    let text = pipeline("head -c 70000000 /dev/urandom > huge");
    let here = project(&text, &server.remote("kill"));
    sami(&here, &RUN).exits(0);
    let until_done = |sandbox: &Sandbox, what: &str, fault: &str| {
        for tries in 0..100 {
            let output = command(sandbox, &[what]).env("SAMI_FAULT", fault).output().expect("it starts");
            if output.status.success() {
                return tries;
            }
            assert!(output.status.code().is_none(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        panic!("{what} never gets done under {fault}");
    };
    let pushes = until_done(&here, "push", "kill:send:2");
    sami(&here, &["remote", "--verify"]).exits(0);
    let there = project(&text, &server.remote("kill"));
    let pulls = until_done(&there, "pull", "kill:arrive:12");
    assert!(pushes > 1 && pulls > 0, "killed {pushes} and {pulls} times");
    assert_eq!(sami(&there, &RUN).exits(0).done().ran, 0);
    there.verify();
}

/// Nothing of it may be seen, and a run goes on.
fn wrong_credentials(server: &Ceph) {
    let there = project(&pipeline("true"), &(server.remote("two") + "pull = true\ntimeout = 300\n"));
    for (key, secret) in [("samitest", "hunter2hunter2"), ("nobody", "hunter2hunter2")] {
        let with = |args: &[&str]| {
            let mut command = there.command(args);
            command.env("AWS_ACCESS_KEY_ID", key).env("AWS_SECRET_ACCESS_KEY", secret);
            Output::from(command.output().expect("it starts"))
        };
        let output = with(&["pull"]).exits(1);
        assert!(output.stderr.contains("remote::denied") && !output.stderr.contains("hunter2"), "{}", output.stderr);
        let output = with(&["run", "p.toml", "--json", "--force", "a"]).exits(0);
        assert!(output.stderr.contains("warning[remote::denied]") || output.done().hits == 1, "{}", output.stderr);
    }
    let nowhere = server.remote("x").replace("s3://sami/", "s3://nowhere/");
    let there = project(&pipeline("true"), &nowhere);
    sami(&there, &RUN).exits(0);
    assert!(sami(&there, &["push"]).exits(1).stderr.contains("NoSuchBucket"));
}

#[test]
#[ignore = "slow: starts Ceph (20 s), and moves 300 MB"]
fn a_real_server_carries_all_of_it() {
    let Some(server) = ceph() else { return };
    two_machines(&server);
    race(&server);
    killed(&server);
    wrong_credentials(&server);
}
