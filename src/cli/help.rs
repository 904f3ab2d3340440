//! `sami help`: the page of a node kind, or how a command is called.

use clap::CommandFactory;
use serde_json::json;

use super::explain_error::wrapped;
use super::{Cli, CommandResult, Context, DONE, context};
use crate::diag::{Diagnostic, did_you_mean};
use crate::kinds::{self, Entry};
use crate::schema::{self, Field};

/// Prints the page of a topic, or which topics there are.
pub(super) fn run(context: &Context, topic: &[String]) -> CommandResult {
    match topic {
        [] => overview(context),
        [kind, rest @ ..] if kinds::find(kind).is_some() => {
            let Some(entry) = kinds::find(kind) else { return Ok(DONE) };
            match rest {
                [] => kind_page(context, entry),
                path => field_page(context, entry, path),
            }
        }
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
    let fields = schema::fields(entry);
    if context.json() {
        let page = spec.doc.trim();
        context::print_json(&json!({"kind": spec.name, "version": spec.version, "fields": fields, "page": page}))?;
    } else {
        context::print(&page(spec.name, spec.doc, &fields))?;
    }
    Ok(DONE)
}

/// A kind's page for the terminal: in the place of the tables of fields a list of them, which also says what they take.
fn page(name: &str, doc: &str, fields: &[Field]) -> String {
    let mut text = format!("{name}\n\n");
    let (mut listed, mut code) = (false, false);
    for block in doc.trim().split("\n\n") {
        let in_code = code || block.starts_with("```");
        code ^= block.matches("```").count() % 2 == 1;
        if in_code {
            for line in block.lines().filter(|line| !line.starts_with("```")) {
                text.push_str(&indented("    ", line));
            }
        } else if block.starts_with("| field") || block.starts_with("| filter") {
            if std::mem::replace(&mut listed, true) {
                continue;
            }
            text.push_str("Fields; those with a * have no default:\n\n");
            list(&mut text, fields, 0);
            continue;
        } else if block.starts_with('|') {
            table(&mut text, block);
        } else {
            text.push_str(&wrapped(&schema::without_links(&block.replace('\n', " "))));
            text.push('\n');
        }
        text.push('\n');
    }
    text.trim_end().to_owned() + "\n"
}

fn indented(by: &str, line: &str) -> String {
    format!("{}\n", format!("{by}{line}").trim_end())
}

/// Fields, each with what it takes and, below, what it means; those of a table stand below it.
fn list(text: &mut String, fields: &[Field], depth: usize) {
    let margin = "    ".repeat(depth);
    for field in fields {
        let star = if field.required { " *" } else { "" };
        text.push_str(&format!("{margin}  {}{star}  ({})\n", field.name, field.takes));
        for line in wrapped(&field.about.replace("\n\n", "; ").replace("Default: ", "default: ")).lines() {
            text.push_str(&indented(&format!("{margin}      "), line));
        }
        list(text, &field.fields, depth + 1);
    }
    if depth == 0 {
        text.push('\n');
    }
}

/// Another table of a page: a line of its first column, the others below.
fn table(text: &mut String, block: &str) {
    for row in block.lines().filter(|row| !row.starts_with("|--")) {
        let row = row.trim_matches('|').replace("\\|", "\u{0}");
        let mut cells = row.split('|').map(|cell| schema::without_links(&cell.trim().replace('\u{0}', "|")));
        text.push_str(&indented("  ", &cells.next().unwrap_or_default()));
        for cell in cells.filter(|cell| !cell.is_empty()) {
            wrapped(&cell).lines().for_each(|line| text.push_str(&indented("      ", line)));
        }
    }
}

/// What a field takes and means, by its path: `finetune optimizer lr`.
fn field_page(context: &Context, entry: &Entry, path: &[String]) -> CommandResult {
    let mut fields = schema::fields(entry);
    let mut found = None;
    for word in path.iter().flat_map(|word| word.split('.')) {
        let Some(at) = fields.iter().position(|field| field.name == word) else {
            let of = format!("{} {}", entry.spec.name, path.join(" "));
            let fault = Diagnostic::error("cli::no-topic", format!("there is no help on `{of}`"));
            let known: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
            return Err(match did_you_mean(word, known.iter().copied()) {
                Some(near) => fault.help(format!("a field with a similar name exists: `{near}`")),
                None if known.is_empty() => fault.help("it has no fields"),
                None => fault.help(format!("the fields are {}", known.join(", "))),
            }
            .into());
        };
        let field = fields.swap_remove(at);
        fields.clone_from(&field.fields);
        found = Some(field);
    }
    let Some(field) = found else { return kind_page(context, entry) };
    if context.json() {
        context::print_json(&field)?;
        return Ok(DONE);
    }
    let mut text = format!("{} of kind {}\n\n", path.join("."), entry.spec.name);
    list(&mut text, &[field], 0);
    context::print(&text)?;
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
    fn a_page_lists_fields_with_what_they_take() {
        let entry = kinds::find("finetune").expect("a kind");
        let text = page("finetune", entry.spec.doc, &schema::fields(entry));
        assert!(text.contains("  objective *  (\"sami\" | \"dpo\" | \"sft\" | \"lm\")\n"), "{text}");
        assert!(text.contains("      lr *  (number)\n          Learning rate"), "{text}");
        assert!(!text.contains("| field") && !text.contains("```") && !text.contains("]("), "{text}");
        assert!(text.contains("    kind = \"finetune\"\n"), "the example: {text}");
        for kind in kinds::KINDS {
            let text = page(kind.spec.name, kind.spec.doc, &schema::fields(kind));
            let long = text.lines().find(|line| line.chars().count() > 130);
            assert_eq!(long.filter(|line| !line.starts_with("    ")), None, "{}", kind.spec.name);
        }
    }

    #[test]
    fn kinds_say_in_a_sentence_what_they_do() {
        assert_eq!(first_sentence("Runs a program\non files: all.\n\n| x |"), "Runs a program on files: all");
        for entry in kinds::KINDS {
            let about = first_sentence(entry.spec.doc);
            assert!(about.len() > 10 && !about.contains('|'), "{}: {about}", entry.spec.name);
        }
    }
}
