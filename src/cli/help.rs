//! `sami help`: the page of a node kind, or how a command is called.

use clap::CommandFactory;
use serde_json::json;

use super::{Cli, CommandResult, Context, DONE, context};
use crate::diag::{Diagnostic, did_you_mean};
use crate::kinds::{self, Entry};

/// Prints the page of a topic, or which topics there are.
pub(super) fn run(context: &Context, topic: &[String]) -> CommandResult {
    match topic {
        [] => overview(context),
        [kind] if kinds::find(kind).is_some() => kinds::find(kind).map_or(Ok(DONE), |entry| kind_page(context, entry)),
        path => command_page(context, path),
    }
}

fn overview(context: &Context) -> CommandResult {
    let command = Cli::command();
    let commands: Vec<_> = command.get_subcommands().filter(|command| !command.is_hide_set()).collect();
    let kinds = kinds::KINDS;
    let about = |command: &clap::Command| command.get_about().map(ToString::to_string).unwrap_or_default();
    if context.json() {
        let commands: Vec<_> =
            commands.iter().map(|command| json!({"name": command.get_name(), "about": about(command)})).collect();
        let kinds: Vec<_> = kinds
            .iter()
            .map(|entry| json!({"name": entry.spec.name, "about": first_sentence(entry.spec.doc)}))
            .collect();
        context::print_json(&json!({"commands": commands, "kinds": kinds}))?;
        return Ok(DONE);
    }
    let mut text = "Commands (`sami help COMMAND`):\n".to_owned();
    for command in commands {
        text.push_str(&format!("  {:<14}{}\n", command.get_name(), about(command)));
    }
    text.push_str("\nNode kinds (`sami help KIND`):\n");
    for entry in kinds {
        text.push_str(&format!("  {:<14}{}\n", entry.spec.name, first_sentence(entry.spec.doc)));
    }
    context::print(&text)?;
    Ok(DONE)
}

fn first_sentence(doc: &str) -> String {
    let paragraph = doc.trim().split("\n\n").next().unwrap_or_default().replace('\n', " ");
    let end = paragraph.find(". ").unwrap_or(paragraph.len());
    paragraph[..end].trim_end_matches(['.', ':']).to_owned()
}

fn kind_page(context: &Context, entry: &Entry) -> CommandResult {
    let spec = &entry.spec;
    if context.json() {
        context::print_json(&json!({"kind": spec.name, "version": spec.version, "page": spec.doc.trim()}))?;
    } else {
        context::print(&format!("# {}\n\n{}\n", spec.name, spec.doc.trim()))?;
    }
    Ok(DONE)
}

fn command_page(context: &Context, path: &[String]) -> CommandResult {
    let mut command = Cli::command();
    command.build();
    let mut found = &command;
    for word in path {
        let Some(next) = found.find_subcommand(word) else { return Err(unknown(found, path, word).into()) };
        found = next;
    }
    let page = found.clone().render_long_help().to_string();
    if context.json() {
        context::print_json(&json!({"command": path.join(" "), "page": page}))?;
    } else {
        context::print(&page)?;
    }
    Ok(DONE)
}

fn unknown(command: &clap::Command, path: &[String], word: &str) -> Diagnostic {
    let kinds = kinds::KINDS.iter().map(|entry| entry.spec.name);
    let kinds: Vec<&str> = if path.len() == 1 { kinds.collect() } else { Vec::new() };
    let commands = command.get_subcommands().filter(|command| !command.is_hide_set()).map(clap::Command::get_name);
    let known: Vec<&str> = commands.chain(kinds).collect();
    let fault = Diagnostic::error("cli::no-topic", format!("there is no help on `{}`", path.join(" ")));
    match did_you_mean(word, known.iter().copied()) {
        Some(near) => fault.help(format!("a topic with a similar name exists: `{near}`")),
        None if known.is_empty() => fault.help(format!("`{}` has no commands", command.get_name())),
        None => fault.help(format!("the topics are {}", known.join(", "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_say_in_a_sentence_what_they_do() {
        assert_eq!(first_sentence("Runs a program\non files: all.\n\n| x |"), "Runs a program on files: all");
        for entry in kinds::KINDS {
            let about = first_sentence(entry.spec.doc);
            assert!(about.len() > 10 && !about.contains('|'), "{}: {about}", entry.spec.name);
        }
    }
}
