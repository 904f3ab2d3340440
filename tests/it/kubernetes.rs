//! The profile for Kubernetes that the documents show, with the real `kubectl`, on a server of these tests: whatever befalls
//! pods and the server, the artifacts are those of a run on this machine.

use std::process::Command;

use rustix::process::Signal;

use super::docs::profile;
use super::kubernetes_server::{Fate, Kubernetes};
use super::sandbox::{Output, Sandbox, is_installed, skipped, until};
use super::slurm_run::{COMMANDS, Going, artifacts, begun, job, locally};

/// A project that has the profile, and its cluster.
struct Lab {
    sandbox: Sandbox,
    cluster: Kubernetes,
}

const RUN: [&str; 5] = ["run", "p.toml", "--json", "--profile", "kubernetes"];

impl Lab {
    /// `lines` are further lines of the profile. Says why not where that cannot be.
    fn new(pipeline: &str, lines: &str) -> Option<Self> {
        if let Some(program) = ["kubectl", "jq"].into_iter().find(|program| !is_installed(program)) {
            skipped(&format!("`{program}` is not installed (apt-get install kubernetes-client jq)"));
            return None;
        }
        let (sandbox, cluster) = (Sandbox::with(pipeline), Kubernetes::start());
        sandbox.write("kube/config", &cluster.config());
        let lines = format!("{}\ninterval = \"300ms\"\nlag = \"2s\"\n{lines}\n", profile("kubernetes"));
        sandbox.write("sami.toml", &lines);
        Some(Self { sandbox, cluster })
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.sandbox.command(args);
        // It also keeps what it has learned of a server.
        command.env("KUBECONFIG", self.sandbox.path("kube/config")).env("HOME", self.sandbox.path("kube"));
        command
    }

    fn sami(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it starts").into()
    }

    fn start(&self) -> Going {
        Going::of(self.command(&RUN))
    }
}

#[test]
fn the_profile_runs_and_asks_for_what_it_says() {
    let bad = "\n[nodes.bad]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo because; exit 3\"]\n";
    let own = "[profiles.kubernetes.nodes.sum]\ncpus = 2\nmemory = \"1GB\"\ntime = \"90m\"\ngres = \"gpu:4\"";
    let Some(lab) = Lab::new(&format!("{COMMANDS}{bad}"), own) else { return };
    lab.sandbox.write("go", "");
    let expected = artifacts(lab.sandbox.sami(&["run", "p.toml", "sum", "--json", "--cache", "local"]));
    let output = lab.sami(&[&RUN[..], &["--keep-going"]].concat()).exits(1);
    assert!(output.stderr.contains("because"), "{}", output.stderr);
    let done = output.done();
    assert_eq!(done.names("failed"), ["bad"]);
    let made = done.nodes.into_iter().filter(|node| node.name != "bad").map(|node| (node.name, node.artifact));
    assert_eq!(made.collect::<Vec<_>>(), expected);
    assert!(output.stdout.contains("kubectl describe job sami-"), "{}", output.stdout);
    let limits = |mark: &str| {
        let jobs = lab.cluster.jobs(mark);
        assert_eq!(jobs.len(), 1, "{mark}: {jobs:?}");
        ["cpu", "memory", "nvidia.com/gpu"].map(|name| jobs[0].1[name].clone())
    };
    // 64 GB are 61,035.2 MiB.
    assert_eq!(limits("/words.1"), ["8", "61036Mi", "1"]);
    assert_eq!(limits("/sum.1"), ["2", "954Mi", "4"]);
    let probes = lab.cluster.jobs("").into_iter().filter(|(_, limits)| limits["cpu"] == "1");
    assert_eq!(probes.map(|(_, limits)| limits["memory"].clone()).collect::<Vec<_>>(), ["512Mi"]);
    lab.sandbox.verify();
}

#[test]
fn what_is_not_asked_for_is_not_limited_and_what_waits_says_for_what() {
    let Some(lab) = Lab::new(COMMANDS, "probe = false") else { return };
    let all = lab.sandbox.read("sami.toml");
    let plain = all
        .lines()
        .filter(|line| !["cpus", "memory", "time", "gres"].iter().any(|key| line.starts_with(&format!("{key} = "))));
    lab.sandbox.write("sami.toml", &plain.collect::<Vec<_>>().join("\n"));
    lab.sandbox.write("go", "");
    lab.cluster.state().full = true;
    let going = lab.start();
    until("a job", || (!lab.cluster.jobs("/words.1").is_empty()).then_some(()));
    let lists = lab.cluster.state().lists;
    until("a look at it", || (lab.cluster.state().lists > lists + 1).then_some(()));
    going.signal(Signal::INT);
    let output = going.end().exits(130);
    assert!(output.stdout.contains("0/2 nodes are available: no GPU is free"), "{}", output.stdout);
    until("its end", || lab.cluster.jobs("").is_empty().then_some(()));
    lab.cluster.state().full = false;
    assert_eq!(artifacts(lab.sami(&RUN)), locally(&lab.sandbox));
    assert!(lab.cluster.jobs("").iter().all(|(_, limits)| limits.is_empty()), "{:?}", lab.cluster.jobs(""));
}

