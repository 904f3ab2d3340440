//! `sami explain ID`: what an error means, an example, and what to do.
//!
//! The texts are in the Markdown files beside this one; a test holds the ids to those in the source and sees that the
//! examples of pipelines and of `sami.toml` have the errors that they are examples of.

use std::fmt::Write as _;

use serde_json::json;

use super::{CommandResult, Context, DONE, context, table};
use crate::diag::{Diagnostic, did_you_mean};

const PAGES: &[&str] = &[
    include_str!("explain_error/pipeline.md"),
    include_str!("explain_error/data.md"),
    include_str!("explain_error/run.md"),
    include_str!("explain_error/cluster.md"),
    include_str!("explain_error/store.md"),
    include_str!("explain_error/lm.md"),
];

/// What is told of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Explanation {
    /// `layer::name`.
    pub id: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// How the example is to be read: `toml` is a pipeline, `settings` a `sami.toml`, anything else a situation.
    pub language: &'static str,
    /// What has this error.
    pub example: &'static str,
    /// What to do.
    pub fix: &'static str,
}

/// All of them, page by page.
pub fn all() -> impl Iterator<Item = Explanation> {
    let sections = PAGES.iter().flat_map(|page| page.split("## ").skip(1));
    sections.filter_map(|section| {
        let (id, rest) = section.split_once('\n')?;
        let (meaning, rest) = rest.split_once("```")?;
        let (language, rest) = rest.split_once('\n')?;
        let (example, rest) = rest.split_once("\n```\n")?;
        let fix = rest.trim().strip_prefix("Fix: ")?;
        Some(Explanation { id: id.trim(), meaning: meaning.trim(), language, example, fix })
    })
}

/// Whether something is told of an id.
pub(super) fn is_known(id: &str) -> bool {
    all().any(|one| one.id == id)
}

/// All ids, each with the first sentence of what it means.
pub(super) fn ids() -> impl Iterator<Item = (&'static str, &'static str)> {
    all().map(|one| (one.id, one.meaning.split_inclusive(". ").next().unwrap_or_default().trim()))
}

/// Prints what is known of an error, or lists all.
pub(super) fn run(context: &Context, id: Option<&str>) -> CommandResult {
    let Some(id) = id else { return list(context) };
    // As it stands in a message: `error[pipeline::unknown-key]`.
    let plain = id.trim_start_matches("error").trim_start_matches("warning").trim_matches(['[', ']', ':', '`']);
    let Some(found) = all().find(|one| one.id == plain) else { return Err(unknown(plain).into()) };
    if context.json() {
        let Explanation { id, meaning, example, fix, .. } = found;
        context::print_json(&json!({ "id": id, "meaning": meaning, "example": example, "fix": fix }))?;
        return Ok(DONE);
    }
    let mut text = format!("{}\n\n{}\n\n", found.id, wrapped(found.meaning));
    text.push_str(if matches!(found.language, "toml" | "settings") { "This has it:\n\n" } else { "For example:\n\n" });
    for line in found.example.lines() {
        let _ = writeln!(text, "{}", format!("    {line}").trim_end());
    }
    let _ = write!(text, "\n{}\n", wrapped(&format!("What to do: {}", upper(found.fix))));
    context::print(&text)?;
    Ok(DONE)
}

fn list(context: &Context) -> CommandResult {
    if context.json() {
        let all: Vec<_> = ids().map(|(id, about)| json!({ "id": id, "about": about })).collect();
        context::print_json(&all)?;
        return Ok(DONE);
    }
    let mut all: Vec<_> = ids().collect();
    all.sort_unstable();
    let widest = all.iter().map(|(id, _)| id.len()).max().unwrap_or_default();
    let mut text = String::new();
    for (id, about) in all {
        let _ = writeln!(text, "{id:<widest$}  {about}");
    }
    context::print(&text)?;
    Ok(DONE)
}

fn unknown(id: &str) -> Diagnostic {
    let fault = Diagnostic::error("cli::no-explanation", format!("no error has the id `{id}`"));
    let known: Vec<&str> = all().map(|one| one.id).collect();
    // The layer may be left out, or another one be meant.
    let name = id.rsplit("::").next().unwrap_or(id);
    let same = known.iter().find(|known| known.rsplit("::").next() == Some(name)).copied();
    match same.or_else(|| did_you_mean(id, known.iter().copied())) {
        Some(near) => fault.help(format!("an id with a similar name exists: `{near}`")),
        None => fault.help("`sami explain` lists all; ids stand in brackets after `error`"),
    }
}

fn upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().collect::<String>() + letters.as_str())
}

/// Text in lines of a width that can be read.
pub(super) fn wrapped(text: &str) -> String {
    const WIDTH: usize = 92;
    text.split('\n').flat_map(|paragraph| table::wrapped(paragraph, WIDTH)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::{graph, kinds, pipeline};

    /// The ids of what a pipeline of this text has.
    fn errors_of(text: &str) -> Vec<&'static str> {
        let folder = tempfile::tempdir().expect("a directory");
        let path = folder.path().join("p.toml");
        fs_err::write(&path, text).expect("writes");
        let (pipeline, mut findings) = pipeline::examine(&path, &[], &kinds::specs());
        if let Some(pipeline) = &pipeline {
            findings.extend(graph::build(pipeline).err().unwrap_or_default());
            findings.append(&mut pipeline::check::data(pipeline).findings);
        }
        findings.iter().map(|finding| finding.id).collect()
    }

    #[test]
    fn examples_have_the_errors_that_they_are_examples_of() {
        let (mut tried, mut others) = (0, Vec::new());
        for one in all() {
            let found = match one.language {
                "toml" => errors_of(one.example),
                "settings" => {
                    let faults = Settings::parse("sami.toml", one.example).expect_err(one.id);
                    faults.iter().map(|fault| fault.id).collect()
                }
                _ => continue,
            };
            if !found.contains(&one.id) {
                others.push(format!("the example of {} has {found:?}", one.id));
            }
            tried += 1;
        }
        assert_eq!(others, Vec::<String>::new());
        assert!(tried >= 50, "{tried}");
    }

    #[test]
    fn every_section_is_whole_and_no_id_comes_twice() {
        let sections: usize = PAGES.iter().map(|page| page.matches("\n## ").count() + 1).sum();
        let mut ids: Vec<&str> = all().map(|one| one.id).collect();
        assert_eq!(ids.len(), sections, "a section lacks its example or its fix");
        ids.sort_unstable();
        let twice = ids.windows(2).find(|pair| pair[0] == pair[1]);
        assert_eq!(twice, None);
        for one in all() {
            assert!(one.meaning.len() > 20 && one.fix.len() > 8 && !one.example.is_empty(), "{}", one.id);
        }
    }

    #[test]
    fn what_is_nearly_an_id_is_understood() {
        assert!(unknown("unknown-key").help[0].contains("pipeline::unknown-key"));
        assert!(unknown("pipeline::unknown-kye").help[0].contains("unknown-key"));
        assert!(wrapped(&"word ".repeat(60)).lines().all(|line| line.chars().count() <= 92));
    }
}
