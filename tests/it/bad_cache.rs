//! Caches that cannot be written, disks that fill up, clocks that jump, arguments that mean nothing: over the real
//! binary always a clear error, nothing lost, and afterwards all is well again.

use std::process::Command;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};
use sami::cli::{DAMAGED, DONE, FAILED, USAGE};

use super::bad_input::{ROWS, SOUND, no_bug, project, told};
use super::sandbox::{Output, Sandbox, skipped, unsteered};

/// Runs a shell script in a mount namespace of its own, in the project; `None` where that is not permitted. `$SAMI`
/// is the binary.
fn in_own_mounts(sandbox: &Sandbox, script: &str) -> Option<Output> {
    let allowed = ["-m", "-rm"].into_iter().find(|flags| {
        let probe = Command::new("unshare").args([flags, "sh", "-c", "mount -t tmpfs none /mnt"]).output();
        probe.is_ok_and(|probe| probe.status.success())
    })?;
    let mut shell = Command::new("unshare");
    unsteered(&mut shell)
        .args([allowed, "sh", "-c", script])
        .env("SAMI", sandbox.command(&[]).get_program())
        .current_dir(sandbox.path(""));
    Some(shell.output().expect("unshare was there a moment ago").into())
}

#[test]
fn a_cache_that_is_read_only() {
    let sandbox = project();
    sandbox.write("bad.toml", &SOUND.replace("wc -l", "wc -c"));
    // A file in its place: no mount needed.
    let output = sandbox.sami(&["run", "bad.toml", "--cache", "posts.jsonl"]).exits(USAGE.into());
    told(&output, "store::not-a-directory", "posts.jsonl` is a file", &["--cache DIR"]);
    assert_eq!(sandbox.read("posts.jsonl"), ROWS);

    let script = "mount --bind cache cache && mount -o remount,bind,ro cache || exit 99
        $SAMI run good.toml --json > fresh.txt && $SAMI run good.toml && $SAMI plan good.toml || exit 98
        $SAMI cache ls; $SAMI cache show count; $SAMI status good.toml
        $SAMI runs; $SAMI logs count; $SAMI run bad.toml; echo code $?; $SAMI cache gc --yes; echo code $?";
    let Some(output) = in_own_mounts(&sandbox, script).filter(|output| output.code != 99) else {
        return skipped("a read-only cache: no mount namespaces here");
    };
    // What there is can be read and used; what would have to be written cannot.
    assert_eq!(output.code, 0, "{output:?}");
    let fresh: serde_json::Value =
        serde_json::from_str(sandbox.read("fresh.txt").lines().last().expect("a line")).expect("JSON");
    assert_eq!((&fresh["ran"], &fresh["hits"]), (&0.into(), &2.into()));
    assert!(output.stdout.contains("of pipeline good") && output.stdout.contains("good/count"), "{output:?}");
    assert_eq!(output.stdout.matches("code 1").count(), 2, "{output:?}");
    told(&output, "store::read-only", "cache", &["name another one with `--cache DIR`"]);
    sandbox.verify();
    sandbox.sami(&["run", "bad.toml"]).exits(DONE.into());
}

#[test]
fn a_cache_of_a_newer_format() {
    let sandbox = project();
    sandbox.write("cache/VERSION", "7\n");
    for args in [&["run", "good.toml"][..], &["plan", "good.toml"], &["cache", "ls"], &["cache", "gc"], &["runs"]] {
        let output = sandbox.sami(args).exits(DAMAGED.into());
        told(&output, "store::newer-format", "has format version 7", &["versions up to 1", "--cache DIR"]);
    }
    sandbox.write("cache/VERSION", "1\n");
    sandbox.verify();
    assert_eq!(sandbox.sami(&["run", "good.toml", "--json"]).done().hits, 2);
}

#[test]
fn a_directory_of_other_things_is_no_cache() {
    let sandbox = project();
    sandbox.write("home/thesis.tex", "years of work");
    for args in [&["run", "good.toml", "--cache", "home"][..], &["plan", "good.toml", "--cache", "home"]] {
        let output = sandbox.sami(args).exits(USAGE.into());
        told(&output, "store::not-a-cache", "home", &["name an empty directory or a new one"]);
    }
    assert_eq!(sandbox.files("home").len(), 1);
}

