//! Draws diagnostics as text: the only place that does.

use std::fmt::Write;
use std::ops::Range;
use std::sync::Arc;

use annotate_snippets::renderer::DecorStyle;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::{Value, json};

use super::{explain_error, terminal};
use crate::diag::{Diagnostic, Label, Severity, Source};

/// Lines of text around the labels that the renderer is given; it folds what is not needed.
const CONTEXT: usize = 1;
/// Findings drawn in full; the rest is counted. No one reads a thousand errors.
const MOST_DRAWN: usize = 100;

/// Draws findings for standard error, in colour if that is a terminal and nothing says otherwise.
pub(crate) fn render(diagnostics: &[Diagnostic]) -> String {
    if terminal::is_plain() {
        return diagnostics.iter().map(words).collect();
    }
    let coloured = anstream::AutoStream::choice(&std::io::stderr()) != anstream::ColorChoice::Never;
    draw(diagnostics, coloured)
}

/// Where it says what these errors mean, in a line; none of what is not explained.
pub(super) fn pointer(diagnostics: &[Diagnostic]) -> Option<String> {
    let errors = diagnostics.iter().filter(|found| found.severity == Severity::Error).map(|found| found.id);
    let mut ids: Vec<&str> = errors.filter(|id| explain_error::is_known(id)).collect();
    ids.dedup();
    match ids[..] {
        [] => None,
        [id] => Some(format!("what it means: `sami explain {id}`\n")),
        [id, ..] => Some(format!("what they mean: `sami explain ID`, such as `sami explain {id}`\n")),
    }
}

/// A finding in lines that can be read out: no arrows, no excerpts but the line that is meant.
fn words(diagnostic: &Diagnostic) -> String {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let mut text = format!("{severity} {}: {}\n", diagnostic.id, printable(&diagnostic.title));
    for Label { source, span, text: label, .. } in &diagnostic.labels {
        let (line, column) = source.position(span.start);
        let told = source.text.lines().nth(line - source.first_line).unwrap_or_default();
        let _ = writeln!(text, "at {}, line {line}, column {column}: {}", source.path, printable(told.trim()));
        if !label.is_empty() {
            let _ = writeln!(text, "there: {}", printable(label));
        }
    }
    for (word, parts) in [("note", &diagnostic.notes), ("help", &diagnostic.help)] {
        for part in parts {
            let _ = writeln!(text, "{word}: {}", printable(part));
        }
    }
    text + "\n"
}

/// Draws findings, and counts them if they are several.
pub(super) fn draw(diagnostics: &[Diagnostic], coloured: bool) -> String {
    let renderer = if coloured { Renderer::styled() } else { Renderer::plain() };
    let renderer = renderer.decor_style(DecorStyle::Ascii).term_width(120);
    let mut text = String::new();
    for diagnostic in diagnostics.iter().take(MOST_DRAWN) {
        text.push_str(&renderer.render(&[group(diagnostic)]));
        text.push_str("\n\n");
    }
    let count = |severity| diagnostics.iter().filter(|found| found.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    if diagnostics.len() > MOST_DRAWN {
        let _ = writeln!(text, "{} more are not shown", diagnostics.len() - MOST_DRAWN);
    }
    if diagnostics.len() > 1 {
        let plural = |count: usize, noun: &str| format!("{count} {noun}{}", if count == 1 { "" } else { "s" });
        let parts: Vec<String> = [(errors, "error"), (warnings, "warning")]
            .into_iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, noun)| plural(count, noun))
            .collect();
        let _ = writeln!(text, "{}", parts.join(", "));
    }
    text
}

fn group(diagnostic: &Diagnostic) -> Group<'_> {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let mut group = Group::with_title(level.primary_title(printable(&diagnostic.title)).id(diagnostic.id));
    // One excerpt per text, in the order in which labels name them.
    let mut sources: Vec<&Arc<Source>> = Vec::new();
    for label in &diagnostic.labels {
        if !sources.iter().any(|known| Arc::ptr_eq(known, &label.source)) {
            sources.push(&label.source);
        }
    }
    for source in sources {
        let labels = diagnostic.labels.iter().enumerate().filter(|(_, label)| Arc::ptr_eq(&label.source, source));
        let labels: Vec<(bool, &Label)> = labels.map(|(at, label)| (at == 0, label)).collect();
        group = group.element(excerpt(source, &labels));
    }
    let notes = diagnostic.notes.iter().map(|note| Level::NOTE.message(printable(note)));
    let helps = diagnostic.help.iter().map(|help| Level::HELP.message(printable(help)));
    group.elements(notes).elements(helps)
}

