//! Schemas in the real taplo, completions in real shells, man pages in groff.

use std::path::Path;
use std::process::{Command, Stdio};

use sami::env;

use crate::sandbox::{Sandbox, skipped, unsteered};

/// Whether a program is there.
fn has(program: &str) -> bool {
    // Piped: taplo fails where what it says goes nowhere.
    Command::new(program).arg("--version").stdin(Stdio::null()).output().is_ok_and(|said| said.status.success())
}

macro_rules! need {
    ($program:expr) => {
        if !has($program) {
            return skipped(&format!("there is no `{}` here", $program));
        }
    };
}

/// What taplo says of a file under a schema: nothing if all is well.
fn lint(taplo: &str, schema: &Path, file: &Path) -> String {
    let url = format!("file://{}", schema.display());
    linted(taplo, &["lint", "--schema", &url], file)
}

fn linted(taplo: &str, args: &[&str], file: &Path) -> String {
    let lint = Command::new(taplo)
        .args(args)
        .arg(file)
        .current_dir(file.parent().expect("it is in a directory"))
        .stdin(Stdio::null())
        .output()
        .expect("taplo starts");
    if lint.status.success() { String::new() } else { String::from_utf8_lossy(&lint.stderr).into_owned() + "failed" }
}

#[test]
fn taplo_takes_what_is_shipped_and_refuses_what_is_wrong() {
    let Some(taplo) = env::TEST_TAPLO.get().filter(|taplo| has(taplo)) else {
        return skipped("SAMI_TEST_TAPLO names no taplo");
    };
    let project = Sandbox::new();
    project.sami(&["schema", "-o", "s.json"]).exits(0);
    let schema = project.path("s.json");
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipelines");
    let mut seen = 0;
    for entry in fs_err::read_dir(&shipped).expect("is there") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            assert_eq!(lint(&taplo, &schema, &path), "", "{}", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen} pipelines");
    // By the line at their head, as editors find it, where the schema is written beside them.
    let shipped = fs_err::read_to_string(shipped.join("quickstart.toml")).expect("is there");
    project.write("pipelines/own.toml", &shipped);
    project.sami(&["schema", "-o", "pipelines/.schema.json"]).exits(0);
    let own = |text: &str| {
        project.write("pipelines/own.toml", text);
        linted(&taplo, &["lint"], &project.path("pipelines/own.toml"))
    };
    assert_eq!(own(&shipped), "");
    assert!(own(&format!("{shipped}\n[nodes.x]\nkind = \"comand\"\n")).contains("comand"));
    let node = |more: &str| format!("[nodes.a]\nkind = \"command\"\nprogram = \"true\"\n{more}\n");
    let wrong = [
        (node("argz = []"), "argz"),
        (node("args = 3"), "3"),
        // A field of another kind.
        (node("temperature = 0.7"), "temperature"),
        (node("run = { thread = 2 }"), "thread"),
        (node("run = { threads = -2 }"), "-2"),
        (node("matrix = { seed = 3 }"), "3"),
        ("[nodes.a]\nkind = \"comand\"\n".to_owned(), "comand"),
        ("[nodes.a]\nkind = \"command\"\n".to_owned(), "program"),
        ("[nodes.a]\nprogram = \"true\"\n".to_owned(), "kind"),
        ("[node.a]\nkind = \"command\"\n".to_owned(), "node"),
        ("schema = 2\n".to_owned(), "2"),
        ("[models.m]\nsource = \"x\"\ndtype = \"f8\"\n".to_owned(), "f8"),
        ("[models.m]\nsource = \"x\"\nprice = { input = 1, output = 1 }\n".to_owned(), "price"),
        ("[datasets.d]\nsource = \"x\"\nunqiue = true\n".to_owned(), "true"),
        ("[loop.nodes.a]\nkind = \"command\"\nprogram = \"x\"\n".to_owned(), "times"),
    ];
    for (at, (text, named)) in wrong.iter().enumerate() {
        let name = format!("w{at}.toml");
        project.write(&name, text);
        let said = lint(&taplo, &schema, &project.path(&name));
        assert!(said.contains(named), "{text}\n{said}");
    }
    project.sami(&["schema", "project", "-o", "project.json"]).exits(0);
    project.write("settings.toml", "[remote]\nurl = \"file:///x\"\npull = true\n");
    let schema = project.path("project.json");
    assert_eq!(lint(&taplo, &schema, &project.path("settings.toml")), "");
    project.write("settings.toml", "[remote]\nurl = \"file:///x\"\npull = \"yes\"\n");
    assert!(lint(&taplo, &schema, &project.path("settings.toml")).contains("yes"));
}