#[test]
#[ignore = "slow: runs many pods"]
fn whatever_befalls_pods_changes_no_artifact() {
    let Some(lab) = Lab::new(COMMANDS, "") else { return };
    lab.sandbox.write("go", "");
    let expected = locally(&lab.sandbox);
    for (fate, told, lines) in [
        (Fate::Preempted, "its job was preempted on ", ""),
        (Fate::Evicted, "its job was preempted on gpu-a", ""),
        (Fate::NodeLost, "its machine failed", ""),
        (Fate::OutOfMemory, "its memory was not enough on gpu-a", ""),
        // A minute of the profile is two seconds there.
        (Fate::Deadline, "its time was up on ", "[profiles.kubernetes.nodes.hold]\ntime = \"1m\""),
    ] {
        let Some(lab) = Lab::new(COMMANDS, &format!("probe = false\n{lines}")) else { return };
        let going = lab.start();
        let first = begun(&lab.sandbox, &[]);
        if fate != Fate::Deadline {
            lab.cluster.befall(&job(&first), fate);
        }
        let second = begun(&lab.sandbox, std::slice::from_ref(&first));
        lab.sandbox.write("go", "");
        let output = going.end();
        assert!(output.stdout.contains(told), "{fate:?}: {}", output.stdout);
        let memory = |attempt: usize| lab.cluster.jobs(&format!("/hold.{attempt}"))[0].1["memory"].clone();
        let more = if fate == Fate::OutOfMemory { "91553Mi" } else { "61036Mi" };
        assert_eq!([memory(1), memory(2)], ["61036Mi", more]);
        assert_eq!(artifacts(output), expected, "{fate:?}");
        assert!(second.join("result.json").exists());
        lab.sandbox.verify();
    }
}

#[test]
fn a_server_that_stays_down_keeps_nobody_waiting() {
    let Some(lab) = Lab::new(COMMANDS, "probe = false") else { return };
    let going = lab.start();
    begun(&lab.sandbox, &[]);
    lab.cluster.state().down = true;
    for times in 1..=3 {
        going.signal(Signal::INT);
        let events = || lab.sandbox.files("cache/runs").into_iter().find(|file| file.ends_with("events.jsonl"));
        let told = || events().map_or(0, |file| lab.sandbox.read(file).matches("\"event\":\"interrupt\"").count());
        until("it is told", || (told() == times).then_some(()));
    }
    let output = going.end().exits(130);
    assert!(output.stdout.contains("\"state\":\"left\""), "{}", output.stdout);
    // It was told to save, and ends.
    until("its end", || lab.cluster.all_have_ended().then_some(()));
    lab.cluster.state().down = false;
    lab.sandbox.write("go", "");
    assert_eq!(artifacts(lab.sami(&RUN)), locally(&lab.sandbox));
    lab.sandbox.verify();
}

#[test]
#[ignore = "slow: waits for a server that is down"]
fn a_server_that_is_down_and_a_scheduler_that_dies_lose_no_job() {
    let Some(lab) = Lab::new(COMMANDS, "probe = false") else { return };
    let going = lab.start();
    let hold = begun(&lab.sandbox, &[]);
    // Longer than what is late is waited for.
    lab.cluster.state().down = true;
    std::thread::sleep(std::time::Duration::from_secs(4));
    lab.cluster.state().down = false;
    let lists = lab.cluster.state().lists;
    until("a look at it", || (lab.cluster.state().lists > lists).then_some(()));
    going.signal(Signal::KILL);
    going.end();
    // As if it had been killed before it wrote down what was submitted.
    let ticket = fs_err::read_to_string(hold.join("engine.json")).expect("a ticket");
    let mut ticket: serde_json::Value = serde_json::from_str(&ticket).expect("JSON");
    ticket["job"] = serde_json::Value::Null;
    fs_err::write(hold.join("engine.json"), ticket.to_string()).expect("writes");
    let going = lab.start();
    let lists = lab.cluster.state().lists;
    until("a look at it", || (lab.cluster.state().lists > lists + 1).then_some(()));
    lab.sandbox.write("go", "");
    let output = going.end();
    assert!(output.stdout.contains("\"state\":\"adopted\""), "{}", output.stdout);
    assert_eq!(artifacts(output), locally(&lab.sandbox));
    // One attempt at each node.
    assert_eq!(lab.cluster.jobs("").len(), 3);
    lab.sandbox.verify();
}