#[test]
fn a_full_disk() {
    let sandbox = project();
    sandbox.write("big.toml", &SOUND.replace("posts.jsonl", "big.jsonl"));
    sandbox.write("big.jsonl", &format!("{{\"text\": \"{}\"}}\n", "x".repeat(3_000_000)));
    let script = "mkdir full && mount -t tmpfs -o size=2m none full || exit 99
        export SAMI_CACHE=full; $SAMI run good.toml || exit 98; $SAMI run big.toml; echo code $?
        $SAMI cache verify || exit 97; mount -o remount,size=20m full; $SAMI run good.toml --json | tail -n 1
        $SAMI run big.toml --json | tail -n 1; $SAMI cache verify";
    let Some(output) = in_own_mounts(&sandbox, script).filter(|output| output.code != 99) else {
        return skipped("a full disk: no mount namespaces here");
    };
    assert_eq!(output.code, 0, "{output:?}");
    told(&output, "store::full", "full", &["make room", "No space left"]);
    let lines: Vec<&str> = output.stdout.lines().collect();
    assert!(lines.contains(&"code 1"), "{output:?}");
    let done: Vec<&&str> = lines.iter().filter(|line| line.contains("\"event\":\"done\"")).collect();
    assert!(done[0].contains("\"hits\":2") && done[1].contains("\"ran\":2"), "{output:?}");
}

/// A disk of any size that is too small: what was done before it was full stays, and with room the rest is done.
#[test]
fn a_disk_that_is_full_in_the_middle_of_a_run() {
    let sandbox = Sandbox::new();
    let mut text = String::new();
    for (node, input) in [("a", ""), ("b", "inputs.x = \"a\""), ("c", "inputs.x = \"b\""), ("d", "inputs.x = \"c\"")] {
        let args = format!("args = [\"-ec\", \"head -c 90000 /dev/zero | tr '\\\\0' {node} > {{output}}/x\"]");
        text.push_str(&format!("[nodes.{node}]\nkind = \"command\"\nprogram = \"sh\"\n{input}\n{args}\n"));
    }
    sandbox.write("p.toml", &text);
    let script = "$SAMI run p.toml --cache calm --json | tail -n 1 | sed 's/\"seconds\":[0-9.e-]*//g' > calm.txt
        for size in 48 96 160 200 256 300 350 400 450 500 560 620; do
            mkdir disk; mount -t tmpfs -o size=${size}k none disk || exit 99
            $SAMI run p.toml --cache disk/cache; echo code $?
            test ! -e disk/cache/VERSION || $SAMI cache verify --cache disk/cache || exit 97
            mount -o remount,size=9m disk
            $SAMI run p.toml --cache disk/cache --json > ran.txt || exit 96
            tail -n 1 ran.txt | grep -o '\"artifact\":\"[0-9a-f]*\"' > ids.txt
            grep -o '\"artifact\":\"[0-9a-f]*\"' calm.txt | cmp - ids.txt || exit 95
            tail -n 1 ran.txt | grep -o '\"hits\":[0-9]*'
            $SAMI cache verify --cache disk/cache || exit 94
            umount disk; rmdir disk
        done";
    let Some(output) = in_own_mounts(&sandbox, script).filter(|output| output.code != 99) else {
        return skipped("disks that fill up: no mount namespaces here");
    };
    assert_eq!(output.code, 0, "{output:?}");
    assert!(output.stderr.contains("store::full") || output.stderr.contains("No space left"), "{output:?}");
    let codes = |code: &str| output.stdout.lines().filter(|line| *line == code).count();
    assert!(codes("code 1") >= 4 && codes("code 0") + codes("code 1") == 12, "{output:?}");
    // Some were full before anything was done, some in the middle.
    assert!(output.stdout.contains("\"hits\":0") && output.stdout.contains("\"hits\":2"), "{output:?}");
}

#[test]
fn who_only_looks_makes_no_cache() {
    let sandbox = Sandbox::new();
    sandbox.write("good.toml", SOUND);
    sandbox.write("posts.jsonl", ROWS);
    for args in [
        &["plan", "good.toml"][..],
        &["status", "good.toml"],
        &["why", "good.toml", "count"],
        &["dag", "good.toml"],
        &["check", "good.toml"],
    ] {
        let output = sandbox.sami(args).exits(DONE.into());
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{args:?}: {output:?}");
        assert!(!sandbox.path("cache").exists(), "{args:?}");
    }
}

/// As on a disk that fills up at the Nth change: whichever it is, the error says so, the cache stays whole, and the
/// same command with room on the disk ends well.
#[test]
fn any_write_can_fail() {
    let sandbox = Sandbox::new();
    sandbox.write("good.toml", SOUND);
    sandbox.write("posts.jsonl", ROWS);
    let mut failed = 0;
    for n in [1, 2, 3, 5, 8, 11, 14, 17, 20, 25, 30, 40, 50, 70, 90] {
        let cache = format!("cache-{n}");
        let fault = format!("store-op:{n}");
        let run = |fault: Option<&str>| {
            let mut command = sandbox.command(&["run", "good.toml", "--cache", &cache]);
            if let Some(fault) = fault {
                command.env("SAMI_FAULT", fault);
            }
            Output::from(command.output().expect("the binary starts"))
        };
        let output = run(Some(&fault));
        no_bug(&output);
        if output.code != i32::from(DONE) {
            failed += 1;
            assert!([FAILED, DAMAGED].map(i32::from).contains(&output.code), "{output:?}");
            assert!(output.stderr.contains("no space left on device"), "after {n}: {output:?}");
        }
        let ended = run(None).exits(DONE.into());
        no_bug(&ended);
        sandbox.sami(&["cache", "verify", "--cache", &cache]).exits(DONE.into());
    }
    assert!(failed >= 8, "only {failed} runs failed");
}

