//! What is too large, too deep, leads elsewhere or is no file at all: a clear error, at once, and no more memory than it is
//! worth.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sami::digest::Digest;

use super::sandbox::{Output, Sandbox};

const NODE: &str = "[nodes.a]\nkind = \"command\"\nprogram = \"cp\"\nargs = [\"{input.rows}/rows.jsonl\", \"out\"]\ninputs = { rows = \"rows\" }\n";

/// Runs the binary with so much memory; it must end within twenty seconds.
#[track_caller]
fn bounded(sandbox: &Sandbox, args: &[&str], mebibytes: u64) -> Output {
    let begin = Instant::now();
    let program = sandbox.command(args);
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -v {}; exec \"$@\"", mebibytes << 10), "sh"]);
    shell.arg(program.get_program()).args(args).current_dir(sandbox.path("")).stdin(Stdio::null());
    let output = Output::from(shell.output().expect("starts"));
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    output
}

#[test]
fn pipes_devices_and_directories_are_no_files() {
    let sandbox = Sandbox::new();
    let made = Command::new("mkfifo").arg(sandbox.path("pipe")).status().expect("there is a `mkfifo`");
    assert!(made.success());
    sandbox.write("dir/x", "");
    let says = |file: &str, text: &str, what: &str| {
        sandbox.write("p.toml", text);
        let output = bounded(&sandbox, &["check", file], 4096).exits(2);
        assert!(output.stderr.contains(what), "{file} {text}: {}", output.stderr);
    };
    for (file, what) in [("pipe", "named pipe"), ("/dev/zero", "device"), ("dir", "directory")] {
        says(file, "", what);
        says("p.toml", &NODE.replace("\"out\"]", &format!("{{ file = \"{file}\" }}]")), what);
        for suffix in ["jsonl", "csv", "txt", "json.gz"] {
            let link = format!("{}.{suffix}", file.trim_start_matches("/dev/"));
            if !sandbox.path(&link).exists() {
                std::os::unix::fs::symlink(file, sandbox.path(&link)).expect("links");
            }
            says("p.toml", &format!("[datasets.rows]\nsource = \"{link}\"\n{NODE}"), what);
        }
    }
}

#[test]
fn what_unpacks_to_far_more_than_itself_is_not_unpacked() {
    let sandbox = Sandbox::new();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let row = format!("{{\"text\": \"{}\"}}\n", " ".repeat(1 << 20));
    for _ in 0..400 {
        packed.write_all(row.as_bytes()).expect("packs");
    }
    let packed = packed.finish().expect("packs");
    assert!(packed.len() < 1 << 20);
    fs_err::write(sandbox.path("bomb.jsonl.gz"), packed).expect("writes");
    sandbox.write("p.toml", &format!("[datasets.rows]\nsource = \"bomb.jsonl.gz\"\n{NODE}"));
    let output = bounded(&sandbox, &["check", "p.toml"], 2048).exits(2);
    assert!(output.stderr.contains("more than 256 MiB"), "{}", output.stderr);
}

#[test]
fn deep_things_are_refused() {
    let sandbox = Sandbox::new();
    for (what, says) in [
        ("-", "parts in a row"),
        ("not ", "parts in a row"),
        ("(", "recursion"),
        ("a.", "parts in a row"),
        ("[", "recursion"),
    ] {
        sandbox.write("p.toml", &format!("[params]\nx = \"${{{}1}}\"\n", what.repeat(50_000)));
        let output = bounded(&sandbox, &["check", "p.toml"], 4096).exits(2);
        assert!(output.stderr.contains(says) || output.stderr.contains("parts in a row"), "{what}: {}", output.stderr);
    }
    sandbox.write("p.toml", &format!("[datasets.rows]\nsource = \"deep.jsonl\"\n{NODE}"));
    sandbox.write("deep.jsonl", &format!("{{\"x\": {}\n", "[".repeat(100_000)));
    let output = bounded(&sandbox, &["check", "p.toml"], 4096).exits(2);
    assert!(output.stderr.contains("recursion limit"), "{}", output.stderr);
    let dots = vec!["a"; 100_000].join(".");
    for text in [format!("x = {}\n", "[".repeat(100_000)), format!("[{dots}]\n"), format!("{dots} = 1\n")] {
        sandbox.write("p.toml", &text);
        bounded(&sandbox, &["check", "p.toml"], 4096).exits(2);
    }
}

#[test]
fn a_manifest_of_a_million_files_is_read_in_little_time_and_a_larger_one_is_not() {
    let sandbox = Sandbox::with("[nodes.a]\nkind = \"command\"\nprogram = \"sh\"\nargs = [\"-c\", \"echo > out\"]\n");
    sandbox.run(&[], 0);
    let digest = Digest::of(b"");
    let mut text = String::from("{\"type\":\"files\",\"files\":{");
    for at in 0..1_000_000 {
        text.push_str(&format!(
            "{}\"f{at:07}\":{{\"digest\":\"{digest}\",\"size\":0}}",
            if at == 0 { "" } else { "," }
        ));
    }
    text.push_str("}}");
    let put = |text: &str| {
        let id = Digest::of(text.as_bytes()).to_string();
        sandbox.write(&format!("cache/artifacts/{}/{}.json", &id[..2], &id[2..]), text);
        id
    };
    let id = put(&text);
    let output = bounded(&sandbox, &["cache", "show", &id], 4096).exits(0);
    assert!(output.stdout.contains("999992 more"), "{}", output.stdout);
    bounded(&sandbox, &["cache", "ls"], 4096).exits(0);
    // A hole, which costs no disk.
    let large = format!("cache/artifacts/{}/{}.json", &id[..2], "0".repeat(62));
    sandbox.write(&large, "");
    let file = fs_err::OpenOptions::new().write(true).open(sandbox.path(&large)).expect("opens");
    file.set_len(100 << 30).expect("sets");
    let output = bounded(&sandbox, &["cache", "show", &format!("{}{}", &id[..2], "0".repeat(62))], 4096).exits(3);
    assert!(output.stderr.contains("far too large"), "{}", output.stderr);
    bounded(&sandbox, &["cache", "ls"], 4096).exits(0);
    bounded(&sandbox, &["run", "p.toml"], 4096).exits(0);
}

#[test]
fn a_model_s_link_out_of_its_directory_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("secret.json", "{\"token\": \"x\"}");
    for file in ["config.json", "model.safetensors"] {
        sandbox.write(&format!("model/{file}"), "{}");
    }
    std::os::unix::fs::symlink("../secret.json", sandbox.path("model/tokenizer.json")).expect("links");
    sandbox.write(
        "p.toml",
        "[models.m]\nsource = \"model\"\n[nodes.a]\nkind = \"command\"\nprogram = \"ls\"\nargs = [\"{input.m}\"]\ninputs = { m = \"m\" }\n",
    );
    for command in ["plan", "run"] {
        let output = sandbox.sami(&[command, "p.toml"]).exits(2);
        let says = ["model/tokenizer.json", "leads out of the model's directory", "secret.json"];
        assert!(says.iter().all(|says| output.stderr.contains(says)), "{}", output.stderr);
    }
    assert!(sandbox.files("cache/objects").is_empty());
}
