//! What people see: on a terminal, in a pipe, read out; and runs that are watched.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::sandbox::{Sandbox, skipped, unsteered, wait_until};

const SLOW: &str = r#"
name = "slow"
[nodes.first]
kind = "command"
program = "sh"
args = ["-c", "sleep 1.5; echo x > {output}/a"]
[nodes.bad]
kind = "command"
program = "sh"
inputs = { a = "first" }
args = ["-c", "echo no luck >&2; exit 3"]
[nodes.below]
kind = "command"
program = "true"
inputs = { a = "bad" }
"#;

/// Runs `sami` on a terminal of util-linux's `script`; `None` where there is none, which is said.
fn on_terminal(sandbox: &Sandbox, args: &str, variables: &[(&str, &str)]) -> Option<String> {
    on_wide_terminal(60, sandbox, args, variables)
}

fn on_wide_terminal(columns: usize, sandbox: &Sandbox, args: &str, variables: &[(&str, &str)]) -> Option<String> {
    let line = format!("stty cols {columns} rows 20; exec {} {args}", sandbox.command(&[]).get_program().display());
    let mut command = Command::new("script");
    unsteered(&mut command)
        .args(["-qefc", &line, "/dev/null"])
        .current_dir(sandbox.path(""))
        .env("TERM", "xterm")
        .env("LC_ALL", "C.UTF-8")
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    match command.output() {
        Ok(output) => Some(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => {
            skipped(&format!("`script` of util-linux is not here ({error})"));
            None
        }
    }
}

#[test]
fn a_terminal_is_drawn_on_and_others_get_lines() {
    let sandbox = Sandbox::with(SLOW);
    let Some(drawn) = on_terminal(&sandbox, "run p.toml", &[]) else { return };
    assert!(drawn.contains("\u{1b}[") && drawn.contains("0 of 3 nodes done"), "{drawn}");
    assert!(drawn.contains("node `bad` failed") && drawn.contains("no luck"), "{drawn}");
    assert!(drawn.contains("failed in "), "{drawn}");
    for (args, variables) in [("run p.toml", ("TERM", "dumb")), ("run p.toml --plain", ("TERM", "xterm"))] {
        let lines = on_terminal(&sandbox, args, &[variables]).unwrap_or_default();
        assert!(lines.contains("node `bad` failed") && !lines.contains("nodes done"), "{lines}");
        assert!(!args.contains("plain") || !lines.contains('\u{1b}'), "{lines}");
    }
    let narrow = on_terminal(&sandbox, "runs", &[("LC_ALL", "C")]).unwrap_or_default();
    assert!(narrow.is_ascii() && narrow.contains("  pipeline slow"), "{narrow}");
    let piped = sandbox.sami(&["run", "p.toml"]).exits(1);
    assert!(!piped.stderr.contains('\u{1b}'), "{}", piped.stderr);
}

#[test]
fn a_run_is_watched_until_it_ends_and_told_of_when_it_is_over() {
    let sandbox = Sandbox::with(SLOW);
    let none = sandbox.sami(&["watch"]);
    assert_ne!(none.code, 0, "{none:?}");
    let mut run = sandbox.command(&["run", "p.toml"]).stderr(Stdio::null()).spawn().expect("it starts");
    wait_until("the run is there", Duration::from_secs(120), || !sandbox.files("cache/runs").is_empty());
    std::thread::sleep(Duration::from_millis(200));
    let watched = sandbox.sami(&["watch"]);
    assert_eq!(run.wait().expect("it ends").code(), Some(1));
    assert_eq!(watched.code, 1, "as the run: {watched:?}");
    assert!(watched.stderr.contains("watching run ") && watched.stderr.contains("failed in "), "{}", watched.stderr);
    let over = sandbox.sami(&["watch"]).exits(1);
    assert!(over.stderr.contains("is over: failed"), "{}", over.stderr);
}

#[test]
fn figures_are_listed_and_drawn() {
    let sandbox = Sandbox::with(
        "name = \"t\"\n[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo > out\"]\n",
    );
    sandbox.run(&[], 0);
    let csv = sandbox.sami(&["metrics", "--csv"]).exits(0).stdout;
    assert_eq!(csv.lines().next(), Some("run,pipeline,node,kind,step,metric,value"), "{csv}");
    assert!(sandbox.sami(&["metrics", "--node", "b"]).exits(2).stderr.contains("no results of a node `b`"));
    assert!(sandbox.sami(&["plot", "b", "loss"]).exits(2).stderr.contains("no run has figures of a node `b`"));
    assert!(sandbox.sami(&["plot", "a", "--height", "1"]).exits(2).stderr.contains("from 2 to 200"));
}

#[test]
fn what_is_remembered_is_drawn_for_who_asks() {
    let sandbox = Sandbox::with(
        "name = \"t\"\n[nodes.one-with-a-name-so-long-that-no-narrow-table-has-room-for-it]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo > out\"]\n",
    );
    sandbox.run(&[], 0);
    // Files are old enough to be relied on.
    std::thread::sleep(Duration::from_millis(60));
    let asked = |columns, args: &str, variables: &[(&str, &str)]| {
        let drawn = on_wide_terminal(columns, &sandbox, args, variables)?;
        assert_eq!(on_wide_terminal(columns, &sandbox, args, variables)?, drawn, "as it was remembered");
        Some(drawn)
    };
    for command in ["status", "plan"] {
        let args = format!("{command} p.toml");
        let Some(wide) = asked(200, &args, &[]) else { return };
        let narrow = asked(40, &args, &[]).expect("a terminal");
        assert!(wide.starts_with(if command == "plan" { "state " } else { "node " }), "{wide}");
        assert!(!narrow.contains("node ") && narrow != wide, "no table has room: {narrow}");
        let spoken = asked(40, &format!("{args} --plain"), &[]).expect("a terminal");
        assert_ne!(spoken, narrow);
        let piped = || sandbox.sami(&[command, "p.toml"]).exits(0).stdout;
        assert_eq!(piped(), piped());
    }
    let logged = on_wide_terminal(200, &sandbox, "status p.toml", &[("SAMI_LOG", "sami=debug")]).unwrap_or_default();
    assert!(logged.contains("the answer is remembered"), "{logged}");
}

#[test]
fn errors_on_a_terminal_say_once_where_they_are_explained() {
    let sandbox = Sandbox::with("[nodes.a]\nkind = \"command\"\nprogam = \"x\"\nagrs = []\n");
    let Some(drawn) = on_terminal(&sandbox, "check p.toml", &[]) else { return };
    assert_eq!(drawn.lines().filter(|line| line.contains("sami explain")).count(), 1, "{drawn}");
    assert!(drawn.trim_end().ends_with('`') && drawn.contains("what "), "at the end: {drawn}");
    assert!(!sandbox.sami(&["check", "p.toml"]).exits(2).stderr.contains("sami explain"), "logs are left alone");
}

#[test]
fn a_graph_is_told_in_words() {
    let sandbox = Sandbox::with(SLOW);
    let told = sandbox.sami(&["dag", "p.toml", "--plain"]).exits(0).stdout;
    assert_eq!(
        told,
        "layer 1 of 3\nfirst: command\nlayer 2 of 3\nbad: command; takes first\nlayer 3 of 3\nbelow: command; takes bad\n"
    );
    sandbox.sami(&["run", "p.toml"]).exits(1);
    let told = sandbox.sami(&["dag", "p.toml", "--plain"]).exits(0).stdout;
    assert!(told.contains("first: command, hit\n") && !told.contains(['·', '<']), "{told}");
}
