//! Many runs on one cache at once: each key is worked on once, no one fails, no one waits for a dead one, and who only
//! looks is in no one's way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::sandbox::{Output, Sandbox, skipped, wait_until};

/// A chain with a fan that all pipelines share, and an end of each one's own; nodes note that they begin and end.
fn pipeline(sandbox: &Sandbox, own: &str) -> String {
    let mut text = String::new();
    let notes = sandbox.path("notes").display().to_string();
    let mut node = |name: &str, inputs: &[&str]| {
        let reads = inputs.iter().fold(String::new(), |text, input| format!("{text}cat {{input.{input}}}/*; "));
        let inputs: Vec<String> = inputs.iter().map(|input| format!("{input} = \"{input}\"")).collect();
        let _ = writeln!(
            text,
            "[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\ninputs = {{ {} }}\nargs = [\"-ec\", '''\
             echo begin {name} >> {notes}; echo {name} > out; {reads} sleep 0.02; (:; {reads}) >> out; echo end {name} >> {notes}''']",
            inputs.join(", ")
        );
    };
    node("a", &[]);
    node("b", &["a"]);
    for name in ["c", "d", "e"] {
        node(name, &["b"]);
    }
    node("f", &["c", "d", "e"]);
    if !own.is_empty() {
        node(own, &["d", "f"]);
    }
    text
}

fn start(sandbox: &Sandbox, file: &str, args: &[&str]) -> Child {
    let args: Vec<&str> = ["run", file, "--json", "-j", "2"].iter().chain(args).copied().collect();
    sandbox.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary starts")
}

fn ends(children: Vec<Child>) -> Vec<Output> {
    children.into_iter().map(|child| child.wait_with_output().expect("it ends").into()).collect()
}

/// How often each node began.
fn begun(sandbox: &Sandbox) -> BTreeMap<String, usize> {
    let mut begun = BTreeMap::new();
    for node in sandbox.read("notes").lines().filter_map(|line| line.strip_prefix("begin ")) {
        *begun.entry(node.to_owned()).or_default() += 1;
    }
    begun
}

/// The most that anything here is waited for.
const MOST: Duration = Duration::from_secs(120);

#[test]
fn many_runs_of_one_pipeline_do_each_node_once() {
    let sandbox = Sandbox::new();
    // The first node lasts until another run waits for it, however slow the machine is.
    let go = sandbox.path("go").display().to_string();
    let lasts = format!("until test -e {go}; do sleep 0.02; done");
    sandbox.write("p.toml", &pipeline(&sandbox, "").replacen("sleep 0.02", &lasts, 1));
    let children = (0..12).map(|_| start(&sandbox, "p.toml", &[])).collect();
    wait_until("a run waits for another", MOST, || {
        let events = sandbox.files("cache/runs").into_iter().filter(|file| file.ends_with("events.jsonl"));
        events.into_iter().any(|file| sandbox.read(file).contains("\"node-wait\""))
    });
    sandbox.write("go", "");
    let outputs = ends(children);
    let done: Vec<_> = outputs
        .iter()
        .map(|output| {
            Output { stdout: output.stdout.clone(), stderr: output.stderr.clone(), code: output.code }.exits(0).done()
        })
        .collect();
    assert!(begun(&sandbox).values().all(|count| *count == 1), "{:?}", begun(&sandbox));
    assert_eq!(done.iter().map(|done| done.ran).sum::<usize>(), 6);
    assert!(done.iter().all(|other| other.results() == done[0].results()));
    let waits = outputs.iter().filter(|output| output.stdout.contains("\"node-wait\"")).count();
    assert!(waits > 0, "no one said that it waited");
    sandbox.verify();
    assert_eq!(sandbox.run(&[], 0).hits, 6);
    let left = sandbox.files("cache/tmp");
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn runs_of_pipelines_that_overlap_with_several_targets_share_what_they_share() {
    let sandbox = Sandbox::new();
    for own in ["x", "y", "z"] {
        sandbox.write(&format!("{own}.toml"), &pipeline(&sandbox, own));
    }
    let mut children = Vec::new();
    for (file, targets) in
        [("x.toml", &["x"][..]), ("y.toml", &["y"]), ("z.toml", &["c"]), ("x.toml", &["d", "e"]), ("z.toml", &[])]
    {
        children.extend((0..2).map(|_| start(&sandbox, file, targets)));
    }
    let outputs: Vec<_> = ends(children).into_iter().map(|output| output.exits(0).done()).collect();
    let begun = begun(&sandbox);
    assert_eq!(begun.len(), 9);
    assert!(begun.values().all(|count| *count == 1), "{begun:?}");
    assert_eq!(outputs.iter().map(|done| done.ran).sum::<usize>(), 9);
    let mut ids: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, key, artifact) in outputs.iter().flat_map(|done| done.results()) {
        let (key, artifact) = (key.expect("all are done"), artifact.expect("all are done"));
        assert_eq!(*ids.entry(key).or_insert(artifact), artifact, "{name}");
    }
    // Each pipeline knows the latest keys of its nodes: nothing is lost when many write the index at once.
    for own in ["x", "y", "z"] {
        let status = sandbox.sami(&["run", &format!("{own}.toml"), "--json"]).exits(0).done();
        assert_eq!((status.ran, status.hits), (0, 7));
    }
    sandbox.verify();
}

