//! What reruns after which change: fifty nodes below one source, every node's output constant. What is expected is
//! what an engine with content-addressed keys, early cutoff, a cache of results and verified outputs can do at best.
//!
//! ```text
//! source ─ head ─ five in a chain ─ eighteen side by side ─ join ─ head ─ … ─ join
//! ```

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::sandbox::{Done, Sandbox};

/// The node in the middle of which things are done to: one of the eighteen of the first half.
const MID: &str = "fan0x7";

/// Fifty nodes and a file in which each notes that it was executed.
struct Fifty {
    sandbox: Sandbox,
}

impl Fifty {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        sandbox.write("source.txt", "one\n");
        let fifty = Self { sandbox };
        fifty.declare("");
        fifty
    }

    /// Writes the pipeline; `twist` goes into the command of the node in the middle and changes nothing.
    fn declare(&self, twist: &str) {
        let mut text = String::from("[datasets.source]\nsource = \"source.txt\"\n");
        let mut node = |name: &str, inputs: &[String]| {
            let inputs: Vec<String> = inputs.iter().map(|input| format!("{input} = \"{input}\"")).collect();
            let twist = if name == MID { twist } else { "" };
            let note = self.sandbox.path("executed").display().to_string();
            let _ = writeln!(
                text,
                "[nodes.{name}]\nkind = \"command\"\nprogram = \"sh\"\ninputs = {{ {} }}\nargs = [\"-c\", \"{twist}echo {name} >> {note}; \
                 test ! -e {fail}/fail-{name} && echo of {name} > out\"]",
                inputs.join(", "),
                fail = self.sandbox.path("").display()
            );
        };
        let mut above = "source".to_owned();
        for half in 0..2 {
            let mut link = |name: String, above: &mut String| {
                node(&name, std::slice::from_ref(above));
                *above = name;
            };
            link(format!("head{half}"), &mut above);
            (0..5).for_each(|at| link(format!("chain{half}x{at}"), &mut above));
            let fan: Vec<String> = (0..18).map(|at| format!("fan{half}x{at}")).collect();
            for name in &fan {
                node(name, std::slice::from_ref(&above));
            }
            above = format!("join{half}");
            node(&above, &fan);
        }
        self.sandbox.write("p.toml", &text);
    }

    /// Runs, and returns the last line and the nodes that were really executed.
    #[track_caller]
    fn run(&self, args: &[&str], code: i32) -> (Done, Vec<String>) {
        self.sandbox.write("executed", "");
        let done = self.sandbox.run(args, code);
        let executed: Vec<String> = self.sandbox.read("executed").lines().map(str::to_owned).collect();
        let mut sorted = executed.clone();
        sorted.sort();
        let mut told: Vec<&str> = done
            .nodes
            .iter()
            .filter(|node| node.state == "ran" || node.state == "failed")
            .map(|node| node.name.as_str())
            .collect();
        told.sort_unstable();
        assert_eq!(sorted, told, "what is told is not what happened");
        (done, executed)
    }

    #[track_caller]
    fn executes(&self, expected: &[&str]) -> Done {
        let (done, executed) = self.run(&[], 0);
        assert_eq!(executed, expected);
        assert!(done.ok && done.nodes.len() == 50);
        done
    }

    /// The only file of the artifact of the node in the middle, in the cache, made writable.
    fn mid_object(&self) -> PathBuf {
        let shown = self.sandbox.sami(&["cache", "show", MID, "--json"]).exits(0).json();
        let path = PathBuf::from(shown["paths"]["out"].as_str().expect("a path"));
        fs_err::set_permissions(&path, PermissionsExt::from_mode(0o644)).expect("it is ours");
        path
    }
}

fn set_modified(path: &PathBuf, time: SystemTime) {
    fs_err::OpenOptions::new().write(true).open(path).expect("opens").file().set_modified(time).expect("sets");
}

