//! What standard output can show: how wide it is, whether it takes colours, and differing words marked on it.

use std::io::{self, IsTerminal};

use super::figures::{columns, cut, plain};
use super::terminal;
use crate::compare::{Piece, lines, words};
use crate::graph::key::Change;

/// Width where it is no terminal.
const WIDTH: usize = 100;
/// Narrowest width that is kept to.
const NARROWEST: usize = 40;
/// Width where nothing is cut or broken.
const ENDLESS: usize = 1 << 20;
/// Letters of what is the same in both that are shown beside a difference.
const BESIDE: usize = 32;
/// Lines of a text that changed.
const LINES: usize = 12;

/// What there is to draw on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Screen {
    /// Columns that lines are kept to.
    pub(super) width: usize,
    /// Columns that tables are kept to: those of a terminal. What goes elsewhere has tables as wide as they are.
    pub(super) room: Option<usize>,
    /// Whether all is told in lines of words.
    pub(super) plain: bool,
    pub(super) coloured: bool,
}

/// What becomes of a part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mark {
    Same,
    Old,
    New,
}

impl Screen {
    /// Standard output, with colours if it is a terminal and nothing (`NO_COLOR`, `--plain`) says otherwise.
    pub(super) fn of_stdout() -> Self {
        Self::of(&io::stdout(), io::stdout().is_terminal())
    }

    /// Standard error, likewise.
    pub(super) fn of_stderr() -> Self {
        Self::of(&io::stderr(), io::stderr().is_terminal())
    }

    fn of(stream: &(impl std::os::fd::AsFd + anstream::stream::RawStream), is_terminal: bool) -> Self {
        let plain = terminal::is_plain();
        let coloured = !plain && anstream::AutoStream::choice(stream) != anstream::ColorChoice::Never;
        let room = terminal::size(stream).filter(|_| is_terminal && !plain).map(|(width, _)| width.max(NARROWEST));
        Self { width: if plain { ENDLESS } else { room.unwrap_or(WIDTH) }, room, plain, coloured }
    }

    /// What no terminal shows.
    #[cfg(test)]
    pub(super) fn piped() -> Self {
        Self { width: WIDTH, room: None, plain: false, coloured: false }
    }

    /// What is read out.
    #[cfg(test)]
    pub(super) fn spoken() -> Self {
        Self { width: ENDLESS, room: None, plain: true, coloured: false }
    }

    /// A terminal of this width without colours.
    #[cfg(test)]
    pub(super) fn plain(width: usize) -> Self {
        Self { width, room: Some(width), plain: false, coloured: false }
    }

