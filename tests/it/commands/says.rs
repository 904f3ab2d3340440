//! What a page shows of a command's answer, held to what the command says: `…` stands for anything within a line, and
//! a line of `…` alone for any lines.

/// Does a line look like this one? Blanks in a row count as one, for tables are as wide as what is in them.
fn line_matches(shown: &str, said: &str) -> bool {
    let plain = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let (shown, said) = (plain(shown), plain(said));
    let mut parts = shown.split('…').map(str::trim);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = said.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
        last = Some(part);
    }
    // Without `…` nothing may follow; at the end of the line the last part has to be there as the last.
    match last {
        None => rest.is_empty(),
        Some("") => true,
        Some(part) => said.ends_with(part),
    }
}

/// The first shown line that was not said where it is shown, or nothing.
pub(crate) fn difference(shown: &str, said: &str) -> Option<String> {
    let said: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let mut at = 0;
    let mut any = false;
    for line in shown.lines().filter(|line| !line.trim().is_empty()) {
        if line.trim() == "…" {
            any = true;
            continue;
        }
        let found = said[at..].iter().position(|candidate| line_matches(line, candidate));
        match found {
            Some(skipped) if any || skipped == 0 => at += skipped + 1,
            _ => return Some(line.to_owned()),
        }
        any = false;
    }
    (!any && at < said.len()).then(|| format!("(nothing more; it goes on: {})", said[at]))
}

/// The commands of a `console` block, each with what is shown of its answer.
pub(crate) fn dialogue(text: &str) -> Vec<(String, String)> {
    let mut dialogue: Vec<(String, String)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix("$ "), dialogue.last_mut()) {
            (Some(command), _) => dialogue.push((command.to_owned(), String::new())),
            (None, Some((_, answer))) => {
                answer.push_str(line);
                answer.push('\n');
            }
            (None, None) => panic!("a dialogue begins with `$ `: {line}"),
        }
    }
    dialogue
}

#[test]
fn answers_are_held_to_what_is_shown() {
    let said = "state  node\nrun    draft  never ran\nfresh  x\n\n2 nodes, 0.03 s\n";
    for shown in [
        "state node\nrun draft never ran\nfresh x\n2 nodes, … s",
        "…\n2 nodes, …",
        "state node\n…",
        "…\nrun … ran\n…",
        "state …\nrun draft never ran\n…\n2 nodes, 0.03 s",
    ] {
        assert_eq!(difference(shown, said), None, "{shown}");
    }
    for (shown, first) in [
        ("state node", "(nothing more; it goes on: run    draft  never ran)"),
        ("…\nrun … never", "run … never"),
        ("state node\nfresh x\n…", "fresh x"),
        ("…\n2 nodes, … s\n…\nfresh x", "fresh x"),
        ("…\n3 nodes, …", "3 nodes, …"),
    ] {
        assert_eq!(difference(shown, said).as_deref(), Some(first), "{shown}");
    }
}

#[test]
fn a_dialogue_is_commands_and_answers() {
    let expected = vec![("sami a".to_owned(), "one\n\n".to_owned()), ("sami b".to_owned(), String::new())];
    assert_eq!(dialogue("$ sami a\none\n\n$ sami b\n"), expected);
}