#[test]
fn a_clock_that_jumps_back_a_year() {
    let sandbox = project();
    sandbox.write("good.toml", &SOUND.replace("wc -l", "wc -c"));
    let mut command = sandbox.command(&["run", "good.toml", "--json"]);
    let output = command.env("SAMI_FAULT", "clock:-31536000").output().expect("the binary starts");
    let done = Output::from(output).exits(DONE.into()).done();
    assert_eq!((done.ran, done.hits), (1, 1));
    let runs = sandbox.sami(&["runs", "--json"]).json();
    let runs = runs.as_array().expect("runs");
    // Newest first all the same, and what is newest is what is shown.
    assert_eq!((&runs[0]["ran"], &runs[1]["ran"]), (&1.into(), &2.into()));
    assert!(runs[0]["run"].as_str() > runs[1]["run"].as_str(), "{runs:?}");
    let shown = sandbox.sami(&["show", "count", "--json"]).json();
    assert_eq!(shown["record"]["run"], runs[0]["run"]);
    sandbox.verify();
    assert_eq!(sandbox.sami(&["run", "good.toml", "--json"]).done().hits, 2);
}

#[test]
fn a_log_filter_that_is_none() {
    let sandbox = project();
    let mut command = sandbox.command(&["runs"]);
    let output = Output::from(command.env("SAMI_LOG", "sami=loud").output().expect("the binary starts"));
    told(&output.exits(USAGE.into()), "cli::log-filter", "SAMI_LOG=sami=loud", &["SAMI_LOG=debug"]);
}

/// Every command with arguments that mean nothing: an error or an empty answer, never a panic, and the cache stays.
#[test]
fn nonsense_never_panics() {
    let sandbox = project();
    sandbox.write("noise.bin", "\u{0}\u{1}\u{feff}[[[\"");
    sandbox.write("empty.toml", "");
    sandbox.write("open.toml", "[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [");
    let words = [
        "good.toml",
        "empty.toml",
        "open.toml",
        "noise.bin",
        "gone",
        ".",
        "",
        "-",
        "--",
        "/dev/null",
        "/proc/self/mem",
        "count",
        "cuont",
        "count@2",
        "count[",
        "a/b",
        "../..",
        "0",
        "00",
        "2",
        "2026",
        "ffffffffffffffff",
        "é\u{202e}",
        "--set",
        "--set=x",
        "x=1",
        "=",
        "--json",
        "--last",
        "--last=0",
        "-1",
        "18446744073709551616",
        "--run",
        "--cache",
        "--cache=/dev/null",
        "--cache=posts.jsonl",
        "--type=model",
        "--format=svg",
        "--format",
        "--dry-run",
        "--keep-runs=0",
        "--force=count",
        "--jobs=0",
        "-j",
        "--device=tpu",
        "--help",
        "--version",
        "%s%n",
        "rows.jsonl",
    ];
    let commands: [&[&str]; 21] = [
        &[],
        &["check"],
        &["plan"],
        &["status"],
        &["why"],
        &["dag"],
        &["runs"],
        &["show"],
        &["logs"],
        &["help"],
        &["worker"],
        &["cache"],
        &["cache", "ls"],
        &["cache", "show"],
        &["cache", "cat"],
        &["cache", "du"],
        &["cache", "verify"],
        &["cache", "gc", "--dry-run"],
        &["cache", "rebuild"],
        &["cache", "checkout"],
        &["run"],
    ];
    let mut random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut below = |bound: usize| (random.next_u64() % bound as u64) as usize;
    for round in 0..24 {
        for command in commands {
            let mut args = command.to_vec();
            args.extend((0..(round % 5)).map(|_| words[below(words.len())]));
            let output = sandbox.sami(&args);
            no_bug(&output);
            assert!((0..=3).contains(&output.code), "`{}`: {output:?}", args.join(" "));
            assert!(
                output.code == 0 || !output.stderr.is_empty() || !output.stdout.is_empty(),
                "`{}` says nothing",
                args.join(" ")
            );
        }
    }
    sandbox.verify();
    assert_eq!(sandbox.sami(&["run", "good.toml", "--json"]).done().hits, 2);
}
