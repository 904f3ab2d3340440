//! Any program that takes jobs, by lines of shell in the profile: Kubernetes, Ray, a site's own queue.
//!
//! Words in braces are replaced, each as one word of the shell: `{script}` (a file), `{name}`, `{mark}`, `{what}`, `{log}`,
//! `{directory}`, `{cpus}`, `{memory_mb}`, `{minutes}`, `{gres}`, `{partition}`, `{account}`, `{qos}`; in `poll` and
//! `cancel`, `{ids}` are words, too, one for each job; in `find`, `{marks}`. What is not set is an empty word.

use std::collections::HashMap;
use std::process::Command;

use super::program::{Answer, ask};
use super::{Engine, Refusal, Seen, Standing, Submission};
use crate::diag::Diagnostic;
use crate::settings::Templates;
use crate::shell::quoted;

/// Ids in one call: a command line has a length.
const MOST_IDS: usize = 1000;

/// Programs of a profile.
#[derive(Debug)]
pub(super) struct Templated {
    name: String,
    templates: Templates,
}

impl Templated {
    pub(super) fn new(profile: &str, templates: Templates) -> Self {
        Self { name: format!("command:{profile}"), templates }
    }

    fn shell(what: &str, line: &str) -> Result<String, Refusal> {
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg(line);
        match ask(command)? {
            Answer { ok: true, out, .. } => Ok(out),
            answer => {
                let finding = Diagnostic::error("cluster::command", format!("`{what}` of the profile fails"))
                    .note(answer.complaint())
                    .help(format!("try it in a terminal: {line}"));
                // Submitted twice is worse than not at all.
                Err(Refusal { finding: Box::new(finding), passing: what != "submit" })
            }
        }
    }
}

impl Engine for Templated {
    fn name(&self) -> &str {
        &self.name
    }

    fn submit(&self, jobs: &[Submission]) -> Vec<Result<String, Refusal>> {
        let submit = |job: &Submission| {
            let out = Self::shell("submit", &filled(&self.templates.submit, &words(job)))?;
            let id = out.lines().rfind(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned());
            id.filter(|id| !id.contains(char::is_whitespace)).ok_or_else(|| {
                let finding = Diagnostic::error("cluster::command", "`submit` of the profile prints no id")
                    .note(format!("it printed: {}", out.trim()))
                    .help("its last line is to be the job's id alone");
                Refusal { finding: Box::new(finding), passing: false }
            })
        };
        jobs.iter().map(submit).collect()
    }

    fn poll(&self, jobs: &[&str]) -> Result<HashMap<String, Seen>, Refusal> {
        let mut seen = HashMap::new();
        for jobs in jobs.chunks(MOST_IDS) {
            let out = Self::shell("poll", &filled(&self.templates.poll, &[("ids", list(jobs))]))?;
            for line in out.lines().filter(|line| !line.trim().is_empty()) {
                let mut fields = line.split_whitespace();
                let (Some(id), Some(state)) = (fields.next(), fields.next()) else { continue };
                let Some(state) = standing(state) else {
                    let finding = Diagnostic::error("cluster::command", "`poll` of the profile prints no known state")
                        .note(format!("it printed: {line}"))
                        .help("states are waits, runs, done, failed, cancelled, timeout, memory, preempted and lost");
                    return Err(Refusal { finding: Box::new(finding), passing: true });
                };
                let host = fields.next().filter(|host| *host != "-").map(str::to_owned);
                let why = fields.collect::<Vec<_>>().join(" ");
                seen.insert(id.to_owned(), Seen { state, host, why });
            }
        }
        Ok(seen)
    }

    fn find(&self, marks: &[&str]) -> Result<HashMap<String, String>, Refusal> {
        let Some(find) = &self.templates.find else { return Ok(HashMap::new()) };
        let mut found = HashMap::new();
        for marks in marks.chunks(MOST_IDS) {
            let out = Self::shell("find", &filled(find, &[("marks", list(marks))]))?;
            let pair = |line: &str| {
                line.split_once(char::is_whitespace).map(|(mark, id)| (mark.to_owned(), id.trim().to_owned()))
            };
            found.extend(out.lines().filter_map(pair).filter(|(mark, _)| marks.contains(&mark.as_str())));
        }
        Ok(found)
    }

    fn cancel(&self, jobs: &[&str]) -> Result<(), Refusal> {
        for jobs in jobs.chunks(MOST_IDS) {
            Self::shell("cancel", &filled(&self.templates.cancel, &[("ids", list(jobs))]))?;
        }
        Ok(())
    }

