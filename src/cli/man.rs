//! `sami man DIR`: man pages, one of each command, made of what `--help` says.

use std::io::{self, Write};
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::{Cli, CommandResult, DONE, context};
use crate::{env, fs};

/// Writes the pages into a directory, which is made if it is not there. Pages of the same names are replaced.
pub(super) fn run(directory: &Path) -> CommandResult {
    fs::create_directory(directory)?;
    let pages = pages()?;
    for (name, page) in &pages {
        fs::write(&directory.join(name), page)?;
    }
    let shown = directory.display();
    context::print(&format!("{} pages in {shown}; read one with `man -l {shown}/sami.1`\n", pages.len()))?;
    Ok(DONE)
}

/// All pages, by the names of their files.
fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut root = Cli::command().name("sami").disable_help_subcommand(true);
    root.build();
    let mut found = Vec::new();
    collect(&root, "sami", None, &mut found)?;
    Ok(found)
}

fn collect(command: &Command, name: &str, parent: Option<&str>, found: &mut Vec<(String, Vec<u8>)>) -> io::Result<()> {
    let children: Vec<&Command> = command.get_subcommands().filter(|child| !child.is_hide_set()).collect();
    // The pages of commands below it are listed under SEE ALSO.
    let spoken = name.replace('-', " ");
    let own = command.clone().bin_name(spoken).display_name(name.to_owned());
    let man = Man::new(own).manual("sami").source(format!("sami {}", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if !children.is_empty() {
        section(&mut page, "COMMANDS")?;
        for child in &children {
            let about = child.get_about().map(ToString::to_string).unwrap_or_default();
            item(&mut page, &format!("{name}-{}(1)", child.get_name()), &about)?;
        }
    }
    if parent.is_none() {
        section(&mut page, "EXIT STATUS")?;
        for line in super::EXIT_CODES.lines().skip(1) {
            let (code, about) = line.trim().split_once("  ").unwrap_or((line, ""));
            item(&mut page, code, about)?;
        }
        section(&mut page, "ENVIRONMENT")?;
        let for_people = |doc: &str| {
            !doc.starts_with("For tests") && !doc.starts_with("For benchmarks") && !doc.contains("Read by tests")
        };
        for variable in env::ALL.iter().filter(|variable| for_people(variable.doc)) {
            item(&mut page, variable.name, variable.doc)?;
        }
    }
    section(&mut page, "SEE ALSO")?;
    let others = match parent {
        Some(parent) => format!("{parent}(1); `sami help` lists node kinds and commands"),
        None => "`sami help KIND` describes a node kind and its fields, `sami explain ID` an error".to_owned(),
    };
    writeln!(page, "{}", escaped(&others))?;
    found.push((format!("{name}.1"), page));
    for child in children {
        collect(child, &format!("{name}-{}", child.get_name()), Some(name), found)?;
    }
    Ok(())
}

fn section(page: &mut Vec<u8>, heading: &str) -> io::Result<()> {
    writeln!(page, ".SH \"{heading}\"")
}

fn item(page: &mut Vec<u8>, term: &str, about: &str) -> io::Result<()> {
    writeln!(page, ".TP\n\\fB{}\\fR\n{}", escaped(term), escaped(about))
}

/// Text that means itself: no escapes, no requests at the start of a line.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let lines =
        text.lines().map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_every_page_its_sections() {
        let pages = pages().expect("writes to memory");
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        for name in ["sami.1", "sami-run.1", "sami-cache.1", "sami-cache-gc.1", "sami-man.1"] {
            assert!(names.contains(&name), "{name} among {names:?}");
        }
        assert!(!names.contains(&"sami-worker.1"), "it is hidden");
        let page = |name: &str| {
            let (_, page) = pages.iter().find(|(found, _)| found == name).expect("a page");
            String::from_utf8(page.clone()).expect("text")
        };
        let root = page("sami.1");
        for part in ["SYNOPSIS", "COMMANDS", "EXIT STATUS", "ENVIRONMENT", "SAMI_CACHE", "interrupted"] {
            assert!(root.contains(part), "{part}");
        }
        for own in ["SAMI_FAULT", "SAMI_TEST", "SAMI_BENCH"] {
            assert!(!root.contains(own), "{own}: tests' own variables are no one else's business");
        }
        assert!(page("sami-cache-gc.1").contains("sami cache gc"), "{}", page("sami-cache-gc.1"));
    }

    #[test]
    fn text_means_itself() {
        assert_eq!(escaped(".so x\nC:\\n -a"), "\\&.so x\nC:\\en \\-a");
    }
}