    /// A heading.
    pub(super) fn bold(self, text: &str) -> String {
        if self.coloured { format!("\u{1b}[1m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn paint(self, mark: Mark, text: &str) -> String {
        match (mark, self.coloured) {
            (Mark::Old, true) => format!("\u{1b}[31m{text}\u{1b}[0m"),
            (Mark::New, true) => format!("\u{1b}[32m{text}\u{1b}[0m"),
            _ => text.to_owned(),
        }
    }

    /// Cuts a line of plain text.
    pub(super) fn fit(self, text: &str) -> String {
        cut(text, self.width)
    }

    /// A changed value after its path: where it fits, the old and the new one; of texts, and where they do not fit, what
    /// differs in them. Further lines begin `indent` further to the right.
    pub(super) fn change(self, change: &Change, indent: usize) -> Vec<String> {
        use serde_json::Value;
        let gap = " ".repeat(indent);
        let short = format!("{gap}{change}");
        let told = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let (Some(old), Some(new)) = (&change.old, &change.new) else { return vec![self.fit(&short)] };
        let (old, new) = (told(old), told(new));
        let whole = !short.contains('…') && columns(&short) <= self.width;
        if change.path.starts_with("input ") || (whole && !old.contains('\n') && !new.contains('\n')) {
            return vec![self.fit(&short)];
        }
        let mut shown = vec![self.fit(&format!("{gap}{}", change.path))];
        shown.extend(self.texts(&old, &new, indent + 2));
        shown
    }

    /// What differs between two texts, `indent` to the right: lines with `-` and `+`, or words in one.
    pub(super) fn texts(self, old: &str, new: &str, indent: usize) -> Vec<String> {
        if old.trim_end().contains('\n') || new.trim_end().contains('\n') {
            return self.changed_lines(old, new, indent);
        }
        self.changed_words(&words(old, new), indent)
    }

    /// Words that went and came among those around them: `[-old-]{+new+}` where there are no colours.
    fn changed_words(self, pieces: &[Piece<'_>], indent: usize) -> Vec<String> {
        let mut parts: Vec<(Mark, String)> = Vec::new();
        for (at, piece) in pieces.iter().enumerate() {
            let (mark, text) = match piece {
                Piece::Same(text) => (Mark::Same, shortened(&plain(text), at > 0, at + 1 < pieces.len())),
                Piece::Old(text) if self.coloured => (Mark::Old, plain(text)),
                Piece::New(text) if self.coloured => (Mark::New, plain(text)),
                Piece::Old(text) => (Mark::Old, format!("[-{}-]", plain(text))),
                Piece::New(text) => (Mark::New, format!("{{+{}+}}", plain(text))),
            };
            parts.push((mark, text));
        }
        self.wrapped(&parts, indent)
    }

    /// Parts of a text on lines of the screen's width; of too many lines the first ones.
    fn wrapped(self, parts: &[(Mark, String)], indent: usize) -> Vec<String> {
        let room = self.width.saturating_sub(indent).max(NARROWEST / 2);
        let gap = " ".repeat(indent);
        let (mut lines, mut line, mut used) = (Vec::new(), gap.clone(), 0);
        for (mark, text) in parts {
            let mut waiting = String::new();
            for word in text.split_inclusive(' ') {
                let mut rest = word;
                loop {
                    let length = columns(rest);
                    if used + length <= room + usize::from(rest.ends_with(' ')) {
                        waiting.push_str(rest);
                        used += length;
                        break;
                    }
                    // A word that is longer than a line is broken, any other begins the next one.
                    let taken = if used == 0 { room } else { 0 };
                    let end = rest.char_indices().nth(taken).map_or(rest.len(), |(end, _)| end);
                    waiting.push_str(&rest[..end]);
                    rest = &rest[end..];
                    line.push_str(&self.paint(*mark, &std::mem::take(&mut waiting)));
                    lines.push(std::mem::replace(&mut line, gap.clone()));
                    used = 0;
                }
            }
            if !waiting.is_empty() {
                line.push_str(&self.paint(*mark, &waiting));
            }
        }
        if used > 0 {
            lines.push(line);
        }
        if lines.len() > LINES {
            lines.truncate(LINES);
            lines.push(format!("{gap}…"));
        }
        // Blanks at an end are only worth it where they are what differs.
        lines.iter().map(|line| line.trim_end().to_owned()).collect()
    }

    /// Lines that went and came, with the line before and after them.
    fn changed_lines(self, old: &str, new: &str, indent: usize) -> Vec<String> {
        let mut all: Vec<(Mark, &str)> = Vec::new();
        for piece in lines(old, new) {
            let (mark, text) = match piece {
                Piece::Same(text) => (Mark::Same, text),
                Piece::Old(text) => (Mark::Old, text),
                Piece::New(text) => (Mark::New, text),
            };
            all.extend(text.lines().map(|line| (mark, line)));
        }
        let differs = |at: usize| all.get(at).is_some_and(|(mark, _)| *mark != Mark::Same);
        let shown: Vec<usize> =
            (0..all.len()).filter(|at| differs(*at) || differs(at + 1) || (*at > 0 && differs(at - 1))).collect();
        let gap = " ".repeat(indent);
        let mut lines = Vec::new();
        for (place, at) in shown.iter().take(LINES).enumerate() {
            if (place == 0 && *at > 0) || (place > 0 && shown[place - 1] + 1 < *at) {
                lines.push(format!("{gap}…"));
            }
            let (mark, text) = all[*at];
            let sign = match mark {
                Mark::Same => ' ',
                Mark::Old => '-',
                Mark::New => '+',
            };
            lines.push(format!("{gap}{}", self.paint(mark, &cut(&format!("{sign} {text}"), self.width - indent))));
        }
        if shown.len() > LINES {
            let more = shown[LINES..].iter().filter(|at| differs(**at)).count();
            lines.push(format!("{gap}… {more} more lines differ"));
        }
        lines
    }
}

/// A text that is the same in both, without what is far from a difference; there is one `before` it, `after` it, or both.
fn shortened(text: &str, before: bool, after: bool) -> String {
    let letters: Vec<char> = text.chars().collect();
    let (head, tail) = (if before { BESIDE } else { 0 }, if after { BESIDE } else { 0 });
    if letters.len() <= head + tail + 1 {
        return text.to_owned();
    }
    let part = |letters: &[char]| letters.iter().collect::<String>();
    format!("{}…{}", part(&letters[..head]), part(&letters[letters.len() - tail..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn change(old: Value, new: Value) -> Change {
        Change { path: "prompt".to_owned(), old: Some(old), new: Some(new) }
    }

    #[test]
    fn what_fits_is_told_whole_and_texts_by_what_differs() {
        let screen = Screen::plain(60);
        assert_eq!(screen.change(&change(json!(1), json!(2)), 2), ["  prompt 1 -> 2"]);
        let (old, new) = (
            format!("{}the quick fox {}", "a ".repeat(40), "b ".repeat(40)),
            format!("{}the slow fox {}", "a ".repeat(40), "b ".repeat(40)),
        );
        assert_eq!(
            screen.change(&change(json!(old), json!(new)), 0),
            ["prompt", "  …a a a a a a a a a a a a a a the [-quick-]{+slow+} fox b b", "  b b b b b b b b b b b b…"]
        );
        let lines = screen.change(&change(json!("one\ntwo\nthree\nfour\n"), json!("one\ntwo\n3\nfour\n")), 0);
        assert_eq!(lines, ["prompt", "  …", "    two", "  - three", "  + 3", "    four"]);
        let gone = Change { new: None, ..change(json!("x".repeat(100)), json!(0)) };
        assert_eq!(screen.change(&gone, 0).len(), 1);
    }

    #[test]
    fn nothing_is_wider_than_the_screen_and_nothing_steers_it() {
        let screen = Screen::plain(40);
        let (old, new) = ("x".repeat(500), format!("\u{1b}[31m{}", "y z ".repeat(500)));
        for lines in [screen.texts(&old, &new, 4), screen.texts(&format!("{old}\n{new}"), &new, 4)] {
            assert!(lines.iter().all(|line| line.chars().count() <= 40), "{lines:#?}");
            assert!(lines.len() <= LINES + 1 && !lines.concat().contains('\u{1b}'), "{lines:#?}");
        }
        let coloured = Screen { coloured: true, ..screen };
        assert_eq!(coloured.texts("a b", "a c", 0), ["a \u{1b}[31mb\u{1b}[0m\u{1b}[32mc\u{1b}[0m"]);
    }
}