#[test]
fn every_row_of_the_table_is_ideal() {
    let fifty = Fifty::new();
    let (first, executed) = fifty.run(&[], 0);
    assert_eq!(executed.len(), 50);

    // Nothing changed: 0.
    fifty.executes(&[]);

    // The source touched: 0.
    set_modified(&fifty.sandbox.path("source.txt"), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000));
    fifty.executes(&[]);

    // The source edited, the head's output being the same: 1 (early cutoff). Reverted: 0.
    fifty.sandbox.write("source.txt", "two\n");
    fifty.executes(&["head0"]);
    fifty.sandbox.write("source.txt", "one\n");
    fifty.executes(&[]);

    // The command of a node in the middle changed, its output being the same: 1. Reverted: 0.
    fifty.declare("true; ");
    fifty.executes(&[MID]);
    fifty.declare("");
    let last = fifty.executes(&[]);
    assert_eq!(last.results(), first.results());
}

#[test]
fn outputs_that_were_taken_out_of_the_cache_are_restored_without_running() {
    let fifty = Fifty::new();
    fifty.run(&[], 0);
    let out = fifty.sandbox.path("taken");
    let check_out = || {
        let _ = fs_err::remove_dir_all(&out);
        fifty.sandbox.sami(&["cache", "checkout", MID, "taken"]).exits(0);
        assert_eq!(fifty.sandbox.read("taken/out"), format!("of {MID}\n"));
    };
    check_out();

    // Deleted: 0, restored. Overwritten: 0, restored.
    fs_err::remove_file(out.join("out")).expect("removes");
    fifty.executes(&[]);
    check_out();
    fifty.sandbox.write("taken/out", "of JUNK!\n");
    fifty.executes(&[]);
    check_out();
    fifty.sandbox.verify();
}

#[test]
fn a_lost_or_damaged_artifact_is_made_again_and_nothing_runs_on_it() {
    let fifty = Fifty::new();
    let (first, _) = fifty.run(&[], 0);
    // Let the seals of the last artifacts settle.
    std::thread::sleep(Duration::from_millis(50));
    fifty.executes(&[]);
    let good = format!("of {MID}\n");
    let junk = "of JUNK!!\n"[..good.len()].to_owned();

    // In the cache there is nothing to restore it from: its node alone runs, and what is below stays.
    let object = fifty.mid_object();
    fs_err::remove_file(&object).expect("removes");
    fifty.executes(&[MID]);
    assert_eq!(fs_err::read_to_string(&object).expect("restored"), good);

    let object = fifty.mid_object();
    fs_err::write(&object, &junk).expect("writes");
    fifty.executes(&[MID]);
    assert_eq!(fs_err::read_to_string(&object).expect("restored"), good);

    // Bit rot: size and modification time as they were.
    std::thread::sleep(Duration::from_millis(50));
    fifty.executes(&[]);
    let object = fifty.mid_object();
    let modified = fs_err::metadata(&object).expect("there").modified().expect("has a time");
    fs_err::OpenOptions::new().write(true).open(&object).expect("opens").write_all(junk.as_bytes()).expect("writes");
    set_modified(&object, modified);
    let plan = fifty.sandbox.sami(&["plan", "p.toml"]).exits(0);
    assert!(plan.stdout.contains(&format!("run      {MID}")) && plan.stdout.contains("damaged"), "{}", plan.stdout);
    let last = fifty.executes(&[MID]);
    assert_eq!(fs_err::read_to_string(&object).expect("restored"), good);
    assert_eq!(last.results(), first.results());
    fifty.sandbox.verify();
}

#[test]
fn after_a_failure_nothing_new_starts_or_with_keep_going_all_that_can() {
    let fifty = Fifty::new();
    fifty.sandbox.write(&format!("fail-{MID}"), "");
    // One at a time: the failing one is the last that starts.
    let (done, executed) = fifty.run(&["-j", "1"], 1);
    assert_eq!((executed.len(), executed.last().map(String::as_str)), (14, Some(MID)));
    assert_eq!((done.ran, done.failed, done.names("skipped").len()), (13, 1, 36));
    // Head, chain and the eighteen: 24 in all.
    let (done, executed) = fifty.run(&["--keep-going"], 1);
    assert_eq!(executed.len(), 24 - 13);
    assert_eq!((done.ran, done.hits, done.failed, done.names("skipped").len()), (10, 13, 1, 26));
    fs_err::remove_file(fifty.sandbox.path(format!("fail-{MID}"))).expect("removes");
    let (done, executed) = fifty.run(&[], 0);
    assert_eq!((executed.len(), done.hits), (27, 23));
}