const PIPELINE: &str = "[params]\nword = \"x\"\n[nodes.greet]\nkind = \"command\"\nprogram = \"/bin/sh\"\n\
    args = [\"-c\", \"echo hello ${word} > {output}/a.txt\"]\n[nodes.leave]\nkind = \"command\"\nprogram = \"/bin/true\"\n";

/// A project that has run, with the binary in a directory for the `PATH`.
fn world() -> (Sandbox, String) {
    let project = Sandbox::with(PIPELINE);
    project.sami(&["run", "p.toml", "greet"]).exits(0);
    fs_err::create_dir(project.path("bin")).expect("makes");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sami"), project.path("bin/sami")).expect("links");
    let path = format!("{}:{}", project.path("bin").display(), env::named("PATH").unwrap_or_default());
    (project, path)
}

/// The words that a shell offers for a line.
fn offered(project: &Sandbox, path: &str, shell: &str, script: &str) -> String {
    let mut command = Command::new(shell);
    let output = unsteered(&mut command)
        .args(if shell == "bash" { &["--norc", "--noprofile", "-c"][..] } else { &["-c"][..] })
        .arg(script)
        .env("PATH", path)
        .env("HOME", project.path(""))
        .current_dir(project.path(""))
        .stdin(Stdio::null())
        .output()
        .expect("the shell starts");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{shell} stays silent");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn bash(line: &str) -> String {
    format!(
        "source <(sami completions bash); COMP_WORDS=({line} ''); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_TYPE=9; \
         _clap_complete_sami sami '' ''; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
}

#[test]
fn bash_knows_nodes_runs_and_artifacts_and_is_silent_on_damage() {
    need!("bash");
    let (project, path) = world();
    let words = |line: &str| offered(&project, &path, "bash", &bash(line));
    assert!(words("sami why p.toml").lines().any(|word| word.starts_with("leave")), "{}", words("sami why p.toml"));
    let shown = words("sami show");
    let run = fs_err::read_dir(project.path("cache/runs")).expect("runs").next().expect("one").expect("an entry");
    assert!(shown.contains("greet") && shown.contains(&run.file_name().to_string_lossy().into_owned()), "{shown}");
    assert!(words("sami cache show").lines().count() >= 2, "a node and an artifact");
    assert!(words("sami run p.toml --set").contains("word="));
    assert!(words("sami help").contains("finetune"));
    fs_err::write(project.path("cache/index.sqlite"), [7; 9000]).expect("damages");
    fs_err::write(project.path("p.toml"), "[nodes.").expect("damages");
    // The options are known without the cache.
    for line in ["sami cache show", "sami why p.toml"] {
        let named: Vec<String> = words(line).lines().filter(|word| !word.starts_with('-')).map(str::to_owned).collect();
        assert_eq!(named.concat(), "", "{line}");
    }
}

#[test]
fn fish_knows_nodes() {
    need!("fish");
    let (project, path) = world();
    let said = offered(&project, &path, "fish", "sami completions fish | source; complete -C 'sami why p.toml '");
    assert!(said.contains("greet") && said.contains("leave"), "{said}");
}

#[test]
fn zsh_takes_the_script() {
    need!("zsh");
    let (project, path) = world();
    let script = "autoload -Uz compinit; compinit -u -D; source <(sami completions zsh); print -r -- ${_comps[sami]}; \
        SAMI_COMPLETE=zsh _CLAP_COMPLETE_INDEX=3 _CLAP_IFS=$'\\n' sami -- sami why p.toml ''";
    let said = offered(&project, &path, "zsh", script);
    assert!(said.contains("_clap_dynamic_completer_sami") && said.contains("leave"), "{said}");
    // A line that is typed at a zsh on a terminal, up to a tab.
    let typed = "zmodload zsh/zpty; zpty z zsh -f -i; \
        zpty -w z 'PS1=; autoload -Uz compinit; compinit -u -D; source <(sami completions zsh); print RE\"\"ADY'; \
        zpty -r z said '*READY*'; zpty -w -n z $'sami why p.toml le\\t'; zpty -r z said '*why*leave*'; print -r -- $said; zpty -d z";
    let script = format!("timeout 60 zsh -f -c {}", shell_quoted(typed));
    let said = offered(&project, &path, "zsh", &script);
    assert!(said.contains("sami why p.toml leave"), "{said}");
}

fn shell_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Whoever types does not wait: within 50 ms in a build that is optimised on a machine that is not busy; here it is neither.
#[test]
fn words_of_ten_thousand_nodes_come_at_once() {
    let project = Sandbox::new();
    let numbers: Vec<String> = (0..10_000).map(|number| format!("\"n{number}\"")).collect();
    let matrix = numbers.join(", ");
    let one = "kind = \"command\"\nprogram = \"true\"\n";
    project.write("p.toml", &format!("[nodes.many]\n{one}args = [\"${{i}}\"]\nmatrix = {{ i = [{matrix}] }}\n"));
    let flat: Vec<String> = (0..10_000).map(|number| format!("[nodes.many-n{number}]\n{one}")).collect();
    project.write("flat.toml", &flat.concat());
    for (file, expected) in [("p.toml", "many[i=n99"), ("flat.toml", "many-n999")] {
        let mut fastest = std::time::Duration::MAX;
        for _ in 0..5 {
            let begin = std::time::Instant::now();
            let mut command = project.command(&["--", "sami", "why", file, expected]);
            let said = command.env("SAMI_COMPLETE", "fish").output().expect("it starts");
            fastest = fastest.min(begin.elapsed());
            assert!(String::from_utf8_lossy(&said.stdout).contains(expected), "{file}: {said:?}");
        }
        assert!(fastest < std::time::Duration::from_millis(1500), "{file}: {fastest:?}");
    }
}

#[test]
fn man_pages_are_sound() {
    let project = Sandbox::new();
    project.sami(&["man", "pages"]).exits(0);
    let pages = project.files("pages");
    assert!(pages.len() > 30, "{} pages", pages.len());
    need!("groff");
    for page in pages {
        let groff = Command::new("groff")
            .args(["-man", "-Tutf8", "-ww", "-rLL=100n"])
            .arg(&page)
            .output()
            .expect("groff starts");
        assert_eq!(String::from_utf8_lossy(&groff.stderr), "", "{}", page.display());
        assert!(groff.stdout.len() > 200, "{}", page.display());
    }
}

#[test]
fn errors_are_explained_by_their_ids() {
    let project = Sandbox::new();
    let said = project.sami(&["explain", "error[pipeline::unknown-key]:"]).exits(0);
    assert!(said.stdout.contains("argz") && said.stdout.contains("What to do"), "{}", said.stdout);
    assert!(project.sami(&["explain", "pipeline::unknwn-key"]).exits(2).stderr.contains("`pipeline::unknown-key`"));
    assert!(project.sami(&["explain"]).exits(0).stdout.lines().count() > 180);
    let field = project.sami(&["help", "finetune", "optimizer.lr"]).exits(0);
    assert!(field.stdout.contains("lr *  (number)"), "{}", field.stdout);
}