/// The lines that labels point at, without the rest of what may be a large file.
fn excerpt<'a>(source: &'a Source, labels: &[(bool, &'a Label)]) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
    let text = &source.text;
    let first = labels.iter().map(|(_, label)| label.span.start).min().unwrap_or(0).min(text.len());
    let last = labels.iter().map(|(_, label)| label.span.end).max().unwrap_or(0).min(text.len());
    let bytes = text.as_bytes();
    let mut start = first;
    for _ in 0..=CONTEXT {
        start = bytes[..start].iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    }
    if start > 0 {
        start += 1;
    }
    let mut end = last;
    for _ in 0..=CONTEXT {
        end = bytes[end..].iter().position(|byte| *byte == b'\n').map_or(text.len(), |newline| end + newline + 1);
    }
    let line = source.position(start).0;
    let annotate = |(primary, label): &(bool, &'a Label)| {
        let kind = if *primary { AnnotationKind::Primary } else { AnnotationKind::Context };
        let span = clamp(&label.span, &text[start..end], start);
        let annotation = kind.span(span);
        if label.text.is_empty() { annotation } else { annotation.label(label.text.as_str()) }
    };
    Snippet::source(&text[start..end])
        .path(source.path.as_str())
        .line_start(line)
        .annotations(labels.iter().map(annotate).collect::<Vec<_>>())
}

/// A span within an excerpt that begins at `start`, widened to whole characters: the renderer panics at anything else.
fn clamp(span: &Range<usize>, excerpt: &str, start: usize) -> Range<usize> {
    let mut first = span.start.saturating_sub(start).min(excerpt.len());
    while !excerpt.is_char_boundary(first) {
        first -= 1;
    }
    let mut last = span.end.saturating_sub(start).clamp(first, excerpt.len());
    while !excerpt.is_char_boundary(last) {
        last += 1;
    }
    first..last
}

/// Text without control characters: names in messages may come from anywhere.
fn printable(text: &str) -> String {
    annotate_snippets::normalize_untrusted_str(text)
}

/// A finding for programs: lines and columns count from 1, columns in characters.
pub(crate) fn as_json(diagnostic: &Diagnostic) -> Value {
    let labels: Vec<Value> = diagnostic
        .labels
        .iter()
        .map(|label| {
            let (line, column) = label.source.position(label.span.start);
            json!({"file": label.source.path, "line": line, "column": column, "text": label.text})
        })
        .collect();
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    json!({
        "id": diagnostic.id, "severity": severity, "title": diagnostic.title, "labels": labels,
        "notes": diagnostic.notes, "help": diagnostic.help,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_show_place_and_fix() {
        let source = Arc::new(Source::new("p.toml", "a = 1\nb = 2\n[nodes.x]\ntempreature = 0.7\n\n\nlast = 'é'\n"));
        let at = |needle: &str| {
            let start = source.text.find(needle).expect("it is there");
            start..start + needle.len()
        };
        let found = Diagnostic::error("pipeline::unknown-key", "node `x` has no key `tempreature`")
            .label(&source, at("tempreature"), "unknown key")
            .label(&source, at("'é'"), "")
            .note("a note")
            .help("a key with a similar name exists: `temperature`");
        let drawn = draw(&[found], false);
        let expected = "\
error[pipeline::unknown-key]: node `x` has no key `tempreature`
 --> p.toml:4:1
  |
4 | tempreature = 0.7
  | ^^^^^^^^^^^ unknown key
...
7 | last = 'é'
  |        ---
  |
  = note: a note
  = help: a key with a similar name exists: `temperature`

";
        assert_eq!(drawn, expected);
    }

    #[test]
    fn errors_are_pointed_to_what_explains_them() {
        let error = |id| Diagnostic::error(id, "x");
        let (key, file) = (error("pipeline::unknown-key"), error("pipeline::unreadable"));
        let known = pointer(&[error("a::b"), key.clone(), key.clone(), file.clone().as_warning()]);
        assert_eq!(known.as_deref(), Some("what it means: `sami explain pipeline::unknown-key`\n"));
        assert!(pointer(&[key, file]).is_some_and(|several| several.starts_with("what they mean: `sami explain ID`")));
        assert_eq!(pointer(&[error("a::b"), Diagnostic::warning("pipeline::unknown-key", "x")]), None);
    }

    #[test]
    fn places_at_the_ends_and_in_excerpts_are_drawn() {
        let excerpt = Arc::new(Source { path: "d.jsonl".to_owned(), text: "{oops".to_owned(), first_line: 1_203 });
        let empty = Arc::new(Source::new("e.toml", ""));
        let wide = Arc::new(Source::new("w.toml", "é = \u{fffd}\n"));
        let found = [
            Diagnostic::error("dataset::bad-row", "row 1203 is malformed").label(&excerpt, 4..5, "not JSON"),
            Diagnostic::warning("pipeline::no-nodes", "no \u{1b}[31mnodes").label(&empty, 0..0, "nothing"),
            Diagnostic::error("pipeline::x", "beyond the end").label(&empty, 7..9, ""),
            Diagnostic::error("pipeline::x", "within a character").label(&wide, 4..5, "here"),
        ];
        let drawn = draw(&found, false);
        assert!(drawn.contains("d.jsonl:1203:5") && drawn.contains("1203 | {oops"), "{drawn}");
        assert!(!drawn.contains('\u{1b}') && drawn.ends_with("3 errors, 1 warning\n"), "{drawn}");
        assert!(draw(&found, true).contains('\u{1b}'));
        assert!(
            words(&found[0]).contains("\nat d.jsonl, line 1203, column 5: {oops\nthere: not JSON\n"),
            "{}",
            words(&found[0])
        );
        assert!(words(&found[2]).contains("\nat e.toml, line 1, column 1: \n"), "{}", words(&found[2]));
    }

    #[test]
    fn large_files_are_not_copied_for_each_finding() {
        let source = Arc::new(Source::new("p.toml", "key = 1\n".repeat(1_000_000)));
        let found: Vec<_> = (0..100)
            .map(|at| Diagnostic::error("a::b", "x").label(&source, at * 80_000..at * 80_000 + 3, "y"))
            .collect();
        let start = std::time::Instant::now();
        assert!(draw(&found, false).contains("p.toml:990001:1"));
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }
}
