//! The documents that are made from the code, and what the README promises.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use sami::{cli, env, kinds};

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs_err::read_to_string(root().join(path.as_ref())).expect("a file of the project")
}

/// Compares a document with what the code says, or writes it under `SAMI_BLESS=1`.
pub(crate) fn check_made(path: &str, made: &str) {
    if env::BLESS.get().is_some() {
        fs_err::write(root().join(path), made).expect("the document is writable");
        return;
    }
    assert!(
        read(path) == made,
        "{path} does not say what the code says; run the tests with SAMI_BLESS=1 and look at the difference"
    );
}

/// The documents that speak of commands: all pages, and what stands beside the sources for who reads them.
pub(crate) fn documents() -> Vec<PathBuf> {
    let mut documents = files_under("docs", "md");
    documents.extend(["README.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    documents
}

/// The files with an extension in a directory, of the project or elsewhere, and those below it, in order.
pub(crate) fn files_under(directory: impl AsRef<Path>, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root().join(directory)];
    while let Some(directory) = open.pop() {
        for entry in fs_err::read_dir(directory).expect("a directory") {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// A profile that `docs/cluster.md` shows.
pub(crate) fn profile(name: &str) -> String {
    let page = read("docs/cluster.md");
    let head = format!("[profiles.{name}]");
    let block =
        page.split("```toml\n").filter_map(|rest| rest.split("\n```").next()).find(|block| block.contains(&head));
    block.expect("it is shown").to_owned()
}

#[test]
fn profiles_that_are_shown_can_be_read() {
    for name in ["cluster", "lab", "kubernetes", "ray", "background"] {
        let settings = sami::settings::Settings::parse("sami.toml", &profile(name)).expect("it is sound");
        assert_eq!(settings.profiles[0].name, name);
    }
}

#[test]
fn env_page() {
    let mut page = String::from(
        "# Environment variables\n\nMade from `src/env.rs` by the tests.\n\n| variable | what it does |\n|---|---|\n",
    );
    for variable in env::ALL {
        page.push_str(&format!("| `{}` | {} |\n", variable.name, variable.doc));
    }
    let passed: Vec<String> = env::PASSED_ON.iter().map(|name| format!("`{name}`")).collect();
    page.push_str(&format!(
        "\nA program of kind `command` gets of the environment only these, and what its node's `env` names: {}.\n",
        passed.join(", ")
    ));
    check_made("docs/env.md", &page);
}

#[test]
fn cli_page() {
    let mut page = String::from("# Command line\n\nMade from `sami --help` by the tests.\n");
    let mut open = vec![(String::new(), cli::Cli::command())];
    while let Some((prefix, mut command)) = open.pop() {
        let name = format!("{prefix}{}", command.get_name());
        command = command.term_width(100).bin_name(&name);
        page.push_str(&format!(
            "\n## `{name}`\n\n```text\n{}\n```\n",
            command.render_long_help().to_string().trim_end()
        ));
        let children: Vec<_> = command.get_subcommands().filter(|child| !child.is_hide_set()).cloned().collect();
        open.extend(children.into_iter().rev().map(|child| (format!("{name} "), child)));
    }
    check_made("docs/cli.md", &page);
}

#[test]
fn kinds_page() {
    let mut page =
        String::from("# Node kinds\n\nMade from the kinds' own documentation (`sami help KIND`) by the tests.\n");
    for entry in kinds::KINDS {
        page.push_str(&format!("\n## `{}`\n\n{}\n", entry.spec.name, entry.spec.doc.trim()));
    }
    check_made("docs/kinds.md", &page);
}

/// The contents of the string literal that `text` begins with.
fn literal(text: &str) -> Option<String> {
    let text = text.trim_start().strip_prefix('"')?;
    let mut end = 0;
    while !text[end..].starts_with('"') {
        end += if text[end..].starts_with('\\') { 2 } else { text[end..].chars().next()?.len_utf8() };
    }
    // A backslash at the end of a line joins it with the next one.
    let lines = text[..end].split("\\\n").enumerate();
    let joined = lines.map(|(number, line)| if number == 0 { line } else { line.trim_start() });
    Some(joined.collect::<String>().replace("\\\"", "\"").replace('|', "\\|").replace("{}", "…").replace("{0}", "…"))
}

/// What a diagnostic says whose id ends at `end`: the literal after it, or the message of the error's variant that
/// it is made of, or the text that was put together just before.
fn title(text: &str, start: usize, end: usize) -> String {
    let rest = text[end..].trim_start_matches([',', '"']).trim_start();
    let after = literal(rest).or_else(|| literal(rest.strip_prefix("format!(")?));
    let before = &text[..start];
    let of_variant = || {
        let arm = before.rfind("Self::").filter(|at| start - at < 400)?;
        let variant: String = before[arm + 6..].chars().take_while(char::is_ascii_alphanumeric).collect();
        let declared = ["{", "(", ","]
            .iter()
            .find_map(|next| text.find(&format!("    {variant}{}{next}", if *next == "{" { " " } else { "" })))?;
        let message = literal(&text[text[..declared].rfind("#[error(")? + 8..])?;
        Some(if message == "…" { "(in words of its own)".to_owned() } else { message })
    };
    let put_together = || literal(&before[before.rfind("format!(").filter(|at| start - at < 400)? + 8..]);
    after.or_else(of_variant).or_else(put_together).unwrap_or_else(|| "(in words of its own)".to_owned())
}

/// Every id that a diagnostic can carry, with what it says.
fn error_ids() -> BTreeMap<String, String> {
    let mut ids = BTreeMap::new();
    for path in files_under("src", "rs") {
        let text = fs_err::read_to_string(&path).expect("a source file");
        let text = text.split("#[cfg(test)]").next().unwrap_or_default();
        for (at, _) in text.match_indices('"') {
            let id = text[at + 1..].split('"').next().unwrap_or_default();
            let is_id = id.split_once("::").is_some_and(|(layer, name)| {
                let plain = |c: char| c.is_ascii_lowercase() || c == '-' || c.is_ascii_digit();
                const LAYERS: [&str; 16] = [
                    "archive", "cli", "cluster", "dataset", "endpoint", "exec", "graph", "hub", "lm", "node",
                    "pipeline", "remote", "settings", "store", "trackers", "ui",
                ];
                LAYERS.contains(&layer) && !name.is_empty() && name.chars().all(plain)
            });
            if is_id {
                ids.entry(id.to_owned()).or_insert_with(|| title(text, at, at + 1 + id.len()));
            }
        }
    }
    ids
}

#[test]
fn errors_page() {
    let ids = error_ids();
    assert!(ids.len() > 20, "the scan for error ids found only {}", ids.len());
    let mut page = String::from(
        "# Errors\n\nMade from the source by the tests. Each error prints its id, the place, and what to do; here stands what each id says,\nand below what it means, an example, and what to do (`sami explain ID`).\n\n| id | says |\n|---|---|\n",
    );
    for (id, title) in &ids {
        page.push_str(&format!("| [`{id}`](#{}) | {title} |\n", id.replace("::", "")));
    }
    let explained: BTreeMap<&str, cli::Explanation> = cli::explanations().map(|one| (one.id, one)).collect();
    let (known, told): (Vec<&str>, Vec<&str>) =
        (ids.keys().map(String::as_str).collect(), explained.keys().copied().collect());
    assert_eq!(known, told, "each id of the source is explained in src/cli/explain_error/, and nothing else is");
    for (id, one) in explained {
        let language = if one.language == "text" { "text" } else { "toml" };
        page.push_str(&format!(
            "\n## `{id}`\n\n{}\n\n```{language}\n{}\n```\n\n{}\n",
            one.meaning, one.example, one.fix
        ));
    }
    check_made("docs/errors.md", &page);
}

#[test]
fn readme_gives_the_two_commands_that_ci_runs() {
    let readme = read("README.md");
    let ci = read(".ci/run");
    for command in ["cargo run --release -- run pipelines/quickstart.toml", "cargo test --release"] {
        assert!(readme.contains(command), "README.md lacks `{command}`");
        let in_ci = command.replace("--release", "--release --locked");
        assert!(ci.contains(&in_ci), ".ci/run does not run `{command}`");
    }
}

#[test]
fn the_readme_shows_a_sound_pipeline() {
    let readme = read("README.md");
    let text = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).expect("a pipeline");
    let folder = tempfile::tempdir().expect("a directory");
    let path = folder.path().join("p.toml");
    fs_err::write(&path, text).expect("writes");
    let pipeline = sami::pipeline::load(&path, &[], &kinds::specs()).expect("no errors");
    sami::graph::build(&pipeline).expect("no cycles, no wrong types");
    assert!(pipeline.nodes.iter().any(|node| node.name == "finetune@3"));
}

#[test]
fn no_source_file_is_left_out_of_the_test_binary() {
    for path in files_under("tests/it", "rs") {
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let folder = path.parent().expect("it is in a directory");
        let (name, namer) = match (name, folder == root().join("tests/it")) {
            ("main", true) => continue,
            (_, true) => (name, folder.join("main.rs")),
            ("mod", false) => {
                (folder.file_name().and_then(|name| name.to_str()).unwrap_or_default(), root().join("tests/it/main.rs"))
            }
            (_, false) => (name, folder.join("mod.rs")),
        };
        let text = fs_err::read_to_string(&namer).expect("a source file");
        assert!(text.contains(&format!("mod {name};")), "{} does not name `{name}`", namer.display());
    }
}
