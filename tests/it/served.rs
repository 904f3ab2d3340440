//! `sami ui` asked without a browser: how long large pages take, and what streams leave behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::sandbox::Sandbox;

/// A `sami ui` that serves; it is ended when dropped.
pub(crate) struct Ui {
    pub(crate) process: Child,
    pub(crate) url: String,
}

impl Ui {
    pub(crate) fn of(mut command: Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("the binary starts");
        let mut line = String::new();
        BufReader::new(process.stdout.take().expect("it is piped")).read_line(&mut line).expect("it says where");
        let said: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        Self { process, url: said["url"].as_str().expect("a URL").to_owned() }
    }

    /// Serves a sandbox's cache, with these pipelines.
    pub(crate) fn new(sandbox: &Sandbox, pipelines: &[&str]) -> Self {
        Self::of(sandbox.command(&[&["ui", "--json"], pipelines].concat()))
    }

    /// Where it serves, without the token.
    pub(crate) fn address(&self) -> &str {
        self.url.trim_start_matches("http://").split('/').next().expect("a host and a port")
    }

    /// The answer to a request that is written out by hand: status line, headers and all.
    pub(crate) fn ask(&self, path: &str, headers: &str) -> String {
        let mut stream = std::net::TcpStream::connect(self.address()).expect("it listens");
        let host = self.address();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("it answers");
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Ui {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Ui {
    /// The header with the token.
    fn bearer(&self) -> String {
        format!("Authorization: Bearer {}\r\n", self.url.split("token=").nth(1).expect("a token"))
    }

    /// A page, and how long the fastest of three took. It must be there.
    #[track_caller]
    fn timed(&self, path: &str) -> (String, Duration) {
        let bearer = self.bearer();
        let once = || {
            let began = Instant::now();
            (self.ask(path, &bearer), began.elapsed())
        };
        let (page, took) = (0..3).map(|_| once()).min_by_key(|(_, took)| *took).expect("three");
        assert!(page.starts_with("HTTP/1.1 200"), "{path}: {}", &page[..page.len().min(500)]);
        (page, took)
    }
}

/// A project with a pipeline of ten thousand nodes, and one that made a million rows.
pub(crate) fn large() -> Sandbox {
    let sandbox = Sandbox::new();
    let numbers: Vec<String> = (0..10_000).map(|number| format!("\"{number}\"")).collect();
    sandbox.write(
        "many.toml",
        &format!(
            "[nodes.many]\nkind = \"command\"\nprogram = \"true\"\nargs = [\"${{i}}\"]\nmatrix = {{ i = [{}] }}\n",
            numbers.join(", ")
        ),
    );
    sandbox.write(
        "rows.toml",
        r#"
        [nodes.rows]
        kind = "command"
        program = "sh"
        args = ["-c", "seq 1000000 | awk '{print \"{\\\"id\\\": \\\"\" $1 \"\\\", \\\"text\\\": \\\"row number \" $1 \"\\\", \\\"score\\\": \" $1 % 1000 \"}\"}' > rows.jsonl"]
        "#,
    );
    sandbox.sami(&["run", "rows.toml"]).exits(0);
    sandbox
}

/// A second, which the browser's test holds the program to, and what a busy machine and a build without optimisation add.
const MOST: Duration = Duration::from_secs(5);

/// The first address on a page that begins so.
#[track_caller]
fn link<'a>(page: &'a str, begins: &str) -> &'a str {
    let at = page.find(&format!("href=\"{begins}")).unwrap_or_else(|| panic!("no link to {begins}: {page}"));
    page[at + 6..].split('"').next().expect("the end of a link")
}

#[test]
#[ignore = "slow: a million rows"]
fn large_pages_and_filters_answer_soon() {
    let sandbox = large();
    let ui = Ui::new(&sandbox, &["many.toml", "rows.toml"]);
    let mut took = Vec::new();
    let mut timed = |path: &str| {
        let (page, time) = ui.timed(path);
        took.push((path.to_owned(), time));
        page
    };
    let overview = timed("/");
    let pipeline = timed(&link(&overview, "/pipeline?name=many").replace("&amp;", "&"));
    assert!(pipeline.contains("10,000"), "{}", &pipeline[..pipeline.len().min(3000)]);
    timed("/node?pipeline=many.toml&name=many%5Bi%3D9999%5D");
    let artifacts = timed("/artifacts");
    let artifact = link(&artifacts, "/artifact?id=").replace("&amp;", "&");
    timed(&artifact);
    for (filter, passed) in [
        ("score%3C1", "1,000 that pass"),
        ("id%3D999999", "1 that pass"),
        ("score%3E%3D0+score%3C1000+score!%3D7+score%3C%3D998+id!%3D5", "997,999 that pass"),
        ("number+77777", "19 that pass"),
        ("nowhere", "0 that pass"),
    ] {
        let page = timed(&format!("{artifact}&q={filter}"));
        assert!(page.contains(passed) && page.contains("of 1,000,000 rows"), "{filter}: {page}");
    }
    let late: Vec<_> = took.iter().filter(|(_, time)| *time > MOST).collect();
    assert!(late.is_empty(), "{late:?}");
}

/// What a process has: threads, open files, and KiB of memory.
fn held(process: u32) -> [u64; 3] {
    let entries = |what: &str| fs_err::read_dir(format!("/proc/{process}/{what}")).expect("it runs").count() as u64;
    let status = fs_err::read_to_string(format!("/proc/{process}/status")).expect("it runs");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("how much");
    let resident = resident.trim().split(' ').next().and_then(|number| number.parse().ok()).expect("a number");
    [entries("task"), entries("fd"), resident]
}

/// Listens as a page does, until the first change is told; none if too many listen.
fn listen(address: &str, bearer: &str) -> Option<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
    let request = format!("GET /live HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n{bearer}\r\n");
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).expect("a status");
    if line.starts_with("HTTP/1.1 503") {
        return None;
    }
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    while !line.contains("event: change") {
        line.clear();
        assert!(reader.read_line(&mut line).expect("a line") > 0, "the stream ended");
    }
    Some(reader)
}