/// A node that takes a minute unless there is a file `quick`; others wait for it.
fn slow(sandbox: &Sandbox) {
    let folder = sandbox.path("").display().to_string();
    sandbox.write(
        "p.toml",
        &format!(
            "[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo begin a >> {folder}/notes; \
             test -e {folder}/quick || sleep 60; echo > out; echo end a >> {folder}/notes\"]\n"
        ),
    );
}

#[test]
fn a_run_that_is_killed_is_taken_over_at_once() {
    let sandbox = Sandbox::new();
    slow(&sandbox);
    let mut first = start(&sandbox, "p.toml", &[]);
    wait_until("the node runs", MOST, || sandbox.path("notes").exists());
    let mut others: Vec<_> = (0..3)
        .map(|_| {
            let mut command = sandbox.command(&["run", "p.toml"]);
            let stderr =
                fs_err::OpenOptions::new().create(true).append(true).open(sandbox.path("said")).expect("opens");
            command.stdout(Stdio::null()).stderr(stderr.into_parts().0).spawn().expect("starts")
        })
        .collect();
    let who = format!("process {}", first.id());
    wait_until("the others wait, and say for whom", MOST, || sandbox.read("said").matches(&who).count() == 3);
    sandbox.write("quick", "");
    let begin = Instant::now();
    first.kill().expect("it can be killed");
    first.wait().expect("ends");
    for other in &mut others {
        assert!(other.wait().expect("ends").success());
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(sandbox.read("notes"), "begin a\nbegin a\nend a\n");
    sandbox.verify();
}

#[test]
fn a_lock_of_another_machine_is_waited_for_while_its_heart_beats() {
    let sandbox = Sandbox::new();
    slow(&sandbox);
    sandbox.write("quick", "");
    let plan = sandbox.sami(&["plan", "p.toml", "--json"]).exits(0).json();
    let key = plan["nodes"][0]["key"].as_str().expect("it is known").to_owned();
    drop(sandbox.sami(&["cache", "ls"]));
    let claim = "{\"host\":\"far\",\"process\":1,\"boot\":\"other\",\"started\":1,\"namespace\":\"pid:[1]\"}\n";
    let lock = format!("cache/locks/{key}");
    sandbox.write(&lock, claim);
    let mut waiting = start(&sandbox, "p.toml", &[]);
    std::thread::sleep(Duration::from_millis(400));
    assert!(waiting.try_wait().expect("it can be asked").is_none(), "it did not wait");
    assert!(!sandbox.path("notes").exists());
    // Its clock may be anywhere: what counts is that no beat comes any more.
    let file = fs_err::OpenOptions::new().write(true).open(sandbox.path(&lock)).expect("opens");
    let then = file.metadata().expect("is there").modified().expect("has a time") - Duration::from_secs(120);
    file.file().set_modified(then).expect("sets");
    let output = Output::from(waiting.wait_with_output().expect("ends")).exits(0);
    assert!(output.stdout.contains("process 1 on far"), "{}", output.stdout);
    assert!(output.stderr.contains("silent"), "{}", output.stderr);
    assert_eq!(output.done().ran, 1);
}

#[test]
fn two_that_work_at_one_key_at_once_leave_one_result() {
    let sandbox = Sandbox::new();
    let folder = sandbox.path("").display().to_string();
    // Each makes something else.
    let text = format!(
        "[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo begin a >> {folder}/notes; sleep 0.5; echo $$ > out\"]\n\
         [nodes.b]\nkind = \"command\"\nprogram = \"sh\"\ninputs = {{ a = \"a\" }}\nargs = [\"-c\", \"cat {{input.a}}/out > out\"]\n"
    );
    sandbox.write("p.toml", &text);
    let first = start(&sandbox, "p.toml", &[]);
    wait_until("the node runs", MOST, || sandbox.path("notes").exists());
    // As on a file system on which the other's lock is not seen, and its claim has been silent for long.
    for lock in sandbox.files("cache/locks").iter().filter(|path| path.file_name().is_some_and(|name| name.len() == 64))
    {
        fs_err::remove_file(lock).expect("removes");
    }
    let second = start(&sandbox, "p.toml", &[]);
    let both: Vec<_> = ends(vec![first, second]).into_iter().map(|output| output.exits(0).done()).collect();
    assert_eq!(begun(&sandbox)["a"], 2);
    assert_eq!(both[0].results(), both[1].results(), "the first record stays, for both");
    assert_eq!(sandbox.run(&[], 0).hits, 2);
    sandbox.verify();
}

#[test]
fn who_looks_never_fails_and_holds_no_one_up() {
    let sandbox = Sandbox::new();
    sandbox.write("p.toml", &pipeline(&sandbox, "x"));
    sandbox.run(&["a"], 0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let look = |args: &'static [&'static str]| {
            let (sandbox, over) = (&sandbox, &over);
            scope.spawn(move || {
                let mut looks = 0;
                while !over.load(Ordering::Relaxed) {
                    sandbox.sami(args).exits(0);
                    looks += 1;
                }
                looks
            })
        };
        let looks = [
            look(&["cache", "ls"]),
            look(&["status", "p.toml"]),
            look(&["show", "a"]),
            look(&["cache", "show", "a"]),
            look(&["runs"]),
            look(&["cache", "gc", "--dry-run"]),
        ];
        let rebuild = look(&["cache", "rebuild"]);
        for round in 0..6 {
            let text = pipeline(&sandbox, "x").replace("echo b > out", &format!("echo round {round} > out"));
            sandbox.write("q.toml", &text);
            let both = vec![start(&sandbox, "q.toml", &[]), start(&sandbox, "q.toml", &["f"])];
            ends(both).into_iter().for_each(|output| drop(output.exits(0)));
        }
        over.store(true, Ordering::Relaxed);
        let looks: Vec<usize> = looks.into_iter().map(|look| look.join().expect("no look failed")).collect();
        assert!(looks.iter().all(|looks| *looks > 2), "{looks:?}");
        assert!(rebuild.join().expect("no rebuild failed") > 0);
    });
    assert_eq!(sandbox.sami(&["run", "q.toml", "--json"]).exits(0).done().ran, 0);
    sandbox.verify();
}

