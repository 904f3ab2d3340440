//! Commands within sentences, such as `sami plan FILE --estimate`: they, and their flags, are there.

use clap::{Command, CommandFactory};
use sami::cli;

use crate::book::prose;
use crate::docs::documents;

/// The code spans of a text that begin with `sami `, outside of blocks.
fn spans(text: &str) -> Vec<String> {
    let outside = prose(text);
    // Between the first and the second backtick, the third and the fourth, and so on, of each paragraph.
    let paragraphs = outside.split("\n\n").flat_map(|paragraph| paragraph.split('`').skip(1).step_by(2));
    paragraphs
        .map(|span| span.split_whitespace().collect::<Vec<_>>().join(" "))
        .filter(|span| span.starts_with("sami "))
        .collect()
}

/// What is wrong with a command, if anything.
fn fault(span: &str, top: &Command) -> Option<String> {
    let mut command = top;
    let mut descends = true;
    for word in span.split(' ').skip(1) {
        if word.starts_with(['|', '>', ';', '&', '#']) {
            break;
        }
        let word = word.trim_matches(['[', ']', ',', '(', ')', '…', '\'', '"']);
        let flag = word.split('=').next().unwrap_or_default();
        if let Some(long) = flag.strip_prefix("--").filter(|long| !long.is_empty()) {
            let known = |command: &Command| command.get_arguments().any(|argument| argument.get_long() == Some(long));
            if !known(command) && !known(top) && long != "help" && long != "version" {
                return Some(format!("`{}` has no flag `--{long}`", command.get_name()));
            }
        } else if descends && !word.starts_with('-') && !word.is_empty() {
            match command.find_subcommand(word) {
                Some(found) => command = found,
                None if command.has_subcommands() && !word.chars().all(|c| c.is_ascii_uppercase()) => {
                    return Some(format!("`{}` has no command `{word}`", command.get_name()));
                }
                None => descends = false,
            }
        }
    }
    None
}

#[test]
fn commands_within_sentences_are_there_with_their_flags() {
    let top = cli::Cli::command();
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in documents() {
        for span in spans(&fs_err::read_to_string(&path).expect("a page")) {
            seen += 1;
            faults.extend(fault(&span, &top).map(|fault| format!("{}: `{span}`: {fault}", path.display())));
        }
    }
    assert!(seen > 50, "the scan found {seen} commands only");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_wrong_command_in_a_sentence_is_found() {
    let top = cli::Cli::command();
    assert_eq!(
        spans("a `x` `sami run\nFILE`\n```sh\n`sami b`\n```\n\nc ` d\n\n`sami plan`"),
        ["sami run FILE", "sami plan"]
    );
    for sound in
        ["sami run FILE [NODE…] --set lr=1", "sami cache gc --dry-run", "sami plan FILE | head", "sami COMMAND"]
    {
        assert_eq!(fault(sound, &top), None, "{sound}");
    }
    for wrong in ["sami rnu FILE", "sami plan FILE --sett lr=1", "sami cache gcc", "sami cache gc --no-such-flag"] {
        assert!(fault(wrong, &top).is_some(), "{wrong}");
    }
}
