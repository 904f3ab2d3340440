//! Which module may import which, and how long a file may be. A plain scan of the source text.

use std::path::{Path, PathBuf};

/// A module may name only these and itself; `cli`, `lib` and `main` may name all.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("amount", &[]),
    ("depth", &[]),
    ("diag", &[]),
    ("digest", &[]),
    ("env", &[]),
    ("shell", &[]),
    ("fs", &["env"]),
    ("secret", &["env"]),
    // The name of a repository is the hub's word; what an endpoint is, the endpoint's.
    ("pipeline", &["depth", "diag", "digest", "env", "fs", "secret", "hub", "endpoint"]),
    ("graph", &["diag", "digest", "pipeline", "plot"]),
    ("pieces", &["digest", "fs"]),
    ("store", &["amount", "diag", "digest", "env", "fs", "pieces"]),
    ("collective", &["env", "fs"]),
    ("lm", &["collective", "depth", "diag", "env", "fs", "pieces"]),
    ("archive", &["diag", "digest", "fs", "pieces", "store"]),
    ("settings", &["amount", "diag"]),
    ("remote", &["diag", "digest", "env", "fs", "pieces", "secret", "settings", "store"]),
    ("compare", &["digest"]),
    ("hub", &["diag", "env", "fs", "secret"]),
    ("endpoint", &["diag", "env", "fs", "secret"]),
    (
        "kinds",
        &[
            "collective",
            "depth",
            "diag",
            "digest",
            "env",
            "fs",
            "secret",
            "pieces",
            "pipeline",
            "store",
            "lm",
            "endpoint",
        ],
    ),
    ("schema", &["kinds", "pipeline", "settings"]),
    (
        "exec",
        &[
            "amount",
            "collective",
            "diag",
            "digest",
            "env",
            "fs",
            "secret",
            "pieces",
            "pipeline",
            "graph",
            "store",
            "hub",
            "endpoint",
            "kinds",
            "settings",
            "shell",
        ],
    ),
    ("plot", &[]),
    (
        "inspect",
        &[
            "amount", "archive", "compare", "depth", "diag", "digest", "endpoint", "env", "exec", "fs", "graph", "hub",
            "kinds", "lm", "pieces", "pipeline", "plot", "remote", "secret", "settings", "shell", "store",
        ],
    ),
    (
        "ui",
        &[
            "amount", "archive", "compare", "depth", "diag", "digest", "endpoint", "env", "exec", "fs", "graph", "hub",
            "inspect", "kinds", "lm", "pieces", "pipeline", "plot", "remote", "secret", "settings", "shell", "store",
        ],
    ),
    ("trackers", &["diag", "digest", "env", "fs", "secret", "settings", "shell", "store", "exec", "inspect"]),
];
const MOST_LINES: usize = 500;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs_err::read_dir(directory).expect("src is readable") {
        let path = entry.expect("src is readable").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a source text names after `crate::`, code and documentation links alike left as they are.
fn imports(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.match_indices("crate::").map(move |(at, _)| &line[at + "crate::".len()..]))
        .map(|rest| rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default())
}

#[test]
fn modules_import_only_what_their_layer_may() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 30, "the scan found only {} files", files.len());
    let mut faults = Vec::new();
    for file in files {
        let name = file.strip_prefix(&root).expect("it was found there");
        let module =
            name.iter().next().and_then(|part| part.to_str()).unwrap_or_default().trim_end_matches(".rs").to_owned();
        let text = fs_err::read_to_string(&file).expect("src is readable");
        let lines = text.lines().count();
        if lines > MOST_LINES {
            faults.push(format!(
                "src/{}: {lines} lines, at most {MOST_LINES}: give its second noun a file",
                name.display()
            ));
        }
        let Some((_, allowed)) = MAY_IMPORT.iter().find(|(layer, _)| *layer == module) else { continue };
        for import in imports(&text) {
            let is_module = MAY_IMPORT.iter().any(|(layer, _)| *layer == import) || import == "cli";
            if is_module && import != module && !allowed.contains(&import) {
                faults.push(format!("src/{}: `{module}` may not import `{import}`", name.display()));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}
