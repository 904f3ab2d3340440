//! `kill -9` at random times, again and again: no run needs a flag, each repeats at most the work in hand, and all end in
//! the same artifacts.

use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sami::digest::Digest;
use sami::env;

use super::sandbox::{Done, Output, Sandbox};
use super::store_faults::{executions, project};

/// The same numbers in every run of the tests.
fn random(seed: &str, below: u64) -> u64 {
    u64::from_le_bytes(Digest::of(seed.as_bytes()).as_bytes()[..8].try_into().expect("eight bytes")) % below
}

fn children(process: u32) -> Vec<i32> {
    let listed = fs_err::read_to_string(format!("/proc/{process}/task/{process}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|number| number.parse().ok()).collect()
}

fn kill(process: i32) {
    let _ = std::process::Command::new("kill").args(["-KILL", &process.to_string()]).stderr(Stdio::null()).status();
}

/// Kills runs on one cache at random times until one comes through. Returns how many were killed.
fn story(sandbox: &Sandbox, number: u64, length: u64, undisturbed: &Done) -> u64 {
    let cache = format!("cache-{number}");
    let mut kills = 0;
    let mut finished = 0;
    loop {
        let mut command = sandbox.command(&["run", "p.toml", "--json", "--cache", &cache]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().expect("the binary starts");
        let seed = format!("{number} {kills}");
        std::thread::sleep(Duration::from_micros(random(&seed, length * 1000)));
        match random(&format!("whom {seed}"), 3) {
            0 => children(child.id()).into_iter().for_each(kill),
            _ => child.kill().expect("it can be killed"),
        }
        let output: Output = child.wait_with_output().expect("it ends").into();
        assert!([0, 1, 128 + 9].contains(&output.code), "{seed}: {output:?}");
        assert!(!output.stderr.contains("panicked"), "{seed}: {output:?}");
        if sandbox.path(&cache).join("VERSION").exists() {
            sandbox.verify_here(&cache);
        }
        if output.code == 0 {
            let done = output.done();
            assert_eq!(done.results(), undisturbed.results(), "{seed}");
            assert!(done.hits >= finished, "{seed}: {finished} were done and are lost");
            break;
        }
        kills += 1;
        finished += output.stdout.matches("\"event\":\"node-finish\"").count();
        if kills == 40 {
            let done = sandbox.run(&["--cache", &cache], 0);
            assert_eq!(done.results(), undisturbed.results(), "{seed}");
            break;
        }
    }
    // Each kill can have cost the command in hand, and no other.
    let executed: u32 = executions(sandbox, &cache).values().sum();
    assert!(u64::from(executed) <= 2 + kills, "{number}: {executed} executions and {kills} kills");
    sandbox.verify_here(&cache);
    fs_err::remove_dir_all(sandbox.path(&cache)).expect("it goes");
    kills
}

/// At least so many kills; returns the exact number.
fn kills(wanted: u64) -> u64 {
    let sandbox = project();
    let begin = Instant::now();
    let undisturbed = sandbox.run(&["--cache", "calm"], 0);
    let length = begin.elapsed().as_millis() as u64 + 1;
    let (next, killed) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while killed.load(Ordering::Relaxed) < wanted {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    killed.fetch_add(story(&sandbox, number, length, &undisturbed), Ordering::Relaxed);
                }
            });
        }
    });
    killed.into_inner()
}

#[test]
fn some_kills_lose_nothing() {
    assert!(kills(24) >= 24);
}

#[test]
#[ignore = "slow: a thousand kills, or as many as SAMI_TEST_KILLS says"]
#[expect(clippy::print_stderr, reason = "a figure is for reading")]
fn a_thousand_kills_lose_nothing() {
    let wanted = env::TEST_KILLS.get().map_or(1000, |count| count.parse().expect("a number"));
    let begin = Instant::now();
    let killed = kills(wanted);
    eprintln!("{killed} kills in {:.0} s, nothing lost", begin.elapsed().as_secs_f64());
}