#[test]
fn pages_that_come_and_go_for_a_day_leave_nothing() {
    let sandbox = super::formats::project();
    let ui = Ui::new(&sandbox, &["p.toml"]);
    let (address, bearer) = (ui.address().to_owned(), ui.bearer());
    let visit = |count: usize| {
        for _ in 0..count / 40 {
            let began = Instant::now();
            let mut open = Vec::new();
            while open.len() < 40 {
                match listen(&address, &bearer) {
                    Some(stream) => open.push(stream),
                    // Those of before are not all gone yet.
                    None => std::thread::sleep(Duration::from_millis(20)),
                }
                assert!(began.elapsed() < Duration::from_secs(30), "streams stay open whose readers have gone");
            }
        }
        // The server hears of the last ones that go.
        std::thread::sleep(Duration::from_millis(500));
        ui.ask("/", &bearer);
        held(ui.process.id())
    };
    let before = visit(200);
    let [threads, files, memory] = visit(2000);
    assert!(threads <= before[0] + 8, "{before:?}, then {threads} threads");
    assert!(files <= before[1] + 8, "{before:?}, then {files} open files");
    assert!(memory <= before[2] + (8 << 10), "{before:?}, then {memory} KiB");
}

#[test]
fn a_page_goes_on_where_the_server_is_started_again() {
    let sandbox = super::formats::project();
    let start =
        |port: &str| Ui::of(sandbox.command(&["ui", "p.toml", "--json", "--token-file", "token", "--port", port]));
    let first = start("0");
    let (address, bearer) = (first.address().to_owned(), first.bearer());
    let mut stream = listen(&address, &bearer).expect("it listens");
    drop(first);
    let mut rest = Vec::new();
    // Ended or reset: no more comes.
    let _ = stream.read_to_end(&mut rest);
    let again = start(address.rsplit(':').next().expect("a port"));
    assert_eq!((again.address(), again.bearer()), (address.as_str(), bearer.clone()));
    let mut stream = listen(&address, &bearer).expect("it listens again");
    sandbox.write("cache/nodes/now", "");
    let mut line = String::new();
    while !line.contains("event: change") {
        line.clear();
        assert!(stream.read_line(&mut line).expect("a line") > 0, "the stream ended");
    }
    use std::os::unix::fs::PermissionsExt;
    let mode = |mode| fs_err::set_permissions(sandbox.path("token"), PermissionsExt::from_mode(mode)).expect("set");
    assert_eq!(fs_err::metadata(sandbox.path("token")).expect("a file").permissions().mode() & 0o777, 0o600);
    mode(0o644);
    let refused = sandbox.sami(&["ui", "p.toml", "--token-file", "token"]).exits(2);
    assert!(refused.stderr.contains("ui::token") && refused.stderr.contains("chmod 600"), "{}", refused.stderr);
    mode(0o600);
    sandbox.write("token", "short\n");
    assert!(sandbox.sami(&["ui", "p.toml", "--token-file", "token"]).exits(2).stderr.contains("ui::token"));
}
