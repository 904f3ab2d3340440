//! A node that declares a tolerance: what is below it stays fresh while its numbers are near the earlier ones.

use super::sandbox::Sandbox;

/// `numbers` writes a row with these numbers and a text; `below` copies it and notes that it ran.
fn pipeline(tolerance: &str, x: &str, y: &str, text: &str) -> String {
    format!(
        r#"
[nodes.numbers]
kind = "command"
program = "sh"
args = ["-c", '''printf '{{"id":"1","x":{x},"y":[{y}],"t":"{text}"}}\n' > rows.jsonl''']
output = "dataset"
{tolerance}

[nodes.below]
kind = "command"
program = "cp"
args = ["{{input.rows}}/rows.jsonl", "rows.jsonl"]
inputs = {{ rows = "numbers" }}
output = "dataset"
"#
    )
}

struct Bench(Sandbox);

impl Bench {
    /// Runs the pipeline; returns whether `below` ran.
    #[track_caller]
    fn below_runs(&self, tolerance: &str, x: &str, y: &str, text: &str) -> bool {
        self.0.write("p.toml", &pipeline(tolerance, x, y, text));
        let done = self.0.run(&[], 0);
        done.nodes.iter().any(|node| node.name == "below" && node.state == "ran")
    }

    fn x(&self) -> f64 {
        let rows = self.0.sami(&["cache", "cat", "below"]).exits(0).stdout;
        serde_json::from_str::<serde_json::Value>(&rows).expect("a row")["x"].as_f64().expect("a number")
    }
}

const NEAR: &str = "tolerance = { absolute = 0.1 }";

#[test]
fn numbers_within_the_bound_stop_what_is_below_and_others_do_not() {
    let bench = Bench(Sandbox::new());
    assert!(bench.below_runs(NEAR, "1.0", "2.0", "a"));
    assert!(!bench.below_runs(NEAR, "1.0625", "2.0", "a"));
    assert_eq!(bench.x(), 1.0);
    let shown = bench.0.sami(&["show", "numbers"]).exits(0).stdout;
    assert!(shown.contains("counts as") && shown.contains("6.25e-2 apart"), "{shown}");
    for node in ["numbers", "below"] {
        let told = bench.0.sami(&["why", "p.toml", node]).exits(0).stdout;
        assert!(told.contains("is fresh") && told.contains("by its tolerance: at most 6.25e-2 apart"), "{told}");
    }
    let record = bench.0.sami(&["show", "numbers", "--json"]).exits(0).json();
    assert_ne!(record["record"]["artifact"], record["record"]["equal_to_within"]["artifact"]);
    assert!(!bench.below_runs(NEAR, "1.0625", "2.0", "a"), "nothing to do");
    // The bound itself, then past it.
    assert!(bench.below_runs(NEAR, "1.125", "2.0", "a"));
    assert_eq!(bench.x(), 1.125);
    assert!(bench.below_runs(NEAR, "1.125", "2.0", "b"), "a text");
    assert!(bench.below_runs(NEAR, "1.125", "2.0, 3.0", "b"), "more numbers");
    assert!(bench.below_runs(NEAR, "1.125", "null, 3.0", "b"), "no number");
    assert!(bench.below_runs(NEAR, "1.125", "2.0, 3.0", "b") || bench.x() == 1.125);
    bench.0.verify();
}

#[test]
fn small_steps_do_not_lead_away() {
    let bench = Bench(Sandbox::new());
    assert!(bench.below_runs(NEAR, "1.0", "2.0", "a"));
    assert!(!bench.below_runs(NEAR, "1.0625", "2.0", "a"));
    assert!(!bench.below_runs(NEAR, "1.09375", "2.0", "a"));
    // Near the last one, and too far from what is in use.
    assert!(bench.below_runs(NEAR, "1.15625", "2.0", "a"));
    assert_eq!(bench.x(), 1.15625);
    // Back by small steps: the same.
    assert!(!bench.below_runs(NEAR, "1.125", "2.0", "a"));
    assert_eq!(bench.x(), 1.15625);
}

#[test]
fn who_declares_no_tolerance_or_a_narrower_one_gets_what_was_made() {
    let bench = Bench(Sandbox::new());
    assert!(bench.below_runs(NEAR, "1.0", "2.0", "a"));
    assert!(!bench.below_runs(NEAR, "1.0625", "2.0", "a"));
    assert!(bench.below_runs("", "1.0625", "2.0", "a"), "what the key stands for is what was made");
    assert_eq!(bench.x(), 1.0625);
    assert!(!bench.below_runs(NEAR, "1.0625", "2.0", "a"));
    assert_eq!(bench.0.run(&[], 0).hits, 2);
    assert!(!bench.below_runs("tolerance = { absolute = 0.01 }", "1.0625", "2.0", "a"), "it is there already");
}

#[test]
fn what_is_in_use_survives_gc_and_what_is_gone_is_not_handed_down() {
    let bench = Bench(Sandbox::new());
    assert!(bench.below_runs(NEAR, "1.0", "2.0", "a"));
    let first = bench.0.run(&[], 0).nodes[0].artifact.clone().expect("made");
    assert!(!bench.below_runs(NEAR, "1.0625", "2.0", "a"));
    bench.0.sami(&["cache", "gc", "--keep-runs", "1", "--yes"]).exits(0);
    assert_eq!(bench.0.run(&[], 0).hits, 2);
    bench.0.verify();
    // Without the earlier artifact the later one is what there is.
    let manifest = format!("cache/artifacts/{}/{}.json", &first[..2], &first[2..]);
    fs_err::remove_file(bench.0.path(manifest)).expect("was there");
    bench.0.run(&[], 0);
    assert_eq!(bench.x(), 1.0625);
}

#[test]
fn a_tolerance_is_in_no_key_and_must_be_a_distance() {
    let bench = Bench(Sandbox::new());
    assert!(bench.below_runs("", "1.0", "2.0", "a"));
    assert!(!bench.below_runs("tolerance = 1e-3", "1.0", "2.0", "a"));
    assert_eq!(bench.0.run(&[], 0).hits, 2);
    for (wrong, said) in [
        ("tolerance = -1", "bad-tolerance"),
        ("tolerance = nan", "not a finite number"),
        ("tolerance = \"much\"", "a number, or { relative"),
        ("tolerance = { relative = 1, far = 2 }", "far"),
        ("tolerance = { absolute = inf }", "not a finite number"),
    ] {
        bench.0.write("p.toml", &pipeline(wrong, "1.0", "2.0", "a"));
        let told = bench.0.sami(&["check", "p.toml"]).exits(2);
        assert!(told.stderr.contains(said), "{wrong}: {}", told.stderr);
    }
}
