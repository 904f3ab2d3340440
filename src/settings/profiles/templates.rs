//! The engine `command`: any program that takes jobs, by three lines of shell.

use crate::settings::section::Section;

/// Lines of shell that submit a job, say how jobs are, and end them. `{script}`, `{name}`, … stand for words of the job.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Templates {
    /// Submits the job in `{script}`; the last line that it prints is the job's id.
    pub submit: String,
    /// Prints a line `ID STATE [HOST [WHY]]` for each of `{ids}` that is known, STATE being `waits`, `runs`, `done`, `failed`,
    /// `cancelled`, `timeout`, `memory`, `preempted` or `lost`, and HOST `-` where there is none.
    pub poll: String,
    /// Ends `{ids}`.
    pub cancel: String,
    /// Prints a line `MARK ID` for each of `{marks}` for which there is a job; without it a job whose id was not written
    /// down is not found again.
    pub find: Option<String>,
    /// What a person types to see the job in `{ids}`.
    pub look: Option<String>,
}

/// Takes the keys; they must be there if `wanted`.
pub(super) fn take(section: &mut Section<'_>, wanted: bool) -> Templates {
    let mut optional = |key: &'static str, help: Option<&str>| {
        let found = match help {
            Some(help) if wanted => section.required(key, help),
            _ => section.text(key),
        };
        let (text, at) = found?;
        if !wanted {
            let what = format!("`{key}` is for `executor = \"command\"`");
            section.fault(&at, what, "remove it, or name that executor");
        }
        wanted.then_some(text)
    };
    let (find, look) = (optional("find", None), optional("look", None));
    let mut line = |key: &'static str, help: &str| optional(key, Some(help)).unwrap_or_default();
    Templates {
        submit: line("submit", "say how a script is submitted: `submit = \"qsub {script}\"`"),
        poll: line("poll", "say how jobs are asked for: a line `ID STATE` for each of `{ids}`"),
        cancel: line("cancel", "say how jobs are ended: `cancel = \"qdel {ids}\"`"),
        find,
        look,
    }
}