    fn look(&self, job: &str) -> String {
        // A line of another kind is for programs.
        let poll = Some(self.templates.poll.trim()).filter(|poll| !poll.contains('\n'));
        let line = self.templates.look.as_deref().map(str::trim).or(poll);
        line.map(|line| filled(line, &[("ids", list(&[job]))])).unwrap_or_default()
    }
}

/// Words of a job for `submit`.
fn words(job: &Submission) -> Vec<(&'static str, String)> {
    let resources = &job.resources;
    let text = |text: &Option<String>| quoted(text.as_deref().unwrap_or_default());
    let number = |number: Option<u64>| quoted(&number.map(|number| number.to_string()).unwrap_or_default());
    let path = |path: &std::path::Path| quoted(&path.display().to_string());
    vec![
        ("script", path(&job.directory.join("job.sh"))),
        ("directory", path(&job.directory)),
        ("log", path(&job.log)),
        ("name", quoted(&job.name)),
        ("mark", quoted(&job.mark)),
        ("what", quoted(&job.what)),
        ("cpus", number(resources.cpus.map(|cpus| cpus as u64))),
        ("memory_mb", number(resources.memory.map(|bytes| bytes.div_ceil(1 << 20)))),
        ("minutes", number(resources.time.map(|time| time.as_secs().div_ceil(60)))),
        ("gres", text(&resources.gres)),
        ("partition", text(&resources.partition)),
        ("account", text(&resources.account)),
        ("qos", text(&resources.qos)),
    ]
}

fn list(words: &[&str]) -> String {
    words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
}

/// A template with its words; braces that hold none of them stay.
fn filled(template: &str, words: &[(&str, String)]) -> String {
    let mut text = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let word =
            words.iter().find(|(name, _)| rest[1..].strip_prefix(*name).is_some_and(|rest| rest.starts_with('}')));
        let (said, length) = word.map_or(("{", 1), |(name, word)| (word.as_str(), name.len() + 2));
        text.push_str(said);
        rest = &rest[length..];
    }
    text + rest
}

fn standing(name: &str) -> Option<Standing> {
    Some(match name {
        "waits" => Standing::Waits,
        "runs" => Standing::Runs,
        "done" => Standing::Ended(Some(0)),
        "failed" => Standing::Ended(None),
        "cancelled" => Standing::Cancelled,
        "timeout" => Standing::TimeLimit,
        "memory" => Standing::OutOfMemory,
        "preempted" => Standing::Preempted,
        "lost" => Standing::HostFailed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_filled_in_as_words_of_the_shell() {
        let words = [("ids", list(&["1", "it's"])), ("name", quoted("a b"))];
        assert_eq!(filled("p {ids} {name} ${HOME} {x} {", &words), r"p 1 'it'\''s' 'a b' ${HOME} {x} {");
    }

    #[test]
    fn jobs_are_submitted_asked_for_and_ended_by_lines_of_shell() {
        let engine = Templated::new(
            "t",
            Templates {
                submit: "echo submitting; echo id-{mark}".into(),
                poll: "for id in {ids}; do [ \"$id\" = gone ] || echo \"$id runs n1 so it is\"; done".into(),
                cancel: "true {ids}".into(),
                find: Some("for mark in {marks}; do echo \"$mark id-$mark\"; done".into()),
                look: None,
            },
        );
        let job = Submission::sample();
        assert_eq!(engine.submit(std::slice::from_ref(&job))[0].as_deref().ok(), Some("id-run/node.1"));
        assert!(engine.look("a").starts_with("for id in a; do"));
        let seen = engine.poll(&["a", "gone"]).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!(seen["a"], Seen { state: Standing::Runs, host: Some("n1".into()), why: "so it is".into() });
        assert_eq!(engine.find(&["m"]).unwrap()["m"], "id-m");
        engine.cancel(&["a"]).unwrap();
        let lines = Templates { poll: "echo a waits - no GPU is free\ntrue".into(), ..Templates::default() };
        let seen = Templated::new("t", lines.clone()).poll(&["a"]).unwrap();
        assert_eq!(seen["a"], Seen { state: Standing::Waits, host: None, why: "no GPU is free".into() });
        assert_eq!(Templated::new("t", lines.clone()).look("a"), "");
        let told = Templates { look: Some("describe {ids}\n".into()), ..lines };
        assert_eq!(Templated::new("t", told).look("a b"), "describe 'a b'");
        let bad = |submit: &str| Templated::new("t", Templates { submit: submit.into(), ..Templates::default() });
        for submit in ["exit 3", "true", "echo two words"] {
            let refusal = bad(submit).submit(std::slice::from_ref(&job)).remove(0).unwrap_err();
            assert_eq!((refusal.finding.id, refusal.passing), ("cluster::command", false), "{submit}");
        }
    }
}
