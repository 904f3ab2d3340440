//! `sami ui` in a real browser: headless Chromium, driven by what lies in `tests/browser`. `.ci/run` installs its modules
//! into `target/ci-browser`. Screenshots are left in `target/screens`.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sami::env;
use serde_json::{Value, json};

use super::commands::world::{World, copy, quickstart_cache};
use super::docs::root;
use super::sandbox::{Output, Sandbox, skipped, wait_until};
use super::served::Ui;

/// What drives the browser, as far as it can be had here.
struct Driver {
    node: PathBuf,
    given: Value,
}

/// The first of these programs that is on the path.
fn program(names: &[&str]) -> Option<PathBuf> {
    let found = |name: &&str| Command::new("sh").args(["-c", "command -v \"$0\"", name]).output().ok();
    let mut paths =
        names.iter().filter_map(found).map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    paths.find(|path| !path.is_empty()).map(PathBuf::from)
}

impl Driver {
    /// Says why there is none, if so.
    fn new() -> Option<Self> {
        let Some(node) = program(&["node", "nodejs"]) else {
            skipped("there is no Node.js");
            return None;
        };
        let version = Command::new(&node).arg("--version").output().ok()?.stdout;
        let version = String::from_utf8_lossy(&version).trim().trim_start_matches('v').to_owned();
        if version.split('.').next().and_then(|major| major.parse::<u32>().ok()).is_none_or(|major| major < 20) {
            skipped(&format!("Node.js is {version}, and 20 is needed"));
            return None;
        }
        let Some(chromium) = program(&["chromium", "chromium-browser", "google-chrome"]) else {
            skipped("there is no Chromium");
            return None;
        };
        let modules = root().join("target/ci-browser");
        if !modules.join("node_modules/playwright-core").is_dir() {
            skipped("`npm ci` was not run in target/ci-browser, see `.ci/run`");
            return None;
        }
        let given = json!({"modules": modules, "chromium": chromium, "screens": root().join("target/screens")});
        Some(Self { node, given })
    }

