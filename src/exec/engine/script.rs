//! The script that a job is: plain `sh`, so that a person can read what runs and run it by hand.

use std::fmt::Write;
use std::path::Path;

use crate::settings::Resources;
use crate::shell::quoted;

/// The script's exit code where the job's files are not to be seen.
pub(super) const UNSEEN: i32 = 41;
/// The script's exit code where there is no such program.
pub(super) const NO_PROGRAM: i32 = 42;
/// The worker's exit code where the disk is so full that it can leave no record.
pub(in crate::exec) const NO_ROOM: u8 = 43;

/// The script that executes `program ARGUMENTS`, after a look for `file`, which is in the shared cache.
pub(crate) fn script(what: &str, resources: &Resources, file: &Path, program: &Path, arguments: &[&str]) -> String {
    script_into(what, resources, file, program, arguments, None)
}

/// The same; what the program prints goes into a file of its own.
pub(super) fn script_into(
    what: &str,
    resources: &Resources,
    file: &Path,
    program: &Path,
    arguments: &[&str],
    log: Option<&Path>,
) -> String {
    let mut text = format!("#!/bin/sh\n# {}\n", what.replace('\n', " "));
    for line in resources.setup.iter().flatten() {
        let _ = writeln!(text, "{line}");
    }
    if let Some(cpus) = resources.cpus {
        let _ = writeln!(text, "export RAYON_NUM_THREADS={cpus}");
    }
    let inner = format!(
        "[ -r {file} ] || {{ echo \"sami: $(uname -n) does not see {shown}: the cache must be in a directory that all hosts share\" >&2; exit {UNSEEN}; }}\n\
         command -v {program} >/dev/null || {{ echo \"sami: $(uname -n) has no program {shown_program}\" >&2; exit {NO_PROGRAM}; }}\n\
         exec {program} {arguments}{into}\n",
        file = quoted(&file.display().to_string()),
        shown = file.display().to_string().replace(['"', '$', '`', '\\'], "?"),
        program = quoted(&program.display().to_string()),
        shown_program = program.display().to_string().replace(['"', '$', '`', '\\'], "?"),
        into = log.map(|log| format!(" >{} 2>&1", quoted(&log.display().to_string()))).unwrap_or_default(),
        arguments = arguments.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "),
    );
    match &resources.container {
        // What is looked for must be there inside.
        Some(container) if !container.is_empty() => {
            let prefix = container.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
            let _ = writeln!(text, "exec {prefix} /bin/sh -c {}", quoted(&inner));
        }
        _ => text.push_str(&inner),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_says_what_it_lacks() {
        let directory = tempfile::tempdir().unwrap();
        let here = directory.path().join("job.json");
        let run = |resources: &Resources, program: &str| {
            let text = script("a job", resources, &here, Path::new(program), &["a b"]);
            let output = std::process::Command::new("sh").arg("-c").arg(text).output().unwrap();
            let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            (output.status.code(), text)
        };
        let plain = Resources::default();
        assert_eq!(run(&plain, "echo").0, Some(UNSEEN));
        assert!(run(&plain, "echo").1.contains("all hosts share"));
        fs_err::write(&here, "").unwrap();
        assert_eq!(run(&plain, "echo"), (Some(0), "a b\n".to_owned()));
        assert_eq!(run(&plain, "no-such-program").0, Some(NO_PROGRAM));
        let inside = Resources {
            setup: Some(vec!["export WHERE='in a box'".to_owned()]),
            container: Some(["env", "BOX=1"].map(str::to_owned).to_vec()),
            cpus: Some(3),
            ..Resources::default()
        };
        let (code, text) = run(&inside, "printenv");
        assert_eq!(code, Some(1), "there is no variable `a b`: {text}");
        let text = script("a job", &inside, &here, Path::new("printenv"), &["WHERE", "BOX", "RAYON_NUM_THREADS"]);
        let output = std::process::Command::new("sh").arg("-c").arg(text).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "in a box\n1\n3\n");
    }
}