#[test]
#[ignore = "slow: SQLite waits for ten seconds"]
fn someone_who_holds_the_index_costs_time_and_nothing_else() {
    let sandbox = Sandbox::new();
    sandbox.write("p.toml", &pipeline(&sandbox, ""));
    sandbox.run(&["a"], 0);
    // `flock` on the file is not what SQLite uses; an open transaction of another program is.
    let holder = r#"
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(60)
"#;
    let index = sandbox.path("cache/index.sqlite");
    let held = Command::new("python3").args(["-c", holder]).arg(&index).stdout(Stdio::piped()).spawn();
    let Ok(mut holder) = held else {
        return skipped("there is no python3 to hold the index with");
    };
    let mut line = String::new();
    let read =
        std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().expect("is piped")), &mut line);
    if read.is_err() || line.trim() != "held" {
        return skipped("python3 cannot hold the index");
    }
    let begin = Instant::now();
    let output = sandbox.sami(&["run", "p.toml", "--json"]);
    let took = begin.elapsed();
    holder.kill().expect("it can be killed");
    holder.wait().expect("ends");
    assert_eq!(output.exits(0).done().ran, 5);
    assert!(took < Duration::from_secs(60), "{took:?}");
    // What the index missed is in the files: nothing runs again.
    assert_eq!(sandbox.run(&[], 0).hits, 6);
    sandbox.verify();
}