    /// Plays a scenario, which must find no fault. Returns what it saw.
    #[track_caller]
    fn play(&self, scenario: &str, given: &Value) -> Value {
        let mut all = self.given.clone();
        for (name, value) in given.as_object().expect("an object") {
            all[name] = value.clone();
        }
        let mut node = Command::new(&self.node)
            .arg(root().join("tests/browser/main.mjs"))
            .arg(scenario)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("node starts");
        node.stdin.take().expect("it is piped").write_all(all.to_string().as_bytes()).expect("it reads");
        let output: Output = node.wait_with_output().expect("it ends").into();
        assert!(output.code == 0, "{scenario}: {output:?}");
        let seen = output.json();
        let faults: Vec<&str> = seen["faults"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        assert!(faults.is_empty(), "{scenario}: {} faults:\n{}\n{}", faults.len(), faults.join("\n"), seen["seen"]);
        seen["seen"].clone()
    }
}

/// A project with the cache of a finished quickstart.
fn quickstart() -> Sandbox {
    let sandbox = Sandbox::new();
    copy(&root().join("pipelines"), &sandbox.path("pipelines"));
    copy(&quickstart_cache(), &sandbox.path("cache"));
    sandbox
}

#[test]
#[ignore = "slow: a browser"]
fn every_view_of_a_finished_quickstart_can_be_used_by_everybody() {
    let Some(driver) = Driver::new() else { return };
    let sandbox = quickstart();
    let ui = Ui::new(&sandbox, &["pipelines/quickstart.toml"]);
    let seen = driver.play("views", &json!({"url": ui.url, "prefix": ""}));
    let views = seen.as_object().expect("an object");
    for view in ["overview", "runs", "artifacts", "contrast"] {
        assert!(views.keys().any(|seen| seen.starts_with(view)), "no link leads to {view}: {seen}");
    }
    // The documents' pictures are made here, and are not compared: letters differ from machine to machine.
    if env::BLESS.get().is_some() {
        for picture in ["pipeline", "run", "contrast"] {
            let (made, kept) =
                (format!("target/screens/documents-{picture}.png"), format!("docs/images/ui-{picture}.png"));
            fs_err::copy(root().join(made), root().join(kept)).expect("a picture");
        }
    }
}

#[test]
#[ignore = "slow: a browser"]
fn a_report_opens_from_the_disk_and_prints_to_a_few_pages() {
    let Some(driver) = Driver::new() else { return };
    let sandbox = quickstart();
    sandbox.sami(&["report", "-o", "report.html"]).exits(0);
    let url = format!("file://{}", sandbox.path("report.html").display());
    let seen = driver.play("report", &json!({"url": url, "prefix": "report"}));
    assert!(seen["pages"].as_u64().is_some_and(|pages| (1..=12).contains(&pages)), "{seen}");
}

const RUNNING: &str = r#"
[nodes.first]
kind = "command"
program = "sh"
args = ["-c", "echo begun; while ! test -e ../../../../go; do sleep 0.05; done; echo '{\"loss\": 0.5}' > metrics.json"]
[nodes.second]
kind = "command"
program = "sh"
args = ["-c", "cat {input.first}/* > out"]
inputs = { first = "first" }
"#;

#[test]
#[ignore = "slow: a browser"]
fn pages_follow_a_run_and_say_when_nobody_answers_any_more() {
    let Some(driver) = Driver::new() else { return };
    let sandbox = Sandbox::with(RUNNING);
    let mut run = sandbox.command(&["run", "p.toml"]).stdout(Stdio::null()).spawn().expect("the binary starts");
    let began = |file: &PathBuf| fs_err::read_to_string(file).is_ok_and(|text| text.contains("node-start"));
    wait_until("a node begins", Duration::from_secs(60), || sandbox.files("cache/runs").iter().any(began));
    let ui = Ui::new(&sandbox, &["p.toml"]);
    let pid = ui.process.id();
    let seen =
        driver.play("live", &json!({"url": ui.url, "prefix": "running-", "go": sandbox.path("go"), "server": pid}));
    assert!(seen["status"].as_str().is_some_and(|status| status.starts_with("not live")), "{seen}");
    assert!(run.wait().expect("it ends").success());
}

#[test]
#[ignore = "slow: a browser"]
fn an_open_page_goes_on_where_the_server_is_started_again() {
    let Some(driver) = Driver::new() else { return };
    let sandbox = super::formats::project();
    let args = |port| ["ui", "p.toml", "--json", "--token-file", "token", "--port", port];
    let ui = Ui::of(sandbox.command(&args("0")));
    let port = ui.address().rsplit(':').next().expect("a port");
    let given = json!({
        "url": ui.url, "prefix": "restarted-", "server": ui.process.id(), "program": env!("CARGO_BIN_EXE_sami"),
        "cwd": sandbox.path(""), "again": args(port), "run": ["run", "p.toml", "--force", "upper"],
    });
    driver.play("restart", &given);
}

/// Text that would be a script, an element, or the end of one, if it were not shown as text.
const HOSTILE: &str = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>{{ 7 * 7 }}<!-- \\\"'`&amp;\\u202e\\u0000";

fn hostile() -> Sandbox {
    let sandbox = Sandbox::new();
    let rows = format!(
        "{{\"id\": \"<b onclick=alert(1)>1\", \"text\": \"{HOSTILE}\"}}\n{{\"id\": \"2\", \"text\": \"{}\"}}\n",
        "x".repeat(10_000_000)
    );
    sandbox.write("rows.jsonl", &rows);
    sandbox.write(
        "p.toml",
        r#"
        description = "</title><script>window.hacked = 3</script>"
        [params]
        "word" = "<script>window.hacked = 4</script>"
        [datasets.rows]
        source = "rows.jsonl"
        [nodes.made]
        kind = "command"
        program = "sh"
        args = ["-c", "cp {input.rows}/rows.jsonl .; echo '<script>window.hacked = 5</script>' | tee 'a<b>.txt'; printf '{\"nan\": NaN, \"none\": null, \"huge\": 1e308, \"<i>x\": 1}' > metrics.json; echo ${word}"]
        inputs = { rows = "rows" }
        [nodes.fails]
        kind = "command"
        program = "sh"
        args = ["-c", "echo '<script>window.hacked = 6</script>' >&2; exit 3"]
        "#,
    );
    let output = sandbox.sami(&["run", "p.toml", "--keep-going"]);
    assert_eq!(output.code, 1, "{output:?}");
    sandbox
}

#[test]
#[ignore = "slow: a browser"]
fn what_a_cache_contains_is_shown_as_text() {
    let Some(driver) = Driver::new() else { return };
    let sandbox = hostile();
    let ui = Ui::new(&sandbox, &["p.toml"]);
    driver.play("hostile", &json!({"url": ui.url, "prefix": "hostile-"}));
}

#[test]
#[ignore = "slow: a browser"]
fn ten_thousand_nodes_and_a_million_rows_are_shown_within_a_second() {
    let Some(driver) = Driver::new() else { return };
    let sandbox = super::served::large();
    let ui = Ui::new(&sandbox, &["many.toml", "rows.toml"]);
    let seen = driver.play("large", &json!({"url": ui.url, "prefix": "large-"}));
    for view in ["pipeline", "node", "artifact", "row"] {
        assert!(seen[view].is_number(), "no link leads to {view}: {seen}");
    }
}

#[test]
#[ignore = "slow: a browser"]
fn pages_bear_what_becomes_of_a_cache_while_they_are_open() {
    let Some(driver) = Driver::new() else { return };
    let world = World::new("small");
    let sandbox = Sandbox::new();
    copy(&world.path("pipelines"), &sandbox.path("pipelines"));
    copy(&world.path("cache"), &sandbox.path("cache"));
    let ui = Ui::new(&sandbox, &["pipelines/tldr.toml"]);
    let visit = |name: &str| driver.play("visit", &json!({"url": ui.url, "prefix": format!("changed-{name}-")}));
    let statuses = |seen: &Value| seen.as_object().expect("an object").keys().cloned().collect::<Vec<_>>();
    assert_eq!(statuses(&visit("before")), ["200"]);
    sandbox.sami(&["cache", "gc", "--keep-runs", "1", "--yes"]).exits(0);
    assert!(statuses(&visit("collected")).contains(&"200".to_owned()));
    // Objects that are gone, cut short, or not what they were.
    for (number, object) in sandbox.files("cache/objects").into_iter().enumerate() {
        let bytes = fs_err::read(&object).expect("an object");
        fs_err::remove_file(&object).expect("it goes");
        match number % 3 {
            0 => {}
            1 => fs_err::write(&object, &bytes[..bytes.len() / 2]).expect("writes"),
            _ => fs_err::write(&object, b"\0\xff{").expect("writes"),
        }
    }
    assert!(statuses(&visit("damaged")).contains(&"200".to_owned()));
    for file in sandbox.files("cache/nodes") {
        fs_err::write(file, b"{").expect("writes");
    }
    fs_err::remove_file(sandbox.path("cache/index.sqlite")).expect("it goes");
    assert!(statuses(&visit("unreadable")).contains(&"200".to_owned()));
    sandbox.write("cache/VERSION", "99\n");
    assert_eq!(statuses(&visit("later")), ["500"]);
    fs_err::remove_dir_all(sandbox.path("cache")).expect("it goes");
    assert_eq!(statuses(&visit("gone")), ["503"]);
    assert!(!sandbox.path("cache").exists(), "who looks makes nothing");
}

#[test]
fn without_the_token_nothing_is_told() {
    let sandbox = super::formats::project();
    let ui = Ui::new(&sandbox, &["p.toml"]);
    let token = ui.url.split("token=").nth(1).expect("a token").to_owned();
    let wrong = "0".repeat(token.len());
    let name = sandbox.path("").display().to_string();
    for (path, headers) in [
        ("/", String::new()),
        ("/runs", String::new()),
        ("/live", String::new()),
        ("/?token=", String::new()),
        ("/../../etc/passwd", String::new()),
        (&*format!("/runs?token={wrong}"), String::new()),
        ("/artifacts", format!("Authorization: Bearer {wrong}\r\n")),
        ("/artifacts", format!("Cookie: sami={wrong}; token={wrong}\r\n")),
    ] {
        let answer = ui.ask(path, &headers);
        assert!(answer.starts_with("HTTP/1.1 401"), "{path} {headers}: {answer}");
        assert!(
            !answer.contains(&token) && !answer.contains("generate") && !answer.contains(&name),
            "{path}: {answer}"
        );
        assert!(answer.to_lowercase().contains("content-security-policy: default-src 'none'"), "{path}: {answer}");
    }
    let bearer = format!("Authorization: Bearer {token}\r\n");
    assert!(ui.ask("/", &bearer).starts_with("HTTP/1.1 200"), "the token opens it");
    for path in [
        "/../../../../etc/passwd",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/VERSION",
        "//etc/passwd",
        "/artifact?id=../VERSION",
        "/artifact?id=../../etc/passwd",
    ] {
        let answer = ui.ask(path, &bearer);
        assert!(answer.starts_with("HTTP/1.1 4") && !answer.contains("root:"), "{path}: {answer}");
    }
    // A name that somebody had point here, and a page of somebody else's that asks.
    let host = ui.address().to_owned();
    let foreign = ui.ask("/", &format!("{bearer}Origin: http://evil.example\r\n"));
    assert!(foreign.starts_with("HTTP/1.1 4"), "{host}: {foreign}");
}

#[test]
fn scripts_of_the_browser_tests_are_played() {
    let text = fs_err::read_to_string(root().join("tests/it/browser.rs")).expect("this file");
    for entry in fs_err::read_dir(root().join("tests/browser/scenarios")).expect("a directory").flatten() {
        let path = entry.path();
        let name = Path::new(&path).file_stem().and_then(|stem| stem.to_str()).expect("a name").to_owned();
        assert!(text.contains(&format!("\"{name}\"")), "nothing plays {name}");
    }
}
