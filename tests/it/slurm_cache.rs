//! The shared cache of a real Slurm as shared file systems have it: what a job writes is seen late, the quota is used up, clocks
//! differ.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::resume::PIPELINE;
use super::sandbox::{Sandbox, skipped, until};
use super::shards::in_parts;
use super::slurm_run::{COMMANDS, Going, PROFILE, RUN, artifacts, begun, locally, project};
use super::slurm_server::Slurm;

/// Jobs write into layers of their own, one each, over the cache; a copy of what they write is in the cache some time later.
struct Late {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Late {
    /// `runs`, `rest`: how late files of the runs' directories are to be seen, and all others.
    fn start(sandbox: &Sandbox, runs: Duration, rest: Duration) -> Self {
        let (layers, cache) = (sandbox.path("layers"), sandbox.path("cache"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut seen = HashMap::new();
            while !stopped.load(Ordering::Relaxed) {
                copy(&layers, &cache, (runs, rest), &mut seen);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// A file as it was seen: when first, and whether it was copied.
type Seen = HashMap<(PathBuf, u64, SystemTime), (Instant, bool)>;

/// Copies what has been there for long enough.
fn copy(layers: &Path, cache: &Path, (runs, rest): (Duration, Duration), seen: &mut Seen) {
    for layer in fs_err::read_dir(layers).into_iter().flatten().flatten() {
        let upper = layer.path().join("upper");
        for part in ["artifacts", "objects", "partial", "rows", "runs"] {
            let late = if part == "runs" { runs } else { rest };
            let mut open = vec![upper.join(part)];
            while let Some(directory) = open.pop() {
                for entry in fs_err::read_dir(&directory).into_iter().flatten().flatten() {
                    let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
                    let Ok(found) = fs_err::symlink_metadata(&path) else { continue };
                    // What is being written, or the worker's alone.
                    if name.starts_with('.') || name.starts_with("staging-") {
                        continue;
                    }
                    if found.is_dir() {
                        open.push(path);
                        continue;
                    }
                    let Ok(modified) = found.modified() else { continue };
                    let known = seen.entry((path.clone(), found.len(), modified)).or_insert((Instant::now(), false));
                    if !found.is_file() || known.1 || known.0.elapsed() < late {
                        continue;
                    }
                    let to = cache.join(path.strip_prefix(&upper).expect("it is in it"));
                    let above = to.parent().expect("it has one");
                    let unfinished = above.join(format!(".late-{name}"));
                    fs_err::create_dir_all(above).expect("a directory");
                    known.1 = fs_err::copy(&path, &unfinished).is_ok() && fs_err::rename(&unfinished, &to).is_ok();
                }
            }
        }
    }
}

/// A project whose jobs write into layers; `None` where there is no overlay file system.
fn late_project(pipeline: &str, lag: &str, lines: &str) -> Option<Sandbox> {
    let sandbox = Sandbox::with(pipeline);
    fs_err::create_dir_all(sandbox.path("layers")).expect("a directory");
    sandbox.write(
        "node.sh",
        &"layer=$(mktemp -d HERE/layers/XXXXXX) && mkdir $layer/upper $layer/work
        mount -t overlay none -o lowerdir=HERE/cache,upperdir=$layer/upper,workdir=$layer/work HERE/cache && exec \"$@\"
        echo no overlay >&2; exit 99"
            .replace("HERE", &sandbox.path("").display().to_string()),
    );
    let script = sandbox.path("node.sh").display().to_string();
    fs_err::create_dir_all(sandbox.path("cache")).expect("a directory");
    let tried = Command::new("unshare").args(["-m", "sh", &script, "true"]).status();
    if !tried.is_ok_and(|status| status.success()) {
        skipped("files that are seen late: there is no overlay file system here");
        return None;
    }
    let profile = PROFILE.replace("\"2s\"", lag);
    let container = format!("container = [\"unshare\", \"-m\", \"sh\", \"{script}\"]");
    sandbox.write("sami.toml", &format!("{profile}{container}\n{lines}\n"));
    Some(sandbox)
}

#[test]
#[ignore = "slow: starts a cluster"]
fn what_jobs_write_may_be_seen_late() {
    let Some(slurm) = Slurm::start() else { return };
    let (now, late) = (Duration::ZERO, Duration::from_millis(1500));
    let sandbox = Sandbox::with(COMMANDS);
    sandbox.write("go", "");
    let expected = locally(&sandbox);
    let jobs = || slurm.ask("squeue", &["-h", "-t", "all", "-o", "%i"]).lines().count();

    // A record before what it tells of, and after it: nothing is done twice.
    for (runs, rest) in [(now, late), (late, now)] {
        let Some(sandbox) = late_project(COMMANDS, "\"20s\"", "") else { return };
        sandbox.write("go", "");
        let copier = Late::start(&sandbox, runs, rest);
        let before = jobs();
        assert_eq!(artifacts(slurm.sami(&sandbox, &RUN)), expected);
        assert_eq!(jobs() - before, 3);
        drop(copier);
        sandbox.verify();
    }

    // Parts of a node, and the attempt that puts them together here.
    let lines = "kinds.finetune.run_on = \"here\"\nkinds.score.run_on = \"here\"\nkinds.evaluate.run_on = \"here\"";
    let Some(sandbox) = late_project(&in_parts(PIPELINE, "2", "1", "1"), "\"20s\"", lines) else { return };
    let copier = Late::start(&sandbox, now, late);
    let before = jobs();
    let output = slurm.sami(&sandbox, &RUN);
    assert_eq!(artifacts(output), locally(&Sandbox::with(PIPELINE)));
    assert_eq!(jobs() - before, 2);
    drop(copier);

    // Later than the profile says: that is said, and by then all is there.
    for (runs, rest, what) in [
        (late, now, "its job ended well on n1, and what it says of that is not to be seen here"),
        (now, late, "is not to be seen here, 1 times in this run"),
    ] {
        let Some(sandbox) = late_project(COMMANDS, "\"100ms\"", "retries = 0") else { return };
        sandbox.write("go", "");
        let _copier = Late::start(&sandbox, runs, rest);
        let output = slurm.sami(&sandbox, &RUN).exits(1);
        assert!(
            output.stderr.contains(what) && output.stderr.contains("let `lag` in the profile"),
            "{}",
            output.stderr
        );
        let text = sandbox.read("sami.toml").replace("100ms", "20s");
        sandbox.write("sami.toml", &text);
        assert_eq!(artifacts(slurm.sami(&sandbox, &RUN)), expected);
    }
}

/// A cache on a small disk of its own.
struct Small(PathBuf);

impl Small {
    /// `None` where nothing can be mounted.
    fn mount(sandbox: &Sandbox) -> Option<Self> {
        let cache = sandbox.path("cache");
        fs_err::create_dir_all(&cache).expect("a directory");
        let mut mount = Command::new("mount");
        let status = mount.args(["-t", "tmpfs", "-o", "size=8m", "none"]).arg(&cache).status();
        if !status.is_ok_and(|status| status.success()) {
            skipped("a full disk under a cache: nothing can be mounted here");
            return None;
        }
        Some(Self(cache))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
#[ignore = "slow: starts a cluster"]
fn a_disk_that_is_full_when_a_job_writes_costs_that_job_alone() {
    let Some(slurm) = Slurm::start() else { return };
    // `hold` makes a megabyte.
    let pipeline = COMMANDS.replace("tac {input.words}/out > out", "head -c 1000000 /dev/zero > out; FAILS");
    let (by_program, by_worker) = (pipeline.replace("FAILS", "exit $?"), pipeline.replace("FAILS", "true"));
    let sandbox = Sandbox::with(&by_worker);
    sandbox.write("go", "");
    let worker = locally(&sandbox);
    sandbox.write("p.toml", &by_program);
    let program = locally(&sandbox);
    for (pipeline, expected) in [(&by_worker, worker), (&by_program, program)] {
        let sandbox = project(pipeline);
        let Some(_small) = Small::mount(&sandbox) else { return };
        let going = Going::start(&slurm, &sandbox, &RUN);
        begun(&sandbox, &[]);
        // Whatever becomes free is taken again, by someone else.
        let full = Arc::new(AtomicBool::new(true));
        let (goes_on, filler) = (Arc::clone(&full), sandbox.path("cache/filler"));
        let other = std::thread::spawn(move || {
            use std::io::Write;
            let mut file = fs_err::OpenOptions::new().create(true).append(true).open(filler).expect("a file");
            while goes_on.load(Ordering::Relaxed) {
                while file.write(&[0; 4096]).is_ok() {}
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        std::thread::sleep(Duration::from_millis(300));
        sandbox.write("go", "");
        let output = going.end().exits(1);
        full.store(false, Ordering::Relaxed);
        other.join().expect("it ends");
        let told = output.stderr.contains("make room (`sami cache gc`");
        assert!(told && output.stderr.contains("node `hold` failed"), "{}", output.stderr);
        assert!(slurm.ask("squeue", &["-h"]).is_empty());
        // With room, it goes on from what was done before.
        fs_err::remove_file(sandbox.path("cache/filler")).expect("removes");
        let output = slurm.sami(&sandbox, &RUN);
        assert_eq!(output.done().hits, 1, "{}", output.stderr);
        assert_eq!(artifacts(output), expected);
        sandbox.verify();
    }
}

#[test]
#[ignore = "slow: starts a cluster"]
fn clocks_that_differ_are_told_of_and_change_nothing() {
    let Some(slurm) = Slurm::start() else { return };
    let sandbox = project(COMMANDS);
    sandbox.write("go", "");
    let expected = locally(&sandbox);
    // That of the nodes is seven minutes behind, or a day ahead.
    for (seconds, told) in [("-420", "off by -4"), ("86400", "off by 86")] {
        let sandbox = Sandbox::with(COMMANDS);
        sandbox.write("go", "");
        let profile = PROFILE.replace("probe = false", &format!("setup = [\"export SAMI_FAULT=clock:{seconds}\"]"));
        sandbox.write("sami.toml", &profile);
        let output = slurm.sami(&sandbox, &RUN);
        let warned = output.stderr.contains("cluster::clock-skew") && output.stderr.contains(told);
        assert!(warned, "{}", output.stderr);
        assert_eq!(artifacts(output), expected);
        // What was made is neither too old nor too young.
        sandbox.sami(&["cache", "gc", "--yes"]).exits(0);
        sandbox.verify();
        assert_eq!(slurm.sami(&sandbox, &RUN).exits(0).done().hits, 3);
    }

    // By a clock that is an hour behind MUNGE vouches for no one.
    if !Path::new("/usr/bin/faketime").exists() {
        return skipped("MUNGE with a wrong clock: there is no `faketime` (apt-get install faketime)");
    }
    let socket = slurm.path("munge/wrong");
    let at = |name: &str| format!("--{name}={}", slurm.path(&format!("munge/wrong-{name}")).display());
    let mut munge = Command::new("faketime")
        .args(["-f", "-60m", "munged", "--foreground", "--force"])
        .arg(format!("--key-file={}", slurm.path("munge/key").display()))
        .arg(format!("--socket={}", socket.display()))
        .args(["pid-file", "seed-file", "log-file"].map(at))
        .spawn()
        .expect("it starts");
    until("its socket", || socket.exists().then_some(()));
    let conf = slurm.path("wrong.conf");
    let right = fs_err::read_to_string(slurm.conf()).expect("a configuration");
    fs_err::write(&conf, right.replace("/munge/socket,", "/munge/wrong,")).expect("writes");
    fs_err::set_permissions(&conf, PermissionsExt::from_mode(0o644)).expect("it is ours");
    sandbox.write("p.toml", &COMMANDS.replace("1 200", "1 300"));
    let output = slurm.command(&sandbox, &RUN).env("SLURM_CONF", &conf).output().expect("it starts");
    let output = super::sandbox::Output::from(output);
    // Not `faketime`, which starts it, waits for it and tidies up.
    let pid = fs_err::read_to_string(slurm.path("munge/wrong-pid-file")).expect("its pid");
    Command::new("kill").arg(pid.trim()).status().expect("kills");
    munge.wait().expect("it ends");
    assert!(output.stderr.contains("the clock must be right here"), "{}", output.stderr);
    output.exits(2);
}
